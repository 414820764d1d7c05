//! Waits until a session has ended.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::timeout;

use super::Sessions;
use crate::{
    ended::EndReason,
    endings::RETRY_INTERVAL,
    error_chain::ErrorChain,
    session::{Session, SessionError},
    store::{Found, SessionStore},
    time::Timestamp,
    token::SessionId,
};

/// A session is looked up at least this often, in case an event was lost or the store does not share events.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

impl Sessions {
    /// Waits until a session has ended or expired, and returns why. `None`: the store does not know it.
    ///
    /// An end by this layer or its clones is noticed immediately, and one by another process within half a second if the store [shares
    /// events](crate::store::redis::RedisConfig::share_events), else within 30 seconds. In an outage it is noticed afterwards. All
    /// callers share one subscription, so thousands can wait. Each session is looked up every 30 seconds. Waiting does not extend it.
    ///
    /// ```
    /// # use tower_keep::{SessionId, Sessions};
    /// async fn close_when_ended(sessions: &Sessions, id: &SessionId) {
    ///     let reason = sessions.until_ended(id).await;
    ///     println!("closed: {reason:?}");
    /// }
    /// # let _ = close_when_ended;
    /// ```
    pub async fn until_ended(&self, id: &SessionId) -> Option<EndReason> {
        let mut waiting = self.context.endings.wait_for(*id);
        let mut expires_at = None;
        loop {
            waiting.look_again();
            let wait = match self.look(id, &mut expires_at).await {
                Look::Live(left) => left.min(CHECK_INTERVAL),
                Look::Over(reason) => return reason,
            };
            let mut woken = pin!(timeout(wait, waiting.woken()));
            let mut deliver = pin!(self.context.endings.deliver(|| self.context.subscribe()));
            poll_fn(|cx| match woken.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => deliver.as_mut().poll(cx).map(|never| match never {}),
            })
            .await;
        }
    }

    async fn look(&self, id: &SessionId, expires_at: &mut Option<Timestamp>) -> Look {
        let (found, now) = (self.context.store().load(id).await, self.context.clock.now());
        match found {
            Ok(Found::Live(loaded)) => {
                let left = loaded.record.ttl_left(now, loaded.ttl);
                *expires_at = Some(now.plus(left));
                if left.is_zero() { Look::Over(Some(EndReason::Expired)) } else { Look::Live(left) }
            }
            Ok(Found::Ended(ended)) => Look::Over(Some(ended.reason)),
            // The store keeps no tombstone of an anonymous session that expired.
            Ok(Found::Unknown) => {
                let has_expired = expires_at.is_some_and(|expires_at| expires_at <= now);
                Look::Over(has_expired.then_some(EndReason::Expired))
            }
            Err(error) => {
                tracing::debug!(session = %id, error = %ErrorChain(&error), "not known whether the session has ended");
                Look::Live(RETRY_INTERVAL)
            }
        }
    }
}

enum Look {
    /// Live, or unknown because of an outage, and how long until the next look at the latest.
    Live(Duration),
    Over(Option<EndReason>),
}

/// # Waiting for the end
impl Session {
    /// Waits until the session has ended, on any instance, or expired, and returns why: see [`Sessions::until_ended`]. `None`
    /// immediately without a stored session. A login replaces the session, so it ends ([`EndReason::Replaced`]).
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn close_on_logout(session: Session) -> Result<(), SessionError> {
    ///     let reason = session.until_ended().await?;
    ///     println!("closed: {reason:?}");
    ///     Ok(())
    /// }
    /// # let _ = close_on_logout;
    /// ```
    pub async fn until_ended(&self) -> Result<Option<EndReason>, SessionError> {
        match self.id()? {
            Some(id) => Ok(self.sessions().until_ended(&id).await),
            None => self.ended(),
        }
    }
}
