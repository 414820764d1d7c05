//! Requests without a live session, or without a store.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use crate::support::spy::Spy;
use crate::support::{
    app::App,
    client::{Client, Reply},
};
use axum::{
    Extension,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_keep::{
    Bearer, Lifetime, ManualClock, OnMissing, OnOutage, Policy, Rejection, ResponseForRejection, Session, SessionError,
    SessionLayer,
};

const NAME: &str = "__Host-session";
const NOTHING: [&str; 0] = [];

/// An app with a spy on its store, and a client with a session of Ana and `k = 1`.
async fn logged_in(layer: impl FnOnce(SessionLayer) -> SessionLayer) -> (App, Spy, Client) {
    let store = Spy::new();
    let app = App::start(layer(SessionLayer::new(store.clone()))).await;
    let client = ana(&app, &store).await;
    (app, store, client)
}

/// A client with a session of Ana, created by an app without requirements.
async fn ana(app: &App, store: &Spy) -> Client {
    let open = App::start(SessionLayer::new(store.clone())).await;
    let client = open.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    store.calls();
    client.at(&app.url())
}

fn stranger(app: &App) -> Client {
    let client = app.client();
    client.set_cookie(NAME, &"x".repeat(56));
    client
}

async fn steps(client: &Client, steps: Value) -> Reply {
    client.post("/do", &steps).await
}

fn assert_unavailable(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.set_cookies(), NOTHING);
    assert!(reply.body.is_empty(), "{reply:?}");
}

fn assert_unauthorized(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.set_cookies(), NOTHING);
    assert!(reply.body.is_empty(), "{reply:?}");
}

// ---- the cost of a request

