//! Two stores as one: the contract of a store, and all interleavings of operations while a session moves.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use crate::support::redis_server::RedisServer;
use tokio::sync::Mutex;
use tower_keep::{
    EndReason, Limits, ManualClock, MemoryStore, SessionId, Token, WhenFull,
    store::{
        Created, EndOutcome, Entry, Found, Health, Loaded, MigratingStore, Operation, Outcome, Record, ScanStore,
        SessionStore, StoreError, StoreExt, StoreFuture, StoreWrapper, UserStore, Version,
        redis::{RedisConfig, RedisStore},
        testing::{self, Report},
    },
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

mod contract {
    use super::*;

    /// Sessions are created in the old store, as before the migration. Everything else uses both.
    ///
    /// With a limit, they are created by both: an old store alone does not know the moved sessions.
    struct BeginsInOld {
        old: Arc<dyn SessionStore>,
        inner: MigratingStore,
        creating: Mutex<()>,
    }

    impl SessionStore for BeginsInOld {
        fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
            StoreFuture::boxed(async move {
                let _one_at_a_time = self.creating.lock().await;
                // A session that the new store knows was not created before it.
                let is_new = matches!(self.inner.load(id).await?, Found::Unknown);
                let room = match (new.record.user(), limits.sessions()) {
                    (Some(user), Some(limit)) => StoreExt::list(&self.inner, user).await?.len() < limit,
                    _ => true,
                };
                if is_new
                    && room
                    && let Created::Done { evicted } = self.old.create(id, new.clone(), Limits::none()).await?
                {
                    return Ok(Created::Done { evicted });
                }
                self.inner.create(id, new, limits).await
            })
        }

        fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
            self.inner.load(id)
        }

        fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
            self.inner.update(id, expected, new)
        }

        fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
            self.inner.touch(id, entry)
        }

        fn end<'a>(&'a self, id: &'a SessionId, end: tower_keep::store::End) -> StoreFuture<'a, EndOutcome> {
            self.inner.end(id, end)
        }

        fn health(&self) -> StoreFuture<'_, Health> {
            self.inner.health()
        }

        fn users(&self) -> Option<&dyn UserStore> {
            self.inner.users()
        }

        fn scans(&self) -> Option<&dyn ScanStore> {
            self.inner.scans()
        }
    }

    fn pair(
        old: impl SessionStore + 'static,
        new: impl SessionStore + 'static,
    ) -> (Arc<dyn SessionStore>, Arc<dyn SessionStore>) {
        let old: Arc<dyn SessionStore> = Arc::new(old);
        let both = MigratingStore::new(old.clone(), new);
        let begins_in_old = BeginsInOld { old, inner: both.clone(), creating: Mutex::default() };
        (Arc::new(both), Arc::new(begins_in_old))
    }

    fn memories() -> (ManualClock, Arc<dyn SessionStore>, Arc<dyn SessionStore>) {
        let clock = ManualClock::new();
        let [old, new] = [(); 2].map(|()| MemoryStore::new().clock(clock.clone()));
        let (both, begins_in_old) = pair(old, new);
        (clock, both, begins_in_old)
    }

    fn in_redis(server: &RedisServer) -> RedisStore {
        let patience = Duration::from_secs(10);
        let config = RedisConfig::from_url(&server.url()).unwrap().timeout(patience).connect_timeout(patience);
        RedisStore::new(config)
    }

    #[track_caller]
    fn assert_kept(report: &Report) {
        report.assert_passed();
        assert!(report.passed() > 8_000, "{report}");
    }

    #[tokio::test]
    async fn holds_from_memory_to_memory() {
        let (clock, both, begins_in_old) = memories();
        assert_kept(&testing::run(&*both, async |time| clock.advance(time)).await);
        assert_kept(&testing::run(&*begins_in_old, async |time| clock.advance(time)).await);
    }

    #[tokio::test]
    async fn holds_from_memory_to_redis() {
        let server = RedisServer::start().await;
        let (both, _) = pair(MemoryStore::new(), in_redis(&server));
        assert_kept(&testing::run(&*both, tokio::time::sleep).await);
    }

    #[tokio::test]
    async fn holds_from_memory_to_redis_for_sessions_created_in_memory() {
        let server = RedisServer::start().await;
        let (_, begins_in_old) = pair(MemoryStore::new(), in_redis(&server));
        assert_kept(&testing::run(&*begins_in_old, tokio::time::sleep).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn holds_for_many_threads() {
        let (from, to) = (RedisServer::start().await, RedisServer::start().await);
        let in_memory = pair(MemoryStore::new(), MemoryStore::new());
        let in_redis = pair(in_redis(&from), in_redis(&to));
        for store in [in_memory.0, in_memory.1, in_redis.0, in_redis.1] {
            let report = testing::run_parallel(store, |task| drop(tokio::spawn(task))).await;
            report.assert_passed();
            assert!(report.passed() > 100, "{report}");
        }
    }
}

/// The sessions of Ana.
fn id(n: usize) -> SessionId {
    let letter = ["a", "b", "c", "d"][n];
    Token::parse(format!("{}{}", SessionId::slot_tag_of("ana"), letter.repeat(44))).unwrap().id()
}

/// Of a session that is older the smaller its number is, in one of its versions.
fn record(n: usize, version: usize) -> Arc<Record> {
    let stored = format!(
        r#"{{"v":2,"n":"AAAA{n:06}{version:06}","t":[{},0,86400000,864000000],"user":"ana","data":{{"n":{n}}}}}"#,
        1_763_679_600_000_u64 + n as u64
    );
    Arc::new(Record::decode(stored.as_bytes()).unwrap())
}

fn entry(n: usize, version: usize) -> Entry {
    Entry { record: record(n, version), ttl: DAY }
}

fn claim(n: usize) -> Version {
    record(9, n).version()
}

/// A concurrent operation.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Load(usize),
    /// From the first version to this one.
    Update(usize, usize),
    Touch(usize),
    End(usize),
    Replace(usize),
    ReplaceAny(usize),
    Consume(usize, usize),
    EndUser,
    EndOthers(usize),
    List,
    Create(usize),
    /// With a limit of one.
    CreateOnly(usize),
    CreateIfFree(usize),
    MoveAll,
}

