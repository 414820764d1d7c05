//! The example `jwt_auth` as its users run it: every line of its contract, in memory and in Redis, by one, two and three processes.
//!
//! `cargo test` builds it; after `cargo test --test programs` alone it may be missing, or old: `cargo build --examples`.

use std::{
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{
    client::{Client, Reply},
    eventually,
    example::{PATIENCE, Server, example},
    redis_server::RedisServer,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, time::timeout};

const SECRETS: [(&str, &str); 2] = [
    ("JWT_SECRET", "an access secret of thirty-two bytes, or more"),
    ("REFRESH_SECRET", "a refresh secret of thirty-two bytes, or more"),
];
const DAY: i64 = 24 * 60 * 60 * 1000;

async fn start(variables: &[(&str, &str)]) -> Server {
    Server::start("jwt_auth", &[&SECRETS[..], variables].concat()).await
}

/// This many processes with one Redis.
async fn start_on(redis: &RedisServer, processes: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..processes {
        servers.push(start(&[("REDIS_URL", &redis.url())]).await);
    }
    servers
}

#[derive(Clone, Debug)]
struct Pair {
    access: String,
    refresh: String,
}

/// Parses a pair strictly.
#[track_caller]
fn pair(reply: &Reply) -> Pair {
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.set_cookies(), [""; 0]);
    let json = reply.json();
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["access_token", "expires_in", "refresh_token"]);
    assert_eq!(json["expires_in"], 900);
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    Pair { access: text("access_token"), refresh: text("refresh_token") }
}

async fn try_login(client: &Client, username: &str, password: &str) -> Reply {
    client.post("/login", &json!({ "username": username, "password": password })).await
}

async fn login(client: &Client) -> Pair {
    pair(&try_login(client, "admin", "admin").await)
}

async fn bearer(client: &Client, method: Method, path: &str, token: &str) -> Reply {
    client.request(method, path, &[("authorization", &format!("Bearer {token}"))], Bytes::new()).await
}

async fn verify(client: &Client, token: &str) -> Reply {
    bearer(client, Method::GET, "/verify", token).await
}

async fn refresh(client: &Client, token: &str) -> Reply {
    client.post("/refresh", &json!({ "refresh_token": token })).await
}

async fn logout(client: &Client, token: &str) -> Reply {
    bearer(client, Method::POST, "/logout", token).await
}

