//! Events of sessions.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ended::EndReason, token::SessionId};

/// An event of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    session: SessionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    kind: EventKind,
    /// The process that published it.
    pub(crate) origin: u64,
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The session was created.
    Created,
    /// A user logged in.
    LoggedIn,
    /// The session has a new token.
    Rotated,
    /// The session was ended. Expiry causes no event.
    Ended(EndReason),
}

impl Event {
    pub(crate) fn new(session: SessionId, user: Option<Arc<str>>, kind: EventKind, origin: u64) -> Self {
        Self { session, user, kind, origin }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The user of the session.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The kind of the event.
    pub fn kind(&self) -> EventKind {
        self.kind
    }
}
