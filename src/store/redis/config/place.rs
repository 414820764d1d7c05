//! The addresses of the servers.

#[cfg(feature = "redis-pool")]
use std::sync::Arc;
use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use super::error::Problem;
#[cfg(feature = "redis-pool")]
use crate::store::redis::redis_pool::RedisPool;

/// The servers.
#[derive(Clone)]
pub(in crate::store::redis) enum Servers {
    One(Address),
    #[cfg(feature = "redis-sentinel")]
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
        /// The login to the Sentinels.
        login: RedisConnectionInfo,
    },
    #[cfg(feature = "redis-cluster")]
    Cluster(Vec<Address>),
    #[cfg(feature = "redis-pool")]
    Pool(Arc<dyn RedisPool>),
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::store::redis) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Address {
    pub(in crate::store::redis) fn tcp(host: &str, port: u16) -> Result<Self, Problem> {
        if is_host(host) { Ok(Self::Tcp(unbracketed(host).to_owned(), port)) } else { Err(Problem::Host) }
    }
}

/// `host:port`
impl FromStr for Address {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (host, port) = text.rsplit_once(':').ok_or(Problem::Nodes)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(Problem::Nodes)?;
        // An IPv6 address without brackets contains colons.
        if host.contains(':') && !host.starts_with('[') {
            return Err(Problem::Nodes);
        }
        Self::tcp(host, port).map_err(|_| Problem::Nodes)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address) => write!(f, "{address}"),
            #[cfg(feature = "redis-sentinel")]
            Self::Sentinel { sentinels, master, .. } => write!(f, "{master} of {}", List(sentinels)),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(nodes) => write!(f, "{}", List(nodes)),
            #[cfg(feature = "redis-pool")]
            Self::Pool(_) => f.write_str("a pool"),
        }
    }
}

#[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
struct List<'a>(&'a [Address]);

#[cfg(any(feature = "redis-sentinel", feature = "redis-cluster"))]
impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, address) in self.0.iter().enumerate() {
            write!(f, "{}{address}", if place > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Parses a URL: the address, the login, and whether it enables TLS. No part of it is ignored.
pub(super) fn of_url(url: &str) -> Result<(Address, RedisConnectionInfo, bool), Problem> {
    let (scheme, rest) = url.split_once("://").ok_or(Problem::Url)?;
    let (is_unix, tls) = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => (false, false),
        "rediss" | "valkeys" => (false, true),
        "redis+unix" | "valkey+unix" | "unix" => (true, false),
        _ => return Err(Problem::Url),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // The client would ignore a fragment. Without encoding, it is often a part of the password.
    if rest.contains('#') || !is_unix && rest.contains('@') && !authority.contains('@') {
        return Err(Problem::Encoding);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let database = database_in(query, is_unix)?;
    let plain = if is_unix { format!("redis+unix://{rest}") } else { format!("redis://{place}") };
    // The error of the client may contain the URL.
    let info: ConnectionInfo = plain.into_connection_info().map_err(|_| Problem::Url)?;
    let mut login = info.redis_settings().clone();
    if let Some(database) = database.filter(|_| !is_unix) {
        // Two databases contradict each other.
        if place.trim_end_matches('/').contains('/') {
            return Err(Problem::Url);
        }
        login = login.set_db(database);
    }
    if login.db() < 0 {
        return Err(Problem::Url);
    }
    // Otherwise the client would log in as the default user.
    if login.username().is_some() && login.password().is_none_or(str::is_empty) {
        return Err(Problem::NoPassword);
    }
    let address = match info.addr() {
        ConnectionAddr::Tcp(_, 0) => return Err(Problem::Port),
        ConnectionAddr::Tcp(host, port) => Address::tcp(host, *port).map_err(|_| Problem::Url)?,
        ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
        _ => return Err(Problem::Url),
    };
    Ok((address, login, tls))
}

/// The database in a query. Other parameters are errors, except the login of a Unix socket.
fn database_in(query: &str, is_unix: bool) -> Result<Option<i64>, Problem> {
    let mut database = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "db" if database.is_none() => database = Some(value.parse().map_err(|_| Problem::Database)?),
            "user" | "pass" if is_unix => {}
            _ => return Err(Problem::UrlParameter),
        }
    }
    Ok(database)
}

/// A host name or an IP address. IPv6 with or without brackets.
fn is_host(host: &str) -> bool {
    let address = unbracketed(host);
    if address.contains(':') {
        return address.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// An IPv6 address without the brackets of URLs.
fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}
