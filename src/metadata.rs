//! Metadata of sessions, and how the client IP is determined.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Extensions, HeaderMap, HeaderName, header};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// Information about a session besides its values: the client at its creation or login, and strings of the application. It is kept
/// when the session rotates, and is part of lists of sessions.
///
/// ```
/// use tower_keep::Metadata;
///
/// let metadata = Metadata::default().with_user_agent("curl/8").with_field("device", "Ana's phone");
/// assert_eq!(metadata.field("device"), Some("Ana's phone"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ua: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fields: BTreeMap<Arc<str>, Arc<str>>,
}

impl Metadata {
    /// The client IP.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The user agent.
    pub fn user_agent(&self) -> Option<&str> {
        self.ua.as_deref()
    }

    /// A string of the application.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| &**value)
    }

    /// All strings of the application, by name.
    ///
    /// ```
    /// # use tower_keep::Metadata;
    /// let metadata = Metadata::default().with_field("b", "2").with_field("a", "1");
    /// assert_eq!(metadata.fields().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    /// ```
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there is no metadata.
    pub fn is_empty(&self) -> bool {
        self.ip.is_none() && self.ua.is_none() && self.fields.is_empty()
    }

    /// Sets the client IP.
    #[must_use]
    pub fn with_ip(mut self, ip: IpAddr) -> Self {
        self.ip = Some(ip);
        self
    }

    /// Sets the user agent.
    #[must_use]
    pub fn with_user_agent(mut self, user_agent: &str) -> Self {
        self.ua = Some(user_agent.into());
        self
    }

    /// Sets a string of the application.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    pub(crate) fn set_field(&mut self, name: &str, value: Option<Arc<str>>) {
        match value {
            Some(value) => drop(self.fields.insert(name.into(), value)),
            None => drop(self.fields.remove(name)),
        }
    }

    /// The length of the strings in bytes.
    pub(crate) fn weight(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.ua.as_ref().map_or(0, |ua| ua.len()) + fields
    }
}

/// How the client of a request is determined: see [`SessionLayer::client_info`](crate::SessionLayer::client_info).
///
/// The client IP is the peer address. Behind a proxy, that is the proxy, and a header contains the client IP. The header is used
/// only if the peer is a [trusted proxy](Self::trust_proxies), because any client can send it.
///
/// ```
/// use http::{Extensions, HeaderMap, HeaderValue};
/// use tower_keep::{ClientInfo, PeerAddr};
///
/// let info = ClientInfo::new().trust_proxies(["10.0.0.0/8"])?;
/// let mut headers = HeaderMap::new();
/// headers.insert("x-forwarded-for", HeaderValue::from_static("6.6.6.6, 203.0.113.7"));
/// let mut extensions = Extensions::new();
///
/// extensions.insert(PeerAddr("10.0.0.1:4711".parse().unwrap()));
/// assert_eq!(info.client_ip(&headers, &extensions), Some([203, 0, 113, 7].into())); // and not what the client claims
/// extensions.insert(PeerAddr("198.51.100.9:4711".parse().unwrap()));
/// assert_eq!(info.client_ip(&headers, &extensions), Some([198, 51, 100, 9].into())); // no proxy of ours
/// # Ok::<(), tower_keep::InvalidProxy>(())
/// ```
#[derive(Clone)]
pub struct ClientInfo {
    proxies: Vec<IpNet>,
    forwarded: ForwardedHeader,
    peer: Peer,
    /// Whether a missing peer address is already reported.
    reported: Arc<AtomicBool>,
    user_agent_max: usize,
    ip: bool,
}

type Peer = Arc<dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync>;

/// The header in which a proxy sends the client IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which most proxies send.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The peer address of a connection, for the extensions of its requests.
///
/// ```
/// use tower_keep::PeerAddr;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(PeerAddr("192.0.2.1:4711".parse().unwrap()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The maximum number of proxies in a chain.
const MAX_HOPS: usize = 32;

