//! How the session of a request is found.

use std::sync::Arc;

use super::{
    Inner,
    met::Met,
    settle::cookie_until,
    state::{Fate, Held, Known, Live, Untold},
};
use crate::{
    context::OnCorrupt,
    credential::{PresentedCredentials, Proof, Signed, Transport},
    ended::{EndReason, Ended},
    event::EventKind,
    metrics::{self, ROTATION, TOUCH_SKIPPED},
    observe::ErrorChain,
    record::{Record, Standing},
    security,
    store::{End, EndOutcome, Entry, Found, Loaded, Outcome, StoreError},
    time::Timestamp,
    token::SessionId,
};

/// What a look-up found.
pub(super) struct Looked {
    pub(super) known: Known,
    pub(super) ended: Option<EndReason>,
    pub(super) fate: Fate,
    pub(super) untold: Option<Untold>,
    /// The store answers less than it usually promises.
    pub(super) degraded: bool,
    pub(super) met: Met,
}

impl Looked {
    fn without_store(known: Known, met: Met) -> Self {
        Self { known, ended: None, fate: Fate::Keep, untold: None, degraded: true, met }
    }
}

/// What one token, or signature, led to.
enum Tried {
    Live(Live, Standing),
    /// There is a session, and the client is getting, or has, a newer token of it: this request may not act for it.
    Superseded,
    Ended(EndReason),
    Unknown,
}

impl Inner {
    /// Whether there is something that is still to be looked up. If there is not, there is no session, and that is known now.
    pub(super) fn is_to_look_up(&self) -> bool {
        let mut state = self.state();
        match (&state.known, &self.presented) {
            (
                Known::Unread | Known::Unavailable,
                PresentedCredentials::Tokens(..) | PresentedCredentials::Signed(_),
            ) => true,
            (Known::Unread, presented) => {
                state.known = Known::Absent;
                state.degraded = self.context.store.is_degraded();
                if let Met::Malformed = Met::without_looking(presented) {
                    self.context.security.malformed(&*self.context.clock, presented.label(), self.ip());
                }
                false
            }
            _ => false,
        }
    }

    pub(super) async fn look_up(&self) -> Looked {
        let before = self.context.store.is_degraded();
        let looked = self.look_through().await;
        // Whichever of the two it was when it answered.
        let degraded = looked.degraded || before || self.context.store.is_degraded();
        let met = match looked.met {
            Met::Hit | Met::Unknown if degraded => Met::Degraded,
            met => met,
        };
        Looked { degraded, met, ..looked }
    }

    async fn look_through(&self) -> Looked {
        let mut unknown = None;
        let mut ended = None;
        let mut known = Known::Absent;
        for proof in self.presented.proofs() {
            let found = self.ask(self.context.store.load(&proof.session())).await;
            if let (Proof::Signature(signed), Err(error @ StoreError::Outage(_))) = (proof, &found)
                && signed.suffices_in_outage
            {
                return self.signature_only(signed, error);
            }
            match self.try_proof(proof, found).await {
                Ok(Tried::Live(live, standing)) => return self.found(live, standing),
                Ok(Tried::Superseded) => (known, ended) = (Known::Ended, Some(EndReason::Replaced)),
                Ok(Tried::Ended(reason)) => ended = ended.or(Some(reason)),
                Ok(Tried::Unknown) => unknown = Some(proof.session()),
                Err(error) => {
                    self.context.counters.outages.count();
                    tracing::warn!(session = %proof.session(), error = %ErrorChain(&error), "session not loaded");
                    return Looked::without_store(Known::Unavailable, Met::StoreError);
                }
            }
        }
        let met = match (&known, ended) {
            (Known::Ended, _) => Met::Superseded,
            (_, Some(reason)) => Met::Ended(reason),
            (_, None) => Met::Unknown,
        };
        if let (Met::Unknown, Some(id)) = (met, unknown) {
            self.context.security.unknown(&*self.context.clock, &id, self.ip());
        }
        Looked { known, ended, fate: Fate::Keep, untold: None, degraded: false, met }
    }

    /// The store did not answer, and the signature is to suffice then.
    fn signature_only(&self, signed: &Signed, error: &StoreError) -> Looked {
        let (session, user, error) = (signed.session, signed.user.as_deref(), ErrorChain(error));
        self.context.counters.outages.count();
        self.context.counters.signature_only.count();
        tracing::warn!(%session, user, %error, "session not loaded: served on the signature alone");
        Looked::without_store(Known::Vouched, Met::Degraded)
    }

