//! Why the main store was not asked, or not waited for.

use std::{error::Error, fmt, sync::Arc};

use crate::store::StoreError;

#[derive(Debug)]
pub(super) enum Cause {
    /// It is known to be away, for this reason.
    Away(Arc<StoreError>),
    /// So much has begun, changed or ended in the outage as may.
    Full,
    /// It was told to do what must not be done twice, and its answer was lost.
    InDoubt,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away(_) => "the main store is away",
            Self::Full => "no more can be kept until the main store is back",
            Self::InDoubt => "the main store was asked, and its answer was lost",
        })
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Away(cause) => cause.source(),
            Self::Full | Self::InDoubt => None,
        }
    }
}

impl From<Cause> for StoreError {
    fn from(cause: Cause) -> Self {
        Self::Outage(cause.into())
    }
}
