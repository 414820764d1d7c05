//! The next state: write and reply → state. No I/O here.

use std::{mem, sync::Arc};

use super::{
    changes::Action,
    plan::Environment,
    state::{CookieChange, LoginTransfer, Phase, Snapshot, State, TokenOrigin, TransferStage, cookie_expiry},
    write::{NewSession, PendingWrite, Reply, Write},
};
use crate::{
    ended::EndReason,
    event::EventKind,
    record::{Record, Standing},
    store::{Created, EndOutcome, Entry, Loaded, Outcome},
    token::{SessionId, Token},
};

/// What others must learn about a write.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) events: Vec<(SessionId, Option<Arc<str>>, EventKind)>,
    /// The record of a session that ended.
    pub(super) ended: Option<Arc<Record>>,
    /// Another request ended the session, or it expired.
    pub(super) ended_concurrently: bool,
    /// Another request wrote first.
    pub(super) is_conflict: bool,
    /// This many of its values will be overwritten.
    pub(super) overwrites: Option<u64>,
    /// The user has as many sessions as the limit allows, or the store is full.
    pub(super) is_full: bool,
}

/// Applies the store's reply to a write. `repeated`: the write was sent before, and the reply was lost.
pub(super) fn apply(
    state: &mut State,
    env: &Environment<'_>,
    sent: &PendingWrite,
    repeated: bool,
    reply: Reply,
) -> Effects {
    state.pending = None;
    let mut effects = Effects::default();
    match (&sent.write, reply) {
        (Write::Create(new), Reply::Created(Created::Done { evicted })) => {
            let user = &new.entry.record.user;
            effects
                .events
                .extend(evicted.into_iter().map(|id| (id, user.clone(), EventKind::Ended(EndReason::Evicted))));
            effects.events.push((new.id, user.clone(), EventKind::Created));
            state.created(new, sent.generation, &mut effects);
        }
        // The id exists, which 264 random bits rule out. The next write has another.
        (Write::Create(_), Reply::Created(Created::Taken)) => {}
        (Write::Create(_), Reply::Created(Created::Full)) => effects.is_full = true,

        (Write::Update { id, entry, .. }, Reply::Updated(Outcome::Done)) if entry.ttl.is_zero() => {
            effects.ended_concurrently = true;
            state.ended(id, EndReason::Expired, true, &mut effects);
        }
        (Write::Update { entry, token, .. }, Reply::Updated(Outcome::Done)) => {
            state.updated(entry, token.as_ref(), sent.generation, &mut effects);
        }
        (Write::Update { id, .. }, Reply::Updated(Outcome::Gone)) => {
            tracing::warn!(
                session = %id,
                "changes dropped: the session ended while the request was served. To end the sessions of its own user, a request calls \
                 `Session::logout_everywhere`, `revoke_others` or `password_changed`"
            );
            effects.ended_concurrently = true;
            state.ended_by_others();
        }

        (Write::Replace { .. }, Reply::Ended(EndOutcome::Done | EndOutcome::Claimed(_))) => {
            state.replaced(&mut effects);
        }
        (Write::Replace { .. }, Reply::Ended(EndOutcome::Gone)) => {
            effects.ended_concurrently = true;
            state.detached();
        }

        (Write::End { id, reason }, Reply::Ended(EndOutcome::Done | EndOutcome::Claimed(_))) => {
            state.ended(id, *reason, true, &mut effects);
        }
        // If the write is repeated, the first one ended the session.
        (Write::End { id, reason }, Reply::Ended(EndOutcome::Gone)) => {
            state.ended(id, *reason, repeated, &mut effects);
        }

        (write, Reply::Updated(Outcome::Conflict(loaded)) | Reply::Ended(EndOutcome::Conflict(loaded))) => {
            effects.is_conflict = true;
            effects.overwrites = state.rebase(env, Some(write), loaded);
        }
        // The reply to another kind of write.
        (Write::Create(_), Reply::Updated(_) | Reply::Ended(_))
        | (Write::Update { .. }, Reply::Created(_) | Reply::Ended(_))
        | (Write::Replace { .. } | Write::End { .. }, Reply::Created(_) | Reply::Updated(_)) => {}
    }
    effects
}

