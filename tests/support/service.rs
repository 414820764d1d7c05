//! A service whose Redis fails: its responses during the fault, and afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower_keep::{
    Clock, HealthStatus, OnOutage, SessionLayer, Timestamp,
    store::redis::{RedisConfig, RedisStore},
};

use super::{
    app::App,
    client::{Client, Reply},
    eventually,
};

pub const COOKIE: &str = "__Host-session";
pub const OK: StatusCode = StatusCode::OK;
pub const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
pub const HOUR: i64 = 3_600_000;

/// A service, a tolerant route, and a logged-in client with `k` = 1.
pub struct Service {
    pub layer: SessionLayer,
    pub app: App,
    pub tolerant: App,
    pub client: Client,
}

impl Service {
    /// With the default timeout.
    pub async fn at(url: &str) -> Self {
        let service = Self::with(RedisConfig::from_url(url).unwrap()).await;
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        service
    }

    /// Without a login.
    pub async fn with(config: RedisConfig) -> Self {
        Self::of(SessionLayer::new(RedisStore::new(config))).await
    }

    /// Without a login.
    pub async fn of(layer: SessionLayer) -> Self {
        let app = App::start(layer.clone()).await;
        let tolerant = App::start(layer.clone().on_outage(OnOutage::Anonymous)).await;
        let client = app.client();
        Self { layer, app, tolerant, client }
    }

    pub async fn health(&self) -> HealthStatus {
        self.layer.sessions().health().await.status
    }

    pub async fn read(&self) -> Reply {
        answer(&self.client, json!([["get", "k"]])).await
    }

    pub async fn write(&self, value: u32) -> Reply {
        answer(&self.client, json!([["insert", "k", value]])).await
    }

    pub async fn serves_the_public(&self) {
        assert_eq!(self.client.get("/public").await.status, OK);
    }

    /// No session can be read.
    pub async fn is_out(&self) {
        self.serves_the_public().await;
        assert_unavailable(&self.read().await);
        assert_unavailable(&self.write(99).await);
        self.serves_the_public().await;

        let tolerated = self.client.at(&self.tolerant.url());
        let seen = answer(&tolerated, json!([["is_degraded"], ["get", "k"], ["user"]])).await;
        assert_eq!((seen.status, seen.set_cookies()), (OK, vec![]));
        assert_eq!(seen.json(), json!([true, null, null]));
        // An anonymous response is tolerated, a lost write is not.
        let unsaved = answer(&tolerated, json!([["insert", "k", 99]])).await;
        assert_eq!((unsaved.status, unsaved.set_cookies()), (UNAVAILABLE, vec![]));
    }

    /// Sessions can be read and not written.
    pub async fn only_reads(&self) {
        self.serves_the_public().await;
        for change in [json!(["insert", "k", 99]), json!(["rotate"]), json!(["login", "ben"])] {
            assert_unavailable(&answer(&self.client, json!([change])).await);
            let read = self.read().await;
            assert_eq!((read.status, read.text()), (OK, "[1]".into()), "after a failed {change}");
        }
        assert_unavailable(&answer(&self.app.client(), json!([["insert", "k", 1]])).await);
    }

    /// The service recovers by itself, with the same cookie and the last saved `k`.
    pub async fn resumes(&self, value: u32) {
        eventually("serving resumes", async || self.read().await.status == OK).await;
        assert_eq!(self.read().await.json(), json!([value]));
        eventually("writing resumes", async || self.write(value + 1).await.status == OK).await;
        assert_eq!(self.read().await.json(), json!([value + 1]));
        let tolerated = self.client.at(&self.tolerant.url());
        assert_eq!(answer(&tolerated, json!([["is_degraded"], ["user"]])).await.json(), json!([false, "ana"]));
        assert_eq!(self.health().await, HealthStatus::Up);
    }
}

/// The response of the service. Only hanging operations take seconds.
pub async fn answer(client: &Client, steps: Value) -> Reply {
    timeout(Duration::from_secs(10), client.post("/do", &steps)).await.expect("the request hangs")
}

pub fn assert_unavailable(reply: &Reply) {
    assert_eq!(reply.status, UNAVAILABLE, "{reply:?}");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(reply.set_cookies(), [""; 0]);
}

/// A clock that the test sets.
#[derive(Clone, Default)]
pub struct WrongClock(Arc<AtomicI64>);

impl Clock for WrongClock {
    fn now(&self) -> Timestamp {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        Timestamp::from_millis((now + self.0.load(Ordering::SeqCst)) as u64)
    }
}

impl WrongClock {
    /// By so many milliseconds.
    pub fn is_off_by(&self, millis: i64) {
        self.0.store(millis, Ordering::SeqCst);
    }
}
