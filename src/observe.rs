//! Counters, for [`Stats`] and for [`metrics`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    ended::EndReason,
    event::EventKind,
    metrics::{self, CONFLICTS, CREATED, DESTROYED, RESURRECTION_PREVENTED, ROTATION, TOKEN_REUSE, UNSAVED},
};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    conflicts: Counter,
    overwrites: Counter,
    ended_concurrently: Counter,
    unsaved: Counter,
    pub(crate) outages: Counter,
    pub(crate) signature_only: Counter,
    pub(crate) corrupt: Counter,
    created: Counter,
    logins: Counter,
    rotations: Counter,
    ended: Counter,
    evictions: Counter,
    reused_tokens: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        self.add(1);
    }

    fn add(&self, times: u64) {
        self.0.fetch_add(times, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn count(&self, event: EventKind) {
        match event {
            EventKind::Created => {
                self.created.count();
                metrics::count(&CREATED, []);
            }
            EventKind::LoggedIn => {
                self.logins.count();
                metrics::count(&ROTATION, [("case", "login")]);
            }
            EventKind::Rotated => {
                self.rotations.count();
                metrics::count(&ROTATION, [("case", "rotated")]);
            }
            EventKind::Ended(reason) => {
                self.ended.count();
                metrics::count(&DESTROYED, [("reason", reason.as_str())]);
                match reason {
                    EndReason::Evicted => self.evictions.count(),
                    EndReason::TokenReused => {
                        self.reused_tokens.count();
                        metrics::count(&TOKEN_REUSE, []);
                    }
                    _ => {}
                }
            }
        }
    }

    /// A save had a conflict, and overwrites this many values.
    pub(crate) fn conflict(&self, overwrites: u64) {
        self.conflicts.count();
        self.overwrites.add(overwrites);
        metrics::count(&CONFLICTS, [("resolution", if overwrites == 0 { "merged" } else { "overwritten" })]);
    }

    /// A save was given up after many conflicts.
    pub(crate) fn gave_up(&self) {
        metrics::count(&CONFLICTS, [("resolution", "gave_up")]);
    }

    /// A save found that its session had ended.
    pub(crate) fn ended_concurrently(&self) {
        self.ended_concurrently.count();
        metrics::count(&RESURRECTION_PREVENTED, []);
    }

    /// A request ended with unsaved changes.
    pub(crate) fn unsaved(&self) {
        self.unsaved.count();
        metrics::count(&UNSAVED, []);
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            conflicts: self.conflicts.get(),
            overwrites: self.overwrites.get(),
            ended_concurrently: self.ended_concurrently.get(),
            unsaved: self.unsaved.get(),
            outages: self.outages.get(),
            signature_only: self.signature_only.get(),
            corrupt: self.corrupt.get(),
            created: self.created.get(),
            logins: self.logins.get(),
            rotations: self.rotations.get(),
            ended: self.ended.get(),
            evictions: self.evictions.get(),
            reused_tokens: self.reused_tokens.get(),
        }
    }
}

/// The counters of a [`SessionLayer`](crate::SessionLayer) and its clones.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// assert_eq!(SessionLayer::new(MemoryStore::new()).stats().conflicts, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Saves that were merged with a concurrent save.
    pub conflicts: u64,
    /// Values that two requests changed concurrently, and the later save won, because no [merge
    /// function](crate::SessionLayer::merge) is registered.
    pub overwrites: u64,
    /// Saves whose session was ended by another request. Their changes are lost.
    pub ended_concurrently: u64,
    /// Sessions with changes that were never saved: the request was cancelled, or the change came after the head of the response
    /// without [`Session::save`](crate::Session::save).
    pub unsaved: u64,
    /// Lookups and saves that failed because of an outage.
    pub outages: u64,
    /// Of these, lookups of requests that were accepted by the signature of their JWT alone: see `JwtBuilder::accept_in_outage`.
    pub signature_only: u64,
    /// Lookups that found a corrupt record.
    pub corrupt: u64,
    /// Created sessions.
    pub created: u64,
    /// Logins.
    pub logins: u64,
    /// Rotations, without logins.
    pub rotations: u64,
    /// Sessions that this process ended.
    pub ended: u64,
    /// Of these, evicted sessions.
    pub evictions: u64,
    /// Of these, sessions with a reused token.
    pub reused_tokens: u64,
}
