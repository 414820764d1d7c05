//! What a save does: one write at a time, until nothing is left to write.

use std::{sync::Arc, time::Duration};

use super::{
    Inner, SessionError,
    state::{Changes, Fate, Held, Known, Live, State, Untold},
};
use crate::{
    record::{Record, Version},
    shared::Shared,
    store::{Loaded, Outcome, SessionStore, StoreError},
    time::Timestamp,
    token::{SessionId, Tag, Token},
};

/// How often a save merges with others before it gives up. Each failure is another request's success, so only
/// many requests that write one session at the same moment come near.
const MAX_ATTEMPTS: usize = 128;

/// Whether a new token can still reach the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// With the response that is on its way.
    Response,
    /// No: the response has left.
    Late,
    /// No: the service failed, and there is no response.
    None,
}

/// A write, complete: it can be repeated and means the same.
pub(super) struct Attempt {
    generation: u64,
    write: Write,
}

enum Write {
    Create(Minted),
    Update {
        id: SessionId,
        expected: Version,
        record: Arc<Record>,
        ttl: Duration,
    },
    /// A rotation; or the end of one session and the beginning of another.
    Replace {
        old: SessionId,
        expected: Version,
        new: Minted,
    },
    Destroy {
        id: SessionId,
    },
}

/// A session under a new token.
struct Minted {
    token: Token,
    id: SessionId,
    record: Arc<Record>,
    ttl: Duration,
}

impl Write {
    async fn run(&self, store: &dyn SessionStore) -> Result<Outcome, StoreError> {
        match self {
            Self::Create(new) => store.create(&new.id, new.record.clone(), new.ttl).await,
            Self::Update { id, expected, record, ttl } => store.update(id, *expected, record.clone(), *ttl).await,
            Self::Replace { old, expected, new } => {
                store.rotate(old, *expected, &new.id, new.record.clone(), new.ttl).await
            }
            Self::Destroy { id } => store.destroy(id).await.map(|()| Outcome::Done),
        }
    }

    /// The session whose version it must be the first to replace.
    fn replaces(&self) -> Option<&SessionId> {
        match self {
            Self::Update { id, .. } | Self::Replace { old: id, .. } => Some(id),
            Self::Create(_) | Self::Destroy { .. } => None,
        }
    }
}

impl Inner {
    /// Writes what has changed.
    pub(super) async fn write(&self, delivery: Delivery) -> Result<(), SessionError> {
        let _turn = self.turn().await;
        let store = &*self.shared.store;
        let mut place = None;
        for _ in 0..MAX_ATTEMPTS {
            let Some(attempt) = self.state().next_attempt(&self.shared, delivery)? else {
                return if let Known::Ended = self.state().known { Err(SessionError::Ended) } else { Ok(()) };
            };
            let outcome = attempt.write.run(store).await.inspect_err(|_| self.shared.counters.outage())?;
            let conflict = matches!(outcome, Outcome::Conflict(_));
            self.state().settle(&attempt, outcome, &self.shared);
            if let Some(id) = attempt.write.replaces()
                && conflict
                && place.is_none()
            {
                place = self.shared.queues.wait(id).await;
            }
        }
        Err(SessionError::Conflict)
    }
}

impl State {
    fn next_attempt(&mut self, shared: &Shared, delivery: Delivery) -> Result<Option<Arc<Attempt>>, SessionError> {
        let delivery = if self.closed { Delivery::Late } else { delivery };
        let pending = self.attempt.take();
        let write = match pending.as_deref() {
            // It may have made a session whose token cannot reach the client any more: that must not stay.
            Some(Attempt { write: Write::Create(new) | Write::Replace { new, .. }, .. })
                if delivery != Delivery::Response =>
            {
                Some(Write::Destroy { id: new.id })
            }
            Some(_) => {
                self.attempt = pending;
                return Ok(self.attempt.clone());
            }
            None => self.next_write(shared, delivery)?,
        };
        self.attempt = write.map(|write| Arc::new(Attempt { generation: self.generation, write }));
        Ok(self.attempt.clone())
    }

    /// The write that brings the store to where this session is to be.
    fn next_write(&self, shared: &Shared, delivery: Delivery) -> Result<Option<Write>, SessionError> {
        let now = shared.clock.now();
        let live = match &self.known {
            Known::Unread | Known::Unavailable | Known::Ended => return Ok(None),
            Known::Absent if self.changes.create() => {
                let record = self.record(None, shared, now)?;
                return Ok(Some(Write::Create(self.minted(None, record, now, delivery)?)));
            }
            Known::Absent => return Ok(None),
            Known::Live(live) => live,
        };
        let (id, expected) = (live.id, live.record.version());
        if self.fate == Fate::Destroy {
            // It ends, even if no other can begin: then that fails afterwards.
            return Ok(Some(match self.successor(shared, now, delivery) {
                Some(new) => Write::Replace { old: id, expected, new },
                None => Write::Destroy { id },
            }));
        }
        // Without a response, what was changed is kept, under the token that the client has.
        let rotates = self.fate == Fate::Rotate && (delivery != Delivery::None || self.changes.login.is_some());
        if !rotates && self.changes.is_empty() {
            return Ok(None);
        }
        let record = self.record(Some(&live.record), shared, now)?;
        let ttl = record.full_ttl(now);
        Ok(Some(if ttl.is_zero() {
            Write::Destroy { id } // its time is over
        } else if rotates {
            Write::Replace { old: id, expected, new: self.minted(Some(id), record, now, delivery)? }
        } else {
            Write::Update { id, expected, record, ttl }
        }))
    }

