//! The memory store, the stored format, and the names of sessions. `conformance.rs` tests what all stores have in common.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use crate::support::redis_server::RedisServer;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tower_keep::{
    EndReason, Limits, ManualClock, MemoryStore, SessionId, SessionLayer, Token, WhenFull,
    store::{
        Codec, Created, Entry, Found, Outcome, Record, SessionStore, Version,
        redis::{RedisConfig, RedisStore},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Token number `n`.
fn token(n: u64) -> Token {
    Token::parse(format!("{n:056}")).unwrap()
}

/// The id of token number `n`.
fn id(n: u64) -> SessionId {
    token(n).id()
}

/// Id number `n` of a user.
fn id_of(user: &str, n: u64) -> SessionId {
    Token::parse(format!("{}{n:044}", SessionId::slot_tag_of(user))).unwrap().id()
}

fn record_of(user: &str, n: u64) -> Arc<Record> {
    let stored = String::from_utf8(record(1, n).encode()).unwrap();
    Arc::new(Record::decode(stored.replace("\"ana\"", &format!("\"{user}\"")).as_bytes()).unwrap())
}

fn version_text(counter: u32, nonce: u64) -> String {
    let mut bytes = counter.to_be_bytes().to_vec();
    bytes.extend(nonce.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A record with the version `counter`, `nonce`.
fn record(counter: u32, nonce: u64) -> Arc<Record> {
    let n = version_text(counter, nonce);
    let stored = format!(
        r#"{{"v":1,"n":"{n}","t":[1763679600000,42000,1800000,86400000],"persistent":true,"user":"ana","data":{{"cart":[1,2],"nonce":{nonce}}}}}"#
    );
    Arc::new(Record::decode(stored.as_bytes()).unwrap())
}

/// A version that no record has.
fn no_version() -> Version {
    record(u32::MAX, u64::MAX).version()
}

#[track_caller]
fn assert_done(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
}

#[track_caller]
fn assert_created(created: Created) {
    assert!(matches!(created, Created::Done { .. }), "{created:?}");
}

fn entry(record: Arc<Record>, ttl: Duration) -> Entry {
    Entry { record, ttl }
}

#[track_caller]
fn assert_gone(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Gone), "{outcome:?}");
}

#[track_caller]
fn assert_conflict(outcome: Outcome, with: &Record) {
    match outcome {
        Outcome::Conflict(loaded) => {
            assert_eq!(loaded.record.encode(), with.encode());
            assert!(loaded.ttl.is_some_and(|ttl| !ttl.is_zero()), "{loaded:?}");
        }
        other => panic!("{other:?}"),
    }
}

fn now<T>(future: impl Future<Output = Result<T, tower_keep::store::StoreError>>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer.unwrap(),
        Poll::Pending => panic!("memory answers at once"),
    }
}

fn timed(capacity: usize) -> (MemoryStore, ManualClock) {
    let clock = ManualClock::new();
    (MemoryStore::new().capacity(capacity).clock(clock.clone()), clock)
}

fn is_alive(store: &MemoryStore, n: u64) -> bool {
    now(store.load(&id(n))).live().is_some()
}

fn runner(cases: u32) -> TestRunner {
    let default = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    TestRunner::new(Config { cases, failure_persistence: None, ..default })
}

mod memory_store {
    use super::*;

    #[test]
    fn capacity_is_never_exceeded() {
        let (store, clock) = timed(10);
        for n in 0..100 {
            clock.advance(SECOND);
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
            assert_eq!(store.len(), 10.min(n as usize + 1));
        }
        let alive: Vec<u64> = (0..100).filter(|n| is_alive(&store, *n)).collect();
        assert_eq!(alive, (90..100).collect::<Vec<_>>(), "the last ten");
    }

    #[test]
    fn capacity_is_never_exceeded_by_64_concurrent_threads() {
        for capacity in [1, 10, 100] {
            let store = MemoryStore::new().capacity(capacity);
            thread::scope(|scope| {
                for t in 0..64 {
                    let store = &store;
                    scope.spawn(move || {
                        for n in 0..50 {
                            let n = t * 1000 + n;
                            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
                            assert!(store.len() <= capacity, "{} of {capacity}", store.len());
                        }
                    });
                }
            });
            assert_eq!(store.len(), capacity);
            let all = (0..64).flat_map(|t| (0..50).map(move |n| t * 1000 + n));
            assert_eq!(all.filter(|n| is_alive(&store, *n)).count(), capacity);
        }
    }

    #[test]
    fn the_longest_idle_session_is_evicted() {
        let (store, clock) = timed(4);
        let create = |n: u64| {
            clock.advance(SECOND);
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
        };
        for n in 1..=4 {
            create(n);
        }
        // Use all except 3, with every operation.
        clock.advance(SECOND);
        assert!(is_alive(&store, 1));
        clock.advance(SECOND);
        now(store.touch(&id(2), entry(record(1, 2), HOUR)));
        clock.advance(SECOND);
        assert_done(now(store.update(&id(4), record(1, 4).version(), entry(record(2, 4), HOUR))));

        create(5); // evicts 3
        create(6); // evicts 1
        assert_eq!(store.len(), 4);
        let alive: Vec<u64> = (1..=6).filter(|n| is_alive(&store, *n)).collect();
        assert_eq!(alive, [2, 4, 5, 6]);
    }

