//! What this process has seen of sessions lately: bounded, the longest unused forgotten.
//!
//! What is learnt late must not hide what was learnt meanwhile: the answer to a look-up may be on its way while the session ends.
//! So whatever is learnt gets a number, and an answer counts only if nothing was learnt of the session since it was asked for.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry as Place},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    ended::{EndReason, Ended},
    store::{Entry, Found, Loaded, Record, Version},
    time::Timestamp,
    token::{SessionId, Tag},
};

/// All sessions of a user are in one.
const SHARDS: usize = 16;

/// How many ends without a slot a shard remembers: more than happen while an answer is on its way.
const BARRED: usize = 32;

pub(super) struct Seen {
    shards: [Mutex<Shard>; SHARDS],
    capacity: usize,
    /// The number of what was learnt last.
    last: AtomicU64,
    len: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<SessionId, Slot>,
    /// Each id once, about in the order of use.
    queue: VecDeque<SessionId>,
    /// What was asked for before the number, of sessions with that tag, counts no more: some may have ended that have no slot.
    barred: VecDeque<(Tag, u64)>,
    /// The same for all sessions.
    floor: u64,
}

impl Shard {
    fn bar(&mut self, tag: Tag, number: u64) {
        self.barred.push_back((tag, number));
        if self.barred.len() > BARRED
            && let Some((_, number)) = self.barred.pop_front()
        {
            self.floor = number;
        }
    }

    fn counts(&self, tag: Tag, asked: Asked) -> bool {
        asked.0 >= self.floor && !self.barred.iter().any(|(of, number)| *of == tag && *number > asked.0)
    }
}

struct Slot {
    what: What,
    learnt: u64,
    seen_at: Timestamp,
    /// Used since it was queued: it is queued again when its turn comes.
    used: bool,
}

/// What is known of a session.
#[derive(Clone)]
pub(super) enum What {
    Live {
        record: Arc<Record>,
        until: Timestamp,
    },
    /// It has ended; and who consumed it, and what it was.
    Ended(Ended, Option<Box<(Version, Loaded)>>),
    /// It may have ended: the main store was told, and did not answer.
    InDoubt,
}

/// What an answer of the main store tells of a session.
pub(super) enum Lesson<'a> {
    Live(&'a SessionId, Loaded),
    /// This version of it lives for the entry's time to live from now.
    Extended(&'a SessionId, &'a Entry),
    /// And who consumed it, and what it was.
    Ended(&'a SessionId, Ended, Option<(Version, Loaded)>),
    /// It is not alive; what has become of it is not said.
    NotLive(&'a SessionId),
    /// Of a user, but one; these at least.
    AllEnded {
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
        ids: &'a [SessionId],
    },
}

impl Lesson<'_> {
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Ended(..) | Self::AllEnded { .. })
    }

    /// The session that it says is alive.
    pub(super) fn alive(&self) -> Option<&SessionId> {
        match self {
            Self::Live(id, _) | Self::Extended(id, _) => Some(id),
            Self::Ended(..) | Self::NotLive(_) | Self::AllEnded { .. } => None,
        }
    }
}

/// When something was asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked(u64);

impl Seen {
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

    pub(super) fn asked(&self) -> Asked {
        Asked(self.last.load(Ordering::SeqCst))
    }

    /// Whether what was asked of this session then counts still.
    pub(super) fn counts(&self, id: &SessionId, asked: Asked) -> bool {
        self.shard(id.tag()).counts(id.tag(), asked)
    }

    /// Takes in what the main store said, unless something was learnt since it was asked; `false` then.
    pub(super) fn learn(&self, lesson: &Lesson<'_>, asked: Asked, now: Timestamp) -> bool {
        match lesson {
            Lesson::Live(id, loaded) => return self.live(id, loaded, asked, now),
            Lesson::Extended(id, entry) => self.extended(id, entry, asked, now),
            Lesson::Ended(id, ended, claim) => self.ended(id, What::Ended(*ended, claim.clone().map(Box::new)), now),
            Lesson::NotLive(id) => self.not_live(id, asked),
            Lesson::AllEnded { user, except, reason, ids } => {
                let what = What::Ended(Ended::new(*reason, now), None);
                for id in *ids {
                    self.ended(id, what.clone(), now);
                }
                self.all_ended(user, *except, &what);
            }
        }
        true
    }

