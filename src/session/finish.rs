//! The end of a request: the session is saved, the client gets its cookie, and changes that were not saved are reported.

use std::sync::PoisonError;

use http::HeaderValue;

use super::{
    Delivery, Inner, Session, SessionError,
    lookup_outcome::LookupOutcome,
    state::{CookieChange, Phase, State},
};
use crate::{
    credential::{PresentedCredentials, Transport},
    error_chain::ErrorChain,
    metrics::{self, REQUESTS},
};

/// What the response needs from a session that was loaded.
pub(crate) struct Finished {
    pub(crate) set_cookie: Option<SetCookie>,
}

/// A `Set-Cookie` header, and what it does.
pub(crate) struct SetCookie {
    pub(crate) header: HeaderValue,
    pub(crate) op: &'static str,
}

impl Session {
    /// Whether there is nothing to save.
    pub(crate) fn is_clean(&self) -> bool {
        !self.inner.state().is_dirty()
    }

    /// Saves what the service has not saved itself.
    pub(crate) async fn commit(&self, delivery: Delivery) -> Result<(), SessionError> {
        match self.inner.save(delivery).await {
            // The response stands. The changes belonged to the ended session.
            Ok(()) | Err(SessionError::Ended) => Ok(()),
            Err(error) => {
                let mut state = self.inner.state();
                if !state.has_unsaved() {
                    tracing::warn!(error = %ErrorChain(&error), "rotation of the session token not saved; the next request will try again");
                    return Ok(());
                }
                state.reported = Some(state.changes.generation());
                let id = state.live().map(|live| live.id);
                drop(state);
                let session = id.as_ref().map(tracing::field::display);
                tracing::error!(session, error = %ErrorChain(&error), "session not saved");
                Err(error)
            }
        }
    }

    /// Called once when the request is over, completed or not: no token can reach the client after this.
    pub(crate) fn request_ended(&self) {
        let mut state = self.inner.state();
        state.response_sent = true;
        if metrics::Stopwatch::RUNS {
            let presented = &self.inner.presented;
            let outcome = state.outcome.unwrap_or(LookupOutcome::without_lookup(presented));
            metrics::count(&REQUESTS, [("transport", presented.label()), ("outcome", outcome.as_str())]);
        }
    }

    /// Called when the head of the response is sent: no token can reach the client after this. `None` if the session was not loaded.
    pub(crate) fn finish(&self) -> Option<Finished> {
        let mut state = self.inner.state();
        state.response_sent = true;
        if let Phase::NotLoaded = state.phase {
            return None;
        }
        let change = state.cookie.take();
        Some(Finished { set_cookie: change.and_then(|change| self.inner.set_cookie(change, &state)) })
    }
}

impl Inner {
    /// The `Set-Cookie` header. For a client that uses bearer tokens there is none: handlers give it the token.
    fn set_cookie(&self, change: CookieChange, state: &State) -> Option<SetCookie> {
        let credentials = &self.context.credentials;
        let transport = self.presented.transport().unwrap_or(credentials.default_transport());
        let cookie = credentials.cookie().filter(|_| transport == Transport::Cookie)?;
        let now = self.context.clock.now();
        match change {
            CookieChange::Give { expires } => {
                let token = state.active()?.token_for_client(&self.presented)?;
                let header = cookie.give(&token, now, expires)?;
                Some(SetCookie { header, op: "set" })
            }
            CookieChange::Remove if matches!(self.presented, PresentedCredentials::Nothing) => None,
            CookieChange::Remove => cookie.remove().map(|header| SetCookie { header, op: "remove" }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.has_unsaved() && state.reported != Some(state.changes.generation()) {
            self.context.counters.unsaved();
            let id = state.live().map(|live| live.id);
            let session = id.as_ref().map(tracing::field::display);
            tracing::warn!(session, "session dropped with changes that were not saved");
        }
    }
}
