//! Classifies the errors of the Redis client.

use std::{error::Error, fmt, sync::Arc};

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

#[cfg(feature = "redis-cluster")]
use super::config::Address;
use crate::store::{InvalidRecord, StoreError};

/// A failed operation.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// The consequence for the connection.
    pub(super) verdict: Verdict,
    /// Only writes fail; reads may work.
    pub(super) writes_only: bool,
    /// Nothing was sent.
    pub(super) unsent: bool,
    /// A redirection by a cluster node.
    #[cfg(feature = "redis-cluster")]
    pub(super) advice: Option<Advice>,
}

/// A redirection.
#[cfg(feature = "redis-cluster")]
#[derive(Clone, Debug)]
pub(super) enum Advice {
    /// The slot is on this server.
    Moved(Address),
    /// This request goes to this server.
    Ask(Address),
    /// The slot is being moved: try again later.
    TryAgain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The connection works.
    Working,
    /// A timeout.
    TimedOut,
    /// The connection is lost. Another one may work.
    Lost,
    /// The connection works, but not for this purpose: another one may lead to another server.
    Unusable,
}

impl Failure {
    pub(super) fn new(error: StoreError, verdict: Verdict) -> Self {
        Self {
            error,
            verdict,
            writes_only: false,
            unsent: false,
            #[cfg(feature = "redis-cluster")]
            advice: None,
        }
    }

    /// Marks that nothing was sent.
    pub(super) fn unsent(self) -> Self {
        Self { unsent: true, ..self }
    }

    /// Whether Redis may have applied the request.
    pub(super) fn may_be_applied(&self) -> bool {
        !self.unsent && matches!(self.verdict, Verdict::TimedOut | Verdict::Lost)
    }

    /// Whether the server is unavailable.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn is_unavailable(&self) -> bool {
        !self.writes_only && !matches!(self.error, StoreError::Corrupt(_))
    }

    /// Whether the server does not know the script.
    pub(super) fn is_unknown_script(&self) -> bool {
        match &self.error {
            StoreError::Configuration(source) => {
                source.downcast_ref::<RedisError>().is_some_and(|error| error.code() == Some("NOSCRIPT"))
            }
            _ => false,
        }
    }

    /// No server is the master, or has the slot.
    #[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
    pub(super) fn no_master() -> Self {
        Self::outage(Cause::NoMaster, Verdict::Lost).unsent()
    }

    #[cfg(feature = "redis-sentinel")]
    pub(super) fn unknown_master() -> Self {
        Self::new(StoreError::Configuration(Cause::UnknownMaster.into()), Verdict::Lost)
    }

    pub(super) fn too_few_replicas() -> Self {
        Self { writes_only: true, ..Self::outage(Cause::TooFewReplicas, Verdict::Working) }
    }

    pub(super) fn timeout() -> Self {
        Self::outage(Cause::Timeout, Verdict::TimedOut)
    }

    /// Explains a timeout with TLS: a server without TLS waits for more input.
    #[cfg(feature = "redis-tls")]
    pub(super) fn with_tls(self) -> Self {
        match self.verdict {
            Verdict::TimedOut => Self::outage(Cause::TimeoutOfTls, Verdict::TimedOut),
            _ => self,
        }
    }

    pub(super) fn no_runtime() -> Self {
        Self::outage(Cause::NoRuntime, Verdict::Working)
    }

    /// For requests while Redis is known to be down.
    pub(super) fn known_down(why: Arc<StoreError>) -> Self {
        let error = match *why {
            StoreError::Configuration(_) => StoreError::Configuration(ConnectionFailed(why).into()),
            _ => StoreError::Outage(ConnectionFailed(why).into()),
        };
        Self::new(error, Verdict::Working).unsent()
    }

    pub(super) fn unexpected_reply() -> Self {
        Self::new(StoreError::Corrupt(Cause::UnexpectedReply.into()), Verdict::Working)
    }

    pub(super) fn corrupt(source: InvalidRecord) -> Self {
        Self::new(StoreError::Corrupt(source.into()), Verdict::Working)
    }

    fn outage(source: impl Into<Box<dyn Error + Send + Sync>>, verdict: Verdict) -> Self {
        Self::new(StoreError::Outage(source.into()), verdict)
    }

    fn configuration(source: RedisError, verdict: Verdict) -> Self {
        Self::new(StoreError::Configuration(source.into()), verdict)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        use ServerErrorKind as Server;
        // The error about an unknown command contains its arguments, which may be a password.
        if let Some((known, _)) = error.to_string().split_once(", with args") {
            return Self::new(StoreError::Configuration(Cause::UnknownCommand(known.into()).into()), Verdict::Working);
        }
        match error.kind() {
            // The message of the client would contain the reply.
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::outage(Cause::Garbage, Verdict::Lost),
            ErrorKind::Io if error.is_timeout() => Self::timeout(),
            #[cfg(feature = "redis-tls")]
            ErrorKind::Io if is_about_tls(&error) => Self::configuration(error, Verdict::Lost),
            ErrorKind::Io => Self::outage(error, Verdict::Lost),
            #[cfg(feature = "redis-cluster")]
            ErrorKind::Server(Server::Moved | Server::Ask | Server::TryAgain) => {
                let address = error.redirect_node().and_then(|(address, _)| address.parse().ok());
                let advice = match (error.kind(), address) {
                    (ErrorKind::Server(Server::Moved), Some(address)) => Some(Advice::Moved(address)),
                    (ErrorKind::Server(Server::Ask), Some(address)) => Some(Advice::Ask(address)),
                    (ErrorKind::Server(Server::TryAgain), _) => Some(Advice::TryAgain),
                    _ => None,
                };
                let failure = match advice {
                    Some(Advice::TryAgain) => Self::outage(error, Verdict::Working),
                    _ => Self::configuration(error, Verdict::Working),
                };
                Self { advice, ..failure }
            }
            #[cfg(not(feature = "redis-cluster"))]
            ErrorKind::Server(Server::TryAgain) => Self::outage(error, Verdict::Working),
            ErrorKind::AuthenticationFailed => Self::configuration(error, Verdict::Unusable),
            _ => match code_in_script(&error).or(error.code()) {
                // Reads work.
                Some("OOM" | "MISCONF" | "NOREPLICAS") => {
                    Self { writes_only: true, ..Self::outage(error, Verdict::Working) }
                }
                Some("READONLY") => Self { writes_only: true, ..Self::outage(error, Verdict::Unusable) },
                Some("NOPERM") => Self { writes_only: true, ..Self::configuration(error, Verdict::Working) },
                Some("LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY" | "UNKILLABLE") => {
                    Self::outage(error, Verdict::Working)
                }
                Some("NOAUTH" | "WRONGPASS") => Self::configuration(error, Verdict::Unusable),
                Some("WRONGTYPE") => Self::new(StoreError::Corrupt(error.into()), Verdict::Working),
                Some("ERR") if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => {
                    Self::outage(error, Verdict::Lost)
                }
                // A script about the sessions of a user, of which some have already moved to another node.
                #[cfg(feature = "redis-cluster")]
                Some("ERR") if error.detail().is_some_and(|detail| detail.contains("a non local key in a cluster")) => {
                    Self { advice: Some(Advice::TryAgain), ..Self::outage(error, Verdict::Working) }
                }
                Some("ERR") if error.detail().is_some_and(is_denied_in_script) => {
                    Self { writes_only: true, ..Self::configuration(error, Verdict::Working) }
                }
                _ => Self::configuration(error, Verdict::Working),
            },
        }
    }
}

