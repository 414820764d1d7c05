//! Answers, with the headers that all of them have.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

/// Nothing but what the page itself brings: no script at all, no frame around it, forms to nobody else.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// When the store may answer again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

const STYLE: &str = include_str!("style.css");

pub(super) fn page(status: StatusCode, html: String) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    guarded(response)
}

/// Post, redirect, get: what was done is not done again by loading the page once more.
pub(super) fn see(reference: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    // References are made of ASCII.
    if let Ok(location) = HeaderValue::try_from(reference) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    guarded(response)
}

/// It is asked for by version, so it may be kept.
pub(super) fn style() -> Response {
    let mut response = guarded(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE).into_response());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400"));
    response
}

fn guarded(mut response: Response) -> Response {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // Not `no-referrer`: with that, forms come from the origin "null".
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
