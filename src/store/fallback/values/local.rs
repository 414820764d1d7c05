//! The values of an outage, and what the main store has to be told of them.
//!
//! What this process has not written in the outage is not known, and not touched: for each key that it has written, the main store is told what has
//! become of it.

use std::{sync::Arc, time::Duration};

use super::{
    super::{error::Cause, line::Line},
    task::{Telling, ToldValue, ValueTask},
};
use crate::{
    observe::ErrorChain,
    store::{
        Added, Cursor, KeyPage, StoreError,
        memory::values::{Values, until, weight},
    },
    time::Timestamp,
};

pub(in super::super) struct LocalValues {
    values: Values,
    changes: Line<Arc<str>, Change>,
    /// What the changes take, in bytes.
    size: usize,
    capacity: usize,
    /// That one was given up has been logged.
    has_given_up: bool,
}

/// A key that was written in the outage, and how often: it may be written again while it is being told.
struct Change {
    how: How,
    times: u64,
    /// How often the main store was there and did not take it.
    failures: u32,
}

/// After so many failures a change is given up, so that the sessions have their store again.
const FAILURES: u32 = 3;

enum How {
    /// It was set or deleted: what memory has of it now is what counts.
    Wholly,
    /// It was only added to, and perhaps given a time to live.
    ByAdding {
        /// What was added, as far as the main store has not been told.
        untold: Option<i64>,
        /// Something is being told. If nobody comes back to say what came of it, it may have been lost.
        on_its_way: bool,
        expires: bool,
    },
}

impl LocalValues {
    pub(in super::super) fn new(capacity: usize) -> Self {
        Self { values: Values::default(), changes: Line::new(), size: 0, capacity, has_given_up: false }
    }

    pub(in super::super) fn len(&mut self, now: Timestamp) -> usize {
        self.values.len(now)
    }

    /// How many keys the main store has to be told of.
    pub(in super::super) fn changed(&self) -> usize {
        self.changes.len()
    }

    pub(in super::super) fn get(&mut self, key: &str, now: Timestamp) -> Option<Vec<u8>> {
        self.values.get(key, now)
    }

    pub(in super::super) fn exists(&mut self, key: &str, now: Timestamp) -> bool {
        self.values.exists(key, now)
    }

    pub(in super::super) fn scan(&mut self, pattern: &str, from: &Cursor, count: usize, now: Timestamp) -> KeyPage {
        self.values.scan(pattern, from, count, now)
    }

    pub(in super::super) fn set(
        &mut self,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.check_room(key)?;
        let until = ttl.map(|ttl| until(ttl, now));
        self.values.set(key, value.to_vec(), until, self.capacity, now).map_err(|_| Cause::Full)?;
        self.change(key).how = How::Wholly;
        Ok(())
    }

    pub(in super::super) fn delete(&mut self, key: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.check_room(key)?;
        self.change(key).how = How::Wholly;
        Ok(self.values.remove(key, now))
    }

    pub(in super::super) fn expire(&mut self, key: &str, ttl: Duration, now: Timestamp) -> bool {
        let is_there = self.values.expire(key, until(ttl, now), now);
        if is_there {
            let is_new = !self.changes.contains(&key.into());
            let change = self.change(key);
            match &mut change.how {
                // What it is the main store has been told already, and others may have written it since.
                how if is_new => *how = How::ByAdding { untold: None, on_its_way: false, expires: true },
                How::ByAdding { expires, .. } => *expires = true,
                How::Wholly => {}
            }
        }
        is_there
    }

    pub(in super::super) fn add(&mut self, key: &str, by: i64, now: Timestamp) -> Result<Added, StoreError> {
        self.check_room(key)?;
        let key: Arc<str> = key.into();
        let is_there = self.values.exists(&key, now);
        let untold = match self.changes.get(&key).map(|change| &change.how) {
            Some(How::Wholly) => None,
            // It has expired: what comes now begins anew, there as well.
            Some(How::ByAdding { .. }) if !is_there => None,
            Some(How::ByAdding { untold: Some(before), .. }) => match before.checked_add(by) {
                Some(untold) => Some(untold),
                None => return Ok(Added::Overflow),
            },
            Some(How::ByAdding { .. }) | None => Some(by),
        };
        let added = self.values.add(&key, by, self.capacity, now).map_err(|_| Cause::Full)?;
        if let Added::To(_) = added {
            let is_new = self.changes.get(&key).is_none();
            let change = self.change(&key);
            change.how = match (untold, &change.how) {
                (None, _) => How::Wholly,
                (_, How::ByAdding { on_its_way, expires, .. }) if !is_new => {
                    How::ByAdding { untold, on_its_way: *on_its_way, expires: *expires }
                }
                _ => How::ByAdding { untold, on_its_way: false, expires: false },
            };
        }
        Ok(added)
    }

