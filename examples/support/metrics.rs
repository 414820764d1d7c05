//! `GET /metrics`, for Prometheus.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    http::header,
    routing::{MethodRouter, get},
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::timeout;
use tower_keep::{
    Sessions,
    metrics::{DURATION_BUCKETS, LIFETIME_BUCKETS, PAYLOAD_BUCKETS, describe},
};

/// The content type of the response.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The minimum interval between two counts of live sessions, which scan all of them.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// The maximum time that a scrape waits for a count.
const PATIENCE: Duration = Duration::from_secs(2);

/// The metrics of the process. They show how many sessions come and go: keep them private.
#[derive(Clone)]
pub struct Metrics {
    recorded: PrometheusHandle,
    sessions: Sessions,
    counted: Arc<Mutex<Option<Instant>>>,
}

impl Metrics {
    /// Installs the recorder, once per process.
    pub fn install(sessions: Sessions) -> Result<Self, BuildError> {
        let recorded = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &DURATION_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("session_lifetime_seconds".into()), &LIFETIME_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("session_payload_bytes".into()), &PAYLOAD_BUCKETS)?
            .install_recorder()?;
        describe();
        Ok(Self { recorded, sessions, counted: Arc::default() })
    }

    /// The response to a scrape.
    pub async fn render(&self) -> String {
        if self.is_to_be_counted() {
            // This sets `session_active`. If the store fails, the gauge keeps its value.
            let _ = timeout(PATIENCE, self.sessions.count()).await;
        }
        self.recorded.render()
    }

    fn is_to_be_counted(&self) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted.is_none_or(|last| last.elapsed() >= COUNT_EVERY);
        if due {
            *counted = Some(Instant::now());
        }
        due
    }
}

/// `.route("/metrics", support::metrics::route(sessions)?)`, outside the session layer: a scrape has no session.
pub fn route<S: Clone + Send + Sync + 'static>(sessions: Sessions) -> Result<MethodRouter<S>, BuildError> {
    let metrics = Metrics::install(sessions)?;
    let answer = move || {
        let metrics = metrics.clone();
        async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.render().await) }
    };
    Ok(get(answer))
}
