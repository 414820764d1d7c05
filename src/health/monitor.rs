use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Semaphore;

use super::HealthReport;
use crate::{
    metrics::{self, STORE_HEALTH},
    store::{Health, SessionStore, health::HealthStatus},
    time::Clock,
};

/// Checks the store. Concurrent callers share one check. The clones of a layer share the monitor.
pub(crate) struct Monitor {
    /// Its holder runs the check.
    turn: Semaphore,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The number of completed checks.
    checks: u64,
    last: Option<HealthReport>,
}

impl Monitor {
    pub(crate) async fn check(&self, store: &dyn SessionStore, clock: &dyn Clock) -> HealthReport {
        let before = self.seen().checks;
        let _turn = self.turn.acquire().await; // never closed
        if let Some(report) = self.seen().since(before) {
            return report; // of the check that was under way
        }
        let start = Instant::now();
        let health = store.health().await.unwrap_or_else(|error| Health::down(&error));
        let latency = start.elapsed();
        let mut seen = self.seen();
        let status = health.status();
        let since = match &seen.last {
            Some(last) if last.status == status => last.since,
            _ => clock.now(),
        };
        for each in [HealthStatus::Up, HealthStatus::Degraded, HealthStatus::Down] {
            metrics::set(&STORE_HEALTH, [("status", each.as_str())], f64::from(u8::from(each == status)));
        }
        let cause = match health {
            Health::Up => None,
            Health::Degraded(cause) | Health::Down(cause) => Some(cause),
        };
        let report = HealthReport { status, store: store.name(), cause, latency, since };
        seen.checks += 1;
        seen.last = Some(report.clone());
        report
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The result of the last check, if more than this many have completed.
    fn since(&self, checks: u64) -> Option<HealthReport> {
        self.last.clone().filter(|_| self.checks > checks)
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), seen: Mutex::default() }
    }
}
