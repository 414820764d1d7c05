//! Sessions in Redis.
//!
//! # Keys
//! A session is one string, `sess:{AAAAAAAAAAAA}:HHHH…`: the prefix, the [slot tag](crate::SessionId::slot_tag) as the hash tag of Redis
//! Cluster, and the rest of the session id. Its value is a [`Record`](super::Record), as JSON unless [configured
//! otherwise](RedisConfig::codec). The key expires with the session.
//! ```text
//! redis-cli GET  'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli PTTL 'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli --scan --pattern 'sess:{*}:*'
//! ```
//! A session that ended leaves a tombstone in its place: `{"end":"revoked","at":1763679600000}`, and perhaps more fields.
//!
//! All sessions of a user have the same slot tag. Two more keys are in the same slot:
//! * `sess:{AAAAAAAAAAAA}` is the index of the user: a sorted set of session ids by expiry. If it is lost, the next write or touch of a
//!   session restores its entry.
//! * `sess:{AAAAAAAAAAAA}:epoch` exists after all sessions of the user were ended. Sessions from before have ended, even if the index
//!   had lost them.
//!
//! Other keys: `sess:kv:…` for [values](crate::KeyValue), `sess:all` with [`max_sessions`](RedisConfig::max_sessions), `sess:events` with
//! [`share_events`](RedisConfig::share_events), and `sess:{health}` for health checks.
//!
//! # Commands
//! | operation | commands | round trips |
//! |---|---|---|
//! | load | `GET` of the epoch, `GET`, `PTTL`; for an unknown id again, with `ZSCORE` of the index | 1; 2 |
//! | create | `SET … NX PX`; for a user `EVALSHA` | 1 |
//! | update, touch, end, list, end all of a user | `EVALSHA` | 1 |
//! | health | `GET`; after a refused write also `EVALSHA` | 1; 2 |
//! | scan | `SCAN`, and a load of each session | 2 per page |
//! | values | `GET`, `SET`, `UNLINK`, `EXISTS`, `PEXPIRE`, `INCRBY`, `SCAN` | 1 |
//!
//! A script costs one more round trip when a server runs it for the first time. With `max_sessions`, writes cost one more. All keys of a
//! call share a cluster slot, except for the page of a scan.
//!
//! # Permissions
//! An ACL user needs these rights and no others, for a service that creates, reads, changes, ends and lists sessions of users (with the
//! [prefix](RedisConfig::prefix) `sess:`):
//! ```text
//! ACL SETUSER app on >password resetchannels ~sess:* -@all +get +pttl +set +pexpire +unlink +time +eval +evalsha
//!   +zadd +zcount +zrange +zrem +zremrangebyscore +zscan +zscore
//! ```
//!
//! | for | also |
//! |---|---|
//! | [scans](crate::Sessions::scan), [counts](crate::Sessions::count), [exports](crate::Sessions::export) | `+scan +getrange` |
//! | [`max_sessions`](RedisConfig::max_sessions) | `+zcard` |
//! | [`share_events`](RedisConfig::share_events) | `+xadd +xrange +xrevrange` |
//! | [`wait_for_replicas`](RedisConfig::wait_for_replicas) | `+wait` |
//! | [`KeyValue`](crate::KeyValue); its `scan` also needs `+scan` | `+exists +incrby` |
//! | a database other than 0 | `+select` |
//! | Cluster | `+cluster\|slots +asking` |
//! | Sentinel | `+role`; and of the Sentinels, if they require a login: `&+switch-master +sentinel\|get-master-addr-by-name +subscribe` |
//! | a pool that tests connections before use, as `bb8` does by default | `+ping` |
//!
//! `PING` may be denied otherwise, because any reply is enough. `CONFIG`, `CLIENT` and keyspace notifications are not needed. A denied command is
//! a configuration error, and makes the health degraded or down.
//!
//! # Cluster
//! One reachable node of a [cluster](RedisConfig::cluster) is enough: it returns the others. There is one connection to each master; replicas are
//! not used. All sessions of a user are in one slot, so all of them end at once. `sess:all` and `sess:events` are
//! single keys, so their node receives all writes for them.
//!
//! | event | effect on sessions |
//! |---|---|
//! | a master dies | its sessions are unavailable until a replica takes over (`cluster-node-timeout` and about a second), and operations fail immediately. Other sessions are served. The health is degraded and names the node |
//! | a master hangs | the same, after two consecutive timeouts |
//! | a slot is being moved | Reads work. Writes wait: Redis answers `TRYAGAIN` to a script whose keys are split between two nodes. If the move takes longer than the [timeout](RedisConfig::timeout), the operation fails and nothing is written |
//! | a slot has moved | the next operation is redirected, and later ones go to the new node directly |
//! | the cluster is down, or a slot has no master | an outage for sessions of that slot |
//!
//! A scan visits one slot range after the other. A range that moves during the scan is scanned again. In a slot that is being moved, a scan may
//! miss a session or return it twice. [Counts](crate::Sessions::count) use scans.
//!
//! # Failovers
//! Redis replicates after it confirms. What a master confirmed just before it died may be lost: a session is then unknown, or as it was a
//! moment before. What this process ended stays ended for [`remember_ended`](RedisConfig::remember_ended), and is ended again when it reappears.
//! For other processes, see [`wait_for_replicas`](RedisConfig::wait_for_replicas). Set `min-replicas-to-write 1`, so that an isolated master
//! accepts no writes, and `maxmemory-policy noeviction` or `volatile-ttl`.

