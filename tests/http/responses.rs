//! Cookies in responses, the time of saves, and lifetimes.

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::{Pin, pin},
    task::{Context, Waker},
    time::Duration,
};

use crate::support::spy::Spy;
use crate::support::{
    app::App,
    client::{Client, Reply},
};
use axum::{body::Body, routing::post};
use http::{Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{Bearer, Clock, Lifetime, ManualClock, MemoryStore, Session, SessionError, SessionLayer, Token};

const NAME: &str = "__Host-session";
const NOTHING: [&str; 0] = [];
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A layer with a spy on its store, and an app. The clock stands still.
async fn watched() -> (App, SessionLayer, Spy) {
    let clock = ManualClock::new();
    let store = Spy::with_clock(clock.clone());
    let layer = SessionLayer::new(store.clone()).clock(clock);
    (App::start(layer.clone()).await, layer, store)
}

async fn steps(client: &Client, steps: Value) -> Reply {
    client.post("/do", &steps).await
}

/// The `Set-Cookie` of the session in `response`.
fn told<B>(response: &Response<B>) -> Option<&str> {
    response.headers().get(header::SET_COOKIE).map(|value| value.to_str().unwrap())
}

/// The token in `response`.
fn given<B>(response: &Response<B>) -> String {
    let (pair, _) = told(response).unwrap().split_once(';').unwrap();
    pair.strip_prefix(NAME).unwrap()[1..].to_owned()
}

fn request(token: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    if let Some(token) = token {
        request.headers_mut().insert(header::COOKIE, format!("{NAME}={token}").parse().unwrap());
    }
    request
}

type Answer = Result<Response<String>, &'static str>;

/// Calls `handler` in `layer`, with the session loaded.
async fn call<F: Future<Output = Answer>>(
    layer: &SessionLayer,
    token: Option<&str>,
    handler: impl Fn(Session) -> F + Clone,
) -> Answer {
    let service = layer.layer(service_fn(|request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap().clone();
        let handler = &handler;
        async move {
            session.load().await.unwrap();
            handler(session).await
        }
    }));
    service.oneshot(request(token)).await
}

fn ok() -> Answer {
    Ok(Response::new(String::new()))
}

/// The session of `token`: its user, and `k`.
async fn content(layer: &SessionLayer, token: &str) -> (Option<String>, Option<u32>) {
    let response = call(layer, Some(token), async |session: Session| {
        let user = session.user().unwrap().map(|user| user.to_string());
        Ok(Response::new(serde_json::to_string(&(user, session.get::<u32>("k").unwrap())).unwrap()))
    });
    serde_json::from_str(response.await.unwrap().body()).unwrap()
}

/// The token of a new session of Ana, which the layer around the handler has not seen.
async fn ana(layer: &SessionLayer) -> String {
    layer.sessions().create("ana").await.unwrap().expose().to_owned()
}

/// The token of a new anonymous session with `k = 1`.
async fn anonymous(layer: &SessionLayer) -> String {
    anonymous_with(layer, 1).await
}

async fn anonymous_with(layer: &SessionLayer, value: u32) -> String {
    given(
        &call(layer, None, move |session: Session| async move {
            session.insert("k", &value).unwrap();
            ok()
        })
        .await
        .unwrap(),
    )
}

const DEAD: (Option<String>, Option<u32>) = (None, None);

fn some(user: &str) -> Option<String> {
    Some(user.to_owned())
}

// ---- before the head

#[tokio::test]
async fn the_response_is_sent_after_the_save() {
    let (_app, layer, store) = watched().await;
    for (operation, rotates) in [("create", false), ("update", false), ("update", true), ("end", false)] {
        let token = ana(&layer).await;
        let token = (operation != "create").then_some(token.as_str());
        let hold = store.hold_next(operation);
        let mut answer = pin!(call(&layer, token, async |session: Session| {
            match operation {
                "update" if rotates => session.rotate().unwrap(),
                "end" => session.destroy().unwrap(),
                _ => session.insert("k", &1).unwrap(),
            }
            ok()
        }));
        tokio::select! {
            biased;
            _ = &mut answer => panic!("answered before {operation}"),
            () = hold.reached() => {}
        }
        assert!(poll(answer.as_mut()).is_none(), "{operation}");
        hold.release();
        assert_eq!(told(&answer.await.unwrap()).is_some(), operation != "update" || rotates);
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn after_the_response_every_instance_has_the_write() {
    let store = MemoryStore::new();
    let one = App::start(SessionLayer::new(store.clone())).await;
    let other = App::start(SessionLayer::new(store)).await;
    let client = one.client();
    for n in 0..20 {
        client.one(json!(["insert", "k", n])).await;
        assert_eq!(client.at(&other.url()).one(json!(["get", "k"])).await, n);
    }
}

// ---- Set-Cookie

#[tokio::test]
async fn the_cookie_is_set_only_for_a_new_token_an_end_or_a_new_expiry() {
    let (app, _, _) = watched().await;
    let client = app.client();
    for (change, tells) in [
        (json!(["get", "k"]), false),
        (json!(["rotate"]), false),
        (json!(["logout"]), false),
        (json!(["lifetime", 60, 60, true]), false),
        (json!(["insert", "k", 1]), true),
        (json!(["insert", "k", 2]), false),
        (json!(["get", "k"]), false),
        (json!(["remove", "k"]), false),
        (json!(["insert", "k", 3]), false),
        (json!(["clear"]), false),
        (json!(["rotate"]), true),
        (json!(["login", "ana"]), true),
        (json!(["login", "ana"]), true),
        (json!(["user"]), false),
        (json!(["logout"]), true),
        (json!(["logout"]), false),
    ] {
        let before = client.cookie(NAME);
        let reply = steps(&client, json!([change])).await;
        assert_eq!(reply.set_cookies().len(), usize::from(tells), "{change}: {reply:?}");
        assert_eq!(client.cookie(NAME) != before, tells, "{change}");
    }
}

#[tokio::test]
async fn extending_the_idle_timeout_sets_no_cookie() {
    let clock = ManualClock::new();
    let store = Spy::with_clock(clock.clone());
    let lifetime = Lifetime::new(HOUR, DAY).unwrap().persistent(true);
    let app = App::start(SessionLayer::new(store.clone()).clock(clock.clone()).lifetime(lifetime)).await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    store.calls();
    clock.advance(30 * MINUTE);
    assert_eq!(steps(&client, json!([["get", "k"]])).await.set_cookies(), NOTHING);
    assert_eq!(store.calls(), ["load", "touch"]);
    assert_eq!(steps(&client, json!([["insert", "k", 2]])).await.set_cookies(), NOTHING);
}

#[tokio::test]
async fn a_longer_lifetime_sets_the_cookie_with_the_same_token() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    let token = client.cookie(NAME).unwrap();
    for (lifetime, max_age) in [
        (json!(["lifetime", 3600, 86400, true]), Some(true)),
        (json!(["lifetime", 3600, 86400, true]), None),
        (json!(["lifetime", 3600, 172800, true]), Some(true)),
        (json!(["lifetime", 7200, 172800, true]), None), // only the idle timeout, which the cookie does not contain
        (json!(["lifetime", 3600, 86400, false]), Some(false)),
        (json!(["lifetime", 3600, 172800, false]), None),
    ] {
        let reply = steps(&client, json!([lifetime])).await;
        let has_max_age =
            reply.set_cookies().first().map(|text| text.contains("Max-Age=") && text.contains("Expires="));
        assert_eq!(has_max_age, max_age, "{lifetime}: {reply:?}");
        assert_eq!(client.cookie(NAME).as_ref(), Some(&token));
    }
}

#[tokio::test]
async fn remember_me_at_login_makes_the_cookie_persistent() {
    let (app, _, _) = watched().await;
    let reply = steps(&app.client(), json!([["login", "ana"], ["lifetime", 3600, 7200, true]])).await;
    assert_eq!(reply.set_cookies().len(), 1);
    assert!(reply.set_cookies()[0].contains("Max-Age=7200"));
}

#[tokio::test]
async fn remember_me_after_a_save_makes_the_cookie_persistent() {
    let (app, _, _) = watched().await;
    let client = app.client();
    let reply = steps(&client, json!([["login", "ana"], ["save"], ["lifetime", 3600, 7200, true]])).await;
    assert_eq!(reply.set_cookies().len(), 1);
    assert!(reply.set_cookies()[0].contains("Max-Age=7200"));
    assert_eq!(client.one(json!(["user"])).await, "ana");
}

#[tokio::test]
async fn logout_with_an_ended_session_is_not_an_error() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    let tab = client.twin();
    client.one(json!(["logout"])).await;
    assert_eq!(tab.one(json!(["logout"])).await, Value::Null);
}

