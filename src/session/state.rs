//! What is known of a session, and what is to become of it. No I/O here.

use std::sync::Arc;

use super::{lookup::Looked, met::Met, save::Attempt};
use crate::{
    ended::EndReason,
    event::EventKind,
    lifetime::Lifetime,
    record::{Data, Json, Record, Version},
    time::Timestamp,
    token::{SessionId, Token},
};

/// Everything that changes while a request is served.
pub(super) struct State {
    pub(super) known: Known,
    pub(super) fate: Fate,
    pub(super) changes: Changes,
    /// Counts what was done to the session, to see what was done while a write was under way.
    pub(super) generation: u64,
    /// The generation of the present fate.
    pub(super) fated_at: u64,
    /// A write that was begun and whose outcome is not known: to be repeated, as it was, before any other. Until then
    /// the session it writes may or may not be there.
    pub(super) attempt: Option<Arc<Attempt>>,
    /// What the store has confirmed and the client does not know yet.
    pub(super) untold: Option<Untold>,
    /// The head of the response has left.
    pub(super) closed: bool,
    /// The generation whose loss was reported already.
    pub(super) reported: Option<u64>,
    pub(super) claim: Option<Version>,
    /// Why the session that the request had, or brought a token of, has ended.
    pub(super) ended: Option<EndReason>,
    /// What the store has confirmed and nobody was told of yet.
    pub(super) happened: Vec<(SessionId, Option<Arc<str>>, EventKind)>,
    /// The store did not answer as it usually does when the session was looked up.
    pub(super) degraded: bool,
    /// What the look-up found, for those who watch.
    pub(super) met: Option<Met>,
}

/// What is known of the stored session.
pub(super) enum Known {
    /// Nothing: nobody asked yet.
    Unread,
    /// Nothing: the store did not answer.
    Unavailable,
    /// Nothing, for the same reason; but what the request brought says by itself whose it is.
    Vouched,
    /// The request has no live session.
    Absent,
    /// The session that the request had was ended by somebody else. It cannot be changed any more.
    Ended,
    /// The store has this.
    Live(Box<Live>),
}

pub(super) struct Live {
    pub(super) id: SessionId,
    pub(super) token: Held,
    pub(super) record: Arc<Record>,
    pub(super) last_seen: Timestamp,
    pub(super) expires_at: Timestamp,
    /// Created by this request.
    pub(super) is_new: bool,
    /// Another request has made the token that this one came with count no more, at once: perhaps because somebody else has
    /// it too. So this one is not told the new token, unless it is to have one itself, by a login or a rotation, and that is saved.
    pub(super) disowned: bool,
    /// It is in the store, and begins when another has ended.
    pub(super) moved: Option<Box<Move>>,
}

/// A login under way: the new session waits for the old one to end.
pub(super) struct Move {
    pub(super) old: Live,
    /// What was done up to here is in the new session.
    pub(super) generation: u64,
    pub(super) stage: Stage,
}

/// How far a login is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The old session is to end in favour of the new one.
    Waiting,
    /// Others have written the old session since: first the new one has to take that over.
    Stale,
    /// The old session has ended in favour of the new one, which only has to be told so.
    Replaced,
    /// The same, and the new one is gone: it has to be made once more.
    Lost,
    /// The old session has ended otherwise: the new one begins without anything of it.
    Alone,
}

impl Stage {
    /// Whether the old session has ended.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Replaced | Self::Lost | Self::Alone)
    }
}

/// Where the token of a live session is.
pub(super) enum Held {
    /// Among those that the request brought, at this place.
    Presented(usize),
    /// With nobody who is here: the request came with something else.
    Elsewhere,
    /// Made for this session.
    Minted(Box<Token>),
}

/// What is to become of the stored session, apart from its changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// The same session with a new token, because it is time. The old one is served for a moment still.
    Renew,
    /// The same session with a new token; the old one is dead.
    Rotate,
    /// It ends; what is changed from then on belongs to another, new session.
    Destroy,
}

/// What the client must be told by a `Set-Cookie`.
pub(super) enum Untold {
    /// Its token, and until when to keep it if it is to outlive the browser.
    Token(Option<Timestamp>),
    /// That it has no session.
    End,
}

/// What a request has changed: applied to whatever the store holds when it is saved.
#[derive(Default)]
pub(super) struct Changes {
    /// Nothing of the stored session is carried on: it was another user's.
    afresh: Option<Made<()>>,
    cleared: Option<Made<()>>,
    pub(super) values: Vec<Entry<Json>>,
    login: Option<Made<Arc<str>>>,
    lifetime: Option<Box<Made<Lifetime>>>,
    metadata: Vec<Entry<Arc<str>>>,
}

/// What a key is set to, or that it is removed.
type Entry<T> = Made<(Arc<str>, Option<T>)>;

