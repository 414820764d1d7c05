//! The statistics of a fallback.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{
    self, FALLBACK_ACTIVE, FALLBACK_DROPPED, FALLBACK_IN_MEMORY, FALLBACK_OUTAGES, FALLBACK_REFUSED, FALLBACK_REPLAYED,
    Metric,
};

pub(super) struct Counts {
    pub(super) outages: Count,
    pub(super) replayed: Count,
    pub(super) dropped: Count,
    pub(super) refused: Count,
}

impl Counts {
    pub(super) fn new() -> Self {
        metrics::set(&FALLBACK_ACTIVE, [], 0.0);
        metrics::set(&FALLBACK_IN_MEMORY, [], 0.0);
        Self {
            outages: Count::of(FALLBACK_OUTAGES),
            replayed: Count::of(FALLBACK_REPLAYED),
            dropped: Count::of(FALLBACK_DROPPED),
            refused: Count::of(FALLBACK_REFUSED),
        }
    }
}

pub(super) struct Count {
    number: AtomicU64,
    metric: Metric,
}

impl Count {
    fn of(metric: Metric) -> Self {
        metrics::add(&metric, 0);
        Self { number: AtomicU64::new(0), metric }
    }

    pub(super) fn add(&self, number: u64) {
        self.number.fetch_add(number, Ordering::Relaxed);
        metrics::add(&self.metric, number);
    }

    pub(super) fn get(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }
}

/// The state of a [`Fallback`](super::Fallback), and its counters since it was created.
///
/// ```
/// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode, OnRecovery}};
///
/// let stats = Fallback::new(MemoryStore::new(), FallbackMode::Memory { on_recovery: OnRecovery::Merge }).stats();
/// assert!(!stats.using_fallback);
/// assert_eq!((stats.in_memory, stats.journalled, stats.dropped), (0, 0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FallbackStats {
    /// The main store is unavailable, or not everything is replayed yet.
    pub using_fallback: bool,
    /// The number of sessions in the cache.
    pub cached: usize,
    /// The number of sessions in memory during an outage.
    pub in_memory: usize,
    /// The number of values in memory during an outage.
    pub values_in_memory: usize,
    /// The number of changes waiting to be replayed.
    pub journalled: usize,
    /// The number of outages.
    pub outages: u64,
    /// The number of changes that were replayed.
    pub replayed: u64,
    /// The number of sessions and values whose changes from an outage were lost: the mode drops them, the main store had a newer version,
    /// or it refused a value.
    pub dropped: u64,
    /// The number of operations that failed because the memory for changes was full.
    pub refused: u64,
}
