//! The session of a request: the handle for handlers, and the state machine behind it.
//!
//! `lookup.rs` and `save.rs` do the I/O. The decisions are in two functions without I/O: `plan.rs` (state → next write) and
//! `apply.rs` (write and reply → next state). A save alternates them until there is nothing to write:
//!
//! | phase | unsaved changes | write | reply | next phase |
//! |---|---|---|---|---|
//! | `Absent` | a value or a login | `Create` | done | `Live` |
//! | `Live` | values, `Confirm` | `Update` | done | `Live` |
//! | | | | conflict | `Live`, changes applied to what the other request wrote |
//! | | | | gone | `Ended`; `Absent` after a login |
//! | `Live` | `Renew`, `Rotate` | `Update` with a new token | as above | as above |
//! | `Live` | `Destroy` | `End` | done, gone | `Ended`; `Absent` if there are later changes |
//! | `Live` | a login | `Create`, pending | done | `Transfer`: `Pending` |
//! | `Transfer`: `Pending` | | `Replace` the old session | done | `Transfer`: `Replaced` |
//! | | | | conflict | `Transfer`: `Stale` |
//! | | | | gone | `Transfer`: `Detached` |
//! | `Transfer`: `Stale` | | `Update`, pending, from the old session | done | `Transfer`: `Pending` |
//! | | | | gone | `Live` with the old session |
//! | `Transfer`: `Replaced` | | `Update`: activate | done | `Live` |
//! | | | | gone | `Transfer`: `Lost` |
//! | `Transfer`: `Lost` | | `Create` | done | `Live` |
//! | `Transfer`: `Detached` | | `Update`: activate, empty | done | `Live` |
//! | | | | gone | `Absent` |
//! | `Transfer` | `Destroy`, or the response is sent | `End` of the old or the new session | done, gone | `Live` with the old session, `Ended`, or `Detached` |
//! | any | a reply was lost | the same again | | |

mod accessors;
mod apply;
mod changes;
mod error;
mod events;
mod finish;
mod lease;
mod lifecycle;
mod long_lived;
mod lookup;
mod lookup_outcome;
mod plan;
mod save;
mod state;
mod time_budget;
mod typed;
mod values;
mod write;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) use self::write::Delivery;
pub use self::{error::SessionError, lease::Lease, typed::Typed};
use self::{
    lookup_outcome::LookupOutcome,
    plan::Environment,
    state::{CookieChange, Phase, State},
    time_budget::TimeBudget,
};
use crate::{
    context::LayerContext,
    credential::{PresentedCredentials, Transport},
    layer::{Policy, Reason, Rejection},
    metadata::Metadata,
    store::SessionStore,
};
#[cfg(feature = "jwt")]
use crate::{record::Record, token::SessionId};

/// The session of a request.
///
/// The layer puts a `Session` into the extensions of every request. Clones are handles to the same session.
///
/// 1. [`load`](Self::load) looks the session up. With axum, the extractor does that. Before, every accessor returns
///    [`SessionError::NotLoaded`], so a session that was not loaded is never mistaken for an empty one.
/// 2. Read and change it. Changes stay in memory.
/// 3. When the handler returns, the layer saves the changes before it sends the head of the response. If that fails, the client gets 503
///    instead of the response. To know earlier, or to change the session while a body streams, call [`save`](Self::save).
///
/// Concurrent requests that change different keys are both kept. For the same key the last save wins, unless
/// [`SessionLayer::merge`](crate::SessionLayer::merge) has a merge function. A session that another request ends stays ended.
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
    /// The client, if the layer determines it.
    client: Option<Metadata>,
    state: Mutex<State>,
    /// Saves of clones take turns.
    turn: Semaphore,
    time_budget: TimeBudget,
}

impl Session {
    pub(crate) fn new(
        context: Arc<LayerContext>,
        presented: PresentedCredentials,
        client: Option<Metadata>,
        policy: Policy,
    ) -> Self {
        let state = Mutex::new(State::new());
        let (turn, time_budget) = (Semaphore::new(1), TimeBudget::new(context.deadline));
        Self { inner: Arc::new(Inner { context, presented, client, state, turn, time_budget }), policy }
    }