    #[test]
    fn an_expired_session_is_evicted_before_a_live_one() {
        let (store, clock) = timed(2);
        assert_created(now(store.create(&id(1), entry(record(1, 1), HOUR), Limits::none()))); // idle longest, and live
        clock.advance(SECOND);
        assert_created(now(store.create(&id(2), entry(record(1, 2), SECOND), Limits::none())));
        clock.advance(MINUTE); // 2 has expired
        assert_created(now(store.create(&id(3), entry(record(1, 3), HOUR), Limits::none())));
        assert!(is_alive(&store, 1), "there was room: 2 had expired");
        assert!(is_alive(&store, 3));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn create_of_an_existing_id_evicts_nothing() {
        let (store, clock) = timed(2);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
        }
        clock.advance(SECOND);
        assert_created(now(store.create(&id(2), entry(record(1, 2), HOUR), Limits::none()))); // the same again
        assert_eq!(now(store.create(&id(2), entry(record(1, 9), HOUR), Limits::none())), Created::Taken);
        assert!(is_alive(&store, 1) && is_alive(&store, 2));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn create_of_an_existing_id_is_refused_in_a_full_store() {
        let (store, clock) = timed(1);
        assert_created(now(store.create(&id(1), entry(record(1, 1), HOUR), Limits::none())));
        clock.advance(SECOND);
        assert_eq!(now(store.create(&id(1), entry(record(1, 9), HOUR), Limits::none())), Created::Taken);
    }

    /// At the capacity: a session of Bob, idle longest, and one of Ana. Then another of Ana, whose limit is one.
    fn another_of_a_user_who_has_all_she_may(when_full: WhenFull) -> (MemoryStore, Created) {
        let (store, clock) = timed(2);
        let limits = Limits::per_user(1, when_full);
        let create = |user: &str, n| {
            clock.advance(SECOND);
            now(store.create(&id_of(user, n), entry(record_of(user, n), HOUR), limits))
        };
        assert_created(create("bob", 1));
        assert_created(create("ana", 2));
        let created = create("ana", 3);
        (store, created)
    }

    #[test]
    fn a_refused_creation_evicts_nothing() {
        let (store, created) = another_of_a_user_who_has_all_she_may(WhenFull::Reject);
        assert_eq!(created, Created::Full);
        assert!(now(store.load(&id_of("ana", 2))).live().is_some());
        assert!(now(store.load(&id_of("bob", 1))).live().is_some(), "a stranger's session has ended for nothing");
    }

    #[test]
    fn a_session_that_replaces_one_of_its_user_evicts_no_other() {
        let (store, created) = another_of_a_user_who_has_all_she_may(WhenFull::EvictOldest);
        assert_eq!(created, Created::Done { evicted: vec![id_of("ana", 2)] });
        assert!(now(store.load(&id_of("bob", 1))).live().is_some(), "there was a place already");
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn expired_sessions_are_freed_by_later_operations() {
        let (store, clock) = timed(100_000);
        for n in 0..1000 {
            assert_created(now(store.create(&id(n), entry(record(1, n), MINUTE), Limits::none())));
        }
        assert_created(now(store.create(&id(5000), entry(record(1, 5000), HOUR), Limits::none())));
        clock.advance(MINUTE);
        assert_eq!(store.len(), 1001, "nothing runs in the background");
        let mut before = store.len();
        for n in 0..2000 {
            assert!(now(store.load(&id(10_000 + n))).live().is_none());
            assert!(store.len() <= before);
            before = store.len();
        }
        assert_eq!(store.len(), 1, "the one that lives");
        assert!(is_alive(&store, 5000));
    }

    #[test]
    fn touched_sessions_are_freed_when_they_expire() {
        let (store, clock) = timed(100_000);
        for n in 0..500 {
            assert_created(now(store.create(&id(n), entry(record(1, n), MINUTE), Limits::none())));
            now(store.touch(&id(n), entry(record(1, n), 10 * MINUTE)));
        }
        let use_others = || (0..2000).for_each(|n| assert!(now(store.load(&id(10_000 + n))).live().is_none()));
        clock.advance(5 * MINUTE);
        use_others();
        assert_eq!(store.len(), 500);
        clock.advance(5 * MINUTE);
        use_others();
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn shortened_sessions_are_freed_when_they_expire() {
        let (store, clock) = timed(100_000);
        for n in 0..500 {
            assert_created(now(store.create(&id(n), entry(record(1, n), 24 * HOUR), Limits::none())));
            assert_done(now(store.update(&id(n), record(1, n).version(), entry(record(2, n), MINUTE))));
        }
        clock.advance(HOUR);
        (0..2000).for_each(|n| assert!(now(store.load(&id(10_000 + n))).live().is_none()));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn churn_leaves_nothing_behind() {
        let store = MemoryStore::new();
        for n in 0..20_000 {
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
            now(store.end(&id(n), EndReason::LoggedOut.into()));
        }
        assert_eq!(store.len(), 0);
        assert!(store.is_empty());
    }

    #[test]
    fn churn_of_many_threads_leaves_nothing_behind() {
        let store = MemoryStore::new().capacity(50);
        thread::scope(|scope| {
            for t in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..300 {
                        let (a, b) = (id(t * 10_000 + n), id(t * 10_000 + 5000 + n));
                        for id in [&a, &b] {
                            now(store.create(id, entry(record(1, n), HOUR), Limits::none()));
                            // A session of another thread may have replaced it.
                            let _ = now(store.update(id, record(1, n).version(), entry(record(2, n), HOUR)));
                        }
                        now(store.end(&a, EndReason::LoggedOut.into()));
                        now(store.end(&b, EndReason::LoggedOut.into()));
                        now(store.end(&b, EndReason::LoggedOut.into()));
                    }
                });
            }
        });
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn tombstones_of_the_last_minute_are_kept_however_many() {
        let (store, clock) = timed(10);
        for n in 0..2_000 {
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
            now(store.end(&id(n), EndReason::LoggedOut.into()));
        }
        clock.advance(59 * SECOND);
        for n in 0..2_000 {
            assert_eq!(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())), Created::Taken);
        }
        clock.advance(SECOND);
        (0..2_000).for_each(|n| drop(now(store.load(&id(10_000 + n)))));
        let forgotten = (0..2_000).filter(|n| matches!(now(store.load(&id(*n))), Found::Unknown)).count();
        assert_eq!(forgotten, 2_000 - 64, "all of one slot tag, and so of one part of the store");
    }

