//! What a write has changed, once the store has answered.

use std::sync::Arc;

use super::{
    Inner, SessionError,
    save::{Answer, Attempt, Minted, Write},
    state::{Changes, Fate, Held, Known, Live, Move, Stage, State, Untold},
};
use crate::{
    ended::EndReason,
    event::EventKind,
    record::{Record, Standing},
    store::{Created, Entry, Loaded, Outcome},
    time::Timestamp,
    token::{SessionId, Token},
};

impl Inner {
    /// Takes in what the store said to an attempt, which may have been made before: `again`.
    pub(super) fn settle(
        &self,
        state: &mut State,
        attempt: &Attempt,
        again: bool,
        answer: Answer,
    ) -> Result<(), SessionError> {
        state.attempt = None;
        match (&attempt.write, answer) {
            (Write::Create(new), Answer::Created(Created::Done { evicted })) => {
                let user = new.entry.record.user.clone();
                for id in evicted {
                    state.happened(id, user.clone(), EventKind::Ended(EndReason::Evicted));
                }
                state.happened(new.id, user, EventKind::Created);
                state.created(attempt.generation, new);
            }
            // The id is taken, which 264 random bits rule out: the next attempt has another.
            (Write::Create(_), Answer::Created(Created::Taken)) => {}
            (Write::Create(new), Answer::Created(Created::Full)) => {
                self.context.refused(new.entry.record.user(), self.ip());
                return Err(SessionError::Full);
            }
            (Write::Update { id, entry, .. }, Answer::Written(Outcome::Done)) if entry.ttl.is_zero() => {
                self.context.counters.ended_concurrently();
                self.lived(state, id);
                state.ended_by_us(id, EndReason::Expired, true);
            }
            (Write::Update { entry, token, .. }, Answer::Written(Outcome::Done)) => {
                state.written(attempt.generation, entry, token.as_ref());
            }
            (Write::Replace { .. }, Answer::Written(outcome @ (Outcome::Done | Outcome::Gone))) => {
                let by_us = matches!(outcome, Outcome::Done);
                match &attempt.write {
                    Write::Replace { id, .. } if by_us => self.lived(state, id),
                    _ => self.context.counters.ended_concurrently(),
                }
                state.replaced(by_us);
            }
            (Write::End { id, reason }, Answer::Written(outcome @ (Outcome::Done | Outcome::Gone))) => {
                // What was gone when the store was asked again, ended when it was asked first.
                let now = again || matches!(outcome, Outcome::Done);
                if now {
                    self.lived(state, id);
                }
                state.ended_by_us(id, *reason, now);
            }
            (_, Answer::Written(Outcome::Conflict(loaded))) => {
                self.rebase(state, &attempt.write, loaded);
            }
            (Write::Update { id, .. }, Answer::Written(Outcome::Gone)) => {
                self.context.counters.ended_concurrently();
                tracing::debug!(session = %id, "session ended meanwhile: changes dropped");
                state.ended_by_others();
            }
            // A creation is answered as one, and nothing else is.
            (Write::Create(_), Answer::Written(_)) | (_, Answer::Created(_)) => {}
        }
        Ok(())
    }

    /// The session `id` has ended now: that of this request, or the one before.
    fn lived(&self, state: &State, id: &SessionId) {
        if let Known::Live(live) = &state.known {
            let old = live.moved.as_ref().map(|moved| &moved.old);
            let ended = [Some(&**live), old].into_iter().flatten().find(|live| live.id == *id);
            ended.into_iter().for_each(|live| self.context.lived(&live.record));
        }
    }

