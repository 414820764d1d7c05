//! Values in memory, in every kind of Redis deployment, and during an outage.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::support::spy::Spy;
use crate::support::{
    cluster::Cluster, eventually, proxy::Proxy, records::id, redis_server::RedisServer, stores::patient,
};
use bb8::Pool;
use bb8_redis::RedisConnectionManager;
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::task::{JoinHandle, JoinSet};
use tower_keep::{
    KeyValue, KeyValueError, ManualClock, MemoryStore, SessionLayer,
    store::{
        Cursor, Fallback, FallbackMode, Guard, MigratingStore, OnRecovery, SessionStore, StoreError, ValueStats,
        redis::{RedisConfig, RedisStore},
    },
};

const REJECT: FallbackMode = FallbackMode::Reject;
const STALE: FallbackMode = FallbackMode::ReadStale { max_age: Duration::from_secs(300) };
const DROP: FallbackMode = FallbackMode::Memory { on_recovery: OnRecovery::Drop };
const MERGE: FallbackMode = FallbackMode::Memory { on_recovery: OnRecovery::Merge };

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn config(url: &str) -> RedisConfig {
    patient(RedisConfig::from_url(url).unwrap())
}

fn redis(server: &RedisServer) -> RedisStore {
    RedisStore::new(config(&server.url()))
}

fn values(store: impl SessionStore + 'static) -> KeyValue {
    KeyValue::new(store).unwrap()
}

async fn text(values: &KeyValue, key: &str) -> Option<String> {
    values.get(key).await.unwrap().map(|value| String::from_utf8(value).unwrap())
}

