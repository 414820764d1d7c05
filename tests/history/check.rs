//! The invariants of a recorded history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    LIMIT,
    client::{Answer, End, Event, What},
};

/// A violated guarantee.
#[derive(Clone, Debug)]
pub struct Violation {
    pub promise: &'static str,
    pub of: String,
    pub events: Vec<Event>,
}

pub const NO_USE_AFTER_THE_END: &str = "no request is accepted after an acknowledged end of its session";
pub const NO_LOST_WRITE: &str = "no acknowledged write is lost";
pub const NO_UNREPORTED_LOSS: &str = "no acknowledged write is overwritten unseen without a reported conflict";
pub const LIMIT_KEPT: &str = "no user has more sessions than allowed";
pub const USED_ONCE: &str = "a session for a single use is used once";
pub const LISTED: &str = "every live session is listed, and no other";
pub const ONE_TOKEN: &str = "a live session has exactly one token";
pub const LIVES: &str = "a session that nobody ended is alive";

/// The invariants that hold even if the store loses everything.
pub const HOLDS_WHATEVER_IS_LOST: [&str; 3] = [NO_USE_AFTER_THE_END, LIMIT_KEPT, USED_ONCE];

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NOT TRUE: {}: {}", self.promise, self.of)?;
        let last = self.events.len().saturating_sub(20);
        if last > 0 {
            write!(f, "\n    … {last} before")?;
        }
        for Event { client, begun, ended, what, answer, given } in &self.events[last..] {
            write!(f, "\n    {begun:>6}–{ended:<6} client {client}: {what:?} → {answer:?}")?;
            if let Some(place) = given {
                write!(f, ", token {place}")?;
            }
        }
        Ok(())
    }
}

pub fn all(events: &[Event], end: &End) -> Vec<Violation> {
    let stories = stories(events);
    let mut violations = [
        no_use_after_the_end(events, &stories, end),
        no_lost_write(&stories, end),
        no_unreported_loss(&stories, end),
        limit_kept(events, end),
        used_once(events, end),
        listed(events, &stories, end),
        one_token(&stories, end),
        lives(&stories, end),
    ]
    .concat();
    violations.iter_mut().for_each(|violation| violation.events.sort_by_key(|event| event.begun));
    violations
}

fn violation(promise: &'static str, of: &str, events: &[&Event]) -> Violation {
    Violation { promise, of: of.to_owned(), events: events.iter().map(|event| (*event).clone()).collect() }
}

/// The history of a session.
struct Story<'a> {
    id: &'a str,
    user: &'a str,
    login: &'a Event,
    /// The events of this session, in the order of their starts.
    events: Vec<&'a Event>,
    /// The first acknowledged end.
    end: Option<&'a Event>,
    /// The operations that may have ended it: an end, or another login of its user, which may replace or evict it.
    threats: Vec<&'a Event>,
}

fn stories(events: &[Event]) -> BTreeMap<&str, Story<'_>> {
    let mut stories = BTreeMap::new();
    let mut of_user = BTreeMap::<&str, Vec<&Event>>::new();
    for event in events {
        let what = &event.what;
        if let (What::Login { user } | What::LoginAgain { user, .. }, Answer::Session(id)) = (what, &event.answer) {
            let story = Story { id, user, login: event, events: Vec::new(), end: None, threats: Vec::new() };
            stories.insert(id.as_str(), story);
        }
        if let What::Login { user } | What::LoginAgain { user, .. } | What::RevokeUser { user } = what {
            of_user.entry(user).or_default().push(event);
        }
    }
    for event in events {
        if let Some(story) = session_of(event).and_then(|session| stories.get_mut(session)) {
            story.events.push(event);
        }
    }
    for story in stories.values_mut() {
        story.events.sort_by_key(|event| event.begun);
        let own = story.events.iter().copied();
        let all = own.chain(of_user.get(story.user).into_iter().flatten().copied()).filter(|event| {
            !std::ptr::eq(*event, story.login)
                && match &event.what {
                    What::Logout { .. } | What::Revoke { .. } => true,
                    What::LoginAgain { session, .. } if session == story.id => true,
                    // It ended before the session started, unless its end is unknown.
                    What::Login { .. } | What::LoginAgain { .. } | What::RevokeUser { .. } => {
                        event.ended > story.login.begun || event.answer == Answer::Unknown
                    }
                    _ => false,
                }
        });
        story.threats = all.clone().collect();
        story.threats.sort_by_key(|event| event.begun);
        let ends = all.filter(|event| match (&event.what, &event.answer) {
            // The sessions that existed when the operation started.
            (What::RevokeUser { .. }, Answer::Done) => story.login.ended < event.begun,
            (_, Answer::Done) => true,
            (What::LoginAgain { session, .. }, Answer::Session(_)) => session == story.id,
            _ => false,
        });
        story.end = ends.min_by_key(|event| event.ended);
    }
    stories
}

