//! What the user of a request does with all their sessions.

use super::Sessions;
use crate::session::{Session, SessionError};

/// # All sessions of the user
impl Session {
    /// Ends all sessions of the user who is logged in, on all devices, and this one. Returns the number of ended sessions in the
    /// index. Ends only this session if no user is logged in.
    ///
    /// Values that are inserted afterwards belong to a new, anonymous session.
    ///
    /// # Errors
    /// [`SessionError::Store`] if the store is unavailable: some sessions may have ended, and it can be called again.
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn logout_everywhere(session: &Session) -> Result<(), SessionError> {
    ///     session.logout_everywhere().await?;
    ///     session.insert("notice", "You are logged out on all devices.")
    /// }
    /// # let _ = logout_everywhere;
    /// ```
    pub async fn logout_everywhere(&self) -> Result<usize, SessionError> {
        let (user, id) = (self.user()?, self.id()?);
        // The others first: if that fails, the user is still logged in here, and can try again.
        let others = match &user {
            Some(user) => self.sessions().end_user(user, id.as_ref()).await?,
            None => 0,
        };
        self.destroy()?;
        self.save().await?;
        Ok(others + usize::from(id.is_some()))
    }

    /// Ends all other sessions of the user who is logged in. Returns the number of ended sessions in the index: 0 if no user is
    /// logged in.
    ///
    /// # Errors
    /// [`SessionError::Store`] if the store is unavailable: some sessions may have ended, and it can be called again.
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], and those of [`save`](Self::save) if a login is unsaved.
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn only_here(session: &Session) -> Result<usize, SessionError> {
    ///     session.revoke_others().await
    /// }
    /// # let _ = only_here;
    /// ```
    pub async fn revoke_others(&self) -> Result<usize, SessionError> {
        let Some(user) = self.user()? else { return Ok(0) };
        if !self.is_clean() {
            self.save().await?; // a login may be unsaved, and changes the id
        }
        let id = self.id()?;
        Ok(self.sessions().end_user(&user, id.as_ref()).await?)
    }

    /// After a change of the password: gives this session a new token, and ends all other sessions of the user. Returns their
    /// number.
    ///
    /// # Errors
    /// Those of [`rotate`](Self::rotate), [`save`](Self::save) and [`revoke_others`](Self::revoke_others). Call it again until it
    /// succeeds, or tell the user that other devices may still be logged in.
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn change_password(session: &Session) -> Result<usize, SessionError> {
    ///     // After the new password is stored:
    ///     session.password_changed().await
    /// }
    /// # let _ = change_password;
    /// ```
    pub async fn password_changed(&self) -> Result<usize, SessionError> {
        self.rotate()?;
        self.revoke_others().await
    }

    pub(super) fn sessions(&self) -> Sessions {
        Sessions::new(self.context().clone()).for_client(self.client_ip())
    }
}
