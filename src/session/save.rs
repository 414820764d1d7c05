//! What a save does: one write at a time, until nothing is left to write.
//!
//! A login carries a session on in another: that of the user, which lives in the user's slot. It is the only change that takes more
//! than one write, and the second is what counts:
//!
//! ```text
//! create the new session,      end the old in its favour,
//! which names the old    ──▶   if nobody wrote it since    ──▶   tell the new one that it has begun
//!                        ◀──   take over what somebody wrote
//! ```
//! The new one is alive once what is remembered of the old names it. So a request that is cut off anywhere leaves one of
//! the two, and whatever else ends the old one later, a new one that never began stays what it is: nothing.
//!
//! The login of another user does the same, and carries nothing on.

use std::{mem, sync::Arc, time::Duration};

use super::{
    Inner, SessionError,
    state::{Fate, Known, Live, Move, Stage, State},
};
use crate::{
    context::LayerContext,
    ended::EndReason,
    event::Event,
    record::{Record, Version},
    store::{Created, End, EndOutcome, Entry, Outcome, SessionStore, StoreError, StoreExt},
    time::Timestamp,
    token::{Generation, SessionId, Tag, Token},
};

/// How often a save merges with others before it gives up. Each failure is another request's success, so only
/// many requests that write one session at the same moment come near.
const MAX_ATTEMPTS: usize = 128;

/// How long the session of a login waits for the one before to end. Nobody has its token yet.
const PENDING: Duration = Duration::from_secs(30);

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
    pub(super) generation: u64,
    pub(super) write: Write,
}

pub(super) enum Write {
    Create(Minted),
    Update {
        id: SessionId,
        expected: Version,
        entry: Entry,
        /// The token that counts from then on, if another does.
        token: Option<Token>,
        /// It is the session of a login, which waits or begins.
        begins: bool,
    },
    End {
        id: SessionId,
        reason: EndReason,
    },
    /// A login: the end of one session in favour of another, which waits for it.
    Replace {
        id: SessionId,
        expected: Option<Version>,
        successor: SessionId,
    },
}

/// A session under a new token.
pub(super) struct Minted {
    pub(super) token: Token,
    pub(super) id: SessionId,
    pub(super) entry: Entry,
}

/// What the store said to a write.
pub(super) enum Answer {
    Created(Created),
    Written(Outcome),
}

impl Answer {
    fn of_end(outcome: EndOutcome) -> Self {
        Self::Written(match outcome {
            EndOutcome::Done | EndOutcome::Claimed(_) => Outcome::Done,
            EndOutcome::Conflict(loaded) => Outcome::Conflict(loaded),
            EndOutcome::Gone => Outcome::Gone,
        })
    }
}

impl Write {
    async fn run(&self, context: &LayerContext) -> Result<Answer, StoreError> {
        let store: &dyn SessionStore = &*context.store;
        Ok(match self {
            Self::Create(Minted { id, entry, .. }) => {
                let limits = context.limits_of(entry.record.user());
                Answer::Created(store.create(id, entry.clone(), limits).await?)
            }
            Self::Update { id, expected, entry, .. } => {
                Answer::Written(store.update(id, *expected, entry.clone()).await?)
            }
            Self::End { id, reason } => Answer::of_end(store.end(id, End::For(*reason)).await?),
            Self::Replace { id, expected, successor } => Answer::of_end(store.replace(id, *expected, successor).await?),
        })
    }

    /// Whether the client has to be told another token when it is done.
    fn gives_token(&self) -> bool {
        match self {
            Self::Create(_) | Self::Replace { .. } => true,
            Self::Update { token, begins, .. } => token.is_some() || *begins,
            Self::End { .. } => false,
        }
    }

    /// Whether it makes the token of this generation the one that counts.
    pub(super) fn rotates_to(&self, generation: Option<Generation>) -> bool {
        matches!(self, Self::Update { entry, token: Some(_), .. } if entry.record.generation() == generation)
    }

    /// The session that it must be the first to write, if somebody was before.
    fn lost_to(&self, answer: &Answer) -> Option<SessionId> {
        match (self, answer) {
            (Self::Update { id, .. } | Self::Replace { id, .. }, Answer::Written(Outcome::Conflict(_))) => Some(*id),
            _ => None,
        }
    }
}

