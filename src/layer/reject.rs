//! Rejections: 400, 401, 429, 500 and 503, in the protocol of the caller.

use std::{error::Error, fmt, time::Duration};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};

use crate::{ended::EndReason, error_chain::ErrorChain};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// RFC 9110 demands a challenge in every 401. Browsers do not prompt for a scheme that they do not know.
const COOKIE_CHALLENGE: HeaderValue = HeaderValue::from_static("Cookie");

/// Why a request is not served. It is the error of [`Session::load`](crate::Session::load), and can be returned as the response.
///
/// Return [`into_response`](Self::into_response) from a handler (with axum the rejection itself, with tonic the `Status` that it
/// converts to). The layer renders it as [configured](crate::SessionLayer::reject_with). Headers that other middleware adds are
/// kept. A response with another status is not changed.
///
/// ```
/// use http::{Request, Response};
/// use tower_keep::Session;
///
/// async fn handler(request: Request<()>) -> Response<String> {
///     let Some(session) = request.extensions().get::<Session>() else {
///         return Response::new("the session layer is missing".into());
///     };
///     match session.load().await {
///         Ok(()) => Response::new(format!("hello {:?}", session.user())), // Ok(Some("ana"))
///         Err(rejection) => rejection.into_response(),
///     }
/// }
/// # let _ = handler;
/// ```
#[derive(Clone, Debug)]
pub struct Rejection {
    reason: Reason,
    challenge: Option<HeaderValue>,
    retry_after: Option<Duration>,
    ended: Option<EndReason>,
    grpc: bool,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The request has no credential: 401.
    NoCredential,
    /// The token is unknown, expired, invalid, or of another kind than required: 401.
    InvalidToken,
    /// The `Authorization` header is malformed: 400.
    MalformedCredential,
    /// The session is live, and no user is logged in: 401.
    NotLoggedIn,
    /// The cookie and the bearer token differ: 401.
    CredentialsDisagree,
    /// The store is unavailable: 503.
    Unavailable,
    /// The limit of sessions is reached: 429.
    TooManySessions,
    /// The session cannot be used, and a retry does not help: 500.
    Internal,
    /// No [`SessionLayer`](crate::SessionLayer) wraps the service, which is a mistake in the program: 500.
    NoLayer,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, challenge: Option<HeaderValue>) -> Self {
        Self { reason, challenge, retry_after: None, ended: None, grpc: false }
    }

    /// A mistake of the program. The client learns nothing about it, so it is logged.
    pub(crate) fn mistake(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error = %ErrorChain(error), "the request fails because of a mistake in the program");
        Self::new(Reason::Internal, None)
    }

    pub(crate) fn unavailable(retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Reason::Unavailable, None) }
    }

    /// Adds the details that this rejection does not have yet.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            challenge: self.challenge.or(other.challenge),
            retry_after: self.retry_after.or(other.retry_after),
            ended: self.ended.or(other.ended),
            ..self
        }
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub(crate) fn because(self, ended: Option<EndReason>) -> Self {
        Self { ended, ..self }
    }

    /// Why the session of the request's token has ended, if it is known: "signed in elsewhere". Only your own
    /// [response](ResponseForRejection) can show it.
    pub fn ended(&self) -> Option<EndReason> {
        self.ended
    }

    /// The HTTP status: 400, 401, 429, 500 or 503.
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Reason::NoCredential | Reason::InvalidToken | Reason::NotLoggedIn | Reason::CredentialsDisagree => {
                StatusCode::UNAUTHORIZED
            }
            Reason::MalformedCredential => StatusCode::BAD_REQUEST,
            Reason::TooManySessions => StatusCode::TOO_MANY_REQUESTS,
            Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Reason::Internal | Reason::NoLayer => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC status: 16 (unauthenticated), 14 (unavailable), 8 (resource exhausted) or 13 (internal).
    pub fn grpc_status(&self) -> u8 {
        match self.reason {
            Reason::NoCredential
            | Reason::InvalidToken
            | Reason::NotLoggedIn
            | Reason::CredentialsDisagree
            | Reason::MalformedCredential => 16,
            Reason::TooManySessions => 8,
            Reason::Unavailable => 14,
            Reason::Internal | Reason::NoLayer => 13,
        }
    }

    /// Whether the caller uses gRPC. The response then has status 200 with `grpc-status`, and must have an empty body.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// The response, with an empty body. The layer replaces it with the configured response.
    pub fn into_response<B: Default>(self) -> Response<B> {
        let mut response = self.render(&EmptyBody, &Request::new(()));
        response.extensions_mut().insert(self);
        response
    }

    pub(crate) fn for_grpc(mut self, grpc: bool) -> Self {
        self.grpc = grpc;
        self
    }

    /// The response of `reject`, with the headers that the protocols require.
    pub(crate) fn render<B>(&self, reject: &impl ResponseForRejection<B>, request: &Request<()>) -> Response<B> {
        let mut response = reject.response_for(self, request);
        if self.grpc {
            *response.status_mut() = StatusCode::OK;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.grpc_status())));
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.message()));
        } else if let Some(challenge) = &self.challenge {
            response.headers_mut().append(header::WWW_AUTHENTICATE, challenge.clone());
        } else if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().append(header::WWW_AUTHENTICATE, COOKIE_CHALLENGE);
        }
        if let Some(delay) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, retry_after(delay));
        }
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    pub(crate) fn message(&self) -> &'static str {
        match self.reason {
            Reason::NoCredential => "no session",
            Reason::InvalidToken => "the session token is not valid",
            Reason::NotLoggedIn => "no user is logged in",
            Reason::MalformedCredential => "the session credential is malformed",
            Reason::CredentialsDisagree => "cookie and bearer token disagree",
            Reason::TooManySessions => "there are too many sessions",
            Reason::Unavailable => "sessions are unavailable",
            Reason::Internal => "the session cannot be used",
            Reason::NoLayer => "no session layer",
        }
    }
}

