//! What to do while a store is unavailable.
//!
//! ```text
//!        an operation fails, and the store is down
//!   up ────────────────────────────────────────────▶ down ──┐ a request probes the store now and then
//!    ▲                                                 │ ◀──┘
//!    └──── the store has recovered, and everything is replayed
//! ```
//! * `mode.rs`: the modes and their guarantees
//! * `startup.rs`: probes at startup and by a background task
//! * `switch.rs`: chooses between the main store and the fallback
//! * `outage.rs`: how an outage begins, and what serves operations
//! * `cache.rs`: the recently used sessions
//! * `in_memory.rs`: every operation during an outage
//! * `local.rs`, `journal.rs`: the sessions of an outage, and the changes to replay
//! * `replay.rs`: the replay
//! * `values/`: the same for values

mod cache;
mod error;
mod in_memory;
mod journal;
mod local;
mod mode;
mod ordered_map;
mod outage;
mod replay;
mod startup;
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
    outage::{Outage, PROBE_BUDGET},
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

/// A store with a fallback for outages. [`FallbackMode`] says what each mode does and guarantees.
///
/// * **An outage begins** when an operation fails and the [health](SessionStore::health) of the store is then [`Down`](Health::Down), or unknown
///   after 100 ms. A store that only refuses writes is not down, and a single lost reply is not an outage. A Redis Cluster is down if all of
///   its nodes are.
/// * **During an outage**, requests do not wait for the main store. Every [`probe_interval`](Self::probe_interval), one request probes its
///   health. [`RedisStore`](super::redis::RedisStore) and [`Guard`](super::Guard) reply to a probe immediately when they are down; wrap any other
///   store without a deadline in a `Guard`.
/// * **The outage ends** when the store is no longer down and everything is replayed. One request at a time replays a bounded number of
///   changes; the others are still served by the fallback. A health check replays too.
/// * **Logs**: a warning with the cause when an outage begins, and a summary when it ends. Sessions that are loaded during an outage are
///   [degraded](crate::Session::is_degraded).
///
/// # Memory
/// Mode `Reject` keeps nothing. The other modes cache the last [`capacity`](Self::capacity) sessions: about half a kilobyte each, and the
/// values. In mode `Memory`, an outage can have as many new or changed sessions, and as many ends; more fail with 503. Values have
/// [their own limit](Self::values_capacity).
///
/// It needs a tokio runtime with a timer. It starts no task: see [`start`](Self::start) and [`watch`](Self::watch).
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
pub struct Fallback {
    main: Arc<dyn SessionStore>,
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

impl Fallback {
    /// Creates a fallback for the store `main`.
    pub fn new(main: impl SessionStore + 'static, mode: FallbackMode) -> Self {
        const CAPACITY: usize = 10_000;
        let seen_within = match mode {
            FallbackMode::ReadStale { max_age } => max_age,
            FallbackMode::Reject | FallbackMode::Memory { .. } => Duration::from_secs(10 * 60),
        };
        Self {
            main: Arc::new(main),
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

    /// How recently this process must have used a session to serve it in mode `Memory`. Default: 10 minutes.
    ///
    /// With a longer time, more users stay logged in, and a session that another process ended may be served for longer. In mode `ReadStale`,
    /// this is the `max_age`.
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

    /// The number of cached sessions, and of sessions that can be created or changed, and that can end, during an outage. Default: 10,000. At
    /// least 1.
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

    /// The number of bytes of [values](crate::KeyValue) during an outage: each value, its key, and 128 bytes. Default: 64 MiB. The keys to replay
    /// can use as many bytes again. An operation that exceeds the limit fails with an outage.
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

    /// The interval at which requests probe the main store during an outage. Default: 100 ms.
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

    /// The clock for the expiry of sessions and values during an outage. Default: the system clock.
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
    /// async fn is_redis_healthy(store: &Fallback) -> bool {
    ///     matches!(store.main().health().await, Ok(Health::Up))
    /// }
    /// # let _ = is_redis_healthy(&Fallback::new(tower_keep::MemoryStore::new(), Default::default()));
    /// ```
    pub fn main(&self) -> &dyn SessionStore {
        &*self.main
    }

    /// The current state, and counters.
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
        let health = match self.current_outage().await {
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

    /// Events do not begin an outage, because no session depends on them.
    async fn run_event<O: Operation>(&self, operation: O) -> Result<O::Reply, StoreError> {
        match (self.outage(), O::skipped()) {
            (Some(_), Some(reply)) => Ok(reply),
            _ => operation.run(&*self.main).await,
        }
    }
}

impl StoreWrapper for Fallback {
    type Inner = dyn SessionStore;

    fn inner(&self) -> &Self::Inner {
        &*self.main
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            match O::KIND {
                Kind::Event => self.run_event(operation).await,
                _ => self.perform(operation).await,
            }
        })
    }

    /// The health of the main store. During an outage: degraded, or down in mode `Reject`.
    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(self.health_of_both())
    }

    /// The name of the main store, or `"memory"` while memory serves.
    fn wrapper_name(&self) -> &'static str {
        match (self.mode, self.outage()) {
            (FallbackMode::Memory { .. }, Some(_)) => "memory",
            _ => self.main.name(),
        }
    }

    /// Twice the deadline of the main store, because a replay takes as long, and the time for a probe.
    fn wrapper_deadline(&self) -> Option<Duration> {
        self.main.operation_deadline().map(|deadline| deadline.saturating_mul(2).saturating_add(PROBE_BUDGET))
    }

    fn wrapper_is_degraded(&self) -> bool {
        self.outage().is_some() || self.main.is_degraded()
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("main", &self.main.name())
            .field("mode", &self.mode)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
