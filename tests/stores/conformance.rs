//! Every store of this crate keeps the contract, and `store::testing` finds stores that break it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    eventually,
    redis_server::{RedisServer, text},
};
use tower_keep::{
    EndReason, Ended, Limits, ManualClock, MemoryStore, SessionId, Token,
    store::{
        Codec, Created, Cursor, End, EndOutcome, Entry, Found, Health, Loaded, Operation, Outcome, Page, Record,
        ScanStore, SessionStore, StoreExt, StoreFuture, StoreWrapper, UserStore, Version,
        redis::{RedisConfig, RedisStore},
        testing::{self, Report},
    },
};

async fn in_memory(wrap: impl FnOnce(MemoryStore) -> Arc<dyn SessionStore>) -> Report {
    let clock = ManualClock::new();
    let store = wrap(MemoryStore::new().clock(clock.clone()));
    testing::run(&*store, async |time| clock.advance(time)).await
}

/// Redis has its own clock.
async fn in_redis(change: impl FnOnce(RedisConfig) -> RedisStore) -> Report {
    let server = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    testing::run(&change(config), tokio::time::sleep).await
}

#[track_caller]
fn assert_kept(report: &Report) {
    report.assert_passed();
    assert!(report.passed() > 8_000, "{report}");
}

/// Whether a case whose name starts like this has failed.
fn has_found(report: &Report, what: &str) -> bool {
    report.failures().iter().any(|failure| failure.case.contains(what))
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
async fn redis_keeps_the_contract_in_message_pack_and_with_max_sessions() {
    let report = in_redis(|config| RedisStore::new(config.codec(Codec::MessagePack).max_sessions(1_000_000))).await;
    assert_kept(&report);
}

/// A Redis Cluster node with all slots: it refuses scripts whose keys are in several slots.
#[tokio::test]
async fn redis_in_cluster_mode_keeps_the_contract() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes"]).await;
    let slots: Vec<String> = (0..16384).map(|slot: u16| slot.to_string()).collect();
    server.command(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
    let ready = async || text(&server.command("CLUSTER INFO").await).contains("cluster_state:ok");
    eventually("the cluster is ready", ready).await;
    let two_slots = server.try_command("EVAL return(1) 2 sess:{a} sess:{b}").await.unwrap_err();
    assert_eq!(two_slots.code(), Some("CROSSSLOT"), "{two_slots}");
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    let store = RedisStore::new(config.max_sessions(1_000_000).share_events(100));
    assert_kept(&testing::run(&store, tokio::time::sleep).await);
}

#[tokio::test]
async fn a_store_behind_an_arc_keeps_the_contract() {
    let clock = ManualClock::new();
    let store: Arc<dyn SessionStore> = Arc::new(MemoryStore::new().clock(clock.clone()));
    assert_kept(&testing::run(&store, async |time| clock.advance(time)).await);
}

/// Each has its own connection, and one writes MessagePack.
#[tokio::test]
async fn two_instances_that_share_a_redis_keep_the_contract() {
    let server = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    let instances = [RedisStore::new(config.clone()), RedisStore::new(config.codec(Codec::MessagePack))];
    assert_kept(&testing::run(&InTurn { instances, asked: AtomicUsize::new(0) }, tokio::time::sleep).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_the_contract_for_many_threads() {
    let report = testing::run_parallel(Arc::new(MemoryStore::new()), |task| drop(tokio::spawn(task))).await;
    report.assert_passed();
    assert_eq!(report.passed(), PARALLEL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_keeps_the_contract_for_many_threads_of_two_instances() {
    let server = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
    let instances = [RedisStore::new(config.clone()), RedisStore::new(config.max_sessions(1_000_000))];
    let store = InTurn { instances, asked: AtomicUsize::new(0) };
    let report = testing::run_parallel(Arc::new(store), |task| drop(tokio::spawn(task))).await;
    report.assert_passed();
    assert_eq!(report.passed(), PARALLEL);
}

/// Three numbers of callers, five rounds, thirteen cases.
const PARALLEL: usize = 3 * 5 * 13;

/// Instances of a service behind a load balancer that sends every operation to another instance.
struct InTurn {
    instances: [RedisStore; 2],
    asked: AtomicUsize,
}

impl StoreWrapper for InTurn {
    type Inner = RedisStore;

    fn inner(&self) -> &RedisStore {
        &self.instances[0]
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        operation.run(&self.instances[self.asked.fetch_add(1, Ordering::Relaxed) % 2])
    }

    fn wrapper_name(&self) -> &'static str {
        "two instances"
    }
}

/// An operation without effect on an ended session uses no capacity.
#[tokio::test]
async fn late_writes_to_an_ended_session_use_no_capacity() {
    let server = RedisServer::start().await;
    for late in ["a touch", "an update", "a creation"] {
        let config = RedisConfig::from_url(&server.url()).unwrap().prefix(format!("{}:", late.replace(' ', "-")));
        let store = RedisStore::new(config.unwrap().timeout(Duration::from_secs(10)).max_sessions(1));
        let (first, second) = (record(1), record(2));
        let [ended, next] = ["a", "b"].map(|letter| Token::parse(letter.repeat(56)).unwrap().id());
        let entry = |record: &Arc<Record>| Entry { record: record.clone(), ttl: Duration::from_secs(3600) };
        let created = store.create(&ended, entry(&first), Limits::none()).await.unwrap();
        assert!(matches!(created, Created::Done { .. }), "{created:?}");
        store.end(&ended, EndReason::LoggedOut.into()).await.unwrap();
        match late {
            "a touch" => store.touch(&ended, entry(&first)).await.unwrap(),
            "an update" => {
                let outcome = store.update(&ended, first.version(), entry(&second)).await.unwrap();
                assert!(matches!(outcome, Outcome::Gone), "{outcome:?}");
            }
            _ => {
                let created = store.create(&ended, entry(&first), Limits::none()).await.unwrap();
                assert_eq!(created, Created::Taken);
            }
        }
        assert_eq!(StoreExt::count(&store).await.unwrap(), 0);
        let created = store.create(&next, entry(&second), Limits::none()).await.unwrap();
        assert!(matches!(created, Created::Done { .. }), "{created:?} after {late} that came too late");
    }
}

fn record(n: u32) -> Arc<Record> {
    let stored = format!(r#"{{"v":2,"n":"AAAA{n:012}","t":[1763679600000,0,1800000,86400000],"data":{{}}}}"#);
    Arc::new(Record::decode(stored.as_bytes()).unwrap())
}

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    CreatesTwice,
    CreatesWhatEnded,
    IgnoresLimits,
    EvictsTheWrongOne,
    ForgetsWhatEnded,
    ForgetsWhy,
    EndsNothing,
    ReplacesAnyVersion,
    ForgetsTheSuccessor,
    UpdatesAnyVersion,
    UpdatesNothing,
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
    MissesHalfInAScan,
    CountsTheDead,
}

use Broken::*;

/// A store that breaks it.
struct BrokenStore {
    memory: MemoryStore,
    how: Broken,
    /// The sessions of each user, the ended ones too.
    created: Mutex<HashMap<Option<String>, BTreeMap<SessionId, Entry>>>,
    /// Sessions that are live by mistake.
    back: Mutex<BTreeMap<SessionId, Entry>>,
}

impl BrokenStore {
    fn is(&self, how: Broken) -> bool {
        self.how == how
    }

    async fn current(&self, id: &SessionId) -> Option<Version> {
        self.memory.load(id).await.unwrap().live().map(|loaded| loaded.record.version())
    }

    fn claimed(found: Found) -> EndOutcome {
        found.live().map_or(EndOutcome::Gone, EndOutcome::Claimed)
    }

    fn loaded(entry: &Entry) -> Loaded {
        Loaded { record: entry.record.clone(), ttl: Some(entry.ttl) }
    }
}

impl SessionStore for BrokenStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move {
            if let Some(entry) = self.back.lock().unwrap().get(id) {
                return Ok(Found::Live(Self::loaded(entry)));
            }
            Ok(match self.memory.load(id).await? {
                Found::Ended(_) if self.is(ForgetsWhatEnded) => Found::Unknown,
                Found::Ended(ended) if self.is(ForgetsWhy) => Found::Ended(Ended::new(EndReason::LoggedOut, ended.at)),
                found => found,
            })
        })
    }

    fn create<'a>(&'a self, id: &'a SessionId, mut new: Entry, mut limits: Limits) -> StoreFuture<'a, Created> {
        StoreFuture::boxed(async move {
            let user = new.record.user().map(String::from);
            self.created.lock().unwrap().entry(user).or_default().insert(*id, new.clone());
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
                let mut listed = UserStore::list(&self.memory, user).await?;
                listed.sort_by_key(|(_, loaded)| loaded.record.created_at());
                if listed.len() >= limit {
                    self.memory.end(&listed[listed.len() - 1].0, EndReason::Evicted.into()).await?;
                }
            }
            let created = self.memory.create(id, new.clone(), limits).await?;
            if self.is(CreatesWhatEnded) && matches!(self.memory.load(id).await?, Found::Ended(_)) {
                self.back.lock().unwrap().insert(*id, new);
                return Ok(Created::Done { evicted: Vec::new() });
            }
            if self.is(CreatesTwice) && created == Created::Taken {
                return Ok(Created::Done { evicted: Vec::new() });
            }
            Ok(created)
        })
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            let current = self.current(id).await;
            let expected = if self.is(UpdatesAnyVersion) { current.unwrap_or(expected) } else { expected };
            let again = current == Some(new.record.version());
            if self.is(UpdatesNothing) && current.is_none() {
                self.back.lock().unwrap().insert(*id, new);
                return Ok(Outcome::Done);
            }
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

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        StoreFuture::boxed(async move {
            match end {
                End::For(_) if self.is(EndsNothing) => Ok(EndOutcome::Done),
                End::Replaced { expected, .. }
                    if self.is(ForgetsTheSuccessor) && self.current(id).await == expected =>
                {
                    self.memory.end(id, EndReason::Replaced.into()).await
                }
                End::Replaced { successor, .. } if self.is(ReplacesAnyVersion) => {
                    self.memory.end(id, End::Replaced { expected: None, successor }).await
                }
                End::Used { .. } if self.is(ConsumesForAll) => Ok(Self::claimed(self.memory.load(id).await?)),
                End::Used { .. } if self.is(ConsumesForNobodyAgain) => {
                    let found = self.memory.load(id).await?;
                    self.memory.end(id, EndReason::Used.into()).await?;
                    Ok(Self::claimed(found))
                }
                end => self.memory.end(id, end).await,
            }
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.memory.health()
    }

    fn name(&self) -> &'static str {
        "broken"
    }

    fn users(&self) -> Option<&dyn UserStore> {
        Some(self)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        Some(self)
    }
}

impl UserStore for BrokenStore {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        StoreFuture::boxed(async move {
            if self.is(ListsTheDead) {
                let created = self.created.lock().unwrap();
                let mine = created.get(&Some(user.to_owned())).into_iter().flatten();
                return Ok(mine.map(|(id, entry)| (*id, Self::loaded(entry))).collect());
            }
            if self.is(ListsNothing) { Ok(Vec::new()) } else { UserStore::list(&self.memory, user).await }
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
                let first = UserStore::list(&self.memory, user)
                    .await?
                    .into_iter()
                    .map(|(id, _)| id)
                    .find(|id| Some(id) != except);
                if let Some(id) = &first {
                    self.memory.end(id, reason.into()).await?;
                }
                return Ok(first.into_iter().collect());
            }
            UserStore::end_user(&self.memory, user, except.filter(|_| !self.is(SparesNobody)), reason).await
        })
    }
}

