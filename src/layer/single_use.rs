//! Single-use credentials in a query parameter.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, header};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Policy, Reason, Rejection};
use crate::{
    credential::{InQuery, take_from},
    error_chain::ErrorChain,
    sessions::{Consumed, Sessions},
    store::StoreError,
};

/// Reads the token of a single-use session from a query parameter, for clients that can send neither a cookie nor a header: the URL
/// of an iframe, or a link in a mail.
///
/// Every request gets a [`SingleUse`] in its extensions. The handler calls [`consume`](SingleUse::consume) to use the session up. A
/// [`Session`](crate::Session) is never read from a query.
///
/// # Why only for a single use
/// URLs are not secret: they are in logs of servers and proxies, in the browser history, in `Referer`, and on the screen. A token
/// in a URL is safe only if it is worthless afterwards: it works once, for a few minutes. So give such sessions a [short
/// lifetime](crate::NewSession::lifetime), exchange them for a cookie, and use HTTPS. If another client has used the token first,
/// the rightful user gets `Consumed::Before`.
///
/// # Protection
/// * The parameter is **removed from the URI of the request**, each time it occurs, before the inner service runs. Put this layer
///   outside of everything that logs or copies the URI. With axum, wrap the whole router, as below: a layer inside the router runs
///   after the router has stored its `OriginalUri`. Proxies in front of the program need their own configuration.
/// * The response has `Referrer-Policy: no-referrer` and `Cache-Control: no-store`, even if the handler sets other values.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, ServiceExt, extract::Request, routing::get};
/// use tower::Layer;
/// use tower_keep::{Consumed, MemoryStore, SessionLayer, SingleUse, SingleUseError, SingleUseLayer};
///
/// async fn enter(link: SingleUse) -> Result<String, SingleUseError> {
///     Ok(match link.consume().await? {
///         Consumed::Now(session) => format!("welcome, {:?}", session.user()),
///         Consumed::Before(ended) => format!("this link is {}", ended.reason), // "used already"
///         Consumed::Unknown => "this link is unknown or has expired".to_owned(),
///     })
/// }
///
/// # async fn serve(listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// let sessions = SessionLayer::new(MemoryStore::new()).sessions();
/// let app: Router = Router::new().route("/enter", get(enter)); // /enter?session_id=…
/// let app = SingleUseLayer::query(sessions, "session_id").layer(app);
/// axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
/// # }
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SingleUseLayer {
    sessions: Sessions,
    parameter: Arc<str>,
}

impl SingleUseLayer {
    /// Reads the parameter with this name. It contains tokens of `sessions`.
    ///
    /// The name is compared after percent-decoding, and is case-sensitive.
    pub fn query(sessions: Sessions, parameter: impl Into<Arc<str>>) -> Self {
        Self { sessions, parameter: parameter.into() }
    }
}

impl<S> Layer<S> for SingleUseLayer {
    type Service = SingleUseService<S>;

    fn layer(&self, inner: S) -> SingleUseService<S> {
        SingleUseService { inner, layer: self.clone() }
    }
}

/// A service wrapped by [`SingleUseLayer`].
///
/// ```
/// use http::{Request, Response};
/// use tower::{Layer, service_fn};
/// use tower_keep::{MemoryStore, SessionLayer, SingleUseLayer};
///
/// let inner = service_fn(async |_: Request<()>| Ok::<_, std::convert::Infallible>(Response::new(())));
/// let sessions = SessionLayer::new(MemoryStore::new()).sessions();
/// let service = SingleUseLayer::query(sessions, "session_id").layer(inner);
/// # let _ = service;
/// ```
#[derive(Clone, Debug)]
pub struct SingleUseService<S> {
    inner: S,
    layer: SingleUseLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SingleUseService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = SingleUseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let brought = take_from(request.uri_mut(), &self.layer.parameter);
        let discreet = !matches!(brought, InQuery::Nothing);
        let sessions = self.layer.sessions.for_request(request.headers(), request.extensions());
        request.extensions_mut().insert(SingleUse { sessions, brought });
        SingleUseFuture { response: self.inner.call(request), discreet }
    }
}

pin_project! {
    /// The response of a [`SingleUseService`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct SingleUseFuture<F> {
        #[pin]
        response: F,
        // The request had a token in its URL.
        discreet: bool,
    }
}

impl<F, B, E> Future for SingleUseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.response.poll(cx))?;
        if *this.discreet {
            let headers = response.headers_mut();
            headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        Poll::Ready(Ok(response))
    }
}

/// The query parameter of a [`SingleUseLayer`], in the extensions of the request. With the feature `axum` it is an extractor.
///
/// Nothing is used up yet, so a link scanner that fetches the page does no harm.
///
/// ```
/// use http::Request;
/// use tower_keep::{Consumed, SingleUse, SingleUseError};
///
/// async fn enter(request: Request<()>) -> Result<&'static str, SingleUseError> {
///     let link = request.extensions().get::<SingleUse>().ok_or(SingleUseError::Missing)?;
///     Ok(match link.consume().await? {
///         Consumed::Now(_) => "welcome",
///         Consumed::Before(_) | Consumed::Unknown => "too late",
///     })
/// }
/// # let _ = enter;
/// ```
#[derive(Clone)]
pub struct SingleUse {
    sessions: Sessions,
    brought: InQuery,
}

impl SingleUse {
    /// Ends the session of the token, and returns it to exactly one caller: see [`Sessions::consume`].
    ///
    /// # Errors
    /// [`SingleUseError`]: there is no valid token, and no command was sent to the store; or the store is unavailable, and it is
    /// unknown whether the session was used.
    pub async fn consume(&self) -> Result<Consumed, SingleUseError> {
        let token = match &self.brought {
            InQuery::Token(token) => token,
            InQuery::Malformed => return Err(SingleUseError::Malformed),
            InQuery::Nothing => return Err(SingleUseError::Missing),
        };
        self.sessions.consume(token).await.map_err(|error| {
            self.sessions.context().counters.outages.count();
            tracing::warn!(session = %token.id(), error = %ErrorChain(&error), "session not consumed");
            SingleUseError::Store(error)
        })
    }
}

/// Does not contain the token.
impl fmt::Debug for SingleUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleUse").finish_non_exhaustive()
    }
}

/// Why nothing was [consumed](SingleUse::consume).
///
/// It converts to a [`Rejection`]. With the feature `axum` it is a response: 401, or 503 with `Retry-After` if the store is
/// unavailable.
///
/// ```
/// use tower_keep::{Rejection, SingleUseError};
///
/// assert_eq!(Rejection::from(SingleUseError::Malformed).status(), 401);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SingleUseError {
    /// The request does not have the parameter.
    #[error("no session token in the query")]
    Missing,
    /// The parameter is not a token, or occurs more than once.
    #[error("the value in the query is not a session token")]
    Malformed,
    /// The store failed.
    #[error("the session store failed")]
    Store(#[source] StoreError),
}

impl From<SingleUseError> for Rejection {
    fn from(error: SingleUseError) -> Self {
        match error {
            SingleUseError::Missing => Self::new(Reason::NoCredential, None),
            SingleUseError::Malformed => Self::new(Reason::InvalidToken, None),
            SingleUseError::Store(_) => Self::unavailable(Policy::new().retry_after),
        }
    }
}
