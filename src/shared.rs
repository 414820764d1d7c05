//! What all sessions of a layer have in common.

use std::{fmt, sync::Arc};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    credential::Credentials, lifetime::Lifetime, observe::Counters, record::Record, session::SessionError,
    store::SessionStore, time::Clock, token::SessionId,
};

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) credentials: Credentials,
    pub(crate) lifetime: Lifetime,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_size: usize,
    pub(crate) counters: Arc<Counters>,
    pub(crate) queues: Arc<Queues>,
}

impl Shared {
    pub(crate) fn check_size(&self, record: &Record) -> Result<(), SessionError> {
        let (size, limit) = (record.weight(), self.max_size);
        if size > limit { Err(SessionError::TooLarge { size, limit }) } else { Ok(()) }
    }
}

/// Where the writers of one session in this process line up once they have met: each that tries again beats the others', so all
/// at once would get in each other's way for long.
pub(crate) struct Queues([Semaphore; 64]);

impl Queues {
    pub(crate) async fn wait(&self, id: &SessionId) -> Option<SemaphorePermit<'_>> {
        let queue = &self.0[(id.spread() % self.0.len() as u64) as usize];
        queue.acquire().await.ok() // it is never closed
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(1)))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("store", &self.store.name())
            .field("credentials", &self.credentials)
            .field("lifetime", &self.lifetime)
            .field("max_size", &self.max_size)
            .finish_non_exhaustive()
    }
}
