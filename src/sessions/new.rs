//! New sessions outside requests.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    key::KeyFor,
    lifetime::Lifetime,
    metadata::Metadata,
    record::{Data, Json, Record, Version},
    session::SessionError,
    time::Timestamp,
};

/// The content of a new session: see [`Sessions::create`](crate::Sessions::create).
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{Lifetime, Metadata, NewSession, SessionError, Sessions};
///
/// async fn link(sessions: &Sessions) -> Result<String, SessionError> {
///     let half_an_hour = Duration::from_secs(30 * 60);
///     let new = NewSession::anonymous()
///         .lifetime(Lifetime::new(half_an_hour, half_an_hour).expect("valid"))
///         .metadata(Metadata::default().with_field("made for", "the iframe"))
///         .insert("document", &17)?;
///     Ok(format!("https://example.org/?session_id={}", sessions.create(new).await?.expose()))
/// }
/// # let _ = link;
/// ```
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    user: Option<Arc<str>>,
    lifetime: Option<Lifetime>,
    metadata: Metadata,
    data: Data,
}

impl NewSession {
    /// An anonymous session.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A session of `user`.
    pub fn of(user: impl Into<Arc<str>>) -> Self {
        Self { user: Some(user.into()), ..Self::default() }
    }

    /// The lifetime. Default: that of the [layer](crate::SessionLayer::lifetime).
    #[must_use]
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// The metadata. Default: none.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`SessionError::Encode`] if the value cannot be written as JSON.
    pub fn insert<T: Serialize + ?Sized>(mut self, key: impl KeyFor<T>, value: &T) -> Result<Self, SessionError> {
        let value = Json::encode(value).map_err(|source| SessionError::unencodable::<T>(key.name(), source))?;
        self.data.insert(key.name().into(), value);
        Ok(self)
    }

    pub(super) fn record(self, now: Timestamp, default: &Lifetime) -> Result<Record, SessionError> {
        let lifetime = self.lifetime.as_ref().unwrap_or(default);
        Ok(Record {
            user: self.user,
            metadata: Arc::new(self.metadata),
            data: self.data,
            ..Record::new(now, lifetime, Version::first()?)
        })
    }
}

impl From<&str> for NewSession {
    fn from(user: &str) -> Self {
        Self::of(user)
    }
}

impl From<String> for NewSession {
    fn from(user: String) -> Self {
        Self::of(user)
    }
}

impl From<Arc<str>> for NewSession {
    fn from(user: Arc<str>) -> Self {
        Self::of(user)
    }
}
