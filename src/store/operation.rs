//! The operations of a store as values, so that a wrapper intercepts all of them in one function.
//!
//! To add an operation: a method on a trait in `session_store.rs` or `values.rs`, its value here, its line in `wrapper.rs`, and its
//! implementation in the memory and Redis stores.

use std::time::Duration;

#[cfg(doc)]
use super::{EventStore, ScanStore, UserStore, ValueStore};
use super::{
    error::{Ability, StoreError},
    ext::StoreExt,
    future::StoreFuture,
    health::{Health, HealthStatus},
    observation::{Observation, Observer},
    session_store::SessionStore,
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::{Added, KeyPage, ValueStats, ValueStore},
};
use crate::{
    ended::{EndReason, Ended},
    event::Event,
    limits::Limits,
    record::Version,
    time::Timestamp,
    token::SessionId,
};

/// An operation of a [`SessionStore`] with its arguments: what a [`StoreWrapper`](super::StoreWrapper) intercepts.
///
/// The trait is implemented by the operations of this crate only.
pub trait Operation: sealed::Sealed + Clone + Send + Sync {
    /// What the store replies.
    type Reply: Send + 'static;

    #[doc(hidden)]
    const KIND: Kind;

    /// The name of the operation in spans and metrics.
    fn name(&self) -> &'static str;

    /// Runs the operation on `store`.
    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's;

    /// The label `result` of metrics.
    #[doc(hidden)]
    fn result(_: &Self::Reply) -> &'static str {
        "done"
    }

    /// Whether it gives a session a new token.
    #[doc(hidden)]
    fn is_rotation(&self) -> bool {
        false
    }

    /// What the reply, or its absence, says about sessions.
    #[doc(hidden)]
    fn observe(&self, _: Result<&Self::Reply, &StoreError>, _: Timestamp, _: &mut Observer<'_>) {}

    /// The health in the reply.
    #[doc(hidden)]
    fn health_in(_: &Self::Reply) -> Option<HealthStatus> {
        None
    }

    /// The reply of a lookup in a cache.
    #[doc(hidden)]
    fn read_cached(&self, _: impl FnOnce(&SessionId) -> Option<Found>) -> Option<Self::Reply> {
        None
    }

    /// The reply of an operation that can be skipped in an outage.
    #[doc(hidden)]
    fn skipped() -> Option<Self::Reply> {
        None
    }

    /// The error in a reply that leaves open whether the operation was applied.
    #[doc(hidden)]
    fn doubt_in(_: &Self::Reply) -> Option<&StoreError> {
        None
    }

    /// The reply, unless it leaves open whether the operation was applied.
    #[doc(hidden)]
    fn confirmed(reply: Self::Reply) -> Result<Self::Reply, StoreError> {
        Ok(reply)
    }

    /// The result when it is unknown whether the operation was applied. An idempotent operation fails, and can be repeated.
    #[doc(hidden)]
    fn unconfirmed(error: StoreError) -> Result<Self::Reply, StoreError> {
        Err(error)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What an operation says about the state of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Load,
    /// Reads several sessions.
    Read,
    /// Writes one session.
    Write,
    /// Writes the sessions of a user.
    WriteUser,
    Health,
    /// No session depends on it.
    Event,
    /// No session depends on it.
    Value,
}

/// [`SessionStore::load`] as a value.
#[derive(Clone, Debug)]
pub struct Load<'a> {
    pub(crate) id: &'a SessionId,
}

impl sealed::Sealed for Load<'_> {}

impl Operation for Load<'_> {
    type Reply = Found;

    const KIND: Kind = Kind::Load;

    fn name(&self) -> &'static str {
        "load"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.load(self.id)
    }

    fn result(reply: &Found) -> &'static str {
        match reply {
            Found::Live(_) => "live",
            Found::Ended(_) => "ended",
            Found::Unknown => "unknown",
        }
    }

    fn observe(&self, reply: Result<&Found, &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        match reply {
            Ok(Found::Live(loaded)) => observe(Observation::Live(self.id, loaded.clone())),
            Ok(Found::Ended(ended)) => observe(Observation::Ended(self.id, *ended, None)),
            Ok(Found::Unknown) => observe(Observation::NotLive(self.id)),
            Err(_) => {}
        }
    }

    fn read_cached(&self, cached: impl FnOnce(&SessionId) -> Option<Found>) -> Option<Found> {
        cached(self.id)
    }
}

