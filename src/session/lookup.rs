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
    /// The tokens that are still to be looked up.
    pub(super) fn unread(&self) -> Option<&Candidates> {
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
                    if let Some(live) = loaded.and_then(|loaded| self.alive(place, id, loaded)) {
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
        let unused = record.full_ttl(now).saturating_sub(left);
        let expires_at = now.plus(left);
        Some(Live {
            id,
            token: Held::Presented(place),
            last_seen: record.written_at.max(expires_at.minus(record.idle_timeout)),
            expires_at,
            touch_due: unused >= self.shared.lifetime.touch_interval_of(record.idle_timeout),
            is_new: false,
            record,
        })
    }
}
