//! The cost of kinds of connections: reads per second of 64 callers, over the store's own connection and over a pool of the application,
//! compared with the same commands, and a bare `GET`, on one multiplexed connection of the client library. Starts its own `redis-server`.
//!
//! Rounds of all kinds alternate, so other load on the machine affects all alike. Compare the ratios within a round.
//!
//! ```text
//! cargo bench --bench connections
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;
use support::redis_server::RedisServer;
use tokio::task::JoinSet;
use tower_keep::{
    SessionId, SessionLayer,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const CALLERS: usize = 64;
const READS: usize = 400;
const ROUNDS: usize = 15;

#[tokio::main]
async fn main() {
    if std::env::args().any(|arg| arg == "--test") {
        return; // `cargo test --benches` only checks that it starts
    }
    let server = RedisServer::start().await;
    // No request may time out, however busy the machine is.
    let patient = |config: RedisConfig| RedisStore::new(config.timeout(Duration::from_secs(60)));
    let own = patient(RedisConfig::from_url(&server.url()).unwrap());
    let pool = |size| {
        let manager = bb8_redis::RedisConnectionManager::new(server.url()).unwrap();
        patient(RedisConfig::from_pool(bb8::Pool::builder().max_size(size).build_unchecked(manager)))
    };
    let id = SessionLayer::new(own.clone()).sessions().create("ana").await.unwrap().id();
    let keys = server.sessions().await;
    let key: Arc<str> = keys[0].as_str().into();
    let epoch: Arc<str> = format!("{}:epoch", key.rsplit_once(':').unwrap().0).into();
    let stores = [("own connection", own), ("bb8 pool of 1", pool(1)), ("bb8 pool of 10", pool(10))];
    let bare = server.connect().await.unwrap();

    let mut named: Vec<(String, Vec<f64>)> = Vec::new();
    let mut note = |name: String, reads| match named.iter_mut().find(|(known, _)| *known == name) {
        Some((_, all)) => all.push(reads),
        None => named.push((name, Vec::new())), // the first round warms up
    };
    for _ in 0..=ROUNDS {
        let (connection, held) = (bare.clone(), key.clone());
        note("bare GET, multiplexed".into(), reads(move || get(connection.clone(), held.clone())).await);
        let (connection, held) = (bare.clone(), (key.clone(), epoch.clone()));
        note("GET, GET, PTTL in one pipeline".into(), reads(move || three(connection.clone(), held.clone())).await);
        for (name, store) in &stores {
            let store = store.clone();
            note(format!("load, {name}"), reads(move || load(store.clone(), id)).await);
        }
    }
    let base = named[0].1.clone();
    println!(
        "{CALLERS} callers, {ROUNDS} rounds: median reads a second, and the median of the rounds' ratios to the first"
    );
    for (name, all) in named {
        let ratios = all.iter().zip(&base).map(|(reads, base)| reads / base).collect();
        println!("{name:36} {:>9.0}  {:.2}", median(all), median(ratios));
    }
}

/// Reads per second.
async fn reads<F: Future<Output = ()> + Send + 'static>(read: impl Fn() -> F + Clone + Send + 'static) -> f64 {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let read = read.clone();
        callers.spawn(async move {
            for _ in 0..READS {
                read().await;
            }
        });
    }
    callers.join_all().await;
    (CALLERS * READS) as f64 / began.elapsed().as_secs_f64()
}

async fn get(mut connection: MultiplexedConnection, key: Arc<str>) {
    let found: Vec<u8> = redis::cmd("GET").arg(&*key).query_async(&mut connection).await.unwrap();
    assert!(!found.is_empty());
}

async fn three(mut connection: MultiplexedConnection, (key, epoch): (Arc<str>, Arc<str>)) {
    let mut pipeline = redis::pipe();
    pipeline.get(&*epoch).get(&*key).pttl(&*key);
    let (_, found, ttl): (Option<u64>, Vec<u8>, i64) = pipeline.query_async(&mut connection).await.unwrap();
    assert!(!found.is_empty() && ttl > 0);
}

async fn load(store: RedisStore, id: SessionId) {
    assert!(store.load(&id).await.unwrap().live().is_some());
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
