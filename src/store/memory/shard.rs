//! A part of the store under one lock: the sessions, and in what order they go.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, binary_heap::PeekMut},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Duration,
};

use super::{Loaded, Outcome, Record, Version};
use crate::{time::Timestamp, token::SessionId};

#[derive(Default)]
pub(super) struct Shard {
    pub(super) entries: Entries,
    by_expiry: Queue,
    by_use: Queue,
}

pub(super) type Entries = HashMap<SessionId, Entry, BuildHasherDefault<IdHasher>>;

pub(super) struct Entry {
    pub(super) record: Arc<Record>,
    expires_at: Due,
    pub(super) used_at: Due,
}

/// A time that an entry is queued by, and its place in the queue.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) actual: Timestamp,
    /// Where the queue has it: never later than the actual time.
    place: Timestamp,
}

impl Due {
    fn at(time: Timestamp) -> Self {
        Self { actual: time, place: time }
    }
}

impl Entry {
    pub(super) fn loaded(&self, now: Timestamp) -> Loaded {
        Loaded { record: self.record.clone(), ttl: Some(self.expires_at.actual.since(now)) }
    }

    /// What to say to a write that found another version than it expected: perhaps its own.
    pub(super) fn unless_written(&self, version: Version, now: Timestamp) -> Outcome {
        if self.record.version() == version { Outcome::Done } else { Outcome::Conflict(self.loaded(now)) }
    }
}

impl Shard {
    pub(super) fn live(&mut self, id: &SessionId, now: Timestamp) -> Option<&mut Entry> {
        self.entries.get_mut(id).filter(|entry| entry.expires_at.actual > now)
    }

    pub(super) fn insert(
        &mut self,
        id: SessionId,
        record: Arc<Record>,
        now: Timestamp,
        ttl: Duration,
    ) -> Option<Entry> {
        let entry = Entry { record, expires_at: Due::at(now.plus(ttl)), used_at: Due::at(now) };
        self.by_expiry.push(entry.expires_at.place, id, &mut self.entries, expires_at);
        self.by_use.push(entry.used_at.place, id, &mut self.entries, used_at);
        self.entries.insert(id, entry)
    }

    /// Lets an entry live for `ttl` from now.
    pub(super) fn extend(&mut self, id: &SessionId, now: Timestamp, ttl: Duration) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.used_at.actual = now;
        entry.expires_at.actual = now.plus(ttl);
        if entry.expires_at.actual < entry.expires_at.place {
            // Sooner than it is queued: it needs another place. The one it has counts no more.
            entry.expires_at.place = entry.expires_at.actual;
            self.by_expiry.push(now.plus(ttl), *id, &mut self.entries, expires_at);
        }
    }

    /// Frees a few expired entries: enough to free more than come in, few enough that nobody waits for it.
    pub(super) fn free_expired(&mut self, now: Timestamp) -> usize {
        let mut freed = 0;
        while freed < 8
            && self.by_expiry.peek().is_some_and(|place| place <= now)
            && let Some((time, id)) = self.by_expiry.first(&mut self.entries, expires_at)
            && time <= now
        {
            self.entries.remove(&id);
            freed += 1;
        }
        freed
    }

    pub(super) fn oldest(&mut self) -> Option<Timestamp> {
        self.by_use.first(&mut self.entries, used_at).map(|(time, _)| time)
    }

    pub(super) fn evict_oldest(&mut self) -> bool {
        match self.by_use.first(&mut self.entries, used_at) {
            Some((_, id)) => self.entries.remove(&id).is_some(),
            None => false,
        }
    }
}

fn expires_at(entry: &mut Entry) -> &mut Due {
    &mut entry.expires_at
}

fn used_at(entry: &mut Entry) -> &mut Due {
    &mut entry.used_at
}

/// Ids in the order of a time that mostly moves forward.
///
/// Lazy: when an entry's time moves on, its place in the queue stays, and is corrected when it comes to the front. So using
/// a session costs the queue nothing.
#[derive(Default)]
struct Queue(BinaryHeap<Reverse<(Timestamp, SessionId)>>);

/// By which of its times a queue has an entry.
type Key = fn(&mut Entry) -> &mut Due;

impl Queue {
    fn push(&mut self, place: Timestamp, id: SessionId, entries: &mut Entries, key: Key) {
        // Places that count no more are dropped before they outnumber the others.
        if self.0.len() > 2 * entries.len() + 64 {
            self.0.retain(|Reverse((place, id))| entries.get_mut(id).is_some_and(|entry| key(entry).place == *place));
        }
        self.0.push(Reverse((place, id)));
    }

    /// A time that no entry's is before.
    fn peek(&self) -> Option<Timestamp> {
        self.0.peek().map(|Reverse((place, _))| *place)
    }

    /// The entry whose time comes first; it keeps its place.
    fn first(&mut self, entries: &mut Entries, key: Key) -> Option<(Timestamp, SessionId)> {
        loop {
            let mut front = self.0.peek_mut()?;
            let Reverse((place, id)) = *front;
            match entries.get_mut(&id).map(key) {
                Some(due) if due.place == place => {
                    if due.actual <= place {
                        return Some((place, id));
                    }
                    due.place = due.actual;
                    front.0.0 = due.actual;
                }
                // Of an entry that is gone, or has another place.
                _ => drop(PeekMut::pop(front)),
            }
        }
    }
}

/// Session ids are hashes already, and nobody outside chooses them: no need to hash them again.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, spread: u64) {
        // The low bits have chosen the shard, and are the same for all of it. The map looks at both ends: put them in the
        // middle.
        self.0 = spread.rotate_right(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
