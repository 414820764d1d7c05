//! Health of stores.

use std::{error::Error, fmt, sync::Arc};

use crate::error_chain::ErrorChain;

/// Whether a store can serve, and if not, why.
///
/// Causes are for operators and not for clients: they may name servers. They must not contain a password, a token, or a URL with
/// one.
///
/// ```
/// use std::io;
/// use tower_keep::{HealthStatus, store::Health};
///
/// assert_eq!(Health::Up.status(), HealthStatus::Up);
///
/// let full = Health::Degraded("the disk is full".into());
/// assert_eq!((full.status(), full.cause()), (HealthStatus::Degraded, Some("the disk is full")));
///
/// let error = io::Error::from(io::ErrorKind::ConnectionRefused);
/// assert_eq!(Health::down(&error).cause(), Some("connection refused"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Reads and writes work.
    Up,
    /// Reads work and some writes fail, or some servers are down. With the cause.
    Degraded(Arc<str>),
    /// Nothing works. With the cause.
    Down(Arc<str>),
}

impl Health {
    /// [`Degraded`](Self::Degraded) because of an error: its text and those of its [sources](Error::source).
    pub fn degraded(cause: &(dyn Error + 'static)) -> Self {
        Self::Degraded(text(cause))
    }

    /// [`Down`](Self::Down) because of an error: its text and those of its [sources](Error::source).
    pub fn down(cause: &(dyn Error + 'static)) -> Self {
        Self::Down(text(cause))
    }

    /// The status without the cause.
    pub const fn status(&self) -> HealthStatus {
        match self {
            Self::Up => HealthStatus::Up,
            Self::Degraded(_) => HealthStatus::Degraded,
            Self::Down(_) => HealthStatus::Down,
        }
    }

    /// The cause, unless the status is up.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Up => None,
            Self::Degraded(cause) | Self::Down(cause) => Some(cause),
        }
    }
}

fn text(error: &(dyn Error + 'static)) -> Arc<str> {
    ErrorChain(error).to_string().into()
}

/// A [`Health`](crate::store::Health) without its cause, for logs, metrics and decisions.
///
/// ```
/// use tower_keep::HealthStatus;
///
/// assert_eq!(HealthStatus::Degraded.as_str(), "degraded");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Reads and writes work.
    Up,
    /// Reads work and some writes fail, or some servers are down.
    Degraded,
    /// Nothing works.
    Down,
}

impl HealthStatus {
    /// `"up"`, `"degraded"` or `"down"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
