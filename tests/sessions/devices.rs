//! The example `devices`, tested from outside.

use std::collections::BTreeSet;

use crate::support::{
    client::{Client, Reply},
    eventually,
    example::Server,
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const NAME: &str = "devices";

/// A client that is logged in from a device with this name.
async fn login(server: &Server, user: &str, device: &str) -> Client {
    let client = server.client();
    let body = json!({ "username": user, "password": user }).to_string();
    let headers = [("content-type", "application/json"), ("user-agent", device)];
    let reply = client.request(Method::POST, "/login", &headers, body.into()).await;
    assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::OK, 1), "{reply:?}");
    client
}

async fn list(client: &Client) -> Vec<Value> {
    let reply = client.get("/sessions").await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply.json().as_array().unwrap().clone()
}

/// The names of the devices.
async fn devices(client: &Client) -> BTreeSet<String> {
    list(client).await.iter().map(|session| session["user_agent"].as_str().unwrap().to_owned()).collect()
}

async fn delete(client: &Client, path: &str) -> Reply {
    client.request(Method::DELETE, path, &[], Bytes::new()).await
}

async fn is_in(client: &Client) -> bool {
    match client.get("/sessions").await.status {
        StatusCode::OK => true,
        StatusCode::UNAUTHORIZED => false,
        status => panic!("{status}"),
    }
}

/// The id of the session of this client.
async fn id(client: &Client) -> String {
    let list = list(client).await;
    let current: Vec<_> = list.iter().filter(|session| session["current"] == true).collect();
    assert_eq!(current.len(), 1, "{list:?}");
    current[0]["id"].as_str().unwrap().to_owned()
}

