//! The cost of sessions for a Redis server: calls and microseconds of each operation (`INFO commandstats`), bytes per session, and
//! resolved conflicts per second. Starts its own `redis-server`.
//!
//! ```text
//! cargo bench --bench redis
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use support::{app::App, client::Client, redis_server::RedisServer};
use tokio::task::JoinSet;
use tower_keep::{
    Consumed, Limits, NewSession, SessionCookie, SessionLayer, Token, WhenFull,
    store::{
        Codec,
        redis::{RedisConfig, RedisStore},
    },
};

const TIMES: usize = 2_000;
/// A value of 32 characters.
const VALUE: &str = "0123456789abcdef0123456789abcdef";

#[tokio::main]
async fn main() {
    if std::env::args().any(|arg| arg == "--test") {
        return; // `cargo test --benches` only checks that it starts
    }
    let server = RedisServer::start().await;
    operations(&server).await;
    memory(&server).await;
    conflicts(&server).await;
}

fn layer(server: &RedisServer, change: impl FnOnce(RedisConfig) -> RedisConfig) -> SessionLayer {
    let config = RedisConfig::from_url(&server.url()).unwrap();
    SessionLayer::new(RedisStore::new(change(config))).cookie(SessionCookie::development())
}

/// Calls and microseconds of the server since the last reset, per operation.
async fn costs(server: &RedisServer, what: &str, times: usize) {
    let info = support::redis_server::text(&server.command("INFO commandstats").await);
    let mut named = Vec::new();
    for line in info.lines() {
        let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls=")) else {
            continue;
        };
        let calls: usize = rest.split(',').next().unwrap().parse().unwrap();
        let micros: f64 = rest.split("usec=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        // The time of a script includes its commands. The rest is that of the benchmark.
        if calls >= times && ["get", "pttl", "set", "evalsha", "zscore"].contains(&name) {
            named.push(format!("{name} × {:.0}: {:.1} µs", calls as f64 / times as f64, micros / times as f64));
        }
    }
    println!("{what:40} {}", named.join(", "));
    server.command("CONFIG RESETSTAT").await;
}

async fn operations(server: &RedisServer) {
    println!("operation, as the server sees it: commands, and microseconds for all of them");
    println!("(a script's time has that of the commands within it, which are counted by themselves as well)");
    let layer = layer(server, |config| config);
    let sessions = layer.sessions();
    let mut tokens: Vec<Token> = Vec::new();
    for warm in [true, false] {
        server.command("CONFIG RESETSTAT").await;
        for _ in 0..TIMES {
            sessions.create(NewSession::anonymous().insert("k", VALUE).unwrap()).await.unwrap();
        }
        if !warm {
            costs(server, "create, of nobody", TIMES).await;
        }
        tokens.clear();
        for n in 0..TIMES {
            tokens.push(
                sessions.create(NewSession::of(format!("u{warm}{n}")).insert("k", VALUE).unwrap()).await.unwrap(),
            );
        }
        if !warm {
            costs(server, "create, first of a user", TIMES).await;
        }
    }
    for token in &tokens {
        assert!(sessions.is_valid(token).await.unwrap());
    }
    costs(server, "load", TIMES).await;
    for n in 0..TIMES {
        assert_eq!(sessions.list(&format!("ufalse{n}")).await.unwrap().len(), 1);
    }
    costs(server, "list, one session", TIMES).await;
    for token in &tokens[..TIMES / 2] {
        assert!(sessions.revoke(&token.id()).await.unwrap());
    }
    costs(server, "revoke", TIMES / 2).await;
    for token in &tokens[TIMES / 2..] {
        assert!(matches!(sessions.consume(token).await.unwrap(), Consumed::Now(_)));
    }
    costs(server, "consume", TIMES / 2).await;

    let limited = layer.clone().limits(Limits::per_user(5, WhenFull::EvictLeastRecentlyUsed));
    for _ in 0..5 {
        limited.sessions().create("full").await.unwrap();
    }
    server.command("CONFIG RESETSTAT").await;
    for _ in 0..TIMES {
        limited.sessions().create("full").await.unwrap();
    }
    costs(server, "create, evict one of five", TIMES).await;
    for n in 0..TIMES {
        for _ in 0..10 {
            sessions.create(format!("ten{n}")).await.unwrap();
        }
    }
    server.command("CONFIG RESETSTAT").await;
    for n in 0..TIMES {
        assert_eq!(sessions.revoke_user(&format!("ten{n}")).await.unwrap(), 10);
    }
    costs(server, "revoke all ten of a user", TIMES).await;

    let app = App::start(layer.clone()).await;
    let client = logged_in(&app).await;
    client.perform(serde_json::json!([["rotate"], ["insert", "k", 0]])).await;
    server.command("CONFIG RESETSTAT").await;
    for n in 1..=TIMES {
        client.one(serde_json::json!(["insert", "k", n])).await;
    }
    costs(server, "request that writes (load, update)", TIMES).await;
    for _ in 0..TIMES {
        client.one(serde_json::json!(["rotate"])).await;
    }
    costs(server, "request that rotates (load, update)", TIMES).await;
    println!();
}

async fn logged_in(app: &App) -> Client {
    let client = app.client();
    client.one(serde_json::json!(["login", "ana"])).await;
    client
}

/// `used_memory` for many sessions, with everything that belongs to them.
async fn memory(server: &RedisServer) {
    println!("bytes a session in Redis: a user and a value of 32 characters, with index and time to live");
    const SESSIONS: usize = 20_000;
    for (name, codec) in [("JSON", Codec::Json), ("MessagePack", Codec::MessagePack)] {
        for each in [0, 1, 2, 5, 10, 50] {
            server.command("FLUSHALL").await;
            let sessions = layer(server, |config| config.codec(codec)).sessions();
            let before = used(server).await;
            let mut tasks = JoinSet::new();
            for part in 0..20 {
                let sessions = sessions.clone();
                tasks.spawn(async move {
                    for n in 0..SESSIONS / 20 {
                        let new = match each {
                            0 => NewSession::anonymous(),
                            each => NewSession::of(format!("user{part:02}{:06}", n / each)),
                        };
                        sessions.create(new.insert("v", VALUE).unwrap()).await.unwrap();
                    }
                });
            }
            tasks.join_all().await;
            let bytes = (used(server).await - before) as f64 / SESSIONS as f64;
            let whose = if each == 0 { "of nobody, no index".to_owned() } else { format!("{each} a user") };
            println!("{name:12} {whose:20} {bytes:.0}");
        }
    }
    println!();
}

async fn used(server: &RedisServer) -> u64 {
    let info = support::redis_server::text(&server.command("INFO memory").await);
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

async fn conflicts(server: &RedisServer) {
    println!("64 writers of one session, 50 writes each, over HTTP; loads and saves compete");
    let layer = layer(server, |config| config);
    let apps = [App::start(layer.clone()).await, App::start(layer.clone()).await];
    let client = logged_in(&apps[0]).await;
    let before = layer.stats().conflicts;
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for n in 0..64 {
        let writer = client.at(&apps[n % 2].url());
        writers.spawn(async move {
            for value in 0..50 {
                writer.one(serde_json::json!(["insert", format!("k{n}"), value])).await;
            }
        });
    }
    writers.join_all().await;
    let (seconds, conflicts) = (begun.elapsed().as_secs_f64(), layer.stats().conflicts - before);
    println!("{:.0} writes and {:.0} conflicts resolved a second", 3200.0 / seconds, conflicts as f64 / seconds);
}
