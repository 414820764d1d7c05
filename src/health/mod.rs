//! How the store does, for operators and for what starts, stops and routes to processes.
//!
//! * `monitor.rs` — asks the store, and remembers since when it is as it is;
//! * `service.rs` — answers probes over HTTP;
//! * this file — what is answered.

mod monitor;
mod service;

use std::{sync::Arc, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeStruct};

pub(crate) use self::monitor::Monitor;
pub use self::service::{HealthFuture, HealthService};
use crate::{store::health::HealthStatus, time::Timestamp};

/// How the store of a layer does: see [`Sessions::health`](crate::Sessions::health).
///
/// It can be serialized: `{"status":"down","store":"redis","cause":"…","latency_ms":0.4,"since":"2026-02-03T04:05:06.789Z"}`,
/// with a `cause` unless it is up.
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
    /// What operators call the store: `"redis"`, `"memory"`.
    pub store: &'static str,
    /// Why it is not up; `None` when it is. For operators: it may name servers, and holds no password and no token.
    pub cause: Option<Arc<str>>,
    /// How long the check took.
    pub latency: Duration,
    /// When a check first found this status, by the [clock](crate::SessionLayer::clock) of the layer. Checks that find the same do
    /// not move it, even if the cause changes.
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
