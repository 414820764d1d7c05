//! Probes of the main store at startup, and by a background task.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Fallback, outage::PROBE_TIMEOUT};
use crate::{
    error_chain::ErrorChain,
    store::{error::StoreError, health::Health, session_store::SessionStore},
};

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest probe interval of the background task.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

impl Fallback {
    /// How often [`start`](Self::start) probes the main store. Default: 3. At least 1.
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

    /// Probes the main store before the first request: [a few times](Self::start_attempts), half a second apart. Each attempt is logged.
    /// Returns whether the main store is available; if not, an outage begins.
    ///
    /// Without this call, the first request finds out.
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
            let Err(cause) = self.is_available().await else {
                tracing::info!(store, attempt, "the session store is available");
                return true;
            };
            let error = ErrorChain(&cause);
            tracing::warn!(store, attempt, attempts, %error, "the session store is unavailable");
            if attempt == attempts {
                self.begin_outage(cause);
                return false;
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
    }

    /// Probes the main store during outages, every [`probe_interval`](Self::probe_interval), and replays changes when it has recovered.
    /// Never returns: run it in its own task.
    ///
    /// Without it, requests and health checks do this. With it, changes are replayed even if no request arrives.
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
    /// // … serve requests …
    /// watch.abort();
    /// # }
    /// ```
    pub async fn watch(&self) {
        loop {
            sleep(self.probe_interval.max(MIN_INTERVAL)).await;
            self.current_outage().await;
        }
    }

    async fn is_available(&self) -> Result<(), StoreError> {
        match timeout(PROBE_TIMEOUT, self.main.health()).await {
            Ok(Ok(Health::Up | Health::Degraded(_))) => Ok(()),
            Ok(Ok(Health::Down(cause))) => Err(StoreError::Outage((*cause).into())),
            Ok(Err(error)) => Err(error),
            Err(elapsed) => Err(StoreError::Outage(elapsed.into())),
        }
    }
}