use Deed::*;

/// The complete reply as a string.
async fn perform(store: &dyn SessionStore, both: Option<&MigratingStore>, deed: Deed) -> String {
    let found = |found: Found| match found {
        Found::Live(loaded) => seen(&loaded),
        other => format!("{other:?}"),
    };
    let outcome = |outcome: Outcome| match outcome {
        Outcome::Conflict(loaded) => format!("conflict with {}", seen(&loaded)),
        other => format!("{other:?}"),
    };
    let ended = |outcome: EndOutcome| match outcome {
        EndOutcome::Conflict(loaded) => format!("conflict with {}", seen(&loaded)),
        other => format!("{other:?}"),
    };
    let created = async |n, limits| format!("{:?}", store.create(&id(n), entry(n, 1), limits).await.unwrap());
    let ids = |mut ids: Vec<SessionId>| {
        ids.sort_unstable();
        format!("{ids:?}")
    };
    match deed {
        Load(n) => found(store.load(&id(n)).await.unwrap()),
        Update(n, version) => outcome(store.update(&id(n), record(n, 1).version(), entry(n, version)).await.unwrap()),
        Touch(n) => {
            store.touch(&id(n), Entry { ttl: 2 * DAY, ..entry(n, 1) }).await.unwrap();
            String::new()
        }
        End(n) => ended(store.end(&id(n), EndReason::LoggedOut.into()).await.unwrap()),
        Replace(n) => ended(store.replace(&id(n), Some(record(n, 1).version()), &id(3)).await.unwrap()),
        ReplaceAny(n) => ended(store.replace(&id(n), None, &id(3)).await.unwrap()),
        Consume(n, by) => found(store.consume(&id(n), claim(by)).await.unwrap()),
        EndUser => ids(store.end_user("ana", None, EndReason::Revoked).await.unwrap()),
        EndOthers(n) => ids(store.end_user("ana", Some(&id(n)), EndReason::Revoked).await.unwrap()),
        List => {
            let mut listed: Vec<_> = store.list("ana").await.unwrap().iter().map(|(_, loaded)| seen(loaded)).collect();
            listed.sort_unstable();
            format!("{listed:?}")
        }
        Create(n) => created(n, Limits::none()).await,
        CreateOnly(n) => created(n, Limits::per_user(1, WhenFull::EvictOldest)).await,
        CreateIfFree(n) => created(n, Limits::per_user(1, WhenFull::Reject)).await,
        MoveAll => {
            if let Some(both) = both {
                both.move_all().await.unwrap();
            }
            String::new()
        }
    }
}

fn seen(loaded: &Loaded) -> String {
    format!("{} for {:?}", String::from_utf8(loaded.record.encode()).unwrap(), loaded.ttl)
}

/// A store that yields before every reply.
struct InTurn {
    inner: MemoryStore,
}