    #[test]
    fn clones_share_the_sessions() {
        let store = MemoryStore::new();
        let clone = store.clone();
        assert_created(now(store.create(&id(1), entry(record(1, 1), HOUR), Limits::none())));
        assert!(is_alive(&clone, 1));
        assert_eq!(clone.len(), 1);
        now(clone.end(&id(1), EndReason::LoggedOut.into()));
        assert!(store.is_empty());
    }

    #[test]
    fn a_capacity_of_zero_is_one() {
        let (store, clock) = timed(0);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_created(now(store.create(&id(n), entry(record(1, n), HOUR), Limits::none())));
            assert!(is_alive(&store, n));
            assert_eq!(store.len(), 1);
        }
        assert!(!is_alive(&store, 1));
    }

    #[test]
    fn debug_shows_no_session() {
        let store = MemoryStore::new();
        assert_created(now(store.create(&id(1), entry(record(1, 1), HOUR), Limits::none())));
        assert_eq!(format!("{store:?}"), "MemoryStore { len: 1, capacity: 100000 }");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Load(u64),
        Create(u64, u64),
        Update(u64, bool, u64),
        Touch(u64, u64),
        Destroy(u64),
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (n, seconds) = (0..24_u64, 1..100_u64);
        prop_oneof![
            n.clone().prop_map(Op::Load),
            (n.clone(), seconds.clone()).prop_map(|(n, ttl)| Op::Create(n, ttl)),
            (n.clone(), prop::bool::weighted(0.7), seconds.clone())
                .prop_map(|(n, right, ttl)| Op::Update(n, right, ttl)),
            (n.clone(), seconds.clone()).prop_map(|(n, ttl)| Op::Touch(n, ttl)),
            n.prop_map(Op::Destroy),
            (1..60_u64).prop_map(Op::Advance),
        ]
    }

    /// A session of the model: record, expiry and last use, in milliseconds.
    type Model = BTreeMap<u64, (Arc<Record>, u64, u64)>;

    /// Performs `ops` on a store and on a map, which must agree.
    fn agrees_with_a_map(ops: Vec<Op>, capacity: usize) {
        let (store, clock) = timed(capacity);
        let (mut model, mut seen) = (Model::new(), HashSet::new());
        let (mut time, mut nonce) = (0_u64, 0_u64);
        for op in ops {
            // Each operation has its own millisecond, so there are no ties of the longest idle session.
            clock.advance(Duration::from_millis(1));
            time += 1;
            model.retain(|_, (_, end, _)| *end > time);
            nonce += 1;
            let fresh = record(1, nonce);
            let at = |ttl: u64| (time + ttl * 1000, Duration::from_secs(ttl));
            match op {
                Op::Load(n) => match (now(store.load(&id(n))).live(), model.get_mut(&n)) {
                    (Some(loaded), Some((record, end, used))) => {
                        assert_eq!(loaded.record.encode(), record.encode());
                        assert_eq!(loaded.ttl, Some(Duration::from_millis(*end - time)));
                        *used = time;
                    }
                    (None, None) => {}
                    other => panic!("{other:?}"),
                },
                Op::Create(n, ttl) => {
                    let (end, ttl) = at(ttl);
                    let created = now(store.create(&id(n), entry(fresh.clone(), ttl), Limits::none()));
                    match seen.insert(n) {
                        // Live or ended: an id that has ended is never used again.
                        false => assert_eq!(created, Created::Taken),
                        true => {
                            assert_created(created);
                            if model.len() == capacity {
                                let idle = *model.iter().min_by_key(|(_, (_, _, used))| *used).unwrap().0;
                                model.remove(&idle);
                            }
                            model.insert(n, (fresh, end, time));
                        }
                    }
                }
                Op::Update(n, right, ttl) => {
                    let (end, ttl) = at(ttl);
                    let current = model.get(&n).map(|(record, ..)| record.clone());
                    let expected =
                        current.as_ref().filter(|_| right).map_or_else(no_version, |record| record.version());
                    let outcome = now(store.update(&id(n), expected, entry(fresh.clone(), ttl)));
                    match current {
                        None => assert_gone(outcome),
                        Some(current) if !right => assert_conflict(outcome, &current),
                        Some(_) => {
                            assert_done(outcome);
                            model.insert(n, (fresh, end, time));
                        }
                    }
                }
                Op::Touch(n, ttl) => {
                    let (until, ttl) = at(ttl);
                    let current = model.get(&n).map_or(fresh, |(record, ..)| record.clone());
                    now(store.touch(&id(n), entry(current, ttl)));
                    if let Some((_, end, used)) = model.get_mut(&n) {
                        (*end, *used) = (until, time);
                    }
                }
                Op::Destroy(n) => {
                    seen.insert(n);
                    now(store.end(&id(n), EndReason::LoggedOut.into()));
                    model.remove(&n);
                }
                Op::Advance(seconds) => {
                    clock.advance(Duration::from_secs(seconds));
                    time += seconds * 1000;
                    model.retain(|_, (_, end, _)| *end > time);
                }
            }
            assert!(store.len() <= capacity);
            assert!(store.len() >= model.len(), "{} of {}", store.len(), model.len());
        }
        for n in 0..24 {
            assert_eq!(is_alive(&store, n), model.contains_key(&n), "session {n}");
        }
    }

    #[test]
    fn random_operations_agree_with_a_map() {
        let ops = prop::collection::vec(op(), 1..80);
        runner(256)
            .run(&ops, |ops| {
                agrees_with_a_map(ops, 1000);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn random_operations_in_a_small_store_agree_with_a_map() {
        let case = (prop::collection::vec(op(), 1..80), 1..5_usize);
        runner(256)
            .run(&case, |(ops, capacity)| {
                agrees_with_a_map(ops, capacity);
                Ok(())
            })
            .unwrap();
    }
}

mod records {
    use super::*;

    const VALID: &str = concat!(
        r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"persistent":true,"#,
        r#""user":"ana","data":{"cart":[1,2],"visits":3}}"#
    );

    #[track_caller]
    fn assert_refused(stored: impl AsRef<[u8]>) {
        let stored = stored.as_ref();
        assert!(Record::decode(stored).is_err(), "{}", String::from_utf8_lossy(stored));
    }

    /// `VALID` with a replacement of a part that must exist.
    #[track_caller]
    fn but(from: &str, to: &str) -> String {
        assert!(VALID.contains(from));
        VALID.replace(from, to)
    }

    /// One record of each released format. Deployed Redis servers contain them.
    const FORMAT_1: &str = concat!(
        r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"persistent":true,"#,
        r#""user":"ana","data":{"cart":[1,2],"visits":3}}"#
    );
    const FORMAT_2: &str = concat!(
        r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"#,
        r#""g":["abcdefghijklmnop","",1763679641000,30000],"replaces":"aaaaaaaaaaaapN2I6bgh3Vjpg9nlyEj4TNgpZp-JfZSu","#,
        r#""persistent":true,"user":"ana","meta":{"ip":"203.0.113.7","ua":"curl/8","fields":{"device":"phone"}},"#,
        r#""data":{"cart":[1,2],"visits":3}}"#
    );
    const FORMAT_3_HEX: &str = concat!(
        "7b2276223a332c226e223a22414141414178626b3066546a4b387077222c2274223a5b313736333637393630303030302c34",
        "323030302c313830303030302c38363430303030305d7d86a16794b06162636465666768696a6b6c6d6e6f70a0cf0000019a",
        "a37f9da8cd7530a87265706c61636573d92c616161616161616161616161704e32493662676833566a7067396e6c79456a34",
        "544e67705a702d4a665a5375aa70657273697374656e74c3a475736572a3616e61a46d65746183a2697081a2563494cccb00",
        "7107a27561a66375726c2f38a66669656c647381a6646576696365a570686f6e65a46461746181a676616c75657382a46361",
        "7274920102a676697369747303"
    );

    #[test]
    fn a_record_of_format_1_stays_readable() {
        let record = Record::decode(FORMAT_1.as_bytes()).unwrap();
        assert_eq!(record.user(), Some("ana"));
        assert_eq!(record.created_at().as_millis(), 1_763_679_600_000);
        assert_eq!(record.version().to_string(), "AAAAAxbk0fTjK8pw");
        assert_eq!(String::from_utf8(record.encode()).unwrap(), FORMAT_1.replace("\"v\":1", "\"v\":2"));
        // A later field is not part of this format.
        for later in [
            r#""g":["abcdefghijklmnop","",1,1],"#,
            r#""meta":{"ua":"x"},"#,
            r#""leases":{"a":[1,2]},"#,
            r#""unused":true,"#,
        ] {
            assert_refused(FORMAT_1.replace(r#""user""#, &format!(r#"{later}"user""#)));
        }
    }

    #[test]
    fn a_record_of_format_2_stays_readable() {
        assert_eq!(String::from_utf8(Record::decode(FORMAT_2.as_bytes()).unwrap().encode()).unwrap(), FORMAT_2);
        assert_eq!(Record::decode(VALID.as_bytes()).unwrap().encode(), VALID.as_bytes());
        // Optional fields may be absent.
        let least = r#"{"v":2,"n":"AAAAAQAAAAAAAAAA","t":[0,0,1,1],"data":{}}"#;
        let record = Record::decode(least.as_bytes()).unwrap();
        assert_eq!(record.user(), None);
        assert_eq!(record.encode(), least.as_bytes());
    }

    #[test]
    fn a_record_of_format_3_stays_readable() {
        let bytes: Vec<u8> = (0..FORMAT_3_HEX.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&FORMAT_3_HEX[at..at + 2], 16).unwrap())
            .collect();
        let record = Record::decode(&bytes).unwrap();
        assert_eq!(String::from_utf8(record.encode()).unwrap(), FORMAT_2, "the same record, as JSON");
        assert_eq!(record.encode_as(Codec::MessagePack), bytes);
    }

    #[test]
    fn a_session_of_format_1_is_served() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let store = MemoryStore::new();
            // Created long ago, with an even longer absolute timeout.
            let stored = FORMAT_1.replace("86400000]", "315360000000]").replace("1800000", "315360000000");
            let record = Arc::new(Record::decode(stored.as_bytes()).unwrap());
            assert_created(store.create(&id(1), entry(record, HOUR), Limits::none()).await.unwrap());
            let layer = SessionLayer::new(store).cookie(tower_keep::SessionCookie::development());
            let app = crate::support::app::App::start(layer).await;
            let client = app.client();
            client.set_cookie("session", token(1).expose());
            let found = client.perform(serde_json::json!([["user"], ["get", "visits"], ["get", "cart"]])).await;
            assert_eq!(serde_json::json!(found), serde_json::json!(["ana", 3, [1, 2]]));
        });
    }

    #[test]
    fn an_invalid_record_is_refused() {
        for stored in ["", " ", "null", "1", "\"\"", "[]", "{}", "{", "a:0:{}", "\u{feff}{}", "{\"v\":1}"] {
            assert_refused(stored);
        }
        assert_refused([0xff; 64]);
        assert_refused([0; 64]);
        for end in 0..VALID.len() {
            assert_refused(&VALID[..end]);
        }
    }

    #[test]
    fn a_record_with_an_unknown_field_is_refused() {
        assert_refused(but(r#""data""#, r#""role":"admin","data""#));
        assert_refused(but(r#""user""#, r#""User""#));
        assert_refused(but(r#"{"v":2"#, r#"{"v":2,"v":2"#));
    }

    #[test]
    fn a_record_without_a_field_is_refused() {
        assert_refused(but(r#""v":2,"#, ""));
        assert_refused(but(r#""n":"AAAAAxbk0fTjK8pw","#, ""));
        assert_refused(but(r#""t":[1763679600000,42000,1800000,86400000],"#, ""));
        assert_refused(but(r#","data":{"cart":[1,2],"visits":3}"#, ""));
    }

    #[test]
    fn a_record_of_another_format_is_refused() {
        for format in ["0", "3", "4", "9", "-1", "4294967296", "\"2\"", "2.0", "null", "true"] {
            assert_refused(but(r#""v":2"#, &format!(r#""v":{format}"#)));
        }
    }

    #[test]
    fn a_record_with_inconsistent_timeouts_is_refused() {
        for t in [
            "[1763679600000,42000,0,86400000]",
            "[1763679600000,42000,1800000,0]",
            "[1763679600000,42000,0,0]",
            "[1763679600000,42000,86400001,86400000]",
            "[1763679600000,42000,1800000]",
            "[1763679600000,42000,1800000,86400000,1]",
            "[-1,42000,1800000,86400000]",
            "[1763679600000,42000,1800000.5,86400000]",
            "[1763679600000,42000,1800000,18446744073709551616]",
            "{}",
            "[]",
            "null",
        ] {
            assert_refused(but("[1763679600000,42000,1800000,86400000]", t));
        }
    }

    #[test]
    fn extreme_times_do_not_panic() {
        let far = u64::MAX;
        let stored = but("[1763679600000,42000,1800000,86400000]", &format!("[{far},{far},{far},{far}]"));
        if let Ok(record) = Record::decode(stored.as_bytes()) {
            let _ = record.encode();
        }
    }

    #[test]
    fn a_record_with_a_bad_version_is_refused() {
        for version in [
            "",
            "AAAA",
            "AAAAAxbk0fTjK8p",
            "AAAAAxbk0fTjK8pwA",
            "AAAAAxbk0fTjK8pw====",
            "AAAAAxbk0fTjK8p+",
            "AAAAAxbk0fTjK8p ",
            "AAAAAxbk0fTjK8pé",
        ] {
            assert_refused(but("AAAAAxbk0fTjK8pw", version));
        }
        assert_refused(but(r#""AAAAAxbk0fTjK8pw""#, "12345"));
    }

    #[test]
    fn a_record_whose_values_have_the_wrong_type_is_refused() {
        for data in ["[]", "null", "\"\"", "1", r#"{"a"}"#, r#"{"a":}"#, r#"{a:1}"#, r#"{"a":NaN}"#, r#"{"a":1,}"#] {
            assert_refused(but(r#"{"cart":[1,2],"visits":3}"#, data));
        }
        for user in ["1", "[]", "{}", "true"] {
            assert_refused(but(r#""ana""#, user));
        }
        for persistent in ["1", "\"true\"", "[]"] {
            assert_refused(but(r#""persistent":true"#, &format!(r#""persistent":{persistent}"#)));
        }
    }

    #[test]
    fn a_record_that_is_not_utf_8_is_refused() {
        for at in [VALID.find("ana").unwrap(), VALID.find("cart").unwrap()] {
            let mut stored = VALID.as_bytes().to_vec();
            stored[at] = 0xff;
            assert_refused(&stored);
        }
    }

    #[test]
    fn a_record_with_trailing_bytes_is_refused() {
        for tail in ["x", "{}", "\0", VALID, ",", "}"] {
            assert_refused(format!("{VALID}{tail}"));
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
            let stored = but("[1,2]", &deep);
            if let Ok(record) = Record::decode(stored.as_bytes()) {
                assert_eq!(record.encode(), stored.as_bytes());
            }
        }
    }

    /// Stores compare bytes: a record that decodes but differs from what `encode` writes could never be updated.
    #[test]
    fn records_that_encode_cannot_write_are_refused() {
        let as_written = Record::decode(VALID.as_bytes()).unwrap();
        assert_eq!(as_written.encode(), VALID.as_bytes());
        for stored in [
            format!(" {VALID}"),
            format!("{VALID}\n"),
            but(r#"{"v":2,"#, r#"{ "v": 2, "#),
            but(r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","#, r#"{"n":"AAAAAxbk0fTjK8pw","v":2,"#),
            but(r#""AAAAAxbk0fTjK8pw""#, r#""\u0041AAAAxbk0fTjK8pw""#),
        ] {
            assert_refused(stored);
        }
    }

    #[tokio::test]
    async fn a_record_from_redis_can_be_updated() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap().timeout(10 * SECOND));
        for (n, stored) in
            [(1, VALID.to_owned()), (2, but(r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","#, r#"{"n":"AAAAAxbk0fTjK8pw","v":2,"#))]
        {
            // Under the store's own key, in a foreign format.
            assert_created(store.create(&id(n), entry(record(1, 1), HOUR), Limits::none()).await.unwrap());
            let key = server.sessions().await.into_iter().find(|key| id(n).to_string().ends_with(&key[20..])).unwrap();
            server.command(&format!("SET {key} {stored} KEEPTTL")).await;
            // Refusing it is also correct.
            if let Ok(loaded) = store.load(&id(n)).await {
                let version = loaded.live().unwrap().record.version();
                assert_done(store.update(&id(n), version, entry(record(2, 2), HOUR)).await.unwrap());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        runner(4096)
            .run(&prop::collection::vec(any::<u8>(), 0..256), |bytes| {
                prop_assert!(Record::decode(&bytes).is_err());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_damaged_record_never_panics() {
        let edit = (any::<prop::sample::Index>(), 0..3_u8, any::<u8>());
        let interesting = prop_oneof![
            Just(b'"'),
            Just(b'{'),
            Just(b'}'),
            Just(b'['),
            Just(b']'),
            Just(b','),
            Just(b':'),
            Just(b'0'),
            Just(b'-'),
            Just(b'\\'),
            Just(b' '),
            Just(0),
            Just(0xff),
            any::<u8>()
        ];
        let edits = prop::collection::vec((edit, interesting), 1..6);
        runner(4096)
            .run(&edits, |edits| {
                let mut stored = VALID.as_bytes().to_vec();
                for ((at, kind, _), byte) in edits {
                    let at = at.index(stored.len());
                    match kind {
                        0 => stored[at] = byte,
                        1 => stored.insert(at, byte),
                        _ => drop(stored.remove(at)),
                    }
                }
                if let Ok(record) = Record::decode(&stored) {
                    let encoded = record.encode();
                    prop_assert_eq!(Version::of(&encoded), Some(record.version()));
                    let again = Record::decode(&encoded).unwrap();
                    prop_assert_eq!(again.encode(), encoded);
                    prop_assert_eq!(again.version(), record.version());
                }
                Ok(())
            })
            .unwrap();
    }

    /// The record as JSON, with maps in any order.
    fn values(record: &Record) -> serde_json::Value {
        serde_json::from_slice(&record.encode()).unwrap()
    }

    /// Damaged MessagePack, in the head and in the body.
    #[test]
    fn a_damaged_message_pack_record_never_panics() {
        let whole = Record::decode(FORMAT_2.as_bytes()).unwrap().encode_as(Codec::MessagePack);
        for end in 0..whole.len() {
            assert_refused(&whole[..end]);
        }
        let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, any::<u8>()), 1..6);
        runner(8192)
            .run(&edits, |edits| {
                let mut stored = whole.clone();
                for (at, kind, byte) in edits {
                    let at = at.index(stored.len());
                    match kind {
                        0 => stored[at] = byte,
                        1 => stored.insert(at, byte),
                        _ => drop(stored.remove(at)),
                    }
                }
                if let Ok(record) = Record::decode(&stored) {
                    let again = Record::decode(&record.encode_as(Codec::MessagePack)).unwrap();
                    prop_assert_eq!(again.encode(), record.encode());
                }
                Ok(())
            })
            .unwrap();
        // Lengths that the body does not have: memory is not allocated in advance.
        let head = &whole[..whole.iter().position(|byte| *byte == b'}').unwrap() + 1];
        for promise in [[0xdf, 0xff, 0xff, 0xff, 0xff], [0xdd, 0xff, 0xff, 0xff, 0xff], [0xdb, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_refused([head, &promise].concat());
        }
        assert_refused([head, &[0x91; 100_000]].concat()); // and no stack overflow
    }

    /// Random bytes as the MessagePack body.
    #[test]
    fn arbitrary_message_pack_never_panics() {
        let head = br#"{"v":3,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000]}"#;
        // A map with known fields, so that their values are parsed too.
        let field =
            prop::sample::select(vec!["g", "replaces", "persistent", "user", "meta", "data", "values", "texts"]);
        let part = (prop::option::of(field), prop::collection::vec(any::<u8>(), 0..24));
        let body = (prop::option::of(0x80..0x90_u8), prop::collection::vec(part, 0..6));
        runner(8192)
            .run(&body, |(map, parts)| {
                let mut stored = head.to_vec();
                stored.extend(map);
                for (field, bytes) in parts {
                    if let Some(field) = field {
                        stored.push(0xa0 + field.len() as u8);
                        stored.extend(field.as_bytes());
                    }
                    stored.extend(bytes);
                }
                if let Ok(record) = Record::decode(&stored) {
                    let again = Record::decode(&record.encode_as(Codec::MessagePack)).unwrap();
                    prop_assert_eq!(again.encode(), record.encode());
                }
                Ok(())
            })
            .unwrap();
    }

    /// JSON numbers of any size, fraction and notation.
    fn number() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(vec![
            "-0",
            "-0.0",
            "0.10",
            "1e0",
            "1E+2",
            "5e-324",
            "4.9e-324",
            "1e-400",
            "1e400",
            "1.7976931348623157e308",
            "9007199254740993",
            "9007199254740993.0",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775808",
            "-9223372036854775809",
            "340282366920938463463374607431768211455",
            "0.1e1",
            "3.141592653589793238462643383279502884197",
            "1e-7",
            "100000000000000000000.5",
        ]);
        prop_oneof![odd.prop_map(str::to_owned), "-?(0|[1-9][0-9]{0,45})(\\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?"]
    }

    #[test]
    fn every_number_is_kept_as_it_was_written() {
        runner(4096)
            .run(&(number(), number()), |(one, other)| {
                for value in
                    [one.clone(), format!("[{one},{other}]"), format!(r#"{{"a":[{one}],"b":{{"c":{other}}}}}"#)]
                {
                    let stored = but("[1,2]", &value);
                    let record = Record::decode(stored.as_bytes()).unwrap();
                    prop_assert_eq!(String::from_utf8(record.encode()).unwrap(), &stored[..]);
                    let packed = Record::decode(&record.encode_as(Codec::MessagePack)).unwrap();
                    prop_assert_eq!(String::from_utf8(packed.encode()).unwrap(), stored);
                }
                Ok(())
            })
            .unwrap();
    }

    /// All parts of a record except its values.
    #[test]
    fn every_field_is_kept_in_both_forms() {
        let generation = prop::collection::vec(any::<u8>(), 12).prop_map(|nonce| URL_SAFE_NO_PAD.encode(nonce));
        let previous = prop_oneof![Just(String::new()), generation.clone()];
        let rotation = prop::option::of((generation, previous, any::<u64>(), any::<u64>()));
        let ip = prop::option::of(any::<std::net::IpAddr>());
        let fields = prop::collection::btree_map(any::<String>(), any::<String>(), 0..4);
        let metadata = (ip, prop::option::of(any::<String>()), fields);
        let replaces = prop::option::of(0..1000_u64);
        let fields = (rotation, replaces, any::<bool>(), prop::option::of(any::<String>()), metadata);
        runner(2048)
            .run(&fields, |(rotation, replaces, persistent, user, (ip, agent, fields))| {
                let mut stored =
                    r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000]"#.to_owned();
                let mut add = |name: &str, value: serde_json::Value| stored += &format!(r#","{name}":{value}"#);
                if let Some(rotation) = rotation {
                    add("g", serde_json::json!(rotation));
                }
                if let Some(n) = replaces {
                    add("replaces", serde_json::json!(id(n)));
                }
                if persistent {
                    add("persistent", true.into());
                }
                if let Some(user) = user {
                    add("user", user.into());
                }
                let mut metadata = Vec::new();
                metadata.extend(ip.map(|ip| format!(r#""ip":"{ip}""#)));
                metadata.extend(agent.map(|agent| format!(r#""ua":{}"#, serde_json::json!(agent))));
                if !fields.is_empty() {
                    metadata.push(format!(r#""fields":{}"#, serde_json::to_string(&fields).unwrap()));
                }
                if !metadata.is_empty() {
                    stored += &format!(r#","meta":{{{}}}"#, metadata.join(","));
                }
                stored += r#","data":{}}"#;
                let record = Record::decode(stored.as_bytes()).unwrap();
                prop_assert_eq!(String::from_utf8(record.encode()).unwrap(), &stored[..]);
                let packed = Record::decode(&record.encode_as(Codec::MessagePack)).unwrap();
                prop_assert_eq!(String::from_utf8(packed.encode()).unwrap(), stored);
                Ok(())
            })
            .unwrap();
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<u64>().prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
            any::<String>().prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn a_decoded_record_is_encoded_identically() {
        let record = (
            (any::<u32>(), any::<u64>()),
            (any::<u32>(), any::<u32>(), 1..u32::MAX, any::<u32>()),
            any::<bool>(),
            prop::option::of(any::<String>()),
            prop::collection::btree_map(any::<String>(), json(), 0..5),
        );
        runner(512)
            .run(&record, |((counter, nonce), (created, written, idle, more), persistent, user, data)| {
                let n = version_text(counter, nonce);
                let absolute = u64::from(idle) + u64::from(more);
                let persistent = if persistent { r#","persistent":true"# } else { "" };
                let user = user.map(|user| format!(r#","user":{}"#, serde_json::to_string(&user).unwrap()));
                let user = user.unwrap_or_default();
                let data = serde_json::to_string(&data).unwrap();
                let stored = format!(
                    r#"{{"v":2,"n":"{n}","t":[{created},{written},{idle},{absolute}]{persistent}{user},"data":{data}}}"#
                );
                let record = Record::decode(stored.as_bytes()).unwrap();
                prop_assert_eq!(String::from_utf8(record.encode()).unwrap(), stored);
                prop_assert_eq!(Version::of(&record.encode()), Some(record.version()));
                // The same in MessagePack.
                let packed = Record::decode(&record.encode_as(Codec::MessagePack)).unwrap();
                prop_assert_eq!(Version::of(&packed.encode_as(Codec::MessagePack)), Some(record.version()));
                prop_assert_eq!(values(&packed), values(&record));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn versions_are_unique() {
        let versions: Vec<_> = [(1, 1), (1, 2), (2, 1), (u32::MAX, u64::MAX), (0, 0)]
            .into_iter()
            .map(|(counter, nonce)| record(counter, nonce))
            .collect();
        for (i, one) in versions.iter().enumerate() {
            for (j, other) in versions.iter().enumerate() {
                assert_eq!(Version::of(&other.encode()) == Some(one.version()), i == j);
                assert_eq!(one.version() == other.version(), i == j);
            }
        }
    }
}

mod names {
    use super::*;

    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    #[test]
    fn a_token_has_56_or_72_characters() {
        for len in [0, 1, 44, 55, 57, 71, 73, 112, 144, 100_000] {
            assert!(Token::parse("a".repeat(len)).is_err(), "{len}");
        }
        assert!(Token::parse("a".repeat(56)).is_ok());
        assert!(Token::parse("a".repeat(72)).is_ok());
        // The length counts bytes.
        assert!(Token::parse("é".repeat(56)).is_err());
        assert!(Token::parse("é".repeat(28)).is_err());
    }

    #[test]
    fn a_token_contains_only_base64url() {
        for byte in 0..=255 {
            for at in [0, 11, 12, 55] {
                let mut text = [b'a'; 56];
                text[at] = byte;
                assert_eq!(Token::parse(text).is_ok(), ALPHABET.contains(&byte), "{byte} at {at}");
            }
        }
        for bad in ["\r\n", "\0\0", "=", "+", "/", "é", "%41", " ", "\t", "🦀", ";", ","] {
            for text in [format!("{bad}{}", "a".repeat(56 - bad.len())), format!("{}{bad}", "a".repeat(56 - bad.len()))]
            {
                assert_eq!(text.len(), 56);
                assert!(Token::parse(&text).is_err(), "{text:?}");
            }
        }
        assert!(Token::parse(format!(" {}", "a".repeat(56))).is_err());
        assert!(Token::parse(format!("{}\n", "a".repeat(56))).is_err());
    }

    #[test]
    fn a_parsed_token_is_unchanged() {
        let text = "AZaz09-_".repeat(7);
        assert_eq!(Token::parse(&text).unwrap().expose(), text);
    }

    #[test]
    fn ids_and_tokens_are_not_interchangeable() {
        let token = token(1);
        let id = token.id().to_string();
        assert!(Token::parse(&id).is_err());
        assert!(token.expose().parse::<SessionId>().is_err());
        // Also not after padding or truncation to the other length.
        let longer = format!("{id}AAAAAAAAAAAA");
        assert_ne!(Token::parse(&longer).unwrap().id().to_string(), id);
        assert_ne!(token.expose()[..44], id);
    }

    #[test]
    fn an_id_does_not_show_the_secret() {
        let token = Token::parse("tagtagtagtagSECRETSECRETSECRETSECRETSECRETSECRET12345678").unwrap();
        let id = token.id();
        assert_eq!(id.slot_tag(), "tagtagtagtag");
        assert!(id.to_string().starts_with("tagtagtagtag"));
        assert!(!id.to_string().contains("SECRET"));
    }

    #[test]
    fn debug_shows_the_id_and_not_the_token() {
        let token = token(1);
        assert_eq!(format!("{token:?}"), "Token(redacted)");
        assert_eq!(format!("{:#?}", Some(&token)), "Some(\n    Token(redacted),\n)");
        assert_eq!(format!("{:?}", token.id()), format!("SessionId({})", token.id()));
        let error = Token::parse("my secret").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
        let error = "my secret".parse::<SessionId>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn every_character_of_a_token_matters() {
        let text = [b'a'; 56];
        let id = Token::parse(text).unwrap().id();
        let mut ids = HashSet::from([id.to_string()]);
        for at in 0..56 {
            let mut other = text;
            other[at] = b'b';
            let other = Token::parse(other).unwrap().id();
            assert_ne!(other.to_string()[12..], id.to_string()[12..], "the hash is of the whole token");
            assert!(ids.insert(other.to_string()));
        }
    }

    /// A change here would end all sessions of all deployments.
    #[test]
    fn the_id_of_a_token_is_stable() {
        let id = Token::parse("a".repeat(56)).unwrap().id();
        assert_eq!(id, Token::parse("a".repeat(56)).unwrap().id());
        assert_eq!(id.to_string(), FIXED_ID);
    }

    const FIXED_ID: &str = "aaaaaaaaaaaapN2I6bgh3Vjpg9nlyEj4TNgpZp-JfZSu";

    #[tokio::test]
    async fn tokens_and_ids_are_unique() {
        let sessions = SessionLayer::new(MemoryStore::new()).sessions();
        let (mut tokens, mut ids) = (HashSet::new(), HashSet::new());
        for _ in 0..5000 {
            let token = sessions.create("ana").await.unwrap();
            assert!(ids.insert(token.id()));
            assert!(tokens.insert(token.expose().to_owned()));
            assert_eq!(Token::parse(token.expose()).unwrap(), token);
        }
        // One tag per user.
        let tags: HashSet<&str> = ids.iter().map(SessionId::slot_tag).collect();
        assert_eq!(tags.len(), 1);
        let other = sessions.create("bob").await.unwrap();
        assert!(!tags.contains(other.id().slot_tag()));
    }

    #[test]
    fn an_id_survives_a_round_trip() {
        for n in 0..200 {
            let id = id(n);
            let text = id.to_string();
            assert_eq!(text.len(), 44);
            assert_eq!(text.parse::<SessionId>().unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), id);
        }
        runner(512)
            .run(&prop::collection::vec(prop::sample::select(ALPHABET), 44), |text| {
                let text = String::from_utf8(text).unwrap();
                let id: SessionId = text.parse().unwrap();
                prop_assert_eq!(id.to_string(), text);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn an_invalid_id_is_refused() {
        for len in [0, 1, 43, 45, 56, 100_000] {
            assert!("a".repeat(len).parse::<SessionId>().is_err(), "{len}");
        }
        for byte in (0..128).filter(|byte| !ALPHABET.contains(byte)) {
            for at in [0, 11, 12, 43] {
                let mut text = [b'a'; 44];
                text[at] = byte;
                assert!(std::str::from_utf8(&text).unwrap().parse::<SessionId>().is_err(), "{byte} at {at}");
            }
        }
        for json in ["1", "null", "[]", "\"short\"", "{}", "\"sess:*\""] {
            assert!(serde_json::from_str::<SessionId>(json).is_err(), "{json}");
        }
    }
}
