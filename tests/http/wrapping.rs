//! The layer around every kind of service.

/// Generated from `examples/grpc/keep.proto`.
#[allow(clippy::all, missing_docs)]
#[path = "../../examples/grpc/keep.v1.rs"]
mod pb;

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    rc::Rc,
    task::{Context, Poll},
};

use crate::support::spy::Spy;
use crate::support::{app::App, client::Client};
use axum::{
    Router,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use pb::{
    LoginReply, LoginRequest, LogoutReply, LogoutRequest, WhoAmIReply, WhoAmIRequest,
    keep_client::KeepClient,
    keep_server::{Keep, KeepServer},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer, limit::ConcurrencyLimitLayer, service_fn,
};
use tower_keep::{
    Bearer, MemoryStore, Rejection, ResponseForRejection, Session, SessionCookie, SessionError, SessionLayer, grpc,
};

const NAME: &str = "__Host-session";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Counts visits, for any request body.
async fn count<B>(request: Request<B>) -> Result<Response<String>, BoxError> {
    let session = request.extensions().get::<Session>().ok_or("no session layer")?.clone();
    drop(request);
    session.load().await?;
    let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
    session.insert("visits", &visits)?;
    Ok(Response::new(visits.to_string()))
}

/// The request with the cookie in `response`.
fn next_request<Q, B>(body: Q, response: &Response<B>) -> Request<Q> {
    let set_cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
    let (pair, _) = set_cookie.split_once(';').unwrap();
    Request::builder().header(header::COOKIE, pair).body(body).unwrap()
}

// ---- tower alone

#[tokio::test]
async fn a_tower_service_without_a_framework_has_sessions() {
    let service = ServiceBuilder::new().layer(SessionLayer::new(MemoryStore::new())).service(service_fn(count::<()>));
    let first = service.clone().oneshot(Request::new(())).await.unwrap();
    let second = service.oneshot(next_request((), &first)).await.unwrap();
    assert_eq!((first.body().as_str(), second.body().as_str()), ("1", "2"));
}

#[tokio::test]
async fn one_service_serves_many_requests() {
    for layer in [SessionLayer::new(MemoryStore::new()), SessionLayer::new(MemoryStore::new()).eager()] {
        let mut service = layer.layer(service_fn(count::<()>));
        let first = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
        for visits in 2..5 {
            let request = next_request((), &first);
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.body(), &visits.to_string());
        }
    }
}

#[tokio::test]
async fn a_request_body_may_be_non_send() {
    let service = SessionLayer::new(MemoryStore::new()).eager().layer(service_fn(count::<Rc<Cell<u8>>>));
    let first = service.clone().oneshot(Request::new(Rc::new(Cell::new(1)))).await.unwrap();
    let request = next_request(Rc::new(Cell::new(2)), &first);
    let second = tokio::task::LocalSet::new().run_until(async { service.oneshot(request).await.unwrap() }).await;
    assert_eq!(second.body(), "2");
}

#[tokio::test]
async fn a_request_body_may_borrow() {
    let text = String::from("hello");
    let service =
        SessionLayer::new(MemoryStore::new()).require_session().layer(service_fn(async |request: Request<&str>| {
            Ok::<_, Infallible>(Response::new(request.into_body().len().to_string()))
        }));
    let response = service.oneshot(Request::new(text.as_str())).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_service_and_its_response_may_be_non_send() {
    let calls = Rc::new(Cell::new(0));
    let service = SessionLayer::new(MemoryStore::new()).eager().layer(service_fn(async |_: Request<()>| {
        calls.set(calls.get() + 1);
        Ok::<_, Infallible>(Response::new(Some(calls.clone())))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.body().as_ref().unwrap().get(), 1);
}

#[tokio::test]
async fn a_response_body_needs_only_a_rejection() {
    struct Opaque(u8);
    let reject = |_: &Rejection, _: &http::Request<()>| Response::new(Opaque(0));
    let layer = SessionLayer::new(MemoryStore::new()).reject_with(reject).require_session();
    let service = layer.layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Opaque(1)))));
    assert_eq!(service.oneshot(Request::new(())).await.unwrap().body().0, 0);
}