    async fn try_proof(&self, proof: Proof<'_>, found: Result<Found, StoreError>) -> Result<Tried, StoreError> {
        let id = proof.session();
        let found = match found {
            Err(StoreError::Corrupt(source)) => {
                self.context.counters.corrupt.count();
                if self.context.on_corrupt == OnCorrupt::Outage {
                    return Err(StoreError::Corrupt(source));
                }
                tracing::warn!(session = %id, "session record not readable: ended");
                return self.give_up(id, None, EndReason::Corrupt).await;
            }
            found => found?,
        };
        let now = self.context.clock.now();
        let loaded = match found {
            Found::Live(loaded) => loaded,
            // The client that logged in may have sent this before it knew.
            Found::Ended(Ended { reason: EndReason::Replaced, at, .. })
                if now.since(at) < self.context.rotation.grace =>
            {
                metrics::count(&ROTATION, [("case", "superseded")]);
                return Ok(Tried::Superseded);
            }
            Found::Ended(ended) => return Ok(Tried::Ended(ended.reason)),
            Found::Unknown => return Ok(Tried::Unknown),
        };
        let standing = match proof {
            Proof::Token(_, token) => loaded.record.standing(token, now, self.context.rotation.grace),
            // A session never changes its user.
            Proof::Signature(Signed { user: Some(user), .. }) if loaded.record.user() != Some(user) => {
                return Ok(Tried::Unknown);
            }
            Proof::Signature(_) => Standing::Current,
        };
        match standing {
            Standing::Current => {}
            Standing::Graced => metrics::count(&ROTATION, [("case", "graced")]),
            Standing::Superseded => {
                metrics::count(&ROTATION, [("case", "superseded")]);
                return Ok(Tried::Superseded);
            }
            Standing::Reused => {
                security::token_reused(&id, loaded.record.user(), self.ip());
                return self.give_up(id, Some(&loaded.record), EndReason::TokenReused).await;
            }
        }
        let Some(loaded) = self.begun(&id, loaded).await? else { return Ok(Tried::Unknown) };
        let token = match (proof, standing) {
            (Proof::Token(_, token), Standing::Graced) => Held::Minted(Box::new(loaded.record.current_token(token))),
            (Proof::Token(place, _), _) => Held::Presented(place),
            (Proof::Signature(_), _) => Held::Elsewhere,
        };
        match self.alive(token, id, loaded, now) {
            Some(mut live) => {
                self.touch(&mut live).await;
                Ok(Tried::Live(live, standing))
            }
            None => Ok(Tried::Ended(EndReason::Expired)),
        }
    }

    /// What was loaded, unless it waits for another session to end in its favour. Once that has, it waits no more.
    async fn begun(&self, id: &SessionId, loaded: Loaded) -> Result<Option<Loaded>, StoreError> {
        let record = &loaded.record;
        if record.replaces.is_none() {
            return Ok(Some(loaded));
        }
        if !self.ask(self.context.has_begun(id, record)).await? {
            return Ok(None);
        }
        // Best effort: if it fails, the next request sees to it.
        let now = self.context.clock.now();
        let Ok(version) = record.version.next() else { return Ok(Some(loaded)) };
        let begun = Record { version, replaces: None, ..Record::clone(record) };
        let entry = Entry { record: Arc::new(begun), ttl: record.full_ttl(now) };
        Ok(Some(match self.ask(self.context.store.update(id, record.version, entry.clone())).await {
            Ok(Outcome::Done) => Loaded { record: entry.record, ttl: Some(entry.ttl) },
            _ => loaded,
        }))
    }

    /// Ends a session that must not go on.
    async fn give_up(&self, id: SessionId, record: Option<&Record>, reason: EndReason) -> Result<Tried, StoreError> {
        let outcome = self.ask(self.context.store.end(&id, End::For(reason))).await?;
        if matches!(outcome, EndOutcome::Done) || reason == EndReason::Corrupt {
            record.into_iter().for_each(|record| self.context.lived(record));
            let user = record.and_then(|record| record.user.clone());
            self.announce([(id, user, EventKind::Ended(reason))]).await;
        }
        Ok(Tried::Ended(reason))
    }

    fn found(&self, live: Live, standing: Standing) -> Looked {
        let untold = (standing == Standing::Graced).then(|| Untold::Token(cookie_until(&live.record)));
        let by_cookie = self.presented.transport() == Some(Transport::Cookie);
        let age = self.context.clock.now().since(live.record.rotated_at());
        let due = by_cookie && untold.is_none() && self.context.rotation.every.is_some_and(|every| age >= every);
        // What a degraded store confirms may not last, and the client would be left with a token that nobody knows.
        let due = due && !self.context.store.is_degraded();
        let fate = if due { Fate::Renew } else { Fate::Keep };
        Looked { known: Known::Live(Box::new(live)), ended: None, fate, untold, degraded: false, met: Met::Hit }
    }

    /// What was loaded, unless its time is over.
    fn alive(&self, token: Held, id: SessionId, Loaded { record, ttl }: Loaded, now: Timestamp) -> Option<Live> {
        let left = record.ttl_left(now, ttl);
        if left.is_zero() {
            return None;
        }
        let expires_at = now.plus(left);
        let last_seen = record.last_used(now, left);
        Some(Live { id, token, last_seen, expires_at, is_new: false, record, disowned: false, moved: None })
    }

    /// Extends the idle timeout, if enough of it has passed. Now, and not with the response: a slow handler's session must not end
    /// under its hands.
    ///
    /// Best effort: a read keeps working where writes fail, and the next request tries again.
    async fn touch(&self, live: &mut Live) {
        let now = self.context.clock.now();
        let (left, ttl) = (live.expires_at.since(now), live.record.full_ttl(now));
        let due = ttl.saturating_sub(left) >= self.context.lifetime.touch_interval_of(live.record.idle_timeout);
        if !due || ttl.is_zero() {
            metrics::count(&TOUCH_SKIPPED, []);
            return;
        }
        match self.ask(self.context.store.touch(&live.id, Entry { record: live.record.clone(), ttl })).await {
            Ok(()) => live.expires_at = now.plus(ttl),
            Err(error) => tracing::debug!(session = %live.id, error = %ErrorChain(&error), "session not extended"),
        }
    }
}
