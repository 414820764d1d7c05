//! What goes into a store and what comes out of it.

use std::{sync::Arc, time::Duration};

use crate::{
    ended::{EndReason, Ended},
    event::Event,
    record::{Record, Version},
    time::Timestamp,
    token::SessionId,
};

/// A record to store, and its time to live.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record.
    pub record: Arc<Record>,
    /// How long the session lives from this write on. Less than a millisecond counts as one.
    pub ttl: Duration,
}

/// A live session as a store returns it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The record as last written.
    pub record: Arc<Record>,
    /// How long the session lives if nothing extends it. `None` if the stored session has no time to live, which only another program
    /// can have caused (`PERSIST` in Redis).
    pub ttl: Option<Duration>,
}

impl Entry {
    /// The session as a store returns it right after this write.
    pub(crate) fn loaded(&self) -> Loaded {
        Loaded { record: self.record.clone(), ttl: Some(self.ttl) }
    }
}

/// The reply to a [`load`](super::SessionStore::load).
#[derive(Clone, Debug)]
pub enum Found {
    /// The session is alive.
    Live(Loaded),
    /// The session has ended, and the store still has its tombstone.
    Ended(Ended),
    /// The store knows nothing about this id.
    Unknown,
}

impl Found {
    /// The session, if it is alive.
    pub fn live(self) -> Option<Loaded> {
        match self {
            Self::Live(loaded) => Some(loaded),
            Self::Ended(_) | Self::Unknown => None,
        }
    }
}

/// The reply to a [`create`](super::SessionStore::create).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The session is stored, by this call or by an earlier identical one.
    Done {
        /// Sessions of the same user that were ended to stay within the limit.
        evicted: Vec<SessionId>,
    },
    /// Nothing was written: the id exists, or has a tombstone.
    Taken,
    /// Nothing was written: a limit is reached.
    Full,
}

/// The reply to an [`update`](super::SessionStore::update).
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The write is applied, by this call or by an earlier identical one.
    Done,
    /// Nothing was written: the session has another version. This is its current state.
    Conflict(Loaded),
    /// Nothing was written: the session is not alive. Also when the write was applied, its reply was lost, and the session ended
    /// before the write was repeated.
    Gone,
}

/// The reply to an [`end`](super::SessionStore::end).
#[derive(Clone, Debug)]
pub enum EndOutcome {
    /// The session has ended, by this call or by an earlier identical one.
    Done,
    /// The same, for [`End::Used`]: this is what the session was.
    Claimed(Loaded),
    /// The session has not ended: it does not have the expected version. This is its current state.
    Conflict(Loaded),
    /// The session was not alive.
    Gone,
}

/// How, and under which condition, to [end](super::SessionStore::end) a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// End it for this reason, whatever its version.
    For(EndReason),
    /// A login: end it as replaced by `successor`.
    Replaced {
        /// Only if the session has this version. `None`: whatever its version.
        expected: Option<Version>,
        /// The session that replaces it. The tombstone [names it](Ended::successor).
        successor: SessionId,
    },
    /// A single use: end it, for the first `claim` only, which may be repeated.
    Used {
        /// Identifies the caller.
        claim: Version,
    },
}

impl End {
    /// The reason that the tombstone keeps.
    pub fn reason(&self) -> EndReason {
        match self {
            Self::For(reason) => *reason,
            Self::Replaced { .. } => EndReason::Replaced,
            Self::Used { .. } => EndReason::Used,
        }
    }

    /// The tombstone it leaves.
    pub(crate) fn tombstone(&self, at: Timestamp) -> Ended {
        match self {
            Self::Replaced { successor, .. } => Ended::replaced(*successor, at),
            Self::For(_) | Self::Used { .. } => Ended::new(self.reason(), at),
        }
    }

    /// The version that the session must have.
    pub fn expected(&self) -> Option<Version> {
        match self {
            Self::Replaced { expected, .. } => *expected,
            Self::For(_) | Self::Used { .. } => None,
        }
    }
}

impl From<EndReason> for End {
    fn from(reason: EndReason) -> Self {
        Self::For(reason)
    }
}

/// A position in a scan or in the event log of a store. Only the store that returned it can use it.
///
/// ```
/// use tower_keep::store::Cursor;
///
/// let cursor = Cursor::from("17".to_owned()); // from the link to the next page
/// assert_eq!(cursor.as_str(), "17");
/// assert_eq!(Cursor::start().as_str(), "");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// The beginning of a scan.
    pub const fn start() -> Self {
        Self(String::new())
    }

    /// The cursor as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Cursor {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// One page of a [scan](super::ScanStore::scan).
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The sessions. May be empty although there are more pages.
    pub sessions: Vec<(SessionId, Loaded)>,
    /// Where the next page begins. `None` after the last page.
    pub next: Option<Cursor>,
}

/// Events [read](super::EventStore::events) from a store.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// In the order of publication.
    pub events: Vec<Event>,
    /// Where the next read begins.
    pub next: Cursor,
}
