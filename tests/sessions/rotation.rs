//! Rotation: automatic with a grace window, explicit without one, and the reuse of old tokens.

use std::{sync::Arc, time::Duration};

use crate::support::{
    app::App,
    client::{Client, Reply},
    log::Log,
    redis_server::RedisServer,
};
use serde_json::json;
use tower_keep::{
    Bearer, EndReason, EventKind, ManualClock, MemoryStore, Policy, SessionCookie, SessionLayer, Token,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const COOKIE: &str = "session";
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Two instances over one store, which rotate every ten minutes.
struct World {
    clock: ManualClock,
    layer: SessionLayer,
    app: App,
    other: App,
    _redis: Option<RedisServer>,
}

impl World {
    async fn over(store: Arc<dyn SessionStore>, clock: ManualClock, redis: Option<RedisServer>) -> Self {
        let layer = || {
            SessionLayer::new(store.clone())
                .cookie(SessionCookie::development())
                .bearer(Bearer::new())
                .clock(clock.clone())
                .rotate_every(10 * MINUTE)
        };
        let (one, two) = (layer(), layer());
        let app = App::start(one.clone()).await;
        let other = App::start(two).await;
        Self { clock, layer: one, app, other, _redis: redis }
    }

    async fn memory() -> Self {
        let clock = ManualClock::new();
        Self::over(Arc::new(MemoryStore::new().clock(clock.clone())), clock, None).await
    }

    async fn redis() -> Self {
        let redis = RedisServer::start().await;
        let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(10 * SECOND).connect_timeout(10 * SECOND);
        Self::over(Arc::new(RedisStore::new(config)), ManualClock::new(), Some(redis)).await
    }

    async fn ana(&self) -> Client {
        let client = self.app.client();
        client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        client
    }

    async fn sessions(&self) -> usize {
        self.layer.sessions().list("ana").await.unwrap().len()
    }

    /// A client with this token at the other instance.
    fn with(&self, token: &str) -> Client {
        let client = self.other.client();
        client.set_cookie(COOKIE, token);
        client
    }
}

fn token(client: &Client) -> String {
    client.cookie(COOKIE).unwrap()
}

fn set_cookies(reply: &Reply) -> usize {
    reply.set_cookies().len()
}

/// Each test in memory and in Redis.
macro_rules! promises {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::memory().await).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::redis().await).await;
            })*
        }
    };
}

promises! {
    a_token_that_is_old_enough_is_rotated
    within_the_grace_window_the_previous_token_is_served_and_gets_the_current_one
    concurrent_requests_with_an_old_token_get_the_same_new_one
    reuse_after_the_grace_window_ends_the_session_and_is_reported
    an_older_token_ends_the_session
    a_token_forged_from_an_old_one_ends_the_session
    after_an_explicit_rotation_the_previous_token_is_not_served_and_ends_nothing_within_the_grace_window
    after_the_grace_window_it_is_reuse
    a_request_concurrent_with_a_login_sets_no_cookie
    rotation_keeps_id_values_and_metadata
    a_login_of_the_same_user_changes_the_token_immediately
    a_failing_request_rotates_nothing
    a_failing_request_with_the_previous_token_gets_the_current_one
    bearer_tokens_are_not_rotated_automatically
    a_revoked_session_is_refused_within_the_grace_window
    a_previous_token_is_served_until_the_client_uses_the_new_one
    a_lost_response_to_an_explicit_rotation_ends_nothing
    a_token_from_before_another_login_does_not_end_the_session
}

async fn a_token_that_is_old_enough_is_rotated(w: World) {
    let client = w.ana().await;
    let first = token(&client);
    w.clock.advance(9 * MINUTE);
    let reply = client.post("/do", &json!([["get", "k"]])).await;
    assert_eq!((reply.json(), set_cookies(&reply)), (json!([1]), 0));
    w.clock.advance(MINUTE);
    assert_eq!(set_cookies(&client.get("/public").await), 0, "a request that asks nothing of it changes nothing");
    let reply = client.post("/do", &json!([["get", "k"]])).await;
    assert_eq!((reply.json(), set_cookies(&reply)), (json!([1]), 1));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_ne!(token(&client), first);
    assert_eq!(Token::parse(token(&client)).unwrap().id(), Token::parse(&first).unwrap().id());
    assert_eq!(client.one(json!(["user"])).await, "ana");
    assert_eq!((w.sessions().await, w.layer.stats().rotations), (1, 1));
}

