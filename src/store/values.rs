//! Values beside the sessions: what a store can offer besides its sessions, and need not.

use std::time::Duration;

use super::{
    error::{Ability, StoreError},
    future::StoreFuture,
    session_store::SessionStore,
    types::Cursor,
};

/// What keeps values under keys, beside the sessions: what [`KeyValue`](crate::KeyValue) stands on. A store that can says so in
/// [`SessionStore::values`].
///
/// # Contract
/// * **No key reaches a session**, whatever it is called.
/// * **Atomic.** Each operation on one key happens wholly or not at all. [`get`](Self::get) of several keys is no one moment.
/// * **Can be repeated**, all but [`add`](Self::add). A write that was given up may be executed later.
/// * **Time to live.** What has expired is not there.
/// * **In time.** An operation ends within a bounded time, with [`StoreError::Outage`] when the store does not answer, or has no room.
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
    /// The values of these keys, in their order.
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>>;

    /// Keeps a value, for a time or for ever, in place of the one that was there and its time. Under a millisecond counts as one.
    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()>;

    /// Removes a value; whether there was one.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// Whether there is a value.
    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// Lets a value live for `ttl` from now; whether there is one.
    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool>;

    /// Adds to a number; none counts as zero. Its time to live stays.
    ///
    /// It cannot be repeated, so no store repeats it: what may have been done is [`Added::InDoubt`]. An error says that nothing was added,
    /// and will not be.
    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added>;

    /// Some of the keys that match `pattern`, and where to go on. `count` is about how many keys are looked at, whether they match or
    /// not: at least one, at most 1,000. A key that is there all the while is on some page, and may be on several.
    ///
    /// The pattern is that of Redis: `*`, `?`, `[abc]`, `[a-z]`, `[^a]`, and `\` before what is meant as it is.
    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage>;

    /// Where values are kept right now.
    fn stats(&self) -> StoreFuture<'_, ValueStats>;
}

/// What came of adding to a number, when the store could be asked.
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
    /// This is the number now.
    To(i64),
    /// Nothing was added: what is there is no number of 64 bits, written as Redis writes it.
    NotANumber,
    /// Nothing was added: the sum would be no number of 64 bits.
    Overflow,
    /// The store was told, and its answer was lost: it may have been added or not. Why.
    InDoubt(StoreError),
}

/// Some of the keys of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// Perhaps none, although there are more to come.
    pub keys: Vec<String>,
    /// Where to go on; `None` when these were the last.
    pub next: Option<Cursor>,
}

/// Where values are kept right now: see [`KeyValue::stats`](crate::KeyValue::stats).
///
/// ```
/// use tower_keep::store::ValueStats;
///
/// let nowhere = ValueStats::default();
/// assert!(!nowhere.connected && !nowhere.using_fallback && nowhere.in_memory_keys == 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueStats {
    /// A server answers now. Of a store that has none: never.
    pub connected: bool,
    /// Values are kept in the memory of this process: because there is no server, or while it is away.
    pub using_fallback: bool,
    /// How many are kept there.
    pub in_memory_keys: usize,
}

/// Runs an operation on the values of `store`.
pub(super) fn with_values<'a, S: SessionStore + ?Sized, T>(
    store: &'a S,
    run: impl FnOnce(&'a dyn ValueStore) -> StoreFuture<'a, T>,
) -> StoreFuture<'a, T> {
    match store.values() {
        Some(values) => run(values),
        None => StoreFuture::ready(Err(StoreError::Unsupported(Ability::Values))),
    }
}
