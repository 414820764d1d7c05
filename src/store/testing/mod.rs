//! What every store must pass, for whoever writes one.
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
//! Half of it are short stories: every sequence of three operations on one session, with writes that are sent twice or too
//! late, against a [plain model](self) of the contract. The other half is what takes many sessions, many callers, or time.
//!
//! Callers at once take turns there. [`run_parallel`] has them on threads of their own. And a store of which several instances
//! share the data should pass with two of them behind one, which asks each in turn.
//!
//! * `model.rs` — what the contract says of one session;
//! * `stories.rs` — the sequences;
//! * `endings.rs` — that what has ended stays so;
//! * `random.rs` — long sequences, on some sessions of a user;
//! * `many.rs` — users, limits, single use, scans, and callers at once;
//! * `parallel.rs` — callers that are tasks;
//! * `records.rs` — that what is written is what is read.

mod endings;
mod many;
mod model;
mod parallel;
mod random;
mod records;
mod stories;

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

/// Asks `store` everything that the [contract](SessionStore) promises, and reports what it did not keep.
///
/// Of the optional abilities, it tests those that the store has: see [`Report::skipped`].
///
/// `advance` makes that time pass by which the store's sessions expire: it moves the store's clock, or waits. It is asked for some
/// seconds in all. Nobody else may use the store meanwhile; what is in it may stay.
pub async fn run(store: &dyn SessionStore, advance: impl AsyncFn(Duration)) -> Report {
    let mut report = Report::new(store);
    // Scans come first: every session that the others leave makes them longer.
    many::run(store, &advance, &mut report).await;
    records::run(store, &mut report).await;
    stories::run(store, &mut report).await;
    endings::run(store, &advance, &mut report).await;
    random::run(store, &mut report).await;
    report
}

/// What came out.
#[derive(Clone, Debug)]
#[must_use = "a report that nobody reads proves nothing"]
pub struct Report {
    passed: usize,
    failures: Vec<Failure>,
    skipped: Vec<Ability>,
}

/// A case in which the store did not keep the contract.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// What was tried.
    pub case: String,
    /// What was wrong.
    pub problem: String,
}

impl Report {
    fn new(store: &dyn SessionStore) -> Self {
        let missing = [(Ability::Users, store.users().is_none()), (Ability::Scan, store.scans().is_none())];
        let skipped = missing.into_iter().filter_map(|(ability, is_missing)| is_missing.then_some(ability)).collect();
        Self { passed: 0, failures: Vec::new(), skipped }
    }

    /// How many cases passed.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// The cases that did not.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The optional abilities that the store does not have. Their cases did not run.
    pub fn skipped(&self) -> &[Ability] {
        &self.skipped
    }

    /// Panics unless all passed, and names those that did not.
    ///
    /// # Panics
    /// That is its purpose.
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

/// `Err` with a text unless a condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use check;

const HOUR: Duration = Duration::from_secs(3600);

/// Answers are asked for where the store answers: an outage fails the case.
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

/// The id of a session that never was.
fn new_id(user: Option<&str>) -> Result<SessionId, String> {
    Ok(Token::mint(user.map(Tag::of_user)).map_err(|error| error.to_string())?.id())
}

/// A user that nobody else is.
fn new_user() -> Result<String, String> {
    Ok(format!("user-{}", new_id(None)?))
}

fn new_version() -> Result<Version, String> {
    Version::first().map_err(|error| error.to_string())
}

/// A small record that nothing is equal to.
fn new_record(user: Option<&str>) -> Result<Arc<Record>, String> {
    let mut record = Record::new(SystemClock.now(), &Lifetime::default(), new_version()?);
    record.user = user.map(Arc::from);
    record.data.insert("k".into(), Json::encode(&1).map_err(|error| error.to_string())?);
    Ok(Arc::new(record))
}

fn new_entry(user: Option<&str>) -> Result<Entry, String> {
    Ok(Entry { record: new_record(user)?, ttl: HOUR })
}

/// All at once, in one task.
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