    pub(crate) fn with_policy(&self, policy: Policy) -> Self {
        Self { inner: self.inner.clone(), policy }
    }

    /// Looks the session up, unless that is done already.
    ///
    /// Costs nothing if the request has no token. After an outage it can be called again, within the
    /// [deadline](crate::SessionLayer::deadline) of the request.
    ///
    /// # Errors
    /// A [`Rejection`], which can be returned as the response: if there is no live session and the [`Policy`] requires one, or if the
    /// store is unavailable and the policy rejects that.
    pub async fn load(&self) -> Result<(), Rejection> {
        if self.inner.needs_lookup() {
            let mut result = self.inner.look_up(self.policy.touch).await;
            if self.policy.remove_dead_cookie && result.is_dead() {
                result.cookie = Some(CookieChange::Remove);
            }
            self.inner.state().looked_up(result);
        }
        self.verdict()
    }

    /// Saves the changes now instead of when the handler returns.
    ///
    /// When it returns `Ok`, the store has confirmed every change made before the call. The [deadline](crate::SessionLayer::deadline)
    /// of the request starts again.
    ///
    /// # Errors
    /// * [`SessionError::Store`]: not confirmed. The changes are kept, and saved again when the handler returns.
    /// * [`SessionError::Ended`]: not saved, because another request ended the session. The changes are lost.
    /// * [`SessionError::Conflict`]: not saved. The changes are kept.
    /// * [`SessionError::TooLarge`], [`SessionError::Full`]: not saved, and the changes are dropped: a login has not happened. The
    ///   handler decides about the response.
    /// * [`SessionError::ResponseSent`]: not saved, because a new token can no longer be sent to the client. The changes are dropped.
    /// * [`SessionError::NotLoaded`], [`SessionError::Unavailable`]: there is no session to save.
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
        let generation = self.loaded()?.changes.generation();
        let saved = self.inner.save(Delivery::Response).await;
        if let Err(SessionError::TooLarge { .. } | SessionError::Full | SessionError::ResponseSent) = saved {
            // It would fail again. The caller knows.
            self.inner.state().changes.saved(generation);
        }
        saved.inspect(|()| self.inner.time_budget.reset())
    }

    /// Loads the session and returns the user who is logged in.
    ///
    /// # Errors
    /// A [`Rejection`], for any policy: 401 without a login, 503 in an outage.
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
        let required = self.with_policy(self.policy.require_user());
        required.load().await?;
        required.user()?.ok_or_else(|| self.unauthenticated())
    }

    fn readable(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.inner.known_state();
        match state.phase {
            Phase::NotLoaded => Err(SessionError::NotLoaded),
            Phase::Unavailable if self.policy.rejects_outage() => Err(SessionError::Unavailable),
            Phase::SignatureOnly => Err(SessionError::Unavailable),
            _ => Ok(state),
        }
    }

    fn loaded(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.inner.known_state();
        match state.phase {
            Phase::NotLoaded => Err(SessionError::NotLoaded),
            Phase::Unavailable | Phase::SignatureOnly => Err(SessionError::Unavailable),
            Phase::Absent | Phase::Ended | Phase::Live(_) | Phase::Transfer(_) => Ok(state),
        }
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.loaded()?;
        if let Phase::Ended = state.phase { Err(SessionError::Ended) } else { Ok(state) }
    }

    /// Whether the policy accepts the result of the lookup.
    fn verdict(&self) -> Result<(), Rejection> {
        let state = self.inner.state();
        let rejection: fn(&Self) -> Rejection = match state.phase {
            Phase::NotLoaded => return Ok(()),
            Phase::Unavailable if self.policy.rejects_outage() => Self::unavailable,
            Phase::Absent | Phase::Ended if self.policy.rejects_missing() && !state.changes.creates() => {
                Self::unauthenticated
            }
            _ if self.policy.requires_user() && !self.has_user(&state) => Self::unauthenticated,
            _ => return Ok(()),
        };
        drop(state);
        Err(rejection(self))
    }

    fn has_user(&self, state: &State) -> bool {
        match state.phase {
            Phase::SignatureOnly => self.inner.presented.signed().is_some_and(|signed| signed.user.is_some()),
            _ => state.user().is_some(),
        }
    }

    /// The response to credentials that are not sufficient.
    pub(crate) fn unauthenticated(&self) -> Rejection {
        let (end_reason, is_live) = {
            let state = self.inner.state();
            (state.end_reason, matches!(state.phase, Phase::Live(_) | Phase::Transfer(_) | Phase::SignatureOnly))
        };
        let (reason, error) = match &self.inner.presented {
            _ if is_live => (Reason::NotLoggedIn, None),
            PresentedCredentials::Nothing => (Reason::NoCredential, None),
            PresentedCredentials::Malformed => (Reason::MalformedCredential, Some("invalid_request")),
            PresentedCredentials::Disagreement => (Reason::CredentialsDisagree, Some("invalid_token")),
            PresentedCredentials::Foreign(Transport::Cookie) | PresentedCredentials::Tokens(Transport::Cookie, _) => {
                (Reason::InvalidToken, None)
            }
            PresentedCredentials::Foreign(Transport::Bearer)
            | PresentedCredentials::Tokens(Transport::Bearer, _)
            | PresentedCredentials::Signed(_) => (Reason::InvalidToken, Some("invalid_token")),
        };
        let bearer = self.inner.context.credentials.bearer();
        Rejection::new(reason, bearer.map(|bearer| bearer.challenge(error))).because(end_reason)
    }
}

