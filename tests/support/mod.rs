//! What the tests stand on: real Redis servers, a real HTTP server whose handlers do what a request tells them, and a
//! client with a cookie jar.

#![allow(dead_code)] // each test binary uses its part

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

/// Waits until `condition` holds. The limit is only there so that a broken test ends: on a machine that is so busy that a Sentinel
/// mistrusts its clock, that one alone does nothing for 30 seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..12_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
