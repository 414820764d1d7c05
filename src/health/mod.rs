//! Health of the store, for operators and probes.

mod monitor;
mod service;

use std::{sync::Arc, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeStruct};

pub(crate) use self::monitor::Monitor;
pub use self::service::{HealthFuture, HealthService};
use crate::{store::health::HealthStatus, time::Timestamp};

/// The health of the store of a layer: see [`Sessions::health`](crate::Sessions::health).
///
/// It serializes as `{"status":"down","store":"redis","cause":"…","latency_ms":0.4,"since":"2026-02-03T04:05:06.789Z"}`, with a
/// `cause` unless the status is up.
///
/// ```
/// use tower_keep::{HealthStatus, MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), serde_json::Error> {
/// let health = SessionLayer::new(MemoryStore::new()).sessions().health().await;
/// assert_eq!((health.status, health.store, health.cause.as_deref()), (HealthStatus::Up, "memory", None));
/// assert!(serde_json::to_string(&health)?.starts_with(r#"{"status":"up","store":"memory","latency_ms":"#));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// Up, degraded or down.
    pub status: HealthStatus,
    /// The name of the store: `"redis"`, `"memory"`.
    pub store: &'static str,
    /// Why the store is not up. For operators: it may name servers. It contains no password and no token.
    pub cause: Option<Arc<str>>,
    /// The duration of the check.
    pub latency: Duration,
    /// When a check first found this status, by the [clock](crate::SessionLayer::clock) of the layer. It does not change while the
    /// status stays the same, even if the cause changes.
    pub since: Timestamp,
}

impl Serialize for HealthReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("HealthReport", 4 + usize::from(self.cause.is_some()))?;
        report.serialize_field("status", self.status.as_str())?;
        report.serialize_field("store", self.store)?;
        match &self.cause {
            Some(cause) => report.serialize_field("cause", cause)?,
            None => report.skip_field("cause")?,
        }
        report.serialize_field("latency_ms", &(self.latency.as_micros() as f64 / 1000.0))?;
        report.serialize_field("since", &self.since.to_string())?;
        report.end()
    }
}
