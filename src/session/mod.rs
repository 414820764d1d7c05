//! The handle that a handler works with.

mod close;
mod error;
mod lookup;
mod met;
mod patience;
mod save;
mod settle;
mod state;
mod typed;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) use self::save::Delivery;
pub use self::{error::SessionError, typed::Typed};
use self::{
    patience::Patience,
    state::{Held, Known, Live, State},
};
use crate::{
    credential::{Presented, Signed, Transport},
    ended::EndReason,
    event::Happened,
    key::{AsKey, KeyOf},
    layer::{Policy, Reason, Rejection},
    lifetime::Lifetime,
    metadata::Metadata,
    record::Json,
    shared::Shared,
    store::Found,
    token::{SessionId, Token},
};
#[cfg(feature = "jwt")]
use {
    self::state::Untold,
    crate::{jwt::JwtIssueError, record::Record},
};

/// The session of a request, as its handler sees it.
///
/// The layer puts one into the extensions of every request. It is a handle: clones are the same session.
///
/// 1. [`load`](Self::load) looks the session up (with axum, the extractor does). Until then every accessor says
///    [`SessionError::NotLoaded`]: a session that was not looked up is never mistaken for an empty one.
/// 2. Read and change it. Changes are kept here.
/// 3. When the handler returns, the layer saves what has changed, before the head of the response leaves. If that fails, the client gets
///    503 in place of the response. A handler that must know earlier, or changes the session while a body streams, calls
///    [`save`](Self::save).
///
/// Requests that change different keys of one session at the same time both win; of the same key, the later save does.
/// A session that ended meanwhile, by a logout in another tab for example, stays ended, whatever this request changed.
///
/// ```
/// use tower_keep::{Session, SessionError};
///
/// fn add_to_cart(session: &Session, item: u64) -> Result<usize, SessionError> {
///     let mut cart: Vec<u64> = session.get("cart")?.unwrap_or_default();
///     cart.push(item);
///     session.insert("cart", &cart)?;
///     Ok(cart.len())
/// }
/// # let _ = add_to_cart;
/// ```
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
    policy: Policy,
}

