//! The journal: the changes of an outage that the main store must receive.

use std::sync::Arc;

use super::ordered_map::OrderedMap;
use crate::{ended::EndReason, limits::Limits, record::Version, store::types::End, token::SessionId};

/// Ends and writes have separate capacities, so that sessions can end even if the journal is full of writes.
pub(super) struct Journal {
    ends: OrderedMap<EndOf, JournalEntry>,
    writes: OrderedMap<SessionId, Pending>,
    capacity: usize,
}

/// The sessions that ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum EndOf {
    One(SessionId),
    /// All sessions of a user except one.
    All(Arc<str>, Option<SessionId>),
}

/// An end, and how often it was journaled: it may be journaled again during the replay.
#[derive(Clone)]
struct JournalEntry {
    end: End,
    times: u64,
}

/// An end to replay.
#[derive(Debug)]
pub(super) struct JournaledEnd {
    pub(super) of: EndOf,
    pub(super) end: End,
    times: u64,
}

/// A session that was written in memory. The replay writes what memory holds at that time.
pub(super) struct Pending {
    pub(super) base: Base,
    /// The versions that were sent to the main store, which may or may not have applied them.
    pub(super) sent: Vec<Version>,
    /// The client has a newer token than the main store knows.
    pub(super) rotated: bool,
}

/// What the main store is expected to have.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// Nothing: the session was created during the outage, with these limits.
    Nothing(Limits),
    Version(Version),
}

/// The number of sent versions that are kept. With more interrupted attempts, a version of this process may look like another's.
const SENT: usize = 8;

impl Pending {
    pub(super) fn new(base: Base) -> Self {
        Self { base, sent: Vec::new(), rotated: false }
    }

    /// Whether the main store does not know the session.
    fn is_unknown_to_main(&self) -> bool {
        matches!(self.base, Base::Nothing(_)) && self.sent.is_empty()
    }

    pub(super) fn send(&mut self, version: Version) {
        if !self.sent.contains(&version) {
            if self.sent.len() == SENT {
                self.sent.remove(0);
            }
            self.sent.push(version);
        }
    }
}

impl Journal {
    pub(super) fn new(capacity: usize) -> Self {
        Self { ends: OrderedMap::new(), writes: OrderedMap::new(), capacity }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len() + self.writes.len()
    }

    pub(super) fn has_room_for_end(&self) -> bool {
        self.ends.len() < self.capacity
    }

    pub(super) fn has_room_for_write(&self, id: &SessionId) -> bool {
        self.writes.len() < self.capacity || self.writes.contains(id)
    }

    /// Touches use half of the capacity at most.
    pub(super) fn has_room_for_touch(&self, id: &SessionId) -> bool {
        self.writes.len() < self.capacity / 2 || self.writes.contains(id)
    }

    pub(super) fn is_written(&self, id: &SessionId) -> bool {
        self.writes.contains(id)
    }

    /// Journals a write on top of `base`.
    pub(super) fn written(&mut self, id: &SessionId, base: Base, sent: Option<Version>) -> &mut Pending {
        let pending = self.writes.get_or_insert(*id, Pending::new(base));
        if let Some(version) = sent {
            pending.send(version);
        }
        pending
    }

    /// Journals the end of a session.
    pub(super) fn ended(&mut self, id: &SessionId, end: End) {
        let pending = self.writes.remove(id);
        if pending.is_none_or(|pending| self.is_worth_replaying(&pending)) {
            self.put(EndOf::One(*id), end);
        }
    }

    /// Journals the end of all sessions of a user except one. `ids` are those in memory.
    pub(super) fn all_ended(&mut self, user: &str, except: Option<&SessionId>, reason: EndReason, ids: &[SessionId]) {
        for id in ids {
            // Its creation may still be on its way to the main store.
            if let Some(pending) = self.writes.remove(id)
                && matches!(pending.base, Base::Nothing(_))
                && self.is_worth_replaying(&pending)
            {
                self.put(EndOf::One(*id), End::For(reason));
            }
        }
        self.put(EndOf::All(user.into(), except.copied()), End::For(reason));
    }

    /// Whether to replay the end. If the main store does not know the session, only its tombstone is useful: such ends use half of the
    /// capacity at most.
    fn is_worth_replaying(&self, pending: &Pending) -> bool {
        !pending.is_unknown_to_main() || self.ends.len() < self.capacity / 2
    }

    fn put(&mut self, of: EndOf, end: End) {
        let entry = self.ends.get_or_insert(of, JournalEntry { end, times: 0 });
        entry.times += 1;
        // A conditional end may have failed. Otherwise the first end counts.
        if let End::Replaced { expected: Some(_), .. } = entry.end {
            entry.end = end;
        }
    }

    pub(super) fn first_ends(&self, count: usize) -> Vec<JournaledEnd> {
        let ends = self.ends.first(count);
        ends.map(|(of, JournalEntry { end, times })| JournaledEnd { of: of.clone(), end: *end, times: *times })
            .collect()
    }

    pub(super) fn end_replayed(&mut self, end: &JournaledEnd) {
        if self.ends.get(&end.of).is_some_and(|entry| entry.times == end.times) {
            self.ends.remove(&end.of);
        }
    }

    pub(super) fn first_writes(&self, count: usize) -> Vec<SessionId> {
        self.writes.first(count).map(|(id, _)| *id).collect()
    }

    pub(super) fn write(&mut self, id: &SessionId) -> Option<&mut Pending> {
        self.writes.get(id)
    }

    /// Removes a write that was replayed, or must not be.
    pub(super) fn forget(&mut self, id: &SessionId) -> Option<Pending> {
        self.writes.remove(id)
    }

    /// Ends the sessions that were rotated, because the main store would accept the previous token and report the new one as stolen.
    /// Returns their number.
    pub(super) fn end_rotated(&mut self) -> usize {
        let rotated = self.writes.first(usize::MAX).filter(|(_, pending)| pending.rotated);
        let rotated: Vec<_> = rotated.map(|(id, _)| *id).collect();
        for id in &rotated {
            self.ended(id, End::For(EndReason::Revoked));
        }
        rotated.len()
    }

    /// Drops all writes. Returns their number.
    pub(super) fn drop_writes(&mut self) -> usize {
        let dropped = self.writes.len();
        self.writes = OrderedMap::new();
        dropped
    }
}
