//! Responses with common headers.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

/// Only the page itself: no scripts, no frames around it, forms to the same origin only.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// When a retry may succeed.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

const STYLE: &str = include_str!("style.css");

pub(super) fn page(status: StatusCode, html: String) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    guarded(response)
}

/// POST, redirect, GET: reloading the page does not repeat the action.
pub(super) fn redirect(reference: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    // References are ASCII.
    if let Ok(location) = HeaderValue::try_from(reference) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    guarded(response)
}

/// The URL has the version, so it can be cached.
pub(super) fn style() -> Response {
    let mut response = guarded(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE).into_response());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400"));
    response
}

fn guarded(mut response: Response) -> Response {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // Not `no-referrer`: with that, forms have the origin "null".
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
