//! The time budget of a request for all its store operations together.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::store::StoreError;

/// The time that a request has waited for the store.
#[derive(Default)]
pub(super) struct TimeBudget {
    /// In nanoseconds.
    waited: AtomicU64,
}

impl TimeBudget {
    /// The output of `operation`, or an outage if all operations together take longer than `limit`.
    pub(super) async fn spend<T>(
        &self,
        limit: Option<Duration>,
        operation: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let Some(limit) = limit else { return Ok(operation.await) };
        let left = limit.saturating_sub(Duration::from_nanos(self.waited.load(Ordering::Relaxed)));
        if left.is_zero() {
            return Err(exceeded(limit));
        }
        let began = Instant::now();
        let output = timeout(left, operation).await;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(took, Ordering::Relaxed);
        output.map_err(|_| exceeded(limit))
    }

    /// Starts again with the full budget.
    pub(super) fn reset(&self) {
        self.waited.store(0, Ordering::Relaxed);
    }
}

fn exceeded(limit: Duration) -> StoreError {
    StoreError::Outage(Box::new(Exceeded(limit)))
}

#[derive(Debug, thiserror::Error)]
#[error("the request has waited {0:?} for the store")]
struct Exceeded(Duration);
