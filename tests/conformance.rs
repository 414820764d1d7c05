//! Every store of this crate passes what every store must pass; and a store that breaks a promise is found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::redis_server::RedisServer;
use tower_keep::{
    EndReason, Limits, ManualClock, MemoryStore, SessionId,
    store::{
        Codec, Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, SessionStore, StoreFuture, Version,
        redis::{RedisConfig, RedisStore},
        testing::{self, Report},
    },
};

async fn in_memory(wrap: impl FnOnce(MemoryStore) -> Arc<dyn SessionStore>) -> Report {
    let clock = ManualClock::new();
    let store = wrap(MemoryStore::new().clock(clock.clone()));
    testing::run(&*store, async |time| clock.advance(time)).await
}

/// Redis has a clock of its own.
async fn in_redis(change: impl FnOnce(RedisConfig) -> RedisStore) -> Report {
    let server = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    testing::run(&change(config), tokio::time::sleep).await
}

#[track_caller]
fn assert_kept(report: &Report) {
    report.assert_passed();
    assert!(report.passed() > 5_000, "{report}");
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    assert_kept(&in_memory(|store| Arc::new(store)).await);
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    assert_kept(&in_redis(RedisStore::new).await);
}

#[tokio::test]
async fn redis_keeps_the_contract_in_message_pack_and_with_places() {
    let report = in_redis(|config| RedisStore::new(config.codec(Codec::MessagePack).max_sessions(1_000_000))).await;
    assert_kept(&report);
}

/// A promise that is not kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    CreatesTwice,
    IgnoresLimits,
    EvictsTheWrongOne,
    ForgetsWhatEnded,
    EndsNothing,
    EndsAnyVersion,
    ReplacesAnyVersion,
    CannotBeRepeated,
    TouchesAnyVersion,
    TouchesNothing,
    LivesTooLong,
    ConsumesForAll,
    ConsumesForNobodyAgain,
    ListsTheDead,
    ListsNothing,
    SparesNobody,
    SparesAll,
    EndsOnlyTheFirst,
    MissesOneInAScan,
    CountsTheDead,
}

use Broken::*;

/// A store that does not keep it.
struct BrokenStore {
    memory: MemoryStore,
    how: Broken,
    created: Mutex<BTreeMap<SessionId, Entry>>,
}

impl BrokenStore {
    fn is(&self, how: Broken) -> bool {
        self.how == how
    }

    async fn current(&self, id: &SessionId) -> Option<Version> {
        self.memory.load(id).await.unwrap().live().map(|loaded| loaded.record.version())
    }

    fn loaded(entry: &Entry) -> Loaded {
        Loaded { record: entry.record.clone(), ttl: Some(entry.ttl) }
    }
}

