//! Login, logout, rotation, lifetime, and single use.

use std::sync::Arc;

use super::{Inner, Session, SessionError};
use crate::{
    ended::EndReason,
    event::EventKind,
    lifetime::Lifetime,
    store::{Found, StoreExt},
};

/// # Login, logout and lifetime
impl Session {
    /// Logs `user` in: replaces the session by a new one of the user, with another id and another token.
    ///
    /// After the save, the previous token is not accepted any more, which prevents session fixation. The values of an anonymous
    /// session, or of the same user, are kept. If another user was logged in, none of the values is kept.
    ///
    /// If the user has as many sessions as [`SessionLayer::limits`](crate::SessionLayer::limits) allows, another session ends or the
    /// save fails with [`SessionError::Full`] (429).
    ///
    /// The session gets the lifetime of the layer, unless [`set_lifetime`](Self::set_lifetime) sets another one afterwards.
    ///
    /// # Errors
    /// [`SessionError::ResponseSent`] if the head of the response was sent: the new token cannot reach the client.
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// // The password was right:
    /// session.login("ana")?;
    /// assert_eq!(session.user()?.as_deref(), Some("ana"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn login(&self, user: impl Into<Arc<str>>) -> Result<(), SessionError> {
        let user = user.into();
        let mut state = self.loaded()?;
        state.check_before_response()?;
        state.login(user);
        Ok(())
    }

    /// Logs the user out. The same as [`destroy`](Self::destroy).
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.logout()?;
    /// assert!(session.user()?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn logout(&self) -> Result<(), SessionError> {
        self.destroy()
    }

    /// Ends the session with all its values, and removes the client's cookie. If the browser sends several cookies with this name,
    /// the sessions of all of them end.
    ///
    /// Values that are inserted afterwards belong to a new session with a new token. Concurrent requests cannot bring the ended session
    /// back.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.destroy()?;
    /// session.insert("notice", "Goodbye!")?; // in a new, anonymous session
    /// # Ok(())
    /// # }
    /// ```
    pub fn destroy(&self) -> Result<(), SessionError> {
        self.loaded()?.destroy();
        Ok(())
    }

    /// Gives the session a new token. After the save, the previous token is not accepted any more. The id does not change.
    ///
    /// Call it when the privileges of the session change without a [`login`](Self::login). Does nothing without a session. To rotate
    /// tokens regularly, use [`SessionLayer::rotate_every`](crate::SessionLayer::rotate_every).
    ///
    /// # Errors
    /// [`SessionError::ResponseSent`] if the head of the response was sent. [`SessionError::NotLoaded`],
    /// [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.rotate()?;
    /// session.insert("role", "admin")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rotate(&self) -> Result<(), SessionError> {
        let mut state = self.writable()?;
        state.check_before_response()?;
        state.rotate();
        Ok(())
    }

    /// Gives this session its own lifetime, for example for "remember me".
    ///
    /// The absolute timeout counts from the creation of the session or its last login. If that is over already, the session ends.
    /// Setting a lifetime does not create a session.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Lifetime, Session, SessionError};
    /// # fn example(session: &Session, remember_me: bool) -> Result<(), SessionError> {
    /// session.login("ana")?;
    /// if remember_me {
    ///     session.set_lifetime(Lifetime::aal1())?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_lifetime(&self, lifetime: Lifetime) -> Result<(), SessionError> {
        self.writable()?.set_lifetime(lifetime);
        Ok(())
    }

    /// Uses up a single-use session. Returns whether this request is the one that used it.
    ///
    /// Of all concurrent requests, on all instances, exactly one gets `true`. The session ends immediately, and unsaved changes
    /// are dropped. Read its values first.
    ///
    /// # Errors
    /// [`SessionError::Store`] if it is unknown whether the session was used: call it again. [`SessionError::NotLoaded`],
    /// [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn redeem(session: &Session) -> Result<Option<u32>, SessionError> {
    ///     let value = session.get("voucher")?;
    ///     Ok(if session.consume().await? { value } else { None })
    /// }
    /// # let _ = redeem;
    /// ```
    pub async fn consume(&self) -> Result<bool, SessionError> {
        drop(self.loaded()?);
        self.inner.consume().await
    }
}

impl Inner {
    async fn consume(&self) -> Result<bool, SessionError> {
        let _turn = self.turn().await;
        let (id, user) = match self.state().active() {
            Some(live) => (live.id, live.record.user.clone()),
            None => return Ok(false),
        };
        let context = &self.context;
        let claim = self.state().claim()?;
        let found = self.time_budget.spend(context.store().consume(&id, claim)).await;
        let found = found.inspect_err(|_| context.counters.outages.count())?;
        let by_us = matches!(found, Found::Live(_));
        if let Found::Live(loaded) = &found {
            context.record_lifetime(&loaded.record);
        }
        self.state().set_ended(
            by_us,
            match found {
                Found::Live(_) => Some(EndReason::Used),
                Found::Ended(ended) => Some(ended.reason),
                Found::Unknown => None,
            },
        );
        if by_us {
            self.announce([(id, user, EventKind::Ended(EndReason::Used))]).await;
        }
        Ok(by_us)
    }
}