// ---- caches

#[tokio::test]
async fn a_response_that_sets_the_cookie_is_not_stored_by_caches() {
    let (app, _, _) = watched().await;
    let client = app.client();
    let public = json!(["header", "cache-control", "public, s-maxage=600"]);
    let age = json!(["header", "cache-control", "max-age=60"]);
    for change in [json!(["login", "ana"]), json!(["rotate"]), json!(["lifetime", 60, 60, true]), json!(["logout"])] {
        let reply = steps(&client, json!([public, age, change])).await;
        assert_eq!(reply.set_cookies().len(), 1, "{change}");
        let cache_control: Vec<_> = reply.headers.get_all("cache-control").iter().collect();
        assert_eq!(cache_control, ["no-store"], "{change}");
    }
}

#[tokio::test]
async fn a_response_that_sets_no_cookie_keeps_its_cache_control() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    let public = json!(["header", "cache-control", "public, s-maxage=600"]);
    for step in [json!(["get", "k"]), json!(["insert", "k", 2]), json!(["unloaded"])] {
        let reply = steps(&client, json!([public, step])).await;
        assert_eq!(reply.header("cache-control"), Some("public, s-maxage=600"), "{step}");
        assert_eq!(steps(&client, json!([step])).await.header("cache-control"), None);
    }
}

/// The names in all `Vary` headers.
fn vary(reply: &Reply) -> Vec<&str> {
    let lines = reply.headers.get_all("vary").iter().map(|value| value.to_str().unwrap());
    lines.flat_map(|line| line.split(',').map(str::trim)).collect()
}

#[tokio::test]
async fn a_response_that_depends_on_the_session_has_vary() {
    let (app, _, _) = watched().await;
    let client = app.client();
    for change in [json!(["user"]), json!(["login", "ana"]), json!(["get", "k"]), json!(["logout"])] {
        assert_eq!(vary(&steps(&client, json!([change])).await), ["cookie"], "{change}");
    }
    assert_eq!(vary(&steps(&client, json!([["status", 500], ["user"]])).await), ["cookie"]);
}

#[tokio::test]
async fn a_response_that_does_not_depend_on_the_session_does_not_vary() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    assert_eq!(vary(&client.get("/public").await), NOTHING);
    assert_eq!(vary(&steps(&client, json!([["unloaded"], ["header", "vary", "accept"]])).await), ["accept"]);
}

#[tokio::test]
async fn the_vary_header_of_the_handler_is_kept_without_duplicates() {
    let app = App::start(SessionLayer::new(MemoryStore::new()).bearer(Bearer::new())).await;
    for (handlers, all) in [
        (vec![], vec!["cookie", "authorization"]),
        (vec!["Accept-Encoding"], vec!["Accept-Encoding", "cookie", "authorization"]),
        (vec!["Cookie"], vec!["Cookie", "authorization"]),
        (vec!["accept, COOKIE ,Authorization"], vec!["accept", "COOKIE", "Authorization"]),
        (vec!["accept", "authorization"], vec!["accept", "authorization", "cookie"]),
        (vec!["cookie-consent"], vec!["cookie-consent", "cookie", "authorization"]),
        (vec!["*"], vec!["*"]),
        (vec!["accept", "x, *"], vec!["accept", "x", "*"]),
    ] {
        let mut script = vec![json!(["user"])];
        script.extend(handlers.iter().map(|value| json!(["header", "vary", value])));
        assert_eq!(vary(&steps(&app.client(), json!(script)).await), all);
    }
}

// ---- failing handlers

#[tokio::test]
async fn a_server_error_keeps_the_changes() {
    let (app, _, _) = watched().await;
    let client = app.client();
    let failing = async |change: Value| {
        let reply = steps(&client, json!([["status", 500], change])).await;
        assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    };
    failing(json!(["insert", "k", 1])).await;
    assert_eq!(client.one(json!(["get", "k"])).await, 1);

    let before = client.twin();
    failing(json!(["login", "ana"])).await;
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    assert_eq!(before.one(json!(["get", "k"])).await, Value::Null);

    let before = client.twin();
    failing(json!(["logout"])).await;
    assert_eq!(client.cookie(NAME), None);
    assert_eq!(before.one(json!(["user"])).await, Value::Null);
}

