//! The server of a shared connection.

use std::fmt;
#[cfg(feature = "redis-sentinel")]
use std::sync::Arc;

use redis::{
    Cmd, PushInfo, Value,
    aio::{MultiplexedConnection, SendError},
    cmd,
};
use tracing::Span;

#[cfg(feature = "redis-sentinel")]
use super::sentinel::{Sentinels, is_master, role};
use super::{
    RedisConfig,
    client::{connect, without_pushes},
    config::Address,
    error::Failure,
};

/// The server of a shared connection.
#[derive(Clone)]
pub(super) enum Target {
    Server(Address),
    /// The current master according to Sentinel.
    #[cfg(feature = "redis-sentinel")]
    Master(Arc<Sentinels>),
}

impl Target {
    /// Opens a connection. The caller applies the timeout.
    pub(super) async fn connect(
        &self,
        config: &RedisConfig,
        on_push: impl Fn(PushInfo) -> Result<(), SendError> + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, Failure> {
        let options = without_pushes(config).set_push_sender(on_push);
        match self {
            Self::Server(address) => Ok(connect(config, address, &options).await?),
            #[cfg(feature = "redis-sentinel")]
            Self::Master(sentinels) => sentinels.connect_to_master(config, &options).await,
        }
    }
}

impl Target {
    /// Records the server on the span of an operation, if it never changes.
    pub(super) fn describe(&self, span: &Span) {
        match self {
            Self::Server(Address::Tcp(host, port)) => {
                span.record("server.address", host);
                span.record("server.port", port);
            }
            Self::Server(Address::Unix(path)) => {
                span.record("server.address", tracing::field::display(path.display()));
            }
            #[cfg(feature = "redis-sentinel")]
            Self::Master(_) => {}
        }
    }

    /// The command that checks the connection.
    pub(super) fn ping(&self) -> Cmd {
        match self {
            Self::Server(_) => cmd("PING"),
            #[cfg(feature = "redis-sentinel")]
            Self::Master(_) => role(),
        }
    }

    /// Checks the reply to a ping: any reply of a server, but only that of a master behind Sentinel.
    #[cfg_attr(not(feature = "redis-sentinel"), allow(unused_variables))]
    pub(super) fn check_reply(&self, answer: &Value) -> Result<(), Failure> {
        match (self, answer) {
            #[cfg(feature = "redis-sentinel")]
            (Self::Master(_), Value::Array(_)) => is_master(answer),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(address) => write!(f, "{address}"),
            #[cfg(feature = "redis-sentinel")]
            Self::Master(sentinels) => write!(f, "{sentinels}"),
        }
    }
}
