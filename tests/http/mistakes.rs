//! A mistake of the programmer is logged once per response, with cause and fix, and never with a value.

use axum::routing::get;
use http::{Response, StatusCode};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    ClientInfo, InvalidLifetime, Key, Lifetime, MemoryStore, OnUndecodable, Rejection, Session, SessionError,
    SessionLayer, User,
};

use crate::support::{app::App, log::Log};

fn layer() -> SessionLayer {
    SessionLayer::new(MemoryStore::new())
}

/// The ERROR lines of one request that gets a 500.
async fn errors_of(app: &App, path: &str) -> Vec<String> {
    let client = app.client();
    client.perform(json!([["insert", "age", "forty-two"]])).await;
    let log = Log::capture();
    let reply = client.get(path).await;
    assert_eq!((reply.status, reply.text().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, ""), "{path}");
    let text = log.text();
    assert!(!text.contains("forty-two"), "{text}");
    text.lines().filter(|line| line.contains("ERROR")).map(Into::into).collect()
}

#[tokio::test]
async fn every_mistake_is_logged_once_with_its_cause() {
    #[derive(serde::Serialize)]
    struct Unsupported {
        map: std::collections::BTreeMap<Vec<u8>, u8>,
    }
    let unsupported = || Unsupported { map: [(vec![1], 1)].into() };
    let app = App::serve(|router| {
        router
            .route("/decode", get(async |session: Session| session.get::<u32>("age").map(|_| ())))
            .route("/typed", get(async |session: Session| session.typed::<Vec<u32>>().get().map(|_| ())))
            .route(
                "/take",
                get(async |session: Session| session.take::<u32>("age").map(|_| ()).map_err(Rejection::from)),
            )
            .route("/encode", get(async move |session: Session| session.insert("map", &unsupported())))
            .route("/not-loaded", get(async |session: axum::Extension<Session>| session.get::<u32>("age").map(|_| ())))
            .layer(layer())
            .route("/late", get(async |_: Session| ()))
            .route("/late-user", get(async |_: User| ()))
    })
    .await;
    for (path, parts) in [
        ("/decode", &["\"age\"", "u32", "#[serde(default)]"][..]),
        ("/typed", &["\"*\"", "Vec<u32>"]),
        ("/take", &["\"age\"", "u32"]),
        ("/encode", &["\"map\"", "Unsupported", "key must be a string"]),
        ("/not-loaded", &["not loaded", "call `load` first"]),
        ("/late", &["no SessionLayer", ".layer("]),
        ("/late-user", &["no SessionLayer", ".layer("]),
    ] {
        let errors = errors_of(&app, path).await;
        assert_eq!(errors.len(), 1, "{path}: {errors:#?}");
        assert!(parts.iter().all(|part| errors[0].contains(part)), "{path}: {errors:#?}");
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_decoded_can_be_absent() {
    let layer = layer().on_undecodable(OnUndecodable::Absent);
    let app = App::serve(|router| {
        let age = async |session: Session| -> Result<String, SessionError> {
            assert_eq!(session.take::<u32>("age")?, None);
            Ok(format!("{:?} {:?}", session.get::<u32>("age")?, session.get::<String>("age")?))
        };
        router.route("/age", get(age)).layer(layer)
    })
    .await;
    let client = app.client();
    client.perform(json!([["insert", "age", "forty-two"]])).await;
    let log = Log::capture();
    assert_eq!(client.get("/age").await.text(), "None Some(\"forty-two\")", "and the value is kept");
    let text = log.text();
    assert!(text.contains("WARN") && text.contains("age") && text.contains("u32") && !text.contains("forty"), "{text}");
}

#[tokio::test]
async fn types_fit_as_expected() {
    const NOTICE: Key<String> = Key::new("notice");
    const NUMBERS: Key<Vec<u8>> = Key::new("numbers");
    const LONG: Lifetime = match Lifetime::new(std::time::Duration::from_secs(60), std::time::Duration::from_secs(120))
    {
        Ok(lifetime) => lifetime,
        Err(_) => panic!("an invalid lifetime"),
    };
    let check = async |session: Session| -> Result<(), SessionError> {
        session.insert(NOTICE, "a slice")?;
        assert_eq!(session.get(NOTICE)?.as_deref(), Some("a slice"));
        session.insert(NUMBERS, &[1, 2][..])?;
        assert_eq!(session.get(NUMBERS)?, Some(vec![1, 2]));
        session.insert("option", &None::<u32>)?;
        assert_eq!(session.get::<u32>("option")?, None);
        assert_eq!(session.get::<Option<u32>>("option")?, Some(None));
        assert_eq!(session.take::<u32>("option")?, None);
        assert!(!session.contains("option")?, "it is taken");
        session.set_lifetime(LONG)?;
        session.set_lifetime(Lifetime::new(std::time::Duration::ZERO, std::time::Duration::ZERO)?)
    };
    let app = App::serve(|router| {
        router
            .route(
                "/",
                get(async move |session: Session| {
                    let error = check(session).await.unwrap_err();
                    assert!(matches!(error, SessionError::Lifetime(InvalidLifetime::Zero)), "{error:?}");
                }),
            )
            // One error type is enough, in both directions.
            .route(
                "/user",
                get(async |session: Session| {
                    session.insert("k", "v")?;
                    let user = session.require_user().await?;
                    Ok::<_, SessionError>(user.to_string())
                }),
            )
            .layer(layer())
    })
    .await;
    assert_eq!(app.client().get("/").await.status, StatusCode::OK);
    let reply = app.client().get("/user").await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (StatusCode::UNAUTHORIZED, Some("Cookie")));
}

#[tokio::test]
async fn a_missing_peer_address_is_reported_once() {
    let layer = layer().client_info(ClientInfo::new());
    let service =
        layer.layer(service_fn(async |_: http::Request<()>| Ok::<_, std::convert::Infallible>(Response::new(()))));
    let log = Log::capture();
    for _ in 0..3 {
        service.clone().oneshot(http::Request::new(())).await.unwrap();
    }
    let text = log.text();
    assert_eq!(text.matches("no peer address").count(), 1, "{text}");
    assert!(text.contains("into_make_service_with_connect_info"), "{text}");
}

#[tokio::test]
async fn axum_needs_no_word_about_the_peer_address() {
    use axum::{Router, extract::ConnectInfo};
    let router: Router = Router::new()
        .route("/", get(async |session: Session| format!("{:?}", session.client_ip())))
        .layer(layer().client_info(ClientInfo::new()));
    let mut request = http::Request::new(axum::body::Body::empty());
    request.extensions_mut().insert(ConnectInfo(std::net::SocketAddr::from(([192, 0, 2, 7], 443))));
    let response = router.oneshot(request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    assert_eq!(body, "Some(192.0.2.7)");
}