#[tokio::test]
async fn an_explicit_save_is_kept_after_a_server_error() {
    let (app, _, store) = watched().await;
    let client = app.client();
    let reply =
        steps(&client, json!([["status", 502], ["login", "ana"], ["save"], ["insert", "k", 1], ["save"]])).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert_eq!(store.calls(), ["create", "update"]);
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
}

#[tokio::test]
async fn a_failing_service_keeps_updates() {
    let (_app, layer, _) = watched().await;
    let token = anonymous(&layer).await;
    let answer = call(&layer, Some(&token), async |session: Session| {
        session.insert("k", &2).unwrap();
        Err("broken")
    });
    assert_eq!(answer.await.unwrap_err(), "broken");
    assert_eq!(content(&layer, &token).await, (None, Some(2)));
}

#[tokio::test]
async fn a_failing_service_keeps_the_end_of_a_session() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    let answer = call(&layer, Some(&token), async |session: Session| {
        session.logout().unwrap();
        session.insert("notice", "bye").unwrap();
        Err("broken")
    });
    assert_eq!(answer.await.unwrap_err(), "broken");
    assert_eq!(content(&layer, &token).await, DEAD);
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn a_failing_service_creates_no_token() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    store.calls();
    call(&layer, Some(&token), async |session: Session| {
        session.rotate().unwrap();
        Err("broken")
    })
    .await
    .unwrap_err();
    call(&layer, None, async |session: Session| {
        session.login("bob").unwrap();
        Err("broken")
    })
    .await
    .unwrap_err();
    assert_eq!(store.calls(), ["load"]);
    assert_eq!(content(&layer, &token).await.0, some("ana"));
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn a_failing_service_neither_logs_in_nor_out() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    call(&layer, Some(&token), async |session: Session| {
        session.login("bob").unwrap();
        Err("broken")
    })
    .await
    .unwrap_err();
    assert_eq!(content(&layer, &token).await.0, some("ana"));
    assert_eq!(store.len(), 1);
}

// ---- cancelled requests

#[tokio::test]
async fn a_cancelled_request_changes_nothing_and_is_counted() {
    let (_app, layer, store) = watched().await;
    let token = anonymous(&layer).await;
    let mut answer = Box::pin(call(&layer, Some(&token), async |session: Session| {
        session.login("bob").unwrap();
        session.insert("k", &2).unwrap();
        pending().await
    }));
    assert!(poll(answer.as_mut()).is_none());
    store.calls();
    drop(answer);
    assert_eq!(layer.stats().unsaved, 1);
    assert_eq!(store.calls(), NOTHING);
    assert_eq!(content(&layer, &token).await, (None, Some(1)));
}

#[tokio::test]
async fn a_request_cancelled_during_the_save_is_counted() {
    let (_app, layer, store) = watched().await;
    let token = anonymous(&layer).await;
    let _hold = store.hold_next("replace");
    let mut answer = Box::pin(call(&layer, Some(&token), async |session: Session| {
        session.login("bob").unwrap();
        ok()
    }));
    assert!(poll(answer.as_mut()).is_none());
    drop(answer);
    assert_eq!(layer.stats().unsaved, 1);
    assert_eq!(content(&layer, &token).await, (None, Some(1)));
}

#[tokio::test]
async fn a_cancelled_request_keeps_explicit_saves() {
    let (_app, layer, _) = watched().await;
    let token = anonymous(&layer).await;
    let mut answer = Box::pin(call(&layer, Some(&token), async |session: Session| {
        session.insert("k", &2).unwrap();
        session.save().await.unwrap();
        pending().await
    }));
    assert!(poll(answer.as_mut()).is_none());
    drop(answer);
    assert_eq!(layer.stats().unsaved, 0);
    assert_eq!(content(&layer, &token).await, (None, Some(2)));
}

#[tokio::test]
async fn a_cancelled_request_that_only_read_is_not_counted() {
    let (_app, layer, _) = watched().await;
    let token = ana(&layer).await;
    let mut answer = Box::pin(call(&layer, Some(&token), async |_| pending().await));
    assert!(poll(answer.as_mut()).is_none());
    drop(answer);
    assert_eq!(layer.stats().unsaved, 0);
}

// ---- after the head

/// The session of a request after its response.
async fn answered(layer: &SessionLayer, token: Option<&str>) -> Session {
    let kept = std::sync::Mutex::new(None);
    call(layer, token, async |session: Session| {
        *kept.lock().unwrap() = Some(session);
        ok()
    })
    .await
    .unwrap();
    kept.into_inner().unwrap().unwrap()
}

#[tokio::test]
async fn a_late_change_can_be_saved() {
    let (_app, layer, _) = watched().await;
    let token = ana(&layer).await;
    let session = answered(&layer, Some(&token)).await;
    session.insert("k", &7).unwrap();
    session.save().await.unwrap();
    assert_eq!(content(&layer, &token).await, (some("ana"), Some(7)));
    drop(session);
    assert_eq!(layer.stats().unsaved, 0);
}

#[tokio::test]
async fn a_late_logout_can_be_saved() {
    let (_app, layer, _) = watched().await;
    let token = ana(&layer).await;
    let session = answered(&layer, Some(&token)).await;
    session.logout().unwrap();
    session.save().await.unwrap();
    assert_eq!(content(&layer, &token).await, DEAD);
}

#[tokio::test]
async fn a_late_logout_ends_the_session_although_no_other_can_be_created() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    let session = answered(&layer, Some(&token)).await;
    session.logout().unwrap();
    session.insert("notice", "bye").unwrap();
    assert!(matches!(session.save().await, Err(SessionError::ResponseSent)));
    assert_eq!(content(&layer, &token).await, DEAD);
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn no_session_is_created_after_the_head() {
    let (_app, layer, store) = watched().await;
    let session = answered(&layer, None).await;
    session.insert("k", &7).unwrap();
    assert!(matches!(session.save().await, Err(SessionError::ResponseSent)));
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn no_token_changes_after_the_head() {
    let (_app, layer, _) = watched().await;
    let token = ana(&layer).await;
    for change in [|session: &Session| session.rotate(), |session: &Session| session.login("ana")] {
        let session = answered(&layer, Some(&token)).await;
        assert!(matches!(change(&session), Err(SessionError::ResponseSent)));
        session.save().await.unwrap();
        assert_eq!(content(&layer, &token).await.0, some("ana"));
    }
}

#[tokio::test]
async fn an_unsaved_late_change_is_counted() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    let session = answered(&layer, Some(&token)).await;
    let clone = session.clone();
    session.insert("k", &7).unwrap();
    store.calls();
    drop(session);
    assert_eq!(layer.stats().unsaved, 0, "a clone may still save it");
    drop(clone);
    assert_eq!(layer.stats().unsaved, 1);
    assert_eq!(store.calls(), NOTHING);
    assert_eq!(content(&layer, &token).await.1, None);
}

