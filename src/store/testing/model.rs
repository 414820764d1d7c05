//! The contract for one session.

use std::{sync::Arc, time::Duration};

use super::{HOUR, check};
use crate::{
    ended::EndReason,
    store::{Created, Entry, Found, Outcome, Record, Version},
    token::SessionId,
};

/// An operation on one session with its arguments.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create(Entry),
    Update {
        expected: Version,
        new: Entry,
    },
    Touch(Entry),
    End(EndReason),
    Replace {
        expected: Option<Version>,
        successor: SessionId,
    },
    Consume(Version),
    /// Of the session's user, or another user if it is anonymous.
    EndUser,
}

/// The state of the session.
#[derive(Clone, Debug)]
pub(super) enum Session {
    Unknown,
    Live(Entry),
    Ended { reason: EndReason, successor: Option<SessionId>, claim: Option<(Version, Arc<Record>)> },
}

/// The expected reply.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Created(bool),
    Done,
    Gone,
    Conflict(Arc<Record>),
    /// Of a claim or a load.
    Found(Session),
    Nothing,
}

impl Session {
    pub(super) fn ended(reason: EndReason) -> Self {
        Self::Ended { reason, successor: None, claim: None }
    }

    fn replaced(successor: SessionId) -> Self {
        Self::Ended { reason: EndReason::Replaced, successor: Some(successor), claim: None }
    }

    /// Applies the operation, and returns the expected reply.
    pub(super) fn apply(&mut self, op: &Op) -> Answer {
        match (op, &*self) {
            (Op::Create(new), Self::Unknown) => {
                *self = Self::Live(new.clone());
                Answer::Created(true)
            }
            (Op::Create(new), Self::Live(live)) => Answer::Created(live.record.version() == new.record.version()),
            (Op::Create(_), Self::Ended { .. }) => Answer::Created(false),

            (Op::Update { expected, new }, Self::Live(live)) => {
                if live.record.version() == new.record.version() {
                    Answer::Done
                } else if live.record.version() == *expected {
                    *self = Self::Live(new.clone());
                    Answer::Done
                } else {
                    Answer::Conflict(live.record.clone())
                }
            }
            (Op::Update { .. }, _) => Answer::Gone,

            (Op::Touch(entry), Self::Live(live)) => {
                if live.record.version() == entry.record.version() {
                    *self = Self::Live(Entry { record: live.record.clone(), ttl: entry.ttl });
                }
                Answer::Nothing
            }
            (Op::Touch(_), _) => Answer::Nothing,

            (Op::End(reason), Self::Live(_)) => {
                *self = Self::ended(*reason);
                Answer::Done
            }
            (Op::End(reason), Self::Unknown) => {
                *self = Self::ended(*reason);
                Answer::Gone
            }
            (Op::End(_), _) => Answer::Gone,

            (Op::Replace { successor, .. }, Self::Ended { successor: Some(favoured), .. }) if successor == favoured => {
                Answer::Done
            }
            (Op::Replace { expected: Some(expected), .. }, Self::Live(live)) if *expected != live.record.version() => {
                Answer::Conflict(live.record.clone())
            }
            (Op::Replace { successor, .. }, Self::Live(_)) => {
                *self = Self::replaced(*successor);
                Answer::Done
            }
            (Op::Replace { expected: None, successor }, Self::Unknown) => {
                *self = Self::replaced(*successor);
                Answer::Gone
            }
            (Op::Replace { .. }, _) => Answer::Gone,

            (Op::Consume(claim), Self::Live(live)) => {
                let was = Self::Live(live.clone());
                let claim = Some((*claim, live.record.clone()));
                *self = Self::Ended { reason: EndReason::Used, successor: None, claim };
                Answer::Found(was)
            }
            (Op::Consume(claim), Self::Ended { claim: Some((first, record)), .. }) if first == claim => {
                Answer::Found(Self::Live(Entry { record: record.clone(), ttl: HOUR }))
            }
            (Op::Consume(_), other) => Answer::Found(other.clone()),

            (Op::EndUser, Self::Live(live)) => {
                if live.record.user().is_some() {
                    *self = Self::ended(EndReason::Revoked);
                }
                Answer::Nothing
            }
            (Op::EndUser, _) => Answer::Nothing,
        }
    }

    /// Whether a store's reply agrees.
    pub(super) fn is(&self, found: &Found) -> Result<(), String> {
        match (self, found) {
            (Self::Unknown, Found::Unknown) => Ok(()),
            (Self::Live(entry), Found::Live(loaded)) => {
                check!(loaded.record.encode() == entry.record.encode(), "the stored record is not the written one");
                let ttl = loaded.ttl.ok_or("it has no TTL")?;
                check!(
                    ttl <= entry.ttl && ttl + Duration::from_secs(60) > entry.ttl,
                    "its TTL is {ttl:?} instead of {:?}",
                    entry.ttl
                );
                Ok(())
            }
            (Self::Ended { reason, successor, .. }, Found::Ended(ended)) => {
                check!(ended.reason == *reason, "its reason is {:?} instead of {reason:?}", ended.reason);
                check!(
                    ended.successor == *successor,
                    "its successor is {:?} instead of {successor:?}",
                    ended.successor
                );
                Ok(())
            }
            _ => Err(format!("it is {} instead of {}", name(found), self.name())),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Live(_) => "live",
            Self::Ended { .. } => "ended",
        }
    }
}

fn name(found: &Found) -> &'static str {
    match found {
        Found::Unknown => "unknown",
        Found::Live(_) => "live",
        Found::Ended(_) => "ended",
    }
}

impl Answer {
    pub(super) fn is_created(&self, created: &Created) -> Result<(), String> {
        let done = matches!(created, Created::Done { .. });
        check!(matches!(self, Self::Created(expected) if *expected == done), "create: {created:?} instead of {self:?}");
        Ok(())
    }

    pub(super) fn is_outcome(&self, outcome: &Outcome) -> Result<(), String> {
        let right = match (self, outcome) {
            (Self::Done, Outcome::Done) | (Self::Gone, Outcome::Gone) => true,
            (Self::Conflict(record), Outcome::Conflict(loaded)) => loaded.record.encode() == record.encode(),
            _ => false,
        };
        check!(right, "{outcome:?} instead of {self:?}");
        Ok(())
    }

    pub(super) fn is_found(&self, found: &Found) -> Result<(), String> {
        match self {
            Self::Found(session) => session.is(found),
            other => Err(format!("{found:?} instead of {other:?}")),
        }
    }
}
