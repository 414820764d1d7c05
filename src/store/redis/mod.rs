//! Sessions in Redis.
//!
//! * `config.rs` — where Redis is, and how long to wait for it;
//! * `link.rs` — the one connection that all requests share, and who keeps it alive;
//! * `script.rs` — the writes that Redis must check before it makes them;
//! * `error.rs` — what an error of the client means;
//! * this file — the store.
//!
//! # In Redis
//! A session is one string, `sess:{AAAAAAAAAAAA}:HHHH…`: the prefix, the [slot tag](crate::SessionId::slot_tag) in braces
//! (the hash tag of Redis Cluster), and the rest of the session id. Its value is a [`Record`] as JSON, and its
//! time to live is the session's. So with the id of a log line, or of nobody in particular:
//! ```text
//! redis-cli GET  'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli PTTL 'sess:{AAAAAAAAAAAA}:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH'
//! redis-cli --scan --pattern 'sess:*'
//! ```
//!
//! | operation | commands | round trips |
//! |---|---|---|
//! | load | `GET`, `PTTL` | 1 |
//! | create | `SET … NX PX` | 1 |
//! | update, rotate, touch | `EVALSHA` | 1 (2 the first time a server sees the script) |
//! | destroy | `UNLINK` | 1 |

mod config;
mod error;
mod link;
mod script;

use std::{fmt, sync::Arc, time::Duration};

use redis::{Value, cmd, pipe};

pub use self::config::{InvalidRedisConfig, RedisConfig};
use self::{
    error::Failure,
    link::{Link, Request},
    script::{Call, Script},
};
use super::{Health, Loaded, Outcome, Record, SessionStore, StoreFuture, Version};
use crate::{time::millis, token::SessionId};

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

struct Inner {
    link: Link,
    prefix: String,
    update: Script,
    rotate: Script,
    touch: Script,
}

impl RedisStore {
    /// A store in the Redis that `config` names. Does not connect yet.
    pub fn new(config: RedisConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                prefix: config.prefix.clone(),
                link: Link::new(config),
                update: Script::new(script::UPDATE),
                rotate: Script::new(script::ROTATE),
                touch: Script::new(script::TOUCH),
            }),
        }
    }
}

impl Inner {
    fn key(&self, id: &SessionId) -> String {
        let text = id.to_string();
        let (tag, rest) = text.split_at(id.slot_tag().len());
        format!("{}{{{tag}}}:{rest}", self.prefix)
    }

    async fn load(&self, id: &SessionId) -> Result<Option<Loaded>, Failure> {
        let key = self.key(id);
        let mut load = pipe();
        load.get(&key).pttl(&key);
        let Value::Array(replies) = self.link.call(&Request::Read(&load, 2)).await? else {
            return Err(Failure::unexpected_reply());
        };
        match <[Value; 2]>::try_from(replies) {
            Ok([Value::Nil, _]) => Ok(None),
            Ok([Value::BulkString(stored), Value::Int(ttl)]) => loaded(&stored, ttl).map(Some),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn create(&self, id: &SessionId, record: &Record, ttl: Duration) -> Result<Outcome, Failure> {
        let (key, value) = (self.key(id), record.encode());
        let mut create = cmd("SET");
        create.arg(&key).arg(&value).arg("NX").arg("PX").arg(ttl_arg(ttl));
        match self.link.call(&Request::Write(&create)).await? {
            Value::Okay => Ok(Outcome::Done),
            // Taken: perhaps by this very write, whose reply was lost.
            Value::Nil => match self.load(id).await? {
                Some(loaded) if loaded.record.version() == record.version() => Ok(Outcome::Done),
                Some(loaded) => Ok(Outcome::Conflict(loaded)),
                None => Ok(Outcome::Gone),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn compare_and_set(&self, call: Call<'_>) -> Result<Outcome, Failure> {
        match self.link.call(&Request::Script(&call)).await? {
            Value::Int(1) => Ok(Outcome::Done),
            Value::Int(0) => Ok(Outcome::Gone),
            Value::Array(found) => match <[Value; 2]>::try_from(found) {
                Ok([Value::BulkString(stored), Value::Int(ttl)]) => loaded(&stored, ttl).map(Outcome::Conflict),
                _ => Err(Failure::unexpected_reply()),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }
}

/// `stored` as Redis returned it, with the reply to `PTTL`.
fn loaded(stored: &[u8], pttl: i64) -> Result<Loaded, Failure> {
    let record = Record::decode(stored).map_err(Failure::corrupt)?;
    // -1: it has none. -2: it expired between the two commands.
    let ttl = match pttl {
        -1 => None,
        left => Some(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
    };
    Ok(Loaded { record: Arc::new(record), ttl })
}

/// Redis takes no time to live of zero.
fn ttl_arg(ttl: Duration) -> u64 {
    millis(ttl).max(1)
}

impl SessionStore for RedisStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Option<Loaded>> {
        StoreFuture::boxed(async move { Ok(self.inner.load(id).await?) })
    }

    fn create<'a>(&'a self, id: &'a SessionId, record: Arc<Record>, ttl: Duration) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move { Ok(self.inner.create(id, &record, ttl).await?) })
    }

    fn update<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Version,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            let (script, keys) = (&self.inner.update, &[self.inner.key(id)]);
            Ok(self
                .inner
                .compare_and_set(Call { script, keys, expected, record: Some(&record), ttl: ttl_arg(ttl) })
                .await?)
        })
    }

    fn touch<'a>(&'a self, id: &'a SessionId, expected: Version, ttl: Duration) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move {
            let (script, keys) = (&self.inner.touch, &[self.inner.key(id)]);
            let call = Call { script, keys, expected, record: None, ttl: ttl_arg(ttl) };
            self.inner.link.call(&Request::Script(&call)).await?;
            Ok(())
        })
    }

    fn rotate<'a>(
        &'a self,
        old: &'a SessionId,
        expected: Version,
        new: &'a SessionId,
        record: Arc<Record>,
        ttl: Duration,
    ) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(async move {
            let (script, keys) = (&self.inner.rotate, &[self.inner.key(old), self.inner.key(new)]);
            Ok(self
                .inner
                .compare_and_set(Call { script, keys, expected, record: Some(&record), ttl: ttl_arg(ttl) })
                .await?)
        })
    }

    fn destroy<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move {
            let destroy = cmd("UNLINK").arg(self.inner.key(id)).take();
            self.inner.link.call(&Request::Write(&destroy)).await?;
            Ok(())
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(async move { Ok(self.inner.link.health().await) })
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("link", &self.inner.link).field("prefix", &self.inner.prefix).finish()
    }
}
