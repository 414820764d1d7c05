//! The example `admin`, tested from outside.

use std::{fs, process::Stdio};

use crate::support::{
    certificates::Certificates,
    client::{Client, Reply},
    dir::Dir,
    eventually,
    example::{PATIENCE, Server, example},
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

const NAME: &str = "admin";
const IMPORT: &str = "SESSION_IMPORT";

async fn login(client: &Client, user: &str, password: &str) -> Reply {
    client.post("/admin/login", &json!({ "username": user, "password": password })).await
}

async fn post(client: &Client, path: &str) -> Reply {
    client.request(Method::POST, path, &[], Bytes::new()).await
}

/// A logged-in client of `server`.
async fn admin(server: &Server, user: &str) -> Client {
    let client = server.client();
    let reply = login(&client, user, user).await;
    assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::OK, 1), "{reply:?}");
    client
}

/// The user, and the time of the login.
async fn who(client: &Client) -> Option<(String, String)> {
    let reply = client.get("/admin").await;
    if reply.status == StatusCode::UNAUTHORIZED {
        return None;
    }
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let body = reply.json();
    let mut keys: Vec<_> = body.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["since", "user"]);
    let text = |key: &str| body[key].as_str().unwrap().to_owned();
    Some((text("user"), text("since")))
}

async fn is(client: &Client, user: &str) -> bool {
    who(client).await.is_some_and(|(name, _)| name == user)
}

