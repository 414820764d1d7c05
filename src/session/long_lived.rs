//! A session that outlives one response: for WebSockets, server-sent events and long polls.

use std::time::Duration;

use super::{Inner, Session, SessionError, state::Phase};
use crate::store::{Entry, Found, SessionStore};

/// # Long-lived handles
///
/// A handle is a snapshot: it does not notice what other requests do to the session, and holding it does not extend the session.
impl Session {
    /// Looks the session up again, after what other requests have written. Unsaved changes are kept. Returns whether the session is
    /// live. If it has ended, unsaved changes are lost, and [`ended`](Self::ended) says why.
    ///
    /// # Errors
    /// [`SessionError::Store`] if the store is unavailable: the handle is as before. [`SessionError::NotLoaded`],
    /// [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn is_logged_in(session: &Session) -> Result<bool, SessionError> {
    ///     Ok(session.reload().await? && session.user()?.is_some())
    /// }
    /// # let _ = is_logged_in;
    /// ```
    pub async fn reload(&self) -> Result<bool, SessionError> {
        drop(self.loaded()?);
        self.inner.reload().await
    }

    /// Extends the idle timeout, as a request does, and [reloads](Self::reload) the session. Returns whether it is live.
    ///
    /// # Errors
    /// Those of [`reload`](Self::reload).
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// /// Returns whether the socket may stay open.
    /// async fn on_message(session: &Session) -> Result<bool, SessionError> {
    ///     session.touch().await
    /// }
    /// # let _ = on_message;
    /// ```
    pub async fn touch(&self) -> Result<bool, SessionError> {
        Ok(self.reload().await? && self.inner.extend().await?)
    }

    /// The time until the session expires if it is not used. `None` without a stored session.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// fn is_about_to_expire(session: &Session) -> Result<bool, SessionError> {
    ///     Ok(session.expires_in()?.is_some_and(|left| left.as_secs() < 60))
    /// }
    /// # let _ = is_about_to_expire;
    /// ```
    pub fn expires_in(&self) -> Result<Option<Duration>, SessionError> {
        let now = self.inner.context.clock.now();
        Ok(self.readable()?.live().map(|live| live.expires_at.since(now)))
    }
}

impl Inner {
    async fn reload(&self) -> Result<bool, SessionError> {
        let _turn = self.turn().await;
        let Some(id) = self.state().settled().map(|live| live.id) else { return Ok(self.state().live().is_some()) };
        self.time_budget.reset(); // each call has the time of a request
        let found = self.time_budget.spend(self.context.store().load(&id)).await;
        let found = found.inspect_err(|_| self.context.counters.outages.count())?;
        let state = &mut *self.state();
        let reason = match found {
            Found::Live(loaded) => {
                let env = self.environment();
                let expires_at = env.now.plus(loaded.record.ttl_left(env.now, loaded.ttl));
                state.rebase(&env, None, loaded);
                if let Phase::Live(live) = &mut state.phase {
                    live.expires_at = expires_at;
                }
                return Ok(true);
            }
            Found::Ended(ended) => Some(ended.reason),
            Found::Unknown => None,
        };
        state.set_ended(false, reason);
        Ok(false)
    }

    /// Returns whether the session is live.
    async fn extend(&self) -> Result<bool, SessionError> {
        let now = self.context.clock.now();
        let live = self.state().active().map(|live| (live.id, live.record.clone()));
        let Some((id, record)) = live else { return Ok(false) };
        let ttl = record.full_ttl(now);
        if ttl.is_zero() {
            return Ok(false);
        }
        let extended = self.time_budget.spend(self.context.store().touch(&id, Entry { record, ttl })).await;
        extended.inspect_err(|_| self.context.counters.outages.count())?;
        if let Phase::Live(live) = &mut self.state().phase {
            live.expires_at = now.plus(ttl);
        }
        Ok(true)
    }
}