#[tokio::test]
async fn a_request_without_a_token_costs_no_store_call() {
    let (app, store, _) = logged_in(|layer| layer).await;
    let client = app.client();
    assert_eq!(client.get("/public").await.status, StatusCode::OK);
    client.perform(json!([["get", "k"], ["user"], ["remove", "k"], ["clear"], ["rotate"], ["logout"]])).await;
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn an_unused_session_costs_no_store_call() {
    let (_app, store, client) = logged_in(|layer| layer).await;
    assert_eq!(client.get("/public").await.text(), "public");
    assert_eq!(client.one(json!(["unloaded"])).await, "NotLoaded");
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn a_malformed_token_costs_no_store_call() {
    let (app, store, _) = logged_in(|layer| layer.eager()).await;
    let client = app.client();
    client.set_cookie(NAME, "x");
    client.perform(json!([["get", "k"], ["user"]])).await;
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn reading_costs_one_load() {
    let (_app, store, client) = logged_in(|layer| layer).await;
    client.perform(json!([["get", "k"], ["get", "other"], ["user"], ["id"], ["expires_at"], ["save"]])).await;
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn writing_costs_one_load_and_one_update() {
    let (_app, store, client) = logged_in(|layer| layer).await;
    client.perform(json!([["insert", "a", 1], ["insert", "b", 2], ["remove", "k"], ["insert", "a", 3]])).await;
    assert_eq!(store.calls(), ["load", "update"]);
}

#[tokio::test]
async fn create_end_and_rotate_cost_one_call_and_a_login_transfer_three() {
    let (app, store, _) = logged_in(|layer| layer).await;
    let client = app.client();
    client.perform(json!([["insert", "k", 1], ["insert", "l", 2]])).await;
    assert_eq!(store.calls(), ["create"]);
    client.perform(json!([["login", "ana"], ["insert", "k", 2]])).await;
    assert_eq!(store.calls(), ["load", "create", "replace", "update"]);
    client.one(json!(["get", "k"])).await;
    assert_eq!(store.calls(), ["load"]);
    client.perform(json!([["rotate"], ["insert", "k", 3]])).await;
    assert_eq!(store.calls(), ["load", "update"]);
    client.perform(json!([["insert", "k", 3], ["logout"]])).await;
    assert_eq!(store.calls(), ["load", "end"]);
    client.perform(json!([["login", "ana"]])).await;
    assert_eq!(store.calls(), ["create"]);
}

#[tokio::test]
async fn a_change_without_effect_is_not_written() {
    let (_app, store, client) = logged_in(|layer| layer).await;
    client.one(json!(["insert", "map", {"a": 1, "b": [1, 2]}])).await;
    store.calls();
    for unchanged in [
        json!([["insert", "k", 1]]),
        json!([["insert", "map", {"b": [1, 2], "a": 1}]]),
        json!([["remove", "absent"]]),
        json!([["take", "absent"]]),
        json!([["insert", "k", 2], ["insert", "k", 1]]),
        json!([["insert", "new", 1], ["remove", "new"]]),
        json!([["lifetime", 1800, 86400, false]]),
    ] {
        client.perform(unchanged.clone()).await;
        assert_eq!(store.calls(), ["load"], "{unchanged}");
    }
    client.one(json!(["clear"])).await;
    assert_eq!(store.calls(), ["load", "update"]);
    client.one(json!(["clear"])).await;
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn every_accessor_fails_before_load() {
    async fn unloaded(session: Extension<Session>) -> String {
        let answers = [
            session.get::<u8>("k").map(drop),
            session.contains("k").map(drop),
            session.insert("k", &1),
            session.remove("k").map(drop),
            session.take::<u8>("k").map(drop),
            session.clear(),
            session.login("ana"),
            session.logout(),
            session.destroy(),
            session.rotate(),
            session.set_lifetime(Lifetime::aal1()),
            session.user().map(drop),
            session.id().map(drop),
            session.token().map(drop),
            session.created_at().map(drop),
            session.last_seen().map(drop),
            session.expires_at().map(drop),
            session.is_new().map(drop),
            session.save().await,
        ];
        let silent = answers.iter().position(|answer| !matches!(answer, Err(SessionError::NotLoaded)));
        format!("{silent:?} {}", session.is_degraded())
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.route("/unloaded", get(unloaded)).layer(layer)).await;
    let client = ana(&app, &store).await;
    assert_eq!(client.get("/unloaded").await.text(), "None false");
    assert_eq!(store.calls(), NOTHING);
}

// ---- on_missing, eager, require

#[tokio::test]
async fn by_default_a_missing_session_is_anonymous() {
    let (app, store, client) = logged_in(|layer| layer).await;
    assert_eq!(client.one(json!(["user"])).await, "ana");
    store.calls();
    assert_eq!(stranger(&app).perform(json!([["user"], ["is_new"]])).await, [Value::Null, json!(true)]);
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn on_missing_reject_refuses_a_handler_that_loads_a_missing_session() {
    let (app, store, client) = logged_in(|layer| layer.on_missing(OnMissing::Reject)).await;
    assert_eq!(client.one(json!(["user"])).await, "ana");
    store.calls();
    assert_unauthorized(&steps(&app.client(), json!([["user"]])).await);
    assert_eq!(store.calls(), NOTHING);
    assert_unauthorized(&steps(&stranger(&app), json!([["user"]])).await);
    assert_eq!(store.calls(), ["load"]);
    assert_eq!(stranger(&app).get("/public").await.text(), "public");
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn eager_looks_up_every_token_and_nothing_else() {
    let (app, store, client) = logged_in(|layer| layer.eager()).await;
    assert_eq!(client.get("/public").await.text(), "public");
    assert_eq!(store.calls(), ["load"]);
    client.perform(json!([["get", "k"], ["user"]])).await;
    assert_eq!(store.calls(), ["load"], "and not once more when the handler asks");
    assert_eq!(app.client().get("/public").await.text(), "public");
    assert_eq!(store.calls(), NOTHING);
    assert_eq!(stranger(&app).get("/public").await.text(), "public");
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn eager_with_on_missing_reject_refuses_an_ended_session_before_the_handler() {
    let (app, _, client) = logged_in(|layer| layer.eager().on_missing(OnMissing::Reject)).await;
    assert_eq!(client.get("/public").await.text(), "public");
    assert_unauthorized(&stranger(&app).get("/public").await);
    assert_eq!(app.client().get("/public").await.text(), "public");
    assert_unauthorized(&steps(&app.client(), json!([["user"]])).await);
}

#[tokio::test]
async fn require_refuses_without_a_live_session() {
    let (app, store, client) = logged_in(|layer| layer.require_session()).await;
    assert_eq!(client.one(json!(["user"])).await, "ana");
    assert_eq!(store.calls(), ["load"]);
    assert_eq!(client.get("/public").await.text(), "public");
    store.calls();
    assert_unauthorized(&app.client().get("/public").await);
    assert_eq!(store.calls(), NOTHING);
    assert_unauthorized(&stranger(&app).get("/public").await);
    client.one(json!(["logout"])).await;
    assert_unauthorized(&client.get("/public").await);
}

#[tokio::test]
async fn require_accepts_an_anonymous_session() {
    let store = Spy::new();
    let open = App::start(SessionLayer::new(store.clone())).await;
    let client = open.client();
    client.one(json!(["insert", "k", 1])).await;
    let strict = App::start(SessionLayer::new(store).require_session()).await;
    assert_eq!(client.at(&strict.url()).perform(json!([["get", "k"], ["user"]])).await, [json!(1), Value::Null]);
}

#[tokio::test]
async fn eager_does_not_undo_require() {
    for layer in
        [|layer: SessionLayer| layer.eager().require_session(), |layer: SessionLayer| layer.require_session().eager()]
    {
        let (app, _, client) = logged_in(layer).await;
        assert_eq!(client.get("/public").await.text(), "public");
        assert_unauthorized(&app.client().get("/public").await);
    }
}

// ---- the policy of a route

#[tokio::test]
async fn a_route_can_require_a_session_where_others_do_not() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let members = layer.clone().require_session();
    let app = App::serve(|router| router.route("/members", get(user).layer(members)).layer(layer)).await;
    let client = ana(&app, &store).await;
    assert_eq!(client.get("/members").await.text(), "ana");
    assert_eq!(store.calls(), ["load"]);
    assert_unauthorized(&app.client().get("/members").await);
    assert_unauthorized(&stranger(&app).get("/members").await);
    assert_eq!(stranger(&app).one(json!(["user"])).await, Value::Null);
}

async fn user(session: Session) -> Result<String, SessionError> {
    Ok(session.user()?.as_deref().unwrap_or("nobody").to_owned())
}

#[tokio::test]
async fn layers_over_the_same_sessions_share_one_and_save_it_once() {
    async fn outside(request: Request, next: Next) -> Result<Response<Body>, SessionError> {
        let session = request.extensions().get::<Session>().unwrap().clone();
        session.load().await.unwrap();
        session.insert("outside", &true)?;
        Ok(next.run(request).await)
    }
    async fn inside(session: Session) -> Result<String, SessionError> {
        session.insert("inside", &true)?;
        Ok(format!("{:?}", session.get::<bool>("outside")?))
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let members = layer.clone().require_session();
    let both = ServiceBuilder::new().layer(members.clone()).layer(members.eager());
    let app = App::serve(|router| {
        router
            .route("/inside", get(inside).layer(both))
            .layer(middleware::from_fn(outside))
            .layer(layer.clone())
            .layer(layer)
    })
    .await;
    let client = ana(&app, &store).await;
    let reply = client.get("/inside").await;
    assert_eq!(reply.text(), "Some(true)");
    assert_eq!(store.calls(), ["load", "update"]);
    assert_eq!(reply.headers.get_all("vary").iter().count(), 1);
    let open = App::start(SessionLayer::new(store)).await;
    let client = client.at(&open.url());
    assert_eq!(
        client.perform(json!([["get", "inside"], ["get", "outside"], ["get", "k"]])).await,
        [json!(true), json!(true), json!(1)]
    );
}

#[tokio::test]
async fn a_session_created_outside_a_route_gets_one_cookie() {
    async fn begin(session: Session) -> Result<&'static str, SessionError> {
        session.login("bob")?;
        Ok("welcome")
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let inner = layer.clone().eager();
    let app = App::serve(|router| router.route("/begin", get(begin).layer(inner)).layer(layer)).await;
    let client = app.client();
    assert_eq!(client.get("/begin").await.set_cookies().len(), 1);
    assert_eq!(store.calls(), ["create"]);
    assert_eq!(client.one(json!(["user"])).await, "bob");
}

#[tokio::test]
async fn layers_over_different_sessions_keep_them_apart() {
    let (store, admins) = (Spy::new(), Spy::new());
    let cookie = tower_keep::SessionCookie::builder().name("__Host-admin").build().unwrap();
    let inner = SessionLayer::new(admins.clone()).cookie(cookie).require_session();
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.route("/admin", get(user).layer(inner)).layer(layer)).await;
    let client = ana(&app, &store).await;
    assert_unauthorized(&client.get("/admin").await);
    client.set_cookie("__Host-admin", &client.cookie(NAME).unwrap());
    assert_unauthorized(&client.get("/admin").await);
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn an_outer_middleware_can_set_the_policy() {
    let store = Spy::new();
    let strict = Extension(Policy::new().require_session());
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.layer(layer).layer(strict)).await;
    let client = ana(&app, &store).await;
    assert_eq!(client.get("/public").await.text(), "public");
    assert_eq!(store.calls(), ["load"]);
    assert_unauthorized(&app.client().get("/public").await);
}

#[tokio::test]
async fn an_outer_policy_replaces_that_of_the_layer() {
    let store = Spy::new();
    let open = Extension(Policy::new().retry_after(Duration::from_millis(61_500)));
    let layer = SessionLayer::new(store.clone()).require_session().retry_after(Duration::from_secs(1));
    let app = App::serve(|router| router.layer(layer).layer(open)).await;
    assert_eq!(app.client().one(json!(["user"])).await, Value::Null);
    store.go_down();
    assert_eq!(steps(&stranger(&app), json!([["user"]])).await.header("retry-after"), Some("62"));
}

#[tokio::test]
async fn an_outer_policy_does_not_open_a_route_that_requires_a_session() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let members = layer.clone().require_session();
    let eager = Extension(Policy::new().eager());
    let app = App::serve(|router| router.route("/members", get(user).layer(members)).layer(layer).layer(eager)).await;
    assert_unauthorized(&app.client().get("/members").await);
}

#[tokio::test]
async fn a_route_can_survive_an_outage_where_others_do_not() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let tolerant = layer.clone().on_outage(OnOutage::Anonymous);
    let app = App::serve(|router| router.route("/home", get(user).layer(tolerant)).layer(layer)).await;
    let client = ana(&app, &store).await;
    store.go_down();
    assert_eq!(client.get("/home").await.text(), "nobody");
    assert_unavailable(&steps(&client, json!([["user"]])).await);
}

#[tokio::test]
async fn a_route_can_refuse_an_outage_where_others_do_not() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone()).on_outage(OnOutage::Anonymous).eager();
    let strict = layer.clone().on_outage(OnOutage::Reject);
    let app = App::serve(|router| router.route("/pay", get(user).layer(strict)).layer(layer)).await;
    let client = ana(&app, &store).await;
    store.go_down();
    assert_unavailable(&client.get("/pay").await);
    assert_eq!(client.one(json!(["user"])).await, Value::Null);
}

// ---- on_outage

#[tokio::test]
async fn a_route_without_session_use_survives_an_outage() {
    let (_app, store, client) = logged_in(|layer| layer).await;
    store.go_down();
    assert_eq!(client.get("/public").await.text(), "public");
    assert_eq!(store.calls(), NOTHING);
}

#[tokio::test]
async fn a_route_that_reads_a_session_is_unavailable_in_an_outage() {
    let (app, store, client) = logged_in(|layer| layer).await;
    store.go_down();
    assert_unavailable(&steps(&client, json!([["get", "k"]])).await);
    assert_eq!(store.calls(), ["load"]);
    assert_eq!(app.client().one(json!(["get", "k"])).await, Value::Null, "without a token there is nothing to ask");
    store.recover();
    assert_eq!(client.one(json!(["get", "k"])).await, 1);
}

#[tokio::test]
async fn an_eager_route_is_unavailable_in_an_outage() {
    let (app, store, client) = logged_in(|layer| layer.eager()).await;
    store.go_down();
    assert_unavailable(&client.get("/public").await);
    assert_eq!(app.client().get("/public").await.text(), "public");
}

#[tokio::test]
async fn an_outage_is_never_a_missing_session() {
    let (_app, store, client) = logged_in(|layer| layer.on_missing(OnMissing::Reject)).await;
    store.go_down();
    assert_unavailable(&steps(&client, json!([["user"]])).await);
}

#[tokio::test]
async fn a_tolerant_route_reads_an_empty_session_in_an_outage() {
    let (_app, store, client) = logged_in(|layer| layer.on_outage(OnOutage::Anonymous)).await;
    assert_eq!(client.one(json!(["is_degraded"])).await, false);
    store.go_down();
    let reply = steps(
        &client,
        json!([
            ["is_degraded"],
            ["get", "k"],
            ["contains", "k"],
            ["user"],
            ["id"],
            ["token"],
            ["created_at"],
            ["is_new"]
        ]),
    )
    .await;
    assert_eq!(reply.json(), json!([true, null, false, null, null, null, null, true]));
    assert_eq!(reply.set_cookies(), NOTHING);
    store.recover();
    assert_eq!(client.one(json!(["get", "k"])).await, 1);
}

#[tokio::test]
async fn a_tolerant_route_cannot_write_in_an_outage() {
    let (_app, store, client) = logged_in(|layer| layer.on_outage(OnOutage::Anonymous)).await;
    store.go_down();
    for write in [
        json!(["insert", "k", 2]),
        json!(["remove", "k"]),
        json!(["take", "k"]),
        json!(["clear"]),
        json!(["login", "bob"]),
        json!(["logout"]),
        json!(["destroy"]),
        json!(["rotate"]),
        json!(["lifetime", 60, 60, true]),
        json!(["save"]),
    ] {
        let reply = steps(&client, json!([write])).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{write}");
        assert_eq!(reply.set_cookies(), NOTHING, "{write}");
        assert_eq!(store.calls(), ["load"], "{write}");
    }
    store.recover();
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
}

#[tokio::test]
async fn a_missing_session_is_not_degraded() {
    let (app, store, _) =
        logged_in(|layer| layer.on_outage(OnOutage::Anonymous).on_missing(OnMissing::Reject).eager()).await;
    store.go_down();
    assert_eq!(stranger(&app).perform(json!([["is_degraded"], ["user"]])).await, [json!(true), Value::Null]);
    store.recover();
    assert_unauthorized(&steps(&stranger(&app), json!([["user"]])).await);
}

#[tokio::test]
async fn a_required_session_is_refused_in_an_outage() {
    let (app, store, client) = logged_in(|layer| layer.on_outage(OnOutage::Anonymous).require_session()).await;
    store.go_down();
    assert_unavailable(&client.get("/public").await);
    assert_unavailable(&steps(&client, json!([["user"]])).await);
    assert_unauthorized(&app.client().get("/public").await);
}

#[tokio::test]
async fn after_an_outage_load_can_be_called_again() {
    async fn insistent(session: Extension<Session>) -> Result<String, SessionError> {
        let first = session.load().await.is_err();
        let second = session.load().await.is_err();
        Ok(format!("{first} {second} {:?}", session.user()?.as_deref()))
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.route("/insistent", get(insistent)).layer(layer)).await;
    let client = ana(&app, &store).await;
    store.fail_next("load");
    assert_eq!(client.get("/insistent").await.text(), "true false Some(\"ana\")");
}

#[tokio::test]
async fn retry_after_is_whole_seconds_rounded_up() {
    for (delay, seconds) in [(Duration::from_millis(1), "1"), (Duration::from_secs(7), "7"), (Duration::ZERO, "0")] {
        let (_app, store, client) = logged_in(|layer| layer.retry_after(delay)).await;
        store.go_down();
        assert_eq!(client.post("/do", &json!([["user"]])).await.header("retry-after"), Some(seconds));
    }
}

#[tokio::test]
async fn a_failed_save_replaces_the_response() {
    for (operation, change) in [
        ("create", json!(["insert", "k", 2])),
        ("update", json!(["insert", "k", 2])),
        ("replace", json!(["login", "bob"])),
        ("update", json!(["rotate"])),
        ("end", json!(["logout"])),
    ] {
        let (app, store, client) = logged_in(|layer| layer).await;
        let client = if operation == "create" { app.client() } else { client };
        store.fail(operation);
        let reply = steps(
            &client,
            json!([change, ["header", "x-secret", "1"], ["header", "set-cookie", "a=b"], ["header", "etag", "\"1\""]]),
        )
        .await;
        assert_unavailable(&reply);
        assert_eq!((reply.header("x-secret"), reply.header("etag"), reply.header("content-type")), (None, None, None));
        store.recover();
        let expected = if operation == "create" { Value::Null } else { json!(1) };
        assert_eq!(client.one(json!(["get", "k"])).await, expected, "{operation}");
    }
}

#[tokio::test]
async fn a_tolerant_route_still_fails_if_a_change_is_not_saved() {
    let (_app, store, client) = logged_in(|layer| layer.on_outage(OnOutage::Anonymous)).await;
    store.fail("update");
    assert_unavailable(&steps(&client, json!([["insert", "k", 2]])).await);
}

#[tokio::test]
async fn a_session_that_cannot_be_extended_is_served() {
    let clock = ManualClock::new();
    let store = Spy::with_clock(clock.clone());
    let app = App::start(SessionLayer::new(store.clone()).clock(clock.clone())).await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    clock.advance(Duration::from_secs(10 * 60));
    store.calls();
    store.fail("touch");
    let reply = steps(&client, json!([["get", "k"], ["header", "x-fine", "1"]])).await;
    assert_eq!((reply.status, reply.header("x-fine")), (StatusCode::OK, Some("1")));
    assert_eq!(store.calls(), ["load", "touch"]);
    store.recover();
    client.one(json!(["get", "k"])).await;
    assert_eq!(store.calls(), ["load", "touch"], "the next request tries again");
}

#[tokio::test]
async fn outages_are_counted() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::start(layer.clone()).await;
    let client = ana(&app, &store).await;
    store.fail_next("load");
    steps(&client, json!([["user"]])).await;
    store.fail_next("update");
    steps(&client, json!([["insert", "k", 2]])).await;
    assert_eq!(layer.stats().outages, 2);
}

// ---- the format of a rejection

#[tokio::test]
async fn a_closure_can_create_the_rejection_response() {
    let reject = |rejection: &Rejection, _: &http::Request<()>| {
        let body = json!({ "error": rejection.to_string() }).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = rejection.status();
        response.headers_mut().insert("x-reject", header::HeaderValue::from_static("mine"));
        response
    };
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone()).on_missing(OnMissing::Reject).reject_with(reject);
    let strict = layer.clone().require_session();
    let app = App::serve(|router| router.route("/members", get(user).layer(strict)).layer(layer)).await;
    let client = ana(&app, &store).await;
    let stranger = stranger(&app);

    // By the layer before the handler, by the handler, and by the layer after the handler.
    let refused = [stranger.get("/members").await, steps(&stranger, json!([["user"]])).await];
    store.fail("update");
    let unsaved = steps(&client, json!([["insert", "k", 2]])).await;
    for reply in &refused {
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.json(), json!({ "error": "the session token is not valid" }));
    }
    assert_eq!(unsaved.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(unsaved.json(), json!({ "error": "sessions are unavailable" }));
    assert_eq!(unsaved.header("retry-after"), Some("5"));
    for reply in refused.iter().chain([&unsaved]) {
        assert_eq!(reply.header("x-reject"), Some("mine"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_route_can_have_its_own_rejection() {
    let layer = SessionLayer::new(Spy::new());
    let members = layer.clone().require_session().reject_with(|rejection: &Rejection, _: &http::Request<()>| {
        (rejection.status(), [(header::LOCATION, "/login")], "log in first").into_response()
    });
    let app = App::serve(|router| router.route("/members", get(user).layer(members)).layer(layer)).await;
    let reply = app.client().get("/members").await;
    assert_eq!((reply.status, reply.text().as_str()), (StatusCode::UNAUTHORIZED, "log in first"));
    assert_eq!(reply.header("location"), Some("/login"));
}

/// A body without a default.
struct Page(Full<Bytes>);

impl Page {
    fn new(text: &str) -> Self {
        Self(Full::from(text.to_owned()))
    }
}

impl hyper::body::Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[derive(Clone)]
struct Pages;

impl ResponseForRejection<Page> for Pages {
    fn response_for(&self, rejection: &Rejection, _: &http::Request<()>) -> Response<Page> {
        let mut response = Response::new(Page::new(&format!("page {}", rejection.status())));
        *response.status_mut() = rejection.status();
        response
    }
}

#[tokio::test]
async fn a_body_without_default_can_be_used_in_rejections() {
    let layer = SessionLayer::new(Spy::new()).require_session().reject_with(Pages);
    let service = layer.layer(service_fn(async |_: http::Request<()>| {
        Ok::<_, Infallible>(Response::new(Page::new("the handler was called")))
    }));
    let response = service.oneshot(http::Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "page 401 Unauthorized");
}

#[tokio::test]
async fn a_handler_can_return_the_rejection_of_load() {
    let layer = SessionLayer::new(Spy::new()).bearer(Bearer::new().realm("api")).on_missing(OnMissing::Reject);
    let service = layer.layer(service_fn(async |request: http::Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        let rejection = session.load().await.unwrap_err();
        Ok::<_, Infallible>(rejection.into_response::<String>())
    }));
    let response = service.oneshot(http::Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let challenges: Vec<_> = response.headers().get_all(header::WWW_AUTHENTICATE).iter().collect();
    assert_eq!(challenges, ["Bearer realm=\"api\""]);
}

#[tokio::test]
async fn the_extractor_reports_a_missing_layer() {
    let app = App::serve(|router| router.route("/user", get(user))).await;
    assert_eq!(app.client().get("/user").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

// ---- gRPC

async fn call(client: &Client, path: &str, content_type: &str) -> Reply {
    let headers = [("content-type", content_type), ("te", "trailers")];
    client.request(Method::POST, path, &headers, Bytes::new()).await
}

fn assert_grpc(reply: &Reply, status: &str) {
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.header("grpc-status"), Some(status));
    assert_eq!(reply.header("content-type"), Some("application/grpc"));
    assert!(reply.header("grpc-message").is_some());
    assert_eq!(reply.header("www-authenticate"), None);
    assert_eq!(reply.set_cookies(), NOTHING);
    assert!(reply.body.is_empty());
}

/// The layer rejects on `/strict`, the handler on `/lazy`.
async fn grpc_app(store: &Spy) -> App {
    let layer = SessionLayer::new(store.clone()).bearer(Bearer::new()).on_missing(OnMissing::Reject);
    let strict = layer.clone().require_session();
    App::serve(|router| router.route("/strict", post(user).layer(strict)).route("/lazy", post(user)).layer(layer)).await
}

#[tokio::test]
async fn a_rejection_of_a_grpc_call_is_a_grpc_status() {
    let store = Spy::new();
    let app = grpc_app(&store).await;
    let client = ana(&app, &store).await;
    for content_type in
        ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC"]
    {
        for path in ["/strict", "/lazy"] {
            assert_grpc(&call(&app.client(), path, content_type).await, "16");
            assert_grpc(&call(&stranger(&app), path, content_type).await, "16");
            assert_eq!(call(&client, path, content_type).await.text(), "ana");
        }
    }
    store.go_down();
    for path in ["/strict", "/lazy"] {
        assert_grpc(&call(&client, path, "application/grpc+proto").await, "14");
    }
}

#[tokio::test]
async fn a_failed_save_of_a_grpc_call_is_a_grpc_status() {
    async fn write(session: Session) -> Result<&'static str, SessionError> {
        session.insert("k", &2)?;
        Ok("written")
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.route("/write", post(write)).layer(layer)).await;
    let client = ana(&app, &store).await;
    store.fail("update");
    assert_grpc(&call(&client, "/write", "application/grpc").await, "14");
}

#[tokio::test]
async fn two_credentials_of_a_grpc_call_are_a_grpc_status() {
    let store = Spy::new();
    let app = grpc_app(&store).await;
    let client = ana(&app, &store).await;
    let authorization = format!("Bearer {}", "x".repeat(56));
    let headers = [
        ("content-type", "application/grpc"),
        ("authorization", &authorization),
        ("cookie", &format!("{NAME}={}", client.cookie(NAME).unwrap())),
    ];
    assert_grpc(&client.request(Method::POST, "/lazy", &headers, Bytes::new()).await, "16");
}

#[tokio::test]
async fn a_rejection_of_other_requests_is_http() {
    let store = Spy::new();
    let app = grpc_app(&store).await;
    for content_type in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpcx",
        "application/json",
        "text/application/grpc",
    ] {
        for path in ["/strict", "/lazy"] {
            let reply = call(&app.client(), path, content_type).await;
            assert_unauthorized(&reply);
            assert_eq!(reply.header("grpc-status"), None);
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
    }
    let headers = [("content-type", "application/grpc")];
    let layer = SessionLayer::new(store).require_session();
    let app = App::start(layer).await;
    assert_unauthorized(&app.client().request(Method::GET, "/public", &headers, Bytes::new()).await);
}

#[tokio::test]
async fn a_rejection_keeps_the_headers_of_inner_middleware() {
    let layer = SessionLayer::new(tower_keep::MemoryStore::new()).bearer(Bearer::new()).on_missing(OnMissing::Reject);
    let named = axum::middleware::map_response(async |mut response: axum::response::Response| {
        response.headers_mut().insert("x-request-id", "7".parse().unwrap());
        response
    });
    let app = App::serve(|router| router.route("/user", get(user)).layer(named).layer(layer)).await;
    let reply = app.client().get("/user").await;
    assert_unauthorized(&reply);
    assert_eq!(reply.header("x-request-id"), Some("7"));
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
}

#[tokio::test]
async fn a_rejection_that_a_handler_replaced_is_not_changed() {
    let layer = SessionLayer::new(tower_keep::MemoryStore::new()).on_missing(OnMissing::Reject);
    let to_login = axum::middleware::map_response(async |mut response: axum::response::Response| {
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, "/login".parse().unwrap());
        response
    });
    let app = App::serve(|router| router.route("/user", get(user)).layer(to_login).layer(layer)).await;
    let reply = app.client().get("/user").await;
    assert_eq!((reply.status, reply.header("location")), (StatusCode::SEE_OTHER, Some("/login")));
}

#[tokio::test]
async fn require_user_is_401_for_a_session_without_a_login() {
    async fn handler(session: Session) -> Result<String, Rejection> {
        Ok(session.require_user().await?.to_string())
    }
    let layer = SessionLayer::new(tower_keep::MemoryStore::new());
    let app = App::serve(|router| router.route("/account", get(handler)).layer(layer)).await;
    let client = app.client();
    assert_unauthorized(&client.get("/account").await);
    client.one(json!(["insert", "cart", [1]])).await;
    assert_unauthorized(&client.get("/account").await);
    client.one(json!(["login", "ana"])).await;
    assert_eq!(client.get("/account").await.text(), "ana");
}

#[tokio::test]
async fn a_session_that_is_too_large_is_not_an_outage() {
    let app = App::start(SessionLayer::new(tower_keep::MemoryStore::new()).max_size(10)).await;
    for steps in [json!([["insert", "k", "0123456789"]]), json!([["login", "somebody with a long name"]])] {
        let reply = app.client().post("/do", &steps).await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::INTERNAL_SERVER_ERROR, None));
        assert!(reply.set_cookies().is_empty());
    }
}
