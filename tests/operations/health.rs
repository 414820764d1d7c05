//! Health of the store: over HTTP in axum and hyper, and by a tower service alone.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use crate::support::spy::Spy;
use crate::support::{
    app::App,
    client::{Client, Reply},
    eventually,
    log::Log,
    redis_server::{Loading, RedisServer},
};
use axum::Router;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_keep::{
    Clock, HealthReport, HealthService, HealthStatus, ManualClock, MemoryStore, SessionLayer, Sessions, Timestamp,
    store::redis::{RedisConfig, RedisStore},
};

const MINUTE: Duration = Duration::from_secs(60);
const OK: StatusCode = StatusCode::OK;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// The parts of a report that are constant while the status is.
fn standing(health: &HealthReport) -> (HealthStatus, Timestamp) {
    (health.status, health.since)
}

#[tokio::test]
async fn memory_is_up() {
    let clock = ManualClock::new();
    let sessions = SessionLayer::new(MemoryStore::new()).clock(clock.clone()).sessions();
    let health = sessions.health().await;
    assert_eq!(standing(&health), (HealthStatus::Up, clock.now()));
    assert_eq!((health.store, health.cause), ("memory", None));
}

mod since {
    use super::*;

    #[tokio::test]
    async fn since_changes_only_with_the_status() {
        let (clock, spy) = (ManualClock::new(), Spy::new());
        let sessions = SessionLayer::new(spy.clone()).clock(clock.clone()).sessions();
        for _ in 0..2 {
            for status in [HealthStatus::Up, HealthStatus::Down] {
                if status == HealthStatus::Down {
                    spy.go_down();
                } else {
                    spy.recover();
                }
                clock.advance(MINUTE);
                let began = clock.now();
                for _ in 0..3 {
                    assert_eq!(standing(&sessions.health().await), (status, began));
                    clock.advance(MINUTE);
                }
            }
        }
    }

    #[tokio::test]
    async fn since_is_shared_by_clones_of_the_layer() {
        let clock = ManualClock::new();
        let layer = SessionLayer::new(MemoryStore::new()).clock(clock.clone());
        let first = layer.sessions().health().await;
        clock.advance(MINUTE);
        assert_eq!(standing(&layer.clone().require_session().sessions().health().await), standing(&first));
        let reply = get(&layer.sessions().health_service(), "/health").await;
        assert_eq!(json_of(&reply)["since"], first.since.to_string());
    }

    #[test]
    fn since_is_an_rfc_3339_date() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1, "1970-01-01T00:00:00.001Z"),
            (86_399_999, "1970-01-01T23:59:59.999Z"),
            (86_400_000, "1970-01-02T00:00:00.000Z"),
            (31_535_999_999, "1970-12-31T23:59:59.999Z"),
            (68_169_600_000, "1972-02-29T00:00:00.000Z"),
            (94_694_399_999, "1972-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_763_716_984_567, "2025-11-21T09:23:04.567Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (12_622_780_800_000, "2370-01-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
        // Not meaningful, but no panic and no endless loop.
        assert!(Timestamp::from_millis(u64::MAX).to_string().ends_with('Z'));
    }
}

mod at_once {
    use super::*;

    type Check<'a> = Pin<Box<dyn Future<Output = HealthReport> + 'a>>;

