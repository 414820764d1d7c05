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

pub use crate::record::{Codec, InvalidRecord, Record, Version};
use crate::{
    ended::{EndReason, Ended},
    event::Event,
    limits::Limits,
    token::SessionId,
};

mod all;
mod fallback;
mod glob;
mod guard;
pub(crate) mod health;
mod memory;
mod migrating;
pub(crate) mod observed;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "testing")]
pub mod testing;
mod values;

pub use fallback::{Fallback, FallbackMode, FallbackStats, OnRecovery};
pub use guard::Guard;
pub use health::Health;
pub use memory::MemoryStore;
pub use migrating::MigratingStore;
pub use values::{Added, KeyPage, ValueStats, ValueStore};
pub(crate) use values::{ask_values, values_of};

/// No command is on its way for longer than this.
const REMEMBER_AT_LEAST: Duration = Duration::from_secs(60);

/// What keeps sessions.
///
/// # Contract
/// * **An id that ended never comes back.** [`create`](Self::create) succeeds only when the id does not exist and is not remembered
///   as ended, [`update`](Self::update) only when it is alive: in whatever order requests finish, on whatever instance, and however
///   late a command is executed whose sender gave it up, none brings an ended id back. For that a store remembers what
///   was [ended](Self::end) for longer than any command can be on its way: at least a minute, and better an hour.
/// * **Compare and set.** `update` succeeds only on the version it names, and tells a session that somebody else wrote
///   ([`Outcome::Conflict`]) from one that ended ([`Outcome::Gone`]). So does an `end` that names a version.
/// * **Idempotent.** A write whose answer was lost can be sent again: the store recognises that it is already applied and says
///   [`Outcome::Done`], or [`Created::Done`].
/// * **Atomic.** Each operation happens wholly or not at all.
/// * **Time to live.** Every write says how long the record lives from then on; after that the id is gone. A record
///   without a time to live cannot be written.
/// * **Users.** [`list`](Self::list) knows every live session that was created for a user, and no other; what a store needs for
///   that is bounded by the live sessions. [`end_user`](Self::end_user) ends all of them, even those that `list` has lost.
/// * **Limits.** However many create at once, no user has more live sessions than the [`Limits`] of the last
///   creation allow.
/// * **Single use.** However many [`consume`](Self::consume) a session at once, one of them gets it.
/// * **In time.** An operation ends within a bounded time, with [`StoreError::Outage`] when the store does not answer.
///   An outage is never reported as "no such session".
///
/// `store::testing` (with the feature `testing`) checks all of that but the last.
///
/// A store knows nothing of HTTP, tokens, or what is in a record beyond its [version](Record::version) and
/// [user](Record::user).
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{EndReason, Limits, SessionId, store::*};
///
/// /// A store that forgets everything: every session ends with the request that made it.
/// struct Oblivion;
///
/// impl SessionStore for Oblivion {
///     fn load<'a>(&'a self, _: &'a SessionId) -> StoreFuture<'a, Found> {
///         StoreFuture::ready(Ok(Found::Unknown))
///     }
///     fn create<'a>(&'a self, _: &'a SessionId, _: Entry, _: Limits) -> StoreFuture<'a, Created> {
///         StoreFuture::ready(Ok(Created::Done { evicted: Vec::new() }))
///     }
///     fn update<'a>(&'a self, _: &'a SessionId, _: Version, _: Entry) -> StoreFuture<'a, Outcome> {
///         StoreFuture::ready(Ok(Outcome::Gone))
///     }
///     fn touch<'a>(&'a self, _: &'a SessionId, _: Entry) -> StoreFuture<'a, ()> {
///         StoreFuture::ready(Ok(()))
///     }
///     fn end<'a>(&'a self, _: &'a SessionId, _: EndReason) -> StoreFuture<'a, Outcome> {
///         StoreFuture::boxed(async { Ok(Outcome::Gone) })
///     }
///     fn replace<'a>(&'a self, _: &'a SessionId, _: Option<Version>, _: &'a SessionId) -> StoreFuture<'a, Outcome> {
///         StoreFuture::ready(Ok(Outcome::Gone))
///     }
///     fn consume<'a>(&'a self, _: &'a SessionId, _: Version) -> StoreFuture<'a, Found> {
///         StoreFuture::ready(Ok(Found::Unknown))
///     }
///     fn list<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
///         StoreFuture::ready(Ok(Vec::new()))
///     }
///     fn end_user<'a>(&'a self, _: &'a str, _: Option<&'a SessionId>, _: EndReason) -> StoreFuture<'a, Vec<SessionId>> {
///         StoreFuture::ready(Ok(Vec::new()))
///     }
///     fn scan<'a>(&'a self, _: &'a Cursor, _: usize) -> StoreFuture<'a, Page> {
///         StoreFuture::ready(Ok(Page::default()))
///     }
///     fn count(&self) -> StoreFuture<'_, u64> {
///         StoreFuture::ready(Ok(0))
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
    /// The session `id`: alive, ended and why, or unknown.
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found>;

    /// Keeps a new session, within `limits` if it is of a user.
    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created>;

    /// Replaces version `expected` of a live session.
    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome>;

    /// Lets a live session live for the entry's time to live from now, without writing it. Does nothing to a session that is
    /// gone, or is not of the entry's version any more: then it has another time to live.
    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()>;

    /// Ends a session, and remembers why.
    ///
    /// [`Outcome::Gone`] when it was not alive: what had ended keeps its reason, and an id that was unknown is now remembered as
    /// ended, for its creation may be on its way still.
    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome>;

    /// Ends a session in favour of another, if it is of version `expected` or none is named: as [`end`](Self::end) does for
    /// [`EndReason::Replaced`], and remembers the [successor](Ended::successor) as well.
    ///
    /// The session of a login waits for this before it begins. With a version, an id that was unknown stays so. A session that ended in
    /// favour of this successor already, has ended by this: it can be repeated.
    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome>;

    /// Ends a session for [`EndReason::Used`] and returns what it was, to one caller only: the first `claim`, and whoever repeats that.
    ///
    /// To everybody else it says how it ended, or that it is unknown.
    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found>;

    /// The live sessions of `user`, in any order.
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>>;

    /// Ends all sessions of `user` that exist, but for `except`; returns those it knew of.
    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>>;

    /// Some of all live sessions, about `count`, and where to go on. A session that is alive all the while is on some page; one
    /// may be on several.
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page>;

    /// How many sessions are alive.
    fn count(&self) -> StoreFuture<'_, u64>;

    /// Whether the store can serve right now. An error says that it is down, and why.
    fn health(&self) -> StoreFuture<'_, Health>;

    /// What operators call this store: `"redis"`, `"memory"`.
    fn name(&self) -> &'static str;

    /// How long one operation takes at most, if that is bounded: what a request may wait in all is
    /// [reckoned](crate::SessionLayer::deadline) from it. Default: unknown.
    fn operation_deadline(&self) -> Option<Duration> {
        None
    }

    /// Whether what it answers now is less than it usually promises: see [`FallbackMode`]. Default: never.
    fn is_degraded(&self) -> bool {
        false
    }

    /// Tells other processes what happened here. Default: there are none.
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        let _ = event;
        StoreFuture::ready(Ok(()))
    }

    /// What any process has published after `from`; `None` is now. Default: nothing, ever.
    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        let _ = from;
        StoreFuture::ready(Ok(Published::default()))
    }

    /// What it keeps beside the sessions: for [`KeyValue`](crate::KeyValue). Always the same answer. Default: nothing.
    fn values(&self) -> Option<&dyn ValueStore> {
        None
    }
}

