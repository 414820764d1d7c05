//! Where sessions are kept: the contract of a store, and the stores of this crate.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

pub use crate::record::{InvalidRecord, Record, Version};
use crate::token::SessionId;

mod memory;
#[cfg(feature = "redis")]
pub mod redis;

pub use memory::MemoryStore;

/// What keeps sessions.
///
/// # Contract
/// * **An id that ended never comes back.** [`create`](Self::create) succeeds only when the id does not exist,
///   [`update`](Self::update) and [`rotate`](Self::rotate) only when it does: in whatever order requests finish, none
///   brings a destroyed, rotated or expired id back.
/// * **Compare and set.** `update` and `rotate` succeed only on the version they name, and tell a session that somebody else wrote
///   ([`Outcome::Conflict`]) from one that ended ([`Outcome::Gone`]).
/// * **Idempotent.** A write whose answer was lost can be sent again: the store recognises that it is already applied and says
///   [`Outcome::Done`].
/// * **Atomic.** Each operation happens wholly or not at all; `rotate` never leaves two ids alive, nor none.
/// * **Time to live.** Every write says how long the record lives from then on; after that the id is gone. A record
///   without a time to live cannot be written.
/// * **In time.** An operation ends within a bounded time, with [`StoreError::Outage`] when the store does not answer.
///   An outage is never reported as "no such session".
///
/// A store knows nothing of HTTP, tokens, or what is in a record.
///
/// ```
/// use std::{collections::HashMap, sync::{Arc, Mutex}, time::Duration};
/// use tower_keep::{SessionId, store::{Health, Loaded, Outcome, Record, SessionStore, StoreFuture, Version}};
///
/// /// A store that forgets everything: every session ends with the request that made it.
/// struct Oblivion;
///
/// impl SessionStore for Oblivion {
///     fn load<'a>(&'a self, _: &'a SessionId) -> StoreFuture<'a, Option<Loaded>> {
///         StoreFuture::ready(Ok(None))
///     }
///     fn create<'a>(&'a self, _: &'a SessionId, _: Arc<Record>, _: Duration) -> StoreFuture<'a, Outcome> {
///         StoreFuture::ready(Ok(Outcome::Done))
///     }
///     fn update<'a>(&'a self, _: &'a SessionId, _: Version, _: Arc<Record>, _: Duration) -> StoreFuture<'a, Outcome> {
///         StoreFuture::ready(Ok(Outcome::Gone))
///     }
///     fn touch<'a>(&'a self, _: &'a SessionId, _: Version, _: Duration) -> StoreFuture<'a, ()> {
///         StoreFuture::ready(Ok(()))
///     }
///     fn rotate<'a>(
///         &'a self, _: &'a SessionId, _: Version, _: &'a SessionId, _: Arc<Record>, _: Duration,
///     ) -> StoreFuture<'a, Outcome> {
///         StoreFuture::boxed(async move { Ok(Outcome::Gone) })
///     }
///     fn destroy<'a>(&'a self, _: &'a SessionId) -> StoreFuture<'a, ()> {
///         StoreFuture::ready(Ok(()))
///     }
///     fn health(&self) -> StoreFuture<'_, Health> {
///         StoreFuture::ready(Ok(Health::Up))
///     }
///     fn name(&self) -> &'static str {
///         "oblivion"
///     }
/// }
/// # let _ = tower_keep::SessionLayer::new(Oblivion);
/// ```
pub trait SessionStore: Send + Sync + 'static {
    /// The session `id`, if it is alive.
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Option<Loaded>>;

    /// Keeps a new session for `ttl`.
    ///
    /// [`Outcome::Conflict`] when the id exists with another record.
    fn create<'a>(&'a self, id: &'a SessionId, record: Arc<Record>, ttl: Duration) -> StoreFuture<'a, Outcome>;

    /// Replaces version `expected` of a live session, and lets it live for `ttl` from now.
    fn update<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Version,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome>;

    /// Lets version `expected` of a live session live for `ttl` from now, without writing it. Does nothing to a session that is
    /// gone, or was written since: then it has another time to live.
    fn touch<'a>(&'a self, id: &'a SessionId, expected: Version, ttl: Duration) -> StoreFuture<'a, ()>;

    /// In one step: ends the session `old`, of version `expected`, and creates `new` with `record` for `ttl`.
    fn rotate<'a>(
        &'a self,
        old: &'a SessionId,
        expected: Version,
        new: &'a SessionId,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome>;

    /// Ends a session. Ending one that is gone already succeeds.
    fn destroy<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, ()>;

    /// Whether the store can serve right now.
    fn health(&self) -> StoreFuture<'_, Health>;

    /// What operators call this store: `"redis"`, `"memory"`.
    fn name(&self) -> &'static str;
}

