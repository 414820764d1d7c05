//! What this process has ended, in case Redis forgets.
//!
//! A server that fails takes with it what its replicas do not have yet, though it has confirmed it. A session that was ended
//! through this process stays ended here all the same, and is ended again when it shows up.

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

/// What this process has ended, not so long ago.
pub(super) struct EndedHere {
    memory: Duration,
    most: usize,
    all: Mutex<All>,
}

/// Who ended it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    ThisProcess,
    /// The same, with a claim that may be repeated.
    Claim(Version),
    /// It was not alive any more when this process wanted to end it.
    Somebody,
}

#[derive(Default)]
struct All {
    ended: HashMap<SessionId, (Ended, By)>,
    /// The same, by age.
    by_age: VecDeque<(Instant, SessionId)>,
}

impl EndedHere {
    pub(super) fn new(memory: Duration, most: usize) -> Self {
        Self { memory, most, all: Mutex::default() }
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
        let by_another = all.ended.get(id).filter(|(_, by)| *by != By::Claim(claim) && *by != By::Somebody);
        by_another.map(|(ended, _)| *ended)
    }

    pub(super) fn add(&self, ids: &[SessionId], reason: EndReason) {
        let ended = Ended::new(reason, SystemClock.now());
        for id in ids {
            self.add_one(id, ended, By::ThisProcess);
        }
    }

    pub(super) fn add_one(&self, id: &SessionId, ended: Ended, by: By) {
        let now = Instant::now();
        let mut all = self.all();
        let All { ended: known, by_age } = &mut *all;
        known.entry(*id).or_insert_with(|| {
            by_age.push_back((now, *id));
            (ended, by)
        });
        while by_age.len() > self.most || by_age.front().is_some_and(|(since, _)| now - *since > self.memory) {
            if let Some((_, id)) = by_age.pop_front() {
                known.remove(&id);
            }
        }
    }
}

impl fmt::Debug for EndedHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndedHere").field("sessions", &self.all().by_age.len()).finish()
    }
}
