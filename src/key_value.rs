//! Values beside the sessions.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::store::{
    Added, Cursor, KeyPage, SessionStore, StoreError, StoreExt, ValueStats, ValueStore, observed::Observed,
};

/// A small key-value service beside the sessions: on the same connection, and with the same fallback.
///
/// For what an application would otherwise need a second client for: caches, counters, flags. Keys are text, values are bytes. They are called
/// `sess:kv:` and their key in Redis (after the [prefix](crate::store::redis::RedisConfig::prefix) of the sessions): no key reaches a session.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{KeyValue, MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_keep::KeyValueError> {
/// let layer = SessionLayer::new(MemoryStore::new());
/// let values: KeyValue = layer.sessions().key_value()?;
///
/// values.set("greeting", "hello", None).await?; // for ever
/// values.set("cache:rates", "1.08", Duration::from_secs(300)).await?; // for five minutes
/// assert_eq!(values.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
/// assert_eq!(values.incr("visits").await?, 1);
/// # Ok(())
/// # }
/// ```
///
/// # While the store is away
/// As [`FallbackMode`](crate::store::FallbackMode) says. Without a [`Fallback`](crate::store::Fallback) an operation fails, and at once
/// when the store is known to be away. A store that is full is not away: a write fails, what is there is read.
///
/// A write whose answer was lost is repeated, within the operation's time, but for [`incr`](Self::incr): that is done once, or not at all.
#[derive(Clone)]
pub struct KeyValue {
    store: Arc<dyn SessionStore>,
}

impl KeyValue {
    /// The values of `store`. See [`Sessions::key_value`](crate::Sessions::key_value) for the store of a layer.
    ///
    /// # Errors
    /// [`KeyValueError::Unsupported`] when the store keeps none: those of this crate do.
    ///
    /// ```
    /// use tower_keep::{KeyValue, MemoryStore};
    ///
    /// let values = KeyValue::new(MemoryStore::new())?;
    /// # let _ = values;
    /// # Ok::<(), tower_keep::KeyValueError>(())
    /// ```
    pub fn new(store: impl SessionStore + 'static) -> Result<Self, KeyValueError> {
        Self::of(Arc::new(Observed::new(store)))
    }

    pub(crate) fn of(store: Arc<dyn SessionStore>) -> Result<Self, KeyValueError> {
        match store.values() {
            Some(_) => Ok(Self { store }),
            None => Err(KeyValueError::Unsupported),
        }
    }

