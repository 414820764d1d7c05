//! What a request met when its session was looked up, for those who watch.

use crate::{
    credential::{Presented, Transport},
    ended::EndReason,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
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

impl Met {
    /// What shows without a look-up.
    pub(super) fn without_looking(presented: &Presented) -> Self {
        match presented {
            Presented::Nothing => Self::Anonymous,
            Presented::Foreign(Transport::Cookie) | Presented::Malformed => Self::Malformed,
            Presented::Foreign(Transport::Bearer) => Self::Foreign,
            Presented::Disagreement => Self::Disagreement,
            Presented::Tokens(..) | Presented::Signed(_) => Self::Unused,
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
