//! What the layer does without a session, and in an outage.

use std::time::Duration;

/// When a session is looked up, and what happens without a session or in an outage.
///
/// A layer has a policy (see [`SessionLayer`](crate::SessionLayer)). A route can have its own, through a nested clone of the layer.
/// A request can have its own too: the first session layer uses a `Policy` from the extensions of the request instead of its own.
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
    pub(crate) touch: bool,
    pub(crate) remove_dead_cookie: bool,
    pub(crate) retry_after: Duration,
}

/// When the layer looks the session up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// When the handler loads it.
    Lazy,
    /// Before the service is called, if the request has a credential.
    Eager,
    /// Before the service is called. Without a live session, the service is not called.
    RequireSession,
    /// The same without a user who is logged in.
    RequireUser,
}

/// What to do with a request without a live session: it has no token, or one that is malformed, unknown or expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnMissing {
    /// Serve it with an empty session. The first value creates the session.
    #[default]
    Anonymous,
    /// Answer 401, or 400 to a malformed `Authorization` header.
    Reject,
}

/// What to do with a request whose session cannot be looked up because of an outage.
///
/// In both cases no cookie is set or removed, because the session may be alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Answer 503 with `Retry-After`.
    #[default]
    Reject,
    /// Serve it with an empty, read-only session. [`Session::is_degraded`](crate::Session::is_degraded) is true. A route that
    /// [requires](Policy::require_session) one answers 503 anyway.
    Anonymous,
}

impl Policy {
    /// Lazy lookup, anonymous sessions, and 503 with `Retry-After: 5` in an outage.
    pub const fn new() -> Self {
        Self {
            lookup: Lookup::Lazy,
            on_missing: OnMissing::Anonymous,
            on_outage: OnOutage::Reject,
            touch: true,
            remove_dead_cookie: false,
            retry_after: Duration::from_secs(5),
        }
    }

    /// What to do without a live session. Default: [`OnMissing::Anonymous`].
    #[must_use]
    pub const fn on_missing(mut self, on_missing: OnMissing) -> Self {
        self.on_missing = on_missing;
        self
    }

    /// What to do in an outage. Default: [`OnOutage::Reject`].
    #[must_use]
    pub const fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.on_outage = on_outage;
        self
    }

    /// Look the session up before the service is called, if the request has a credential. Default: when the handler loads it, so a
    /// route that does not use its session costs nothing and works during an outage.
    #[must_use]
    pub const fn eager(mut self) -> Self {
        // A requirement looks up early too.
        if let Lookup::Lazy = self.lookup {
            self.lookup = Lookup::Eager;
        }
        self
    }

    /// Answer 401 without calling the service, unless a user is logged in.
    ///
    /// An outage is answered with 503, regardless of [`on_outage`](Self::on_outage).
    ///
    /// ```
    /// # use tower_keep::Policy;
    /// const MEMBERS: Policy = Policy::new().require_user();
    /// # let _ = MEMBERS;
    /// ```
    #[must_use]
    pub const fn require_user(mut self) -> Self {
        self.lookup = Lookup::RequireUser;
        self
    }

    /// Answer 401 without calling the service, unless the request has a live session. **Anonymous visitors pass** as soon as
    /// they have a value, for example a shopping cart or a flash message. [`require_user`](Self::require_user) demands a login.
    ///
    /// An outage is answered with 503, regardless of [`on_outage`](Self::on_outage).
    #[must_use]
    pub const fn require_session(mut self) -> Self {
        self.lookup = Lookup::RequireSession;
        self
    }

    /// Whether a lookup extends the idle timeout. Default: yes. `false` is for requests without a user behind them, such as polling
    /// and the display of the [time left](crate::Session::expires_in).
    ///
    /// ```
    /// use tower_keep::{MemoryStore, SessionLayer};
    ///
    /// let sessions = SessionLayer::new(MemoryStore::new());
    /// let polling = sessions.clone().touch(false); // for the routes that are polled
    /// # let _ = polling;
    /// ```
    #[must_use]
    pub const fn touch(mut self, touch: bool) -> Self {
        self.touch = touch;
        self
    }

    /// Whether the response removes the cookie of a session that has ended or is unknown. Default: no, because a slow response
    /// could remove the cookie of a login that was answered in the meantime. Without it, the browser sends a dead cookie until a
    /// login replaces it, and each request costs a lookup.
    ///
    /// [`Session::logout`](crate::Session::logout) removes a dead cookie too.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, Policy, SessionLayer};
    ///
    /// let layer = SessionLayer::new(MemoryStore::new()).policy(Policy::new().remove_dead_cookie(true));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub const fn remove_dead_cookie(mut self, remove: bool) -> Self {
        self.remove_dead_cookie = remove;
        self
    }

    /// The value of `Retry-After` in a 503. Default: 5 seconds. Rounded up to whole seconds.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = delay;
        self
    }

    pub(crate) fn requires_user(&self) -> bool {
        self.lookup == Lookup::RequireUser
    }

    pub(crate) fn rejects_missing(&self) -> bool {
        self.requires() || self.on_missing == OnMissing::Reject
    }

    pub(crate) fn rejects_outage(&self) -> bool {
        self.requires() || self.on_outage == OnOutage::Reject
    }

    fn requires(&self) -> bool {
        matches!(self.lookup, Lookup::RequireSession | Lookup::RequireUser)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}
