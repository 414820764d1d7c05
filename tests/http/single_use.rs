//! Tokens in a query parameter, for a single use.

use std::convert::Infallible;

use crate::support::{app::App, log::Log, redis_server::RedisServer, stores};
use axum::{
    Router,
    body::Body,
    extract::{OriginalUri, Request as AxumRequest},
    routing::get,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Consumed, EndReason, MemoryStore, SessionLayer, Sessions, SingleUse, SingleUseError, SingleUseLayer,
    store::redis::RedisConfig,
};

fn sessions() -> Sessions {
    SessionLayer::new(MemoryStore::new()).sessions()
}

/// The URI that the inner service sees, and what it did with the token.
async fn seen(sessions: &Sessions, uri: &str) -> (Uri, SingleUse, Response<()>) {
    let (tell, told) = std::sync::mpsc::channel();
    let inner = service_fn(move |request: Request<()>| {
        let single_use = request.extensions().get::<SingleUse>().cloned();
        tell.send((request.uri().clone(), single_use.unwrap())).unwrap();
        async { Ok::<_, Infallible>(Response::builder().header("referrer-policy", "unsafe-url").body(()).unwrap()) }
    });
    let service = SingleUseLayer::query(sessions.clone(), "session_id").layer(inner);
    let response = service.oneshot(Request::get(uri).body(()).unwrap()).await.unwrap();
    let (uri, single_use) = told.recv().unwrap();
    (uri, single_use, response)
}

#[tokio::test]
async fn the_inner_service_does_not_see_the_parameter() {
    let (sessions, token) = (sessions(), "t".repeat(56));
    for (uri, left) in [
        ("/p?session_id=T", "/p"),
        ("/p?a=1&session_id=T", "/p?a=1"),
        ("/p?session_id=T&a=1", "/p?a=1"),
        ("/p?a=1&session_id=T&b=%20%26", "/p?a=1&b=%20%26"),
        ("/p?session_id=T&x=&session_id=T&y", "/p?x=&y"),
        ("/p?%73ession_id=T", "/p"),
        ("/p?session%5Fid=T&a", "/p?a"),
        ("/p?session_id", "/p"),
        ("/p?session_id=", "/p"),
        ("/p?session_id=T=T", "/p"),
        ("http://example.org:8080/p?session_id=T", "http://example.org:8080/p"),
        ("/?session_id=T", "/"),
    ] {
        let (inside, ..) = seen(&sessions, &uri.replace('T', &token)).await;
        assert_eq!(inside.to_string(), left, "{uri}");
    }
}

#[tokio::test]
async fn other_parameters_are_not_changed() {
    for uri in [
        "/",
        "/p",
        "/p?",
        "/p?a",
        "/p?&&a=1&",
        "/p?session=T",
        "/p?Session_Id=T",
        "/p?xsession_id=T",
        "/p?a=session_id",
    ] {
        let (inside, single_use, response) = seen(&sessions(), uri).await;
        assert_eq!(inside, uri);
        assert!(matches!(single_use.consume().await, Err(SingleUseError::Missing)));
        assert_eq!(response.headers()["referrer-policy"], "unsafe-url", "nothing was brought");
        assert!(!response.headers().contains_key("cache-control"));
    }
}

