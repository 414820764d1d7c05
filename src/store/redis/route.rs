//! Routes a request to the server, the master, the node that has the slot, or the pool.

use std::fmt;
#[cfg(feature = "redis-sentinel")]
use std::sync::Arc;

use redis::{Pipeline, Value};
use tokio::time::Instant;

#[cfg(feature = "redis-cluster")]
use super::cluster::Cluster;
#[cfg(feature = "redis-pool")]
use super::pool::Pooled;
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;
use super::{
    RedisConfig, config::Servers, error::Failure, health::Check, reply::page, request::Request,
    shared_connection::SharedConnection, target::Target,
};
use crate::store::{Health, span};

/// Where the requests of a store go.
pub(super) enum Route {
    One(SharedConnection),
    #[cfg(feature = "redis-cluster")]
    Cluster(Cluster),
    #[cfg(feature = "redis-pool")]
    Pool(Pooled),
}

impl Route {
    pub(super) fn new(config: &RedisConfig) -> Self {
        let config = config.clone();
        match config.servers.clone() {
            Servers::One(address) => Self::One(SharedConnection::new(Target::Server(address), config)),
            #[cfg(feature = "redis-sentinel")]
            Servers::Sentinel { sentinels, master, login } => {
                let sentinels = Arc::new(Sentinels::new(sentinels, master, login));
                Self::One(SharedConnection::new(Target::Master(sentinels), config))
            }
            #[cfg(feature = "redis-cluster")]
            Servers::Cluster(nodes) => Self::Cluster(Cluster::new(nodes, config)),
            #[cfg(feature = "redis-pool")]
            Servers::Pool(pool) => Self::Pool(Pooled::new(pool)),
        }
    }

    /// Separate connections for writes that wait for replicas, because `WAIT` blocks its connection.
    pub(super) fn replica_wait(config: &RedisConfig) -> Self {
        match &config.servers {
            #[cfg(feature = "redis-pool")]
            Servers::Pool(pool) => Self::Pool(Pooled::dedicated(pool.clone())),
            _ => Self::new(config),
        }
    }

    /// Sends `request` to the server of `key`, until `deadline`.
    #[cfg_attr(not(feature = "redis-cluster"), allow(unused_variables))]
    pub(super) async fn call(&self, key: &str, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        if let Some(span) = span::current() {
            request.describe(&span);
        }
        match self {
            Self::One(link) => link.call(request, deadline).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.call(key, request, deadline).await,
            #[cfg(feature = "redis-pool")]
            Self::Pool(pool) => pool.call(request, deadline).await,
        }
    }

    /// The indices of the keys, grouped by server as far as it is known.
    pub(super) fn by_server(&self, keys: &[String]) -> Vec<Vec<usize>> {
        match self {
            _ if keys.is_empty() => Vec::new(),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.by_master(keys),
            _ => vec![(0..keys.len()).collect()],
        }
    }

    /// A page of keys, and the next cursor. `scan` creates the command for the cursor of a server.
    pub(super) async fn scan(
        &self,
        from: &str,
        scan: impl Fn(&str) -> Pipeline,
        deadline: Instant,
    ) -> Result<(Vec<Value>, Option<String>), Failure> {
        #[cfg(feature = "redis-cluster")]
        if let Self::Cluster(cluster) = self {
            return cluster.scan(from, scan, deadline).await;
        }
        let from = if from.is_empty() { "0" } else { from };
        let (next, keys) = page(self.call("", Request::read(&scan(from)), deadline).await?)?;
        Ok((keys, next))
    }

    pub(super) async fn health(&self, check: &Check, deadline: Instant) -> Health {
        match self {
            Self::One(link) => check.of(link, deadline).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.health(check, deadline).await,
            #[cfg(feature = "redis-pool")]
            Self::Pool(pool) => check.of(pool, deadline).await,
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(link) => link.fmt(f),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.fmt(f),
            #[cfg(feature = "redis-pool")]
            Self::Pool(pool) => pool.fmt(f),
        }
    }
}
