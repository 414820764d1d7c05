//! What can be seen of a session from outside.

use std::{fmt, sync::Arc, time::SystemTime};

use serde::de::DeserializeOwned;

use crate::{
    ended::Ended, key::KeyOf, metadata::Metadata, record::Record, session::SessionError, store::Loaded,
    time::Timestamp, token::SessionId,
};

/// A live session, as it was when the store was asked.
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

    /// Its id: no credential, and safe to show.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Who is logged in.
    pub fn user(&self) -> Option<&str> {
        self.record.user()
    }

    /// When it was created, or last logged in to.
    pub fn created_at(&self) -> SystemTime {
        self.record.created_at().into()
    }

    /// When it was last used, up to the [touch interval](crate::Lifetime::touch_every).
    pub fn last_seen(&self) -> SystemTime {
        self.last_seen.into()
    }

    /// When it ends if nobody uses it.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at.into()
    }

    /// What is kept about its client.
    pub fn metadata(&self) -> &Metadata {
        &self.record.metadata
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`SessionError::Decode`] when it is not a `T`.
    pub fn value<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let value = self.record.data.get(key.name()).map(|value| value.decode());
        value.transpose().map_err(|_| SessionError::Decode { key: key.name().to_owned() })
    }
}

/// Without its values: they may be secret.
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

/// Whether a session for a single use was used: see [`Sessions::consume`](crate::Sessions::consume).
#[derive(Clone, Debug)]
pub enum Consumed {
    /// By this call. It was this session; it is no more.
    Now(SessionInfo),
    /// Before, or it had ended otherwise.
    Before(Ended),
    /// The token opens nothing that is known.
    Unknown,
}
