//! What every store promises, asked of each of them; then what only the memory store, the stored form and the names of
//! sessions promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod support;

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use support::{eventually, redis_server::RedisServer};
use tokio::{sync::Barrier, task::JoinSet};
use tower_keep::{
    ManualClock, MemoryStore, SessionId, SessionLayer, Token,
    store::{
        Health, Loaded, Outcome, Record, SessionStore, Version,
        redis::{RedisConfig, RedisStore},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The token number `n`.
fn token(n: u64) -> Token {
    Token::parse(format!("{n:056}")).unwrap()
}

/// The id of the token number `n`.
fn id(n: u64) -> SessionId {
    token(n).id()
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

/// A version that nothing has.
fn no_version() -> Version {
    record(u32::MAX, u64::MAX).version()
}

#[track_caller]
fn assert_done(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
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

/// A store under test, and what makes its time pass.
struct Subject {
    store: Arc<dyn SessionStore>,
    clock: Option<ManualClock>,
    _redis: Option<RedisServer>,
}

impl Subject {
    async fn memory() -> Self {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        Self { store, clock: Some(clock), _redis: None }
    }

    async fn redis() -> Self {
        let redis = RedisServer::start().await;
        // Generous: no test here is about how long it takes.
        let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(10 * SECOND).connect_timeout(10 * SECOND);
        Self { store: Arc::new(RedisStore::new(config)), clock: None, _redis: Some(redis) }
    }

    async fn load(&self, id: &SessionId) -> Option<Loaded> {
        self.store.load(id).await.unwrap()
    }

    async fn create(&self, id: &SessionId, record: &Arc<Record>, ttl: Duration) -> Outcome {
        self.store.create(id, record.clone(), ttl).await.unwrap()
    }

    async fn update(&self, id: &SessionId, expected: &Record, record: &Arc<Record>, ttl: Duration) -> Outcome {
        self.store.update(id, expected.version(), record.clone(), ttl).await.unwrap()
    }

    async fn rotate(&self, old: &SessionId, expected: &Record, new: &SessionId, record: &Arc<Record>) -> Outcome {
        self.store.rotate(old, expected.version(), new, record.clone(), HOUR).await.unwrap()
    }

    async fn assert_holds(&self, id: &SessionId, record: &Record) {
        let loaded = self.load(id).await.expect("a live session");
        assert_eq!(loaded.record.encode(), record.encode());
    }

    async fn assert_nothing(&self, id: &SessionId) {
        let loaded = self.load(id).await;
        assert!(loaded.is_none(), "{loaded:?}");
    }

    /// The time to live is `ttl`, less what the test itself took.
    async fn assert_ttl(&self, id: &SessionId, ttl: Duration) {
        let left = self.load(id).await.expect("a live session").ttl.expect("a time to live");
        let slack = if self.clock.is_some() { Duration::ZERO } else { MINUTE };
        assert!(left <= ttl && left + slack >= ttl, "{left:?}, not {ttl:?}");
    }

    /// Returns when the session has ended by time.
    async fn assert_expires(&self, id: &SessionId, after: Duration) {
        if let Some(clock) = &self.clock {
            clock.advance(after - Duration::from_millis(1));
            assert!(self.load(id).await.is_some(), "it has a millisecond left");
            clock.advance(Duration::from_millis(1));
            self.assert_nothing(id).await;
        } else {
            eventually("it expires", async || self.load(id).await.is_none()).await;
        }
    }
}

/// Each contract, for each store.
macro_rules! contract {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::Subject::memory().await).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::Subject::redis().await).await;
            })*
        }
    };
}

contract! {
    what_is_created_is_loaded_whole
    what_was_never_created_is_not_there
    create_of_an_id_that_exists_is_a_conflict
    create_can_be_repeated
    create_repeated_after_a_later_write_changes_nothing
    update_replaces_the_version_it_names
    update_can_be_repeated
    update_of_another_version_is_a_conflict_and_changes_nothing
    update_of_a_missing_session_creates_nothing
    update_sets_the_time_to_live
    rotate_moves_the_session_in_one_step
    rotate_can_be_repeated
    rotate_of_another_version_is_a_conflict_and_changes_nothing
    rotate_of_a_missing_session_creates_nothing
    a_rotated_id_never_comes_back
    destroy_can_be_repeated
    a_destroyed_id_never_comes_back
    an_expired_id_never_comes_back
    touch_sets_the_time_to_live
    touch_of_what_was_written_since_does_nothing
    touch_of_a_missing_session_does_nothing
    the_time_to_live_ends_a_session
    a_time_to_live_of_a_millisecond_is_accepted
    of_64_updates_of_one_version_one_wins
    of_64_creates_of_one_id_one_wins
    of_64_rotates_one_wins_and_one_id_lives
    updates_rotates_and_a_destroy_at_once_leave_no_more_than_one_id
    sessions_do_not_touch_each_other
    a_large_record_comes_back_whole
    it_is_up
}

