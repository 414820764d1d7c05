//! The simplest store that keeps the contract, as a third party would write and test it: everything in one map under one lock. Tests
//! see only what is public.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_keep::{
    Clock, EndReason, Ended, Limits, ManualClock, SessionId, Timestamp, WhenFull,
    store::{
        Created, Cursor, End, EndOutcome, Entry, Found, Health, Loaded, Outcome, Page, Record, ScanStore, SessionStore,
        StoreFuture, UserStore, Version, testing,
    },
};

pub struct SimpleStore<C> {
    clock: C,
    sessions: Mutex<HashMap<SessionId, State>>,
}

enum State {
    /// `order` is how many sessions there were before: the times of two sessions may be equal.
    Live {
        record: Arc<Record>,
        until: Timestamp,
        order: usize,
    },
    Ended {
        ended: Ended,
        claim: Option<(Version, Loaded)>,
    },
}

type Sessions = HashMap<SessionId, State>;

impl<C: Clock> SimpleStore<C> {
    pub fn new(clock: C) -> Self {
        Self { clock, sessions: Mutex::default() }
    }

    /// Does `work` now, at once and alone.
    fn now<T>(&self, work: impl FnOnce(&mut Sessions, Timestamp) -> T) -> StoreFuture<'_, T> {
        let now = self.clock.now();
        StoreFuture::ready(Ok(work(&mut self.sessions.lock().unwrap(), now)))
    }
}

fn until(now: Timestamp, ttl: Duration) -> Timestamp {
    Timestamp::from_millis(now.as_millis() + (ttl.as_millis() as u64).max(1))
}

fn loaded(record: &Arc<Record>, until: Timestamp, now: Timestamp) -> Loaded {
    let ttl = Some(Duration::from_millis(until.as_millis() - now.as_millis()));
    Loaded { record: record.clone(), ttl }
}

fn found(sessions: &Sessions, id: &SessionId, now: Timestamp) -> Found {
    match sessions.get(id) {
        Some(State::Live { until, .. }) if *until <= now => Found::Ended(Ended::new(EndReason::Expired, *until)),
        Some(State::Live { record, until, .. }) => Found::Live(loaded(record, *until, now)),
        Some(State::Ended { ended, .. }) => Found::Ended(*ended),
        None => Found::Unknown,
    }
}

fn live(sessions: &Sessions, now: Timestamp, which: impl Fn(&Record) -> bool) -> Vec<(SessionId, Loaded)> {
    let live = sessions.iter().filter_map(|(id, state)| match state {
        State::Live { record, until, .. } if *until > now && which(record) => Some((*id, loaded(record, *until, now))),
        _ => None,
    });
    live.collect()
}

fn of_user(sessions: &Sessions, user: &str, now: Timestamp) -> Vec<(SessionId, Loaded)> {
    let mut live = live(sessions, now, |record| record.user() == Some(user));
    live.sort_by_key(|(id, loaded)| (loaded.record.created_at(), order(sessions, id)));
    live
}

/// No session is ever removed, so the order is never used twice.
fn order(sessions: &Sessions, id: &SessionId) -> usize {
    match sessions.get(id) {
        Some(State::Live { order, .. }) => *order,
        _ => 0,
    }
}

fn bury(sessions: &mut Sessions, id: &SessionId, ended: Ended) {
    sessions.insert(*id, State::Ended { ended, claim: None });
}

