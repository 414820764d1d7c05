//! JSON Web Tokens (RFC 7519) as credentials of sessions.
//!
//! `verify.rs` has the checks in order, `issue.rs` and `refresh.rs` create tokens, `signature.rs` calls the crypto library.

mod algorithm;
mod builder;
mod claims;
mod error;
mod issue;
mod key;
mod pem;
mod refresh;
#[cfg_attr(not(any(feature = "aws-lc", feature = "ring")), path = "no_signature.rs")]
mod signature;
mod verify;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    algorithm::{InvalidJwtKey, JwtAlgorithm},
    builder::{InvalidJwt, JwtBuilder},
    claims::JwtClaims,
    error::JwtError,
    issue::{JwtIssueError, JwtPair},
    key::JwtKey,
    refresh::JwtRefreshError,
};
use crate::credential::Bearer;

/// Issues and verifies access and refresh tokens that are JSON Web Tokens, for sessions that can be revoked.
///
/// With [`SessionLayer::jwt`](crate::SessionLayer::jwt), the layer accepts an access token in `Authorization: Bearer`. Handlers issue pairs
/// ([`issue`](Self::issue)) and refresh them ([`refresh`](Self::refresh)).
///
/// ```
/// use http::{Request, Response};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_keep::{Jwt, JwtAlgorithm, JwtKey, MemoryStore, Session, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (secret, another_secret) = ([7; 32], [8; 32]);
/// let jwt = Jwt::builder(JwtKey::hmac(JwtAlgorithm::HS256, secret)?)
///     .refresh_key(JwtKey::hmac(JwtAlgorithm::HS256, another_secret)?)
///     .build()?;
/// let layer = SessionLayer::new(MemoryStore::new()).without_cookie().jwt(jwt.clone());
///
/// // The login, after checking the password:
/// let login = ServiceBuilder::new().layer(layer.clone()).service(service_fn(async |request: Request<()>| {
///     let session = request.extensions().get::<Session>().ok_or("no session layer")?;
///     session.load().await?;
///     session.login("ana")?;
///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(jwt.issue(session).await?.access_token))
/// }));
/// let access_token = login.oneshot(Request::new(())).await.unwrap().into_body();
///
/// // Other routes:
/// let service = ServiceBuilder::new().layer(layer).service(service_fn(async |request: Request<()>| {
///     let session = request.extensions().get::<Session>().ok_or("no session layer")?;
///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(session.require_user().await?.to_string()))
/// }));
/// let request = Request::builder().header("authorization", format!("Bearer {access_token}")).body(())?;
/// assert_eq!(service.oneshot(request).await.unwrap().body(), "ana");
/// # Ok(())
/// # }
/// ```
///
/// # What is checked, in this order
/// | | check | reason for the order |
/// |---|---|---|
/// | 1 | the size | before any work |
/// | 2 | three parts; the header is JSON without duplicate names | |
/// | 3 | the key, by `kid`; without one, the only key for the algorithm | |
/// | 4 | the algorithm is that of the key; no `crit` | `none` is impossible, and a public key is never used as a secret |
/// | 5 | the signature | foreign claims are not even parsed |
/// | 6 | `exp`, which is required; `nbf`, `aud`, `iss` | by the clock of the layer |
/// | 7 | `typ` in the header: `at+jwt` (RFC 9068) | a refresh token is not an access token, even with the same key |
/// | 8 | the session id in `sid`, or [`jti`](JwtBuilder::session_in_jti) | |
/// | 9 | the session in the store, when it is needed | a logout takes effect on every instance immediately |
///
/// A token that fails checks 1 to 8 costs no store command. The response is always 401 with
/// `WWW-Authenticate: Bearer error="invalid_token"`. The failed check ([`JwtError`]) is logged at level DEBUG. In an outage at check 9, the policy
/// decides: 503, or [if enabled](JwtBuilder::accept_in_outage), the signature is enough.
///
/// # Refreshing
/// Each session has one valid refresh token. [`refresh`](Self::refresh) rotates it atomically: of all concurrent requests, on all instances, one
/// gets the next refresh token. A refresh token that is used again,
///
/// * gets an access token and no refresh token, if it is the previous one and comes within the [grace
///   window](crate::SessionLayer::rotation_grace) (30 seconds by default): two tabs of a client may send it at once;
/// * otherwise is a sign of theft: the session ends ([`EndReason::TokenReused`](crate::EndReason::TokenReused)), with all of its tokens, on every
///   instance. With a window of zero, this happens immediately.
///
/// A used refresh token never returns another one. A client that lost the response with the new one logs in again.
///
/// The `exp` of a refresh token is the absolute timeout of its session. The store checks the idle timeout, which requests with an access token
/// extend.
///
/// Access tokens are valid until their `exp` while the session lives, even after a refresh: keep them
/// [short-lived](JwtBuilder::access_lifetime). [`Session::logout`](crate::Session::logout) and [`Sessions`](crate::Sessions) take effect
/// immediately.
///
/// # Claims
/// `sid` is the [session id](crate::SessionId), which alone grants no access, `sub` the user. `iss` and `aud` are as configured. `jti` is unique in
/// access tokens, and identifies the generation of a refresh token. Access tokens can have your own claims ([`issue_with`](Self::issue_with)).
/// The claims are not encrypted.
#[derive(Clone)]
pub struct Jwt {
    inner: Arc<Inner>,
}

struct Inner {
    access: Purpose,
    refresh: Purpose,
    settings: Settings,
}

/// The settings, without the keys.
#[derive(Clone, Debug)]
struct Settings {
    issuer: Option<String>,
    audience: Option<String>,
    access_lifetime: Duration,
    leeway: Duration,
    max_size: usize,
    requires_key_id: bool,
    session_claim: &'static str,
    suffices_in_outage: bool,
    bearer: Bearer,
}

/// The keys and settings of access tokens or refresh tokens.
struct Purpose {
    /// The first key signs.
    keys: Vec<JwtKey>,
    typ: String,
}

impl Jwt {
    /// Tokens that are signed by `key`.
    pub fn builder(key: JwtKey) -> JwtBuilder {
        JwtBuilder::new(key)
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("access_keys", &self.inner.access.keys)
            .field("refresh_keys", &self.inner.refresh.keys)
            .field("access_lifetime", &self.inner.settings.access_lifetime)
            .finish_non_exhaustive()
    }
}
