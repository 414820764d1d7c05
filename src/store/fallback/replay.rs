//! The replay of an outage to the main store, after it has recovered.
//!
//! ```text
//!   all ends ──▶ new and changed sessions ──▶ values ──▶ done: the main store serves again
//!      ▲                   │                    │
//!      └──── new ends ─────┴────────────────────┘
//! ```
//! One request at a time replays a bounded number of changes; the next requests replay the rest. Other requests are still served from
//! memory, and their changes are journaled too. A change without a reply stays in the journal and is replayed again. Every write can be
//! repeated, except an increment.

use std::time::Duration;

use super::{
    journal::{EndOf, JournaledEnd},
    values::{ValueReplay, ValueReply},
};
use crate::{
    ended::EndReason,
    limits::Limits,
    record::Version,
    store::{
        error::StoreError,
        ext::StoreExt,
        session_store::SessionStore,
        types::{Created, End, EndOutcome, Entry, Found, Loaded, Outcome},
    },
    token::SessionId,
};

/// The number of changes that are replayed concurrently: enough to finish even if requests keep writing.
pub(super) const BATCH: usize = 64;
/// The number of batches that one request replays, and the time after which it starts no other batch.
pub(super) const BATCHES: usize = 16;
pub(super) const REPLAY_BUDGET: Duration = Duration::from_millis(50);

/// A change to replay.
pub(super) enum ReplayTask {
    End(JournaledEnd),
    Write(SessionId, ReplayWrite),
    Value(ValueReplay),
}

pub(super) enum ReplayWrite {
    Create(Entry, Limits),
    Update(Version, Entry),
    Touch(Entry),
}

impl ReplayWrite {
    pub(super) fn entry(&self) -> &Entry {
        match self {
            Self::Create(entry, _) | Self::Update(_, entry) | Self::Touch(entry) => entry,
        }
    }
}

/// The reply of the main store.
pub(super) enum ReplayReply {
    /// The change is applied. These sessions were evicted.
    Done(Vec<SessionId>),
    /// The main store has this newer version, and keeps it.
    Conflict(Loaded),
    /// The session does not exist in the main store, or the main store is full.
    Gone(EndReason),
    /// The reply about a value.
    Value(ValueReply),
}

/// # Errors
/// If the main store is unavailable again, or refuses the change for now: the change must be replayed again.
pub(super) async fn replay(main: &dyn SessionStore, task: &ReplayTask) -> Result<ReplayReply, StoreError> {
    let reply = match task {
        ReplayTask::End(JournaledEnd { of: EndOf::All(user, except), end, .. }) => {
            main.end_user(user, except.as_ref(), end.reason()).await.map(|_| ReplayReply::Done(Vec::new()))
        }
        ReplayTask::End(JournaledEnd { of: EndOf::One(id), end, .. }) => replay_end(main, id, end).await,
        ReplayTask::Write(id, writing) => replay_write(main, id, writing).await,
        ReplayTask::Value(task) => return Ok(ReplayReply::Value(task.replay(main).await?)),
    };
    match reply {
        // A corrupt record cannot be served, so replaying the change again is pointless. The end of all sessions of a user is about
        // other records too.
        Err(StoreError::Corrupt(source))
            if !matches!(task, ReplayTask::End(JournaledEnd { of: EndOf::All(..), .. })) =>
        {
            tracing::warn!(%source, "a change from the outage cannot be replayed: the record in the store is corrupt");
            Ok(ReplayReply::Gone(EndReason::Corrupt))
        }
        reply => reply,
    }
}

async fn replay_end(main: &dyn SessionStore, id: &SessionId, end: &End) -> Result<ReplayReply, StoreError> {
    let outcome = main.end(id, *end).await?;
    // If the creation of a used session is still on its way, it must not succeed.
    if let (End::Used { .. }, EndOutcome::Gone) = (end, outcome) {
        main.end(id, End::For(EndReason::Used)).await?;
    }
    Ok(ReplayReply::Done(Vec::new()))
}

async fn replay_write(
    main: &dyn SessionStore,
    id: &SessionId,
    writing: &ReplayWrite,
) -> Result<ReplayReply, StoreError> {
    Ok(match writing {
        ReplayWrite::Create(entry, limits) => match main.create(id, entry.clone(), *limits).await? {
            Created::Done { evicted } => ReplayReply::Done(evicted),
            Created::Full => ReplayReply::Gone(EndReason::Evicted),
            Created::Taken => match main.load(id).await? {
                Found::Live(loaded) => ReplayReply::Conflict(loaded),
                Found::Ended(ended) => ReplayReply::Gone(ended.reason),
                Found::Unknown => ReplayReply::Gone(EndReason::Expired),
            },
        },
        ReplayWrite::Update(expected, entry) => match main.update(id, *expected, entry.clone()).await? {
            Outcome::Done => ReplayReply::Done(Vec::new()),
            Outcome::Conflict(loaded) => ReplayReply::Conflict(loaded),
            Outcome::Gone => match main.load(id).await? {
                Found::Ended(ended) => ReplayReply::Gone(ended.reason),
                // Expired, or lost by the main store.
                Found::Unknown | Found::Live(_) => ReplayReply::Gone(EndReason::Expired),
            },
        },
        ReplayWrite::Touch(entry) => {
            // Another process may have used the session later.
            if let Found::Live(theirs) = main.load(id).await?
                && theirs.ttl.is_some_and(|ttl| ttl < entry.ttl)
            {
                main.touch(id, entry.clone()).await?;
            }
            ReplayReply::Done(Vec::new())
        }
    })
}
