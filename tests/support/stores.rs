//! Stores in the Redis of a test, and the contract suite.

use std::{sync::Arc, time::Duration};

use tower_keep::{
    HealthStatus, SessionLayer, Sessions,
    store::{
        redis::{RedisConfig, RedisStore},
        testing,
    },
};

/// How long a machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// With a long timeout: no such test is about time.
pub fn patient(config: RedisConfig) -> RedisConfig {
    config.timeout(PATIENCE).connect_timeout(PATIENCE)
}

pub fn sessions(config: RedisConfig) -> Sessions {
    SessionLayer::new(RedisStore::new(config)).sessions()
}

/// Sessions can be created and loaded, and the health is up.
pub async fn assert_serves(config: RedisConfig) {
    let sessions = sessions(patient(config));
    let token = sessions.create("ana").await.unwrap();
    assert!(sessions.is_valid(&token).await.unwrap());
    let health = sessions.health().await;
    assert_eq!((health.status, health.cause), (HealthStatus::Up, None));
}

/// The whole public suite.
pub async fn assert_keeps_the_contract(config: RedisConfig) {
    let report = testing::run(&RedisStore::new(patient(config)), tokio::time::sleep).await;
    report.assert_passed();
    assert!(report.passed() > 8_000, "{report}");
}

/// The concurrent part, on a multi-threaded runtime.
pub async fn assert_keeps_the_contract_for_many(config: RedisConfig) {
    let store = Arc::new(RedisStore::new(patient(config)));
    let report = testing::run_parallel(store, |task| drop(tokio::spawn(task))).await;
    report.assert_passed();
    assert!(report.passed() > 100, "{report}");
}
