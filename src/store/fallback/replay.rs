//! The main store is back: it is told what it has missed.
//!
//! ```text
//!   ends, all of them ──▶ what began and changed, session by session ──▶ values ──▶ over: it is asked again
//!      ▲                                            │                      │
//!      └──────────── what ended meanwhile ──────────┴──────────────────────┘
//! ```
//! A request tells it, one at a time, and not more than a bounded number of sessions; what is left the next ones tell. The others are served from
//! memory meanwhile, and what they do is journalled too. What has no answer stays in the journal, and is told again: every write
//! can be repeated, but that which adds to a number.

use std::time::Duration;

use super::{
    journal::{EndOf, Untold},
    values::{ToldValue, ValueTask},
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

/// How many sessions are told at once: enough to keep the main store busy, so that the end comes nearer however much is
/// written meanwhile.
pub(super) const AT_ONCE: usize = 64;
/// How often a request does that before it goes on with its own work, and for how long it begins another time.
pub(super) const ROUNDS: usize = 16;
pub(super) const TELLING: Duration = Duration::from_millis(50);

/// Something the main store has to be told.
pub(super) enum Task {
    End(Untold),
    Write(SessionId, Writing),
    Value(ValueTask),
}

pub(super) enum Writing {
    Create(Entry, Limits),
    Update(Version, Entry),
    Touch(Entry),
}

impl Writing {
    pub(super) fn entry(&self) -> &Entry {
        match self {
            Self::Create(entry, _) | Self::Update(_, entry) | Self::Touch(entry) => entry,
        }
    }
}

/// What it said to that.
pub(super) enum Told {
    /// It has it now. These made room for it.
    Done(Vec<SessionId>),
    /// It has this, and keeps it.
    Other(Loaded),
    /// It has no such session, or has no place for it.
    Gone(EndReason),
    /// That, about a value.
    Value(ToldValue),
}

/// # Errors
/// When the main store is away again, or does not take this now: it must be told again.
pub(super) async fn tell<S: SessionStore>(main: &S, task: &Task) -> Result<Told, StoreError> {
    let told = match task {
        Task::End(Untold { of: EndOf::All(user, except), end, .. }) => {
            main.end_user(user, except.as_ref(), end.reason()).await.map(|_| Told::Done(Vec::new()))
        }
        Task::End(Untold { of: EndOf::One(id), end, .. }) => tell_end(main, id, end).await,
        Task::Write(id, writing) => tell_write(main, id, writing).await,
        Task::Value(task) => return Ok(Told::Value(task.tell(main).await?)),
    };
    match told {
        // What is there cannot be read: it cannot be served either, and there is nothing to be gained by telling it for ever. Unless it is
        // about all sessions of somebody, of which others can.
        Err(StoreError::Corrupt(source)) if !matches!(task, Task::End(Untold { of: EndOf::All(..), .. })) => {
            tracing::warn!(%source, "a session of the outage cannot be told to the store: its record is not readable");
            Ok(Told::Gone(EndReason::Corrupt))
        }
        told => told,
    }
}

async fn tell_end<S: SessionStore>(main: &S, id: &SessionId, end: &End) -> Result<Told, StoreError> {
    let outcome = main.end(id, *end).await?;
    // If the creation of a used session is still on its way, it must not succeed.
    if let (End::Used { .. }, EndOutcome::Gone) = (end, outcome) {
        main.end(id, End::For(EndReason::Used)).await?;
    }
    Ok(Told::Done(Vec::new()))
}

async fn tell_write<S: SessionStore>(main: &S, id: &SessionId, writing: &Writing) -> Result<Told, StoreError> {
    Ok(match writing {
        Writing::Create(entry, limits) => match main.create(id, entry.clone(), *limits).await? {
            Created::Done { evicted } => Told::Done(evicted),
            Created::Full => Told::Gone(EndReason::Evicted),
            Created::Taken => match main.load(id).await? {
                Found::Live(loaded) => Told::Other(loaded),
                Found::Ended(ended) => Told::Gone(ended.reason),
                Found::Unknown => Told::Gone(EndReason::Expired),
            },
        },
        Writing::Update(expected, entry) => match main.update(id, *expected, entry.clone()).await? {
            Outcome::Done => Told::Done(Vec::new()),
            Outcome::Conflict(loaded) => Told::Other(loaded),
            Outcome::Gone => match main.load(id).await? {
                Found::Ended(ended) => Told::Gone(ended.reason),
                // Forgotten, or lost.
                Found::Unknown | Found::Live(_) => Told::Gone(EndReason::Expired),
            },
        },
        Writing::Touch(entry) => {
            // Somebody may have used it elsewhere, and later.
            if let Found::Live(theirs) = main.load(id).await?
                && theirs.ttl.is_some_and(|ttl| ttl < entry.ttl)
            {
                main.touch(id, entry.clone()).await?;
            }
            Told::Done(Vec::new())
        }
    })
}
