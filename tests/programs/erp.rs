//! The example `erp` as its users run it: every row of its contract, in memory and in Redis.
//!
//! `cargo test` builds it; after `cargo test --test programs` alone it may be missing, or old: `cargo build --examples`.

use crate::support::{
    client::{Client, Reply},
    eventually,
    example::{Server, example},
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const DAY: i64 = 24 * 60 * 60 * 1000;

async fn login(client: &Client, user: &str) -> Reply {
    client.post("/api/auth/login", &json!({ "username": user, "password": user })).await
}

async fn logged_in(server: &Server, user: &str) -> Client {
    let client = server.client();
    let reply = login(&client, user).await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({ "success": true })));
    assert_eq!(reply.set_cookies().len(), 1);
    client
}

async fn send(client: &Client, method: &str, path: &str, body: &str) -> Reply {
    client.request(Method::from_bytes(method.as_bytes()).unwrap(), path, &[], Bytes::from(body.to_owned())).await
}

async fn answer(client: &Client, method: &str, path: &str, body: &str) -> Value {
    let reply = send(client, method, path, body).await;
    assert_eq!(reply.status, StatusCode::OK, "{method} {path}: {reply:?}");
    reply.json()
}

async fn assert_known(client: &Client, user: &str) {
    let reply = client.get("/api/user/profile").await;
    let expected = json!({ "userId": format!("user-{user}"), "username": user });
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, expected));
}

async fn assert_unknown(client: &Client) {
    let reply = client.get("/api/user/profile").await;
    assert_eq!((reply.status, reply.json()), (StatusCode::UNAUTHORIZED, json!({ "error": "Not authenticated" })));
}

async fn stats(client: &Client) -> Value {
    answer(client, "GET", "/api/session/stats", "").await
}

fn expected_stats(store: &str, sessions: u64, connected: bool, fallback: bool, keys: u64) -> Value {
    json!({
        "success": true,
        "store": store,
        "totalSessions": sessions,
        "redisStats": { "connected": connected, "usingFallback": fallback, "inMemoryKeys": keys },
    })
}