/// Rounded up to whole seconds.
pub(crate) fn retry_after(delay: Duration) -> HeaderValue {
    HeaderValue::from(delay.as_secs() + u64::from(delay.subsec_nanos() > 0))
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl Error for Rejection {}

/// Converts a [`Rejection`] to a response with the body type of the service.
///
/// Implemented for closures, by [`LoginRedirect`](crate::LoginRedirect), and by [`EmptyBody`] for every body with a default. The
/// layer adds the headers that the protocols require: `WWW-Authenticate`, `Retry-After`, `Cache-Control: no-store`, and for gRPC
/// callers status, type and `grpc-status`.
///
/// ```
/// use http::{Request, Response};
/// use tower_keep::{MemoryStore, Rejection, SessionLayer};
///
/// let layer = SessionLayer::new(MemoryStore::new()).reject_with(|rejection: &Rejection, request: &Request<()>| {
///     let body = if rejection.is_grpc() { String::new() } else { format!("{}: {rejection}", request.uri().path()) };
///     let mut response = Response::new(body);
///     *response.status_mut() = rejection.status();
///     response
/// });
/// # let _ = layer;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer rejections with a `{B}`",
    label = "the service inside the session layer responds with a `{B}`",
    note = "a `SessionLayer` directly around a layer with its own body type (`TraceLayer`, `ResponseBodyTimeoutLayer`, \
            `InterceptorLayer`) has no way to build that body",
    note = "put the session layer inside that layer, or `MapResponseBodyLayer::new(Body::new)` between them; a tonic interceptor \
            belongs on the service: `MyServer::with_interceptor`"
)]
pub trait ResponseForRejection<B> {
    /// Whether [`response_for`](Self::response_for) reads the request. `false` saves a copy of its head per request. Default:
    /// `true`.
    const READS_REQUEST: bool = true;

    /// The response for `rejection`.
    ///
    /// `request` has the method, the URI and the headers of the rejected request, and no extensions. With the feature
    /// `axum`, the URI is that of the client, also in nested routers.
    fn response_for(&self, rejection: &Rejection, request: &Request<()>) -> Response<B>;
}

impl<F, B> ResponseForRejection<B> for F
where
    F: Fn(&Rejection, &Request<()>) -> Response<B>,
{
    fn response_for(&self, rejection: &Rejection, request: &Request<()>) -> Response<B> {
        self(rejection, request)
    }
}

/// The status and an empty body: the default of a layer, unless [configured otherwise](crate::SessionLayer::reject_with).
///
/// ```
/// use tower_keep::{EmptyBody, MemoryStore, SessionLayer};
///
/// let layer: SessionLayer<EmptyBody> = SessionLayer::new(MemoryStore::new());
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EmptyBody;

#[diagnostic::do_not_recommend] // the error should be about `ResponseForRejection`, which explains it
impl<B: Default> ResponseForRejection<B> for EmptyBody {
    const READS_REQUEST: bool = false;

    fn response_for(&self, rejection: &Rejection, _: &Request<()>) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = rejection.status();
        response
    }
}