// Route: route.rs chooses the server; shared_connection.rs, cluster.rs and pool.rs have the connections; target.rs, sentinel.rs and
// client.rs open them.
// Data: script.rs has the scripts, keys.rs the names of keys, request.rs a round trip, reply.rs and error.rs parse its result.
// operation.rs, scan.rs, values.rs and global_keys.rs are the operations.

mod client;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod config;
mod error;
mod global_keys;
mod health;
mod inner;
mod keys;
mod local_tombstones;
mod operation;
#[cfg(feature = "redis-pool")]
mod pool;
#[cfg(feature = "redis-pool")]
mod redis_pool;
mod reply;
mod request;
mod route;
mod scan;
mod script;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod shared_connection;
#[cfg(feature = "redis-cluster")]
mod slots;
mod target;
mod values;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::config::{InvalidRedisConfig, RedisConfig, RedisCredentials};
pub(crate) use self::error::status_code;
#[cfg(feature = "redis-pool")]
pub use self::redis_pool::{PooledConnection, RedisPool};
use self::{
    inner::Inner, keys::Prefix, local_tombstones::LocalTombstones, operation::Operation, route::Route, script::Scripts,
};
use super::{
    Version,
    future::StoreFuture,
    health::Health,
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::ValueStore,
};
use crate::{ended::EndReason, event::Event, limits::Limits, time::millis, token::SessionId};

/// Keeps sessions in Redis, for services with any number of instances.
///
/// All requests share one connection, which a task of the store maintains. It is opened at first use, so a program starts without Redis.
/// Every operation ends within the [timeout](RedisConfig::timeout), and fails immediately when Redis is known to be down. Clones share the
/// connection, which is closed when the last clone is dropped.
///
/// It needs a tokio runtime. The connection belongs to the runtime of its first use. If that runtime ends, the next operation connects again
/// on its own runtime.
///
/// ```
/// use tower_keep::{SessionLayer, store::redis::{RedisConfig, RedisStore}};
///
/// let config = RedisConfig::from_url("redis://127.0.0.1:6379/0")?;
/// let layer = SessionLayer::new(RedisStore::new(config));
/// # let _ = layer;
/// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
/// ```
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

/// The maximum number of local tombstones: about 10 MB.
const MAX_LOCAL_TOMBSTONES: usize = 50_000;

impl RedisStore {
    /// Creates a store. Does not connect yet.
    pub fn new(config: RedisConfig) -> Self {
        let local_tombstones = LocalTombstones::new(config.remember_ended, MAX_LOCAL_TOMBSTONES);
        Self::with(config, Scripts::new(true), local_tombstones)
    }