fn session_of(event: &Event) -> Option<&str> {
    match &event.what {
        What::Write { session, .. }
        | What::Read { session, .. }
        | What::Rotate { session, .. }
        | What::Logout { session, .. }
        | What::Revoke { session } => Some(session),
        _ => None,
    }
}

/// The token of a request.
fn token_of(event: &Event) -> Option<usize> {
    match event.what {
        What::Write { token, .. }
        | What::Read { token, .. }
        | What::Rotate { token, .. }
        | What::Logout { token, .. } => Some(token),
        _ => None,
    }
}

/// Whether it was served with its session.
fn is_accepted(event: &Event) -> bool {
    token_of(event).is_some() && event.is_acknowledged()
}

impl<'a> Story<'a> {
    /// Whether it was certainly live until `time`.
    fn is_alive_until(&self, time: u64) -> bool {
        self.threats.first().is_none_or(|threat| threat.begun >= time)
    }

    /// The session that its login replaced.
    fn replaced(&self) -> Option<&'a str> {
        if let What::LoginAgain { session, .. } = &self.login.what { Some(session) } else { None }
    }

    /// The events that returned this token.
    fn given(&self, token: usize) -> impl Iterator<Item = &'a Event> {
        let all = self.events.iter().copied().chain([self.login]);
        all.filter(move |event| event.given == Some(token))
    }

    /// Events that may have invalidated this token before `time`, or at any time.
    fn rotated_away(&self, token: usize, time: u64) -> Option<&'a Event> {
        let since = self.given(token).map(|event| event.begun).min().unwrap_or(0);
        let mut rotations = self.events.iter().filter(|event| matches!(event.what, What::Rotate { .. }));
        let void = rotations.find(|event| {
            event.answer != Answer::Refused && event.begun < time && event.ended > since && event.given != Some(token)
        });
        void.copied()
    }
}

fn no_use_after_the_end(events: &[Event], stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    let ended: BTreeMap<&str, &Event> = stories.iter().filter_map(|(id, story)| Some((*id, story.end?))).collect();
    for (id, over) in &ended {
        let story = &stories[id];
        for event in story.events.iter().filter(|event| is_accepted(event) && event.begun > over.ended) {
            violations.push(violation(NO_USE_AFTER_THE_END, id, &[story.login, over, event]));
        }
        if end.open.contains_key(*id) {
            violations.push(violation(NO_USE_AFTER_THE_END, &format!("{id} is open at the end"), &[story.login, over]));
        }
        if end.listed.get(story.user).is_some_and(|ids| ids.contains(*id)) {
            violations.push(violation(LISTED, &format!("{id} has ended and is listed"), &[story.login, over]));
        }
    }
    for event in events {
        let Answer::Listed(ids) = &event.answer else { continue };
        for id in ids {
            if let Some(over) = ended.get(id.as_str()).filter(|over| over.ended < event.begun) {
                violations.push(violation(LISTED, &format!("{id} has ended and is listed"), &[over, event]));
            }
        }
    }
    violations
}

/// The writes of one key of one session.
#[derive(Default)]
struct Writes<'a> {
    all: Vec<&'a Event>,
    by_value: BTreeMap<u64, &'a Event>,
    /// The acknowledged writes in the order of their acknowledgments: its time, and the latest start among them.
    acknowledged: Vec<(u64, u64)>,
    /// The earliest time at which the session may have ended.
    threatened: u64,
}

impl<'a> Writes<'a> {
    fn of(story: &Story<'a>) -> BTreeMap<&'a str, Self> {
        let mut keys = BTreeMap::<_, Self>::new();
        for event in &story.events {
            if let What::Write { key, value, .. } = &event.what {
                let writes = keys.entry(key.as_str()).or_default();
                writes.all.push(event);
                writes.by_value.insert(*value, event);
                if event.is_acknowledged() {
                    writes.acknowledged.push((event.ended, event.begun));
                }
            }
        }
        for writes in keys.values_mut() {
            writes.threatened = story.threats.first().map_or(u64::MAX, |threat| threat.begun);
            writes.acknowledged.sort_unstable();
            let mut last = 0;
            for (_, begun) in &mut writes.acknowledged {
                last = last.max(*begun);
                *begun = last;
            }
        }
        keys
    }

    /// The latest start of the writes acknowledged before.
    fn last_begun_of_those_done_by(&self, time: u64) -> Option<u64> {
        let count = self.acknowledged.partition_point(|(ended, _)| *ended < time);
        Some(self.acknowledged.get(count.checked_sub(1)?)?.1)
    }

    /// Whether a read from `begun` to `ended` may return what this write wrote.
    fn may_have(&self, write: &Event, begun: u64, ended: u64) -> bool {
        // A later write was acknowledged before, so this value is overwritten.
        let over = self.last_begun_of_those_done_by(begun).is_some_and(|last| last > write.ended);
        // It was applied, its reply was lost, the session ended, and the retry found no session. A later read does not see it.
        let undone = write.answer == Answer::Refused && !(begun < write.ended && self.threatened < write.ended);
        write.begun < ended && !undone && !over
    }
}

/// The writes of all sessions.
struct AllWrites<'a> {
    stories: &'a BTreeMap<&'a str, Story<'a>>,
    by_session: BTreeMap<&'a str, BTreeMap<&'a str, Writes<'a>>>,
}