/// [`SessionStore::create`] as a value.
#[derive(Clone, Debug)]
pub struct Create<'a> {
    pub(crate) id: &'a SessionId,
    pub(crate) new: Entry,
    pub(crate) limits: Limits,
}

impl sealed::Sealed for Create<'_> {}

impl Operation for Create<'_> {
    type Reply = Created;

    const KIND: Kind = Kind::Write;

    fn name(&self) -> &'static str {
        "create"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.create(self.id, self.new, self.limits)
    }

    fn result(reply: &Created) -> &'static str {
        match reply {
            Created::Done { .. } => "done",
            Created::Taken => "taken",
            Created::Full => "full",
        }
    }

    fn observe(&self, reply: Result<&Created, &StoreError>, now: Timestamp, observe: &mut Observer<'_>) {
        if let Ok(Created::Done { evicted }) = reply {
            for id in evicted {
                observe(Observation::Ended(id, Ended::new(EndReason::Evicted, now), None));
            }
            observe(Observation::Live(self.id, self.new.loaded()));
        }
    }
}

/// [`SessionStore::update`] as a value.
#[derive(Clone, Debug)]
pub struct Update<'a> {
    pub(crate) id: &'a SessionId,
    pub(crate) expected: Version,
    pub(crate) new: Entry,
}

impl sealed::Sealed for Update<'_> {}

impl Operation for Update<'_> {
    type Reply = Outcome;

    const KIND: Kind = Kind::Write;

    fn name(&self) -> &'static str {
        "update"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.update(self.id, self.expected, self.new)
    }

    fn is_rotation(&self) -> bool {
        self.new.record.rotates()
    }

    fn result(reply: &Outcome) -> &'static str {
        match reply {
            Outcome::Done => "done",
            Outcome::Conflict(_) => "conflict",
            Outcome::Gone => "gone",
        }
    }

    fn observe(&self, reply: Result<&Outcome, &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        match reply {
            Ok(Outcome::Done) => observe(Observation::Live(self.id, self.new.loaded())),
            Ok(Outcome::Conflict(current)) => observe(Observation::Live(self.id, current.clone())),
            Ok(Outcome::Gone) => observe(Observation::NotLive(self.id)),
            Err(_) => {}
        }
    }
}

/// [`SessionStore::touch`] as a value.
#[derive(Clone, Debug)]
pub struct Touch<'a> {
    pub(crate) id: &'a SessionId,
    pub(crate) entry: Entry,
}

impl sealed::Sealed for Touch<'_> {}

impl Operation for Touch<'_> {
    type Reply = ();

    const KIND: Kind = Kind::Write;

    fn name(&self) -> &'static str {
        "touch"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.touch(self.id, self.entry)
    }

    fn observe(&self, reply: Result<&(), &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        if reply.is_ok() {
            observe(Observation::Extended(self.id, &self.entry));
        }
    }

    fn skipped() -> Option<()> {
        Some(())
    }
}

/// [`SessionStore::end`] as a value.
#[derive(Clone, Debug)]
pub struct EndSession<'a> {
    pub(crate) id: &'a SessionId,
    pub(crate) end: End,
}

impl sealed::Sealed for EndSession<'_> {}

