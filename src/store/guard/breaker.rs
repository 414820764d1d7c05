//! The states of the breaker. No I/O here.

use std::{sync::Arc, time::Duration};

use super::Settings;
use crate::{store::StoreError, time::Timestamp};

pub(super) enum Breaker {
    /// Everything passes. So many outages in a row, up to now.
    Closed { outages: u32 },
    /// Nothing passes until then.
    Open { until: Timestamp, pause: Duration, cause: Arc<StoreError> },
    /// A probe is under way, and nothing else passes.
    HalfOpen { pause: Duration, cause: Arc<StoreError> },
}

/// As what an operation was let through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Ordinary,
    /// Its answer decides.
    Probe,
}

impl Breaker {
    /// Lets an operation through, or says why not.
    pub(super) fn enter(&mut self, settings: &Settings) -> Result<Pass, Arc<StoreError>> {
        match self {
            Self::Closed { .. } => Ok(Pass::Ordinary),
            Self::Open { until, pause, cause } => {
                let left = until.since(settings.clock.now());
                // More than the whole pause: the clock was set back.
                if !left.is_zero() && left <= *pause {
                    return Err(cause.clone());
                }
                *self = Self::HalfOpen { pause: *pause, cause: cause.clone() };
                Ok(Pass::Probe)
            }
            Self::HalfOpen { cause, .. } => Err(cause.clone()),
        }
    }

    /// Whether one more outage opens it.
    pub(super) fn opens_with_next(&self, settings: &Settings) -> bool {
        matches!(self, Self::Closed { outages } if outages + 1 >= settings.outages)
    }

    /// The store has answered; `true` if it did not before.
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
            // Of an operation from before: it says nothing of now.
            (Self::Open { .. } | Self::HalfOpen { .. }, _) => false,
        }
    }

    /// The store has not answered; `true` if that closes an era in which it did.
    pub(super) fn outage(&mut self, pass: Pass, cause: &Arc<StoreError>, settings: &Settings) -> bool {
        match (&mut *self, pass) {
            (Self::Closed { outages }, _) => {
                *outages += 1;
                let opens = *outages >= settings.outages;
                if opens {
                    *self = Self::open(settings.pause, cause, settings);
                }
                opens
            }
            (Self::HalfOpen { pause, .. }, Pass::Probe) => {
                let pause = pause.saturating_mul(2).min(settings.longest_pause);
                *self = Self::open(pause, cause, settings);
                false
            }
            (Self::Open { .. } | Self::HalfOpen { .. }, _) => false,
        }
    }

    /// Nobody waits for the answer any more: another probe must decide.
    pub(super) fn given_up(&mut self, pass: Pass, settings: &Settings) {
        if let (Self::HalfOpen { pause, cause }, Pass::Probe) = (&mut *self, pass) {
            *self = Self::Open { until: settings.clock.now(), pause: *pause, cause: cause.clone() };
        }
    }

    fn open(pause: Duration, cause: &Arc<StoreError>, settings: &Settings) -> Self {
        Self::Open { until: settings.clock.now().plus(pause), pause, cause: cause.clone() }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }
}