impl<S: SessionStore + ?Sized> SessionStore for Arc<S> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        (**self).load(id)
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        (**self).create(id, new, limits)
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        (**self).update(id, expected, new)
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        (**self).touch(id, entry)
    }

    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome> {
        (**self).end(id, reason)
    }

    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome> {
        (**self).replace(id, expected, successor)
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        (**self).consume(id, claim)
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        (**self).list(user)
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        (**self).end_user(user, except, reason)
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        (**self).scan(from, count)
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        (**self).count()
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        (**self).health()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn operation_deadline(&self) -> Option<Duration> {
        (**self).operation_deadline()
    }

    fn is_degraded(&self) -> bool {
        (**self).is_degraded()
    }

    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        (**self).publish(event)
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        (**self).events(from)
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        (**self).values()
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

/// What is written: a record, and how long it lives from then on.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record.
    pub record: Arc<Record>,
    /// Its time to live. Under a millisecond counts as one.
    pub ttl: Duration,
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

/// What a store knows of an id.
#[derive(Clone, Debug)]
pub enum Found {
    /// It is alive.
    Live(Loaded),
    /// It ended, not so long ago.
    Ended(Ended),
    /// Nothing, or nothing any more.
    Unknown,
}

impl Found {
    /// The live session.
    pub fn live(self) -> Option<Loaded> {
        match self {
            Self::Live(loaded) => Some(loaded),
            Self::Ended(_) | Self::Unknown => None,
        }
    }
}

/// How a creation ended, when the store could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The session is there (it may have been so already: creations are idempotent).
    Done {
        /// The sessions of the same user that made room for it.
        evicted: Vec<SessionId>,
    },
    /// Nothing was written: the id is in use, or has been.
    Taken,
    /// Nothing was written: there are as many sessions as there may be.
    Full,
}

/// How another write ended, when the store could be asked.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The write is in force (it may have been so already: writes are idempotent).
    Done,
    /// Nothing was written: another write came first, and this is what it left.
    Conflict(Loaded),
    /// Nothing was written: the session has ended. (Or it was, its answer was lost, and it has ended with the session before it was repeated.)
    Gone,
}

/// A place in a store's sessions, or in its events: to be handed back to the store that made it, and to nobody else.
///
/// ```
/// use tower_keep::store::Cursor;
///
/// let cursor = Cursor::from("17".to_owned()); // from the link to the next page
/// assert_eq!(cursor.as_str(), "17");
/// assert_eq!(Cursor::start().as_str(), "");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// The beginning.
    pub fn start() -> Self {
        Self::default()
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Cursor {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Some of the sessions of a store.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Perhaps none, although there are more to come.
    pub sessions: Vec<(SessionId, Loaded)>,
    /// Where to go on; `None` when these were the last.
    pub next: Option<Cursor>,
}

/// What was published to all processes that share a store.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// In the order of publication.
    pub events: Vec<Event>,
    /// Where to go on.
    pub next: Cursor,
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

impl StoreError {
    /// Which of them it is, in a word.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Outage(_) => "outage",
            Self::Corrupt(_) => "corrupt",
            Self::Configuration(_) => "configuration",
        }
    }

    /// The code by which a server said so: `OOM`, `READONLY`.
    pub(crate) fn status_code(&self) -> Option<&str> {
        #[cfg(feature = "redis")]
        return redis::status_code(self);
        #[cfg(not(feature = "redis"))]
        None
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

    /// The answer, if it is there already.
    pub(crate) fn known(&self) -> Option<&Result<T, StoreError>> {
        match &self.0 {
            Answer::Ready(answer) => answer.as_ref(),
            Answer::Waiting(_) => None,
        }
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
