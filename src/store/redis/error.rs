//! What an error of the Redis client means for a session.

use std::{error::Error, fmt, sync::Arc};

use redis::{ErrorKind, RedisError, ServerErrorKind};

#[cfg(feature = "redis-cluster")]
use super::config::Address;
use crate::store::{InvalidRecord, StoreError};

/// A failed operation.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// What it says about the connection it happened on.
    pub(super) verdict: Verdict,
    /// If it was a write that failed, reads may be served all the same.
    pub(super) writes_only: bool,
    /// Redis was not told at all.
    pub(super) unsent: bool,
    /// What a node of a cluster advises to do.
    #[cfg(feature = "redis-cluster")]
    pub(super) advice: Option<Advice>,
}

/// Where else to ask.
#[cfg(feature = "redis-cluster")]
#[derive(Clone, Debug)]
pub(super) enum Advice {
    /// That server, from now on.
    Moved(Address),
    /// That server, this once.
    Ask(Address),
    /// The same, a little later.
    TryAgain,
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
        Self {
            error,
            verdict,
            writes_only: false,
            unsent: false,
            #[cfg(feature = "redis-cluster")]
            advice: None,
        }
    }

    /// The same, before anything was sent.
    pub(super) fn unsent(self) -> Self {
        Self { unsent: true, ..self }
    }

    /// Whether Redis was told, and has not said what it did.
    pub(super) fn may_be_done(&self) -> bool {
        !self.unsent && matches!(self.verdict, Verdict::Silent | Verdict::Lost)
    }

    /// Whether it did not reach a server that serves.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn is_away(&self) -> bool {
        !self.writes_only && !matches!(self.error, StoreError::Corrupt(_))
    }

    /// Whether the server has not seen the script yet.
    pub(super) fn is_unknown_script(&self) -> bool {
        match &self.error {
            StoreError::Configuration(source) => {
                source.downcast_ref::<RedisError>().is_some_and(|error| error.code() == Some("NOSCRIPT"))
            }
            _ => false,
        }
    }

    /// No server calls itself the master, or has the slot.
    #[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
    pub(super) fn no_master() -> Self {
        Self::outage(Cause::NoMaster, Verdict::Lost).unsent()
    }

    #[cfg(feature = "redis-sentinel")]
    pub(super) fn unknown_master() -> Self {
        Self::new(StoreError::Configuration(Cause::UnknownMaster.into()), Verdict::Lost)
    }

    pub(super) fn too_few_replicas() -> Self {
        Self { writes_only: true, ..Self::outage(Cause::TooFewReplicas, Verdict::Sound) }
    }

    pub(super) fn timeout() -> Self {
        Self::outage(Cause::Timeout, Verdict::Silent)
    }

    /// The same, of an attempt to connect with TLS: a server that does not speak it waits for the rest of what it does not
    /// understand.
    #[cfg(feature = "redis-tls")]
    pub(super) fn with_tls(self) -> Self {
        match self.verdict {
            Verdict::Silent => Self::outage(Cause::TimeoutOfTls, Verdict::Silent),
            _ => self,
        }
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
        Self::new(error, Verdict::Sound).unsent()
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
            return Self::new(StoreError::Configuration(Cause::UnknownCommand(known.into()).into()), Verdict::Sound);
        }
        match error.kind() {
            // The client's text would show the reply.
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
                    Some(Advice::TryAgain) => Self::outage(error, Verdict::Sound),
                    _ => Self::configuration(error, Verdict::Sound),
                };
                Self { advice, ..failure }
            }
            #[cfg(not(feature = "redis-cluster"))]
            ErrorKind::Server(Server::TryAgain) => Self::outage(error, Verdict::Sound),
            ErrorKind::AuthenticationFailed => Self::configuration(error, Verdict::Useless),
            _ => match code_in_script(&error).or(error.code()) {
                // Reads are served.
                Some("OOM" | "MISCONF" | "NOREPLICAS") => {
                    Self { writes_only: true, ..Self::outage(error, Verdict::Sound) }
                }
                Some("READONLY") => Self { writes_only: true, ..Self::outage(error, Verdict::Useless) },
                Some("NOPERM") => Self { writes_only: true, ..Self::configuration(error, Verdict::Sound) },
                Some("LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY" | "UNKILLABLE") => {
                    Self::outage(error, Verdict::Sound)
                }
                Some("NOAUTH" | "WRONGPASS") => Self::configuration(error, Verdict::Useless),
                Some("WRONGTYPE") => Self::new(StoreError::Corrupt(error.into()), Verdict::Sound),
                Some("ERR") if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => {
                    Self::outage(error, Verdict::Lost)
                }
                // A script that looks at the sessions of a user, some of which have gone ahead to another node.
                #[cfg(feature = "redis-cluster")]
                Some("ERR") if error.detail().is_some_and(|detail| detail.contains("a non local key in a cluster")) => {
                    Self { advice: Some(Advice::TryAgain), ..Self::outage(error, Verdict::Sound) }
                }
                Some("ERR") if error.detail().is_some_and(is_denied_in_script) => {
                    Self { writes_only: true, ..Self::configuration(error, Verdict::Sound) }
                }
                _ => Self::configuration(error, Verdict::Sound),
            },
        }
    }
}

