//! What is counted, for [`Stats`] and for [`metrics`] alike, and how causes are logged.

use std::{
    error::Error,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

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
    pub(crate) fn happened(&self, what: EventKind) {
        match what {
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

    /// A save met another, which has so many values of this one's place.
    pub(crate) fn conflict(&self, overwrites: u64) {
        self.conflicts.count();
        self.overwrites.add(overwrites);
        metrics::count(&CONFLICTS, [("resolution", if overwrites == 0 { "merged" } else { "overwritten" })]);
    }

    /// A save was given up, because it met others again and again.
    pub(crate) fn gave_up(&self) {
        metrics::count(&CONFLICTS, [("resolution", "gave_up")]);
    }

    /// A save found its session ended.
    pub(crate) fn ended_concurrently(&self) {
        self.ended_concurrently.count();
        metrics::count(&RESURRECTION_PREVENTED, []);
    }

    /// A request went away with changes.
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

/// What a [`SessionLayer`](crate::SessionLayer) and its clones have counted since they were made.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// assert_eq!(SessionLayer::new(MemoryStore::new()).stats().conflicts, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Saves that met another request's save and were merged with it.
    pub conflicts: u64,
    /// Values that two requests changed at once, where the later save won because no
    /// [merge](crate::SessionLayer::merge) was set for them.
    pub overwrites: u64,
    /// Saves that found their session ended by somebody else, and were given up.
    pub ended_concurrently: u64,
    /// Sessions dropped with changes that were never saved: the request was cancelled, or the change came after the
    /// response's head had left and without [`Session::save`](crate::Session::save).
    pub unsaved: u64,
    /// Look-ups and saves that the store did not answer.
    pub outages: u64,
    /// Of these, the look-ups of requests that were served on the signature of their JWT alone: see `JwtBuilder::accept_in_outage`.
    pub signature_only: u64,
    /// Look-ups that found a record which cannot be read.
    pub corrupt: u64,
    /// Sessions created.
    pub created: u64,
    /// Logins.
    pub logins: u64,
    /// Sessions that were given another token, apart from logins.
    pub rotations: u64,
    /// Sessions ended by this process, for whatever reason.
    pub ended: u64,
    /// Of these, the ones that made room for another.
    pub evictions: u64,
    /// Of these, the ones of which somebody has a copy of an old token.
    pub reused_tokens: u64,
}

/// An error with its causes, in one line.
pub(crate) struct ErrorChain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors end with the text of their cause.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            cause = error.source();
        }
        Ok(())
    }
}
