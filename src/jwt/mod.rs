//! JSON Web Tokens (RFC 7519) as credentials of sessions.
//!
//! * `key.rs` — keys, each for one algorithm; the cryptography is that of `jsonwebtoken`;
//! * `builder.rs` — what is configured;
//! * `verify.rs` — the checks, in their order;
//! * `claims.rs` — what a JWT says;
//! * `issue.rs` — making pairs of an access token and a refresh token;
//! * `refresh.rs` — a refresh token for a new pair, once.

mod builder;
mod claims;
mod issue;
mod key;
mod pem;
mod refresh;
#[cfg_attr(not(any(feature = "aws-lc", feature = "ring")), path = "no_signature.rs")]
mod signature;
mod verify;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    builder::{InvalidJwt, JwtBuilder},
    claims::JwtClaims,
    issue::{JwtIssueError, JwtPair},
    key::{InvalidJwtKey, JwtAlgorithm, JwtKey},
    refresh::JwtRefreshError,
    verify::JwtError,
};
use crate::credential::Bearer;

/// Access and refresh tokens that are JSON Web Tokens, for sessions that can be revoked.
///
/// A [layer](crate::SessionLayer::jwt) that has one takes an access token from `Authorization: Bearer`. Handlers issue pairs
/// ([`issue`](Self::issue)) and renew them ([`refresh`](Self::refresh)).
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
/// // The login, once the password was right:
/// let login = ServiceBuilder::new().layer(layer.clone()).service(service_fn(async |request: Request<()>| {
///     let session = request.extensions().get::<Session>().ok_or("no session layer")?;
///     session.load().await?;
///     session.login("ana")?;
///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(jwt.issue(session).await?.access_token))
/// }));
/// let access_token = login.oneshot(Request::new(())).await.unwrap().into_body();
///
/// // Everything else:
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
/// | | | why then |
/// |---|---|---|
/// | 1 | its size | before any work |
/// | 2 | three parts; the header is JSON that names nothing twice | |
/// | 3 | the key, by `kid`; without one, the only key of the algorithm | a key that is not ours verifies nothing |
/// | 4 | the algorithm is the key's, by name; no `crit` | a key is for one algorithm: there is no `none`, and no public key that is taken for a secret |
/// | 5 | the signature | nothing that somebody else wrote is believed, or even parsed |
/// | 6 | `exp`, which must be there; `nbf`, `aud`, `iss` | by the clock of the layer |
/// | 7 | the type, `typ` in the header: `at+jwt` (RFC 9068) | a refresh token is no access token, even under the same key |
/// | 8 | the session's id in `sid`, or [`jti`](JwtBuilder::session_in_jti) | |
/// | 9 | the session, in the store, when it is needed | a logout counts on every instance at once |
///
/// What does not pass 1 to 8 costs no store call. Whatever it was, the answer is 401 with
/// `WWW-Authenticate: Bearer error="invalid_token"`; which one, [`JwtError`] says at log level debug. If the store does not answer in
/// 9, the policy decides, as for any session: 503; or, [where that is allowed](JwtBuilder::accept_in_outage), the signature does.
///
/// # Refreshing
/// A session is a family of tokens: one refresh token counts, as one opaque token would, and by the same record. Who
/// [refreshes](Self::refresh) rotates it in one compare-and-set: of any number at once, on any number of instances, one gets a pair.
/// A refresh token that comes again is
///
/// * within the layer's [grace window](crate::SessionLayer::rotation_grace) (30 seconds by default) refused, and no more, if it is the one
///   before the one that counts: a client may have sent it twice;
/// * later, or at any time an older one, the proof that somebody has a copy: the session ends
///   ([`EndReason::TokenReused`](crate::EndReason::TokenReused)), and with it every access and refresh token of it, on every instance.
///   With a window of zero that is so at once.
///
/// In no case is there a second pair. A client whose answer was lost logs in again.
///
/// The `exp` of a refresh token is the end of its session's absolute timeout. Whether the idle timeout is over, which any request
/// with an access token puts off, the store says.
///
/// Access tokens live until their `exp` as long as their session does, refreshed or not: keep them
/// [short](JwtBuilder::access_lifetime). What must count at once, [`Session::logout`](crate::Session::logout) and [`Sessions`](crate::Sessions) do.
///
/// # What is in them
/// `sid` the [session's id](crate::SessionId), which alone opens nothing · `sub` the user · `exp`, `iat` · `iss`, `aud` as configured · `jti` unique in
/// access tokens, and in a refresh token what tells it from the one before. An access token may hold claims of your own
/// ([`issue_with`](Self::issue_with)). Anybody who has a JWT can read it.
#[derive(Clone)]
pub struct Jwt {
    inner: Arc<Inner>,
}

struct Inner {
    access: Purpose,
    refresh: Purpose,
    settings: Settings,
}

/// What the builder says, but for the keys.
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

/// What tokens of one kind have in common.
struct Purpose {
    /// The first signs.
    keys: Vec<JwtKey>,
    typ: String,
}

impl Jwt {
    /// Tokens signed by `key`.
    pub fn builder(key: JwtKey) -> JwtBuilder {
        JwtBuilder::new(key)
    }

    pub(crate) fn bearer(&self) -> &Bearer {
        &self.inner.settings.bearer
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
