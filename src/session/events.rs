//! The events of a request.

use std::sync::Arc;

use super::Inner;
use crate::{
    error_chain::ErrorChain,
    event::{Event, EventKind},
    token::SessionId,
};

impl Inner {
    /// Counts and publishes events: see [`LayerContext::announce`](crate::context::LayerContext::announce).
    pub(super) async fn announce(&self, events: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>) {
        let events = self.context.record_events(events, self.ip());
        self.publish(&events).await;
    }

    /// Publishes events to other processes, within the time budget.
    pub(super) async fn publish(&self, events: &[Event]) {
        let published = async {
            self.context.publish(events).await;
            Ok(())
        };
        if !events.is_empty()
            && let Err(error) = self.time_budget.spend(published).await
        {
            tracing::warn!(error = %ErrorChain(&error), "session events not published");
        }
    }
}
