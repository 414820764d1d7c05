//! Credentials: where a request carries its token, and how a response returns one.

mod bearer;
mod cookie;
mod query;
mod secret;

use std::{fmt, sync::Arc};

use ::http::{HeaderMap, HeaderValue, header};

use self::bearer::Header;
pub(crate) use self::query::{InQuery, take_from};
pub use self::{
    bearer::Bearer,
    cookie::{InvalidCookie, SameSite, SessionCookie, SessionCookieBuilder},
    secret::{InvalidSessionSecret, SessionSecret},
};
use crate::{
    time::{Clock, Timestamp},
    token::{SessionId, Token},
};

/// The maximum number of cookies with the session name that are tried. There are several if an attacker planted one for a parent
/// domain or another path. Their order does not matter.
const MAX_CANDIDATES: usize = 4;

/// How a token is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Cookie,
    Bearer,
}

/// The credentials of a request.
#[derive(Clone)]
pub(crate) enum PresentedCredentials {
    /// No credential.
    Nothing,
    /// A credential that cannot be a token of this crate.
    Foreign(Transport),
    /// A malformed bearer header (RFC 6750).
    Malformed,
    /// A cookie and a bearer token that differ.
    Disagreement,
    /// Possible tokens in the order of the request. There are several only if several cookies have the name.
    Tokens(Transport, Candidates),
    /// A JWT: it names the session, and its signature is verified.
    #[cfg_attr(not(feature = "jwt"), allow(dead_code, reason = "only JWTs are signed"))]
    Signed(Arc<Signed>),
}

/// The content of a verified JWT.
pub(crate) struct Signed {
    pub(crate) session: SessionId,
    pub(crate) user: Option<Arc<str>>,
    /// Whether the signature is enough in an outage.
    pub(crate) suffices_in_outage: bool,
    #[cfg(feature = "jwt")]
    pub(crate) claims: serde_json::Value,
}

/// Verifies signed tokens.
pub(crate) trait VerifySigned: fmt::Debug + Send + Sync {
    /// The content of a token, or `None` if it is not valid.
    fn verify(&self, token: &[u8], now: Timestamp) -> Option<Signed>;

    /// Where the token is in a request.
    fn bearer(&self) -> &Bearer;
}

/// Names a session, and proves that the request may use it.
#[derive(Clone, Copy)]
pub(crate) enum Proof<'a> {
    /// A token, and its index among the presented ones.
    Token(usize, &'a Token),
    Signature(&'a Signed),
}

impl Proof<'_> {
    pub(crate) fn session(&self) -> SessionId {
        match self {
            Self::Token(_, token) => token.id(),
            Self::Signature(signed) => signed.session,
        }
    }
}

impl PresentedCredentials {
    /// The label of metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Foreign(Transport::Cookie) | Self::Tokens(Transport::Cookie, _) => "cookie",
            Self::Foreign(Transport::Bearer)
            | Self::Tokens(Transport::Bearer, _)
            | Self::Signed(_)
            | Self::Malformed => "bearer",
            Self::Disagreement => "both",
        }
    }

    /// How the session was presented, if one was. A foreign `Authorization` header is not a session.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match self {
            Self::Tokens(transport, _) => Some(*transport),
            Self::Signed(_) => Some(Transport::Bearer),
            Self::Foreign(_) | Self::Malformed | Self::Nothing | Self::Disagreement => None,
        }
    }

    /// Whether there is something to look up.
    pub(crate) fn needs_lookup(&self) -> bool {
        matches!(self, Self::Tokens(..) | Self::Signed(_))
    }

    pub(crate) fn signed(&self) -> Option<&Signed> {
        match self {
            Self::Signed(signed) => Some(signed),
            _ => None,
        }
    }

    /// The proofs to try, in order.
    pub(crate) fn proofs(&self) -> impl Iterator<Item = Proof<'_>> + Send {
        let tokens = match self {
            Self::Tokens(_, candidates) => Some(candidates),
            _ => None,
        };
        let tokens = tokens.into_iter().flat_map(Candidates::iter).enumerate();
        let tokens = tokens.map(|(place, token)| Proof::Token(place, token));
        tokens.chain(self.signed().map(Proof::Signature))
    }
}

/// At least one token. More than one is rare, and only then allocates.
#[derive(Clone)]
pub(crate) struct Candidates {
    first: Token,
    more: Vec<Token>,
}

