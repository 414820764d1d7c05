//! Issues pairs of an access token and a refresh token.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Jwt, Purpose, claims::REGISTERED};
use crate::{
    credential::PresentedCredentials,
    layer::{Reason, Rejection},
    record::Record,
    session::{Session, SessionError},
    sessions::{NewSession, Sessions},
    time::{Timestamp, millis},
    token::{Generation, SessionId},
};

/// An access token, and the refresh token for the next one.
///
/// As JSON it is `{"access_token":"…","refresh_token":"…","expires_in":900}` (RFC 6749, section 5.1). Send it with `Cache-Control:
/// no-store`. `Debug` shows no token.
///
/// ```
/// use tower_keep::{Jwt, JwtIssueError, Session};
///
/// async fn log_in(jwt: &Jwt, session: &Session) -> Result<String, JwtIssueError> {
///     session.login("ana")?;
///     let pair = jwt.issue(session).await?;
///     Ok(serde_json::to_string(&pair).unwrap_or_default())
/// }
/// # let _ = log_in;
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JwtPair {
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// For [`Jwt::refresh`]. It works once. `None` only from `refresh`, if another request refreshed with the same token a moment ago:
    /// that one received the new refresh token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// The lifetime of the access token in seconds.
    pub expires_in: u64,
}

impl Jwt {
    /// Saves the session, and issues a pair of tokens for it. The session then has no cookie; a cookie of the request is removed.
    ///
    /// Call it after a login, or after [`Session::rotate`], which makes the previous refresh token invalid. Otherwise the client
    /// has the same refresh token twice, and using both ends the session.
    ///
    /// A pair can keep the session alive. An endpoint that issues pairs for an access token turns a short-lived token into a
    /// long-lived one.
    ///
    /// # Errors
    /// [`JwtIssueError`]: no tokens were issued. The session may have been saved.
    ///
    /// ```
    /// # use tower_keep::{Jwt, JwtIssueError, JwtPair, Session};
    /// async fn log_in(jwt: &Jwt, session: &Session) -> Result<JwtPair, JwtIssueError> {
    ///     session.login("ana")?;
    ///     jwt.issue(session).await
    /// }
    /// # let _ = log_in;
    /// ```
    pub async fn issue(&self, session: &Session) -> Result<JwtPair, JwtIssueError> {
        self.issue_with(session, &json!({})).await
    }

    /// Like [`issue`](Self::issue), with your own claims in the access token: a JSON object.
    ///
    /// # Errors
    /// [`JwtIssueError`].
    ///
    /// ```
    /// # use tower_keep::{Jwt, JwtIssueError, JwtPair, Session};
    /// #[derive(serde::Serialize)]
    /// struct Mine { role: &'static str }
    ///
    /// async fn log_in(jwt: &Jwt, session: &Session) -> Result<JwtPair, JwtIssueError> {
    ///     session.login("ana")?;
    ///     jwt.issue_with(session, &Mine { role: "admin" }).await
    /// }
    /// # let _ = log_in;
    /// ```
    pub async fn issue_with<C: Serialize>(&self, session: &Session, claims: &C) -> Result<JwtPair, JwtIssueError> {
        let own = own_claims(claims)?;
        check_has_no_token(session)?;
        session.save().await?;
        check_has_no_token(session)?; // again: the session may have changed since
        let (id, record) = session.identify_by_jwt()?.ok_or(JwtIssueError::NoSession)?;
        self.pair(&id, &record, session.context().clock.now(), own, RefreshToken::New)
    }

    /// Creates a session outside a request, like [`Sessions::create`], and issues a pair of tokens for it.
    ///
    /// # Errors
    /// [`JwtIssueError`].
    ///
    /// ```
    /// # use tower_keep::{Jwt, JwtIssueError, JwtPair, Sessions};
    /// # async fn for_a_script(jwt: &Jwt, sessions: &Sessions) -> Result<JwtPair, JwtIssueError> {
    /// jwt.issue_new(sessions, "ana", &serde_json::json!({ "role": "script" })).await
    /// # }
    /// ```
    pub async fn issue_new<C: Serialize>(
        &self,
        sessions: &Sessions,
        new: impl Into<NewSession>,
        claims: &C,
    ) -> Result<JwtPair, JwtIssueError> {
        let own = own_claims(claims)?;
        let (token, record) = sessions.create_stored(new.into()).await?;
        self.pair(&token.id(), &record, sessions.context().clock.now(), own, RefreshToken::New)
    }

