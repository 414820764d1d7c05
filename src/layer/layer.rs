use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use http::HeaderMap;
use serde::{Serialize, de::DeserializeOwned};
use tower_layer::Layer;

use super::{EmptyBody, OnMissing, OnOutage, Policy, SessionService};
use crate::{
    context::{Announcer, LayerContext, Merge, OnCorrupt, OnUndecodable, Rotation},
    credential::{Bearer, Credentials, SessionCookie},
    key::{AsKey, Key},
    lifetime::Lifetime,
    limits::Limits,
    metadata::ClientInfo,
    observe::Stats,
    record::Json,
    session::Session,
    sessions::Sessions,
    store::{Ability, SessionStore, StoreError, observed::Observed},
    time::{Clock, SystemClock},
};

/// The session layer: it puts a [`Session`](crate::Session) into the extensions of every request, and saves it afterwards.
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
/// Clones share the store and the statistics. A clone with another policy or other rejections can wrap a single route inside the
/// first layer: both layers see the same session, and it is saved once. A clone with another cookie, bearer header, lifetime,
/// clock, size or other property of sessions is a separate layer with its own sessions, and must not be nested in the first.
///
/// ```
/// # use tower_keep::{MemoryStore, SessionLayer};
/// let sessions = SessionLayer::new(MemoryStore::new());
/// let members_only = sessions.clone().require_user();
/// # let _ = members_only;
/// ```
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SessionLayer<R = EmptyBody> {
    context: Arc<LayerContext>,
    policy: Policy,
    reject: R,
}

impl SessionLayer {
    /// Creates a layer over `store`, with the default cookie, lifetime and policy.
    ///
    /// An `Arc<dyn SessionStore>` is a store too, so Redis or memory can be chosen when the program starts.
    pub fn new(store: impl SessionStore + 'static) -> Self {
        let context = LayerContext {
            deadline: store.operation_deadline().map(|deadline| deadline.saturating_mul(2)),
            store: Arc::new(Observed::new(store)),
            credentials: Credentials::new(Some(SessionCookie::default())),
            lifetime: Lifetime::default(),
            rotation: Rotation { every: None, grace: Duration::from_secs(30) },
            limits: None,
            merges: HashMap::new(),
            client_info: None,
            on_corrupt: OnCorrupt::default(),
            on_undecodable: OnUndecodable::default(),
            clock: Arc::new(SystemClock),
            max_size: 64 * 1024,
            counters: Arc::default(),
            queues: Arc::default(),
            announcer: Announcer::new(),
            security: Arc::default(),
            monitor: Arc::default(),
            endings: Arc::default(),
        };
        Self { context: Arc::new(context), policy: Policy::new(), reject: EmptyBody }
    }
}

impl<R> SessionLayer<R> {
    /// The session cookie. Default: [`SessionCookie::default`].
    pub fn cookie(mut self, cookie: SessionCookie) -> Self {
        self.context_mut().credentials = self.context.credentials.with_cookie(Some(cookie));
        self
    }

    /// Neither reads nor sets cookies.
    pub fn without_cookie(mut self) -> Self {
        self.context_mut().credentials = self.context.credentials.with_cookie(None);
        self
    }

