//! The test harness: real Redis servers, a real HTTP server whose handlers do what a request says, and a
//! client with a cookie jar.

#![allow(dead_code)] // each test binary uses a part

pub mod app;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod dir;
pub mod example;
pub mod log;
pub mod port;
pub mod process;
pub mod proxy;
pub mod records;
pub mod redis_server;
pub mod sentinel;
pub mod service;
pub mod spy;
pub mod stores;
pub mod tls_front;
pub mod watch;

use std::time::Duration;

/// Waits until `condition` holds. The limit only ends broken tests: on a busy machine a Sentinel that distrusts its clock
/// pauses for 30 seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..12_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
