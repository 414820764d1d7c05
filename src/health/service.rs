use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tower_service::Service;

use super::HealthReport;
use crate::{layer::retry_after, sessions::Sessions, store::health::HealthStatus};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A service for health probes, for requests with any body. Created by [`Sessions::health_service`].
///
/// The last path segment selects the check, so the service works under any prefix:
///
/// | path ends with | question | response |
/// |---|---|---|
/// | `/live` | Must the process be restarted? | 200, always. The store is not queried, because a restart does not repair Redis |
/// | `/ready` | Should requests be sent here? | 200 if the store is up or [degraded](Self::ready_when_degraded), else 503 with `Retry-After` |
/// | anything else | What is the status? | the [`HealthReport`] as JSON, with the status code of `/ready` |
///
/// The methods are GET and HEAD; others get 405. Responses must not be cached.
///
/// The responses to `/live` and `/ready` have no details. The report is for operators: its cause may name servers. Do not make it
/// public.
///
/// A check ends within the deadline of the store (for Redis its [timeout](crate::store::redis::RedisConfig::timeout)). Concurrent
/// probes share one check. Results are not cached.
///
/// Mount it outside the session layer, or inside a layer that is not [eager](crate::SessionLayer::eager).
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get};
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// let layer = SessionLayer::new(MemoryStore::new());
/// let health = layer.sessions().health_service();
/// let app: Router = Router::new()
///     .route("/", get(async || "hello"))
///     .layer(layer)
///     .nest_service("/health", health); // also /health/live and /health/ready
/// # let _ = app;
/// # }
/// ```
///
/// For another response body, call it and convert:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use hyper::body::Incoming;
/// use tower::{BoxError, Service};
/// use tower_keep::Sessions;
///
/// async fn route(request: Request<Incoming>, sessions: Sessions) -> Result<Response<Full<Bytes>>, BoxError> {
///     match request.uri().path() {
///         path if path.starts_with("/health") => Ok(sessions.health_service().call(request).await?.map(Full::from)),
///         _ => Ok(Response::new("hello".into())),
///     }
/// }
/// # let _ = route;
/// ```
#[derive(Clone)]
pub struct HealthService {
    sessions: Sessions,
    ready_when_degraded: bool,
    retry_after: Duration,
}

/// The requested check.
#[derive(Clone, Copy)]
enum Probe {
    Ready,
    Report,
}

impl Sessions {
    /// A service for liveness and readiness probes, and the [`health`](Self::health) as JSON.
    ///
    /// ```
    /// use http::Request;
    /// use tower::ServiceExt;
    /// use tower_keep::{MemoryStore, SessionLayer};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let health = SessionLayer::new(MemoryStore::new()).sessions().health_service();
    /// let response = health.oneshot(Request::get("/health/ready").body(())?).await?;
    /// assert_eq!((response.status().as_u16(), response.body().as_str()), (200, "ready\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn health_service(&self) -> HealthService {
        HealthService { sessions: self.clone(), ready_when_degraded: true, retry_after: Duration::from_secs(5) }
    }
}

impl HealthService {
    /// Whether an instance with a degraded store is ready. Default: `true`, because most requests only read their session, and
    /// other instances have the same store.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, SessionLayer};
    /// # let layer = SessionLayer::new(MemoryStore::new());
    /// let health = layer.sessions().health_service().ready_when_degraded(false);
    /// # let _ = health;
    /// ```
    #[must_use]
    pub fn ready_when_degraded(mut self, ready: bool) -> Self {
        self.ready_when_degraded = ready;
        self
    }

    /// The value of `Retry-After` in a 503. Default: 5 seconds. Rounded up to whole seconds.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::{MemoryStore, SessionLayer};
    /// # let layer = SessionLayer::new(MemoryStore::new());
    /// let health = layer.sessions().health_service().retry_after(Duration::from_secs(30));
    /// # let _ = health;
    /// ```
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = delay;
        self
    }

    fn answer(&self, probe: Probe, health: &HealthReport) -> Response<String> {
        let ready = match health.status {
            HealthStatus::Up => true,
            HealthStatus::Degraded => self.ready_when_degraded,
            HealthStatus::Down => false,
        };
        let (kind, body) = match probe {
            Probe::Ready => (TEXT, String::from(if ready { "ready\n" } else { "not ready\n" })),
            // A report can always be written as JSON.
            Probe::Report => (JSON, serde_json::to_string(health).unwrap_or_default()),
        };
        if ready {
            return response(StatusCode::OK, kind, body);
        }
        let mut response = response(StatusCode::SERVICE_UNAVAILABLE, kind, body);
        response.headers_mut().insert(header::RETRY_AFTER, retry_after(self.retry_after));
        response
    }
}

impl<B> Service<Request<B>> for HealthService {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = HealthFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> HealthFuture {
        let head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ => return HealthFuture::ready(not_allowed()),
        };
        let path = request.uri().path().trim_end_matches('/');
        let probe = match path.rsplit('/').next() {
            Some("live") => {
                return HealthFuture::ready(without_body(response(StatusCode::OK, TEXT, "live\n".into()), head));
            }
            Some("ready") => Probe::Ready,
            _ => Probe::Report,
        };
        let service = self.clone();
        HealthFuture::checking(async move {
            let health = service.sessions.health().await;
            without_body(service.answer(probe, &health), head)
        })
    }
}

fn response(status: StatusCode, kind: HeaderValue, body: String) -> Response<String> {
    let length = body.len();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn not_allowed() -> Response<String> {
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// The response to HEAD has the length of the body, and no body.
fn without_body(response: Response<String>, head: bool) -> Response<String> {
    if head { response.map(|_| String::new()) } else { response }
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthService")
            .field("store", &self.sessions.store_name())
            .field("ready_when_degraded", &self.ready_when_degraded)
            .field("retry_after", &self.retry_after)
            .finish()
    }
}

/// The response of a [`HealthService`].
///
/// Dropping it cancels the check, unless other callers wait for it.
///
/// ```
/// use http::Request;
/// use tower::Service;
/// use tower_keep::{HealthFuture, MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut health = SessionLayer::new(MemoryStore::new()).sessions().health_service();
/// let answer: HealthFuture = health.call(Request::new(()));
/// assert!(answer.await.is_ok_and(|response| response.status() == 200));
/// # }
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct HealthFuture(Answer);

enum Answer {
    Ready(Ready<Response<String>>),
    Checking(Pin<Box<dyn Future<Output = Response<String>> + Send>>),
}

impl HealthFuture {
    fn ready(response: Response<String>) -> Self {
        Self(Answer::Ready(ready(response)))
    }

    fn checking(response: impl Future<Output = Response<String>> + Send + 'static) -> Self {
        Self(Answer::Checking(Box::pin(response)))
    }
}

impl Future for HealthFuture {
    type Output = Result<Response<String>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Ready(response) => Pin::new(response).poll(cx),
            Answer::Checking(response) => response.as_mut().poll(cx),
        }
        .map(Ok)
    }
}

impl fmt::Debug for HealthFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HealthFuture")
    }
}
