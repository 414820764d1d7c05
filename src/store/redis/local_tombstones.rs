//! Tombstones of the sessions that this process ended, in case Redis loses them.
//!
//! A master that fails loses what its replicas do not have yet, although it confirmed it. A session that this process ended stays ended
//! here, and is ended again when it reappears.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    ended::{EndReason, Ended},
    record::Version,
    time::{Clock, SystemClock},
    token::SessionId,
};

/// The sessions that this process ended recently.
pub(super) struct LocalTombstones {
    ttl: Duration,
    max: usize,
    all: Mutex<All>,
}

/// Who ended a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    ThisProcess,
    /// This process, with a claim that may be repeated.
    Claim(Version),
    /// Another process: the session had ended already.
    Other,
}

#[derive(Default)]
struct All {
    ended: HashMap<SessionId, (Ended, EndedBy)>,
    /// By age.
    by_age: VecDeque<(Instant, SessionId)>,
}

impl LocalTombstones {
    pub(super) fn new(ttl: Duration, max: usize) -> Self {
        Self { ttl, max, all: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<Ended> {
        self.all().ended.get(id).map(|(ended, _)| *ended)
    }

    /// Unless it may have been by this claim, which may be repeated.
    pub(super) fn get_unless(&self, id: &SessionId, claim: Version) -> Option<Ended> {
        let all = self.all();
        let by_another = all.ended.get(id).filter(|(_, by)| *by != EndedBy::Claim(claim) && *by != EndedBy::Other);
        by_another.map(|(ended, _)| *ended)
    }

    pub(super) fn add(&self, ids: &[SessionId], reason: EndReason) {
        let ended = Ended::new(reason, SystemClock.now());
        for id in ids {
            self.add_one(id, ended, EndedBy::ThisProcess);
        }
    }

    pub(super) fn add_one(&self, id: &SessionId, ended: Ended, by: EndedBy) {
        let now = Instant::now();
        let mut all = self.all();
        let All { ended: known, by_age } = &mut *all;
        known.entry(*id).or_insert_with(|| {
            by_age.push_back((now, *id));
            (ended, by)
        });
        while by_age.len() > self.max || by_age.front().is_some_and(|(since, _)| now - *since > self.ttl) {
            if let Some((_, id)) = by_age.pop_front() {
                known.remove(&id);
            }
        }
    }
}

impl fmt::Debug for LocalTombstones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTombstones").field("sessions", &self.all().by_age.len()).finish()
    }
}