/// All matching keys, in pages of about `count`.
async fn keys_by(values: &KeyValue, pattern: &str, count: usize) -> Vec<String> {
    let (mut keys, mut place) = (Vec::new(), Some(Cursor::start()));
    while let Some(from) = place {
        let page = values.scan(pattern, &from, count).await.unwrap();
        keys.extend(page.keys);
        place = page.next;
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

async fn keys(values: &KeyValue, pattern: &str) -> Vec<String> {
    keys_by(values, pattern, 100).await
}

#[track_caller]
fn assert_outage<T: std::fmt::Debug>(answer: Result<T, KeyValueError>) {
    assert!(matches!(answer, Err(KeyValueError::Store(StoreError::Outage(_)))), "{answer:?}");
}

/// Each operation, starting without values.
async fn each_operation(values: &KeyValue) {
    assert_eq!(values.get("a").await.unwrap(), None);
    assert!(!values.exists("a").await.unwrap() && !values.del("a").await.unwrap());
    assert!(!values.expire("a", MINUTE).await.unwrap());

    let bytes: Vec<u8> = (0..=255).collect();
    values.set("a", &bytes, None).await.unwrap();
    assert_eq!(values.get("a").await.unwrap().unwrap(), bytes);
    values.set("a", "", MINUTE).await.unwrap();
    assert_eq!(values.get("a").await.unwrap().unwrap(), b"");
    assert!(values.exists("a").await.unwrap());
    values.set("", "of no name", None).await.unwrap();
    values.set("ü {b} *", "of any name", None).await.unwrap();
    let found = values.mget(&["ü {b} *", "missing", "", "a", ""]).await.unwrap();
    let expected = [Some("of any name"), None, Some("of no name"), Some(""), Some("of no name")];
    assert_eq!(found, expected.map(|value| value.map(|text| text.as_bytes().to_vec())));
    assert_eq!(values.mget(&[""; 0]).await.unwrap(), [None; 0]);

    // Time to live: zero, long, and longer than possible.
    values.set("soon", "over", Duration::ZERO).await.unwrap();
    let over = async || !values.exists("soon").await.unwrap() && text(values, "soon").await.is_none();
    eventually("its time is over", over).await;
    assert!(values.expire("", Duration::ZERO).await.unwrap());
    eventually("its time is over", async || !values.exists("").await.unwrap()).await;
    values.set("long", "1", Duration::MAX).await.unwrap();
    assert!(values.expire("long", Duration::MAX).await.unwrap() && values.exists("long").await.unwrap());

    assert_eq!(values.incr("n").await.unwrap(), 1);
    assert_eq!(values.incr_by("n", 41).await.unwrap(), 42);
    assert_eq!(values.incr_by("n", -50).await.unwrap(), -8);
    assert_eq!(text(values, "n").await.unwrap(), "-8");
    values.set("n", i64::MAX.to_string(), MINUTE).await.unwrap();
    assert!(matches!(values.incr("n").await, Err(KeyValueError::Overflow)));
    assert_eq!(values.incr_by("n", i64::MIN).await.unwrap(), -1);
    for no_number in ["", "x", " 1", "+1", "01", "-0", "1.0", "9223372036854775808"] {
        values.set("a", no_number, None).await.unwrap();
        let answer = values.incr("a").await;
        assert!(matches!(answer, Err(KeyValueError::NotANumber)), "{no_number}: {answer:?}");
        assert_eq!(text(values, "a").await.unwrap(), no_number, "nothing was added");
    }

    assert_eq!(keys(values, "*").await, ["a", "long", "n", "ü {b} *"]);
    assert_eq!(keys(values, "[a-n]").await, ["a", "n"]);
    assert_eq!(keys(values, r"ü*\*").await, ["ü {b} *"]);
    assert_eq!(keys(values, "sess:*").await, [""; 0]);
    for i in 0..50 {
        values.set(&format!("many:{i:02}"), "", None).await.unwrap();
    }
    let many: Vec<_> = (0..50).map(|i| format!("many:{i:02}")).collect();
    for count in [0, 1, 7, usize::MAX] {
        assert_eq!(keys_by(values, "many:*", count).await, many, "{count}");
    }
    for key in keys(values, "*").await {
        assert!(values.del(&key).await.unwrap(), "{key}");
    }
    assert_eq!(keys(values, "*").await, [""; 0]);
}

mod each_operation {
    use super::*;

    #[tokio::test]
    async fn in_memory() {
        each_operation(&values(MemoryStore::new())).await;
    }

    #[tokio::test]
    async fn in_redis() {
        let server = RedisServer::start().await;
        each_operation(&values(redis(&server))).await;
    }

    #[tokio::test]
    async fn in_a_cluster() {
        let cluster = Cluster::start().await;
        let nodes = cluster.nodes.iter().map(RedisServer::address);
        let values = values(RedisStore::new(patient(RedisConfig::cluster(nodes).unwrap())));
        each_operation(&values).await;
        // Every master has some, and is queried once.
        let keys: Vec<_> = (0..300).map(|i| format!("k{i}")).collect();
        for key in &keys {
            values.set(key, key, None).await.unwrap();
        }
        let mut before = Vec::new();
        for node in &cluster.nodes[..3] {
            assert!(node.keys().await.len() > 50);
            before.push(node.calls("get").await);
        }
        let found = values.mget(&keys).await.unwrap();
        assert!(found.iter().zip(&keys).all(|(value, key)| value.as_deref() == Some(key.as_bytes())));
        let mut asked = 0;
        for (node, before) in cluster.nodes[..3].iter().zip(before) {
            asked += node.calls("get").await - before;
        }
        assert_eq!(asked, 300, "nobody was asked for what is elsewhere");
        assert_eq!(super::keys(&values, "k*").await.len(), 300);
    }

    #[tokio::test]
    async fn on_a_pool() {
        let server = RedisServer::start().await;
        let manager = RedisConnectionManager::new(server.url()).unwrap();
        let pool = Pool::builder().max_size(1).build_unchecked(manager);
        each_operation(&values(RedisStore::new(patient(RedisConfig::from_pool(pool))))).await;
    }

    #[tokio::test]
    async fn through_wrappers() {
        for mode in [REJECT, STALE, DROP, MERGE] {
            each_operation(&values(Fallback::new(MemoryStore::new(), mode))).await;
        }
        each_operation(&values(Guard::new(MemoryStore::new()))).await;
        each_operation(&values(Arc::new(MemoryStore::new()))).await;
        each_operation(&values(MigratingStore::new(Spy::new(), MemoryStore::new()))).await;
        each_operation(&SessionLayer::new(MemoryStore::new()).sessions().key_value().unwrap()).await;
    }

    /// The same in an outage.
    #[tokio::test]
    async fn while_redis_is_down() {
        for mode in [DROP, MERGE] {
            let server = RedisServer::stopped();
            let store = Arc::new(Fallback::new(redis(&server), mode));
            each_operation(&values(store.clone())).await;
            assert!(store.stats().using_fallback);
        }
    }
}

#[tokio::test]
async fn a_store_without_values_is_unsupported() {
    for answer in [KeyValue::new(Spy::new()), SessionLayer::new(Spy::new()).sessions().key_value()] {
        assert!(matches!(answer, Err(KeyValueError::Unsupported)));
    }
    for unsupported in [KeyValue::new(Fallback::new(Spy::new(), MERGE)), KeyValue::new(Guard::new(Spy::new()))] {
        assert!(matches!(unsupported, Err(KeyValueError::Unsupported)));
    }
}

/// No key, pattern or operation reaches a session, and no value is taken for a session.
#[tokio::test]
async fn no_key_reaches_a_session() {
    let server = RedisServer::start().await;
    let layer = SessionLayer::new(RedisStore::new(config(&server.url()).max_sessions(10).share_events(10)));
    let sessions = layer.sessions();
    let values = sessions.key_value().unwrap();
    let token = sessions.create("ana").await.unwrap();
    let of_sessions = server.keys().await;
    let mut tried = of_sessions.clone();
    tried.extend(of_sessions.iter().map(|key| key.replacen("sess:", "", 1)));
    for key in &tried {
        assert!(!values.exists(key).await.unwrap(), "{key}");
        values.set(key, "mine", None).await.unwrap();
        assert!(values.expire(key, MINUTE).await.unwrap());
    }
    assert_eq!(keys(&values, "*").await.len(), tried.len(), "and nothing else");
    assert_eq!(sessions.count().await.unwrap(), 1);
    for key in &tried {
        assert!(values.del(key).await.unwrap());
    }
    assert!(sessions.is_valid(&token).await.unwrap());
    let mut left = server.keys().await;
    left.retain(|key| !of_sessions.contains(key));
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn values_and_ttls_are_stored_in_redis() {
    let server = RedisServer::start().await;
    let values = values(RedisStore::new(config(&server.url()).prefix("shop:").unwrap()));
    values.set("a", "hello", MINUTE).await.unwrap();
    values.set("b", "hello", None).await.unwrap();
    assert_eq!(server.get("shop:kv:a").await, "hello");
    assert!((1..=60_000).contains(&server.pttl("shop:kv:a").await));
    assert_eq!(server.pttl("shop:kv:b").await, -1);
    values.expire("b", MINUTE).await.unwrap();
    assert!((1..=60_000).contains(&server.pttl("shop:kv:b").await));
    values.set("b", "1", MINUTE).await.unwrap();
    values.incr("b").await.unwrap();
    assert!((1..=60_000).contains(&server.pttl("shop:kv:b").await), "its time stays");
    values.set("b", "for ever", None).await.unwrap();
    assert_eq!(server.pttl("shop:kv:b").await, -1);

    // A value written by another program.
    server.command("LPUSH shop:kv:list 1").await;
    let answer = values.get("list").await;
    assert!(matches!(answer, Err(KeyValueError::Store(StoreError::Corrupt(_)))), "{answer:?}");
    assert!(matches!(values.incr("list").await, Err(KeyValueError::Store(StoreError::Corrupt(_)))));
    values.set("list", "a value", None).await.unwrap();
    assert_eq!(text(&values, "list").await.unwrap(), "a value");
}

#[tokio::test]
async fn each_operation_is_one_round_trip_without_the_command_keys() {
    let server = RedisServer::start().await;
    let values = values(redis(&server));
    values.get("a").await.unwrap();
    let mut monitor = server.monitor().await;
    values.set("a", "1", None).await.unwrap();
    values.get("a").await.unwrap();
    values.mget(&["a", "b"]).await.unwrap();
    values.exists("a").await.unwrap();
    values.expire("a", MINUTE).await.unwrap();
    values.incr("a").await.unwrap();
    values.scan("*", &Cursor::start(), 10).await.unwrap();
    values.del("a").await.unwrap();
    let seen = monitor.so_far().await;
    let seen: Vec<_> = seen
        .iter()
        // Newer servers also show the handshake of the test's own connection.
        .filter(|line| !line.contains("\"PING\"") && !line.contains("\"CLIENT\""))
        .map(|line| line.split('"').nth(1).unwrap().to_uppercase())
        .collect();
    assert_eq!(seen, ["SET", "GET", "GET", "GET", "EXISTS", "PEXPIRE", "INCRBY", "SCAN", "UNLINK"]);
}

mod memory {
    use super::*;

    #[tokio::test]
    async fn values_expire_by_the_clock_of_the_store() {
        let clock = ManualClock::new();
        let store = MemoryStore::new().clock(clock.clone());
        let values = values(store.clone());
        values.set("a", "1", SECOND).await.unwrap();
        values.set("b", "1", 2 * SECOND).await.unwrap();
        values.set("c", "1", None).await.unwrap();
        values.incr("a").await.unwrap();
        clock.advance(SECOND - Duration::from_millis(1));
        assert_eq!(text(&values, "a").await.unwrap(), "2", "its time stays");
        clock.advance(Duration::from_millis(1));
        assert_eq!(values.get("a").await.unwrap(), None);
        assert!(!values.exists("a").await.unwrap() && !values.expire("a", SECOND).await.unwrap());
        assert!(!values.del("a").await.unwrap());
        assert_eq!(keys(&values, "*").await, ["b", "c"]);
        assert_eq!(values.incr("a").await.unwrap(), 1, "it begins anew, and for ever");
        assert!(values.expire("b", MINUTE).await.unwrap());
        values.set("c", "1", SECOND).await.unwrap();
        values.set("c", "1", None).await.unwrap();
        clock.advance(10 * SECOND);
        assert_eq!(keys(&values, "*").await, ["a", "b", "c"]);
        clock.advance(MINUTE);
        assert_eq!(values.stats().await.in_memory_keys, 2);
    }

    /// Only expiry frees memory.
    #[tokio::test]
    async fn when_it_is_full_a_write_fails_and_nothing_is_lost() {
        let clock = ManualClock::new();
        let store = MemoryStore::new().clock(clock.clone()).values_capacity(10 * 1024);
        let values = values(store);
        let kilobyte = vec![b'x'; 1024 - 128 - 1];
        for i in 0..10 {
            values.set(&i.to_string(), &kilobyte, MINUTE).await.unwrap();
        }
        assert_outage(values.set("a", "", None).await);
        assert_outage(values.incr("a").await);
        assert_outage(values.set("0", [&*kilobyte, b"x"].concat(), None).await);
        assert_eq!(values.get("0").await.unwrap().unwrap(), kilobyte);
        assert_eq!(keys(&values, "*").await.len(), 10);
        values.set("0", "smaller", MINUTE).await.unwrap();
        values.set("a", "fits", None).await.unwrap();
        for i in 1..10 {
            assert!(values.del(&i.to_string()).await.unwrap());
        }
        for i in 1..10 {
            values.set(&i.to_string(), &kilobyte, MINUTE).await.unwrap();
        }
        assert_outage(values.set("b", &kilobyte, None).await);
        clock.advance(MINUTE);
        values.set("b", &kilobyte, None).await.unwrap();
        assert_eq!(keys(&values, "*").await, ["a", "b"]);
    }

    #[tokio::test]
    async fn clones_share_the_values() {
        let store = MemoryStore::new();
        let (one, two) = (values(store.clone()), values(store));
        one.set("a", "1", None).await.unwrap();
        assert_eq!(two.incr("a").await.unwrap(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_are_counted_correctly() {
    let server = RedisServer::start().await;
    for values in [values(MemoryStore::new()), values(redis(&server))] {
        let mut tasks = JoinSet::new();
        for _ in 0..20 {
            let values = values.clone();
            tasks.spawn(async move {
                for _ in 0..50 {
                    values.incr("n").await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(text(&values, "n").await.unwrap(), "1000");
    }
}

/// Debug output and errors contain no key and no value.
#[tokio::test]
async fn debug_and_errors_show_no_key_or_value() {
    let values = values(MemoryStore::new().values_capacity(0));
    let error = values.set("key-of-mine", "value-of-mine", None).await.unwrap_err();
    let mut shown = format!("{values:?} {error:?} {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        shown.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(!shown.contains("mine"), "{shown}");
    assert!(shown.contains("is full"), "{shown}");
}

mod model {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, String, bool),
        Get(u8),
        Del(u8),
        Exists(u8),
        Expire(u8),
        Incr(u8, i64),
        Mget(Vec<u8>),
        Keys,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0..4_u8;
        let value = prop_oneof![
            Just("x".to_owned()),
            Just(i64::MAX.to_string()),
            Just("-0".to_owned()),
            (-3..3_i64).prop_map(|number| number.to_string()),
        ];
        prop_oneof![
            4 => (key(), value, any::<bool>()).prop_map(|(key, value, ttl)| Step::Set(key, value, ttl)),
            2 => key().prop_map(Step::Get),
            2 => key().prop_map(Step::Del),
            1 => key().prop_map(Step::Exists),
            1 => key().prop_map(Step::Expire),
            4 => (key(), prop_oneof![-3..3_i64, Just(i64::MAX)]).prop_map(|(key, by)| Step::Incr(key, by)),
            1 => prop::collection::vec(key(), 0..4).prop_map(Step::Mget),
            1 => Just(Step::Keys),
        ]
    }

    /// The expected result in `Debug` format.
    fn expected(model: &mut HashMap<String, String>, step: &Step) -> String {
        let name = |key: &u8| format!("k{key}");
        let bytes = |value: Option<&String>| value.map(|text| text.as_bytes().to_vec());
        match step {
            Step::Set(key, value, _) => {
                model.insert(name(key), value.clone());
                "()".into()
            }
            Step::Get(key) => format!("{:?}", bytes(model.get(&name(key)))),
            Step::Del(key) => format!("{:?}", model.remove(&name(key)).is_some()),
            Step::Exists(key) | Step::Expire(key) => format!("{:?}", model.contains_key(&name(key))),
            Step::Incr(key, by) => {
                let value = model.get(&name(key)).map_or("0", String::as_str);
                let Some(number) = value.parse::<i64>().ok().filter(|number| number.to_string() == value) else {
                    return "NotANumber".into();
                };
                let Some(sum) = number.checked_add(*by) else { return "Overflow".into() };
                model.insert(name(key), sum.to_string());
                sum.to_string()
            }
            Step::Mget(keys) => {
                format!("{:?}", keys.iter().map(|key| bytes(model.get(&name(key)))).collect::<Vec<_>>())
            }
            Step::Keys => {
                let mut keys: Vec<_> = model.keys().collect();
                keys.sort_unstable();
                format!("{keys:?}")
            }
        }
    }

    async fn done(values: &KeyValue, step: &Step) -> String {
        let name = |key: &u8| format!("k{key}");
        let shown = |answer: Result<String, KeyValueError>| answer.unwrap_or_else(|error| format!("{error:?}"));
        shown(match step {
            Step::Set(key, value, ttl) => {
                values.set(&name(key), value, ttl.then_some(MINUTE)).await.map(|answer| format!("{answer:?}"))
            }
            Step::Get(key) => values.get(&name(key)).await.map(|answer| format!("{answer:?}")),
            Step::Del(key) => values.del(&name(key)).await.map(|answer| format!("{answer:?}")),
            Step::Exists(key) => values.exists(&name(key)).await.map(|answer| format!("{answer:?}")),
            Step::Expire(key) => values.expire(&name(key), MINUTE).await.map(|answer| format!("{answer:?}")),
            Step::Incr(key, by) => values.incr_by(&name(key), *by).await.map(|answer| format!("{answer:?}")),
            Step::Mget(keys) => {
                let keys: Vec<_> = keys.iter().map(name).collect();
                values.mget(&keys).await.map(|answer| format!("{answer:?}"))
            }
            Step::Keys => Ok(format!("{:?}", keys(values, "*").await)),
        })
    }

    /// Memory, Redis, and the memory of an outage follow the model.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_store_follows_the_model() {
        let (server, away) = (RedisServer::start().await, RedisServer::stopped());
        let runtime = tokio::runtime::Handle::current();
        let all =
            tokio::task::spawn_blocking(move || {
                TestRunner::new(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })
                    .run(&prop::collection::vec(step(), 1..40), |steps| {
                        runtime.block_on(async {
                            server.command("FLUSHALL").await;
                            let places = [
                                values(MemoryStore::new()),
                                values(redis(&server)),
                                values(Fallback::new(redis(&away), MERGE)),
                            ];
                            let mut model = HashMap::new();
                            for step in &steps {
                                let expected = expected(&mut model, step);
                                for values in &places {
                                    prop_assert_eq!(&done(values, step).await, &expected, "{:?} of {:?}", step, values);
                                }
                            }
                            Ok(())
                        })
                    })
            });
        all.await.unwrap().unwrap();
    }

    /// After the replay, Redis has the same values as without the outage.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_replay_gives_the_result_without_the_outage() {
        let runtime = tokio::runtime::Handle::current();
        let server = tokio::sync::Mutex::new(RedisServer::stopped());
        let all =
            tokio::task::spawn_blocking(move || {
                TestRunner::new(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })
                    .run(&prop::collection::vec(step(), 1..60), |steps| {
                        runtime.block_on(async {
                            let mut server = server.lock().await;
                            server.stop();
                            let store = Arc::new(Fallback::new(redis(&server), MERGE).probe_interval(Duration::ZERO));
                            let values = values(store.clone());
                            let mut model = HashMap::new();
                            for step in &steps {
                                prop_assert_eq!(done(&values, step).await, expected(&mut model, step));
                            }
                            server.run().await; // empty
                            is_back(&store).await;
                            let mut keys: Vec<_> = model.keys().map(|key| format!("sess:kv:{key}")).collect();
                            let mut there = server.keys().await;
                            keys.sort_unstable();
                            there.sort_unstable();
                            prop_assert_eq!(there, keys);
                            for (key, value) in model {
                                prop_assert_eq!(server.get(&format!("sess:kv:{key}")).await, value);
                            }
                            prop_assert_eq!(store.stats().dropped, 0);
                            Ok(())
                        })
                    })
            });
        all.await.unwrap().unwrap();
    }

    /// Random patterns match as in Redis.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn patterns_match_as_in_redis() {
        let server = RedisServer::start().await;
        let (here, there) = (values(MemoryStore::new()), values(redis(&server)));
        let runtime = tokio::runtime::Handle::current();
        let all = tokio::task::spawn_blocking(move || {
            let pattern =
                prop::collection::vec(prop::sample::select(r"**??[[]]^--\\abc".chars().collect::<Vec<_>>()), 0..10);
            let key = prop::collection::vec(prop::sample::select(r"aabbc*?[]^-\ü".chars().collect::<Vec<_>>()), 0..6);
            let cases = (prop::collection::vec(pattern, 16), prop::collection::vec(key, 24));
            TestRunner::new(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }).run(
                &cases,
                |(patterns, names)| {
                    runtime.block_on(async {
                        server.command("FLUSHALL").await;
                        for key in keys(&here, "*").await {
                            here.del(&key).await.unwrap();
                        }
                        for name in &names {
                            let name: String = name.iter().collect();
                            here.set(&name, "", None).await.unwrap();
                            there.set(&name, "", None).await.unwrap();
                        }
                        for pattern in patterns {
                            let pattern: String = pattern.into_iter().collect();
                            prop_assert_eq!(keys(&here, &pattern).await, keys(&there, &pattern).await, "{}", pattern);
                        }
                        Ok(())
                    })
                },
            )
        });
        all.await.unwrap().unwrap();
    }

    /// Matching takes linear time.
    #[tokio::test]
    async fn a_pattern_of_many_stars_is_not_slower() {
        let values = values(MemoryStore::new());
        values.set(&"a".repeat(10_000), "", None).await.unwrap();
        assert_eq!(keys(&values, &format!("{}b", "*a".repeat(500))).await, [""; 0]);
    }
}

mod lost_answers {
    use super::*;

    /// Redis applied it and the reply was lost: it is not repeated.
    #[tokio::test]
    async fn incr_is_applied_once() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let manager = RedisConnectionManager::new(proxy.url()).unwrap();
        let pool = Pool::builder().max_size(1).build_unchecked(manager);
        let stores = [RedisStore::new(config(&proxy.url())), RedisStore::new(patient(RedisConfig::from_pool(pool)))];
        for (number, store) in stores.into_iter().enumerate() {
            let key = &format!("n{number}");
            let guard = values(Guard::new(store.clone()).deadline(MINUTE));
            let fallback = values(Fallback::new(store.clone(), MERGE).probe_interval(Duration::ZERO));
            let all = [values(store), guard, fallback];
            for (before, values) in (0..).map(|times| 2 * times).zip(&all) {
                for bytes in [0, 2] {
                    eventually("it is connected", async || values.is_ready().await && values.get(key).await.is_ok())
                        .await;
                    proxy.cut_reply_to("INCRBY", bytes);
                    let answer = values.incr(key).await;
                    assert!(matches!(answer, Err(KeyValueError::InDoubt(_))), "{key} {before} {bytes}: {answer:?}");
                    assert!(proxy.is_done());
                }
                assert_eq!(server.get(&format!("sess:kv:{key}")).await, (before + 2).to_string());
            }
            assert_eq!(all[0].incr(key).await.unwrap(), 7);
        }
    }

    /// It was sent as the outage began: it is counted neither in memory nor by a replay.
    #[tokio::test]
    async fn an_incr_lost_as_the_outage_began_is_not_repeated_in_memory() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let store =
            Arc::new(Fallback::new(RedisStore::new(config(&proxy.url())), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.incr("n").await.unwrap();
        proxy.refuse().await;
        proxy.lose_reply_to("INCRBY");
        let answer = values.incr("n").await;
        assert!(matches!(answer, Err(KeyValueError::InDoubt(_))), "{answer:?}");
        eventually("the outage is known", async || {
            values.get("other").await.unwrap();
            store.stats().using_fallback
        })
        .await;
        assert_eq!(values.incr_by("n", 10).await.unwrap(), 10, "of what was before nothing is known");
        proxy.accept();
        is_back(&store).await;
        assert_eq!(server.get("sess:kv:n").await, "12");
    }

    /// It is unknown whether the increment was applied: it is not replayed again, and a counter reports it.
    #[tokio::test]
    async fn an_increment_is_replayed_once() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let store =
            Arc::new(Fallback::new(RedisStore::new(config(&proxy.url())), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.set("n", "1", None).await.unwrap();
        proxy.refuse().await;
        proxy.close_connections();
        eventually("the outage is known", async || {
            values.get("other").await.unwrap();
            store.stats().using_fallback
        })
        .await;
        assert_eq!(values.incr_by("n", 10).await.unwrap(), 10);
        proxy.lose_reply_to("INCRBY");
        proxy.accept();
        is_back(&store).await;
        assert!(proxy.is_done());
        assert_eq!(server.get("sess:kv:n").await, "11");
        assert_eq!(store.stats().dropped, 1);
    }

    #[tokio::test]
    async fn other_writes_are_repeated() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let values = values(RedisStore::new(config(&proxy.url())));
        for (command, bytes) in [("SET", 0), ("PEXPIRE", 1), ("UNLINK", 0)] {
            values.get("a").await.unwrap();
            proxy.cut_reply_to(command, bytes);
            match command {
                "SET" => values.set("a", "1", None).await.unwrap(),
                "PEXPIRE" => assert!(values.expire("a", MINUTE).await.unwrap()),
                _ => assert!(!values.del("a").await.unwrap(), "gone by the first"),
            }
            assert!(proxy.is_done());
        }
        assert_eq!(server.keys().await, [""; 0]);
    }

    /// A master dies before its reply: the replica, which may have the write, does not get it again.
    #[tokio::test]
    async fn incr_is_applied_once_in_a_cluster() {
        let mut cluster = Cluster::start().await;
        let nodes = cluster.nodes.iter().map(RedisServer::address);
        let config = RedisConfig::cluster(nodes).unwrap().timeout(MINUTE);
        let values = values(RedisStore::new(config));
        values.incr("n").await.unwrap();
        let node = cluster.node_of_key("sess:kv:n").await;
        cluster.nodes[node].command("WAIT 1 0").await;
        cluster.pause(node);
        let told = tokio::spawn({
            let values = values.clone();
            async move { values.incr("n").await }
        });
        cluster.failed_over(node).await;
        cluster.kill(node);
        let answer = told.await.unwrap();
        assert!(matches!(answer, Err(KeyValueError::InDoubt(_))), "{answer:?}");
        let mut known = None;
        eventually("its replica is asked", async || {
            known = values.incr("n").await.ok();
            known.is_some()
        })
        .await;
        assert_eq!(known, Some(2));
    }
}

/// Waits until everything is replayed and Redis is used again.
async fn is_back(store: &Fallback) {
    let is_back = async || {
        let _ = store.health().await;
        !store.is_degraded()
    };
    eventually("Redis is back", is_back).await;
}

/// A request that replays to Redis.
fn keeps_telling(store: &Arc<Fallback>) -> JoinHandle<()> {
    let store = store.clone();
    tokio::spawn(async move {
        while store.is_degraded() {
            let _ = store.load(&id(1)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// The number of commands that Redis has rejected.
async fn rejected(server: &RedisServer, command: &str) -> u64 {
    let info = format!("{:?}", server.command("INFO commandstats").await);
    let Some((_, line)) = info.split_once(&format!("cmdstat_{command}:")) else { return 0 };
    let (_, number) = line.split_once("rejected_calls=").unwrap();
    number.split(',').next().unwrap().parse().unwrap()
}

/// A service whose Redis can be stopped, with `before` in it.
async fn service(mode: FallbackMode, server: &RedisServer) -> (Arc<Fallback>, KeyValue) {
    let store = Arc::new(Fallback::new(redis(server), mode).probe_interval(Duration::ZERO));
    let values = values(store.clone());
    values.set("before", "1", None).await.unwrap();
    (store, values)
}

mod outages {
    use super::*;

    #[tokio::test]
    async fn reject_and_stale_acknowledge_and_store_nothing() {
        for mode in [REJECT, STALE] {
            let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
            let (store, values) = service(mode, &server).await;
            server.stop();
            assert_outage(values.get("before").await);
            assert_outage(values.set("a", "1", None).await);
            assert_outage(values.del("before").await);
            assert_outage(values.exists("before").await);
            assert_outage(values.expire("before", SECOND).await);
            assert_outage(values.mget(&["before"]).await);
            assert_outage(values.incr("n").await);
            assert_outage(values.scan("*", &Cursor::start(), 10).await);
            assert_eq!(values.stats().await, ValueStats::default());
            assert!(!values.is_ready().await);
            server.run().await;
            is_back(&store).await;
            assert!(values.is_ready().await);
            assert_eq!(keys(&values, "*").await, ["before"]);
        }
    }

    /// The first request in the outage.
    #[tokio::test]
    async fn sessions_and_values_have_the_same_outage() {
        for values_first in [true, false] {
            let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
            let (store, values) = service(MERGE, &server).await;
            server.stop();
            if values_first {
                values.set("a", "1", None).await.unwrap();
            } else {
                store.load(&id(1)).await.unwrap();
            }
            assert!(store.is_degraded());
            assert_eq!((store.name(), store.stats().outages), ("memory", 1));
            assert_eq!(values.get("before").await.unwrap(), None);
            store.load(&id(1)).await.unwrap();
            assert_eq!(store.stats().outages, 1);
            let stats = values.stats().await;
            assert_eq!((stats.connected, stats.using_fallback), (false, true));
            server.run().await;
            // The request that notices the recovery.
            let back = async || {
                if values_first {
                    values.get("a").await.unwrap();
                } else {
                    store.load(&id(1)).await.unwrap();
                }
                !store.is_degraded()
            };
            eventually("Redis is back", back).await;
            assert_eq!(text(&values, "before").await.unwrap(), "1");
            assert_eq!((store.name(), store.stats().outages), ("redis", 1));
            assert!(values.is_ready().await);
        }
    }

    #[tokio::test]
    async fn drop_discards_the_writes() {
        let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
        let (store, values) = service(DROP, &server).await;
        server.stop();
        values.set("a", "1", None).await.unwrap();
        values.set("before", "2", None).await.unwrap();
        assert_eq!(values.incr("n").await.unwrap(), 1);
        assert!(!values.del("other").await.unwrap());
        assert_eq!(keys(&values, "*").await, ["a", "before", "n"]);
        assert_eq!(store.stats().values_in_memory, 3);
        server.run().await;
        is_back(&store).await;
        assert_eq!(keys(&values, "*").await, ["before"]);
        assert_eq!(text(&values, "before").await.unwrap(), "1");
        let stats = store.stats();
        assert_eq!((stats.dropped, stats.replayed, stats.values_in_memory, stats.journalled), (4, 0, 0, 0));
    }

    #[tokio::test]
    async fn merge_replays_each_changed_key_and_no_other() {
        let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
        let clock = ManualClock::new();
        let store = Arc::new(Fallback::new(redis(&server), MERGE).probe_interval(Duration::ZERO).clock(clock.clone()));
        let values = values(store.clone());
        for key in ["untouched", "read", "set", "deleted", "expired", "renewed", "forgotten", "no-number"] {
            values.set(key, "old", None).await.unwrap();
        }
        values.set("counter", "100", None).await.unwrap();
        values.set("limited", "100", MINUTE).await.unwrap();
        values.set("counter-with-time", "100", None).await.unwrap();
        values.set("counter-gone", "100", None).await.unwrap();
        values.set("counter-anew", "100", None).await.unwrap();
        values.set("counter-unset", "100", None).await.unwrap();
        server.stop();

        assert_eq!(values.get("read").await.unwrap(), None, "of what was before nothing is known");
        assert!(!values.exists("read").await.unwrap() && !values.expire("read", SECOND).await.unwrap());
        values.set("set", "new", 10 * MINUTE).await.unwrap();
        assert!(!values.del("deleted").await.unwrap());
        values.set("expired", "new", SECOND).await.unwrap();
        values.set("renewed", "new", SECOND).await.unwrap();
        assert!(values.expire("renewed", 10 * MINUTE).await.unwrap());
        values.set("forgotten", "new", None).await.unwrap();
        assert!(values.del("forgotten").await.unwrap());
        assert_eq!(values.incr_by("counter", 5).await.unwrap(), 5);
        assert_eq!(values.incr_by("counter", -2).await.unwrap(), 3);
        assert_eq!(values.incr("limited").await.unwrap(), 1);
        assert_eq!(values.incr("counter-with-time").await.unwrap(), 1);
        assert!(values.expire("counter-with-time", 10 * MINUTE).await.unwrap());
        assert_eq!(values.incr("counter-gone").await.unwrap(), 1);
        assert!(values.expire("counter-gone", SECOND).await.unwrap());
        assert_eq!(values.incr("counter-anew").await.unwrap(), 1);
        assert!(values.expire("counter-anew", SECOND).await.unwrap());
        assert_eq!(values.incr("counter-unset").await.unwrap(), 1);
        assert!(values.del("counter-unset").await.unwrap());
        assert_eq!(values.incr("counter-unset").await.unwrap(), 1);
        assert_eq!(values.incr("new-counter").await.unwrap(), 1);
        assert_eq!(values.incr("no-number").await.unwrap(), 1);
        clock.advance(2 * SECOND);
        assert_eq!(values.incr("counter-anew").await.unwrap(), 1);
        assert_eq!(store.stats().journalled, 13);

        server.run().await;
        is_back(&store).await;
        let mut left = HashMap::new();
        for key in keys(&values, "*").await {
            let value = text(&values, &key).await.unwrap();
            let ttl = server.pttl(&format!("sess:kv:{key}")).await;
            left.insert(key, (value, ttl / 60_000));
        }
        let expected = [
            ("untouched", "old", 0),
            ("read", "old", 0),
            ("set", "new", 9),
            ("renewed", "new", 9),
            ("counter", "103", 0),
            ("limited", "101", 0),
            ("counter-with-time", "101", 9),
            ("counter-anew", "1", 0),
            ("counter-unset", "1", 0),
            ("new-counter", "1", 0),
            ("no-number", "old", 0),
        ];
        let expected = expected.map(|(key, value, minutes)| (key.to_owned(), (value.to_owned(), minutes)));
        assert_eq!(left, HashMap::from(expected));
        for (key, is_limited) in [("limited", true), ("counter", false), ("counter-anew", false)] {
            assert_eq!(server.pttl(&format!("sess:kv:{key}")).await > 0, is_limited, "{key}");
        }
        assert_eq!(store.stats().dropped, 1, "what cannot be added to");
    }

    /// During the replay, including concurrent writes.
    #[tokio::test]
    async fn a_replay_is_atomic() {
        let mut server = RedisServer::start().await;
        let (store, values) = service(MERGE, &server).await;
        server.stop();
        for i in 0..3000 {
            values.set(&format!("k{i}"), "1", None).await.unwrap();
        }
        server.run().await; // empty
        let mut rounds = 0;
        while store.is_degraded() {
            let found = values.mget(&["k0", "k1500", "k2999"]).await.unwrap();
            assert!(found.iter().all(Option::is_some), "{found:?}");
            values.incr("rounds").await.unwrap();
            rounds += 1;
            tokio::task::yield_now().await;
        }
        assert_eq!(text(&values, "rounds").await.unwrap(), rounds.to_string());
        assert_eq!(keys(&values, "k*").await.len(), 3000);
        let stats = store.stats();
        assert_eq!((stats.dropped, stats.refused), (0, 0));
        assert!(stats.replayed >= 3001, "{stats:?}");
    }

    /// An increment in flight, and increments before the next query.
    #[tokio::test]
    async fn an_increment_that_may_be_lost_is_counted() {
        let mut server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let store =
            Arc::new(Fallback::new(RedisStore::new(config(&proxy.url())), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.get("n").await.unwrap();
        server.stop();
        values.get("n").await.unwrap();
        values.incr_by("n", 5).await.unwrap();
        server.run().await;
        proxy.hold_reply_to("INCRBY");
        let teller = keeps_telling(&store);
        proxy.holds().await;
        assert_eq!(values.incr("n").await.unwrap(), 6);
        teller.abort();
        assert!(teller.await.unwrap_err().is_cancelled());
        proxy.release();
        is_back(&store).await;
        assert_eq!(server.get("sess:kv:n").await, "6");
        assert_eq!(store.stats().dropped, 1, "nobody has heard of the first");
    }

    /// A replaying request that is cancelled loses only what must not be sent twice, and a counter reports it.
    #[tokio::test]
    async fn if_the_replaying_request_is_cancelled_the_next_continues() {
        let mut server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let store =
            Arc::new(Fallback::new(RedisStore::new(config(&proxy.url())), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.get("a").await.unwrap();
        server.stop();
        values.set("a", "1", None).await.unwrap();
        values.incr("n").await.unwrap();
        server.run().await;
        proxy.hold_reply_to("SET");
        let teller = tokio::spawn({
            let store = store.clone();
            async move {
                while store.is_degraded() {
                    let _ = store.load(&id(1)).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        proxy.holds().await;
        teller.abort();
        assert!(teller.await.unwrap_err().is_cancelled());
        proxy.release();
        is_back(&store).await;
        assert_eq!(text(&values, "a").await.unwrap(), "1");
        let counted = values.get("n").await.unwrap().is_some();
        let dropped = store.stats().dropped;
        assert!(counted || dropped == 1, "{dropped}");
        assert!(dropped <= 1);
    }

    /// Memory has the increments of the outage, and not the value in the main store.
    #[tokio::test]
    async fn a_ttl_for_a_replayed_counter_keeps_its_number() {
        let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
        let proxy = Proxy::start(server.port()).await;
        let store =
            Arc::new(Fallback::new(RedisStore::new(config(&proxy.url())), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.incr_by("n", 100).await.unwrap();
        server.stop();
        values.get("n").await.unwrap();
        assert_eq!(values.incr_by("n", 5).await.unwrap(), 5);
        // More than one batch: the number is replayed before the last one.
        for i in 0..100 {
            values.set(&format!("k{i}"), "1", None).await.unwrap();
        }
        values.del("last").await.unwrap();
        server.run().await;
        proxy.hold_reply_to("UNLINK");
        let teller = keeps_telling(&store);
        proxy.holds().await;
        assert_eq!(server.get("sess:kv:n").await, "105");
        assert!(values.expire("n", MINUTE).await.unwrap());
        proxy.release();
        teller.await.unwrap();
        assert_eq!(server.get("sess:kv:n").await, "105");
        assert!((1..=60_000).contains(&server.pttl("sess:kv:n").await));
        assert_eq!(store.stats().dropped, 0);
    }

    /// Values that Redis always refuses do not delay the sessions.
    #[tokio::test]
    async fn a_refused_value_does_not_delay_sessions() {
        let rights = "resetchannels ~sess:* -@all +get +pttl +set +pexpire +unlink +time +eval +evalsha";
        let user = format!("--user app on >app-password {rights}");
        let mut server = RedisServer::stopped_with(&user.split(' ').collect::<Vec<_>>());
        let store = RedisStore::new(config(&server.url_as("app", "app-password")));
        let store = Arc::new(Fallback::new(store, MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.incr("n").await.unwrap();
        values.set("a", "1", None).await.unwrap();
        assert!(store.is_degraded());
        server.run().await;
        is_back(&store).await;
        assert_eq!(text(&values, "a").await.unwrap(), "1");
        assert_eq!(values.get("n").await.unwrap(), None);
        assert_eq!(store.stats().dropped, 1);
    }

    #[tokio::test]
    async fn an_emptied_redis_gets_the_writes_of_the_outage() {
        let mut server = RedisServer::start().await;
        let (store, values) = service(MERGE, &server).await;
        server.stop();
        values.set("a", "1", None).await.unwrap();
        server.run().await;
        is_back(&store).await;
        assert_eq!(keys(&values, "*").await, ["a"]);
    }

    /// A full Redis is not down: errors, no fallback. When there is room again, writes work.
    #[tokio::test]
    async fn a_full_redis_is_not_down() {
        let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await;
        let (store, values) = service(MERGE, &server).await;
        server.command("CONFIG SET maxmemory 1").await;
        assert_outage(values.set("a", "1", None).await);
        assert_outage(values.incr("n").await);
        assert_eq!(text(&values, "before").await.unwrap(), "1");
        assert!(values.expire("before", MINUTE).await.unwrap() && values.del("before").await.unwrap());
        assert_eq!(store.stats().outages, 0);
        assert!(values.is_ready().await);
        server.command("CONFIG SET maxmemory 0").await;
        values.set("a", "1", None).await.unwrap();
        assert_eq!(values.incr("n").await.unwrap(), 1);
    }

    /// Values without room in Redis after the recovery are replayed again, and served from memory until then.
    #[tokio::test]
    async fn values_that_a_full_redis_refuses_are_replayed_again() {
        let mut server = RedisServer::stopped_with(&["--maxmemory-policy", "noeviction", "--maxmemory", "1"]);
        let store = Arc::new(Fallback::new(redis(&server), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        values.set("a", "1", None).await.unwrap();
        assert_eq!(values.incr_by("n", 2).await.unwrap(), 2);
        server.run().await;
        // Any request replays.
        eventually("Redis answers", async || values.stats().await.connected).await;
        assert_eq!(values.incr("n").await.unwrap(), 3);
        assert!(rejected(&server, "set").await > 0 && rejected(&server, "incrby").await > 0, "it was told");
        assert!(store.is_degraded());
        assert_eq!(store.stats().values_in_memory, 2);
        server.command("CONFIG SET maxmemory 0").await;
        is_back(&store).await;
        assert_eq!((text(&values, "a").await.unwrap(), text(&values, "n").await.unwrap()), ("1".into(), "3".into()));
        assert_eq!(store.stats().dropped, 0);
    }

    /// But not without limit, because the sessions wait for it.
    #[tokio::test]
    async fn values_that_a_full_redis_refuses_do_not_delay_sessions() {
        let mut server = RedisServer::stopped_with(&["--maxmemory-policy", "noeviction", "--maxmemory", "1"]);
        let store = Arc::new(Fallback::new(redis(&server), MERGE).probe_interval(Duration::ZERO));
        let values = values(store.clone());
        for i in 0..100 {
            values.set(&format!("k{i}"), "1", None).await.unwrap();
        }
        values.incr("n").await.unwrap();
        values.del("gone").await.unwrap();
        server.run().await;
        is_back(&store).await;
        let stats = store.stats();
        assert_eq!((stats.dropped, stats.replayed, stats.journalled), (101, 1, 0));
        assert_eq!(server.keys().await, [""; 0]);
        assert!(rejected(&server, "set").await >= 300, "each was told again");
    }

    /// It closes the connection that sends such a value, with the whole batch.
    #[tokio::test]
    async fn a_value_that_redis_always_refuses_is_dropped_alone() {
        let mut server = RedisServer::stopped_with(&["--client-query-buffer-limit", "1048576"]);
        let store = Arc::new(
            Fallback::new(RedisStore::new(config(&server.url()).timeout(SECOND / 2)), MERGE)
                .probe_interval(Duration::ZERO),
        );
        let values = values(store.clone());
        values.set("before", "1", None).await.unwrap();
        values.set("big", vec![b'x'; 2 * 1024 * 1024], None).await.unwrap();
        for i in 0..100 {
            values.set(&format!("k{i}"), "1", None).await.unwrap();
        }
        server.run().await;
        is_back(&store).await;
        assert_eq!(store.stats().dropped, 1);
        assert_eq!(keys(&values, "*").await.len(), 101);
        assert_eq!(values.get("big").await.unwrap(), None);
    }

    /// Writes beyond the limit fail. Existing values can be changed and deleted.
    #[tokio::test]
    async fn the_memory_of_an_outage_is_bounded() {
        let server = RedisServer::stopped();
        let store = Arc::new(Fallback::new(redis(&server), MERGE).values_capacity(4 * 1024));
        let values = values(store.clone());
        let kilobyte = vec![b'x'; 1024 - 128 - 1];
        for i in 0..4 {
            values.set(&i.to_string(), &kilobyte, None).await.unwrap();
        }
        assert_outage(values.set("a", "", None).await);
        assert_outage(values.incr("n").await);
        assert_eq!(store.stats().refused, 2);
        assert!(values.del("0").await.unwrap());
        values.set("1", "smaller", None).await.unwrap();
        // Deletions also use memory, within their own limit.
        let mut deleted = 0;
        while values.del(&format!("{deleted:03}")).await.is_ok() {
            deleted += 1;
            assert!(deleted < 100);
        }
        assert!(deleted > 10, "{deleted}");
        assert!(values.del("1").await.unwrap());
        assert_eq!(keys(&values, "*").await, ["2", "3"]);
    }

    /// A cursor that Redis does not know: it may come from a link.
    #[tokio::test]
    async fn a_scan_from_an_invalid_cursor_starts_over() {
        let server = RedisServer::start().await;
        let values = values(redis(&server));
        values.set("a", "1", None).await.unwrap();
        for nowhere in ["", "x", "-1", "k:a", "99999999999999999999999"] {
            let page = values.scan("*", &Cursor::from(nowhere.to_owned()), 100).await.unwrap();
            assert_eq!((page.keys, page.next), (vec!["a".to_owned()], None), "{nowhere}");
        }
    }

    /// A page that was started on the other store starts over.
    #[tokio::test]
    async fn a_scan_continues_through_an_outage() {
        let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
        let (store, values) = service(MERGE, &server).await;
        for i in 0..100 {
            values.set(&format!("k{i}"), "1", None).await.unwrap();
        }
        let page = values.scan("k*", &Cursor::start(), 10).await.unwrap();
        server.stop();
        for i in 0..100 {
            values.set(&format!("m{i}"), "1", None).await.unwrap();
        }
        let page = values.scan("m*", &page.next.unwrap(), 10).await.unwrap();
        assert_eq!(page.keys.len(), 10);
        server.run().await;
        is_back(&store).await;
        let mut found = Vec::new();
        let mut place = page.next;
        while let Some(from) = place {
            let page = values.scan("m*", &from, 10).await.unwrap();
            found.extend(page.keys);
            place = page.next;
        }
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 100);
    }

    #[tokio::test]
    async fn a_guard_does_not_query_a_dead_server() {
        let mut server = RedisServer::start().await;
        let values = values(Guard::new(redis(&server)).open_after(1));
        values.set("a", "1", None).await.unwrap();
        assert!(values.is_ready().await);
        server.stop();
        eventually("it is noticed", async || values.get("a").await.is_err()).await;
        assert_outage(values.incr("n").await);
        assert_eq!(values.stats().await, ValueStats::default());
    }
}
