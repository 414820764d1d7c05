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
    if let (Some(value), Some(cookie)) = (closing.set_cookie, credentials.cookie()) {
        let others: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().filter(|other| !cookie.is_set_by(other)).cloned().collect();
        headers.insert(header::SET_COOKIE, value);
        for other in others {
            headers.append(header::SET_COOKIE, other);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    vary(headers, credentials.vary());
    response
}

/// Adds the names in `names` that are not there yet.
fn vary(headers: &mut HeaderMap, names: &HeaderValue) {
    if !headers.contains_key(header::VARY) {
        headers.insert(header::VARY, names.clone());
        return;
    }
    for name in items(names) {
        let named = headers.get_all(header::VARY).iter().flat_map(items);
        if !named.into_iter().any(|other| other == b"*" || other.eq_ignore_ascii_case(name))
            && let Ok(name) = HeaderValue::from_bytes(name)
        {
            headers.append(header::VARY, name);
        }
    }
}

fn items(list: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    list.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}
