//! The values that this process writes during an outage, and the changes to replay.
//!
//! Other values are unknown and not changed.

use std::{sync::Arc, time::Duration};

use super::{
    super::{error::Cause, ordered_map::OrderedMap},
    replay::{ValueReplay, ValueReply, ValueWrite},
};
use crate::{
    error_chain::ErrorChain,
    store::{
        Added, Cursor, KeyPage, StoreError,
        memory::values::{Values, until, weight},
    },
    time::Timestamp,
};

pub(in super::super) struct LocalValues {
    values: Values,
    changes: OrderedMap<Arc<str>, Change>,
    /// The size of the changes in bytes.
    size: usize,
    capacity: usize,
    /// A dropped change has been logged.
    has_given_up: bool,
}

/// The change of a key.
struct Change {
    how: How,
    /// How often the key was written: it may be written again during the replay.
    times: u64,
    /// How often the main store was available and refused the change.
    failures: u32,
}

/// A change is dropped after this many failures, so that it does not keep the sessions from their store.
const FAILURES: u32 = 3;

enum How {
    /// Set or deleted: the value in memory is replayed.
    Written,
    /// Incremented, and perhaps given a time to live.
    Incremented {
        /// The sum of the increments that are not replayed yet.
        unsent: Option<i64>,
        /// An increment is being replayed. Without a reply, it may be lost.
        in_flight: bool,
        expires: bool,
    },
}

impl LocalValues {
    pub(in super::super) fn new(capacity: usize) -> Self {
        Self { values: Values::default(), changes: OrderedMap::new(), size: 0, capacity, has_given_up: false }
    }

    pub(in super::super) fn len(&mut self, now: Timestamp) -> usize {
        self.values.len(now)
    }