impl Inner {
    /// Writes what has changed.
    pub(super) async fn write(&self, delivery: Delivery) -> Result<(), SessionError> {
        let _turn = self.turn().await;
        let mut events = Vec::new();
        let written = self.write_all(delivery, &mut events).await;
        self.publish(&events).await; // last, so that it takes no time from the writes
        written
    }

    /// Leaves what the others are to be told in `events`.
    async fn write_all(&self, delivery: Delivery, events: &mut Vec<Event>) -> Result<(), SessionError> {
        let context = &*self.context;
        let mut place = None;
        for _ in 0..MAX_ATTEMPTS {
            let Some((attempt, again)) = self.next_attempt(delivery)? else {
                return if let Known::Ended = self.state().known { Err(SessionError::Ended) } else { Ok(()) };
            };
            if self.state().closed {
                self.patience.renew(); // no client waits for it
            }
            let answer = self.ask(attempt.write.run(context)).await;
            let answer = answer.inspect_err(|_| context.counters.outages.count())?;
            let lost_to = attempt.write.lost_to(&answer);
            let happened = {
                let mut state = self.state();
                let settled = self.settle(&mut state, &attempt, again, answer);
                settled.map(|()| mem::take(&mut state.happened))
            }?;
            events.extend(context.tell(happened, self.ip()));
            if let Some(id) = lost_to
                && place.is_none()
            {
                place = Some(self.wait_for(context.queues.wait(&id)).await); // once
            }
        }
        context.counters.gave_up();
        Err(SessionError::Conflict)
    }

    /// And whether it was made before, and its answer lost.
    fn next_attempt(&self, delivery: Delivery) -> Result<Option<(Arc<Attempt>, bool)>, SessionError> {
        let state = &mut *self.state();
        let delivery = if state.closed { Delivery::Late } else { delivery };
        let pending = state.attempt.take();
        let write = match pending.as_deref() {
            // It may have made a session whose token cannot reach the client any more: that must not stay.
            Some(Attempt { write: Write::Create(new), .. }) if delivery != Delivery::Response => {
                Some(Write::End { id: new.id, reason: EndReason::LoggedOut })
            }
            // It may have changed the token, which cannot reach the client any more. Whether it did shows with the next write.
            Some(attempt) if delivery != Delivery::Response && attempt.write.gives_token() => {
                self.next_write(state, delivery)?
            }
            Some(_) => {
                state.attempt = pending;
                return Ok(state.attempt.clone().map(|attempt| (attempt, true)));
            }
            None => self.next_write(state, delivery)?,
        };
        state.attempt = write.map(|write| Arc::new(Attempt { generation: state.generation, write }));
        Ok(state.attempt.clone().map(|attempt| (attempt, false)))
    }

    /// The write that brings the store nearer to where this session is to be.
    fn next_write(&self, state: &State, delivery: Delivery) -> Result<Option<Write>, SessionError> {
        let now = self.context.clock.now();
        let live = match &state.known {
            Known::Unread | Known::Unavailable | Known::Vouched | Known::Ended => return Ok(None),
            Known::Absent if state.changes.create() => {
                let record = self.record(state, None, None)?;
                return self.created(record, now, delivery).map(Some);
            }
            Known::Absent => return Ok(None),
            Known::Live(live) => live,
        };
        if let Some(moved) = &live.moved {
            return self.next_of_move(state, live, moved, delivery, now).map(Some);
        }
        let (id, expected) = (live.id, live.record.version());
        if let Fate::Destroy = state.fate {
            return Ok(Some(Write::End { id, reason: EndReason::LoggedOut }));
        }
        let can_be_told = delivery == Delivery::Response;
        let rotates = match state.fate {
            Fate::Renew => can_be_told,
            Fate::Rotate => true,
            Fate::Keep | Fate::Destroy => false,
        };
        if !rotates && state.changes.is_empty() {
            return Ok(None);
        }
        if rotates && !can_be_told {
            return Err(SessionError::ResponseSent);
        }
        let afresh = state.changes.afresh();
        let moves = afresh || state.changes.login().is_some_and(|user| id.tag() != Tag::of_user(user));
        let carried = (!afresh).then_some(&*live.record);
        let mut record = self.record(state, carried, moves.then_some(live))?;
        if moves {
            return self.created(record, now, delivery).map(Some);
        }
        // Nothing if its time is over: so it ends, unless somebody has given it more.
        let ttl = record.full_ttl(now);
        let mut token = None;
        if rotates {
            // Another request has rotated it already: this one gets the same token.
            if !live.disowned {
                let grace = if let Fate::Renew = state.fate { self.context.rotation.grace } else { Duration::ZERO };
                record.rotate(now, grace)?;
            }
            token = self.held(live).map(|token| record.current_token(&token));
        }
        Ok(Some(Write::Update { id, expected, entry: Entry { record: Arc::new(record), ttl }, token, begins: false }))
    }

