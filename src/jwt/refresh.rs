//! Exchanges a refresh token for a new pair.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::json;

use super::{
    Jwt, JwtError, JwtIssueError, JwtPair,
    issue::{RefreshToken, own_claims},
};
use crate::{
    credential::Bearer,
    ended::EndReason,
    error_chain::ErrorChain,
    event::EventKind,
    layer::{Reason, Rejection},
    metrics::{self, ROTATION},
    record::{Record, Standing},
    security,
    session::SessionError,
    sessions::{SessionInfo, Sessions},
    store::{End, EndOutcome, Entry, Found, Loaded, Outcome, SessionStore, StoreError},
    token::{Generation, SessionId},
};

/// The number of attempts when other requests write the session concurrently.
const MAX_ATTEMPTS: usize = 128;

impl Jwt {
    /// Exchanges a refresh token for a new pair. The refresh token is then invalid: see [Refreshing](Self#refreshing). The session
    /// keeps its id, and its idle timeout starts again. Security events have the client IP if the sessions are [for a
    /// client](Sessions::for_client).
    ///
    /// # Errors
    /// [`JwtRefreshError`]: no new pair. After an outage it is unknown whether the refresh token was used up.
    ///
    /// ```
    /// use tower_keep::{Jwt, JwtPair, Rejection, Sessions};
    ///
    /// async fn refresh(jwt: &Jwt, sessions: &Sessions, refresh_token: &str) -> Result<JwtPair, Rejection> {
    ///     Ok(jwt.refresh(sessions, refresh_token).await?) // or 401, or 503
    /// }
    /// # let _ = refresh;
    /// ```
    pub async fn refresh(&self, sessions: &Sessions, refresh_token: &str) -> Result<JwtPair, JwtRefreshError> {
        self.refresh_with(sessions, refresh_token, |_| json!({})).await
    }

    /// Like [`refresh`](Self::refresh), with your own claims in the access token, created from the session.
    ///
    /// # Errors
    /// Those of [`refresh`](Self::refresh).
    ///
    /// ```
    /// # use tower_keep::{Jwt, JwtPair, JwtRefreshError, Sessions};
    /// # async fn refresh(jwt: &Jwt, sessions: &Sessions, token: &str) -> Result<JwtPair, JwtRefreshError> {
    /// jwt.refresh_with(sessions, token, |session| serde_json::json!({ "admin": session.user() == Some("ana") })).await
    /// # }
    /// ```
    pub async fn refresh_with<C: Serialize>(
        &self,
        sessions: &Sessions,
        refresh_token: &str,
        claims: impl Fn(&SessionInfo) -> C,
    ) -> Result<JwtPair, JwtRefreshError> {
        let context = sessions.context();
        let (id, generation) =
            self.read_refresh(refresh_token.as_bytes(), context.clock.now()).inspect_err(|reason| {
                tracing::debug!(%reason, "refresh token refused");
            })?;
        let failed = |error: StoreError| {
            context.counters.outages.count();
            tracing::warn!(session = %id, error = %ErrorChain(&error), "session not refreshed");
            JwtRefreshError::Session(error.into())
        };
        let mut found = context.store().load(&id).await.map_err(failed)?;
        for _ in 0..MAX_ATTEMPTS {
            let loaded = match found {
                Found::Live(loaded) => loaded,
                Found::Ended(ended) => return Err(JwtRefreshError::Ended(ended.reason)),
                Found::Unknown => return Err(JwtRefreshError::Unknown),
            };
            let now = context.clock.now();
            let is_of = |of: Option<Generation>| Generation::name(of, &id) == generation;
            let standing = loaded.record.standing_once(is_of, now, context.rotation.grace);
            if standing == Standing::Reused {
                return Err(self.reused(sessions, id, &loaded).await.unwrap_or_else(failed));
            }
            if !context.is_activated(&id, &loaded.record).await.map_err(failed)? {
                return Err(JwtRefreshError::Unknown);
            }
            let Some(info) = SessionInfo::of(id, &loaded, now) else {
                return Err(JwtRefreshError::Ended(EndReason::Expired));
            };
            if standing != Standing::Current {
                metrics::count(&ROTATION, [("case", "superseded")]);
                let own = own_claims(&claims(&info))?;
                return Ok(self.pair(&id, &loaded.record, now, own, RefreshToken::GivenToAnother)?);
            }
            let expected = loaded.record.version();
            let mut record = Record {
                version: expected.next().map_err(SessionError::from)?,
                written_at: now,
                replaces: None,
                ..Record::clone(&loaded.record)
            };
            record.token_used(now);
            record.rotate(now, Duration::ZERO).map_err(SessionError::from)?;
            // The pair is created before the write, so that an error does not cost the client its token.
            let pair = self.pair(&id, &record, now, own_claims(&claims(&info))?, RefreshToken::New)?;
            let entry = Entry { ttl: record.full_ttl(now), record: Arc::new(record) };
            match context.store().update(&id, expected, entry).await.map_err(failed)? {
                Outcome::Done => {
                    sessions.announce([(id, loaded.record.user.clone(), EventKind::Rotated)]).await;
                    return Ok(pair);
                }
                Outcome::Conflict(theirs) => found = Found::Live(theirs),
                Outcome::Gone => found = context.store().load(&id).await.map_err(failed)?,
            }
        }
        Err(JwtRefreshError::Session(SessionError::Conflict))
    }

