//! Checks that an action comes from the page itself.

use http::{HeaderMap, HeaderName, Uri, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether the browser says that a page of the same origin sent the request.
pub(super) fn is_same(headers: &HeaderMap, uri: &Uri) -> bool {
    // Browsers before 2023, and all browsers without TLS, do not send it.
    says_same(headers).unwrap_or_else(|| match (only(headers, &header::ORIGIN), host(headers, uri)) {
        (Said::Once(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host))
        }
        _ => false,
    })
}

/// Whether the browser says that another site led here.
pub(super) fn is_other(headers: &HeaderMap) -> bool {
    says_same(headers) == Some(false)
}

fn says_same(headers: &HeaderMap) -> Option<bool> {
    match only(headers, &SEC_FETCH_SITE) {
        Said::Once(site) => Some(site == "same-origin"),
        Said::Otherwise => Some(false),
        Said::Nothing => None,
    }
}

/// The host of the request, in HTTP/1 and HTTP/2.
fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    match only(headers, &header::HOST) {
        Said::Once(host) => Some(host),
        Said::Nothing => uri.authority().map(|authority| authority.as_str()),
        Said::Otherwise => None,
    }
}

enum Said<'a> {
    Nothing,
    Once(&'a str),
    /// Several, or not a string.
    Otherwise,
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Said<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (None, _) => Said::Nothing,
        (Some(Ok(value)), None) => Said::Once(value),
        _ => Said::Otherwise,
    }
}
