//! What the main store has to be told when it is back.

use std::sync::Arc;

use super::line::Line;
use crate::{ended::EndReason, limits::Limits, record::Version, store::types::End, token::SessionId};

/// Ends have a room of their own, as large as that of the writes: however much begins, what has begun can end.
pub(super) struct Journal {
    ends: Line<EndOf, Noted>,
    writes: Line<SessionId, Pending>,
    capacity: usize,
}

/// What ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum EndOf {
    One(SessionId),
    /// All sessions of a user, but one.
    All(Arc<str>, Option<SessionId>),
}

/// An end, and how often it was noted: it may come again while it is being told.
#[derive(Clone)]
struct Noted {
    end: End,
    times: u64,
}

/// An end, as it was when it was taken out to be told.
#[derive(Debug)]
pub(super) struct Untold {
    pub(super) of: EndOf,
    pub(super) end: End,
    times: u64,
}

/// A session that was written in memory. What is to be written is what memory holds of it when it is told.
pub(super) struct Pending {
    pub(super) base: Base,
    /// The versions that the main store has been told, and may or may not have taken.
    pub(super) sent: Vec<Version>,
    /// Its client has another token than the one that the main store knows.
    pub(super) rotated: bool,
}

/// What the main store is believed to have.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// Nothing: it began here, within these limits.
    Nothing(Limits),
    Version(Version),
}

/// More interrupted attempts than this, and what one of them has left may be taken for another's.
const SENT: usize = 8;

impl Pending {
    pub(super) fn new(base: Base) -> Self {
        Self { base, sent: Vec::new(), rotated: false }
    }

    /// Whether the main store has never heard of it.
    fn is_unheard_of(&self) -> bool {
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
        Self { ends: Line::new(), writes: Line::new(), capacity }
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

    /// What is only used leaves room for what begins and changes.
    pub(super) fn has_room_for_touch(&self, id: &SessionId) -> bool {
        self.writes.len() < self.capacity / 2 || self.writes.contains(id)
    }

    pub(super) fn is_written(&self, id: &SessionId) -> bool {
        self.writes.contains(id)
    }

    /// A session was written, on top of `base`.
    pub(super) fn written(&mut self, id: &SessionId, base: Base, sent: Option<Version>) -> &mut Pending {
        let pending = self.writes.get_or_put(*id, Pending::new(base));
        if let Some(version) = sent {
            pending.send(version);
        }
        pending
    }

    /// A session ended.
    pub(super) fn ended(&mut self, id: &SessionId, end: End) {
        let pending = self.writes.remove(id);
        if pending.is_none_or(|pending| self.is_worth_telling(&pending)) {
            self.put(EndOf::One(*id), end);
        }
    }

    /// All sessions of a user ended but one; these were known.
    pub(super) fn all_ended(&mut self, user: &str, except: Option<&SessionId>, reason: EndReason, ids: &[SessionId]) {
        for id in ids {
            // Its creation may be on its way, and come later.
            if let Some(pending) = self.writes.remove(id)
                && matches!(pending.base, Base::Nothing(_))
                && self.is_worth_telling(&pending)
            {
                self.put(EndOf::One(*id), End::For(reason));
            }
        }
        self.put(EndOf::All(user.into(), except.copied()), End::For(reason));
    }

    /// What the main store has never heard of, it need not hear the end of: only so that it can say how it ended. Whoever logs in
    /// and out all the time takes half of the room at most.
    fn is_worth_telling(&self, pending: &Pending) -> bool {
        !pending.is_unheard_of() || self.ends.len() < self.capacity / 2
    }

    fn put(&mut self, of: EndOf, end: End) {
        let noted = self.ends.get_or_put(of, Noted { end, times: 0 });
        noted.times += 1;
        // It may not have ended by that. Else what ended stays as it ended.
        if let End::Replaced { expected: Some(_), .. } = noted.end {
            noted.end = end;
        }
    }

    pub(super) fn some_ends(&self, count: usize) -> Vec<Untold> {
        let ends = self.ends.first(count);
        ends.map(|(of, Noted { end, times })| Untold { of: of.clone(), end: *end, times: *times }).collect()
    }

    pub(super) fn told(&mut self, end: &Untold) {
        if self.ends.get(&end.of).is_some_and(|noted| noted.times == end.times) {
            self.ends.remove(&end.of);
        }
    }

    pub(super) fn some_writes(&self, count: usize) -> Vec<SessionId> {
        self.writes.first(count).map(|(id, _)| *id).collect()
    }

    pub(super) fn write(&mut self, id: &SessionId) -> Option<&mut Pending> {
        self.writes.get(id)
    }

    /// Forgets a write: it was made, or must not be.
    pub(super) fn forget(&mut self, id: &SessionId) -> Option<Pending> {
        self.writes.remove(id)
    }

    /// Ends what has another token, and says how many: the main store would take the old one for good, and the new one for a thief's.
    pub(super) fn end_rotated(&mut self) -> usize {
        let rotated = self.writes.first(usize::MAX).filter(|(_, pending)| pending.rotated);
        let rotated: Vec<_> = rotated.map(|(id, _)| *id).collect();
        for id in &rotated {
            self.ended(id, End::For(EndReason::Revoked));
        }
        rotated.len()
    }

    /// Forgets all writes, and says how many there were.
    pub(super) fn drop_writes(&mut self) -> usize {
        let dropped = self.writes.len();
        self.writes = Line::new();
        dropped
    }
}