#[tokio::test]
async fn a_streaming_body_can_save_its_changes() {
    async fn stream(session: Session) -> Body {
        // The server polls it after sending the head.
        Body::from_stream(tokio_stream::once(()).then(move |()| {
            let session = session.clone();
            async move {
                session.insert("k", &7).unwrap();
                Ok::<_, Infallible>(format!("{:?}", session.save().await))
            }
        }))
    }
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::serve(|router| router.route("/stream", post(stream)).layer(layer)).await;
    let client = app.client();
    assert_eq!(client.post("/stream", &json!({})).await.text(), "Err(ResponseSent)");
    assert_eq!(store.len(), 0);
    client.one(json!(["login", "ana"])).await;
    assert_eq!(client.post("/stream", &json!({})).await.text(), "Ok(())");
    assert_eq!(client.one(json!(["get", "k"])).await, 7);
}

// ---- ending and creating in one request

#[tokio::test]
async fn an_insert_after_destroy_creates_another_session() {
    let (app, _, store) = watched().await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let old = client.twin();
    let reply =
        steps(&client, json!([["destroy"], ["insert", "notice", "bye"], ["user"], ["get", "k"], ["is_new"]])).await;
    assert_eq!(reply.json(), json!([null, null, null, null, true]));
    assert_eq!(reply.set_cookies().len(), 1);
    assert_ne!(client.cookie(NAME), old.cookie(NAME));
    assert_eq!(
        client.perform(json!([["get", "notice"], ["user"], ["get", "k"]])).await,
        [json!("bye"), Value::Null, Value::Null]
    );
    assert_eq!(old.perform(json!([["user"], ["get", "notice"]])).await, [Value::Null, Value::Null]);
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn a_session_created_and_ended_in_one_request_sets_no_cookie() {
    let (app, _, store) = watched().await;
    let client = app.client();
    let reply = steps(&client, json!([["insert", "k", 1], ["save"], ["destroy"]])).await;
    assert_eq!(reply.set_cookies(), NOTHING);
    assert_eq!(store.calls(), ["create", "end"]);
    assert_eq!(store.len(), 0);
    let reply = steps(&client, json!([["insert", "k", 1], ["destroy"]])).await;
    assert_eq!((reply.set_cookies(), store.calls()), (vec![], vec![]));
}

#[tokio::test]
async fn logging_in_and_out_in_one_request_leaves_nothing() {
    let (app, _, store) = watched().await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    let old = client.twin();
    let reply = steps(&client, json!([["login", "ana"], ["save"], ["logout"]])).await;
    assert!(reply.set_cookies()[0].contains("Max-Age=0"));
    assert_eq!((client.cookie(NAME), store.len()), (None, 0));
    assert_eq!(old.one(json!(["get", "k"])).await, Value::Null);
}

#[tokio::test]
async fn two_new_tokens_in_one_request_set_one_cookie() {
    let (app, _, store) = watched().await;
    let client = app.client();
    let reply = steps(
        &client,
        json!([["insert", "k", 1], ["save"], ["rotate"], ["save"], ["login", "ana"], ["save"], ["rotate"]]),
    )
    .await;
    assert_eq!(reply.set_cookies().len(), 1);
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn login_keeps_the_values_of_an_anonymous_session() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.one(json!(["insert", "cart", [1, 2]])).await;
    let old = client.twin();
    client.one(json!(["login", "ana"])).await;
    assert_eq!(client.perform(json!([["user"], ["get", "cart"]])).await, [json!("ana"), json!([1, 2])]);
    assert_eq!(old.perform(json!([["user"], ["get", "cart"]])).await, [Value::Null, Value::Null]);
}

#[tokio::test]
async fn login_again_keeps_the_values_of_the_same_user() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let old = client.twin();
    client.one(json!(["login", "ana"])).await;
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    assert_eq!(old.one(json!(["user"])).await, Value::Null);
}

#[tokio::test]
async fn login_as_another_user_discards_the_values() {
    let (app, _, store) = watched().await;
    for script in [
        json!([["login", "bob"], ["get", "secret"], ["get", "fresh"]]),
        json!([["insert", "fresh", 1], ["login", "bob"], ["get", "secret"], ["get", "fresh"]]),
        json!([["insert", "fresh", 1], ["save"], ["login", "bob"], ["get", "secret"], ["get", "fresh"]]),
        json!([["login", "ana"], ["insert", "fresh", 1], ["login", "bob"], ["get", "secret"], ["get", "fresh"]]),
    ] {
        let client = app.client();
        client.perform(json!([["login", "ana"], ["insert", "secret", 1]])).await;
        let old = client.twin();
        let results = client.perform(script.clone()).await;
        assert_eq!(results[results.len() - 2..], [Value::Null, Value::Null], "{script}");
        assert_eq!(
            client.perform(json!([["user"], ["get", "secret"], ["get", "fresh"]])).await,
            [json!("bob"), Value::Null, Value::Null]
        );
        assert_eq!(old.one(json!(["user"])).await, Value::Null, "{script}");
        client.one(json!(["logout"])).await;
        assert_eq!(store.len(), 0, "{script}");
    }
}

#[tokio::test]
async fn values_set_after_a_login_belong_to_the_new_user() {
    let (app, _, _) = watched().await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    client.perform(json!([["login", "bob"], ["insert", "k", 2], ["insert", "l", 3]])).await;
    let results = client.perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
    assert_eq!(results, [json!("bob"), json!(2), json!(3)]);
}

#[tokio::test]
async fn a_flash_message_is_shown_once() {
    let (app, _, store) = watched().await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "notice", "saved!"]])).await;
    store.calls();
    assert_eq!(client.perform(json!([["take", "notice"], ["take", "notice"]])).await, [json!("saved!"), Value::Null]);
    assert_eq!(store.calls(), ["load", "update"]);
    assert_eq!(client.one(json!(["take", "notice"])).await, Value::Null);
    assert_eq!(client.one(json!(["user"])).await, "ana");
}

// ---- a failed save, and a handler that continues