    /// The next write of a login: the new session is there, and begins when the old one ends.
    fn next_of_move(
        &self,
        state: &State,
        live: &Live,
        moved: &Move,
        delivery: Delivery,
        now: Timestamp,
    ) -> Result<Write, SessionError> {
        let (old, expected) = (&moved.old, live.record.version());
        if let Fate::Destroy = state.fate {
            let id = if moved.stage.is_over() { live.id } else { old.id };
            return Ok(Write::End { id, reason: EndReason::LoggedOut });
        }
        // That of one that is alive went out with the response.
        let can_be_told =
            delivery == Delivery::Response || (delivery == Delivery::Late && moved.stage == Stage::Replaced);
        if !can_be_told {
            return Ok(Write::End { id: live.id, reason: EndReason::LoggedOut });
        }
        let record = match moved.stage {
            Stage::Waiting => {
                let expected = (!state.changes.afresh()).then(|| old.record.version());
                return Ok(Write::Replace { id: old.id, expected, successor: live.id });
            }
            Stage::Stale => self.record(state, Some(&old.record), Some(old))?,
            Stage::Replaced => Record { replaces: None, ..Record::clone(&live.record) },
            Stage::Lost => return self.created(self.record(state, Some(&live.record), None)?, now, delivery),
            Stage::Alone => self.record(state, None, None)?,
        };
        let record = Arc::new(Record { version: expected.next()?, ..record });
        let ttl = record.full_ttl(now).min(if record.replaces.is_some() { PENDING } else { Duration::MAX });
        Ok(Write::Update { id: live.id, expected, entry: Entry { record, ttl }, token: None, begins: true })
    }

    /// What is to be stored: what is carried over, and the changes.
    fn record(&self, state: &State, carried: Option<&Record>, replaces: Option<&Live>) -> Result<Record, SessionError> {
        let (context, now) = (&self.context, self.context.clock.now());
        let mut record = match carried {
            Some(carried) => Record { version: carried.version.next()?, ..carried.clone() },
            None => Record::new(now, &context.lifetime, Version::first()?),
        };
        record.replaces = replaces.map(|old| old.id);
        if replaces.is_some() {
            record.rotation = None; // it has a token of its own
        }
        if let Some(client) = &self.client
            && (carried.is_none() || state.changes.login().is_some())
        {
            let mut metadata = client.clone();
            for (name, value) in record.metadata.fields() {
                metadata.set_field(name, Some(value.into()));
            }
            record.metadata = Arc::new(metadata);
        }
        state.changes.apply(&mut record, now);
        context.check_size(&record)?;
        Ok(record)
    }

    /// The creation of `record` under a new token, in the slot of its user.
    fn created(&self, record: Record, now: Timestamp, delivery: Delivery) -> Result<Write, SessionError> {
        if delivery != Delivery::Response {
            return Err(SessionError::ResponseSent);
        }
        let token = Token::mint(record.user().map(Tag::of_user))?;
        let ttl = record.full_ttl(now);
        // One that waits for another to end does not wait for long: its request may have been cut off.
        let ttl = if record.replaces.is_some() { ttl.min(PENDING) } else { ttl };
        let entry = Entry { ttl, record: Arc::new(record) };
        Ok(Write::Create(Minted { id: token.id(), token, entry }))
    }
}