impl StoreWrapper for InTurn {
    type Inner = MemoryStore;

    fn inner(&self) -> &MemoryStore {
        &self.inner
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            let mut waited = false;
            std::future::poll_fn(
                |_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending },
            )
            .await;
            operation.run(&self.inner).await
        })
    }
}

/// The place of a session before the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    InOld,
    /// The move was cancelled after this many steps.
    OnTheWay(usize),
    InNew,
}

const PLACES: [Place; 6] =
    [Place::InOld, Place::OnTheWay(2), Place::OnTheWay(3), Place::OnTheWay(4), Place::OnTheWay(5), Place::InNew];

/// Two stores, each behind its own instance, and the single store that they must be equivalent to.
struct World {
    clock: ManualClock,
    old: MemoryStore,
    instances: [MigratingStore; 3],
}

impl World {
    /// With `sessions` of Ana.
    fn new(sessions: usize, place: Place) -> Self {
        let clock = ManualClock::new();
        let [old, new] = [(); 2].map(|()| MemoryStore::new().clock(clock.clone()));
        for n in 0..sessions {
            now(old.create(&id(n), entry(n, 1), Limits::none())).unwrap();
        }
        let instance = || MigratingStore::new(InTurn { inner: old.clone() }, InTurn { inner: new.clone() });
        let instances = [instance(), instance(), instance()];
        for n in 0..sessions {
            match place {
                Place::InOld => {}
                Place::OnTheWay(steps) => {
                    let first = id(n);
                    let mut load = pin!(SessionStore::load(&instances[0], &first));
                    for _ in 0..steps {
                        assert!(poll(load.as_mut()).is_pending(), "it is there after {steps} steps");
                    }
                }
                Place::InNew => {
                    now(SessionStore::load(&instances[0], &id(n))).unwrap().live().unwrap();
                }
            }
        }
        Self { clock, old, instances }
    }

    /// All observable state. It does not change with time, except that tombstones are removed.
    fn end_state(&self) -> Vec<String> {
        let state = state_of(&self.instances[0]);
        assert_eq!(now(StoreExt::count(&self.old)).unwrap(), 0, "what was looked at has moved");
        let live = now(StoreExt::list(&self.instances[1], "ana")).unwrap().len();
        // Longer than tombstones are kept, and shorter than sessions live.
        self.clock.advance(2 * HOUR);
        now(self.instances[2].move_all()).unwrap();
        let later = now(StoreExt::list(&self.instances[2], "ana")).unwrap();
        assert_eq!(later.len(), live, "some came back, or were lost: {later:?}");
        assert_eq!(now(StoreExt::count(&self.instances[2])).unwrap(), live as u64);
        state
    }
}

fn state_of(store: &dyn SessionStore) -> Vec<String> {
    (0..4).map(Load).chain([List]).map(|deed| now(perform(store, None, deed))).collect()
}

/// The replies of one store to the operations in this order, and the final state.
fn alone(sessions: usize, deeds: &[Deed], clock: &ManualClock) -> (Vec<String>, Vec<String>) {
    let store = MemoryStore::new().clock(clock.clone());
    for n in 0..sessions {
        now(store.create(&id(n), entry(n, 1), Limits::none())).unwrap();
    }
    let answers = deeds.iter().map(|deed| now(perform(&store, None, *deed))).collect();
    (answers, state_of(&store))
}

fn poll<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs an operation without interruption.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..10_000 {
        if let Poll::Ready(answer) = poll(future.as_mut()) {
            return answer;
        }
    }
    panic!("the scan does not end");
}

/// The maximum number of switches between the operations. All orders of their steps are millions, and more switches find no more.
const MAX_TURNS: usize = 2;

/// A schedule of the steps of two operations: every choice, and the number of alternatives.
#[derive(Default)]
struct Schedule {
    choices: Vec<(usize, usize)>,
    made: usize,
    /// The operation that made the last step.
    last: usize,
    turns: usize,
}

impl Schedule {
    fn choose(&mut self, options: usize) -> usize {
        if self.made > 0 && self.turns == MAX_TURNS {
            return self.last;
        }
        if self.made == self.choices.len() {
            self.choices.push((0, options));
        }
        let turn = self.choices[self.made].0; // 0: continue
        self.turns += usize::from(self.made > 0 && turn > 0);
        self.made += 1;
        self.last = (self.last + turn) % options;
        self.last
    }

    /// The next schedule that was not tried.
    fn next(mut self) -> Option<Self> {
        while let Some((chosen, options)) = self.choices.pop() {
            if chosen + 1 < options {
                self.choices.push((chosen + 1, options));
                return Some(Self { choices: self.choices, ..Self::default() });
            }
        }
        None
    }
}