impl<S: SessionStore + ?Sized> SessionStore for Arc<S> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Option<Loaded>> {
        (**self).load(id)
    }

    fn create<'a>(&'a self, id: &'a SessionId, record: Arc<Record>, ttl: Duration) -> StoreFuture<'a, Outcome> {
        (**self).create(id, record, ttl)
    }

    fn update<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Version,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        (**self).update(id, expected, record, ttl)
    }

    fn touch<'a>(&'a self, id: &'a SessionId, expected: Version, ttl: Duration) -> StoreFuture<'a, ()> {
        (**self).touch(id, expected, ttl)
    }

    fn rotate<'a>(
        &'a self,
        old: &'a SessionId,
        expected: Version,
        new: &'a SessionId,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        (**self).rotate(old, expected, new, record, ttl)
    }

    fn destroy<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, ()> {
        (**self).destroy(id)
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        (**self).health()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// The store that the environment asks for: Redis when its variables name one, else memory.
///
/// See [`RedisConfig::from_env`](redis::RedisConfig::from_env) for the variables.
///
/// # Errors
/// [`InvalidRedisConfig`](redis::InvalidRedisConfig) names the variable that is wrong.
///
/// ```
/// use tower_keep::{SessionLayer, store};
///
/// let layer = SessionLayer::new(store::from_env()?);
/// # let _ = layer;
/// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
/// ```
#[cfg(feature = "redis")]
pub fn from_env() -> Result<Arc<dyn SessionStore>, redis::InvalidRedisConfig> {
    Ok(match redis::RedisConfig::from_env()? {
        Some(config) => Arc::new(redis::RedisStore::new(config)),
        None => Arc::new(MemoryStore::new()),
    })
}

/// A live session as a store holds it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The record as last written.
    pub record: Arc<Record>,
    /// How long the session still lives if nobody touches it; `None` when the store holds it without a limit, which only
    /// somebody else can have done.
    pub ttl: Option<Duration>,
}

/// How a write ended, when the store could be asked.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The write is in force (it may have been so already: writes are idempotent).
    Done,
    /// Nothing was written: another write came first, and this is what it left.
    Conflict(Loaded),
    /// Nothing was written: the session has ended.
    Gone,
}

/// Whether a store can serve.
///
/// ```
/// use tower_keep::store::Health;
///
/// assert_eq!(Health::Up.as_str(), "up");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Reads and writes are served.
    Up,
    /// Reads are served; some writes are not.
    Degraded,
    /// Nothing is served.
    Down,
}

impl Health {
    /// `"up"`, `"degraded"` or `"down"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// Why a store could not answer.
///
/// Its text never holds what is stored, a token, or a password; the cause is its [`source`](Error::source).
///
/// ```
/// use std::{error::Error, io};
/// use tower_keep::store::StoreError;
///
/// let error = StoreError::Outage(io::Error::from(io::ErrorKind::ConnectionRefused).into());
/// assert_eq!(error.to_string(), "the session store does not answer");
/// assert!(error.source().is_some());
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The store did not answer in time, or cannot serve now. A write may or may not have been applied.
    Outage(Box<dyn Error + Send + Sync>),
    /// What the store holds under the session's id is not a record.
    Corrupt(Box<dyn Error + Send + Sync>),
    /// The store will not serve until somebody changes its configuration: a wrong password, a missing permission.
    Configuration(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outage(_) => "the session store does not answer",
            Self::Corrupt(_) => "the stored session cannot be read",
            Self::Configuration(_) => "the session store refuses to serve",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Outage(source) | Self::Corrupt(source) | Self::Configuration(source) => Some(&**source),
        }
    }
}

/// What a store operation returns: an answer at once, without allocating, or a future.
///
/// ```
/// use tower_keep::store::StoreFuture;
///
/// # async fn example() -> Result<(), tower_keep::store::StoreError> {
/// assert_eq!(StoreFuture::ready(Ok(1)).await?, 1);
/// assert_eq!(StoreFuture::boxed(async { Ok(2) }).await?, 2);
/// # Ok(())
/// # }
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct StoreFuture<'a, T>(Answer<'a, T>);

enum Answer<'a, T> {
    Ready(Option<Result<T, StoreError>>),
    Waiting(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>),
}

impl<'a, T> StoreFuture<'a, T> {
    /// An answer that is known already.
    pub fn ready(answer: Result<T, StoreError>) -> Self {
        Self(Answer::Ready(Some(answer)))
    }

    /// An answer that takes time.
    pub fn boxed(answer: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> Self {
        Self(Answer::Waiting(Box::pin(answer)))
    }
}

// Nothing in it is pinned in place: the answer is moved out, the future has its own box.
impl<T> Unpin for StoreFuture<'_, T> {}

impl<T> Future for StoreFuture<'_, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Ready(answer) => match answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending, // polled after it was ready: the caller's mistake, and it has its answer
            },
            Answer::Waiting(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreFuture")
    }
}
