//! A part of the store under one lock: the sessions, whose they are, in what order they go, and which have gone.

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
    /// How many sessions were ever inserted.
    inserted: u64,
    ended: Ends,
    /// In the order they ended.
    ended_at: VecDeque<(Timestamp, SessionId)>,
}

type Sessions = HashMap<SessionId, Kept, BuildHasherDefault<IdHasher>>;
type Ends = HashMap<SessionId, Tombstone, BuildHasherDefault<IdHasher>>;

/// A session that is kept.
pub(super) struct Kept {
    pub(super) record: Arc<Record>,
    /// Orders the sessions that were created within the same millisecond.
    order: u64,
    expires_at: Due,
    pub(super) used_at: Due,
}

/// What is remembered of a session that ended.
struct Tombstone {
    ended: Ended,
    /// Who consumed it, and what it was.
    claim: Option<Box<(Version, Loaded)>>,
}

/// A time that a session is queued by, and its place in the queue.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) actual: Timestamp,
    /// Where the queue has it: never later than the actual time.
    place: Timestamp,
}

/// Whether another session of a user has a place.
pub(super) enum Room {
    Full,
    /// After these were ended.
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

    /// How a session ended that is not alive.
    pub(super) fn ending(&self, id: &SessionId) -> Option<Ended> {
        let expired = self.sessions.get(id).map(|kept| Ended::new(EndReason::Expired, kept.expires_at.actual));
        expired.or_else(|| self.ended(id))
    }

    /// What is remembered of a session that ended.
    pub(super) fn ended(&self, id: &SessionId) -> Option<Ended> {
        self.ended.get(id).map(|end| end.ended)
    }

    /// What this claim got, if it was the first.
    pub(super) fn claimed(&self, id: &SessionId, claim: Version) -> Option<Loaded> {
        let (first, loaded) = &**self.ended.get(id)?.claim.as_ref()?;
        (*first == claim).then(|| loaded.clone())
    }

    /// What to say to the creation of an id that was seen before: perhaps by this very creation.
    pub(super) fn known(&mut self, id: &SessionId, new: &Entry, now: Timestamp) -> Option<Created> {
        match self.live(id, now) {
            Some(kept) if kept.record.version() == new.record.version() => Some(Created::Done { evicted: Vec::new() }),
            Some(_) => Some(Created::Taken),
            None => self.ending(id).map(|_| Created::Taken),
        }
    }

    /// Ends as many sessions of `user` as another one needs ended.
    pub(super) fn make_room(&mut self, tag: Tag, user: Option<&str>, limits: Limits, now: Timestamp) -> Room {
        let (Some(user), Some(limit)) = (user, limits.sessions()) else { return Room::Made(Vec::new()) };
        if self.users.get(&tag).is_none_or(|ids| ids.len() < limit) {
            return Room::Made(Vec::new());
        }
        let live: Vec<_> = self.kept_of_user(tag, user, now).collect();
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

    /// Lets a session live for `ttl` from now.
    pub(super) fn extend(&mut self, id: &SessionId, now: Timestamp, ttl: Duration) {
        let Some(kept) = self.sessions.get_mut(id) else { return };
        let until = now.plus(at_least_a_moment(ttl));
        kept.used_at.actual = now;
        kept.expires_at.actual = until;
        if until < kept.expires_at.place {
            // Sooner than it is queued: it needs another place. The one it has counts no more.
            kept.expires_at.place = until;
            self.by_expiry.push(until, *id, &mut self.sessions, expires_at);
        }
    }

    /// Ends a session, whether it is there or not, and remembers it; returns whether a place became free.
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
        // Time has ended it before.
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

    /// Frees a few expired sessions: enough to free more than come in, few enough that nobody waits for it. Forgets a few
    /// that ended longer than `memory` ago, or are more than `remembered` and did not end just now.
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

/// A session that was just written is alive.
fn at_least_a_moment(ttl: Duration) -> Duration {
    ttl.max(Duration::from_millis(1))
}

fn expires_at(kept: &mut Kept) -> &mut Due {
    &mut kept.expires_at
}

fn used_at(kept: &mut Kept) -> &mut Due {
    &mut kept.used_at
}

/// Ids in the order of a time that mostly moves forward.
///
/// Lazy: when a session's time moves on, its place in the queue stays, and is corrected when it comes to the front. So using
/// a session costs the queue nothing.
#[derive(Default)]
struct Queue(BinaryHeap<Reverse<(Timestamp, SessionId)>>);

/// By which of its times a queue has a session.
type Key = fn(&mut Kept) -> &mut Due;

impl Queue {
    fn push(&mut self, place: Timestamp, id: SessionId, kept: &mut Sessions, key: Key) {
        // Places that count no more are dropped before they outnumber the others.
        if self.0.len() > 2 * kept.len() + 64 {
            self.0.retain(|Reverse((place, id))| kept.get_mut(id).is_some_and(|kept| key(kept).place == *place));
        }
        self.0.push(Reverse((place, id)));
    }

    /// A time that no session's is before.
    fn peek(&self) -> Option<Timestamp> {
        self.0.peek().map(|Reverse((place, _))| *place)
    }

    /// The session whose time comes first; it keeps its place.
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
                // Of a session that is gone, or has another place.
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
