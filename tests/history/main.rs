//! What really happened: clients, several server processes and one Redis that is paused, killed and restarted; everything
//! is written down, and then it is checked whether what the servers acknowledged can all be true.
//!
//! * `server.rs` — a process that serves, of this very binary;
//! * `client.rs` — what the clients do, and how it is written down;
//! * `check.rs` — what must be true of what was written down.
//!
//! A run is made of a seed: the same clients then do the same things in the same order, and the same faults come. Who is
//! faster is up to the machine. A long run, of a seed and as many operations a client as you like:
//! ```text
//! HISTORY_SEED=7 HISTORY_OPERATIONS=20000 cargo test --all-features --test history -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod check;
mod client;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::{env, sync::Arc, time::Duration};

use check::Violation;
use client::{Answer, History, Random};
use server::Server;
use support::redis_server::RedisServer;
use tokio::{task::JoinSet, time::sleep};

/// How many sessions a user may have.
const LIMIT: usize = 3;
const SERVERS: usize = 3;
const CLIENTS: u64 = 8;

struct Run {
    seed: u64,
    operations: usize,
    faults: bool,
    guarded: bool,
}

impl Run {
    async fn violations(&self) -> Vec<Violation> {
        // What Redis acknowledged is on its disk: a restart loses nothing.
        let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
        let servers: Arc<Vec<Server>> =
            Arc::new((0..SERVERS).map(|_| Server::start(&redis.url(), self.guarded)).collect());
        let history = Arc::new(History::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (servers, history) = (servers.clone(), history.clone());
            let random = Random::new(self.seed.wrapping_mul(1000) + number);
            let operations = self.operations;
            clients.spawn(async move { client::run(number, random, operations, &servers, &history).await });
        }
        tokio::select! {
            _ = clients.join_all() => {}
            () = faults(&mut redis, Random::new(self.seed)), if self.faults => {}
        }
        redis.resume();
        let (events, end) = (history.events(), history.end(&redis.url()).await);
        let mut violations = check::all(&events, &end);
        violations.iter_mut().for_each(|violation| violation.seed = self.seed);
        let count = |of: fn(&Answer) -> bool| events.iter().filter(|event| of(&event.answer)).count();
        let unknown = count(|answer| matches!(answer, Answer::Unknown));
        let refused = count(|answer| matches!(answer, Answer::Refused));
        let (seed, all, wrong) = (self.seed, events.len(), violations.len());
        println!("seed {seed}: {all} operations, {refused} refused, {unknown} unknown; {wrong} violations");
        // A run in which nothing happened proves nothing.
        assert!(refused > 0 && refused + unknown < all * 3 / 4, "{refused} refused, {unknown} unknown of {all}");
        assert!(!self.faults || unknown > 0, "no fault was felt");
        violations
    }
}

/// Redis is paused, killed and restarted, and loses its connections, for ever.
async fn faults(redis: &mut RedisServer, mut random: Random) {
    loop {
        sleep(Duration::from_millis(random.below(300) + 100)).await;
        match random.below(4) {
            0 | 1 => {
                redis.pause();
                sleep(Duration::from_millis(random.below(500) + 100)).await;
                redis.resume();
            }
            2 => redis.run().await, // killed first
            _ => drop(redis.try_command("CLIENT KILL TYPE normal SKIPME yes").await),
        }
    }
}

async fn assert_clean(run: Run) {
    let violations = run.violations().await;
    assert!(violations.is_empty(), "{} violations: {:#?}", violations.len(), &violations[..violations.len().min(5)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_without_faults() {
    assert_clean(Run { seed: 1, operations: 250, faults: false, guarded: true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_whatever_happens_to_redis() {
    for seed in [2, 3] {
        assert_clean(Run { seed, operations: 250, faults: true, guarded: true }).await;
    }
}

/// With scripts that check nothing, the violations are there, and are found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_guards_the_violations_are_found() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in [4, 5, 6] {
        let run = Run { seed, operations: 250, faults: false, guarded: false };
        kinds.extend(run.violations().await.iter().map(|violation| violation.promise));
    }
    for kind in [check::LIMIT_KEPT, check::USED_ONCE, check::NO_LOST_WRITE] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as you like: see the head of this file"]
async fn long() {
    let number = |name: &str, default| env::var(name).map_or(default, |text| text.parse().expect(name));
    let operations = number("HISTORY_OPERATIONS", 5_000) as usize;
    assert_clean(Run { seed: number("HISTORY_SEED", 7), operations, faults: true, guarded: true }).await;
}
