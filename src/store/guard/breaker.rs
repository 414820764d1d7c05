//! The states of the circuit breaker. No I/O here.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::store::StoreError;

/// When the breaker opens, and for how long.
pub(super) struct Settings {
    pub(super) outages: u32,
    pub(super) pause: Duration,
    pub(super) longest_pause: Duration,
}

pub(super) enum Breaker {
    /// Operations pass. The number of consecutive outages.
    Closed { outages: u32 },
    /// Operations fail until this time.
    Open { until: Instant, pause: Duration, cause: Arc<StoreError> },
    /// A probe is running, and other operations fail.
    HalfOpen { pause: Duration, cause: Arc<StoreError> },
}

/// How an operation was let through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Ordinary,
    /// Its result decides.
    Probe,
}

impl Breaker {
    /// Lets an operation through, or returns the cause of the outage.
    pub(super) fn enter(&mut self) -> Result<Pass, Arc<StoreError>> {
        match self {
            Self::Closed { .. } => Ok(Pass::Ordinary),
            Self::Open { until, pause, cause } if *until <= Instant::now() => {
                *self = Self::HalfOpen { pause: *pause, cause: cause.clone() };
                Ok(Pass::Probe)
            }
            Self::Open { cause, .. } | Self::HalfOpen { cause, .. } => Err(cause.clone()),
        }
    }

    /// The store has replied. Returns whether that closes the breaker.
    pub(super) fn answered(&mut self, pass: Pass) -> bool {
        match (&mut *self, pass) {
            (Self::Closed { outages }, _) => {
                *outages = 0;
                false
            }
            (Self::HalfOpen { .. }, Pass::Probe) => {
                *self = Self::Closed { outages: 0 };
                true
            }
            // An operation from before says nothing about the current state.
            (Self::Open { .. } | Self::HalfOpen { .. }, _) => false,
        }
    }

    /// An outage. Returns whether that opens the breaker.
    pub(super) fn outage(&mut self, pass: Pass, cause: &Arc<StoreError>, settings: &Settings) -> bool {
        match (&mut *self, pass) {
            (Self::Closed { outages }, _) => {
                *outages += 1;
                let opens = *outages >= settings.outages;
                if opens {
                    *self = Self::open(settings.pause, cause);
                }
                opens
            }
            (Self::HalfOpen { pause, .. }, Pass::Probe) => {
                *self = Self::open(pause.saturating_mul(2).min(settings.longest_pause), cause);
                false
            }
            (Self::Open { .. } | Self::HalfOpen { .. }, _) => false,
        }
    }

    /// The operation was cancelled: another probe must decide.
    pub(super) fn given_up(&mut self, pass: Pass) {
        if let (Self::HalfOpen { pause, cause }, Pass::Probe) = (&mut *self, pass) {
            *self = Self::Open { until: Instant::now(), pause: *pause, cause: cause.clone() };
        }
    }

    fn open(pause: Duration, cause: &Arc<StoreError>) -> Self {
        Self::Open { until: Instant::now() + pause, pause, cause: cause.clone() }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }
}
