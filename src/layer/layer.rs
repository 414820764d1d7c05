use std::{fmt, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{EmptyBody, OnMissing, OnOutage, Policy, SessionService};
use crate::{
    credential::{Bearer, Credentials, SessionCookie},
    lifetime::Lifetime,
    observe::Stats,
    sessions::Sessions,
    shared::Shared,
    store::SessionStore,
    time::{Clock, SystemClock},
};

/// Gives every request that passes a [`Session`](crate::Session), in its extensions.
///
/// ```
/// use http::{Request, Response};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_keep::{MemoryStore, Rejection, Session, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let service = ServiceBuilder::new()
///     .layer(SessionLayer::new(MemoryStore::new()))
///     .service(service_fn(async |request: Request<String>| {
///         let session = request.extensions().get::<Session>().ok_or("no session layer")?;
///         session.load().await?;
///         session.insert("visits", &1)?;
///         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(String::new()))
///     }));
///
/// let response = service.oneshot(Request::new(String::new())).await.unwrap();
/// assert!(response.headers()["set-cookie"].to_str()?.starts_with("__Host-session="));
/// # Ok(())
/// # }
/// ```
///
/// Clones share store and statistics. A clone with another policy or other rejections, laid around one route inside the first,
/// changes what happens there and nothing else: both see the same session, and it is saved once. A clone with another
/// cookie, bearer header, lifetime, clock or size is a layer of its own, with sessions of its own: it does not belong inside the
/// first.
///
/// ```
/// # use tower_keep::{MemoryStore, SessionLayer};
/// let sessions = SessionLayer::new(MemoryStore::new());
/// let members_only = sessions.clone().require();
/// # let _ = members_only;
/// ```
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SessionLayer<R = EmptyBody> {
    shared: Arc<Shared>,
    policy: Policy,
    reject: R,
}

impl SessionLayer {
    /// A layer over `store`, with the default cookie, lifetime and policy.
    ///
    /// An `Arc<dyn SessionStore>` is a store as well: Redis or memory may be decided when the program starts.
    pub fn new(store: impl SessionStore) -> Self {
        let shared = Shared {
            store: Arc::new(store),
            credentials: Credentials::new(Some(SessionCookie::default()), None),
            lifetime: Lifetime::default(),
            clock: Arc::new(SystemClock),
            max_size: 64 * 1024,
            counters: Arc::default(),
            queues: Arc::default(),
        };
        Self { shared: Arc::new(shared), policy: Policy::new(), reject: EmptyBody }
    }
}

impl<R> SessionLayer<R> {
    /// How the session cookie looks. Default: [`SessionCookie::default`].
    pub fn cookie(mut self, cookie: SessionCookie) -> Self {
        self.shared_mut().credentials = self.shared.credentials.with_cookie(Some(cookie));
        self
    }

    /// Neither read nor set cookies.
    pub fn without_cookie(mut self) -> Self {
        self.shared_mut().credentials = self.shared.credentials.with_cookie(None);
        self
    }

    /// Read bearer tokens, beside cookies or instead of them. Default: no bearer tokens.
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.shared_mut().credentials = self.shared.credentials.with_bearer(bearer);
        self
    }

    /// How long new sessions live. Default: [`Lifetime::default`]. Sessions that exist keep the lifetime they have.
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.shared_mut().lifetime = lifetime;
        self
    }

    /// The clock that sessions are timed by. Default: the system's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.shared_mut().clock = Arc::new(clock);
        self
    }

    /// How many bytes user, keys and values of a session may have together. Default: 65,536.
    ///
    /// A session that grows beyond is not saved: [`SessionError::TooLarge`](crate::SessionError::TooLarge).
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.shared_mut().max_size = bytes;
        self
    }

    /// When sessions are looked up, and what happens when that finds none or fails. Default: [`Policy::new`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// See [`Policy::on_missing`].
    pub fn on_missing(mut self, on_missing: OnMissing) -> Self {
        self.policy = self.policy.on_missing(on_missing);
        self
    }

    /// See [`Policy::on_outage`].
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.policy = self.policy.on_outage(on_outage);
        self
    }

    /// See [`Policy::retry_after`].
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.policy = self.policy.retry_after(delay);
        self
    }

    /// See [`Policy::eager`].
    pub fn eager(mut self) -> Self {
        self.policy = self.policy.eager();
        self
    }

    /// See [`Policy::require`].
    pub fn require(mut self) -> Self {
        self.policy = self.policy.require();
        self
    }

    /// How rejections look: a closure, or whatever implements
    /// [`ResponseForRejection`](crate::ResponseForRejection). Default: [`EmptyBody`].
    pub fn reject_with<T>(self, reject: T) -> SessionLayer<T> {
        SessionLayer { shared: self.shared, policy: self.policy, reject }
    }

    /// The sessions of this layer, for work outside requests.
    pub fn sessions(&self) -> Sessions {
        Sessions::new(self.shared.clone())
    }

    /// What has been counted so far by this layer and its clones.
    pub fn stats(&self) -> Stats {
        self.shared.counters.stats()
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }
}

impl<S, R: Clone> Layer<S> for SessionLayer<R> {
    type Service = SessionService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService::new(inner, self.shared.clone(), self.policy, self.reject.clone())
    }
}

impl<R: Clone> Clone for SessionLayer<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), policy: self.policy, reject: self.reject.clone() }
    }
}

impl<R> fmt::Debug for SessionLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("shared", &self.shared)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
