//! What is known of a session, besides what it holds.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

#[cfg(feature = "jwt")]
use serde::de::DeserializeOwned;

use super::{
    Inner, Session, SessionError,
    state::{Held, Known, Live},
};
use crate::{
    credential::{PresentedCredentials, Signed},
    ended::EndReason,
    metadata::Metadata,
    token::{SessionId, Token},
};

/// What is known of it.
impl Session {
    /// Who is logged in.
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

    /// The id of the stored session: for logs, and for users to tell their sessions apart. `None` until it is stored.
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

    /// The token of the stored session: for a client that is to send it as a bearer token. `None` until it is stored, so
    /// [`save`](Self::save) first. With cookies the layer delivers it, and handlers have no use for it.
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
        let begun = state.live().filter(|live| live.moved.is_none());
        Ok(begun.and_then(|live| self.inner.token_of(live)))
    }

    /// What the access token of the request says, as a type of your own: `None` when it brought none, or the session that it names is
    /// not this request's any more. Verified, and its session is alive: or else the store [is away](Self::is_degraded), and a
    /// [signature suffices](crate::JwtBuilder::accept_in_outage).
    ///
    /// # Errors
    /// [`SessionError::Decode`] when that is not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// #[derive(serde::Deserialize)]
    /// struct Mine { role: String }
    ///
    /// fn is_admin(session: &Session) -> Result<bool, SessionError> {
    ///     Ok(session.claims::<Mine>()?.is_some_and(|mine| mine.role == "admin"))
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
        signed.claims.decode().map(Some).map_err(|_| SessionError::Decode { key: "the access token".to_owned() })
    }

    /// When the session was created or last logged in to. `None` until it is stored.
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

    /// When the session was last used before this request, up to the
    /// [touch interval](crate::Lifetime::touch_every). `None` until it is stored.
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

    /// When the session ends if nobody uses it. `None` until it is stored.
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

    /// Whether the session began with this request, or has not begun yet.
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

    /// Why the session of which the request brought a token has ended, as far as that is known: to tell its user.
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
        Ok(self.readable()?.ended)
    }

    /// Whether the store did not answer as usual when the session was loaded. Either it did not answer at all, and the session is empty for
    /// that reason only: see [`OnOutage`](crate::OnOutage); or a signature stands in for it, and all that is known is whose it is (see
    /// `JwtBuilder::accept_in_outage`). Or a fallback did: the session may not be what the main store has, and what is
    /// done to it is worth what its [`FallbackMode`](crate::store::FallbackMode) promises.
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

    /// Keeps a text about the session, beside its values: the name of a device. It is [listed](crate::Sessions::list) with it,
    /// and counts towards its size. `None` removes it. By itself this makes no session.
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
        self.writable()?.set_metadata(name, value.map(Arc::from));
        Ok(())
    }

    /// What is stored about the client of the session: see [`SessionLayer::client_info`](crate::SessionLayer::client_info). `None` until
    /// it is stored.
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

    /// Where the request came from, if the layer is [told to look](crate::SessionLayer::client_info). It needs no session, and nothing is
    /// asked of the store.
    ///
    /// ```
    /// # use tower_keep::Session;
    /// fn is_from_here(session: &Session) -> bool {
    ///     session.client_ip().is_some_and(|ip| ip.is_loopback())
    /// }
    /// # let _ = is_from_here;
    /// ```
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.inner.ip()
    }

    /// What the request brought, if that is all there is to go by.
    fn signature_only(&self) -> Option<&Signed> {
        let signed = self.inner.presented.signed()?;
        matches!(self.inner.state().known, Known::Vouched).then_some(signed)
    }
}

impl Inner {
    /// The token that its client is to use.
    pub(super) fn token_of(&self, live: &Live) -> Option<Token> {
        self.held(live).filter(|_| !live.disowned)
    }

    pub(super) fn held(&self, live: &Live) -> Option<Token> {
        match (&live.token, &self.presented) {
            (Held::Minted(token), _) => Some(Token::clone(token)),
            (Held::Presented(place), PresentedCredentials::Tokens(_, candidates)) => candidates.get(*place).cloned(),
            (Held::Presented(_) | Held::Elsewhere, _) => None,
        }
    }
}