#[test]
fn a_service_and_its_future_can_be_sent_between_threads() {
    fn sendable<T: Send + Sync + Clone + 'static>(value: T) -> T {
        value
    }
    fn future<T: Send + 'static>(_: T) {}
    let inner = service_fn(|_: Request<Bytes>| ready(Ok::<_, Infallible>(Response::new(String::new()))));
    let mut service = sendable(sendable(SessionLayer::new(MemoryStore::new())).layer(inner));
    future(service.call(Request::new(Bytes::new())));
}

// ---- readiness

/// A service whose calls need `poll_ready` on the same instance.
#[derive(Default)]
struct Careful {
    ready: bool,
}

impl Clone for Careful {
    fn clone(&self) -> Self {
        Self::default() // readiness is not cloned
    }
}

impl Service<Request<()>> for Careful {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        ready(Ok(Response::new("careful".into())))
    }
}

#[tokio::test]
async fn the_ready_instance_is_called() {
    let layer = SessionLayer::new(MemoryStore::new());
    let token = layer.sessions().create("ana").await.unwrap();
    for layer in [layer.clone(), layer.clone().eager(), layer.clone().require_session()] {
        let mut service = layer.layer(Careful::default());
        for _ in 0..3 {
            let cookie = format!("{NAME}={}", token.expose());
            let request = Request::builder().header(header::COOKIE, cookie).body(()).unwrap();
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.body(), "careful");
        }
    }
}

#[tokio::test]
async fn a_service_that_is_never_ready_is_never_called() {
    #[derive(Clone)]
    struct Busy;
    impl Service<Request<()>> for Busy {
        type Response = Response<String>;
        type Error = &'static str;
        type Future = Ready<Result<Response<String>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            Poll::Ready(Err("closed"))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            panic!("called");
        }
    }
    let service = SessionLayer::new(MemoryStore::new()).eager().layer(Busy);
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err(), "closed");
}

#[tokio::test]
async fn it_works_around_and_within_a_concurrency_limit() {
    for layer in [SessionLayer::new(MemoryStore::new()), SessionLayer::new(MemoryStore::new()).eager()] {
        let service = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .layer(layer)
            .layer(ConcurrencyLimitLayer::new(1))
            .service(service_fn(count::<()>));
        let first = service.clone().oneshot(Request::new(())).await.unwrap();
        let calls: Vec<_> = (0..8).map(|_| tokio::spawn(service.clone().oneshot(next_request((), &first)))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
        }
        let last = service.oneshot(next_request((), &first)).await.unwrap();
        assert_eq!(last.body(), "10", "one at a time loses no visit");
    }
}

#[tokio::test]
async fn it_works_around_and_within_a_buffer() {
    for layer in [SessionLayer::new(MemoryStore::new()), SessionLayer::new(MemoryStore::new()).eager()] {
        let service = ServiceBuilder::new()
            .layer(BufferLayer::new(4))
            .layer(layer)
            .layer(BufferLayer::new(4))
            .service(service_fn(count::<()>));
        let first = service.clone().oneshot(Request::new(())).await.unwrap();
        let second = service.oneshot(next_request((), &first)).await.unwrap();
        assert_eq!((first.body().as_str(), second.body().as_str()), ("1", "2"));
    }
}

#[tokio::test]
async fn a_rejected_request_releases_its_permit() {
    let service = ServiceBuilder::new()
        .layer(SessionLayer::new(MemoryStore::new()).require_session())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(count::<()>));
    for _ in 0..3 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
}

// ---- hyper alone

/// Serves HTTP/1 and HTTP/2 on its own port until the test ends.
async fn serve(layer: SessionLayer) -> String {
    let service = ServiceBuilder::new().layer(layer).service(service_fn(hyper_route));
    let service = TowerToHyperService::new(service);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    format!("http://{addr}")
}

async fn hyper_route(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let session = request.extensions().get::<Session>().ok_or("no session layer")?.clone();
    session.load().await?;
    match request.uri().path() {
        "/login" => session.login(String::from_utf8(request.into_body().collect().await?.to_bytes().to_vec())?)?,
        "/logout" => session.logout()?,
        _ => {}
    }
    let user = session.user()?.as_deref().unwrap_or("nobody").to_owned();
    Ok(Response::new(user.into()))
}

