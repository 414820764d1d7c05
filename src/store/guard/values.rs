//! The values of a store that is guarded.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::Guard;
use crate::store::{Added, Cursor, KeyPage, SessionStore, StoreError, StoreFuture, ValueStats, ValueStore, ask_values};

impl<S: SessionStore> Guard<S> {
    fn guarded_value<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce(&'a dyn ValueStore) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        self.guarded(move |store| ask_values(store, operation))
    }

    /// What was begun and has no answer may have been done, whether the store says so or the deadline is over.
    async fn add_guarded(&self, key: &str, by: i64) -> Result<Added, StoreError> {
        let may_be_done = &AtomicBool::new(false);
        let answer = self.guarded_value(move |values| {
            StoreFuture::boxed(async move {
                may_be_done.store(true, Ordering::Relaxed);
                match values.add(key, by).await {
                    Ok(Added::InDoubt(error)) => Err(error),
                    answer => {
                        may_be_done.store(false, Ordering::Relaxed);
                        answer
                    }
                }
            })
        });
        match answer.await {
            Err(error) if may_be_done.load(Ordering::Relaxed) => Ok(Added::InDoubt(error)),
            answer => answer,
        }
    }
}

impl<S: SessionStore> ValueStore for Guard<S> {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        self.guarded_value(move |values| values.get(keys))
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        self.guarded_value(move |values| values.set(key, value, ttl))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.guarded_value(move |values| values.delete(key))
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.guarded_value(move |values| values.exists(key))
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        self.guarded_value(move |values| values.expire(key, ttl))
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        StoreFuture::boxed(self.add_guarded(key, by))
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        self.guarded_value(move |values| values.scan(pattern, from, count))
    }

    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        self.guarded_value(|values| values.stats())
    }
}
