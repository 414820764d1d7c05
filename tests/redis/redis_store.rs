//! Sessions in a real Redis: the stored data, the cost, several instances, and the configuration.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    app::App,
    client::{Client, Reply},
    eventually,
    log::Log,
    proxy::Proxy,
    redis_server::{Monitor, RedisServer, text},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower_keep::{
    Bearer, HealthStatus, Lifetime, ManualClock, SessionLayer,
    store::{
        Health, SessionStore,
        redis::{InvalidRedisConfig, RedisConfig, RedisCredentials, RedisStore},
    },
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const COOKIE: &str = "__Host-session";

/// None of these tests is about time: on a busy machine Redis may be slow.
fn config(server: &RedisServer) -> RedisConfig {
    config_of(&server.url())
}

fn config_of(url: &str) -> RedisConfig {
    patient(RedisConfig::from_url(url).unwrap())
}

fn patient(config: RedisConfig) -> RedisConfig {
    config.timeout(Duration::from_secs(10)).connect_timeout(Duration::from_secs(10))
}

fn layer(config: RedisConfig) -> SessionLayer {
    SessionLayer::new(RedisStore::new(config))
}

async fn app(server: &RedisServer) -> App {
    App::start(layer(config(server))).await
}

/// A service and a client.
async fn service(server: &RedisServer) -> (App, Client) {
    let app = app(server).await;
    let client = app.client();
    (app, client)
}

async fn only_key(server: &RedisServer) -> String {
    let keys = server.sessions().await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.into_iter().next().unwrap()
}

/// Whether the TTL of `key` is `expected`, with tolerance for a busy machine.
async fn assert_ttl(server: &RedisServer, key: &str, expected: Duration) {
    let ttl = server.pttl(key).await;
    let expected = expected.as_millis() as i64;
    assert!((expected - 30_000..=expected).contains(&ttl), "{ttl} instead of {expected} ms");
}

mod keys {
    use super::*;

    #[tokio::test]
    async fn a_session_is_one_key_with_its_id() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        let id = client.perform(json!([["insert", "k", 1], ["save"], ["id"]])).await.remove(2);
        let (tag, rest) = id.as_str().unwrap().split_at(12);
        assert_eq!(rest.len(), 32);
        assert_eq!(server.keys().await, [format!("sess:{{{tag}}}:{rest}")]);
    }

    #[tokio::test]
    async fn the_value_is_readable_json() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.perform(json!([["insert", "cart", ["tea", 2]], ["login", "ana"]])).await;
        let value: Value = serde_json::from_str(&server.get(&only_key(&server).await).await).unwrap();
        assert_eq!(value["v"], 2);
        assert_eq!(value["user"], "ana");
        assert_eq!(value["data"], json!({"cart": ["tea", 2]}));
    }

    #[tokio::test]
    async fn keys_and_values_do_not_contain_the_token() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.one(json!(["login", "ana"])).await;
        let token = client.cookie(COOKIE).unwrap();
        let secret = &token[12..];
        let key = only_key(&server).await;
        let value = server.get(&key).await;
        assert!(!key.contains(secret) && !value.contains(secret));
        // A reader of Redis finds no credential under another name either.
        let id: String = key.strip_prefix("sess:").unwrap().chars().filter(|c| !"{}:".contains(*c)).collect();
        let thief = client.twin();
        thief.set_cookie(COOKIE, &id);
        assert_eq!(thief.one(json!(["user"])).await, json!(null));
    }

    #[tokio::test]
    async fn all_sessions_of_a_user_have_one_slot_tag() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        for user in ["ana", "ana", "ben"] {
            app.client().one(json!(["login", user])).await;
        }
        let keys = server.sessions().await;
        let mut tags: Vec<_> = keys.iter().map(|key| key.split(['{', '}']).nth(1).unwrap()).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!((keys.len(), tags.len()), (3, 2));
    }

    #[tokio::test]
    async fn the_prefix_is_configurable_and_keeps_applications_apart() {
        let server = RedisServer::start().await;
        let shop = App::start(layer(config(&server).prefix("shop:s:").unwrap())).await;
        let client = shop.client();
        client.one(json!(["login", "ana"])).await;
        assert!(only_key(&server).await.starts_with("shop:s:{"));
        let blog = app(&server).await;
        assert_eq!(client.at(&blog.url()).one(json!(["user"])).await, json!(null));
        assert_eq!(client.one(json!(["user"])).await, "ana");
    }

    #[tokio::test]
    async fn every_key_has_a_ttl() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        let flows = [
            json!([["insert", "k", 1]]),
            json!([["insert", "k", 1], ["save"], ["insert", "k", 2]]),
            json!([["insert", "k", 1], ["save"], ["rotate"], ["insert", "k", 2]]),
            json!([["login", "ana"]]),
            json!([["login", "ana"], ["save"], ["login", "ben"]]),
            json!([["login", "ana"], ["lifetime", 86_400, 864_000, true]]),
            json!([["login", "ana"], ["save"], ["logout"], ["insert", "notice", "Goodbye!"]]),
        ];
        for (count, flow) in (1..).zip(flows) {
            app.client().perform(flow.clone()).await;
            assert_eq!(server.sessions().await.len(), count, "{flow}");
        }
        for key in server.keys().await {
            assert!(server.pttl(&key).await > 0, "{key}");
        }
    }

    #[tokio::test]
    async fn the_ttl_is_the_idle_timeout_or_the_rest_of_the_absolute_timeout() {
        let server = RedisServer::start().await;
        let clock = ManualClock::new();
        let lifetime = Lifetime::new(30 * MINUTE, 2 * HOUR).unwrap();
        let app = App::start(layer(config(&server)).lifetime(lifetime).clock(clock.clone())).await;
        let client = app.client();
        client.one(json!(["insert", "k", 0])).await;
        let key = only_key(&server).await;
        assert_ttl(&server, &key, 30 * MINUTE).await;

        // Only the clock of the service advances: in Redis the session keeps its half hour.
        clock.advance(20 * MINUTE);
        client.one(json!(["insert", "k", 1])).await;
        assert_ttl(&server, &key, 30 * MINUTE).await;

        clock.advance(90 * MINUTE);
        client.one(json!(["insert", "k", 2])).await;
        assert_ttl(&server, &key, 10 * MINUTE).await;

        // A rotation does not restart the absolute timeout, and a login does.
        client.one(json!(["rotate"])).await;
        assert_ttl(&server, &only_key(&server).await, 10 * MINUTE).await;
        client.one(json!(["login", "ana"])).await;
        assert_ttl(&server, &only_key(&server).await, 30 * MINUTE).await;
    }

    #[tokio::test]
    async fn a_session_keeps_its_own_lifetime() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.perform(json!([["login", "ana"], ["lifetime", 86_400, 864_000, true]])).await;
        client.one(json!(["insert", "k", 1])).await;
        assert_ttl(&server, &only_key(&server).await, 24 * HOUR).await;
    }
}

