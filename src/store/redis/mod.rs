//! Sessions in Redis.
//!
//! * `config/` — where Redis is, and how long to wait for it;
//! * `route.rs` — who gets a request: `link.rs`, a connection that all requests share, and who keeps it alive; `cluster.rs`, one for each
//!   node; `pool.rs`, those of somebody else;
//! * `connect.rs` — how a connection is made; `sentinel.rs`, to whom, where that changes;
//! * `request.rs` — what goes to Redis in one round trip;
//! * `script.rs` — the operations that Redis must check before it makes them;
//! * `keys.rs`, `reply.rs` — what things are called there, and what it answers;
//! * `shared.rs` — what concerns all sessions at once: their number, and events;
//! * `values.rs` — values beside the sessions;
//! * `error.rs` — what an error of the client means; `health.rs`, how Redis does;
//! * `ended_here.rs` — what this process has ended, in case Redis forgets;
//! * this file — the store.
//!
//! # In Redis
//! A session is one string, `sess:{AAAAAAAAAAAA}:HHHH…`: the prefix, the [slot tag](crate::SessionId::slot_tag) in braces
//! (the hash tag of Redis Cluster), and the rest of the session id. Its value is a [`Record`](super::Record), as JSON unless
//! [told otherwise](RedisConfig::codec), and its time to live is the session's. So with the id of a log line, or of nobody in
//! particular:
//! ```text
//! redis-cli GET  'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli PTTL 'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli --scan --pattern 'sess:{*}:*'
//! ```
//! A session that ended leaves `{"end":"revoked","at":1763679600000,"by":"5f3a"}` in its place for a while: why it ended, which call ended it (`"by"`), which session
//! carries it on if one does (`"to"`), and a guard against whatever would bring it back.
//!
//! All sessions of a user have the same slot tag, and beside them, in the same slot, there are
//! * `sess:{AAAAAAAAAAAA}`, the index: a sorted set of their ids, by when they expire. For listing and limits; it is pruned with
//!   every write, and mended by the next write or touch of a session if it was lost;
//! * `sess:{AAAAAAAAAAAA}:epoch`, once all sessions of the user were ended: when that was. Sessions from before are dead, whether the
//!   index knew of them or not.
//!
//! A value of a [`KeyValue`](crate::KeyValue) is a string of its own, `sess:kv:` and its key: nothing of a session is called so, and whoever may use
//! the keys of sessions may use those. What is in the first braces of a key, if anything is, says in which slot of a cluster it is.
//!
//! With [`max_sessions`](RedisConfig::max_sessions) there is `sess:all`, a sorted set of all ids; with
//! [`share_events`](RedisConfig::share_events) `sess:events`, a stream. A check of the health reads `sess:{health}`, and writes it, for
//! a second, if writes have been refused.
//!
//! | operation | commands | round trips |
//! |---|---|---|
//! | load | `GET` of the epoch, `GET`, `PTTL`; of an unknown id again, with `ZSCORE` of the index | 1; 2 |
//! | create | `SET … NX PX`; for a user `EVALSHA` | 1 |
//! | update, touch, end, replace, consume, list, end all of a user | `EVALSHA` | 1 |
//! | health | `GET`; after a refused write also `EVALSHA` | 1; 2 |
//! | scan | `SCAN`, and a load of each | 2 a page |
//! | a value: get, set, del, exists, expire, incr, scan | `GET`, `SET`, `UNLINK`, `EXISTS`, `PEXPIRE`, `INCRBY`, `SCAN` | 1 |
//! | values: mget | a `GET` of each | 1, to each server that has some |
//!
//! Each script costs a second round trip the first time a server sees it. With `max_sessions`, create, update, touch and end cost one
//! more. All keys of a call share a cluster slot, but for the page of a scan.
//!
//! # Permissions
//! An ACL user of its own needs these rights, and no others: for a service that creates, reads, changes, ends and lists the sessions of
//! users (with the [prefix](RedisConfig::prefix) `sess:`):
//! ```text
//! ACL SETUSER app on >password resetchannels ~sess:* -@all +get +pttl +set +pexpire +unlink +time +eval +evalsha
//!   +zadd +zcount +zrange +zrem +zremrangebyscore +zscore
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
//! | Sentinel | `+role`; and of the Sentinels, if they ask for a login: `&+switch-master +sentinel\|get-master-addr-by-name +subscribe` |
//! | a pool that tests connections before it gives them away, as `bb8` does by default | `+ping` |
//!
//! `PING` may be denied otherwise: a refusal is an answer. Neither `CONFIG` nor `CLIENT` nor notifications about keys are needed. What is
//! refused is an error of the configuration, and makes the health degraded or down.
//!
//! # Cluster
//! Of the nodes of a [cluster](RedisConfig::cluster) one that answers is enough: it tells of the others. There is a connection to each master,
//! which is asked for what its slots have. Replicas are not asked. All sessions of a user are in one slot, so what is about a user is one
//! call, and atomic, as on one server. `sess:all` and `sess:events` are one key each, so all writes go to one node for them: leave
//! them off where one node cannot take that.
//!
//! | what happens | what becomes of sessions |
//! |---|---|
//! | a master dies | its sessions are away until its replica takes over (`cluster-node-timeout` and about a second); an operation fails at once. Others are served. The health is degraded, and names the node |
//! | a master hangs | the same, once two operations in a row went unanswered |
//! | a slot is being moved | what is read is read, wherever it is. What is written waits, for a script that concerns a key which has gone ahead, or was never there, is told to come again. When the slot has arrived it goes on; if that takes longer than the [timeout](RedisConfig::timeout), it fails, and nothing was written |
//! | a slot has moved | the next operation is sent on, and later ones go there at once |
//! | the cluster is down, or a slot has no master | an outage for sessions of that slot |
//!
//! A scan goes through the slots one range after the other, and asks the node each time whether it still has them; what has moved has its
//! turn again. Of a slot that is half-way in that moment it may miss a session, or see one twice. [Counts](crate::Sessions::count) are
//! made of scans.
//!
//! Redis replicates later than it confirms. What a master confirmed just before it died may be lost: a session is then unknown, or as it
//! was a moment before. What was ended through this process stays ended here for [`remember_ended`](RedisConfig::remember_ended),
//! and is ended again when it shows up; for other processes see [`wait_for_replicas`](RedisConfig::wait_for_replicas). Set
//! `min-replicas-to-write 1` on the nodes, so that a master which is cut off takes no writes, and `maxmemory-policy noeviction` or
//! `volatile-ttl`. The same holds for Sentinel.

