//! How one session gets from the old store to the new.
//!
//! ```text
//! in old     in new     the session is
//! live       -          what old says
//! live       copy       what old says
//! moved      copy       what the copy says
//! moved      live       what new says, from then on
//! ended      copy       ended
//! unknown    copy       ended: old has forgotten it
//! ```
//! A copy is a record whose version [says so](Version::is_copy). That a session was moved is remembered by old as any
//! [replacement](SessionStore::replace) is: it ended in favour of itself. Each step depends on the one before, and anybody can
//! make the next, so it does not matter who does, how many at once, or where one of them is cut off.

use std::{error::Error, fmt, sync::Arc};

use super::MigratingStore;
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

/// How often a step is tried. Each try that fails is another's success, and there are three steps.
pub(super) const MAX_ATTEMPTS: usize = 16;

/// Why a session is not in the new store.
pub(super) struct Stuck {
    pub(super) error: StoreError,
    /// What it is, when old was asked: alive there, and new could not take it.
    pub(super) in_old: Option<Loaded>,
}

impl From<StoreError> for Stuck {
    fn from(error: StoreError) -> Self {
        Self { error, in_old: None }
    }
}

impl MigratingStore {
    /// What there is to know of a session. If it is alive, it is in the new store from now on, and in no other.
    pub(super) async fn moved(&self, id: &SessionId) -> Result<Found, Stuck> {
        for _ in 0..MAX_ATTEMPTS {
            let next = match self.new.load(id).await? {
                Found::Live(copy) if copy.record.version().is_copy() => self.take_from_old(id, copy).await?,
                Found::Unknown => match self.old.load(id).await? {
                    Found::Live(loaded) => self.copy(id, loaded).await?,
                    // It was moved between the two questions; or new has forgotten since how it ended.
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

    /// The first step: a copy, which counts for nothing yet. `None`: look again.
    async fn copy(&self, id: &SessionId, loaded: Loaded) -> Result<Option<Found>, Stuck> {
        if loaded.record.version().is_copy() {
            // Old was the new store of another migration, which has left it.
            let original = with_version(&loaded, Version::of_original);
            self.old.update(id, loaded.record.version(), original).await?;
            return Ok(None);
        }
        let copy = with_version(&loaded, Version::of_copy);
        // Without limits: it is no new session.
        match self.new.create(id, copy.clone(), Limits::none()).await {
            Ok(Created::Done { .. }) => {
                self.take_from_old(id, Loaded { record: copy.record, ttl: Some(copy.ttl) }).await
            }
            Ok(Created::Taken) => Ok(None),
            Ok(Created::Full) => Err(Stuck { error: StoreError::Outage(NoPlace.into()), in_old: Some(loaded) }),
            Err(error) => Err(Stuck { error, in_old: Some(loaded) }),
        }
    }

    /// The second step, which counts: old gives up what was copied, if nobody wrote it since. `None`: look again.
    async fn take_from_old(&self, id: &SessionId, copy: Loaded) -> Result<Option<Found>, Stuck> {
        let version = copy.record.version();
        match self.old.replace(id, Some(version.of_original()), id).await? {
            EndOutcome::Done | EndOutcome::Claimed(_) => return self.begin(id, copy).await,
            // Somebody who does not know of the move wrote it.
            EndOutcome::Conflict(newer) => {
                self.new.update(id, version, with_version(&newer, Version::of_copy)).await?;
            }
            EndOutcome::Gone => match self.old.load(id).await? {
                Found::Live(_) => {}
                Found::Ended(ended) if is_moved(&ended, id) => return self.begin(id, copy).await,
                Found::Ended(Ended { successor: Some(successor), .. }) => {
                    self.new.replace(id, Some(version), &successor).await?;
                }
                // Only what old has moved can begin: it is a copy for good.
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

    /// The third step: the copy is told that it is the session. `None`: look again.
    async fn begin(&self, id: &SessionId, copy: Loaded) -> Result<Option<Found>, Stuck> {
        let entry = with_version(&copy, Version::of_original);
        match self.new.update(id, copy.record.version(), entry.clone()).await? {
            Outcome::Done => Ok(Some(Found::Live(Loaded { record: entry.record, ttl: Some(entry.ttl) }))),
            Outcome::Conflict(_) | Outcome::Gone => Ok(None),
        }
    }
}

/// Whether a session has ended in the old store because it goes on in the new.
fn is_moved(ended: &Ended, id: &SessionId) -> bool {
    ended.successor.as_ref() == Some(id)
}

/// The same under another version, for as long as it lives.
fn with_version(loaded: &Loaded, version: impl FnOnce(Version) -> Version) -> Entry {
    let record = &loaded.record;
    let record = Record { version: version(record.version()), ..Record::clone(record) };
    // Whom nothing limits lives as if it had been used now.
    let ttl = loaded.ttl.unwrap_or(record.idle_timeout);
    Entry { record: Arc::new(record), ttl }
}

pub(super) fn contended() -> StoreError {
    StoreError::Outage(Contended.into())
}

/// Others were always faster.
#[derive(Debug)]
struct Contended;

impl fmt::Display for Contended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many move this session at once")
    }
}

impl Error for Contended {}

#[derive(Debug)]
struct NoPlace;

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the new store has no place for a session of the old one")
    }
}

impl Error for NoPlace {}
