//! The handle that a handler works with.

mod close;
mod error;
mod facts;
mod life;
mod lookup;
mod met;
mod patience;
mod save;
mod settle;
mod state;
mod typed;
mod values;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) use self::save::Delivery;
pub use self::{error::SessionError, typed::Typed};
use self::{
    patience::Patience,
    state::{Known, State},
};
use crate::{
    context::LayerContext,
    credential::{PresentedCredentials, Transport},
    layer::{Policy, Reason, Rejection},
    metadata::Metadata,
};
#[cfg(feature = "jwt")]
use {
    self::state::Untold,
    crate::{jwt::JwtIssueError, record::Record, token::SessionId},
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
    context: Arc<LayerContext>,
    presented: PresentedCredentials,
    /// Who the client is, if the layer is to know.
    client: Option<Metadata>,
    state: Mutex<State>,
    /// One write at a time: two saves of one session take turns.
    turn: Semaphore,
    patience: Patience,
}

impl Session {
    pub(crate) fn new(
        context: Arc<LayerContext>,
        presented: PresentedCredentials,
        client: Option<Metadata>,
        policy: Policy,
    ) -> Self {
        let state = Mutex::new(State::new());
        let (turn, patience) = (Semaphore::new(1), Patience::default());
        Self { inner: Arc::new(Inner { context, presented, client, state, turn, patience }), policy }
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

    fn readable(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.inner.state();
        match state.known {
            Known::Unread => Err(SessionError::NotLoaded),
            Known::Unavailable if self.policy.rejects_outage() => Err(SessionError::Unavailable),
            Known::Vouched => Err(SessionError::Unavailable),
            _ => Ok(state),
        }
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
            PresentedCredentials::Nothing => (Reason::NoCredential, None),
            PresentedCredentials::Malformed => (Reason::MalformedCredential, Some("invalid_request")),
            PresentedCredentials::Disagreement => (Reason::CredentialsDisagree, Some("invalid_token")),
            PresentedCredentials::Foreign(Transport::Bearer)
            | PresentedCredentials::Tokens(Transport::Bearer, _)
            | PresentedCredentials::Signed(_) => (Reason::InvalidToken, Some("invalid_token")),
            PresentedCredentials::Foreign(Transport::Cookie) | PresentedCredentials::Tokens(Transport::Cookie, _) => {
                (Reason::InvalidToken, None)
            }
        };
        let bearer = self.inner.context.credentials.bearer();
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
            PresentedCredentials::Tokens(..) if !self.is_new()? => Err(JwtIssueError::HasToken),
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

    pub(crate) fn context(&self) -> &LayerContext {
        &self.inner.context
    }

    pub(crate) fn presented(&self) -> &PresentedCredentials {
        &self.inner.presented
    }

    /// A cookie and a bearer token came, and differ.
    pub(crate) fn report_disagreement(&self) {
        let context = &self.inner.context;
        context.security.disagreement(&*context.clock, self.inner.ip());
    }

    pub(crate) fn belongs_to(&self, context: &Arc<LayerContext>) -> bool {
        Arc::ptr_eq(&self.inner.context, context)
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
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, user) = (self.id(), self.user());
        f.debug_struct("Session").field("id", &id).field("user", &user).finish_non_exhaustive()
    }
}