/// Calls `handler`. The first `operation` of its save fails. Returns the response.
async fn after_failed_save(
    layer: &SessionLayer,
    store: &Spy,
    token: Option<&str>,
    (operation, applied): (&'static str, bool),
    before: fn(&Session),
    after: fn(&Session),
) -> Response<String> {
    if applied {
        store.lose_next_answer(operation);
    } else {
        store.fail_next(operation);
    }
    let response = call(layer, token, async |session: Session| {
        before(&session);
        assert!(matches!(session.save().await, Err(SessionError::Store(_))));
        after(&session);
        ok()
    });
    response.await.unwrap()
}

fn insert(session: &Session) {
    session.insert("k", &5).unwrap();
}

fn login_ana(session: &Session) {
    session.login("ana").unwrap();
}

fn login_ana_with_value(session: &Session) {
    login_ana(session);
    insert(session);
}

fn login_bob(session: &Session) {
    session.login("bob").unwrap();
}

fn rotate(session: &Session) {
    session.rotate().unwrap();
}

fn logout(session: &Session) {
    session.logout().unwrap();
}

fn nothing(_: &Session) {}

#[tokio::test]
async fn a_failed_save_is_retried_when_the_handler_returns() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let response =
            after_failed_save(&layer, &store, None, ("create", applied), login_ana_with_value, nothing).await;
        assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)), "applied: {applied}");
        assert_eq!(store.len(), 1);

        let token = anonymous(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), insert, nothing).await;
        assert_eq!(told(&response), None);
        assert_eq!(content(&layer, &token).await.1, Some(5), "applied: {applied}");

        // A login creates the session of the user, ends the old one, and activates the new one.
        for (operation, sessions) in [("create", 2), ("replace", 3), ("update", 4)] {
            let token = anonymous_with(&layer, 5).await;
            let failing = (operation, applied);
            let response = after_failed_save(&layer, &store, Some(&token), failing, login_ana, nothing).await;
            assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)), "{failing:?}");
            assert_eq!(content(&layer, &token).await, DEAD);
            assert_eq!(layer.sessions().list("ana").await.unwrap().len(), sessions, "{failing:?}");
        }
    }
}

#[tokio::test]
async fn logout_after_a_failed_login_leaves_no_session() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let response = after_failed_save(&layer, &store, None, ("create", applied), login_ana, logout).await;
        assert_eq!((told(&response), store.len()), (None, 0), "applied: {applied}");
    }
}

#[tokio::test]
async fn logout_after_a_failed_update_ends_the_session() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let token = ana(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), insert, logout).await;
        assert!(told(&response).unwrap().contains("Max-Age=0"));
        assert_eq!(store.len(), 0, "applied: {applied}");
    }
}

#[tokio::test]
async fn logout_after_a_failed_rotation_ends_both_sessions() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let token = ana(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), rotate, logout).await;
        assert!(told(&response).unwrap().contains("Max-Age=0"));
        assert_eq!(store.len(), 0, "applied: {applied}");
    }
}

#[tokio::test]
async fn login_after_a_failed_update_changes_the_token() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let token = anonymous(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), insert, login_ana).await;
        assert_eq!(content(&layer, &token).await, DEAD, "the token from before the login, applied: {applied}");
        assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)));
        assert_eq!(store.len(), 1);
    }
}

#[tokio::test]
async fn rotation_after_a_failed_update_changes_the_token() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let token = ana(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), insert, rotate).await;
        assert_eq!(content(&layer, &token).await, DEAD, "the token from before the rotation, applied: {applied}");
        assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)));
    }
}

#[tokio::test]
async fn login_as_another_user_after_a_failed_login_discards_the_values() {
    for applied in [false, true] {
        let (_app, layer, store) = watched().await;
        let response =
            after_failed_save(&layer, &store, None, ("create", applied), login_ana_with_value, login_bob).await;
        assert_eq!(content(&layer, &given(&response)).await, (some("bob"), None), "applied: {applied}");
        assert_eq!(store.len(), 1);

        let (_app, layer, store) = watched().await;
        let token = anonymous(&layer).await;
        let response =
            after_failed_save(&layer, &store, Some(&token), ("create", applied), login_ana_with_value, login_bob).await;
        assert_eq!(content(&layer, &given(&response)).await, (some("bob"), None), "applied: {applied}");
        assert_eq!(store.len(), 1);
    }
}

/// The final `k` in a session that had `k = 1`, after the save of `k = 5` failed.
async fn after_failed_update(after: fn(&Session)) -> [Option<u32>; 2] {
    let mut left = [None; 2];
    for (left, applied) in left.iter_mut().zip([false, true]) {
        let (_app, layer, store) = watched().await;
        let token = anonymous(&layer).await;
        let response = after_failed_save(&layer, &store, Some(&token), ("update", applied), insert, after).await;
        assert_eq!(told(&response), None);
        *left = content(&layer, &token).await.1;
    }
    left
}

/// The final `k` in a new session, after the save of `k = 5` failed.
async fn after_failed_create(after: fn(&Session)) -> [Option<u32>; 2] {
    let mut left = [None; 2];
    for (left, applied) in left.iter_mut().zip([false, true]) {
        let (_app, layer, store) = watched().await;
        let response = after_failed_save(&layer, &store, None, ("create", applied), login_ana_with_value, after).await;
        *left = content(&layer, &given(&response)).await.1;
    }
    left
}

fn remove(session: &Session) {
    assert!(session.remove("k").unwrap());
}

fn clear(session: &Session) {
    session.clear().unwrap();
}

#[tokio::test]
async fn a_value_changed_after_a_failed_save_is_changed() {
    let change = |session: &Session| session.insert("k", &6).unwrap();
    assert_eq!(after_failed_update(change).await, [Some(6), Some(6)]);
    assert_eq!(after_failed_create(change).await, [Some(6), Some(6)]);
}

#[tokio::test]
async fn a_value_set_back_after_a_failed_save_is_set_back() {
    assert_eq!(after_failed_update(|session| session.insert("k", &1).unwrap()).await, [Some(1), Some(1)]);
}

#[tokio::test]
async fn a_value_removed_after_a_failed_save_is_removed() {
    assert_eq!(after_failed_update(remove).await, [None, None]);
}

#[tokio::test]
async fn a_value_removed_after_a_failed_first_save_is_removed() {
    assert_eq!(after_failed_create(remove).await, [None, None]);
}

#[tokio::test]
async fn values_cleared_after_a_failed_save_are_cleared() {
    assert_eq!(after_failed_update(clear).await, [None, None]);
}

#[tokio::test]
async fn values_cleared_after_a_failed_first_save_are_cleared() {
    assert_eq!(after_failed_create(clear).await, [None, None]);
}

