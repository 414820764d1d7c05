//! A shard: sessions, users and tombstones under one lock.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque, binary_heap::PeekMut},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Duration,
};

use crate::{
    ended::{EndReason, Ended},
    limits::{Limits, WhenFull},
    record::{Record, Version},
    store::{
        MIN_TOMBSTONE_TTL,
        types::{Created, Entry, Loaded},
    },
    time::Timestamp,
    token::{SessionId, Tag},
};

#[derive(Default)]
pub(super) struct Shard {
    sessions: Sessions,
    by_expiry: Queue,
    by_use: Queue,
    /// The sessions of users, by the slot tag of the user.
    users: HashMap<Tag, BTreeSet<SessionId>>,
    /// The number of inserted sessions.
    inserted: u64,
    ended: Ends,
    /// In the order of the ends.
    ended_at: VecDeque<(Timestamp, SessionId)>,
}

type Sessions = HashMap<SessionId, Kept, BuildHasherDefault<IdHasher>>;
type Ends = HashMap<SessionId, Tombstone, BuildHasherDefault<IdHasher>>;

/// A stored session.
pub(super) struct Kept {
    pub(super) record: Arc<Record>,
    /// Orders the sessions that were created within the same millisecond.
    order: u64,
    expires_at: Due,
    pub(super) used_at: Due,
}

/// A tombstone.
struct Tombstone {
    ended: Ended,
    /// The claim that used the session up, and its content.
    claim: Option<Box<(Version, Loaded)>>,
}

/// The time by which a session is queued.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) actual: Timestamp,
    /// The time in the queue: never later than the actual time.
    place: Timestamp,
}

/// Whether there is room for another session of a user.
pub(super) enum Room {
    Full,
    /// After these were evicted.
    Made(Vec<SessionId>),
}

impl Due {
    fn at(time: Timestamp) -> Self {
        Self { actual: time, place: time }
    }
}

impl Kept {
    pub(super) fn loaded(&self, now: Timestamp) -> Loaded {
        Loaded { record: self.record.clone(), ttl: Some(self.ttl(now)) }
    }

    fn ttl(&self, now: Timestamp) -> Duration {
        self.expires_at.actual.since(now)
    }

    fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.actual > now
    }
}

impl Shard {
    pub(super) fn live(&mut self, id: &SessionId, now: Timestamp) -> Option<&mut Kept> {
        self.sessions.get_mut(id).filter(|kept| kept.is_live(now))
    }

    pub(super) fn all(&self, now: Timestamp) -> impl Iterator<Item = (SessionId, Loaded)> {
        let live = self.sessions.iter().filter(move |(_, kept)| kept.is_live(now));
        live.map(move |(id, kept)| (*id, kept.loaded(now)))
    }

    /// The live sessions of a user, oldest first.
    pub(super) fn of_user(&self, tag: Tag, user: &str, now: Timestamp) -> Vec<(SessionId, Loaded)> {
        let mut kept: Vec<_> = self.kept_of_user(tag, user, now).collect();
        kept.sort_unstable_by_key(|(_, kept)| (kept.record.created_at(), kept.order));
        kept.into_iter().map(|(id, kept)| (id, kept.loaded(now))).collect()
    }

    fn kept_of_user(&self, tag: Tag, user: &str, now: Timestamp) -> impl Iterator<Item = (SessionId, &Kept)> {
        let ids = self.users.get(&tag).into_iter().flatten();
        let kept = ids.filter_map(|id| Some((*id, self.sessions.get(id)?)));
        kept.filter(move |(_, kept)| kept.is_live(now) && kept.record.user() == Some(user))
    }

    /// Why a session is not live.
    pub(super) fn ending(&self, id: &SessionId) -> Option<Ended> {
        let expired = self.sessions.get(id).map(|kept| Ended::new(EndReason::Expired, kept.expires_at.actual));
        expired.or_else(|| self.ended(id))
    }

    /// The tombstone of a session.
    pub(super) fn ended(&self, id: &SessionId) -> Option<Ended> {
        self.ended.get(id).map(|end| end.ended)
    }

