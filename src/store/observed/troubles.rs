//! Since when a store does not serve as usual.
//!
//! ```text
//!           a write fails             a read fails
//!   Well ──────────────▶ Writes ──────────────▶ Reads
//!    ▲ ◀── a write is served ──┘                  │
//!    └────── anything is served ──────────────────┘
//! ```
//! So a store that only reads (out of memory, a replica) is in trouble until it takes a write, or its health is up.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::metrics::{self, DEGRADED, DEGRADED_SECONDS, Stopwatch};

#[derive(Default)]
pub(super) struct Troubles {
    /// Whether there are any: read by every operation.
    any: AtomicBool,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    what: What,
    /// Up to when its time was counted, while there is trouble.
    counted: Option<Stopwatch>,
    /// What was not counted yet of whole seconds.
    rest: f64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum What {
    #[default]
    Well,
    Writes,
    Reads,
}

impl Troubles {
    pub(super) fn read(&self, served: bool) {
        self.change(served, |what| match (what, served) {
            (_, false) => What::Reads,
            (What::Writes, true) => What::Writes,
            (What::Well | What::Reads, true) => What::Well,
        });
    }

    pub(super) fn written(&self, served: bool) {
        self.change(served, |what| match (what, served) {
            (_, true) => What::Well,
            (What::Reads, false) => What::Reads,
            (What::Well | What::Writes, false) => What::Writes,
        });
    }

    fn change(&self, served: bool, next: impl FnOnce(What) -> What) {
        if served && !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (present.what, next(present.what));
        present.what = now;
        if let Some(counted) = present.counted.take() {
            present.rest += counted.seconds();
            metrics::add(&DEGRADED_SECONDS, present.rest as u64);
            present.rest = present.rest.fract();
        }
        if now != What::Well {
            present.counted = Some(Stopwatch::start());
        }
        if (before == What::Well) != (now == What::Well) {
            self.any.store(now != What::Well, Ordering::Relaxed);
            metrics::set(&DEGRADED, [], if now == What::Well { 0.0 } else { 1.0 });
        }
    }
}
