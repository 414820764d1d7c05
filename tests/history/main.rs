//! History checks: clients, several server processes, and one Redis with faults. All events are recorded, and then checked:
//! can everything that the servers acknowledged be true?
//!
//! * `server.rs`: a server process, which runs this same binary;
//! * `client.rs`: the clients, and the recorded events;
//! * `place.rs`: one Redis, Sentinels, or a cluster;
//! * `faults.rs`: the faults;
//! * `check.rs`: the invariants.
//!
//! A seed determines a run: the kinds of operations of each client, their users, servers and order, and the faults. The timing depends
//! on the machine. A failure prints how to repeat the run.
//!
//! A long run has a seed and any number of operations per client. Without `HISTORY_SEED`, it runs `HISTORY_RUNS` times with seeds
//! from 7 on:
//! ```text
//! HISTORY_SEED=7 HISTORY_OPERATIONS=20000 cargo test --all-features --test history -- --ignored --nocapture long
//! ```
//! `HISTORY_FAULTS=none` disables the faults; with `HISTORY_FAULTS=losses` Redis sometimes loses all data; with
//! `HISTORY_FAULTS=network` only the network fails. `HISTORY_REDIS=pool` uses a connection pool.
//! `HISTORY_REDIS=sentinel` and `HISTORY_REDIS=cluster` kill masters and do planned failovers. A cluster with
//! `HISTORY_FAULTS=moves` has moving slots and planned failovers, which lose nothing.
//!
//! Eviction is not among the faults: it loses single sessions, and detects nothing that [`Fault::Flush`] does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod check;
mod client;
mod faults;
mod place;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use check::Violation;
use client::{Answer, Event, History};
use faults::{Fault, Faults};
use place::{Kind, Place};
use server::Server;
use tokio::task::JoinSet;

/// The maximum number of sessions per user.
const LIMIT: usize = 3;
const SERVERS: usize = 3;
const CLIENTS: u64 = 8;

struct Run {
    seed: u64,
    operations: usize,
    place: Kind,
    faults: &'static [Fault],
    guarded: bool,
}

impl Run {
    async fn violations(&self) -> Vec<Violation> {
        let mut place = Place::start(self.place).await;
        let address = place.address(self.replicas());
        let servers: Arc<Vec<Server>> = Arc::new((0..SERVERS).map(|_| Server::start(&address, self.guarded)).collect());
        let history = Arc::new(History::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (servers, history, seed, operations) = (servers.clone(), history.clone(), self.seed, self.operations);
            let pause = place.pause();
            clients.spawn(async move { client::run(number, seed, operations, pause, &servers, &history).await });
        }
        let mut faults = Faults::new(self.faults, self.seed);
        let is_over = AtomicBool::new(false);
        let until_over = async {
            clients.join_all().await;
            is_over.store(true, Ordering::SeqCst);
        };
        tokio::join!(until_over, faults.happen(&mut place, &is_over));
        let overwrites = client::overwrites(&servers).await;
        drop(servers);
        // Requests in flight are applied before Redis has noticed the kill.
        place.settles().await;
        let (events, end) = (history.events(), history.end(&address, overwrites).await);
        let mut violations = check::all(&events, &end);
        if self.loses() {
            violations.retain(|violation| check::HOLDS_WHATEVER_IS_LOST.contains(&violation.promise));
        }
        self.report(&events, &faults, overwrites, &violations);
        violations
    }

    /// Whether Redis may lose acknowledged writes. Behind Sentinels, the new master may lack the last writes, in any failover.
    fn loses(&self) -> bool {
        let faults = self.faults;
        faults.iter().any(|fault| fault.loses()) || self.place == Kind::Sentinel && faults.contains(&Fault::HandOver)
    }

    /// The number of replicas that confirm ends and rotations. In a planned failover the Sentinels promote one of the two replicas, and the old master
    /// accepts writes a moment longer, which the other confirms: so both must.
    fn replicas(&self) -> usize {
        if self.place == Kind::Sentinel && self.faults.contains(&Fault::HandOver) { 2 } else { 1 }
    }

    fn report(&self, events: &[Event], faults: &Faults, overwrites: u64, violations: &[Violation]) {
        let count = |of: fn(&Event) -> bool| events.iter().filter(|event| of(event)).count();
        let refused = count(|event| event.answer == Answer::Refused);
        let hung_up = count(|event| event.ended == u64::MAX);
        let unknown = count(|event| event.answer == Answer::Unknown) - hung_up;
        let (seed, all, wrong) = (self.seed, events.len(), violations.len());
        println!(
            "seed {seed}: {all} operations, {refused} refused, {unknown} unknown, {hung_up} hung up, {overwrites} overwrites"
        );
        println!("    {faults:?}, {wrong} violations");
        // A run without events proves nothing. How much is served between two faults depends on the machine.
        let served = all - refused - unknown - hung_up;
        assert!(refused > 0 && hung_up > 0 && served >= all / 10, "nothing was served");
        // Losses are visible without an outage, and a moving slot may not be visible at all.
        let felt = faults.count() > 0 && (unknown > 0 || self.loses() || self.faults == faults::MOVES);
        assert!(self.faults.is_empty() || felt, "no fault was felt");
    }