    /// The content of the session, if this claim used it up.
    pub(super) fn claimed(&self, id: &SessionId, claim: Version) -> Option<Loaded> {
        let (first, loaded) = &**self.ended.get(id)?.claim.as_ref()?;
        (*first == claim).then(|| loaded.clone())
    }

    /// The reply to the creation of a known id, perhaps by the same creation.
    pub(super) fn known(&mut self, id: &SessionId, new: &Entry, now: Timestamp) -> Option<Created> {
        match self.live(id, now) {
            Some(kept) if kept.record.version() == new.record.version() => Some(Created::Done { evicted: Vec::new() }),
            Some(_) => Some(Created::Taken),
            None => self.ending(id).map(|_| Created::Taken),
        }
    }

    /// Evicts as many sessions of the user as needed for a new one.
    pub(super) fn make_room(&mut self, tag: Tag, new: &Record, limits: Limits, now: Timestamp) -> Room {
        let (Some(user), Some(limit)) = (new.user(), limits.sessions()) else { return Room::Made(Vec::new()) };
        if self.users.get(&tag).is_none_or(|ids| ids.len() < limit) {
            return Room::Made(Vec::new());
        }
        let others = self.kept_of_user(tag, user, now).filter(|(id, _)| new.replaces() != Some(id));
        let live: Vec<_> = others.collect();
        let over = (live.len() + 1).saturating_sub(limit);
        if over > 0 && limits.when_full() == WhenFull::Reject {
            return Room::Full;
        }
        let mut ranked: Vec<_> = live
            .iter()
            .map(|(id, kept)| match limits.when_full() {
                WhenFull::EvictOldest => (kept.record.created_at(), kept.order, *id),
                _ => (kept.record.last_used(now, kept.ttl(now)), kept.order, *id),
            })
            .collect();
        ranked.sort_unstable();
        let evicted: Vec<_> = ranked.into_iter().take(over).map(|(.., id)| id).collect();
        for id in &evicted {
            self.end(id, Ended::new(EndReason::Evicted, now), None, now);
        }
        Room::Made(evicted)
    }

    pub(super) fn insert(&mut self, id: SessionId, new: Entry, now: Timestamp) {
        let Entry { record, ttl } = new;
        if record.user().is_some() {
            self.users.entry(id.tag()).or_default().insert(id);
        }
        self.inserted += 1;
        let expiry = now.plus(at_least_a_moment(ttl));
        let kept = Kept { record, order: self.inserted, expires_at: Due::at(expiry), used_at: Due::at(now) };
        self.by_expiry.push(kept.expires_at.place, id, &mut self.sessions, expires_at);
        self.by_use.push(kept.used_at.place, id, &mut self.sessions, used_at);
        self.sessions.insert(id, kept);
    }

    /// Sets the time to live.
    pub(super) fn extend(&mut self, id: &SessionId, now: Timestamp, ttl: Duration) {
        let Some(kept) = self.sessions.get_mut(id) else { return };
        let until = now.plus(at_least_a_moment(ttl));
        kept.used_at.actual = now;
        kept.expires_at.actual = until;
        if until < kept.expires_at.place {
            // Earlier than queued: it is queued again, and the old entry is ignored.
            kept.expires_at.place = until;
            self.by_expiry.push(until, *id, &mut self.sessions, expires_at);
        }
    }

    /// Ends a session and stores a tombstone, even if the session is unknown. Returns whether a place became free.
    pub(super) fn end(
        &mut self,
        id: &SessionId,
        ended: Ended,
        claim: Option<(Version, Loaded)>,
        now: Timestamp,
    ) -> bool {
        if self.ended.contains_key(id) {
            return false;
        }
        let removed = self.remove(id);
        // The session had expired before.
        let expired = removed.as_ref().is_some_and(|kept| !kept.is_live(now));
        let ended = if expired { Ended::new(EndReason::Expired, now) } else { ended };
        self.remember(*id, Tombstone { ended, claim: claim.map(Box::new) });
        removed.is_some()
    }

    fn remove(&mut self, id: &SessionId) -> Option<Kept> {
        let removed = self.sessions.remove(id)?;
        if removed.record.user().is_some()
            && let Some(ids) = self.users.get_mut(&id.tag())
        {
            ids.remove(id);
            if ids.is_empty() {
                self.users.remove(&id.tag());
            }
        }
        Some(removed)
    }