struct Inner {
    shared: Arc<Shared>,
    presented: Presented,
    /// Who the client is, if the layer is to know.
    client: Option<Metadata>,
    state: Mutex<State>,
    /// One write at a time: two saves of one session take turns.
    turn: Semaphore,
    patience: Patience,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, presented: Presented, client: Option<Metadata>, policy: Policy) -> Self {
        let state = Mutex::new(State::new());
        let (turn, patience) = (Semaphore::new(1), Patience::default());
        Self { inner: Arc::new(Inner { shared, presented, client, state, turn, patience }), policy }
    }

    pub(crate) fn with_policy(&self, policy: Policy) -> Self {
        Self { inner: self.inner.clone(), policy }
    }

    /// Looks the session up, unless that is done already.
    ///
    /// Costs nothing when the request brought no token. After an outage it can be called again, within what the request may
    /// [wait](crate::SessionLayer::deadline).
    ///
    /// # Errors
    /// A [`Rejection`], which is a ready answer, when there is no live session and the [`Policy`] demands one, and when the
    /// store does not answer and the policy says to reject that.
    pub async fn load(&self) -> Result<(), Rejection> {
        if self.inner.is_to_look_up() {
            let found = self.inner.look_up().await;
            // Another clone may have been faster, and the session may have changed since.
            self.inner.state().looked_up(found);
        }
        self.verdict()
    }

    /// Saves now what has changed, instead of when the handler returns.
    ///
    /// After it returns, the store has confirmed everything that was changed before. What the request may
    /// [wait](crate::SessionLayer::deadline) for the store begins anew with that.
    ///
    /// # Errors
    /// * [`SessionError::Store`]: not confirmed; the changes are kept, and saved again later.
    /// * [`SessionError::Ended`]: not saved, and never will be: somebody else ended the session meanwhile.
    /// * [`SessionError::TooLarge`], [`SessionError::Conflict`]: not saved.
    /// * [`SessionError::ResponseSent`]: a new token is needed, and the response has left that could have given it.
    /// * [`SessionError::NotLoaded`], [`SessionError::Unavailable`]: there is nothing that could be saved.
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// async fn pay(session: &Session) -> Result<(), SessionError> {
    ///     session.insert("paid", &true)?;
    ///     session.save().await // and only then ship
    /// }
    /// # let _ = pay;
    /// ```
    pub async fn save(&self) -> Result<(), SessionError> {
        drop(self.loaded()?);
        self.inner.write(Delivery::Response).await?;
        self.inner.patience.renew();
        Ok(())
    }

    /// The value of `key`, or `None`. A key is a text, or a typed [`Key`](crate::Key).
    ///
    /// # Errors
    /// [`SessionError::Decode`] when the value is not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let visits: u32 = session.get("visits")?.unwrap_or(0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let key = key.name();
        // Decoded outside the lock: a `Deserialize` may do anything.
        let value = self.readable()?.value(key).cloned();
        value.map(|value| decode(key, &value)).transpose()
    }

    /// Whether there is a value of `key`.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if !session.contains("csrf")? { /* … */ }
    /// # Ok(())
    /// # }
    /// ```
    pub fn contains(&self, key: impl AsKey) -> Result<bool, SessionError> {
        Ok(self.readable()?.value(key.name()).is_some())
    }

    /// Sets the value of `key`. The first value makes a session where there was none. Setting the value it has already
    /// changes nothing, and costs no write.
    ///
    /// # Errors
    /// [`SessionError::Encode`] when JSON cannot hold the value; [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.insert("theme", "dark")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert<T: Serialize + ?Sized>(&self, key: impl KeyOf<T>, value: &T) -> Result<(), SessionError> {
        let key = key.name();
        let value = Json::encode(value).map_err(|source| SessionError::Encode { key: key.to_owned(), source })?;
        self.writable()?.set(key, Some(value));
        Ok(())
    }

    /// Removes the value of `key`, and says whether there was one. Removing what is not there costs no write.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let was_there = session.remove("cart")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove(&self, key: impl AsKey) -> Result<bool, SessionError> {
        Ok(self.writable()?.set(key.name(), None))
    }

    /// Removes the value of `key` and returns it: a message to be shown once.
    ///
    /// # Errors
    /// [`SessionError::Decode`] when the value is not a `T`: it is then kept; [`SessionError::NotLoaded`],
    /// [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if let Some(notice) = session.take::<String>("notice")? {
    ///     println!("{notice}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn take<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let key = key.name();
        let Some(raw) = self.writable()?.value(key).cloned() else { return Ok(None) };
        let value = decode(key, &raw)?;
        let mut state = self.writable()?;
        // Another clone may have taken it while this one decoded: only one gets it.
        let mine = state.value(key).is_some_and(|current| current.is_same_as(&raw));
        Ok((mine && state.set(key, None)).then_some(value))
    }

    /// Removes all values. Who is logged in stays so.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.clear()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn clear(&self) -> Result<(), SessionError> {
        self.writable()?.clear();
        Ok(())
    }

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

    /// The session as one value of your own type: its fields are the values.
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// #[serde(default)]
    /// struct Visitor { visits: u32, theme: Option<String> }
    ///
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.typed::<Visitor>().modify(|visitor| visitor.visits += 1)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> Typed<T> {
        Typed::new(self.clone())
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
        match self.vouched() {
            Some(signed) => Ok(signed.user.clone()),
            None => Ok(self.readable()?.user().cloned()),
        }
    }

    /// Loads the session and returns who is logged in, or else the answer to give: 401 without a login, 503 in an outage.
    ///
    /// # Errors
    /// A [`Rejection`], whatever the policy says: who cannot be recognised is not let in.
    ///
    /// ```
    /// # use tower_keep::{Rejection, Session};
    /// async fn account(session: &Session) -> Result<String, Rejection> {
    ///     let user = session.require_user().await?;
    ///     Ok(format!("hello {user}"))
    /// }
    /// # let _ = account;
    /// ```
    pub async fn require_user(&self) -> Result<Arc<str>, Rejection> {
        let required = self.with_policy(self.policy.require());
        required.load().await?;
        required.user()?.ok_or_else(|| self.unauthenticated())
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
        match self.vouched() {
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
    /// [touch interval](Lifetime::touch_every). `None` until it is stored.
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

    fn readable(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.inner.state();
        match state.known {
            Known::Unread => Err(SessionError::NotLoaded),
            Known::Unavailable if self.policy.rejects_outage() => Err(SessionError::Unavailable),
            Known::Vouched => Err(SessionError::Unavailable),
            _ => Ok(state),
        }
    }

    /// What the request brought, if that is all there is to go by.
    fn vouched(&self) -> Option<&Signed> {
        let signed = self.inner.presented.signed()?;
        matches!(self.inner.state().known, Known::Vouched).then_some(signed)
    }

    fn loaded(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.inner.state();
        match state.known {
            Known::Unread => Err(SessionError::NotLoaded),
            Known::Unavailable | Known::Vouched => Err(SessionError::Unavailable),
            Known::Absent | Known::Ended | Known::Live(_) => Ok(state),
        }
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.loaded()?;
        if let Known::Ended = state.known { Err(SessionError::Ended) } else { Ok(state) }
    }

    /// What the policy says to what the look-up found.
    fn verdict(&self) -> Result<(), Rejection> {
        let state = self.inner.state();
        let rejection: fn(&Self) -> Rejection = match state.known {
            Known::Unavailable if self.policy.rejects_outage() => Self::unavailable,
            Known::Absent | Known::Ended if self.policy.rejects_missing() && !state.changes.create() => {
                Self::unauthenticated
            }
            _ => return Ok(()),
        };
        drop(state);
        Err(rejection(self))
    }

    /// The answer to what the request brought, where that is not enough.
    pub(crate) fn unauthenticated(&self) -> Rejection {
        let (reason, error) = match &self.inner.presented {
            Presented::Nothing => (Reason::NoCredential, None),
            Presented::Malformed => (Reason::MalformedCredential, Some("invalid_request")),
            Presented::Disagreement => (Reason::CredentialsDisagree, Some("invalid_token")),
            Presented::Foreign(Transport::Bearer) | Presented::Tokens(Transport::Bearer, _) | Presented::Signed(_) => {
                (Reason::InvalidToken, Some("invalid_token"))
            }
            Presented::Foreign(Transport::Cookie) | Presented::Tokens(Transport::Cookie, _) => {
                (Reason::InvalidToken, None)
            }
        };
        let bearer = self.inner.shared.credentials.bearer();
        let ended = self.inner.state().ended;
        Rejection::new(reason, bearer.map(|bearer| bearer.challenge(error))).because(ended)
    }
}

/// What the layer needs of a session.
impl Session {
    /// Refuses a session that the request came with an opaque token of: its client would have two tokens, of which one is soon from
    /// before. What has begun with this request has one that nobody knows.
    #[cfg(feature = "jwt")]
    pub(crate) fn check_given_away(&self) -> Result<(), JwtIssueError> {
        match self.inner.presented {
            Presented::Tokens(..) if !self.is_new()? => Err(JwtIssueError::HasToken),
            _ => Ok(()),
        }
    }

    /// The session as it is stored, which from now on is opened by a JWT.
    #[cfg(feature = "jwt")]
    pub(crate) fn give_away(&self) -> Result<(SessionId, Arc<Record>), JwtIssueError> {
        self.check_given_away()?; // again: it may be another by now
        let mut state = self.writable()?;
        let begun = state.live().filter(|live| live.moved.is_none());
        let stored = begun.map(|live| (live.id, live.record.clone())).ok_or(JwtIssueError::NoSession)?;
        state.untold = Some(Untold::End); // an old cookie would only contradict the JWT
        Ok(stored)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    pub(crate) fn presented(&self) -> &Presented {
        &self.inner.presented
    }

    /// A cookie and a bearer token came, and differ.
    pub(crate) fn report_disagreement(&self) {
        let shared = &self.inner.shared;
        shared.security.disagreement(&*shared.clock, self.inner.ip());
    }

    pub(crate) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.inner.shared, shared)
    }

    /// What an error does not know of the request it answers.
    pub(crate) fn complete(&self, rejection: Rejection) -> Rejection {
        match rejection.reason() {
            Reason::Unavailable => rejection.or(self.unavailable()),
            Reason::InvalidToken => rejection.or(self.unauthenticated()),
            _ => rejection,
        }
    }

    fn unavailable(&self) -> Rejection {
        Rejection::unavailable(self.policy.retry_after)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the request came from, if that is known.
    fn ip(&self) -> Option<IpAddr> {
        self.client.as_ref().and_then(Metadata::ip)
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        match self.turn.try_acquire() {
            Ok(turn) => Some(turn),
            Err(_) => self.turn.acquire().await.ok(), // it is never closed
        }
    }

    async fn consume(&self) -> Result<bool, SessionError> {
        let _turn = self.turn().await;
        let (id, user) = match self.state().begun() {
            Some(live) => (live.id, live.record.user.clone()),
            None => return Ok(false),
        };
        let shared = &self.shared;
        let claim = self.state().claim()?;
        let found = self.ask(shared.store.consume(&id, claim)).await;
        let found = found.inspect_err(|_| shared.counters.outages.count())?;
        let mine = matches!(found, Found::Live(_));
        if let Found::Live(loaded) = &found {
            shared.lived(&loaded.record);
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
            self.announce([(id, user, Happened::Ended(EndReason::Used))]).await;
        }
        Ok(mine)
    }

    /// The token that its client is to use.
    fn token_of(&self, live: &Live) -> Option<Token> {
        self.held(live).filter(|_| !live.disowned)
    }

    fn held(&self, live: &Live) -> Option<Token> {
        match (&live.token, &self.presented) {
            (Held::Minted(token), _) => Some(Token::clone(token)),
            (Held::Presented(place), Presented::Tokens(_, candidates)) => candidates.get(*place).cloned(),
            (Held::Presented(_) | Held::Elsewhere, _) => None,
        }
    }
}

fn decode<T: DeserializeOwned>(key: &str, value: &Json) -> Result<T, SessionError> {
    value.decode().map_err(|_| SessionError::Decode { key: key.to_owned() })
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, user) = (self.id(), self.user());
        f.debug_struct("Session").field("id", &id).field("user", &user).finish_non_exhaustive()
    }
}
