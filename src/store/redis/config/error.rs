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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::redis) enum Problem {
    Url,
    Host,
    Port,
    Database,
    DatabaseInCluster,
    NoPassword,
    Boolean,
    Prefix,
    Secret,
    Nodes,
    NoMaster,
    NoSentinels,
    LoginWithoutSentinels,
    TwoPlaces,
    File(io::ErrorKind),
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    Certificate,
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    Key,
    NoKey,
    NoCertificate,
    NoTls,
    #[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
    NoCrypto,
    #[cfg_attr(all(feature = "redis-tls", feature = "redis-sentinel", feature = "redis-cluster"), allow(dead_code))]
    Feature(&'static str),
}

impl Problem {
    /// The error of a call in the program.
    pub(super) fn here(self) -> InvalidRedisConfig {
        InvalidRedisConfig { place: Place::Program, problem: self }
    }
}

impl InvalidRedisConfig {
    /// The name of the environment variable, if the value came from one.
    pub fn variable(&self) -> Option<&'static str> {
        match self.place {
            Place::Variable(name) => Some(name),
            Place::Program | Place::Field(_) => None,
        }
    }
}

impl fmt::Display for InvalidRedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Place::Variable(name) | Place::Field(name) = self.place {
            write!(f, "{name}: ")?;
        }
        f.write_str(match self.problem {
            Problem::Url => "not a Redis URL (redis://[[user]:password@]host[:port][/database])",
            Problem::Host => "not a host name",
            Problem::Port => "not a port number",
            Problem::Database => "not the number of a database",
            Problem::DatabaseInCluster => "Redis Cluster has only database 0",
            Problem::NoPassword => "a user name without a password",
            Problem::Boolean => "neither true nor false",
            Problem::Secret => "each key needs at least 32 bytes",
            Problem::Prefix => "a key prefix has at most 128 bytes and no braces, white space or control characters",
            Problem::Nodes => "not a list of servers (host:port,host:port)",
            Problem::NoMaster => "Sentinels without the name of the master",
            Problem::NoSentinels => "the name of a master without Sentinels",
            Problem::LoginWithoutSentinels => "a login to Sentinels without Sentinels",
            Problem::TwoPlaces => "conflicts with another setting for the address of Redis",
            Problem::Certificate => "not a certificate in PEM",
            Problem::Key => "not the private key of the certificate in PEM",
            Problem::NoKey => "a client certificate without its key",
            Problem::NoCertificate => "a client key without its certificate",
            Problem::NoTls => "a certificate without TLS (rediss:// or REDIS_TLS)",
            Problem::NoCrypto => "TLS without a crypto library: enable the feature `aws-lc` or `ring` of tower-keep",
            Problem::File(kind) => return write!(f, "the file cannot be read: {kind}"),
            Problem::Feature(name) => return write!(f, "needs the feature `{name}` of tower-keep"),
        })
    }
}

impl std::error::Error for InvalidRedisConfig {}
