//! Why sessions end.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{time::Timestamp, token::SessionId};

/// Why a session ended. Stores keep the reason in a tombstone for a while, for the next request of the client.
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
    /// The idle or absolute timeout is over.
    Expired,
    /// A handler ended it: a logout.
    LoggedOut,
    /// It was ended from outside a request.
    Revoked,
    /// It was evicted for a new session, because of a limit.
    Evicted,
    /// A login replaced it with a session of the user.
    Replaced,
    /// It was for a single use, and was [consumed](crate::Sessions::consume).
    Used,
    /// A previous token was reused after its grace window: it was probably copied.
    TokenReused,
    /// The stored record was corrupt, and the layer [ends such sessions](crate::OnCorrupt::Reset).
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

    /// The name in stores, events and metrics.
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

    /// The reason with this name.
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

/// A description for users.
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

/// A tombstone: why and when a session ended.
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
    /// The reason.
    pub reason: EndReason,
    /// The time, by the clock of the store.
    pub at: Timestamp,
    /// The session that replaced it, if the reason is [`Replaced`](EndReason::Replaced).
    pub successor: Option<SessionId>,
}

impl Ended {
    /// Creates a tombstone.
    pub const fn new(reason: EndReason, at: Timestamp) -> Self {
        Self { reason, at, successor: None }
    }

    /// Creates the tombstone of a session that `successor` replaced.
    pub const fn replaced(successor: SessionId, at: Timestamp) -> Self {
        Self { reason: EndReason::Replaced, at, successor: Some(successor) }
    }
}
