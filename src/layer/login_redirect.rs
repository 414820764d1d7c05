//! Sends visitors to the login page, and back.

use std::borrow::Cow;

use form_urlencoded::Serializer;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use percent_encoding::percent_decode;

use super::{Rejection, ResponseForRejection};

const HX_REQUEST: HeaderName = HeaderName::from_static("hx-request");
const HX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");
const HX_CURRENT_URL: HeaderName = HeaderName::from_static("hx-current-url");

/// Answers a 401 with a redirect to the login page, for [`SessionLayer::reject_with`](crate::SessionLayer::reject_with).
///
/// * A page: 303 to the login page. For a GET request, the parameter `next` has its path and query.
/// * A request by htmx: 401 with `HX-Redirect`; `next` is the page that the user sees.
/// * A request that prefers JSON (`Accept: application/json`): 401 with `{"error": "…"}`.
///
/// Other rejections keep their status, with a body in JSON if the request prefers that.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_keep::{LoginRedirect, MemoryStore, SessionLayer};
///
/// let sessions = SessionLayer::new(MemoryStore::new());
/// let app: Router = Router::new()
///     .route("/account", get(async || "members only"))
///     .route_layer(sessions.clone().require_user().reject_with(LoginRedirect::to("/login")))
///     .route("/login", get(async || "the login page"))
///     .layer(sessions);
/// # let _ = app;
/// ```
///
/// After the login, [`next`](Self::next) validates the parameter.
#[derive(Clone, Debug)]
pub struct LoginRedirect {
    login: Cow<'static, str>,
}

impl LoginRedirect {
    /// To this path, or URL, of the login page. It may have a query.
    pub fn to(login: impl Into<Cow<'static, str>>) -> Self {
        Self { login: login.into() }
    }

    /// The parameter `next` of the login page, if it is a path on this origin: safe for a redirect. `None` for every other
    /// value: other origins, `//host`, `/\\host` and their encoded forms, control characters.
    ///
    /// ```
    /// use tower_keep::LoginRedirect;
    ///
    /// assert_eq!(LoginRedirect::next("/account?tab=devices"), Some("/account?tab=devices"));
    /// assert_eq!(LoginRedirect::next("//evil.example/"), None);
    /// let next = LoginRedirect::next("https://evil.example/").unwrap_or("/");
    /// assert_eq!(next, "/");
    /// ```
    pub fn next(next: &str) -> Option<&str> {
        let path = next.split(['?', '#']).next().unwrap_or_default();
        (next.bytes().all(|byte| byte.is_ascii_graphic()) && is_local(path)).then_some(next)
    }

    /// The URL of the login page, with `next`.
    fn location(&self, next: Option<&str>) -> Option<HeaderValue> {
        let location = match next.and_then(Self::next) {
            Some(next) => {
                let (page, fragment) = self.login.split_once('#').unwrap_or((&self.login, ""));
                let separator = if page.contains('?') { '&' } else { '?' };
                let query = Serializer::new(String::new()).append_pair("next", next).finish();
                let hash = if fragment.is_empty() { "" } else { "#" };
                Cow::from(format!("{page}{separator}{query}{hash}{fragment}"))
            }
            None => Cow::from(&*self.login),
        };
        HeaderValue::try_from(&*location).ok()
    }
}

#[diagnostic::do_not_recommend] // the error should be about `ResponseForRejection`, which explains it
impl<B: Default + From<String>> ResponseForRejection<B> for LoginRedirect {
    fn response_for(&self, rejection: &Rejection, request: &Request<()>) -> Response<B> {
        let headers = request.headers();
        let mut response = Response::new(B::default());
        *response.status_mut() = rejection.status();
        if rejection.is_grpc() {
            return response;
        }
        if prefers_json(headers) {
            response = response.map(|_| B::from(format!("{{\"error\":\"{rejection}\"}}")));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        if rejection.status() != StatusCode::UNAUTHORIZED {
            return response;
        }
        if headers.contains_key(HX_REQUEST) {
            let page = headers.get(HX_CURRENT_URL).and_then(|url| url.to_str().ok()?.parse::<Uri>().ok());
            if let Some(location) = self.location(page.as_ref().and_then(path_and_query)) {
                response.headers_mut().insert(HX_REDIRECT, location);
            }
            return response;
        }
        let next = if request.method() == Method::GET { path_and_query(request.uri()) } else { None };
        if let Some(location) = self.location(next) {
            *response.status_mut() = StatusCode::SEE_OTHER;
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

fn path_and_query(uri: &Uri) -> Option<&str> {
    uri.path_and_query().map(|path_and_query| path_and_query.as_str())
}

/// Whether `Accept` names JSON before HTML.
fn prefers_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let mut types =
        accepted.flat_map(|accept| accept.split(',')).map(|range| range.split(';').next().unwrap_or_default());
    let named = types.find_map(|name| match name.trim().to_ascii_lowercase().as_str() {
        "text/html" | "application/xhtml+xml" => Some(false),
        name => (name == "application/json" || name.ends_with("+json")).then_some(true),
    });
    named.unwrap_or(false)
}

/// Whether the path stays on this origin, however often a browser or a proxy decodes it.
fn is_local(path: &str) -> bool {
    let mut path = path.as_bytes().to_vec();
    loop {
        let is_plain = path.iter().all(|byte| !byte.is_ascii_control() && *byte != b'\\');
        if path.first() != Some(&b'/') || !is_plain || path.windows(2).any(|pair| pair == b"//") {
            return false;
        }
        let decoded: Vec<u8> = percent_decode(&path).collect();
        if decoded == path {
            return true;
        }
        path = decoded; // shorter, so this ends
    }
}
