//! Sessions that outlive one response, and requests that do not extend them.

use std::time::Duration;

use axum::routing::get;
use http::HeaderMap;
use serde_json::json;
use tower_keep::{
    EndReason, Lifetime, ManualClock, MemoryStore, Policy, Session, SessionCookie, SessionError, SessionLayer,
    SessionSecret, User,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

use crate::support::{
    app::{App, Kept},
    client::Client,
    redis_server::RedisServer,
    spy::Spy,
};

const MINUTE: Duration = Duration::from_secs(60);

/// An app whose handler keeps its session, as a socket does.
async fn connected(layer: &SessionLayer) -> (App, Client, Session) {
    let kept = Kept::default();
    let app = App::serve(|router| {
        router
            .route("/socket", kept.handler())
            .route("/left", get(async |session: Session| session.expires_in().map(|left| format!("{left:?}"))))
            .route(
                "/poll",
                get(async |session: Session| session.expires_in().map(|left| format!("{left:?}")))
                    .layer(layer.clone().touch(false)),
            )
            .layer(layer.clone())
    })
    .await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    client.get("/socket").await;
    (app, client, kept.session())
}

fn layer(store: impl SessionStore + 'static) -> SessionLayer {
    SessionLayer::new(store).cookie(SessionCookie::development())
}

async fn reload_shows_what_others_do(store: impl SessionStore + 'static) {
    let layer = layer(store);
    let (_app, client, session) = connected(&layer).await;
    client.perform(json!([["insert", "k", 2]])).await;
    session.insert("mine", &1).unwrap();
    assert_eq!(session.get::<u32>("k").unwrap(), Some(1), "a snapshot");
    assert!(session.reload().await.unwrap());
    assert_eq!(session.get::<u32>("k").unwrap(), Some(2));
    assert_eq!(session.get::<u32>("mine").unwrap(), Some(1), "unsaved changes are kept");
    session.save().await.unwrap();
    client.perform(json!([["rotate"]])).await;
    assert!(session.reload().await.unwrap() && session.touch().await.unwrap());
    assert_eq!(client.perform(json!([["get", "k"], ["get", "mine"]])).await, [json!(2), json!(1)]);
    client.perform(json!([["logout"]])).await;
    assert!(!session.reload().await.unwrap());
    assert!(!session.touch().await.unwrap());
    assert_eq!(session.user().unwrap(), None);
    assert_eq!(session.ended().unwrap(), Some(EndReason::LoggedOut));
    assert!(matches!(session.insert("k", &3), Err(SessionError::Ended)));
}

#[tokio::test]
async fn reload_shows_what_others_do_in_memory() {
    reload_shows_what_others_do(MemoryStore::new()).await;
}

#[tokio::test]
async fn reload_shows_what_others_do_in_redis() {
    let server = RedisServer::start().await;
    reload_shows_what_others_do(RedisStore::new(RedisConfig::from_url(&server.url()).unwrap())).await;
}

/// A layer with an idle timeout of ten minutes.
fn ten_minutes() -> (SessionLayer, ManualClock) {
    let clock = ManualClock::new();
    let lifetime = Lifetime::new(10 * MINUTE, 600 * MINUTE).unwrap();
    (layer(MemoryStore::new().clock(clock.clone())).clock(clock.clone()).lifetime(lifetime), clock)
}

#[tokio::test]
async fn touch_keeps_a_session_alive_without_requests() {
    let (layer, clock) = ten_minutes();
    let (_app, client, session) = connected(&layer).await;
    for _ in 0..5 {
        clock.advance(9 * MINUTE);
        assert!(session.touch().await.unwrap());
        assert_eq!(session.expires_in().unwrap(), Some(10 * MINUTE));
    }
    // Also after another request has written the session.
    client.perform(json!([["insert", "k", 2]])).await;
    clock.advance(9 * MINUTE);
    assert!(session.touch().await.unwrap());
    clock.advance(9 * MINUTE);
    assert_eq!(client.one(json!(["user"])).await, json!("ana"));
    clock.advance(10 * MINUTE);
    assert!(!session.touch().await.unwrap());
    assert_eq!(client.one(json!(["user"])).await, json!(null));
}

#[tokio::test]
async fn a_polled_route_does_not_extend_the_session() {
    let (layer, clock) = ten_minutes();
    let (_app, client, _session) = connected(&layer).await;
    for left in [8, 6, 4, 2] {
        clock.advance(2 * MINUTE);
        assert_eq!(client.get("/poll").await.text(), format!("{:?}", Some(left * MINUTE)));
    }
    assert_eq!(client.get("/left").await.text(), format!("{:?}", Some(10 * MINUTE)), "and another one does");
    clock.advance(9 * MINUTE);
    assert_eq!(client.get("/poll").await.text(), format!("{:?}", Some(MINUTE)));
    clock.advance(MINUTE);
    assert_eq!(client.get("/poll").await.text(), "None");
}

// ---- dead cookies

#[tokio::test]
async fn a_dead_cookie_is_removed_if_the_policy_says_so() {
    let policy = Policy::new().remove_dead_cookie(true);
    for (policy, removes) in [(policy, true), (policy.require_user(), true), (Policy::new(), false)] {
        let layer = layer(MemoryStore::new()).policy(policy);
        let sessions = layer.sessions();
        let app = App::serve(|router| router.route("/who", get(async |_: Option<User>| ())).layer(layer)).await;
        let revoked = sessions.create("ana").await.unwrap();
        sessions.revoke(&revoked.id()).await.unwrap();
        for dead in [revoked.expose(), &"a".repeat(56)] {
            let client = app.client();
            client.set_cookie("session", dead);
            client.get("/who").await;
            assert_eq!(client.cookie("session").is_none(), removes, "{policy:?}");
        }
        // Not what is alive, and not what another program has set.
        let live = sessions.create("ana").await.unwrap();
        for other in [live.expose(), "something else"] {
            let client = app.client();
            client.set_cookie("session", other);
            client.get("/who").await;
            assert_eq!(client.cookie("session").as_deref(), Some(other));
        }
    }
}

#[tokio::test]
async fn in_an_outage_no_cookie_is_removed() {
    let spy = Spy::new();
    let layer = layer(spy.clone()).policy(Policy::new().remove_dead_cookie(true));
    let sessions = layer.sessions();
    let app = App::serve(|router| router.route("/who", get(async |_: Option<User>| ())).layer(layer)).await;
    let client = app.client();
    client.set_cookie("session", sessions.create("ana").await.unwrap().expose());
    spy.fail("load");
    assert_eq!(client.get("/who").await.status, 503);
    assert!(client.cookie("session").is_some());
}

// ---- tests of apps

#[tokio::test]
async fn a_test_can_log_in_with_any_cookie() {
    let secret = SessionSecret::new("a secret of at least 32 bytes, for this test").unwrap();
    let builder = SessionCookie::builder().name("sid").secure(false);
    for cookie in [SessionCookie::default(), builder.build().unwrap().signed(secret)] {
        let layer = SessionLayer::new(MemoryStore::new()).cookie(cookie.clone());
        let token = layer.sessions().create("ana").await.unwrap();
        let header = cookie.request_header(&token);
        assert!(!format!("{header:?}").contains(token.expose()), "{header:?}");
        let app = App::with_me(layer).await;
        let headers = [("cookie", header.to_str().unwrap())];
        assert_eq!(crate::support::app::who(&app, &headers).await, "ana");
    }
}

#[tokio::test]
async fn a_function_that_takes_a_session_can_be_tested_alone() {
    let cookie = SessionCookie::default();
    let layer = SessionLayer::new(MemoryStore::new()).cookie(cookie.clone());
    let session = layer.session(&HeaderMap::new());
    session.insert("k", &1).unwrap();
    session.login("ana").unwrap();
    session.save().await.unwrap();
    let token = session.token().unwrap().unwrap();
    let headers = HeaderMap::from_iter([(http::header::COOKIE, cookie.request_header(&token))]);
    let session = layer.session(&headers);
    assert!(matches!(session.user(), Err(SessionError::NotLoaded)));
    session.load().await.unwrap();
    assert_eq!((session.user().unwrap().as_deref(), session.get::<u32>("k").unwrap()), (Some("ana"), Some(1)));
}

/// Starts waiting, and returns after the first look at the store.
async fn waiting(session: &Session) -> tokio::task::JoinHandle<Option<EndReason>> {
    let session = session.clone();
    let task = tokio::spawn(async move { session.until_ended().await.unwrap() });
    tokio::task::yield_now().await;
    task
}

#[tokio::test]
async fn a_socket_learns_that_its_session_has_ended() {
    let layer = layer(MemoryStore::new());
    for (end, reason) in [
        (json!(["logout"]), EndReason::LoggedOut),
        (json!(["login", "ana"]), EndReason::Replaced),
        (json!(["consume"]), EndReason::Used),
    ] {
        let (_app, client, session) = connected(&layer).await;
        let others = layer.sessions().create("ana").await.unwrap();
        let (one, two) = (waiting(&session).await, waiting(&session).await);
        layer.sessions().revoke(&others.id()).await.unwrap();
        client.perform(json!([end])).await;
        assert_eq!((one.await.unwrap(), two.await.unwrap()), (Some(reason), Some(reason)));
        // It had ended before.
        assert_eq!(session.until_ended().await.unwrap(), Some(reason));
    }
}

#[tokio::test]
async fn a_socket_learns_that_its_session_was_ended_by_another_process() {
    let server = RedisServer::start().await;
    let config = RedisConfig::from_url(&server.url()).unwrap().share_events(1000);
    let (layer, elsewhere) = (layer(RedisStore::new(config.clone())), layer(RedisStore::new(config)));
    let (_app, _client, session) = connected(&layer).await;
    let task = waiting(&session).await;
    assert_eq!(elsewhere.sessions().revoke_user("ana").await.unwrap(), 1);
    assert_eq!(task.await.unwrap(), Some(EndReason::Revoked));
}

#[tokio::test(start_paused = true)]
async fn a_socket_learns_that_its_session_has_expired() {
    let clock = ManualClock::new();
    let layer = layer(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    for user in [Some("ana"), None] {
        let token = match user {
            Some(user) => layer.sessions().create(user).await.unwrap(),
            None => layer.sessions().create(tower_keep::NewSession::anonymous()).await.unwrap(),
        };
        let (sessions, id) = (layer.sessions(), token.id());
        let task = tokio::spawn(async move { sessions.until_ended(&id).await });
        tokio::time::sleep(MINUTE).await;
        assert!(!task.is_finished());
        clock.advance(30 * MINUTE);
        assert_eq!(task.await.unwrap(), Some(EndReason::Expired));
    }
    let unknown = SessionLayer::new(MemoryStore::new()).sessions().create("ana").await.unwrap();
    assert_eq!(layer.sessions().until_ended(&unknown.id()).await, None);
}

/// A hundred sockets ask as often as one. If the one that asks is closed, another one does.
#[tokio::test(start_paused = true)]
async fn all_sockets_of_a_process_share_one_subscription() {
    let spy = Spy::new();
    let layer = layer(spy.clone());
    let mut sockets = Vec::new();
    for n in 0..100 {
        let (sessions, id) = (layer.sessions(), layer.sessions().create(format!("user{n}")).await.unwrap().id());
        sockets.push(tokio::spawn(async move { sessions.until_ended(&id).await }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((spy.calls(), spy.event_reads()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(spy.calls(), [""; 0]);
    let reads = spy.event_reads();
    assert!((15..=25).contains(&reads), "{reads}");
    sockets[..50].iter().for_each(|socket| socket.abort());
    layer.sessions().revoke_user("user99").await.unwrap();
    assert_eq!(sockets.pop().unwrap().await.unwrap(), Some(EndReason::Revoked));
    sockets.iter().for_each(|socket| socket.abort());
    for socket in sockets {
        assert!(socket.await.unwrap_err().is_cancelled());
    }
    // Nobody waits, so nobody asks.
    spy.event_reads();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(spy.event_reads(), 0);
}

/// Its end is noticed after the outage.
#[tokio::test(start_paused = true)]
async fn a_socket_survives_an_outage() {
    let spy = Spy::new();
    let layer = layer(spy.clone());
    let (sessions, id) = (layer.sessions(), layer.sessions().create("ana").await.unwrap().id());
    spy.go_down();
    let task = tokio::spawn(async move { sessions.until_ended(&id).await });
    tokio::time::sleep(MINUTE).await;
    assert!(!task.is_finished());
    spy.recover();
    layer.sessions().revoke(&id).await.unwrap();
    assert_eq!(task.await.unwrap(), Some(EndReason::Revoked));
}
