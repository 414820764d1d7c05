//! A store around another store.

use std::{sync::Arc, time::Duration};

use super::{
    future::StoreFuture,
    health::Health,
    operation::{
        Add, Count, Create, Delete, EndSession, EndUser, Exists, Expire, Get, GetHealth, GetValueStats, List, Load,
        Operation, Publish, ReadEvents, Scan, ScanValues, Set, Touch, Update,
    },
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::{Added, KeyPage, ValueStats, ValueStore},
};
use crate::{ended::EndReason, event::Event, limits::Limits, record::Version, token::SessionId};

/// A store around another store, which intercepts every operation in one function.
///
/// A wrapper is a [`SessionStore`] with exactly the abilities of the store inside.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_keep::{MemoryStore, SessionLayer, store::{Operation, SessionStore, StoreFuture, StoreWrapper}};
///
/// /// Counts operations.
/// struct Counting<S> {
///     inner: S,
///     operations: AtomicU64,
/// }
///
/// impl<S: SessionStore> StoreWrapper for Counting<S> {
///     type Inner = S;
///
///     fn inner(&self) -> &S {
///         &self.inner
///     }
///
///     fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
///         self.operations.fetch_add(1, Ordering::Relaxed);
///         operation.run(&self.inner)
///     }
/// }
///
/// let layer = SessionLayer::new(Counting { inner: MemoryStore::new(), operations: AtomicU64::new(0) });
/// # let _ = layer;
/// ```
pub trait StoreWrapper: Send + Sync {
    /// The store inside.
    type Inner: SessionStore + ?Sized;

    /// The store inside.
    fn inner(&self) -> &Self::Inner;

    /// Handles an operation: usually by [running](Operation::run) it on the store inside.
    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply>;

    /// See [`SessionStore::health`]. Default: handled like every operation.
    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        self.call(GetHealth {})
    }

    /// See [`SessionStore::name`]. Default: the name of the store inside.
    fn wrapper_name(&self) -> &'static str {
        self.inner().name()
    }

    /// See [`SessionStore::operation_deadline`]. Default: that of the store inside.
    fn wrapper_deadline(&self) -> Option<Duration> {
        self.inner().operation_deadline()
    }

    /// See [`SessionStore::is_degraded`]. Default: that of the store inside.
    fn wrapper_is_degraded(&self) -> bool {
        self.inner().is_degraded()
    }
}

impl<W: StoreWrapper> SessionStore for W {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.call(Load { id })
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.call(Create { id, new, limits })
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.call(Update { id, expected, new })
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.call(Touch { id, entry })
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        self.call(EndSession { id, end })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.wrapper_health()
    }

    fn name(&self) -> &'static str {
        self.wrapper_name()
    }

    fn operation_deadline(&self) -> Option<Duration> {
        self.wrapper_deadline()
    }

    fn is_degraded(&self) -> bool {
        self.wrapper_is_degraded()
    }

    fn users(&self) -> Option<&dyn UserStore> {
        self.inner().users().map(|_| self as &dyn UserStore)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        self.inner().scans().map(|_| self as &dyn ScanStore)
    }

    fn event_log(&self) -> Option<&dyn EventStore> {
        self.inner().event_log().map(|_| self as &dyn EventStore)
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        self.inner().values().map(|_| self as &dyn ValueStore)
    }
}

impl<W: StoreWrapper> UserStore for W {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.call(List { user })
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.call(EndUser { user, except, reason })
    }
}

impl<W: StoreWrapper> ScanStore for W {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        self.call(Scan { from, count })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.call(Count {})
    }
}

impl<W: StoreWrapper> EventStore for W {
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        self.call(Publish { event })
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        self.call(ReadEvents { from })
    }
}

impl<W: StoreWrapper> ValueStore for W {
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> StoreFuture<'a, Vec<Option<Vec<u8>>>> {
        self.call(Get { keys })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8], ttl: Option<Duration>) -> StoreFuture<'a, ()> {
        self.call(Set { key, value, ttl })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.call(Delete { key })
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.call(Exists { key })
    }

    fn expire<'a>(&'a self, key: &'a str, ttl: Duration) -> StoreFuture<'a, bool> {
        self.call(Expire { key, ttl })
    }

    fn add<'a>(&'a self, key: &'a str, by: i64) -> StoreFuture<'a, Added> {
        self.call(Add { key, by })
    }

    fn scan<'a>(&'a self, pattern: &'a str, from: &'a Cursor, count: usize) -> StoreFuture<'a, KeyPage> {
        self.call(ScanValues { pattern, from, count })
    }

    fn stats(&self) -> StoreFuture<'_, ValueStats> {
        self.call(GetValueStats {})
    }
}

/// Shares a store.
impl<S: SessionStore + ?Sized> StoreWrapper for Arc<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        self
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        operation.run(&**self)
    }
}
