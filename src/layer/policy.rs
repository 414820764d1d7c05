//! What the layer does when a session is missing, or its store does not answer.

use std::time::Duration;

/// When a session is looked up, and what happens when that finds none or fails.
///
/// A layer has one (see [`SessionLayer`](crate::SessionLayer)). A route can have another, by a layer of its own; so can a request, by a
/// `Policy` in its extensions: the first session layer that it meets takes it instead of its own.
///
/// ```
/// use tower_keep::{OnMissing, Policy};
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Policy::new().on_missing(OnMissing::Reject).eager());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(crate) lookup: Lookup,
    on_missing: OnMissing,
    on_outage: OnOutage,
    pub(crate) retry_after: Duration,
}

/// When the layer looks the session up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// When the handler asks.
    Lazy,
    /// Before the service is called, for a request that brings a credential.
    Eager,
    /// Before the service is called, which is not called without a live session.
    Required,
}

/// What to do with a request that has no live session: it brought no token, or one that is malformed, unknown or expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnMissing {
    /// Serve it with an empty session, which becomes a real one when something is put into it.
    #[default]
    Anonymous,
    /// Answer 401, or 400 to a malformed `Authorization` header.
    Reject,
}

/// What to do with a request whose session cannot be looked up because the store does not answer.
///
/// Whichever it is, no cookie is set or removed by such a request: its session may well be alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Answer 503 with `Retry-After`.
    #[default]
    Reject,
    /// Serve it with an empty session that can be read and not changed; [`Session::is_degraded`](crate::Session::is_degraded)
    /// tells. A route that [requires](Policy::require) a session rejects it all the same.
    Anonymous,
}

impl Policy {
    /// Lazy; a missing session is anonymous; an outage is answered by 503 with `Retry-After: 5`.
    pub const fn new() -> Self {
        Self {
            lookup: Lookup::Lazy,
            on_missing: OnMissing::Anonymous,
            on_outage: OnOutage::Reject,
            retry_after: Duration::from_secs(5),
        }
    }

    /// What to do without a live session. Default: [`OnMissing::Anonymous`].
    #[must_use]
    pub const fn on_missing(mut self, on_missing: OnMissing) -> Self {
        self.on_missing = on_missing;
        self
    }

    /// What to do when the store does not answer. Default: [`OnOutage::Reject`].
    #[must_use]
    pub const fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.on_outage = on_outage;
        self
    }

    /// Look the session of every request that brings a credential up before the service is called. Default: when the
    /// handler first asks, so that a route which never asks costs nothing and survives an outage.
    #[must_use]
    pub const fn eager(mut self) -> Self {
        // Whoever requires a session looks it up as early already.
        if let Lookup::Lazy = self.lookup {
            self.lookup = Lookup::Eager;
        }
        self
    }

    /// Answer 401 without calling the service unless the request has a live session.
    ///
    /// A live session is not yet a login: an anonymous visitor with a shopping cart has one. Whether somebody is logged in,
    /// [`Session::user`](crate::Session::user) says.
    ///
    /// An outage is answered by 503, whatever [`on_outage`](Self::on_outage) says: who cannot be recognised is not let in.
    #[must_use]
    pub const fn require(mut self) -> Self {
        self.lookup = Lookup::Required;
        self
    }

    /// What `Retry-After` says in a 503. Default: 5 seconds. Whole seconds, rounded up.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = delay;
        self
    }

    pub(crate) fn rejects_missing(&self) -> bool {
        self.lookup == Lookup::Required || self.on_missing == OnMissing::Reject
    }

    pub(crate) fn rejects_outage(&self) -> bool {
        self.lookup == Lookup::Required || self.on_outage == OnOutage::Reject
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}
