//! What the reply to an operation says about sessions: for caches and local tombstones.

use crate::{
    ended::{EndReason, Ended},
    record::Version,
    store::types::{Entry, Loaded},
    token::SessionId,
};

/// Takes the observations of one reply.
pub type Observer<'o> = dyn FnMut(Observation<'_>) + 'o;

pub enum Observation<'a> {
    Live(&'a SessionId, Loaded),
    /// The version of the entry lives for the entry's time to live from now on.
    Extended(&'a SessionId, &'a Entry),
    /// With the claim that used it, and what it held.
    Ended(&'a SessionId, Ended, Option<(Version, Loaded)>),
    /// The session is not alive; the reply does not say why.
    NotLive(&'a SessionId),
    /// The session may have ended: there was no reply.
    MaybeEnded(&'a SessionId),
    /// All sessions of a user except one have ended. `ids` are those that the store knew.
    UserEnded {
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
        ids: &'a [SessionId],
    },
    /// All sessions of a user except one may have ended: there was no reply.
    UserMaybeEnded {
        user: &'a str,
        except: Option<&'a SessionId>,
    },
}

impl Observation<'_> {
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Ended(..) | Self::UserEnded { .. })
    }

    /// The session that it reports as alive.
    pub(crate) fn alive(&self) -> Option<&SessionId> {
        match self {
            Self::Live(id, _) | Self::Extended(id, _) => Some(id),
            _ => None,
        }
    }
}
