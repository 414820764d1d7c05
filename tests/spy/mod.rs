//! A store in memory that shows what it is asked, and fails when it is told to.

#![allow(dead_code)] // each test binary uses its part

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::Notify;
use tower_keep::{
    Clock, EndReason, Event, Limits, MemoryStore, SessionId,
    store::{
        Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, SessionStore, StoreError, StoreFuture, Version,
    },
};

/// Clones share sessions, faults and the list of calls.
#[derive(Clone, Default)]
pub struct Spy {
    memory: MemoryStore,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    calls: Vec<&'static str>,
    down: Option<Fault>,
    faults: HashMap<&'static str, Fault>,
    next: HashMap<&'static str, Fault>,
    no_ttl: bool,
    hangs_on_events: bool,
    /// Goes away and comes back every so many calls.
    shift: Option<usize>,
    shifts: usize,
}

#[derive(Clone)]
enum Fault {
    /// Nothing is done, and the store does not answer.
    Down,
    /// What is there cannot be read.
    Corrupt,
    /// Nothing is done, and nothing is ever said.
    Hung,
    /// It is done after so long.
    Slow(Duration),
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is done when the test says so.
    Held(Arc<Hold>),
    /// It is done, and answered when the test says so.
    AnswerHeld(Arc<Hold>),
}

/// An operation that waits for the test.
#[derive(Default)]
pub struct Hold {
    reached: Notify,
    released: Notify,
}

impl Hold {
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    pub fn release(&self) {
        self.released.notify_one();
    }
}

impl Spy {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_clock(clock: impl Clock) -> Self {
        Self { memory: MemoryStore::new().clock(clock), state: Arc::default() }
    }

    /// The operations it was asked for since the last time somebody looked.
    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// The sessions themselves, as another instance of the service sees them.
    pub fn memory(&self) -> &MemoryStore {
        &self.memory
    }

    /// From now on nothing is answered.
    pub fn go_down(&self) {
        self.state().down = Some(Fault::Down);
    }

    /// From now on it is away for so many calls, and there for as many.
    pub fn come_and_go(&self, calls: usize) {
        self.state().shift = Some(calls);
    }

    /// No more of that.
    pub fn stay(&self) {
        let mut state = self.state();
        state.shift = None;
        state.down = None;
    }

    /// From now on nothing is said, not even that it is down.
    pub fn hang(&self) {
        self.state().down = Some(Fault::Hung);
    }

    /// From now on everything takes so long.
    pub fn slow_down(&self, delay: Duration) {
        self.state().down = Some(Fault::Slow(delay));
    }

    /// From now on `operation` is not answered.
    pub fn fail(&self, operation: &'static str) {
        self.state().faults.insert(operation, Fault::Down);
    }

    /// From now on `operation` finds what cannot be read.
    pub fn corrupt(&self, operation: &'static str) {
        self.state().faults.insert(operation, Fault::Corrupt);
    }

    pub fn recover(&self) {
        let mut state = self.state();
        state.down = None;
        state.faults.clear();
        state.next.clear();
    }

    /// The next `operation` is not done and not answered.
    pub fn fail_next(&self, operation: &'static str) {
        self.state().next.insert(operation, Fault::Down);
    }

    /// The next `operation` is done, but not answered.
    pub fn lose_next_answer(&self, operation: &'static str) {
        self.state().next.insert(operation, Fault::AnswerLost);
    }

    /// The next `operation` waits to be released.
    pub fn hold_next(&self, operation: &'static str) -> Arc<Hold> {
        let hold = Arc::<Hold>::default();
        self.state().next.insert(operation, Fault::Held(hold.clone()));
        hold
    }

    /// The next `operation` is done, and its answer waits to be released.
    pub fn hold_next_answer(&self, operation: &'static str) -> Arc<Hold> {
        let hold = Arc::<Hold>::default();
        self.state().next.insert(operation, Fault::AnswerHeld(hold.clone()));
        hold
    }

    /// From now on no event is taken, and none refused.
    pub fn hang_on_events(&self) {
        self.state().hangs_on_events = true;
    }

    /// From now on no session has a time to live, as if somebody had run `PERSIST` on all of them.
    pub fn lose_ttls(&self) {
        self.state().no_ttl = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        run: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let fault = {
            let mut state = self.state();
            state.calls.push(operation);
            if let Some(shift) = state.shift {
                state.shifts += 1;
                state.down = (state.shifts / shift % 2 == 1).then_some(Fault::Down);
            }
            match state.next.remove(operation) {
                Some(fault) => Some(fault),
                None => state.down.clone().or_else(|| state.faults.get(operation).cloned()),
            }
        };
        match fault {
            None => run(),
            Some(Fault::Down) => StoreFuture::ready(Err(outage())),
            Some(Fault::Corrupt) => StoreFuture::ready(Err(StoreError::Corrupt("the test says so".into()))),
            Some(Fault::Slow(delay)) => StoreFuture::boxed(async move {
                tokio::time::sleep(delay).await;
                run().await
            }),
            Some(Fault::Hung) => StoreFuture::boxed(std::future::pending()),
            Some(Fault::AnswerLost) => StoreFuture::boxed(async move {
                run().await?;
                Err(outage())
            }),
            Some(Fault::AnswerHeld(hold)) => StoreFuture::boxed(async move {
                let answer = run().await;
                hold.reached.notify_one();
                hold.released.notified().await;
                answer
            }),
            Some(Fault::Held(hold)) => StoreFuture::boxed(async move {
                hold.reached.notify_one();
                hold.released.notified().await;
                run().await
            }),
        }
    }
}

fn outage() -> StoreError {
    StoreError::Outage("the test says so".into())
}

impl SessionStore for Spy {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        let no_ttl = self.state().no_ttl;
        self.ask("load", move || {
            StoreFuture::boxed(async move {
                Ok(match self.memory.load(id).await? {
                    Found::Live(loaded) => Found::Live(Loaded { ttl: loaded.ttl.filter(|_| !no_ttl), ..loaded }),
                    other => other,
                })
            })
        })
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.ask("create", move || self.memory.create(id, new, limits))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.ask("update", move || self.memory.update(id, expected, new))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.ask("touch", move || self.memory.touch(id, entry))
    }

    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome> {
        self.ask("end", move || self.memory.end(id, reason))
    }

    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome> {
        self.ask("replace", move || self.memory.replace(id, expected, successor))
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        self.ask("consume", move || self.memory.consume(id, claim))
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.ask("list", move || self.memory.list(user))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.ask("end_user", move || self.memory.end_user(user, except, reason))
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        self.ask("scan", move || self.memory.scan(from, count))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.ask("count", || self.memory.count())
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.ask("health", || self.memory.health())
    }

    /// Not among the calls: it is no operation on a session.
    fn publish<'a>(&'a self, _: &'a Event) -> StoreFuture<'a, ()> {
        if self.state().hangs_on_events {
            return StoreFuture::boxed(std::future::pending());
        }
        StoreFuture::ready(Ok(()))
    }

    fn name(&self) -> &'static str {
        "spy"
    }
}