    /// How to repeat the run.
    fn command(&self) -> String {
        let (seed, operations) = (self.seed, self.operations);
        let faults = match self.faults {
            [] => "HISTORY_FAULTS=none ",
            faults if faults == faults::WITH_LOSSES => "HISTORY_FAULTS=losses ",
            faults if faults == faults::NETWORK => "HISTORY_FAULTS=network ",
            faults if faults == faults::MOVES => "HISTORY_FAULTS=moves ",
            _ => "",
        };
        let place = match self.place {
            Kind::Alone => "",
            Kind::Pool => "HISTORY_REDIS=pool ",
            Kind::Sentinel => "HISTORY_REDIS=sentinel ",
            Kind::Cluster => "HISTORY_REDIS=cluster ",
        };
        format!(
            "HISTORY_SEED={seed} HISTORY_OPERATIONS={operations} {faults}{place}\
             cargo test --all-features --test history -- --ignored --nocapture long"
        )
    }

    async fn assert_clean(&self) {
        let violations = self.violations().await;
        for violation in violations.iter().take(10) {
            println!("{violation}");
        }
        let (seed, count, again) = (self.seed, violations.len(), self.command());
        assert!(violations.is_empty(), "seed {seed}: {count} violations, the first: {}\nagain: {again}", violations[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_operations_hold_without_faults() {
    Run { seed: 1, operations: 250, place: Kind::Alone, faults: &[], guarded: true }.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_operations_hold_through_redis_faults() {
    for seed in [2, 7, 12] {
        Run { seed, operations: 250, place: Kind::Alone, faults: faults::HARMLESS, guarded: true }.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_operations_hold_through_network_faults() {
    Run { seed: 14, operations: 150, place: Kind::Alone, faults: faults::NETWORK, guarded: true }.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_operations_hold_on_a_shared_pool() {
    for (seed, faults) in [(15, faults::NETWORK), (11, faults::HARMLESS)] {
        Run { seed, operations: 150, place: Kind::Pool, faults, guarded: true }.assert_clean().await;
    }
}

/// Moving slots, planned failovers and broken connections lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_operations_hold_while_a_cluster_is_resharded() {
    Run { seed: 17, operations: 90, place: Kind::Cluster, faults: faults::MOVES, guarded: true }.assert_clean().await;
}

/// Clients with lost sessions log in again. Ended sessions stay ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_sessions_stay_ended_when_redis_loses_its_data() {
    Run { seed: 11, operations: 250, place: Kind::Alone, faults: faults::WITH_LOSSES, guarded: true }
        .assert_clean()
        .await;
}

/// The new master may lack the last writes, but no end, single use or rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_sessions_stay_ended_when_the_master_dies() {
    Run { seed: 12, operations: 200, place: Kind::Sentinel, faults: faults::DEATHS, guarded: true }
        .assert_clean()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_sessions_stay_ended_when_cluster_nodes_die() {
    Run { seed: 13, operations: 200, place: Kind::Cluster, faults: faults::DEATHS, guarded: true }.assert_clean().await;
}

/// With scripts that check nothing, there are violations, and the checks find them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_guards_the_violations_are_found() {
    let mut kinds = BTreeMap::<_, usize>::new();
    for seed in [5, 6] {
        let run = Run { seed, operations: 250, place: Kind::Alone, faults: &[], guarded: false };
        for violation in run.violations().await {
            *kinds.entry(violation.promise).or_default() += 1;
        }
    }
    println!("without the guards: {kinds:#?}");
    for kind in [
        check::NO_USE_AFTER_THE_END,
        check::NO_LOST_WRITE,
        check::NO_UNREPORTED_LOSS,
        check::LIMIT_KEPT,
        check::USED_ONCE,
        check::LISTED,
    ] {
        assert!(kinds.contains_key(kind), "not found: {kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as you like: see the head of this file"]
async fn long() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let first = number("HISTORY_SEED");
    let runs = if first.is_some() { 1 } else { number("HISTORY_RUNS").unwrap_or(1) };
    let first = first.unwrap_or(7);
    let operations = number("HISTORY_OPERATIONS").unwrap_or(5_000) as usize;
    let place = match env::var("HISTORY_REDIS").as_deref() {
        Ok("pool") => Kind::Pool,
        Ok("sentinel") => Kind::Sentinel,
        Ok("cluster") => Kind::Cluster,
        _ => Kind::Alone,
    };
    let faults = match (env::var("HISTORY_FAULTS").as_deref(), place) {
        (Ok("none"), _) => &[],
        (Ok("moves"), Kind::Cluster) => faults::MOVES,
        (_, Kind::Sentinel) => faults::CHANGES_OF_MASTERS,
        (_, Kind::Cluster) => faults::DEATHS,
        (Ok("network"), _) => faults::NETWORK,
        (Ok("losses"), _) => faults::WITH_LOSSES,
        _ => faults::HARMLESS,
    };
    for seed in first..first + runs {
        Run { seed, operations, place, faults, guarded: true }.assert_clean().await;
    }
}