async fn what_is_created_is_loaded_whole(s: Subject) {
    let stored = concat!(
        r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"persistent":true,"user":"añа\n\"🦀\"","#,
        r#""data":{"":null,"big":18446744073709551615,"float":0.1,"nested":{"b":[1,{"x":"\\u0000"}],"a":""},"text":"é\r\n\t"}}"#
    );
    let record = Arc::new(Record::decode(stored.as_bytes()).unwrap());
    assert_done(s.create(&id(1), &record, HOUR).await);
    let loaded = s.load(&id(1)).await.unwrap();
    assert_eq!(String::from_utf8(loaded.record.encode()).unwrap(), stored);
    assert_eq!(loaded.record.version(), record.version());
    s.assert_ttl(&id(1), HOUR).await;
}

async fn what_was_never_created_is_not_there(s: Subject) {
    s.assert_nothing(&id(1)).await;
    assert_done(s.create(&id(1), &record(1, 1), HOUR).await);
    s.assert_nothing(&id(2)).await;
}

async fn create_of_an_id_that_exists_is_a_conflict(s: Subject) {
    let (first, second) = (record(1, 1), record(1, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_conflict(s.create(&id(1), &second, 2 * HOUR).await, &first);
    s.assert_holds(&id(1), &first).await;
    s.assert_ttl(&id(1), HOUR).await;
}

async fn create_can_be_repeated(s: Subject) {
    let first = record(1, 1);
    for _ in 0..3 {
        assert_done(s.create(&id(1), &first, HOUR).await);
    }
    s.assert_holds(&id(1), &first).await;
    s.assert_ttl(&id(1), HOUR).await;
}

async fn create_repeated_after_a_later_write_changes_nothing(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_done(s.update(&id(1), &first, &second, HOUR).await);
    assert_conflict(s.create(&id(1), &first, HOUR).await, &second);
    s.assert_holds(&id(1), &second).await;
}

async fn update_replaces_the_version_it_names(s: Subject) {
    let (first, second, third) = (record(1, 1), record(2, 2), record(3, 3));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_done(s.update(&id(1), &first, &second, HOUR).await);
    s.assert_holds(&id(1), &second).await;
    assert_done(s.update(&id(1), &second, &third, HOUR).await);
    s.assert_holds(&id(1), &third).await;
}

async fn update_can_be_repeated(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    for _ in 0..3 {
        assert_done(s.update(&id(1), &first, &second, HOUR).await);
    }
    s.assert_holds(&id(1), &second).await;
}

async fn update_of_another_version_is_a_conflict_and_changes_nothing(s: Subject) {
    // Versions that differ in the counter only, in the nonce only, in both.
    let current = record(2, 2);
    assert_done(s.create(&id(1), &current, HOUR).await);
    for expected in [record(1, 2), record(2, 1), record(3, 3)] {
        assert_conflict(s.update(&id(1), &expected, &record(9, 9), 2 * HOUR).await, &current);
        s.assert_holds(&id(1), &current).await;
        s.assert_ttl(&id(1), HOUR).await;
    }
}

async fn update_of_a_missing_session_creates_nothing(s: Subject) {
    assert_gone(s.update(&id(1), &record(1, 1), &record(2, 2), HOUR).await);
    s.assert_nothing(&id(1)).await;
}

async fn update_sets_the_time_to_live(s: Subject) {
    let (first, second, third) = (record(1, 1), record(2, 2), record(3, 3));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_done(s.update(&id(1), &first, &second, 10 * HOUR).await);
    s.assert_ttl(&id(1), 10 * HOUR).await;
    assert_done(s.update(&id(1), &second, &third, 5 * MINUTE).await);
    s.assert_ttl(&id(1), 5 * MINUTE).await;
}

async fn rotate_moves_the_session_in_one_step(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, MINUTE).await);
    assert_done(s.rotate(&id(1), &first, &id(2), &second).await);
    s.assert_nothing(&id(1)).await;
    s.assert_holds(&id(2), &second).await;
    s.assert_ttl(&id(2), HOUR).await;
}

async fn rotate_can_be_repeated(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    for _ in 0..3 {
        assert_done(s.rotate(&id(1), &first, &id(2), &second).await);
    }
    s.assert_nothing(&id(1)).await;
    s.assert_holds(&id(2), &second).await;
}

async fn rotate_of_another_version_is_a_conflict_and_changes_nothing(s: Subject) {
    let current = record(2, 2);
    assert_done(s.create(&id(1), &current, HOUR).await);
    for expected in [record(1, 2), record(2, 1), record(3, 3)] {
        assert_conflict(s.rotate(&id(1), &expected, &id(2), &record(9, 9)).await, &current);
        s.assert_holds(&id(1), &current).await;
        s.assert_nothing(&id(2)).await;
    }
}

async fn rotate_of_a_missing_session_creates_nothing(s: Subject) {
    assert_gone(s.rotate(&id(1), &record(1, 1), &id(2), &record(2, 2)).await);
    s.assert_nothing(&id(1)).await;
    s.assert_nothing(&id(2)).await;
}

