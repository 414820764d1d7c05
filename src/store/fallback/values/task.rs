//! Telling the main store what has become of a value.

use std::{sync::Arc, time::Duration};

use crate::store::{
    error::StoreError,
    ext::StoreExt,
    health::Health,
    session_store::SessionStore,
    values::{Added, ValueStore},
};

/// What the main store has to be told of a key, as it was when it was taken out.
pub(in super::super) struct ValueTask {
    pub(super) key: Arc<str>,
    pub(super) telling: Telling,
    pub(super) times: u64,
    pub(super) failures: u32,
}

pub(super) enum Telling {
    Set(Vec<u8>, Option<Duration>),
    Delete,
    /// Once at most.
    Add(i64),
    Expire(Duration),
}

/// What it said to that.
pub(in super::super) enum ToldValue {
    Done,
    /// It will not have it, or may have it: it is not told again.
    Lost,
}

impl ValueTask {
    /// # Errors
    /// When the main store is away again, or has no room now: it must be told again.
    pub(in super::super) async fn tell<S: SessionStore>(&self, main: &S) -> Result<ToldValue, StoreError> {
        match self.say(main.require_values()?).await {
            // It will not take it tomorrow either: that must not keep the sessions from their store. Unless it lets nobody in.
            Err(StoreError::Configuration(source) | StoreError::Corrupt(source))
                if !matches!(main.health().await, Ok(Health::Down(_)) | Err(_)) =>
            {
                tracing::warn!(%source, "a value of the outage cannot be told to the store");
                Ok(ToldValue::Lost)
            }
            told => told,
        }
    }

    async fn say(&self, values: &dyn ValueStore) -> Result<ToldValue, StoreError> {
        let key = &*self.key;
        match &self.telling {
            Telling::Set(value, ttl) => values.set(key, value, *ttl).await?,
            Telling::Delete => drop(values.delete(key).await?),
            Telling::Expire(ttl) => drop(values.expire(key, *ttl).await?),
            Telling::Add(by) => match values.add(key, *by).await? {
                Added::To(_) => {}
                Added::NotANumber | Added::Overflow => {
                    tracing::warn!("what was added to a value in the outage cannot be added to what the store has");
                    return Ok(ToldValue::Lost);
                }
                Added::InDoubt(_) => {
                    tracing::warn!("what was added to a value in the outage may or may not have reached the store");
                    return Ok(ToldValue::Lost);
                }
            },
        }
        Ok(ToldValue::Done)
    }
}
