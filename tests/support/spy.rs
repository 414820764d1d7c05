//! A store in memory that records calls and has faults.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::Notify;
use tower_keep::{
    Clock, Event, Limits, MemoryStore, SessionId,
    store::{
        Created, Cursor, End, EndOutcome, Entry, EventStore, Found, Health, Operation, Outcome, Published, ScanStore,
        SessionStore, StoreError, StoreFuture, StoreWrapper, UserStore, Version,
    },
};

/// Clones share sessions, faults and the list of calls.
#[derive(Clone, Default)]
pub struct Spy {
    base: Base,
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
    event_reads: usize,
    /// Fails for this many calls, then works for as many.
    shift: Option<usize>,
    shifts: usize,
}

#[derive(Clone)]
enum Fault {
    /// Nothing is applied, and the call fails.
    Down,
    /// The record is corrupt.
    Corrupt,
    /// Nothing is applied, and the call hangs.
    Hung,
    /// Applied after this time.
    Slow(Duration),
    /// Applied, and the reply is lost.
    AnswerLost,
    /// Applied when the test releases it.
    Held(Arc<Hold>),
    /// Applied, and the reply arrives when the test releases it.
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
        Self { base: Base(MemoryStore::new().clock(clock)), state: Arc::default() }
    }

    /// The operations since the last call of this method.
    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    pub fn len(&self) -> usize {
        self.base.0.len()
    }

    /// The sessions, as another instance of the service sees them.
    pub fn memory(&self) -> &MemoryStore {
        &self.base.0
    }

    /// From now on every call fails.
    pub fn go_down(&self) {
        self.state().down = Some(Fault::Down);
    }

    /// From now on it alternately fails and works for this many calls.
    pub fn come_and_go(&self, calls: usize) {
        self.state().shift = Some(calls);
    }

    /// Ends that.
    pub fn stay(&self) {
        let mut state = self.state();
        state.shift = None;
        state.down = None;
    }

    /// From now on every call hangs, even a health check.
    pub fn hang(&self) {
        self.state().down = Some(Fault::Hung);
    }

    /// From now on every call takes this long.
    pub fn slow_down(&self, delay: Duration) {
        self.state().down = Some(Fault::Slow(delay));
    }

    /// From now on `operation` fails.
    pub fn fail(&self, operation: &'static str) {
        self.state().faults.insert(operation, Fault::Down);
    }

    /// From now on `operation` finds a corrupt record.
    pub fn corrupt(&self, operation: &'static str) {
        self.state().faults.insert(operation, Fault::Corrupt);
    }

    pub fn recover(&self) {
        let mut state = self.state();
        state.down = None;
        state.faults.clear();
        state.next.clear();
    }

    /// The next `operation` fails without being applied.
    pub fn fail_next(&self, operation: &'static str) {
        self.state().next.insert(operation, Fault::Down);
    }

    /// The next `operation` is applied, and fails.
    pub fn lose_next_answer(&self, operation: &'static str) {
        self.state().next.insert(operation, Fault::AnswerLost);
    }

    /// The next `operation` waits to be released.
    pub fn hold_next(&self, operation: &'static str) -> Arc<Hold> {
        let hold = Arc::<Hold>::default();
        self.state().next.insert(operation, Fault::Held(hold.clone()));
        hold
    }

    /// The next `operation` is applied, and its reply waits to be released.
    pub fn hold_next_answer(&self, operation: &'static str) -> Arc<Hold> {
        let hold = Arc::<Hold>::default();
        self.state().next.insert(operation, Fault::AnswerHeld(hold.clone()));
        hold
    }

    /// The number of reads of events since the last call of this method.
    pub fn event_reads(&self) -> usize {
        std::mem::take(&mut self.state().event_reads)
    }

    /// From now on publishing an event hangs.
    pub fn hang_on_events(&self) {
        self.state().hangs_on_events = true;
    }

    /// From now on no session has a TTL, as after `PERSIST` on all of them.
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

impl StoreWrapper for Spy {
    type Inner = Base;

    fn inner(&self) -> &Base {
        &self.base
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        let (name, no_ttl) = (operation.name(), self.state().no_ttl);
        if name == "publish" || name == "events" {
            // Not among the calls: no session depends on events.
            self.state().event_reads += usize::from(name == "events");
            return if self.state().hangs_on_events {
                StoreFuture::boxed(std::future::pending())
            } else {
                operation.run(&self.base)
            };
        }
        self.ask(name, move || {
            StoreFuture::boxed(async move {
                let mut reply = operation.run(&self.base).await?;
                if no_ttl && let Some(Found::Live(loaded)) = (&mut reply as &mut dyn Any).downcast_mut() {
                    loaded.ttl = None;
                }
                Ok(reply)
            })
        })
    }

    fn wrapper_name(&self) -> &'static str {
        "spy"
    }
}

/// A store in memory with events and without values.
#[derive(Clone, Default)]
pub struct Base(MemoryStore);

impl SessionStore for Base {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.0.load(id)
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.0.create(id, new, limits)
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.0.update(id, expected, new)
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.0.touch(id, entry)
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        self.0.end(id, end)
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.0.health()
    }

    fn users(&self) -> Option<&dyn UserStore> {
        self.0.users()
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        self.0.scans()
    }

    fn event_log(&self) -> Option<&dyn EventStore> {
        Some(self)
    }
}

impl EventStore for Base {
    fn publish<'a>(&'a self, _: &'a Event) -> StoreFuture<'a, ()> {
        StoreFuture::ready(Ok(()))
    }

    fn events<'a>(&'a self, _: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        StoreFuture::ready(Ok(Published::default()))
    }
}
