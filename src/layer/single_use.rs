//! A credential that is good once, in a query parameter.

use std::{
    error::Error,
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
    observe::ErrorChain,
    sessions::{Consumed, Sessions},
    store::StoreError,
};

/// Reads the token of a single-use session from a query parameter, for what can send neither a cookie nor a header: the address of
/// an iframe, a link in a mail.
///
/// Every request that passes gets a [`SingleUse`] in its extensions, by which the handler [uses the session up](SingleUse::consume). It is good
/// for nothing else: no [`Session`](crate::Session) is ever read from a query.
///
/// # Why only for a single use
/// A URL is not a place for secrets. It is written to the logs of every server and proxy on the way, kept in the history of
/// the browser, sent on in `Referer`, shown on the screen and copied by hand. A token that gets there is safe only
/// because it is worth nothing by then: it has been used, once, by whoever came first, and whoever has not come within
/// minutes comes too late. So give such sessions a [short lifetime](crate::NewSession::lifetime), hand out a cookie (or whatever else is
/// no URL) in exchange, and send them over TLS only. If the token was used before its owner came, somebody has read it on
/// the way: the owner learns that by `Consumed::Before`.
///
/// # What it does for that
/// * The parameter, however often it comes, is **removed from the request's URI** before anything inside sees it. Lay this layer outside of
///   whatever writes the URI down or keeps a copy. With axum that is around the whole router, as below: a layer of
///   the router itself comes after the router has put a copy, its `OriginalUri`, into the extensions. Proxies in front of your program are
///   yours to configure.
/// * The response to a request that brought it says `Referrer-Policy: no-referrer` and `Cache-Control: no-store`, over anything the
///   handler said.
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
///         Consumed::Unknown => "this link is not, or no longer, known".to_owned(),
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
    /// For the parameter of this name, and tokens of these sessions.
    ///
    /// The name is compared after it was decoded, and with regard to case.
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
        // The URL of the request is nobody else's business.
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

/// What a request brought in the query parameter of a [`SingleUseLayer`]: in the request's extensions, and with the feature `axum` an
/// extractor.
///
/// Nothing has been used up yet: that a page was fetched, by whatever looks at links before people do, costs nothing.
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
    /// Ends the session whose token the request brought, and returns it to one caller: see [`Sessions::consume`].
    ///
    /// # Errors
    /// [`SingleUseError`]: there is no token, or none of ours, and the store was not asked; or the store does not answer, and it is not known whether
    /// the session was used.
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

/// Without the token.
impl fmt::Debug for SingleUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleUse").finish_non_exhaustive()
    }
}

/// Why nothing was [consumed](SingleUse::consume).
///
/// It converts to a [`Rejection`], and with the feature `axum` it is an answer: 401, and 503 with `Retry-After` when the store is the cause.
///
/// ```
/// use tower_keep::{Rejection, SingleUseError};
///
/// assert_eq!(Rejection::from(SingleUseError::Malformed).status(), 401);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum SingleUseError {
    /// The request has no such parameter.
    Missing,
    /// The parameter is no token, or comes more than once.
    Malformed,
    /// The store failed.
    Store(StoreError),
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

impl fmt::Display for SingleUseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no session token in the query",
            Self::Malformed => "what the query holds is not a session token",
            Self::Store(_) => "the session store failed",
        })
    }
}

impl Error for SingleUseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Missing | Self::Malformed => None,
        }
    }
}
