//! Whether the main store is there: at the beginning, and while nobody asks.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Fallback, outage::PATIENCE};
use crate::{
    observe::ErrorChain,
    store::{error::StoreError, health::Health, session_store::SessionStore},
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// No task looks more often, whatever requests do.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

impl<S: SessionStore> Fallback<S> {
    /// How often [`start`](Self::start) asks the main store whether it is there. Default: three times; at least once.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::default()).start_attempts(10);
    /// ```
    #[must_use]
    pub fn start_attempts(mut self, attempts: u32) -> Self {
        self.start_attempts = attempts.max(1);
        self
    }

    /// Sees whether the main store is there, before anybody is served: [a few times](Self::start_attempts), half a second apart, each logged.
    /// If it is not, an outage begins with that, and the first requests need not find out. Says whether it is there.
    ///
    /// Without it, the first request sees.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode, OnRecovery}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::Memory { on_recovery: OnRecovery::Merge });
    /// if !store.start().await {
    ///     println!("serving from memory for now");
    /// }
    /// # }
    /// ```
    pub async fn start(&self) -> bool {
        let (store, attempts) = (self.main.name(), self.start_attempts);
        let mut attempt = 1;
        loop {
            let Err(cause) = self.is_there().await else {
                tracing::info!(store, attempt, "the session store is there");
                return true;
            };
            let error = ErrorChain(&cause);
            tracing::warn!(store, attempt, attempts, %error, "the session store is not there");
            if attempt == attempts {
                self.begin_outage(cause);
                return false;
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
    }

    /// Brings the return of the main store about where nobody asks for a session: sees in an outage, as often as
    /// [a request may](Self::probe_interval), whether it is back, and tells it what it has to be told. Ends never: for a task of its own.
    ///
    /// Without it a request does that, or a question for the health. So with it nothing of an outage is lost because nobody came.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let store = Arc::new(Fallback::new(MemoryStore::new(), FallbackMode::default()));
    /// let watched = store.clone();
    /// let watch = tokio::spawn(async move { watched.watch().await });
    /// // …serve, and then
    /// watch.abort();
    /// # }
    /// ```
    pub async fn watch(&self) {
        loop {
            sleep(self.probe_interval.max(SHORTEST_LOOK)).await;
            self.present_outage().await;
        }
    }

    async fn is_there(&self) -> Result<(), StoreError> {
        match timeout(PATIENCE, self.main.health()).await {
            Ok(Ok(Health::Up | Health::Degraded(_))) => Ok(()),
            Ok(Ok(Health::Down(cause))) => Err(StoreError::Outage((*cause).into())),
            Ok(Err(error)) => Err(error),
            Err(elapsed) => Err(StoreError::Outage(elapsed.into())),
        }
    }
}
