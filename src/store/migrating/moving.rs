//! Moves one session from the old store to the new one.
//!
//! ```text
//! in old     in new     the session is
//! live       -          as in old
//! live       copy       as in old
//! moved      copy       as in the copy
//! moved      live       as in new, from then on
//! ended      copy       ended
//! unknown    copy       ended, and old has removed the tombstone
//! ```
//! The version of a record [marks a copy](Version::is_copy). A moved session has a tombstone in old that names itself as the successor. Each
//! step is conditional on the previous one, so any request can do the next step, and concurrent or cancelled requests do no harm.

use std::sync::Arc;

use super::{
    MigratingStore,
    stuck::{MAX_ATTEMPTS, Stuck, contended},
};
use crate::{
    ended::{EndReason, Ended},
    limits::Limits,
    record::{Record, Version},
    store::{
        error::StoreError,
        ext::StoreExt,
        session_store::SessionStore,
        types::{Created, End, EndOutcome, Entry, Found, Loaded, Outcome},
    },
    token::SessionId,
};

impl MigratingStore {
    /// The state of a session. If it is alive, it is in the new store only from now on.
    pub(super) async fn moved(&self, id: &SessionId) -> Result<Found, Stuck> {
        for _ in 0..MAX_ATTEMPTS {
            let next = match self.new.load(id).await? {
                Found::Live(copy) if copy.record.version().is_copy() => self.take_from_old(id, copy).await?,
                Found::Unknown => match self.old.load(id).await? {
                    Found::Live(loaded) => self.copy(id, loaded).await?,
                    // It was moved between the two queries, or new has removed its tombstone.
                    Found::Ended(ended) if is_moved(&ended, id) => match self.new.load(id).await? {
                        Found::Unknown => Some(Found::Unknown),
                        _ => None,
                    },
                    found => Some(found),
                },
                found => Some(found),
            };
            if let Some(found) = next {
                return Ok(found);
            }
        }
        Err(contended().into())
    }

    /// Step 1: create a copy. `None`: start again.
    async fn copy(&self, id: &SessionId, loaded: Loaded) -> Result<Option<Found>, Stuck> {
        if loaded.record.version().is_copy() {
            // Old was the new store of an unfinished migration.
            let original = with_version(&loaded, Version::of_original);
            self.old.update(id, loaded.record.version(), original).await?;
            return Ok(None);
        }
        let copy = with_version(&loaded, Version::of_copy);
        // Without limits, because the session exists already.
        match self.new.create(id, copy.clone(), Limits::none()).await {
            Ok(Created::Done { .. }) => {
                self.take_from_old(id, Loaded { record: copy.record, ttl: Some(copy.ttl) }).await
            }
            Ok(Created::Taken) => Ok(None),
            Ok(Created::Full) => {
                Err(Stuck { error: StoreError::Outage("the new store is full".into()), in_old: Some(loaded) })
            }
            Err(error) => Err(Stuck { error, in_old: Some(loaded) }),
        }
    }

    /// Step 2, which decides: the session ends in old, unless it was written since. `None`: start again.
    async fn take_from_old(&self, id: &SessionId, copy: Loaded) -> Result<Option<Found>, Stuck> {
        let version = copy.record.version();
        match self.old.replace(id, Some(version.of_original()), id).await? {
            EndOutcome::Done | EndOutcome::Claimed(_) => return self.begin(id, copy).await,
            // A request that does not know of the move wrote it.
            EndOutcome::Conflict(newer) => {
                self.new.update(id, version, with_version(&newer, Version::of_copy)).await?;
            }
            EndOutcome::Gone => match self.old.load(id).await? {
                Found::Live(_) => {}
                Found::Ended(ended) if is_moved(&ended, id) => return self.begin(id, copy).await,
                Found::Ended(Ended { successor: Some(successor), .. }) => {
                    self.new.replace(id, Some(version), &successor).await?;
                }
                // The session has ended in old, so the copy must not become a session.
                Found::Ended(ended) => {
                    self.new.end(id, End::For(ended.reason)).await?;
                }
                Found::Unknown => {
                    self.new.end(id, End::For(EndReason::Expired)).await?;
                }
            },
        }
        Ok(None)
    }

    /// Step 3: the copy becomes the session. `None`: start again.
    async fn begin(&self, id: &SessionId, copy: Loaded) -> Result<Option<Found>, Stuck> {
        let entry = with_version(&copy, Version::of_original);
        match self.new.update(id, copy.record.version(), entry.clone()).await? {
            Outcome::Done => Ok(Some(Found::Live(Loaded { record: entry.record, ttl: Some(entry.ttl) }))),
            Outcome::Conflict(_) | Outcome::Gone => Ok(None),
        }
    }
}

/// Whether the tombstone says that the session was moved.
fn is_moved(ended: &Ended, id: &SessionId) -> bool {
    ended.successor.as_ref() == Some(id)
}

/// The record with another version, and its time to live.
fn with_version(loaded: &Loaded, version: impl FnOnce(Version) -> Version) -> Entry {
    let record = &loaded.record;
    let record = Record { version: version(record.version()), ..Record::clone(record) };
    // Without a time to live, the session lives as if it was used now.
    let ttl = loaded.ttl.unwrap_or(record.idle_timeout);
    Entry { record: Arc::new(record), ttl }
}