    /// Somebody else saved first: from here on their session is the one to change.
    fn rebase(&self, state: &mut State, write: &Write, loaded: Loaded) {
        let (now, race) = (self.context.clock.now(), self.context.rotation.grace);
        let Known::Live(live) = &mut state.known else { return };
        let mut overwrites = 0;
        let moves = live.moved.is_some();
        // In a login, the old session is the one that others write.
        let base = match &mut live.moved {
            Some(moved) => {
                moved.stage = Stage::Stale;
                &mut moved.old
            }
            None => &mut **live,
        };
        for (key, mine) in state.changes.values.iter_mut().map(|made| &mut made.what) {
            let (was, theirs) = (base.record.data.get(&**key), loaded.record.data.get(&**key));
            if was == theirs || theirs == mine.as_ref() {
                continue;
            }
            match self.context.merges.get(key) {
                Some(merge) => *mine = merge(was, mine.as_ref(), theirs),
                None => overwrites += 1,
            }
        }
        self.context.counters.conflict(overwrites);
        let generation = loaded.record.generation();
        let rotated = generation != base.record.generation();
        base.record = loaded.record;
        if rotated && let Some(token) = self.held(base) {
            // The token that this request came with does not count any more, which is all a rotation is for.
            let by_us = write.rotates_to(generation); // and the answer was lost
            let standing = base.record.standing(&token, now, race);
            base.disowned |= !by_us && !matches!(standing, Standing::Current | Standing::Graced);
            base.token = Held::Minted(Box::new(base.record.current_token(&token)));
            if !moves && (state.fate == Fate::Renew || by_us) {
                state.fate = Fate::Keep;
                state.untold = Some(Untold::Token(cookie_until(&base.record)));
            }
            state.untold.take_if(|_| base.disowned);
        }
    }
}

impl State {
    /// A session with a new token is in the store.
    fn created(&mut self, generation: u64, new: &Minted) {
        let record = &new.entry.record;
        let mut live = Box::new(Live {
            id: new.id,
            token: Held::Minted(Box::new(new.token.clone())),
            record: record.clone(),
            last_seen: record.written_at,
            expires_at: record.written_at.plus(new.entry.ttl),
            is_new: true,
            disowned: false,
            moved: None,
        });
        let before = match std::mem::replace(&mut self.known, Known::Absent) {
            Known::Live(before) => Some(before),
            _ => None,
        };
        match before.map(|before| (before.moved.is_some(), before)) {
            // Not yet: first the old one must end.
            Some((false, old)) if record.replaces.is_some() => {
                live.moved = Some(Box::new(Move { old: *old, generation, stage: Stage::Waiting }));
                self.known = Known::Live(live);
            }
            Some((true, lost)) => {
                live.moved = lost.moved;
                self.known = Known::Live(live);
                self.moved(generation);
            }
            _ => {
                self.known = Known::Live(live);
                self.untold = Some(Untold::Token(cookie_until(record)));
                self.logged_in();
                self.saved(generation);
            }
        }
    }

    /// What was changed is in the store.
    fn written(&mut self, generation: u64, entry: &Entry, token: Option<&Token>) {
        let Known::Live(live) = &mut self.known else { return };
        let record = &entry.record;
        let until = cookie_until(record);
        if token.is_some() || (until != cookie_until(&live.record) && live.moved.is_none()) {
            self.untold = Some(Untold::Token(until));
        }
        let rotated = record.generation() != live.record.generation();
        live.record = record.clone();
        live.last_seen = record.written_at;
        live.expires_at = record.written_at.plus(entry.ttl);
        if let Some(moved) = &mut live.moved {
            match moved.stage {
                Stage::Waiting | Stage::Stale => (moved.generation, moved.stage) = (generation, Stage::Waiting),
                // It is what it was when the old one ended, and what was done since is still to be written.
                Stage::Replaced => {
                    let generation = moved.generation;
                    self.moved(generation);
                }
                Stage::Alone | Stage::Lost => self.moved(generation),
            }
            return;
        }
        if let Some(token) = token {
            live.token = Held::Minted(Box::new(token.clone()));
            live.disowned = false;
        }
        if (rotated || token.is_some()) && self.changes.login().is_none() {
            let (id, user) = (live.id, record.user.clone());
            self.happened(id, user, EventKind::Rotated);
        }
        self.logged_in();
        self.saved(generation);
    }

