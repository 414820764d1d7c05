//! Sessions outside a request.

use std::{fmt, sync::Arc};

use crate::{
    record::{Record, Version},
    session::SessionError,
    shared::Shared,
    store::{Health, Outcome, StoreError},
    token::{Tag, Token},
};

/// The sessions of a [`SessionLayer`](crate::SessionLayer), for work outside requests.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// # async fn example() -> Result<(), tower_keep::SessionError> {
/// let layer = SessionLayer::new(MemoryStore::new());
/// // An access token for a script of Ana's, beside whatever she does in her browser:
/// let token = layer.sessions().create("ana").await?;
/// println!("Authorization: Bearer {}", token.expose());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

impl Sessions {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A new session of `user`, of the layer's lifetime. The token is the only copy.
    ///
    /// # Errors
    /// [`SessionError::TooLarge`] when the user is, [`SessionError::Store`] when the store fails, [`SessionError::Random`] without random numbers, [`SessionError::Conflict`] when
    /// the id is taken, which its size rules out.
    pub async fn create(&self, user: impl Into<Arc<str>>) -> Result<Token, SessionError> {
        let user = user.into();
        let now = self.shared.clock.now();
        let token = Token::mint(Some(Tag::of_user(&user)))?;
        let mut record = Record::new(now, &self.shared.lifetime, Version::first()?);
        record.user = Some(user);
        self.shared.check_size(&record)?;
        let ttl = record.full_ttl(now);
        match self.shared.store.create(&token.id(), Arc::new(record), ttl).await? {
            Outcome::Done => Ok(token),
            Outcome::Conflict(_) | Outcome::Gone => Err(SessionError::Conflict),
        }
    }

    /// Whether the store can serve right now.
    ///
    /// # Errors
    /// What the store says when it cannot even be asked; for most purposes that is [`Health::Down`].
    pub async fn health(&self) -> Result<Health, StoreError> {
        self.shared.store.health().await
    }

    /// What operators call the store: `"redis"`, `"memory"`.
    pub fn store_name(&self) -> &'static str {
        self.shared.store.name()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("shared", &self.shared).finish()
    }
}