impl ClientInfo {
    /// The client IP, and the first 256 bytes of `User-Agent`.
    pub fn new() -> Self {
        Self {
            proxies: Vec::new(),
            forwarded: ForwardedHeader::default(),
            peer: Arc::new(|extensions| {
                let peer = extensions.get::<PeerAddr>().map(|peer| peer.0);
                #[cfg(feature = "axum")]
                let peer = peer.or_else(|| Some(extensions.get::<axum::extract::ConnectInfo<SocketAddr>>()?.0));
                peer.or_else(|| extensions.get::<SocketAddr>().copied()).map(|addr| addr.ip())
            }),
            reported: Arc::default(),
            user_agent_max: 256,
            ip: true,
        }
    }

    /// The trusted proxies: addresses, or networks like `10.0.0.0/8`. Default: none.
    ///
    /// The client IP is the last address in the header that is not a trusted proxy. The client may have invented the addresses
    /// before it.
    ///
    /// # Errors
    /// [`InvalidProxy`] if a string is neither an address nor a network.
    pub fn trust_proxies<P: AsRef<str>>(mut self, proxies: impl IntoIterator<Item = P>) -> Result<Self, InvalidProxy> {
        for proxy in proxies {
            let text = proxy.as_ref();
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            self.proxies.push(canonical(net.map_err(|_| InvalidProxy(text.to_owned()))?));
        }
        Ok(self)
    }

    /// The header of the proxies. Default: `X-Forwarded-For`. Only one header is used, because a proxy passes the other one on
    /// unchanged.
    ///
    /// ```
    /// # use tower_keep::{ClientInfo, ForwardedHeader};
    /// let info = ClientInfo::new().forwarded_header(ForwardedHeader::Forwarded);
    /// ```
    #[must_use]
    pub fn forwarded_header(mut self, header: ForwardedHeader) -> Self {
        self.forwarded = header;
        self
    }

    /// How to find the peer address. Default: a [`PeerAddr`] or [`SocketAddr`] in the extensions of the request, and with the
    /// feature `axum` also the `ConnectInfo<SocketAddr>` of `into_make_service_with_connect_info::<SocketAddr>()`.
    ///
    /// ```
    /// use std::net::IpAddr;
    /// use tower_keep::ClientInfo;
    ///
    /// /// What your server puts into the extensions.
    /// #[derive(Clone)]
    /// struct Connection { from: IpAddr }
    ///
    /// let info = ClientInfo::new().peer(|extensions| Some(extensions.get::<Connection>()?.from));
    /// # let _ = info;
    /// ```
    #[must_use]
    pub fn peer(mut self, peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        self.peer = Arc::new(peer);
        self
    }

    /// The maximum number of bytes of `User-Agent` to store. Zero: none. Default: 256.
    ///
    /// ```
    /// # use tower_keep::ClientInfo;
    /// let info = ClientInfo::new().user_agent_max(0);
    /// ```
    #[must_use]
    pub fn user_agent_max(mut self, bytes: usize) -> Self {
        self.user_agent_max = bytes;
        self
    }

    /// Do not store the client IP. Default: it is stored.
    ///
    /// ```
    /// # use tower_keep::ClientInfo;
    /// let info = ClientInfo::new().without_ip();
    /// ```
    #[must_use]
    pub fn without_ip(mut self) -> Self {
        self.ip = false;
        self
    }

    /// The metadata of a request.
    ///
    /// ```
    /// use http::{Extensions, HeaderMap, HeaderValue, header::USER_AGENT};
    /// use tower_keep::ClientInfo;
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert(USER_AGENT, HeaderValue::from_static("curl/8"));
    /// let metadata = ClientInfo::new().metadata(&headers, &Extensions::new());
    /// assert_eq!(metadata.user_agent(), Some("curl/8"));
    /// ```
    pub fn metadata(&self, headers: &HeaderMap, extensions: &Extensions) -> Metadata {
        Metadata { ip: self.kept_ip(headers, extensions), ua: self.user_agent(headers), fields: BTreeMap::new() }
    }

