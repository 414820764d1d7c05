//! What a request met when its session was looked up, for those who watch.

use crate::{
    credential::{PresentedCredentials, Transport},
    ended::EndReason,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LookupOutcome {
    Hit,
    Degraded,
    Anonymous,
    Unused,
    Ended(EndReason),
    Superseded,
    Unknown,
    Malformed,
    Foreign,
    Disagreement,
    StoreError,
}

impl LookupOutcome {
    /// The outcome that is known without a lookup.
    pub(super) fn without_lookup(presented: &PresentedCredentials) -> Self {
        match presented {
            PresentedCredentials::Nothing => Self::Anonymous,
            PresentedCredentials::Foreign(Transport::Cookie) | PresentedCredentials::Malformed => Self::Malformed,
            PresentedCredentials::Foreign(Transport::Bearer) => Self::Foreign,
            PresentedCredentials::Disagreement => Self::Disagreement,
            PresentedCredentials::Tokens(..) | PresentedCredentials::Signed(_) => Self::Unused,
        }
    }

    /// The value of the label `outcome`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Degraded => "degraded",
            Self::Anonymous => "anonymous",
            Self::Unused => "unused",
            Self::Ended(EndReason::Expired) => "expired",
            Self::Ended(EndReason::Revoked | EndReason::Evicted) => "revoked",
            Self::Ended(EndReason::TokenReused) => "reused",
            Self::Ended(_) => "ended",
            Self::Superseded => "superseded",
            Self::Unknown => "unknown",
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Disagreement => "disagreement",
            Self::StoreError => "store_error",
        }
    }
}
