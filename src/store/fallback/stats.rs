//! What a fallback counts.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(super) struct Counts {
    pub(super) outages: Count,
    pub(super) replayed: Count,
    pub(super) dropped: Count,
    pub(super) refused: Count,
}

#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a [`Fallback`](super::Fallback) stands, and what it has counted since it was made.
///
/// ```
/// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode, OnReturn}};
///
/// let stats = Fallback::new(MemoryStore::new(), FallbackMode::Memory { on_return: OnReturn::Merge }).stats();
/// assert!(!stats.using_fallback);
/// assert_eq!((stats.in_memory, stats.journalled, stats.dropped), (0, 0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FallbackStats {
    /// The main store is away, or has not been told everything yet.
    pub using_fallback: bool,
    /// Sessions that are remembered as they were last seen.
    pub seen: usize,
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