mod cost {
    use super::*;

    /// The commands of the store, without those of connecting and keeping the connection.
    async fn commands(monitor: &mut Monitor<'_>) -> Vec<String> {
        let lines = monitor.so_far().await;
        let from_clients = lines.iter().filter(|line| !line.contains(" lua] "));
        let names = from_clients.map(|line| line.split('"').nth(1).unwrap().to_uppercase());
        names.filter(|name| !matches!(name.as_str(), "HELLO" | "CLIENT" | "SELECT" | "PING")).collect()
    }

    #[tokio::test]
    async fn each_request_sends_the_minimum_of_commands() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        let client = app.client();
        // Redis knows all the scripts.
        client.perform(json!([["insert", "k", 0]])).await;
        client.perform(json!([["login", "ana"], ["save"], ["insert", "k", 1]])).await;
        client.perform(json!([["logout"], ["insert", "k", 0]])).await;
        let mut monitor = server.monitor().await;

        let load = ["GET", "GET", "PTTL"];
        let [epoch, get, pttl] = load;
        let load_write = [epoch, get, pttl, "EVALSHA"];
        let load_three_writes = [epoch, get, pttl, "EVALSHA", "EVALSHA", "EVALSHA"];
        let flow: [(Value, &[&str]); 14] = [
            (json!([["get", "k"]]), &load),
            (json!([["get", "k"], ["user"], ["id"], ["get", "other"]]), &load),
            (json!([["insert", "k", 3]]), &load_write),
            (json!([["insert", "k", 3]]), &load), // unchanged
            (json!([["remove", "other"]]), &load),
            (json!([["insert", "a", 1], ["insert", "b", 2], ["remove", "k"]]), &load_write),
            (json!([["rotate"], ["insert", "k", 4]]), &load_write),
            (json!([["get", "k"]]), &load_write), // the first use of the new token
            (json!([["get", "k"]]), &load),
            (json!([["login", "ana"], ["insert", "k", 5]]), &load_three_writes),
            (json!([["get", "k"]]), &load),
            (json!([["login", "ana"]]), &load_three_writes),
            (json!([["insert", "k", 6]]), &load_write),
            (json!([["logout"]]), &load_write),
        ];
        for (steps, expected) in flow {
            client.perform(steps.clone()).await;
            assert_eq!(commands(&mut monitor).await, expected, "{steps}");
        }
        // Without a credential there is no lookup.
        client.perform(json!([["insert", "k", 1], ["login", "ana"]])).await;
        assert_eq!(commands(&mut monitor).await, ["EVALSHA"]);
        app.client().perform(json!([["insert", "k", 1], ["insert", "l", 1]])).await;
        assert_eq!(commands(&mut monitor).await, ["SET"]);
        app.client().perform(json!([["get", "k"], ["remove", "k"], ["rotate"], ["logout"]])).await;
        assert!(commands(&mut monitor).await.is_empty());
    }

    #[tokio::test]
    async fn an_unused_session_costs_no_command_and_no_connection() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        let client = app.client();
        client.set_cookie(COOKIE, &"a".repeat(56));
        let mut monitor = server.monitor().await;
        assert_eq!(client.get("/public").await.status, StatusCode::OK);
        client.perform(json!([["status", 200]])).await;
        app.client().perform(json!([["get", "k"]])).await;
        let lines = monitor.so_far().await;
        let theirs: Vec<_> = lines.iter().filter(|line| !is_handshake_of_the_test(line)).collect();
        assert!(theirs.is_empty(), "{theirs:?}");
        let clients = text(&server.command("CLIENT LIST").await);
        // The monitor, and the connection of the test.
        assert_eq!(clients.lines().count(), 2, "{clients}");
    }

    /// Every command of the test has its own connection.
    fn is_handshake_of_the_test(line: &str) -> bool {
        ["\"HELLO\"", "\"CLIENT\"", "\"PING\""].iter().any(|name| line.contains(name))
    }

    /// Between the two queries of a lookup of a missing session.
    #[tokio::test]
    async fn a_session_created_during_its_lookup_has_not_expired() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let slow = layer(patient(config_of(&proxy.url()))).sessions();
        let old = layer(config(&server)).sessions();
        let token = old.create("ana").await.unwrap();
        let line = old.export().next().await.unwrap().unwrap();
        server.command("FLUSHALL").await;
        slow.health().await;

        proxy.hold_reply_to("GET");
        let looking = tokio::spawn({
            let (slow, id) = (slow.clone(), token.id());
            async move { (slow.ended(&id).await.unwrap(), slow.get(&id).await.unwrap().is_some()) }
        });
        proxy.holds().await;
        old.import(&line).await.unwrap();
        proxy.release();
        assert_eq!(looking.await.unwrap(), (None, true));
    }

    #[tokio::test]
    async fn a_malformed_token_costs_no_command() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        let client = app.client();
        let mut monitor = server.monitor().await;
        for value in ["", "short", &"a".repeat(55), &"a".repeat(57), &"%".repeat(56)] {
            client.set_cookie(COOKIE, value);
            assert_eq!(client.one(json!(["get", "k"])).await, json!(null));
        }
        assert!(commands(&mut monitor).await.is_empty());
        client.set_cookie(COOKIE, &"a".repeat(56));
        assert_eq!(client.one(json!(["get", "k"])).await, json!(null));
        assert_eq!(commands(&mut monitor).await, ["GET", "GET", "PTTL", "ZSCORE", "GET", "GET", "PTTL"]);
    }

    #[tokio::test]
    async fn a_read_extends_the_session_only_when_due() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.one(json!(["insert", "k", 1])).await;
        let key = only_key(&server).await;
        // Once before, so that Redis knows the script.
        server.command(&format!("PEXPIRE {key} 1000000")).await;
        client.one(json!(["get", "k"])).await;
        let mut monitor = server.monitor().await;
        // A tenth of half an hour is three minutes. After two:
        server.command(&format!("PEXPIRE {key} {}", (28 * MINUTE).as_millis())).await;
        commands(&mut monitor).await;
        client.one(json!(["get", "k"])).await;
        assert_eq!(commands(&mut monitor).await, ["GET", "GET", "PTTL"]);
        // After four:
        server.command(&format!("PEXPIRE {key} {}", (26 * MINUTE).as_millis())).await;
        commands(&mut monitor).await;
        client.one(json!(["get", "k"])).await;
        assert_eq!(commands(&mut monitor).await, ["GET", "GET", "PTTL", "EVALSHA"]);
        assert_ttl(&server, &key, 30 * MINUTE).await;
        commands(&mut monitor).await;
        client.one(json!(["get", "k"])).await;
        assert_eq!(commands(&mut monitor).await, ["GET", "GET", "PTTL"]);
        // Whatever else the request does.
        server.command(&format!("PEXPIRE {key} {}", (20 * MINUTE).as_millis())).await;
        client.one(json!(["insert", "k", 2])).await;
        assert_eq!(server.calls("pexpire").await, 7, "four by the test, three by look-ups");
        assert_ttl(&server, &key, 30 * MINUTE).await;
    }

    #[tokio::test]
    async fn many_writers_of_one_session_are_all_kept() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.one(json!(["insert", "k", 0])).await;
        let mut writers = JoinSet::new();
        for writer in 0..64 {
            let client = client.twin();
            writers.spawn(async move {
                for n in 0..5 {
                    client.one(json!(["insert", format!("{writer}.{n}"), n])).await;
                }
            });
        }
        writers.join_all().await;
        let keys: Vec<_> = (0..64).flat_map(|writer| (0..5).map(move |n| format!("{writer}.{n}"))).collect();
        let steps = keys.iter().map(|key| json!(["contains", key])).collect();
        assert!(client.perform(steps).await.iter().all(|found| *found == true));
    }

    #[tokio::test]
    async fn one_connection_serves_all_requests() {
        let server = RedisServer::start().await;
        let app = app(&server).await;
        let mut requests = JoinSet::new();
        for i in 0..20 {
            let client = app.client();
            requests.spawn(async move { client.one(json!(["insert", "k", i])).await });
        }
        requests.join_all().await;
        assert_eq!(server.sessions().await.len(), 20);
        let list = text(&server.command("CLIENT LIST").await);
        assert_eq!(list.lines().count(), 2, "{list}");
    }

    #[tokio::test]
    async fn unknown_scripts_are_sent_again() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.one(json!(["insert", "k", 0])).await;
        for (steps, key) in [(json!([["insert", "k", 1]]), 1), (json!([["rotate"], ["insert", "k", 2]]), 2)] {
            server.command("SCRIPT FLUSH").await;
            let mut monitor = server.monitor().await;
            client.perform(steps).await;
            assert_eq!(commands(&mut monitor).await, ["GET", "GET", "PTTL", "EVALSHA", "EVAL"]);
            assert_eq!(client.one(json!(["get", "k"])).await, key);
        }
        only_key(&server).await;
    }
}

