//! The time budget of a request for all its store operations together.

use std::{
    error::Error,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::Inner;
use crate::{
    error_chain::ErrorChain,
    event::{Event, EventKind},
    store::StoreError,
    token::SessionId,
};

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

impl Inner {
    /// The reply of the store to an operation, within the time budget.
    pub(super) async fn ask<T>(&self, operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.time_budget.spend(self.context.deadline, operation).await?
    }

    /// Waits for other requests, at most as long as the full time budget. This time does not count as waiting for the store.
    pub(super) async fn wait_for<T>(&self, turn: impl Future<Output = T>) -> Option<T> {
        match self.context.deadline {
            Some(limit) => timeout(limit, turn).await.ok(),
            None => Some(turn.await),
        }
    }

    /// Counts and publishes events: see [`LayerContext::announce`](crate::context::LayerContext::announce).
    pub(super) async fn announce(&self, events: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>) {
        let events = self.context.tell(events, self.ip());
        self.publish(&events).await;
    }

    /// Publishes events to other processes, within the time budget.
    pub(super) async fn publish(&self, events: &[Event]) {
        if !events.is_empty()
            && let Err(error) = self.time_budget.spend(self.context.deadline, self.context.publish(events)).await
        {
            tracing::warn!(error = %ErrorChain(&error), "session events not published");
        }
    }
}

fn exceeded(limit: Duration) -> StoreError {
    StoreError::Outage(Box::new(Exceeded(limit)))
}

#[derive(Debug)]
struct Exceeded(Duration);

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request has waited {:?} for the store", self.0)
    }
}

impl Error for Exceeded {}
