//! The replay of a value.

use std::{sync::Arc, time::Duration};

use crate::store::{
    error::StoreError,
    ext::StoreExt,
    health::Health,
    session_store::SessionStore,
    values::{Added, ValueStore},
};

/// The change of a key to replay.
pub(in super::super) struct ValueReplay {
    pub(super) key: Arc<str>,
    pub(super) write: ValueWrite,
    pub(super) times: u64,
    pub(super) failures: u32,
}

pub(super) enum ValueWrite {
    Set(Vec<u8>, Option<Duration>),
    Delete,
    /// At most once.
    Add(i64),
    Expire(Duration),
}

/// The reply of the main store.
pub(in super::super) enum ValueReply {
    Done,
    /// The main store refuses the change, or may have applied it. It is not replayed again.
    Lost,
}

impl ValueReplay {
    /// # Errors
    /// If the main store is unavailable again, or full: the change must be replayed again.
    pub(in super::super) async fn replay(&self, main: &dyn SessionStore) -> Result<ValueReply, StoreError> {
        match self.send(main.require_values()?).await {
            // A permanent error must not keep the sessions from their store, unless the store rejects this client altogether.
            Err(StoreError::Configuration(source) | StoreError::Corrupt(source))
                if !matches!(main.health().await, Ok(Health::Down(_)) | Err(_)) =>
            {
                tracing::warn!(%source, "a value from the outage cannot be replayed");
                Ok(ValueReply::Lost)
            }
            reply => reply,
        }
    }

    async fn send(&self, values: &dyn ValueStore) -> Result<ValueReply, StoreError> {
        let key = &*self.key;
        match &self.write {
            ValueWrite::Set(value, ttl) => values.set(key, value, *ttl).await?,
            ValueWrite::Delete => drop(values.delete(key).await?),
            ValueWrite::Expire(ttl) => drop(values.expire(key, *ttl).await?),
            ValueWrite::Add(by) => match values.add(key, *by).await? {
                Added::To(_) => {}
                Added::NotANumber | Added::Overflow => {
                    tracing::warn!("an increment from the outage cannot be applied to the value in the store");
                    return Ok(ValueReply::Lost);
                }
                Added::InDoubt(_) => {
                    tracing::warn!("it is unknown whether an increment from the outage was applied");
                    return Ok(ValueReply::Lost);
                }
            },
        }
        Ok(ValueReply::Done)
    }
}
