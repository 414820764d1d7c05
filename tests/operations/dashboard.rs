//! `examples/observability`: the alert rules by promtool, and every query by a real Prometheus that has scraped the quickstart.
//!
//! promtool and prometheus must be installed: `test.sh` does that.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    app::App, client::Client, dir::Dir, eventually, example::Server, port::Port, redis_server::RedisServer,
    watch::Metrics,
};
use axum::routing::get;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tower_keep::{
    MemoryStore, SessionLayer,
    store::{
        Fallback, FallbackMode, Guard, OnRecovery,
        redis::{RedisConfig, RedisStore},
    },
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/observability")
}

fn promtool(args: &[&str]) {
    let run = Command::new("promtool").args(args).current_dir(folder()).output();
    let run =
        run.unwrap_or_else(|error| panic!("promtool: {error}. It comes with prometheus, which ./test.sh installs"));
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}");
}

#[test]
fn the_alert_rules_are_valid() {
    promtool(&["check", "rules", "alerts.yaml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_not_otherwise() {
    promtool(&["test", "rules", "alerts_test.yaml"]);
    let (rules, tests) =
        ["alerts.yaml", "alerts_test.yaml"].map(|file| fs::read_to_string(folder().join(file)).unwrap()).into();
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("labels: 'ALERTS{{alertname=\"{name}\"")), "nobody has seen {name} fire");
    }
}

#[test]
fn every_alert_has_a_severity_and_an_action() {
    let rules = fs::read_to_string(folder().join("alerts.yaml")).unwrap();
    let rules: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert_eq!(rules.len(), 9);
    for rule in rules {
        for part in ["expr: ", "severity: ", "summary: ", "runbook: "] {
            assert!(rule.contains(part), "no {part}in {rule}");
        }
    }
}

/// A running Prometheus. Killed when dropped.
struct Prometheus {
    child: Child,
    client: Client,
    _port: Port,
    _dir: Dir,
}

impl Prometheus {
    async fn scraping(targets: &[(&str, &str)]) -> Self {
        let (dir, port) = (Dir::new(), Port::free());
        let jobs = targets
            .iter()
            .map(|(job, target)| format!("  - job_name: {job}\n    static_configs: [{{ targets: [\"{target}\"] }}]\n"));
        let config = format!(
            "global: {{ scrape_interval: 100ms, scrape_timeout: 100ms, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs:\n{}",
            folder().join("alerts.yaml"),
            jobs.collect::<String>(),
        );
        let file = dir.join("prometheus.yaml");
        fs::write(&file, config).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("prometheus: {error}. ./test.sh installs it"));
        let client = Client::new(&format!("http://127.0.0.1:{}", port.number()));
        let mut prometheus = Self { child, client, _port: port, _dir: dir };
        eventually("Prometheus is ready", async || prometheus.is_ready().await).await;
        prometheus
    }

    async fn is_ready(&mut self) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{status}: {}", fs::read_to_string(self._dir.join("log")).unwrap());
        }
        let address = self.client.base().strip_prefix("http://").unwrap();
        tokio::net::TcpStream::connect(address).await.is_ok()
            && self.client.get("/-/ready").await.status == StatusCode::OK
    }

    /// The single result of a query.
    async fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let reply = self.client.get(&format!("/api/v1/query?query={encoded}")).await.json();
        assert_eq!(reply["status"], "success", "{query}: {reply}");
        assert_eq!(reply["warnings"], Value::Null, "{query}: {reply}");
        reply["data"]["result"].as_array().unwrap_or_else(|| panic!("{query}: {reply}")).clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The queries of the dashboard, by panel, as Grafana sends them.
fn dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(folder().join("dashboard.json")).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m").replace("$job", ".*");
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 30);
    queries
}

/// What is selected in a query: `session_requests_total{job="shop"}`.
fn selectors(query: &str) -> Vec<String> {
    let mut selectors = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find("session_").or_else(|| rest.find("redis_")) {
        rest = &rest[start..];
        let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let labels = if rest[name..].starts_with('{') { rest[name..].find('}').unwrap() + 1 } else { 0 };
        selectors.push(rest[..name + labels].to_owned());
        rest = &rest[name + labels..];
    }
    assert!(!selectors.is_empty(), "{query}");
    selectors
}

async fn form(client: &Client, path: &str, body: &'static str) -> StatusCode {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    client.request(Method::POST, path, &headers, Bytes::from_static(body.as_bytes())).await.status
}