async fn a_rotated_id_never_comes_back(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_done(s.rotate(&id(1), &first, &id(2), &second).await);
    // A slower write of the version that was, a rotation elsewhere, a touch.
    assert_gone(s.update(&id(1), &first, &record(2, 3), HOUR).await);
    assert_gone(s.rotate(&id(1), &first, &id(3), &record(2, 3)).await);
    s.store.touch(&id(1), first.version(), HOUR).await.unwrap();
    s.assert_nothing(&id(1)).await;
    s.assert_nothing(&id(3)).await;
    s.assert_holds(&id(2), &second).await;
}

async fn destroy_can_be_repeated(s: Subject) {
    s.store.destroy(&id(1)).await.unwrap();
    assert_done(s.create(&id(1), &record(1, 1), HOUR).await);
    for _ in 0..3 {
        s.store.destroy(&id(1)).await.unwrap();
        s.assert_nothing(&id(1)).await;
    }
}

async fn a_destroyed_id_never_comes_back(s: Subject) {
    let first = record(1, 1);
    assert_done(s.create(&id(1), &first, HOUR).await);
    s.store.destroy(&id(1)).await.unwrap();
    assert_gone(s.update(&id(1), &first, &record(2, 2), HOUR).await);
    assert_gone(s.rotate(&id(1), &first, &id(2), &record(2, 2)).await);
    s.store.touch(&id(1), first.version(), HOUR).await.unwrap();
    s.assert_nothing(&id(1)).await;
    s.assert_nothing(&id(2)).await;
}

async fn an_expired_id_never_comes_back(s: Subject) {
    let first = record(1, 1);
    assert_done(s.create(&id(1), &first, Duration::from_millis(20)).await);
    match &s.clock {
        Some(clock) => clock.advance(Duration::from_millis(20)),
        None => eventually("it expires", async || s.load(&id(1)).await.is_none()).await,
    }
    s.store.touch(&id(1), first.version(), HOUR).await.unwrap();
    assert_gone(s.update(&id(1), &first, &record(2, 2), HOUR).await);
    assert_gone(s.rotate(&id(1), &first, &id(2), &record(2, 2)).await);
    s.assert_nothing(&id(1)).await;
    s.assert_nothing(&id(2)).await;
}

async fn touch_sets_the_time_to_live(s: Subject) {
    let first = record(1, 1);
    assert_done(s.create(&id(1), &first, 5 * MINUTE).await);
    s.store.touch(&id(1), first.version(), 10 * HOUR).await.unwrap();
    s.assert_ttl(&id(1), 10 * HOUR).await;
    s.store.touch(&id(1), first.version(), HOUR).await.unwrap();
    s.assert_ttl(&id(1), HOUR).await;
    s.assert_holds(&id(1), &first).await;
}

async fn touch_of_what_was_written_since_does_nothing(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, HOUR).await);
    assert_done(s.update(&id(1), &first, &second, 5 * MINUTE).await);
    s.store.touch(&id(1), first.version(), 10 * HOUR).await.unwrap();
    s.assert_ttl(&id(1), 5 * MINUTE).await;
    s.assert_holds(&id(1), &second).await;
}

async fn touch_of_a_missing_session_does_nothing(s: Subject) {
    s.store.touch(&id(1), no_version(), HOUR).await.unwrap();
    s.assert_nothing(&id(1)).await;
}

async fn the_time_to_live_ends_a_session(s: Subject) {
    let (first, second) = (record(1, 1), record(2, 2));
    let ttl = Duration::from_millis(60);
    assert_done(s.create(&id(1), &first, ttl).await);
    s.assert_expires(&id(1), ttl).await;

    assert_done(s.create(&id(2), &first, HOUR).await);
    assert_done(s.update(&id(2), &first, &second, ttl).await);
    s.assert_expires(&id(2), ttl).await;

    assert_done(s.create(&id(3), &first, HOUR).await);
    s.store.touch(&id(3), first.version(), ttl).await.unwrap();
    s.assert_expires(&id(3), ttl).await;

    assert_done(s.create(&id(4), &first, HOUR).await);
    assert_done(s.store.rotate(&id(4), first.version(), &id(5), second, ttl).await.unwrap());
    s.assert_expires(&id(5), ttl).await;
}

async fn a_time_to_live_of_a_millisecond_is_accepted(s: Subject) {
    let (ttl, first, second) = (Duration::from_millis(1), record(1, 1), record(2, 2));
    assert_done(s.create(&id(1), &first, ttl).await);
    assert_done(s.create(&id(2), &first, HOUR).await);
    assert_done(s.update(&id(2), &first, &second, ttl).await);
    assert_done(s.create(&id(3), &first, HOUR).await);
    s.store.touch(&id(3), first.version(), ttl).await.unwrap();
    assert_done(s.create(&id(4), &first, HOUR).await);
    assert_done(s.store.rotate(&id(4), first.version(), &id(5), second, ttl).await.unwrap());
    if let Some(clock) = &s.clock {
        clock.advance(ttl);
    }
    for n in 1..=5 {
        eventually("it expires", async || s.load(&id(n)).await.is_none()).await;
    }
}