#[tokio::test]
async fn hyper_alone_has_sessions_in_http_1_and_http_2() {
    for layer in [SessionLayer::new(MemoryStore::new()), SessionLayer::new(MemoryStore::new()).eager()] {
        let url = serve(layer).await;
        for (client, version) in [(Client::new(&url), Version::HTTP_11), (Client::http2(&url), Version::HTTP_2)] {
            assert_eq!(client.get("/").await.text(), "nobody");
            let reply = client.request(Method::POST, "/login", &[], "ana".into()).await;
            assert_eq!((reply.version, reply.text().as_str()), (version, "ana"));
            assert_eq!(client.get("/").await.text(), "ana");
            assert_eq!(client.get("/logout").await.text(), "nobody");
            assert_eq!((client.cookie(NAME), client.get("/").await.text().as_str()), (None, "nobody"));
        }
    }
}

#[tokio::test]
async fn several_cookie_headers_of_http_2_are_read() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone());
    let token = layer.sessions().create("ana").await.unwrap();
    let ours = format!("{NAME}={}", token.expose());
    let planted = format!("{NAME}={}", "x".repeat(56));
    let hyper = serve(layer.clone()).await;
    let app = App::serve(|router| router.route("/", get(user)).layer(layer)).await;
    store.calls();
    for url in [hyper, app.url()] {
        let client = Client::http2(&url);
        let lines = [("cookie", "a=1"), ("cookie", &planted), ("cookie", &ours), ("cookie", "b=2; c=3")];
        let reply = client.request(Method::GET, "/", &lines, Bytes::new()).await;
        assert_eq!((reply.version, reply.text().as_str()), (Version::HTTP_2, "ana"));
        assert_eq!(store.calls(), ["load", "load"]);
    }
}

// ---- axum

async fn user(session: Session) -> Result<String, SessionError> {
    Ok(session.user()?.as_deref().unwrap_or("nobody").to_owned())
}

async fn login(session: Session, user: String) -> Result<(), SessionError> {
    session.login(user)
}

async fn logout(session: Session) -> Result<(), SessionError> {
    session.logout()
}

fn routes() -> Router {
    Router::new().route("/user", get(user)).route("/login", post(login)).route("/logout", post(logout))
}

async fn log_in_and_out(client: &Client) {
    assert_eq!(client.get("/user").await.text(), "nobody");
    let reply = client.request(Method::POST, "/login", &[], "ana".into()).await;
    assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::OK, 1));
    assert_eq!(client.get("/user").await.text(), "ana");
    client.request(Method::POST, "/logout", &[], Bytes::new()).await;
    assert_eq!(client.get("/user").await.text(), "nobody");
}

#[tokio::test]
async fn an_axum_router_has_sessions_everywhere() {
    let layer = SessionLayer::new(MemoryStore::new());
    let app = App::serve(|router| router.merge(routes()).layer(layer.require_session())).await;
    assert_eq!(app.client().get("/nowhere").await.status, StatusCode::UNAUTHORIZED);

    let layer = SessionLayer::new(MemoryStore::new());
    let app = App::serve(|router| router.merge(routes()).layer(layer)).await;
    log_in_and_out(&app.client()).await;
}

