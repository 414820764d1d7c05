//! Session cookies: RFC 6265bis.

use std::{borrow::Cow, time::Duration};

use ::cookie::{Cookie, time::OffsetDateTime};
use http::{HeaderMap, HeaderValue, header};

use super::{
    Candidates, MAX_CANDIDATES, PresentedCredentials, Transport,
    secret::{SIGNATURE_LEN, SessionSecret},
};
use crate::{
    time::Timestamp,
    token::{InvalidToken, ROTATED_LEN, Token},
};

/// The limits of user agents: name and value together, and each attribute.
const MAX_COOKIE: usize = 4096;
const MAX_ATTRIBUTE: usize = 1024;
/// The longest value: a rotated token, a dot, and a signature.
const MAX_VALUE: usize = ROTATED_LEN + 1 + SIGNATURE_LEN;
/// The longest lifetime that user agents accept.
const MAX_AGE: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Whether other sites can send the cookie.
///
/// ```
/// use tower_keep::{SameSite, SessionCookie};
///
/// let cookie = SessionCookie::builder().same_site(SameSite::Strict).build()?;
/// # let _ = cookie;
/// # Ok::<(), tower_keep::InvalidCookie>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Never.
    Strict,
    /// Only when the user follows a link.
    Lax,
    /// Always, for pages that other sites embed.
    None,
}

/// The session cookie.
///
/// Default: `__Host-session`, `Path=/`, `Secure`, `HttpOnly`, `SameSite=Lax`. With the prefix `__Host-`, the browser refuses a
/// cookie of that name from another host of the domain, or from a page without TLS. With `Lax`, users are logged in when they
/// follow a link, and cross-site POSTs have no session. The [`Lifetime`](crate::Lifetime) decides whether the cookie outlives the
/// browser session.
///
/// ```
/// use tower_keep::{SameSite, SessionCookie};
///
/// let cookie = SessionCookie::builder().name("__Host-shop").same_site(SameSite::Strict).build()?;
/// # let _ = cookie;
/// // Invalid combinations do not build:
/// assert!(SessionCookie::builder().domain("example.com").build().is_err());
/// # Ok::<(), tower_keep::InvalidCookie>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCookie {
    name: String,
    path: String,
    domain: Option<String>,
    same_site: SameSite,
    secure: bool,
    http_only: bool,
    partitioned: bool,
    secret: Option<SessionSecret>,
}

impl SessionCookie {
    /// A builder with the defaults.
    pub fn builder() -> SessionCookieBuilder {
        SessionCookieBuilder { cookie: Self::default() }
    }

    /// For plain HTTP on localhost: named `session`, without `Secure`. Do not use it in production.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, SessionCookie, SessionLayer};
    ///
    /// let layer = SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::development());
    /// # let _ = layer;
    /// ```
    pub fn development() -> Self {
        Self { name: "session".into(), secure: false, ..Self::default() }
    }

    /// Signs the cookie. A cookie without a valid signature for this name is not a token, and no command is sent to the store for
    /// it. Default: not signed.
    ///
    /// Tokens are 264 random bits, so they cannot be guessed without a signature either. A signature makes invented cookies cheap,
    /// and prevents the use of a token from another cookie or header. Enabling or disabling signatures logs all users out. Their
    /// old sessions expire as usual, and count towards the [limits](crate::SessionLayer::limits) until then.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, SessionCookie, SessionLayer, SessionSecret};
    ///
    /// # let secret = "a secret of at least 32 bytes, from your secret manager";
    /// let cookie = SessionCookie::default().signed(SessionSecret::new(secret)?);
    /// let layer = SessionLayer::new(MemoryStore::new()).cookie(cookie);
    /// # let _ = layer;
    /// # Ok::<(), tower_keep::InvalidSessionSecret>(())
    /// ```
    #[must_use]
    pub fn signed(mut self, secret: impl Into<Option<SessionSecret>>) -> Self {
        self.secret = secret.into();
        self
    }

    /// The `Cookie` header of a request with this token, signed if the cookie is: for tests, and for logins outside requests.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, SessionCookie, SessionLayer};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cookie = SessionCookie::default();
    /// let layer = SessionLayer::new(MemoryStore::new()).cookie(cookie.clone());
    /// let token = layer.sessions().create("ana").await?;
    /// let header = cookie.request_header(&token);
    /// assert!(header.to_str()?.starts_with("__Host-session="));
    /// # Ok(())
    /// # }
    /// ```
    pub fn request_header(&self, token: &Token) -> HeaderValue {
        let value = self.value(token);
        let mut header =
            HeaderValue::try_from(format!("{}={value}", self.name)).unwrap_or(HeaderValue::from_static(""));
        header.set_sensitive(true);
        header
    }

