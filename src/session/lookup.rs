//! The lookup: from the presented credentials to the session.

use std::sync::Arc;

use super::{
    Inner,
    changes::Action,
    lookup_outcome::LookupOutcome,
    state::{CookieChange, LookupResult, Phase, Snapshot, TokenOrigin},
};
use crate::{
    context::OnCorrupt,
    credential::{Proof, Signed, Transport},
    ended::{EndReason, Ended},
    error_chain::ErrorChain,
    event::EventKind,
    metrics::{self, ROTATION, TOUCH_SKIPPED},
    record::{Record, Standing},
    security,
    store::{End, EndOutcome, Entry, Found, Loaded, Outcome, SessionStore, StoreError},
    time::Timestamp,
    token::SessionId,
};

/// The result for one token or signature.
enum ProofResult {
    Live(Snapshot, Standing),
    /// The session exists, but the client has a newer token or is about to receive it.
    Superseded,
    Ended(EndReason),
    Unknown,
}

impl Inner {
    /// Whether the session was not looked up yet, or not successfully.
    pub(super) fn needs_lookup(&self) -> bool {
        matches!(self.known_state().phase, Phase::NotLoaded | Phase::Unavailable)
    }

    /// `touch`: extend the idle timeout.
    pub(super) async fn look_up(&self, touch: bool) -> LookupResult {
        let degraded_before = self.context.store().is_degraded();
        let mut result = self.try_proofs(touch).await;
        // The store may have changed while it replied.
        result.degraded |= degraded_before || self.context.store().is_degraded();
        if result.degraded && matches!(result.outcome, LookupOutcome::Hit | LookupOutcome::Unknown) {
            result.outcome = LookupOutcome::Degraded;
        }
        result
    }

    async fn try_proofs(&self, touch: bool) -> LookupResult {
        let (mut superseded, mut end_reason, mut unknown) = (false, None, None);
        for proof in self.presented.proofs() {
            let found = self.time_budget.spend(self.context.store().load(&proof.session())).await;
            if let (Proof::Signature(signed), Err(error @ StoreError::Outage(_))) = (proof, &found)
                && signed.suffices_in_outage
            {
                return self.signature_only(signed, error);
            }
            match self.try_proof(proof, found).await {
                Ok(ProofResult::Live(mut live, standing)) => {
                    if touch {
                        self.touch(&mut live).await;
                    }
                    return self.live(proof, live, standing, touch);
                }
                Ok(ProofResult::Superseded) => (superseded, end_reason) = (true, Some(EndReason::Replaced)),
                Ok(ProofResult::Ended(reason)) => end_reason = end_reason.or(Some(reason)),
                Ok(ProofResult::Unknown) => unknown = Some(proof.session()),
                Err(error) => {
                    self.context.counters.outages.count();
                    tracing::warn!(session = %proof.session(), error = %ErrorChain(&error), "session not loaded");
                    return LookupResult::without_store(Phase::Unavailable, LookupOutcome::StoreError);
                }
            }
        }
        if superseded {
            return LookupResult::without_session(Phase::Ended, end_reason, LookupOutcome::Superseded);
        }
        if let (None, Some(id)) = (end_reason, unknown) {
            self.context.security.unknown(&*self.context.clock, &id, self.ip());
        }
        let outcome = end_reason.map_or(LookupOutcome::Unknown, LookupOutcome::Ended);
        LookupResult::without_session(Phase::Absent, end_reason, outcome)
    }

    /// The store is unavailable, and the signature is enough.
    fn signature_only(&self, signed: &Signed, error: &StoreError) -> LookupResult {
        let (session, user, error) = (signed.session, signed.user.as_deref(), ErrorChain(error));
        self.context.counters.outages.count();
        self.context.counters.signature_only.count();
        tracing::warn!(%session, user, %error, "session not loaded: the JWT is accepted by its signature");
        LookupResult::without_store(Phase::SignatureOnly, LookupOutcome::Degraded)
    }

