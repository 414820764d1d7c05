//! An outage: when it began, why, and what is done meanwhile. And how one is told from an operation that was lost.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{Cause, local::Local};
use crate::{
    observe::Causes,
    store::{Health, SessionStore, StoreError, StoreFuture},
    time::Timestamp,
};

/// An operation that takes longer makes one ask whether the main store is there at all, while it goes on.
const SLOW: Duration = Duration::from_millis(100);

pub(super) struct Outage {
    pub(super) began: Timestamp,
    cause: Arc<StoreError>,
    /// What was counted before.
    pub(super) counts: [u64; 3],
    /// What is done in memory; nothing is, when sessions are only read.
    local: Option<Mutex<Local>>,
    /// Whoever has it sees whether the main store is back.
    pub(super) turn: Semaphore,
    /// That it is back and takes not everything has been logged.
    refused: AtomicBool,
    /// When to look next, in milliseconds since the epoch.
    look_at: AtomicU64,
}

impl Outage {
    pub(super) fn new(cause: Arc<StoreError>, local: Option<Local>, counts: [u64; 3], began: Timestamp) -> Self {
        Self {
            began,
            cause,
            counts,
            local: local.map(Mutex::new),
            turn: Semaphore::new(1),
            refused: AtomicBool::new(false),
            look_at: AtomicU64::new(0),
        }
    }

    pub(super) fn local(&self) -> Option<MutexGuard<'_, Local>> {
        Some(self.local.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What everybody is told for whom nothing can be done.
    pub(super) fn error(&self) -> StoreError {
        StoreError::Outage(Cause::Away(self.cause.clone()).into())
    }

    /// Whether it is time to see whether the main store is back.
    pub(super) fn is_due(&self, now: Timestamp, pause: Duration) -> bool {
        let left = Timestamp::from_millis(self.look_at.load(Ordering::Relaxed)).since(now);
        // More than the whole pause: the clock was set back.
        left.is_zero() || left > pause
    }

    /// The store is back, and does not take what it has missed.
    pub(super) fn refused(&self, store: &str, error: &StoreError) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(store, error = %Causes(error), "the session store does not take all that it has missed yet");
        }
    }

    pub(super) fn look_at(&self, time: Timestamp) {
        self.look_at.store(time.as_millis(), Ordering::Relaxed);
    }
}

/// Why the main store did not do what it was asked.
pub(super) enum Failed {
    /// Only this went wrong.
    Once(StoreError),
    /// It is away.
    Away(StoreError),
}

/// Whether nothing can be had from the store.
pub(super) async fn is_away(store: &impl SessionStore) -> bool {
    !matches!(store.health().await, Ok(health) if !matches!(health, Health::Down))
}

/// Waits for the answer; and sees, if there is none, whether the store is away. That takes no longer than the store takes for an
/// operation, if it takes a fifth of a second or more before it gives up.
pub(super) async fn ask<T>(store: &impl SessionStore, mut operation: StoreFuture<'_, T>) -> Result<T, Failed> {
    let asked_at = match timeout(SLOW, &mut operation).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) if !is_outage(&error) => return Err(Failed::Once(error)),
        Ok(Err(error)) => {
            return Err(if is_away(store).await { Failed::Away(error) } else { Failed::Once(error) });
        }
        Err(_) => Instant::now(),
    };
    let mut away = pin!(is_away(store));
    let mut there = false;
    let answer = poll_fn(|cx| {
        if let Poll::Ready(answer) = Pin::new(&mut operation).poll(cx) {
            return Poll::Ready(match answer {
                Ok(answer) => Ok(answer),
                Err(error) if is_outage(&error) => Err(Failed::Away(error)),
                Err(error) => Err(Failed::Once(error)),
            });
        }
        if !there && let Poll::Ready(away) = away.as_mut().poll(cx) {
            if away {
                return Poll::Ready(Err(Failed::Away(StoreError::Outage(Cause::Down.into()))));
            }
            there = true;
        }
        Poll::Pending
    })
    .await;
    match answer {
        Err(Failed::Away(error)) if there => Err(Failed::Once(error)),
        // If it has not had the time to say so, it gets it.
        Err(Failed::Away(error)) => match timeout_at(asked_at + SLOW, away).await {
            Ok(false) => Err(Failed::Once(error)),
            Ok(true) | Err(_) => Err(Failed::Away(error)),
        },
        answer => answer,
    }
}

fn is_outage(error: &StoreError) -> bool {
    // Who may not log in can do nothing either.
    matches!(error, StoreError::Outage(_) | StoreError::Configuration(_))
}