impl State {
    fn created(&mut self, new: &NewSession, generation: u64, effects: &mut Effects) {
        let live = Snapshot::created(new);
        match mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Live(old) if new.entry.record.replaces.is_some() => {
                let stage = TransferStage::Pending;
                self.phase = Phase::Transfer(Box::new(LoginTransfer { old: *old, new: live, generation, stage }));
            }
            Phase::Transfer(lost) => self.activate(LoginTransfer { new: live, ..*lost }, generation, effects),
            _ => {
                self.cookie = Some(CookieChange::give(&live.record));
                self.phase = Phase::Live(Box::new(live));
                self.saved(generation, effects);
            }
        }
    }

    fn updated(&mut self, entry: &Entry, token: Option<&Token>, generation: u64, effects: &mut Effects) {
        match mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Live(mut live) => {
                let record = &entry.record;
                if token.is_some() || cookie_expiry(record) != cookie_expiry(&live.record) {
                    self.cookie = Some(CookieChange::give(record));
                }
                let is_rotated = token.is_some() || record.generation() != live.record.generation();
                if is_rotated && self.changes.login().is_none() {
                    effects.events.push((live.id, record.user.clone(), EventKind::Rotated));
                }
                live.stored(entry);
                if let Some(token) = token {
                    live.token = TokenOrigin::New(Box::new(token.clone()));
                    live.token_superseded = false;
                }
                self.phase = Phase::Live(live);
                self.saved(generation, effects);
            }
            Phase::Transfer(mut transfer) => {
                transfer.new.stored(entry);
                match transfer.stage {
                    TransferStage::Pending | TransferStage::Stale => {
                        (transfer.generation, transfer.stage) = (generation, TransferStage::Pending);
                        self.phase = Phase::Transfer(transfer);
                    }
                    // The new session has the changes from before the old one ended; later changes are still unsaved.
                    TransferStage::Replaced => {
                        let generation = transfer.generation;
                        self.activate(*transfer, generation, effects);
                    }
                    TransferStage::Lost | TransferStage::Detached => self.activate(*transfer, generation, effects),
                }
            }
            other => self.phase = other,
        }
    }

    /// The old session of a login has ended, replaced by the new one.
    fn replaced(&mut self, effects: &mut Effects) {
        let Phase::Transfer(transfer) = &mut self.phase else { return };
        transfer.stage = TransferStage::Replaced;
        self.cookie = Some(CookieChange::give(&transfer.new.record));
        effects.end(&transfer.old, EndReason::Replaced);
    }

    /// The old session of a login has ended for another reason, so nothing of it may be kept.
    fn detached(&mut self) {
        let Phase::Transfer(transfer) = &mut self.phase else { return };
        transfer.stage = TransferStage::Detached;
        Arc::make_mut(&mut transfer.new.record).data.clear();
    }

    /// The new session of a login is active, with the changes up to `generation`.
    fn activate(&mut self, transfer: LoginTransfer, generation: u64, effects: &mut Effects) {
        let LoginTransfer { old, mut new, stage, .. } = transfer;
        new.is_new = old.is_new || self.changes.discards_previous() || stage == TransferStage::Detached;
        self.cookie = Some(CookieChange::give(&new.record));
        self.phase = Phase::Live(Box::new(new));
        self.saved(generation, effects);
    }

    /// The changes up to `generation` are stored in the live session.
    fn saved(&mut self, generation: u64, effects: &mut Effects) {
        if let (Some(user), Phase::Live(live)) = (self.changes.login(), &self.phase)
            && live.record.user.as_ref() == Some(user)
        {
            effects.events.push((live.id, Some(user.clone()), EventKind::LoggedIn));
        }
        self.changes.saved(generation);
    }

    /// This request has ended session `id`, or found that it had ended: `by_us` says which.
    fn ended(&mut self, id: &SessionId, reason: EndReason, by_us: bool, effects: &mut Effects) {
        let mut end = |ended: &Snapshot| {
            if by_us {
                effects.end(ended, reason);
            }
        };
        match mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Transfer(mut transfer) if transfer.old.id == *id => {
                end(&transfer.old);
                transfer.stage = TransferStage::Detached;
                self.phase = Phase::Transfer(transfer);
            }
            // The login is given up, and the old session stays.
            Phase::Transfer(transfer) if transfer.new.id == *id && !transfer.stage.old_has_ended() => {
                end(&transfer.new);
                self.phase = Phase::Live(Box::new(transfer.old));
            }
            Phase::Transfer(transfer) if transfer.new.id == *id => {
                end(&transfer.new);
                self.has_ended(reason);
            }
            Phase::Live(live) if live.id == *id => {
                end(&live);
                self.has_ended(reason);
            }
            // The session of a creation that was given up.
            other => self.phase = other,
        }
    }

    fn has_ended(&mut self, reason: EndReason) {
        self.cookie = Some(CookieChange::Remove);
        self.end_reason = Some(reason);
        // Changes after a `destroy` belong to a new session.
        self.end(self.changes.action() == Some(Action::Destroy));
    }

    /// The session ended while this request was served.
    fn ended_by_others(&mut self) {
        match mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Transfer(mut transfer)
                if matches!(transfer.stage, TransferStage::Replaced | TransferStage::Lost) =>
            {
                transfer.stage = TransferStage::Lost;
                self.phase = Phase::Transfer(transfer);
            }
            // Only the pending session is gone. The login creates another.
            Phase::Transfer(transfer) if transfer.stage != TransferStage::Detached => {
                self.phase = Phase::Live(Box::new(transfer.old));
            }
            _ => {
                self.cookie = None;
                // A login, or what follows a `destroy`, belongs to a new session. All else belonged to the ended one.
                self.end(self.changes.login().is_some() || self.changes.action() == Some(Action::Destroy));
            }
        }
    }

    /// The stored session has ended. With `keep_changes`, the unsaved changes belong to a new session.
    fn end(&mut self, keep_changes: bool) {
        if keep_changes {
            self.phase = Phase::Absent;
            self.changes.drop_action();
        } else {
            self.phase = Phase::Ended;
            self.changes.reset();
        }
    }

    /// Another request wrote the session first: from now on, the changes apply to what it wrote. Returns how many of its values
    /// they overwrite. `write` is the one that it conflicts with, if there is one.
    pub(super) fn rebase(&mut self, env: &Environment<'_>, write: Option<&Write>, loaded: Loaded) -> Option<u64> {
        let (base, in_transfer) = match &mut self.phase {
            Phase::Live(live) => (&mut **live, false),
            // During a login, other requests write the old session.
            Phase::Transfer(transfer) => {
                transfer.stage = TransferStage::Stale;
                (&mut transfer.old, true)
            }
            _ => return None,
        };
        let mut overwritten = 0;
        for (key, mine) in self.changes.values_mut() {
            let (was, theirs) = (base.record.data.get(&**key), loaded.record.data.get(&**key));
            if was == theirs || theirs == mine.as_ref() {
                continue;
            }
            match env.context.merges.get(key) {
                Some(merge) => *mine = merge(was, mine.as_ref(), theirs),
                None => overwritten += 1,
            }
        }
        let generation = loaded.record.generation();
        let is_rotated = generation != base.record.generation();
        base.record = loaded.record;
        if is_rotated && let Some(token) = base.token(env.presented) {
            let by_us = write.is_some_and(|write| write.rotates_to(generation)); // and the reply was lost
            let standing = base.record.standing(&token, env.now, env.context.rotation.grace);
            base.token_superseded |= !by_us && !matches!(standing, Standing::Current | Standing::Graced);
            base.token = TokenOrigin::New(Box::new(base.record.current_token(&token)));
            if !in_transfer && (by_us || self.changes.action() == Some(Action::Renew)) {
                self.changes.drop_action();
                self.cookie = Some(CookieChange::give(&base.record));
            }
            self.cookie.take_if(|_| base.token_superseded);
        }
        let confirms = self.changes.action() == Some(Action::Confirm);
        if confirms && (is_rotated || !base.record.is_token_unused()) {
            self.changes.drop_action(); // another request was faster
        }
        Some(overwritten)
    }
}

impl Effects {
    fn end(&mut self, session: &Snapshot, reason: EndReason) {
        self.events.push((session.id, session.record.user.clone(), EventKind::Ended(reason)));
        self.ended = Some(session.record.clone());
    }
}
