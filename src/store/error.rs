//! Why an operation failed.

use std::{error::Error, fmt};

/// Why a store operation failed.
///
/// The text never contains stored data, a token, or a password. The cause is the [`source`](Error::source).
///
/// ```
/// use std::{error::Error, io};
/// use tower_keep::store::StoreError;
///
/// let error = StoreError::Outage(io::Error::from(io::ErrorKind::ConnectionRefused).into());
/// assert_eq!(error.to_string(), "the session store is unavailable");
/// assert!(error.source().is_some());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store did not reply in time, or cannot serve now. A write may or may not have been applied.
    #[error("the session store is unavailable")]
    Outage(#[source] Box<dyn Error + Send + Sync>),
    /// The value stored under the session's id is not a record.
    #[error("the stored session is corrupt")]
    Corrupt(#[source] Box<dyn Error + Send + Sync>),
    /// The store cannot serve until its configuration changes: a wrong password, a missing permission.
    #[error("the session store rejects this client or its commands")]
    Configuration(#[source] Box<dyn Error + Send + Sync>),
    /// The store does not have this optional ability.
    #[error("the session store does not support {0}")]
    Unsupported(Ability),
}

impl StoreError {
    /// The label of metrics and spans.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Outage(_) => "outage",
            Self::Corrupt(_) => "corrupt",
            Self::Configuration(_) => "configuration",
            Self::Unsupported(_) => "unsupported",
        }
    }
}

/// An optional ability of a store: see [`SessionStore`](super::SessionStore#optional-abilities).
///
/// ```
/// use tower_keep::store::{Ability, StoreError};
///
/// let error = StoreError::Unsupported(Ability::Users);
/// assert_eq!(error.to_string(), "the session store does not support listing and limiting the sessions of a user");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ability {
    /// [`UserStore`](super::UserStore): list, limit and end the sessions of a user.
    Users,
    /// [`ScanStore`](super::ScanStore): scan and count all sessions.
    Scan,
    /// [`ValueStore`](super::ValueStore): keep values (the key-value store).
    Values,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "listing and limiting the sessions of a user",
            Self::Scan => "scanning sessions",
            Self::Values => "values (the key-value store)",
        })
    }
}
