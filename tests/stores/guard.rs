//! A deadline and a circuit breaker around any store.

use std::{error::Error, sync::Arc, time::Duration};

use crate::support::spy::Spy;
use crate::support::{
    cluster::Cluster,
    eventually,
    log::Log,
    records::{entry, id, version},
    redis_server::RedisServer,
    sentinel::Sentinels,
};
use tokio::time::{Instant, advance};
use tower_keep::{
    EndReason, HealthStatus, Limits, ManualClock, MemoryStore,
    store::{
        Found, Guard, Health, Outcome, SessionStore, StoreError, StoreExt,
        redis::{RedisConfig, RedisStore},
        testing,
    },
};

const DEADLINE: Duration = Duration::from_millis(250);
const SECOND: Duration = Duration::from_secs(1);

/// A guard that opens after two outages, for one second at first and at most four.
fn guarded() -> (Spy, Guard) {
    let spy = Spy::new();
    (spy.clone(), Guard::new(spy).open_after(2).pause(SECOND, 4 * SECOND))
}

/// The same, open.
async fn opened() -> (Spy, Guard) {
    let (spy, guard) = guarded();
    spy.go_down();
    for _ in 0..2 {
        assert_outage(guard.load(&id(1)).await);
    }
    spy.calls();
    (spy, guard)
}

/// All causes of an outage in one line.
#[track_caller]
fn assert_outage<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    let error = answer.unwrap_err();
    assert!(matches!(error, StoreError::Outage(_)), "{error:?}");
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

#[track_caller]
fn assert_answers<T>(answer: Result<T, StoreError>) {
    assert!(answer.is_ok(), "{:?}", answer.err());
}

fn asked(spy: &Spy) -> usize {
    spy.calls().iter().filter(|call| **call != "health").count()
}

#[tokio::test]
async fn a_guarded_store_keeps_the_contract() {
    let clock = ManualClock::new();
    let guard = Guard::new(MemoryStore::new().clock(clock.clone()));
    let report = testing::run(&guard, async |time| clock.advance(time)).await;
    report.assert_passed();
    assert!(report.passed() > 8_000, "{report}");
}

#[tokio::test(start_paused = true)]
async fn no_operation_takes_longer_than_the_deadline() {
    let spy = Spy::new();
    let guard = Guard::new(spy.clone()).deadline(DEADLINE).open_after(1000);
    spy.hang();
    let (id, from) = (id(1), Default::default());
    let began = Instant::now();
    let took = async |answer: Result<(), StoreError>| {
        assert_eq!(assert_outage(answer), "no reply within 250ms");
    };
    took(guard.load(&id).await.map(drop)).await;
    took(guard.create(&id, entry(1), Limits::none()).await.map(drop)).await;
    took(guard.update(&id, version(1), entry(2)).await.map(drop)).await;
    took(guard.touch(&id, entry(1)).await).await;
    took(guard.end(&id, EndReason::Revoked.into()).await.map(drop)).await;
    took(guard.replace(&id, None, &id).await.map(drop)).await;
    took(guard.consume(&id, version(1)).await.map(drop)).await;
    took(guard.list("ana").await.map(drop)).await;
    took(guard.end_user("ana", None, EndReason::Revoked).await.map(drop)).await;
    took(guard.scan(&from, 1).await.map(drop)).await;
    assert_eq!(guard.health().await.unwrap().status(), HealthStatus::Down);
    assert_eq!(began.elapsed(), 11 * DEADLINE, "time stands still but for what is waited for");
    assert_outage(guard.count().await);
    assert_eq!(began.elapsed(), 31 * DEADLINE, "counting looks at everything");
}

