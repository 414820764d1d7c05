//! Those that wait for sessions to end. They share one subscription to the events of all processes.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use crate::{error_chain::ErrorChain, event::EventKind, store::StoreError, subscription::Events, token::SessionId};

/// The pause after an outage.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Those that wait for sessions to end.
#[derive(Default)]
pub(crate) struct Endings {
    waiting: Mutex<HashMap<SessionId, watch::Sender<()>>>,
    /// Whoever holds the lock delivers the events to all. There is no subscription while nobody waits.
    subscription: tokio::sync::Mutex<Option<Events>>,
}

impl Endings {
    pub(crate) fn wait_for(&self, id: SessionId) -> Waiting<'_> {
        let mut waiting = self.waiting();
        let changed = waiting.entry(id).or_insert_with(|| watch::Sender::new(())).subscribe();
        Waiting { endings: self, id, changed }
    }

    /// Wakes those whose sessions have ended. Does not return; when it is dropped, another caller continues.
    pub(crate) async fn deliver<F>(&self, subscribe: impl Fn() -> F) -> Infallible
    where
        F: Future<Output = Result<Events, StoreError>>,
    {
        let mut subscription = self.subscription.lock().await;
        loop {
            let Some(events) = &mut *subscription else {
                match subscribe().await {
                    Ok(events) => {
                        *subscription = Some(events);
                        self.wake_all(); // a session may have ended before
                    }
                    Err(error) => {
                        tracing::debug!(error = %ErrorChain(&error), "no subscription to events of sessions");
                        sleep(RETRY_INTERVAL).await;
                    }
                }
                continue;
            };
            match events.next().await {
                Ok(event) if matches!(event.kind(), EventKind::Ended(_)) => self.wake(&event.session()),
                Ok(_) => {}
                Err(_missed) => self.wake_all(),
            }
        }
    }

    fn wake(&self, id: &SessionId) {
        if let Some(waiting) = self.waiting().get(id) {
            waiting.send_replace(());
        }
    }

    fn wake_all(&self) {
        for waiting in self.waiting().values() {
            waiting.send_replace(());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<SessionId, watch::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endings").field("sessions", &self.waiting().len()).finish_non_exhaustive()
    }
}

/// One that waits.
pub(crate) struct Waiting<'a> {
    endings: &'a Endings,
    id: SessionId,
    changed: watch::Receiver<()>,
}

impl Waiting<'_> {
    /// From now on, what happens wakes it.
    pub(crate) fn look_again(&mut self) {
        self.changed.mark_unchanged();
    }

    pub(crate) async fn woken(&mut self) {
        let _ = self.changed.changed().await; // the sender lives as long as this
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.endings.waiting();
        if waiting.get(&self.id).is_some_and(|others| others.receiver_count() == 1) {
            waiting.remove(&self.id);
        }
        // Otherwise the next one would receive all events since.
        if waiting.is_empty()
            && let Ok(mut subscription) = self.endings.subscription.try_lock()
        {
            *subscription = None;
        }
    }
}
