//! A key-value store besides the sessions.

use std::{fmt, sync::Arc, time::Duration};

use crate::store::{
    Added, Cursor, KeyPage, SessionStore, StoreError, StoreExt, ValueStats, ValueStore, observed::Observed,
};

/// A small key-value store besides the sessions, on the same connection and with the same fallback.
///
/// For caches, counters and flags that would otherwise need a second client. Keys are strings, values are bytes. In Redis, a key is
/// `sess:kv:` and the key (after the [prefix](crate::store::redis::RedisConfig::prefix) of the sessions), so no key reaches a
/// session.
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
/// values.set("greeting", "hello", None).await?; // no expiry
/// values.set("cache:rates", "1.08", Duration::from_secs(300)).await?; // five minutes
/// assert_eq!(values.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
/// assert_eq!(values.incr("visits").await?, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Outages
/// See [`FallbackMode`](crate::store::FallbackMode). Without a [`Fallback`](crate::store::Fallback), operations fail, immediately
/// when the store is known to be down. If the store is full, writes fail and reads work.
///
/// A write whose reply is lost is repeated within its deadline, except [`incr`](Self::incr), which is applied at most once.
#[derive(Clone)]
pub struct KeyValue {
    store: Arc<dyn SessionStore>,
}

impl KeyValue {
    /// The values of `store`. For the store of a layer, see [`Sessions::key_value`](crate::Sessions::key_value).
    ///
    /// # Errors
    /// [`KeyValueError::Unsupported`] if the store has no values. The stores of this crate have them.
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
    /// [`KeyValueError::Store`] if the store is unavailable, or the stored value has another type.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.values()?.get(&[key]).await?.pop().flatten())
    }

    /// The values of several keys, in order: one round trip to each server. The values may be from different moments.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
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

    /// Sets a value, with a time to live, or without expiry for `None`. Replaces the value and its time to live. Less than a
    /// millisecond counts as one, more than ten years as ten years.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] if the store is unavailable or full. The value may have been set, or may be set later.
    pub async fn set(
        &self,
        key: &str,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<(), KeyValueError> {
        let (value, ttl) = (value.as_ref(), ttl.into());
        Ok(self.values()?.set(key, value, ttl).await?)
    }

    /// Deletes a value. Returns whether it existed. If the reply was lost and the deletion repeated, whether it existed at the
    /// second attempt.
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn del(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.values()?.delete(key).await?)
    }

    /// Whether a value exists.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] if the store is unavailable.
    pub async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.values()?.exists(key).await?)
    }

    /// Sets the time to live of a value. Returns whether the value exists.
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn expire(&self, key: &str, ttl: Duration) -> Result<bool, KeyValueError> {
        Ok(self.values()?.expire(key, ttl).await?)
    }

    /// Increments a number by one, and returns it. A missing value counts as zero. The time to live does not change.
    ///
    /// # Errors
    /// Those of [`incr_by`](Self::incr_by).
    pub async fn incr(&self, key: &str) -> Result<i64, KeyValueError> {
        self.incr_by(key, 1).await
    }

    /// Adds to a number, which may be negative, and returns the sum.
    ///
    /// The increment is applied at most once: if the reply is lost, it is not repeated.
    ///
    /// # Errors
    /// [`KeyValueError::NotANumber`], [`KeyValueError::Overflow`], [`KeyValueError::Store`]: the increment was not applied.
    /// [`KeyValueError::InDoubt`]: it may have been applied.
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

    /// A page of the keys that match a Redis pattern (`user:*`, `h?llo`, `[a-c]x`, `[^a]`, and `\` as escape), and the next cursor.
    ///
    /// `count` is the approximate number of keys that are visited for a page, at most 1,000. A page may be empty although there are
    /// more. In Redis, the keys of sessions count too. A key that exists during the whole scan is on at least one page, and may be
    /// on several.
    ///
    /// # Errors
    /// [`KeyValueError::Store`] if the store is unavailable. The page can be requested again.
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

    /// Whether values are in a server that replies now, and not in memory.
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

    /// Where values are kept at the moment. Sends a command to the server.
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

/// Contains no key and no value.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("store", &self.store.name()).finish()
    }
}

/// The error of a [`KeyValue`] operation. It never contains a key or a value.
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
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The store is unavailable or full, or refuses the operation.
    #[error("the value store failed")]
    Store(#[from] StoreError),
    /// The reply to an increment was lost: it may have been applied.
    #[error("it is unknown whether the increment was applied")]
    InDoubt(#[source] StoreError),
    /// The value is not a 64-bit integer.
    #[error("the value is not a 64-bit integer")]
    NotANumber,
    /// The sum exceeds 64 bits. The increment was not applied.
    #[error("the sum exceeds 64 bits")]
    Overflow,
    /// The store has no values.
    #[error("the store does not support values")]
    Unsupported,
}

impl KeyValueError {
    /// Whether a retry may help. An operation that is [in doubt](Self::InDoubt) may then be applied twice.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Store(_) | Self::InDoubt(_))
    }
}
