//! A deadline and a circuit breaker around a store.

mod breaker;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use self::breaker::{Breaker, Pass, Settings};
use super::{
    error::StoreError, future::StoreFuture, health::Health, operation::Operation, session_store::SessionStore,
    wrapper::StoreWrapper,
};
use crate::{
    error_chain::ErrorChain,
    lifetime::LONGEST,
    metrics::{self, BREAKER_STATE},
};

/// The operation that visits every session, and the factor of its deadline.
const COUNT: &str = "count";
const COUNT_FACTOR: u32 = 20;

/// Adds a deadline, a circuit breaker, and a limit for concurrent operations to a store.
///
/// For stores and pools without their own deadline. [`RedisStore`](super::redis::RedisStore) has one, and fails immediately when
/// Redis is known to be down.
///
/// ```text
///            5 outages in a row                   the pause is over: one probe
///   closed ─────────────────────▶ open ◀──────────────────────────────────────▶ half-open
///      ▲                           every operation fails                fails        │
///      └─────────────────────────────────────────────────────────────────────────────┘ succeeds
/// ```
///
/// * An **outage** is an operation without a reply within the [deadline](Self::deadline), or a [`StoreError::Outage`] from a store
///   whose [health](SessionStore::health) is then [`Down`](Health::Down). A conflict, an ended session, a corrupt record, or a full
///   store is not an outage.
/// * While the breaker is **open**, operations fail immediately with a [`StoreError::Outage`], whose source is the last cause.
/// * **Half-open**, it lets exactly one operation through. If that one is cancelled, the next takes its place.
///
/// An operation that misses its deadline may be applied later. Writes are idempotent for that reason.
///
/// It needs a tokio runtime with a timer. It starts no task.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{MemoryStore, SessionLayer, store::Guard};
///
/// # let my_store = MemoryStore::new();
/// let store = Guard::new(my_store).deadline(Duration::from_millis(100)).max_waiting(256);
/// let layer = SessionLayer::new(store);
/// # let _ = layer;
/// ```
pub struct Guard {
    store: Arc<dyn SessionStore>,
    deadline: Duration,
    places: Semaphore,
    max_waiting: usize,
    breaker: Mutex<Breaker>,
    settings: Settings,
}

impl Guard {
    /// Creates a guard around `store`.
    pub fn new(store: impl SessionStore + 'static) -> Self {
        const MAX_WAITING: usize = 1024;
        metrics::set(&BREAKER_STATE, [], 0.0);
        Self {
            store: Arc::new(store),
            deadline: Duration::from_millis(250),
            places: Semaphore::new(MAX_WAITING),
            max_waiting: MAX_WAITING,
            breaker: Mutex::new(Breaker::Closed { outages: 0 }),
            settings: Settings { outages: 5, pause: Duration::from_secs(1), longest_pause: Duration::from_secs(30) },
        }
    }

