//! The operations of a store as values, so that a wrapper intercepts all of them in one function.
//!
//! To add an operation: a method on a trait in `session_store.rs` or `values.rs`, its value here, its line in `wrapper.rs`, and its
//! implementation in the memory and Redis stores.

use std::time::Duration;

#[cfg(doc)]
use super::{EventStore, ScanStore, UserStore};
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

    #[doc(hidden)]
    const NAME: &'static str;

    /// The name of the operation in spans and metrics.
    fn name(&self) -> &'static str {
        Self::NAME
    }

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

/// Defines an operation: its arguments, its reply, its kind and name, and the call that runs it. Then come the methods of [`Operation`]
/// that it overrides.
macro_rules! operation {
    (
        #[doc = $doc:literal]
        $name:ident $(<$lifetime:lifetime>)? { $($field:ident: $type:ty),* } => $reply:ty, $kind:expr, $label:literal,
        |$store:ident| $run:expr;
        $($method:tt)*
    ) => {
        #[doc = $doc]
        #[derive(Clone, Debug)]
        pub struct $name$(<$lifetime>)? {
            $(pub(crate) $field: $type,)*
        }

        impl$(<$lifetime>)? sealed::Sealed for $name$(<$lifetime>)? {}

        impl$(<$lifetime>)? Operation for $name$(<$lifetime>)? {
            type Reply = $reply;

            const KIND: Kind = $kind;
            const NAME: &'static str = $label;

            fn run<'s, S: SessionStore + ?Sized>(self, $store: &'s S) -> StoreFuture<'s, $reply>
            where
                Self: 's,
            {
                let Self { $($field),* } = self;
                $run
            }

            $($method)*
        }
    };
}

operation! {
    /// [`SessionStore::load`] as a value.
    Load<'a> { id: &'a SessionId } => Found, Kind::Load, "load",
    |store| store.load(id);

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

operation! {
    /// [`SessionStore::create`] as a value.
    Create<'a> { id: &'a SessionId, new: Entry, limits: Limits } => Created, Kind::Write, "create",
    |store| store.create(id, new, limits);

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

operation! {
    /// [`SessionStore::update`] as a value.
    Update<'a> { id: &'a SessionId, expected: Version, new: Entry } => Outcome, Kind::Write, "update",
    |store| store.update(id, expected, new);

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

operation! {
    /// [`SessionStore::touch`] as a value.
    Touch<'a> { id: &'a SessionId, entry: Entry } => (), Kind::Write, "touch",
    |store| store.touch(id, entry);

    fn observe(&self, reply: Result<&(), &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        if reply.is_ok() {
            observe(Observation::Extended(self.id, &self.entry));
        }
    }

    fn skipped() -> Option<()> {
        Some(())
    }
}

operation! {
    /// [`SessionStore::end`] as a value.
    EndSession<'a> { id: &'a SessionId, end: End } => EndOutcome, Kind::Write, "end",
    |store| store.end(id, end);

    fn name(&self) -> &'static str {
        match self.end {
            End::For(_) => "end",
            End::Replaced { .. } => "replace",
            End::Used { .. } => "consume",
        }
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

operation! {
    /// [`SessionStore::health`] as a value.
    GetHealth {} => Health, Kind::Health, "health",
    |store| store.health();

    fn health_in(reply: &Health) -> Option<HealthStatus> {
        Some(reply.status())
    }
}

operation! {
    /// [`UserStore::list`] as a value.
    List<'a> { user: &'a str } => Vec<(SessionId, Loaded)>, Kind::Read, "list",
    |store| store.list(user);
}

operation! {
    /// [`UserStore::end_user`] as a value.
    EndUser<'a> { user: &'a str, except: Option<&'a SessionId>, reason: EndReason } => Vec<SessionId>,
    Kind::WriteUser, "end_user",
    |store| store.end_user(user, except, reason);

    fn observe(&self, reply: Result<&Vec<SessionId>, &StoreError>, _: Timestamp, observe: &mut Observer<'_>) {
        let Self { user, except, reason } = *self;
        observe(match reply {
            Ok(ids) => Observation::UserEnded { user, except, reason, ids },
            Err(_) => Observation::UserMaybeEnded { user, except },
        });
    }
}

operation! {
    /// [`ScanStore::scan`] as a value.
    Scan<'a> { from: &'a Cursor, count: usize } => Page, Kind::Read, "scan",
    |store| store.scan(from, count);
}

operation! {
    /// [`ScanStore::count`] as a value.
    Count {} => u64, Kind::Read, "count",
    |store| store.count();
}

operation! {
    /// [`EventStore::publish`] as a value.
    Publish<'a> { event: &'a Event } => (), Kind::Event, "publish",
    |store| store.publish(event);

    fn skipped() -> Option<()> {
        Some(())
    }
}

operation! {
    /// [`EventStore::events`] as a value.
    ReadEvents<'a> { from: Option<&'a Cursor> } => Published, Kind::Event, "events",
    |store| store.events(from);
}

operation! {
    /// [`ValueStore::get`] as a value.
    Get<'a> { keys: &'a [&'a str] } => Vec<Option<Vec<u8>>>, Kind::Value, "get",
    |store| with_values(store, |values| values.get(keys));
}

operation! {
    /// [`ValueStore::set`] as a value.
    Set<'a> { key: &'a str, value: &'a [u8], ttl: Option<Duration> } => (), Kind::Value, "set",
    |store| with_values(store, |values| values.set(key, value, ttl));
}

operation! {
    /// [`ValueStore::delete`] as a value.
    Delete<'a> { key: &'a str } => bool, Kind::Value, "delete",
    |store| with_values(store, |values| values.delete(key));
}

operation! {
    /// [`ValueStore::exists`] as a value.
    Exists<'a> { key: &'a str } => bool, Kind::Value, "exists",
    |store| with_values(store, |values| values.exists(key));
}

operation! {
    /// [`ValueStore::expire`] as a value.
    Expire<'a> { key: &'a str, ttl: Duration } => bool, Kind::Value, "expire",
    |store| with_values(store, |values| values.expire(key, ttl));
}

operation! {
    /// [`ValueStore::add`] as a value.
    Add<'a> { key: &'a str, by: i64 } => Added, Kind::Value, "add",
    |store| with_values(store, |values| values.add(key, by));

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

operation! {
    /// [`ValueStore::scan`] as a value.
    ScanValues<'a> { pattern: &'a str, from: &'a Cursor, count: usize } => KeyPage, Kind::Value, "scan_values",
    |store| with_values(store, |values| values.scan(pattern, from, count));
}

operation! {
    /// [`ValueStore::stats`] as a value.
    GetValueStats {} => ValueStats, Kind::Value, "value_stats",
    |store| with_values(store, |values| values.stats());
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