    /// The client IP, if it is stored.
    pub(crate) fn kept_ip(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        if !self.ip {
            return None;
        }
        let ip = self.client_ip(headers, extensions);
        if ip.is_none() && !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "client IPs are not recorded: the requests have no peer address. With axum, serve \
                 `app.into_make_service_with_connect_info::<SocketAddr>()`; else put a `PeerAddr` into their extensions, or use \
                 `ClientInfo::peer` or `without_ip`"
            );
        }
        ip
    }

    /// The client IP of a request. `None` if the peer address is unknown.
    pub fn client_ip(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        let mut client = (self.peer)(extensions)?.to_canonical();
        let mut hops = self.hops(headers).take(MAX_HOPS);
        while self.is_proxy(client) {
            let Some(Some(before)) = hops.next() else { break };
            client = before;
        }
        Some(client)
    }

    fn is_proxy(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&ip))
    }

    /// The addresses in the header, the last first. `None` is something else.
    fn hops<'a>(&self, headers: &'a HeaderMap) -> impl Iterator<Item = Option<IpAddr>> + use<'a> {
        let name = match self.forwarded {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => header::FORWARDED,
        };
        let hop = match self.forwarded {
            ForwardedHeader::XForwardedFor => address,
            ForwardedHeader::Forwarded => forwarded_for,
        };
        headers.get_all(name).into_iter().rev().flat_map(|line| rsplit(line.as_bytes(), b',')).map(hop)
    }

    fn user_agent(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let text = String::from_utf8_lossy(headers.get(header::USER_AGENT)?.as_bytes());
        let printable: String = text.chars().filter(|c| !disturbs(*c)).collect();
        let end = (0..=self.user_agent_max.min(printable.len())).rev().find(|end| printable.is_char_boundary(*end));
        let kept = &printable[..end.unwrap_or(0)];
        (!kept.is_empty()).then(|| kept.into())
    }
}

/// The parts between separators outside of quoted strings, the last first.
///
/// From the right, so that an unclosed quote of the client cannot hide what the proxies appended.
fn rsplit(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut after) = (false, 0);
    text.rsplit(move |byte| {
        match *byte {
            b'"' => quoted = !quoted,
            b'\\' if after == b'"' && !quoted => quoted = true, // it was escaped: the string begins further left
            _ => {}
        }
        after = *byte;
        *byte == separator && !quoted
    })
}

/// Whether a character is unsuitable for display: control characters, line separators, and direction overrides.
fn disturbs(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An address with an optional port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let text = text.split_once(":_").map_or(text, |(node, _)| node); // a port by another name (RFC 7239, section 6.2)
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

/// The address in an element of `Forwarded`: `for="[2001:db8::1]:80";proto=https`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut values = rsplit(element, b';').filter_map(|parameter| {
        let (name, value) = parameter.split_at(parameter.iter().position(|byte| *byte == b'=')?);
        name.trim_ascii().eq_ignore_ascii_case(b"for").then(|| value[1..].trim_ascii())
    });
    let value = values.next()?;
    if values.next().is_some() {
        return None; // one of them may be the client's
    }
    address(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// Converts networks of IPv4-mapped IPv6 addresses to IPv4, because client addresses are converted too.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(net) => net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok()).map_or(net, IpNet::V4)
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ClientInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientInfo")
            .field("proxies", &self.proxies)
            .field("forwarded", &self.forwarded)
            .field("user_agent_max", &self.user_agent_max)
            .field("ip", &self.ip)
            .finish_non_exhaustive()
    }
}

/// The string is neither an address nor a network.
///
/// ```
/// use tower_keep::ClientInfo;
///
/// let error = ClientInfo::new().trust_proxies(["10.0.0.0/99"]).unwrap_err();
/// assert_eq!(error.to_string(), "\"10.0.0.0/99\" is neither an IP address nor a network");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a network")]
pub struct InvalidProxy(String);
