//! How long a request waits for the store, all its operations together.

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
    event::{Event, EventKind},
    observe::ErrorChain,
    store::StoreError,
    token::SessionId,
};

/// What is left of the time that a request may wait.
#[derive(Default)]
pub(super) struct Patience {
    /// In nanoseconds.
    waited: AtomicU64,
}

impl Patience {
    /// What `asking` the store comes to, unless that takes longer than there is time. `limit` is for all that is asked.
    pub(super) async fn ask<T>(
        &self,
        limit: Option<Duration>,
        asking: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let Some(limit) = limit else { return Ok(asking.await) };
        let left = limit.saturating_sub(Duration::from_nanos(self.waited.load(Ordering::Relaxed)));
        if left.is_zero() {
            return Err(lost(limit));
        }
        let began = Instant::now();
        let answer = timeout(left, asking).await;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(took, Ordering::Relaxed);
        answer.map_err(|_| lost(limit))
    }

    /// All the time there is, once more.
    pub(super) fn renew(&self) {
        self.waited.store(0, Ordering::Relaxed);
    }
}

impl Inner {
    /// What the store says to an operation, if the request may wait so long.
    pub(super) async fn ask<T>(&self, operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.patience.ask(self.context.deadline, operation).await?
    }

    /// What others leave of the way, if they leave it in the time of a request. Their time is not the store's.
    pub(super) async fn wait_for<T>(&self, turn: impl Future<Output = T>) -> Option<T> {
        match self.context.deadline {
            Some(limit) => timeout(limit, turn).await.ok(),
            None => Some(turn.await),
        }
    }

    /// Counts and tells what happened: see [`LayerContext::announce`](crate::context::LayerContext::announce).
    pub(super) async fn announce(&self, happened: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>) {
        let events = self.context.tell(happened, self.ip());
        self.publish(&events).await;
    }

    /// Tells the others, as far as there is time.
    pub(super) async fn publish(&self, events: &[Event]) {
        if !events.is_empty()
            && let Err(error) = self.patience.ask(self.context.deadline, self.context.publish(events)).await
        {
            tracing::warn!(error = %ErrorChain(&error), "session events not published");
        }
    }
}

fn lost(limit: Duration) -> StoreError {
    StoreError::Outage(Box::new(Lost(limit)))
}

/// The request has waited for so long.
#[derive(Debug)]
struct Lost(Duration);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request has waited for it for {:?}", self.0)
    }
}

impl Error for Lost {}