    /// The name of the cookie.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cookies with the name, in all `Cookie` header lines: HTTP/2 may send several.
    pub(super) fn read(&self, headers: &HeaderMap) -> PresentedCredentials {
        let mut found = PresentedCredentials::Nothing;
        for value in headers.get_all(header::COOKIE) {
            let mut rest = value.as_bytes();
            while !rest.is_empty() {
                let (value, after) = self.next(rest);
                rest = after;
                let Some(value) = value else { continue };
                match (self.token(value), &mut found) {
                    (Ok(token), PresentedCredentials::Tokens(_, tokens)) => {
                        if tokens.more.len() + 1 < MAX_CANDIDATES && tokens.iter().all(|other| *other != token) {
                            tokens.more.push(token);
                        }
                    }
                    (Ok(first), found) => {
                        *found =
                            PresentedCredentials::Tokens(Transport::Cookie, Candidates { first, more: Vec::new() });
                    }
                    (Err(_), PresentedCredentials::Tokens(..)) => {}
                    (Err(_), found) => *found = PresentedCredentials::Foreign(Transport::Cookie),
                }
            }
        }
        found
    }

    /// The token in the value of a cookie.
    fn token(&self, value: &[u8]) -> Result<Token, InvalidToken> {
        match &self.secret {
            Some(secret) => secret.verify(&self.name, value),
            None => Token::parse(value),
        }
    }

    /// The value of the first cookie in `header` if it has the name, and the rest of the header.
    fn next<'a>(&self, header: &'a [u8]) -> (Option<&'a [u8]>, &'a [u8]) {
        let header = header.trim_ascii_start();
        let value = header.strip_prefix(self.name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        let text = value.unwrap_or(header);
        // `contains` compares whole words, and the last cookie has no semicolon.
        let end = if text.contains(&b';') { text.iter().position(|byte| *byte == b';') } else { None };
        let end = end.unwrap_or(text.len());
        (value.map(|_| text[..end].trim_ascii()), text.get(end + 1..).unwrap_or_default())
    }

    fn value<'a>(&self, token: &'a Token) -> Cow<'a, str> {
        match &self.secret {
            Some(secret) => secret.sign(&self.name, token).into(),
            None => token.expose().into(),
        }
    }

    /// The `Set-Cookie` value for `token`. With `expires`, the cookie outlives the browser session.
    pub(crate) fn give(&self, token: &Token, now: Timestamp, expires: Option<Timestamp>) -> Option<HeaderValue> {
        let mut cookie = self.attributes(self.value(token));
        if let Some(expires) = expires {
            set_max_age(&mut cookie, now, expires.since(now).min(MAX_AGE));
        }
        header_value(&cookie)
    }

    /// The `Set-Cookie` value that removes the cookie. It needs the same attributes.
    pub(crate) fn remove(&self) -> Option<HeaderValue> {
        let mut cookie = self.attributes("");
        cookie.set_max_age(::cookie::time::Duration::ZERO);
        cookie.set_expires(OffsetDateTime::UNIX_EPOCH);
        header_value(&cookie)
    }

    /// Whether a `Set-Cookie` value is for this cookie.
    pub(crate) fn is_set_by(&self, value: &HeaderValue) -> bool {
        let value = value.as_bytes().trim_ascii_start();
        value.strip_prefix(self.name.as_bytes()).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
    }

    fn attributes<'a>(&'a self, value: impl Into<Cow<'a, str>>) -> Cookie<'a> {
        let mut cookie = Cookie::build((self.name.as_str(), value))
            .path(self.path.as_str())
            .same_site(match self.same_site {
                SameSite::Strict => ::cookie::SameSite::Strict,
                SameSite::Lax => ::cookie::SameSite::Lax,
                SameSite::None => ::cookie::SameSite::None,
            })
            .secure(self.secure)
            .http_only(self.http_only)
            .partitioned(self.partitioned)
            .build();
        if let Some(domain) = &self.domain {
            cookie.set_domain(domain.as_str());
        }
        cookie
    }

    fn check(self) -> Result<Self, InvalidCookie> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_domain = |text: &str| {
            let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
            text.len() <= MAX_ATTRIBUTE
                && text.bytes().all(is_host)
                && text.trim_start_matches('.').split('.').all(|label| !label.is_empty())
        };
        let is_attribute = |text: &str| {
            text.len() <= MAX_ATTRIBUTE && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b';')
        };
        if self.name.is_empty() || !self.name.bytes().all(is_token) {
            return Err(InvalidCookie::Name);
        }
        if self.name.len() + MAX_VALUE > MAX_COOKIE {
            return Err(InvalidCookie::TooLong);
        }
        if !self.path.starts_with('/') || !is_attribute(&self.path) {
            return Err(InvalidCookie::Path);
        }
        if self.domain.as_deref().is_some_and(|domain| !is_domain(domain)) {
            return Err(InvalidCookie::Domain);
        }
        // Browsers ignore case when they compare the prefixes.
        let prefixed =
            |prefix: &str| self.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let host = prefixed("__Host-");
        if (host || prefixed("__Secure-") || prefixed("__Http-")) && !self.secure {
            return Err(InvalidCookie::PrefixNeedsSecure);
        }
        if host && (self.domain.is_some() || self.path != "/") {
            return Err(InvalidCookie::HostPrefix);
        }
        if (prefixed("__Http-") || prefixed("__Host-Http-")) && !self.http_only {
            return Err(InvalidCookie::HttpPrefix);
        }
        if self.same_site == SameSite::None && !self.secure {
            return Err(InvalidCookie::SameSiteNoneNeedsSecure);
        }
        if self.partitioned && !self.secure {
            return Err(InvalidCookie::PartitionedNeedsSecure);
        }
        Ok(self)
    }
}