    /// What is known leaves room for what becomes of it.
    fn check_room(&mut self, key: &str) -> Result<(), StoreError> {
        let fits = self.size + weight(key, &[]) <= self.capacity || self.changes.contains(&key.into());
        if fits { Ok(()) } else { Err(Cause::Full.into()) }
    }

    /// The change of a key that is written now.
    fn change(&mut self, key: &str) -> &mut Change {
        let key: Arc<str> = key.into();
        if !self.changes.contains(&key) {
            self.size += weight(&key, &[]);
        }
        let change = self.changes.get_or_put(key, Change { how: How::Wholly, times: 0, failures: 0 });
        change.times += 1;
        change
    }

    fn forget(&mut self, key: &Arc<str>) {
        if self.changes.remove(key).is_some() {
            self.size -= weight(key, &[]);
        }
    }

    /// What to tell the main store next, and how many changes were lost on their way to it.
    pub(in super::super) fn tasks(&mut self, count: usize, now: Timestamp) -> (Vec<ValueTask>, usize) {
        let (mut tasks, mut lost) = (Vec::new(), 0);
        while tasks.is_empty() && self.changes.len() > 0 {
            for key in self.next_keys(count) {
                match self.task_of(&key, &mut lost, now) {
                    Some(task) => tasks.push(task),
                    None => self.forget(&key),
                }
            }
        }
        (tasks, lost)
    }

    /// What has failed is told alone: what is told with it must not fail with it.
    fn next_keys(&self, count: usize) -> Vec<Arc<str>> {
        let has_failed = self.failures_of_first() > Some(0);
        let next = self.changes.first(if has_failed { 1 } else { count });
        next.take_while(|(_, change)| has_failed || change.failures == 0).map(|(key, _)| key.clone()).collect()
    }

    fn failures_of_first(&self) -> Option<u32> {
        self.changes.first(1).next().map(|(_, change)| change.failures)
    }

    fn task_of(&mut self, key: &Arc<str>, lost: &mut usize, now: Timestamp) -> Option<ValueTask> {
        let kept = self.values.get_with_ttl(key, now);
        let Change { how, times, failures } = self.changes.get(key)?;
        let telling = match (&mut *how, kept) {
            (_, None) => {
                *how = How::Wholly;
                Telling::Delete
            }
            (How::Wholly, Some((value, ttl))) => Telling::Set(value, ttl),
            (How::ByAdding { untold, on_its_way, expires }, Some((_, ttl))) => {
                if std::mem::take(on_its_way) {
                    *lost += 1; // whoever was telling it has gone
                }
                match untold.take() {
                    Some(by) => {
                        *on_its_way = true;
                        Telling::Add(by)
                    }
                    None => expires.then_some(Telling::Expire(ttl?))?,
                }
            }
        };
        Some(ValueTask { key: key.clone(), telling, times: *times, failures: *failures })
    }

    /// Takes in what the main store said to a task; returns how many changes that has cost.
    pub(in super::super) fn settle(&mut self, task: &ValueTask, told: ToldValue) -> u64 {
        let Some(Change { how, times, failures }) = self.changes.get(&task.key) else { return 0 };
        *failures = 0;
        let mut is_all = *times == task.times;
        if let (How::ByAdding { on_its_way, expires, .. }, Telling::Add(_)) = (how, &task.telling) {
            *on_its_way = false;
            is_all &= !*expires || matches!(told, ToldValue::Lost);
        }
        // What was written meanwhile is told after what waits longer.
        match self.changes.remove(&task.key) {
            Some(change) if !is_all => drop(self.changes.get_or_put(task.key.clone(), change)),
            _ => self.size -= weight(&task.key, &[]),
        }
        matches!(told, ToldValue::Lost).into()
    }

    /// The main store has not taken it: what it was to be told it has to be told still.
    pub(in super::super) fn not_told(&mut self, task: &ValueTask) {
        if let (Telling::Add(by), Some(Change { how: How::ByAdding { untold, on_its_way, .. }, .. })) =
            (&task.telling, self.changes.get(&task.key))
        {
            *on_its_way = false;
            *untold = Some(untold.unwrap_or(0).saturating_add(*by));
        }
    }

    /// The main store is there, and has not taken it: what waits behind it comes first. Returns how many changes were given up.
    pub(in super::super) fn failed(&mut self, task: &ValueTask, error: &StoreError) -> u64 {
        self.not_told(task);
        let Some(mut change) = self.changes.remove(&task.key) else { return 0 };
        change.failures += 1;
        if change.failures < FAILURES {
            self.changes.get_or_put(task.key.clone(), change);
            return 0;
        }
        self.size -= weight(&task.key, &[]);
        if !std::mem::replace(&mut self.has_given_up, true) {
            tracing::warn!(error = %ErrorChain(error), "the session store does not take all values of the outage: giving up");
        }
        1
    }

    /// Whether something waits that was not told since this failed.
    pub(in super::super) fn has_more_than(&self, failed: &ValueTask) -> bool {
        self.failures_of_first().is_none_or(|failures| failures <= failed.failures)
    }
}
