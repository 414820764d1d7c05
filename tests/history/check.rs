//! What must be true of what was written down.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LIMIT,
    client::{Answer, End, Event, What},
};

/// A promise that was not kept.
#[derive(Clone, Debug)]
#[allow(dead_code)] // for people to read
pub struct Violation {
    pub seed: u64,
    pub promise: &'static str,
    pub of: String,
    pub events: Vec<Event>,
}

pub const NO_USE_AFTER_THE_END: &str = "no request is accepted after an acknowledged end of its session";
pub const NO_LOST_WRITE: &str = "no acknowledged write is lost";
pub const LIMIT_KEPT: &str = "no user has more sessions than allowed";
pub const USED_ONCE: &str = "a session for a single use is used once";
pub const LISTED: &str = "every live session is listed, and no other";
pub const ONE_TOKEN: &str = "a live session has exactly one token";
pub const CALM_LIVES: &str = "a session that nobody ended is alive";

pub fn all(events: &[Event], end: &End) -> Vec<Violation> {
    [
        no_use_after_the_end(events),
        no_lost_write(events, end),
        limit_kept(events, end),
        used_once(events),
        listed(events, end),
        one_token(events, end),
    ]
    .concat()
}

fn violation(promise: &'static str, of: &str, events: &[&Event]) -> Violation {
    Violation { seed: 0, promise, of: of.to_owned(), events: events.iter().map(|event| (*event).clone()).collect() }
}

/// The session that a request was accepted for.
fn accepted(event: &Event) -> Option<&str> {
    match (&event.what, &event.answer) {
        (
            What::Write { session, .. } | What::Read { session } | What::Rotate { session } | What::Logout { session },
            Answer::Done | Answer::Values(_),
        ) => Some(session),
        _ => None,
    }
}

fn no_use_after_the_end(events: &[Event]) -> Vec<Violation> {
    let users: BTreeMap<&str, (&str, u64)> = events
        .iter()
        .filter_map(|event| match (&event.what, &event.answer) {
            (What::Login { user }, Answer::Session(id)) => Some((id.as_str(), (user.as_str(), event.ended))),
            _ => None,
        })
        .collect();
    let ends: Vec<&Event> = events.iter().filter(|event| event.answer == Answer::Done).collect();
    let mut violations = Vec::new();
    for event in events {
        let Some(session) = accepted(event) else { continue };
        let ended = ends.iter().find(|end| {
            end.ended < event.begun
                && match &end.what {
                    What::Logout { session: of } | What::Revoke { session: of } => of == session,
                    // Those that were there when it was asked for.
                    What::RevokeUser { user } => {
                        users.get(session).is_some_and(|(of, since)| of == user && *since < end.begun)
                    }
                    _ => false,
                }
        });
        if let Some(end) = ended {
            violations.push(violation(NO_USE_AFTER_THE_END, session, &[end, event]));
        }
    }
    violations
}

/// What a read may have seen of a key, given all writes of it: `None` is nothing.
fn possible(writes: &[&Event], value: Option<u64>, begun: u64, ended: u64) -> bool {
    let acknowledged_before = |event: &&&Event, before: u64| event.answer == Answer::Done && event.ended < before;
    match value {
        None => !writes.iter().any(|event| acknowledged_before(&event, begun)),
        Some(value) => writes.iter().any(|event| {
            let mine = matches!(&event.what, What::Write { value: written, .. } if *written == value);
            let in_time = event.begun < ended && event.answer != Answer::Refused;
            // Another was acknowledged in between: this one is no more.
            let over = writes.iter().any(|later| {
                acknowledged_before(&later, begun) && event.answer == Answer::Done && later.begun > event.ended
            });
            mine && in_time && !over
        }),
    }
}

