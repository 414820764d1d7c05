//! The values of a store that is observed.

use std::time::Duration;

use super::{Answer, Observed, Operation};
use crate::store::{Added, Cursor, KeyPage, SessionStore, StoreError, StoreFuture, ValueStats, ValueStore, ask_values};

impl<S: SessionStore> Observed<S> {
    fn observe_value<'a, T: Answer + Send + 'a>(
        &'a self,
        operation: &'static str,
        ask: impl FnOnce(&'a dyn ValueStore) -> StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        self.observe(Operation::OnValues(operation), |store| ask_values(store, ask))
    }
}

impl<S: SessionStore> ValueStore for Observed<S> {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        self.observe_value("get", |values| values.get(keys))
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        self.observe_value("set", |values| values.set(key, value, ttl))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.observe_value("delete", |values| values.delete(key))
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.observe_value("exists", |values| values.exists(key))
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        self.observe_value("expire", |values| values.expire(key, ttl))
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        self.observe_value("add", |values| values.add(key, by))
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        self.observe_value("scan_values", |values| values.scan(pattern, from, count))
    }

    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        self.observe_value("value_stats", |values| values.stats())
    }
}

impl Answer for bool {}
impl Answer for KeyPage {}
impl Answer for ValueStats {}

impl Answer for Added {
    fn result(&self) -> &'static str {
        match self {
            Self::To(_) => "done",
            Self::NotANumber | Self::Overflow => "refused",
            Self::InDoubt(_) => "in_doubt",
        }
    }

    fn error(&self) -> Option<&StoreError> {
        match self {
            Self::InDoubt(error) => Some(error),
            _ => None,
        }
    }
}
