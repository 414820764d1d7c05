//! Sessions in the memory of the process.

mod shard;
mod value_store;
pub(super) mod values;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use self::{
    shard::{Room, Shard},
    values::Values,
};
use super::{
    MIN_TOMBSTONE_TTL, Version,
    future::StoreFuture,
    health::Health,
    session_store::{ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page},
    values::ValueStore,
};
use crate::{
    ended::{EndReason, Ended},
    limits::Limits,
    time::{Clock, SystemClock, Timestamp},
    token::{SessionId, Tag},
};

const SHARDS: usize = 64;

/// The default limit for values, in bytes.
pub(super) const VALUES_CAPACITY: usize = 64 * 1024 * 1024;

/// The minimum number of tombstones of a shard.
const REMEMBERED: usize = 64;

/// Keeps sessions in the memory of the process: for development, tests, and services with one instance.
///
/// The sessions are lost when the process ends. Clones share them.
///
/// The store is bounded: at the [`capacity`](Self::capacity), the session that was idle for the longest time is evicted, or the new
/// one [is refused](Self::reject_when_full). Expired sessions are freed by later operations; there is no background task. Each of
/// 64 shards has its own lock, which is held for a map lookup. All sessions of a user are in one shard.
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
    rejects: bool,
    values_capacity: usize,
    remember_ended: Duration,
}

struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    len: AtomicUsize,
    values: Mutex<Values>,
}