#[tokio::test]
async fn axum_routes_have_sessions_and_nothing_else_does() {
    let layer = SessionLayer::new(MemoryStore::new());
    let strict = SessionLayer::new(MemoryStore::new()).require_session();
    let app = App::serve(|router| {
        router.merge(routes().route_layer(layer)).merge(Router::new().route("/strict", get(user)).route_layer(strict))
    })
    .await;
    log_in_and_out(&app.client()).await;
    assert_eq!(app.client().get("/strict").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(app.client().get("/nowhere").await.status, StatusCode::NOT_FOUND);
    assert_eq!(app.client().get("/public").await.text(), "public");
}

#[tokio::test]
async fn a_nested_axum_router_can_have_its_own_sessions() {
    let layer = SessionLayer::new(MemoryStore::new());
    let app = App::serve(|router| router.nest("/shop", routes().layer(layer))).await;
    let client = app.client();
    client.request(Method::POST, "/shop/login", &[], "ana".into()).await;
    assert_eq!(client.get("/shop/user").await.text(), "ana");
}

#[tokio::test]
async fn axum_serves_sessions_in_http_2() {
    let layer = SessionLayer::new(MemoryStore::new());
    let app = App::serve(|router| router.merge(routes()).layer(layer)).await;
    log_in_and_out(&Client::http2(&app.url())).await;
}

#[tokio::test]
async fn a_layer_with_a_custom_rejection_wraps_axum() {
    #[derive(Clone)]
    struct Page;
    impl ResponseForRejection<axum::body::Body> for Page {
        fn response_for(&self, rejection: &Rejection, _: &http::Request<()>) -> Response<axum::body::Body> {
            let mut response = Response::new("a page".into());
            *response.status_mut() = rejection.status();
            response
        }
    }
    let layer = SessionLayer::new(MemoryStore::new()).require_session().reject_with(Page);
    let app = App::serve(|router| router.layer(layer)).await;
    assert_eq!(app.client().get("/public").await.text(), "a page");
}

// ---- tonic

struct GrpcService;

#[tonic::async_trait]
impl Keep for GrpcService {
    async fn login(&self, request: tonic::Request<LoginRequest>) -> Result<tonic::Response<LoginReply>, Status> {
        let session = grpc::session(&request).await?;
        session.login(request.into_inner().user)?;
        session.save().await?;
        let token = session.token()?.ok_or(Status::internal("no token"))?.expose().to_owned();
        Ok(tonic::Response::new(LoginReply { token }))
    }

    async fn who_am_i(&self, request: tonic::Request<WhoAmIRequest>) -> Result<tonic::Response<WhoAmIReply>, Status> {
        let session = grpc::session(&request).await?;
        let user = session.user()?.ok_or(Status::permission_denied("log in first"))?;
        let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
        session.insert("visits", &visits)?;
        let session_id = session.id()?.ok_or(Status::internal("no id"))?.to_string();
        Ok(tonic::Response::new(WhoAmIReply { user: user.to_string(), visits, session_id }))
    }

    async fn logout(&self, request: tonic::Request<LogoutRequest>) -> Result<tonic::Response<LogoutReply>, Status> {
        grpc::session(&request).await?.logout()?;
        Ok(tonic::Response::new(LogoutReply {}))
    }
}

/// A client of a tonic server within `layer`.
async fn tonic_client(layer: SessionLayer) -> KeepClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let server = Server::builder().layer(layer).add_service(KeepServer::new(GrpcService));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    KeepClient::connect(format!("http://{addr}")).await.unwrap()
}

fn bearer<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn grpc_layer(store: &Spy) -> SessionLayer {
    SessionLayer::new(store.clone()).without_cookie().bearer(Bearer::new())
}

#[tokio::test]
async fn a_tonic_server_has_sessions() {
    let mut client = tonic_client(grpc_layer(&Spy::new())).await;
    let status = client.who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "the handler says so, and not the layer");
    let reply = client.login(LoginRequest { user: "ana".into() }).await.unwrap();
    assert!(reply.metadata().get("set-cookie").is_none());
    let token = reply.into_inner().token;
    for visits in 1..4 {
        let reply = client.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap().into_inner();
        assert_eq!((reply.user.as_str(), reply.visits), ("ana", visits));
    }
    client.logout(bearer(LogoutRequest {}, &token)).await.unwrap();
    assert!(client.who_am_i(bearer(WhoAmIRequest {}, &token)).await.is_err());
}

#[tokio::test]
async fn a_tonic_caller_without_a_session_is_unauthenticated() {
    let store = Spy::new();
    let mut open = tonic_client(grpc_layer(&store)).await;
    let token = open.login(LoginRequest { user: "ana".into() }).await.unwrap().into_inner().token;
    for layer in [grpc_layer(&store).require_session(), grpc_layer(&store).on_missing(tower_keep::OnMissing::Reject)] {
        let mut client = tonic_client(layer).await;
        for request in [
            tonic::Request::new(WhoAmIRequest {}),
            bearer(WhoAmIRequest {}, &"x".repeat(56)),
            bearer(WhoAmIRequest {}, "x"),
            bearer(WhoAmIRequest {}, "x y"),
        ] {
            assert_eq!(client.who_am_i(request).await.unwrap_err().code(), Code::Unauthenticated);
        }
        assert_eq!(client.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap().into_inner().user, "ana");
    }
}

