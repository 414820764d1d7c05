//! Values, each a Redis string.

use std::time::Duration;

use redis::{Cmd, RedisError, Value, cmd, pipe};

use super::{
    RedisStore,
    error::Failure,
    operation::{Operation, ttl_of},
    request::Request,
};
use crate::{
    lifetime::LONGEST,
    store::{Added, Cursor, Health, KeyPage, StoreError, StoreFuture, ValueStats, ValueStore, all::all},
};

/// Redis refuses a time to live that is too far in the future.
fn ttl(ttl: Duration) -> u64 {
    ttl_of(ttl.min(LONGEST))
}

fn is_one(answer: &Value) -> Result<bool, Failure> {
    match answer {
        Value::Int(0) => Ok(false),
        Value::Int(1) => Ok(true),
        _ => Err(Failure::unexpected_reply()),
    }
}

impl Operation<'_> {
    /// One request per server, concurrently.
    async fn get_values(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let keys: &Vec<_> = &keys.iter().map(|key| self.prefix().value(key)).collect();
        let mut values = vec![None; keys.len()];
        let groups = self.route.by_server(keys);
        let answers = all(groups.iter().map(|group| async move {
            let (mut reads, first) = (pipe(), group.first().map_or("", |place| &*keys[*place]));
            for place in group {
                reads.get(&keys[*place]);
            }
            self.read(first, &reads).await
        }));
        for (group, answers) in groups.iter().zip(answers.await) {
            for (place, answer) in group.iter().zip(answers?) {
                values[*place] = match answer {
                    Value::Nil => None,
                    Value::BulkString(value) => Some(value),
                    _ => return Err(Failure::unexpected_reply()),
                };
            }
        }
        Ok(values)
    }

    async fn set_value(&self, key: &str, value: &[u8], time: Option<Duration>) -> Result<(), Failure> {
        let key = self.prefix().value(key);
        let mut set = cmd("SET");
        set.arg(&key).arg(value);
        if let Some(time) = time {
            set.arg("PX").arg(ttl(time));
        }
        match self.write(&key, &set).await? {
            Value::Okay => Ok(()),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn change_value(&self, key: &str, change: impl FnOnce(&str) -> Cmd) -> Result<bool, Failure> {
        let key = self.prefix().value(key);
        is_one(&self.write(&key, &change(&key)).await?)
    }

    async fn value_exists(&self, key: &str) -> Result<bool, Failure> {
        let key = self.prefix().value(key);
        match &*self.read(&key, pipe().exists(&key)).await? {
            [answer] => is_one(answer),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    async fn add_to_value(&self, key: &str, by: i64) -> Result<Added, Failure> {
        let key = self.prefix().value(key);
        let mut add = cmd("INCRBY");
        add.arg(&key).arg(by);
        match self.route.call(&key, Request::once(&add), self.deadline).await {
            Ok(Value::Int(sum)) => Ok(Added::To(sum)),
            Ok(_) => Err(Failure::unexpected_reply()),
            Err(failure) if failure.may_be_applied() => Ok(Added::InDoubt(failure.error)),
            Err(failure) => refused(failure),
        }
    }

    /// Keys that are not UTF-8 are not from this crate, and are skipped.
    async fn scan_values(&self, pattern: &str, from: &Cursor, count: usize) -> Result<KeyPage, Failure> {
        let (keys, next) = self.scan_keys(&self.prefix().value_pattern(pattern), from, count).await?;
        Ok(KeyPage { keys: keys.iter().filter_map(|key| self.prefix().key_of_value(key)).collect(), next })
    }
}

/// The errors of `INCRBY` about the stored value.
fn refused(failure: Failure) -> Result<Added, Failure> {
    let detail = match &failure.error {
        StoreError::Configuration(source) => source.downcast_ref::<RedisError>().and_then(RedisError::detail),
        _ => None,
    };
    match detail {
        Some(detail) if detail.contains("not an integer") => Ok(Added::NotANumber),
        Some(detail) if detail.contains("would overflow") => Ok(Added::Overflow),
        _ => Err(failure),
    }
}

impl ValueStore for RedisStore {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().get_values(keys).await?) })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().set_value(key, value, ttl).await?) })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(async move {
            let unlink = |key: &str| cmd("UNLINK").arg(key).to_owned();
            Ok(self.inner.operation().change_value(key, unlink).await?)
        })
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().value_exists(key).await?) })
    }

    fn expire<'a>(&'a self, key: &'a str, time: Duration) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(async move {
            let expire = |key: &str| cmd("PEXPIRE").arg(key).arg(ttl(time)).to_owned();
            Ok(self.inner.operation().change_value(key, expire).await?)
        })
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().add_to_value(key, by).await?) })
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        StoreFuture::boxed(async move { Ok(self.inner.operation().scan_values(pattern, from, count).await?) })
    }

    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        StoreFuture::boxed(async move {
            let connected = !matches!(self.inner.operation().health().await, Health::Down(_));
            Ok(ValueStats { connected, ..ValueStats::default() })
        })
    }
}
