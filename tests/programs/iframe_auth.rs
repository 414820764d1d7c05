//! `examples/iframe_auth.rs` as its users run it.

use std::future::Future;

use crate::support::{
    client::{Client, Reply},
    eventually,
    example::{Server, example},
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, task::JoinSet};
use tower_keep::{Clock, SystemClock, Timestamp};

const NAME: &str = "iframe_auth";

async fn create(client: &Client) -> Reply {
    client.request(Method::POST, "/auth/create-session", &[], Bytes::new()).await
}

/// A new session's id.
async fn created(client: &Client) -> String {
    let reply = create(client).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    reply.json()["session_id"].as_str().unwrap().to_owned()
}

async fn validate(client: &Client, session_id: &str) -> Reply {
    client.get(&format!("/auth/validate-session?session_id={session_id}")).await
}

async fn status(client: &Client) -> Value {
    let reply = client.get("/auth/session-status").await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply.json()
}

#[track_caller]
fn assert_invalid(reply: &Reply, reason: &str) {
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.json(), json!({ "valid": false, "reason": reason }));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.set_cookies(), [""; 0]);
}

#[track_caller]
fn assert_away(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(reply.set_cookies(), [""; 0]);
}

/// Milliseconds since the epoch. The string must follow RFC 3339, as the crate writes it.
#[track_caller]
fn moment(value: &Value) -> i64 {
    let text = value.as_str().unwrap();
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((text.len(), &text[10..11], &text[23..]), (24, "T", "Z"), "{text}");
    // Days since the epoch by the civil calendar: March begins the year.
    let (year, month, day) = (number(0, 4) - i64::from(number(5, 7) <= 2), (number(5, 7) + 9) % 12, number(8, 10));
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    (((days * 24 + number(11, 13)) * 60 + number(14, 16)) * 60 + number(17, 19)) * 1000 + number(20, 23)
}

#[test]
fn times_are_parsed_as_the_crate_writes_them() {
    for millis in [0, 951_826_154_321, 1_763_679_600_000, 4_107_542_399_999] {
        assert_eq!(moment(&json!(Timestamp::from_millis(millis).to_string())), millis as i64);
    }
}

/// Without expiry.
fn is_total(key: &str) -> bool {
    key.starts_with("auth_frame:kv:") && key.contains("total_")
}

/// `test` in memory, and with its own Redis.
async fn on_both<F: Future<Output = ()>>(test: impl Fn(Server, &'static str) -> F) {
    test(Server::start(NAME, &[]).await, "memory").await;
    let redis = RedisServer::start().await;
    test(Server::on(NAME, &redis).await, "redis").await;
    for key in redis.keys().await {
        assert!(redis.pttl(&key).await > 0 || key == "auth_session:all" || is_total(&key), "{key} has no TTL");
    }
}

#[tokio::test]
async fn keeps_its_contract() {
    on_both(async |server, storage| {
        let client = server.client();
        let before = SystemClock.now().as_millis() as i64;
        let reply = create(&client).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        assert_eq!(
            (reply.header("content-type"), reply.header("cache-control")),
            (Some("application/json"), Some("no-store"))
        );
        let body = reply.json();
        let session_id = body["session_id"].as_str().unwrap();
        assert_eq!(
            body,
            json!({
                "session_id": session_id,
                "expires_in_minutes": 30,
                "iframe_url": format!("/client/iframe.html?session_id={session_id}"),
                "storage": storage,
            })
        );

        // Opening the page consumes nothing, and neither does HEAD.
        let path = format!("/auth/validate-session?session_id={session_id}");
        let head = client.request(Method::HEAD, &path, &[], Bytes::new()).await;
        assert_eq!(head.status, StatusCode::METHOD_NOT_ALLOWED);
        for _ in 0..2 {
            let page = client.get(body["iframe_url"].as_str().unwrap()).await;
            assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, Some("text/html; charset=utf-8")));
            assert_eq!(
                (page.header("referrer-policy"), page.header("cache-control")),
                (Some("no-referrer"), Some("no-store"))
            );
            assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
            assert!(page.header("x-frame-options").is_none(), "it is there to be embedded");
        }
        assert_eq!(client.get("/client/iframe.js").await.status, StatusCode::OK);
        assert_eq!(client.get("/client/style.css").await.status, StatusCode::OK);

        let counted = |total: u64, active: u64, used: u64| {
            json!({
                "total_sessions": active + used,
                "active_sessions": active,
                "used_sessions": used,
                "total_created": total,
                "total_used": used,
                "max_sessions": 1000,
                "storage": storage,
                "redis_healthy": storage == "redis",
            })
        };
        assert_eq!(status(&client).await, counted(1, 1, 0));

        let reply = validate(&client, session_id).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(
            (reply.header("referrer-policy"), reply.header("cache-control")),
            (Some("no-referrer"), Some("no-store"))
        );
        let valid = reply.json();
        let after = SystemClock.now().as_millis() as i64;
        let names: Vec<_> = valid.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!((&valid["valid"], names), (&json!(true), vec!["created_at", "expires_at", "used_at", "valid"]));
        let (made, used, until) =
            (moment(&valid["created_at"]), moment(&valid["used_at"]), moment(&valid["expires_at"]));
        assert!(before <= made && made <= used && used <= after, "{valid}");
        let lives = until - made;
        assert!((30 * 60_000 - 1000..=30 * 60_000 + 1000).contains(&lives), "{lives} ms");

        // The response to the page.
        let cookie = reply.set_cookies().remove(0);
        for attribute in ["__Host-frame=", "; Secure", "; HttpOnly", "; SameSite=None", "; Partitioned", "; Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let frame = client.get("/client/session").await;
        assert_eq!(frame.status, StatusCode::OK);
        for name in ["created_at", "expires_at", "used_at"] {
            assert_eq!(frame.json()[name], valid[name]);
        }
        assert_eq!(server.client().get("/client/session").await.status, StatusCode::UNAUTHORIZED);

        for _ in 0..2 {
            assert_invalid(&validate(&client, session_id).await, "used");
        }
        assert_eq!(status(&client).await, counted(1, 0, 1));
        assert_eq!(client.get("/client/session").await.status, StatusCode::OK, "a second try changes nothing");

        let health = client.get("/auth/redis-health").await;
        let body = health.json();
        assert!(body["message"].is_string() && moment(&body["timestamp"]) >= before);
        assert_eq!(body.as_object().unwrap().len(), 3);
        match storage {
            "redis" => assert_eq!((health.status, &body["status"]), (StatusCode::OK, &json!("healthy"))),
            _ => assert_eq!((health.status, &body["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unhealthy"))),
        }
    })
    .await;
}