mod instances {
    use super::*;

    /// Two instances of a service, and a client that uses both.
    async fn two(server: &RedisServer) -> (App, App, Client) {
        let (first, second) = (app(server).await, app(server).await);
        let client = first.client();
        client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        (first, second, client)
    }

    #[tokio::test]
    async fn share_sessions() {
        let server = RedisServer::start().await;
        let (_first, second, client) = two(&server).await;
        let there = client.at(&second.url());
        assert_eq!(there.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
        there.one(json!(["insert", "k", 2])).await;
        assert_eq!(client.one(json!(["get", "k"])).await, 2);
    }

    #[tokio::test]
    async fn a_logout_takes_effect_on_the_other_instance_at_the_next_request() {
        let server = RedisServer::start().await;
        let (_first, second, client) = two(&server).await;
        let there = client.at(&second.url());
        assert_eq!(there.one(json!(["user"])).await, "ana");
        client.twin().one(json!(["logout"])).await;
        assert_eq!(there.one(json!(["user"])).await, json!(null));
        assert_eq!(server.sessions().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_rotation_invalidates_the_old_token_on_the_other_instance() {
        let server = RedisServer::start().await;
        let (_first, second, client) = two(&server).await;
        let thief = client.at(&second.url());
        assert_eq!(thief.one(json!(["user"])).await, "ana");
        client.one(json!(["rotate"])).await;
        assert_eq!(thief.one(json!(["user"])).await, json!(null));
        assert_eq!(client.at(&second.url()).one(json!(["user"])).await, "ana");
    }

    #[tokio::test]
    async fn concurrent_writes_of_different_keys_on_both_instances_are_kept() {
        let server = RedisServer::start().await;
        let (first, second, client) = two(&server).await;
        let there = client.at(&second.url());
        let write = |key| json!([["get", "k"], ["gate", "both"], ["insert", key, key]]);
        let both_read = async {
            first.reached("both").await;
            second.reached("both").await;
            first.open("both");
            second.open("both");
        };
        tokio::join!(client.perform(write("a")), there.perform(write("b")), both_read);
        assert_eq!(client.perform(json!([["get", "a"], ["get", "b"]])).await, [json!("a"), json!("b")]);
    }

    #[tokio::test]
    async fn a_write_concurrent_with_a_logout_resurrects_nothing() {
        let server = RedisServer::start().await;
        for late in [json!(["insert", "k", 2]), json!(["rotate"]), json!(["clear"]), json!(["logout"])] {
            let (first, second, client) = two(&server).await;
            let there = client.at(&second.url());
            let slow = json!([["get", "k"], ["gate", "slow"], late]);
            let (reply, ()) = tokio::join!(client.post("/do", &slow), async {
                first.reached("slow").await;
                there.one(json!(["logout"])).await;
                first.open("slow");
            });
            assert_eq!(reply.status, StatusCode::OK, "{late}");
            // A logout removes the cookie in either order.
            let given: Vec<_> =
                reply.set_cookies().into_iter().filter(|cookie| !cookie.contains("Max-Age=0")).collect();
            assert_eq!(given, [""; 0], "{late}");
            if late[0] != "logout" {
                assert_eq!(reply.set_cookies(), [""; 0], "{late}");
            }
            assert_eq!(server.sessions().await, [""; 0], "{late}");
        }
    }

    #[tokio::test]
    async fn a_write_concurrent_with_a_rotation_is_kept_and_restores_no_token() {
        let server = RedisServer::start().await;
        let (first, second, client) = two(&server).await;
        let there = client.at(&second.url());
        let slow = json!([["get", "k"], ["gate", "slow"], ["insert", "k", 2]]);
        let (reply, ()) = tokio::join!(client.post("/do", &slow), async {
            first.reached("slow").await;
            there.one(json!(["rotate"])).await;
            first.open("slow");
        });
        assert_eq!((reply.status, reply.set_cookies()), (StatusCode::OK, vec![]));
        assert_eq!(client.one(json!(["user"])).await, json!(null));
        assert_eq!(there.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(2)]);
        only_key(&server).await;
    }

    #[tokio::test]
    async fn two_concurrent_rotations_leave_one_session() {
        let server = RedisServer::start().await;
        let (first, second, client) = two(&server).await;
        let there = client.at(&second.url());
        let rotate = json!([["get", "k"], ["gate", "both"], ["rotate"]]);
        let both_read = async {
            first.reached("both").await;
            second.reached("both").await;
            first.open("both");
            second.open("both");
        };
        let (one, other, ()) = tokio::join!(client.post("/do", &rotate), there.post("/do", &rotate), both_read);
        assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!((one.set_cookies().len(), other.set_cookies().len()), (1, 1));
        only_key(&server).await;
        assert_eq!(client.cookie(COOKIE), there.cookie(COOKIE));
        assert_eq!(client.one(json!(["user"])).await, "ana");
    }

    #[tokio::test]
    async fn sessions_outlive_the_service() {
        let server = RedisServer::start().await;
        let before = app(&server).await;
        let client = before.client();
        client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        drop(before);
        let after = app(&server).await;
        assert_eq!(client.at(&after.url()).perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    }
}

mod connecting {
    use super::*;

    /// The timers of our connections to this port according to Linux: the kind (2: keepalive), and the remaining time in hundredths of
    /// a second.
    #[cfg(target_os = "linux")]
    fn timers_of_connections_to(port: u16) -> Vec<(u8, u64)> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let peer = format!("0100007F:{port:04X}");
        let mut timers = Vec::new();
        for line in table.lines() {
            // Number, local address, remote address, state (1: established), queues, timer.
            if let [_, _, remote, "01", _, timer, ..] = *line.split_whitespace().collect::<Vec<_>>()
                && remote == peer
            {
                let (kind, left) = timer.split_once(':').unwrap();
                timers.push((kind.parse().unwrap(), u64::from_str_radix(left, 16).unwrap()));
            }
        }
        timers
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn connections_use_tcp_keepalive() {
        let server = RedisServer::start().await;
        let sessions = layer(config(&server)).sessions();
        sessions.create("ana").await.unwrap();
        // While data is in flight, another timer runs.
        eventually(
            "keepalive probes an idle connection every 15 seconds",
            async || matches!(timers_of_connections_to(server.port())[..], [(2, left)] if left <= 1500),
        )
        .await;
    }

    /// Whether `config` leads to a working Redis.
    async fn keeps_sessions(config: RedisConfig) -> bool {
        let app = App::start(layer(patient(config))).await;
        let client = app.client();
        let reply = client.post("/do", &json!([["insert", "k", 1]])).await;
        match reply.status {
            StatusCode::OK => {
                assert_eq!(client.one(json!(["get", "k"])).await, 1);
                true
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(reply.set_cookies(), [""; 0]);
                false
            }
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn with_a_password() {
        let server = RedisServer::start_with(&["--requirepass", "open-sesame"]).await;
        let at = format!("127.0.0.1:{}/", server.port());
        assert!(keeps_sessions(config_of(&format!("redis://:open-sesame@{at}"))).await);
        assert!(keeps_sessions(config_of(&format!("redis://default:open-sesame@{at}"))).await);
        assert!(!keeps_sessions(config_of(&format!("redis://:wrong@{at}"))).await);
        assert!(!keeps_sessions(config_of(&format!("redis://{at}"))).await);
    }

    /// A token of a cloud provider, for example.
    #[tokio::test]
    async fn with_a_password_that_changes() {
        let server = RedisServer::start().await;
        server.command("ACL SETUSER app on >of-monday ~* &* +@all").await;
        let password = Arc::new(Mutex::new("of-monday"));
        let current = password.clone();
        let config = config_of(&format!("redis://127.0.0.1:{}/", server.port())).credentials(move || {
            let password = *current.lock().unwrap();
            async move { Ok(RedisCredentials::user("app", password)) }
        });
        let sessions = layer(config.clone()).sessions();
        sessions.create("ana").await.unwrap();
        server.command("ACL SETUSER app resetpass >of-tuesday").await;
        *password.lock().unwrap() = "of-tuesday";
        // The connection is kept, and a new one has the new password.
        assert_eq!(sessions.list("ana").await.unwrap().len(), 1);
        server.command("CLIENT KILL TYPE normal SKIPME yes").await;
        eventually("it is connected again", async || sessions.list("ana").await.is_ok()).await;
        assert!(text(&server.command("CLIENT LIST").await).contains("user=app"));
        assert!(!format!("{config:?}").contains("of-tuesday"));
        // Without credentials there is no connection.
        let none = config.credentials(async || Err("the provider is down".into()));
        let error = layer(none).sessions().list("ana").await.unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        assert!(causes.last().unwrap().contains("the provider is down"), "{causes:?}");
    }

    /// Some proxies and older servers speak only RESP2.
    #[tokio::test]
    async fn without_the_command_hello() {
        let args = ["--requirepass", "open-sesame", "--rename-command", "HELLO", "HELLO-IS-DISABLED"];
        let server = RedisServer::start_with(&args).await;
        let config = config_of(&format!("redis://:open-sesame@127.0.0.1:{}/", server.port()));
        assert!(keeps_sessions(config.clone()).await);
        // Each kind of reply, and a connection that is lost.
        let layer = layer(config).limits(tower_keep::Limits::per_user(2, tower_keep::WhenFull::EvictOldest));
        let (app, sessions) = (App::start(layer.clone()).await, layer.sessions());
        let client = app.client();
        client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        for _ in 0..2 {
            sessions.create("ana").await.unwrap();
        }
        assert_eq!((sessions.list("ana").await.unwrap().len(), sessions.count().await.unwrap()), (2, 3));
        assert_eq!(client.one(json!(["ended"])).await, "evicted");
        server.command("CLIENT KILL TYPE normal SKIPME yes").await;
        eventually("it is connected again", async || sessions.list("ana").await.is_ok()).await;
        assert_eq!(sessions.revoke_user("ana").await.unwrap(), 2);
    }

    #[tokio::test]
    async fn with_a_password_of_special_characters() {
        let password = "p@ss:w/rd?#%41é+";
        let server = RedisServer::start_with(&["--requirepass", password]).await;
        let url = format!("redis://:p%40ss%3Aw%2Frd%3F%23%2541%C3%A9%2B@127.0.0.1:{}/", server.port());
        assert!(keeps_sessions(config_of(&url)).await);
        // A separate variable needs no percent-encoding.
        let port = server.port().to_string();
        let config = from_vars(&[("REDIS_PORT", &port), ("REDIS_PASSWORD", password)]).unwrap().unwrap();
        assert!(keeps_sessions(config).await);
    }

    /// A file of a secret often ends with a line break.
    #[tokio::test]
    async fn a_line_break_after_a_secret_is_removed() {
        let server = RedisServer::start_with(&["--requirepass", "hunter2"]).await;
        let port = server.port().to_string();
        for end in ["\n", "\r\n"] {
            let password = format!("hunter2{end}");
            let config = from_vars(&[("REDIS_PORT", &port), ("REDIS_PASSWORD", &password)]).unwrap().unwrap();
            assert!(keeps_sessions(config).await);
            let url = format!("redis://:hunter2@127.0.0.1:{port}{end}");
            assert!(keeps_sessions(from_vars(&[("REDIS_URL", &url)]).unwrap().unwrap()).await);
        }
    }

    #[tokio::test]
    async fn as_a_user_with_minimal_rights() {
        let server = RedisServer::start().await;
        let rights = "~sess:* resetchannels -@all +get +pttl +set +pexpire +unlink +time +eval +evalsha \
                      +zadd +zcount +zrange +zrem +zremrangebyscore +zscan +zscore";
        server.command(&format!("ACL SETUSER app on >app-password {rights}")).await;
        let port = server.port();
        let url = format!("redis://app:app-password@127.0.0.1:{port}/");
        assert!(keeps_sessions(config_of(&url)).await);
        let port = port.to_string();
        let vars = [("REDIS_PORT", &*port), ("REDIS_USERNAME", "app"), ("REDIS_PASSWORD", "app-password")];
        assert!(keeps_sessions(from_vars(&vars).unwrap().unwrap()).await);
        assert!(!keeps_sessions(config_of(&format!("redis://app:other@127.0.0.1:{port}/"))).await);

        let app = App::start(layer(config_of(&url)).lifetime(Lifetime::default().touch_every(Duration::ZERO))).await;
        let client = app.client();
        for step in [json!(["insert", "k", 1]), json!(["get", "k"]), json!(["rotate"]), json!(["login", "ana"])] {
            client.one(step).await;
        }
        server.command(&format!("PEXPIRE {} 60000", client_key(&client).await)).await;
        assert_eq!(client.one(json!(["user"])).await, "ana");
        assert_ttl(&server, &client_key(&client).await, 30 * MINUTE).await;
        client.one(json!(["logout"])).await;
        assert_eq!(client.one(json!(["user"])).await, json!(null));
        let health = layer(config_of(&url)).sessions().health().await;
        assert_eq!(health.status, HealthStatus::Up, "PING is not among its rights, and no matter: {health:?}");
    }

    #[tokio::test]
    async fn as_the_named_user_or_not_at_all() {
        let server = RedisServer::start().await;
        server.command("ACL SETUSER app on nopass ~* &* +@all").await;
        for url in ["redis://app:@127.0.0.1:", "redis://app@127.0.0.1:"] {
            let Ok(config) = RedisConfig::from_url(&format!("{url}{}/", server.port())) else { continue };
            let store = RedisStore::new(patient(config));
            if store.health().await.unwrap() == Health::Up {
                let clients = text(&server.command("CLIENT LIST").await);
                assert!(clients.contains("user=app"), "{url} logged another user in: {clients}");
            }
        }
    }

    async fn client_key(client: &Client) -> String {
        let id = client.one(json!(["id"])).await;
        let (tag, rest) = id.as_str().unwrap().split_at(12);
        format!("sess:{{{tag}}}:{rest}")
    }

    #[tokio::test]
    async fn to_a_database_by_its_number() {
        let server = RedisServer::start().await;
        assert!(keeps_sessions(config_of(&format!("{}2", server.url()))).await);
        let port = server.port().to_string();
        let config = from_vars(&[("REDIS_PORT", &port), ("REDIS_DB", "3")]).unwrap().unwrap();
        assert!(keeps_sessions(config).await);
        let keyspace = text(&server.command("INFO keyspace").await);
        let databases: Vec<_> = keyspace.lines().filter_map(|line| line.split_once(":keys=")).collect();
        assert_eq!(databases.iter().map(|(db, _)| *db).collect::<Vec<_>>(), ["db2", "db3"]);
        assert!(!keeps_sessions(config_of(&format!("{}99", server.url()))).await, "there are sixteen");
    }

    #[tokio::test]
    async fn by_a_unix_socket() {
        let server = RedisServer::start_with(&["--unixsocket", "redis.sock"]).await;
        let socket = server.dir().join("redis.sock");
        let socket = socket.to_str().unwrap();
        assert!(keeps_sessions(config_of(&format!("redis+unix://{socket}"))).await);
        assert!(keeps_sessions(config_of(&format!("unix://{socket}?db=2"))).await);
        assert!(text(&server.command("INFO keyspace").await).contains("db2:keys=1"));
    }

    #[tokio::test]
    async fn by_host_and_port() {
        let server = RedisServer::start().await;
        let port = server.port().to_string();
        let vars = [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &*port)];
        assert!(keeps_sessions(from_vars(&vars).unwrap().unwrap()).await);
    }

    #[tokio::test]
    async fn by_a_url_which_takes_precedence_over_parts() {
        let server = RedisServer::start().await;
        let url = server.url();
        let vars = [
            ("REDIS_URL", &*url),
            ("REDIS_HOST", "192.0.2.1"),
            ("REDIS_PORT", "nonsense"),
            ("REDIS_DB", "7"),
            ("REDIS_PASSWORD", "other"),
            ("REDIS_USERNAME", "somebody"),
        ];
        assert!(keeps_sessions(from_vars(&vars).unwrap().unwrap()).await);
        assert!(text(&server.command("INFO keyspace").await).contains("db0:keys=1"));
    }
}

fn from_vars(vars: &[(&str, &str)]) -> Result<Option<RedisConfig>, InvalidRedisConfig> {
    RedisConfig::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
}

mod variables {
    use super::*;

    #[test]
    fn without_variables_redis_is_not_used() {
        assert!(from_vars(&[]).unwrap().is_none());
        let names = ["REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_PASSWORD"];
        let empty: Vec<_> =
            names.iter().chain(&["USE_REDIS", "REDIS_TLS", "REDIS_SENTINELS"]).map(|name| (*name, "")).collect();
        assert!(from_vars(&empty).unwrap().is_none(), "an empty variable counts as absent");
    }

    #[test]
    fn each_part_alone_enables_redis_with_defaults_for_the_others() {
        let cases = [
            (("REDIS_HOST", "redis.example"), "\"redis.example:6379\"", "database: 0"),
            (("REDIS_PORT", "7000"), "\"127.0.0.1:7000\"", "database: 0"),
            (("REDIS_DB", "5"), "\"127.0.0.1:6379\"", "database: 5"),
            (("REDIS_PASSWORD", "x"), "\"127.0.0.1:6379\"", "database: 0"),
            (("USE_REDIS", "true"), "\"127.0.0.1:6379\"", "database: 0"),
            (("REDIS_ENABLED", "1"), "\"127.0.0.1:6379\"", "database: 0"),
            (("REDIS_URL", "redis://redis.example"), "\"redis.example:6379\"", "database: 0"),
            (("REDIS_URL", "redis://redis.example:7000/4"), "\"redis.example:7000\"", "database: 4"),
        ];
        for (var, address, database) in cases {
            let shown = format!("{:?}", from_vars(&[var]).unwrap().unwrap());
            assert!(shown.contains(address) && shown.contains(database), "{var:?}: {shown}");
        }
    }

    #[test]
    fn no_part_of_a_url_is_ignored() {
        for (url, address, database) in [
            ("redis://redis.example?db=3", "redis.example:6379", 3),
            ("redis://redis.example:7000/?db=3", "redis.example:7000", 3),
            ("valkey://redis.example/2", "redis.example:6379", 2),
            ("REDIS://redis.example", "redis.example:6379", 0),
            ("Valkey://redis.example/", "redis.example:6379", 0),
            ("redis+unix:///run/redis.sock?db=4", "/run/redis.sock", 4),
            ("unix:///run/redis.sock?db=5&user=app&pass=secret", "/run/redis.sock", 5),
        ] {
            let shown = format!("{:?}", RedisConfig::from_url(url).unwrap());
            let expected = format!("server: \"{address}\", database: {database}, tls: false");
            assert!(shown.contains(&expected), "{url}: {shown}");
        }
        for url in ["valkeys://redis.example", "RedisS://redis.example"] {
            assert!(format!("{:?}", RedisConfig::from_url(url).unwrap()).contains("tls: true"), "{url}");
        }
        let encoding = "must be percent-encoded";
        for (url, problem) in [
            ("redis://redis.example?db=three", "not the number of a database"),
            ("redis://redis.example?db=-1", "not a Redis URL"),
            ("redis://redis.example/2?db=3", "not a Redis URL"),
            ("redis://redis.example?db=3&db=4", "means nothing here"),
            ("redis://redis.example?protocol=resp2", "means nothing here"),
            ("redis://redis.example?timeout=5", "means nothing here"),
            ("redis+unix:///run/redis.sock?foo=bar", "means nothing here"),
            ("redis://redis.example:0", "not a port number"),
            ("rediss://redis.example/#insecure", encoding),
            ("redis://:hunter#2@redis.example", encoding),
            ("redis://:hunter/2@redis.example", encoding),
            ("redis://:hunter?2@redis.example", encoding),
        ] {
            let error = RedisConfig::from_url(url).unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains("hunter"), "{url}: {error}");
        }
    }

    #[test]
    fn the_address_that_kubernetes_sets_is_understood() {
        let service = ("REDIS_PORT", "tcp://10.0.0.7:6380");
        for (vars, address) in [
            (&[service][..], "10.0.0.7:6380"),
            (&[service, ("REDIS_HOST", "redis.example")], "redis.example:6380"),
            (&[service, ("REDIS_URL", "redis://other.example")], "other.example:6379"),
        ] {
            let shown = format!("{:?}", from_vars(vars).unwrap().unwrap());
            assert!(shown.contains(&format!("\"{address}\"")), "{vars:?}: {shown}");
        }
        let error = from_vars(&[("REDIS_PORT", "tcp://10.0.0.7")]).unwrap_err();
        assert_eq!(error.to_string(), "REDIS_PORT: not a port number");
    }

    #[test]
    fn a_switch_disables_redis_whatever_else_is_set() {
        for switch in ["USE_REDIS", "REDIS_ENABLED"] {
            for off in ["false", "0", "no", "off", "FALSE"] {
                let vars = [(switch, off), ("REDIS_URL", "redis://redis.example"), ("REDIS_SENTINELS", "a:1")];
                assert!(from_vars(&vars).unwrap().is_none(), "{switch}={off}");
            }
        }
        assert!(from_vars(&[("USE_REDIS", "true"), ("REDIS_ENABLED", "false")]).unwrap().is_none());
        assert!(from_vars(&[("USE_REDIS", "false"), ("REDIS_ENABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn an_invalid_variable_is_named_without_its_value() {
        let password = ("REDIS_PASSWORD", "hunter2");
        let cases: [(&str, &str); 35] = [
            ("REDIS_URL", "http://:hunter2@redis.example"),
            ("REDIS_URL", "redis.example:6379"),
            ("REDIS_URL", "redis://:hunter2@redis.example:nonsense"),
            ("REDIS_URL", "redis://:hunter2@redis.example:70000"),
            ("REDIS_URL", "redis://:hunter2@redis.example/nonsense"),
            ("REDIS_URL", "redis://:hunter2@redis.example/-1"),
            ("REDIS_URL", "redis://:hunter2/@redis.example"),
            ("REDIS_URL", "redis://"),
            ("REDIS_URL", " redis://:hunter2@redis.example"),
            ("REDIS_URL", "rediss://:hunter2@redis.example/#insecure"),
            ("REDIS_HOST", "redis://redis.example"),
            ("REDIS_HOST", "redis example"),
            ("REDIS_HOST", "user:hunter2@redis.example"),
            ("REDIS_PORT", "seventy"),
            ("REDIS_PORT", "0"),
            ("REDIS_PORT", "-1"),
            ("REDIS_PORT", "65536"),
            ("REDIS_PORT", "6379 "),
            ("REDIS_DB", "-1"),
            ("REDIS_DB", "x"),
            ("REDIS_DB", "1.5"),
            ("REDIS_TLS", "perhaps"),
            ("REDIS_CA_CERT", "/etc/ca.pem"),
            ("REDIS_CLIENT_CERT", "/etc/cert.pem"),
            ("REDIS_CLIENT_KEY", "/etc/key.pem"),
            ("REDIS_CLUSTER_NODES", "one:7000,two"),
            ("REDIS_CLUSTER_NODES", "one:7000,,two:7000"),
            ("REDIS_CLUSTER_NODES", "hunter2@one:7000"),
            ("REDIS_SENTINELS", "one:26379"),
            ("REDIS_SENTINEL_MASTER", "mymaster"),
            ("REDIS_SENTINEL_USERNAME", "hunter2"),
            ("REDIS_SENTINEL_PASSWORD", "hunter2"),
            ("USE_REDIS", "maybe"),
            ("REDIS_ENABLED", "hunter2"),
            ("REDIS_URL", "\u{fffd}"),
        ];
        for (name, value) in cases {
            let error = from_vars(&[(name, value), password]).expect_err(&format!("{name}={value}"));
            assert_eq!(error.variable(), Some(name), "{value}");
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().starts_with(&format!("{name}: ")), "{error}");
            assert!(!shown.contains("hunter2") && !shown.contains(&format!(" {}", value.trim())), "{shown}");
        }
        let error = from_vars(&[("REDIS_USERNAME", "app")]).unwrap_err();
        assert_eq!(error.variable(), Some("REDIS_USERNAME"), "a user name without a password");
    }

    #[test]
    fn explicit_defaults_are_valid() {
        for (name, value) in [("REDIS_TLS", "false"), ("REDIS_TLS", "0"), ("REDIS_DB", "0"), ("USE_REDIS", "yes")] {
            let config = from_vars(&[(name, value), ("REDIS_HOST", "redis.example")]).unwrap();
            assert!(config.is_some(), "{name}={value}");
        }
    }

    #[test]
    fn debug_shows_no_login() {
        let url = "redis://somebody:hunter2@redis.example:7000/2";
        let parts = [("REDIS_HOST", "redis.example"), ("REDIS_USERNAME", "somebody"), ("REDIS_PASSWORD", "hunter2")];
        let socket = "redis+unix:///redis.example?user=somebody&pass=hunter2";
        for config in
            [RedisConfig::from_url(url), RedisConfig::from_url(socket), Ok(from_vars(&parts).unwrap().unwrap())]
        {
            let config = config.unwrap();
            let store = RedisStore::new(config.clone());
            let layer = SessionLayer::new(store.clone()).bearer(Bearer::new());
            let shown = format!("{config:?} {store:?} {layer:?} {:?} {config:#?} {store:#?}", layer.sessions());
            assert!(shown.contains("redis.example"), "{shown}");
            assert!(!shown.contains("hunter2") && !shown.contains("somebody"), "{shown}");
        }
    }

    #[test]
    fn a_prefix_that_would_break_the_keys_is_refused() {
        for prefix in ["a{b", "a}b", "a b", "a\nb", "a\0b", &"a".repeat(129)] {
            let config = RedisConfig::from_url("redis://redis.example").unwrap();
            assert!(config.prefix(prefix).is_err(), "{prefix:?}");
        }
        for prefix in ["", "sess:", "größe/", &"a".repeat(128)] {
            let config = RedisConfig::from_url("redis://redis.example").unwrap();
            assert!(config.prefix(prefix).is_ok(), "{prefix:?}");
        }
    }
}

mod foreign_hands {
    use super::*;

    async fn assert_untouchable(server: &RedisServer, client: &Client, key: &str) {
        let before = server.command(&format!("DUMP {key}")).await;
        for steps in [
            json!([["get", "k"]]),
            json!([["insert", "k", 2]]),
            json!([["rotate"]]),
            json!([["login", "ben"]]),
            json!([["logout"]]),
        ] {
            let reply = client.post("/do", &steps).await;
            assert_unavailable(&reply);
        }
        assert_eq!(server.command(&format!("DUMP {key}")).await, before);
        let sessions = server.sessions().await;
        assert!(sessions.iter().all(|session| session == key), "{sessions:?}");
    }

    fn assert_unavailable(reply: &Reply) {
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
        assert_eq!(reply.header("retry-after"), Some("5"));
        assert_eq!(reply.set_cookies(), [""; 0]);
    }

    #[tokio::test]
    async fn a_foreign_value_under_a_session_key_is_an_outage_and_unchanged() {
        let log = Log::capture();
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        let key = only_key(&server).await;
        let id: String = key.strip_prefix("sess:").unwrap().chars().filter(|c| !"{}:".contains(*c)).collect();
        let record = server.get(&key).await;
        let of_tomorrow = record.replacen("{\"v\":2,", "{\"v\":9,", 1);
        let more_than_known = record.replacen(",\"data\"", ",\"novelty\":\"top-secret\",\"data\"", 1);
        assert_ne!(more_than_known, record);
        let contents = [
            format!("LPUSH {key} top-secret"),
            format!("HSET {key} top secret"),
            format!("SET {key} top-secret"),
            format!("SET {key} {}", &record[..record.len() - 1]),
            format!("SET {key} {of_tomorrow}"),
            format!("SET {key} {more_than_known}"),
            format!("SET {key} {{}}"),
            format!("SET {key} null"),
            format!("SETRANGE {key} 3 \u{0}"),
        ];
        for content in contents {
            server.command(&format!("DEL {key}")).await;
            server.command(&content).await;
            let logged = log.text().len();
            assert_untouchable(&server, &client, &key).await;
            let logged = log.text().split_off(logged);
            assert!(logged.contains("WARN") && logged.contains(&id), "{content}: {logged}");
            assert!(!logged.contains("top-secret"), "{logged}");
        }
        // With the record restored, the session is live again.
        server.command(&format!("DEL {key}")).await;
        server.command(&format!("SET {key} {record} PX 60000")).await;
        assert_eq!(client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(1)]);
    }

    #[tokio::test]
    async fn a_write_to_a_deleted_session_is_refused() {
        let server = RedisServer::start().await;
        for late in [json!(["insert", "k", 2]), json!(["rotate"]), json!(["login", "ben"])] {
            server.command("FLUSHALL").await;
            let app = app(&server).await;
            let client = app.client();
            client.perform(json!([["insert", "k", 1]])).await;
            let key = only_key(&server).await;
            for content in [format!("LPUSH {key} x"), format!("SET {key} x")] {
                let record = server.get(&key).await;
                let steps = json!([["get", "k"], ["gate", "read"], late]);
                let (reply, ()) = tokio::join!(client.post("/do", &steps), async {
                    app.reached("read").await;
                    server.command(&format!("DEL {key}")).await;
                    server.command(&content).await;
                    app.open("read");
                });
                assert_unavailable(&reply);
                let there = server.keys().await;
                assert!(there.contains(&key), "{there:?}");
                assert_eq!(client.post("/do", &json!([["user"]])).await.status, StatusCode::SERVICE_UNAVAILABLE);
                server.command(&format!("DEL {key}")).await;
                server.command(&format!("SET {key} {record} PX 60000")).await;
            }
        }
    }

    #[tokio::test]
    async fn a_session_without_ttl_still_expires_when_idle() {
        let server = RedisServer::start().await;
        let clock = ManualClock::new();
        let app = App::start(layer(config(&server)).clock(clock.clone())).await;
        let client = app.client();
        client.one(json!(["login", "ana"])).await;
        let key = only_key(&server).await;
        server.command(&format!("PERSIST {key}")).await;
        assert_eq!(client.one(json!(["user"])).await, "ana");
        clock.advance(30 * MINUTE);
        assert_eq!(client.one(json!(["user"])).await, json!(null));
        let reply = client.post("/do", &json!([["insert", "k", 1]])).await;
        assert_eq!(reply.set_cookies().len(), 1, "what is inserted goes into a new session");
    }

    #[tokio::test]
    async fn a_session_without_ttl_gets_one_when_used() {
        let server = RedisServer::start().await;
        let clock = ManualClock::new();
        let app = App::start(layer(config(&server)).clock(clock.clone())).await;
        let client = app.client();
        client.one(json!(["login", "ana"])).await;
        let key = only_key(&server).await;
        server.command(&format!("PERSIST {key}")).await;
        clock.advance(10 * MINUTE);
        assert_eq!(client.one(json!(["user"])).await, "ana");
        assert_ttl(&server, &key, 30 * MINUTE).await;

        server.command(&format!("PERSIST {key}")).await;
        client.one(json!(["insert", "k", 1])).await;
        assert_ttl(&server, &key, 30 * MINUTE).await;
    }

    #[tokio::test]
    async fn a_changed_ttl_does_not_move_the_absolute_timeout() {
        let server = RedisServer::start().await;
        for meddle in ["PERSIST {}", "PEXPIRE {} 864000000"] {
            let clock = ManualClock::new();
            let app = App::start(layer(config(&server)).clock(clock.clone())).await;
            let client = app.client();
            client.one(json!(["login", "ana"])).await;
            let key = only_key(&server).await;
            // Used every 20 minutes for 23 hours and 40 minutes.
            for i in 1..72 {
                server.command(&meddle.replace("{}", &key)).await;
                clock.advance(20 * MINUTE);
                assert_eq!(client.perform(json!([["insert", "i", i], ["user"]])).await[1], "ana", "{meddle}");
            }
            server.command(&meddle.replace("{}", &key)).await;
            clock.advance(20 * MINUTE);
            assert_eq!(client.one(json!(["user"])).await, json!(null), "{meddle}: the 24 hours are over");
            server.command("FLUSHALL").await;
        }
    }

    #[tokio::test]
    async fn a_session_deleted_by_an_operator_is_gone_at_the_next_request() {
        let server = RedisServer::start().await;
        let (_app, client) = service(&server).await;
        client.one(json!(["login", "ana"])).await;
        server.command(&format!("DEL {}", only_key(&server).await)).await;
        assert_eq!(client.one(json!(["user"])).await, json!(null));
    }
}

mod a_user_with_many_sessions {
    use tower_keep::{
        EndReason, Limits,
        store::{Found, UserStore},
    };

    use super::*;
    use crate::support::records::{entry_of, id_of};

    async fn with_sessions(store: &RedisStore, count: u64) {
        let mut creations = JoinSet::new();
        for n in 0..count {
            let store = store.clone();
            creations.spawn(async move { store.create(&id_of("ana", n), entry_of("ana", 1), Limits::none()).await });
        }
        for created in creations.join_all().await {
            created.unwrap();
        }
    }

    /// Redis serves nobody else during a call.
    #[tokio::test]
    async fn is_listed_and_logged_out_in_calls_of_at_most_128_sessions() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(config(&server));
        with_sessions(&store, 1500).await;
        let before = server.calls("evalsha").await;
        let listed = store.list("ana").await.unwrap();
        let (calls, spared) = (server.calls("evalsha").await - before, id_of("ana", 700));
        assert_eq!(listed.len(), 1500);
        assert!(calls >= 1500 / 128, "{calls} calls");
        let ended = store.end_user("ana", Some(&spared), EndReason::Revoked).await.unwrap();
        let distinct: std::collections::BTreeSet<_> = ended.iter().collect();
        assert_eq!((ended.len(), distinct.len()), (1499, 1499));
        assert!(server.calls("evalsha").await - before - calls >= 1500 / 128);
        assert_eq!(store.list("ana").await.unwrap().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [spared]);
    }

    /// All sessions end with the first call. The process may stop before the last one.
    #[tokio::test]
    async fn is_logged_out_at_once_and_the_next_logout_continues_one_that_was_cut_off() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(config(&server));
        with_sessions(&store, 300).await;
        let index = format!("sess:{{{}}}", tower_keep::SessionId::slot_tag_of("ana"));
        server.command(&format!("SET {index}:epoch {}", u64::MAX / 4096)).await;
        assert!(store.list("ana").await.unwrap().is_empty());
        let Found::Ended(ended) = store.load(&id_of("ana", 7)).await.unwrap() else { panic!("it is live") };
        assert_eq!(ended.reason, EndReason::Revoked);
        assert_eq!(store.end_user("ana", None, EndReason::Revoked).await.unwrap().len(), 300);
        assert_eq!(server.command(&format!("ZCARD {index}")).await, redis::Value::Int(0));
    }
}

#[tokio::test]
async fn a_bearer_session_is_stored_like_any_other() {
    let server = RedisServer::start().await;
    let app = App::start(layer(config(&server)).without_cookie().bearer(Bearer::new())).await;
    let client = app.client();
    let token = client.perform(json!([["login", "ana"], ["save"], ["token"]])).await.remove(2);
    assert_eq!(client.one(json!(["user"])).await, json!(null), "no cookie was set");
    let authorization = format!("Bearer {}", token.as_str().unwrap());
    let headers = [("authorization", &*authorization), ("content-type", "application/json")];
    let reply = client.request(Method::POST, "/do", &headers, Bytes::from_static(b"[[\"user\"]]")).await;
    assert_eq!(reply.json(), json!(["ana"]));
    assert_ttl(&server, &only_key(&server).await, 30 * MINUTE).await;
}
