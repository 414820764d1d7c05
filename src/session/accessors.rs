//! What is known about a session besides its values.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

#[cfg(feature = "jwt")]
use serde::de::DeserializeOwned;

use super::{Session, SessionError, state::Phase};
use crate::{
    credential::Signed,
    ended::EndReason,
    metadata::Metadata,
    token::{SessionId, Token},
};

/// # Information about the session
impl Session {
    /// The user who is logged in.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if let Some(user) = session.user()? {
    ///     println!("hello {user}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn user(&self) -> Result<Option<Arc<str>>, SessionError> {
        match self.signature_only() {
            Some(signed) => Ok(signed.user.clone()),
            None => Ok(self.readable()?.user().cloned()),
        }
    }

    /// The id of the stored session, for logs and for lists of a user's sessions. `None` until the session is stored.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if let Some(id) = session.id()? {
    ///     println!("session {id}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn id(&self) -> Result<Option<SessionId>, SessionError> {
        match self.signature_only() {
            Some(signed) => Ok(Some(signed.session)),
            None => Ok(self.readable()?.live().map(|live| live.id)),
        }
    }

    /// The token of the stored session, for a client that sends bearer tokens. `None` until the session is stored:
    /// [`save`](Self::save) first. With cookies, the layer sends the token to the client.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn log_in(session: &Session) -> Result<Option<String>, SessionError> {
    ///     session.login("ana")?;
    ///     session.save().await?;
    ///     Ok(session.token()?.map(|token| token.expose().to_owned()))
    /// }
    /// # let _ = log_in;
    /// ```
    pub fn token(&self) -> Result<Option<Token>, SessionError> {
        let state = self.readable()?;
        Ok(state.settled().and_then(|live| live.token_for_client(&self.inner.presented)))
    }

    /// The claims of the request's access token, as your own type. `None` if the request has no access token, or not for the current
    /// session.
    ///
    /// The token is verified and its session is alive. In an outage with
    /// [`accept_in_outage`](crate::JwtBuilder::accept_in_outage), only the token is verified.
    ///
    /// # Errors
    /// [`SessionError::Decode`] if the claims are not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// #[derive(serde::Deserialize)]
    /// struct Claims { role: String }
    ///
    /// fn is_admin(session: &Session) -> Result<bool, SessionError> {
    ///     Ok(session.claims::<Claims>()?.is_some_and(|claims| claims.role == "admin"))
    /// }
    /// # let _ = is_admin;
    /// ```
    #[cfg(feature = "jwt")]
    pub fn claims<T: DeserializeOwned>(&self) -> Result<Option<T>, SessionError> {
        let signed = match self.inner.presented.signed() {
            Some(signed) if self.id()? == Some(signed.session) => signed,
            Some(_) => return Ok(None),
            None => return self.readable().map(|_| None),
        };
        T::deserialize(&signed.claims).map(Some).map_err(|_| SessionError::undecodable::<T>("the access token"))
    }

    /// When the session was created, or when its user last logged in. `None` until the session is stored.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let age = session.created_at()?.and_then(|created| created.elapsed().ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn created_at(&self) -> Result<Option<SystemTime>, SessionError> {
        Ok(self.readable()?.live().map(|live| live.record.created_at.into()))
    }

    /// When the session was last used before this request, with the precision of the
    /// [touch interval](crate::Lifetime::touch_every). `None` until the session is stored.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let idle = session.last_seen()?.and_then(|seen| seen.elapsed().ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn last_seen(&self) -> Result<Option<SystemTime>, SessionError> {
        Ok(self.readable()?.live().map(|live| live.last_seen.into()))
    }

    /// When the session expires if it is not used. `None` until the session is stored.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let expires = session.expires_at()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn expires_at(&self) -> Result<Option<SystemTime>, SessionError> {
        Ok(self.readable()?.live().map(|live| live.expires_at.into()))
    }

    /// Whether this request created the session, or there is no session yet.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let first_visit = session.is_new()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_new(&self) -> Result<bool, SessionError> {
        Ok(self.readable()?.live().is_none_or(|live| live.is_new))
    }

    /// Why the session of the request's token has ended, for a message to the user. `None` if it has not ended, or the reason is
    /// unknown.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if let Some(reason) = session.ended()? {
    ///     println!("Your session has ended: {reason}."); // signed in elsewhere
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn ended(&self) -> Result<Option<EndReason>, SessionError> {
        Ok(self.readable()?.end_reason)
    }

    /// Whether the store gave less than its usual guarantees when the session was loaded. There are three cases:
    ///
    /// * The store was unavailable, and the session is empty for that reason: see [`OnOutage`](crate::OnOutage).
    /// * The store was unavailable, and only a JWT identifies the user: see `JwtBuilder::accept_in_outage`.
    /// * A fallback replied: the session may be older than in the main store, and changes have the guarantees of its
    ///   [`FallbackMode`](crate::store::FallbackMode).
    ///
    /// ```
    /// # use tower_keep::Session;
    /// # fn example(session: &Session) {
    /// let greeting = if session.is_degraded() { "We cannot see who you are right now." } else { "Hello!" };
    /// # }
    /// ```
    pub fn is_degraded(&self) -> bool {
        self.inner.state().degraded
    }

    /// Stores a string about the session besides its values, for example the name of a device. `None` removes it.
    ///
    /// It is part of the [list](crate::Sessions::list) of a user's sessions, and counts towards the size of the session. Setting metadata
    /// does not create a session.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.set_metadata("device", Some("Ana's phone"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_metadata(&self, name: &str, value: Option<&str>) -> Result<(), SessionError> {
        self.writable()?.changes.set_metadata(name, value.map(Arc::from));
        Ok(())
    }

    /// What is stored about the client: see [`SessionLayer::client_info`](crate::SessionLayer::client_info). `None` until the session is
    /// stored.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let address = session.metadata()?.and_then(|metadata| metadata.ip());
    /// # Ok(())
    /// # }
    /// ```
    pub fn metadata(&self) -> Result<Option<Arc<Metadata>>, SessionError> {
        Ok(self.readable()?.live().map(|live| live.record.metadata.clone()))
    }

    /// The client IP of this request, if the layer [determines it](crate::SessionLayer::client_info). Needs no session and no store.
    ///
    /// ```
    /// # use tower_keep::Session;
    /// fn is_local(session: &Session) -> bool {
    ///     session.client_ip().is_some_and(|ip| ip.is_loopback())
    /// }
    /// # let _ = is_local;
    /// ```
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.inner.ip()
    }

    /// The verified JWT, if the store was unavailable and the JWT is enough.
    fn signature_only(&self) -> Option<&Signed> {
        let signed = self.inner.presented.signed()?;
        matches!(self.inner.state().phase, Phase::SignatureOnly).then_some(signed)
    }
}