/// A reply, with the times of its start and end.
struct Done {
    deed: Deed,
    answer: String,
    from: usize,
    until: usize,
}

fn at_once(world: &World, deeds: &[Deed], mut choose: impl FnMut(usize) -> usize) -> Vec<Done> {
    let mut futures: Vec<_> = deeds
        .iter()
        .zip(&world.instances)
        .map(|(deed, both)| (Box::pin(perform(both, Some(both), *deed)), None, None))
        .collect();
    for step in 0.. {
        let mut pending: Vec<_> = futures.iter_mut().filter(|(_, _, answer)| answer.is_none()).collect();
        let (future, from, answer) = match pending.len() {
            0 => break,
            1 => pending.remove(0),
            options => pending.remove(choose(options)),
        };
        from.get_or_insert(step);
        if let Poll::Ready(text) = poll(future.as_mut()) {
            *answer = Some((text, step));
        }
    }
    let done = deeds.iter().zip(futures).map(|(deed, (_, from, answer))| {
        let (answer, until) = answer.unwrap();
        Done { deed: *deed, answer, from: from.unwrap(), until }
    });
    done.collect()
}

/// Some order of the operations explains every reply and the final state: one in which an operation that ended before
/// another started comes first.
#[track_caller]
fn assert_explained(sessions: usize, place: Place, world: &World, done: &[Done]) {
    let state = world.end_state();
    // Tombstones have the time of the end, so the clock is set to it.
    let clock = ManualClock::new();
    let strip = |text: &String| text.split(", at: ").next().unwrap_or_default().to_owned();
    let mut explained = false;
    for order in orders(done.len()) {
        let possible = |(place, this): (usize, &usize)| {
            order[..place].iter().all(|before| done[*this].until >= done[*before].from)
        };
        if !order.iter().enumerate().all(possible) {
            continue;
        }
        let deeds: Vec<_> = order.iter().map(|this| done[*this].deed).collect();
        let (answers, left) = alone(sessions, &deeds, &clock);
        let same_answers = order.iter().zip(&answers).all(|(this, answer)| strip(&done[*this].answer) == strip(answer));
        explained |= same_answers && left.iter().map(strip).eq(state.iter().map(strip));
    }
    let answers: Vec<_> = done.iter().map(|done| (done.deed, &done.answer, done.from, done.until)).collect();
    assert!(explained, "{sessions} sessions, {place:?}: no order explains {answers:#?} and {state:#?}");
}

fn orders(len: usize) -> Vec<Vec<usize>> {
    match len {
        0 => vec![Vec::new()],
        _ => orders(len - 1)
            .into_iter()
            .flat_map(|order| {
                (0..len).map(move |place| {
                    let mut longer = order.clone();
                    longer.insert(place, len - 1);
                    longer
                })
            })
            .collect(),
    }
}

const DEEDS: [Deed; 13] = [
    Load(0),
    Update(0, 2),
    Update(0, 3),
    Touch(0),
    End(0),
    Replace(0),
    ReplaceAny(0),
    Consume(0, 1),
    Consume(0, 2),
    EndUser,
    EndOthers(0),
    List,
    MoveAll,
];

const CREATIONS: [Deed; 4] = [Create(0), Create(1), CreateOnly(1), CreateIfFree(1)];

/// Operations on all sessions of a user use one store after the other, so a concurrent change between the two is seen in part. The docs say so.
fn may_be_half_seen(first: Deed, second: Deed) -> bool {
    matches!(
        (first, second),
        (List | EndUser | EndOthers(_), Create(_) | CreateOnly(_) | CreateIfFree(_)) | (EndUser, EndUser)
    )
}

/// Two operations of two instances on one session, in every place and interleaving: the replies and the final state are
/// those of a single store.
#[test]
fn two_concurrent_operations_are_serializable() {
    let tried: usize = thread::scope(|scope| {
        PLACES.map(|place| scope.spawn(move || two_at_once(place))).map(|tried| tried.join().unwrap())
    })
    .into_iter()
    .sum();
    assert!(tried > 20_000, "{tried}");
}

/// Returns the number of schedules.
fn two_at_once(place: Place) -> usize {
    let mut schedules = 0;
    for (i, first) in DEEDS.into_iter().enumerate() {
        // Either operation may start first.
        for second in DEEDS[i..].iter().chain(&CREATIONS).copied().filter(|second| !may_be_half_seen(first, *second)) {
            let mut schedule = Some(Schedule::default());
            while let Some(mut tried) = schedule {
                let world = World::new(1, place);
                let done = at_once(&world, &[first, second], |options| tried.choose(options));
                assert_explained(1, place, &world, &done);
                schedules += 1;
                schedule = tried.next();
            }
        }
    }
    schedules
}

