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
//! (the hash tag of Redis Cluster), and the rest of the session id. Its value is a [`Record`], as JSON unless
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
#[cfg(feature = "redis-bb8")]
mod pool;
mod reply;
mod request;
mod route;
mod script;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod shared;
mod values;

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use redis::{Cmd, Pipeline, Value, cmd, pipe};
use tokio::time::Instant;

pub use self::config::{InvalidRedisConfig, RedisConfig};
pub(crate) use self::error::status_code;
use self::{
    ended_here::{By, EndedHere},
    error::Failure,
    health::Check,
    keys::{Keys, Prefix},
    reply::{found, id, ids, is_before, is_record, loaded, number, outcome},
    request::Request,
    route::Route,
    script::{Call, Script, Scripts},
};
use super::{
    Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, Published, Record, SessionStore, StoreFuture,
    ValueStore, Version,
};
use crate::{
    ended::{EndReason, Ended},
    event::Event,
    lifetime::LONGEST,
    limits::{Limits, WhenFull},
    record::HEAD_LEN,
    time::{Clock, SystemClock, Timestamp, millis},
    token::SessionId,
};

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
    #[cfg(feature = "redis-bb8")]
    pub fn from_pool(pool: bb8::Pool<bb8_redis::RedisConnectionManager>) -> Self {
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

/// One operation of the store: all that it asks Redis is asked within one deadline.
struct Operation<'a> {
    inner: &'a Inner,
    deadline: Instant,
}

impl Deref for Operation<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner
    }
}