    /// Polls each one once, without completing it.
    async fn start(checks: &mut [Check<'_>]) {
        poll_fn(|cx| {
            for check in &mut *checks {
                assert!(check.as_mut().poll(cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
    }

    fn checks(sessions: &Sessions, count: usize) -> Vec<Check<'_>> {
        (0..count).map(|_| Box::pin(sessions.health()) as Check<'_>).collect()
    }

    #[tokio::test]
    async fn concurrent_calls_share_one_check() {
        let spy = Spy::new();
        let sessions = SessionLayer::new(spy.clone()).sessions();
        let hold = spy.hold_next("health");
        let mut waiting = checks(&sessions, 100);
        start(&mut waiting).await;
        hold.release();
        for check in waiting {
            assert_eq!(check.await.status, HealthStatus::Up);
        }
        assert_eq!(spy.calls(), ["health"]);
        // Results are not cached: a later call checks again.
        spy.go_down();
        assert_eq!(sessions.health().await.status, HealthStatus::Down);
        assert_eq!(spy.calls(), ["health"]);
    }

    #[tokio::test]
    async fn a_cancelled_call_delays_no_other() {
        let spy = Spy::new();
        let sessions = SessionLayer::new(spy.clone()).sessions();
        let _never_released = spy.hold_next("health");
        let mut waiting = checks(&sessions, 3);
        start(&mut waiting).await;
        drop(waiting.remove(0)); // the call that queries the store
        drop(waiting.remove(0));
        assert_eq!(waiting.remove(0).await.status, HealthStatus::Up);
        assert_eq!(sessions.health().await.status, HealthStatus::Up);
        assert_eq!(spy.calls(), ["health"; 3]);
    }
}

/// One GET, without a server.
async fn get(service: &HealthService, path: &str) -> Response<String> {
    request(service, Method::GET, path).await
}

async fn request(service: &HealthService, method: Method, path: &str) -> Response<String> {
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    service.clone().oneshot(request).await.unwrap()
}

fn json_of(response: &Response<String>) -> Value {
    serde_json::from_str(response.body()).unwrap()
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

mod alone {
    use super::*;

    #[tokio::test]
    async fn live_never_queries_the_store() {
        let spy = Spy::new();
        let service = SessionLayer::new(spy.clone()).sessions().health_service();
        spy.go_down();
        let _hung = spy.hold_next("health");
        for path in ["/live", "/live/", "/health/live", "/a/b/c/live?x=/ready", "http://example.com/live"] {
            let response = get(&service, path).await;
            assert_eq!((response.status(), response.body().as_str()), (OK, "live\n"), "{path}");
            assert_eq!(header(&response, "cache-control"), Some("no-store"));
        }
        assert_eq!(spy.calls(), [""; 0]);
    }

    #[tokio::test]
    async fn ready_depends_only_on_the_store() {
        let spy = Spy::new();
        let service = SessionLayer::new(spy.clone()).sessions().health_service();
        for path in ["/ready", "/ready/", "/health/ready", "/a/live/ready?verbose"] {
            spy.recover();
            let response = get(&service, path).await;
            assert_eq!((response.status(), response.body().as_str()), (OK, "ready\n"), "{path}");
            assert_eq!(
                (header(&response, "retry-after"), header(&response, "cache-control")),
                (None, Some("no-store"))
            );
            spy.go_down();
            let response = get(&service, path).await;
            assert_eq!((response.status(), response.body().as_str()), (UNAVAILABLE, "not ready\n"), "{path}");
            assert_eq!(header(&response, "retry-after"), Some("5"));
            assert_eq!(header(&response, "cache-control"), Some("no-store"));
        }
    }

    #[tokio::test]
    async fn any_other_path_is_the_report() {
        let (clock, spy) = (ManualClock::new(), Spy::new());
        let service = SessionLayer::new(spy.clone()).clock(clock.clone()).sessions().health_service();
        for path in ["/health", "/", "/health/", "/lively", "/health/already", "/live/now", "*"] {
            spy.recover();
            clock.advance(MINUTE);
            let response = get(&service, path).await;
            assert_eq!(response.status(), OK, "{path}");
            assert_eq!(header(&response, "content-type"), Some("application/json"));
            assert_eq!(
                (header(&response, "retry-after"), header(&response, "cache-control")),
                (None, Some("no-store"))
            );
            let mut report = json_of(&response);
            let latency = report.as_object_mut().unwrap().remove("latency_ms").unwrap();
            assert!(latency.as_f64().unwrap() >= 0.0);
            assert_eq!(report, json!({ "status": "up", "store": "spy", "since": clock.now().to_string() }));

            spy.go_down();
            clock.advance(MINUTE);
            let response = get(&service, path).await;
            assert_eq!((response.status(), header(&response, "retry-after")), (UNAVAILABLE, Some("5")), "{path}");
            let mut report = json_of(&response);
            assert!(report.as_object_mut().unwrap().remove("latency_ms").is_some());
            let cause = "the session store is unavailable: the test says so";
            let down = json!({ "status": "down", "store": "spy", "cause": cause, "since": clock.now().to_string() });
            assert_eq!(report, down);
        }
    }

    #[tokio::test]
    async fn head_is_get_without_the_body() {
        let spy = Spy::new();
        let service = SessionLayer::new(spy.clone()).sessions().health_service();
        for down in [false, true] {
            if down {
                spy.go_down();
            }
            for path in ["/live", "/ready"] {
                let (get, head) = (get(&service, path).await, request(&service, Method::HEAD, path).await);
                assert_eq!((get.status(), get.headers()), (head.status(), head.headers()));
                assert_eq!(header(&get, "content-length"), Some(&*get.body().len().to_string()));
                assert_eq!(head.body(), "");
            }
            let head = request(&service, Method::HEAD, "/health").await;
            assert_eq!((head.status(), head.body().as_str()), (if down { UNAVAILABLE } else { OK }, ""));
        }
    }

    #[tokio::test]
    async fn other_methods_are_refused_without_a_check() {
        let spy = Spy::new();
        let service = SessionLayer::new(spy.clone()).sessions().health_service();
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE] {
            for path in ["/live", "/ready", "/health"] {
                let response = request(&service, method.clone(), path).await;
                assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
                assert_eq!(header(&response, "allow"), Some("GET, HEAD"));
                assert_eq!(header(&response, "cache-control"), Some("no-store"));
            }
        }
        assert_eq!(spy.calls(), [""; 0]);
    }

    #[tokio::test]
    async fn retry_after_is_configurable() {
        let spy = Spy::new();
        spy.go_down();
        let service = SessionLayer::new(spy).sessions().health_service().retry_after(Duration::from_millis(1500));
        for path in ["/ready", "/health"] {
            assert_eq!(header(&get(&service, path).await, "retry-after"), Some("2"));
        }
    }

    #[tokio::test]
    async fn it_works_in_a_stack_of_layers_with_any_body() {
        let layer = SessionLayer::new(MemoryStore::new());
        let health = layer.sessions().health_service();
        let stack = || ServiceBuilder::new().concurrency_limit(1);
        let service = stack().layer(layer.clone()).service(health.clone());
        let response = service.oneshot(Request::new(Full::<Bytes>::default())).await.unwrap();
        assert_eq!(json_of(&response)["status"], "up");
        let response = stack().service(health.clone()).oneshot(Request::new(Rc::new(1))).await.unwrap();
        assert_eq!(json_of(&response)["status"], "up");
        let refused = stack().layer(layer.require_session()).service(health).oneshot(Request::new(())).await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "who requires a session requires it of probes as well");
    }
}

/// Two servers with probes: axum and plain hyper.
struct Servers {
    _axum: App,
    _hyper: Hyper,
    clients: [Client; 2],
}

struct Hyper(JoinHandle<()>);

impl Drop for Hyper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Servers {
    /// At `/health`, nested in another service with another body.
    async fn of(health: HealthService) -> Self {
        let service = health.clone();
        let axum = App::serve(|router| router.nest_service("/health", service)).await;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut health = health.clone();
            async move {
                Ok::<_, Infallible>(match request.uri().path() {
                    "/public" => Response::new(Full::from("public")),
                    _ => health.call(request).await?.map(Full::<Bytes>::from),
                })
            }
        });
        let (hyper, url) = hyper(service).await;
        let clients = [axum.client(), Client::new(&url)];
        Self { _axum: axum, _hyper: hyper, clients }
    }

    /// The response of both servers, which is the same.
    async fn get(&self, path: &str) -> Reply {
        let (axum, hyper) = (self.clients[0].get(path).await, self.clients[1].get(path).await);
        assert_eq!(axum.status, hyper.status, "{axum:?} {hyper:?}");
        for header in ["content-type", "cache-control", "retry-after"] {
            assert_eq!(axum.header(header), hyper.header(header));
        }
        hyper
    }

    async fn statuses(&self) -> [StatusCode; 3] {
        let (live, ready) = (self.get("/health/live").await, self.get("/health/ready").await);
        let report = self.get("/health").await;
        assert!(["ready\n", "not ready\n"].contains(&&*ready.text()), "{ready:?}");
        [live.status, ready.status, report.status]
    }
}

async fn hyper<S, B>(service: S) -> (Hyper, String)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (Hyper(server), url)
}

mod over_http {
    use super::*;

    #[tokio::test]
    async fn axum_and_hyper_give_the_same_response() {
        let spy = Spy::new();
        let servers = Servers::of(SessionLayer::new(spy.clone()).sessions().health_service()).await;
        assert_eq!(servers.statuses().await, [OK; 3]);
        assert_eq!(servers.get("/health/ready").await.text(), "ready\n");
        assert_eq!(servers.get("/health").await.json()["status"], "up");
        spy.go_down();
        assert_eq!(servers.statuses().await, [OK, UNAVAILABLE, UNAVAILABLE]);
        let down = servers.get("/health").await;
        assert_eq!((down.header("retry-after"), &down.json()["status"]), (Some("5"), &json!("down")));
        for client in &servers.clients {
            assert_eq!(client.get("/public").await.text(), "public");
        }
    }

    #[tokio::test]
    async fn the_service_itself_can_be_served_by_hyper_in_http_1_and_http_2() {
        let (_hyper, url) = hyper(SessionLayer::new(MemoryStore::new()).sessions().health_service()).await;
        for client in [Client::new(&url), Client::http2(&url)] {
            assert_eq!(client.get("/health").await.json()["store"], "memory");
            for path in ["/live", "/ready", "/health"] {
                let head = client.request(Method::HEAD, path, &[], Bytes::new()).await;
                assert_eq!((head.status, head.text().as_str()), (OK, ""));
                assert!(head.header("content-length").unwrap().parse::<u64>().unwrap() > 0);
            }
            assert_eq!(client.post("/ready", &json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);
        }
    }

    #[tokio::test]
    async fn in_axum_it_is_a_route_or_a_nested_service() {
        let layer = SessionLayer::new(MemoryStore::new());
        let health = layer.sessions().health_service();
        let app = App::serve(|router: Router| {
            let router =
                router.route_service("/ready", health.clone()).route_service("/probes/{which}", health.clone());
            router.nest_service("/deep/in/here", health).layer(layer)
        })
        .await;
        let client = app.client();
        assert_eq!(client.get("/ready").await.text(), "ready\n");
        assert_eq!(client.get("/probes/live").await.text(), "live\n");
        assert_eq!(client.get("/deep/in/here/live").await.text(), "live\n");
        for report in ["/probes/all", "/deep/in/here", "/deep/in/here/"] {
            assert_eq!(client.get(report).await.json()["status"], "up", "{report}");
        }
        let reply = client.get("/ready").await;
        assert_eq!((reply.header("vary"), reply.set_cookies()), (None, vec![]), "health has no session");
    }
}

mod redis_store {
    use super::*;

    /// A service with a real Redis, and its health reports.
    struct Scene {
        clock: ManualClock,
        sessions: Sessions,
        servers: Servers,
        strict: HealthService,
    }

    impl Scene {
        async fn at(url: &str) -> Self {
            let clock = ManualClock::new();
            let store = RedisStore::new(RedisConfig::from_url(url).unwrap());
            let sessions = SessionLayer::new(store).clock(clock.clone()).sessions();
            let servers = Servers::of(sessions.health_service()).await;
            let strict = sessions.health_service().ready_when_degraded(false);
            Self { clock, sessions, servers, strict }
        }

        /// The health reaches this status everywhere, with this cause. Later it is unchanged, since the same time.
        async fn becomes(&self, status: HealthStatus, cause: &str) {
            self.clock.advance(MINUTE);
            let began = self.clock.now();
            eventually(status.as_str(), async || self.sessions.health().await.status == status).await;
            eventually(&format!("{cause}, not {:?}", self.sessions.health().await), async || {
                self.has_cause(cause).await
            })
            .await;
            self.clock.advance(MINUTE);
            assert_eq!(standing(&self.sessions.health().await), (status, began));

            let report = self.servers.get("/health").await;
            let json = report.json();
            assert_eq!((&json["status"], &json["store"]), (&json!(status.as_str()), &json!("redis")));
            assert_eq!(json["since"], began.to_string());
            assert_eq!(json.get("cause").is_some(), status != HealthStatus::Up, "{json}");
            let expected = if status == HealthStatus::Down { UNAVAILABLE } else { OK };
            assert_eq!(self.servers.statuses().await, [OK, expected, expected]);
            assert_eq!(report.header("retry-after"), (status == HealthStatus::Down).then_some("5"));
            let strict = if status == HealthStatus::Up { OK } else { UNAVAILABLE };
            for path in ["/ready", "/health"] {
                assert_eq!(get(&self.strict, path).await.status(), strict, "{path}");
            }
        }

        async fn has_cause(&self, cause: &str) -> bool {
            self.sessions.health().await.cause.unwrap_or_default().contains(cause)
        }

        async fn is_up(&self) {
            self.becomes(HealthStatus::Up, "").await;
        }

        /// It notices a refused write, and not before.
        async fn is_degraded(&self, cause: &str) {
            assert!(self.sessions.create("ana").await.is_err());
            self.becomes(HealthStatus::Degraded, cause).await;
        }

        /// All visible causes.
        async fn everything(&self) -> String {
            let mut said = format!("{:?} {:?}", self.sessions.health().await, self.strict);
            for path in ["/health", "/health/ready", "/health/live"] {
                said.push_str(&format!("{:?}", self.servers.get(path).await));
            }
            said
        }
    }

    const DOWN: HealthStatus = HealthStatus::Down;

    #[tokio::test]
    async fn stopped_and_started() {
        let mut server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        for _ in 0..2 {
            scene.is_up().await;
            server.stop();
            scene.becomes(DOWN, "refused").await;
            server.run().await;
        }
        scene.is_up().await;
    }

    #[tokio::test]
    async fn down_at_first() {
        let mut server = RedisServer::stopped();
        let scene = Scene::at(&server.url()).await;
        scene.becomes(DOWN, "refused").await;
        server.run().await;
        scene.is_up().await;
    }

    #[tokio::test]
    async fn paused_and_resumed() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        server.pause();
        scene.becomes(DOWN, "no reply from Redis in time").await;
        server.resume();
        scene.is_up().await;
    }

    #[tokio::test]
    async fn password_changed_and_restored() {
        let mut server = RedisServer::start_with(&["--requirepass", "first-secret"]).await;
        let scene = Scene::at(&format!("redis://:first-secret@127.0.0.1:{}/", server.port())).await;
        scene.is_up().await;
        server.set_password("second-secret").await;
        server.command("CLIENT KILL TYPE normal").await;
        scene.becomes(DOWN, "WRONGPASS").await;
        let said = scene.everything().await;
        assert!(said.contains("WRONGPASS") && !said.contains("secret"), "{said}");
        server.set_password("first-secret").await;
        scene.is_up().await;
    }

    #[tokio::test]
    async fn password_required_suddenly() {
        let mut server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        server.set_password("second-secret").await;
        server.command("CLIENT KILL TYPE normal").await;
        scene.becomes(DOWN, "NOAUTH").await;
        assert!(!scene.everything().await.contains("secret"));
    }

    /// An error of Redis repeats the unknown command, and an old server does not know our login command.
    #[tokio::test]
    async fn an_unknown_command_is_named_without_its_arguments() {
        let log = Log::capture();
        let args = ["--rename-command", "EVALSHA", "", "--rename-command", "EVAL", ""];
        let server = RedisServer::start_with(&args).await;
        let refused = server.try_command("EVALSHA first-secret").await.unwrap_err();
        assert!(refused.to_string().contains("first-secret"), "the test proves nothing: {refused}");
        let scene = Scene::at(&server.url()).await;
        let error = scene.sessions.create("first-secret").await.unwrap_err();
        let error = format!("{error:?}");
        assert!(error.contains("EVALSHA") && !error.contains("secret"), "{error}");
        let said = scene.everything().await + &log.text();
        assert!(!said.contains("secret"), "{said}");
    }

    #[tokio::test]
    async fn out_of_memory_until_a_write_is_served() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        server.command("CONFIG SET maxmemory 1").await;
        assert_eq!(scene.sessions.health().await.status, HealthStatus::Up, "nobody has noticed yet");
        scene.is_degraded("OOM").await;
        // A working part does not hide a failing one.
        assert_eq!(scene.sessions.list("ana").await.unwrap().len(), 0);
        assert_eq!(scene.sessions.health().await.status, HealthStatus::Degraded);
        server.command("CONFIG SET maxmemory 0").await;
        scene.sessions.create("ana").await.unwrap();
        scene.is_up().await;
    }

    /// An instance that gets no requests while degraded would never write again, and so never get any.
    #[tokio::test]
    async fn a_reader_notices_that_writes_work_again() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        server.command("CONFIG SET maxmemory 1").await;
        scene.is_degraded("OOM").await;
        server.command("CONFIG SET maxmemory 0").await;
        scene.is_up().await;
        assert_eq!(server.sessions().await, [""; 0]);
        eventually("nothing stays of it", async || server.keys().await.is_empty()).await;
    }