/// Sessions: the contract, with any store.
async fn keeps_its_contract(server: &Server) {
    let nobody = server.client();
    assert_unknown(&nobody).await;
    let wrong = nobody.post("/api/auth/login", &json!({ "username": "ana", "password": "ben" })).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(wrong.set_cookies().is_empty());

    let ana = logged_in(server, "ana").await;
    assert_known(&ana, "ana").await;
    let stolen = ana.twin();
    assert_eq!(answer(&ana, "PUT", "/api/cart/apples", "3").await, json!({ "cart": { "apples": 3 } }));
    assert_eq!(answer(&ana, "PUT", "/api/cart/pears", "1").await, json!({ "cart": { "apples": 3, "pears": 1 } }));
    assert_eq!(answer(&ana, "DELETE", "/api/cart/apples", "").await, json!({ "cart": { "pears": 1 } }));
    assert_eq!(answer(&ana, "GET", "/api/cart", "").await, json!({ "cart": { "pears": 1 } }));
    assert_eq!(answer(&ana, "DELETE", "/api/cart", "").await, json!({ "cart": {} }));
    assert_eq!(answer(&ana, "GET", "/api/cart", "").await, json!({ "cart": {} }));
    assert_eq!(send(&ana, "PUT", "/api/cart/apples", "many").await.status, StatusCode::BAD_REQUEST);

    assert_eq!(answer(&ana, "POST", "/api/auth/logout", "").await, json!({ "success": true }));
    assert_unknown(&ana).await;
    assert_unknown(&stolen).await;
    for (method, path) in [("GET", "/api/cart"), ("GET", "/api/kv/a"), ("PUT", "/api/kv/a"), ("GET", "/api/kv?keys=a")]
    {
        assert_eq!(send(&ana, method, path, "1").await.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

/// The key-value service: each operation.
async fn keeps_values(server: &Server) {
    let ana = &logged_in(server, "ana").await;
    assert_eq!(send(ana, "GET", "/api/kv/a", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(answer(ana, "GET", "/api/kv/a/exists", "").await, json!({ "exists": false }));
    assert_eq!(answer(ana, "PUT", "/api/kv/a", "hello").await, json!({ "success": true }));
    assert_eq!(send(ana, "GET", "/api/kv/a", "").await.text(), "hello");
    assert_eq!(answer(ana, "GET", "/api/kv/a/exists", "").await, json!({ "exists": true }));
    assert_eq!(answer(ana, "PUT", "/api/kv/b?ttl=600", "world").await, json!({ "success": true }));
    let found = answer(ana, "GET", "/api/kv?keys=a,c,b", "").await;
    assert_eq!(found, json!({ "values": { "a": "hello", "b": "world", "c": null } }));
    assert_eq!(answer(ana, "POST", "/api/kv/a/expire?ttl=60", "").await, json!({ "exists": true }));
    assert_eq!(answer(ana, "POST", "/api/kv/c/expire?ttl=60", "").await, json!({ "exists": false }));
    assert_eq!(send(ana, "POST", "/api/kv/a/expire", "").await.status, StatusCode::BAD_REQUEST);

    assert_eq!(answer(ana, "POST", "/api/kv/invoices/incr", "").await, json!({ "value": 1 }));
    assert_eq!(answer(ana, "POST", "/api/kv/invoices/incr?by=-3", "").await, json!({ "value": -2 }));
    assert_eq!(send(ana, "POST", "/api/kv/a/incr", "").await.status, StatusCode::CONFLICT);

    let mut keys = Vec::new();
    let mut cursor = Some(String::new());
    while let Some(from) = cursor {
        let page = answer(ana, "GET", &format!("/api/kv?pattern=[a-z]&count=1&cursor={from}"), "").await;
        keys.extend(page["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()));
        cursor = page["cursor"].as_str().map(str::to_owned);
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(answer(ana, "DELETE", "/api/kv/a", "").await, json!({ "deleted": true }));
    assert_eq!(answer(ana, "DELETE", "/api/kv/a", "").await, json!({ "deleted": false }));
    assert_eq!(send(ana, "GET", "/api/kv", "").await.status, StatusCode::BAD_REQUEST);
    answer(ana, "POST", "/api/auth/logout", "").await;
}

#[tokio::test]
async fn in_memory_without_settings() {
    let server = Server::start("erp", &[]).await;
    assert_eq!(stats(&server.client()).await, expected_stats("memory", 0, false, true, 0));
    keeps_its_contract(&server).await;
    keeps_values(&server).await;
    let ana = logged_in(&server, "ana").await;
    assert_eq!(stats(&ana).await, expected_stats("memory", 1, false, true, 2));
    let status = answer(&ana, "GET", "/api/kv-status", "").await;
    assert_eq!(status, json!({ "ready": false, "connected": false, "usingFallback": true, "inMemoryKeys": 2 }));
}

#[tokio::test]
async fn in_redis_every_key_begins_with_the_prefix_and_a_session_lives_for_24_hours() {
    let redis = RedisServer::start().await;
    let server = Server::on("erp", &redis).await;
    keeps_its_contract(&server).await;
    keeps_values(&server).await;
    for user in ["ana", "ben", "cid", "dan", "eve"] {
        logged_in(&server, user).await;
    }
    assert_eq!(stats(&server.client()).await, expected_stats("redis", 5, true, false, 0));
    let status = answer(&server.client(), "GET", "/api/kv-status", "").await;
    assert_eq!(status, json!({ "ready": true, "connected": true, "usingFallback": false, "inMemoryKeys": 0 }));
    let sessions = redis.sessions().await;
    assert_eq!(sessions.len(), 5);
    for session in sessions {
        assert!((DAY - 60_000..=DAY).contains(&redis.pttl(&session).await), "{session}");
    }
    for key in redis.keys().await {
        assert!(key.starts_with("sess:"), "{key}");
        let forever = ["sess:kv:invoices"].contains(&&*key);
        assert_eq!(redis.pttl(&key).await < 0, forever, "{key}");
    }
}

#[tokio::test]
async fn activity_extends_a_session_unless_disabled() {
    let redis = RedisServer::start().await;
    let hour = 60 * 60 * 1000;
    for (touch, expected) in [("", DAY), ("true", DAY), ("false", hour)] {
        redis.command("FLUSHALL").await;
        let server = Server::start("erp", &[("REDIS_URL", &redis.url()), ("SESSION_TOUCH", touch)]).await;
        let ana = logged_in(&server, "ana").await;
        let [session] = &*redis.sessions().await else { panic!("one session") };
        // As after 23 hours without activity.
        redis.command(&format!("PEXPIRE {session} {hour}")).await;
        assert_known(&ana, "ana").await;
        let left = redis.pttl(session).await;
        assert!((expected - 60_000..=expected).contains(&left), "{touch}: {left}");
    }
    let output = example("erp").env("SESSION_TOUCH", "perhaps").output().await.unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: SESSION_TOUCH: neither true nor false\n");
}

#[tokio::test]
async fn two_processes_share_sessions_and_values() {
    let redis = RedisServer::start().await;
    let (one, two) = (Server::on("erp", &redis).await, Server::on("erp", &redis).await);
    let here = logged_in(&one, "ana").await;
    let there = here.at(&two.url);
    assert_known(&there, "ana").await;
    assert_eq!(answer(&here, "POST", "/api/kv/n/incr", "").await, json!({ "value": 1 }));
    assert_eq!(answer(&there, "POST", "/api/kv/n/incr", "").await, json!({ "value": 2 }));
    answer(&there, "POST", "/api/auth/logout", "").await;
    assert_unknown(&here).await;
}

#[tokio::test]
async fn without_redis_memory_serves_and_changes_are_replayed() {
    let mut redis = RedisServer::start().await;
    let server = Server::on("erp", &redis).await;
    let ana = logged_in(&server, "ana").await;
    answer(&ana, "PUT", "/api/kv/before", "1").await;
    redis.stop();
    assert_known(&ana, "ana").await;
    let ben = logged_in(&server, "ben").await;
    assert_known(&ben, "ben").await;
    assert_eq!(stats(&ana).await, expected_stats("memory", 2, false, true, 0));
    assert_eq!(send(&ana, "GET", "/api/kv/before", "").await.status, StatusCode::NOT_FOUND);
    keeps_values(&server).await;
    keeps_its_contract(&server).await;
    assert_eq!(stats(&ana).await, expected_stats("memory", 2, false, true, 2));

    redis.run().await; // empty
    eventually("Redis is back", async || stats(&ana).await["store"] == "redis").await;
    assert_known(&ben, "ben").await;
    assert_eq!(redis.get("sess:kv:invoices").await, "-2");
    assert_eq!(redis.get("sess:kv:b").await, "world");
    let left = redis.pttl("sess:kv:b").await;
    assert!((1..=600_000).contains(&left), "{left}");
    let keys = redis.keys().await;
    assert!(!keys.contains(&"sess:kv:a".into()) && !keys.contains(&"sess:kv:before".into()), "{keys:?}");
    let stats = stats(&ana).await;
    assert_eq!(stats["redisStats"], json!({ "connected": true, "usingFallback": false, "inMemoryKeys": 0 }));
}

#[tokio::test]
async fn redis_is_down_when_the_program_starts() {
    let mut redis = RedisServer::stopped();
    let server = Server::on("erp", &redis).await;
    let ana = logged_in(&server, "ana").await;
    answer(&ana, "PUT", "/api/kv/a", "1").await;
    assert_eq!(stats(&ana).await, expected_stats("memory", 1, false, true, 1));
    redis.run().await;
    eventually("Redis is there", async || stats(&ana).await["store"] == "redis").await;
    assert_known(&ana, "ana").await;
    assert_eq!(redis.get("sess:kv:a").await, "1");
}

#[tokio::test]
async fn a_full_redis_is_not_down() {
    let redis = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let server = Server::on("erp", &redis).await;
    let ana = logged_in(&server, "ana").await;
    answer(&ana, "PUT", "/api/kv/a", "1").await;
    redis.command("CONFIG SET maxmemory 1").await;

    let refused = login(&server.client(), "ben").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.set_cookies().is_empty() && refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(send(&ana, "PUT", "/api/cart/apples", "1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_known(&ana, "ana").await;
    assert_eq!(answer(&ana, "GET", "/api/cart", "").await, json!({ "cart": {} }), "nothing was acknowledged");

    let refused = send(&ana, "PUT", "/api/kv/b", "1").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(send(&ana, "POST", "/api/kv/a/incr", "").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(send(&ana, "GET", "/api/kv/a", "").await.text(), "1");
    assert_eq!(stats(&ana).await, expected_stats("redis", 1, true, false, 0));

    redis.command("CONFIG SET maxmemory 0").await;
    logged_in(&server, "ben").await;
    answer(&ana, "PUT", "/api/kv/b", "1").await;
}

#[tokio::test]
async fn an_invalid_variable_is_one_line_and_sigterm_ends_it() {
    let output = example("erp").env("REDIS_PORT", "seventy").output().await.unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: REDIS_PORT: not a port number\n");
    let mut server = Server::start("erp", &[]).await;
    logged_in(&server, "ana").await;
    assert_eq!(server.terminate().await.code(), Some(0));
}
