//! An outage: since when, why, and what is done meanwhile. And how one is told from an operation that was lost.

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

use super::{error::Cause, local::Local, replay::TELLING};
use crate::{
    observe::ErrorChain,
    store::{error::StoreError, health::Health, operation::Operation, session_store::SessionStore},
};

/// How long the main store has to say how it is; and how long an operation takes before it is asked.
const MOMENT: Duration = Duration::from_millis(100);
/// How long it has to say so when it comes back, perhaps from afar.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// What a request may wait that sees to the return of the main store, besides its own operation and the last that it tells: it asks whether
/// the store is back, tells it, and asks whether it is there still if it does not take a value.
pub(super) const SEEING: Duration = PATIENCE.saturating_mul(2).saturating_add(TELLING);

pub(super) struct Outage {
    pub(super) began: Instant,
    cause: Arc<StoreError>,
    pub(super) state: OutageState,
    /// Whoever has it sees whether the main store is back.
    turn: Semaphore,
    look_at: Mutex<Instant>,
    /// That it is back and does not take everything has been logged.
    refused: AtomicBool,
    /// What was replayed, dropped and refused before.
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
            turn: Semaphore::new(1),
            look_at: Mutex::new(now + probe_interval),
            refused: AtomicBool::new(false),
            counts,
        }
    }

    /// The sessions in memory, if there are any and the main store has not been told all of them.
    pub(super) fn local(&self) -> Option<MutexGuard<'_, Local>> {
        match &self.state {
            OutageState::Unavailable | OutageState::ReadStale => None,
            OutageState::InMemory(local) => Some(lock(local)).filter(|local| !local.is_over()),
        }
    }

    pub(super) fn health(&self) -> Health {
        Health::down(&*self.cause)
    }

    /// What everybody is told for whom nothing can be done.
    pub(super) fn error(&self) -> StoreError {
        Cause::Away(self.cause.clone()).into()
    }

    /// The turn to see whether the main store is back, if it is time, and nobody else is at it.
    pub(super) fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let is_due = *lock(&self.look_at) <= Instant::now();
        self.turn.try_acquire().ok().filter(|_| is_due)
    }

    pub(super) fn look_in(&self, pause: Duration) {
        *lock(&self.look_at) = Instant::now() + pause;
    }

    /// The main store is back, and does not take what it has missed.
    pub(super) fn refused(&self, store: &str, error: &StoreError) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(store, error = %ErrorChain(error), "the session store does not take all that it has missed yet");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of running an operation on the main store.
pub(super) enum Asked<T> {
    Replied(Result<T, StoreError>),
    /// The main store is unavailable. `in_doubt`: it may have applied an operation that must not be repeated.
    Unavailable {
        cause: StoreError,
        in_doubt: bool,
    },
}

/// Runs an operation on the main store. While a slow operation runs, the health of the store is probed, so that takes no extra time.
pub(super) async fn ask<O: Operation>(main: &impl SessionStore, operation: O) -> Asked<O::Reply> {
    let mut probe = pin!(async {
        sleep(MOMENT).await;
        is_down(main, MOMENT).await
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
    // A client that may not log in can do nothing either.
    if !matches!(failure, Some(StoreError::Outage(_) | StoreError::Configuration(_))) {
        return Asked::Replied(reply);
    }
    let down = match probed {
        Some(down) => down,
        None => is_down(main, MOMENT).await,
    };
    match reply {
        reply if !down => Asked::Replied(reply),
        Err(cause) => Asked::Unavailable { cause, in_doubt: false },
        Ok(reply) => match O::confirmed(reply) {
            Ok(reply) => Asked::Replied(Ok(reply)),
            Err(cause) => Asked::Unavailable { cause, in_doubt: true },
        },
    }
}

/// Whether the store is back.
pub(super) async fn is_back(store: &impl SessionStore) -> bool {
    !is_down(store, PATIENCE).await
}

/// Whether nothing can be had from the store.
async fn is_down(store: &impl SessionStore, patience: Duration) -> bool {
    !matches!(timeout(patience, store.health()).await, Ok(Ok(Health::Up | Health::Degraded(_))))
}