    #[tokio::test]
    async fn a_check_writes_only_after_a_refused_write() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        let mut monitor = server.monitor().await;
        scene.sessions.health().await;
        let seen = monitor.so_far().await;
        assert!(seen.iter().any(|line| line.contains("\"GET\" \"sess:{health}\"")), "{seen:?}");
        assert!(!seen.iter().any(|line| line.contains("\"EVALSHA\"")), "{seen:?}");
        assert_eq!(server.keys().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_check_needs_no_additional_rights() {
        let server = RedisServer::start().await;
        let rights =
            "~sess:{* -@all +get +pttl +set +time +eval +evalsha +pexpire +zadd +zcount +zremrangebyscore +zscore";
        server.command(&format!("ACL SETUSER app on >first-secret {rights}")).await;
        let scene = Scene::at(&format!("redis://app:first-secret@127.0.0.1:{}/", server.port())).await;
        scene.sessions.create("ana").await.unwrap();
        scene.is_up().await;
        server.command("CONFIG SET maxmemory 1").await;
        scene.is_degraded("OOM").await;
        server.command("CONFIG SET maxmemory 0").await;
        scene.is_up().await;
    }

    #[tokio::test]
    async fn a_replica_without_its_master() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        let nobody = RedisServer::stopped();
        server.command(&format!("REPLICAOF 127.0.0.1 {}", nobody.port())).await;
        scene.is_degraded("read only replica").await;
        server.command("REPLICAOF NO ONE").await;
        scene.is_up().await;
    }