#[tokio::test]
async fn login_after_a_failed_save_uses_the_slot_of_the_user() {
    let slot = |token: &str| Token::parse(token).unwrap().id().slot_tag().to_owned();
    for (operation, before) in [("create", insert as fn(&Session)), ("update", rotate), ("update", insert)] {
        let (_app, layer, store) = watched().await;
        let anonymous = anonymous(&layer).await;
        let token = (operation != "create").then_some(anonymous.as_str());
        let response = after_failed_save(&layer, &store, token, (operation, false), before, login_ana).await;
        assert_eq!(
            slot(&told(&response).map_or(anonymous, |_| given(&response))),
            slot(&ana(&layer).await),
            "{operation}"
        );
    }
}

#[tokio::test]
async fn a_failing_service_does_not_repeat_an_undelivered_rotation() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    store.fail_next("update");
    call(&layer, Some(&token), async |session: Session| {
        session.rotate().unwrap();
        session.save().await.map_err(|_| "not saved")?;
        ok()
    })
    .await
    .unwrap_err();
    assert_eq!(content(&layer, &token).await.0, some("ana"));
}

#[tokio::test]
async fn a_failing_service_does_not_repeat_an_undelivered_login() {
    let (_app, layer, store) = watched().await;
    store.fail_next("create");
    call(&layer, None, async |session: Session| {
        session.login("ana").unwrap();
        session.save().await.map_err(|_| "not saved")?;
        ok()
    })
    .await
    .unwrap_err();
    assert_eq!(store.len(), 0);
}

/// Calls a handler that does `before` and saves it through a clone, with `concurrent` during the save.
async fn during_save(
    layer: &SessionLayer,
    store: &Spy,
    token: Option<&str>,
    operation: &'static str,
    before: fn(&Session),
    concurrent: fn(&Session),
) -> Response<String> {
    let hold = &*store.hold_next(operation);
    let response = call(layer, token, async |session: Session| {
        before(&session);
        let (saved, ()) = tokio::join!(session.save(), async {
            hold.reached().await;
            concurrent(&session);
            hold.release();
        });
        saved.unwrap();
        ok()
    });
    response.await.unwrap()
}

#[tokio::test]
async fn logout_during_the_save_of_a_login_leaves_no_session() {
    let (_app, layer, store) = watched().await;
    let response = during_save(&layer, &store, None, "create", login_ana, logout).await;
    assert_eq!((told(&response), store.len()), (None, 0));
}

#[tokio::test]
async fn logout_during_the_save_of_a_rotation_leaves_no_session() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    let response = during_save(&layer, &store, Some(&token), "update", rotate, logout).await;
    assert!(told(&response).unwrap().contains("Max-Age=0"));
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn login_during_the_save_of_a_value_changes_the_token() {
    let (_app, layer, store) = watched().await;
    let token = anonymous(&layer).await;
    let response = during_save(&layer, &store, Some(&token), "update", insert, login_ana).await;
    assert_eq!(content(&layer, &token).await, DEAD, "the token from before the login");
    assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)));
}

#[tokio::test]
async fn a_value_set_during_a_save_is_saved_too() {
    let (_app, layer, store) = watched().await;
    let token = ana(&layer).await;
    during_save(&layer, &store, Some(&token), "update", |session| session.insert("other", &1).unwrap(), insert).await;
    assert_eq!(content(&layer, &token).await, (some("ana"), Some(5)));

    let response = during_save(&layer, &store, None, "create", login_ana, insert).await;
    assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(5)));

    let response = during_save(&layer, &store, Some(&token), "update", rotate, |session| {
        session.insert("k", &6).unwrap();
    })
    .await;
    assert_eq!(content(&layer, &given(&response)).await, (some("ana"), Some(6)));
}

#[tokio::test]
async fn the_cookie_of_a_saved_change_is_set_although_a_later_change_fails() {
    let (app, _, store) = watched().await;
    let client = app.client();
    store.fail("update");
    let reply = steps(&client, json!([["login", "ana"], ["save"], ["insert", "k", 1]])).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    store.recover();
    assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), Value::Null]);
}

// ---- lifetimes

struct Timed {
    app: App,
    clock: ManualClock,
    store: Spy,
    client: Client,
}

/// A client with a new session of Ana and `k = 1`, and a clock that stands still.
async fn timed(lifetime: Lifetime) -> Timed {
    let clock = ManualClock::new();
    let store = Spy::with_clock(clock.clone());
    let app = App::start(SessionLayer::new(store.clone()).clock(clock.clone()).lifetime(lifetime)).await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    store.calls();
    Timed { app, clock, store, client }
}

impl Timed {
    async fn alive(&self) -> bool {
        self.client.one(json!(["user"])).await == "ana"
    }

    /// Advances the clock, with a request at every `step`.
    async fn busy(&self, step: Duration, total: Duration) {
        for _ in 0..total.as_secs() / step.as_secs() {
            self.clock.advance(step);
            assert!(self.alive().await);
        }
    }
}

#[tokio::test]
async fn an_unused_session_expires() {
    let timed = timed(Lifetime::default()).await;
    timed.clock.advance(30 * MINUTE - SECOND);
    let used = timed.client.twin();
    let unused = timed.app.client();
    unused.one(json!(["login", "bob"])).await;
    assert_eq!(used.one(json!(["user"])).await, "ana");
    timed.clock.advance(30 * MINUTE);
    assert_eq!(used.one(json!(["user"])).await, Value::Null);
    assert_eq!(unused.perform(json!([["user"], ["id"]])).await, [Value::Null, Value::Null]);
}

#[tokio::test]
async fn a_write_after_expiry_creates_a_new_session() {
    let timed = timed(Lifetime::default()).await;
    let old = timed.client.cookie(NAME);
    timed.clock.advance(30 * MINUTE);
    timed.client.one(json!(["insert", "l", 2])).await;
    assert_ne!(timed.client.cookie(NAME), old);
    let results = timed.client.perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
    assert_eq!(results, [Value::Null, Value::Null, json!(2)]);
}

#[tokio::test]
async fn use_extends_a_session_but_not_beyond_the_absolute_timeout() {
    let timed = timed(Lifetime::default()).await;
    timed.busy(25 * MINUTE, 23 * HOUR + 45 * MINUTE).await;
    timed.clock.advance(15 * MINUTE - SECOND);
    assert!(timed.alive().await);
    timed.clock.advance(SECOND);
    assert!(!timed.alive().await);
}

#[tokio::test]
async fn writing_extends_a_session_but_not_beyond_the_absolute_timeout() {
    let timed = timed(Lifetime::new(HOUR, 3 * HOUR).unwrap()).await;
    for n in 0..3 {
        timed.clock.advance(59 * MINUTE);
        timed.client.one(json!(["insert", "k", n])).await;
    }
    timed.clock.advance(3 * MINUTE - SECOND);
    assert!(timed.alive().await);
    timed.clock.advance(SECOND);
    assert!(!timed.alive().await);
}

