//! Sessions in this process.

mod shard;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use self::shard::Shard;
use super::{Health, Loaded, Outcome, Record, SessionStore, StoreError, StoreFuture, Version};
use crate::{
    time::{Clock, SystemClock, Timestamp},
    token::SessionId,
};

const SHARDS: usize = 64;

/// Keeps sessions in the memory of this process: for development, tests, and services of one instance.
///
/// Sessions end with the process. Clones share the sessions.
///
/// It is bounded: when [`capacity`](Self::capacity) is reached, a new session takes the place of the one that has been idle
/// longest. Expired sessions are freed as others are used; there is no background task. Each of its 64 shards has a lock
/// of its own, held for the time of a map look-up.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// let store = MemoryStore::new().capacity(10_000);
/// let layer = SessionLayer::new(store.clone());
/// assert!(store.is_empty());
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    capacity: usize,
}

struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    len: AtomicUsize,
}

impl MemoryStore {
    /// An empty store of 100,000 sessions at most.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared { shards: std::array::from_fn(|_| Mutex::default()), len: AtomicUsize::new(0) }),
            clock: Arc::new(SystemClock),
            capacity: 100_000,
        }
    }

    /// How many sessions it holds at most. Default: 100,000, some 50 MB of small sessions. At least one.
    ///
    /// A clone made before keeps the capacity it had.
    #[must_use]
    pub fn capacity(mut self, sessions: usize) -> Self {
        self.capacity = sessions.max(1);
        self
    }

    /// The clock that sessions expire by. Default: the system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How many sessions it holds, those included that have expired and were not freed yet.
    pub fn len(&self) -> usize {
        self.shared.len.load(Ordering::Relaxed)
    }

    /// Whether it holds no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shard of `id`, with some of what has expired in it freed.
    fn shard(&self, index: usize, now: Timestamp) -> MutexGuard<'_, Shard> {
        let mut shard = self.shared.shards[index].lock().unwrap_or_else(PoisonError::into_inner);
        let freed = shard.free_expired(now);
        if freed > 0 {
            self.shared.len.fetch_sub(freed, Ordering::Relaxed);
        }
        shard
    }

    /// Counts one more session in, after making room for it.
    fn take_place(&self, now: Timestamp) {
        let take = || {
            let more = |len| (len < self.capacity).then_some(len + 1);
            self.shared.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        };
        while !take() {
            let oldest = (0..SHARDS).filter_map(|index| Some((self.shard(index, now).oldest()?, index))).min();
            // Looking through the shards has freed what has expired: that may be room enough.
            if take() {
                return;
            }
            if let Some((_, index)) = oldest
                && self.shard(index, now).evict_oldest()
            {
                self.give_place_back();
            }
        }
    }

    fn give_place_back(&self) {
        self.shared.len.fetch_sub(1, Ordering::Relaxed);
    }

    fn load_now(&self, id: &SessionId) -> Option<Loaded> {
        let now = self.clock.now();
        let mut shard = self.shard(index(id), now);
        let entry = shard.live(id, now)?;
        entry.used_at.actual = now;
        Some(entry.loaded(now))
    }

    fn create_now(&self, id: &SessionId, record: Arc<Record>, ttl: Duration) -> Outcome {
        let now = self.clock.now();
        if let Some(entry) = self.shard(index(id), now).live(id, now) {
            return entry.unless_written(record.version(), now);
        }
        self.take_place(now);
        let mut shard = self.shard(index(id), now);
        if let Some(entry) = shard.live(id, now) {
            self.give_place_back(); // somebody else created it meanwhile
            return entry.unless_written(record.version(), now);
        }
        self.insert(&mut shard, *id, record, now, ttl);
        Outcome::Done
    }

    /// Inserts a session that has a place already.
    fn insert(&self, shard: &mut Shard, id: SessionId, record: Arc<Record>, now: Timestamp, ttl: Duration) {
        // An expired session of the same id may linger: it gives its place back.
        if shard.insert(id, record, now, ttl).is_some() {
            self.give_place_back();
        }
    }

    fn update_now(&self, id: &SessionId, expected: Version, record: Arc<Record>, ttl: Duration) -> Outcome {
        let now = self.clock.now();
        let mut shard = self.shard(index(id), now);
        match shard.live(id, now) {
            None => Outcome::Gone,
            Some(entry) if entry.record.version() == expected => {
                entry.record = record;
                shard.extend(id, now, ttl);
                Outcome::Done
            }
            Some(entry) => entry.unless_written(record.version(), now),
        }
    }

    fn touch_now(&self, id: &SessionId, expected: Version, ttl: Duration) {
        let now = self.clock.now();
        let mut shard = self.shard(index(id), now);
        if shard.live(id, now).is_some_and(|entry| entry.record.version() == expected) {
            shard.extend(id, now, ttl);
        }
    }

    fn rotate_now(
        &self,
        old: &SessionId,
        expected: Version,
        new: &SessionId,
        record: Arc<Record>,
        ttl: Duration,
    ) -> Outcome {
        let now = self.clock.now();
        let (old_index, new_index) = (index(old), index(new));
        // Both shards at once, always in the order of their numbers.
        let mut first = self.shard(old_index.min(new_index), now);
        let mut second = (old_index != new_index).then(|| self.shard(old_index.max(new_index), now));
        let (old_shard, new_shard) = match &mut second {
            None => (&mut first, None),
            Some(second) if old_index < new_index => (&mut first, Some(second)),
            Some(second) => (second, Some(&mut first)),
        };
        match old_shard.live(old, now) {
            Some(entry) if entry.record.version() == expected => {
                old_shard.entries.remove(old);
                // One out, one in: its place is the new one's.
                self.insert(new_shard.unwrap_or(old_shard), *new, record, now, ttl);
                Outcome::Done
            }
            Some(entry) => Outcome::Conflict(entry.loaded(now)),
            None => match new_shard.unwrap_or(old_shard).live(new, now) {
                Some(entry) if entry.record.version() == record.version() => Outcome::Done,
                _ => Outcome::Gone,
            },
        }
    }

    fn destroy_now(&self, id: &SessionId) {
        let now = self.clock.now();
        if self.shard(index(id), now).entries.remove(id).is_some() {
            self.give_place_back();
        }
    }
}

impl SessionStore for MemoryStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Option<Loaded>> {
        ready(self.load_now(id))
    }

    fn create<'a>(&'a self, id: &'a SessionId, record: Arc<Record>, ttl: Duration) -> StoreFuture<'a, Outcome> {
        ready(self.create_now(id, record, ttl))
    }

    fn update<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Version,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        ready(self.update_now(id, expected, record, ttl))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, expected: Version, ttl: Duration) -> StoreFuture<'a, ()> {
        self.touch_now(id, expected, ttl);
        ready(())
    }

    fn rotate<'a>(
        &'a self,
        old: &'a SessionId,
        expected: Version,
        new: &'a SessionId,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        ready(self.rotate_now(old, expected, new, record, ttl))
    }

    fn destroy<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, ()> {
        self.destroy_now(id);
        ready(())
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        ready(Health::Up)
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

fn ready<'a, T>(answer: T) -> StoreFuture<'a, T> {
    StoreFuture::ready(Ok::<T, StoreError>(answer))
}

fn index(id: &SessionId) -> usize {
    (id.spread() % SHARDS as u64) as usize
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("len", &self.len()).field("capacity", &self.capacity).finish()
    }
}