#[cfg(feature = "redis-cluster")]
mod cluster;
mod config;
mod connect;
mod ended_here;
mod error;
mod health;
mod keys;
mod link;
mod operation;
#[cfg(feature = "redis-pool")]
mod pool;
mod reply;
mod request;
mod route;
mod scan;
mod script;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod shared;
mod values;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::config::{InvalidRedisConfig, RedisConfig};
pub(crate) use self::error::status_code;
#[cfg(feature = "redis-pool")]
pub use self::pool::{PooledConnection, RedisPool};
use self::{ended_here::EndedHere, keys::Prefix, operation::Operation, route::Route, script::Scripts};
use super::{
    Version,
    future::StoreFuture,
    health::Health,
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::ValueStore,
};
use crate::{ended::EndReason, event::Event, limits::Limits, time::millis, token::SessionId};

/// Keeps sessions in a Redis server, for services of any number of instances.
///
/// All requests share one connection, which is kept alive by a task of the store; it is made at first use, so a program starts without
/// Redis, and serves as soon as Redis is there. Every operation ends within the
/// [timeout](RedisConfig::timeout), and at once when Redis is known to be down. Clones share the connection; it
/// is closed when the last is dropped.
///
/// It needs a tokio runtime: the one it is first used on keeps the connection, so that one must go on running. When it ends, a
/// later operation connects anew on the runtime it runs on.
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

/// How many of the sessions that ended through it a store remembers by itself: some ten megabytes.
const MOST_ENDED_HERE: usize = 50_000;

struct Inner {
    route: Route,
    /// Where a request may wait for replicas, and hold up those behind it.
    patient: Option<Route>,
    config: RedisConfig,
    scripts: Scripts,
    ended_here: EndedHere,
}

impl RedisStore {
    /// A store in the Redis that `config` names. Does not connect yet.
    pub fn new(config: RedisConfig) -> Self {
        let ended_here = EndedHere::new(config.remember_ended, MOST_ENDED_HERE);
        Self::with(config, Scripts::new(true), ended_here)
    }

    /// A store on a pool of connections that the application has already, with the settings that
    /// [`RedisConfig`] has by default. For others, see [`RedisConfig::from_pool`].
    ///
    /// A connection of its own, which [`new`](Self::new) makes, knows when Redis is away, and then fails at once. A pool tries to
    /// connect for each request that asks it, up to the timeout: put a [`Guard`](crate::store::Guard) around it, which does that once.
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

    /// A store that checks nothing: for tests that must show that they would notice.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn without_guards(config: RedisConfig) -> Self {
        let ended_here = EndedHere::new(config.remember_ended, 0);
        Self::with(config, Scripts::new(false), ended_here)
    }

    fn with(config: RedisConfig, scripts: Scripts, ended_here: EndedHere) -> Self {
        let route = Route::new(&config);
        let patient = config.replicas.map(|_| Route::patient(&config));
        Self { inner: Arc::new(Inner { route, patient, config, scripts, ended_here }) }
    }
}

impl Inner {
    fn prefix(&self) -> Prefix<'_> {
        Prefix(&self.config.prefix)
    }

    /// How long what ended is remembered, in milliseconds.
    fn memory(&self) -> u64 {
        millis(self.config.remember_ended)
    }

    /// How long replicas have to confirm, in milliseconds.
    fn patience(&self) -> u64 {
        millis(self.config.timeout / 2).max(1)
    }

    /// What begins now.
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
