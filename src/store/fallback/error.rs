//! Why an operation fails during an outage.

use std::{error::Error, fmt, sync::Arc};

use crate::store::error::StoreError;

#[derive(Debug)]
pub(super) enum Cause {
    /// The main store is known to be unavailable, for this reason.
    Unavailable(Arc<StoreError>),
    /// The memory for changes is full.
    Full,
    /// The main store may have applied an operation that must not be repeated: there was no reply.
    InDoubt,
    /// The outage has just ended: the operation goes to the main store again. Never returned to a caller.
    Recovered,
}

impl Cause {
    /// Whether an operation failed only because the outage ended.
    pub(super) fn is_recovered(error: &StoreError) -> bool {
        let StoreError::Outage(cause) = error else { return false };
        matches!(cause.downcast_ref(), Some(Self::Recovered))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable(_) => "the main store is unavailable",
            Self::Full => "the memory for changes is full until the main store recovers",
            Self::InDoubt => "the main store did not reply, and may have applied the operation",
            Self::Recovered => "the main store has recovered",
        })
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(cause) => cause.source(),
            Self::Full | Self::InDoubt | Self::Recovered => None,
        }
    }
}

impl From<Cause> for StoreError {
    fn from(cause: Cause) -> Self {
        Self::Outage(cause.into())
    }
}