/// The server alone and with another process.
async fn keeps_its_contract(server: &Server, other: &Server) {
    let wrong = server.client().post("/login", &json!({ "username": "ana", "password": "bob" })).await;
    assert_eq!((wrong.status, wrong.set_cookies().len()), (StatusCode::UNAUTHORIZED, 0));
    assert_eq!(server.client().get("/sessions").await.status, StatusCode::UNAUTHORIZED);
    for path in ["/sessions", "/sessions?except=current", "/sessions?except=nobody", "/sessions/x", "/sessions/%ff"] {
        assert_eq!(delete(&server.client(), path).await.status, StatusCode::UNAUTHORIZED);
    }

    let (phone, laptop, tablet) = (
        login(server, "ana", "phone").await,
        login(other, "ana", "laptop").await,
        login(server, "ana", "tablet").await,
    );
    let bob = login(server, "bob", "bob's").await;
    let sessions = list(&phone).await;
    assert_eq!(sessions.len(), 3);
    for session in &sessions {
        let mut keys: Vec<_> = session.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["created_at", "current", "id", "ip", "last_seen", "user_agent"]);
        assert_eq!((&session["ip"], session["current"].is_boolean()), (&json!("127.0.0.1"), true));
        for time in ["created_at", "last_seen"] {
            assert!(session[time].as_str().unwrap().ends_with('Z'), "{session}");
        }
        // An id is not a credential.
        let thief = server.client();
        thief.set_cookie("session", session["id"].as_str().unwrap());
        assert!(!is_in(&thief).await);
        assert!(!session.to_string().contains(&phone.cookie("session").unwrap()));
    }
    assert_eq!(devices(&phone).await, BTreeSet::from(["phone", "laptop", "tablet"].map(String::from)));
    assert_ne!(id(&phone).await, id(&laptop).await);

    // Sessions of other users are not listed.
    for path in [
        format!("/sessions/{}", id(&bob).await),
        format!("/sessions/{}", "A".repeat(44)),
        "/sessions/x".into(),
        "/sessions/%ff".into(),
    ] {
        assert_eq!(delete(&phone, &path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(is_in(&bob).await);

    // At the next request, on any instance.
    let ended = id(&laptop).await;
    assert_eq!(delete(&phone, &format!("/sessions/{ended}")).await.status, StatusCode::NO_CONTENT);
    assert!(!is_in(&laptop).await && !is_in(&laptop.at(&server.url)).await);
    assert_eq!(delete(&phone, &format!("/sessions/{ended}")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(devices(&tablet).await, BTreeSet::from(["phone", "tablet"].map(String::from)));

    assert_eq!(delete(&phone, "/sessions?except=current").await.status, StatusCode::NO_CONTENT);
    assert!(is_in(&phone.at(&other.url)).await && !is_in(&tablet).await && !is_in(&tablet.at(&other.url)).await);
    for nonsense in ["?except=nobody", "?except=", "?all=1"] {
        assert_eq!(delete(&phone, &format!("/sessions{nonsense}")).await.status, StatusCode::BAD_REQUEST);
    }
    assert!(is_in(&phone).await);
    let twin = phone.twin();
    assert_eq!(delete(&phone, "/sessions").await.status, StatusCode::NO_CONTENT);
    assert!(!is_in(&twin).await && !is_in(&twin.at(&other.url)).await);
    assert!(is_in(&bob).await, "that was Ana's");
}

#[tokio::test]
async fn the_example_works_in_memory() {
    let server = Server::start(NAME, &[]).await;
    keeps_its_contract(&server, &server).await;
}

#[tokio::test]
async fn the_example_works_on_every_instance() {
    let redis = RedisServer::start().await;
    keeps_its_contract(&Server::on(NAME, &redis).await, &Server::on(NAME, &redis).await).await;
}

#[tokio::test]
async fn a_thousand_ended_logins_leave_nothing() {
    let redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    for _ in 0..10 {
        let mut client = login(&server, "ana", "a script").await;
        for _ in 1..100 {
            client = login(&server, "ana", "a script").await;
        }
        assert_eq!(list(&client).await.len(), 100);
        assert_eq!(delete(&client, "/sessions").await.status, StatusCode::NO_CONTENT);
    }
    let client = login(&server, "ana", "phone").await;
    assert_eq!(devices(&client).await, BTreeSet::from(["phone".into()]));
    let keys = redis.keys().await;
    let index = keys.iter().find(|key| key.ends_with('}')).unwrap();
    assert_eq!(redis.command(&format!("ZCARD {index}")).await, redis::Value::Int(1));
}

#[tokio::test]
async fn a_login_and_a_request_cost_one_round_trip_each() {
    let redis = RedisServer::start().await;
    let server = Server::on(NAME, &redis).await;
    login(&server, "ana", "first").await; // now Redis has the script
    let calls = async |command| redis.calls(command).await;
    let before = calls("evalsha").await;
    let client = login(&server, "ana", "second").await;
    assert_eq!(calls("evalsha").await - before, 1);
    let before = (calls("evalsha").await, calls("pttl").await);
    for _ in 0..10 {
        assert_eq!(delete(&client, "/sessions/x").await.status, StatusCode::NOT_FOUND);
    }
    // GET, GET and PTTL, in one pipeline.
    assert_eq!((calls("evalsha").await - before.0, calls("pttl").await - before.1), (0, 10));
}

#[tokio::test]
async fn the_example_continues_without_redis() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let server = Server::on(NAME, &redis).await;
    let (phone, laptop) = (login(&server, "ana", "phone").await, login(&server, "ana", "laptop").await);
    assert!(is_in(&phone).await && is_in(&laptop).await);
    redis.stop();
    let concurrent = login(&server, "ana", "tablet").await;
    assert!(is_in(&phone).await && is_in(&concurrent).await);
    let path = format!("/sessions/{}", id(&laptop).await);
    assert_eq!(delete(&phone, &path).await.status, StatusCode::NO_CONTENT);
    assert!(!is_in(&laptop).await);

    redis.run().await;
    eventually("it is back", async || is_in(&phone).await && server.log().contains("the session store has recovered"))
        .await;
    let other = Server::on(NAME, &redis).await;
    assert!(!is_in(&laptop.at(&other.url)).await, "what ended in the outage has ended");
    assert_eq!(devices(&phone.at(&other.url)).await, BTreeSet::from(["phone", "tablet"].map(String::from)));
}
