//! Subscriptions to the events of all processes.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, timeout_at},
};

use crate::{
    error_chain::ErrorChain,
    event::Event,
    store::{Cursor, SessionStore, StoreError, StoreExt},
};

/// The interval between reads of the events of other processes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The number of events that wait for a slow subscriber before it misses some.
pub(crate) const CAPACITY: usize = 1024;

/// A subscription: see [`Sessions::events`](crate::Sessions::events).
pub struct Events {
    here: Receiver<Event>,
    store: Arc<dyn SessionStore>,
    origin: u64,
    place: Cursor,
    /// Events of other processes that are not delivered yet.
    elsewhere: VecDeque<Event>,
    poll_at: Instant,
}

impl Events {
    pub(crate) async fn subscribe(
        here: Receiver<Event>,
        store: Arc<dyn SessionStore>,
        origin: u64,
    ) -> Result<Self, StoreError> {
        let place = store.events(None).await?.next;
        Ok(Self { here, store, origin, place, elsewhere: VecDeque::new(), poll_at: Instant::now() + POLL_INTERVAL })
    }

    /// Waits for the next event. It can be cancelled without losing one.
    ///
    /// During an outage, the events of this process arrive, and those of other processes later.
    ///
    /// # Errors
    /// [`Missed`] if more than a thousand events of this process were waiting. The subscription continues after them.
    pub async fn next(&mut self) -> Result<Event, Missed> {
        loop {
            if let Some(event) = self.elsewhere.pop_front() {
                return Ok(event);
            }
            match timeout_at(self.poll_at, self.here.recv()).await {
                Ok(Ok(event)) => return Ok(event),
                Ok(Err(RecvError::Lagged(events))) => return Err(Missed(events)),
                // The last session layer is dropped: only other processes have events.
                Ok(Err(RecvError::Closed)) => tokio::time::sleep_until(self.poll_at).await,
                Err(_) => {}
            }
            self.poll().await;
        }
    }

    async fn poll(&mut self) {
        match self.store.events(Some(&self.place)).await {
            Ok(published) => {
                self.place = published.next;
                self.elsewhere.extend(published.events.into_iter().filter(|event| event.origin != self.origin));
            }
            Err(error) => tracing::debug!(error = %ErrorChain(&error), "events of other processes not read"),
        }
        self.poll_at = Instant::now() + POLL_INTERVAL;
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// This many events were missed, because they were not read in time.
///
/// ```
/// assert_eq!(tower_keep::Missed(3).to_string(), "3 session events were missed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} session events were missed")]
pub struct Missed(pub u64);
