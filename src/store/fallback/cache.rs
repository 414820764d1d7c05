//! The recently used sessions: bounded, the least recently used is evicted.
//!
//! A late reply must not hide a newer observation: the reply to a lookup may be on its way while the session ends. So each observation has
//! a sequence number, and a reply is ignored if the session was observed after the request was sent.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry as Place},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    ended::Ended,
    record::{Record, Version},
    store::{
        observation::Observation,
        types::{Entry, Found, Loaded},
    },
    time::Timestamp,
    token::{SessionId, Tag},
};

/// All sessions of a user are in one shard.
const SHARDS: usize = 16;

/// The number of ends without a slot that a shard remembers: more than happen while a reply is on its way.
const MAX_BARRIERS: usize = 32;

pub(super) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
    capacity: usize,
    /// The last sequence number.
    last: AtomicU64,
    len: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<SessionId, Slot>,
    /// Each id once, approximately in the order of use.
    queue: VecDeque<SessionId>,
    /// Replies to requests from before the number are ignored for sessions with the tag, because some without a slot may have ended.
    barriers: VecDeque<(Tag, u64)>,
    /// The same for all sessions.
    floor: u64,
}

impl Shard {
    fn add_barrier(&mut self, tag: Tag, number: u64) {
        self.barriers.push_back((tag, number));
        if self.barriers.len() > MAX_BARRIERS
            && let Some((_, number)) = self.barriers.pop_front()
        {
            self.floor = number;
        }
    }

    fn is_current(&self, tag: Tag, sent: Sequence) -> bool {
        sent.0 >= self.floor && !self.barriers.iter().any(|(of, number)| *of == tag && *number > sent.0)
    }
}

struct Slot {
    state: State,
    observed_at: u64,
    seen_at: Timestamp,
    /// Used since it was queued: instead of being evicted, it is queued again.
    used: bool,
}

/// What is known about a session.
#[derive(Clone)]
pub(super) enum State {
    Live {
        record: Arc<Record>,
        until: Timestamp,
    },
    /// The session has ended. If it was used up, the claim and its content.
    Ended(Ended, Option<Box<(Version, Loaded)>>),
    /// The session may have ended: the reply was lost.
    InDoubt,
}