    fn remember(&mut self, id: SessionId, end: Tombstone) {
        self.ended_at.push_back((end.ended.at, id));
        self.ended.insert(id, end);
    }

    /// Frees a few expired sessions: more than are inserted, and few enough to be fast. Removes a few tombstones that are older
    /// than `memory`, or exceed `remembered` and are not recent.
    pub(super) fn free_expired(&mut self, now: Timestamp, memory: Duration, remembered: usize) -> usize {
        for _ in 0..16 {
            let memory = if self.ended_at.len() > remembered { MIN_TOMBSTONE_TTL } else { memory };
            if self.ended_at.front().is_none_or(|(at, _)| at.plus(memory) > now) {
                break;
            }
            if let Some((_, id)) = self.ended_at.pop_front() {
                self.ended.remove(&id);
            }
        }
        (0..8).take_while(|_| self.free_first_expired(now)).count()
    }

    pub(super) fn free_all_expired(&mut self, now: Timestamp) -> usize {
        std::iter::repeat(()).take_while(|()| self.free_first_expired(now)).count()
    }

    fn free_first_expired(&mut self, now: Timestamp) -> bool {
        if self.by_expiry.peek().is_some_and(|place| place <= now)
            && let Some((time, id)) = self.by_expiry.first(&mut self.sessions, expires_at)
            && time <= now
        {
            self.remove(&id);
            self.remember(id, Tombstone { ended: Ended::new(EndReason::Expired, now), claim: None });
            return true;
        }
        false
    }

    pub(super) fn oldest(&mut self) -> Option<Timestamp> {
        self.by_use.first(&mut self.sessions, used_at).map(|(time, _)| time)
    }

    pub(super) fn evict_oldest(&mut self, now: Timestamp) -> bool {
        match self.by_use.first(&mut self.sessions, used_at) {
            Some((_, id)) => self.end(&id, Ended::new(EndReason::Evicted, now), None, now),
            None => false,
        }
    }
}

/// A session that was just written is live.
fn at_least_a_moment(ttl: Duration) -> Duration {
    ttl.max(Duration::from_millis(1))
}

fn expires_at(kept: &mut Kept) -> &mut Due {
    &mut kept.expires_at
}

fn used_at(kept: &mut Kept) -> &mut Due {
    &mut kept.used_at
}

/// Ids in the order of a time that usually only increases.
///
/// Lazy: when the time of a session changes, its entry stays and is corrected at the front of the queue. So using a session does
/// not change the queue.
#[derive(Default)]
struct Queue(BinaryHeap<Reverse<(Timestamp, SessionId)>>);

/// The time by which a queue is ordered.
type Key = fn(&mut Kept) -> &mut Due;

impl Queue {
    fn push(&mut self, place: Timestamp, id: SessionId, kept: &mut Sessions, key: Key) {
        // Outdated entries are removed before they outnumber the others.
        if self.0.len() > 2 * kept.len() + 64 {
            self.0.retain(|Reverse((place, id))| kept.get_mut(id).is_some_and(|kept| key(kept).place == *place));
        }
        self.0.push(Reverse((place, id)));
    }

    /// A lower bound for the times of all sessions.
    fn peek(&self) -> Option<Timestamp> {
        self.0.peek().map(|Reverse((place, _))| *place)
    }

    /// The first session in order. It stays in the queue.
    fn first(&mut self, kept: &mut Sessions, key: Key) -> Option<(Timestamp, SessionId)> {
        loop {
            let mut front = self.0.peek_mut()?;
            let Reverse((place, id)) = *front;
            match kept.get_mut(&id).map(key) {
                Some(due) if due.place == place => {
                    if due.actual <= place {
                        return Some((place, id));
                    }
                    due.place = due.actual;
                    front.0.0 = due.actual;
                }
                // An outdated entry.
                _ => drop(PeekMut::pop(front)),
            }
        }
    }
}

/// Session ids are hashes that clients cannot choose, so hashing them again is unnecessary.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, spread: u64) {
        // The low bits choose the shard. The map uses both ends of the hash, so rotate them to the middle.
        self.0 = spread.rotate_right(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