/// The store fails immediately, and its health check hangs.
#[tokio::test(start_paused = true)]
async fn the_deadline_includes_the_health_check() {
    let (spy, guard) = guarded();
    spy.fail("load");
    spy.hold_next("health");
    let began = Instant::now();
    assert_outage(guard.load(&id(1)).await);
    assert_eq!(began.elapsed(), DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_known_to_be_down_is_skipped() {
    let (spy, guard) = guarded();
    spy.go_down();
    assert_eq!(assert_outage(guard.load(&id(1)).await), "the test says so");
    assert_outage(guard.end(&id(1), EndReason::LoggedOut.into()).await);
    assert_eq!(asked(&spy), 2);
    let began = Instant::now();
    let causes = assert_outage(guard.load(&id(1)).await);
    assert_eq!(asked(&spy), 0);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(causes.contains("circuit breaker is open"), "{causes}");
    assert!(causes.ends_with("the test says so"), "{causes}");
    assert_eq!(guard.health().await.unwrap().status(), HealthStatus::Down);
    assert_eq!(spy.calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_opens_the_circuit_breaker() {
    let (spy, guard) = guarded();
    spy.hang();
    for _ in 0..2 {
        assert_outage(guard.load(&id(1)).await);
    }
    let began = Instant::now();
    assert!(assert_outage(guard.load(&id(1)).await).ends_with("no reply within 250ms"));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_reply_resets_the_count() {
    let (spy, guard) = guarded();
    for _ in 0..5 {
        spy.go_down();
        assert_outage(guard.load(&id(1)).await);
        spy.recover();
        assert_answers(guard.load(&id(1)).await);
    }
    spy.go_down();
    assert_outage(guard.load(&id(1)).await);
    spy.calls();
    assert_outage(guard.load(&id(1)).await);
    assert_eq!(asked(&spy), 1, "it was closed until then");
}

/// For example, a full Redis: it serves reads, and its health check reports it.
#[tokio::test]
async fn a_store_that_refuses_writes_is_still_read() {
    let (spy, guard) = guarded();
    guard.create(&id(1), entry(1), Limits::none()).await.unwrap();
    spy.fail("update");
    for _ in 0..10 {
        assert_outage(guard.update(&id(1), version(1), entry(2)).await);
    }
    assert!(guard.load(&id(1)).await.unwrap().live().is_some());
}

#[tokio::test]
async fn a_refusal_is_a_reply() {
    let (_, guard) = guarded();
    guard.create(&id(1), entry(1), Limits::none()).await.unwrap();
    for _ in 0..5 {
        assert!(matches!(guard.update(&id(1), version(7), entry(8)).await.unwrap(), Outcome::Conflict(_)));
        assert!(matches!(guard.update(&id(2), version(7), entry(8)).await.unwrap(), Outcome::Gone));
        assert!(matches!(guard.load(&id(3)).await.unwrap(), Found::Unknown));
    }
}

#[tokio::test(start_paused = true)]
async fn one_operation_probes_the_store() {
    let (spy, guard) = opened().await;
    let guard = Arc::new(guard);
    advance(SECOND).await;
    spy.recover();
    let probe_held = spy.hold_next("load");
    let probe = tokio::spawn({
        let guard = guard.clone();
        async move { guard.load(&id(1)).await }
    });
    probe_held.reached().await;
    for _ in 0..3 {
        assert_outage(guard.load(&id(1)).await);
        assert_eq!(guard.health().await.unwrap().status(), HealthStatus::Down);
    }
    assert_eq!(asked(&spy), 1, "the probe alone");
    probe_held.release();
    assert_answers(probe.await.unwrap());
    assert_answers(guard.load(&id(1)).await);
    assert_eq!(guard.health().await.unwrap(), Health::Up);
}

#[tokio::test(start_paused = true)]
async fn each_failed_probe_doubles_the_pause_up_to_the_maximum() {
    let (spy, guard) = opened().await;
    for pause in [1, 2, 4, 4, 4] {
        advance(pause * SECOND - Duration::from_millis(1)).await;
        assert_outage(guard.load(&id(1)).await);
        assert_eq!(asked(&spy), 0, "the circuit breaker is open for {pause} s");
        advance(Duration::from_millis(1)).await;
        assert_outage(guard.load(&id(1)).await);
        assert_eq!(asked(&spy), 1, "after {pause} s it is tried");
    }
    spy.recover();
    advance(4 * SECOND).await;
    assert_answers(guard.load(&id(1)).await);
    // The next outage starts with the shortest pause.
    spy.go_down();
    for _ in 0..2 {
        assert_outage(guard.load(&id(1)).await);
    }
    spy.calls();
    advance(SECOND).await;
    assert_outage(guard.load(&id(1)).await);
    assert_eq!(asked(&spy), 1);
}

/// The client has disconnected, which cancels the request.
#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_is_made_by_the_next_operation() {
    let (spy, guard) = opened().await;
    advance(SECOND).await;
    spy.recover();
    let held = spy.hold_next("load");
    let one = id(1);
    let mut probe = guard.load(&one);
    tokio::select! {
        biased;
        _ = &mut probe => panic!("it is held"),
        () = held.reached() => {}
    }
    drop(probe);
    assert_answers(guard.load(&id(1)).await);
}

/// It was sent before the outage, so it proves nothing about now.
#[tokio::test(start_paused = true)]
async fn a_late_reply_does_not_close_the_circuit_breaker() {
    let (spy, guard) = guarded();
    let held = spy.hold_next("load");
    let one = id(1);
    let mut before = guard.load(&one);
    tokio::select! {
        biased;
        _ = &mut before => panic!("it is held"),
        () = held.reached() => {}
    }
    spy.go_down();
    for _ in 0..2 {
        assert_outage(guard.load(&id(1)).await);
    }
    spy.calls();
    held.release();
    assert_answers(before.await);
    assert_outage(guard.load(&id(1)).await);
    assert_eq!(asked(&spy), 0);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_waiting_operations_is_bounded() {
    let spy = Spy::new();
    let guard = Guard::new(spy.clone()).max_waiting(2).open_after(1);
    let (first, second) = (id(1), id(2));
    let held = spy.hold_next("load");
    let mut one = guard.load(&first);
    tokio::select! {
        biased;
        _ = &mut one => panic!("it is held"),
        () = held.reached() => {}
    }
    let other_held = spy.hold_next("load");
    let mut other = guard.load(&second);
    tokio::select! {
        biased;
        _ = &mut other => panic!("it is held"),
        () = other_held.reached() => {}
    }
    spy.calls();
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(assert_outage(guard.load(&id(3)).await), "2 operations are waiting for the store");
    }
    assert_eq!((asked(&spy), began.elapsed()), (0, Duration::ZERO));
    held.release();
    assert_answers(one.await);
    assert_answers(guard.load(&id(3)).await); // waiting too long in the queue is not an outage
    drop(other); // cancelled: its slot is free
    assert_answers(guard.load(&id(3)).await);
}

#[tokio::test(start_paused = true)]
async fn a_health_check_closes_the_circuit_breaker() {
    let (spy, guard) = opened().await;
    spy.recover();
    assert_eq!(guard.health().await.unwrap().status(), HealthStatus::Down, "not asked yet");
    advance(SECOND).await;
    assert_eq!(guard.health().await.unwrap(), Health::Up);
    assert_answers(guard.load(&id(1)).await);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_when_it_begins_and_when_it_ends() {
    let log = Log::capture();
    let (spy, guard) = opened().await;
    for _ in 0..5 {
        advance(4 * SECOND).await;
        for _ in 0..5 {
            assert_outage(guard.load(&id(1)).await);
        }
    }
    spy.recover();
    advance(4 * SECOND).await;
    for _ in 0..5 {
        assert_answers(guard.load(&id(1)).await);
    }
    let text = log.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("store=\"spy\"")).collect();
    let [begins, ends] = lines[..] else { panic!("{text}") };
    assert!(begins.contains("WARN") && begins.contains("the test says so"), "{begins}");
    assert!(ends.contains("INFO") && ends.contains("replies again"), "{ends}");
}

/// A guard around a running Redis.
async fn of_redis(config: RedisConfig) -> Guard {
    let guard = Guard::new(RedisStore::new(config)).open_after(2);
    let guard = guard.pause(Duration::from_millis(20), Duration::from_millis(20));
    eventually("it serves", async || guard.load(&id(1)).await.is_ok()).await;
    guard
}

async fn is_open(guard: &Guard) {
    let is_open = async || match guard.load(&id(1)).await {
        Ok(_) => false,
        outage => assert_outage(outage).contains("circuit breaker is open"),
    };
    eventually("the circuit breaker is open", is_open).await;
}

async fn serves_again(guard: &Guard) {
    eventually("it serves again", async || guard.load(&id(1)).await.is_ok()).await;
    eventually("it is up", async || guard.health().await.unwrap() == Health::Up).await;
}

#[tokio::test]
async fn redis_killed_and_restarted() {
    let mut server = RedisServer::start().await;
    let guard = of_redis(RedisConfig::from_url(&server.url()).unwrap()).await;
    server.stop();
    is_open(&guard).await;
    server.run().await;
    serves_again(&guard).await;
}

#[tokio::test]
async fn a_master_killed_and_replaced() {
    let mut all = Sentinels::start().await;
    let guard = of_redis(RedisConfig::sentinel(all.addresses(), all.master_name()).unwrap()).await;
    let old = all.master().await;
    all.servers[old].stop();
    is_open(&guard).await;
    all.switched(old).await;
    serves_again(&guard).await;

    // All of them, and those who would find another.
    all.servers[old].run().await;
    let servers = || all.servers.iter().chain(&all.sentinels);
    servers().for_each(RedisServer::pause);
    is_open(&guard).await;
    servers().for_each(RedisServer::resume);
    serves_again(&guard).await;
}

#[tokio::test]
async fn a_cluster_hung_and_resumed() {
    let all = Cluster::start().await;
    let guard = of_redis(RedisConfig::cluster(all.nodes.iter().map(RedisServer::address)).unwrap()).await;
    all.nodes.iter().for_each(RedisServer::pause);
    is_open(&guard).await;
    all.nodes.iter().for_each(RedisServer::resume);
    serves_again(&guard).await;
}

#[tokio::test]
async fn redis_hung_and_resumed() {
    let server = RedisServer::start().await;
    let patience = Duration::from_secs(3600); // the timeout of the store: the guard has a shorter one
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    let guard = Guard::new(RedisStore::new(config)).open_after(2).pause(Duration::from_millis(20), SECOND);
    eventually("it serves", async || guard.load(&id(1)).await.is_ok()).await;
    server.pause();
    for _ in 0..2 {
        assert!(assert_outage(guard.load(&id(1)).await).ends_with("no reply within 250ms"));
    }
    let is_open = async || assert_outage(guard.load(&id(1)).await).contains("circuit breaker is open");
    eventually("the circuit breaker is open", is_open).await;
    server.resume();
    eventually("it serves again", async || guard.load(&id(1)).await.is_ok()).await;
}

/// A guard can wait without limit.
#[tokio::test]
async fn extreme_durations_are_accepted() {
    for time in [Duration::ZERO, Duration::MAX] {
        let guard = Guard::new(MemoryStore::new()).deadline(time).pause(time, time);
        assert!(guard.count().await.is_ok_and(|count| count == 0) || time.is_zero());
        let config = RedisConfig::from_url("redis://127.0.0.1:1/").unwrap();
        let redis = RedisStore::new(config.timeout(time).connect_timeout(time));
        // The server is down, or not reachable within a millisecond.
        assert!(tokio::time::timeout(Duration::from_secs(30), redis.count()).await.is_ok_and(|count| count.is_err()));
    }
}
