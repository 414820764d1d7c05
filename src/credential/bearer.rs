//! Bearer tokens: RFC 6750.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Reads session tokens from `Authorization: Bearer …` (RFC 6750), for clients that are not browsers.
///
/// Such a session sets no cookie. A handler returns a new token in its own response: see [`Session::token`](crate::Session::token).
///
/// ```
/// use tower_keep::{Bearer, MemoryStore, SessionLayer};
///
/// // Cookies and bearer tokens. If a request has both, they must be equal.
/// let both = SessionLayer::new(MemoryStore::new()).bearer(Bearer::new().realm("api"));
/// // Bearer tokens only.
/// let bearer_only = SessionLayer::new(MemoryStore::new()).without_cookie().bearer(Bearer::new());
/// # let _ = (both, bearer_only);
/// ```
#[derive(Clone, Debug)]
pub struct Bearer {
    header: HeaderName,
    scheme: bool,
    realm: Option<String>,
}

/// The format of the header.
pub(super) enum Header<'a> {
    Absent,
    Malformed,
    Credential(&'a [u8]),
}

impl Bearer {
    /// Reads the `Authorization` header. The scheme `Bearer` is case-insensitive.
    pub fn new() -> Self {
        Self { header: header::AUTHORIZATION, scheme: true, realm: None }
    }

    /// Reads another header, for example behind a proxy that uses `Authorization` itself.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_keep::Bearer;
    ///
    /// let bearer = Bearer::new().header(HeaderName::from_static("x-forwarded-authorization"));
    /// # let _ = bearer;
    /// ```
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// The header contains the token without a scheme. Default: the scheme is required.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_keep::Bearer;
    ///
    /// let bearer = Bearer::new().header(HeaderName::from_static("x-session-token")).without_scheme();
    /// # let _ = bearer;
    /// ```
    #[must_use]
    pub fn without_scheme(mut self) -> Self {
        self.scheme = false;
        self
    }

    /// The realm in `WWW-Authenticate`. Default: none. Quotes, backslashes and characters that are invalid in a header are removed.
    #[must_use]
    pub fn realm(mut self, realm: &str) -> Self {
        self.realm = Some(realm.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect());
        self
    }

    pub(crate) fn header_name(&self) -> &HeaderName {
        &self.header
    }

    pub(super) fn read<'a>(&self, headers: &'a HeaderMap) -> Header<'a> {
        let mut values = headers.get_all(&self.header).iter().filter_map(|value| self.credential(value.as_bytes()));
        let Some(credential) = values.next() else {
            return Header::Absent;
        };
        if values.next().is_some() || !is_b64token(credential) {
            return Header::Malformed;
        }
        Header::Credential(credential)
    }

    /// The credentials after the scheme. `None` if the scheme is another one.
    fn credential<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        if !self.scheme {
            return Some(value.trim_ascii());
        }
        let (scheme, rest) = value.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            return None;
        }
        match rest.first() {
            None => Some(rest),
            Some(b' ') => Some(rest.trim_ascii()),
            Some(_) => None, // another scheme that begins alike
        }
    }

    /// The value of `WWW-Authenticate` (RFC 6750, section 3).
    pub(crate) fn challenge(&self, error: Option<&'static str>) -> HeaderValue {
        let mut challenge = String::from("Bearer");
        let realm = self.realm.as_ref().map(|realm| format!("realm=\"{realm}\""));
        let error = error.map(|error| format!("error=\"{error}\""));
        for (i, parameter) in realm.into_iter().chain(error).enumerate() {
            challenge.push_str(if i == 0 { " " } else { ", " });
            challenge.push_str(&parameter);
        }
        HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}

impl Default for Bearer {
    fn default() -> Self {
        Self::new()
    }
}

/// `b64token` of RFC 6750: at least one of `A-Z a-z 0-9 - . _ ~ + /`, then any number of `=`.
fn is_b64token(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let (token, _) = text.split_at(text.len() - padding);
    !token.is_empty()
        && token
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/'))
}