impl<'a> AllWrites<'a> {
    fn of(stories: &'a BTreeMap<&'a str, Story<'a>>) -> Self {
        Self { stories, by_session: stories.iter().map(|(id, story)| (*id, Writes::of(story))).collect() }
    }

    /// The session, the one that it replaced, and so on.
    fn line(&self, id: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::successors(Some(id), |id| self.stories.get(id)?.replaced())
    }

    /// Whether a read of session `id` from `begun` to `ended` may return this value; `None` is no value.
    fn may_be(&self, id: &str, key: &str, value: Option<u64>, begun: u64, ended: u64) -> bool {
        let own = self.by_session.get(id).and_then(|keys| keys.get(key));
        if let Some(own) = own {
            if let Some(write) = value.and_then(|value| own.by_value.get(&value)) {
                return own.may_have(write, begun, ended);
            }
            if own.last_begun_of_those_done_by(begun).is_some() {
                return false;
            }
        }
        let login = self.stories.get(id).map(|story| story.login);
        let old = self.stories.get(id).and_then(Story::replaced).and_then(|old| self.stories.get(old));
        let (Some(login), Some(old)) = (login, old) else { return value.is_none() };
        // If the old session ended in another way, its values are not taken over.
        let ended_otherwise =
            old.threats.iter().any(|threat| !std::ptr::eq(*threat, login) && threat.begun < login.ended);
        value.is_none() && ended_otherwise || self.may_be(old.id, key, value, login.begun, login.ended)
    }
}

fn no_lost_write(stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    let writes = AllWrites::of(stories);
    for (id, story) in stories {
        let looks = story.events.iter().filter_map(|event| match &event.answer {
            Answer::Values(values) => Some((Some(*event), values, event.begun, event.ended)),
            _ => None,
        });
        let looks = looks.chain(end.values.get(*id).map(|values| (None, values, u64::MAX, u64::MAX)));
        let looks: Vec<_> = looks.collect();
        let written = || writes.line(id).filter_map(|id| writes.by_session.get(id));
        // A value that nobody wrote is a violation.
        let read = looks.iter().flat_map(|(_, values, ..)| values.keys().map(String::as_str));
        let keys: BTreeSet<&str> = written().flat_map(|keys| keys.keys().copied()).chain(read).collect();
        for key in keys {
            for (look, values, begun, ended) in &looks {
                let value = values.get(key).copied();
                if !writes.may_be(id, key, value, *begun, *ended) {
                    let of_key = written().filter_map(|keys| keys.get(key)).flat_map(|writes| &writes.all).copied();
                    let mut events: Vec<_> = of_key.filter(|event| event.begun < *ended).collect();
                    events.extend(*look);
                    let when = if look.is_some() { "" } else { " at the end" };
                    violations.push(violation(NO_LOST_WRITE, &format!("{key} of {id} is {value:?}{when}"), &events));
                }
            }
        }
    }
    violations
}

/// Of several acknowledged writes whose handlers read the same value, all except the first were blind overwrites.
fn no_unreported_loss(stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut unseen = Vec::new();
    for story in stories.values() {
        let mut instead = BTreeMap::<(&str, Option<u64>), Vec<&Event>>::new();
        for event in &story.events {
            if let (What::Write { key, .. }, Answer::Instead(value)) = (&event.what, &event.answer) {
                instead.entry((key, *value)).or_default().push(event);
            }
        }
        unseen.extend(instead.into_values().flat_map(|writes| writes.into_iter().skip(1)));
    }
    if unseen.len() as u64 <= end.overwrites {
        return Vec::new();
    }
    let text = format!("{} writes overwrote what they did not see, and {} were reported", unseen.len(), end.overwrites);
    vec![violation(NO_UNREPORTED_LOSS, &text, &unseen)]
}