impl ScanStore for BrokenStore {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        StoreFuture::boxed(async move {
            let mut page = ScanStore::scan(&self.memory, from, count).await?;
            if self.is(MissesHalfInAScan) {
                page.sessions.truncate(page.sessions.len() / 2);
            }
            Ok(page)
        })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        StoreFuture::boxed(async move {
            if self.is(CountsTheDead) {
                return Ok(self.created.lock().unwrap().values().map(BTreeMap::len).sum::<usize>() as u64);
            }
            ScanStore::count(&self.memory).await
        })
    }
}

#[tokio::test]
async fn a_store_that_breaks_a_promise_is_found() {
    // The broken promise, and the cases that must detect it.
    let found_by: [(Broken, &[&str]); 24] = [
        (CreatesTwice, &["[Create, Create, ", "100 concurrent callers: one creates the id", "random"]),
        (CreatesWhatEnded, &["[Create, Replace, Late]", "ended (Consumed), then [CreateLate", "random", "resurrects"]),
        (IgnoresLimits, &["1 over a limit of 1: the new session is refused", "16 concurrent creations", "random"]),
        (
            EvictsTheWrongOne,
            &["1 over a limit of 2: the oldest is evicted", "the least recently used is evicted", "random"],
        ),
        (ForgetsWhatEnded, &["[Create, Replace, ", "ended (ForReason) for TokenReused: its reason is kept", "random"]),
        (ForgetsWhy, &["ended (ForReason) for Corrupt: its reason is kept", "all 2 of a user end", "random"]),
        (EndsNothing, &["[Create, End(Revoked), ", "ended (ForReason)", "random"]),
        (ReplacesAnyVersion, &["[Create, ReplaceStale, ", "random"]),
        (ForgetsTheSuccessor, &["[Create, Replace, ", "2 concurrent callers: one replaces the version", "random"]),
        (UpdatesAnyVersion, &["[Create, UpdateStale, ", "2 concurrent callers: one updates the version", "random"]),
        (UpdatesNothing, &["[Create, Replace, Update]", "expired, then [Update", "sessions expire", "random"]),
        (CannotBeRepeated, &["[Create, Update, Again]", "random"]),
        (TouchesAnyVersion, &["[Create, TouchStale, ", "random"]),
        (TouchesNothing, &["[Create, Touch, ", "a TTL of 1s is kept", "sessions expire", "random"]),
        (LivesTooLong, &["[Create, Update, ", "expired, then [Touch", "a TTL of", "sessions expire"]),
        (ConsumesForAll, &["[Create, Consume, ConsumeToo]", "2 concurrent callers: one consumes", "random"]),
        (ConsumesForNobodyAgain, &["[Create, Consume, Again]", "random"]),
        (ListsTheDead, &["[Create, Consume, ", "random", "all 1 of a user end"]),
        (ListsNothing, &["[Create, Update, ", "random", "user record: no values"]),
        (SparesNobody, &["all 1 of a user end, except one: true", "ending a user can be repeated", "random"]),
        (SparesAll, &["[Create, EndUser, ", "100 concurrent callers: none survives the end of all", "random"]),
        (EndsOnlyTheFirst, &["all 2 of a user end", "ending a user ends earlier", "random"]),
        (MissesHalfInAScan, &["a scan in pages of 7 ", "during writes"]),
        (CountsTheDead, &["sessions are counted"]),
    ];
    let mut missed = Vec::new();
    for (how, cases) in found_by {
        let report = in_memory(|memory| {
            Arc::new(BrokenStore { memory, how, created: Mutex::default(), back: Mutex::default() })
        })
        .await;
        missed.extend(cases.iter().filter(|case| !has_found(&report, case)).map(|case| (how, *case)));
        assert!(report.passed() > 0, "{how:?}: what has nothing to do with it is kept");
        assert!(std::panic::catch_unwind(|| report.assert_passed()).is_err(), "{how:?}");
    }
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
}

#[tokio::test]
async fn scripts_that_check_nothing_are_found() {
    let report = in_redis(RedisStore::without_guards).await;
    let cases =
        ["Replace", "Late", "one consumes", "concurrent creations", "one replaces the version", "its reason is kept"];
    for what in cases.into_iter().chain(["random", "none resurrects an ended session", "ended (Consumed), then"]) {
        assert!(has_found(&report, what), "{what}: {report}");
    }
}