    fn live(&self, id: &SessionId, loaded: &Loaded, asked: Asked, now: Timestamp) -> bool {
        let until = now.plus(loaded.ttl.unwrap_or_else(|| loaded.record.ttl_left(now, None)));
        let mut shard = self.shard(id.tag());
        let counts = shard.counts(id.tag(), asked)
            && match shard.slots.get(id) {
                Some(Slot { what: What::Live { record, .. }, .. }) => {
                    !record.version().is_after(loaded.record.version())
                }
                Some(slot) => slot.learnt <= asked.0,
                None => true,
            };
        if counts {
            self.put(&mut shard, id, What::Live { record: loaded.record.clone(), until }, now);
        }
        counts
    }

    /// The life of this version of a session was extended.
    fn extended(&self, id: &SessionId, extended: &Entry, asked: Asked, now: Timestamp) {
        if let Some(slot) = self.shard(id.tag()).slots.get_mut(id)
            && slot.learnt <= asked.0
            && let What::Live { record, until } = &mut slot.what
            && record.version() == extended.record.version()
        {
            *until = now.plus(extended.ttl);
        }
    }

    /// Nothing that was asked for before makes this session alive again.
    fn ended(&self, id: &SessionId, what: What, now: Timestamp) {
        let mut shard = self.shard(id.tag());
        let known = shard.slots.get(id).is_some_and(|slot| matches!(slot.what, What::Ended(..)));
        if !known {
            self.put(&mut shard, id, what, now);
        }
    }

    /// Whoever asks for ids that nobody has does not fill the memory.
    fn not_live(&self, id: &SessionId, asked: Asked) {
        if let Some(slot) = self.shard(id.tag()).slots.get_mut(id)
            && let What::Live { .. } = slot.what
            && slot.learnt <= asked.0
        {
            slot.what = What::InDoubt;
            slot.learnt = self.next();
        }
    }

    /// A session that may have ended is not served from here any more.
    pub(super) fn in_doubt(&self, id: &SessionId) {
        let mut shard = self.shard(id.tag());
        // That it is alive may be on its way.
        shard.bar(id.tag(), self.next());
        if let Some(slot) = shard.slots.get_mut(id)
            && let What::Live { .. } = slot.what
        {
            slot.what = What::InDoubt;
            slot.learnt = self.next();
        }
    }

    /// All sessions of `user` but one may have ended.
    pub(super) fn all_in_doubt(&self, user: &str, except: Option<&SessionId>) {
        self.all_ended(user, except, &What::InDoubt);
    }

    /// All sessions of `user` but one have ended, or may have: those that are known, and those that are on their way.
    fn all_ended(&self, user: &str, except: Option<&SessionId>, what: &What) {
        let tag = Tag::of_user(user);
        let mut shard = self.shard(tag);
        shard.bar(tag, self.next());
        for (id, slot) in &mut shard.slots {
            if let What::Live { record, .. } = &slot.what
                && record.user() == Some(user)
                && Some(id) != except
            {
                slot.what = what.clone();
                slot.learnt = self.next();
            }
        }
    }

    /// What can be said of a session without asking: it was alive not longer than `max_age` ago, and may be so still, or it has ended.
    pub(super) fn stale(&self, id: &SessionId, max_age: Duration, now: Timestamp) -> Option<Found> {
        let mut shard = self.shard(id.tag());
        let slot = shard.slots.get_mut(id)?;
        slot.used = true;
        match &slot.what {
            What::Live { record, until } if *until > now && slot.seen_at.plus(max_age) > now => {
                Some(Found::Live(Loaded { record: record.clone(), ttl: Some(until.since(now)) }))
            }
            What::Ended(ended, _) => Some(Found::Ended(*ended)),
            What::Live { .. } | What::InDoubt => None,
        }
    }

    /// Everything that was seen not longer than `max_age` ago, and all that is known to have ended.
    pub(super) fn all(&self, max_age: Duration, now: Timestamp) -> Vec<(SessionId, What)> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = lock(shard);
            let is_known = |slot: &Slot| match slot.what {
                What::Live { .. } => slot.seen_at.plus(max_age) > now,
                What::Ended(..) => true,
                What::InDoubt => false,
            };
            let known = shard.slots.iter().filter(|(_, slot)| is_known(slot));
            all.extend(known.map(|(id, slot)| (*id, slot.what.clone())));
        }
        all
    }

    fn put(&self, shard: &mut Shard, id: &SessionId, what: What, now: Timestamp) {
        let slot = Slot { what, learnt: self.next(), seen_at: now, used: false };
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
                    if !matches!(slot.remove().what, What::Live { .. }) {
                        shard.bar(id.tag(), self.next());
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
        lock(&self.shards[(tag.spread() % SHARDS as u64) as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