    /// The number of keys to replay.
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
        self.change(key).how = How::Written;
        Ok(())
    }

    pub(in super::super) fn delete(&mut self, key: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.check_room(key)?;
        self.change(key).how = How::Written;
        Ok(self.values.remove(key, now))
    }

    pub(in super::super) fn expire(&mut self, key: &str, ttl: Duration, now: Timestamp) -> bool {
        let is_available = self.values.expire(key, until(ttl, now), now);
        if is_available {
            let is_new = !self.changes.contains(&key.into());
            let change = self.change(key);
            match &mut change.how {
                // The main store has the value already, and other processes may have written it since.
                how if is_new => *how = How::Incremented { unsent: None, in_flight: false, expires: true },
                How::Incremented { expires, .. } => *expires = true,
                How::Written => {}
            }
        }
        is_available
    }

    pub(in super::super) fn add(&mut self, key: &str, by: i64, now: Timestamp) -> Result<Added, StoreError> {
        self.check_room(key)?;
        let key: Arc<str> = key.into();
        let is_available = self.values.exists(&key, now);
        let unsent = match self.changes.get(&key).map(|change| &change.how) {
            Some(How::Written) => None,
            // The key has expired: the increment starts a new value, in the main store too.
            Some(How::Incremented { .. }) if !is_available => None,
            Some(How::Incremented { unsent: Some(before), .. }) => match before.checked_add(by) {
                Some(unsent) => Some(unsent),
                None => return Ok(Added::Overflow),
            },
            Some(How::Incremented { .. }) | None => Some(by),
        };
        let added = self.values.add(&key, by, self.capacity, now).map_err(|_| Cause::Full)?;
        if let Added::To(_) = added {
            let is_new = self.changes.get(&key).is_none();
            let change = self.change(&key);
            change.how = match (unsent, &change.how) {
                (None, _) => How::Written,
                (_, How::Incremented { in_flight, expires, .. }) if !is_new => {
                    How::Incremented { unsent, in_flight: *in_flight, expires: *expires }
                }
                _ => How::Incremented { unsent, in_flight: false, expires: false },
            };
        }
        Ok(added)
    }

    /// Checks that the change of a key fits.
    fn check_room(&mut self, key: &str) -> Result<(), StoreError> {
        let fits = self.size + weight(key, &[]) <= self.capacity || self.changes.contains(&key.into());
        if fits { Ok(()) } else { Err(Cause::Full.into()) }
    }

    /// The change of a key that is being written.
    fn change(&mut self, key: &str) -> &mut Change {
        let key: Arc<str> = key.into();
        if !self.changes.contains(&key) {
            self.size += weight(&key, &[]);
        }
        let change = self.changes.get_or_insert(key, Change { how: How::Written, times: 0, failures: 0 });
        change.times += 1;
        change
    }

    fn forget(&mut self, key: &Arc<str>) {
        if self.changes.remove(key).is_some() {
            self.size -= weight(key, &[]);
        }
    }

    /// The next changes to replay, and the number of increments that were lost.
    pub(in super::super) fn tasks(&mut self, count: usize, now: Timestamp) -> (Vec<ValueReplay>, usize) {
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

    /// A change that has failed is replayed alone, so that others do not fail with it.
    fn next_keys(&self, count: usize) -> Vec<Arc<str>> {
        let has_failed = self.failures_of_first() > Some(0);
        let next = self.changes.first(if has_failed { 1 } else { count });
        next.take_while(|(_, change)| has_failed || change.failures == 0).map(|(key, _)| key.clone()).collect()
    }

    fn failures_of_first(&self) -> Option<u32> {
        self.changes.first(1).next().map(|(_, change)| change.failures)
    }

    fn task_of(&mut self, key: &Arc<str>, lost: &mut usize, now: Timestamp) -> Option<ValueReplay> {
        let kept = self.values.get_with_ttl(key, now);
        let Change { how, times, failures } = self.changes.get(key)?;
        let write = match (&mut *how, kept) {
            (_, None) => {
                *how = How::Written;
                ValueWrite::Delete
            }
            (How::Written, Some((value, ttl))) => ValueWrite::Set(value, ttl),
            (How::Incremented { unsent, in_flight, expires }, Some((_, ttl))) => {
                if std::mem::take(in_flight) {
                    *lost += 1; // the request that replayed it was cut off
                }
                match unsent.take() {
                    Some(by) => {
                        *in_flight = true;
                        ValueWrite::Add(by)
                    }
                    None => expires.then_some(ValueWrite::Expire(ttl?))?,
                }
            }
        };
        Some(ValueReplay { key: key.clone(), write, times: *times, failures: *failures })
    }

    /// Applies the reply to a replay. Returns the number of lost changes.
    pub(in super::super) fn apply_reply(&mut self, task: &ValueReplay, reply: ValueReply) -> u64 {
        let Some(Change { how, times, failures }) = self.changes.get(&task.key) else { return 0 };
        *failures = 0;
        let mut is_all = *times == task.times;
        if let (How::Incremented { in_flight, expires, .. }, ValueWrite::Add(_)) = (how, &task.write) {
            *in_flight = false;
            is_all &= !*expires || matches!(reply, ValueReply::Lost);
        }
        // A key that was written again goes to the end of the queue.
        match self.changes.remove(&task.key) {
            Some(change) if !is_all => drop(self.changes.get_or_insert(task.key.clone(), change)),
            _ => self.size -= weight(&task.key, &[]),
        }
        matches!(reply, ValueReply::Lost).into()
    }

    /// The change was not applied: it is replayed again.
    pub(in super::super) fn not_replayed(&mut self, task: &ValueReplay) {
        if let (ValueWrite::Add(by), Some(Change { how: How::Incremented { unsent, in_flight, .. }, .. })) =
            (&task.write, self.changes.get(&task.key))
        {
            *in_flight = false;
            *unsent = Some(unsent.unwrap_or(0).saturating_add(*by));
        }
    }

    /// The main store is available and refused the change: others come first. Returns the number of dropped changes.
    pub(in super::super) fn failed(&mut self, task: &ValueReplay, error: &StoreError) -> u64 {
        self.not_replayed(task);
        let Some(mut change) = self.changes.remove(&task.key) else { return 0 };
        change.failures += 1;
        if change.failures < FAILURES {
            self.changes.get_or_insert(task.key.clone(), change);
            return 0;
        }
        self.size -= weight(&task.key, &[]);
        if !std::mem::replace(&mut self.has_given_up, true) {
            tracing::warn!(error = %ErrorChain(error), "the session store refuses a value from the outage; the value is dropped");
        }
        1
    }

    /// Whether another change is waiting that has not failed as often.
    pub(in super::super) fn has_more_than(&self, failed: &ValueReplay) -> bool {
        self.failures_of_first().is_none_or(|failures| failures <= failed.failures)
    }
}
