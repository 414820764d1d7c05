//! Information about sessions.

use std::{fmt, sync::Arc, time::SystemTime};

use serde::de::DeserializeOwned;

use crate::{
    ended::Ended, key::KeyOf, metadata::Metadata, record::Record, session::SessionError, store::Loaded,
    time::Timestamp, token::SessionId,
};

/// A live session as the store returned it.
///
/// ```
/// # async fn example(sessions: tower_keep::Sessions) -> Result<(), tower_keep::store::StoreError> {
/// for session in sessions.list("ana").await? {
///     println!("{} {:?} {:?}", session.id(), session.last_seen(), session.metadata().user_agent());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SessionInfo {
    id: SessionId,
    record: Arc<Record>,
    last_seen: Timestamp,
    expires_at: Timestamp,
}

impl SessionInfo {
    pub(crate) fn of(id: SessionId, Loaded { record, ttl }: &Loaded, now: Timestamp) -> Option<Self> {
        let left = record.ttl_left(now, *ttl);
        let (last_seen, expires_at) = (record.last_used(now, left), now.plus(left));
        (!left.is_zero()).then(|| Self { id, record: record.clone(), last_seen, expires_at })
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn ends(&self) -> Timestamp {
        self.expires_at
    }

    /// The id. It grants no access, and can be shown.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The user.
    pub fn user(&self) -> Option<&str> {
        self.record.user()
    }

    /// When the session was created, or when its user last logged in.
    pub fn created_at(&self) -> SystemTime {
        self.record.created_at().into()
    }

    /// When the session was last used, with the precision of the [touch interval](crate::Lifetime::touch_every).
    pub fn last_seen(&self) -> SystemTime {
        self.last_seen.into()
    }

    /// When the session expires if it is not used.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at.into()
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.record.metadata
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`SessionError::Decode`] if the value is not a `T`.
    pub fn value<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let Some(value) = self.record.data.get(key.name()) else { return Ok(None) };
        value.decode_optional().map_err(|_| SessionError::undecodable::<T>(key.name()))
    }
}

/// Without values, which may be secret.
impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("id", &self.id)
            .field("user", &self.user())
            .field("created_at", &self.record.created_at())
            .field("last_seen", &self.last_seen)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The result of using up a single-use session: see [`Sessions::consume`](crate::Sessions::consume).
#[derive(Clone, Debug)]
pub enum Consumed {
    /// This call used the session up.
    Now(SessionInfo),
    /// The session was used before, or ended otherwise.
    Before(Ended),
    /// The token is unknown.
    Unknown,
}