    async fn try_proof(&self, proof: Proof<'_>, found: Result<Found, StoreError>) -> Result<ProofResult, StoreError> {
        let id = proof.session();
        let found = match found {
            Err(StoreError::Corrupt(source)) => {
                self.context.counters.corrupt.count();
                if self.context.on_corrupt == OnCorrupt::Outage {
                    return Err(StoreError::Corrupt(source));
                }
                tracing::warn!(session = %id, "session record is corrupt: session ended");
                return self.end(id, None, EndReason::Corrupt).await;
            }
            found => found?,
        };
        let now = self.context.clock.now();
        let loaded = match found {
            Found::Live(loaded) => loaded,
            // The client may have sent this before it received the token of its login.
            Found::Ended(Ended { reason: EndReason::Replaced, at, .. })
                if now.since(at) < self.context.rotation.grace =>
            {
                metrics::count(&ROTATION, [("case", "superseded")]);
                return Ok(ProofResult::Superseded);
            }
            Found::Ended(ended) => return Ok(ProofResult::Ended(ended.reason)),
            Found::Unknown => return Ok(ProofResult::Unknown),
        };
        let standing = match proof {
            Proof::Token(_, token) => loaded.record.standing(token, now, self.context.rotation.grace),
            // A session never changes its user, so the JWT is not for this session.
            Proof::Signature(Signed { user: Some(user), .. }) if loaded.record.user() != Some(user) => {
                return Ok(ProofResult::Unknown);
            }
            Proof::Signature(_) => Standing::Current,
        };
        match standing {
            Standing::Current => {}
            Standing::Graced => metrics::count(&ROTATION, [("case", "graced")]),
            Standing::Superseded => {
                metrics::count(&ROTATION, [("case", "superseded")]);
                return Ok(ProofResult::Superseded);
            }
            Standing::Reused => {
                security::token_reused(&id, loaded.record.user(), self.ip());
                return self.end(id, Some(&loaded.record), EndReason::TokenReused).await;
            }
        }
        let loaded = if loaded.record.replaces.is_some() { self.activate(&id, loaded).await? } else { Some(loaded) };
        let Some(loaded) = loaded else { return Ok(ProofResult::Unknown) };
        let token = match (proof, standing) {
            (Proof::Token(_, token), Standing::Graced) => {
                TokenOrigin::New(Box::new(loaded.record.current_token(token)))
            }
            (Proof::Token(index, _), _) => TokenOrigin::Presented(index),
            (Proof::Signature(_), _) => TokenOrigin::Elsewhere,
        };
        match snapshot(token, id, loaded, now) {
            Some(live) => Ok(ProofResult::Live(live, standing)),
            None => Ok(ProofResult::Ended(EndReason::Expired)),
        }
    }

    /// Activates the session of a login, unless the login is still pending.
    async fn activate(&self, id: &SessionId, loaded: Loaded) -> Result<Option<Loaded>, StoreError> {
        let record = &loaded.record;
        if !self.time_budget.spend(self.context.is_activated(id, record)).await? {
            return Ok(None);
        }
        // Best effort: if it fails, the next request tries again.
        let now = self.context.clock.now();
        let Ok(version) = record.version.next() else { return Ok(Some(loaded)) };
        let activated = Record { version, replaces: None, ..Record::clone(record) };
        let entry = Entry { record: Arc::new(activated), ttl: record.full_ttl(now) };
        Ok(Some(match self.time_budget.spend(self.context.store().update(id, record.version, entry.clone())).await {
            Ok(Outcome::Done) => Loaded { record: entry.record, ttl: Some(entry.ttl) },
            _ => loaded,
        }))
    }

    /// Ends a session that must not be used any more.
    async fn end(&self, id: SessionId, record: Option<&Record>, reason: EndReason) -> Result<ProofResult, StoreError> {
        let outcome = self.time_budget.spend(self.context.store().end(&id, End::For(reason))).await?;
        if matches!(outcome, EndOutcome::Done) || reason == EndReason::Corrupt {
            record.into_iter().for_each(|record| self.context.record_lifetime(record));
            let user = record.and_then(|record| record.user.clone());
            self.announce([(id, user, EventKind::Ended(reason))]).await;
        }
        Ok(ProofResult::Ended(reason))
    }