#[tokio::test]
async fn a_session_that_is_read_is_extended_after_a_tenth_of_its_idle_timeout() {
    let Timed { app: _app, clock, store, client } = timed(Lifetime::default()).await;
    clock.advance(3 * MINUTE - SECOND);
    client.one(json!(["user"])).await;
    assert_eq!(store.calls(), ["load"]);
    clock.advance(SECOND);
    client.one(json!(["user"])).await;
    assert_eq!(store.calls(), ["load", "touch"]);
    client.one(json!(["user"])).await;
    assert_eq!(store.calls(), ["load"]);
    clock.advance(3 * MINUTE);
    client.one(json!(["insert", "k", 2])).await;
    assert_eq!(store.calls(), ["load", "touch", "update"], "before the handler runs, whatever it does");
}

#[tokio::test]
async fn a_slow_handler_does_not_lose_a_session_that_was_about_to_expire() {
    let Timed { app, clock, client, .. } = timed(Lifetime::default()).await;
    clock.advance(30 * MINUTE - SECOND);
    let steps = json!([["load"], ["gate", "upload"], ["insert", "uploaded", true]]);
    let slow = client.post("/do", &steps);
    let (reply, ()) = tokio::join!(slow, async {
        app.reached("upload").await;
        clock.advance(MINUTE);
        app.open("upload");
    });
    assert_eq!(reply.status, 200);
    assert_eq!(client.one(json!(["get", "uploaded"])).await, true);
}

#[tokio::test]
async fn an_unread_session_is_not_extended() {
    let Timed { app: _app, clock, store, client } = timed(Lifetime::default()).await;
    clock.advance(20 * MINUTE);
    client.get("/public").await;
    assert_eq!(store.calls(), NOTHING);
    clock.advance(10 * MINUTE);
    assert_eq!(client.one(json!(["user"])).await, Value::Null);
}

#[tokio::test]
async fn the_touch_interval_can_be_zero() {
    let Timed { app: _app, store, client, .. } = timed(Lifetime::default().touch_every(Duration::ZERO)).await;
    for _ in 0..3 {
        client.one(json!(["user"])).await;
        assert_eq!(store.calls(), ["load", "touch"]);
    }
}

#[tokio::test]
async fn touching_can_be_disabled() {
    let timed = timed(Lifetime::default().touch_every(30 * MINUTE)).await;
    timed.clock.advance(30 * MINUTE - SECOND);
    assert!(timed.alive().await);
    assert_eq!(timed.store.calls(), ["load"]);
    timed.clock.advance(SECOND);
    assert!(!timed.alive().await);
}

#[tokio::test]
async fn a_session_at_its_absolute_timeout_is_not_touched() {
    let timed = timed(Lifetime::new(HOUR, HOUR).unwrap()).await;
    timed.clock.advance(59 * MINUTE);
    assert!(timed.alive().await);
    assert_eq!(timed.store.calls(), ["load"]);
}

#[tokio::test]
async fn assurance_level_one_lasts_30_days() {
    let timed = timed(Lifetime::aal1()).await;
    timed.clock.advance(30 * DAY - SECOND);
    assert!(timed.alive().await);
    timed.clock.advance(SECOND);
    assert!(!timed.alive().await);
    let reply = steps(&timed.client, json!([["login", "ana"]])).await;
    assert!(reply.set_cookies()[0].contains("Max-Age=2592000"), "a cookie that outlives the browser");
}

#[tokio::test]
async fn assurance_level_two_lasts_an_hour_idle_and_a_day_in_total() {
    let busy = timed(Lifetime::aal2()).await;
    busy.busy(50 * MINUTE, 23 * HOUR + 20 * MINUTE).await;
    busy.clock.advance(40 * MINUTE);
    assert!(!busy.alive().await);
    let idle = timed(Lifetime::aal2()).await;
    idle.clock.advance(HOUR - SECOND);
    assert!(idle.alive().await);
    idle.clock.advance(HOUR);
    assert!(!idle.alive().await);
}

#[tokio::test]
async fn assurance_level_three_lasts_15_minutes_idle_and_12_hours_in_total() {
    let busy = timed(Lifetime::aal3()).await;
    busy.busy(10 * MINUTE, 11 * HOUR + 50 * MINUTE).await;
    busy.clock.advance(10 * MINUTE);
    assert!(!busy.alive().await);
    let idle = timed(Lifetime::aal3()).await;
    idle.clock.advance(15 * MINUTE - SECOND);
    assert!(idle.alive().await);
    idle.clock.advance(15 * MINUTE);
    assert!(!idle.alive().await);
}

#[tokio::test]
async fn a_remembered_session_stays_remembered() {
    let timed = timed(Lifetime::default()).await;
    timed.client.one(json!(["lifetime", 14 * DAY.as_secs(), 90 * DAY.as_secs(), true])).await;
    for change in [json!(["user"]), json!(["insert", "k", 2]), json!(["rotate"]), json!(["clear"])] {
        timed.clock.advance(13 * DAY);
        assert!(timed.alive().await, "{change}");
        timed.client.one(change).await;
    }
    let reply = steps(&timed.client, json!([["rotate"]])).await;
    let left = format!("Max-Age={}", (90 - 4 * 13) * DAY.as_secs());
    assert!(reply.set_cookies()[0].contains(&left), "{reply:?}");
    timed.clock.advance(13 * DAY);
    timed.client.one(json!(["user"])).await;
    timed.clock.advance(13 * DAY);
    timed.client.one(json!(["user"])).await;
    timed.clock.advance(12 * DAY);
    assert!(!timed.alive().await, "90 days are over");
}

#[tokio::test]
async fn a_session_keeps_its_lifetime_when_the_layer_changes() {
    let timed = timed(Lifetime::new(HOUR, DAY).unwrap()).await;
    let layer = SessionLayer::new(timed.store.clone()).clock(timed.clock.clone());
    let shorter = App::start(layer.lifetime(Lifetime::new(MINUTE, MINUTE).unwrap())).await;
    let client = timed.client.at(&shorter.url());
    timed.clock.advance(59 * MINUTE);
    client.one(json!(["insert", "k", 2])).await;
    timed.clock.advance(59 * MINUTE);
    assert_eq!(client.one(json!(["user"])).await, "ana");
}

