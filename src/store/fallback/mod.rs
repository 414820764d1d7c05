//! What to do when a store is away.
//!
//! ```text
//!        an operation fails, and the store is down
//!   Up ────────────────────────────────────────────▶ Down ──┐ a request sees, now and then, whether it is back
//!    ▲                                                 │ ◀──┘
//!    └──── it is back, and has been told everything ────┘
//! ```
//! * `mode.rs` — what is done, and what that promises;
//! * `operations.rs` — each operation: on the main store, and without it;
//! * `seen.rs` — the sessions that were seen lately;
//! * `outage.rs` — when the store is away, and until when;
//! * `local.rs`, `journal.rs` — the sessions of an outage, and what the main store has to be told of them;
//! * `replay.rs` — telling it.

mod journal;
mod local;
mod mode;
mod operations;
mod outage;
mod replay;
mod seen;

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use self::mode::{FallbackMode, OnReturn};
use self::{
    local::{Local, Next},
    operations::{Consume, Count, Create, End, EndUser, List, Load, Operation, Replace, Scan, Touch, Update},
    outage::{Failed, Outage, ask, is_away},
    replay::{AT_ONCE, ROUNDS, all, tell},
    seen::{Lesson, Seen},
};
use super::{
    Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, Published, SessionStore, StoreError, StoreFuture,
    Version,
};
use crate::{
    ended::EndReason,
    event::Event,
    limits::Limits,
    observe::Causes,
    time::{Clock, SystemClock},
    token::SessionId,
};

/// A store, and what to do when it is away: see [`FallbackMode`], which says what each mode promises.
///
/// * **Away** is a store that fails an operation and whose [health](SessionStore::health) is then [`Down`](Health::Down). One that refuses writes
///   and serves reads, because it is full or a replica, is not away: there is no fallback, and its errors are the caller's. Nor is one that has lost a
///   single operation. One that lets nobody in (a wrong password) is away like one that is dead; that is logged as an error.
/// * **Once that is known**, no request waits for it. Now and then ([`look_every`](Self::look_every)) one request at a time asks
///   for its health, which costs nothing with a store that knows that it is down, as
///   [`RedisStore`](super::redis::RedisStore) and [`Guard`](super::Guard) do. Wrap any other that has no deadline of its own in a `Guard`.
/// * **It is back** when its health is better than down and it has taken what it has to be told. One request at a time tells it, a bounded number of
///   sessions, and the next ones the rest; until all is told, requests are served as before. So nobody sees half of it.
/// * **An outage is logged** when it begins, as a warning with its cause, and when it is over, with what came of it. Sessions loaded
///   meanwhile [say so](crate::Session::is_degraded).
///
/// # Memory
/// Some [`capacity`](Self::capacity) sessions are remembered as they were last seen, the longest unused forgotten first: about half a
/// kilobyte and its values each. In mode `Memory` an outage has as many sessions again, and room for as many that begin or change, and as many
/// that end. What exceeds that fails with an outage: 503.
///
/// It needs a tokio runtime with a timer, and starts no task.
///
/// ```
/// use std::sync::Arc;
/// use tower_keep::{SessionLayer, store::{Fallback, OnReturn}};
/// # #[cfg(feature = "redis")] {
/// use tower_keep::store::redis::{RedisConfig, RedisStore};
///
/// let redis = RedisStore::new(RedisConfig::from_url("redis://127.0.0.1:6379")?);
/// let store = Arc::new(Fallback::memory(redis, OnReturn::Merge));
/// let layer = SessionLayer::new(store.clone());
/// assert!(!store.stats().using_fallback);
/// # let _ = layer;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Fallback<S> {
    main: S,
    mode: FallbackMode,
    seen_within: Duration,
    look_every: Duration,
    capacity: usize,
    clock: Arc<dyn Clock>,
    seen: Seen,
    outage: RwLock<Option<Arc<Outage>>>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    outages: AtomicU64,
    replayed: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

impl<S: SessionStore> Fallback<S> {
    /// `main`, with a fallback of this mode.
    pub fn new(main: S, mode: FallbackMode) -> Self {
        const CAPACITY: usize = 10_000;
        let seen_within = match mode {
            FallbackMode::ReadStale { max_age } => max_age,
            FallbackMode::Reject | FallbackMode::Memory { .. } => Duration::from_secs(10 * 60),
        };
        Self {
            main,
            mode,
            seen_within,
            look_every: Duration::from_millis(100),
            capacity: CAPACITY,
            clock: Arc::new(SystemClock),
            seen: Seen::new(CAPACITY),
            outage: RwLock::default(),
            counts: Counts::default(),
        }
    }

