//! Where a request carries its token, and how a response gives one.

mod bearer;
mod cookie;
mod query;

use ::http::{HeaderMap, HeaderValue, header};

use self::bearer::Header;
pub(crate) use self::query::{InQuery, take_from};
pub use self::{
    bearer::Bearer,
    cookie::{InvalidCookie, SameSite, SessionCookie, SessionCookieBuilder},
};
use crate::token::Token;

/// How many cookies of the session's name are tried. More than one comes when somebody planted one for a parent domain
/// or another path; their order says nothing about which is ours.
const MAX_CANDIDATES: usize = 4;

/// The ways a token travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Cookie,
    Bearer,
}

/// What a request brought.
#[derive(Clone)]
pub(crate) enum Presented {
    /// No credential.
    Nothing,
    /// A credential that cannot be a token of ours.
    Foreign(Transport),
    /// A bearer header that breaks the grammar of RFC 6750.
    Malformed,
    /// A cookie and a bearer token that are not the same.
    Disagreement,
    /// What may be tokens of ours, in the order they came: several only when several cookies have the name.
    Tokens(Transport, Candidates),
}

impl Presented {
    /// How the session came, if one may have come: somebody else's `Authorization` header says nothing of that.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match self {
            Self::Tokens(transport, _) => Some(*transport),
            Self::Foreign(_) | Self::Malformed | Self::Nothing | Self::Disagreement => None,
        }
    }
}

/// At least one token; the others rarely exist, and cost nothing when they do not.
#[derive(Clone)]
pub(crate) struct Candidates {
    first: Token,
    more: Vec<Token>,
}

impl Candidates {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Token> {
        std::iter::once(&self.first).chain(&self.more)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Token> {
        if index == 0 { Some(&self.first) } else { self.more.get(index - 1) }
    }
}

/// The credentials that a layer reads.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    cookie: Option<SessionCookie>,
    bearer: Option<Bearer>,
    vary: HeaderValue,
}

impl Credentials {
    pub(crate) fn new(cookie: Option<SessionCookie>, bearer: Option<Bearer>) -> Self {
        let mut names = Vec::new();
        names.extend(cookie.as_ref().map(|_| header::COOKIE.as_str()));
        names.extend(bearer.as_ref().map(|bearer| bearer.header_name().as_str()));
        // Names of headers are values of headers.
        let vary = HeaderValue::try_from(names.join(", ")).unwrap_or(HeaderValue::from_static("*"));
        Self { cookie, bearer, vary }
    }

    pub(crate) fn with_cookie(&self, cookie: Option<SessionCookie>) -> Self {
        Self::new(cookie, self.bearer.clone())
    }

    pub(crate) fn with_bearer(&self, bearer: Bearer) -> Self {
        Self::new(self.cookie.clone(), Some(bearer))
    }

    pub(crate) fn cookie(&self) -> Option<&SessionCookie> {
        self.cookie.as_ref()
    }

    pub(crate) fn bearer(&self) -> Option<&Bearer> {
        self.bearer.as_ref()
    }

    /// The request headers that a response depends on once its session was read, as `Vary` names them.
    pub(crate) fn vary(&self) -> &HeaderValue {
        &self.vary
    }

    pub(crate) fn read(&self, headers: &HeaderMap) -> Presented {
        let cookie = match &self.cookie {
            Some(cookie) => cookie.read(headers),
            None => Presented::Nothing,
        };
        let bearer = match &self.bearer {
            Some(bearer) => bearer.read(headers),
            None => return cookie,
        };
        match (cookie, bearer) {
            (cookie, Header::Absent) => cookie,
            (Presented::Tokens(_, cookies), Header::Token(token)) => {
                if cookies.iter().all(|cookie| *cookie == token) {
                    Presented::Tokens(Transport::Cookie, cookies)
                } else {
                    Presented::Disagreement
                }
            }
            (Presented::Tokens(..), Header::Foreign | Header::Malformed) => Presented::Disagreement,
            // A cookie of our name that is not a token was set by somebody else: it claims nothing.
            (_, Header::Token(token)) => {
                Presented::Tokens(Transport::Bearer, Candidates { first: token, more: Vec::new() })
            }
            (_, Header::Foreign) => Presented::Foreign(Transport::Bearer),
            (_, Header::Malformed) => Presented::Malformed,
        }
    }

    /// How a session reaches a client that brought no token.
    pub(crate) fn default_transport(&self) -> Transport {
        if self.cookie.is_some() { Transport::Cookie } else { Transport::Bearer }
    }
}