    #[tokio::test]
    async fn too_few_replicas() {
        let server = RedisServer::start().await;
        let scene = Scene::at(&server.url()).await;
        server.command("CONFIG SET min-replicas-to-write 1").await;
        scene.is_degraded("NOREPLICAS").await;
        server.command("CONFIG SET min-replicas-to-write 0").await;
        scene.is_up().await;
    }

    #[tokio::test]
    async fn a_user_without_rights_to_write_or_read() {
        let server = RedisServer::start().await;
        server.command("ACL SETUSER app on >first-secret ~* &* +@all").await;
        let scene = Scene::at(&format!("redis://app:first-secret@127.0.0.1:{}/", server.port())).await;
        scene.is_up().await;
        for (lost, cause) in [("-set", "script"), ("-evalsha -eval", "no permissions")] {
            server.command(&format!("ACL SETUSER app {lost}")).await;
            scene.is_degraded(cause).await;
            server.command("ACL SETUSER app +@all").await;
            scene.is_up().await;
        }
        server.command("ACL SETUSER app -@write").await;
        scene.is_degraded("").await;
        server.command("ACL SETUSER app -get").await;
        scene.becomes(DOWN, "no permissions").await;
        server.command("ACL SETUSER app +get").await;
        scene.becomes(HealthStatus::Degraded, "").await;
        assert!(!scene.everything().await.contains("secret"));
        server.command("ACL SETUSER app +@all").await;
        scene.is_up().await;
        server.command("ACL SETUSER app -ping").await;
        assert_eq!(scene.sessions.health().await.status, HealthStatus::Up, "sessions need no PING");
    }

    #[tokio::test]
    async fn loading_its_data() {
        let server = RedisServer::start_with(&Loading::args()).await;
        let scene = Scene::at(&server.url()).await;
        scene.is_up().await;
        let loading = Loading::of(&server, "").await;
        scene.becomes(DOWN, "loading the dataset").await;
        loading.ends().await;
        scene.is_up().await;
    }
}
