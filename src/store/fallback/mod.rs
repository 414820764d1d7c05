//! What to do when a store is away.
//!
//! ```text
//!        an operation fails, and the store is down
//!   Up ────────────────────────────────────────────▶ Down ──┐ a request sees, now and then, whether it is back
//!    ▲                                                 │ ◀──┘
//!    └──── it is back, and has been told everything ────┘
//! ```
//! * `mode.rs` — what is done, and what that promises;
//! * `start.rs` — whether the main store is there, at the beginning and while nobody asks;
//! * `switch.rs` — which of the two is asked;
//! * `outage.rs` — when the store is away, and what is done meanwhile;
//! * `cache.rs` — the recently seen sessions;
//! * `in_memory.rs` — every operation in an outage;
//! * `local.rs`, `journal.rs`, `line.rs` — the sessions of an outage, and what the main store has to be told of them;
//! * `replay.rs` — telling it;
//! * `values/` — the same for the values beside the sessions.

mod cache;
mod error;
mod in_memory;
mod journal;
mod line;
mod local;
mod mode;
mod outage;
mod replay;
mod start;
mod stats;
mod switch;
mod values;

use std::{
    fmt,
    sync::{Arc, RwLock},
    time::Duration,
};

use self::{
    cache::Cache,
    outage::{Outage, SEEING},
    stats::Counts,
};
pub use self::{
    mode::{FallbackMode, OnRecovery},
    stats::FallbackStats,
};
use super::{
    error::StoreError,
    future::StoreFuture,
    health::Health,
    memory::VALUES_CAPACITY,
    operation::{Kind, Operation},
    session_store::SessionStore,
    wrapper::StoreWrapper,
};
use crate::time::{Clock, SystemClock};

/// A store, and what to do when it is away: see [`FallbackMode`], which says what each mode promises.
///
/// * **Away** is a store that fails an operation and whose [health](SessionStore::health), asked then, is [`Down`](Health::Down), or not known
///   within a tenth of a second. One that refuses writes and serves reads, because it is full or a replica, is not away: its errors are the
///   caller's. Nor is one that has lost a single operation, nor a Redis Cluster of which some nodes are there: it serves the sessions that these have, and
///   the others are an outage until a replica takes over, in any mode. One that lets nobody in (a wrong password) is away like one that is dead; that is
///   logged as an error.
/// * **Once that is known**, no request waits for it, in any mode. Now and then ([`probe_interval`](Self::probe_interval)) one request at a time asks
///   for its health, which costs nothing with a store that knows that it is down, as
///   [`RedisStore`](super::redis::RedisStore) and [`Guard`](super::Guard) do. Wrap any other that has no deadline of its own in a `Guard`.
/// * **It is back** when its health is better than down and it has taken what it has to be told. One request at a time tells it, a bounded number of
///   sessions, and the next ones the rest; until all is told, requests are served as before. So nobody sees half of it. A question for the
///   health of this store does the same as a request: where requests are rare, a readiness probe brings the return about.
/// * **An outage is logged** when it begins, as a warning with its cause, and when it is over, with what came of it. Sessions loaded
///   meanwhile [say so](crate::Session::is_degraded).
///
/// # Memory
/// Mode `Reject` keeps nothing. In the others some [`capacity`](Self::capacity) sessions are remembered as they were last seen, the longest unused
/// forgotten first: about half a kilobyte and its values each. In mode `Memory` an outage has as many sessions again, and room for as many that
/// begin or change, and as many that end; what is merely used takes half of it at most. What exceeds that fails with an outage: 503. Values
/// have [a room of their own](Self::values_capacity).
///
/// It needs a tokio runtime with a timer, and starts no task: see [`start`](Self::start) and [`watch`](Self::watch).
///
/// ```
/// use std::sync::Arc;
/// use tower_keep::{SessionLayer, store::{Fallback, FallbackMode, OnRecovery}};
/// # #[cfg(feature = "redis")] {
/// use tower_keep::store::redis::{RedisConfig, RedisStore};
///
/// let redis = RedisStore::new(RedisConfig::from_url("redis://127.0.0.1:6379")?);
/// let store = Arc::new(Fallback::new(redis, FallbackMode::Memory { on_recovery: OnRecovery::Merge }));
/// let layer = SessionLayer::new(store.clone());
/// assert!(!store.stats().using_fallback);
/// # let _ = layer;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Fallback<S> {
    main: S,
    mode: FallbackMode,
    seen_within: Duration,
    probe_interval: Duration,
    start_attempts: u32,
    capacity: usize,
    values_capacity: usize,
    clock: Arc<dyn Clock>,
    cache: Cache,
    outage: RwLock<Option<Arc<Outage>>>,
    counts: Counts,
}

impl<S: SessionStore> Fallback<S> {
    /// `main`, with a fallback of this mode.
    pub fn new(main: S, mode: FallbackMode) -> Self {
        const CAPACITY: usize = 10_000;
        let seen_within = match mode {
            FallbackMode::ReadStale { max_age } => max_age,
            FallbackMode::Reject | FallbackMode::Memory { .. } => Duration::from_secs(10 * 60),
        };
        Self {
            main,
            mode,
            seen_within,
            probe_interval: Duration::from_millis(100),
            start_attempts: 3,
            capacity: CAPACITY,
            values_capacity: VALUES_CAPACITY,
            clock: Arc::new(SystemClock),
            cache: Cache::new(CAPACITY),
            outage: RwLock::default(),
            counts: Counts::new(),
        }
    }