async fn keeps_its_contract(server: &Server) {
    let client = server.client();
    assert_eq!(who(&client).await, None);
    for (user, password) in [("admin", "wrong"), ("admin", ""), ("", "")] {
        let reply = login(&client, user, password).await;
        assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::UNAUTHORIZED, 0));
    }
    let client = admin(server, "admin").await;
    let (user, since) = who(&client).await.unwrap();
    assert_eq!((user.as_str(), since.len(), since.ends_with('Z')), ("admin", "2026-11-21T10:00:00.000Z".len(), true));
    assert_eq!(who(&client).await.unwrap().1, since);

    let other = server.client();
    assert_eq!(post(&other, "/admin/sessions/export").await.status, StatusCode::UNAUTHORIZED);
    let export = post(&client, "/admin/sessions/export").await;
    assert_eq!(export.status, StatusCode::OK);
    let lines: Vec<Value> = export.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty());
    assert!(!export.text().contains(&client.cookie("session").unwrap()), "a token");

    assert_eq!(other.get("/admin/operator").await.status, StatusCode::UNAUTHORIZED);
    let page = client.get("/admin/operator").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text().contains("admin") && page.text().contains("Revoke"), "{}", page.text());

    let thief = client.twin();
    let reply = post(&client, "/admin/logout").await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    assert_eq!((who(&client).await, who(&thief).await), (None, None));
    assert_eq!(post(&thief, "/admin/sessions/export").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn it_keeps_its_contract_in_memory_and_redis() {
    let server = Server::start(NAME, &[]).await;
    keeps_its_contract(&server).await;
    let redis = RedisServer::start().await;
    keeps_its_contract(&Server::on(NAME, &redis).await).await;
}

#[tokio::test]
async fn invalid_requests_are_refused() {
    let server = Server::start(NAME, &[]).await;
    let client = server.client();
    for body in ["", "{", "[]", r#"{"username":1,"password":1}"#, r#"{"username":"a"}"#] {
        let json = [("content-type", "application/json")];
        let reply = client.request(Method::POST, "/admin/login", &json, body.as_bytes().into()).await;
        assert!(reply.status.is_client_error(), "{body}: {reply:?}");
    }
    for (method, path) in [(Method::GET, "/admin/login"), (Method::GET, "/admin/logout"), (Method::PUT, "/admin")] {
        let reply = client.request(method, path, &[], Bytes::new()).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn instances_share_sessions_and_keep_them_after_a_restart() {
    let redis = RedisServer::start().await;
    let (mut one, two) = (Server::on(NAME, &redis).await, Server::on(NAME, &redis).await);
    let here = admin(&one, "admin").await;
    let there = here.at(&two.url);
    assert_eq!(who(&here).await, who(&there).await);
    assert!(one.terminate().await.success());
    let one = Server::on(NAME, &redis).await;
    assert!(is(&here.at(&one.url), "admin").await);
    post(&there, "/admin/logout").await;
    assert_eq!(who(&here.at(&one.url)).await, None);
}

#[tokio::test]
async fn redis_expires_unused_sessions() {
    let redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    let client = admin(&server, "admin").await;
    admin(&server, "ana").await;
    post(&client, "/admin/logout").await;
    let keys = redis.keys().await;
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        assert!(redis.pttl(&key).await > 0, "{key} has no time to live");
    }
}

/// As documented in `store::redis`.
#[tokio::test]
async fn operators_find_sessions_with_redis_cli() {
    let redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    admin(&server, "admin").await;
    let found = redis.command("SCAN 0 MATCH sess:{*}:* COUNT 1000").await;
    let found = format!("{found:?}");
    let key = redis.sessions().await.pop().unwrap();
    assert!(found.contains(&key), "{found}");
    let record: Value = serde_json::from_str(&redis.get(&key).await).unwrap();
    assert_eq!(record["user"].as_str().or(record["u"].as_str()), Some("admin"), "{record}");
}

#[tokio::test]
async fn without_redis_at_the_start_it_tries_three_times_and_uses_memory() {
    let mut redis = RedisServer::stopped();
    let server = Server::on(NAME, &redis).await;
    let log = server.log();
    for attempt in 1..=3 {
        assert!(log.contains(&format!("attempt={attempt} ")), "{log}");
    }
    assert!(!log.contains("attempt=4 "), "{log}");
    assert_eq!(log.matches("using the fallback").count(), 1, "{log}");
    let client = admin(&server, "admin").await;
    assert!(is(&client, "admin").await);

    redis.run().await;
    // With or without requests.
    eventually("the changes are replayed", async || !redis.sessions().await.is_empty()).await;
    eventually("it says so", async || server.log().contains("the session store has recovered")).await;
    let other = Server::on(NAME, &redis).await;
    assert!(is(&client.at(&other.url), "admin").await);
}

#[tokio::test]
async fn it_stops_cleanly_while_it_connects() {
    let redis = RedisServer::stopped();
    let mut child =
        example(NAME).env("REDIS_URL", redis.url()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = log.next_line().await.unwrap().unwrap();
    assert!(!first.contains("attempt=3"), "{first}");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn redis_stops_and_returns_while_it_serves() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let server = Server::on(NAME, &redis).await;
    let before = admin(&server, "before").await;
    let ended = admin(&server, "ended").await;
    let token = ended.twin();
    redis.stop();
    assert!(is(&before, "before").await, "it is cached");
    let concurrent = admin(&server, "concurrent").await;
    assert_eq!(post(&ended, "/admin/logout").await.status, StatusCode::NO_CONTENT);
    assert_eq!(who(&token).await, None);
    redis.run().await;
    eventually("it is back", async || {
        who(&concurrent).await.unwrap();
        server.log().contains("the session store has recovered")
    })
    .await;
    assert!(is(&before, "before").await && is(&concurrent, "concurrent").await);
    assert_eq!(who(&token).await, None);
    let other = Server::on(NAME, &redis).await;
    assert!(is(&concurrent.at(&other.url), "concurrent").await && is(&before.at(&other.url), "before").await);
    assert_eq!(who(&token.at(&other.url)).await, None);
    let log = server.log();
    assert_eq!(
        (log.matches("using the fallback").count(), log.matches("store has recovered").count()),
        (1, 1),
        "{log}"
    );
}

#[tokio::test]
async fn password_acl_user_and_tls() {
    let mut redis = RedisServer::start().await;
    redis.set_password("s3cret-of-the-server").await;
    redis.add_user("app", "s3cret-of-the-user", "~* &* +@all").await;
    let port = redis.port().to_string();
    for variables in [
        vec![("REDIS_PORT", port.as_str()), ("REDIS_PASSWORD", "s3cret-of-the-server")],
        vec![("REDIS_PORT", &port), ("REDIS_USERNAME", "app"), ("REDIS_PASSWORD", "s3cret-of-the-user")],
    ] {
        let server = Server::start(NAME, &variables).await;
        let client = admin(&server, "admin").await;
        assert!(is(&client, "admin").await);
        let log = server.log();
        assert!(log.contains("the session store is available") && !log.contains("s3cret"), "{log}");
    }
    assert_eq!(redis.sessions().await.len(), 2);

    let certificates = Certificates::new();
    let redis = RedisServer::start_tls(&certificates, false).await;
    let server = Server::start(
        NAME,
        &[("REDIS_URL", &redis.tls_url()), ("REDIS_CA_CERT", certificates.authority.to_str().unwrap())],
    )
    .await;
    let client = admin(&server, "admin").await;
    assert!(is(&client, "admin").await);
    assert!(server.log().contains("the session store is available"));
}

#[tokio::test]
async fn a_deploy_from_memory_to_redis_logs_nobody_out() {
    let mut old = Server::start(NAME, &[]).await;
    let (ana, bob, gone) = (admin(&old, "ana").await, admin(&old, "bob").await, admin(&old, "gone").await);
    post(&gone.twin(), "/admin/logout").await;
    let since = who(&ana).await.unwrap().1;
    let dir = Dir::new();
    let file = dir.join("sessions.jsonl");
    let export = post(&ana, "/admin/sessions/export").await;
    assert_eq!(export.text().lines().count(), 2);
    fs::write(&file, [b"\n", &*export.body, b"\n\n"].concat()).unwrap(); // with empty lines, as editors leave them
    assert!(old.terminate().await.success());

    let redis = RedisServer::start().await;
    let (url, file) = (redis.url(), file.to_str().unwrap());
    let new = Server::start(NAME, &[("REDIS_URL", &url), (IMPORT, file)]).await;
    assert_eq!(who(&ana.at(&new.url)).await, Some(("ana".into(), since)));
    assert!(is(&bob.at(&new.url), "bob").await);
    assert_eq!(who(&gone.at(&new.url)).await, None);
    for key in redis.keys().await {
        assert!(redis.pttl(&key).await > 0, "{key}");
    }

    // Another instance that imports the same file after a logout does not resurrect the sessions.
    post(&bob.at(&new.url), "/admin/logout").await;
    let other = Server::start(NAME, &[("REDIS_URL", &url), (IMPORT, file)]).await;
    assert_eq!(who(&bob.at(&other.url)).await, None);
    assert!(is(&ana.at(&other.url), "ana").await);
}

#[tokio::test]
async fn a_failed_import_is_reported_and_nothing_is_served() {
    let dir = Dir::new();
    let file = dir.join("sessions.jsonl");
    fs::write(&file, "{\"id\":\"s3cret\"}\n").unwrap();
    let missing = dir.join("missing");
    for (path, said) in [(&file, "line 1: "), (&missing, "No such file")] {
        let output = example(NAME).env(IMPORT, path).stdout(Stdio::piped()).stderr(Stdio::piped()).output().await;
        let output = output.unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(errors.contains("error: SESSION_IMPORT=") && errors.contains(said), "{errors}");
        assert!(!errors.contains("s3cret") && !errors.contains("panicked"), "{errors}");
    }
}