    /// `main`, and [`FallbackMode::ReadStale`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::Fallback};
    /// let store = Fallback::read_stale(MemoryStore::new(), Duration::from_secs(300));
    /// ```
    pub fn read_stale(main: S, max_age: Duration) -> Self {
        Self::new(main, FallbackMode::ReadStale { max_age })
    }

    /// `main`, and [`FallbackMode::Memory`].
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
    /// let store = Fallback::memory(MemoryStore::new(), OnReturn::Drop);
    /// ```
    pub fn memory(main: S, on_return: OnReturn) -> Self {
        Self::new(main, FallbackMode::Memory { on_return })
    }

    /// How lately before an outage a session must have been seen by this process to go on in mode `Memory`. Default: ten minutes.
    ///
    /// The longer, the more users stay logged in; and the longer ago another instance may have ended a session that is
    /// served here once more. For mode `ReadStale` it is the `max_age`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
    /// let store = Fallback::memory(MemoryStore::new(), OnReturn::Drop).seen_within(Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn seen_within(mut self, max_age: Duration) -> Self {
        self.seen_within = max_age;
        self
    }

    /// How many sessions are remembered, and how many may begin or change, or end, in an outage. Default: 10,000; at least one.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
    /// let store = Fallback::memory(MemoryStore::new(), OnReturn::Drop).capacity(100_000);
    /// ```
    #[must_use]
    pub fn capacity(mut self, sessions: usize) -> Self {
        self.capacity = sessions.max(1);
        self.seen = Seen::new(self.capacity);
        self
    }

    /// How often, in an outage, a request sees whether the main store is back. Default: every 100 ms.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
    /// let store = Fallback::memory(MemoryStore::new(), OnReturn::Drop).look_every(Duration::from_secs(1));
    /// ```
    #[must_use]
    pub fn look_every(mut self, pause: Duration) -> Self {
        self.look_every = pause;
        self
    }

    /// The clock that sessions of an outage expire by. Default: the system's.
    ///
    /// ```
    /// # use tower_keep::{ManualClock, MemoryStore, store::{Fallback, OnReturn}};
    /// let clock = ManualClock::new();
    /// let store = Fallback::memory(MemoryStore::new().clock(clock.clone()), OnReturn::Drop).clock(clock);
    /// ```
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The main store.
    ///
    /// ```
    /// use tower_keep::store::{Fallback, Health, SessionStore};
    ///
    /// async fn is_redis_healthy(store: &Fallback<impl SessionStore>) -> bool {
    ///     matches!(store.main().health().await, Ok(Health::Up))
    /// }
    /// # let _ = is_redis_healthy(&Fallback::new(tower_keep::MemoryStore::new(), Default::default()));
    /// ```
    pub fn main(&self) -> &S {
        &self.main
    }

    /// What is done while the main store is away.
    pub fn mode(&self) -> FallbackMode {
        self.mode
    }

    /// Where it stands, and what it has counted.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
    /// let store = Fallback::memory(MemoryStore::new(), OnReturn::Merge);
    /// assert_eq!(store.stats().outages, 0);
    /// ```
    pub fn stats(&self) -> FallbackStats {
        let outage = self.outage();
        let (in_memory, journalled) = match outage.as_ref().and_then(|outage| outage.local()) {
            Some(local) if !local.is_over() => (local.store().len(), local.journalled()),
            _ => (0, 0),
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FallbackStats {
            using_fallback: outage.is_some(),
            seen: self.seen.len(),
            in_memory,
            journalled,
            outages: count(&self.counts.outages),
            replayed: count(&self.counts.replayed),
            dropped: count(&self.counts.dropped),
            refused: count(&self.counts.refused),
        }
    }

    fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The main store if it is there, else what there is.
    async fn perform<O: Operation>(&self, operation: O) -> Result<O::Answer, StoreError> {
        if let FallbackMode::Reject = self.mode {
            return operation.ask(&self.main).await;
        }
        let mut sent = false;
        loop {
            let outage = match self.outage() {
                Some(outage) if !self.is_back(&outage).await => outage,
                _ => {
                    let asked = self.seen.asked();
                    match ask(&self.main, operation.ask(&self.main)).await {
                        Ok(answer) => {
                            operation.lessons(&answer, self.clock.now(), &mut |lesson| self.learn(&lesson, asked));
                            return Ok(answer);
                        }
                        Err(Failed::Once(error)) => {
                            operation.in_doubt(&self.seen);
                            return Err(error);
                        }
                        Err(Failed::Away(error)) => {
                            sent = true;
                            self.goes_away(error)
                        }
                    }
                }
            };
            if let Some(answer) = self.perform_without(&outage, &operation, sent) {
                return answer;
            }
            // It was over in this very moment.
        }
    }

    /// What can be done without the main store; `None` if it is back.
    fn perform_without<O: Operation>(
        &self,
        outage: &Outage,
        operation: &O,
        sent: bool,
    ) -> Option<Result<O::Answer, StoreError>> {
        let now = self.clock.now();
        let Some(mut local) = outage.local() else {
            return Some(operation.stale(&self.seen, self.seen_within, now).ok_or_else(|| {
                operation.in_doubt(&self.seen);
                outage.error()
            }));
        };
        if local.is_over() {
            return None;
        }
        let answer = operation.perform(&mut local, now, sent);
        match &answer {
            // What ended here must not come back with the next outage.
            Ok(answer) => operation.lessons(answer, now, &mut |lesson| {
                if let Lesson::Ended(..) | Lesson::AllEnded { .. } = lesson {
                    self.seen.learn(&lesson, self.seen.asked(), now);
                }
            }),
            Err(_) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        Some(answer)
    }

    fn learn(&self, lesson: &Lesson<'_>, asked: seen::Asked) {
        let now = self.clock.now();
        if !self.seen.learn(lesson, asked, now) {
            return;
        }
        // Asked before the outage, and answered in it.
        if let Some(outage) = self.outage()
            && let Some(mut local) = outage.local()
            && !local.is_over()
        {
            let is_end = matches!(lesson, Lesson::Ended(..) | Lesson::AllEnded { .. });
            if is_end || self.seen.counts(asked) {
                local.learn(lesson, now);
            }
        }
    }

    /// The main store is away, since now or before.
    fn goes_away(&self, cause: StoreError) -> Arc<Outage> {
        let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*outage
            && !known.local().is_some_and(|local| local.is_over())
        {
            return known.clone();
        }
        let (store, mode, error) = (self.main.name(), self.mode, Causes(&cause));
        match cause {
            StoreError::Configuration(_) => {
                tracing::error!(store, ?mode, %error, "the session store refuses to serve: falling back");
            }
            _ => tracing::warn!(store, ?mode, %error, "the session store is away: falling back"),
        }
        self.counts.outages.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let local = match self.mode {
            FallbackMode::Reject | FallbackMode::ReadStale { .. } => None,
            FallbackMode::Memory { on_return } => {
                let seen = self.seen.all(self.seen_within, now);
                Some(Local::new(seen, on_return == OnReturn::Merge, self.capacity, self.clock.clone()))
            }
        };
        let begun = Arc::new(Outage::new(Arc::new(cause), local, self.counts.so_far(), now));
        begun.look_at(now.plus(self.look_every));
        *outage = Some(begun.clone());
        begun
    }

    /// Whether the main store is back, and has been told everything.
    async fn is_back(&self, outage: &Arc<Outage>) -> bool {
        if !outage.is_due(self.clock.now(), self.look_every) {
            return false;
        }
        let Ok(_turn) = outage.turn.try_acquire() else { return false };
        let progress = if is_away(&self.main).await { Progress::Away } else { self.tell(outage).await };
        match progress {
            Progress::Over => self.end(outage),
            // The next request goes on with it.
            Progress::More => {}
            Progress::Away => outage.look_at(self.clock.now().plus(self.look_every)),
        }
        matches!(progress, Progress::Over)
    }

    /// Tells the main store some of what it has missed.
    async fn tell(&self, outage: &Outage) -> Progress {
        for _ in 0..ROUNDS {
            let tasks = {
                let Some(mut local) = outage.local() else { return Progress::Over };
                match local.next(AT_ONCE) {
                    Next::Tell(tasks) => tasks,
                    Next::Over(dropped) => {
                        self.counts.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
                        return Progress::Over;
                    }
                }
            };
            let answers = all(tasks.iter().map(|task| tell(&self.main, task))).await;
            let Some(mut local) = outage.local() else { return Progress::Over };
            let mut away = false;
            for (task, answer) in tasks.iter().zip(answers) {
                match answer {
                    Ok(told) => {
                        let dropped = local.settle(task, told, &self.seen, self.clock.now());
                        self.counts.dropped.fetch_add(dropped, Ordering::Relaxed);
                        self.counts.replayed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        outage.refused(self.main.name(), &error);
                        away = true;
                    }
                }
            }
            if away {
                return Progress::Away;
            }
        }
        Progress::More
    }

    fn end(&self, ended: &Arc<Outage>) {
        {
            let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
            if !outage.as_ref().is_some_and(|outage| Arc::ptr_eq(outage, ended)) {
                return; // it has ended before, and there may be another
            }
            *outage = None;
        }
        let (lasted, [replayed, dropped, refused]) = (self.clock.now().since(ended.began), self.counts.so_far());
        let before = ended.counts;
        tracing::info!(
            store = self.main.name(),
            ?lasted,
            replayed = replayed - before[0],
            dropped = dropped - before[1],
            refused = refused - before[2],
            "the session store is back"
        );
    }

    async fn health_of_both(&self) -> Result<Health, StoreError> {
        match (self.mode, self.outage()) {
            (FallbackMode::Reject, _) => self.main.health().await,
            (_, Some(outage)) if !self.is_back(&outage).await => Ok(Health::Degraded),
            _ => Ok(match self.main.health().await {
                Ok(Health::Down) | Err(_) => Health::Degraded,
                Ok(health) => health,
            }),
        }
    }

    async fn publish_unless_away(&self, event: &Event) -> Result<(), StoreError> {
        match self.outage() {
            Some(_) => Ok(()), // others cannot be told, and who does not know that was told once
            None => self.main.publish(event).await,
        }
    }
}

/// How far the return of the main store has come.
enum Progress {
    /// It has been told everything.
    Over,
    More,
    /// It is away again, or does not take everything yet.
    Away,
}

impl Counts {
    /// Replayed, dropped, refused.
    fn so_far(&self) -> [u64; 3] {
        [&self.replayed, &self.dropped, &self.refused].map(|count| count.load(Ordering::Relaxed))
    }
}

impl<S: SessionStore> SessionStore for Fallback<S> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(self.perform(Load { id }))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        StoreFuture::boxed(self.perform(Create { id, new, limits }))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(self.perform(Update { id, expected, new }))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(self.perform(Touch { id, entry }))
    }

    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(self.perform(End { id, reason }))
    }

    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(self.perform(Replace { id, expected, successor }))
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(self.perform(Consume { id, claim }))
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        StoreFuture::boxed(self.perform(List { user }))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        StoreFuture::boxed(self.perform(EndUser { user, except, reason }))
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        StoreFuture::boxed(self.perform(Scan { from, count }))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        StoreFuture::boxed(self.perform(Count))
    }

    /// That of the main store; but while there is a fallback, degraded is the worst.
    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(self.health_of_both())
    }

    /// That of the main store, or `"memory"` while everything goes on there.
    fn name(&self) -> &'static str {
        match (self.mode, self.outage()) {
            (FallbackMode::Memory { .. }, Some(_)) => "memory",
            _ => self.main.name(),
        }
    }

    fn is_degraded(&self) -> bool {
        self.outage().is_some() || self.main.is_degraded()
    }

    /// In an outage other processes are told nothing.
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(self.publish_unless_away(event))
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        self.main.events(from)
    }
}