    /// Accepts bearer tokens, with or without cookies. Default: no bearer tokens.
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.context_mut().credentials = self.context.credentials.with_bearer(bearer);
        self
    }

    /// Accepts JSON Web Tokens, instead of opaque bearer tokens or, with [`bearer`](Self::bearer), in addition. Default: none.
    ///
    /// A valid JWT names a session, which is then looked up like any other: see [`Jwt`](crate::Jwt).
    #[cfg(feature = "jwt")]
    pub fn jwt(mut self, jwt: crate::Jwt) -> Self {
        self.context_mut().credentials = self.context.credentials.with_signed(jwt);
        self
    }

    /// The lifetime of new sessions. Default: [`Lifetime::default`]. Existing sessions keep their lifetime.
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.context_mut().lifetime = lifetime;
        self
    }

    /// Rotates a token that is older than `age`, so that a stolen token is useful for a short time only. Default: never.
    ///
    /// For cookies only, because bearer clients cannot receive the new token. A session that is not used keeps its token.
    ///
    /// The previous token is accepted until the client uses the new one, because the response with the new one may be lost, and for a
    /// [grace window](Self::rotation_grace) from then on. Each response to it has the new one. If it is used later, it was copied: the
    /// session ends ([`EndReason::TokenReused`](crate::EndReason::TokenReused)), and a warning is logged. The age of a token counts from
    /// its first use, which is saved: a rotation costs two writes.
    pub fn rotate_every(mut self, age: Duration) -> Self {
        self.context_mut().rotation.every = Some(age);
        self
    }

    /// How long the previous token is accepted after the first use of the new one, for requests that are on their way after a [rotation
    /// by age](Self::rotate_every). Default: 30 seconds.
    ///
    /// After a login or [`Session::rotate`](crate::Session::rotate), the previous token is not accepted. During the window, and while
    /// the client has not used the new token, it does not end the session either: the request has no session. Within the window after
    /// a refresh, a used refresh token gets an access token. With a window of zero, it ends its session immediately.
    pub fn rotation_grace(mut self, window: Duration) -> Self {
        self.context_mut().rotation.grace = window;
        self
    }

    /// The maximum number of sessions per user. Default: [`Limits::default`], or no limit over a store without
    /// [`users`](SessionStore::users).
    ///
    /// [`check`](Self::check) finds limits that the store cannot enforce.
    pub fn limits(self, limits: Limits) -> Self {
        self.limits_by(move |_| limits)
    }

    /// The maximum number of sessions, for each user.
    ///
    /// ```
    /// # use tower_keep::{Limits, MemoryStore, SessionLayer, WhenFull};
    /// let layer = SessionLayer::new(MemoryStore::new())
    ///     .limits_by(|user| Limits::per_user(if user == "admin" { 1 } else { 5 }, WhenFull::Reject));
    /// # let _ = layer;
    /// ```
    pub fn limits_by(mut self, limits: impl Fn(&str) -> Limits + Send + Sync + 'static) -> Self {
        self.context_mut().limits = Some(Arc::new(limits));
        if let Err(error) = self.check() {
            tracing::error!(%error, "limits are set, and the store cannot enforce them: logins will fail; use another store, or no limits");
        }
        self
    }

    /// Checks that the store can do what the layer is configured to do. Call it when the program starts.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if [`limits`](Self::limits) are set and the store has no [`users`](SessionStore::users). Logins would
    /// fail with the same error, and status 500.
    ///
    /// ```
    /// use tower_keep::{Limits, MemoryStore, SessionLayer, store::StoreError};
    ///
    /// # fn main() -> Result<(), StoreError> {
    /// let layer = SessionLayer::new(MemoryStore::new()).limits(Limits::default());
    /// layer.check()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn check(&self) -> Result<(), StoreError> {
        match (&self.context.limits, self.context.store().users()) {
            (Some(_), None) => Err(StoreError::Unsupported(Ability::Users)),
            (None, _) | (_, Some(_)) => Ok(()),
        }
    }

    /// Registers a function that merges concurrent changes of `key`. Its arguments are the value before both changes, the value of
    /// this request, and the value that another request saved. `None` means no value. Default: the value of this request, which is
    /// saved last, wins, and is [counted](Stats::overwrites).
    ///
    /// A value that is not a `T` is `None` for the function.
    ///
    /// If the reply to a save was lost and another request has saved since, `theirs` may already contain the change of this
    /// request. A union is correct in that case, a sum is not.
    ///
    /// ```
    /// # use std::collections::BTreeSet;
    /// # use tower_keep::{Key, MemoryStore, SessionLayer};
    /// const SEEN: Key<BTreeSet<u64>> = Key::new("seen");
    ///
    /// let layer = SessionLayer::new(MemoryStore::new()).merge(SEEN, |_, mine, theirs| {
    ///     Some(mine.unwrap_or_default().union(&theirs.unwrap_or_default()).copied().collect())
    /// });
    /// # let _ = layer;
    /// ```
    pub fn merge<T: Serialize + DeserializeOwned>(
        mut self,
        key: Key<T>,
        merge: impl Fn(Option<T>, Option<T>, Option<T>) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let decode = |json: Option<&Json>| json.and_then(|json| json.decode().ok());
        let merge: Merge = Arc::new(move |was, mine, theirs| {
            let merged = merge(decode(was), decode(mine), decode(theirs));
            match merged.map(|merged| Json::encode(&merged)).transpose() {
                Ok(merged) => merged,
                Err(_) => mine.cloned(), // no JSON can hold it
            }
        });
        self.context_mut().merges.insert(key.name().into(), merge);
        self
    }

    /// Stores the client IP and user agent with each session at its creation and login. Default: nothing is stored.
    ///
    /// ```
    /// # use tower_keep::{ClientInfo, MemoryStore, SessionLayer};
    /// let layer = SessionLayer::new(MemoryStore::new()).client_info(ClientInfo::new().trust_proxies(["10.0.0.0/8"])?);
    /// # let _ = layer;
    /// # Ok::<(), tower_keep::InvalidProxy>(())
    /// ```
    pub fn client_info(mut self, info: ClientInfo) -> Self {
        self.context_mut().client_info = Some(info);
        self
    }

    /// What to do with a corrupt record. Default: [`OnCorrupt::Outage`].
    pub fn on_corrupt(mut self, on_corrupt: OnCorrupt) -> Self {
        self.context_mut().on_corrupt = on_corrupt;
        self
    }

    /// What to do with a value that is not of the requested type. Default: [`OnUndecodable::Error`].
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, OnUndecodable, SessionLayer};
    /// let layer = SessionLayer::new(MemoryStore::new()).on_undecodable(OnUndecodable::Absent);
    /// # let _ = layer;
    /// ```
    pub fn on_undecodable(mut self, on_undecodable: OnUndecodable) -> Self {
        self.context_mut().on_undecodable = on_undecodable;
        self
    }

    /// The clock of sessions. Default: the system clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.context_mut().clock = Arc::new(clock);
        self
    }

    /// The maximum size of user, keys and values of a session, in bytes. Default: 65,536.
    ///
    /// A larger session is not saved: [`SessionError::TooLarge`](crate::SessionError::TooLarge).
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.context_mut().max_size = bytes;
        self
    }

    /// The time budget of a request for all its store operations: it loads and saves its session, and may do so several times if
    /// other requests save too. More time is an [outage](OnOutage). Default: twice the [deadline of one
    /// operation](crate::store::SessionStore::operation_deadline), which is half a second with
    /// [`RedisStore`](crate::store::redis::RedisStore); no limit if the store has no deadline.
    ///
    /// A successful [`save`](crate::Session::save) by a handler starts the budget again. A save after the head of the response was
    /// sent has its own budget, because no client waits for it. Needs a tokio runtime with a timer.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, SessionLayer};
    /// let layer = SessionLayer::new(MemoryStore::new()).deadline(Duration::from_secs(1));
    /// # let _ = layer;
    /// ```
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.context_mut().deadline = Some(deadline);
        self
    }

    /// When sessions are looked up, and what happens without a session or in an outage. Default: [`Policy::new`].
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

    /// See [`Policy::touch`].
    pub fn touch(mut self, touch: bool) -> Self {
        self.policy = self.policy.touch(touch);
        self
    }

    /// See [`Policy::eager`].
    pub fn eager(mut self) -> Self {
        self.policy = self.policy.eager();
        self
    }

    /// Answers 401 unless a user is logged in: see [`Policy::require_user`].
    pub fn require_user(mut self) -> Self {
        self.policy = self.policy.require_user();
        self
    }

    /// Answers 401 unless the request has a live session. Anonymous visitors can have one: see [`Policy::require_session`].
    pub fn require_session(mut self) -> Self {
        self.policy = self.policy.require_session();
        self
    }

    /// The response for rejections: a closure, or a type that implements [`ResponseForRejection`](crate::ResponseForRejection).
    /// Default: [`EmptyBody`].
    pub fn reject_with<T>(self, reject: T) -> SessionLayer<T> {
        SessionLayer { context: self.context, policy: self.policy, reject }
    }

    /// A handle to the sessions of this layer, for work outside requests. It has the settings of this moment: take it after the
    /// last call that changes the layer.
    pub fn sessions(&self) -> Sessions {
        Sessions::new(self.context.clone())
    }

    /// The session of a request with these headers, not loaded: for unit tests of handlers, and for code outside tower. Nothing
    /// saves it automatically: call [`Session::save`](crate::Session::save).
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tower_keep::{MemoryStore, Session, SessionError, SessionLayer};
    ///
    /// fn add_to_cart(session: &Session, item: u64) -> Result<usize, SessionError> {
    ///     let mut cart: Vec<u64> = session.get("cart")?.unwrap_or_default();
    ///     cart.push(item);
    ///     session.insert("cart", &cart)?;
    ///     Ok(cart.len())
    /// }
    ///
    /// # fn main() -> Result<(), SessionError> {
    /// let session = SessionLayer::new(MemoryStore::new()).session(&HeaderMap::new());
    /// assert_eq!(add_to_cart(&session, 7)?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn session(&self, headers: &HeaderMap) -> Session {
        let presented = self.context.credentials.read(headers, &*self.context.clock);
        Session::new(self.context.clone(), presented, None, self.policy)
    }

    /// The counters of this layer and its clones.
    pub fn stats(&self) -> Stats {
        self.context.counters.stats()
    }

    fn context_mut(&mut self) -> &mut LayerContext {
        Arc::make_mut(&mut self.context)
    }
}

impl<S, R: Clone> Layer<S> for SessionLayer<R> {
    type Service = SessionService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService::new(inner, self.context.clone(), self.policy, self.reject.clone())
    }
}

impl<R: Clone> Clone for SessionLayer<R> {
    fn clone(&self) -> Self {
        Self { context: self.context.clone(), policy: self.policy, reject: self.reject.clone() }
    }
}

impl<R> fmt::Debug for SessionLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("context", &self.context)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