#[tokio::test]
async fn an_outage_is_unavailable_for_a_tonic_caller() {
    let store = Spy::new();
    let mut lazy = tonic_client(grpc_layer(&store)).await;
    let mut eager = tonic_client(grpc_layer(&store).eager()).await;
    let token = lazy.login(LoginRequest { user: "ana".into() }).await.unwrap().into_inner().token;
    store.fail("load");
    for client in [&mut lazy, &mut eager] {
        let status = client.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
    store.recover();
    store.fail("update");
    let status = lazy.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "what is not saved is not answered");
    store.recover();
    assert_eq!(lazy.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap().into_inner().visits, 1);
}

#[tokio::test]
async fn a_malformed_token_logs_nobody_out() {
    let store = Spy::new();
    let mut client = tonic_client(grpc_layer(&store)).await;
    let token = client.login(LoginRequest { user: "ana".into() }).await.unwrap().into_inner().token;
    client.logout(bearer(LogoutRequest {}, "x y")).await.unwrap();
    client.logout(bearer(LogoutRequest {}, &"x".repeat(56))).await.unwrap();
    assert_eq!(client.who_am_i(bearer(WhoAmIRequest {}, &token)).await.unwrap().into_inner().user, "ana");
}

// ---- curl

/// A directory that is removed when the test ends.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tower-keep-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `POST /do` by curl with a cookie jar.
async fn curl(app: &App, jar: &Path, steps: Value) -> Value {
    let Output { status, stdout, stderr } = Command::new("curl")
        .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
        .args(["--cookie-jar".as_ref(), jar.as_os_str(), "--cookie".as_ref(), jar.as_os_str()])
        .args(["--header", "content-type: application/json", "--data", &steps.to_string()])
        .arg(format!("{}/do", app.url()))
        .output()
        .await
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).unwrap()
}

#[tokio::test]
async fn curl_logs_in_reads_and_logs_out() {
    let store = Spy::new();
    let app = App::start(SessionLayer::new(store.clone()).cookie(SessionCookie::development())).await;
    let dir = TempDir::new("curl");
    let jar = dir.0.join("jar");
    let cookies = || std::fs::read_to_string(&jar).unwrap().matches("\tsession\t").count();

    assert_eq!(curl(&app, &jar, json!([["login", "ana"], ["insert", "k", 1]])).await, json!([null, null]));
    assert_eq!(cookies(), 1);
    assert_eq!(curl(&app, &jar, json!([["user"], ["get", "k"]])).await, json!(["ana", 1]));
    let stolen = dir.0.join("stolen");
    std::fs::copy(&jar, &stolen).unwrap();
    curl(&app, &jar, json!([["logout"]])).await;
    assert_eq!((cookies(), store.len()), (0, 0));
    assert_eq!(curl(&app, &jar, json!([["user"]])).await, json!([null]));
    assert_eq!(curl(&app, &stolen, json!([["user"]])).await, json!([null]));
}

#[tokio::test]
async fn curl_keeps_a_persistent_cookie_with_its_expiry() {
    let app = App::start(SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::development())).await;
    let dir = TempDir::new("curl-persistent");
    let jar = dir.0.join("jar");
    let expiry = || {
        let text = std::fs::read_to_string(&jar).unwrap();
        let line = text.lines().find(|line| line.contains("\tsession\t")).unwrap().to_owned();
        line.split('\t').nth(4).unwrap().parse::<u64>().unwrap()
    };
    curl(&app, &jar, json!([["login", "ana"]])).await;
    assert_eq!(expiry(), 0, "until the browser closes");
    curl(&app, &jar, json!([["lifetime", 3600, 7200, true]])).await;
    assert!(expiry() > 0);
    assert_eq!(curl(&app, &jar, json!([["user"]])).await, json!(["ana"]));
}
