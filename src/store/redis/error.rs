//! What an error of the Redis client means for a session.

use std::{error::Error, fmt, sync::Arc};

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::{InvalidRecord, StoreError};

/// A failed operation.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// What it says about the connection it happened on.
    pub(super) verdict: Verdict,
    /// If it was a write that failed, reads may be served all the same.
    pub(super) writes_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The connection is as good as before.
    Sound,
    /// No answer came in time: one more, and the server counts as hung.
    Silent,
    /// The connection is lost, and with it what was under way; another may work at once.
    Lost,
    /// The connection works, and is of no use: another may lead to a server that is.
    Useless,
}

impl Failure {
    pub(super) fn new(error: StoreError, verdict: Verdict) -> Self {
        Self { error, verdict, writes_only: false }
    }

    pub(super) fn timeout() -> Self {
        Self::outage(Cause::Timeout, Verdict::Silent)
    }

    pub(super) fn no_runtime() -> Self {
        Self::outage(Cause::NoRuntime, Verdict::Sound)
    }

    /// For everybody who comes while Redis is known to be down.
    pub(super) fn known_down(why: Arc<StoreError>) -> Self {
        let error = match *why {
            StoreError::Configuration(_) => StoreError::Configuration(Known(why).into()),
            _ => StoreError::Outage(Known(why).into()),
        };
        Self::new(error, Verdict::Sound)
    }

    pub(super) fn unexpected_reply() -> Self {
        Self::new(StoreError::Corrupt(Cause::UnexpectedReply.into()), Verdict::Sound)
    }

    pub(super) fn corrupt(source: InvalidRecord) -> Self {
        Self::new(StoreError::Corrupt(source.into()), Verdict::Sound)
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
        // A server that does not know a command repeats what came with it: a password, when that was to log in.
        if let Some((known, _)) = error.to_string().split_once(", with args") {
            return Self::new(StoreError::Configuration(Cause::Unknown(known.into()).into()), Verdict::Sound);
        }
        match error.kind() {
            // The client's text would show the reply.
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::outage(Cause::Garbage, Verdict::Lost),
            ErrorKind::Io if error.is_timeout() => Self::timeout(),
            ErrorKind::Io => Self::outage(error, Verdict::Lost),
            ErrorKind::Server(Server::BusyLoading | Server::TryAgain | Server::ClusterDown | Server::MasterDown) => {
                Self::outage(error, Verdict::Sound)
            }
            ErrorKind::Server(Server::ReadOnly) => Self { writes_only: true, ..Self::outage(error, Verdict::Useless) },
            ErrorKind::Server(Server::NoPerm) => {
                Self { writes_only: true, ..Self::configuration(error, Verdict::Sound) }
            }
            ErrorKind::AuthenticationFailed => Self::configuration(error, Verdict::Useless),
            _ => match error.code() {
                // Reads are served.
                Some("OOM" | "MISCONF" | "NOREPLICAS") => {
                    Self { writes_only: true, ..Self::outage(error, Verdict::Sound) }
                }
                Some("BUSY" | "UNKILLABLE") => Self::outage(error, Verdict::Sound),
                Some("NOAUTH" | "WRONGPASS") => Self::configuration(error, Verdict::Useless),
                Some("WRONGTYPE") => Self::new(StoreError::Corrupt(error.into()), Verdict::Sound),
                Some("ERR") if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => {
                    Self::outage(error, Verdict::Lost)
                }
                Some("ERR") if error.detail().is_some_and(is_denied_in_script) => {
                    Self { writes_only: true, ..Self::configuration(error, Verdict::Sound) }
                }
                _ => Self::configuration(error, Verdict::Sound),
            },
        }
    }
}

/// What is `NOPERM` outside a script. The second is what Redis says up to 7.0.
fn is_denied_in_script(detail: &str) -> bool {
    detail.starts_with("ACL failure in script") || detail.starts_with("The user executing the script can't")
}

/// What the last attempt to connect met, shared by all that fail because of it.
#[derive(Debug)]
struct Known(Arc<StoreError>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no connection to Redis")
    }
}

impl Error for Known {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Causes that are no error of the client.
#[derive(Debug)]
enum Cause {
    Timeout,
    NoRuntime,
    Garbage,
    UnexpectedReply,
    /// What Redis said, up to what it was told.
    Unknown(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer from Redis in time",
            Self::NoRuntime => "there is no tokio runtime to connect to Redis on",
            Self::Garbage => "what Redis answered is not of its protocol",
            Self::UnexpectedReply => "Redis answered what the command never answers",
            Self::Unknown(said) => said,
        })
    }
}

impl Error for Cause {}