async fn within_the_grace_window_the_previous_token_is_served_and_gets_the_current_one(w: World) {
    let client = w.ana().await;
    let tab = w.with(&token(&client));
    w.clock.advance(10 * MINUTE);
    client.one(json!(["get", "k"])).await;
    for _ in 0..2 {
        w.clock.advance(14 * SECOND);
        let late = w.with(&token(&tab));
        let reply = late.post("/do", &json!([["user"], ["insert", "l", 2]])).await;
        assert_eq!((reply.status.as_u16(), set_cookies(&reply)), (200, 1));
        assert_eq!(token(&late), token(&client), "every client gets the successor");
    }
    assert_eq!(client.one(json!(["get", "l"])).await, 2);
    assert_eq!(w.layer.stats().rotations, 1, "a graced request changes nothing again");
}

async fn concurrent_requests_with_an_old_token_get_the_same_new_one(w: World) {
    let client = w.ana().await;
    w.clock.advance(10 * MINUTE);
    let tabs: Vec<_> = (0..16).map(|n| if n % 2 == 0 { client.twin() } else { w.with(&token(&client)) }).collect();
    let mut requests = tokio::task::JoinSet::new();
    for tab in tabs {
        requests.spawn(async move {
            let reply = tab.post("/do", &json!([["user"], ["get", "k"]])).await;
            (reply.json(), set_cookies(&reply), token(&tab))
        });
    }
    let answers = requests.join_all().await;
    let winner = &answers[0].2;
    for (seen, told, given) in &answers {
        assert_eq!((seen, told, given), (&json!(["ana", 1]), &1, winner));
    }
    assert_eq!(w.with(winner).one(json!(["user"])).await, "ana");
    assert_eq!(w.sessions().await, 1);
}

async fn reuse_after_the_grace_window_ends_the_session_and_is_reported(w: World) {
    let log = Log::capture();
    let mut events = w.layer.sessions().events().await.unwrap();
    let client = w.ana().await;
    let thief = client.twin();
    w.clock.advance(10 * MINUTE);
    for _ in 0..2 {
        client.one(json!(["get", "k"])).await; // receives the new token, and uses it
    }
    w.clock.advance(30 * SECOND);
    let reply = thief.post("/do", &json!([["user"], ["get", "k"], ["ended"]])).await;
    assert_eq!(reply.json(), json!([null, null, "token_reused"]));
    // The whole session, for everybody with a token.
    assert_eq!(client.perform(json!([["user"], ["ended"]])).await, [json!(null), json!("token_reused")]);
    assert_eq!((w.sessions().await, w.layer.stats().reused_tokens), (0, 1));
    let mut happened = Vec::new();
    while happened.last() != Some(&EventKind::Ended(EndReason::TokenReused)) {
        let event = events.next().await.unwrap();
        assert_eq!(event.user(), Some("ana"));
        happened.push(event.kind());
    }
    let ended = EventKind::Ended(EndReason::TokenReused);
    assert_eq!(happened, [EventKind::Created, EventKind::LoggedIn, EventKind::Rotated, ended]);
    assert!(log.text().contains("a previous session token was used again"), "{}", log.text());
}

async fn an_older_token_ends_the_session(w: World) {
    let client = w.ana().await;
    let thief = client.twin();
    for _ in 0..3 {
        w.clock.advance(10 * MINUTE);
        client.one(json!(["get", "k"])).await;
    }
    // Within the grace window after the last rotation, it is only refused: requests may be in flight.
    assert_eq!(thief.one(json!(["user"])).await, json!(null));
    assert_eq!(client.one(json!(["user"])).await, "ana");
    w.clock.advance(MINUTE);
    assert_eq!(thief.one(json!(["user"])).await, json!(null));
    assert_eq!(client.one(json!(["user"])).await, json!(null));
}

async fn a_token_forged_from_an_old_one_ends_the_session(w: World) {
    let client = w.ana().await;
    let guess = format!("{}{}", token(&client), "A".repeat(16));
    assert_eq!(w.with(&guess).one(json!(["user"])).await, json!(null));
    assert_eq!(client.one(json!(["ended"])).await, "token_reused");
}