/// A change, and the generation it was made in.
pub(super) struct Made<T> {
    pub(super) what: T,
    at: u64,
}

impl Changes {
    /// Who is to be logged in.
    pub(super) fn login(&self) -> Option<&Arc<str>> {
        self.login.as_ref().map(|login| &login.what)
    }

    pub(super) fn afresh(&self) -> bool {
        self.afresh.is_some()
    }

    /// What was changed up to `generation` is stored: what remains was changed since.
    fn stored(&mut self, generation: u64) {
        self.afresh.take_if(|made| made.at <= generation);
        self.cleared.take_if(|made| made.at <= generation);
        self.values.retain(|made| made.at > generation);
        self.login.take_if(|made| made.at <= generation);
        self.lifetime.take_if(|made| made.at <= generation);
        self.metadata.retain(|made| made.at > generation);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cleared.is_none()
            && self.values.is_empty()
            && self.login.is_none()
            && self.lifetime.is_none()
            && self.metadata.is_empty()
    }

    /// Whether these changes make a session where there is none.
    pub(super) fn create(&self) -> bool {
        self.login.is_some() || self.values.iter().any(|made| made.what.1.is_some())
    }

    /// These changes made to `record`.
    pub(super) fn apply(&self, record: &mut Record, now: Timestamp) {
        record.written_at = now;
        if let Some(lifetime) = self.lifetime.as_ref().map(|made| &made.what) {
            record.idle_timeout = lifetime.idle_timeout();
            record.absolute_timeout = lifetime.absolute_timeout();
            record.persistent = lifetime.is_persistent();
        }
        if let Some(user) = self.login() {
            record.user = Some(user.clone());
            record.created_at = now;
        }
        if self.cleared.is_some() {
            record.data.clear();
        }
        for (name, value) in self.metadata.iter().map(|made| &made.what) {
            Arc::make_mut(&mut record.metadata).set_field(name, value.clone());
        }
        for (key, value) in self.values.iter().map(|made| &made.what) {
            match value {
                Some(value) => record.data.insert(key.clone(), value.clone()),
                None => record.data.remove(key),
            };
        }
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            known: Known::Unread,
            fate: Fate::Keep,
            changes: Changes::default(),
            generation: 0,
            fated_at: 0,
            attempt: None,
            untold: None,
            closed: false,
            reported: None,
            claim: None,
            ended: None,
            happened: Vec::new(),
            degraded: false,
            met: None,
        }
    }

    /// Takes in what a look-up found, unless another clone was faster: the session may have changed since.
    pub(super) fn looked_up(&mut self, found: Looked) {
        if let Known::Unread | Known::Unavailable = self.known {
            self.known = found.known;
            self.ended = found.ended;
            self.fate = found.fate;
            self.untold = found.untold;
            self.degraded = found.degraded;
            self.met = Some(found.met);
        }
    }

    /// By what the store knows this request's claim to a single use again, if the answer to it was lost.
    pub(super) fn claim(&mut self) -> Result<Version, getrandom::Error> {
        match self.claim {
            Some(claim) => Ok(claim),
            None => Ok(*self.claim.insert(Version::first()?)),
        }
    }

    /// The session has been used, by this request or by another.
    pub(super) fn consumed(&mut self, by_us: bool, ended: Option<EndReason>) {
        self.changes = Changes::default();
        self.attempt = None;
        self.fate = Fate::Keep;
        self.known = Known::Ended;
        self.ended = ended;
        // Whoever was faster tells the client what it has now.
        self.untold = by_us.then_some(Untold::End);
    }

    /// The stored session, unless this request has ended it.
    pub(super) fn live(&self) -> Option<&Live> {
        match &self.known {
            Known::Live(live) if self.fate != Fate::Destroy && !self.changes.afresh() => Some(&**live),
            _ => None,
        }
    }

    /// The same, if it has begun; while a login is under way, the session before it.
    pub(super) fn begun(&self) -> Option<&Live> {
        let live = self.live()?;
        match live.moved.as_ref().map(|moved| (moved.stage, &moved.old)) {
            None | Some((Stage::Replaced, _)) => Some(live),
            Some((Stage::Waiting | Stage::Stale, old)) => Some(old),
            Some((Stage::Lost | Stage::Alone, _)) => None,
        }
    }

    /// Whether a save would write anything.
    pub(super) fn is_dirty(&self) -> bool {
        self.attempt.is_some()
            || match &self.known {
                Known::Unread | Known::Unavailable | Known::Vouched | Known::Ended => false,
                Known::Absent => self.changes.create(),
                Known::Live(live) => self.fate != Fate::Keep || !self.changes.is_empty() || live.moved.is_some(),
            }
    }

    /// Whether something is lost if it is not saved. A token that could have been renewed is renewed by the next request.
    pub(super) fn has_unsaved(&self) -> bool {
        self.is_dirty() && (self.fate != Fate::Renew || !self.changes.is_empty())
    }

    /// The value of `key`, with this request's changes.
    pub(super) fn value(&self, key: &str) -> Option<&Json> {
        match self.changes.values.iter().find(|made| *made.what.0 == *key) {
            Some(Made { what: (_, value), .. }) => value.as_ref(),
            None => self.stored_value(key),
        }
    }

    fn stored_value(&self, key: &str) -> Option<&Json> {
        if self.changes.cleared.is_some() { None } else { self.live()?.record.data.get(key) }
    }

    pub(super) fn user(&self) -> Option<&Arc<str>> {
        self.changes.login().or_else(|| self.live()?.record.user.as_ref())
    }

    /// Sets or removes a value; `false` when that changes nothing.
    pub(super) fn set(&mut self, key: &str, value: Option<Json>) -> bool {
        if self.value(key) == value.as_ref() {
            return false;
        }
        self.generation += 1;
        let undone = self.attempt.is_none() && self.stored_value(key) == value.as_ref();
        let at = self.generation;
        let place = self.changes.values.iter().position(|made| *made.what.0 == *key);
        match place {
            // Back to what is stored: nothing has changed after all.
            Some(place) if undone => drop(self.changes.values.swap_remove(place)),
            Some(place) => {
                let made = &mut self.changes.values[place];
                (made.what.1, made.at) = (value, at);
            }
            None => {
                let stored = self.live().and_then(|live| live.record.data.get_key_value(key));
                let key = stored.map_or_else(|| Arc::from(key), |(key, _)| key.clone());
                self.changes.values.push(Made { what: (key, value), at });
            }
        }
        true
    }

    pub(super) fn clear(&mut self) {
        let stored = self.attempt.is_some() || self.live().is_some_and(|live| !live.record.data.is_empty());
        if self.changes.values.is_empty() && (self.changes.cleared.is_some() || !stored) {
            return;
        }
        self.generation += 1;
        self.changes.values.clear();
        self.changes.cleared = stored.then_some(Made { what: (), at: self.generation });
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Lifetime) {
        let unchanged = self.changes.lifetime.is_none()
            && self.live().is_some_and(|Live { record, .. }| {
                record.idle_timeout == lifetime.idle_timeout()
                    && record.absolute_timeout == lifetime.absolute_timeout()
                    && record.persistent == lifetime.is_persistent()
            });
        if !unchanged {
            self.generation += 1;
            self.changes.lifetime = Some(Box::new(Made { what: lifetime, at: self.generation }));
        }
    }

    pub(super) fn set_metadata(&mut self, name: &str, value: Option<Arc<str>>) {
        self.generation += 1;
        self.changes.metadata.retain(|made| *made.what.0 != *name);
        self.changes.metadata.push(Made { what: (name.into(), value), at: self.generation });
    }

    /// All values, with this request's changes.
    pub(super) fn values(&self) -> Data {
        let stored = self.live().filter(|_| self.changes.cleared.is_none());
        let mut values = stored.map(|live| live.record.data.clone()).unwrap_or_default();
        for (key, value) in self.changes.values.iter().map(|made| &made.what) {
            match value {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
        values
    }

    pub(super) fn login(&mut self, user: Arc<str>) {
        self.generation += 1;
        let at = self.generation;
        // What belongs to one user is not handed to another.
        if self.user().is_some_and(|current| *current != user) {
            let afresh = self.may_be_stored().then_some(Made { what: (), at });
            let lifetime = self.changes.lifetime.take().map(|made| Box::new(Made { at, ..*made }));
            self.changes = Changes { afresh, lifetime, ..Changes::default() };
        }
        if let Known::Ended = self.known {
            self.known = Known::Absent;
        }
        self.rotate();
        self.changes.login = Some(Made { what: user, at: self.generation });
    }

    pub(super) fn rotate(&mut self) {
        if self.may_be_stored() && self.fate != Fate::Destroy {
            self.fated(Fate::Rotate);
        }
    }

    pub(super) fn destroy(&mut self) {
        self.changes = Changes::default();
        self.fated(if self.may_be_stored() { Fate::Destroy } else { Fate::Keep });
        if let Known::Absent = self.known {
            self.untold = Some(Untold::End); // a cookie of a session that ended long ago
        }
    }

    /// Whether the store has this session, or may have it: a write that was begun may create it.
    fn may_be_stored(&self) -> bool {
        self.attempt.is_some() || matches!(self.known, Known::Live(_))
    }

    fn fated(&mut self, fate: Fate) {
        self.generation += 1;
        self.fate = fate;
        self.fated_at = self.generation;
    }

    /// What was done up to `generation` is stored.
    pub(super) fn saved(&mut self, generation: u64) {
        if self.fated_at <= generation {
            self.fate = Fate::Keep;
        }
        self.changes.stored(generation);
    }
}