impl SessionStore for BrokenStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move {
            Ok(match self.memory.load(id).await? {
                Found::Ended(_) if self.is(ForgetsWhatEnded) => Found::Unknown,
                found => found,
            })
        })
    }

    fn create<'a>(&'a self, id: &'a SessionId, mut new: Entry, mut limits: Limits) -> StoreFuture<'a, Created> {
        StoreFuture::boxed(async move {
            self.created.lock().unwrap().insert(*id, new.clone());
            if self.is(IgnoresLimits) {
                limits = Limits::none();
            }
            if self.is(LivesTooLong) {
                new.ttl *= 2;
            }
            if self.is(EvictsTheWrongOne)
                && let (Some(user), Some(limit)) = (new.record.user(), limits.sessions())
                && limits.when_full() != tower_keep::WhenFull::Reject
            {
                let mut listed = self.memory.list(user).await?;
                listed.sort_by_key(|(_, loaded)| loaded.record.created_at());
                if listed.len() >= limit {
                    self.memory.end(&listed[listed.len() - 1].0, None, EndReason::Evicted).await?;
                }
            }
            let created = self.memory.create(id, new.clone(), limits).await?;
            if self.is(CreatesTwice) && created == Created::Taken {
                return Ok(Created::Done { evicted: Vec::new() });
            }
            Ok(created)
        })
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            let current = self.current(id).await;
            let expected = if self.is(ReplacesAnyVersion) { current.unwrap_or(expected) } else { expected };
            let again = current == Some(new.record.version());
            match self.memory.update(id, expected, new).await? {
                Outcome::Done if again && self.is(CannotBeRepeated) => Ok(Outcome::Gone),
                outcome => Ok(outcome),
            }
        })
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move {
            match self.memory.load(id).await?.live() {
                _ if self.is(TouchesNothing) => Ok(()),
                Some(loaded) if self.is(TouchesAnyVersion) => {
                    self.memory.touch(id, Entry { record: loaded.record, ..entry }).await
                }
                _ => self.memory.touch(id, entry).await,
            }
        })
    }

    fn end<'a>(&'a self, id: &'a SessionId, expected: Option<Version>, reason: EndReason) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            if self.is(EndsNothing) {
                return Ok(Outcome::Done);
            }
            self.memory.end(id, expected.filter(|_| !self.is(EndsAnyVersion)), reason).await
        })
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move {
            if self.is(ConsumesForAll) {
                return self.memory.load(id).await;
            }
            if self.is(ConsumesForNobodyAgain) {
                let found = self.memory.load(id).await?;
                self.memory.end(id, None, EndReason::Used).await?;
                return Ok(found);
            }
            self.memory.consume(id, claim).await
        })
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        StoreFuture::boxed(async move {
            if self.is(ListsTheDead) {
                let created = self.created.lock().unwrap();
                let mine = created.iter().filter(|(_, entry)| entry.record.user() == Some(user));
                return Ok(mine.map(|(id, entry)| (*id, Self::loaded(entry))).collect());
            }
            if self.is(ListsNothing) { Ok(Vec::new()) } else { self.memory.list(user).await }
        })
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        StoreFuture::boxed(async move {
            if self.is(SparesAll) {
                return Ok(Vec::new());
            }
            if self.is(EndsOnlyTheFirst) {
                let first = self.memory.list(user).await?.into_iter().map(|(id, _)| id).find(|id| Some(id) != except);
                if let Some(id) = &first {
                    self.memory.end(id, None, reason).await?;
                }
                return Ok(first.into_iter().collect());
            }
            self.memory.end_user(user, except.filter(|_| !self.is(SparesNobody)), reason).await
        })
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        StoreFuture::boxed(async move {
            let mut page = self.memory.scan(from, count).await?;
            if self.is(MissesOneInAScan) {
                page.sessions.pop();
            }
            Ok(page)
        })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        StoreFuture::boxed(async move {
            if self.is(CountsTheDead) {
                return Ok(self.created.lock().unwrap().len() as u64);
            }
            self.memory.count().await
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.memory.health()
    }

    fn name(&self) -> &'static str {
        "broken"
    }
}

#[tokio::test]
async fn a_store_that_breaks_a_promise_is_found() {
    for how in [
        CreatesTwice,
        IgnoresLimits,
        EvictsTheWrongOne,
        ForgetsWhatEnded,
        EndsNothing,
        EndsAnyVersion,
        ReplacesAnyVersion,
        CannotBeRepeated,
        TouchesAnyVersion,
        TouchesNothing,
        LivesTooLong,
        ConsumesForAll,
        ConsumesForNobodyAgain,
        ListsTheDead,
        ListsNothing,
        SparesNobody,
        SparesAll,
        EndsOnlyTheFirst,
        MissesOneInAScan,
        CountsTheDead,
    ] {
        let report = in_memory(|memory| Arc::new(BrokenStore { memory, how, created: Mutex::default() })).await;
        assert!(!report.failures().is_empty(), "{how:?} was not found");
        assert!(std::panic::catch_unwind(|| report.assert_passed()).is_err(), "{how:?}");
    }
}

#[tokio::test]
async fn scripts_that_check_nothing_are_found() {
    let report = in_redis(RedisStore::without_guards).await;
    let found = |what: &str| report.failures().iter().any(|failure| failure.case.contains(what));
    for what in ["EndVersion", "Late", "one consumes", "creations at once", "one replaces the version"] {
        assert!(found(what), "{what}: {report}");
    }
}

/// As somebody else would write and test a store, in a crate of their own.
#[test]
fn a_store_of_an_outside_crate_can_be_tested() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let outside = here.join("tests/outside_store");
    // The versions that this crate is built with: nothing has to be fetched for it.
    std::fs::copy(here.join("Cargo.lock"), outside.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--quiet"])
        .current_dir(&outside)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside_store"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