fn limit_kept(events: &[Event], end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for event in events {
        if let (What::List { user }, Answer::Listed(ids)) = (&event.what, &event.answer)
            && ids.len() > LIMIT
        {
            violations.push(violation(LIMIT_KEPT, user, &[event]));
        }
    }
    let mut open = BTreeMap::<&str, usize>::new();
    for (id, places) in &end.open {
        *open.entry(&end.sessions[id].user).or_default() += places.len();
    }
    let known = |ids: &BTreeMap<String, BTreeSet<String>>, user| ids.get(user).map_or(0, BTreeSet::len);
    for user in end.sessions.values().map(|known| known.user.as_str()).collect::<BTreeSet<_>>() {
        let (listed, scanned) = (known(&end.listed, user), known(&end.scanned, user));
        let open = open.get(user).copied().unwrap_or(0);
        if listed.max(scanned).max(open) > LIMIT {
            let text = format!("{user} at the end: {listed} listed, {scanned} found, {open} tokens that work");
            violations.push(violation(LIMIT_KEPT, &text, &[]));
        }
    }
    violations
}

fn used_once(events: &[Event], end: &End) -> Vec<Violation> {
    let mut uses: BTreeMap<usize, Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let What::Use { ticket } = &event.what {
            uses.entry(*ticket).or_default().push(event);
        }
    }
    let mut violations = Vec::new();
    for (ticket, uses) in &uses {
        let winners = uses.iter().filter(|event| event.answer == Answer::Won(true)).count();
        let unknown = uses.iter().any(|event| event.answer == Answer::Unknown);
        if winners > 1 {
            violations.push(violation(USED_ONCE, &format!("ticket {ticket} has {winners} winners"), uses));
        } else if winners == 0 && !unknown {
            violations.push(violation(LIVES, &format!("ticket {ticket} has no winner"), uses));
        }
    }
    for (ticket, is_good) in end.tickets.iter().enumerate() {
        let uses = uses.get(&ticket).map_or(&[][..], Vec::as_slice);
        let won = uses.iter().any(|event| event.answer == Answer::Won(true));
        if won && *is_good {
            violations.push(violation(USED_ONCE, &format!("ticket {ticket} was used and is good still"), uses));
        }
        if uses.is_empty() && !*is_good {
            violations.push(violation(LIVES, &format!("ticket {ticket} was never used"), uses));
        }
    }
    violations
}

fn listed(events: &[Event], stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut of_user = BTreeMap::<&str, Vec<&Story<'_>>>::new();
    for story in stories.values() {
        of_user.entry(story.user).or_default().push(story);
    }
    for event in events {
        let (What::List { user }, Answer::Listed(ids)) = (&event.what, &event.answer) else { continue };
        for story in of_user.get(user.as_str()).into_iter().flatten() {
            if story.login.ended < event.begun
                && story.is_alive_until(event.ended)
                && !ids.iter().any(|id| id == story.id)
            {
                violations.push(violation(
                    LISTED,
                    &format!("{} is alive and not listed", story.id),
                    &[story.login, event],
                ));
            }
        }
    }
    for id in end.open.keys() {
        let user = &end.sessions[id].user;
        if !end.listed.get(user).is_some_and(|ids| ids.contains(id)) {
            violations.push(violation(LISTED, &format!("{id} of {user} is alive and not listed"), &[]));
        }
    }
    let nothing = BTreeSet::new();
    for user in end.listed.keys().chain(end.scanned.keys()).collect::<BTreeSet<_>>() {
        let (listed, scanned) = (end.listed.get(user).unwrap_or(&nothing), end.scanned.get(user).unwrap_or(&nothing));
        if listed != scanned {
            violations.push(violation(LISTED, &format!("of {user}: {listed:?}, and there are {scanned:?}"), &[]));
        }
        // Only a login without a response creates an unknown session.
        let unanswered: Vec<_> = events
            .iter()
            .filter(|event| matches!(&event.what, What::Login { user: of } | What::LoginAgain { user: of, .. } if of == user))
            .filter(|event| event.answer == Answer::Unknown)
            .collect();
        let unknown = listed.iter().filter(|id| !end.sessions.contains_key(*id)).count();
        if unknown > unanswered.len() {
            let text = format!("{unknown} of {user} that nobody knows: {listed:?}");
            violations.push(violation(LISTED, &text, &unanswered));
        }
    }
    violations
}