    /// The Redis that the environment names: see [`RedisConfig::from_env`]. Unlike [`store::from_env`](crate::store::from_env), it
    /// never falls back to memory.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] if no variable names a Redis, or one is wrong.
    ///
    /// ```no_run
    /// use tower_keep::{SessionLayer, store::redis::RedisStore};
    ///
    /// let layer = SessionLayer::new(RedisStore::from_env()?);
    /// # let _ = layer;
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    pub fn from_env() -> Result<Self, InvalidRedisConfig> {
        let config = RedisConfig::from_env()?.ok_or(InvalidRedisConfig::not_configured())?;
        Ok(Self::new(config))
    }

    /// Creates a store on a connection pool of the application, with default settings. For other settings, see
    /// [`RedisConfig::from_pool`].
    ///
    /// During an outage a pool tries to connect for every request, until the timeout. Wrap the store in a [`Guard`](crate::store::Guard), which
    /// fails immediately. The connection of [`new`](Self::new) does that by itself.
    ///
    /// ```
    /// use tower_keep::store::{Guard, redis::RedisStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manager = bb8_redis::RedisConnectionManager::new("redis://127.0.0.1:6379/0")?;
    /// let pool = bb8::Pool::builder().build_unchecked(manager);
    /// let store = Guard::new(RedisStore::from_pool(pool));
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis-pool")]
    pub fn from_pool(pool: impl RedisPool + 'static) -> Self {
        Self::new(RedisConfig::from_pool(pool))
    }

    /// A store without checks, for tests that must find violations.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn without_guards(config: RedisConfig) -> Self {
        let local_tombstones = LocalTombstones::new(config.remember_ended, 0);
        Self::with(config, Scripts::new(false), local_tombstones)
    }

    fn with(config: RedisConfig, scripts: Scripts, local_tombstones: LocalTombstones) -> Self {
        let route = Route::new(&config);
        let replica_wait = config.replicas.map(|_| Route::replica_wait(&config));
        Self { inner: Arc::new(Inner { route, replica_wait, config, scripts, local_tombstones }) }
    }
}

impl Inner {
    fn prefix(&self) -> Prefix<'_> {
        Prefix(&self.config.prefix)
    }

    /// How long tombstones are kept, in milliseconds.
    fn tombstone_ttl(&self) -> u64 {
        millis(self.config.remember_ended)
    }

    /// The timeout for the confirmation of replicas, in milliseconds.
    fn replica_timeout(&self) -> u64 {
        millis(self.config.timeout / 2).max(1)
    }

    /// Starts the deadline of an operation.
    fn operation(&self) -> Operation<'_> {
        Operation { inner: self, deadline: Instant::now() + self.config.timeout }
    }
}

impl SessionStore for RedisStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().load(id).await?) })
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().create(id, new, limits).await?) })
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().update(id, expected, new).await?) })
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().touch(id, entry).await?) })
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().end(id, end).await?) })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().health().await) })
    }

    fn name(&self) -> &'static str {
        "redis"
    }

    fn operation_deadline(&self) -> Option<Duration> {
        Some(self.inner.config.timeout)
    }

    fn users(&self) -> Option<&dyn UserStore> {
        Some(self)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        Some(self)
    }

    fn event_log(&self) -> Option<&dyn EventStore> {
        self.inner.config.shared_events.map(|_| self as &dyn EventStore)
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        Some(self)
    }
}

impl UserStore for RedisStore {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().list(user).await?) })
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().end_user(user, except, reason).await?) })
    }
}

impl ScanStore for RedisStore {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().scan(from, count).await?) })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        StoreFuture::boxed(async move {
            let (mut count, mut next) = (0, Some(Cursor::start()));
            while let Some(from) = next {
                let page;
                (page, next) = self.inner.operation().count(&from).await?;
                count += page;
            }
            Ok(count)
        })
    }
}

impl EventStore for RedisStore {
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().publish(event).await?) })
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().events(from).await?) })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (route, prefix) = (&self.inner.route, &self.inner.config.prefix);
        f.debug_struct("RedisStore").field("route", route).field("prefix", prefix).finish()
    }
}
