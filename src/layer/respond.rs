//! What a session adds to the head of a response.

use http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use crate::{
    metrics::{self, SET_COOKIE},
    session::Session,
};

/// Sets the session cookie, and the headers that caches need.
pub(super) fn finish<B>(mut response: Response<B>, session: &Session) -> Response<B> {
    let Some(finished) = session.finish() else {
        return response; // no part of the response depends on the session
    };
    let credentials = &session.context().credentials;
    let headers = response.headers_mut();
    if let (Some(set_cookie), Some(cookie)) = (finished.set_cookie, credentials.cookie()) {
        let others: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().filter(|other| !cookie.is_set_by(other)).cloned().collect();
        metrics::count(&SET_COOKIE, [("op", set_cookie.op)]);
        headers.insert(header::SET_COOKIE, set_cookie.header);
        for other in others {
            headers.append(header::SET_COOKIE, other);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    vary(headers, credentials.vary());
    response
}

/// Adds `names` to `Vary`, except those that it has.
pub(super) fn vary(headers: &mut HeaderMap, names: &HeaderValue) {
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

/// Keeps the headers of inner middleware, except those that describe the replaced body.
pub(super) fn carry_over(from: &mut HeaderMap, to: &mut HeaderMap) {
    let mut name = None;
    for (next, value) in from.drain() {
        name = next.or(name);
        if let Some(name) = &name
            && !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH | header::CONTENT_ENCODING | header::ETAG)
            && !rendered(to, name)
        {
            to.append(name, value);
        }
    }
}

/// Whether the rendered response has this header.
fn rendered(answer: &HeaderMap, name: &HeaderName) -> bool {
    let protocol = [header::WWW_AUTHENTICATE, header::RETRY_AFTER, header::CACHE_CONTROL];
    protocol.contains(name) || (answer.contains_key(name) && *name != header::SET_COOKIE && *name != header::VARY)
}
