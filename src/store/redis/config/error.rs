//! Errors of the configuration.

use std::{fmt, io};

/// An invalid Redis configuration. The error names the setting, and never contains its value.
///
/// ```
/// use tower_keep::store::redis::RedisConfig;
///
/// let error = RedisConfig::from_url("http://user:secret@localhost").unwrap_err();
/// assert_eq!(error.to_string(), "not a Redis URL (redis://[[user]:password@]host[:port][/database])");
/// assert_eq!(error.variable(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{problem}")]
pub struct InvalidRedisConfig {
    pub(super) place: Place,
    pub(super) problem: Problem,
}

/// The source of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Program,
    Variable(&'static str),
    Field(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::store::redis) enum Problem {
    #[error("not a Redis URL (redis://[[user]:password@]host[:port][/database])")]
    Url,
    #[error("not a Redis URL: `/`, `?`, `#` and `%` in a user name or a password must be percent-encoded")]
    Encoding,
    #[error("the URL has a parameter that means nothing here: `db` is the only one")]
    UrlParameter,
    #[error("no Redis is configured: set REDIS_URL")]
    NotConfigured,
    #[error("not a host name")]
    Host,
    #[error("not a port number")]
    Port,
    #[error("not the number of a database")]
    Database,
    #[error("Redis Cluster has only database 0")]
    DatabaseInCluster,
    #[error("a user name without a password")]
    NoPassword,
    #[error("neither true nor false")]
    Boolean,
    #[error("a key prefix has at most 128 bytes and no braces, white space or control characters")]
    Prefix,
    #[error("each key needs at least 32 bytes")]
    Secret,
    #[error("not a list of servers (host:port,host:port)")]
    Nodes,
    #[error("Sentinels without the name of the master")]
    NoMaster,
    #[error("the name of a master without Sentinels")]
    NoSentinels,
    #[error("a login to Sentinels without Sentinels")]
    LoginWithoutSentinels,
    #[error("conflicts with another setting for the Redis address")]
    TwoPlaces,
    #[error("the file cannot be read: {0}")]
    File(io::ErrorKind),
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    #[error("not a certificate in PEM")]
    Certificate,
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    #[error("not the private key of the certificate in PEM")]
    Key,
    #[error("a client certificate without its key")]
    NoKey,
    #[error("a client key without its certificate")]
    NoCertificate,
    #[error("a certificate without TLS (rediss:// or REDIS_TLS)")]
    NoTls,
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    #[error("TLS without a crypto library: enable the feature `aws-lc` or `ring` of tower-keep")]
    NoCrypto,
    #[cfg_attr(all(feature = "redis-tls", feature = "redis-sentinel", feature = "redis-cluster"), allow(dead_code))]
    #[error("needs the feature `{0}` of tower-keep")]
    Feature(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => Ok(()),
            Self::Variable(name) | Self::Field(name) => write!(f, "{name}: "),
        }
    }
}

impl Problem {
    /// The error of a call in the program.
    pub(super) fn here(self) -> InvalidRedisConfig {
        InvalidRedisConfig { place: Place::Program, problem: self }
    }
}

impl InvalidRedisConfig {
    pub(in crate::store::redis) fn not_configured() -> Self {
        Problem::NotConfigured.here()
    }

    /// The name of the environment variable, if the value came from one.
    pub fn variable(&self) -> Option<&'static str> {
        match self.place {
            Place::Variable(name) => Some(name),
            Place::Program | Place::Field(_) => None,
        }
    }
}