    /// How lately before an outage a session must have been seen by this process to go on in mode `Memory`. Default: ten minutes.
    ///
    /// The longer, the more users stay logged in; and the longer ago another instance may have ended a session that is
    /// served here once more. For mode `ReadStale` it is the `max_age`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default()).seen_within(Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn seen_within(mut self, max_age: Duration) -> Self {
        self.seen_within = max_age;
        self
    }

    /// How many sessions are remembered, and how many may begin or change, or end, in an outage. Default: 10,000; at least one.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default()).capacity(100_000);
    /// ```
    #[must_use]
    pub fn capacity(mut self, sessions: usize) -> Self {
        self.capacity = sessions.max(1);
        self.cache = Cache::new(self.capacity);
        self
    }

    /// How many bytes the values of a [`KeyValue`](crate::KeyValue) may take in an outage, each with its key and 128 bytes more. Default: 64 MiB.
    /// There is room beside them for as many bytes of keys that were set or deleted. What does not fit fails with an outage.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default()).values_capacity(1024 * 1024);
    /// ```
    #[must_use]
    pub fn values_capacity(mut self, bytes: usize) -> Self {
        self.values_capacity = bytes;
        self
    }

    /// How often, in an outage, a request sees whether the main store is back. Default: every 100 ms.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default()).probe_interval(Duration::from_secs(1));
    /// ```
    #[must_use]
    pub fn probe_interval(mut self, pause: Duration) -> Self {
        self.probe_interval = pause;
        self
    }

    /// The clock that sessions and values of an outage expire by. Default: the system's.
    ///
    /// ```
    /// # use tower_keep::{ManualClock, MemoryStore, store::{Fallback, FallbackMode}};
    /// let clock = ManualClock::new();
    /// let store = Fallback::new(MemoryStore::new().clock(clock.clone()), FallbackMode::default()).clock(clock);
    /// ```
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The main store.
    ///
    /// ```
    /// use tower_keep::store::{Fallback, Health, SessionStore};
    ///
    /// async fn is_redis_healthy(store: &Fallback<impl SessionStore>) -> bool {
    ///     matches!(store.main().health().await, Ok(Health::Up))
    /// }
    /// # let _ = is_redis_healthy(&Fallback::new(tower_keep::MemoryStore::new(), Default::default()));
    /// ```
    pub fn main(&self) -> &S {
        &self.main
    }

    /// Where it stands, and what it has counted.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default());
    /// assert_eq!(store.stats().outages, 0);
    /// ```
    pub fn stats(&self) -> FallbackStats {
        let (outage, counts) = (self.outage(), &self.counts);
        let local = outage.as_ref().and_then(|outage| outage.local());
        let (in_memory, values_in_memory, journalled) = local.map_or((0, 0, 0), |mut local| {
            (local.store().len(), local.values().len(self.clock.now()), local.journalled())
        });
        FallbackStats {
            using_fallback: outage.is_some(),
            cached: self.cache.len(),
            in_memory,
            values_in_memory,
            journalled,
            outages: counts.outages.get(),
            replayed: counts.replayed.get(),
            dropped: counts.dropped.get(),
            refused: counts.refused.get(),
        }
    }

    async fn health_of_both(&self) -> Result<Health, StoreError> {
        let health = match self.present_outage().await {
            Some(outage) => Ok(outage.health()),
            None => self.main.health().await,
        };
        match (self.mode, health) {
            (FallbackMode::Reject, health) => health,
            (_, Ok(Health::Down(cause))) => Ok(Health::Degraded(cause)),
            (_, Err(error)) => Ok(Health::degraded(&error)),
            (_, health) => health,
        }
    }

    /// No session depends on events: they neither begin an outage nor wait for its end.
    async fn run_event<O: Operation>(&self, operation: O) -> Result<O::Reply, StoreError> {
        match (self.outage(), O::skipped()) {
            (Some(_), Some(reply)) => Ok(reply),
            _ => operation.run(&self.main).await,
        }
    }
}

impl<S: SessionStore> StoreWrapper for Fallback<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.main
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            match O::KIND {
                Kind::Event => self.run_event(operation).await,
                _ => self.perform(operation).await,
            }
        })
    }

    /// That of the main store. In an outage: degraded if another mode than `Reject` serves sessions.
    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(self.health_of_both())
    }

    /// That of the main store, or `"memory"` while memory serves all sessions.
    fn wrapper_name(&self) -> &'static str {
        match (self.mode, self.outage()) {
            (FallbackMode::Memory { .. }, Some(_)) => "memory",
            _ => self.main.name(),
        }
    }

    /// Twice that of the main store, because a replay may take as long, and the time to probe it.
    fn wrapper_deadline(&self) -> Option<Duration> {
        self.main.operation_deadline().map(|deadline| deadline.saturating_mul(2).saturating_add(SEEING))
    }

    fn wrapper_is_degraded(&self) -> bool {
        self.outage().is_some() || self.main.is_degraded()
    }
}

impl<S: SessionStore> fmt::Debug for Fallback<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("main", &self.main.name())
            .field("mode", &self.mode)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