#[track_caller]
fn assert_unauthorized(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    assert_eq!(reply.header("www-authenticate"), Some(r#"Bearer error="invalid_token""#));
}

/// The pair is valid on every instance.
async fn assert_alive(servers: &[Server], pair: &Pair) {
    for server in servers {
        let reply = verify(&server.client(), &pair.access).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        assert_eq!(reply.json(), claims(&pair.access));
    }
}

/// It is invalid on every instance.
async fn assert_dead(servers: &[Server], pair: &Pair) {
    for server in servers {
        let client = server.client();
        assert_unauthorized(&verify(&client, &pair.access).await);
        assert_unauthorized(&refresh(&client, &pair.refresh).await);
        assert_unauthorized(&logout(&client, &pair.access).await);
    }
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// The next instance each time.
fn client(servers: &[Server], step: usize) -> Client {
    servers[step % servers.len()].client()
}

async fn keeps_its_contract(servers: &[Server]) {
    // Login.
    let first = client(servers, 0);
    for (username, password) in [("admin", "wrong"), ("admin", ""), ("", ""), ("admin", "ADMIN")] {
        assert_eq!(try_login(&first, username, password).await.status, StatusCode::UNAUTHORIZED);
    }
    assert!(first.post("/login", &json!({ "username": "admin" })).await.status.is_client_error());
    let one = login(&first).await;
    let said = claims(&one.access);
    assert_eq!((&said["sub"], &said["exp"]), (&json!("admin"), &json!(said["iat"].as_u64().unwrap() + 900)));
    assert_alive(servers, &one).await;

    // All kinds of invalid tokens.
    let nothing = first.get("/verify").await;
    assert_eq!((nothing.status, nothing.header("www-authenticate")), (StatusCode::UNAUTHORIZED, Some("Bearer")));
    let (message, signature) = one.access.rsplit_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"typ":"at+jwt","alg":"none"}"#);
    let forged = URL_SAFE_NO_PAD.encode(said.to_string().replace("admin", "root"));
    let (header, body) = message.split_once('.').unwrap();
    let wrong = [
        "x".to_owned(),
        "a.b.c".to_owned(),
        "x".repeat(56),
        "x".repeat(9000),
        message.to_owned(),
        format!("{message}."),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{header}.{forged}.{signature}"),
        said["sid"].as_str().unwrap().to_owned(),
        said["jti"].as_str().unwrap().to_owned(),
    ];
    for (step, wrong) in wrong.iter().enumerate() {
        let client = client(servers, step);
        assert_unauthorized(&verify(&client, wrong).await);
        assert_unauthorized(&logout(&client, wrong).await);
        assert_unauthorized(&refresh(&client, wrong).await);
    }
    // One kind in place of the other.
    assert_unauthorized(&verify(&first, &one.refresh).await);
    assert_unauthorized(&logout(&first, &one.refresh).await);
    assert_unauthorized(&refresh(&first, &one.access).await);
    for body in [json!({}), json!({ "refresh_token": null }), json!({ "refresh_token": 7 }), json!([])] {
        assert_unauthorized(&first.post("/refresh", &body).await);
    }
    assert_alive(servers, &one).await;

    // Refresh: a new pair, several times.
    let bystander = login(&first).await;
    let mut family = vec![one.clone()];
    for step in 0..4 {
        let next = pair(&refresh(&client(servers, step), &family[step].refresh).await);
        assert_ne!((&next.access, &next.refresh), (&family[step].access, &family[step].refresh));
        assert_alive(servers, &next).await;
        family.push(next);
    }
    // The old token is invalid, and its reuse ends the session.
    assert_unauthorized(&refresh(&client(servers, 1), &family[1].refresh).await);
    for pair in &family {
        assert_dead(servers, pair).await;
    }
    assert_alive(servers, &bystander).await;

    // Logout.
    let two = login(&client(servers, 1)).await;
    let reply = logout(&client(servers, 2), &two.access).await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_dead(servers, &two).await;
    assert_alive(servers, &bystander).await;
}

#[tokio::test]
async fn the_log_names_user_and_client_of_a_reused_token() {
    let server = start(&[]).await;
    let client = server.client();
    let stolen = login(&client).await;
    pair(&refresh(&client, &stolen.refresh).await);
    assert_unauthorized(&refresh(&client, &stolen.refresh).await);
    let log = server.log();
    for event in ["created", "rotated", "token_reused", "ended"] {
        let line = log.lines().find(|line| line.contains(&format!("event=\"{event}\"")));
        let line = line.unwrap_or_else(|| panic!("{event}: {log}"));
        assert!(line.contains("user=\"admin\"") && line.contains("client_ip=127.0.0.1"), "{line}");
    }
    assert!(!log.contains(&stolen.refresh) && !log.contains(&stolen.access));
}

#[tokio::test]
async fn keeps_its_contract_in_memory() {
    keeps_its_contract(&[start(&[]).await]).await;
}

#[tokio::test]
async fn keeps_its_contract_in_redis() {
    let redis = RedisServer::start().await;
    keeps_its_contract(&start_on(&redis, 1).await).await;
}

#[tokio::test]
async fn keeps_its_contract_by_two_processes() {
    let redis = RedisServer::start().await;
    keeps_its_contract(&start_on(&redis, 2).await).await;
}

#[tokio::test]
async fn keeps_its_contract_by_three_processes() {
    let redis = RedisServer::start().await;
    keeps_its_contract(&start_on(&redis, 3).await).await;
}

async fn one_of_a_hundred(servers: &[Server]) {
    let before = login(&client(servers, 0)).await;
    let tasks: Vec<_> = (0..100)
        .map(|step| {
            let (client, token) = (client(servers, step), before.refresh.clone());
            tokio::spawn(async move { refresh(&client, &token).await })
        })
        .collect();
    let mut replies = Vec::new();
    for task in tasks {
        replies.push(task.await.unwrap());
    }
    let (pairs, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == StatusCode::OK);
    assert_eq!((pairs.len(), refused.len()), (1, 99));
    for refused in refused {
        assert_unauthorized(refused);
    }
    // The other refreshes reused it.
    assert_dead(servers, &pair(pairs[0])).await;
    assert_dead(servers, &before).await;
}

#[tokio::test]
async fn one_of_a_hundred_concurrent_refreshes_gets_a_pair() {
    one_of_a_hundred(&[start(&[]).await]).await;
    let redis = RedisServer::start().await;
    one_of_a_hundred(&start_on(&redis, 3).await).await;
}

#[tokio::test]
async fn sessions_live_through_restarts() {
    let redis = RedisServer::start().await;
    let mut servers = start_on(&redis, 1).await;
    let pair = login(&client(&servers, 0)).await;
    assert!(servers[0].terminate().await.success());
    assert_alive(&start_on(&redis, 1).await, &pair).await;
}

/// The longest and the shortest TTL of all keys, in milliseconds.
async fn ttls(redis: &RedisServer) -> (i64, i64) {
    let mut ttls = Vec::new();
    for key in redis.sessions().await {
        ttls.push(redis.pttl(&key).await);
    }
    for key in redis.keys().await {
        assert!(redis.pttl(&key).await > 0, "{key} lives for ever");
    }
    (*ttls.iter().max().unwrap(), *ttls.iter().min().unwrap())
}

#[tokio::test]
async fn a_session_lives_for_seven_days_or_as_configured() {
    let redis = RedisServer::start().await;
    let servers = start_on(&redis, 1).await;
    let first = login(&client(&servers, 0)).await;
    let said = claims(&first.refresh);
    let lifetime = said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap();
    assert!((90 * DAY / 1000 - 10..=90 * DAY / 1000).contains(&lifetime), "{said}: used or not, it is over then");
    let (longest, shortest) = ttls(&redis).await;
    assert!(longest <= 7 * DAY && shortest > 7 * DAY - 600_000, "{longest} {shortest}");
    pair(&refresh(&client(&servers, 0), &first.refresh).await);
    let (longest, shortest) = ttls(&redis).await;
    assert!(longest <= 7 * DAY && shortest > 7 * DAY - 600_000, "{longest} {shortest}");

    for (text, seconds) in [("7200", 7200), ("120m", 7200), ("2h", 7200), ("1d", 86_400), ("7200s", 7200)] {
        let redis = RedisServer::start().await;
        let variables = [("REDIS_URL", &*redis.url()), ("REFRESH_TOKEN_EXPIRY", text), ("ACCESS_TOKEN_EXPIRY", "1m")];
        let server = start(&variables).await;
        let reply = try_login(&server.client(), "admin", "admin").await;
        assert_eq!(reply.json()["expires_in"], 60);
        let (longest, shortest) = ttls(&redis).await;
        assert!(longest <= seconds * 1000 && shortest > (seconds - 600) * 1000, "{text}: {longest} {shortest}");
    }
}

#[tokio::test]
async fn memory_serves_an_outage_and_nothing_is_replayed() {
    let mut redis = RedisServer::start().await;
    let servers = start_on(&redis, 1).await;
    let before = login(&client(&servers, 0)).await;
    redis.stop();
    let concurrent = login(&client(&servers, 0)).await;
    assert_alive(&servers, &before).await;
    assert_alive(&servers, &concurrent).await;
    let concurrent = pair(&refresh(&client(&servers, 0), &concurrent.refresh).await);
    let ended = login(&client(&servers, 0)).await;
    assert_eq!(logout(&client(&servers, 0), &ended.access).await.status, StatusCode::NO_CONTENT);
    assert_dead(&servers, &ended).await;
    assert_alive(&servers, &concurrent).await;

    redis.run().await; // empty
    eventually("Redis is used again", async || {
        drop(login(&client(&servers, 0)).await);
        !redis.sessions().await.is_empty()
    })
    .await;
    assert_dead(&servers, &concurrent).await;
    let after = login(&client(&servers, 0)).await;
    assert_alive(&start_on(&redis, 1).await, &after).await;
}

#[tokio::test]
async fn it_starts_without_redis() {
    let redis = RedisServer::stopped();
    let servers = start_on(&redis, 1).await;
    let pair = login(&client(&servers, 0)).await;
    assert_alive(&servers, &pair).await;
}

/// Its output before it exits with an error.
async fn complaint(variables: &[(&str, &str)]) -> String {
    let mut command = example("jwt_auth");
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"", "it does not listen");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn an_invalid_setting_is_one_clear_error() {
    for (name, value) in [
        ("JWT_SECRET", "hunter2"),
        ("JWT_SECRET", "thirty-one bytes, which is less"),
        ("REFRESH_SECRET", "hunter2"),
        ("ACCESS_TOKEN_EXPIRY", "soon"),
        ("ACCESS_TOKEN_EXPIRY", "0"),
        ("ACCESS_TOKEN_EXPIRY", "15µ"),
        ("REFRESH_TOKEN_EXPIRY", "-7d"),
        ("REFRESH_TOKEN_EXPIRY", "99999999999999999999d"),
        ("REFRESH_TOKEN_EXPIRY", "9999999d"),
        ("REDIS_URL", "http://x"),
        ("REDIS_PORT", "seventy"),
    ] {
        let said = complaint(&[(name, value)]).await;
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("error: ") && said.contains(name), "{said}");
        assert!(!name.ends_with("_SECRET") || !said.contains(value), "{said}");
    }
    assert!(complaint(&[("JWT_SECRET", "hunter2")]).await.contains("needs at least 32"));
}

#[tokio::test]
async fn without_secrets_it_generates_them_with_a_warning() {
    let mut server = Server::start("jwt_auth", &[]).await;
    let pair = login(&server.client()).await;
    assert_alive(std::slice::from_ref(&server), &pair).await;
    assert!(server.terminate().await.success());
    // They are valid nowhere else.
    assert_unauthorized(&verify(&Server::start("jwt_auth", &[]).await.client(), &pair.access).await);

    let mut child = example("jwt_auth").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    while !(said.contains("WARN") && said.contains("JWT_SECRET") && said.contains("REFRESH_SECRET")) {
        let read = timeout(PATIENCE, stderr.read(&mut buffer)).await.expect("it warns").unwrap();
        assert_ne!(read, 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[tokio::test]
async fn any_invalid_token_is_401() {
    let server = start(&[]).await;
    let client = server.client();
    for path in ["/verify", "/logout"] {
        let method = if path == "/verify" { Method::GET } else { Method::POST };
        for value in ["Bearer", "Bearer ", "Bearer  x", "Bearer a b", "Bearer x", "Basic YTph"] {
            let reply = client.request(method.clone(), path, &[("authorization", value)], Bytes::new()).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{value:?} {reply:?}");
        }
        let twice = [("authorization", "Bearer x"), ("authorization", "Bearer y")];
        assert_eq!(client.request(method, path, &twice, Bytes::new()).await.status, StatusCode::UNAUTHORIZED);
    }
}

/// The expiry in the tokens, to the second.
#[tokio::test]
async fn an_access_token_is_valid_until_it_expires() {
    let server = start(&[("ACCESS_TOKEN_EXPIRY", "1s")]).await;
    let client = server.client();
    let pair = try_login(&client, "ana", "ana").await.json();
    assert_eq!(pair["expires_in"], 1);
    let token = pair["access_token"].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    eventually("it has expired", async || {
        let before = now();
        let status = verify(&client, token).await.status;
        assert!(status == StatusCode::UNAUTHORIZED || before <= claims["exp"].as_u64().unwrap(), "{claims}");
        status == StatusCode::UNAUTHORIZED
    })
    .await;
    assert!(now() >= claims["exp"].as_u64().unwrap());
}
