//! `MemoryStore` as a store of values.

use std::{
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    MemoryStore, ready,
    values::{Values, until},
};
use crate::store::{
    future::StoreFuture,
    types::Cursor,
    values::{Added, KeyPage, ValueStats, ValueStore},
};

impl MemoryStore {
    fn kept_values(&self) -> MutexGuard<'_, Values> {
        self.shared.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ValueStore for MemoryStore {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        let (mut values, now) = (self.kept_values(), self.clock.now());
        ready(keys.iter().map(|key| values.get(key, now)).collect())
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        let now = self.clock.now();
        let until = ttl.map(|ttl| until(ttl, now));
        let set = self.kept_values().set(key, value.to_vec(), until, self.values_capacity, now);
        StoreFuture::ready(set.map_err(Into::into))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        ready(self.kept_values().remove(key, self.clock.now()))
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        ready(self.kept_values().exists(key, self.clock.now()))
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        let now = self.clock.now();
        ready(self.kept_values().expire(key, until(ttl, now), now))
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        let added = self.kept_values().add(key, by, self.values_capacity, self.clock.now());
        StoreFuture::ready(added.map_err(Into::into))
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        ready(self.kept_values().scan(pattern, from, count, self.clock.now()))
    }

    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        let in_memory_keys = self.kept_values().len(self.clock.now());
        ready(ValueStats { connected: false, using_fallback: true, in_memory_keys })
    }
}
