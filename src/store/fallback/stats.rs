//! What a fallback counts.

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

/// Where a [`Fallback`](super::Fallback) stands, and what it has counted since it was made.
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
    /// The main store is away, or has not been told everything yet.
    pub using_fallback: bool,
    /// Sessions that are remembered as they were last seen.
    pub cached: usize,
    /// Sessions that go on in memory.
    pub in_memory: usize,
    /// Values that are kept in memory.
    pub values_in_memory: usize,
    /// What the main store has to be told still, of sessions and of values.
    pub journalled: usize,
    /// How often the main store went away.
    pub outages: u64,
    /// What it was told on its returns.
    pub replayed: u64,
    /// Sessions that began or were changed in an outage, of which that was lost: forgotten, or the main store had
    /// something newer; and values that were written in one: forgotten, or the main store did not take them.
    pub dropped: u64,
    /// What had no room in an outage, and failed.
    pub refused: u64,
}