impl MemoryStore {
    /// An empty store for at most 100,000 sessions.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                shards: std::array::from_fn(|_| Mutex::default()),
                len: AtomicUsize::new(0),
                values: Mutex::default(),
            }),
            clock: Arc::new(SystemClock),
            capacity: 100_000,
            rejects: false,
            values_capacity: VALUES_CAPACITY,
            remember_ended: Duration::from_secs(60 * 60),
        }
    }

    /// The maximum number of sessions. Default: 100,000, about 50 MB of small sessions. At least 1.
    ///
    /// Existing clones keep their capacity.
    #[must_use]
    pub fn capacity(mut self, sessions: usize) -> Self {
        self.capacity = sessions.max(1);
        self
    }

    /// Refuse new sessions at the capacity: [`SessionError::Full`](crate::SessionError::Full), 429. Default: the session that was
    /// idle for the longest time is evicted.
    ///
    /// ```
    /// # use tower_keep::MemoryStore;
    /// let store = MemoryStore::new().capacity(1_000).reject_when_full();
    /// ```
    #[must_use]
    pub fn reject_when_full(mut self) -> Self {
        self.rejects = true;
        self
    }

    /// How long tombstones are kept. Default: 1 hour. At least 1 minute. The number of tombstones is limited to about the capacity;
    /// those of the last minute are always kept.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::MemoryStore;
    /// let store = MemoryStore::new().remember_ended(Duration::from_secs(24 * 3600));
    /// ```
    #[must_use]
    pub fn remember_ended(mut self, time: Duration) -> Self {
        self.remember_ended = time.max(MIN_TOMBSTONE_TTL);
        self
    }

    /// The maximum number of bytes for [values](crate::KeyValue): each value, its key, and 128 bytes. Default: 64 MiB. A value that
    /// does not fit fails with [`StoreError::Outage`](super::StoreError::Outage). Values are never evicted.
    ///
    /// ```
    /// # use tower_keep::MemoryStore;
    /// let store = MemoryStore::new().values_capacity(1024 * 1024);
    /// ```
    #[must_use]
    pub fn values_capacity(mut self, bytes: usize) -> Self {
        self.values_capacity = bytes;
        self
    }

    /// The clock for expiry. Default: the system clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The number of sessions, including expired ones that are not freed yet.
    pub fn len(&self) -> usize {
        self.shared.len.load(Ordering::Relaxed)
    }

    /// Whether the store has no sessions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks a shard, and frees some expired sessions.
    fn shard(&self, index: usize, now: Timestamp) -> MutexGuard<'_, Shard> {
        let mut shard = self.shared.shards[index].lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = self.capacity.div_ceil(SHARDS).max(REMEMBERED);
        self.release(shard.free_expired(now, self.remember_ended, remembered));
        shard
    }

    fn shard_of(&self, id: &SessionId, now: Timestamp) -> MutexGuard<'_, Shard> {
        self.shard(index(id.tag()), now)
    }

    /// Reserves a place for a session, and evicts another one if necessary. Returns `false` if there is none.
    fn reserve(&self, now: Timestamp) -> bool {
        let take = || {
            let more = |len| (len < self.capacity).then_some(len + 1);
            self.shared.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        };
        while !take() {
            let oldest = (0..SHARDS)
                .filter_map(|index| {
                    let mut shard = self.shard(index, now);
                    self.release(shard.free_all_expired(now));
                    Some((shard.oldest()?, index))
                })
                .min();
            // Visiting the shards has freed expired sessions, which may be enough.
            if take() {
                return true;
            }
            if self.rejects {
                return false;
            }
            if let Some((_, index)) = oldest {
                let evicted = self.shard(index, now).evict_oldest(now);
                self.release(evicted.into());
            }
        }
        true
    }

    fn release(&self, places: usize) {
        if places > 0 {
            self.shared.len.fetch_sub(places, Ordering::Relaxed);
        }
    }

    pub(super) fn load_now(&self, id: &SessionId) -> Found {
        let now = self.clock.now();
        let mut shard = self.shard_of(id, now);
        match shard.live(id, now) {
            Some(kept) => {
                kept.used_at.actual = now;
                Found::Live(kept.loaded(now))
            }
            None => shard.ending(id).map_or(Found::Unknown, Found::Ended),
        }
    }

    pub(super) fn create_now(&self, id: &SessionId, new: Entry, limits: Limits) -> Created {
        let now = self.clock.now();
        {
            let mut shard = self.shard_of(id, now);
            if let Some(known) = shard.known(id, &new, now) {
                return known;
            }
            // If a session of the same user is evicted, no other place is needed.
            match shard.make_room(id.tag(), &new.record, limits, now) {
                Room::Full => return Created::Full,
                Room::Made(evicted) if !evicted.is_empty() => {
                    self.release(evicted.len() - 1);
                    shard.insert(*id, new, now);
                    return Created::Done { evicted };
                }
                Room::Made(_) => {}
            }
        }
        if !self.reserve(now) {
            return Created::Full;
        }
        let mut shard = self.shard_of(id, now);
        // Another request may have created it, or other sessions of the user.
        if let Some(known) = shard.known(id, &new, now) {
            self.release(1);
            return known;
        }
        match shard.make_room(id.tag(), &new.record, limits, now) {
            Room::Full => {
                self.release(1);
                Created::Full
            }
            Room::Made(evicted) => {
                self.release(evicted.len());
                shard.insert(*id, new, now);
                Created::Done { evicted }
            }
        }
    }

    pub(super) fn update_now(&self, id: &SessionId, expected: Version, new: Entry) -> Outcome {
        let now = self.clock.now();
        let mut shard = self.shard_of(id, now);
        match shard.live(id, now) {
            None => Outcome::Gone,
            Some(kept) if kept.record.version() == expected => {
                kept.record = new.record;
                shard.extend(id, now, new.ttl);
                Outcome::Done
            }
            Some(kept) if kept.record.version() == new.record.version() => Outcome::Done,
            Some(kept) => Outcome::Conflict(kept.loaded(now)),
        }
    }

    pub(super) fn touch_now(&self, id: &SessionId, entry: &Entry) {
        let now = self.clock.now();
        let mut shard = self.shard_of(id, now);
        if shard.live(id, now).is_some_and(|kept| kept.record.version() == entry.record.version()) {
            shard.extend(id, now, entry.ttl);
        }
    }

    pub(super) fn end_now(&self, id: &SessionId, end: &End, now: Timestamp) -> EndOutcome {
        let mut shard = self.shard_of(id, now);
        if let End::Used { claim } = end {
            return self.claim(&mut shard, id, *claim, now);
        }
        let tombstone = end.tombstone(now);
        if tombstone.successor.is_some()
            && shard.ended(id).is_some_and(|before| before.successor == tombstone.successor)
        {
            return EndOutcome::Done; // by an earlier identical call, whose reply was lost
        }
        let alive = match (end.expected(), shard.live(id, now)) {
            (Some(expected), Some(kept)) if kept.record.version() != expected => {
                return EndOutcome::Conflict(kept.loaded(now));
            }
            (Some(_), None) => return EndOutcome::Gone,
            (_, kept) => kept.is_some(),
        };
        self.release(shard.end(id, tombstone, None, now).into());
        if alive { EndOutcome::Done } else { EndOutcome::Gone }
    }

    /// Ends a session with this tombstone, whatever its version.
    pub(super) fn bury_now(&self, id: &SessionId, tombstone: Ended) {
        let now = tombstone.at;
        let freed = self.shard_of(id, now).end(id, tombstone, None, now);
        self.release(freed.into());
    }

    fn claim(&self, shard: &mut Shard, id: &SessionId, claim: Version, now: Timestamp) -> EndOutcome {
        match shard.live(id, now).map(|kept| kept.loaded(now)) {
            Some(loaded) => {
                let claimed = Some((claim, loaded.clone()));
                self.release(shard.end(id, Ended::new(EndReason::Used, now), claimed, now).into());
                EndOutcome::Claimed(loaded)
            }
            None => shard.claimed(id, claim).map_or(EndOutcome::Gone, EndOutcome::Claimed),
        }
    }

    pub(super) fn list_now(&self, user: &str) -> Vec<(SessionId, Loaded)> {
        let now = self.clock.now();
        let tag = Tag::of_user(user);
        self.shard(index(tag), now).of_user(tag, user, now)
    }

    pub(super) fn end_user_now(&self, user: &str, except: Option<&SessionId>, reason: EndReason) -> Vec<SessionId> {
        let now = self.clock.now();
        let tag = Tag::of_user(user);
        let mut shard = self.shard(index(tag), now);
        let mut ids: Vec<_> = shard.of_user(tag, user, now).into_iter().map(|(id, _)| id).collect();
        ids.retain(|id| Some(id) != except);
        for id in &ids {
            self.release(shard.end(id, Ended::new(reason, now), None, now).into());
        }
        ids
    }

    /// A page has whole shards, with about `count` sessions together.
    pub(super) fn scan_now(&self, from: &Cursor, count: usize) -> Page {
        let now = self.clock.now();
        let first = from.as_str().parse().unwrap_or(0);
        let mut sessions = Vec::new();
        for index in first..SHARDS {
            if sessions.len() >= count.max(1) {
                return Page { sessions, next: Some(index.to_string().into()) };
            }
            sessions.extend(self.shard(index, now).all(now));
        }
        Page { sessions, next: None }
    }

    pub(super) fn count_now(&self) -> u64 {
        let now = self.clock.now();
        (0..SHARDS).map(|index| self.shard(index, now).all(now).count() as u64).sum()
    }
}

impl SessionStore for MemoryStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        ready(self.load_now(id))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        ready(self.create_now(id, new, limits))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        ready(self.update_now(id, expected, new))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.touch_now(id, &entry);
        ready(())
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        ready(self.end_now(id, &end, self.clock.now()))
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        ready(Health::Up)
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn users(&self) -> Option<&dyn UserStore> {
        Some(self)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        Some(self)
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        Some(self)
    }
}

impl UserStore for MemoryStore {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        ready(self.list_now(user))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        ready(self.end_user_now(user, except, reason))
    }
}

impl ScanStore for MemoryStore {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        ready(self.scan_now(from, count))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        ready(self.count_now())
    }
}

fn ready<'a, T>(answer: T) -> StoreFuture<'a, T> {
    StoreFuture::ready(Ok(answer))
}

fn index(tag: Tag) -> usize {
    (tag.shard_hash() % SHARDS as u64) as usize
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