fn no_lost_write(events: &[Event], end: &End) -> Vec<Violation> {
    let mut writes: BTreeMap<(&str, &str), Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let What::Write { session, key, .. } = &event.what {
            writes.entry((session, key)).or_default().push(event);
        }
    }
    let mut violations = Vec::new();
    for ((session, key), writes) in &writes {
        let reads = events.iter().filter_map(|event| match (&event.what, &event.answer) {
            (What::Read { session: of }, Answer::Values(values)) if of == session => Some((event, values)),
            _ => None,
        });
        for (read, values) in reads {
            if !possible(writes, values.get(*key).copied(), read.begun, read.ended) {
                let mut all = writes.clone();
                all.push(read);
                violations.push(violation(NO_LOST_WRITE, &format!("{key} of {session}"), &all));
            }
        }
        if let Some(values) = end.values.get(*session)
            && !possible(writes, values.get(*key).copied(), u64::MAX, u64::MAX)
        {
            violations.push(violation(NO_LOST_WRITE, &format!("{key} of {session} at the end"), writes));
        }
    }
    violations
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
    for (user, ids) in &end.listed {
        if ids.len() > LIMIT || open_of(end, user).len() > LIMIT {
            violations.push(violation(LIMIT_KEPT, user, &[]));
        }
    }
    violations
}

fn open_of<'a>(end: &'a End, user: &str) -> BTreeSet<&'a str> {
    let mine = end.open.keys().filter(|id| end.sessions[*id].user.trim_start_matches("gone ") == user);
    mine.map(String::as_str).collect()
}

fn used_once(events: &[Event]) -> Vec<Violation> {
    let mut uses: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let What::Use { ticket } = &event.what {
            uses.entry(ticket).or_default().push(event);
        }
    }
    let wrong = uses.iter().filter(|(_, uses)| {
        let winners = uses.iter().filter(|event| event.answer == Answer::Won(true)).count();
        let unknown = uses.iter().any(|event| event.answer == Answer::Unknown);
        winners > 1 || (winners == 0 && !unknown)
    });
    wrong.map(|(_, uses)| violation(USED_ONCE, "a ticket", uses)).collect()
}

fn listed(_: &[Event], end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (user, ids) in &end.listed {
        for id in open_of(end, user) {
            if !ids.contains(id) {
                violations.push(violation(LISTED, &format!("{id} of {user} is alive and not listed"), &[]));
            }
        }
    }
    violations
}

fn one_token(events: &[Event], end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (id, places) in &end.open {
        if places.len() != 1 {
            violations.push(violation(ONE_TOKEN, &format!("{id}: {places:?}"), &[]));
        }
    }
    // Known, listed, and none of its tokens opens it: only if a change of its token was never answered.
    for (id, known) in &end.sessions {
        let user = known.user.trim_start_matches("gone ");
        let unanswered = events.iter().any(|event| {
            matches!(&event.what, What::Rotate { session } if session == id) && event.answer == Answer::Unknown
        });
        if end.listed.get(user).is_some_and(|ids| ids.contains(id)) && !end.open.contains_key(id) && !unanswered {
            violations.push(violation(ONE_TOKEN, &format!("{id} is listed, and no token opens it"), &[]));
        }
        if user.starts_with("calm") && !end.open.contains_key(id) && !unanswered {
            violations.push(violation(CALM_LIVES, id, &[]));
        }
    }
    violations
}

mod can_fail {
    use super::*;
    use crate::client::Known;

    fn event(begun: u64, ended: u64, what: What, answer: Answer) -> Event {
        Event { begun, ended, what, answer }
    }

    fn write(begun: u64, ended: u64, value: u64, answer: Answer) -> Event {
        event(begun, ended, What::Write { session: "s".into(), key: "k".into(), value }, answer)
    }

    fn read(begun: u64, ended: u64, value: Option<u64>) -> Event {
        let values = value.into_iter().map(|value| ("k".to_owned(), value)).collect();
        event(begun, ended, What::Read { session: "s".into() }, Answer::Values(values))
    }

    fn nothing() -> End {
        End { sessions: BTreeMap::new(), open: BTreeMap::new(), values: BTreeMap::new(), listed: BTreeMap::new() }
    }

