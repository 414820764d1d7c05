//! How a session ends with its request: it is saved, the client is told, and what nobody saved is reported.

use std::sync::PoisonError;

use http::HeaderValue;

use super::{
    Delivery, Inner, Session, SessionError,
    met::Met,
    state::{Known, State, Untold},
};
use crate::{
    credential::{PresentedCredentials, Transport},
    metrics::{self, REQUESTS},
    observe::ErrorChain,
};

/// What remains to be said when the head of the response leaves.
pub(crate) struct Closing {
    pub(crate) set_cookie: Option<SetCookie>,
}

/// A header, and what it does.
pub(crate) struct SetCookie {
    pub(crate) header: HeaderValue,
    pub(crate) op: &'static str,
}

impl Session {
    /// Whether there is nothing to write.
    pub(crate) fn is_settled(&self) -> bool {
        !self.inner.state().is_dirty()
    }

    /// Saves what the service left to be saved.
    pub(crate) async fn commit(&self, delivery: Delivery) -> Result<(), SessionError> {
        match self.inner.write(delivery).await {
            // The response is the service's; what it changed went with the session.
            Ok(()) | Err(SessionError::Ended) => Ok(()),
            Err(error) => {
                let mut state = self.inner.state();
                if !state.has_unsaved() {
                    tracing::warn!(error = %ErrorChain(&error), "session token not renewed: the next request will see to it");
                    return Ok(());
                }
                state.reported = Some(state.generation);
                let id = state.live().map(|live| live.id);
                drop(state);
                let session = id.as_ref().map(tracing::field::display);
                tracing::error!(session, error = %ErrorChain(&error), "session not saved");
                Err(error)
            }
        }
    }

    /// Called once, when the request is over, however it ended: no token can reach its client afterwards.
    pub(crate) fn leave(&self) {
        let mut state = self.inner.state();
        state.closed = true;
        if metrics::Stopwatch::RUNS {
            let presented = &self.inner.presented;
            let met = state.met.unwrap_or(Met::without_looking(presented));
            metrics::count(&REQUESTS, [("transport", presented.label()), ("outcome", met.as_str())]);
        }
    }

    /// Called when the head of the response leaves: no token can be given after this. `None` when nobody looked the session up.
    pub(crate) fn close(&self) -> Option<Closing> {
        let mut state = self.inner.state();
        state.closed = true;
        if let Known::Unread = state.known {
            return None;
        }
        let untold = state.untold.take();
        Some(Closing { set_cookie: untold.and_then(|untold| self.inner.set_cookie(untold, &state)) })
    }
}

impl Inner {
    /// The header that tells the client what it does not know yet; bearer clients are told by handlers.
    fn set_cookie(&self, untold: Untold, state: &State) -> Option<SetCookie> {
        let credentials = &self.context.credentials;
        let transport = self.presented.transport().unwrap_or(credentials.default_transport());
        let cookie = credentials.cookie().filter(|_| transport == Transport::Cookie)?;
        let now = self.context.clock.now();
        match untold {
            Untold::Token(until) => {
                let header = cookie.give(&self.token_of(state.begun()?)?, now, until)?;
                Some(SetCookie { header, op: "set" })
            }
            Untold::End if matches!(self.presented, PresentedCredentials::Nothing) => None,
            Untold::End => cookie.remove().map(|header| SetCookie { header, op: "remove" }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.has_unsaved() && state.reported != Some(state.generation) {
            self.context.counters.unsaved();
            let id = state.live().map(|live| live.id);
            let session = id.as_ref().map(tracing::field::display);
            tracing::warn!(session, "session dropped with changes that were not saved");
        }
    }
}
