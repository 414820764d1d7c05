//! Keys for all sessions: their number, and their events.

use std::time::Duration;

use redis::{Value, cmd, pipe};

use super::{
    error::Failure,
    operation::{Operation, text, ttl_of},
};
use crate::{
    error_chain::ErrorChain,
    event::Event,
    store::{Cursor, Published},
    time::millis,
    token::SessionId,
};

/// How long the events of all processes can be fetched.
const EVENTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

impl Operation<'_> {
    /// Takes or extends a place within `max_sessions`. Returns `false` if there is none. Called before the session is written, so that
    /// every session has a place.
    pub(super) async fn reserve(&self, id: &SessionId, ttl: Duration, renew: bool) -> Result<bool, Failure> {
        let Some(limit) = self.config.max_sessions else { return Ok(true) };
        let args = vec![id.to_string().into(), text(ttl_of(ttl)), text(limit), text(u8::from(renew))];
        let reserved = self.run(&self.scripts.reserve, &[self.prefix().key("all")], args).await?;
        Ok(reserved == Value::Int(1))
    }

    /// Frees the places of sessions that ended. If that fails, they are freed when the sessions would have expired.
    pub(super) async fn release(&self, ids: &[SessionId]) {
        if self.config.max_sessions.is_none() || ids.is_empty() {
            return;
        }
        let key = self.prefix().key("all");
        let mut release = cmd("ZREM");
        release.arg(&key);
        for id in ids {
            release.arg(id.to_string());
        }
        if let Err(failure) = self.write(&key, &release).await {
            tracing::debug!(error = %ErrorChain(&failure.error), "the count of sessions was not corrected");
        }
    }

    pub(super) async fn publish(&self, event: &Event) -> Result<(), Failure> {
        let Some(kept) = self.config.shared_events else { return Ok(()) };
        let (key, event) = (self.prefix().key("events"), serde_json::to_vec(event).unwrap_or_default());
        let mut add = cmd("XADD");
        add.arg(&key).arg("MAXLEN").arg("~").arg(kept).arg("*").arg("e").arg(event);
        self.write(&key, &add).await?;
        self.write(&key, cmd("PEXPIRE").arg(&key).arg(millis(EVENTS_LAST))).await?;
        Ok(())
    }

    pub(super) async fn events(&self, from: Option<&Cursor>) -> Result<Published, Failure> {
        if self.config.shared_events.is_none() {
            return Ok(Published::default());
        }
        let key = self.prefix().key("events");
        let mut read = pipe();
        match from {
            None => read.cmd("XREVRANGE").arg(&key).arg("+").arg("-").arg("COUNT").arg(1),
            Some(from) => {
                let after = if from.as_str().is_empty() { "-".to_owned() } else { format!("({}", from.as_str()) };
                read.cmd("XRANGE").arg(&key).arg(after).arg("+").arg("COUNT").arg(1000)
            }
        };
        let replies = self.read(&key, &read).await?;
        let [Value::Array(entries)] = &*replies else { return Err(Failure::unexpected_reply()) };
        let mut published = Published { events: Vec::new(), next: from.cloned().unwrap_or_default() };
        for entry in entries {
            let Value::Array(entry) = entry else { return Err(Failure::unexpected_reply()) };
            let [Value::BulkString(place), Value::Array(fields)] = &**entry else {
                return Err(Failure::unexpected_reply());
            };
            published.next = String::from_utf8_lossy(place).into_owned().into();
            if let (Some(_), [_, Value::BulkString(event)]) = (from, &**fields) {
                published.events.extend(serde_json::from_slice::<Event>(event)); // unknown events of newer versions are ignored
            }
        }
        Ok(published)
    }
}
