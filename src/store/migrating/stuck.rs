//! Why a session cannot be moved.

use crate::store::{error::StoreError, types::Loaded};

/// The maximum number of attempts. A failed attempt is another request's success, and there are three steps.
pub(super) const MAX_ATTEMPTS: usize = 16;

/// Why a session is not in the new store.
pub(super) struct Stuck {
    pub(super) error: StoreError,
    /// The session in old, if it is alive there and new cannot store it.
    pub(super) in_old: Option<Loaded>,
}

impl From<StoreError> for Stuck {
    fn from(error: StoreError) -> Self {
        Self { error, in_old: None }
    }
}

/// Other requests were always faster.
pub(super) fn contended() -> StoreError {
    StoreError::Outage("too many requests move this session concurrently".into())
}
