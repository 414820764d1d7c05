//! The operations of a store: what the main store is asked, what its answer tells, and what is done without it.

use std::time::Duration;

use super::{
    local::Local,
    seen::{Lesson, Seen},
};
use crate::{
    ended::{EndReason, Ended},
    limits::Limits,
    store::{Created, Cursor, Entry, Found, Loaded, Outcome, Page, SessionStore, StoreError, StoreFuture, Version},
    time::Timestamp,
    token::SessionId,
};

pub(super) trait Operation: Send + Sync {
    type Answer: Send;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Self::Answer>;

    /// What the answer tells of sessions: `learn` takes it in.
    fn lessons(&self, answer: &Self::Answer, now: Timestamp, learn: &mut dyn FnMut(Lesson<'_>));

    /// The main store may or may not have done it, and the caller is told so.
    fn in_doubt(&self, seen: &Seen) {
        let _ = seen;
    }

    /// The answer by what was seen lately, where that is one.
    fn stale(&self, seen: &Seen, max_age: Duration, now: Timestamp) -> Option<Self::Answer> {
        let _ = (seen, max_age, now);
        None
    }

    /// Does it in memory. `sent`: the main store was asked as well, and has not answered.
    fn perform(&self, local: &mut Local, now: Timestamp, sent: bool) -> Result<Self::Answer, StoreError>;
}

pub(super) struct Load<'a> {
    pub(super) id: &'a SessionId,
}

impl Operation for Load<'_> {
    type Answer = Found;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Found> {
        main.load(self.id)
    }

    fn lessons(&self, answer: &Found, _: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(match answer {
            Found::Live(loaded) => Lesson::Live(self.id, loaded.clone()),
            Found::Ended(ended) => Lesson::Ended(self.id, *ended, None),
            Found::Unknown => Lesson::NotLive(self.id),
        });
    }

    fn stale(&self, seen: &Seen, max_age: Duration, now: Timestamp) -> Option<Found> {
        seen.stale(self.id, max_age, now)
    }

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<Found, StoreError> {
        Ok(local.store().load_now(self.id))
    }
}

pub(super) struct Create<'a> {
    pub(super) id: &'a SessionId,
    pub(super) new: Entry,
    pub(super) limits: Limits,
}

impl Operation for Create<'_> {
    type Answer = Created;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Created> {
        main.create(self.id, self.new.clone(), self.limits)
    }

    fn lessons(&self, answer: &Created, now: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        if let Created::Done { evicted } = answer {
            for id in evicted {
                learn(Lesson::Ended(id, Ended::new(EndReason::Evicted, now), None));
            }
            learn(Lesson::Live(self.id, loaded(&self.new)));
        }
    }

    fn perform(&self, local: &mut Local, now: Timestamp, sent: bool) -> Result<Created, StoreError> {
        local.create(self.id, &self.new, self.limits, sent, now)
    }
}

pub(super) struct Update<'a> {
    pub(super) id: &'a SessionId,
    pub(super) expected: Version,
    pub(super) new: Entry,
}

impl Operation for Update<'_> {
    type Answer = Outcome;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Outcome> {
        main.update(self.id, self.expected, self.new.clone())
    }

    fn lessons(&self, answer: &Outcome, _: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(match answer {
            Outcome::Done => Lesson::Live(self.id, loaded(&self.new)),
            Outcome::Conflict(theirs) => Lesson::Live(self.id, theirs.clone()),
            Outcome::Gone => Lesson::NotLive(self.id),
        });
    }

    fn perform(&self, local: &mut Local, _: Timestamp, sent: bool) -> Result<Outcome, StoreError> {
        local.update(self.id, self.expected, &self.new, sent)
    }
}

pub(super) struct Touch<'a> {
    pub(super) id: &'a SessionId,
    pub(super) entry: Entry,
}

impl Operation for Touch<'_> {
    type Answer = ();

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, ()> {
        main.touch(self.id, self.entry.clone())
    }

    fn lessons(&self, (): &(), _: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(Lesson::Extended(self.id, &self.entry));
    }

    /// It is best effort, and no effort is possible.
    fn stale(&self, _: &Seen, _: Duration, _: Timestamp) -> Option<()> {
        Some(())
    }

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<(), StoreError> {
        local.touch(self.id, &self.entry);
        Ok(())
    }
}

pub(super) struct End<'a> {
    pub(super) id: &'a SessionId,
    pub(super) reason: EndReason,
}

impl Operation for End<'_> {
    type Answer = Outcome;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Outcome> {
        main.end(self.id, self.reason)
    }

    fn lessons(&self, _: &Outcome, now: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(Lesson::Ended(self.id, Ended::new(self.reason, now), None));
    }

    fn in_doubt(&self, seen: &Seen) {
        seen.in_doubt(self.id);
    }

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<Outcome, StoreError> {
        local.end(self.id, Ended::new(self.reason, now))
    }
}