/// Runs `count` operations that all start at the same moment.
async fn at_once<F, T>(count: u64, operation: impl Fn(u64) -> F) -> Vec<(u64, T)>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let barrier = Arc::new(Barrier::new(count as usize));
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let (barrier, operation) = (barrier.clone(), operation(n));
        tasks.spawn(async move {
            barrier.wait().await;
            (n, operation.await)
        });
    }
    tasks.join_all().await
}

async fn of_64_updates_of_one_version_one_wins(s: Subject) {
    let first = record(1, 1);
    assert_done(s.create(&id(1), &first, HOUR).await);
    let outcomes = at_once(64, |n| {
        let (store, expected) = (s.store.clone(), first.version());
        async move { store.update(&id(1), expected, record(2, 100 + n), HOUR).await.unwrap() }
    })
    .await;
    let winners: Vec<_> = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Done)).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let winner = record(2, 100 + winners[0].0);
    s.assert_holds(&id(1), &winner).await;
    for (n, outcome) in outcomes {
        if record(2, 100 + n).version() != winner.version() {
            assert_conflict(outcome, &winner);
        }
    }
}

async fn of_64_creates_of_one_id_one_wins(s: Subject) {
    let outcomes = at_once(64, |n| {
        let store = s.store.clone();
        async move { store.create(&id(1), record(1, 100 + n), HOUR).await.unwrap() }
    })
    .await;
    let winners: Vec<_> = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Done)).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    s.assert_holds(&id(1), &record(1, 100 + winners[0].0)).await;
}

async fn of_64_rotates_one_wins_and_one_id_lives(s: Subject) {
    let first = record(1, 1);
    assert_done(s.create(&id(1), &first, HOUR).await);
    let outcomes = at_once(64, |n| {
        let (store, expected) = (s.store.clone(), first.version());
        async move { store.rotate(&id(1), expected, &id(100 + n), record(2, 100 + n), HOUR).await.unwrap() }
    })
    .await;
    s.assert_nothing(&id(1)).await;
    let mut winners = 0;
    for (n, outcome) in outcomes {
        match outcome {
            Outcome::Done => {
                winners += 1;
                s.assert_holds(&id(100 + n), &record(2, 100 + n)).await;
            }
            other => {
                assert_gone(other);
                s.assert_nothing(&id(100 + n)).await;
            }
        }
    }
    assert_eq!(winners, 1);
}

async fn updates_rotates_and_a_destroy_at_once_leave_no_more_than_one_id(s: Subject) {
    for round in 0..16 {
        let base = 1000 * round;
        let first = record(1, 1);
        assert_done(s.create(&id(base), &first, HOUR).await);
        let outcomes = at_once(33, |n| {
            let (store, expected) = (s.store.clone(), first.version());
            async move {
                let record = record(2, 100 + n);
                match n % 3 {
                    _ if n == 32 => store.destroy(&id(base)).await.map(|()| None),
                    0 => store.update(&id(base), expected, record, HOUR).await.map(Some),
                    _ => store.rotate(&id(base), expected, &id(base + n), record, HOUR).await.map(Some),
                }
                .unwrap()
            }
        })
        .await;
        // Whoever was first, the old id is gone: destroyed, or rotated away.
        s.assert_nothing(&id(base)).await;
        let rotated: Vec<u64> = outcomes
            .iter()
            .filter(|(n, outcome)| n % 3 != 0 && matches!(outcome, Some(Outcome::Done)))
            .map(|(n, _)| *n)
            .collect();
        let mut alive = Vec::new();
        for n in 1..32 {
            if s.load(&id(base + n)).await.is_some() {
                alive.push(n);
            }
        }
        assert_eq!(alive, rotated);
        assert!(alive.len() <= 1, "{alive:?}");
    }
}

async fn sessions_do_not_touch_each_other(s: Subject) {
    // Of one user: the tag is the same, and the rest is not.
    let of_user = |n: u64| Token::parse(format!("useruseruser{n:044}")).unwrap().id();
    assert_eq!(of_user(1).slot_tag(), of_user(2).slot_tag());
    for n in 1..=3 {
        assert_done(s.create(&of_user(n), &record(1, n), HOUR).await);
    }
    s.store.destroy(&of_user(1)).await.unwrap();
    assert_done(s.rotate(&of_user(2), &record(1, 2), &of_user(4), &record(2, 4)).await);
    s.assert_nothing(&of_user(1)).await;
    s.assert_nothing(&of_user(2)).await;
    s.assert_holds(&of_user(3), &record(1, 3)).await;
    s.assert_holds(&of_user(4), &record(2, 4)).await;
}