    fn values(&self) -> Result<&dyn ValueStore, StoreError> {
        self.store.require_values()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] when the store does not answer, or what is there is of another kind.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.values()?.get(&[key]).await?.pop().flatten())
    }

    /// The values of several keys, in their order: one round trip to each server that has some of them. They need not all be of one moment.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// ```
    /// # use tower_keep::{KeyValue, KeyValueError};
    /// async fn greetings(values: &KeyValue) -> Result<usize, KeyValueError> {
    ///     let found = values.mget(&["greeting:en", "greeting:it"]).await?;
    ///     Ok(found.iter().flatten().count())
    /// }
    /// # let _ = greetings;
    /// ```
    pub async fn mget(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<Vec<u8>>>, KeyValueError> {
        let keys: Vec<_> = keys.iter().map(AsRef::as_ref).collect();
        Ok(self.values()?.get(&keys).await?)
    }

    /// Keeps a value, for a time or, with `None`, for ever; in place of the one that was there, and its time. Under a millisecond counts as
    /// one, more than ten years as ten.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] when the store does not answer, or is full: it may have been set or not, and may yet be.
    pub async fn set(
        &self,
        key: &str,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<(), KeyValueError> {
        let (value, ttl) = (value.as_ref(), ttl.into());
        Ok(self.values()?.set(key, value, ttl).await?)
    }

    /// Removes a value; whether there was one. If the answer was lost on the way, and it was removed again: whether there was one then.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn del(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.values()?.delete(key).await?)
    }

    /// Whether there is a value.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] when the store does not answer.
    pub async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.values()?.exists(key).await?)
    }

    /// Lets a value live for `ttl` from now on, however long it would have lived; whether there is one.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn expire(&self, key: &str, ttl: Duration) -> Result<bool, KeyValueError> {
        Ok(self.values()?.expire(key, ttl).await?)
    }

    /// Adds one to a number, and returns it; none counts as zero. A time to live stays what it is.
    ///
    /// # Errors
    /// As [`incr_by`](Self::incr_by).
    pub async fn incr(&self, key: &str) -> Result<i64, KeyValueError> {
        self.incr_by(key, 1).await
    }

    /// Adds to a number, or with a negative one takes from it, and returns it.
    ///
    /// It is never done twice. When the answer is lost it is not repeated, and may have been done.
    ///
    /// # Errors
    /// [`KeyValueError::NotANumber`], [`KeyValueError::Overflow`], [`KeyValueError::Store`]: nothing was added.
    /// [`KeyValueError::InDoubt`]: perhaps.
    ///
    /// ```
    /// # use tower_keep::{KeyValue, KeyValueError};
    /// async fn sell(values: &KeyValue, pieces: i64) -> Result<bool, KeyValueError> {
    ///     Ok(values.incr_by("stock:apples", -pieces).await? >= 0)
    /// }
    /// # let _ = sell;
    /// ```
    pub async fn incr_by(&self, key: &str, by: i64) -> Result<i64, KeyValueError> {
        match self.values()?.add(key, by).await? {
            Added::To(sum) => Ok(sum),
            Added::NotANumber => Err(KeyValueError::NotANumber),
            Added::Overflow => Err(KeyValueError::Overflow),
            Added::InDoubt(error) => Err(KeyValueError::InDoubt(error)),
        }
    }

    /// Some of the keys that match a pattern of Redis (`user:*`, `h?llo`, `[a-c]x`, `[^a]`, and `\` before what is meant as it is), and where to go on.
    ///
    /// `count` is about how many keys are looked at for a page, at most 1,000, whether they match or not: a page may be empty although there are
    /// more. In Redis the sessions' keys count too. A key that is there all the while is on some page, and may be on several.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] when the store does not answer. The same page can be asked for again.
    ///
    /// ```
    /// # use tower_keep::{KeyValue, KeyValueError, store::Cursor};
    /// async fn forget(values: &KeyValue, user: &str) -> Result<(), KeyValueError> {
    ///     let mut place = Some(Cursor::start());
    ///     while let Some(from) = place {
    ///         let page = values.scan(&format!("user:{user}:*"), &from, 100).await?;
    ///         for key in page.keys {
    ///             values.del(&key).await?;
    ///         }
    ///         place = page.next;
    ///     }
    ///     Ok(())
    /// }
    /// # let _ = forget;
    /// ```
    pub async fn scan(&self, pattern: &str, from: &Cursor, count: usize) -> Result<KeyPage, KeyValueError> {
        Ok(self.values()?.scan(pattern, from, count).await?)
    }

    /// Whether values are kept by a server that answers now: neither in memory, for want of one or in an outage, nor nowhere.
    ///
    /// ```
    /// # use tower_keep::{KeyValue, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_keep::KeyValueError> {
    /// assert!(!KeyValue::new(MemoryStore::new())?.is_ready().await);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn is_ready(&self) -> bool {
        let stats = self.stats().await;
        stats.connected && !stats.using_fallback
    }

    /// Where values are kept right now. Asks the server whether it answers.
    ///
    /// ```
    /// # use tower_keep::{KeyValue, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_keep::KeyValueError> {
    /// let values = KeyValue::new(MemoryStore::new())?;
    /// values.set("greeting", "hello", None).await?;
    /// let stats = values.stats().await;
    /// assert_eq!((stats.connected, stats.using_fallback, stats.in_memory_keys), (false, true, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stats(&self) -> ValueStats {
        match self.values() {
            Ok(values) => values.stats().await.unwrap_or_default(),
            Err(_) => ValueStats::default(),
        }
    }
}

/// Shows no key and no value.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("store", &self.store.name()).finish()
    }
}

/// What went wrong with a [`KeyValue`]. It never holds a key or a value.
///
/// ```
/// use tower_keep::{KeyValue, KeyValueError, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), KeyValueError> {
/// let values = KeyValue::new(MemoryStore::new())?;
/// values.set("greeting", "hello", None).await?;
/// assert!(matches!(values.incr("greeting").await, Err(KeyValueError::NotANumber)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The store does not answer, has no room, or refuses.
    Store(StoreError),
    /// The store was told to add to a number, and its answer was lost: it may have been added or not.
    InDoubt(StoreError),
    /// What is there is no whole number of 64 bits.
    NotANumber,
    /// The sum would be no number of 64 bits. Nothing was added.
    Overflow,
    /// The store keeps no values.
    Unsupported,
}

impl KeyValueError {
    /// Whether the store is the cause, so that trying again later may help. What is [in doubt](Self::InDoubt) may be done twice then.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Store(_) | Self::InDoubt(_))
    }
}

impl fmt::Display for KeyValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store(_) => "the store of values failed",
            Self::InDoubt(_) => "it is not known whether it was added",
            Self::NotANumber => "the value is not a whole number of 64 bits",
            Self::Overflow => "the sum is not a number of 64 bits",
            Self::Unsupported => "the store keeps no values",
        })
    }
}

impl Error for KeyValueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Store(source) | Self::InDoubt(source) => Some(source),
            Self::NotANumber | Self::Overflow | Self::Unsupported => None,
        }
    }
}

impl From<StoreError> for KeyValueError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
