//! What a session adds to the head of a response.

use http::{HeaderMap, HeaderValue, Response, header};

use crate::session::Session;

/// Sets what the client must be told of its session, and what caches must know.
pub(super) fn finish<B>(mut response: Response<B>, session: &Session) -> Response<B> {
    let Some(closing) = session.close() else {
        return response; // the session was not read: nothing depends on it
    };
    let credentials = &session.shared().credentials;
    let headers = response.headers_mut();
    if let (Some(value), Some(cookie)) = (closing.set_cookie, &credentials.cookie) {
        let others: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().filter(|other| !cookie.is_set_by(other)).cloned().collect();
        headers.insert(header::SET_COOKIE, value);
        for other in others {
            headers.append(header::SET_COOKIE, other);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    for name in credentials.vary() {
        vary(headers, name.as_str());
    }
    response
}

fn vary(headers: &mut HeaderMap, name: &str) {
    let named = headers.get_all(header::VARY).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|item| {
            let item = item.trim_ascii();
            item == b"*" || item.eq_ignore_ascii_case(name.as_bytes())
        })
    });
    if !named {
        let value = match name {
            "cookie" => HeaderValue::from_static("cookie"),
            name => HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("*")),
        };
        headers.append(header::VARY, value);
    }
}