    /// The deadline of an operation. Default: 250 ms, several times what a healthy store needs.
    /// [`count`](crate::store::ScanStore::count), which visits every session, has twenty times as long.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(LONGEST);
        self
    }

    /// The number of consecutive outages after which the breaker opens. Default: 5. At least 1.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::Guard};
    /// let store = Guard::new(MemoryStore::new()).open_after(2);
    /// ```
    #[must_use]
    pub fn open_after(mut self, outages: u32) -> Self {
        self.settings.outages = outages.max(1);
        self
    }

    /// How long the breaker stays open: at first, and at most. Default: 1 second, doubled with each failure up to 30 seconds.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::Guard};
    /// let store = Guard::new(MemoryStore::new()).pause(Duration::from_millis(200), Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn pause(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.pause = first.min(LONGEST);
        self.settings.longest_pause = longest.max(first).min(LONGEST);
        self
    }

    /// The maximum number of concurrent operations. Another one fails immediately with [`StoreError::Outage`], which does not count
    /// as an outage of the store. Default: 1,024. At least 1.
    #[must_use]
    pub fn max_waiting(mut self, operations: usize) -> Self {
        self.max_waiting = operations.clamp(1, Semaphore::MAX_PERMITS);
        self.places = Semaphore::new(self.max_waiting);
        self
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` visits every session, so it has more time.
    fn deadline_of(&self, operation: &impl Operation) -> Duration {
        if operation.name() == COUNT { self.deadline.saturating_mul(COUNT_FACTOR) } else { self.deadline }
    }

    /// A store that only refuses writes is not down.
    async fn is_down(&self) -> bool {
        matches!(self.store.health().await, Ok(Health::Down(_)) | Err(_))
    }

    fn enter(&self) -> Result<Passage<'_>, StoreError> {
        let pass = self.breaker().enter().map_err(|cause| outage(Cause::Open(cause)))?;
        if pass == Pass::Probe {
            metrics::set(&BREAKER_STATE, [], 1.0);
        }
        Ok(Passage { guard: self, pass, decided: false })
    }

    /// A store that says it is down counts as an outage.
    async fn check_health(&self) -> Result<Health, StoreError> {
        let passage = match self.enter() {
            Ok(passage) => passage,
            Err(error) => return Ok(Health::down(&error)),
        };
        let cause = match timeout(self.deadline, self.store.health()).await {
            Ok(Ok(Health::Down(cause))) => Cause::Down(cause),
            Ok(Ok(health)) => {
                passage.answered();
                return Ok(health);
            }
            Ok(Err(error)) => return Err(passage.outage(error)),
            Err(_) => Cause::Timeout(self.deadline),
        };
        Ok(Health::down(&passage.outage(outage(cause))))
    }
}

/// An operation that was let through.
struct Passage<'a> {
    guard: &'a Guard,
    pass: Pass,
    decided: bool,
}

impl Passage<'_> {
    fn answered(mut self) {
        self.decided = true;
        let closed = self.guard.breaker().answered(self.pass);
        if closed {
            metrics::set(&BREAKER_STATE, [], 0.0);
            tracing::info!(store = self.guard.store.name(), "the session store replies again");
        }
    }

    /// Counts the outage. If that opens the breaker, later operations get this error.
    fn outage(mut self, error: StoreError) -> StoreError {
        self.decided = true;
        let cause = Arc::new(error);
        let opened = self.guard.breaker().outage(self.pass, &cause, &self.guard.settings);
        if opened || self.pass == Pass::Probe {
            metrics::set(&BREAKER_STATE, [], 2.0);
        }
        if opened {
            tracing::warn!(store = self.guard.store.name(), error = %ErrorChain(&*cause), "the session store does not reply; operations fail immediately for a while");
        }
        Arc::try_unwrap(cause).unwrap_or_else(|cause| outage(Cause::Open(cause)))
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if !self.decided {
            self.guard.breaker().given_up(self.pass);
            if self.pass == Pass::Probe {
                metrics::set(&BREAKER_STATE, [], 2.0);
            }
        }
    }
}

impl StoreWrapper for Guard {
    type Inner = dyn SessionStore;

    fn inner(&self) -> &Self::Inner {
        &*self.store
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            let Ok(_permit) = self.places.try_acquire() else {
                return Err(outage(Cause::Full(self.max_waiting)));
            };
            let passage = self.enter()?;
            let deadline = self.deadline_of(&operation);
            let reply = async {
                let reply = operation.run(&*self.store).await;
                let is_outage = matches!(failure::<O>(&reply), Some(StoreError::Outage(_))) && self.is_down().await;
                (reply, is_outage)
            };
            let error = match timeout(deadline, reply).await {
                Ok((reply, false)) => {
                    passage.answered();
                    return reply;
                }
                Ok((Err(error), true)) => return Err(passage.outage(error)),
                Ok((Ok(reply), true)) => match O::confirmed(reply) {
                    Ok(reply) => return Ok(reply),
                    Err(error) => error,
                },
                Err(_) => outage(Cause::Timeout(deadline)),
            };
            O::unconfirmed(passage.outage(error))
        })
    }

    /// While the breaker is open: down, without a query.
    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(self.check_health())
    }

    fn wrapper_deadline(&self) -> Option<Duration> {
        Some(self.deadline)
    }
}

/// Why an operation failed, or may have failed.
fn failure<O: Operation>(reply: &Result<O::Reply, StoreError>) -> Option<&StoreError> {
    reply.as_ref().map_or_else(Some, O::doubt_in)
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("store", &self.store.name())
            .field("deadline", &self.deadline)
            .field("breaker", &self.breaker().name())
            .finish_non_exhaustive()
    }
}

fn outage(cause: Cause) -> StoreError {
    StoreError::Outage(cause.into())
}

/// Why an operation failed in the guard.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    #[error("{0} operations are waiting for the store")]
    Full(usize),
    #[error("the store is down: {0}")]
    Down(Arc<str>),
    #[error("the circuit breaker is open")]
    Open(#[source] Arc<StoreError>),
}