    /// The session before has ended, in favour of this one or otherwise. Either way this one may begin, but nobody carries on what
    /// has ended otherwise.
    fn replaced(&mut self, by_us: bool) {
        let Known::Live(live) = &mut self.known else { return };
        let Some(moved) = &mut live.moved else { return };
        moved.stage = if by_us { Stage::Replaced } else { Stage::Alone };
        let (id, user) = (moved.old.id, moved.old.record.user.clone());
        if by_us {
            self.untold = Some(Untold::Token(cookie_until(&live.record)));
            self.happened(id, user, EventKind::Ended(EndReason::Replaced));
        } else {
            Arc::make_mut(&mut live.record).data.clear();
        }
    }

    /// The new session of a login has begun, with what was done up to `generation`.
    fn moved(&mut self, generation: u64) {
        let afresh = self.changes.afresh();
        let Known::Live(live) = &mut self.known else { return };
        let Some(moved) = live.moved.take() else { return };
        live.is_new = moved.old.is_new || afresh || moved.stage == Stage::Alone;
        self.untold = Some(Untold::Token(cookie_until(&live.record)));
        self.logged_in();
        self.saved(generation);
    }

    fn logged_in(&mut self) {
        if let (Some(user), Known::Live(live)) = (self.changes.login().cloned(), &self.known)
            && live.record.user.as_ref() == Some(&user)
        {
            let id = live.id;
            self.happened(id, Some(user), EventKind::LoggedIn);
        }
    }

    /// A session has ended as this request wanted it, or had ended before.
    fn ended_by_us(&mut self, id: &SessionId, reason: EndReason, now: bool) {
        let Known::Live(live) = &mut self.known else { return };
        let user = live.record.user.clone();
        if let Some(moved) = &mut live.moved
            && moved.old.id == *id
        {
            moved.stage = Stage::Alone;
            let user = moved.old.record.user.clone();
            if now {
                self.happened(*id, user, EventKind::Ended(reason));
            }
            return;
        }
        if live.id != *id {
            return; // that of an attempt that was given up
        }
        if now {
            self.happened.push((*id, user, EventKind::Ended(reason)));
        }
        match live.moved.take() {
            // A login that was given up: the old session goes on.
            Some(moved) if !moved.stage.is_over() => **live = moved.old,
            _ => {
                self.untold = Some(Untold::End);
                self.ended = Some(reason);
                // What was changed since this request ended it belongs to another session.
                self.end(self.fate == Fate::Destroy);
            }
        }
    }

    /// The session ended while this request was served.
    fn ended_by_others(&mut self) {
        if let Known::Live(live) = &mut self.known
            && let Some(mut moved) = live.moved.take()
            && moved.stage != Stage::Alone
        {
            // Only the new one, which waited: there will be another.
            if moved.stage.is_over() {
                moved.stage = Stage::Lost;
                live.moved = Some(moved);
            } else {
                **live = moved.old;
            }
            return;
        }
        // A login, or what was begun after this request ended the session itself, is a session of its own. The
        // rest belonged to the session that is gone.
        self.untold = None;
        self.end(self.changes.login().is_some() || self.fate == Fate::Destroy);
    }

    /// The stored session is no more. The changes stay if they are another session's already.
    fn end(&mut self, another: bool) {
        if another {
            self.known = Known::Absent;
        } else {
            self.known = Known::Ended;
            self.changes = Changes::default();
        }
        self.fate = Fate::Keep;
    }

    fn happened(&mut self, id: SessionId, user: Option<Arc<str>>, happened: EventKind) {
        self.happened.push((id, user, happened));
    }
}

/// Until when the cookie is to be kept, if it is to outlive the browser.
pub(super) fn cookie_until(record: &Record) -> Option<Timestamp> {
    record.persistent.then(|| record.absolute_deadline())
}
