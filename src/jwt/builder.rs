//! What is configured.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use super::{Inner, Jwt, JwtAlgorithm, JwtKey, Purpose, Settings, verify::bare_type};
use crate::credential::Bearer;

/// How [`Jwt`]s are made and checked.
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
#[must_use = "nothing is made before `build`"]
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

    /// Another key that access tokens may be signed with: one that signed before, or will. To change keys, first let every instance
    /// verify the new one, then let it sign, and forget the old one when the last token of it has expired.
    pub fn also_verify(mut self, key: JwtKey) -> Self {
        self.access_keys.push(key);
        self
    }

    /// The keys of refresh tokens: the first signs, further calls add keys that only verify. Default: those of access tokens.
    ///
    /// With keys of their own, a service that only verifies access tokens needs nothing that could make a refresh token.
    pub fn refresh_key(mut self, key: JwtKey) -> Self {
        self.refresh_keys.push(key);
        self
    }

    /// Who issues: `iss`. Default: nobody, and whoever a token names is accepted.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.settings.issuer = Some(issuer.into());
        self
    }

    /// Whom the tokens are for: `aud`. Default: nobody, and a token that names somebody is refused (RFC 7519, section 4.1.3).
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.settings.audience = Some(audience.into());
        self
    }

    /// How long an access token lives; never longer than its session. Default: 15 minutes. A second at least.
    pub fn access_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.access_lifetime = lifetime;
        self
    }

    /// By how much the clocks of issuer and verifier may differ. Default: 5 seconds.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.settings.leeway = leeway;
        self
    }

    /// How many bytes a token may have. Default: 8,192.
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.settings.max_size = bytes;
        self
    }

    /// Refuse a token without `kid`. Default: it is accepted when one key alone is of its algorithm.
    pub fn require_key_id(mut self) -> Self {
        self.settings.requires_key_id = true;
        self
    }

    /// What the header `typ` of access tokens says, with `application/` before it or without, which means the same. Default: `at+jwt`
    /// (RFC 9068). Issuers that know nothing of that say `JWT`.
    pub fn access_type(mut self, typ: impl Into<String>) -> Self {
        self.access_type = bare_type(&typ.into()).to_owned();
        self
    }

    /// Access tokens name their session by `jti`. Default: by `sid`.
    pub fn session_in_jti(mut self) -> Self {
        self.settings.session_claim = "jti";
        self
    }

    /// While the store does not answer, let an access token in on its signature and its `exp` alone. Default: no, the
    /// [policy](crate::OnOutage) decides.
    ///
    /// Who was logged out a moment before the outage is let in as long as the token lives: keep that
    /// [short](Self::access_lifetime). Such a session [is degraded](crate::Session::is_degraded): it knows its user, its id and its
    /// [claims](crate::Session::claims), and no values; to read or to change any is [`SessionError::Unavailable`](crate::SessionError::Unavailable). Each
    /// is logged as a warning, and [counted](crate::Stats::signature_only). A route that must not do with that asks `is_degraded`.
    ///
    /// It is for an outage only. What the store says, or a [fallback](crate::store::Fallback) in its place, is final: a session that
    /// is unknown or has ended is refused. Refresh tokens always need the store.
    pub fn accept_in_outage(mut self) -> Self {
        self.settings.suffices_in_outage = true;
        self
    }

    /// Where the token is, and the realm that a refusal names. Default: [`Bearer::new`]. A layer that also has
    /// [opaque bearer tokens](crate::SessionLayer::bearer) reads both as it reads those.
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.settings.bearer = bearer;
        self
    }

    /// The tokens.
    ///
    /// # Errors
    /// [`InvalidJwt`] says what does not fit together.
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
    /// Keys that a token can tell apart.
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

/// What is configured does not fit together.
///
/// ```
/// use tower_keep::{InvalidJwt, Jwt, JwtAlgorithm::HS256, JwtKey};
///
/// let (new, old) = (JwtKey::hmac(HS256, [7; 32])?, JwtKey::hmac(HS256, [8; 32])?);
/// assert_eq!(Jwt::builder(new).also_verify(old).build().unwrap_err(), InvalidJwt::NoKeyId(HS256));
/// # Ok::<(), tower_keep::InvalidJwtKey>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidJwt {
    /// Two keys have this id.
    DuplicateKeyId(Arc<str>),
    /// Of several keys of this algorithm, each needs an [id](JwtKey::id): nothing else tells which one a token means.
    NoKeyId(JwtAlgorithm),
    /// Access tokens and refresh tokens are of the same type.
    SameType,
    /// Access tokens live for less than a second.
    ShortLifetime,
}

impl fmt::Display for InvalidJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateKeyId(id) => write!(f, "two keys have the id {id:?}"),
            Self::NoKeyId(algorithm) => write!(f, "of several keys for {}, each needs an id", algorithm.name()),
            Self::SameType => f.write_str("access tokens need another type than refresh tokens"),
            Self::ShortLifetime => f.write_str("an access token lives for a second at least"),
        }
    }
}

impl Error for InvalidJwt {}