/// When a request was sent.
#[derive(Clone, Copy)]
pub(super) struct Sequence(u64);

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            capacity,
            last: AtomicU64::new(0),
            len: AtomicUsize::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn sequence(&self) -> Sequence {
        Sequence(self.last.load(Ordering::SeqCst))
    }

    /// Whether a reply to a request that was `sent` then may be used.
    pub(super) fn is_current(&self, id: &SessionId, sent: Sequence) -> bool {
        self.shard(id.tag()).is_current(id.tag(), sent)
    }

    /// Applies what a reply of the main store says, unless something newer was observed since the request was `sent`; then it returns `false`.
    pub(super) fn observe(&self, observation: &Observation<'_>, sent: Sequence, now: Timestamp) -> bool {
        match observation {
            Observation::Live(id, loaded) => return self.live(id, loaded, sent, now),
            Observation::Extended(id, entry) => self.extended(id, entry, sent, now),
            Observation::Ended(id, ended, claim) => {
                self.ended(id, State::Ended(*ended, claim.clone().map(Box::new)), now);
            }
            Observation::NotLive(id) => self.not_live(id, sent),
            Observation::MaybeEnded(id) => self.in_doubt(id),
            Observation::UserEnded { user, except, reason, ids } => {
                let state = State::Ended(Ended::new(*reason, now), None);
                for id in *ids {
                    self.ended(id, state.clone(), now);
                }
                self.all_ended(user, *except, &state);
            }
            Observation::UserMaybeEnded { user, except } => self.all_ended(user, *except, &State::InDoubt),
        }
        true
    }

    fn live(&self, id: &SessionId, loaded: &Loaded, sent: Sequence, now: Timestamp) -> bool {
        let until = now.plus(loaded.ttl.unwrap_or_else(|| loaded.record.ttl_left(now, None)));
        let mut shard = self.shard(id.tag());
        let is_current = shard.is_current(id.tag(), sent)
            && match shard.slots.get(id) {
                Some(Slot { state: State::Live { record, .. }, .. }) => {
                    !record.version().is_after(loaded.record.version())
                }
                Some(slot) => slot.observed_at <= sent.0,
                None => true,
            };
        if is_current {
            self.put(&mut shard, id, State::Live { record: loaded.record.clone(), until }, now);
        }
        is_current
    }

    /// This version of a session was extended.
    fn extended(&self, id: &SessionId, extended: &Entry, sent: Sequence, now: Timestamp) {
        if let Some(slot) = self.shard(id.tag()).slots.get_mut(id)
            && slot.observed_at <= sent.0
            && let State::Live { record, until } = &mut slot.state
            && record.version() == extended.record.version()
        {
            *until = now.plus(extended.ttl);
        }
    }

    /// The session has ended. Earlier requests cannot make it live again.
    fn ended(&self, id: &SessionId, state: State, now: Timestamp) {
        let mut shard = self.shard(id.tag());
        let known = shard.slots.get(id).is_some_and(|slot| matches!(slot.state, State::Ended(..)));
        if !known {
            self.put(&mut shard, id, state, now);
        }
    }

    /// Unknown ids are not cached, so that they cannot fill the memory.
    fn not_live(&self, id: &SessionId, sent: Sequence) {
        if let Some(slot) = self.shard(id.tag()).slots.get_mut(id)
            && let State::Live { .. } = slot.state
            && slot.observed_at <= sent.0
        {
            slot.state = State::InDoubt;
            slot.observed_at = self.next();
        }
    }

    /// A session that may have ended is not served from the cache.
    fn in_doubt(&self, id: &SessionId) {
        let mut shard = self.shard(id.tag());
        // A reply that it is live may be on its way.
        shard.add_barrier(id.tag(), self.next());
        if let Some(slot) = shard.slots.get_mut(id)
            && let State::Live { .. } = slot.state
        {
            slot.state = State::InDoubt;
            slot.observed_at = self.next();
        }
    }

    /// All sessions of `user` except one have ended, or may have.
    fn all_ended(&self, user: &str, except: Option<&SessionId>, state: &State) {
        let tag = Tag::of_user(user);
        let mut shard = self.shard(tag);
        shard.add_barrier(tag, self.next());
        for (id, slot) in &mut shard.slots {
            if let State::Live { record, .. } = &slot.state
                && record.user() == Some(user)
                && Some(id) != except
            {
                slot.state = state.clone();
                slot.observed_at = self.next();
            }
        }
    }

    /// A session that was live at most `max_age` ago, or has ended.
    pub(super) fn stale(&self, id: &SessionId, max_age: Duration, now: Timestamp) -> Option<Found> {
        let mut shard = self.shard(id.tag());
        let slot = shard.slots.get_mut(id)?;
        slot.used = true;
        match &slot.state {
            State::Live { record, until } if *until > now && slot.seen_at.plus(max_age) > now => {
                Some(Found::Live(Loaded { record: record.clone(), ttl: Some(until.since(now)) }))
            }
            State::Ended(ended, _) => Some(Found::Ended(*ended)),
            State::Live { .. } | State::InDoubt => None,
        }
    }

    /// All sessions that were seen at most `max_age` ago, and all that have ended.
    pub(super) fn all(&self, max_age: Duration, now: Timestamp) -> Vec<(SessionId, State)> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = lock(shard);
            let is_known = |slot: &Slot| match slot.state {
                State::Live { .. } => slot.seen_at.plus(max_age) > now,
                State::Ended(..) => true,
                State::InDoubt => false,
            };
            let known = shard.slots.iter().filter(|(_, slot)| is_known(slot));
            all.extend(known.map(|(id, slot)| (*id, slot.state.clone())));
        }
        all
    }

    fn put(&self, shard: &mut Shard, id: &SessionId, state: State, now: Timestamp) {
        let slot = Slot { state, observed_at: self.next(), seen_at: now, used: false };
        match shard.slots.entry(*id) {
            Place::Occupied(mut known) => {
                known.insert(Slot { used: true, ..slot });
            }
            Place::Vacant(place) => {
                place.insert(slot);
                shard.queue.push_back(*id);
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
        while shard.slots.len() > self.capacity.div_ceil(SHARDS) {
            let Some(id) = shard.queue.pop_front() else { break };
            match shard.slots.entry(id) {
                Place::Occupied(mut slot) if slot.get().used => {
                    slot.get_mut().used = false;
                    shard.queue.push_back(id);
                }
                Place::Occupied(slot) => {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    // With it goes the number that kept back what was asked for before.
                    if !matches!(slot.remove().state, State::Live { .. }) {
                        shard.add_barrier(id.tag(), self.next());
                    }
                }
                Place::Vacant(_) => {}
            }
        }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn shard(&self, tag: Tag) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(tag.shard_hash() % SHARDS as u64) as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