/// The value, or the error in the reply of the server.
pub(super) fn reply(value: Value) -> Result<Value, RedisError> {
    match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

/// Whether the TLS handshake failed.
#[cfg(feature = "redis-tls")]
fn is_about_tls(error: &RedisError) -> bool {
    // The client has the I/O error behind two pointers, and the TLS error is its inner error, not its source.
    error
        .source()
        .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>())
        .and_then(|shared| shared.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The Redis error code, if there is one: `OOM`, `READONLY`.
pub(crate) fn status_code(error: &StoreError) -> Option<&str> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<RedisError>() {
            return code_in_script(error).or(error.code());
        }
        cause = error.source();
    }
    None
}

/// The error code of a command in a script, which servers before Redis 7 wrap:
/// `ERR Error running script (call to f_…): @user_script:7: @user_script: 7: -OOM command not allowed …`
fn code_in_script(error: &RedisError) -> Option<&str> {
    let detail = error.detail().filter(|detail| detail.starts_with("Error running script"))?;
    let (_, message) = detail.rsplit_once("@user_script:")?;
    let (_, message) = message.split_once(": ")?;
    let code = message.trim_start_matches('-').split(' ').next()?;
    code.bytes().all(|byte| byte.is_ascii_uppercase()).then_some(code)
}

/// Whether this is `NOPERM` in a script. The second text is that of Redis up to 7.0.
fn is_denied_in_script(detail: &str) -> bool {
    detail.contains("ACL failure in script") || detail.contains("The user executing the script can't")
}

/// The cause of the last failed connection attempt.
#[derive(Debug)]
struct ConnectionFailed(Arc<StoreError>);

impl fmt::Display for ConnectionFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no connection to Redis")
    }
}

impl Error for ConnectionFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Causes that are not errors of the client.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("no reply from Redis in time")]
    Timeout,
    #[cfg(feature = "redis-tls")]
    #[error("no reply from Redis in time: it may not use TLS on this port")]
    TimeoutOfTls,
    #[error("no tokio runtime to connect to Redis")]
    NoRuntime,
    #[error("the reply does not follow the Redis protocol")]
    Garbage,
    #[error("unexpected reply from Redis")]
    UnexpectedReply,
    #[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
    #[error("no master is known")]
    NoMaster,
    #[cfg(feature = "redis-sentinel")]
    #[error("no Sentinel knows a master of this name")]
    UnknownMaster,
    #[error("too few replicas confirmed the write in time")]
    TooFewReplicas,
    /// The error message without the arguments.
    #[error("{0}")]
    UnknownCommand(String),
}
