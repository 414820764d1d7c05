//! A deadline and a circuit breaker around a store that has none.

mod breaker;

use std::{
    error::Error,
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
    lifetime::LONGEST,
    metrics::{self, BREAKER_STATE},
    observe::ErrorChain,
};

/// The name of the operation that looks at every session, and how much more time it has.
const COUNT: &str = "count";
const COUNT_FACTOR: u32 = 20;

/// Makes a store answer in time: a deadline for every operation, a circuit breaker, and no more operations at once than it can
/// bear.
///
/// [`RedisStore`](super::redis::RedisStore) has its own deadline, and fails at once when Redis is known to be down: it needs no guard. This is
/// for stores and pools of others.
///
/// ```text
///            5 outages in a row                   the pause is over: one probe
///   closed ─────────────────────▶ open ◀──────────────────────────────────────▶ half-open
///      ▲                           every operation fails at once        fails        │
///      └─────────────────────────────────────────────────────────────────────────────┘ succeeds
/// ```
///
/// * An **outage** is an operation that is not answered within the [deadline](Self::deadline), or with [`StoreError::Outage`] by
///   a store whose [health](SessionStore::health) is then [`Down`](Health::Down). A conflict, a session that is gone, a record that cannot
///   be read, a store that is full: these are answers.
/// * While it is **open**, an operation fails at once with a [`StoreError::Outage`] whose source tells the last cause. That costs about a
///   microsecond.
/// * **Half-open** it lets exactly one operation through, whichever comes first; the others go on failing. If nobody waits for the
///   answer of that one any more, the next takes its place.
///
/// What did not end in time is given up, and may be executed later: writes are idempotent for that.
///
/// It needs a tokio runtime with a timer, and starts no task.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{MemoryStore, SessionLayer, store::Guard};
///
/// # let store_of_mine = MemoryStore::new();
/// let store = Guard::new(store_of_mine).deadline(Duration::from_millis(100)).max_waiting(256);
/// let layer = SessionLayer::new(store);
/// # let _ = layer;
/// ```
pub struct Guard<S> {
    store: S,
    deadline: Duration,
    places: Semaphore,
    max_waiting: usize,
    breaker: Mutex<Breaker>,
    settings: Settings,
}

impl<S: SessionStore> Guard<S> {
    /// A guard around `store`.
    pub fn new(store: S) -> Self {
        const MAX_WAITING: usize = 1024;
        metrics::set(&BREAKER_STATE, [], 0.0);
        Self {
            store,
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

    /// After how many outages in a row it opens. Default: 5; at least one.
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

    /// How long it stays open before it tries again: at first, and at most. Default: a second, doubled with every failure up to
    /// half a minute.
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

    /// How many operations may be under way at once. One more fails at once with [`StoreError::Outage`], and counts as no outage of
    /// the store. Default: 1,024; at least one.
    #[must_use]
    pub fn max_waiting(mut self, operations: usize) -> Self {
        self.max_waiting = operations.clamp(1, Semaphore::MAX_PERMITS);
        self.places = Semaphore::new(self.max_waiting);
        self
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counting looks at every session, so it has more time.
    fn deadline_of(&self, operation: &impl Operation) -> Duration {
        if operation.name() == COUNT { self.deadline.saturating_mul(COUNT_FACTOR) } else { self.deadline }
    }

    /// A store that refuses writes may serve reads: that is no reason to leave it alone.
    async fn is_down(&self) -> bool {
        matches!(self.store.health().await, Ok(Health::Down(_)) | Err(_))
    }

    fn enter(&self) -> Result<Passage<'_, S>, StoreError> {
        let pass = self.breaker().enter().map_err(|cause| outage(Cause::Open(cause)))?;
        if pass == Pass::Probe {
            metrics::set(&BREAKER_STATE, [], 1.0);
        }
        Ok(Passage { guard: self, pass, decided: false })
    }

    /// A store that says it is down has not answered.
    async fn ask_health(&self) -> Result<Health, StoreError> {
        let passage = match self.enter() {
            Ok(passage) => passage,
            Err(error) => return Ok(Health::down(&error)),
        };
        let cause = match timeout(self.deadline, self.store.health()).await {
            Ok(Ok(Health::Down(cause))) => Cause::Unwell(cause),
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
struct Passage<'a, S: SessionStore> {
    guard: &'a Guard<S>,
    pass: Pass,
    decided: bool,
}

impl<S: SessionStore> Passage<'_, S> {
    fn answered(mut self) {
        self.decided = true;
        let closed = self.guard.breaker().answered(self.pass);
        if closed {
            metrics::set(&BREAKER_STATE, [], 0.0);
            tracing::info!(store = self.guard.store.name(), "the session store answers again");
        }
    }

    /// Counts the outage. If that opens the breaker, the error is what everybody is told from then on.
    fn outage(mut self, error: StoreError) -> StoreError {
        self.decided = true;
        let cause = Arc::new(error);
        let opened = self.guard.breaker().outage(self.pass, &cause, &self.guard.settings);
        if opened || self.pass == Pass::Probe {
            metrics::set(&BREAKER_STATE, [], 2.0);
        }
        if opened {
            tracing::warn!(store = self.guard.store.name(), error = %ErrorChain(&*cause), "the session store does not answer: it is left alone for a while");
        }
        Arc::try_unwrap(cause).unwrap_or_else(|cause| outage(Cause::Open(cause)))
    }
}

impl<S: SessionStore> Drop for Passage<'_, S> {
    fn drop(&mut self) {
        if !self.decided {
            self.guard.breaker().given_up(self.pass);
            if self.pass == Pass::Probe {
                metrics::set(&BREAKER_STATE, [], 2.0);
            }
        }
    }
}

impl<S: SessionStore> StoreWrapper for Guard<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.store
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            let Ok(_permit) = self.places.try_acquire() else {
                return Err(outage(Cause::Full(self.max_waiting)));
            };
            let passage = self.enter()?;
            let deadline = self.deadline_of(&operation);
            let reply = async {
                let reply = operation.run(&self.store).await;
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

    /// While the breaker is open: down, without asking.
    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(self.ask_health())
    }

    fn wrapper_deadline(&self) -> Option<Duration> {
        Some(self.deadline)
    }
}

/// Why an operation failed, or may have failed.
fn failure<O: Operation>(reply: &Result<O::Reply, StoreError>) -> Option<&StoreError> {
    reply.as_ref().map_or_else(Some, O::doubt_in)
}

impl<S: SessionStore> fmt::Debug for Guard<S> {
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

/// Why the store was not asked, or not waited for.
#[derive(Debug)]
enum Cause {
    Timeout(Duration),
    Full(usize),
    Unwell(Arc<str>),
    Open(Arc<StoreError>),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(deadline) => write!(f, "no answer within {deadline:?}"),
            Self::Full(operations) => write!(f, "{operations} operations are waiting for it"),
            Self::Unwell(cause) => write!(f, "it says that it is down: {cause}"),
            Self::Open(_) => f.write_str("it did not answer lately, and is left alone for a while"),
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Open(cause) => Some(&**cause),
            _ => None,
        }
    }
}
