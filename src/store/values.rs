//! Values: an optional ability of stores.

use std::time::Duration;

use super::{error::StoreError, future::StoreFuture, types::Cursor};

/// A store that keeps values besides the sessions, for [`KeyValue`](crate::KeyValue). A store returns itself from
/// [`SessionStore::values`](super::SessionStore::values).
///
/// # Contract
/// * **No key reaches a session**, whatever its name.
/// * **Atomic.** Each operation on a key is applied completely or not at all. [`get`](Self::get) of several keys is not atomic.
/// * **Idempotent**, except [`add`](Self::add). A cancelled write may be applied later.
/// * **Time to live.** An expired value does not exist.
/// * **In time.** An operation ends within a bounded time, with [`StoreError::Outage`] if the store is unavailable or full.
///
/// ```
/// use tower_keep::{MemoryStore, store::{SessionStore, StoreError, ValueStore}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), StoreError> {
/// let store = MemoryStore::new();
/// if let Some(values) = store.values() {
///     values.set("greeting", b"hello", None).await?;
///     assert_eq!(values.get(&["greeting", "other"]).await?, [Some(b"hello".to_vec()), None]);
/// }
/// # Ok(())
/// # }
/// ```
pub trait ValueStore: Send + Sync {
    /// The values of the keys, in order.
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>>;

    /// Sets a value, with a time to live or without expiry. Replaces the value and its time to live. Less than a millisecond counts
    /// as one.
    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()>;

    /// Deletes a value. Returns whether it existed.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// Whether a value exists.
    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// Sets the time to live of a value. Returns whether the value exists.
    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool>;

    /// Adds to a number. A missing value counts as zero. The time to live does not change.
    ///
    /// It is not idempotent, so a store does not repeat it: if it may have been applied, the reply is [`Added::InDoubt`]. An error
    /// means that it was not applied, and will not be.
    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added>;

    /// A page of the keys that match `pattern`, and the next cursor. `count` is the approximate number of keys that are visited: at
    /// least 1, at most 1,000. A key that exists during the whole scan is on at least one page, and may be on several.
    ///
    /// The pattern is that of Redis: `*`, `?`, `[abc]`, `[a-z]`, `[^a]`, and `\` as escape.
    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage>;

    /// Where values are kept at the moment.
    fn stats(&self) -> StoreFuture<'_, ValueStats>;
}

/// The reply to [`add`](ValueStore::add).
///
/// ```
/// use tower_keep::{MemoryStore, store::{Added, SessionStore}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_keep::store::StoreError> {
/// # let store = MemoryStore::new();
/// let Some(values) = store.values() else { return Ok(()) };
/// assert!(matches!(values.add("visits", 2).await?, Added::To(2)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Added {
    /// The sum.
    To(i64),
    /// Not applied: the value is not a 64-bit integer as Redis writes it.
    NotANumber,
    /// Not applied: the sum exceeds 64 bits.
    Overflow,
    /// The reply was lost, for this reason: it may have been applied.
    InDoubt(StoreError),
}

/// A page of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// May be empty although there are more.
    pub keys: Vec<String>,
    /// The next cursor. `None` after the last page.
    pub next: Option<Cursor>,
}

/// Where values are kept at the moment: see [`KeyValue::stats`](crate::KeyValue::stats).
///
/// ```
/// use tower_keep::store::ValueStats;
///
/// let nowhere = ValueStats::default();
/// assert!(!nowhere.connected && !nowhere.using_fallback && nowhere.in_memory_keys == 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueStats {
    /// A server replies. Always `false` for a store without a server.
    pub connected: bool,
    /// Values are in the memory of this process: there is no server, or it is down.
    pub using_fallback: bool,
    /// The number of values in memory.
    pub in_memory_keys: usize,
}