#[tokio::test]
async fn an_invalid_session_has_its_reason() {
    on_both(async |server, _| {
        let client = server.client();
        let good = created(&client).await;
        assert_invalid(&validate(&client, &"x".repeat(56)).await, "unknown");
        assert_invalid(&client.get("/auth/validate-session").await, "malformed");
        for malformed in [
            "",
            "x",
            "550e8400-e29b-41d4-a716-446655440000",
            "%00",
            "%F0%9F%98%80",
            "' OR 1=1 --".replace(' ', "%20").as_str(),
            &format!("{good}%0a"),
            &format!("{good}&session_id={good}"),
            &format!("{good}&session_id=x"),
            &"x".repeat(57),
            &"x".repeat(6000),
        ] {
            assert_invalid(&validate(&client, malformed).await, "malformed");
        }
        let encoded: String = good.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(validate(&client, &encoded).await.status, StatusCode::OK, "the same by another spelling");
        assert_invalid(&validate(&client, &good).await, "used");
    })
    .await;
}

#[tokio::test]
async fn each_handshake_creates_its_own_frame() {
    on_both(async |server, _| {
        let client = server.client();
        for used in 1..=3 {
            let session_id = created(&client).await;
            assert_eq!(validate(&client, &session_id).await.status, StatusCode::OK);
            let status = status(&client).await;
            assert_eq!((&status["used_sessions"], &status["total_used"]), (&json!(used), &json!(used)));
        }
    })
    .await;
}

/// How many of 100 concurrent requests were valid.
async fn race(servers: &[&Server], session_id: &str) -> usize {
    let mut tries = JoinSet::new();
    for i in 0..100 {
        let (client, session_id) = (servers[i % servers.len()].client(), session_id.to_owned());
        tries.spawn(async move { validate(&client, &session_id).await });
    }
    let mut valid = 0;
    for reply in tries.join_all().await {
        match reply.status {
            StatusCode::OK => valid += 1,
            _ => assert_invalid(&reply, "used"),
        }
    }
    valid
}

#[tokio::test]
async fn one_of_a_hundred_concurrent_handshakes_succeeds() {
    on_both(async |server, _| {
        let session_id = created(&server.client()).await;
        assert_eq!(race(&[&server], &session_id).await, 1);
    })
    .await;
}

#[tokio::test]
async fn one_of_a_hundred_handshakes_at_two_processes_succeeds() {
    let redis = RedisServer::start().await;
    let (one, other) = (Server::on(NAME, &redis).await, Server::on(NAME, &redis).await);
    let session_id = created(&one.client()).await;
    assert_eq!(race(&[&one, &other], &session_id).await, 1);
    for server in [&one, &other] {
        let status = status(&server.client()).await;
        assert_eq!((&status["active_sessions"], &status["used_sessions"]), (&json!(0), &json!(1)));
        assert_eq!(
            (&status["total_created"], &status["total_used"]),
            (&json!(1), &json!(1)),
            "counted by all together"
        );
    }
    drop((one, other));
    let status = status(&Server::on(NAME, &redis).await.client()).await;
    assert_eq!((&status["total_created"], &status["total_used"]), (&json!(1), &json!(1)), "and after a restart");
}