    fn promises(events: &[Event], end: &End) -> Vec<&'static str> {
        all(events, end).iter().map(|violation| violation.promise).collect()
    }

    #[test]
    fn use_after_the_end_is_found() {
        let login = event(0, 1, What::Login { user: "ana".into() }, Answer::Session("s".into()));
        for end in [
            What::Logout { session: "s".into() },
            What::Revoke { session: "s".into() },
            What::RevokeUser { user: "ana".into() },
        ] {
            let end = event(2, 3, end, Answer::Done);
            assert_eq!(promises(&[login.clone(), end.clone(), read(4, 5, None)], &nothing()), [NO_USE_AFTER_THE_END]);
            // At the same time is not after, and what is not acknowledged promises nothing.
            assert!(promises(&[login.clone(), read(1, 4, None), end.clone()], &nothing()).is_empty());
            let unknown = Event { answer: Answer::Unknown, ..end };
            assert!(promises(&[login.clone(), unknown, read(4, 5, None)], &nothing()).is_empty());
        }
        let before = event(2, 3, What::RevokeUser { user: "ana".into() }, Answer::Done);
        let after = event(4, 5, What::Login { user: "ana".into() }, Answer::Session("s".into()));
        assert!(promises(&[before, after, read(6, 7, None)], &nothing()).is_empty());
    }

    #[test]
    fn lost_writes_are_found() {
        let (one, two) = (write(0, 1, 1, Answer::Done), write(2, 3, 2, Answer::Done));
        assert_eq!(promises(&[one.clone(), read(4, 5, None)], &nothing()), [NO_LOST_WRITE]);
        assert_eq!(promises(&[one.clone(), two.clone(), read(4, 5, Some(1))], &nothing()), [NO_LOST_WRITE]);
        assert_eq!(promises(&[one.clone(), read(4, 5, Some(9))], &nothing()), [NO_LOST_WRITE], "out of nowhere");
        assert!(promises(&[one.clone(), two.clone(), read(4, 5, Some(2))], &nothing()).is_empty());
        assert!(promises(&[one.clone(), write(2, 9, 2, Answer::Done), read(4, 5, Some(1))], &nothing()).is_empty());
        assert!(promises(&[one.clone(), write(2, 3, 2, Answer::Unknown), read(4, 5, Some(1))], &nothing()).is_empty());
        assert!(promises(&[one.clone(), write(2, 3, 2, Answer::Unknown), read(4, 5, Some(2))], &nothing()).is_empty());
        assert_eq!(promises(&[write(0, 1, 1, Answer::Refused), read(4, 5, Some(1))], &nothing()), [NO_LOST_WRITE]);
        let mut end = nothing();
        end.values.insert("s".into(), BTreeMap::new());
        assert_eq!(promises(&[one], &end), [NO_LOST_WRITE]);
    }

    #[test]
    fn everything_else_is_found() {
        let used = |answer| event(0, 1, What::Use { ticket: "t".into() }, answer);
        assert_eq!(promises(&[used(Answer::Won(true)), used(Answer::Won(true))], &nothing()), [USED_ONCE]);
        assert_eq!(promises(&[used(Answer::Won(false))], &nothing()), [USED_ONCE]);
        assert!(promises(&[used(Answer::Won(false)), used(Answer::Unknown)], &nothing()).is_empty());
        let ids: Vec<_> = (0..=LIMIT).map(|n| n.to_string()).collect();
        let list = event(0, 1, What::List { user: "ana".into() }, Answer::Listed(ids.clone()));
        assert_eq!(promises(&[list], &nothing()), [LIMIT_KEPT]);

        let known = |user: &str| Known { user: user.into(), tokens: vec!["a".into(), "b".into()] };
        let mut end = nothing();
        end.sessions.insert("s".into(), known("gone ana"));
        end.listed.insert("ana".into(), ["s".to_owned()].into());
        assert_eq!(promises(&[], &end), [ONE_TOKEN], "none opens it");
        end.open.insert("s".into(), vec![0, 1]);
        assert_eq!(promises(&[], &end), [ONE_TOKEN], "two open it");
        end.open.insert("s".into(), vec![1]);
        assert!(promises(&[], &end).is_empty());
        end.listed.insert("ana".into(), BTreeSet::new());
        assert_eq!(promises(&[], &end), [LISTED]);
        end.listed.insert("ana".into(), ids.iter().cloned().chain(["s".to_owned()]).collect());
        assert_eq!(promises(&[], &end), [LIMIT_KEPT]);
        let mut end = nothing();
        end.sessions.insert("s".into(), known("calm1"));
        assert_eq!(promises(&[], &end), [CALM_LIVES]);
    }
}
