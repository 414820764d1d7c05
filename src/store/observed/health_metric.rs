//! The metrics `session_store_degraded` and `session_store_degraded_seconds_total`: how long a store is degraded or unavailable.
//!
//! ```text
//!              a write fails                  a read fails
//!   Healthy ──────────────────▶ WritesFail ──────────────────▶ ReadsFail
//!    ▲  ▲                           │                             │
//!    │  └───── a write succeeds ────┘                             │
//!    └──────────── any operation succeeds ────────────────────────┘
//! ```
//! A store that only reads (out of memory, a replica) stays degraded until it accepts a write, or its health is up.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::metrics::{self, DEGRADED, DEGRADED_SECONDS, Stopwatch};

#[derive(Default)]
pub(super) struct HealthMetric {
    /// Whether the state is not `Healthy`: read by every operation.
    is_degraded: AtomicBool,
    tracked: Mutex<Tracked>,
}

#[derive(Default)]
struct Tracked {
    state: State,
    /// Until when the degraded time has been counted.
    counted_until: Option<Stopwatch>,
    /// The fraction of a second that has not been counted.
    fraction: f64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Healthy,
    WritesFail,
    ReadsFail,
}

impl HealthMetric {
    pub(super) fn read(&self, served: bool) {
        self.change(served, |state| match (state, served) {
            (_, false) => State::ReadsFail,
            (State::WritesFail, true) => State::WritesFail,
            (State::Healthy | State::ReadsFail, true) => State::Healthy,
        });
    }

    pub(super) fn write(&self, served: bool) {
        self.change(served, |state| match (state, served) {
            (_, true) => State::Healthy,
            (State::ReadsFail, false) => State::ReadsFail,
            (State::Healthy | State::WritesFail, false) => State::WritesFail,
        });
    }

    fn change(&self, served: bool, next: impl FnOnce(State) -> State) {
        if served && !self.is_degraded.load(Ordering::Relaxed) {
            return;
        }
        let mut tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (tracked.state, next(tracked.state));
        tracked.state = now;
        if let Some(since) = tracked.counted_until.take() {
            tracked.fraction += since.seconds();
            metrics::add(&DEGRADED_SECONDS, tracked.fraction as u64);
            tracked.fraction = tracked.fraction.fract();
        }
        if now != State::Healthy {
            tracked.counted_until = Some(Stopwatch::start());
        }
        if (before == State::Healthy) != (now == State::Healthy) {
            self.is_degraded.store(now != State::Healthy, Ordering::Relaxed);
            metrics::set(&DEGRADED, [], if now == State::Healthy { 0.0 } else { 1.0 });
        }
    }
}
