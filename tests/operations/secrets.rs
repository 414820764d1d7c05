//! Places where tokens and passwords must never appear: Redis commands, stored values, and logs.

use std::time::Duration;

use crate::support::{app::App, client::Client, eventually, log::Log, redis_server::RedisServer};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tower_keep::{
    Bearer, Lifetime, SessionLayer, Token,
    store::redis::{RedisConfig, RedisStore},
};

const COOKIE: &str = "__Host-session";
const PASSWORD: &str = "open%2Fsesame!"; // percent-encoded, as in a URL
const PLAIN_PASSWORD: &str = "open/sesame!";

fn layer(config: RedisConfig) -> SessionLayer {
    let lifetime = Lifetime::default().touch_every(Duration::ZERO); // reads also write
    SessionLayer::new(RedisStore::new(config)).bearer(Bearer::new()).lifetime(lifetime)
}

fn config(server: &RedisServer) -> RedisConfig {
    RedisConfig::from_url(&server.url()).unwrap().timeout(Duration::from_secs(10))
}

/// All tokens that a client received.
#[derive(Default)]
struct Tokens(Vec<String>);

impl Tokens {
    fn add(&mut self, token: impl Into<String>) {
        let token = token.into();
        assert!(matches!(token.len(), 56 | 72), "{token}");
        if !self.0.contains(&token) {
            self.0.push(token);
        }
    }

    /// `text` has no secret part of a token, and no proof. The first 12 characters are not secret.
    fn assert_not_in(&self, text: &str) {
        for token in &self.0 {
            let (secret, proof) = token[12..].split_at(44);
            assert!(!text.contains(secret), "a token in: {text}");
            assert!(proof.is_empty() || !text.contains(proof), "the proof of a token in: {text}");
        }
    }
}

/// A complete session by cookie: anonymous, login, read, write, rotate, logout, and the invalid token again.
async fn live_by_cookie(app: &App, tokens: &mut Tokens) {
    let client = app.client();
    let flow = [
        json!([["insert", "cart", "tea"]]),
        json!([["get", "cart"]]),
        json!([["login", "ana"], ["insert", "k", 1]]),
        json!([["get", "k"], ["user"]]),
        json!([["insert", "k", 2], ["save"], ["insert", "k", 3]]),
        json!([["rotate"], ["insert", "k", 4]]),
        json!([["get", "k"], ["lifetime", 3600, 86_400, true]]),
        json!([["login", "ben"]]),
        json!([["clear"], ["insert", "k", 5]]),
    ];
    for steps in flow {
        client.perform(steps).await;
        tokens.add(client.cookie(COOKIE).unwrap());
    }
    let dead = client.twin();
    client.one(json!(["logout"])).await;
    assert_eq!(dead.one(json!(["user"])).await, json!(null));
    assert_eq!(tokens.0.len(), 4, "four sessions, four tokens");
}

async fn with_bearer(client: &Client, token: &str, steps: Value) -> Vec<Value> {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", &*authorization), ("content-type", "application/json")];
    let reply = client.request(Method::POST, "/do", &headers, Bytes::from(steps.to_string())).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert!(reply.set_cookies().is_empty());
    reply.json().as_array().unwrap().clone()
}

/// The same by bearer token.
async fn live_by_bearer(app: &App, layer: &SessionLayer, tokens: &mut Tokens) {
    let client = app.client();
    let mut token = layer.sessions().create("ana").await.unwrap().expose().to_owned();
    tokens.add(&*token);
    for change in [json!(["insert", "k", 1]), json!(["rotate"]), json!(["login", "ben"])] {
        let results = with_bearer(&client, &token, json!([["user"], change, ["save"], ["token"]])).await;
        token = results[3].as_str().unwrap().to_owned();
        tokens.add(&*token);
    }
    with_bearer(&client, &token, json!([["logout"]])).await;
    assert_eq!(with_bearer(&client, &token, json!([["user"]])).await, [json!(null)]);
    assert!(tokens.0.len() >= 3);
}

#[tokio::test]
async fn no_redis_command_contains_a_token() {
    let server = RedisServer::start().await;
    let layer = layer(config(&server));
    let app = App::start(layer.clone()).await;
    let mut monitor = server.monitor().await;
    let mut tokens = Tokens::default();
    live_by_cookie(&app, &mut tokens).await;
    live_by_bearer(&app, &layer, &mut tokens).await;
    let commands = monitor.so_far().await;
    for name in ["\"GET\"", "\"SET\"", "\"EVALSHA\"", "\"EVAL\"", "\"PTTL\""] {
        assert!(commands.iter().any(|line| line.contains(name)), "the monitor saw no {name}");
    }
    for command in commands {
        tokens.assert_not_in(&command);
    }
}

#[tokio::test]
async fn no_stored_value_contains_a_token() {
    let server = RedisServer::start().await;
    let app = App::start(layer(config(&server))).await;
    let mut tokens = Tokens::default();
    for _ in 0..3 {
        let client = app.client();
        for step in [json!(["insert", "k", 1]), json!(["login", "ana"]), json!(["rotate"])] {
            client.one(step).await;
            tokens.add(client.cookie(COOKIE).unwrap());
        }
    }
    // Three sessions, the tombstones of the three anonymous ones before, and the index.
    let keys = server.keys().await;
    assert_eq!(keys.len(), 7);
    for key in keys {
        tokens.assert_not_in(&key);
        if key.len() > "sess:{AAAAAAAAAAAA}".len() {
            tokens.assert_not_in(&server.get(&key).await);
        } else {
            tokens.assert_not_in(&format!("{:?}", server.command(&format!("ZRANGE {key} 0 -1")).await));
        }
    }
}

