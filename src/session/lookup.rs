//! How the session of a request is found.

use super::{
    Inner,
    state::{Held, Known, Live},
};
use crate::{
    credential::{Candidates, Presented},
    observe::Causes,
    store::Loaded,
    token::SessionId,
};

impl Inner {
    /// The tokens that are still to be looked up. Without a token there is no session, and that is known now.
    pub(super) fn to_look_up(&self) -> Option<&Candidates> {
        let mut state = self.state();
        match (&state.known, &self.presented) {
            (Known::Unread | Known::Unavailable, Presented::Tokens(_, candidates)) => Some(candidates),
            (Known::Unread, _) => {
                state.known = Known::Absent;
                None
            }
            _ => None,
        }
    }

    pub(super) async fn look_up(&self, candidates: &Candidates) -> Known {
        for (place, token) in candidates.iter().enumerate() {
            let id = token.id();
            match self.shared.store.load(&id).await {
                Ok(loaded) => {
                    if let Some(mut live) = loaded.and_then(|loaded| self.alive(place, id, loaded)) {
                        self.touch(&mut live).await;
                        return Known::Live(live);
                    }
                }
                Err(error) => {
                    self.shared.counters.outage();
                    tracing::warn!(session = %id, error = %Causes(&error), "session not loaded");
                    return Known::Unavailable;
                }
            }
        }
        Known::Absent
    }

    /// What was loaded, unless its time is over.
    fn alive(&self, place: usize, id: SessionId, Loaded { record, ttl }: Loaded) -> Option<Live> {
        let now = self.shared.clock.now();
        let left = record.ttl_left(now, ttl);
        if left.is_zero() {
            return None;
        }
        let expires_at = now.plus(left);
        Some(Live {
            id,
            token: Held::Presented(place),
            last_seen: record.written_at.max(expires_at.minus(record.idle_timeout)),
            expires_at,
            is_new: false,
            record,
        })
    }

    /// Extends the idle timeout, if enough of it has passed. Now, and not with the response: a slow handler's session must not end
    /// under its hands.
    ///
    /// Best effort: a read keeps working where writes fail, and the next request tries again.
    async fn touch(&self, live: &mut Live) {
        let now = self.shared.clock.now();
        let (left, ttl) = (live.expires_at.since(now), live.record.full_ttl(now));
        let due = ttl.saturating_sub(left) >= self.shared.lifetime.touch_interval_of(live.record.idle_timeout);
        if !due || ttl.is_zero() {
            return;
        }
        match self.shared.store.touch(&live.id, live.record.version(), ttl).await {
            Ok(()) => live.expires_at = now.plus(ttl),
            Err(error) => tracing::debug!(session = %live.id, error = %Causes(&error), "session not extended"),
        }
    }
}