/// Requests of clients of the quickstart, valid and invalid.
async fn use_quickstart(server: &Server) {
    let ana = server.client();
    form(&ana, "/login", "user=ana").await;
    ana.get("/me").await;
    ana.get("/public").await;
    ana.get("/health").await;
    let stranger = SessionLayer::new(MemoryStore::new()).sessions().create("x").await.unwrap();
    let bearer = format!("Bearer {}", stranger.expose());
    ana.request(Method::GET, "/me", &[("authorization", &bearer)], Bytes::new()).await;
    server.client().request(Method::GET, "/me", &[("authorization", &bearer)], Bytes::new()).await;
    server.client().request(Method::GET, "/me", &[("authorization", "Bearer a b")], Bytes::new()).await;
    form(&ana, "/logout", "").await;
}

/// Two concurrent requests that change one session.
async fn meet(app: &App) {
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    let (tab, steps) = (client.twin(), json!([["get", "k"], ["gate", "met"], ["insert", "a", 1]]));
    let fast = async {
        app.reached("met").await;
        client.one(json!(["insert", "b", 1])).await;
        app.open("met");
    };
    tokio::join!(tab.post("/do", &steps), fast);
}

#[tokio::test]
async fn every_query_matches_metrics_of_the_quickstart() {
    let mut redis = RedisServer::start().await;
    let quickstart = Server::on("quickstart", &redis).await;
    // A second service has what the quickstart lacks: a circuit breaker and a fallback.
    let metrics = Metrics::collect();
    let handle = metrics.handle();
    let guard = Guard::new(RedisStore::new(RedisConfig::from_url(&redis.url()).unwrap()));
    let store = Fallback::new(guard, FallbackMode::Memory { on_recovery: OnRecovery::Drop });
    let layer = SessionLayer::new(store);
    let values = layer.sessions().key_value().unwrap();
    let guarded = App::serve(|router| router.layer(layer).route("/metrics", get(async move || handle.render()))).await;
    let guarded_addr = guarded.addr().to_string();
    let prometheus = Prometheus::scraping(&[("quickstart", quickstart.addr()), ("guarded", &guarded_addr)]).await;

    use_quickstart(&quickstart).await;
    meet(&guarded).await;
    values.set("k", "v", None).await.unwrap();
    let ben = quickstart.client();
    form(&ben, "/login", "user=ben").await;
    redis.stop();
    assert_eq!(ben.get("/me").await.status, StatusCode::SERVICE_UNAVAILABLE);
    guarded.client().one(json!(["login", "cara"])).await;
    redis.run().await;
    let back = async || form(&quickstart.client(), "/login", "user=ben").await == StatusCode::SEE_OTHER;
    eventually("serving resumes", back).await;

    // The metrics of the quickstart only. The other service has those of Guard and Fallback, and of concurrent requests.
    let only_guarded = ["session_breaker_state", "session_fallback_", "session_conflicts_total", "session_values_"];
    let mut queries = dashboard();
    let rules = prometheus.client.get("/api/v1/rules").await.json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), 9);
    queries.extend(rules.iter().map(|rule| (rule["name"].to_string(), rule["query"].as_str().unwrap().to_owned())));
    for (of, query) in &queries {
        for selector in selectors(query) {
            if selector.starts_with("redis_") {
                assert_eq!(prometheus.query(&selector).await.len(), 0, "from redis_exporter");
                continue;
            }
            let job = if only_guarded.iter().any(|name| selector.starts_with(name)) { "guarded" } else { "quickstart" };
            let found = async || {
                let series = prometheus.query(&selector).await;
                series.iter().any(|series| series["metric"]["job"] == job)
            };
            eventually(&format!("{job} exposes {selector}, of {of}"), found).await;
        }
        prometheus.query(query).await;
    }
    for (panel, query) in dashboard() {
        if !query.contains("redis_") {
            let found = async || {
                use_quickstart(&quickstart).await;
                values.set("k", "v", None).await.unwrap();
                !prometheus.query(&query).await.is_empty()
            };
            eventually(&format!("{panel} shows something: {query}"), found).await;
        }
    }

    // Rules are evaluated without errors.
    let evaluated = async || {
        let rules = prometheus.client.get("/api/v1/rules").await.json();
        let health: BTreeMap<_, _> = rules["data"]["groups"][0]["rules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rule| (rule["name"].to_string(), rule["health"].as_str().unwrap().to_owned()))
            .collect();
        assert!(health.values().all(|health| health != "err"), "{rules}");
        health.values().all(|health| health == "ok")
    };
    eventually("every rule was evaluated", evaluated).await;
}
