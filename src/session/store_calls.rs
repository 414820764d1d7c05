//! Calls of the store within the time budget of the request.

use std::{future::Future, sync::Arc};

use tokio::time::timeout;

use super::Inner;
use crate::{
    error_chain::ErrorChain,
    event::{Event, EventKind},
    store::StoreError,
    token::SessionId,
};

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
        let events = self.context.record_events(events, self.ip());
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
