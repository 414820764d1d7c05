//! The configuration of JWTs.

use std::{sync::Arc, time::Duration};

use super::{Inner, Jwt, JwtAlgorithm, JwtKey, Purpose, Settings, verify::bare_type};
use crate::credential::Bearer;

/// The configuration of a [`Jwt`].
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{Jwt, JwtAlgorithm::HS256, JwtKey};
///
/// # let (this_year, last_year, for_refresh) = ([7; 32], [8; 32], [9; 32]);
/// let jwt = Jwt::builder(JwtKey::hmac(HS256, this_year)?.id("2026"))
///     .also_verify(JwtKey::hmac(HS256, last_year)?.id("2025"))
///     .refresh_key(JwtKey::hmac(HS256, for_refresh)?)
///     .issuer("https://id.example.org")
///     .audience("api")
///     .access_lifetime(Duration::from_secs(5 * 60))
///     .build()?;
/// # let _ = jwt;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct JwtBuilder {
    access_keys: Vec<JwtKey>,
    refresh_keys: Vec<JwtKey>,
    access_type: String,
    settings: Settings,
}

/// The type of refresh tokens.
const REFRESH_TYPE: &str = "rt+jwt";

impl JwtBuilder {
    pub(super) fn new(key: JwtKey) -> Self {
        Self {
            access_keys: vec![key],
            refresh_keys: Vec::new(),
            access_type: "at+jwt".to_owned(),
            settings: Settings {
                issuer: None,
                audience: None,
                access_lifetime: Duration::from_secs(15 * 60),
                leeway: Duration::from_secs(5),
                max_size: 8 * 1024,
                requires_key_id: false,
                session_claim: "sid",
                suffices_in_outage: false,
                bearer: Bearer::new(),
            },
        }
    }

    /// Adds a key that only verifies access tokens. To replace a key, first let all instances verify the new one, then sign with
    /// it, and remove the old one when its last token has expired.
    pub fn also_verify(mut self, key: JwtKey) -> Self {
        self.access_keys.push(key);
        self
    }

    /// The keys of refresh tokens. The first one signs; further calls add keys that only verify. Default: the keys of access
    /// tokens.
    ///
    /// With separate keys, a service that only verifies access tokens cannot create refresh tokens.
    pub fn refresh_key(mut self, key: JwtKey) -> Self {
        self.refresh_keys.push(key);
        self
    }

    /// The issuer: `iss`. Default: none, and any issuer is accepted.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.settings.issuer = Some(issuer.into());
        self
    }

    /// The audience: `aud`. Default: none, and a token with an audience is refused (RFC 7519, section 4.1.3).
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.settings.audience = Some(audience.into());
        self
    }

    /// The lifetime of an access token, which never exceeds that of its session. Default: 15 minutes. At least 1 second.
    pub fn access_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.access_lifetime = lifetime;
        self
    }

    /// The tolerated clock difference between issuer and verifier. Default: 5 seconds.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.settings.leeway = leeway;
        self
    }

    /// The maximum size of a token in bytes. Default: 8,192.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.settings.max_size = bytes;
        self
    }

    /// Refuse tokens without `kid`. Default: they are accepted if there is only one key for their algorithm.
    pub fn require_key_id(mut self) -> Self {
        self.settings.requires_key_id = true;
        self
    }

    /// The `typ` of access tokens, with or without the prefix `application/`. Default: `at+jwt` (RFC 9068). Other issuers use
    /// `JWT`.
    pub fn access_type(mut self, typ: impl Into<String>) -> Self {
        self.access_type = bare_type(&typ.into()).to_owned();
        self
    }

    /// The claim that names the session is `jti`. Default: `sid`.
    pub fn session_in_jti(mut self) -> Self {
        self.settings.session_claim = "jti";
        self
    }

    /// In an outage, accept an access token by its signature and `exp` alone. Default: no; the [policy](crate::OnOutage) decides.
    ///
    /// A user who logged out just before the outage is accepted until the token expires, so keep tokens
    /// [short-lived](Self::access_lifetime). Such a session is [degraded](crate::Session::is_degraded): its user, id and
    /// [claims](crate::Session::claims) are known. Reading or changing values fails with
    /// [`SessionError::Unavailable`](crate::SessionError::Unavailable). Each request is logged as a warning and
    /// [counted](crate::Stats::signature_only). A route can check `is_degraded`.
    ///
    /// This applies only without a reply of the store or a [fallback](crate::store::Fallback). A session that is unknown or has
    /// ended is refused. Refresh tokens always need the store.
    pub fn accept_in_outage(mut self) -> Self {
        self.settings.suffices_in_outage = true;
        self
    }

    /// Where the token is, and the realm of rejections. Default: [`Bearer::new`]. If the layer also accepts [opaque bearer
    /// tokens](crate::SessionLayer::bearer), that configuration is used for both.
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.settings.bearer = bearer;
        self
    }

    /// Builds the `Jwt`.
    ///
    /// # Errors
    /// [`InvalidJwt`] if the settings are inconsistent.
    pub fn build(self) -> Result<Jwt, InvalidJwt> {
        if self.settings.access_lifetime < Duration::from_secs(1) {
            return Err(InvalidJwt::ShortLifetime);
        }
        if self.access_type.eq_ignore_ascii_case(REFRESH_TYPE) {
            return Err(InvalidJwt::SameType);
        }
        let refresh_keys = if self.refresh_keys.is_empty() { self.access_keys.clone() } else { self.refresh_keys };
        Ok(Jwt {
            inner: Arc::new(Inner {
                access: Purpose::new(self.access_keys, self.access_type)?,
                refresh: Purpose::new(refresh_keys, REFRESH_TYPE.to_owned())?,
                settings: self.settings,
            }),
        })
    }
}

impl Purpose {
    /// Checks that tokens can distinguish the keys.
    fn new(keys: Vec<JwtKey>, typ: String) -> Result<Self, InvalidJwt> {
        for (place, key) in keys.iter().enumerate() {
            let mut others = keys[..place].iter();
            match key.name() {
                Some(id) if others.any(|other| other.name() == Some(id)) => {
                    return Err(InvalidJwt::DuplicateKeyId(id.into()));
                }
                None if keys.iter().filter(|other| other.algorithm() == key.algorithm()).count() > 1 => {
                    return Err(InvalidJwt::NoKeyId(key.algorithm()));
                }
                _ => {}
            }
        }
        Ok(Self { keys, typ })
    }
}

/// The settings are inconsistent.
///
/// ```
/// use tower_keep::{InvalidJwt, Jwt, JwtAlgorithm::HS256, JwtKey};
///
/// let (new, old) = (JwtKey::hmac(HS256, [7; 32])?, JwtKey::hmac(HS256, [8; 32])?);
/// assert_eq!(Jwt::builder(new).also_verify(old).build().unwrap_err(), InvalidJwt::NoKeyId(HS256));
/// # Ok::<(), tower_keep::InvalidJwtKey>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidJwt {
    /// Two keys have this id.
    #[error("two keys have the id {0:?}")]
    DuplicateKeyId(Arc<str>),
    /// There are several keys for this algorithm, and one has no [id](JwtKey::id).
    #[error("each of several keys for {} needs an id", .0.name())]
    NoKeyId(JwtAlgorithm),
    /// Access tokens and refresh tokens have the same type.
    #[error("access tokens need another type than refresh tokens")]
    SameType,
    /// The lifetime of access tokens is shorter than a second.
    #[error("the lifetime of access tokens must be at least a second")]
    ShortLifetime,
}