impl Operation for EndSession<'_> {
    type Reply = EndOutcome;

    const KIND: Kind = Kind::Write;

    fn name(&self) -> &'static str {
        match self.end {
            End::For(_) => "end",
            End::Replaced { .. } => "replace",
            End::Used { .. } => "consume",
        }
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.end(self.id, self.end)
    }

    fn result(reply: &EndOutcome) -> &'static str {
        match reply {
            EndOutcome::Done | EndOutcome::Claimed(_) => "done",
            EndOutcome::Conflict(_) => "conflict",
            EndOutcome::Gone => "gone",
        }
    }

    fn observe(&self, reply: Result<&EndOutcome, &StoreError>, now: Timestamp, observe: &mut Observer<'_>) {
        let ended = |claim| Observation::Ended(self.id, self.end.tombstone(now), claim);
        observe(match (reply, self.end) {
            (Err(_), _) => Observation::MaybeEnded(self.id),
            (Ok(EndOutcome::Conflict(current)), _) => Observation::Live(self.id, current.clone()),
            // Even if it had ended before: then the reason is another, but not the fact.
            (Ok(_), End::For(_)) | (Ok(EndOutcome::Done), _) => ended(None),
            (Ok(EndOutcome::Claimed(was)), End::Used { claim }) => ended(Some((claim, was.clone()))),
            // The reply does not say how it ended.
            (Ok(EndOutcome::Claimed(_) | EndOutcome::Gone), _) => Observation::NotLive(self.id),
        });
    }
}

/// [`SessionStore::health`] as a value.
#[derive(Clone, Debug)]
pub struct GetHealth;

impl sealed::Sealed for GetHealth {}

impl Operation for GetHealth {
    type Reply = Health;

    const KIND: Kind = Kind::Health;

    fn name(&self) -> &'static str {
        "health"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.health()
    }

    fn health_in(reply: &Health) -> Option<HealthStatus> {
        Some(reply.status())
    }
}

/// [`UserStore::list`] as a value.
#[derive(Clone, Debug)]
pub struct List<'a> {
    pub(crate) user: &'a str,
}

impl sealed::Sealed for List<'_> {}

impl Operation for List<'_> {
    type Reply = Vec<(SessionId, Loaded)>;

    const KIND: Kind = Kind::Read;

    fn name(&self) -> &'static str {
        "list"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.list(self.user)
    }
}

/// [`UserStore::end_user`] as a value.
#[derive(Clone, Debug)]
pub struct EndUser<'a> {
    pub(crate) user: &'a str,
    pub(crate) except: Option<&'a SessionId>,
    pub(crate) reason: EndReason,
}

impl sealed::Sealed for EndUser<'_> {}

impl Operation for EndUser<'_> {
    type Reply = Vec<SessionId>;

    const KIND: Kind = Kind::WriteUser;

    fn name(&self) -> &'static str {
        "end_user"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.end_user(self.user, self.except, self.reason)
    }

    fn observe(&self, reply: Result<&Vec<SessionId>, &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        let Self { user, except, reason } = *self;
        observe(match reply {
            Ok(ids) => Observation::UserEnded { user, except, reason, ids },
            Err(_) => Observation::UserMaybeEnded { user, except },
        });
    }
}

/// [`ScanStore::scan`] as a value.
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    pub(crate) from: &'a Cursor,
    pub(crate) count: usize,
}

impl sealed::Sealed for Scan<'_> {}

impl Operation for Scan<'_> {
    type Reply = Page;

    const KIND: Kind = Kind::Read;

    fn name(&self) -> &'static str {
        "scan"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.scan(self.from, self.count)
    }
}

/// [`ScanStore::count`] as a value.
#[derive(Clone, Debug)]
pub struct Count;

impl sealed::Sealed for Count {}

impl Operation for Count {
    type Reply = u64;

    const KIND: Kind = Kind::Read;

    fn name(&self) -> &'static str {
        "count"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.count()
    }
}

/// [`EventStore::publish`] as a value.
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    pub(crate) event: &'a Event,
}

impl sealed::Sealed for Publish<'_> {}

impl Operation for Publish<'_> {
    type Reply = ();

    const KIND: Kind = Kind::Event;

    fn name(&self) -> &'static str {
        "publish"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.publish(self.event)
    }

    fn skipped() -> Option<()> {
        Some(())
    }
}

/// [`EventStore::events`] as a value.
#[derive(Clone, Debug)]
pub struct ReadEvents<'a> {
    pub(crate) from: Option<&'a Cursor>,
}

impl sealed::Sealed for ReadEvents<'_> {}

impl Operation for ReadEvents<'_> {
    type Reply = Published;

    const KIND: Kind = Kind::Event;

    fn name(&self) -> &'static str {
        "events"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        store.events(self.from)
    }
}