    /// The session that begins where this one was destroyed.
    fn successor(&self, shared: &Shared, now: Timestamp, delivery: Delivery) -> Option<Minted> {
        let record = self.changes.create().then(|| self.record(None, shared, now).ok())??;
        self.minted(None, record, now, delivery).ok()
    }

    /// What is to be stored: what is carried over, and the changes.
    fn record(
        &self,
        carried: Option<&Arc<Record>>,
        shared: &Shared,
        now: Timestamp,
    ) -> Result<Arc<Record>, SessionError> {
        let mut record = match carried {
            Some(carried) => Record { version: carried.version.next()?, ..Record::clone(carried) },
            None => Record::new(now, &shared.lifetime, Version::first()?),
        };
        self.changes.apply(&mut record, now);
        shared.check_size(&record)?;
        Ok(Arc::new(record))
    }

    /// `record` under a new token: of the slot of its user, or else of the session that it carries on.
    fn minted(
        &self,
        carries_on: Option<SessionId>,
        record: Arc<Record>,
        now: Timestamp,
        delivery: Delivery,
    ) -> Result<Minted, SessionError> {
        if delivery != Delivery::Response {
            return Err(SessionError::ResponseSent);
        }
        let token = Token::mint(record.user().map(Tag::of_user).or(carries_on.map(|id| id.tag())))?;
        Ok(Minted { id: token.id(), ttl: record.full_ttl(now), token, record })
    }

    /// Takes in what the store said to an attempt.
    fn settle(&mut self, attempt: &Attempt, outcome: Outcome, shared: &Shared) {
        self.attempt = None;
        match (&attempt.write, outcome) {
            (Write::Create(new), Outcome::Done) => self.settled(attempt, new, true),
            // The id is taken, which 264 random bits rule out: the next attempt has another.
            (Write::Create(_), _) => {}
            (Write::Update { record, ttl, .. }, Outcome::Done) => {
                if let Known::Live(live) = &mut self.known {
                    let until = cookie_until(record);
                    let extended = until != cookie_until(&live.record);
                    live.record = record.clone();
                    live.last_seen = record.written_at;
                    live.expires_at = record.written_at.plus(*ttl);
                    if extended {
                        self.untold = Some(Untold::Token(until));
                    }
                }
                self.saved(attempt.generation);
            }
            (Write::Replace { new, .. }, Outcome::Done) => {
                let is_new = self.fate == Fate::Destroy || matches!(&self.known, Known::Live(live) if live.is_new);
                self.settled(attempt, new, is_new);
            }
            (Write::Update { .. } | Write::Replace { .. }, Outcome::Conflict(loaded)) => {
                shared.counters.conflict();
                self.rebase(loaded);
            }
            (Write::Update { id, .. } | Write::Replace { old: id, .. }, Outcome::Gone) => {
                shared.counters.ended_meanwhile();
                tracing::debug!(session = %id, "session ended meanwhile: changes dropped");
                // A login, or what was begun after this request ended the session itself, is a session of its own. The
                // rest belonged to the session that is gone.
                let own = self.changes.login.is_some() || self.fate == Fate::Destroy;
                self.untold = None;
                self.end(own, Known::Ended);
            }
            (Write::Destroy { id }, _) => {
                // Another id was that of an attempt that was given up.
                if matches!(&self.known, Known::Live(live) if live.id == *id) {
                    // What was changed since belongs to another session. Unless time ended it, and not this request.
                    self.untold = Some(Untold::End);
                    self.end(self.fate == Fate::Destroy, Known::Absent);
                }
            }
        }
    }

    /// The stored session is no more. The changes stay if they are another session's already.
    fn end(&mut self, another: bool, known: Known) {
        if another {
            self.known = Known::Absent;
        } else {
            self.known = known;
            self.changes = Changes::default();
        }
        self.fate = Fate::Keep;
    }

    /// A session with a new token is in the store.
    fn settled(&mut self, attempt: &Attempt, new: &Minted, is_new: bool) {
        let record = &new.record;
        self.untold = Some(Untold::Token(cookie_until(record)));
        self.known = Known::Live(Live {
            id: new.id,
            token: Held::Minted(Box::new(new.token.clone())),
            record: record.clone(),
            last_seen: record.written_at,
            expires_at: record.written_at.plus(new.ttl),
            is_new,
        });
        self.saved(attempt.generation);
    }

    /// Somebody else saved first: from here on their session is the one to change.
    fn rebase(&mut self, loaded: Loaded) {
        if let Known::Live(live) = &mut self.known {
            live.record = loaded.record;
        }
    }
}

/// Until when the cookie is to be kept, if it is to outlive the browser.
fn cookie_until(record: &Record) -> Option<Timestamp> {
    record.persistent.then(|| record.absolute_deadline())
}
