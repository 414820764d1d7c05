//! An outage: when it began, why, and what serves operations. Also how to distinguish an outage from one lost reply.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout},
};

use super::{error::Cause, local::Local, replay::REPLAY_BUDGET};
use crate::{
    error_chain::ErrorChain,
    store::{error::StoreError, health::Health, operation::Operation, session_store::SessionStore},
};

/// The time after which the main store is probed during a slow operation, and the timeout of that probe.
const PROBE_DELAY: Duration = Duration::from_millis(100);
/// The timeout of a probe for recovery.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// The extra time of a request that probes the main store: one probe, the replay, and a second probe if a value is refused.
pub(super) const PROBE_BUDGET: Duration = PROBE_TIMEOUT.saturating_mul(2).saturating_add(REPLAY_BUDGET);

pub(super) struct Outage {
    pub(super) began: Instant,
    cause: Arc<StoreError>,
    pub(super) state: OutageState,
    /// Its holder probes the main store.
    probe: Semaphore,
    next_probe: Mutex<Instant>,
    /// A refused replay has been logged.
    refused: AtomicBool,
    /// The number of replayed, dropped and refused changes when the outage began.
    pub(super) counts: [u64; 3],
}

/// What serves operations during an outage.
pub(super) enum OutageState {
    /// Nothing.
    Unavailable,
    /// The cache, for lookups.
    ReadStale,
    /// Memory, for everything.
    InMemory(Box<Mutex<Local>>),
}

impl Outage {
    pub(super) fn new(cause: StoreError, state: OutageState, counts: [u64; 3], probe_interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            cause: Arc::new(cause),
            state,
            probe: Semaphore::new(1),
            next_probe: Mutex::new(now + probe_interval),
            refused: AtomicBool::new(false),
            counts,
        }
    }

    /// The sessions in memory, unless everything is replayed.
    pub(super) fn local(&self) -> Option<MutexGuard<'_, Local>> {
        match &self.state {
            OutageState::Unavailable | OutageState::ReadStale => None,
            OutageState::InMemory(local) => Some(lock(local)).filter(|local| !local.is_done()),
        }
    }

    pub(super) fn health(&self) -> Health {
        Health::down(&*self.cause)
    }

    /// The error of operations that cannot be served.
    pub(super) fn error(&self) -> StoreError {
        Cause::Unavailable(self.cause.clone()).into()
    }

    /// The permit to probe the main store, if a probe is due and no other request probes.
    pub(super) fn probe_permit(&self) -> Option<SemaphorePermit<'_>> {
        let is_due = *lock(&self.next_probe) <= Instant::now();
        self.probe.try_acquire().ok().filter(|_| is_due)
    }

    pub(super) fn probe_in(&self, pause: Duration) {
        *lock(&self.next_probe) = Instant::now() + pause;
    }

    /// The main store has recovered and refuses a replay.
    pub(super) fn refused(&self, store: &str, error: &StoreError) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(store, error = %ErrorChain(error), "the session store refuses a change from the outage; it will be replayed again");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of running an operation on the main store.
pub(super) enum MainReply<T> {
    Replied(Result<T, StoreError>),
    /// The main store is unavailable. `in_doubt`: it may have applied an operation that must not be repeated.
    Unavailable {
        cause: StoreError,
        in_doubt: bool,
    },
}

/// Runs an operation on the main store. While a slow operation runs, the health of the store is probed, so that takes no extra time.
pub(super) async fn run_on_main<O: Operation>(main: &dyn SessionStore, operation: O) -> MainReply<O::Reply> {
    let mut probe = pin!(async {
        sleep(PROBE_DELAY).await;
        is_down(main, PROBE_DELAY).await
    });
    let mut probed = None;
    let mut running = operation.run(main);
    let reply = poll_fn(|cx| {
        let reply = Pin::new(&mut running).poll(cx);
        if reply.is_pending()
            && probed.is_none()
            && let Poll::Ready(down) = probe.as_mut().poll(cx)
        {
            probed = Some(down);
        }
        reply
    })
    .await;
    let failure = reply.as_ref().map_or_else(Some, O::doubt_in);
    // A client that is rejected cannot be served either.
    if !matches!(failure, Some(StoreError::Outage(_) | StoreError::Configuration(_))) {
        return MainReply::Replied(reply);
    }
    let down = match probed {
        Some(down) => down,
        None => is_down(main, PROBE_DELAY).await,
    };
    match reply {
        reply if !down => MainReply::Replied(reply),
        Err(cause) => MainReply::Unavailable { cause, in_doubt: false },
        Ok(reply) => match O::confirmed(reply) {
            Ok(reply) => MainReply::Replied(Ok(reply)),
            Err(cause) => MainReply::Unavailable { cause, in_doubt: true },
        },
    }
}

/// Whether the store serves again.
pub(super) async fn has_recovered(store: &dyn SessionStore) -> bool {
    !is_down(store, PROBE_TIMEOUT).await
}

/// Whether the store is down, or does not reply in time.
async fn is_down(store: &dyn SessionStore, limit: Duration) -> bool {
    !matches!(timeout(limit, store.health()).await, Ok(Ok(Health::Up | Health::Degraded(_))))
}