fn set_max_age(cookie: &mut Cookie<'_>, now: Timestamp, age: Duration) {
    // `Max-Age` takes precedence. `Expires` is for user agents without it. A zero would remove the cookie.
    let seconds = i64::try_from(age.as_secs().max(1)).unwrap_or(i64::MAX);
    cookie.set_max_age(::cookie::time::Duration::seconds(seconds));
    let expires = i64::try_from(now.as_millis() / 1000).unwrap_or(i64::MAX).saturating_add(seconds);
    if let Ok(expires) = OffsetDateTime::from_unix_timestamp(expires) {
        cookie.set_expires(expires);
    }
}

fn header_value(cookie: &Cookie<'_>) -> Option<HeaderValue> {
    // The builder has checked that all parts are valid in a header.
    let mut value = HeaderValue::try_from(cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Default for SessionCookie {
    fn default() -> Self {
        Self {
            name: "__Host-session".into(),
            path: "/".into(),
            domain: None,
            same_site: SameSite::Lax,
            secure: true,
            http_only: true,
            partitioned: false,
            secret: None,
        }
    }
}

/// Builds a [`SessionCookie`], starting with the defaults.
///
/// ```
/// use tower_keep::{InvalidCookie, SameSite, SessionCookie};
///
/// // For a page that other sites embed: a separate cookie for each of them.
/// let embedded = SessionCookie::builder().same_site(SameSite::None).partitioned(true).build()?;
/// assert_eq!(embedded.name(), "__Host-session");
///
/// let error = SessionCookie::builder().name("session").secure(false).partitioned(true).build().unwrap_err();
/// assert_eq!(error, InvalidCookie::PartitionedNeedsSecure);
/// # Ok::<(), InvalidCookie>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct SessionCookieBuilder {
    cookie: SessionCookie,
}

impl SessionCookieBuilder {
    /// The name. Default: `__Host-session`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.cookie.name = name.into();
        self
    }

    /// The path below which the cookie is sent. Default: `/`, which `__Host-` requires.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.cookie.path = path.into();
        self
    }

    /// The domain that receives the cookie, with its subdomains. Default: none, only the host that set it, which `__Host-`
    /// requires.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.cookie.domain = Some(domain.into());
        self
    }

    /// Whether other sites can send the cookie. Default: [`SameSite::Lax`].
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.cookie.same_site = same_site;
        self
    }

    /// Whether the cookie is sent over TLS only. Default: yes.
    pub fn secure(mut self, secure: bool) -> Self {
        self.cookie.secure = secure;
        self
    }

    /// Whether scripts cannot read the cookie. Default: yes. Without it, an injected script can steal every session.
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.cookie.http_only = http_only;
        self
    }

    /// Whether each embedding site has its own cookie jar (CHIPS). Default: no.
    pub fn partitioned(mut self, partitioned: bool) -> Self {
        self.cookie.partitioned = partitioned;
        self
    }

    /// Builds the cookie.
    ///
    /// # Errors
    /// [`InvalidCookie`] if browsers would refuse the cookie.
    pub fn build(self) -> Result<SessionCookie, InvalidCookie> {
        self.cookie.check()
    }
}

/// Why browsers would refuse the cookie.
///
/// ```
/// use tower_keep::{InvalidCookie, SessionCookie};
///
/// assert_eq!(SessionCookie::builder().name("my cookie").build(), Err(InvalidCookie::Name));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCookie {
    /// The name is empty or has an invalid character.
    #[error("a cookie's name must be a token of RFC 9110")]
    Name,
    /// Name and value together are longer than 4096 bytes.
    #[error("a cookie's name and value have at most 4096 bytes together")]
    TooLong,
    /// The path does not begin with `/`, is longer than 1024 bytes, or contains `;` or a control character.
    #[error("a cookie's path must begin with '/', have at most 1024 bytes, and no ';' or control character")]
    Path,
    /// The domain is empty, longer than 1024 bytes, or has an invalid character.
    #[error("a cookie's domain must be a host name of at most 1024 bytes")]
    Domain,
    /// A name that begins with `__Host-`, `__Secure-` or `__Http-` needs `Secure`.
    #[error("a cookie with a name prefix must be Secure")]
    PrefixNeedsSecure,
    /// A name that begins with `__Host-` needs `Path=/` and no `Domain`.
    #[error("a __Host- cookie must have Path=/ and no Domain")]
    HostPrefix,
    /// A name that begins with `__Http-` or `__Host-Http-` needs `HttpOnly`.
    #[error("a __Http- cookie must be HttpOnly")]
    HttpPrefix,
    /// `SameSite=None` needs `Secure`.
    #[error("a SameSite=None cookie must be Secure")]
    SameSiteNoneNeedsSecure,
    /// `Partitioned` needs `Secure`.
    #[error("a Partitioned cookie must be Secure")]
    PartitionedNeedsSecure,
}