/// [`ValueStore::get`] as a value.
#[derive(Clone, Debug)]
pub struct Get<'a> {
    pub(crate) keys: &'a [&'a str],
}

impl sealed::Sealed for Get<'_> {}

impl Operation for Get<'_> {
    type Reply = Vec<Option<Vec<u8>>>;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "get"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.get(self.keys))
    }
}

/// [`ValueStore::set`] as a value.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
    pub(crate) ttl: Option<Duration>,
}

impl sealed::Sealed for Set<'_> {}

impl Operation for Set<'_> {
    type Reply = ();

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "set"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.set(self.key, self.value, self.ttl))
    }
}

/// [`ValueStore::delete`] as a value.
#[derive(Clone, Debug)]
pub struct Delete<'a> {
    pub(crate) key: &'a str,
}

impl sealed::Sealed for Delete<'_> {}

impl Operation for Delete<'_> {
    type Reply = bool;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "delete"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.delete(self.key))
    }
}

/// [`ValueStore::exists`] as a value.
#[derive(Clone, Debug)]
pub struct Exists<'a> {
    pub(crate) key: &'a str,
}

impl sealed::Sealed for Exists<'_> {}

impl Operation for Exists<'_> {
    type Reply = bool;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "exists"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.exists(self.key))
    }
}

/// [`ValueStore::expire`] as a value.
#[derive(Clone, Debug)]
pub struct Expire<'a> {
    pub(crate) key: &'a str,
    pub(crate) ttl: Duration,
}

impl sealed::Sealed for Expire<'_> {}

impl Operation for Expire<'_> {
    type Reply = bool;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "expire"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.expire(self.key, self.ttl))
    }
}

/// [`ValueStore::add`] as a value.
#[derive(Clone, Debug)]
pub struct Add<'a> {
    pub(crate) key: &'a str,
    pub(crate) by: i64,
}

impl sealed::Sealed for Add<'_> {}

impl Operation for Add<'_> {
    type Reply = Added;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "add"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.add(self.key, self.by))
    }

    fn result(reply: &Added) -> &'static str {
        match reply {
            Added::To(_) => "done",
            Added::NotANumber | Added::Overflow => "refused",
            Added::InDoubt(_) => "in_doubt",
        }
    }

    fn doubt_in(reply: &Added) -> Option<&StoreError> {
        match reply {
            Added::InDoubt(error) => Some(error),
            Added::To(_) | Added::NotANumber | Added::Overflow => None,
        }
    }

    fn confirmed(reply: Added) -> Result<Added, StoreError> {
        match reply {
            Added::InDoubt(error) => Err(error),
            reply => Ok(reply),
        }
    }

    fn unconfirmed(error: StoreError) -> Result<Added, StoreError> {
        Ok(Added::InDoubt(error))
    }
}

/// [`ValueStore::scan`] as a value.
#[derive(Clone, Debug)]
pub struct ScanValues<'a> {
    pub(crate) pattern: &'a str,
    pub(crate) from: &'a Cursor,
    pub(crate) count: usize,
}

impl sealed::Sealed for ScanValues<'_> {}

impl Operation for ScanValues<'_> {
    type Reply = KeyPage;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "scan_values"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.scan(self.pattern, self.from, self.count))
    }
}

/// [`ValueStore::stats`] as a value.
#[derive(Clone, Debug)]
pub struct GetValueStats;

impl sealed::Sealed for GetValueStats {}

impl Operation for GetValueStats {
    type Reply = ValueStats;

    const KIND: Kind = Kind::Value;

    fn name(&self) -> &'static str {
        "value_stats"
    }

    fn run<'s, S: SessionStore + ?Sized>(self, store: &'s S) -> StoreFuture<'s, Self::Reply>
    where
        Self: 's,
    {
        with_values(store, |values| values.stats())
    }
}

/// Runs an operation on the values of `store`.
fn with_values<'a, S: SessionStore + ?Sized, T>(
    store: &'a S,
    run: impl FnOnce(&'a dyn ValueStore) -> StoreFuture<'a, T>,
) -> StoreFuture<'a, T> {
    match store.values() {
        Some(values) => run(values),
        None => StoreFuture::ready(Err(StoreError::Unsupported(Ability::Values))),
    }
}
