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
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The store did not reply in time, or cannot serve now. A write may or may not have been applied.
    Outage(Box<dyn Error + Send + Sync>),
    /// The value stored under the session's id is not a record.
    Corrupt(Box<dyn Error + Send + Sync>),
    /// The store cannot serve until its configuration changes: a wrong password, a missing permission.
    Configuration(Box<dyn Error + Send + Sync>),
    /// The store does not have this optional ability.
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

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outage(_) => f.write_str("the session store is unavailable"),
            Self::Corrupt(_) => f.write_str("the stored session is corrupt"),
            Self::Configuration(_) => f.write_str("the session store rejects this client or its commands"),
            Self::Unsupported(ability) => write!(f, "the session store does not support {ability}"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Outage(source) | Self::Corrupt(source) | Self::Configuration(source) => Some(&**source),
            Self::Unsupported(_) => None,
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
    /// [`ValueStore`](super::ValueStore): keep values beside the sessions.
    Values,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "listing and limiting the sessions of a user",
            Self::Scan => "scanning sessions",
            Self::Values => "values beside the sessions",
        })
    }
}
