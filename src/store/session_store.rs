//! The contract of a store.

use std::time::Duration;

use super::{
    future::StoreFuture,
    health::Health,
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::ValueStore,
};
use crate::{ended::EndReason, event::Event, limits::Limits, record::Version, token::SessionId};

/// Keeps sessions.
///
/// Six operations are required. Everything else is an [optional ability](#optional-abilities). The guide [writing a
/// store](crate::guide::writing_a_store) builds one. To use a store, call the methods of [`StoreExt`](super::StoreExt).
///
/// # Contract
/// * **An ended session stays ended.** [`create`](Self::create) succeeds only if the id does not exist and has no tombstone;
///   [`update`](Self::update) only if the session is alive. This holds in any order of requests, on any instance, and for commands that
///   arrive after their sender gave up. So a store keeps a tombstone of every [ended](Self::end) session for longer than a command can be
///   delayed: at least a minute, preferably an hour.
/// * **Compare and set.** `update` succeeds only for the version it names. It distinguishes a session that another request wrote
///   ([`Outcome::Conflict`]) from one that ended ([`Outcome::Gone`]). So does an [`end`](Self::end) that names a version.
/// * **Idempotent.** A write whose reply was lost can be repeated: the store recognizes that the write is applied and replies
///   [`Outcome::Done`], or [`Created::Done`].
/// * **Atomic.** Each operation is applied completely or not at all.
/// * **Time to live.** Every write sets how long the session lives from then on; after that the id is gone.
/// * **Single use.** Of concurrent [claims](End::Used), exactly one succeeds.
/// * **In time.** An operation ends within a bounded time, with [`StoreError::Outage`](super::StoreError::Outage) if the store does not reply. An outage
///   is never reported as "no such session".
///
/// `store::testing` (feature `testing`) checks all of this except the last point.
///
/// A store knows nothing about HTTP, tokens, or the content of a record except its [version](crate::store::Record::version), its
/// [user](crate::store::Record::user), and the session that it [replaces](crate::store::Record::replaces).
///
/// # Optional abilities
/// | ability | method | without it |
/// |---|---|---|
/// | list, limit and end the sessions of a user | [`users`](Self::users) | [`StoreError::Unsupported`](super::StoreError::Unsupported); [`SessionLayer::check`](crate::SessionLayer::check) reports limits at startup |
/// | scan and count all sessions | [`scans`](Self::scans) | `StoreError::Unsupported` |
/// | keep values (the key-value store) | [`values`](Self::values) | `StoreError::Unsupported` |
/// | share events with other processes | [`event_log`](Self::event_log) | events stay in the process |
///
/// ```
/// use tower_keep::{Limits, SessionId, store::*};
///
/// /// Remembers nothing: every session ends with the request that created it.
/// struct NullStore;
///
/// impl SessionStore for NullStore {
///     fn load<'a>(&'a self, _: &'a SessionId) -> StoreFuture<'a, Found> {
///         StoreFuture::ready(Ok(Found::Unknown))
///     }
///     fn create<'a>(&'a self, _: &'a SessionId, _: Entry, _: Limits) -> StoreFuture<'a, Created> {
///         StoreFuture::ready(Ok(Created::Done { evicted: Vec::new() }))
///     }
///     fn update<'a>(&'a self, _: &'a SessionId, _: Version, _: Entry) -> StoreFuture<'a, Outcome> {
///         StoreFuture::ready(Ok(Outcome::Gone))
///     }
///     fn touch<'a>(&'a self, _: &'a SessionId, _: Entry) -> StoreFuture<'a, ()> {
///         StoreFuture::ready(Ok(()))
///     }
///     fn end<'a>(&'a self, _: &'a SessionId, _: End) -> StoreFuture<'a, EndOutcome> {
///         StoreFuture::boxed(async { Ok(EndOutcome::Gone) })
///     }
///     fn health(&self) -> StoreFuture<'_, Health> {
///         StoreFuture::ready(Ok(Health::Up))
///     }
/// }
/// # let _ = tower_keep::SessionLayer::new(NullStore);
/// ```
pub trait SessionStore: Send + Sync {
    /// Looks up the session `id`: alive, ended and why, or unknown.
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found>;

