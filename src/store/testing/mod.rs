//! Tests of the store contract, for the tests of a store.
//!
//! ```
//! use std::time::Duration;
//! use tower_keep::{ManualClock, MemoryStore, store::testing};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let clock = ManualClock::new();
//! let store = MemoryStore::new().clock(clock.clone());
//! let report = testing::run(&store, async |time: Duration| clock.advance(time)).await;
//! report.assert_passed();
//! assert!(report.passed() > 1000);
//! # }
//! ```
//!
//! One half is every sequence of three operations on one session, with repeated and late writes, compared with a model of the
//! contract. The other half needs many sessions, many callers, or time.
//!
//! Concurrent callers share one task. [`run_parallel`] runs them in separate tasks. A store that several instances share should also
//! pass behind a wrapper that alternates between two instances.

// * `model.rs`: the contract for one session;
// * `sequences.rs`: all sequences of three operations on one session;
// * `endings.rs`: ended sessions stay ended;
// * `random.rs`: long random sequences on several sessions of a user;
// * `many.rs`: users, limits, single use, scans, and concurrent callers;
// * `parallel.rs`: concurrent tasks;
// * `records.rs`: records are stored unchanged.

mod endings;
mod many;
mod model;
mod parallel;
mod random;
mod records;
mod sequences;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

pub use self::parallel::{Task, run_parallel};
use super::{Ability, EndOutcome, Entry, Loaded, Outcome, SessionStore, StoreError};
use crate::{
    lifetime::Lifetime,
    limits::Limits,
    record::{Json, Record, Version},
    time::{Clock, SystemClock},
    token::{SessionId, Tag, Token},
};

/// Tests the [contract](SessionStore) of `store`, and reports violations.
///
/// It tests the optional abilities that the store has: see [`Report::skipped`].
///
/// `advance` lets time pass for the store: it advances the store's clock, or waits. It is called for some seconds in total. No other caller may
/// use the store during the run. It may contain sessions.
pub async fn run(store: &dyn SessionStore, advance: impl AsyncFn(Duration)) -> Report {
    let mut report = Report::new(store);
    // Scans come first, because the other tests leave sessions behind.
    many::run(store, &advance, &mut report).await;
    records::run(store, &mut report).await;
    sequences::run(store, &mut report).await;
    endings::run(store, &advance, &mut report).await;
    random::run(store, &mut report).await;
    report
}

/// The result of a run.
#[derive(Clone, Debug)]
#[must_use = "check the report, for example with `assert_passed`"]
pub struct Report {
    passed: usize,
    failures: Vec<Failure>,
    skipped: Vec<Ability>,
}

/// A case in which the store violated the contract.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The tested case.
    pub case: String,
    /// The violation.
    pub problem: String,
}

impl Report {
    fn new(store: &dyn SessionStore) -> Self {
        let missing = [(Ability::Users, store.users().is_none()), (Ability::Scan, store.scans().is_none())];
        let skipped = missing.into_iter().filter_map(|(ability, is_missing)| is_missing.then_some(ability)).collect();
        Self { passed: 0, failures: Vec::new(), skipped }
    }

    /// The number of passed cases.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// The failed cases.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The optional abilities that the store does not have. Their cases did not run.
    pub fn skipped(&self) -> &[Ability] {
        &self.skipped
    }

    /// Panics with the failed cases unless all passed.
    ///
    /// # Panics
    /// If a case failed.
    #[track_caller]
    #[allow(clippy::panic)] // for tests
    pub fn assert_passed(&self) {
        if !self.failures.is_empty() {
            panic!("{self}");
        }
    }

    fn case(&mut self, case: impl Into<String>, result: Result<(), String>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(problem) => self.failures.push(Failure { case: case.into(), problem }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases passed, {} failed", self.passed, self.failures.len())?;
        for ability in &self.skipped {
            writeln!(f, "  skipped: {ability}")?;
        }
        for Failure { case, problem } in self.failures.iter().take(20) {
            writeln!(f, "  {case}: {problem}")?;
        }
        Ok(())
    }
}

/// Returns `Err` with a message unless the condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use check;

const HOUR: Duration = Duration::from_secs(3600);

/// An outage of the store fails the case.
fn answered<T>(answer: Result<T, StoreError>) -> Result<T, String> {
    answer.map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)))
}

/// The outcome of an end that is not a claim, in the terms of an update: the model treats both alike.
fn ended(reply: Result<EndOutcome, StoreError>) -> Result<Outcome, String> {
    match answered(reply)? {
        EndOutcome::Done => Ok(Outcome::Done),
        EndOutcome::Conflict(loaded) => Ok(Outcome::Conflict(loaded)),
        EndOutcome::Gone => Ok(Outcome::Gone),
        EndOutcome::Claimed(_) => Err("the reply to a claim, without a claim".into()),
    }
}

/// The listed sessions of `user`. `None` if the store does not index them.
async fn listed(store: &dyn SessionStore, user: &str) -> Result<Option<Vec<(SessionId, Loaded)>>, String> {
    match store.users() {
        Some(users) => answered(users.list(user).await).map(Some),
        None => Ok(None),
    }
}

/// The default limits, if the store can enforce limits.
fn limits(store: &dyn SessionStore) -> Limits {
    if store.users().is_some() { Limits::default() } else { Limits::none() }
}

/// The id of a session that was never created.
fn new_id(user: Option<&str>) -> Result<SessionId, String> {
    Ok(Token::mint(user.map(Tag::of_user)).map_err(|error| error.to_string())?.id())
}

/// A new user.
fn new_user() -> Result<String, String> {
    Ok(format!("user-{}", new_id(None)?))
}

fn new_version() -> Result<Version, String> {
    Version::first().map_err(|error| error.to_string())
}

/// A small, unique record.
fn new_record(user: Option<&str>) -> Result<Arc<Record>, String> {
    let mut record = Record::new(SystemClock.now(), &Lifetime::default(), new_version()?);
    record.user = user.map(Arc::from);
    record.data.insert("k".into(), Json::encode(&1).map_err(|error| error.to_string())?);
    Ok(Arc::new(record))
}

fn new_entry(user: Option<&str>) -> Result<Entry, String> {
    Ok(Entry { record: new_record(user)?, ttl: HOUR })
}

/// Runs all concurrently in one task.
async fn all<'a, T>(futures: impl IntoIterator<Item = impl Future<Output = T> + 'a>) -> Vec<T> {
    let mut futures: Vec<Pin<Box<dyn Future<Output = T> + 'a>>> =
        futures.into_iter().map(|future| Box::pin(future) as _).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}
