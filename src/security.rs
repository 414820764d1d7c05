//! Security events, with their own log target. They contain no token and no session value.
//!
//! Events that anybody can cause are limited to [`MAX_PER_SECOND`] per second and kind. The next event has the number of omitted ones.
//! `session_requests_total` counts all of them.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use tracing::{field::display, info, warn};

use crate::{
    ended::EndReason,
    event::{Event, EventKind},
    time::Clock,
    token::SessionId,
};

const TARGET: &str = "tower_keep::security";

/// The number of events per kind and second.
const MAX_PER_SECOND: u32 = 10;

pub(crate) fn log(event: &Event, from: Option<IpAddr>) {
    let (session, user, client_ip) = (event.session(), event.user(), from.map(display));
    match event.kind() {
        EventKind::Created => {
            info!(target: TARGET, event = "created", %session, user, client_ip, "session created");
        }
        EventKind::LoggedIn => {
            info!(target: TARGET, event = "logged_in", %session, user, client_ip, "user logged in");
        }
        EventKind::Rotated => {
            info!(target: TARGET, event = "rotated", %session, user, client_ip, "session token changed");
        }
        EventKind::Ended(reason) => {
            info!(target: TARGET, event = "ended", %session, user, client_ip, reason = EndReason::as_str(reason), "session ended");
        }
    }
}

/// A token was reused. The end of the session is a separate event.
pub(crate) fn token_reused(session: &SessionId, user: Option<&str>, from: Option<IpAddr>) {
    let client_ip = from.map(display);
    warn!(target: TARGET, event = "token_reused", %session, user, client_ip, "a previous session token was used again");
}

/// Events that need no session.
#[derive(Default)]
pub(crate) struct EventRateLimit {
    unknown: Throttle,
    malformed: Throttle,
    disagreement: Throttle,
    limit_refused: Throttle,
}

impl EventRateLimit {
    /// A token that the store does not know, by its session id.
    pub(crate) fn unknown(&self, clock: &dyn Clock, session: &SessionId, from: Option<IpAddr>) {
        if let Some(omitted) = self.unknown.pass(clock) {
            let client_ip = from.map(display);
            info!(target: TARGET, event = "unknown_token", %session, client_ip, omitted, "unknown session token");
        }
    }

    pub(crate) fn malformed(&self, clock: &dyn Clock, transport: &'static str, from: Option<IpAddr>) {
        if let Some(omitted) = self.malformed.pass(clock) {
            let client_ip = from.map(display);
            info!(target: TARGET, event = "malformed_credential", transport, client_ip, omitted, "malformed session credential");
        }
    }

    pub(crate) fn disagreement(&self, clock: &dyn Clock, from: Option<IpAddr>) {
        if let Some(omitted) = self.disagreement.pass(clock) {
            let client_ip = from.map(display);
            warn!(target: TARGET, event = "credentials_disagree", client_ip, omitted, "the request has a cookie and a different bearer token");
        }
    }

    pub(crate) fn limit_refused(&self, clock: &dyn Clock, user: Option<&str>, from: Option<IpAddr>) {
        if let Some(omitted) = self.limit_refused.pass(clock) {
            let client_ip = from.map(display);
            info!(target: TARGET, event = "limit_refused", user, client_ip, omitted, "session refused: too many sessions");
        }
    }
}

#[derive(Default)]
struct Throttle(Mutex<Passed>);

#[derive(Default)]
struct Passed {
    second: u64,
    passed: u32,
    omitted: u64,
}

impl Throttle {
    /// The number of omitted events, if there is room for one more in this second.
    fn pass(&self, clock: &dyn Clock) -> Option<u64> {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return None;
        }
        let second = clock.now().as_millis() / 1000;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.second != second {
            (seen.second, seen.passed) = (second, 0);
        }
        if seen.passed >= MAX_PER_SECOND {
            seen.omitted += 1;
            return None;
        }
        seen.passed += 1;
        Some(std::mem::take(&mut seen.omitted))
    }
}