async fn after_an_explicit_rotation_the_previous_token_is_not_served_and_ends_nothing_within_the_grace_window(
    w: World,
) {
    let client = w.ana().await;
    let late = client.twin();
    client.one(json!(["rotate"])).await;
    w.clock.advance(29 * SECOND);
    let reply = late.post("/do", &json!([["user"], ["get", "k"]])).await;
    assert_eq!((reply.json(), set_cookies(&reply)), (json!([null, null]), 0));
    // The client may have the new one by now, which must not be replaced.
    let reply = late.post("/do", &json!([["insert", "k", 2]])).await;
    assert_eq!((reply.status.as_u16(), set_cookies(&reply)), (401, 0));
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
}

async fn after_the_grace_window_it_is_reuse(w: World) {
    let client = w.ana().await;
    let thief = client.twin();
    client.one(json!(["rotate"])).await;
    client.one(json!(["user"])).await;
    w.clock.advance(30 * SECOND);
    assert_eq!(thief.one(json!(["user"])).await, json!(null));
    assert_eq!(client.one(json!(["ended"])).await, "token_reused");
}

async fn a_request_concurrent_with_a_login_sets_no_cookie(w: World) {
    let visitor = w.app.client();
    visitor.one(json!(["insert", "cart", 1])).await;
    let late = visitor.twin();
    visitor.one(json!(["login", "ana"])).await;
    let reply = late.post("/do", &json!([["get", "cart"], ["ended"]])).await;
    assert_eq!((reply.json(), set_cookies(&reply)), (json!([null, "replaced"]), 0));
    let reply = late.post("/do", &json!([["insert", "cart", 2]])).await;
    assert_eq!((reply.status.as_u16(), set_cookies(&reply)), (401, 0));
    assert_eq!(visitor.perform(json!([["user"], ["get", "cart"]])).await, [json!("ana"), json!(1)]);
}

async fn rotation_keeps_id_values_and_metadata(w: World) {
    let client = w.ana().await;
    client.one(json!(["set_metadata", "device", "phone"])).await;
    let before = client.perform(json!([["id"], ["get", "k"], ["metadata"], ["created_at"]])).await;
    client.one(json!(["rotate"])).await;
    client.one(json!(["get", "k"])).await;
    w.clock.advance(10 * MINUTE);
    client.one(json!(["get", "k"])).await;
    assert_eq!(client.perform(json!([["id"], ["get", "k"], ["metadata"], ["created_at"]])).await, before);
    assert_eq!(w.layer.stats().rotations, 2);
}

async fn a_login_of_the_same_user_changes_the_token_immediately(w: World) {
    let client = w.ana().await;
    let late = client.twin();
    client.one(json!(["login", "ana"])).await;
    assert_ne!(token(&late), token(&client));
    assert_eq!(late.one(json!(["user"])).await, json!(null));
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    assert_eq!((w.sessions().await, w.layer.stats().logins), (1, 2));
}

async fn a_failing_request_rotates_nothing(w: World) {
    let client = w.ana().await;
    let first = token(&client);
    w.clock.advance(10 * MINUTE);
    // A handler that never returns: the request is cancelled.
    let stuck = json!([["get", "k"], ["gate", "stuck"]]);
    tokio::select! {
        reply = client.post("/do", &stuck) => panic!("{reply:?}"),
        () = w.app.reached("stuck") => {}
    }
    assert_eq!(w.layer.stats().unsaved, 0, "nothing is lost");
    let reply = client.post("/do", &json!([["get", "k"], ["status", 500]])).await;
    assert_eq!(set_cookies(&reply), 1, "a response is a response");
    assert_ne!(token(&client), first);
    assert_eq!(client.one(json!(["user"])).await, "ana");
}

async fn a_failing_request_with_the_previous_token_gets_the_current_one(w: World) {
    let client = w.ana().await;
    let tab = client.twin();
    w.clock.advance(10 * MINUTE);
    client.one(json!(["get", "k"])).await;
    let reply = tab.post("/do", &json!([["user"], ["status", 500]])).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (500, json!(["ana"])));
    assert_eq!(token(&tab), token(&client));
}

