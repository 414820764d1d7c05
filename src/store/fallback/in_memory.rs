//! The store of an outage in mode `Memory`: every operation, performed in the memory of this process.

use std::time::Duration;

use super::{Fallback, error::Cause, local::Local, outage::Outage};
use crate::{
    ended::EndReason,
    event::Event,
    limits::Limits,
    metrics::{self, FALLBACK_IN_MEMORY, Stopwatch},
    record::Version,
    store::{
        error::StoreError,
        ext::StoreExt,
        future::StoreFuture,
        health::Health,
        operation::{
            Add, Count, Create, Delete, EndSession, EndUser, Exists, Expire, Get, List, Load, Operation, Scan,
            ScanValues, Set, Touch, Update,
        },
        session_store::{EventStore, ScanStore, SessionStore, UserStore},
        types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
        values::{Added, KeyPage, ValueStats, ValueStore},
    },
    time::{Clock, Timestamp},
    token::SessionId,
};

/// The prefix of cursors into memory. A cursor of the main store means nothing here: the scan starts over.
const LOCAL: &str = "local-";

pub(super) struct InMemory<'a> {
    pub(super) fallback: &'a Fallback,
    pub(super) outage: &'a Outage,
    /// The main store may have applied the operation as well: it was sent, and there was no reply.
    pub(super) sent: bool,
}

impl InMemory<'_> {
    /// Performs an operation under the lock.
    fn perform<'f, O: Operation>(
        &self,
        operation: O,
        perform: impl FnOnce(&mut Local, Timestamp) -> Result<O::Reply, StoreError>,
    ) -> StoreFuture<'f, O::Reply> {
        let Some(mut local) = self.outage.local() else { return StoreFuture::ready(Err(Cause::Recovered.into())) };
        let (cache, now) = (&self.fallback.cache, self.fallback.clock.now());
        let reply = perform(&mut local, now);
        if Stopwatch::RUNS {
            metrics::set(&FALLBACK_IN_MEMORY, [], local.store().len() as f64);
        }
        match &reply {
            // A session that ended in this outage must not be live in the next.
            Ok(reply) => operation.observe(Ok(reply), now, &mut |observation| {
                if observation.is_end() {
                    cache.observe(&observation, cache.sequence(), now);
                }
            }),
            Err(_) => self.fallback.counts.refused.add(1),
        }
        StoreFuture::ready(reply)
    }
}

impl SessionStore for InMemory<'_> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.perform(Load { id }, |local, _| Ok(local.store().load_now(id)))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        let entry = new.clone();
        self.perform(Create { id, new, limits }, |local, now| local.create(id, &entry, limits, self.sent, now))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        let entry = new.clone();
        self.perform(Update { id, expected, new }, |local, _| local.update(id, expected, &entry, self.sent))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.perform(Touch { id, entry: entry.clone() }, |local, _| {
            local.touch(id, &entry);
            Ok(())
        })
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        self.perform(EndSession { id, end }, |local, now| local.end(id, end, now))
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::ready(Ok(self.outage.health()))
    }

    fn users(&self) -> Option<&dyn UserStore> {
        Some(self)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        Some(self)
    }

    fn event_log(&self) -> Option<&dyn EventStore> {
        Some(self)
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        Some(self)
    }
}

impl UserStore for InMemory<'_> {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.perform(List { user }, |local, _| Ok(local.store().list_now(user)))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.perform(EndUser { user, except, reason }, |local, _| local.end_user(user, except, reason))
    }
}

impl ScanStore for InMemory<'_> {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        self.perform(Scan { from, count }, |local, _| {
            let page = local.store().scan_now(&inner(from), count);
            Ok(Page { next: page.next.map(outer), ..page })
        })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.perform(Count {}, |local, _| Ok(local.store().count_now()))
    }
}

/// Events are neither published nor read during an outage.
impl EventStore for InMemory<'_> {
    fn publish<'a>(&'a self, _: &'a Event) -> StoreFuture<'a, ()> {
        StoreFuture::ready(Ok(()))
    }

    fn events<'a>(&'a self, _: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        StoreFuture::ready(Err(self.outage.error()))
    }
}

impl ValueStore for InMemory<'_> {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        self.perform(Get { keys }, |local, now| Ok(keys.iter().map(|key| local.values().get(key, now)).collect()))
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        self.perform(Set { key, value, ttl }, |local, now| local.values().set(key, value, ttl, now))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.perform(Delete { key }, |local, now| local.values().delete(key, now))
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.perform(Exists { key }, |local, now| Ok(local.values().exists(key, now)))
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        self.perform(Expire { key, ttl }, |local, now| Ok(local.values().expire(key, ttl, now)))
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        self.perform(Add { key, by }, |local, now| local.values().add(key, by, now))
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        self.perform(ScanValues { pattern, from, count }, |local, now| {
            let page = local.values().scan(pattern, &inner(from), count, now);
            Ok(KeyPage { next: page.next.map(outer), ..page })
        })
    }

    /// The statistics of the main store, and the number of values in memory.
    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        StoreFuture::boxed(async {
            let main = match self.fallback.main.require_values() {
                Ok(values) => values.stats().await.unwrap_or_default(),
                Err(_) => ValueStats::default(),
            };
            let Some(mut local) = self.outage.local() else { return Err(Cause::Recovered.into()) };
            let in_memory_keys = local.values().len(self.fallback.clock.now());
            Ok(ValueStats { using_fallback: true, in_memory_keys, ..main })
        })
    }
}

fn inner(cursor: &Cursor) -> Cursor {
    cursor.as_str().strip_prefix(LOCAL).unwrap_or_default().to_owned().into()
}

fn outer(cursor: Cursor) -> Cursor {
    format!("{LOCAL}{}", cursor.as_str()).into()
}