    /// After a logout: ends the sessions of the other cookies with the same name, so that the browser does not stay logged in. It has
    /// several if the path or the domain of the cookie was changed.
    pub(super) async fn log_out_others(&self, ended: SessionId) -> Result<(), StoreError> {
        if !self.presented.proofs().any(|proof| proof.session() == ended) {
            return Ok(()); // a new session, which no client knows
        }
        for proof in self.presented.proofs() {
            let Proof::Token(_, token) = proof else { continue };
            let id = token.id();
            if id == ended {
                continue;
            }
            let found = self.time_budget.spend(self.context.store().load(&id)).await?;
            let Some(Loaded { record, .. }) = found.live() else { continue };
            let standing = record.standing(token, self.context.clock.now(), self.context.rotation.grace);
            if let Standing::Current | Standing::Graced = standing {
                self.end(id, Some(&record), EndReason::LoggedOut).await?;
            }
        }
        Ok(())
    }

    /// `writes`: the request may write what is due, which extends the idle timeout.
    fn live(&self, proof: Proof<'_>, live: Snapshot, standing: Standing, writes: bool) -> LookupResult {
        let cookie = (standing == Standing::Graced).then(|| CookieChange::give(&live.record));
        let action = if writes { self.due(proof, &live.record, standing) } else { None };
        let (phase, outcome) = (Phase::Live(Box::new(live)), LookupOutcome::Hit);
        LookupResult { phase, end_reason: None, action, cookie, degraded: false, outcome }
    }

    /// What the request does with its token.
    fn due(&self, proof: Proof<'_>, record: &Record, standing: Standing) -> Option<Action> {
        let (Proof::Token(..), Standing::Current) = (proof, standing) else { return None };
        let age = self.context.clock.now().since(record.rotated_at());
        let is_old = self.context.rotation.every.is_some_and(|every| age >= every);
        let action = if record.is_token_unused() {
            Action::Confirm
        } else if is_old && self.presented.transport() == Some(Transport::Cookie) {
            Action::Renew
        } else {
            return None;
        };
        // A degraded store may lose the rotation, and the client would keep a token that the store does not know.
        (!self.context.store().is_degraded()).then_some(action)
    }

    /// Extends the idle timeout, if enough of it has passed. This happens before the handler runs, so that the session does not end
    /// during a slow handler.
    ///
    /// Best effort: a read works even if writes fail, and the next request tries again.
    async fn touch(&self, live: &mut Snapshot) {
        let now = self.context.clock.now();
        let (left, ttl) = (live.expires_at.since(now), live.record.full_ttl(now));
        let due = ttl.saturating_sub(left) >= self.context.lifetime.touch_interval_of(live.record.idle_timeout);
        if !due || ttl.is_zero() {
            metrics::count(&TOUCH_SKIPPED, []);
            return;
        }
        match self
            .time_budget
            .spend(self.context.store().touch(&live.id, Entry { record: live.record.clone(), ttl }))
            .await
        {
            Ok(()) => live.expires_at = now.plus(ttl),
            Err(error) => tracing::debug!(session = %live.id, error = %ErrorChain(&error), "session not extended"),
        }
    }
}

/// The session that was loaded, unless it has expired.
fn snapshot(token: TokenOrigin, id: SessionId, Loaded { record, ttl }: Loaded, now: Timestamp) -> Option<Snapshot> {
    let left = record.ttl_left(now, ttl);
    if left.is_zero() {
        return None;
    }
    let (last_seen, expires_at) = (record.last_used(now, left), now.plus(left));
    Some(Snapshot { id, token, record, last_seen, expires_at, is_new: false, token_superseded: false })
}