    /// A pair for session `id`.
    pub(super) fn pair(
        &self,
        id: &SessionId,
        record: &Record,
        now: Timestamp,
        own: Map<String, Value>,
        refresh_token: RefreshToken,
    ) -> Result<JwtPair, JwtIssueError> {
        let seconds = |moment: Timestamp| moment.as_millis() / 1000;
        let issued_at = seconds(now);
        let access_ends = issued_at.saturating_add(millis(self.inner.settings.access_lifetime) / 1000);
        // The store checks the idle timeout, because requests extend it.
        let session_ends = seconds(record.absolute_deadline());
        let access_ends = access_ends.min(session_ends);

        let common = || {
            let mut claims = Map::new();
            let mut set = |name: &str, value: Option<&str>| {
                claims.extend(value.map(|value| (name.to_owned(), Value::from(value))));
            };
            set("iss", self.inner.settings.issuer.as_deref());
            set("aud", self.inner.settings.audience.as_deref());
            set("sub", record.user());
            claims.insert("iat".into(), issued_at.into());
            claims
        };
        let mut access = own;
        access.extend(common());
        access.insert("exp".into(), access_ends.into());
        access.insert("jti".into(), unique()?.into());
        access.insert(self.inner.settings.session_claim.into(), id.to_string().into()); // perhaps in place of that
        let mut refresh = common();
        refresh.insert("exp".into(), session_ends.into());
        refresh.insert("jti".into(), Generation::name(record.generation(), id).into());
        refresh.insert("sid".into(), id.to_string().into());
        Ok(JwtPair {
            access_token: self.inner.access.sign(&access)?,
            refresh_token: match refresh_token {
                RefreshToken::New => Some(self.inner.refresh.sign(&refresh)?),
                RefreshToken::GivenToAnother => None,
            },
            expires_in: access_ends.saturating_sub(issued_at),
        })
    }
}

/// Whether a pair has a refresh token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RefreshToken {
    New,
    /// Another request has received it.
    GivenToAnother,
}

/// Refuses a session whose client already has an opaque token: with a JWT it would have two.
fn check_has_no_token(session: &Session) -> Result<(), JwtIssueError> {
    match session.presented() {
        PresentedCredentials::Tokens(..) if !session.is_new()? => Err(JwtIssueError::HasToken),
        _ => Ok(()),
    }
}

impl Purpose {
    fn sign(&self, claims: &Map<String, Value>) -> Result<String, JwtIssueError> {
        let key = self.keys.first().ok_or(JwtIssueError::CannotSign)?;
        let mut header = json!({ "typ": self.typ, "alg": key.algorithm().name() });
        if let Some(id) = key.name() {
            header["kid"] = id.into();
        }
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let claims = serde_json::to_vec(claims).map_err(JwtIssueError::Claims)?;
        let mut token = format!("{}.{}", encode(header.to_string().as_bytes()), encode(&claims));
        let signature = key.sign(token.as_bytes()).ok_or(JwtIssueError::CannotSign)?;
        token.push('.');
        token.push_str(&encode(&signature));
        Ok(token)
    }
}

/// The claims of the application, without registered ones.
pub(super) fn own_claims(claims: &impl Serialize) -> Result<Map<String, Value>, JwtIssueError> {
    let Value::Object(own) = serde_json::to_value(claims).map_err(JwtIssueError::Claims)? else {
        return Err(JwtIssueError::NoObject);
    };
    match REGISTERED.into_iter().find(|name| own.contains_key(*name)) {
        Some(name) => Err(JwtIssueError::ReservedClaim(name)),
        None => Ok(own),
    }
}

fn unique() -> Result<String, SessionError> {
    let mut random = [0; 12];
    getrandom::fill(&mut random)?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

impl fmt::Debug for JwtPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtPair").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why no tokens were issued.
///
/// With the features `axum` and `grpc` it is a response: that of the [`SessionError`], 401 without a session or with a session that
/// has another token, else 500.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtIssueError {
    /// The session could not be saved.
    #[error("no tokens for this session")]
    Session(#[from] SessionError),
    /// The request has no session: log in first.
    #[error("no session to issue tokens for")]
    NoSession,
    /// The request has a live session with a cookie or an opaque bearer token, which would become invalid. Nothing was saved.
    /// Create [another session](Jwt::issue_new).
    #[error("the session belongs to a cookie or to an opaque token")]
    HasToken,
    /// The claims cannot be written as JSON.
    #[error("the claims cannot be written as JSON")]
    Claims(#[source] serde_json::Error),
    /// The claims are not a JSON object.
    #[error("the claims are not a JSON object")]
    NoObject,
    /// The claims contain a registered claim.
    #[error("the application must not set the claim {0}")]
    ReservedClaim(&'static str),
    /// The first key is a public key.
    #[error("the key cannot sign")]
    CannotSign,
}

impl From<JwtIssueError> for Rejection {
    fn from(error: JwtIssueError) -> Self {
        match error {
            JwtIssueError::Session(error) => error.into(),
            JwtIssueError::NoSession | JwtIssueError::HasToken => Self::new(Reason::InvalidToken, None),
            error => Self::mistake(&error),
        }
    }
}