#[tokio::test]
async fn a_session_without_a_ttl_in_the_store_still_expires() {
    // The store's clock stands still, so only that of the layer ends sessions.
    let (clock, store) = (ManualClock::new(), Spy::with_clock(ManualClock::new()));
    let app = App::start(SessionLayer::new(store.clone()).clock(clock.clone())).await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    store.lose_ttls();
    clock.advance(30 * MINUTE - SECOND);
    assert_eq!(client.one(json!(["user"])).await, "ana");
    clock.advance(SECOND);
    assert_eq!(client.one(json!(["user"])).await, Value::Null);
}

#[tokio::test]
async fn no_store_keeps_a_session_beyond_its_absolute_timeout() {
    let (clock, store) = (ManualClock::new(), Spy::with_clock(ManualClock::new()));
    let app = App::start(SessionLayer::new(store).clock(clock.clone())).await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    clock.advance(DAY - SECOND);
    assert_eq!(client.one(json!(["user"])).await, "ana");
    clock.advance(SECOND);
    assert_eq!(client.one(json!(["user"])).await, Value::Null);
}

#[tokio::test]
async fn login_restarts_the_absolute_timeout_and_rotation_does_not() {
    let timed = timed(Lifetime::new(2 * HOUR, 3 * HOUR).unwrap()).await;
    timed.clock.advance(2 * HOUR - SECOND);
    timed.client.one(json!(["login", "ana"])).await;
    timed.clock.advance(2 * HOUR - SECOND);
    assert!(timed.alive().await);
    timed.client.one(json!(["rotate"])).await;
    timed.clock.advance(HOUR);
    assert!(timed.alive().await);
    timed.clock.advance(SECOND);
    assert!(!timed.alive().await);
}

#[tokio::test]
async fn a_session_that_expires_during_a_request_has_ended() {
    let clock = ManualClock::new();
    let layer = SessionLayer::new(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    for time in [30 * MINUTE, DAY] {
        let token = ana(&layer).await;
        let response = call(&layer, Some(&token), async |session: Session| {
            clock.advance(time);
            session.insert("k", &1).unwrap();
            ok()
        });
        let response = response.await.unwrap();
        assert!(told(&response).is_none_or(|told| told.contains("Max-Age=0")));
        assert_eq!(content(&layer, &token).await, DEAD);
    }
}

#[tokio::test]
async fn login_at_the_expiry_creates_a_live_session() {
    let clock = ManualClock::new();
    let layer = SessionLayer::new(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    for time in [30 * MINUTE, DAY] {
        let token = anonymous(&layer).await;
        let response = call(&layer, Some(&token), async |session: Session| {
            clock.advance(time);
            session.login("ana").unwrap();
            ok()
        });
        let response = response.await.unwrap();
        assert_eq!(content(&layer, &given(&response)).await.0, some("ana"));
        assert_eq!(content(&layer, &token).await, DEAD);
    }
}

#[tokio::test]
async fn a_handler_can_read_the_times_of_its_session() {
    let timed = timed(Lifetime::default()).await;
    let now = || timed.clock.now().as_millis();
    let began = now();
    let times = json!([["created_at"], ["last_seen"], ["expires_at"]]);
    let ms = |duration: Duration| duration.as_millis() as u64;
    timed.clock.advance(10 * MINUTE);
    let used = now();
    assert_eq!(timed.client.perform(times.clone()).await, [began, began, used + ms(30 * MINUTE)]);
    timed.clock.advance(20 * MINUTE);
    assert_eq!(timed.client.perform(times.clone()).await, [began, used, now() + ms(30 * MINUTE)]);
    assert_eq!(timed.app.client().perform(times).await, [Value::Null, Value::Null, Value::Null]);
}

/// A slow read of Ana's session, which is due for extension, while another request changes its lifetime.
async fn slow_read_during(change: Value, lifetime: Lifetime) -> Timed {
    let timed = timed(lifetime).await;
    timed.clock.advance(lifetime.touch_interval());
    let slow = timed.client.twin();
    tokio::join!(slow.perform(json!([["user"], ["gate", "slow"]])), async {
        timed.app.reached("slow").await;
        timed.client.one(change).await;
        timed.app.open("slow");
    });
    timed
}

#[tokio::test]
async fn a_slow_read_does_not_shorten_a_remembered_session() {
    let remember = json!(["lifetime", 14 * DAY.as_secs(), 90 * DAY.as_secs(), true]);
    let timed = slow_read_during(remember, Lifetime::default()).await;
    timed.clock.advance(13 * DAY);
    assert!(timed.alive().await);
}

#[tokio::test]
async fn a_slow_read_does_not_extend_a_shortened_session() {
    let shorten = json!(["lifetime", 60, 3600, false]);
    let timed = slow_read_during(shorten, Lifetime::new(30 * MINUTE, DAY).unwrap()).await;
    timed.clock.advance(2 * MINUTE);
    assert!(!timed.alive().await);
}

#[tokio::test]
async fn similar_values_are_different_changes() {
    // Larger than JSON libraries compare exactly.
    let layer = SessionLayer::new(MemoryStore::new());
    let response = call(&layer, None, async |session: Session| {
        session.insert("n", &[u128::MAX]).unwrap();
        session.insert("n", &[u128::MAX - 1]).unwrap();
        assert_eq!(session.get::<[u128; 1]>("n").unwrap(), Some([u128::MAX - 1]));
        ok()
    });
    response.await.unwrap();
}

#[tokio::test]
async fn a_map_in_another_order_is_unchanged() {
    let store = Spy::new();
    let app = App::start(SessionLayer::new(store.clone())).await;
    let client = app.client();
    client.one(json!(["insert", "k", {"a": 1, "b": [{"c": 2, "d": 3}]}])).await;
    store.calls();
    let body = r#"[["insert","k",{"b":[{"d":3,"c":2}],"a":1}]]"#;
    client.request(http::Method::POST, "/do", &[("content-type", "application/json")], body.into()).await;
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn a_cancelled_request_creates_no_token() {
    let layer = SessionLayer::new(MemoryStore::new());
    let token = given(
        &call(&layer, None, async |session: Session| {
            session.login("ana").unwrap();
            ok()
        })
        .await
        .unwrap(),
    );
    let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let request = call(&layer, Some(&token), async |session: Session| {
        keep.send(session).unwrap();
        std::future::pending::<()>().await;
        ok()
    });
    let session = tokio::select! {
        _ = request => panic!("it never ends"),
        session = kept.recv() => session.unwrap(),
    };
    assert!(matches!(session.rotate(), Err(SessionError::ResponseSent)));
    session.save().await.unwrap();
    assert_eq!(content(&layer, &token).await.0, some("ana"));
}
