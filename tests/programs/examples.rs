//! The examples as their users run them: processes with an environment, an address and standard streams.
//!
//! `cargo test` builds them; after `cargo test --test programs` alone they may be missing, or old: `cargo build --examples`.

/// The generated part of the gRPC example.
#[allow(clippy::all, missing_docs, dead_code)]
#[path = "../../examples/grpc/keep.v1.rs"]
mod pb;

use std::process::Output;

use crate::support::{
    client::{Client, Reply},
    eventually,
    example::{PATIENCE, Server, example},
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

async fn login(client: &Client, user: &str) -> Reply {
    let body = Bytes::from(format!("user={user}"));
    client.request(Method::POST, "/login", &[("content-type", "application/x-www-form-urlencoded")], body).await
}

async fn logout(client: &Client) -> Reply {
    client.request(Method::POST, "/logout", &[], Bytes::new()).await
}

/// `/me` of a logged-in user: the visits and the id.
async fn visit(client: &Client, user: &str) -> (u64, String) {
    let reply = client.get("/me").await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let me = reply.json();
    assert_eq!(me["user"], user);
    (me["visits"].as_u64().unwrap(), me["session_id"].as_str().unwrap().to_owned())
}

async fn assert_nobody(client: &Client) {
    let reply = client.get("/me").await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
}

async fn bearer(client: &Client, token: &str) -> Reply {
    client.request(Method::GET, "/me", &[("authorization", &format!("Bearer {token}"))], Bytes::new()).await
}

async fn health(client: &Client) -> Value {
    client.get("/health").await.json()
}

#[track_caller]
fn assert_is_json(reply: &Reply) {
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn each_of_the_five_systems_has_metrics() {
    for (name, login) in [
        ("admin", "/admin/login"),
        ("iframe_auth", "/auth/create-session"),
        ("jwt_auth", "/login"),
        ("erp", "/api/auth/login"),
        ("devices", "/login"),
    ] {
        let server = Server::start(name, &[]).await;
        let reply = server.client().post(login, &json!({ "username": "ana", "password": "ana" })).await;
        assert!(reply.status.is_success(), "{name}: {reply:?}");
        let metrics = server.client().get("/metrics").await.text();
        assert!(metrics.contains("\nsession_created_total 1\n"), "{name}: {metrics}");
        assert!(!metrics.contains("ana"), "{name}: {metrics}");
    }
}

mod quickstart {
    use super::*;

    /// The whole contract, with any store.
    async fn keeps_its_contract(server: &Server, store: &str) {
        let client = server.client();
        assert_eq!(health(&client).await, json!({ "status": "up", "store": store }));
        assert_eq!(client.get("/health/live").await.status, StatusCode::OK);
        assert_eq!(client.get("/health/ready").await.status, StatusCode::OK);
        assert_eq!(client.get("/health/report").await.json()["store"], store);
        let public = client.get("/public").await;
        assert_eq!(public.status, StatusCode::OK);
        assert_eq!(public.set_cookies(), [""; 0]);
        assert_nobody(&client).await;

        let home = client.get("/").await;
        assert_eq!(home.status, StatusCode::OK);
        assert!(home.header("content-type").unwrap().starts_with("text/html"));
        assert!(
            home.text().contains(r#"<form method="post" action="/login">"#) && home.text().contains(r#"name="user""#)
        );
        assert_eq!(home.set_cookies(), [""; 0], "a visit creates no session");

        let reply = login(&client, "ana").await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        assert_eq!(reply.header("location"), Some("/"));
        assert_eq!(reply.set_cookies().len(), 1);
        let (visits, id) = visit(&client, "ana").await;
        assert_eq!((visits, id.len()), (1, 44));
        assert_eq!(visit(&client, "ana").await, (2, id.clone()));
        assert_eq!(visit(&client, "ana").await, (3, id));
        let home = client.get("/").await.text();
        assert!(home.contains("ana") && home.contains("3.") && home.contains(r#"action="/logout""#), "{home}");

        let old = client.twin();
        let reply = logout(&client).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        assert_eq!(reply.header("location"), Some("/"));
        assert!(reply.set_cookies()[0].contains("Max-Age=0"));
        assert_nobody(&client).await;
        assert_nobody(&old).await;
        assert!(client.get("/").await.text().contains(r#"action="/login""#));

        let reply = client.post("/token", &json!({ "user": "ana" })).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_is_json(&reply);
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.set_cookies(), [""; 0]);
        let token = reply.json()["token"].as_str().unwrap().to_owned();
        for visits in 1..=2 {
            let reply = bearer(&client, &token).await;
            assert_eq!(reply.status, StatusCode::OK);
            assert_is_json(&reply);
            assert_eq!((&reply.json()["user"], &reply.json()["visits"]), (&json!("ana"), &json!(visits)));
            assert_eq!(reply.set_cookies(), [""; 0]);
        }
        let id = reply_id(&bearer(&client, &token).await);
        assert_eq!(bearer(&client, &id).await.status, StatusCode::UNAUTHORIZED, "an id is not a token");
        assert_eq!(bearer(&client, &"x".repeat(56)).await.status, StatusCode::UNAUTHORIZED);
    }

    fn reply_id(reply: &Reply) -> String {
        reply.json()["session_id"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_form_of_another_site_logs_nobody_in() {
        let server = Server::start("quickstart", &[]).await;
        let (client, body) = (server.client(), Bytes::from("user=mallory"));
        let form = ("content-type", "application/x-www-form-urlencoded");
        for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
            let reply = client.request(Method::POST, "/login", &[form, (name, value)], body.clone()).await;
            assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::FORBIDDEN, 0), "{name}");
        }
        for (name, value) in [("sec-fetch-site", "same-origin"), ("origin", &*server.url)] {
            let reply = client.request(Method::POST, "/login", &[form, (name, value)], body.clone()).await;
            assert_eq!(reply.status, StatusCode::SEE_OTHER, "{name}");
        }
    }

    #[tokio::test]
    async fn keeps_its_contract_in_memory() {
        keeps_its_contract(&Server::start("quickstart", &[]).await, "memory").await;
    }

    #[tokio::test]
    async fn keeps_its_contract_in_redis() {
        let redis = RedisServer::start().await;
        keeps_its_contract(&Server::on("quickstart", &redis).await, "redis").await;
        assert!(!redis.keys().await.is_empty());
    }

    #[tokio::test]
    async fn finds_redis_by_host_and_port() {
        let redis = RedisServer::start_with(&["--requirepass", "p@ss:w/rd#"]).await;
        let port = redis.port().to_string();
        let parts =
            [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &port), ("REDIS_PASSWORD", "p@ss:w/rd#"), ("REDIS_DB", "3")];
        let server = Server::start("quickstart", &parts).await;
        keeps_its_contract(&server, "redis").await;
        assert!(redis.keys().await.is_empty(), "nothing in database 0");
    }

    #[tokio::test]
    async fn uses_memory_when_redis_is_turned_off() {
        let redis = RedisServer::stopped();
        for switch in ["USE_REDIS", "REDIS_ENABLED"] {
            let server = Server::start("quickstart", &[("REDIS_URL", &redis.url()), (switch, "false")]).await;
            assert_eq!(health(&server.client()).await, json!({ "status": "up", "store": "memory" }));
        }
    }

    #[tokio::test]
    async fn the_log_says_which_store_the_environment_selects() {
        let redis = RedisServer::start().await;
        let server = Server::start("quickstart", &[]).await;
        assert!(server.log().contains("sessions are in the memory of this process"), "{}", server.log());
        let url = format!("redis://:unused-secret@127.0.0.1:{}", redis.port());
        let server = Server::start("quickstart", &[("REDIS_URL", &url)]).await;
        let log = server.log();
        assert!(log.contains("sessions are in Redis") && log.contains(&format!("127.0.0.1:{}", redis.port())), "{log}");
        assert!(!log.contains("unused-secret"), "{log}");
    }

    #[tokio::test]
    async fn escapes_the_name_of_the_user() {
        let server = Server::start("quickstart", &[]).await;
        let client = server.client();
        login(&client, "%3Cscript%3Ealert(1)%3C%2Fscript%3E%26%22%27%3Cimg+src%3Dx%3E").await;
        visit(&client, r#"<script>alert(1)</script>&"'<img src=x>"#).await;
        let home = client.get("/").await.text();
        assert!(!home.contains("<script") && !home.contains("<img"), "{home}");
        assert!(home.contains("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;"), "{home}");
    }

    #[tokio::test]
    async fn a_user_needs_a_name() {
        let server = Server::start("quickstart", &[]).await;
        let client = server.client();
        for name in ["", "+", "%20%09"] {
            let reply = login(&client, name).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert_eq!(reply.set_cookies(), [""; 0]);
        }
        assert_eq!(client.post("/token", &json!({ "user": " " })).await.status, StatusCode::BAD_REQUEST);
        let right = json!({ "username": "ana", "password": "ana" });
        let json = server.client();
        assert_eq!(json.post("/login", &right).await.status, StatusCode::OK);
        visit(&json, "ana").await;
        let wrong = client.post("/login", &json!({ "username": "ana", "password": "bob" })).await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
        for reply in
            [wrong, client.post("/token", &json!({})).await, client.post("/login", &json!({ "user": "ana" })).await]
        {
            assert!(reply.status.is_client_error(), "{reply:?}");
            assert_eq!(reply.set_cookies(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_login_changes_the_token() {
        let server = Server::start("quickstart", &[]).await;
        let client = server.client();
        login(&client, "ana").await;
        let old = client.twin();
        visit(&client, "ana").await;
        login(&client, "bob").await;
        assert_nobody(&old).await;
        assert_eq!(visit(&client, "bob").await.0, 1, "nothing of Ana's");
    }

    #[tokio::test]
    async fn two_processes_share_their_sessions() {
        let redis = RedisServer::start().await;
        let (one, two) = (Server::on("quickstart", &redis).await, Server::on("quickstart", &redis).await);
        let here = one.client();
        login(&here, "ana").await;
        let there = here.at(&two.url);
        let (_, id) = visit(&here, "ana").await;
        assert_eq!(visit(&there, "ana").await, (2, id.clone()));
        assert_eq!(visit(&here, "ana").await, (3, id));
        logout(&here).await;
        assert_nobody(&there).await;

        let token = one.client().post("/token", &json!({ "user": "bob" })).await.json();
        assert_eq!(bearer(&two.client(), token["token"].as_str().unwrap()).await.json()["user"], "bob");
    }

    #[tokio::test]
    async fn sessions_outlive_a_restart_of_the_process() {
        let redis = RedisServer::start().await;
        let mut server = Server::on("quickstart", &redis).await;
        let client = server.client();
        login(&client, "ana").await;
        let (_, id) = visit(&client, "ana").await;
        assert_eq!(server.terminate().await.code(), Some(0));
        let server = Server::on("quickstart", &redis).await;
        assert_eq!(visit(&client.at(&server.url), "ana").await, (2, id));
    }

    /// The store is down: sessions are refused, everything else is served.
    async fn is_down(client: &Client) {
        assert_eq!(health(client).await, json!({ "status": "down", "store": "redis" }));
        assert_eq!(client.get("/health/live").await.status, StatusCode::OK);
        assert_eq!(client.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(client.get("/health/report").await.json()["cause"].is_string());
        assert_eq!(client.get("/public").await.status, StatusCode::OK);
        let cookie = client.cookie("session");
        let reply = login(client, "ana").await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.set_cookies(), [""; 0]);
        assert_eq!(client.cookie("session"), cookie);
        assert_eq!(client.post("/token", &json!({ "user": "ana" })).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn an_outage_of_redis_is_survived() {
        let mut redis = RedisServer::start().await;
        let server = Server::on("quickstart", &redis).await;
        let client = server.client();
        login(&client, "ana").await;
        visit(&client, "ana").await;

        redis.stop();
        let reply = client.get("/me").await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(reply.set_cookies(), [""; 0]);
        is_down(&client).await;

        redis.run().await;
        eventually("the sessions are back", async || health(&client).await["status"] == "up").await;
        // Sessions in Redis are lost, and nothing else.
        assert_nobody(&client).await;
        assert_eq!(login(&client, "ana").await.status, StatusCode::SEE_OTHER);
        visit(&client, "ana").await;
    }

    #[tokio::test]
    async fn public_pages_never_touch_the_store() {
        let redis = RedisServer::start().await;
        let server = Server::on("quickstart", &redis).await;
        let client = server.client();
        login(&client, "ana").await;
        let before = (redis.calls("get").await, redis.calls("pttl").await, redis.calls("pexpire").await);
        for _ in 0..5 {
            let reply = client.get("/public").await;
            assert_eq!(reply.status, StatusCode::OK);
            assert_eq!(reply.header("vary"), None);
            assert_eq!(reply.set_cookies(), [""; 0]);
        }
        let after = (redis.calls("get").await, redis.calls("pttl").await, redis.calls("pexpire").await);
        assert_eq!(before, after);
    }

    #[tokio::test]
    async fn starts_without_redis_and_serves_when_it_returns() {
        let mut redis = RedisServer::stopped();
        let server = Server::on("quickstart", &redis).await;
        let client = server.client();
        is_down(&client).await;
        redis.run().await;
        eventually("the sessions are there", async || health(&client).await["status"] == "up").await;
        keeps_its_contract(&server, "redis").await;
    }

    #[tokio::test]
    async fn sigterm_ends_it() {
        let mut server = Server::start("quickstart", &[]).await;
        // With an open connection.
        let client = server.client();
        login(&client, "ana").await;
        assert_eq!(server.terminate().await.code(), Some(0));
    }
}

/// The result of starting `name` with invalid `variables`.
async fn refuses(name: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = example(name);
    command.envs(variables.iter().copied());
    timeout(PATIENCE, command.output()).await.expect("it ends").unwrap()
}

/// It failed with one line that names `culprit` and shows no `secret`.
#[track_caller]
fn assert_refused(output: &Output, culprit: &str, secret: &str) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.code().is_some_and(|code| code != 0), "{culprit}: {:?}", output.status);
    let errors = stderr.lines().filter(|line| !line.contains(" INFO ")); // which store was chosen
    assert_eq!(errors.count(), 1, "{culprit}: {stderr}");
    assert!(stderr.contains(culprit), "{culprit}: {stderr}");
    assert!(!stderr.contains("panicked"), "{culprit}: {stderr}");
    assert!(secret.is_empty() || !stderr.contains(secret), "{culprit}: {stderr}");
    assert_eq!(stdout, "", "{culprit}");
}

#[tokio::test]
async fn an_invalid_variable_is_named_in_one_line() {
    for name in ["quickstart", "hyper", "grpc"] {
        for (culprit, value) in [
            ("REDIS_URL", "http://x"),
            ("REDIS_URL", "redis://user:hunter2@"),
            ("REDIS_URL", "rediss://user:hunter2@127.0.0.1/x"),
            ("REDIS_PORT", "seventy"),
            ("REDIS_PORT", "70000"),
            ("REDIS_DB", "hunter2"),
            ("REDIS_HOST", "hunter2/"),
            ("USE_REDIS", "hunter2"),
            ("REDIS_TLS", "hunter2"),
            ("REDIS_USERNAME", "hunter2"),
            ("REDIS_CA_CERT", "/hunter2"),
            ("REDIS_SENTINELS", "127.0.0.1:26379"), // without a master
            ("REDIS_SENTINEL_MASTER", "hunter2"),
            ("REDIS_CLUSTER_NODES", "hunter2/"),
            ("SESSION_SECRET", "hunter2"),
        ] {
            assert_refused(&refuses(name, &[(culprit, value)]).await, culprit, "hunter2");
        }
        assert_refused(&refuses(name, &[("ADDR", "nonsense")]).await, "ADDR", "");
        assert_refused(&refuses(name, &[("ADDR", "127.0.0.1:99999")]).await, "ADDR", "");
    }
}

#[tokio::test]
async fn each_serves_its_metrics() {
    for name in ["quickstart", "hyper", "grpc", "admin", "iframe_auth", "jwt_auth", "erp", "devices"] {
        let server = Server::start(name, &[]).await;
        server.client().get("/metrics").await;
        let reply = server.client().get("/metrics").await;
        assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, Some("text/plain; version=0.0.4")));
        let version = format!("session_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert!(reply.text().lines().any(|line| line == version), "{name}: {reply:?}");
        assert!(reply.text().lines().any(|line| line == "session_created_total 0"), "{name}: {reply:?}");
        assert!(!reply.text().contains("session_requests_total{"), "{name}: a scrape is nobody's request: {reply:?}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_named_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for name in ["quickstart", "hyper", "grpc"] {
        assert_refused(&refuses(name, &[("ADDR", &addr)]).await, "ADDR", "");
    }
}

mod hyper {
    use super::*;

    async fn post_login(client: &Client, body: &'static str) -> Reply {
        // Like curl, without a content type.
        client.request(Method::POST, "/login", &[], Bytes::from(body)).await
    }

    async fn keeps_its_contract(server: &Server) {
        let client = server.client();
        let public = client.get("/public").await;
        assert_eq!(public.status, StatusCode::OK);
        assert_eq!(public.set_cookies(), [""; 0]);
        assert_nobody(&client).await;
        let wrong = post_login(&client, r#"{"username":"ana","password":"bob"}"#).await;
        assert_eq!((wrong.status, wrong.set_cookies().len()), (StatusCode::UNAUTHORIZED, 0));
        let other = server.client();
        post_login(&other, r#"{"username":"ana","password":"ana"}"#).await;
        visit(&other, "ana").await;
        let reply = post_login(&client, r#"{"user":"ana"}"#).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        assert_eq!(reply.header("location"), Some("/"));
        assert_eq!(reply.set_cookies().len(), 1);
        let (visits, id) = visit(&client, "ana").await;
        assert_eq!((visits, id.len()), (1, 44));
        assert_eq!(visit(&client, "ana").await, (2, id));
        let old = client.twin();
        let reply = logout(&client).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        assert!(reply.set_cookies()[0].contains("Max-Age=0"));
        assert_nobody(&client).await;
        assert_nobody(&old).await;
        assert_eq!(client.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn keeps_its_contract_in_memory() {
        keeps_its_contract(&Server::start("hyper", &[]).await).await;
    }

    #[tokio::test]
    async fn keeps_its_contract_in_redis() {
        let redis = RedisServer::start().await;
        keeps_its_contract(&Server::on("hyper", &redis).await).await;
    }

    #[tokio::test]
    async fn an_invalid_login_body_is_a_bad_request() {
        let server = Server::start("hyper", &[]).await;
        let client = server.client();
        for body in ["", "{", "user=ana", "[]", "{}", r#"{"user":1}"#, r#"{"user":"ana"}x"#, "\0"] {
            let reply = post_login(&client, body).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body:?}");
            assert_eq!(reply.set_cookies(), [""; 0], "{body:?}");
        }
        assert_nobody(&client).await;
    }

    #[tokio::test]
    async fn an_endless_body_is_refused() {
        let server = Server::start("hyper", &[]).await;
        let body = Bytes::from(format!(r#"{{"user":"{}"}}"#, "x".repeat(100_000)));
        let reply = server.client().request(Method::POST, "/login", &[], body).await;
        assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(reply.set_cookies(), [""; 0]);
    }

    #[tokio::test]
    async fn speaks_http_2_too() {
        let server = Server::start("hyper", &[]).await;
        let client = Client::http2(&server.url);
        assert_eq!(post_login(&client, r#"{"user":"ana"}"#).await.version, http::Version::HTTP_2);
        assert_eq!(visit(&client, "ana").await.0, 1);
    }

    #[tokio::test]
    async fn an_outage_of_redis_is_survived() {
        let mut redis = RedisServer::start().await;
        let server = Server::on("hyper", &redis).await;
        let client = server.client();
        post_login(&client, r#"{"user":"ana"}"#).await;
        visit(&client, "ana").await;
        redis.stop();
        let reply = client.get("/me").await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reply.header("retry-after").is_some());
        assert_eq!(client.get("/public").await.status, StatusCode::OK);
        redis.run().await;
        eventually("the sessions are back", async || client.get("/me").await.status == StatusCode::UNAUTHORIZED).await;
    }

    #[tokio::test]
    async fn sigterm_ends_it() {
        let mut server = Server::start("hyper", &[]).await;
        let client = server.client();
        assert_nobody(&client).await;
        assert_eq!(server.terminate().await.code(), Some(0));
    }
}

mod grpc {
    use super::{
        pb::{LoginRequest, WhoAmIRequest, keep_client::KeepClient},
        *,
    };

    /// `grpc client …`: its output, or the error.
    async fn call(server: &Server, args: &[&str]) -> Result<String, String> {
        let mut command = example("grpc");
        command.env("ADDR", server.addr()).arg("client").args(args);
        let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(!stderr.contains("panicked"), "{stderr}");
        if output.status.success() {
            assert_eq!(stderr, "");
            Ok(stdout.trim_end().to_owned())
        } else {
            assert_eq!(stdout, "");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            Err(stderr.trim_end().to_owned())
        }
    }

    async fn assert_code(server: &Server, args: &[&str], code: &str) {
        let error = call(server, args).await.expect_err("an error");
        assert!(error.contains(&format!("{code}:")), "{args:?}: {error}");
    }

    async fn keeps_its_contract(server: &Server) {
        let token = call(server, &["login", "ana"]).await.unwrap();
        assert_eq!(token.len(), 56, "{token}");
        for visits in 1..=3 {
            let answer = call(server, &["whoami", &token]).await.unwrap();
            assert!(answer.starts_with(&format!("user ana, visits {visits}, session ")), "{answer}");
            assert!(!answer.contains(&token));
        }
        assert_eq!(call(server, &["logout", &token]).await.unwrap(), "logged out");
        assert_code(server, &["whoami", &token], "Unauthenticated").await;
        assert_code(server, &["logout", &token], "Unauthenticated").await;

        for wrong in ["wrong", "", &"x".repeat(56), "a b"] {
            assert_code(server, &["whoami", wrong], "Unauthenticated").await;
        }
        assert_code(server, &["login", " "], "InvalidArgument").await;
    }

    #[tokio::test]
    async fn keeps_its_contract_in_memory() {
        keeps_its_contract(&Server::start("grpc", &[]).await).await;
    }

    #[tokio::test]
    async fn keeps_its_contract_in_redis() {
        let redis = RedisServer::start().await;
        keeps_its_contract(&Server::on("grpc", &redis).await).await;
    }

    #[tokio::test]
    async fn a_call_without_a_token_is_unauthenticated() {
        let server = Server::start("grpc", &[]).await;
        let mut client = KeepClient::connect(server.url.clone()).await.unwrap();
        let status = client.who_am_i(WhoAmIRequest {}).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        // Sessions on one connection differ only by their tokens.
        let token = client.login(LoginRequest { user: "ana".into() }).await.unwrap().into_inner().token;
        let status = client.who_am_i(WhoAmIRequest {}).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        let mut request = tonic::Request::new(WhoAmIRequest {});
        request.metadata_mut().insert("authorization", format!("bearer {token}").parse().unwrap());
        let response = client.who_am_i(request).await.unwrap();
        assert!(!response.metadata().contains_key("set-cookie"));
        assert_eq!(response.into_inner().user, "ana");
    }

    #[tokio::test]
    async fn a_login_with_a_token_ends_the_old_one() {
        let server = Server::start("grpc", &[]).await;
        let mut client = KeepClient::connect(server.url.clone()).await.unwrap();
        let old = client.login(LoginRequest { user: "ana".into() }).await.unwrap().into_inner().token;
        let mut request = tonic::Request::new(LoginRequest { user: "ana".into() });
        request.metadata_mut().insert("authorization", format!("Bearer {old}").parse().unwrap());
        let new = client.login(request).await.unwrap().into_inner().token;
        assert_ne!(old, new);
        assert_code(&server, &["whoami", &old], "Unauthenticated").await;
        assert!(call(&server, &["whoami", &new]).await.is_ok());
    }

    #[tokio::test]
    async fn two_processes_share_their_sessions() {
        let redis = RedisServer::start().await;
        let (one, two) = (Server::on("grpc", &redis).await, Server::on("grpc", &redis).await);
        let token = call(&one, &["login", "ana"]).await.unwrap();
        assert!(call(&two, &["whoami", &token]).await.unwrap().starts_with("user ana, visits 1,"));
        call(&two, &["logout", &token]).await.unwrap();
        assert_code(&one, &["whoami", &token], "Unauthenticated").await;
    }

    #[tokio::test]
    async fn an_outage_of_redis_is_unavailable_and_survived() {
        let mut redis = RedisServer::start().await;
        let server = Server::on("grpc", &redis).await;
        let token = call(&server, &["login", "ana"]).await.unwrap();
        redis.stop();
        assert_code(&server, &["whoami", &token], "Unavailable").await;
        assert_code(&server, &["logout", &token], "Unavailable").await;
        assert_code(&server, &["login", "ana"], "Unavailable").await;
        redis.run().await;
        eventually("the sessions are back", async || call(&server, &["login", "ana"]).await.is_ok()).await;
        assert_code(&server, &["whoami", &token], "Unauthenticated").await;
    }

    #[tokio::test]
    async fn starts_without_redis_and_serves_when_it_returns() {
        let mut redis = RedisServer::stopped();
        let server = Server::on("grpc", &redis).await;
        assert_code(&server, &["login", "ana"], "Unavailable").await;
        redis.run().await;
        eventually("the sessions are there", async || call(&server, &["login", "ana"]).await.is_ok()).await;
    }

    #[tokio::test]
    async fn invalid_client_arguments_are_one_line() {
        let server = Server::start("grpc", &[]).await;
        for args in [&["dance", "ana"][..], &["login"], &[], &["login", "ana", "bob"]] {
            assert!(call(&server, args).await.unwrap_err().starts_with("error: "), "{args:?}");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = example("grpc");
        command.env("ADDR", nobody).args(["client", "login", "ana"]);
        let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
        assert_refused(&output, "error: ", "");
    }

    #[tokio::test]
    async fn sigterm_ends_it() {
        let mut server = Server::start("grpc", &[]).await;
        // With an open connection.
        let mut client = KeepClient::connect(server.url.clone()).await.unwrap();
        client.login(LoginRequest { user: "ana".into() }).await.unwrap();
        assert_eq!(server.terminate().await.code(), Some(0));
    }
}