fn one_token(stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (id, places) in &end.open {
        if places.len() != 1 {
            violations.push(violation(ONE_TOKEN, &format!("{id}: {places:?}"), &[]));
        }
    }
    for (id, story) in stories {
        let rotations: Vec<_> =
            story.events.iter().copied().filter(|event| matches!(event.what, What::Rotate { .. })).collect();
        for event in &rotations {
            if event.is_acknowledged() && event.given.is_none() {
                violations.push(violation(ONE_TOKEN, &format!("{id}: no token was given"), &[event]));
            }
        }
        // A token that was replaced, and the client got the new one.
        let void = |token: usize, time: u64| {
            let since = story.given(token).map(|event| event.ended).max()?;
            let mut void = rotations.iter().filter(|event| event.is_acknowledged() && event.given != Some(token));
            void.find(|event| event.begun > since && event.ended < time).copied()
        };
        for event in story.events.iter().filter(|event| is_accepted(event)) {
            if let Some(rotation) = token_of(event).and_then(|token| void(token, event.begun)) {
                let what = format!("{id}: an old token was accepted");
                violations.push(violation(ONE_TOKEN, &what, &[rotation, event]));
            }
        }
        for place in end.open.get(*id).into_iter().flatten() {
            if let Some(rotation) = void(*place, u64::MAX) {
                let what = format!("{id}: the old token {place} is good at the end");
                violations.push(violation(ONE_TOKEN, &what, &[rotation]));
            }
        }
        // A known, listed session without a valid token is possible only if a rotation got no response.
        let unanswered = rotations.iter().any(|event| event.answer == Answer::Unknown);
        let listed = end.listed.get(story.user).is_some_and(|ids| ids.contains(*id));
        if listed && !end.open.contains_key(*id) && !unanswered {
            violations.push(violation(ONE_TOKEN, &format!("{id} is listed, and no token opens it"), &rotations));
        }
    }
    violations
}

fn lives(stories: &BTreeMap<&str, Story<'_>>, end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (id, story) in stories {
        for event in story.events.iter().filter(|event| event.answer == Answer::Refused) {
            let Some(token) = token_of(event) else { continue };
            if story.is_alive_until(event.ended) && story.rotated_away(token, event.ended).is_none() {
                let mut events = vec![story.login, event];
                events.extend(story.given(token));
                violations.push(violation(LIVES, &format!("{id} was refused"), &events));
            }
        }
        let unanswered = story
            .events
            .iter()
            .any(|event| matches!(event.what, What::Rotate { .. }) && event.answer == Answer::Unknown);
        if story.is_alive_until(u64::MAX) && !end.open.contains_key(*id) && !unanswered {
            violations.push(violation(LIVES, &format!("{id} of {} at the end", story.user), &[story.login]));
        }
    }
    violations
}

mod can_fail {
    use super::*;
    use crate::client::Known;

    fn event(begun: u64, ended: u64, what: What, answer: Answer) -> Event {
        Event { client: 0, begun, ended, what, answer, given: None }
    }

    fn login(begun: u64, ended: u64, user: &str, id: &str) -> Event {
        let given = Some(0);
        Event { given, ..event(begun, ended, What::Login { user: user.into() }, Answer::Session(id.into())) }
    }

    fn write(begun: u64, ended: u64, value: u64, answer: Answer) -> Event {
        event(begun, ended, What::Write { session: "s".into(), token: 0, key: "k".into(), value }, answer)
    }

    fn read(begun: u64, ended: u64, value: Option<u64>) -> Event {
        let values = value.into_iter().map(|value| ("k".to_owned(), value)).collect();
        event(begun, ended, What::Read { session: "s".into(), token: 0 }, Answer::Values(values))
    }

    fn rotate(begun: u64, ended: u64, token: usize, given: Option<usize>) -> Event {
        let answer = if given.is_some() { Answer::Done } else { Answer::Unknown };
        Event { given, ..event(begun, ended, What::Rotate { session: "s".into(), token }, answer) }
    }

    fn with_token(mut event: Event, place: usize) -> Event {
        if let What::Read { token, .. } = &mut event.what {
            *token = place;
        }
        event
    }

