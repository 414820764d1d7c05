//! What is counted, and how causes are logged.

use std::{
    error::Error,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    conflicts: AtomicU64,
    ended_meanwhile: AtomicU64,
    unsaved: AtomicU64,
    outages: AtomicU64,
}

impl Counters {
    pub(crate) fn conflict(&self) {
        self.conflicts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended_meanwhile(&self) {
        self.ended_meanwhile.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unsaved(&self) {
        self.unsaved.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn outage(&self) {
        self.outages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            conflicts: self.conflicts.load(Ordering::Relaxed),
            ended_meanwhile: self.ended_meanwhile.load(Ordering::Relaxed),
            unsaved: self.unsaved.load(Ordering::Relaxed),
            outages: self.outages.load(Ordering::Relaxed),
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
    /// Saves that found their session ended by somebody else, and were given up.
    pub ended_meanwhile: u64,
    /// Sessions dropped with changes that were never saved: the request was cancelled, or the change came after the
    /// response's head had left and without [`Session::save`](crate::Session::save).
    pub unsaved: u64,
    /// Look-ups and saves that the store did not answer.
    pub outages: u64,
}

/// An error with its causes, in one line.
pub(crate) struct Causes<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
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