#[tokio::test]
async fn no_token_is_logged() {
    let log = Log::capture();
    let mut server = RedisServer::start().await;
    let layer = layer(RedisConfig::from_url(&server.url()).unwrap());
    let app = App::start(layer.clone()).await;
    let mut tokens = Tokens::default();
    live_by_cookie(&app, &mut tokens).await;
    live_by_bearer(&app, &layer, &mut tokens).await;

    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    tokens.add(client.cookie(COOKIE).unwrap());
    let out = async || {
        let read = client.post("/do", &json!([["get", "k"]])).await;
        assert_eq!(read.status, StatusCode::SERVICE_UNAVAILABLE);
    };
    let back = async || client.post("/do", &json!([["get", "k"]])).await.status == StatusCode::OK;

    // A session that is corrupt, or has the wrong type.
    let id = Token::parse(client.cookie(COOKIE).unwrap()).unwrap().id().to_string();
    let key = format!("sess:{{{}}}:{}", &id[..12], &id[12..]);
    let record = server.get(&key).await;
    for content in [format!("SET {key} x"), format!("LPUSH {key} x")] {
        server.command(&format!("DEL {key}")).await;
        server.command(&content).await;
        out().await;
    }
    server.command(&format!("DEL {key}")).await;
    server.command(&format!("SET {key} {record} PX 600000")).await;
    assert!(back().await);

    // Failing writes.
    server.command("CONFIG SET maxmemory 1").await;
    for step in [json!(["insert", "k", 1]), json!(["rotate"]), json!(["login", "ben"])] {
        assert_eq!(client.post("/do", &json!([step])).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    server.command("CONFIG SET maxmemory 0").await;

    // A server that hangs, and one that is down.
    server.pause();
    out().await;
    out().await;
    server.resume();
    eventually("serving resumes", back).await;
    server.stop();
    out().await;
    server.run().await;
    eventually("serving resumes", back).await;

    // A cancelled request.
    client.one(json!(["login", "cara"])).await;
    tokens.add(client.cookie(COOKIE).unwrap());
    let abandoned = json!([["insert", "k", 9], ["gate", "open"]]);
    tokio::select! {
        reply = client.post("/do", &abandoned) => panic!("{reply:?}"),
        () = app.reached("open") => {}
    }
    eventually("the request is dropped", async || layer.stats().unsaved == 1).await;

    let logged = log.text();
    for line in ["connected to Redis", "session not loaded", "session not saved", "session dropped with changes"] {
        assert!(logged.contains(line), "nothing of {line:?} in {logged}");
    }
    tokens.assert_not_in(&logged);
}

#[tokio::test]
async fn no_password_is_logged() {
    let log = Log::capture();
    let mut server = RedisServer::start_with(&["--requirepass", PLAIN_PASSWORD]).await;
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}/", server.port());
    let app = App::start(layer(RedisConfig::from_url(&url).unwrap())).await;
    let client = app.client();
    let status = async || client.post("/do", &json!([["insert", "k", 1]])).await.status;
    assert_eq!(status().await, StatusCode::OK);

    // The password changes, and changes back.
    server.set_password("hunter2").await;
    server.command("CLIENT KILL TYPE normal").await;
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    server.set_password(PLAIN_PASSWORD).await;
    let back = async || status().await == StatusCode::OK;
    eventually("serving resumes", back).await;

    // A closed port, then a server that is not Redis.
    let port = server.port();
    drop(server);
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    let impostor = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (mut stream, _) = impostor.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    drop((stream, impostor));

    // ACL users, and invalid URLs.
    for user in ["somebody", "default"] {
        let server = RedisServer::start().await;
        let url = format!("redis://{user}:{PASSWORD}@127.0.0.1:{}/77", server.port());
        let app = App::start(layer(RedisConfig::from_url(&url).unwrap())).await;
        let reply = app.client().post("/do", &json!([["insert", "k", 1]])).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    let logged = log.text();
    for line in ["connected to Redis", "no connection to Redis", "session not saved"] {
        assert!(logged.contains(line), "nothing of {line:?} in {logged}");
    }
    for secret in [PASSWORD, PLAIN_PASSWORD, "sesame", "redis://", "hunter2"] {
        assert!(!logged.contains(secret), "{secret:?} in {logged}");
    }
}

#[tokio::test]
async fn stored_values_are_never_logged() {
    let log = Log::capture();
    let mut server = RedisServer::start().await;
    let app = App::start(layer(RedisConfig::from_url(&server.url()).unwrap())).await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "diagnosis", "private-matter"]])).await;
    client.perform(json!([["insert", "diagnosis", "private-matter, too"]])).await;
    server.command("CONFIG SET maxmemory 1").await;
    let reply = client.post("/do", &json!([["insert", "diagnosis", "private-matter again"]])).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    server.command("CONFIG SET maxmemory 0").await;
    server.stop();
    let reply = client.post("/do", &json!([["get", "diagnosis"]])).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let logged = log.text();
    assert!(logged.contains("session not saved") && logged.contains("session not loaded"), "{logged}");
    assert!(!logged.contains("private-matter"), "{logged}");
}