impl Candidates {
    fn iter(&self) -> impl Iterator<Item = &Token> + Send {
        std::iter::once(&self.first).chain(&self.more)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Token> {
        if index == 0 { Some(&self.first) } else { self.more.get(index - 1) }
    }
}

/// The credentials that a layer accepts.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    cookie: Option<SessionCookie>,
    bearer: Option<Bearer>,
    signed: Option<Arc<dyn VerifySigned>>,
    vary: HeaderValue,
}

impl Credentials {
    pub(crate) fn new(cookie: Option<SessionCookie>) -> Self {
        let credentials = Self { cookie, bearer: None, signed: None, vary: HeaderValue::from_static("") };
        credentials.varied()
    }

    fn varied(mut self) -> Self {
        let mut names = Vec::new();
        names.extend(self.cookie.as_ref().map(|_| header::COOKIE.as_str()));
        names.extend(self.bearer().map(|bearer| bearer.header_name().as_str()));
        // Header names are valid header values.
        self.vary = HeaderValue::try_from(names.join(", ")).unwrap_or(HeaderValue::from_static("*"));
        self
    }

    pub(crate) fn with_cookie(&self, cookie: Option<SessionCookie>) -> Self {
        Self { cookie, ..self.clone() }.varied()
    }

    pub(crate) fn with_bearer(&self, bearer: Bearer) -> Self {
        Self { bearer: Some(bearer), ..self.clone() }.varied()
    }

    #[cfg(feature = "jwt")]
    pub(crate) fn with_signed(&self, signed: impl VerifySigned + 'static) -> Self {
        Self { signed: Some(Arc::new(signed)), ..self.clone() }.varied()
    }

    pub(crate) fn cookie(&self) -> Option<&SessionCookie> {
        self.cookie.as_ref()
    }

    /// How the bearer header is read, for opaque tokens and JWTs.
    pub(crate) fn bearer(&self) -> Option<&Bearer> {
        self.bearer.as_ref().or_else(|| self.signed.as_ref().map(|signed| signed.bearer()))
    }

    /// The `Vary` header of responses that depend on the session.
    pub(crate) fn vary(&self) -> &HeaderValue {
        &self.vary
    }

    pub(crate) fn read(&self, headers: &HeaderMap, clock: &dyn Clock) -> PresentedCredentials {
        let cookie = match &self.cookie {
            Some(cookie) => cookie.read(headers),
            None => PresentedCredentials::Nothing,
        };
        let bearer = match self.bearer().map(|bearer| bearer.read(headers)) {
            None | Some(Header::Absent) => return cookie,
            Some(Header::Malformed) => PresentedCredentials::Malformed,
            Some(Header::Credential(credential)) => self.bearer_credential(credential, clock),
        };
        match (cookie, bearer) {
            (PresentedCredentials::Tokens(_, cookies), PresentedCredentials::Tokens(_, bearer)) => {
                if cookies.iter().all(|cookie| *cookie == bearer.first) {
                    PresentedCredentials::Tokens(Transport::Cookie, cookies)
                } else {
                    PresentedCredentials::Disagreement
                }
            }
            (PresentedCredentials::Tokens(..), _) => PresentedCredentials::Disagreement,
            // A cookie with the name that is not a token was set by another program, and is ignored.
            (_, bearer) => bearer,
        }
    }

    /// Parses the credentials after `Bearer`. An opaque token has no dots, a JWT has two.
    fn bearer_credential(&self, credential: &[u8], clock: &dyn Clock) -> PresentedCredentials {
        if let Some(signed) = self.signed.as_ref().filter(|_| self.bearer.is_none() || credential.contains(&b'.')) {
            return match signed.verify(credential, clock.now()) {
                Some(signed) => PresentedCredentials::Signed(Arc::new(signed)),
                None => PresentedCredentials::Foreign(Transport::Bearer),
            };
        }
        match Token::parse(credential) {
            Ok(token) => PresentedCredentials::Tokens(Transport::Bearer, Candidates { first: token, more: Vec::new() }),
            Err(_) => PresentedCredentials::Foreign(Transport::Bearer),
        }
    }

    /// How a new session reaches a client without a token.
    pub(crate) fn default_transport(&self) -> Transport {
        if self.cookie.is_some() { Transport::Cookie } else { Transport::Bearer }
    }
}