impl Operation<'_> {
    /// Reads, all of them what is in the slot of `key`, or on the server that has it.
    async fn read(&self, key: &str, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        match self.route.call(key, Request::read(commands), self.deadline).await? {
            Value::Array(replies) if replies.len() == commands.len() => Ok(replies),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn write(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        self.route.call(key, Request::write(command), self.deadline).await
    }

    async fn run(&self, script: &Script, keys: &[String], args: Vec<Vec<u8>>) -> Result<Value, Failure> {
        let call = Call { script, keys, args };
        self.route.call(&keys[0], Request::script(&call), self.deadline).await
    }

    /// The same, of what must not come undone.
    async fn run_safely(&self, script: &Script, keys: &[String], args: Vec<Vec<u8>>) -> Result<Value, Failure> {
        let (Some(route), Some(replicas)) = (&self.patient, self.config.replicas) else {
            return self.run(script, keys, args).await;
        };
        let call = Call { script, keys, args };
        let request = Request::script(&call).confirmed_by(Some((replicas, self.patience())));
        route.call(&keys[0], request, self.deadline).await
    }

    async fn health(&self) -> Health {
        let (check, deadline) = (Check::new(&self.config.prefix, &self.scripts.probe), self.deadline);
        let health = self.route.health(&check, deadline).await;
        let (Health::Up, Some(route), Some(replicas)) = (&health, &self.patient, self.config.replicas) else {
            return health;
        };
        match route.health(&check.confirmed_by(replicas, self.patience()), deadline).await {
            Health::Up => Health::Up,
            Health::Degraded(cause) | Health::Down(cause) => Health::Degraded(cause),
        }
    }

    async fn load(&self, id: &SessionId) -> Result<Found, Failure> {
        let keys = self.prefix().keys(id);
        // The epoch first: a session that is spared gets a new one before the user does.
        let [session, _, epoch] = &keys.all;
        let found = match &*self.read(session, pipe().get(epoch).get(session).pttl(session)).await? {
            [_, Value::Nil, _] => self.unless_expired(&keys).await?,
            [epoch, Value::BulkString(stored), Value::Int(ttl)] => found(stored, *ttl, number(epoch))?,
            _ => return Err(Failure::unexpected_reply()),
        };
        match (found, self.ended_here.get(id)) {
            (Found::Live(_), Some(ended)) => {
                tracing::warn!(session = %id, "a session that has ended is back: Redis has lost its end");
                // Best effort: the next request sees to it.
                let _ = self.end(id, None, ended.reason, ended.successor.as_ref()).await;
                Ok(Found::Ended(ended))
            }
            (found, _) => Ok(found),
        }
    }

    /// Whether the session of a key that was not there has expired: the index remembers. Or has begun since: so the index is asked
    /// first, and what it knows and is not there was there before.
    async fn unless_expired(&self, keys: &Keys) -> Result<Found, Failure> {
        let [session, index, epoch] = &keys.all;
        let mut reads = pipe();
        reads.cmd("ZSCORE").arg(index).arg(&keys.member).get(epoch).get(session).pttl(session);
        let expired = |at: f64| Found::Ended(Ended::new(EndReason::Expired, Timestamp::from_millis(at as u64)));
        match &*self.read(session, &reads).await? {
            [_, epoch, Value::BulkString(stored), Value::Int(ttl)] => found(stored, *ttl, number(epoch)),
            [Value::Nil, _, Value::Nil, _] => Ok(Found::Unknown),
            [Value::Double(at), _, Value::Nil, _] => Ok(expired(*at)),
            [Value::BulkString(at), _, Value::Nil, _] => {
                let at = std::str::from_utf8(at).ok().and_then(|text| text.parse().ok());
                Ok(expired(at.unwrap_or_default()))
            }
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn create(&self, id: &SessionId, new: Entry, limits: Limits) -> Result<Created, Failure> {
        let keys = self.prefix().keys(id);
        if self.ended_here.get(id).is_some() {
            return Ok(Created::Taken);
        }
        if !self.reserve(id, new.ttl, false).await? {
            return Ok(Created::Full);
        }
        let created = match new.record.user() {
            Some(_) => self.create_of_user(id, &keys, &new, limits).await,
            None => self.create_of_nobody(&keys, &new).await,
        }?;
        let (created, holds_place) = created;
        if !holds_place {
            self.release(&[*id]).await;
        }
        if let Created::Done { evicted } = &created {
            self.ended_here.add(evicted, EndReason::Evicted);
            self.release(evicted).await;
        }
        Ok(created)
    }

    /// And whether the id is alive now.
    async fn create_of_user(
        &self,
        id: &SessionId,
        keys: &Keys,
        new: &Entry,
        limits: Limits,
    ) -> Result<(Created, bool), Failure> {
        let mut args = self.written(&keys.member, new);
        let policy = match limits.when_full() {
            WhenFull::Reject => "reject",
            WhenFull::EvictOldest => "oldest",
            WhenFull::EvictLeastRecentlyUsed => "used",
        };
        args.extend([keys.prefix().into_bytes(), text(limits.sessions().unwrap_or(0)), policy.into()]);
        match self.run(&self.scripts.create, &keys.all, args).await? {
            Value::Array(answer) => match answer.split_first() {
                Some((Value::Int(1), evicted)) => Ok((Created::Done { evicted: ids(id.slot_tag(), evicted) }, true)),
                Some((Value::Int(0), _)) => Ok((Created::Taken, true)),
                Some((Value::Int(-2), _)) => Ok((Created::Taken, false)),
                Some((Value::Int(-1), _)) => Ok((Created::Full, false)),
                _ => Err(Failure::unexpected_reply()),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }

    /// And whether the id is alive now.
    async fn create_of_nobody(&self, keys: &Keys, new: &Entry) -> Result<(Created, bool), Failure> {
        let mut create = cmd("SET");
        create.arg(keys.session()).arg(self.encode(&new.record)).arg("NX").arg("PX").arg(ttl_of(new.ttl));
        match self.write(keys.session(), &create).await? {
            Value::Okay => Ok((Created::Done { evicted: Vec::new() }, true)),
            // Taken: perhaps by this very write, whose reply was lost.
            Value::Nil => match &*self.read(keys.session(), pipe().get(keys.session())).await? {
                [Value::BulkString(stored)] if Version::of(stored) == Some(new.record.version()) => {
                    Ok((Created::Done { evicted: Vec::new() }, true))
                }
                [Value::BulkString(stored)] => Ok((Created::Taken, is_record(stored))),
                _ => Ok((Created::Taken, false)),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn update(&self, id: &SessionId, expected: Version, new: Entry) -> Result<Outcome, Failure> {
        let keys = self.prefix().keys(id);
        if self.ended_here.get(id).is_some() {
            return Ok(Outcome::Gone);
        }
        self.reserve(id, new.ttl, true).await?;
        let mut args = self.written(keys.member_of(&new.record), &new);
        args.push(text(expected));
        let update = &self.scripts.update;
        let outcome = outcome(&if new.record.rotates() {
            self.run_safely(update, &keys.all, args).await?
        } else {
            self.run(update, &keys.all, args).await?
        })?;
        if let Outcome::Gone = outcome {
            self.release(&[*id]).await;
        }
        Ok(outcome)
    }

    async fn touch(&self, id: &SessionId, entry: Entry) -> Result<(), Failure> {
        let keys = self.prefix().keys(id);
        if self.ended_here.get(id).is_some() {
            return Ok(());
        }
        self.reserve(id, entry.ttl, true).await?;
        let member = keys.member_of(&entry.record);
        let args = vec![text(entry.record.version()), text(ttl_of(entry.ttl)), member.into(), text(self.memory())];
        if self.run(&self.scripts.touch, &keys.all, args).await? == Value::Int(0) {
            self.release(&[*id]).await;
        }
        Ok(())
    }

    async fn end(
        &self,
        id: &SessionId,
        expected: Option<Version>,
        reason: EndReason,
        successor: Option<&SessionId>,
    ) -> Result<Outcome, Failure> {
        let keys = self.prefix().keys(id);
        let args = vec![
            expected.map(text).unwrap_or_default(),
            reason.as_str().into(),
            keys.member.clone().into(),
            text(self.memory()),
            successor.map(text).unwrap_or_default(),
            text(format_args!("{:x}", getrandom::u64().unwrap_or_default())),
        ];
        let outcome = outcome(&self.run_safely(&self.scripts.end, &keys.all, args).await?)?;
        let by = match outcome {
            Outcome::Done => Some(By::ThisProcess),
            Outcome::Gone if expected.is_none() => Some(By::Somebody),
            Outcome::Gone | Outcome::Conflict(_) => None,
        };
        if let Some(by) = by {
            let ended = Ended { successor: successor.copied(), ..Ended::new(reason, SystemClock.now()) };
            self.ended_here.add_one(id, ended, by);
            self.release(&[*id]).await;
        }
        Ok(outcome)
    }

    async fn consume(&self, id: &SessionId, claim: Version) -> Result<Found, Failure> {
        let keys = self.prefix().keys(id);
        let args = vec![text(claim), keys.member.clone().into(), text(self.memory())];
        match self.run_safely(&self.scripts.consume, &keys.all, args).await? {
            Value::Array(was) => {
                if let Some(ended) = self.ended_here.get_unless(id, claim) {
                    return Ok(Found::Ended(ended)); // Redis had lost that
                }
                self.ended_here.add_one(id, Ended::new(EndReason::Used, SystemClock.now()), By::Claim(claim));
                self.release(&[*id]).await;
                match &*was {
                    [Value::BulkString(stored), Value::Int(ttl)] => Ok(Found::Live(loaded(stored, *ttl)?)),
                    _ => Err(Failure::unexpected_reply()),
                }
            }
            // Who comes too late is in no hurry.
            _ => self.load(id).await,
        }
    }

    async fn list(&self, user: &str) -> Result<Vec<(SessionId, Loaded)>, Failure> {
        let tag = SessionId::slot_tag_of(user);
        let keys = self.prefix().keys_of(&tag, "");
        let Value::Array(listed) = self.run(&self.scripts.list, &keys.all, vec![keys.prefix().into()]).await? else {
            return Err(Failure::unexpected_reply());
        };
        let mut sessions = Vec::with_capacity(listed.len() / 3);
        for session in listed.chunks_exact(3) {
            if let ([_, Value::BulkString(stored), Value::Int(ttl)], Some(id)) = (session, id(&tag, &session[0])) {
                match loaded(stored, *ttl) {
                    Ok(loaded) if loaded.record.user() == Some(user) && self.ended_here.get(&id).is_none() => {
                        sessions.push((id, loaded));
                    }
                    Ok(_) => {}
                    Err(_) => tracing::warn!(session = %id, "session record not readable"),
                }
            }
        }
        Ok(sessions)
    }

    async fn end_user(
        &self,
        user: &str,
        except: Option<&SessionId>,
        reason: EndReason,
    ) -> Result<Vec<SessionId>, Failure> {
        let tag = SessionId::slot_tag_of(user);
        let keys = match except.filter(|id| id.slot_tag() == tag) {
            Some(spared) => self.prefix().keys(spared),
            None => self.prefix().keys_of(&tag, ""),
        };
        let epochs = millis(LONGEST);
        let args = vec![
            keys.prefix().into(),
            keys.member.clone().into(),
            reason.as_str().into(),
            text(self.memory()),
            text(epochs),
        ];
        let Value::Array(gone) = self.run_safely(&self.scripts.end_user, &keys.all, args).await? else {
            return Err(Failure::unexpected_reply());
        };
        let gone = ids(&tag, &gone);
        self.ended_here.add(&gone, reason);
        self.release(&gone).await;
        Ok(gone)
    }

    async fn scan(&self, from: &Cursor, count: usize) -> Result<Page, Failure> {
        let (ids, next) = self.scan_ids(from, count).await?;
        let mut loads = pipe();
        for id in &ids {
            let [session, _, epoch] = self.prefix().keys(id).all;
            loads.get(&epoch).get(&session).pttl(&session);
        }
        let replies = match ids.first() {
            Some(first) => self.read(self.prefix().keys(first).session(), &loads).await?,
            None => Vec::new(),
        };
        let mut sessions = Vec::new();
        for (id, reply) in ids.into_iter().zip(replies.chunks_exact(3)) {
            if let [epoch, Value::BulkString(stored), Value::Int(ttl)] = reply {
                match found(stored, *ttl, number(epoch)) {
                    Ok(Found::Live(loaded)) if self.ended_here.get(&id).is_none() => sessions.push((id, loaded)),
                    Ok(_) => {}
                    Err(_) => tracing::warn!(session = %id, "session record not readable"),
                }
            }
        }
        Ok(Page { sessions, next })
    }

    /// How many are alive on a page of them, and where to go on.
    async fn count(&self, from: &Cursor) -> Result<(u64, Option<Cursor>), Failure> {
        let (ids, next) = self.scan_ids(from, 1000).await?;
        let mut beginnings = pipe();
        for id in &ids {
            let [session, _, epoch] = self.prefix().keys(id).all;
            beginnings.get(epoch).cmd("GETRANGE").arg(session).arg(0).arg(HEAD_LEN + 25);
        }
        let replies = match ids.first() {
            Some(first) => self.read(self.prefix().keys(first).session(), &beginnings).await?,
            None => Vec::new(),
        };
        let alive = replies.chunks_exact(2).filter(|reply| match reply {
            [epoch, Value::BulkString(beginning)] => is_record(beginning) && !is_before(beginning, number(epoch)),
            _ => false,
        });
        Ok((alive.count() as u64, next))
    }

    async fn scan_ids(&self, from: &Cursor, count: usize) -> Result<(Vec<SessionId>, Option<Cursor>), Failure> {
        let (keys, next) = self.scan_keys(&self.prefix().pattern(), from, count).await?;
        Ok((keys.iter().filter_map(|key| self.prefix().id_of(key)).collect(), next))
    }

    /// A page of the keys that match, and where to go on.
    async fn scan_keys(
        &self,
        pattern: &str,
        from: &Cursor,
        count: usize,
    ) -> Result<(Vec<Value>, Option<Cursor>), Failure> {
        let scan = |cursor: &str| {
            let mut scan = pipe();
            // What is no cursor begins anew: it may come from a link.
            scan.cmd("SCAN")
                .arg(cursor.parse::<u64>().unwrap_or(0))
                .arg("MATCH")
                .arg(pattern)
                .arg("COUNT")
                .arg(count.clamp(1, 1000));
            scan
        };
        let (keys, next) = self.route.scan(from.as_str(), scan, self.deadline).await?;
        Ok((keys, next.map(Into::into)))
    }

    /// What every script that writes a record is told.
    fn written(&self, member: &str, new: &Entry) -> Vec<Vec<u8>> {
        let mut head = self.encode(&new.record);
        let tail = head.split_off(HEAD_LEN.min(head.len()));
        vec![text(new.record.version()), head, tail, text(ttl_of(new.ttl)), member.into(), text(self.memory())]
    }

    fn encode(&self, record: &Record) -> Vec<u8> {
        record.encode_as(self.config.codec)
    }
}

fn text(value: impl fmt::Display) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Redis takes no time to live of zero.
fn ttl_of(ttl: Duration) -> u64 {
    millis(ttl).max(1)
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

    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().end(id, None, reason, None).await?) })
    }

    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            Ok(self.inner.operation().end(id, expected, EndReason::Replaced, Some(successor)).await?)
        })
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().consume(id, claim).await?) })
    }

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

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().health().await) })
    }

    fn name(&self) -> &'static str {
        "redis"
    }

    fn operation_deadline(&self) -> Option<Duration> {
        Some(self.inner.config.timeout)
    }

    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().publish(event).await?) })
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().events(from).await?) })
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        Some(self)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (route, prefix) = (&self.inner.route, &self.inner.config.prefix);
        f.debug_struct("RedisStore").field("route", route).field("prefix", prefix).finish()
    }
}