async fn a_large_record_comes_back_whole(s: Subject) {
    let blob = "x".repeat(1 << 20);
    let n = version_text(1, 1);
    let stored = format!(r#"{{"v":1,"n":"{n}","t":[1,2,3,4],"data":{{"blob":"{blob}"}}}}"#);
    let large = Arc::new(Record::decode(stored.as_bytes()).unwrap());
    let second = record(2, 2);
    assert_done(s.create(&id(1), &large, HOUR).await);
    s.assert_holds(&id(1), &large).await;
    assert_conflict(s.update(&id(1), &second, &record(3, 3), HOUR).await, &large);
    assert_done(s.update(&id(1), &large, &second, HOUR).await);
    assert_done(s.rotate(&id(1), &second, &id(2), &large).await);
    s.assert_holds(&id(2), &large).await;
}

async fn it_is_up(s: Subject) {
    assert_eq!(s.store.health().await.unwrap(), Health::Up);
    assert_eq!(s.store.name(), if s.clock.is_some() { "memory" } else { "redis" });
}

/// The answer of a store that answers at once.
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
    now(store.load(&id(n))).is_some()
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
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
            assert_eq!(store.len(), 10.min(n as usize + 1));
        }
        let alive: Vec<u64> = (0..100).filter(|n| is_alive(&store, *n)).collect();
        assert_eq!(alive, (90..100).collect::<Vec<_>>(), "the last ten");
    }

    #[test]
    fn capacity_is_never_exceeded_by_64_threads_at_once() {
        for capacity in [1, 10, 100] {
            let store = MemoryStore::new().capacity(capacity);
            thread::scope(|scope| {
                for t in 0..64 {
                    let store = &store;
                    scope.spawn(move || {
                        for n in 0..50 {
                            let n = t * 1000 + n;
                            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
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
    fn the_session_idle_longest_makes_room() {
        let (store, clock) = timed(4);
        let create = |n: u64| {
            clock.advance(SECOND);
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
        };
        for n in 1..=4 {
            create(n);
        }
        // Use all but 3, in every way there is.
        clock.advance(SECOND);
        assert!(is_alive(&store, 1));
        clock.advance(SECOND);
        now(store.touch(&id(2), record(1, 2).version(), HOUR));
        clock.advance(SECOND);
        assert_done(now(store.update(&id(4), record(1, 4).version(), record(2, 4), HOUR)));

        create(5); // evicts 3
        create(6); // evicts 1
        assert_eq!(store.len(), 4);
        let alive: Vec<u64> = (1..=6).filter(|n| is_alive(&store, *n)).collect();
        assert_eq!(alive, [2, 4, 5, 6]);
    }

    #[test]
    fn an_expired_session_makes_room_before_a_live_one() {
        let (store, clock) = timed(2);
        assert_done(now(store.create(&id(1), record(1, 1), HOUR))); // idle longest, and alive
        clock.advance(SECOND);
        assert_done(now(store.create(&id(2), record(1, 2), SECOND)));
        clock.advance(MINUTE); // 2 has expired
        assert_done(now(store.create(&id(3), record(1, 3), HOUR)));
        assert!(is_alive(&store, 1), "there was room: 2 had expired");
        assert!(is_alive(&store, 3));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn create_of_an_id_that_exists_evicts_nobody() {
        let (store, clock) = timed(2);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
        }
        clock.advance(SECOND);
        assert_done(now(store.create(&id(2), record(1, 2), HOUR))); // the same again
        assert_conflict(now(store.create(&id(2), record(1, 9), HOUR)), &record(1, 2));
        assert!(is_alive(&store, 1) && is_alive(&store, 2));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn create_of_an_id_that_exists_is_a_conflict_in_a_full_store_too() {
        let (store, clock) = timed(1);
        assert_done(now(store.create(&id(1), record(1, 1), HOUR)));
        clock.advance(SECOND);
        assert_conflict(now(store.create(&id(1), record(1, 9), HOUR)), &record(1, 1));
    }

    #[test]
    fn rotation_needs_no_room() {
        let (store, clock) = timed(2);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
        }
        for n in 2..50 {
            clock.advance(SECOND);
            assert_done(now(store.rotate(&id(n), record(1, n).version(), &id(n + 1), record(1, n + 1), HOUR)));
            assert_eq!(store.len(), 2);
        }
        assert!(is_alive(&store, 1) && is_alive(&store, 50));
    }

    #[test]
    fn rotation_onto_an_id_that_exists_keeps_the_count() {
        let store = MemoryStore::new();
        for n in 1..=2 {
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
        }
        let _ = now(store.rotate(&id(1), record(1, 1).version(), &id(2), record(2, 2), HOUR));
        let alive = (1..=2).filter(|n| is_alive(&store, *n)).count();
        assert_eq!(store.len(), alive);
    }

    #[test]
    fn the_new_id_of_a_rotation_counts_as_used() {
        let (store, clock) = timed(2);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
        }
        clock.advance(SECOND);
        assert_done(now(store.rotate(&id(1), record(1, 1).version(), &id(3), record(2, 3), HOUR)));
        clock.advance(SECOND);
        assert_done(now(store.create(&id(4), record(1, 4), HOUR)));
        let alive: Vec<u64> = (1..=4).filter(|n| is_alive(&store, *n)).collect();
        assert_eq!(alive, [3, 4]);
    }

    #[test]
    fn expired_sessions_are_freed_as_others_are_used() {
        let (store, clock) = timed(100_000);
        for n in 0..1000 {
            assert_done(now(store.create(&id(n), record(1, n), MINUTE)));
        }
        assert_done(now(store.create(&id(5000), record(1, 5000), HOUR)));
        clock.advance(MINUTE);
        assert_eq!(store.len(), 1001, "nothing runs in the background");
        let mut before = store.len();
        for n in 0..2000 {
            assert!(now(store.load(&id(10_000 + n))).is_none());
            assert!(store.len() <= before);
            before = store.len();
        }
        assert_eq!(store.len(), 1, "the one that lives");
        assert!(is_alive(&store, 5000));
    }

    #[test]
    fn sessions_that_were_touched_are_freed_when_they_expire() {
        let (store, clock) = timed(100_000);
        for n in 0..500 {
            assert_done(now(store.create(&id(n), record(1, n), MINUTE)));
            now(store.touch(&id(n), record(1, n).version(), 10 * MINUTE));
        }
        let use_others = || (0..2000).for_each(|n| assert!(now(store.load(&id(10_000 + n))).is_none()));
        clock.advance(5 * MINUTE);
        use_others();
        assert_eq!(store.len(), 500);
        clock.advance(5 * MINUTE);
        use_others();
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn sessions_whose_time_was_shortened_are_freed_when_they_expire() {
        let (store, clock) = timed(100_000);
        for n in 0..500 {
            assert_done(now(store.create(&id(n), record(1, n), 24 * HOUR)));
            assert_done(now(store.update(&id(n), record(1, n).version(), record(2, n), MINUTE)));
        }
        clock.advance(HOUR);
        (0..2000).for_each(|n| assert!(now(store.load(&id(10_000 + n))).is_none()));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn churn_leaves_nothing_behind() {
        let store = MemoryStore::new();
        for n in 0..20_000 {
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
            now(store.destroy(&id(n)));
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
                        now(store.create(&a, record(1, n), HOUR));
                        // Another thread's session may have taken its place meanwhile.
                        let _ = now(store.rotate(&a, record(1, n).version(), &b, record(2, n), HOUR));
                        now(store.destroy(&a));
                        now(store.destroy(&b));
                        now(store.destroy(&b));
                    }
                });
            }
        });
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn clones_share_the_sessions() {
        let store = MemoryStore::new();
        let clone = store.clone();
        assert_done(now(store.create(&id(1), record(1, 1), HOUR)));
        assert!(is_alive(&clone, 1));
        assert_eq!(clone.len(), 1);
        now(clone.destroy(&id(1)));
        assert!(store.is_empty());
    }

    #[test]
    fn a_capacity_of_zero_is_one() {
        let (store, clock) = timed(0);
        for n in 1..=2 {
            clock.advance(SECOND);
            assert_done(now(store.create(&id(n), record(1, n), HOUR)));
            assert!(is_alive(&store, n));
            assert_eq!(store.len(), 1);
        }
        assert!(!is_alive(&store, 1));
    }

    #[test]
    fn what_it_says_of_itself_holds_no_session() {
        let store = MemoryStore::new();
        assert_done(now(store.create(&id(1), record(1, 1), HOUR)));
        assert_eq!(format!("{store:?}"), "MemoryStore { len: 1, capacity: 100000 }");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Load(u64),
        Create(u64, u64),
        Update(u64, bool, u64),
        Touch(u64, u64),
        /// From, whether it names the right version, to, seconds.
        Rotate(u64, bool, u64, u64),
        Destroy(u64),
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (n, seconds) = (0..8_u64, 1..100_u64);
        prop_oneof![
            n.clone().prop_map(Op::Load),
            (n.clone(), seconds.clone()).prop_map(|(n, ttl)| Op::Create(n, ttl)),
            (n.clone(), prop::bool::weighted(0.7), seconds.clone())
                .prop_map(|(n, right, ttl)| Op::Update(n, right, ttl)),
            (n.clone(), seconds.clone()).prop_map(|(n, ttl)| Op::Touch(n, ttl)),
            (n.clone(), prop::bool::weighted(0.7), n.clone(), seconds.clone())
                .prop_map(|(from, right, to, ttl)| Op::Rotate(from, right, to, ttl)),
            n.prop_map(Op::Destroy),
            (1..60_u64).prop_map(Op::Advance),
        ]
    }

    /// A session of the model: its record, when it ends, when it was last used. Times in milliseconds.
    type Model = BTreeMap<u64, (Arc<Record>, u64, u64)>;

    /// Performs `ops` on a store and on a map; they must agree.
    fn agrees_with_a_map(ops: Vec<Op>, capacity: usize) {
        let (store, clock) = timed(capacity);
        let mut model = Model::new();
        let (mut time, mut nonce) = (0_u64, 0_u64);
        for op in ops {
            // Every operation at a moment of its own: who is idle longest is never a tie.
            clock.advance(Duration::from_millis(1));
            time += 1;
            model.retain(|_, (_, end, _)| *end > time);
            nonce += 1;
            let fresh = record(1, nonce);
            let at = |ttl: u64| (time + ttl * 1000, Duration::from_secs(ttl));
            match op {
                Op::Load(n) => match (now(store.load(&id(n))), model.get_mut(&n)) {
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
                    let outcome = now(store.create(&id(n), fresh.clone(), ttl));
                    match model.get(&n) {
                        Some((record, ..)) => assert_conflict(outcome, record),
                        None => {
                            assert_done(outcome);
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
                    let outcome = now(store.update(&id(n), expected, fresh.clone(), ttl));
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
                    let current = model.get(&n).map(|(record, ..)| record.version());
                    now(store.touch(&id(n), current.unwrap_or_else(no_version), ttl));
                    if let Some((_, end, used)) = model.get_mut(&n) {
                        (*end, *used) = (until, time);
                    }
                }
                // The new id of a rotation is always one that does not exist.
                Op::Rotate(_, _, to, _) if model.contains_key(&to) => {}
                Op::Rotate(from, right, to, ttl) => {
                    // Nothing expired may linger under the new id either.
                    now(store.destroy(&id(to)));
                    let (end, ttl) = at(ttl);
                    let current = model.get(&from).map(|(record, ..)| record.clone());
                    let expected =
                        current.as_ref().filter(|_| right).map_or_else(no_version, |record| record.version());
                    let outcome = now(store.rotate(&id(from), expected, &id(to), fresh.clone(), ttl));
                    match current {
                        None => assert_gone(outcome),
                        Some(current) if !right => assert_conflict(outcome, &current),
                        Some(_) => {
                            assert_done(outcome);
                            model.remove(&from);
                            model.insert(to, (fresh, end, time));
                        }
                    }
                }
                Op::Destroy(n) => {
                    now(store.destroy(&id(n)));
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
        for n in 0..8 {
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
        r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"persistent":true,"#,
        r#""user":"ana","data":{"cart":[1,2],"visits":3}}"#
    );

    #[track_caller]
    fn assert_refused(stored: impl AsRef<[u8]>) {
        let stored = stored.as_ref();
        assert!(Record::decode(stored).is_err(), "{}", String::from_utf8_lossy(stored));
    }

    /// `VALID` with something replaced, which must be there.
    #[track_caller]
    fn but(from: &str, to: &str) -> String {
        assert!(VALID.contains(from));
        VALID.replace(from, to)
    }

    #[test]
    fn a_record_of_format_1_stays_readable() {
        let record = Record::decode(VALID.as_bytes()).unwrap();
        assert_eq!(record.user(), Some("ana"));
        assert_eq!(record.created_at().as_millis(), 1_763_679_600_000);
        assert_eq!(record.version().stamp(), r#"{"v":1,"n":"AAAAAxbk0fTjK8pw""#);
        assert_eq!(record.encode(), VALID.as_bytes());
        // What is optional may be absent.
        let least = r#"{"v":1,"n":"AAAAAQAAAAAAAAAA","t":[0,0,1,1],"data":{}}"#;
        let record = Record::decode(least.as_bytes()).unwrap();
        assert_eq!(record.user(), None);
        assert_eq!(record.encode(), least.as_bytes());
    }

    #[test]
    fn a_session_of_format_1_is_served() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let store = MemoryStore::new();
            // Created long ago, with an absolute timeout longer still.
            let stored = VALID.replace("86400000]", "315360000000]").replace("1800000", "315360000000");
            let record = Arc::new(Record::decode(stored.as_bytes()).unwrap());
            assert_done(store.create(&id(1), record, HOUR).await.unwrap());
            let layer = SessionLayer::new(store).cookie(tower_keep::SessionCookie::development());
            let app = support::app::App::start(layer).await;
            let client = app.client();
            client.set_cookie("session", token(1).expose());
            let found = client.perform(serde_json::json!([["user"], ["get", "visits"], ["get", "cart"]])).await;
            assert_eq!(serde_json::json!(found), serde_json::json!(["ana", 3, [1, 2]]));
        });
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
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
    fn a_record_with_a_field_that_is_not_known_is_refused() {
        assert_refused(but(r#""data""#, r#""role":"admin","data""#));
        assert_refused(but(r#""user""#, r#""User""#));
        assert_refused(but(r#"{"v":1"#, r#"{"v":1,"v":1"#));
    }

    #[test]
    fn a_record_without_a_field_is_refused() {
        assert_refused(but(r#""v":1,"#, ""));
        assert_refused(but(r#""n":"AAAAAxbk0fTjK8pw","#, ""));
        assert_refused(but(r#""t":[1763679600000,42000,1800000,86400000],"#, ""));
        assert_refused(but(r#","data":{"cart":[1,2],"visits":3}"#, ""));
    }

    #[test]
    fn a_record_of_another_format_is_refused() {
        for format in ["0", "2", "-1", "4294967296", "\"1\"", "1.0", "null", "true"] {
            assert_refused(but(r#""v":1"#, &format!(r#""v":{format}"#)));
        }
    }

    #[test]
    fn a_record_with_timeouts_that_make_no_sense_is_refused() {
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
    fn times_beyond_all_measure_are_no_panic() {
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
    fn a_record_with_something_after_it_is_refused() {
        for tail in ["x", "{}", "\0", VALID, ",", "}"] {
            assert_refused(format!("{VALID}{tail}"));
        }
    }

    #[test]
    fn deep_nesting_is_no_stack_overflow() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
            let stored = but("[1,2]", &deep);
            if let Ok(record) = Record::decode(stored.as_bytes()) {
                assert_eq!(record.encode(), stored.as_bytes());
            }
        }
    }

    /// Stores compare beginnings: what decodes without being what `encode` writes could never be updated.
    #[test]
    fn what_encode_would_not_write_is_refused() {
        let as_written = Record::decode(VALID.as_bytes()).unwrap();
        assert_eq!(as_written.encode(), VALID.as_bytes());
        for stored in [
            format!(" {VALID}"),
            format!("{VALID}\n"),
            but(r#"{"v":1,"#, r#"{ "v": 1, "#),
            but(r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","#, r#"{"n":"AAAAAxbk0fTjK8pw","v":1,"#),
            but(r#""AAAAAxbk0fTjK8pw""#, r#""\u0041AAAAxbk0fTjK8pw""#),
        ] {
            assert_refused(stored);
        }
    }

    #[tokio::test]
    async fn what_redis_gives_it_can_update() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap().timeout(10 * SECOND));
        for (n, stored) in
            [(1, VALID.to_owned()), (2, but(r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","#, r#"{"n":"AAAAAxbk0fTjK8pw","v":1,"#))]
        {
            // Kept under the store's own key, in a form of somebody else.
            assert_done(store.create(&id(n), record(1, 1), HOUR).await.unwrap());
            let key = server.keys().await.into_iter().find(|key| id(n).to_string().ends_with(&key[20..])).unwrap();
            server.command(&format!("SET {key} {stored} KEEPTTL")).await;
            // Refusing it is right as well.
            if let Ok(loaded) = store.load(&id(n)).await {
                let version = loaded.unwrap().record.version();
                assert_done(store.update(&id(n), version, record(2, 2), HOUR).await.unwrap());
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
                    prop_assert!(encoded.starts_with(record.version().stamp().as_bytes()));
                    let again = Record::decode(&encoded).unwrap();
                    prop_assert_eq!(again.encode(), encoded);
                    prop_assert_eq!(again.version(), record.version());
                }
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
    fn what_is_decoded_is_encoded_the_same() {
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
                    r#"{{"v":1,"n":"{n}","t":[{created},{written},{idle},{absolute}]{persistent}{user},"data":{data}}}"#
                );
                let record = Record::decode(stored.as_bytes()).unwrap();
                prop_assert_eq!(String::from_utf8(record.encode()).unwrap(), stored);
                prop_assert!(record.encode().starts_with(record.version().stamp().as_bytes()));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn no_version_is_the_beginning_of_another() {
        let versions: Vec<_> = [(1, 1), (1, 2), (2, 1), (u32::MAX, u64::MAX), (0, 0)]
            .into_iter()
            .map(|(counter, nonce)| record(counter, nonce))
            .collect();
        for (i, one) in versions.iter().enumerate() {
            for (j, other) in versions.iter().enumerate() {
                let alike = other.encode().starts_with(one.version().stamp().as_bytes());
                assert_eq!(alike, i == j);
                assert_eq!(one.version() == other.version(), i == j);
            }
        }
    }
}

mod names {
    use super::*;

    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    #[test]
    fn a_token_has_exactly_56_characters() {
        for len in [0, 1, 44, 55, 57, 112, 100_000] {
            assert!(Token::parse("a".repeat(len)).is_err(), "{len}");
        }
        assert!(Token::parse("a".repeat(56)).is_ok());
        // Characters, not bytes, and bytes, not characters.
        assert!(Token::parse("é".repeat(56)).is_err());
        assert!(Token::parse("é".repeat(28)).is_err());
    }

    #[test]
    fn a_token_holds_base64url_and_nothing_else() {
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
    fn a_token_is_what_was_parsed() {
        let text = "AZaz09-_".repeat(7);
        assert_eq!(Token::parse(&text).unwrap().expose(), text);
    }

    #[test]
    fn an_id_is_no_token_and_a_token_no_id() {
        let token = token(1);
        let id = token.id().to_string();
        assert!(Token::parse(&id).is_err());
        assert!(token.expose().parse::<SessionId>().is_err());
        // Nor after padding or cutting it to the other's length.
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
    fn every_character_of_a_token_counts() {
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

    /// Changing this ends every session of everybody.
    #[test]
    fn the_id_of_a_token_stays_what_it_is() {
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
        // Of one user: one tag. Of another: another.
        let tags: HashSet<&str> = ids.iter().map(SessionId::slot_tag).collect();
        assert_eq!(tags.len(), 1);
        let other = sessions.create("bob").await.unwrap();
        assert!(!tags.contains(other.id().slot_tag()));
    }

    #[test]
    fn an_id_is_written_and_read_the_same() {
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
    fn what_is_not_an_id_is_refused() {
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
