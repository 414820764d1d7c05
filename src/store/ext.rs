//! Every operation of every store, for callers.

use super::{
    error::{Ability, StoreError},
    future::StoreFuture,
    session_store::SessionStore,
    types::{Cursor, End, EndOutcome, Found, Loaded, Page, Published},
    values::ValueStore,
};
use crate::{ended::EndReason, event::Event, record::Version, token::SessionId};

/// Operations on any store: the two conditional ends, and the optional abilities, which fail with
/// [`StoreError::Unsupported`] if the store lacks them.
///
/// ```
/// use tower_keep::{MemoryStore, store::StoreExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_keep::store::StoreError> {
/// assert_eq!(MemoryStore::new().count().await?, 0);
/// # Ok(())
/// # }
/// ```
pub trait StoreExt: SessionStore {
    /// Ends a session as replaced by `successor`, if it has version `expected`: see [`End::Replaced`].
    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &SessionId,
    ) -> StoreFuture<'a, EndOutcome> {
        self.end(id, End::Replaced { expected, successor: *successor })
    }

    /// Uses up a session for one `claim`: [`Found::Live`] with what it held for the first claim, which may be repeated;
    /// for all others how the session ended, or [`Found::Unknown`].
    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move {
            match self.end(id, End::Used { claim }).await? {
                EndOutcome::Claimed(loaded) => Ok(Found::Live(loaded)),
                EndOutcome::Done | EndOutcome::Conflict(_) | EndOutcome::Gone => match self.load(id).await? {
                    // A session that is alive after all was created after the claim: it is not this caller's.
                    Found::Live(_) => Ok(Found::Unknown),
                    found => Ok(found),
                },
            }
        })
    }

    /// See [`UserStore::list`](super::UserStore::list).
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        with(self.users(), Ability::Users, |users| users.list(user))
    }

    /// See [`UserStore::end_user`](super::UserStore::end_user).
    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        with(self.users(), Ability::Users, |users| users.end_user(user, except, reason))
    }

    /// See [`ScanStore::scan`](super::ScanStore::scan).
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        with(self.scans(), Ability::Scan, |scans| scans.scan(from, count))
    }

    /// See [`ScanStore::count`](super::ScanStore::count).
    fn count(&self) -> StoreFuture<'_, u64> {
        with(self.scans(), Ability::Scan, |scans| scans.count())
    }

    /// See [`EventStore::publish`](super::EventStore::publish). Does nothing if no other process shares events.
    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        match self.event_log() {
            Some(log) => log.publish(event),
            None => StoreFuture::ready(Ok(())),
        }
    }

    /// See [`EventStore::events`](super::EventStore::events). Always empty if no other process shares events.
    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        match self.event_log() {
            Some(log) => log.events(from),
            None => StoreFuture::ready(Ok(Published::default())),
        }
    }

    /// The [values](SessionStore::values) beside the sessions.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if the store has none.
    fn require_values(&self) -> Result<&dyn ValueStore, StoreError> {
        self.values().ok_or(StoreError::Unsupported(Ability::Values))
    }
}

impl<S: SessionStore + ?Sized> StoreExt for S {}

fn with<'a, A: ?Sized, T>(
    ability: Option<&'a A>,
    name: Ability,
    run: impl FnOnce(&'a A) -> StoreFuture<'a, T>,
) -> StoreFuture<'a, T> {
    match ability {
        Some(ability) => run(ability),
        None => StoreFuture::ready(Err(StoreError::Unsupported(name))),
    }
}
