//! The writes that a save sends, and the replies to them.

use crate::{
    ended::EndReason,
    record::Version,
    store::{Created, EndOutcome, Entry, Outcome},
    token::{Generation, SessionId, Token},
};

/// Whether a new token can still reach the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// With the response.
    Response,
    /// No: the response is sent.
    Late,
    /// No: the service failed, and there is no response.
    None,
}

/// A write that is sent, or was sent and its reply was lost. It is complete, so repeating it has the same effect.
pub(super) struct PendingWrite {
    /// The generation of the changes that it contains.
    pub(super) generation: u64,
    pub(super) write: Write,
}

pub(super) enum Write {
    Create(NewSession),
    Update {
        id: SessionId,
        expected: Version,
        entry: Entry,
        /// The new token, if the update rotates.
        token: Option<Token>,
        /// Part of a login: updates or activates the new session.
        in_transfer: bool,
    },
    End {
        id: SessionId,
        reason: EndReason,
    },
    /// Part of a login: ends the old session as replaced by the new one.
    Replace {
        id: SessionId,
        expected: Option<Version>,
        successor: SessionId,
    },
}

/// A session with a new token.
pub(super) struct NewSession {
    pub(super) token: Token,
    pub(super) id: SessionId,
    pub(super) entry: Entry,
}

/// The store's reply to a write.
pub(super) enum Reply {
    Created(Created),
    Updated(Outcome),
    Ended(EndOutcome),
}

impl Write {
    /// Whether the client must receive another token if the write succeeds.
    pub(super) fn gives_token(&self) -> bool {
        match self {
            Self::Create(_) | Self::Replace { .. } => true,
            Self::Update { token, in_transfer, .. } => token.is_some() || *in_transfer,
            Self::End { .. } => false,
        }
    }

    /// Whether the write rotates to the token of this generation.
    pub(super) fn rotates_to(&self, generation: Option<Generation>) -> bool {
        matches!(self, Self::Update { entry, token: Some(_), .. } if entry.record.generation() == generation)
    }

    pub(super) fn session(&self) -> SessionId {
        match self {
            Self::Create(new) => new.id,
            Self::Update { id, .. } | Self::End { id, .. } | Self::Replace { id, .. } => *id,
        }
    }
}
