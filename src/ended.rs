//! Why a session ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{time::Timestamp, token::SessionId};

/// Why a session ended. Stores remember it for a while, so that the next request can be told.
///
/// ```
/// use tower_keep::EndReason;
///
/// assert_eq!(EndReason::Evicted.to_string(), "signed in elsewhere");
/// assert_eq!(EndReason::Evicted.as_str(), "evicted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndReason {
    /// Nobody used it for longer than its idle timeout, or its absolute timeout is over.
    Expired,
    /// The handler of one of its own requests ended it: a logout.
    LoggedOut,
    /// Somebody ended it from outside.
    Revoked,
    /// It made room for another session of its user, or of the store.
    Evicted,
    /// A login carries on what it held, in a session of the user.
    Replaced,
    /// It was for a single use, and has been [consumed](crate::Sessions::consume).
    Used,
    /// A token that had been rotated away long before was presented once more: somebody has a copy.
    TokenReused,
    /// What the store held was not a record, and [the layer was told](crate::OnCorrupt) to give it up.
    Corrupt,
}

impl EndReason {
    pub(crate) const ALL: [Self; 8] = [
        Self::Expired,
        Self::LoggedOut,
        Self::Revoked,
        Self::Evicted,
        Self::Replaced,
        Self::Used,
        Self::TokenReused,
        Self::Corrupt,
    ];

    /// One word, for machines: as in what stores keep, events, and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::LoggedOut => "logged_out",
            Self::Revoked => "revoked",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::Used => "used",
            Self::TokenReused => "token_reused",
            Self::Corrupt => "corrupt",
        }
    }

    /// The reason of this name.
    ///
    /// ```
    /// use tower_keep::EndReason;
    ///
    /// assert_eq!(EndReason::from_name("revoked"), Some(EndReason::Revoked));
    /// assert_eq!(EndReason::from_name("boredom"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// In words that can be shown to the user.
impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::LoggedOut => "signed out",
            Self::Revoked => "revoked",
            Self::Evicted => "signed in elsewhere",
            Self::Replaced => "signed in",
            Self::Used => "used already",
            Self::TokenReused => "ended because its token was used twice",
            Self::Corrupt => "unreadable",
        })
    }
}

/// That a session ended, why, and when.
///
/// ```
/// use tower_keep::{EndReason, Ended, Timestamp};
///
/// let ended = Ended::new(EndReason::Revoked, Timestamp::from_millis(1_763_679_600_000));
/// assert_eq!(ended.reason.as_str(), "revoked");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// When, by the clock of the store.
    pub at: Timestamp,
    /// The session that carries it on, if it was [`Replaced`](EndReason::Replaced).
    pub successor: Option<SessionId>,
}

impl Ended {
    /// That it ended at `at`.
    pub const fn new(reason: EndReason, at: Timestamp) -> Self {
        Self { reason, at, successor: None }
    }

    /// That it was replaced by `successor` at `at`.
    pub const fn replaced(successor: SessionId, at: Timestamp) -> Self {
        Self { reason: EndReason::Replaced, at, successor: Some(successor) }
    }
}