impl<C: Clock> SessionStore for SimpleStore<C> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.now(|sessions, now| found(sessions, id, now))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.now(|sessions, now| {
            let mut evicted = Vec::new();
            match found(sessions, id, now) {
                Found::Live(there) if there.record.version() == new.record.version() => {
                    return Created::Done { evicted };
                }
                Found::Live(_) | Found::Ended(_) => return Created::Taken,
                Found::Unknown => {}
            }
            if let (Some(user), Some(limit)) = (new.record.user(), limits.sessions()) {
                let mut mine = of_user(sessions, user, now);
                mine.retain(|(id, _)| new.record.replaces() != Some(id));
                let over = (mine.len() + 1).saturating_sub(limit);
                if over > 0 && limits.when_full() == WhenFull::Reject {
                    return Created::Full;
                }
                mine.sort_by_key(|(id, loaded)| match limits.when_full() {
                    WhenFull::EvictOldest => (loaded.record.created_at(), order(sessions, id)),
                    _ => (loaded.record.last_used(now, loaded.ttl.unwrap_or_default()), order(sessions, id)),
                });
                for (id, _) in mine.into_iter().take(over) {
                    bury(sessions, &id, Ended::new(EndReason::Evicted, now));
                    evicted.push(id);
                }
            }
            let order = sessions.len();
            sessions.insert(*id, State::Live { record: new.record, until: until(now, new.ttl), order });
            Created::Done { evicted }
        })
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.now(|sessions, now| match found(sessions, id, now) {
            Found::Live(there) if there.record.version() == new.record.version() => Outcome::Done,
            Found::Live(there) if there.record.version() == expected => {
                let order = order(sessions, id);
                sessions.insert(*id, State::Live { record: new.record, until: until(now, new.ttl), order });
                Outcome::Done
            }
            Found::Live(there) => Outcome::Conflict(there),
            Found::Ended(_) | Found::Unknown => Outcome::Gone,
        })
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.now(|sessions, now| {
            if let Some(State::Live { record, until: end, .. }) = sessions.get_mut(id)
                && *end > now
                && record.version() == entry.record.version()
            {
                *end = until(now, entry.ttl);
            }
        })
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        self.now(|sessions, now| {
            let found = found(sessions, id, now);
            let ended = match end {
                End::For(reason) => Ended::new(reason, now),
                End::Replaced { successor, .. } => Ended::replaced(successor, now),
                End::Used { .. } => Ended::new(EndReason::Used, now),
            };
            match (end, found) {
                // Repeated, for its reply was lost.
                (End::Used { claim }, Found::Ended(_)) => match sessions.get(id) {
                    Some(State::Ended { claim: Some((first, was)), .. }) if *first == claim => {
                        EndOutcome::Claimed(was.clone())
                    }
                    _ => EndOutcome::Gone,
                },
                (End::Replaced { successor, .. }, Found::Ended(before)) if before.successor == Some(successor) => {
                    EndOutcome::Done
                }
                (_, Found::Ended(_)) => EndOutcome::Gone,
                // Its creation may be on its way.
                (End::For(_) | End::Replaced { expected: None, .. }, Found::Unknown) => {
                    bury(sessions, id, ended);
                    EndOutcome::Gone
                }
                (_, Found::Unknown) => EndOutcome::Gone,
                (End::Replaced { expected: Some(expected), .. }, Found::Live(was))
                    if expected != was.record.version() =>
                {
                    EndOutcome::Conflict(was)
                }
                (End::Used { claim }, Found::Live(was)) => {
                    sessions.insert(*id, State::Ended { ended, claim: Some((claim, was.clone())) });
                    EndOutcome::Claimed(was)
                }
                (End::For(_) | End::Replaced { .. }, Found::Live(_)) => {
                    bury(sessions, id, ended);
                    EndOutcome::Done
                }
            }
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::ready(Ok(Health::Up))
    }

    fn name(&self) -> &'static str {
        "simple"
    }

    fn users(&self) -> Option<&dyn UserStore> {
        Some(self)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        Some(self)
    }
}

impl<C: Clock> UserStore for SimpleStore<C> {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.now(|sessions, now| of_user(sessions, user, now))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.now(|sessions, now| {
            let mut ids: Vec<_> = of_user(sessions, user, now).into_iter().map(|(id, _)| id).collect();
            ids.retain(|id| Some(id) != except);
            for id in &ids {
                bury(sessions, id, Ended::new(reason, now));
            }
            ids
        })
    }
}

impl<C: Clock> ScanStore for SimpleStore<C> {
    fn scan<'a>(&'a self, _: &'a Cursor, _: usize) -> StoreFuture<'a, Page> {
        self.now(|sessions, now| Page { sessions: live(sessions, now, |_| true), next: None })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.now(|sessions, now| live(sessions, now, |_| true).len() as u64)
    }
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let clock = ManualClock::new();
    let store = SimpleStore::new(clock.clone());
    testing::run(&store, async |time| clock.advance(time)).await.assert_passed();
}
