//! How a session goes on: with another user, another token, another lifetime, or not at all.

use std::sync::Arc;

use super::{Inner, Session, SessionError};
use crate::{
    ended::EndReason,
    event::EventKind,
    lifetime::Lifetime,
    store::{Found, StoreExt},
};

/// How it goes on.
impl Session {
    /// Binds the session to `user`, gives it a new token, and starts its absolute timeout anew.
    ///
    /// The token the request came with is dead once this is saved, so a token that somebody else planted is worth
    /// nothing (session fixation). What an anonymous session holds is carried on in a session of the user, which has another id; the
    /// session of another user ends, and none of its values is handed on.
    ///
    /// How many sessions a user may have, [`SessionLayer::limits`](crate::SessionLayer::limits) says. One more is
    /// refused when this is saved ([`SessionError::Full`], 429), or another ends.
    ///
    /// # Errors
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
        self.loaded()?.login(user);
        Ok(())
    }

    /// Ends the session of the user: [`destroy`](Self::destroy) by the name that handlers look for.
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

    /// Ends the session, with all its values, and takes the client's cookie away.
    ///
    /// What is inserted afterwards makes another session, with another token. Whatever other requests do to the session meanwhile,
    /// change, touch or rotate it: it has ended.
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

    /// Gives the session a new token; the old one is dead once this is saved. The id stays.
    ///
    /// For every change of what the session may do that is no [`login`](Self::login). Does nothing when there is no session.
    /// To change tokens from time to time, without such a change, there is
    /// [`SessionLayer::rotate_every`](crate::SessionLayer::rotate_every).
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
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
        self.writable()?.rotate();
        Ok(())
    }

    /// Gives this session a lifetime of its own, which it keeps: "remember me".
    ///
    /// The absolute timeout still counts from when the session was created or logged in to: one that is over already ends the
    /// session. By itself this makes no session.
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

    /// Ends a session that is for a single use, and says whether this request is the one that used it.
    ///
    /// Of any number of requests at once, on any number of instances, exactly one gets `true`. It happens at once, not with the
    /// response; changes that were not saved before are dropped. What the session holds must be read first.
    ///
    /// # Errors
    /// [`SessionError::Store`]: it is not known whether it was used; [`SessionError::NotLoaded`],
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
        let (id, user) = match self.state().begun() {
            Some(live) => (live.id, live.record.user.clone()),
            None => return Ok(false),
        };
        let context = &self.context;
        let claim = self.state().claim()?;
        let found = self.ask(context.store.consume(&id, claim)).await;
        let found = found.inspect_err(|_| context.counters.outages.count())?;
        let mine = matches!(found, Found::Live(_));
        if let Found::Live(loaded) = &found {
            context.lived(&loaded.record);
        }
        self.state().consumed(
            mine,
            match found {
                Found::Live(_) => Some(EndReason::Used),
                Found::Ended(ended) => Some(ended.reason),
                Found::Unknown => None,
            },
        );
        if mine {
            self.announce([(id, user, EventKind::Ended(EndReason::Used))]).await;
        }
        Ok(mine)
    }
}
