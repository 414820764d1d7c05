//! The beginning: whether the main store is there at all.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Fallback, outage::PATIENCE};
use crate::{
    observe::Causes,
    store::{Health, SessionStore, StoreError},
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

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
    /// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode, OnReturn}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let store = Fallback::new(MemoryStore::new(), FallbackMode::Memory { on_return: OnReturn::Merge });
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
            let error = Causes(&cause);
            tracing::warn!(store, attempt, attempts, %error, "the session store is not there");
            if attempt == attempts {
                self.goes_away(cause);
                return false;
            }
            attempt += 1;
            sleep(PAUSE).await;
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