/// For the layer and for JWTs.
impl Session {
    /// The stored session, which a JWT identifies from now on.
    #[cfg(feature = "jwt")]
    pub(crate) fn identify_by_jwt(&self) -> Result<Option<(SessionId, Arc<Record>)>, SessionError> {
        let mut state = self.writable()?;
        let stored = state.settled().map(|live| (live.id, live.record.clone()));
        if stored.is_some() {
            state.cookie = Some(CookieChange::Remove); // an old cookie would contradict the JWT
        }
        Ok(stored)
    }

    pub(crate) fn context(&self) -> &Arc<LayerContext> {
        &self.inner.context
    }

    pub(crate) fn presented(&self) -> &PresentedCredentials {
        &self.inner.presented
    }

    /// Logs that the request has a cookie and a bearer token that differ.
    pub(crate) fn report_disagreement(&self) {
        let context = &self.inner.context;
        context.security.disagreement(&*context.clock, self.inner.ip());
    }

    pub(crate) fn belongs_to(&self, context: &Arc<LayerContext>) -> bool {
        Arc::ptr_eq(&self.inner.context, context)
    }

    /// Adds to a rejection what only this request knows.
    pub(crate) fn complete(&self, rejection: Rejection) -> Rejection {
        match rejection.reason() {
            Reason::Unavailable => rejection.or(self.unavailable()),
            _ if rejection.status() == StatusCode::UNAUTHORIZED => rejection.or(self.unauthenticated()),
            _ => rejection,
        }
    }

    fn unavailable(&self) -> Rejection {
        Rejection::unavailable(self.policy.retry_after)
    }
}

impl Inner {
    /// The state. If the request has nothing to look up, its empty session is known without `load`.
    fn known_state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if let Phase::NotLoaded = state.phase
            && !self.presented.needs_lookup()
        {
            state.phase = Phase::Absent;
            state.degraded = self.context.store().is_degraded();
            if let LookupOutcome::Malformed = LookupOutcome::without_lookup(&self.presented) {
                self.context.security.malformed(&*self.context.clock, self.presented.label(), self.ip());
            }
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What planning a write needs besides the state.
    fn environment(&self) -> Environment<'_> {
        Environment {
            now: self.context.clock.now(),
            context: &self.context,
            presented: &self.presented,
            client: self.client.as_ref(),
        }
    }

    /// The client IP, if it is known.
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