    /// Ends the session of a refresh token that was used before.
    async fn reused(&self, sessions: &Sessions, id: SessionId, loaded: &Loaded) -> Result<JwtRefreshError, StoreError> {
        let (context, user) = (sessions.context(), loaded.record.user.clone());
        security::token_reused(&id, user.as_deref(), sessions.client_ip());
        if let EndOutcome::Done = context.store().end(&id, End::For(EndReason::TokenReused)).await? {
            context.record_lifetime(&loaded.record);
            sessions.announce([(id, user, EventKind::Ended(EndReason::TokenReused))]).await;
        }
        Ok(JwtRefreshError::Ended(EndReason::TokenReused))
    }
}

/// Why a refresh returned no pair.
///
/// With the features `axum` and `grpc` it is a response: 401, 503 in an outage, or 500.
///
/// ```
/// use tower_keep::{EndReason, JwtRefreshError};
///
/// let error = JwtRefreshError::Ended(EndReason::TokenReused);
/// assert_eq!(error.to_string(), "the session of the refresh token has ended: ended because its token was used twice");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtRefreshError {
    /// It is not a valid refresh token.
    #[error("invalid refresh token: {0}")]
    Refused(JwtError),
    /// Its session is unknown.
    #[error("the session of the refresh token is unknown")]
    Unknown,
    /// Its session has ended, perhaps by this call, if the token was used before ([`EndReason::TokenReused`]).
    #[error("the session of the refresh token has ended: {0}")]
    Ended(EndReason),
    /// The store failed, or the system has no random numbers.
    #[error("the session could not be refreshed")]
    Session(#[from] SessionError),
    /// The new pair could not be created. The refresh token is still valid.
    #[error("new tokens could not be issued")]
    Issue(#[from] JwtIssueError),
}

impl From<JwtError> for JwtRefreshError {
    fn from(reason: JwtError) -> Self {
        Self::Refused(reason)
    }
}

impl From<JwtRefreshError> for Rejection {
    fn from(error: JwtRefreshError) -> Self {
        let ended = match error {
            JwtRefreshError::Session(error) => return error.into(),
            JwtRefreshError::Issue(error) => return error.into(),
            JwtRefreshError::Ended(reason) => Some(reason),
            JwtRefreshError::Refused(_) | JwtRefreshError::Unknown => None,
        };
        Self::new(Reason::InvalidToken, Some(Bearer::new().challenge(Some("invalid_token")))).because(ended)
    }
}
