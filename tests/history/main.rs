//! What really happened: clients, several server processes and one Redis that fails in every way it can; everything
//! is written down, and then it is checked whether what the servers acknowledged can all be true.
//!
//! * `server.rs` — a process that serves, of this very binary;
//! * `client.rs` — what the clients do, and how it is written down;
//! * `place.rs` — one Redis, one behind Sentinels, or a cluster;
//! * `faults.rs` — what happens to it;
//! * `check.rs` — what must be true of what was written down.
//!
//! A run is made of a seed: each client's operations are then of the same kinds, for the same users, at the same servers, in the same
//! order, and the same faults come. Who is faster is up to the machine. A failure says how to repeat the run.
//!
//! A long run, of a seed and as many operations a client as you like; without `HISTORY_SEED`, seeds from 7 on, as many runs as
//! `HISTORY_RUNS` says:
//! ```text
//! HISTORY_SEED=7 HISTORY_OPERATIONS=20000 cargo test --all-features --test history -- --ignored --nocapture long
//! ```
//! `HISTORY_FAULTS=none` leaves Redis alone; with `HISTORY_FAULTS=losses` it forgets everything from time to time; with
//! `HISTORY_FAULTS=network` only the network fails. `HISTORY_REDIS=pool` is the same on a pool of connections.
//! `HISTORY_REDIS=sentinel` and `HISTORY_REDIS=cluster` are about masters that die or hand over, and replicas that take over; a cluster
//! with `HISTORY_FAULTS=moves` is about slots that move and planned failovers, which lose nothing.
//!
//! Eviction is not among the faults: it loses sessions one by one, and nothing else than [`Fault::Flush`] shows.

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

/// How many sessions a user may have.
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
        // What they sent before they were killed is done when Redis has noticed.
        place.settles().await;
        let (events, end) = (history.events(), history.end(&address, overwrites).await);
        let mut violations = check::all(&events, &end);
        if self.loses() {
            violations.retain(|violation| check::HOLDS_WHATEVER_IS_LOST.contains(&violation.promise));
        }
        self.report(&events, &faults, overwrites, &violations);
        violations
    }

    /// Whether Redis may lose what it has confirmed. Behind Sentinels, whoever takes over may lack the last writes, planned or not.
    fn loses(&self) -> bool {
        let faults = self.faults;
        faults.iter().any(|fault| fault.loses()) || self.place == Kind::Sentinel && faults.contains(&Fault::HandOver)
    }

    /// How many replicas confirm what must not come undone. In a planned failover the Sentinels promote one of the two, and its old master
    /// takes writes a moment longer, which the other confirms: so both must.
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
        // A run in which nothing happened proves nothing. How much is served between two faults is up to the machine.
        let served = all - refused - unknown - hung_up;
        assert!(refused > 0 && hung_up > 0 && served >= all / 10, "nothing was served");
        // What is lost is felt without an outage; and that a cluster is rearranged may not be felt at all.
        let felt = faults.count() > 0 && (unknown > 0 || self.loses() || self.faults == faults::MOVES);
        assert!(self.faults.is_empty() || felt, "no fault was felt");
    }

    /// How to do the same again.
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
async fn what_is_acknowledged_is_true_without_faults() {
    Run { seed: 1, operations: 250, place: Kind::Alone, faults: &[], guarded: true }.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_whatever_happens_to_redis() {
    for seed in [2, 7, 12] {
        Run { seed, operations: 250, place: Kind::Alone, faults: faults::HARMLESS, guarded: true }.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_whatever_happens_to_the_network() {
    Run { seed: 14, operations: 150, place: Kind::Alone, faults: faults::NETWORK, guarded: true }.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_on_a_pool_of_others() {
    for (seed, faults) in [(15, faults::NETWORK), (11, faults::HARMLESS)] {
        Run { seed, operations: 150, place: Kind::Pool, faults, guarded: true }.assert_clean().await;
    }
}

/// Slots move, nodes hand over to their replicas, connections break: nothing is lost by any of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_true_while_a_cluster_is_rearranged() {
    Run { seed: 17, operations: 90, place: Kind::Cluster, faults: faults::MOVES, guarded: true }.assert_clean().await;
}

/// Who loses their sessions has to log in again. Nobody gets back what has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_stays_so_though_redis_loses_everything() {
    Run { seed: 11, operations: 250, place: Kind::Alone, faults: faults::WITH_LOSSES, guarded: true }
        .assert_clean()
        .await;
}

/// Whoever takes over may lack the last writes. What was ended, used up or rotated it does not lack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_stays_so_when_the_master_dies() {
    Run { seed: 12, operations: 200, place: Kind::Sentinel, faults: faults::DEATHS, guarded: true }
        .assert_clean()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_stays_so_when_nodes_of_a_cluster_die() {
    Run { seed: 13, operations: 200, place: Kind::Cluster, faults: faults::DEATHS, guarded: true }.assert_clean().await;
}

/// With scripts that check nothing, the violations are there, and are found.
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