pub(super) struct Replace<'a> {
    pub(super) id: &'a SessionId,
    pub(super) expected: Option<Version>,
    pub(super) successor: &'a SessionId,
}

impl Operation for Replace<'_> {
    type Answer = Outcome;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Outcome> {
        main.replace(self.id, self.expected, self.successor)
    }

    fn lessons(&self, answer: &Outcome, now: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(match answer {
            Outcome::Done => Lesson::Ended(self.id, Ended::replaced(*self.successor, now), None),
            Outcome::Conflict(theirs) => Lesson::Live(self.id, theirs.clone()),
            // How it ended, and in whose favour, is not said.
            Outcome::Gone => Lesson::NotLive(self.id),
        });
    }

    fn in_doubt(&self, seen: &Seen) {
        seen.in_doubt(self.id);
    }

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<Outcome, StoreError> {
        local.replace(self.id, self.expected, Ended::replaced(*self.successor, now), self.successor)
    }
}

pub(super) struct Consume<'a> {
    pub(super) id: &'a SessionId,
    pub(super) claim: Version,
}

impl Operation for Consume<'_> {
    type Answer = Found;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Found> {
        main.consume(self.id, self.claim)
    }

    fn lessons(&self, answer: &Found, now: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(match answer {
            Found::Live(was) => {
                Lesson::Ended(self.id, Ended::new(EndReason::Used, now), Some((self.claim, was.clone())))
            }
            Found::Ended(ended) => Lesson::Ended(self.id, *ended, None),
            Found::Unknown => Lesson::NotLive(self.id),
        });
    }

    fn in_doubt(&self, seen: &Seen) {
        seen.in_doubt(self.id);
    }

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<Found, StoreError> {
        local.consume(self.id, self.claim)
    }
}

pub(super) struct List<'a> {
    pub(super) user: &'a str,
}

impl Operation for List<'_> {
    type Answer = Vec<(SessionId, Loaded)>;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Self::Answer> {
        main.list(self.user)
    }

    fn lessons(&self, _: &Self::Answer, _: Timestamp, _: &mut dyn FnMut(Lesson<'_>)) {}

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<Self::Answer, StoreError> {
        Ok(local.store().list_now(self.user))
    }
}

pub(super) struct EndUser<'a> {
    pub(super) user: &'a str,
    pub(super) except: Option<&'a SessionId>,
    pub(super) reason: EndReason,
}

impl Operation for EndUser<'_> {
    type Answer = Vec<SessionId>;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Vec<SessionId>> {
        main.end_user(self.user, self.except, self.reason)
    }

    fn lessons(&self, ids: &Vec<SessionId>, _: Timestamp, learn: &mut dyn FnMut(Lesson<'_>)) {
        learn(Lesson::AllEnded { user: self.user, except: self.except, reason: self.reason, ids });
    }

    fn in_doubt(&self, seen: &Seen) {
        seen.all_in_doubt(self.user, self.except);
    }

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<Vec<SessionId>, StoreError> {
        local.end_user(self.user, self.except, self.reason)
    }
}

pub(super) struct Scan<'a> {
    pub(super) from: &'a Cursor,
    pub(super) count: usize,
}

/// What the cursors of memory begin with: a cursor of one store means nothing to the other, which begins anew.
pub(super) const LOCAL: &str = "local-";

impl Operation for Scan<'_> {
    type Answer = Page;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Page> {
        const START: &Cursor = &Cursor(String::new());
        main.scan(if self.from.as_str().starts_with(LOCAL) { START } else { self.from }, self.count)
    }

    fn lessons(&self, _: &Page, _: Timestamp, _: &mut dyn FnMut(Lesson<'_>)) {}

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<Page, StoreError> {
        let from = self.from.as_str().strip_prefix(LOCAL).unwrap_or_default();
        let page = local.store().scan_now(&from.to_owned().into(), self.count);
        let next = page.next.map(|next| format!("{LOCAL}{}", next.as_str()).into());
        Ok(Page { next, ..page })
    }
}

pub(super) struct Count;

impl Operation for Count {
    type Answer = u64;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, u64> {
        main.count()
    }

    fn lessons(&self, _: &u64, _: Timestamp, _: &mut dyn FnMut(Lesson<'_>)) {}

    fn perform(&self, local: &mut Local, _: Timestamp, _: bool) -> Result<u64, StoreError> {
        Ok(local.store().count_now())
    }
}

fn loaded(Entry { record, ttl }: &Entry) -> Loaded {
    Loaded { record: record.clone(), ttl: Some(*ttl) }
}
