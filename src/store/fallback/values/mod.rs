//! The values beside the sessions, in an outage: it is the same one, whoever notices it.
//!
//! * `operations.rs` — each operation: on the main store, and in memory;
//! * `local.rs` — the values of an outage, and what the main store has to be told of them;
//! * `task.rs` — telling it;
//! * this file — the store.

mod local;
mod operations;
mod task;

use std::time::Duration;

use self::operations::{Add, Delete, Exists, Expire, Get, Scan, Set};
pub(super) use self::{
    local::LocalValues,
    task::{ToldValue, ValueTask},
};
use super::{Fallback, outage::Meanwhile};
use crate::{
    store::{Added, Cursor, KeyPage, SessionStore, StoreError, StoreFuture, ValueStats, ValueStore, values_of},
    time::Clock,
};

impl<S: SessionStore> Fallback<S> {
    async fn add_once(&self, key: &str, by: i64) -> Result<Added, StoreError> {
        let add = Add::new(key, by);
        let answer = self.perform(&add).await;
        match answer {
            Err(error) if add.may_be_done() => Ok(Added::InDoubt(error)),
            answer => answer,
        }
    }

    async fn stats_of_values(&self) -> ValueStats {
        self.present_outage().await; // perhaps it is over
        let main = match values_of(&self.main) {
            Ok(values) => values.stats().await.unwrap_or_default(),
            Err(_) => ValueStats::default(),
        };
        match self.outage().as_deref() {
            None => main,
            Some(outage) => match (&outage.meanwhile, outage.local()) {
                (Meanwhile::Local(_), Some(mut local)) => {
                    let in_memory_keys = local.values().len(self.clock.now());
                    ValueStats { using_fallback: true, in_memory_keys, ..main }
                }
                _ => main,
            },
        }
    }
}

impl<S: SessionStore> ValueStore for Fallback<S> {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        StoreFuture::boxed(self.perform(Get { keys }))
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(self.perform(Set { key, value, ttl }))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(self.perform(Delete { key }))
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(self.perform(Exists { key }))
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        StoreFuture::boxed(self.perform(Expire { key, ttl }))
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        StoreFuture::boxed(self.add_once(key, by))
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        StoreFuture::boxed(self.perform(Scan { pattern, from, count }))
    }

    /// Those of the main store, and what is kept in its place.
    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        StoreFuture::boxed(async { Ok(self.stats_of_values().await) })
    }
}