/// A store that can be made unreachable or full.
mod failing {
    use std::{
        any::Any,
        sync::atomic::{AtomicU8, Ordering},
    };

    use super::*;
    use tower_keep::{HealthStatus, SessionLayer};

    const AWAY: u8 = 1;
    const FULL: u8 = 2;

    #[derive(Clone)]
    struct Failing {
        inner: MemoryStore,
        state: Arc<AtomicU8>,
    }

    impl Failing {
        fn new() -> Self {
            Self { inner: MemoryStore::new(), state: Arc::default() }
        }

        fn becomes(&self, state: u8) {
            self.state.store(state, Ordering::Relaxed);
        }
    }

    impl StoreWrapper for Failing {
        type Inner = MemoryStore;

        fn inner(&self) -> &MemoryStore {
            &self.inner
        }

        fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
            match self.state.load(Ordering::Relaxed) {
                AWAY => StoreFuture::ready(Err(StoreError::Outage("the test says so".into()))),
                FULL if operation.name() == "create" => {
                    let reply: Box<dyn Any> = Box::new(Created::Full);
                    StoreFuture::ready(Ok(*reply.downcast().unwrap()))
                }
                _ => operation.run(&self.inner),
            }
        }
    }

    struct Scene {
        old: Failing,
        new: Failing,
        both: MigratingStore,
    }

    /// Session 0 has moved, session 1 has not.
    async fn scene() -> Scene {
        let (old, new) = (Failing::new(), Failing::new());
        let both = MigratingStore::new(old.clone(), new.clone());
        for n in [0, 1] {
            old.create(&id(n), entry(n, 1), Limits::none()).await.unwrap();
        }
        both.load(&id(0)).await.unwrap().live().unwrap();
        Scene { old, new, both }
    }

    #[tokio::test]
    async fn without_the_old_store_moved_sessions_are_served() {
        let Scene { old, both, .. } = scene().await;
        old.becomes(AWAY);
        assert!(both.load(&id(0)).await.unwrap().live().is_some());
        let updated = both.update(&id(0), record(0, 1).version(), entry(0, 2)).await.unwrap();
        assert!(matches!(updated, Outcome::Done));
        for failed in [
            both.load(&id(1)).await.is_err(),
            both.create(&id(2), entry(2, 1), Limits::none()).await.is_err(),
            StoreExt::list(&both, "ana").await.is_err(),
            StoreExt::end_user(&both, "ana", None, EndReason::Revoked).await.is_err(),
            StoreExt::count(&both).await.is_err(),
            both.move_all().await.is_err(),
        ] {
            assert!(failed);
        }
        let health = SessionLayer::new(both.clone()).sessions().health().await;
        assert_eq!(health.status, HealthStatus::Down);
        assert!(health.cause.unwrap().starts_with("the old store: "));
        old.becomes(0);
        assert!(both.load(&id(1)).await.unwrap().live().is_some());
        assert_eq!(both.health().await.unwrap(), Health::Up);
    }

    #[tokio::test]
    async fn without_the_new_store_nothing_is_served_and_nothing_is_lost() {
        let Scene { new, both, old } = scene().await;
        new.becomes(AWAY);
        assert!(both.load(&id(0)).await.is_err() && both.load(&id(1)).await.is_err());
        assert!(both.health().await.unwrap().cause().unwrap().starts_with("the new store: "));
        new.becomes(0);
        assert_eq!(both.move_all().await.unwrap(), 1);
        assert_eq!(StoreExt::list(&both, "ana").await.unwrap().len(), 2);
        assert_eq!(StoreExt::count(&old).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn while_the_new_store_is_full_old_sessions_are_read_and_ended() {
        let Scene { new, both, .. } = scene().await;
        new.becomes(FULL);
        assert!(both.load(&id(1)).await.unwrap().live().is_some());
        assert!(both.update(&id(1), record(1, 1).version(), entry(1, 2)).await.is_err());
        assert!(both.move_all().await.is_err());
        assert!(matches!(both.end(&id(1), EndReason::LoggedOut.into()).await.unwrap(), EndOutcome::Done));
        new.becomes(0);
        assert!(both.load(&id(1)).await.unwrap().live().is_none());
        assert!(both.load(&id(0)).await.unwrap().live().is_some());
    }
}