    fn refused(event: Event) -> Event {
        Event { answer: Answer::Refused, ..event }
    }

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| id.to_string()).collect()
    }

    /// The session `s` of ana is live and has had two tokens; the second is valid.
    fn alive() -> End {
        let known = Known { user: "ana".into(), tokens: vec!["a".into(), "b".into()] };
        let listed = BTreeMap::from([("ana".to_owned(), ids(&["s"]))]);
        End {
            sessions: [("s".to_owned(), known)].into(),
            open: [("s".to_owned(), vec![1])].into(),
            scanned: listed.clone(),
            listed,
            ..End::default()
        }
    }

    /// It has ended.
    fn dead() -> End {
        End { open: BTreeMap::new(), listed: BTreeMap::new(), scanned: BTreeMap::new(), ..alive() }
    }

    fn promises(events: &[Event], end: &End) -> Vec<&'static str> {
        all(events, end).iter().map(|violation| violation.promise).collect()
    }

    /// Exactly this violation.
    #[track_caller]
    fn found(promise: &'static str, events: &[Event], end: &End) {
        assert_eq!(promises(events, end), [promise]);
    }

    #[track_caller]
    fn fine(events: &[Event], end: &End) {
        assert_eq!(promises(events, end), [""; 0]);
    }

    #[test]
    fn use_after_the_end_is_found() {
        let login = login(0, 1, "ana", "s");
        for end in [
            What::Logout { session: "s".into(), token: 0 },
            What::Revoke { session: "s".into() },
            What::RevokeUser { user: "ana".into() },
        ] {
            let end = event(2, 3, end, Answer::Done);
            let accepted = [
                read(4, 5, None),
                write(4, 5, 1, Answer::Instead(None)),
                rotate(4, 5, 0, Some(1)),
                event(4, 5, What::Logout { session: "s".into(), token: 0 }, Answer::Done),
            ];
            for accepted in accepted {
                found(NO_USE_AFTER_THE_END, &[login.clone(), end.clone(), accepted], &dead());
            }
            // Concurrent is not later, and without an acknowledgment there is no guarantee.
            fine(&[login.clone(), read(1, 4, None), end.clone()], &dead());
            let unknown = Event { answer: Answer::Unknown, ..end.clone() };
            fine(&[login.clone(), unknown, read(4, 5, None)], &dead());
            fine(&[login.clone(), end.clone(), refused(read(4, 5, None))], &dead());
            // It is not there later, and not in a list.
            assert_eq!(promises(&[login.clone(), end.clone()], &alive()), [NO_USE_AFTER_THE_END, LISTED]);
            let list = |begun| event(begun, 9, What::List { user: "ana".into() }, Answer::Listed(vec!["s".into()]));
            found(LISTED, &[login.clone(), end.clone(), list(4)], &dead());
            fine(&[login.clone(), end, list(2)], &dead());
        }
        let before = event(2, 3, What::RevokeUser { user: "ana".into() }, Answer::Done);
        let after = Event { begun: 4, ended: 5, ..login };
        fine(&[before, after, read(6, 7, None)], &alive_with_one_token());
    }

    fn alive_with_one_token() -> End {
        End { open: [("s".to_owned(), vec![0])].into(), ..alive() }
    }

    #[test]
    fn lost_writes_are_found() {
        let login = login(0, 0, "ana", "s");
        let end = |value: Option<u64>| End {
            values: [("s".to_owned(), value.into_iter().map(|value| ("k".to_owned(), value)).collect())].into(),
            ..alive_with_one_token()
        };
        let done = Answer::Instead;
        let (one, two) = (write(1, 2, 1, done(None)), write(3, 4, 2, done(Some(1))));
        let found = |events: &[&Event], at_the_end| {
            let events: Vec<_> = [&login].into_iter().chain(events.iter().copied()).cloned().collect();
            found(NO_LOST_WRITE, &events, &end(at_the_end));
        };
        let fine = |events: &[&Event], at_the_end| {
            let events: Vec<_> = [&login].into_iter().chain(events.iter().copied()).cloned().collect();
            fine(&events, &end(at_the_end));
        };
        found(&[&one, &read(5, 6, None)], Some(1));
        found(&[&one, &two, &read(5, 6, Some(1))], Some(2));
        found(&[&one, &read(5, 6, Some(9))], Some(1)); // never written
        found(&[&read(5, 6, Some(9))], None);
        found(&[&read(1, 2, Some(1)), &write(3, 4, 1, done(None))], Some(1)); // too early
        found(&[&one], None);
        found(&[&one, &two], Some(1));
        fine(&[&one, &two, &read(5, 6, Some(2))], Some(2));
        // Concurrent, or unknown.
        fine(&[&one, &write(3, 9, 2, done(Some(1))), &read(5, 6, Some(1))], Some(2));
        fine(&[&one, &write(3, 4, 2, Answer::Unknown), &read(5, 6, Some(1))], Some(1));
        fine(&[&one, &write(3, 4, 2, Answer::Unknown), &read(5, 6, Some(2))], Some(2));
        fine(
            &[&one, &write(3, u64::MAX, 2, Answer::Unknown), &write(5, 6, 3, done(Some(1))), &read(7, 8, Some(2))],
            Some(2),
        );
        found(&[&one, &write(3, 4, 2, Answer::Unknown), &write(5, 6, 3, done(Some(1))), &read(7, 8, Some(2))], Some(3));
        // Refused, and applied anyway.
        let unknown = event(1, 2, What::Revoke { session: "s".into() }, Answer::Unknown);
        found(&[&unknown, &refused(write(3, 4, 1, done(None))), &read(5, 6, Some(1))], None);
        // Allowed if it was applied and the session ended before the response, and no later read sees it.
        let is_found = |read: Event, revoked| {
            let revoke = event(revoked, 9, What::Revoke { session: "s".into() }, Answer::Done);
            let events = [login.clone(), refused(write(3, 5, 1, done(None))), read, revoke];
            promises(&events, &dead()).contains(&NO_LOST_WRITE)
        };
        assert!(!is_found(read(4, 7, Some(1)), 4));
        assert!(is_found(read(4, 7, Some(1)), 6) && is_found(read(6, 7, Some(1)), 4));
    }

    /// A login over a session of its user takes over the values, and ends it.
    #[test]
    fn writes_lost_by_another_login_are_found() {
        let first = Event { begun: 0, ended: 0, ..login(0, 0, "ana", "old") };
        let again = |begun, ended| {
            let what = What::LoginAgain { user: "ana".into(), session: "old".into() };
            Event { given: Some(0), ..event(begun, ended, what, Answer::Session("s".into())) }
        };
        let of_old = |write: Event| match write.what {
            What::Write { token, key, value, .. } => {
                Event { what: What::Write { session: "old".into(), token, key, value }, ..write }
            }
            _ => write,
        };
        let one = of_old(write(1, 2, 1, Answer::Instead(None)));
        let end = alive_with_one_token();
        fine(&[first.clone(), one.clone(), again(3, 4), read(5, 6, Some(1))], &end);
        found(NO_LOST_WRITE, &[first.clone(), one.clone(), again(3, 4), read(5, 6, None)], &end);
        found(NO_LOST_WRITE, &[first.clone(), again(3, 4), read(5, 6, Some(1))], &end);
        let two = write(5, 6, 2, Answer::Instead(Some(1)));
        found(NO_LOST_WRITE, &[first.clone(), one.clone(), again(3, 4), two.clone(), read(7, 8, Some(1))], &end);
        fine(&[first.clone(), one.clone(), again(3, 4), two, read(7, 8, Some(2))], &end);
        // A concurrent write may be taken over or not.
        let late = of_old(write(3, 9, 1, Answer::Unknown));
        for value in [None, Some(1)] {
            fine(&[first.clone(), late.clone(), again(4, 5), read(6, 7, value)], &end);
        }
        let logout = event(3, 4, What::Revoke { session: "old".into() }, Answer::Done);
        fine(&[first.clone(), one.clone(), logout, again(3, 6), read(7, 8, None)], &end);
        let after = of_old(write(5, 6, 2, Answer::Instead(Some(1))));
        found(NO_USE_AFTER_THE_END, &[first, one, again(3, 4), after], &end);
    }

    #[test]
    fn blind_overwrites_are_found() {
        let login = login(0, 0, "ana", "s");
        let both = |saw| [login.clone(), write(1, 5, 1, Answer::Instead(None)), write(2, 6, 2, Answer::Instead(saw))];
        found(NO_UNREPORTED_LOSS, &both(None), &alive_with_one_token());
        fine(&both(None), &End { overwrites: 1, ..alive_with_one_token() });
        fine(&both(Some(1)), &alive_with_one_token());
    }

    #[test]
    fn more_sessions_than_allowed_are_found() {
        let names: Vec<_> = (0..=LIMIT).map(|n| n.to_string()).collect();
        let list = |ids: &[String]| event(8, 9, What::List { user: "ana".into() }, Answer::Listed(ids.to_vec()));
        found(LIMIT_KEPT, &[list(&names)], &dead());
        fine(&[list(&names[1..])], &dead());

        let unknown: Vec<_> =
            (0..9).map(|_| event(0, 1, What::Login { user: "ana".into() }, Answer::Unknown)).collect();
        let mut end = alive();
        for all in [&mut end.listed, &mut end.scanned] {
            all.insert("ana".into(), names.iter().cloned().chain(["s".to_owned()]).collect());
        }
        found(LIMIT_KEPT, &unknown, &end);
        let mut end = alive();
        end.open.insert("s".into(), (0..=LIMIT).collect());
        assert_eq!(promises(&[], &end), [LIMIT_KEPT, ONE_TOKEN]);
    }

    #[test]
    fn double_uses_are_found() {
        let used = |answer| event(0, 1, What::Use { ticket: 0 }, answer);
        let spent = End { tickets: vec![false], ..End::default() };
        let good = End { tickets: vec![true], ..End::default() };
        found(USED_ONCE, &[used(Answer::Won(true)), used(Answer::Won(true))], &spent);
        found(LIVES, &[used(Answer::Won(false))], &spent);
        found(USED_ONCE, &[used(Answer::Won(true))], &good);
        found(LIVES, &[], &spent);
        fine(&[used(Answer::Won(false)), used(Answer::Unknown)], &spent);
        fine(&[used(Answer::Won(true)), used(Answer::Won(false)), used(Answer::Unknown)], &spent);
        fine(&[used(Answer::Unknown)], &good);
        fine(&[], &good);
    }

    #[test]
    fn wrong_lists_are_found() {
        let login = login(0, 1, "ana", "s");
        let fine_end = alive_with_one_token();
        fine(std::slice::from_ref(&login), &fine_end);
        let list = |begun, ended| event(begun, ended, What::List { user: "ana".into() }, Answer::Listed(vec![]));
        found(LISTED, &[login.clone(), list(2, 3)], &fine_end);
        fine(&[login.clone(), list(0, 3)], &fine_end);
        let other = Event { begun: 2, ended: 9, ..event(2, 9, What::Login { user: "ana".into() }, Answer::Unknown) };
        fine(&[login.clone(), other.clone(), list(3, 4)], &fine_end);

        let mut end = fine_end.clone();
        end.listed.insert("ana".into(), ids(&[]));
        assert_eq!(promises(std::slice::from_ref(&login), &end), [LISTED, LISTED], "not listed, and found");
        end.scanned.insert("ana".into(), ids(&[]));
        found(LISTED, std::slice::from_ref(&login), &end);
        for all in [&mut end.listed, &mut end.scanned] {
            all.insert("ana".into(), ids(&["s", "who"]));
        }
        found(LISTED, std::slice::from_ref(&login), &end);
        fine(&[login, other], &end);
    }

    #[test]
    fn too_many_and_too_few_tokens_are_found() {
        let login = login(0, 1, "ana", "s");
        let rotated = rotate(2, 3, 0, Some(1));
        fine(&[login.clone(), rotated.clone(), with_token(read(4, 5, None), 1)], &alive());
        fine(&[login.clone(), rotated.clone(), refused(read(4, 5, None))], &alive());
        found(ONE_TOKEN, &[login.clone(), rotated.clone(), read(4, 5, None)], &alive());
        fine(&[login.clone(), rotated.clone(), read(2, 5, None)], &alive());
        found(ONE_TOKEN, &[login.clone(), rotated.clone()], &alive_with_one_token());
        let silent = Event { answer: Answer::Done, ..rotate(2, 3, 0, None) };
        found(ONE_TOKEN, &[login.clone(), silent], &alive());
        let two = End { open: [("s".to_owned(), vec![0, 1])].into(), ..alive() };
        found(ONE_TOKEN, std::slice::from_ref(&login), &two);
        let none = End { open: BTreeMap::new(), ..alive() };
        assert_eq!(promises(&[login.clone(), rotated], &none), [ONE_TOKEN, LIVES]);
        fine(&[login, rotate(2, 3, 0, None)], &none);
    }

    #[test]
    fn sessions_that_end_without_a_reason_are_found() {
        let login = login(0, 1, "ana", "s");
        let end = alive_with_one_token();
        found(LIVES, std::slice::from_ref(&login), &dead());
        found(LIVES, &[login.clone(), refused(read(2, 3, None))], &end);
        found(LIVES, &[login.clone(), refused(read(2, 3, None)), rotate(4, 5, 0, Some(1))], &alive());
        found(LIVES, &[login.clone(), rotate(2, 3, 0, Some(1)), refused(with_token(read(4, 5, None), 1))], &alive());
        // The reason may be a rotation, an end, or another login.
        fine(&[login.clone(), refused(read(2, 6, None)), rotate(4, 5, 0, Some(1))], &alive());
        fine(&[login.clone(), rotate(2, 3, 0, None), refused(read(4, 5, None))], &end);
        for reason in [
            What::Logout { session: "s".into(), token: 0 },
            What::Revoke { session: "s".into() },
            What::RevokeUser { user: "ana".into() },
            What::Login { user: "ana".into() },
        ] {
            let reason = event(2, 3, reason, Answer::Unknown);
            fine(&[login.clone(), reason.clone(), refused(read(4, 5, None))], &dead());
            found(LIVES, &[login.clone(), refused(read(1, 2, None)), reason], &dead());
        }
        let over = event(0, 1, What::RevokeUser { user: "ana".into() }, Answer::Done);
        let later = Event { begun: 2, ended: 3, ..login };
        found(LIVES, &[over, later], &dead());
    }

    #[test]
    fn a_violation_explains_itself() {
        let login = login(0, 1, "ana", "s");
        let end = event(2, 3, What::Revoke { session: "s".into() }, Answer::Done);
        let text = all(&[login, end, read(4, 5, None)], &dead())[0].to_string();
        for part in [NO_USE_AFTER_THE_END, "s", "Login", "Revoke", "Read", "client 0", "4–5"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
