//! Metrics, spans and security events.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
    time::Duration,
};

use crate::support::spy::Spy;
use crate::support::{
    app::App,
    client::Client,
    eventually,
    redis_server::RedisServer,
    watch::{Metrics, Said, Scrape, Trace},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Bearer, ClientInfo, KeyValue, Limits, ManualClock, MemoryStore, PeerAddr, Session, SessionLayer, SingleUse,
    SingleUseLayer, Token, WhenFull,
    store::{
        Cursor, Fallback, FallbackMode, Guard, OnRecovery, SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};
use tracing::Level;

const COOKIE: &str = "__Host-session";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn redis(server: &RedisServer) -> RedisStore {
    RedisStore::new(RedisConfig::from_url(&server.url()).unwrap().timeout(10 * SECOND))
}

async fn log_in(app: &App, user: &str) -> Client {
    let client = app.client();
    client.one(json!(["login", user])).await;
    client
}

async fn bearer(client: &Client, credential: &str) -> StatusCode {
    let authorization = format!("Bearer {credential}");
    let headers = [("authorization", &*authorization), ("content-type", "application/json")];
    client.request(Method::POST, "/do", &headers, Bytes::from_static(br#"[["user"]]"#)).await.status
}

fn requests(transport: &str, outcome: &str) -> String {
    format!("session_requests_total{{transport=\"{transport}\",outcome=\"{outcome}\"}}")
}

// ---- metrics ----

#[tokio::test(start_paused = true)]
async fn an_operation_cancelled_before_its_reply_is_an_error() {
    let (metrics, trace) = (Metrics::collect(), Trace::collect());
    let spy = Spy::new();
    let layer = SessionLayer::new(spy.clone()).bearer(Bearer::new()).deadline(SECOND);
    let token = layer.sessions().create("ana").await.unwrap();
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let status = match request.extensions().get::<Session>().unwrap().load().await {
            Ok(()) => StatusCode::OK,
            Err(rejection) => rejection.status(),
        };
        Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
    }));
    let authorization = format!("Bearer {}", token.expose());
    let request = || Request::builder().header("authorization", &authorization).body(()).unwrap();
    let given_up = || metrics.get(r#"session_store_errors_total{class="cancelled"}"#);
    assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(given_up(), 0.0);

    // The client gives up.
    spy.hang();
    assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(given_up(), 1.0);
    assert!(tokio::time::timeout(SECOND / 2, service.oneshot(request())).await.is_err());
    assert_eq!(given_up(), 2.0);
    assert_eq!(metrics.get(r#"session_load_duration_seconds_count{result="cancelled"}"#), 2.0);
    assert!(tokio::time::timeout(SECOND, layer.sessions().count()).await.is_err());
    assert_eq!(given_up(), 2.0, "who counts waits as long as they like");
    let spans = trace.spans();
    let loads = spans.iter().filter(|span| span.get("otel.name") == Some("load"));
    let failures: Vec<_> = loads.map(|span| (span.get("error.type"), span.get("otel.status_code"))).collect();
    assert_eq!(failures, [(None, None), (Some("cancelled"), Some("ERROR")), (Some("cancelled"), Some("ERROR"))]);
}

/// Every outcome without a fault, in memory.
async fn each_kind_of_request() -> Scrape {
    let metrics = Metrics::collect();
    let clock = ManualClock::new();
    let store = MemoryStore::new().clock(clock.clone());
    let layer = SessionLayer::new(store).bearer(Bearer::new()).clock(clock.clone());
    let app = App::start(layer.clone()).await;
    let sessions = layer.sessions();

    app.client().get("/public").await;
    app.client().one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("none", "anonymous")), 2.0);

    let ana = log_in(&app, "ana").await;
    assert_eq!(metrics.get(&requests("none", "anonymous")), 3.0, "a login comes without a session");
    assert_eq!(metrics.get("session_created_total"), 1.0);
    assert_eq!(metrics.get(r#"session_rotation_total{case="login"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_set_cookie_total{op="set"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="create",result="done"}"#), 1.0);
    assert_eq!(metrics.get("session_payload_bytes_sum"), 3.0, "of the name");

    ana.one(json!(["user"])).await;
    ana.get("/public").await;
    assert_eq!(metrics.get(&requests("cookie", "hit")), 1.0);
    assert_eq!(metrics.get(&requests("cookie", "unused")), 1.0);
    assert_eq!(metrics.get(r#"session_load_duration_seconds_count{result="live"}"#), 1.0);
    assert_eq!(metrics.get("session_touch_skipped_total"), 1.0);
    clock.advance(20 * MINUTE);
    ana.one(json!(["insert", "k", "four"])).await;
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="touch",result="done"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="update",result="done"}"#), 1.0);

    let stranger = Token::parse(SessionLayer::new(MemoryStore::new()).sessions().create("x").await.unwrap().expose());
    let stranger = stranger.unwrap().expose().to_owned();
    let wanderer = app.client();
    wanderer.set_cookie(COOKIE, &stranger);
    wanderer.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "unknown")), 1.0);
    assert_eq!(metrics.get(r#"session_load_duration_seconds_count{result="unknown"}"#), 1.0);
    wanderer.set_cookie(COOKIE, "nonsense");
    wanderer.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "malformed")), 1.0);
    bearer(&app.client(), "two words").await;
    assert_eq!(metrics.get(&requests("bearer", "malformed")), 1.0);
    bearer(&app.client(), "a.b.c").await;
    assert_eq!(metrics.get(&requests("bearer", "foreign")), 1.0);
    assert_eq!(bearer(&ana, &stranger).await, StatusCode::UNAUTHORIZED);
    assert_eq!(metrics.get(&requests("both", "disagreement")), 1.0);
    let token = sessions.create("bot").await.unwrap();
    bearer(&app.client(), token.expose()).await;
    assert_eq!(metrics.get(&requests("bearer", "hit")), 1.0);
    assert_eq!(metrics.get("session_created_total"), 3.0, "one of them in another layer");

    let copy = ana.twin();
    ana.one(json!(["logout"])).await;
    copy.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "ended")), 1.0);
    assert_eq!(metrics.get(r#"session_destroyed_total{reason="logged_out"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_set_cookie_total{op="remove"}"#), 1.0);
    assert_eq!(metrics.get("session_lifetime_seconds_sum"), 1200.0);

    let ben = log_in(&app, "ben").await;
    sessions.revoke_user("ben").await.unwrap();
    ben.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "revoked")), 1.0);
    assert_eq!(metrics.get(r#"session_destroyed_total{reason="revoked"}"#), 1.0);

    let cara = log_in(&app, "cara").await;
    clock.advance(31 * MINUTE);
    cara.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "expired")), 1.0);

    let dan = log_in(&app, "dan").await;
    let copy = dan.twin();
    dan.one(json!(["rotate"])).await;
    assert_eq!(metrics.get(r#"session_rotation_total{case="rotated"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="rotate",result="done"}"#), 1.0);
    copy.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "superseded")), 1.0);
    assert_eq!(metrics.get(r#"session_rotation_total{case="superseded"}"#), 1.0);
    dan.one(json!(["user"])).await; // with the new token
    clock.advance(MINUTE);
    copy.one(json!(["user"])).await;
    assert_eq!(metrics.get(&requests("cookie", "reused")), 1.0);
    assert_eq!(metrics.get("session_token_reuse_total"), 1.0);
    assert_eq!(metrics.get(r#"session_destroyed_total{reason="token_reused"}"#), 1.0);

    let of_age = layer.clone().rotate_every(10 * MINUTE);
    let app = App::start(of_age).await;
    let eve = log_in(&app, "eve").await;
    let tab = eve.twin();
    clock.advance(11 * MINUTE);
    eve.one(json!(["user"])).await;
    tab.one(json!(["user"])).await;
    assert_eq!(metrics.get(r#"session_rotation_total{case="graced"}"#), 1.0);

    let used = log_in(&app, "fay").await;
    used.one(json!(["consume"])).await;
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="consume",result="done"}"#), 1.0);

    sessions.count().await.unwrap();
    let live = sessions.count().await.unwrap();
    assert_eq!(metrics.get("session_active"), live as f64);
    metrics.scrape()
}

/// Concurrent requests, in Redis.
async fn requests_that_meet() -> Scrape {
    let metrics = Metrics::collect();
    let server = RedisServer::start().await;
    let layer = SessionLayer::new(redis(&server)).limits(Limits::per_user(1, WhenFull::Reject));
    let app = App::start(layer.clone()).await;
    let ana = log_in(&app, "ana").await;

    let meet = async |slow: serde_json::Value, concurrent: serde_json::Value| {
        let (tab, steps) = (ana.twin(), json!([["get", "k"], ["gate", "met"], slow]));
        let slow = tab.post("/do", &steps);
        let fast = async {
            app.reached("met").await;
            ana.one(concurrent).await;
            app.open("met");
        };
        tokio::join!(slow, fast).0.status
    };
    assert_eq!(meet(json!(["insert", "a", 1]), json!(["insert", "b", 1])).await, StatusCode::OK);
    assert_eq!(metrics.get(r#"session_conflicts_total{resolution="merged"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="update",result="conflict"}"#), 1.0);
    assert_eq!(meet(json!(["insert", "a", 2]), json!(["insert", "a", 3])).await, StatusCode::OK);
    assert_eq!(metrics.get(r#"session_conflicts_total{resolution="overwritten"}"#), 1.0);
    assert_eq!(layer.stats().overwrites, 1, "the same is counted in one place");

    // One login over the limit.
    let refused = app.client().post("/do", &json!([["login", "ana"]])).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="create",result="full"}"#), 1.0);

    // A login transfer, and a cancelled request.
    let guest = app.client();
    guest.one(json!(["insert", "cart", "tea"])).await;
    guest.one(json!(["login", "ben"])).await;
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="replace",result="done"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_destroyed_total{reason="replaced"}"#), 1.0);
    let abandoned = json!([["insert", "k", 9], ["gate", "away"]]);
    tokio::select! {
        reply = guest.post("/do", &abandoned) => panic!("{reply:?}"),
        () = app.reached("away") => {}
    }
    eventually("the request is dropped", async || layer.stats().unsaved == 1).await;
    assert_eq!(metrics.get("session_unsaved_total"), 1.0);

    assert_eq!(meet(json!(["insert", "a", 4]), json!(["logout"])).await, StatusCode::OK);
    assert_eq!(metrics.get("session_resurrection_prevented_total"), 1.0);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="update",result="gone"}"#), 1.0);
    metrics.scrape()
}

/// A server that is out of memory, has a corrupt record, refuses the login, and is down.
async fn faults() -> Scrape {
    let metrics = Metrics::collect();
    let mut server = RedisServer::start().await;
    let layer = SessionLayer::new(redis(&server));
    let app = App::start(layer.clone()).await;
    let ana = log_in(&app, "ana").await;
    let sessions = layer.sessions();
    let health = async |status: &str| {
        sessions.health().await;
        metrics.get(&format!("session_store_health{{status=\"{status}\"}}"))
    };
    assert_eq!((health("up").await, health("down").await), (1.0, 0.0));
    assert_eq!(metrics.get("session_degraded"), 0.0);

    // It reads and does not write: degraded until a write succeeds.
    server.command("CONFIG SET maxmemory 1").await;
    let write = json!([["insert", "k", 1]]);
    assert_eq!(ana.post("/do", &write).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="update",result="error"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_store_errors_total{class="outage"}"#), 1.0);
    ana.one(json!(["get", "k"])).await;
    assert_eq!(metrics.get("session_degraded"), 1.0, "a read does not end it");
    assert_eq!((health("degraded").await, health("up").await), (1.0, 0.0));
    server.command("CONFIG SET maxmemory 0").await;
    assert_eq!(ana.post("/do", &write).await.status, StatusCode::OK);
    assert_eq!(metrics.get("session_degraded"), 0.0);

    // A corrupt record.
    let id = Token::parse(ana.cookie(COOKIE).unwrap()).unwrap().id().to_string();
    let key = format!("sess:{{{}}}:{}", &id[..12], &id[12..]);
    let record = server.get(&key).await;
    server.command(&format!("SET {key} x")).await;
    assert_eq!(ana.post("/do", &json!([["user"]])).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(metrics.get(r#"session_store_errors_total{class="corrupt"}"#), 1.0);
    assert_eq!(metrics.get("session_degraded"), 0.0, "the store is well");
    server.command(&format!("SET {key} {record} PX 600000")).await;

    // A wrong password.
    let locked = RedisServer::start_with(&["--requirepass", "open-sesame"]).await;
    let outside = App::start(SessionLayer::new(redis(&locked))).await;
    let refused = outside.client().post("/do", &json!([["login", "ana"]])).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(metrics.get(r#"session_store_errors_total{class="configuration"}"#) >= 1.0);

    // Down for more than a second.
    let before = metrics.get(r#"session_store_errors_total{class="outage"}"#);
    server.stop();
    assert_eq!(ana.post("/do", &json!([["user"]])).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(metrics.get(&requests("cookie", "store_error")), 2.0, "the corrupt one, and this");
    assert!(metrics.get(r#"session_load_duration_seconds_count{result="error"}"#) >= 2.0);
    assert!(metrics.get(r#"session_store_errors_total{class="outage"}"#) > before);
    assert_eq!(metrics.get("session_degraded"), 1.0);
    assert_eq!((health("down").await, health("degraded").await), (1.0, 0.0));
    tokio::time::sleep(1100 * SECOND / 1000).await;
    server.run().await;
    server.command(&format!("SET {key} {record} PX 600000")).await;
    let back = async || ana.post("/do", &json!([["user"]])).await.status == StatusCode::OK;
    eventually("serving resumes", back).await;
    eventually("the trouble is over", async || health("up").await == 1.0 && metrics.get("session_degraded") == 0.0)
        .await;
    assert!(metrics.get("session_degraded_seconds_total") >= 1.0);
    metrics.scrape()
}

/// A circuit breaker and a fallback during an outage.
async fn fallbacks() -> Scrape {
    let metrics = Metrics::collect();
    let mut server = RedisServer::start().await;
    let guard = Guard::new(redis(&server)).open_after(1).pause(SECOND / 10, SECOND / 10);
    let store = Fallback::new(guard, FallbackMode::Memory { on_recovery: OnRecovery::Merge }).capacity(4);
    let layer = SessionLayer::new(store);
    let app = App::start(layer.clone()).await;
    let ana = log_in(&app, "ana").await;
    for untouched in ["breaker_state", "fallback_active", "fallback_in_memory", "fallback_outages_total"] {
        let name = format!("session_{untouched}");
        assert_eq!(metrics.scrape().series.get(&name), Some(&0.0), "{name}");
    }

    server.stop();
    ana.one(json!(["insert", "k", 1])).await;
    assert!(metrics.get(&requests("cookie", "degraded")) >= 1.0);
    assert_eq!(metrics.get("session_fallback_active"), 1.0);
    assert_eq!(metrics.get("session_fallback_outages_total"), 1.0);
    assert_eq!(metrics.get("session_degraded"), 1.0);
    assert!(metrics.get("session_breaker_state") >= 1.0);
    assert_eq!(metrics.get("session_fallback_in_memory"), 1.0);
    for user in 0..5 {
        app.client().post("/do", &json!([["login", format!("user-{user}")]])).await;
    }
    assert!(metrics.get("session_fallback_refused_total") >= 1.0, "there is room for four");

    server.run().await;
    let back = async || {
        ana.one(json!(["get", "k"])).await;
        metrics.get("session_fallback_active") == 0.0
    };
    eventually("the fallback is over", back).await;
    assert!(metrics.get("session_fallback_replayed_total") >= 1.0);
    assert_eq!(metrics.get("session_fallback_in_memory"), 0.0);
    assert_eq!(metrics.get("session_breaker_state"), 0.0);
    metrics.scrape()
}

#[tokio::test]
async fn each_kind_of_request_has_its_label() {
    each_kind_of_request().await;
}

#[tokio::test]
async fn conflicts_are_counted() {
    requests_that_meet().await;
}

#[tokio::test]
async fn faults_are_visible_while_they_last() {
    faults().await;
}

#[tokio::test]
async fn circuit_breaker_and_fallback_have_metrics() {
    fallbacks().await;
}

/// The table in the docs of `tower_keep::metrics`: the kind of each metric, and the values of each label.
fn table() -> BTreeMap<String, (String, BTreeMap<String, BTreeSet<String>>)> {
    let docs = include_str!("../../src/metrics/mod.rs");
    let outcomes = || {
        let rows = docs.lines().skip_while(|line| !line.contains("| `outcome` | the request |")).skip(2);
        let rows = rows.take_while(|line| line.starts_with("//! |"));
        rows.flat_map(|row| quoted(row.split('|').nth(1).unwrap())).collect::<BTreeSet<_>>()
    };
    let reasons = || {
        let all = ["expired", "logged_out", "revoked", "evicted", "replaced", "used", "token_reused", "corrupt"];
        all.map(String::from)
            .into_iter()
            .inspect(|name| assert!(tower_keep::EndReason::from_name(name).is_some()))
            .collect()
    };
    let mut table = BTreeMap::new();
    for row in docs.lines().filter_map(|line| line.strip_prefix("//! | `session_")) {
        let cells: Vec<_> = row.split('|').collect();
        let name = format!("session_{}", cells[0].trim().trim_end_matches('`'));
        let labels = cells[2].split(';').filter(|label| label.contains('`')).map(|label| {
            let mut words = quoted(label).into_iter();
            let name = words.next().unwrap();
            let values = match &*name {
                "outcome" => outcomes(),
                "reason" => reasons(),
                "version" => BTreeSet::from([env!("CARGO_PKG_VERSION").to_owned()]),
                _ => words.collect(),
            };
            (name, values)
        });
        table.insert(name, (cells[1].trim().to_owned(), labels.collect()));
    }
    table
}

/// The text between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The name of a series without the suffix of a histogram, and its labels without `le`.
fn parts(series: &str, kinds: &BTreeMap<String, String>) -> (String, Vec<(String, String)>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let name = plain.filter(|plain| kinds.contains_key(*plain)).unwrap_or(name);
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
    let labels = labels.map(|label| label.split_once('=').unwrap());
    let labels = labels.map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned()));
    (name.to_owned(), labels.filter(|(label, _)| label != "le").collect())
}

#[tokio::test]
async fn the_documented_metrics_are_those_exposed() {
    let table = table();
    assert!(table.len() > 20, "{table:?}");
    let scrapes =
        [each_kind_of_request().await, requests_that_meet().await, faults().await, fallbacks().await, values().await];
    let mut seen = BTreeSet::new();
    for scrape in &scrapes {
        for series in scrape.series.keys() {
            let (name, labels) = parts(series, &scrape.kinds);
            let (kind, documented) = table.get(&name).unwrap_or_else(|| panic!("{name} is not in the table"));
            assert_eq!(&scrape.kinds[&name], kind, "{name}");
            assert!(scrape.text.contains(&format!("# HELP {name} ")), "{name} is not described");
            let names: BTreeSet<_> = labels.iter().map(|(label, _)| label).collect();
            assert_eq!(names, documented.keys().collect(), "the labels of {series}");
            for (label, value) in labels {
                assert!(documented[&label].contains(&value), "{series}: {value:?} is not in the table");
            }
            seen.insert(name);
        }
    }
    let exposed: Vec<_> = seen.iter().collect();
    assert_eq!(exposed, table.keys().collect::<Vec<_>>(), "all of it has been seen");
}

#[tokio::test]
async fn no_client_input_creates_a_series() {
    let metrics = Metrics::collect();
    let layer = SessionLayer::new(MemoryStore::new()).bearer(Bearer::new()).client_info(ClientInfo::new());
    let app = App::start(layer.clone()).await;
    let one = async |n: usize| {
        let client = app.client();
        client.perform(json!([["login", format!("user-{n}")], ["insert", format!("key-{n}"), n]])).await;
        client.one(json!(["get", format!("key-{n}")])).await;
        client.one(json!(["logout"])).await;
        let method = Method::from_bytes(format!("METHOD{n}").as_bytes()).unwrap();
        let agent = format!("agent-{n}");
        client.request(method, &format!("/path/{n}?q={n}"), &[("user-agent", &agent)], Bytes::new()).await;
        client.set_cookie(COOKIE, &format!("nonsense-{n}"));
        client.one(json!(["user"])).await;
        bearer(&app.client(), &format!("foreign.{n}")).await;
    };
    one(0).await;
    let first: Vec<_> = metrics.scrape().series.into_keys().collect();
    for n in 1..1000 {
        one(n).await;
    }
    let scrape = metrics.scrape();
    assert_eq!(scrape.get("session_created_total"), 1000.0);
    assert_eq!(scrape.series.into_keys().collect::<Vec<_>>(), first);
}

// ---- spans ----

fn span(trace: &Trace, operation: &str) -> Said {
    let spans = trace.spans();
    let found = spans.iter().rev().find(|span| span.get("db.operation.name") == Some(operation));
    found.unwrap_or_else(|| panic!("no {operation} in {spans:?}")).clone()
}

#[tokio::test]
async fn every_operation_of_the_store_has_a_span() {
    let trace = Trace::collect();
    let mut server = RedisServer::start().await;
    let port = server.port().to_string();
    let layer = SessionLayer::new(redis(&server));
    let app = App::start(layer.clone()).await;
    let ana = log_in(&app, "ana").await;
    ana.one(json!(["insert", "k", "private-matter"])).await;
    layer.sessions().list("ana").await.unwrap();
    layer.sessions().count().await.unwrap();
    layer.sessions().health().await;
    for operation in ["load", "create", "update", "list", "count", "health"] {
        let span = span(&trace, operation);
        assert_eq!((&*span.name, span.level), ("session_store", Level::DEBUG));
        assert_eq!(span.get("db.system.name"), Some("redis"));
        assert_eq!((span.get("otel.name"), span.get("otel.kind")), (Some(operation), Some("client")));
        if operation != "health" {
            assert_eq!(span.get("server.address"), Some("127.0.0.1"), "{span:?}");
            assert_eq!(span.get("server.port"), Some(&*port));
        }
        for failed in ["error.type", "otel.status_code", "db.response.status_code", "db.query.text"] {
            assert_eq!(span.get(failed), None, "{span:?}");
        }
    }
    assert_eq!(span(&trace, "load").get("db.operation.batch.size"), Some("3"));
    assert_eq!(span(&trace, "update").get("db.stored_procedure.name"), Some("update"));

    server.command("CONFIG SET maxmemory 1").await;
    ana.post("/do", &json!([["insert", "k", 2]])).await;
    let refused = span(&trace, "update");
    for (field, value) in [("db.response.status_code", "OOM"), ("error.type", "OOM"), ("otel.status_code", "ERROR")] {
        assert_eq!(refused.get(field), Some(value), "{refused:?}");
    }
    server.command("CONFIG SET maxmemory 0").await;
    server.stop();
    ana.post("/do", &json!([["user"]])).await;
    let away = span(&trace, "load");
    assert_eq!((away.get("error.type"), away.get("otel.status_code")), (Some("outage"), Some("ERROR")), "{away:?}");
    assert_eq!(away.get("db.response.status_code"), None, "nobody has said anything");
    assert!(!trace.text().contains("private-matter"));
}

#[tokio::test]
async fn a_single_use_is_logged_with_the_client() {
    let trace = Trace::collect();
    let info = ClientInfo::new().peer(|_| Some([203, 0, 113, 9].into()));
    let sessions = SessionLayer::new(MemoryStore::new()).client_info(info).sessions();
    let token = sessions.create("ana").await.unwrap();
    let service = SingleUseLayer::query(sessions, "once").layer(service_fn(async |request: Request<()>| {
        request.extensions().get::<SingleUse>().unwrap().consume().await.unwrap();
        Ok::<_, Infallible>(Response::new(()))
    }));
    let request = Request::get(format!("/?once={}", token.expose())).body(()).unwrap();
    service.oneshot(request).await.unwrap();
    let told = trace.security();
    let told: Vec<_> = told.iter().map(|event| (event.get("event").unwrap(), event.get("client_ip"))).collect();
    assert_eq!(told, [("created", None), ("ended", Some("203.0.113.9"))]);
}

/// Attributes of Redis must not end up in the application's request span.
#[tokio::test]
async fn other_spans_are_not_changed() {
    let trace = Trace::collect();
    let server = RedisServer::start().await;
    let values = SessionLayer::new(redis(&server)).sessions().key_value().unwrap();
    let theirs = tracing::info_span!(
        target: "an_application",
        "request",
        server.address = tracing::field::Empty,
        db.operation.batch.size = tracing::field::Empty,
        db.stored_procedure.name = tracing::field::Empty,
    );
    let work = async {
        values.set("k", "v", None).await.unwrap();
        values.incr("n").await.unwrap();
    };
    tracing::Instrument::instrument(work, theirs).await;
    let theirs = trace.all_spans().into_iter().find(|span| span.target == "an_application").unwrap();
    assert!(theirs.fields.is_empty(), "{theirs:?}");
    let port = server.port().to_string();
    for operation in ["set", "add"] {
        assert_eq!(span(&trace, operation).get("server.port"), Some(&*port));
    }
}

async fn values() -> Scrape {
    let (metrics, trace) = (Metrics::collect(), Trace::collect());
    let mut server = RedisServer::start().await;
    let layer = SessionLayer::new(redis(&server));
    for (round, values) in
        [layer.sessions().key_value().unwrap(), KeyValue::new(redis(&server)).unwrap()].into_iter().enumerate()
    {
        values.set("private-key", "private-matter", SECOND * 100).await.unwrap();
        values.mget(&["private-key", "other"]).await.unwrap();
        values.exists("private-key").await.unwrap();
        values.expire("private-key", MINUTE).await.unwrap();
        values.incr("private-key").await.unwrap_err();
        values.incr("number").await.unwrap();
        values.scan("private-*", &Cursor::start(), 10).await.unwrap();
        values.del("private-key").await.unwrap();
        values.stats().await;
        for (operation, result) in [
            ("set", "done"),
            ("get", "done"),
            ("exists", "done"),
            ("expire", "done"),
            ("add", "refused"),
            ("add", "done"),
            ("scan_values", "done"),
            ("delete", "done"),
            ("value_stats", "done"),
        ] {
            let series =
                format!("session_values_duration_seconds_count{{operation=\"{operation}\",result=\"{result}\"}}");
            assert_eq!(metrics.get(&series), (round + 1) as f64, "{series}");
            assert_eq!(span(&trace, operation).get("db.system.name"), Some("redis"));
        }
    }
    let values = layer.sessions().key_value().unwrap();
    server.stop();
    values.get("private-key").await.unwrap_err();
    assert_eq!(metrics.get(r#"session_values_duration_seconds_count{operation="get",result="error"}"#), 1.0);
    assert_eq!(metrics.get(r#"session_store_errors_total{class="outage"}"#), 1.0);
    assert_eq!(metrics.get("session_degraded"), 0.0, "that is about sessions");
    assert_eq!(span(&trace, "get").get("error.type"), Some("outage"));
    assert!(!trace.text().contains("private"), "{}", trace.text());
    metrics.scrape()
}

#[tokio::test]
async fn values_have_metrics_and_spans() {
    values().await;
}

#[tokio::test]
async fn a_store_in_memory_has_spans_as_well() {
    let trace = Trace::collect();
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    log_in(&app, "ana").await.one(json!(["user"])).await;
    for operation in ["create", "load"] {
        let span = span(&trace, operation);
        assert_eq!((span.get("db.system.name"), span.get("server.address")), (Some("memory"), None));
    }
    let asked = trace.spans().len();
    app.client().get("/public").await;
    assert_eq!(trace.spans().len(), asked, "who asks no store makes no span");
}

// ---- security events ----

fn events(trace: &Trace) -> Vec<(Level, String)> {
    trace.security().iter().map(|event| (event.level, event.get("event").unwrap().to_owned())).collect()
}

#[tokio::test]
async fn security_events_name_user_and_client_and_no_secret() {
    let trace = Trace::collect();
    let server = RedisServer::start().await;
    let clock = ManualClock::new();
    let client_info = ClientInfo::new().trust_proxies(["127.0.0.0/8"]).unwrap();
    let limits = |user: &str| Limits::per_user(if user == "bot" { 1 } else { 9 }, WhenFull::Reject);
    let layer = SessionLayer::new(redis(&server))
        .bearer(Bearer::new())
        .clock(clock.clone())
        .client_info(client_info)
        .limits_by(limits);
    let proxy = axum::Extension(PeerAddr("127.0.0.1:4711".parse().unwrap()));
    let app = App::serve(|router| router.layer(layer.clone()).layer(proxy)).await;
    let sessions = layer.sessions();
    let mut secrets = Vec::new();
    let ip = [("x-forwarded-for", "198.51.100.7"), ("content-type", "application/json")];
    let send = async |client: &Client, steps: serde_json::Value| {
        client.request(Method::POST, "/do", &ip, Bytes::from(steps.to_string())).await
    };

    let ana = app.client();
    send(&ana, json!([["login", "ana"], ["insert", "k", "private-matter"]])).await;
    secrets.push(ana.cookie(COOKIE).unwrap());
    let id = Token::parse(&secrets[0]).unwrap().id().to_string();
    assert_eq!(events(&trace), [(Level::INFO, "created".into()), (Level::INFO, "logged_in".into())]);
    let thief = ana.twin();
    send(&ana, json!([["rotate"]])).await;
    secrets.push(ana.cookie(COOKIE).unwrap());
    send(&ana, json!([["user"]])).await;
    clock.advance(MINUTE);
    send(&thief, json!([["user"]])).await;
    for event in trace.security() {
        assert_eq!(event.get("session"), Some(&*id), "{event:?}");
        assert_eq!(event.get("user"), Some("ana"), "{event:?}");
        assert_eq!(event.get("client_ip"), Some("198.51.100.7"), "{event:?}");
    }
    let told = events(&trace).split_off(2);
    let told: Vec<_> = told.iter().map(|(level, name)| (*level, &**name)).collect();
    assert_eq!(told, [(Level::INFO, "rotated"), (Level::WARN, "token_reused"), (Level::INFO, "ended")]);
    assert_eq!(trace.security().last().unwrap().get("reason"), Some("token_reused"));

    // Invalid credentials.
    let stranger = SessionLayer::new(MemoryStore::new()).sessions().create("x").await.unwrap();
    secrets.push(stranger.expose().to_owned());
    let trace = Trace::collect();
    let wanderer = app.client();
    wanderer.set_cookie(COOKIE, stranger.expose());
    send(&wanderer, json!([["user"]])).await;
    wanderer.set_cookie(COOKIE, "not-a-token-of-ours");
    send(&wanderer, json!([["user"]])).await;
    let bot = sessions.create("bot").await.unwrap();
    secrets.push(bot.expose().to_owned());
    wanderer.set_cookie(COOKIE, stranger.expose());
    assert_eq!(bearer(&wanderer, bot.expose()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(&app.client(), json!([["login", "bot"]])).await.status, StatusCode::TOO_MANY_REQUESTS);
    sessions.for_client(IpAddr::from([203, 0, 113, 9])).revoke(&bot.id()).await.unwrap();
    let told = events(&trace);
    let told: Vec<_> = told.iter().map(|(level, name)| (*level, &**name)).collect();
    let expected = [
        (Level::INFO, "unknown_token"),
        (Level::INFO, "malformed_credential"),
        (Level::INFO, "created"),
        (Level::WARN, "credentials_disagree"),
        (Level::INFO, "limit_refused"),
        (Level::INFO, "ended"),
    ];
    assert_eq!(told, expected);
    let all = trace.security();
    assert_eq!(all[0].get("session"), Some(&*stranger.id().to_string()));
    assert_eq!((all[4].get("user"), all[4].get("client_ip")), (Some("bot"), Some("198.51.100.7")));
    assert_eq!((all[5].get("user"), all[5].get("reason")), (Some("bot"), Some("revoked")));
    assert_eq!((all[2].get("client_ip"), all[5].get("client_ip")), (None, Some("203.0.113.9")));

    let text = trace.text();
    for secret in &secrets {
        assert!(!text.contains(&secret[12..56]), "a token in {text}");
    }
    for secret in ["private-matter", "not-a-token-of-ours"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_flood_of_tokens_does_not_flood_the_log() {
    let (trace, metrics) = (Trace::collect(), Metrics::collect());
    let clock = ManualClock::new();
    let app = App::start(SessionLayer::new(MemoryStore::new()).clock(clock.clone())).await;
    let elsewhere = SessionLayer::new(MemoryStore::new()).sessions();
    let client = app.client();
    let knock = async || {
        client.set_cookie(COOKIE, elsewhere.create("x").await.unwrap().expose());
        client.one(json!(["user"])).await;
    };
    for _ in 0..50 {
        knock().await;
    }
    let unknown = || -> Vec<_> {
        trace.security().into_iter().filter(|event| event.get("event") == Some("unknown_token")).collect()
    };
    assert_eq!(unknown().len(), 10);
    assert_eq!(metrics.get(&requests("cookie", "unknown")), 50.0, "all of them are counted");
    clock.advance(SECOND);
    knock().await;
    assert_eq!(unknown().len(), 11);
    assert_eq!(unknown()[10].get("omitted"), Some("40"));
    // Other kinds are still logged.
    client.set_cookie(COOKIE, "nonsense");
    client.one(json!(["user"])).await;
    assert!(events(&trace).contains(&(Level::INFO, "malformed_credential".into())));
}

/// A third-party store has metrics and spans like those of the crate.
#[tokio::test]
async fn any_store_has_metrics_and_spans() {
    let (trace, metrics) = (Trace::collect(), Metrics::collect());
    let store: std::sync::Arc<dyn SessionStore> = std::sync::Arc::new(MemoryStore::new());
    let app = App::start(SessionLayer::new(store)).await;
    log_in(&app, "ana").await;
    assert_eq!(span(&trace, "create").get("db.system.name"), Some("memory"));
    assert_eq!(metrics.get(r#"session_save_duration_seconds_count{kind="create",result="done"}"#), 1.0);
}
