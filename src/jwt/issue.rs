//! Making pairs of an access token and a refresh token.

use std::{error::Error, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Jwt, Purpose, claims::REGISTERED};
use crate::{
    layer::{Reason, Rejection},
    record::Record,
    session::{Session, SessionError},
    sessions::{NewSession, Sessions},
    time::{Timestamp, millis},
    token::{Generation, SessionId},
};

/// An access token and the refresh token for the next pair, as the client gets them.
///
/// Its JSON is that of RFC 6749, section 5.1: `{"access_token":"…","refresh_token":"…","expires_in":900}`. Send it with
/// `Cache-Control: no-store`. Its `Debug` shows no token.
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
    /// For [`Jwt::refresh`], once.
    pub refresh_token: String,
    /// For how many seconds the access token is good.
    pub expires_in: u64,
}

impl Jwt {
    /// Saves the session, and makes a pair of tokens for it, which are all that opens it: no cookie is set for it, and an old one that
    /// the request brought is removed.
    ///
    /// For a login, and for [`Session::rotate`], after which the refresh token before counts no more. Without either, the refresh token
    /// is the one that the client has already: using both would be using one twice.
    ///
    /// Whoever gets a pair can keep the session alive. An endpoint that issues one to whoever has an access token makes a short-lived
    /// token into a long-lived one.
    ///
    /// # Errors
    /// [`JwtIssueError`]: nothing was issued, whatever was saved.
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

    /// The same, with claims of your own in the access token: a JSON object.
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
        session.check_has_no_token()?;
        session.save().await?;
        let (id, record) = session.for_jwt()?;
        self.pair(&id, &record, session.context().clock.now(), own)
    }

    /// Makes a session outside a request, as [`Sessions::create`] does, and a pair of tokens for it.
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
        self.pair(&token.id(), &record, sessions.context().clock.now(), own)
    }

    /// A pair for the session `id`, as `record` has it.
    pub(super) fn pair(
        &self,
        id: &SessionId,
        record: &Record,
        now: Timestamp,
        own: Map<String, Value>,
    ) -> Result<JwtPair, JwtIssueError> {
        let seconds = |moment: Timestamp| moment.as_millis() / 1000;
        let issued_at = seconds(now);
        let access_ends = issued_at.saturating_add(millis(self.inner.settings.access_lifetime) / 1000);
        // When the idle timeout is over, the store says: requests put it off.
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
            refresh_token: self.inner.refresh.sign(&refresh)?,
            expires_in: access_ends.saturating_sub(issued_at),
        })
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

/// An application's own claims, which must not say what is ours to say.
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
/// With the `axum` and `grpc` features it is an answer as well: that of the [`SessionError`], 401 without a session or with one that has
/// another token, else 500.
#[derive(Debug)]
#[non_exhaustive]
pub enum JwtIssueError {
    /// The session could not be saved.
    Session(SessionError),
    /// There is no session: log in first.
    NoSession,
    /// The request came with a live session's cookie or opaque bearer token, and a refresh would end that. Nothing was saved by this. Make
    /// [another](Jwt::issue_new).
    HasToken,
    /// The claims cannot be written as JSON.
    Claims(serde_json::Error),
    /// The claims are no JSON object.
    NoObject,
    /// The claims say what only the issuer says.
    ReservedClaim(&'static str),
    /// The first key cannot sign: it is a public key.
    CannotSign,
}

impl fmt::Display for JwtIssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(_) => f.write_str("no tokens for this session"),
            Self::NoSession => f.write_str("there is no session to issue tokens for"),
            Self::HasToken => f.write_str("the session belongs to a cookie or to an opaque token"),
            Self::Claims(_) => f.write_str("the claims cannot be written as JSON"),
            Self::NoObject => f.write_str("the claims are no JSON object"),
            Self::ReservedClaim(name) => write!(f, "the claim {name} is not for the application to say"),
            Self::CannotSign => f.write_str("the key cannot sign"),
        }
    }
}

impl Error for JwtIssueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Session(source) => Some(source),
            Self::Claims(source) => Some(source),
            _ => None,
        }
    }
}

impl From<SessionError> for JwtIssueError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<JwtIssueError> for Rejection {
    fn from(error: JwtIssueError) -> Self {
        match error {
            JwtIssueError::Session(error) => error.into(),
            JwtIssueError::NoSession | JwtIssueError::HasToken => Self::new(Reason::InvalidToken, None),
            _ => Self::new(Reason::Internal, None),
        }
    }
}