#[tokio::test]
async fn the_frame_is_known_to_every_process() {
    let redis = RedisServer::start().await;
    let (one, other) = (Server::on(NAME, &redis).await, Server::on(NAME, &redis).await);
    let client = one.client();
    let session_id = created(&client).await;
    assert_eq!(validate(&client, &session_id).await.status, StatusCode::OK);
    assert_eq!(client.at(&other.url).get("/client/session").await.status, StatusCode::OK);
    drop(one);
    let again = Server::on(NAME, &redis).await;
    assert_eq!(client.at(&again.url).get("/client/session").await.status, StatusCode::OK, "and after a restart");
}

/// The 1001st is refused until another was used.
async fn has_room_for_a_thousand(servers: &[&Server]) {
    let clients: Vec<_> = servers.iter().map(|server| server.client()).collect();
    let mut first = None;
    for i in 0..1000 {
        let session_id = created(&clients[i % clients.len()]).await;
        first.get_or_insert(session_id);
    }
    for client in &clients {
        let refused = create(client).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let message = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains("1000 sessions"), "{message}");
        assert_eq!(status(client).await["active_sessions"], 1000);
    }
    assert_eq!(validate(&clients[0], &first.unwrap()).await.status, StatusCode::OK);
    created(clients.last().unwrap()).await;
    assert_eq!(create(&clients[0]).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn has_room_for_a_thousand_in_memory() {
    has_room_for_a_thousand(&[&Server::start(NAME, &[]).await]).await;
}

#[tokio::test]
async fn has_room_for_a_thousand_in_redis_over_two_processes() {
    let redis = RedisServer::start().await;
    has_room_for_a_thousand(&[&Server::on(NAME, &redis).await, &Server::on(NAME, &redis).await]).await;
}

#[tokio::test]
async fn without_redis_it_reports_it_and_recovers() {
    let mut redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    let client = server.client();
    let session_id = created(&client).await;
    redis.stop();

    assert_away(&create(&client).await);
    assert_away(&validate(&client, &session_id).await);
    let status = client.get("/auth/session-status").await;
    assert_away(&status);
    let status = status.json();
    assert_eq!(
        (&status["redis_healthy"], &status["storage"], &status["max_sessions"]),
        (&json!(false), &json!("redis"), &json!(1000))
    );
    assert!(status["total_sessions"].is_null(), "{status}");
    let health = client.get("/auth/redis-health").await;
    assert_away(&health);
    assert_eq!(health.json()["status"], "unhealthy");
    assert!(!health.text().contains("127.0.0.1"), "the cause is for the log: {health:?}");
    // Routes that need no store are served: the page, and responses that are known without it.
    assert_eq!(client.get(&format!("/client/iframe.html?session_id={session_id}")).await.status, StatusCode::OK);
    assert_invalid(&validate(&client, "x").await, "malformed");

    redis.run().await;
    eventually("it is healthy again", async || client.get("/auth/redis-health").await.status == StatusCode::OK).await;
    // The frames have their own connection, which may recover a moment later. The status uses both.
    eventually("all of it is", async || client.get("/auth/session-status").await.status == StatusCode::OK).await;
    let session_id = created(&client).await;
    assert_eq!(validate(&client, &session_id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn sessions_live_for_half_an_hour_in_redis() {
    let redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    let client = server.client();
    let session_id = created(&client).await;
    let of = async |prefix: &str| -> Vec<String> {
        redis.keys().await.into_iter().filter(|key| key.starts_with(prefix) && key.contains('{')).collect()
    };
    let half_an_hour = 30 * 60_000 - 60_000..=30 * 60_000;
    let handshakes = of("auth_session:").await;
    assert_eq!(handshakes.len(), 1);
    assert!(half_an_hour.contains(&redis.pttl(&handshakes[0]).await));
    assert_eq!(validate(&client, &session_id).await.status, StatusCode::OK);
    let frames = of("auth_frame:").await;
    assert_eq!(frames.len(), 1);
    assert!(half_an_hour.contains(&redis.pttl(&frames[0]).await));
    let stored = [redis.get(&handshakes[0]).await, redis.get(&frames[0]).await].concat();
    assert!(!stored.contains(&session_id) && !handshakes.concat().contains(&session_id), "no token is stored");
}

#[tokio::test]
async fn the_token_is_in_no_log_line() {
    let redis = RedisServer::start().await;
    let mut command = example(NAME);
    command.env("REDIS_URL", redis.url()).env("RUST_LOG", "trace");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut url = String::new();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut url).await.unwrap();
    let client = Client::new(url.trim().strip_prefix("listening on ").unwrap());
    let session_id = created(&client).await;
    client.get(&format!("/client/iframe.html?session_id={session_id}")).await;
    client.get(&format!("/client/iframe.html?a=1&session_id={session_id}")).await;
    client.get(&format!("/nowhere?session_id={session_id}")).await;
    for _ in 0..2 {
        validate(&client, &session_id).await;
    }
    validate(&client, &format!("{session_id}&session_id={session_id}")).await;
    drop(redis);
    validate(&client, &session_id).await;
    child.start_kill().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(log.contains("uri=/client/iframe.html?a=1\n") && log.contains("uri=/auth/validate-session\n"), "{log}");
    assert!(!log.contains(&session_id), "{log}");
}
