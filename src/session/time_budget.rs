//! The time budget of a request for all its store operations together.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::store::StoreError;

/// The time that a request may wait for the store.
pub(super) struct TimeBudget {
    limit: Option<Duration>,
    /// In nanoseconds.
    waited: AtomicU64,
}

impl TimeBudget {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, waited: AtomicU64::new(0) }
    }

    /// The reply of the store to an operation, or an outage if all operations together take longer than the limit.
    pub(super) async fn spend<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(limit) = self.limit else { return operation.await };
        let left = limit.saturating_sub(Duration::from_nanos(self.waited.load(Ordering::Relaxed)));
        if left.is_zero() {
            return Err(exceeded(limit));
        }
        let began = Instant::now();
        let reply = timeout(left, operation).await;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(took, Ordering::Relaxed);
        reply.unwrap_or_else(|_| Err(exceeded(limit)))
    }

    /// Waits for other requests, at most as long as the whole limit. This time does not count as waiting for the store.
    pub(super) async fn wait_for<T>(&self, turn: impl Future<Output = T>) -> Option<T> {
        match self.limit {
            Some(limit) => timeout(limit, turn).await.ok(),
            None => Some(turn.await),
        }
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