    /// Stores a new session. `limits` applies to sessions of a user; it is [`Limits::none`] for a store without [`users`](Self::users).
    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created>;

    /// Replaces version `expected` of a live session.
    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome>;

    /// Sets the time to live of a live session to that of `entry`, without writing the record.
    ///
    /// Has no effect if the session is gone, or no longer has the version of `entry`: then it also has another time to live.
    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()>;

    /// Ends a session if the condition in `end` holds, and keeps a tombstone that says why.
    ///
    /// * An ended session keeps the reason it ended with: [`EndOutcome::Gone`].
    /// * An unknown id: [`EndOutcome::Gone`]. [`End::For`] and [`End::Replaced`] without a version leave a tombstone, because the creation of the session may
    ///   still be on its way. [`End::Used`] and [`End::Replaced`] with a version leave the id unknown.
    /// * The same `End::Replaced` repeated replies [`EndOutcome::Done`] again, and the same `End::Used` replies
    ///   [`EndOutcome::Claimed`] again with the same record.
    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome>;

    /// Checks whether the store can serve now. An error means that it is down, and says why.
    fn health(&self) -> StoreFuture<'_, Health>;

    /// The name of the store for operators, in spans and logs: `"redis"`, `"memory"`. Default: `"custom"`.
    fn name(&self) -> &'static str {
        "custom"
    }

    /// The maximum duration of one operation, if it is bounded. The default [deadline](crate::SessionLayer::deadline) of a request is derived
    /// from it. Default: unknown.
    fn operation_deadline(&self) -> Option<Duration> {
        None
    }

    /// Whether replies currently carry less than the usual guarantees: see [`FallbackMode`](super::FallbackMode). Default: never.
    fn is_degraded(&self) -> bool {
        false
    }

    /// The index of users, if the store has one. The answer never changes. Default: none.
    fn users(&self) -> Option<&dyn UserStore> {
        None
    }

    /// Scans and counts, if the store supports them. The answer never changes. Default: none.
    fn scans(&self) -> Option<&dyn ScanStore> {
        None
    }

    /// The events shared with other processes, if there are any. The answer never changes. Default: none.
    fn event_log(&self) -> Option<&dyn EventStore> {
        None
    }

    /// Values beside the sessions, for [`KeyValue`](crate::KeyValue). The answer never changes. Default: none.
    fn values(&self) -> Option<&dyn ValueStore> {
        None
    }
}

/// A store that indexes sessions by user, and so can list, limit and end the sessions of a user.
///
/// # Contract
/// * [`list`](Self::list) returns every live session that was created for the user, and no other. The index is bounded by the live sessions.
/// * [`end_user`](Self::end_user) ends all of them, even those that the index has lost.
/// * **Limits.** [`create`](SessionStore::create) enforces the given [`Limits`] for any number of concurrent creations. The session that the new
///   one [replaces](crate::store::Record::replaces) is neither counted nor evicted.
pub trait UserStore: Send + Sync {
    /// The live sessions of `user`, oldest first: by [creation time](crate::store::Record::created_at), and within one millisecond
    /// in the order of their creation.
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>>;

    /// Ends all existing sessions of `user` except `except`. Returns the ids of those that the index knew.
    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>>;
}

/// A store that can iterate over all its sessions.
pub trait ScanStore: Send + Sync {
    /// One page of all live sessions, of about `count`. A session that is alive during the whole scan is on at least one page, and may be
    /// on several.
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page>;

    /// The number of live sessions.
    fn count(&self) -> StoreFuture<'_, u64>;
}

/// A store that passes events between the processes that share it.
pub trait EventStore: Send + Sync {
    /// Publishes an event to the other processes.
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()>;

    /// The events that any process published after `from`. `None`: only the current position.
    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published>;
}