#[tokio::test]
async fn the_response_forbids_referrers_and_caching() {
    for uri in ["/?session_id=nonsense", "/?session_id"] {
        let (.., response) = seen(&sessions(), uri).await;
        assert_eq!(response.headers()["referrer-policy"], "no-referrer");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn a_token_works_once_and_only_if_consumed() {
    let sessions = sessions();
    let token = sessions.create("ana").await.unwrap();
    let uri = format!("/?session_id={}", token.expose());
    let (_, first, _) = seen(&sessions, &uri).await;
    let (_, second, _) = seen(&sessions, &uri).await;
    assert!(sessions.is_valid(&token).await.unwrap(), "nobody has used it yet");

    let Consumed::Now(was) = second.consume().await.unwrap() else { panic!("the first to ask gets it") };
    assert_eq!(was.user(), Some("ana"));
    for late in [first, second] {
        let Consumed::Before(ended) = late.consume().await.unwrap() else { panic!("too late") };
        assert_eq!(ended.reason, EndReason::Used);
    }
}

#[tokio::test]
async fn percent_encoding_makes_no_difference() {
    let sessions = sessions();
    let token = sessions.create("ana").await.unwrap();
    let encoded: String = token.expose().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let (inside, single_use, _) = seen(&sessions, &format!("/?session_id={encoded}")).await;
    assert_eq!(inside, "/");
    assert!(matches!(single_use.consume().await, Ok(Consumed::Now(_))));
}

#[tokio::test]
async fn an_invalid_token_is_malformed_and_consumes_nothing() {
    let sessions = sessions();
    let token = sessions.create("ana").await.unwrap();
    let good = token.expose();
    for value in [
        "".to_owned(),
        "nonsense".to_owned(),
        token.id().to_string(),
        format!("{good}x"),
        format!("{good}%00"),
        format!("+{good}"),
        format!("{good}&session_id={good}"),
        format!("{good}&session_id="),
        format!("&session_id={good}"),
        "x".repeat(60_000),
    ] {
        let (_, single_use, _) = seen(&sessions, &format!("/?session_id={value}")).await;
        assert!(matches!(single_use.consume().await, Err(SingleUseError::Malformed)), "{value:.80}");
    }
    assert!(sessions.is_valid(&token).await.unwrap());
    let (_, unknown, _) = seen(&sessions, &format!("/?session_id={}", "x".repeat(56))).await;
    assert!(matches!(unknown.consume().await, Ok(Consumed::Unknown)));
}

/// The response of a handler that returns the error.
async fn enter(link: SingleUse) -> Result<&'static str, SingleUseError> {
    link.consume().await.map(|_| "known or not")
}

#[tokio::test]
async fn errors_are_responses() {
    let redis = RedisServer::stopped();
    let config = RedisConfig::from_url(&redis.url()).unwrap();
    let layer = SingleUseLayer::query(stores::sessions(config), "session_id");
    let app = App::serve(|router| router.route("/enter", get(enter)).layer(layer)).await;
    let client = app.client();
    assert_eq!(client.get("/enter").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(client.get("/enter?session_id=x").await.status, StatusCode::UNAUTHORIZED);
    let away = client.get(&format!("/enter?session_id={}", "x".repeat(56))).await;
    assert_eq!((away.status, away.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));

    let bare = App::serve(|router| router.route("/enter", get(enter))).await;
    let reply = bare.client().get("/enter").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "a mistake in the program");
}

#[tokio::test]
async fn around_a_router_the_original_uri_has_no_parameter() {
    let show = async |OriginalUri(original): OriginalUri, request: AxumRequest| format!("{original} {}", request.uri());
    let router = Router::new().nest("/inner", Router::new().route("/seen", get(show)));
    let service = SingleUseLayer::query(sessions(), "session_id").layer(router);
    let uri = format!("/inner/seen?session_id={}&a=1", "x".repeat(56));
    let response = service.oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
    let seen = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(seen, "/inner/seen?a=1 /seen?a=1");
}

#[tokio::test]
async fn a_session_is_never_read_from_a_query() {
    let layer = SessionLayer::new(MemoryStore::new());
    let token = layer.sessions().create("ana").await.unwrap();
    let single_use = SingleUseLayer::query(layer.sessions(), "session_id");
    let app = App::serve(|router| router.layer(layer).layer(single_use)).await;
    let client = app.client();
    let path = format!("/do?session_id={}", token.expose());
    let headers = [("content-type", "application/json")];
    let reply = client.request(Method::POST, &path, &headers, Bytes::from(r#"[["user"]]"#)).await;
    assert_eq!(reply.json(), serde_json::json!([null]));
}

#[tokio::test]
async fn logs_and_debug_do_not_show_the_token() {
    let log = Log::capture();
    let redis = RedisServer::stopped();
    let away = stores::sessions(RedisConfig::from_url(&redis.url()).unwrap());
    let token = "Zz".repeat(28);
    let (_, single_use, _) = seen(&away, &format!("/?session_id={token}")).await;
    let error = single_use.consume().await.unwrap_err();
    assert!(matches!(error, SingleUseError::Store(_)));
    assert_eq!(away.stats().outages, 1);
    let text = log.text();
    assert!(text.contains("session not consumed"), "{text}");
    assert!(!text.contains(&token) && !format!("{single_use:?} {error:?} {error}").contains(&token), "{text}");
}