/// Whether the two sides do not come to terms on TLS: one does not accept the certificate of the other, or does not speak it.
#[cfg(feature = "redis-tls")]
fn is_about_tls(error: &RedisError) -> bool {
    // The client keeps the error of the socket behind two pointers, and that the one of TLS as its inner error, not as its source.
    error
        .source()
        .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>())
        .and_then(|shared| shared.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The code by which Redis refused, if it did: `OOM`, `READONLY`.
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

/// The code of what went wrong within a script, as servers before Redis 7 wrap it:
/// `ERR Error running script (call to f_…): @user_script:7: @user_script: 7: -OOM command not allowed …`
fn code_in_script(error: &RedisError) -> Option<&str> {
    let detail = error.detail().filter(|detail| detail.starts_with("Error running script"))?;
    let (_, said) = detail.rsplit_once("@user_script:")?;
    let (_, said) = said.split_once(": ")?;
    let code = said.trim_start_matches('-').split(' ').next()?;
    code.bytes().all(|byte| byte.is_ascii_uppercase()).then_some(code)
}

/// What is `NOPERM` outside a script. The second is what Redis says up to 7.0.
fn is_denied_in_script(detail: &str) -> bool {
    detail.contains("ACL failure in script") || detail.contains("The user executing the script can't")
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

/// ErrorChain that are no error of the client.
#[derive(Debug)]
enum Cause {
    Timeout,
    #[cfg(feature = "redis-tls")]
    TimeoutOfTls,
    NoRuntime,
    Garbage,
    UnexpectedReply,
    #[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
    NoMaster,
    #[cfg(feature = "redis-sentinel")]
    UnknownMaster,
    TooFewReplicas,
    /// What Redis said, up to what it was told.
    UnknownCommand(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer from Redis in time",
            #[cfg(feature = "redis-tls")]
            Self::TimeoutOfTls => "no answer from Redis in time: it may not speak TLS at this port",
            Self::NoRuntime => "there is no tokio runtime to connect to Redis on",
            Self::Garbage => "what Redis answered is not of its protocol",
            Self::UnexpectedReply => "Redis answered what the command never answers",
            #[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
            Self::NoMaster => "there is no master right now",
            #[cfg(feature = "redis-sentinel")]
            Self::UnknownMaster => "no Sentinel knows a master of this name",
            Self::TooFewReplicas => "too few replicas have confirmed it in time",
            Self::UnknownCommand(said) => said,
        })
    }
}

impl Error for Cause {}