async fn bearer_tokens_are_not_rotated_automatically(w: World) {
    let token = w.layer.sessions().create("ana").await.unwrap();
    let bearer = format!("Bearer {}", token.expose());
    let client = w.app.client();
    for _ in 0..2 {
        w.clock.advance(10 * MINUTE);
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        let reply = client.request(http::Method::POST, "/do", &headers, r#"[["user"]]"#.into()).await;
        assert_eq!((reply.json(), set_cookies(&reply)), (json!(["ana"]), 0));
    }
    assert_eq!(w.layer.stats().rotations, 0);
}

async fn a_revoked_session_is_refused_within_the_grace_window(w: World) {
    let client = w.ana().await;
    let tab = w.with(&token(&client));
    w.clock.advance(10 * MINUTE);
    client.one(json!(["get", "k"])).await;
    w.layer.sessions().revoke_user("ana").await.unwrap();
    let seen = [json!(null), json!("revoked")];
    assert_eq!(tab.perform(json!([["user"], ["ended"]])).await, seen);
    assert_eq!(client.perform(json!([["user"], ["ended"]])).await, seen);
}

/// The response with the new token is lost. Mobile clients come back much later than any grace window.
async fn a_previous_token_is_served_until_the_client_uses_the_new_one(w: World) {
    let client = w.ana().await;
    let mobile = client.twin();
    w.clock.advance(10 * MINUTE);
    client.one(json!(["get", "k"])).await; // `mobile` misses this response
    for _ in 0..3 {
        w.clock.advance(25 * MINUTE);
        let late = mobile.twin();
        let reply = late.post("/do", &json!([["user"], ["insert", "l", 2]])).await;
        assert_eq!((reply.status.as_u16(), reply.json()[0].clone(), set_cookies(&reply)), (200, json!("ana"), 1));
        assert_eq!(token(&late), token(&client));
    }
    // Used: from now on, the grace window runs.
    assert_eq!(client.one(json!(["get", "l"])).await, 2);
    w.clock.advance(29 * SECOND);
    assert_eq!(mobile.twin().one(json!(["user"])).await, "ana");
    w.clock.advance(SECOND);
    assert_eq!(mobile.one(json!(["ended"])).await, "token_reused");
    assert_eq!(w.layer.stats().rotations, 1);
}

/// Only the client knows whether it received the token.
async fn a_lost_response_to_an_explicit_rotation_ends_nothing(w: World) {
    let client = w.ana().await;
    let mobile = client.twin();
    client.one(json!(["rotate"])).await;
    w.clock.advance(20 * MINUTE);
    assert_eq!(mobile.perform(json!([["user"], ["ended"]])).await, [json!(null), json!("replaced")]);
    assert_eq!(client.one(json!(["user"])).await, "ana");
}

/// A token from before a login says nothing about the session after it.
async fn a_token_from_before_another_login_does_not_end_the_session(w: World) {
    let client = w.ana().await;
    let before = client.twin();
    client.one(json!(["login", "ana"])).await;
    assert_ne!(Token::parse(token(&before)).unwrap().id(), Token::parse(token(&client)).unwrap().id());
    client.one(json!(["get", "k"])).await;
    w.clock.advance(MINUTE);
    assert_eq!(before.perform(json!([["user"], ["ended"]])).await, [json!(null), json!("replaced")]);
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    assert_eq!((w.sessions().await, w.layer.stats().reused_tokens), (1, 0));
}

/// The rejection where a session is required.
#[tokio::test]
async fn a_rejection_has_the_end_reason() {
    let store = MemoryStore::new();
    let layer = SessionLayer::new(store).cookie(SessionCookie::development());
    let reject = |rejection: &tower_keep::Rejection, _: &http::Request<()>| {
        let why = rejection.ended().map_or("none".into(), |reason: EndReason| reason.to_string());
        let mut response = http::Response::new(axum::body::Body::from(why));
        *response.status_mut() = rejection.status();
        response
    };
    let app =
        App::serve(|router| router.layer(layer.clone().policy(Policy::new().require_session()).reject_with(reject)))
            .await;
    let token = layer.sessions().create("ana").await.unwrap();
    let client = app.client();
    assert_eq!(client.get("/public").await.text(), "none");
    client.set_cookie(COOKIE, token.expose());
    assert_eq!(client.get("/public").await.text(), "public");
    layer.sessions().revoke(&token.id()).await.unwrap();
    let reply = client.get("/public").await;
    assert_eq!((reply.status.as_u16(), reply.text()), (401, "revoked".to_owned()));
}