impl<S: SessionStore> fmt::Debug for Fallback<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("main", &self.main.name())
            .field("mode", &self.mode)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Where a [`Fallback`] stands, and what it has counted since it was made.
///
/// ```
/// use tower_keep::{MemoryStore, store::{Fallback, OnReturn}};
///
/// let stats = Fallback::memory(MemoryStore::new(), OnReturn::Merge).stats();
/// assert!(!stats.using_fallback);
/// assert_eq!((stats.in_memory, stats.journalled, stats.dropped), (0, 0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FallbackStats {
    /// The main store is away, or has not been told everything yet.
    pub using_fallback: bool,
    /// Sessions that are remembered as they were last seen.
    pub seen: usize,
    /// Sessions that go on in memory.
    pub in_memory: usize,
    /// What the main store has to be told still.
    pub journalled: usize,
    /// How often the main store went away.
    pub outages: u64,
    /// What it was told on its returns.
    pub replayed: u64,
    /// Sessions that began or were changed in an outage, of which that was lost: forgotten, or the main store had
    /// something newer.
    pub dropped: u64,
    /// What had no room in an outage, and failed.
    pub refused: u64,
}

/// Why the main store was not asked.
#[derive(Debug)]
enum Cause {
    /// It is known to be away, for this reason.
    Away(Arc<StoreError>),
    /// It does not answer, and its health says why.
    Down,
    JournalFull,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away(_) => "the main store is away",
            Self::Down => "it says that it is down",
            Self::JournalFull => "no more can be kept until the main store is back",
        })
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Away(cause) => cause.source(),
            Self::Down | Self::JournalFull => None,
        }
    }
}
