//! Single-use sessions: a site requests one and embeds a page of ours with it. The page consumes it, and gets its own cookie
//! session in exchange, which works in an iframe on another site.
//!
//! ```text
//! cargo run --example iframe_auth                                        # a demonstration at http://127.0.0.1:3000
//! curl -i -X POST http://127.0.0.1:3000/auth/create-session
//! curl -i 'http://127.0.0.1:3000/auth/validate-session?session_id=…'     # 200, then 401
//! curl -i http://127.0.0.1:3000/auth/session-status
//! curl -i http://127.0.0.1:3000/auth/redis-health
//! ```
//!
//! There are two kinds of sessions, each with its own store:
//! * a **handshake** belongs to a `session_id`: anonymous, for 30 minutes, for a single use, at most 1000 at a time;
//! * a **frame** is the cookie session of the page in the iframe. It stores its handshake, and expires when the handshake
//!   would have. So the live frames are the consumed handshakes.

mod support;

use std::{
    error::Error,
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router, ServiceExt,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::map_request,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::Layer;
use tower_keep::{
    ClientInfo, Clock, Consumed, EndReason, HealthStatus, Key, KeyValue, KeyValueError, Lifetime, MemoryStore,
    NewSession, Rejection, SameSite, Session, SessionCookie, SessionError, SessionInfo, SessionLayer, SessionSecret,
    Sessions, SingleUse, SingleUseError, SingleUseLayer, SystemClock, Timestamp,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const MAX_SESSIONS: usize = 1000;
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);
/// The values of a frame.
const HANDSHAKE: Key<Handshake> = Key::new("handshake");

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let (handshakes, frames) = stores()?;
    let handshakes = SessionLayer::new(handshakes)
        .lifetime(Lifetime::new(HALF_AN_HOUR, HALF_AN_HOUR)?)
        .client_info(ClientInfo::new()) // for security events in the log
        .sessions();
    let cookie = SessionCookie::builder().name("__Host-frame").same_site(SameSite::None).partitioned(true).build()?;
    let cookie = cookie.signed(SessionSecret::from_env()?);
    let frames = SessionLayer::new(frames).cookie(cookie).reject_with(rejected as Reject);

    let store = handshakes.store_name();
    let service = Service { handshakes, frames: frames.sessions(), counters: Counters(frames.sessions().key_value()?) };
    let metrics = support::metrics::route(service.handshakes.clone())?; // keep it private
    let stopped = support::stopped()?;
    let listener = support::listen(store).await?;
    // The outermost layer: not even the router sees the parameter.
    let app = SingleUseLayer::query(service.handshakes.clone(), "session_id").layer(app(service, metrics, frames));
    let app = ServiceExt::<Request>::into_make_service_with_connect_info::<SocketAddr>(app);
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

type Store = Arc<dyn SessionStore>;

/// The layers for handshakes and for frames.
fn stores() -> Result<(Store, Store), Box<dyn Error>> {
    Ok(match RedisConfig::from_env()? {
        Some(config) => {
            let handshakes =
                config.clone().prefix("auth_session:")?.max_sessions(MAX_SESSIONS).remember_ended(HALF_AN_HOUR);
            (Arc::new(RedisStore::new(handshakes)), Arc::new(RedisStore::new(config.prefix("auth_frame:")?)))
        }
        None => {
            let handshakes = MemoryStore::new().capacity(MAX_SESSIONS).reject_when_full();
            (Arc::new(handshakes), Arc::new(MemoryStore::new()))
        }
    })
}

type Reject = fn(&Rejection, &http::Request<()>) -> Response;

fn app(service: Service, metrics: MethodRouter<Service>, frames: SessionLayer<Reject>) -> Router {
    // A handshake creates its own frame, even if there is one already.
    let enter = Router::new()
        // HEAD is routed like GET, and must not consume anything.
        .route(
            "/auth/validate-session",
            get(validate).head(async || (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")])),
        )
        .layer(frames.clone())
        .layer(map_request(without_cookies));
    Router::new()
        .route("/", page("text/html; charset=utf-8", include_str!("iframe_auth/parent.html")))
        .route("/parent.js", page("text/javascript", include_str!("iframe_auth/parent.js")))
        .route("/auth/create-session", post(create))
        .route("/auth/session-status", get(status))
        .route("/auth/redis-health", get(redis_health))
        .route("/client/iframe.html", page("text/html; charset=utf-8", include_str!("iframe_auth/iframe.html")))
        .route("/client/iframe.js", page("text/javascript", include_str!("iframe_auth/iframe.js")))
        .route("/client/style.css", page("text/css", include_str!("iframe_auth/style.css")))
        .route("/client/session", get(frame))
        .layer(frames)
        .merge(enter)
        .route("/metrics", metrics)
        .with_state(service)
        .layer(map_request(log_request))
}

#[derive(Clone)]
struct Service {
    handshakes: Sessions,
    frames: Sessions,
    counters: Counters,
}

async fn create(State(service): State<Service>) -> Result<Response, SessionError> {
    let token = match service.handshakes.create(NewSession::anonymous()).await {
        Err(SessionError::Full) => return Ok(full()),
        token => token?,
    };
    service.counters.count(CREATED).await;
    let body = CreateReply {
        session_id: token.expose(),
        expires_in_minutes: HALF_AN_HOUR.as_secs() / 60,
        iframe_url: format!("/client/iframe.html?session_id={}", token.expose()),
        storage: service.handshakes.store_name(),
    };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

#[derive(Serialize)]
struct CreateReply<'a> {
    session_id: &'a str,
    expires_in_minutes: u64,
    iframe_url: String,
    storage: &'static str,
}

fn full() -> Response {
    let error =
        format!("there are {MAX_SESSIONS} sessions waiting to be used, and no more are given out; try again later");
    (StatusCode::TOO_MANY_REQUESTS, Json(json!({ "error": error }))).into_response()
}

/// Consumes the handshake, and creates the frame.
async fn validate(State(service): State<Service>, handshake: SingleUse, frame: Session) -> Result<Response, Rejection> {
    let used = match handshake.consume().await {
        Ok(Consumed::Now(session)) => session,
        Ok(Consumed::Before(ended)) if ended.reason == EndReason::Used => return Ok(invalid("used")),
        Ok(Consumed::Before(_) | Consumed::Unknown) => return Ok(invalid("unknown")),
        Err(SingleUseError::Missing | SingleUseError::Malformed) => return Ok(invalid("malformed")),
        Err(error) => return Err(error.into()),
    };
    service.counters.count(USED).await;
    let handshake = Handshake::used_now(&used);
    frame.insert(HANDSHAKE, &handshake)?;
    let rest = used.expires_at().duration_since(SystemTime::now()).unwrap_or_default();
    if let Ok(lifetime) = Lifetime::new(rest, rest) {
        frame.set_lifetime(lifetime)?;
    }
    Ok(Json(Valid { valid: true, handshake }).into_response())
}

#[derive(Serialize)]
struct Valid {
    valid: bool,
    #[serde(flatten)]
    handshake: Handshake,
}

fn invalid(reason: &str) -> Response {
    let body = Json(json!({ "valid": false, "reason": reason }));
    (StatusCode::UNAUTHORIZED, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// A consumed handshake.
#[derive(Serialize, Deserialize)]
struct Handshake {
    created_at: String,
    expires_at: String,
    used_at: String,
}

impl Handshake {
    fn used_now(session: &SessionInfo) -> Self {
        let text = |time: SystemTime| Timestamp::from(time).to_string();
        Self {
            created_at: text(session.created_at()),
            expires_at: text(session.expires_at()),
            used_at: SystemClock.now().to_string(),
        }
    }
}

/// The session of the page in the iframe, by its cookie.
async fn frame(frame: Session) -> Result<Response, Rejection> {
    Ok(match frame.get(HANDSHAKE)? {
        Some(handshake) => Json(handshake).into_response(),
        None => (StatusCode::UNAUTHORIZED, Json(json!({ "error": "no session" }))).into_response(),
    })
}

/// Live and consumed handshakes are counted by SCAN. The totals are [counters](Counters).
/// Without Redis only the totals of this process are known.
async fn status(State(service): State<Service>) -> Response {
    let counted = service.counted().await.ok();
    let number = |place: usize| counted.map(|numbers| numbers[place]);
    let body = Json(Status {
        total_sessions: counted.map(|[active, used, ..]| active + used),
        active_sessions: number(0),
        used_sessions: number(1),
        total_created: number(2),
        total_used: number(3),
        max_sessions: MAX_SESSIONS,
        storage: service.handshakes.store_name(),
        redis_healthy: service.redis_health().await.is_ok(),
    });
    match counted {
        Some(_) => body.into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], body).into_response(),
    }
}

#[derive(Serialize)]
struct Status {
    total_sessions: Option<u64>,
    active_sessions: Option<u64>,
    used_sessions: Option<u64>,
    total_created: Option<u64>,
    total_used: Option<u64>,
    max_sessions: usize,
    storage: &'static str,
    redis_healthy: bool,
}

const CREATED: &str = "total_created";
const USED: &str = "total_used";

/// The totals of created and consumed handshakes, over all instances.
#[derive(Clone)]
struct Counters(KeyValue);

impl Counters {
    /// A failed count does not fail the request.
    async fn count(&self, what: &str) {
        if let Err(error) = self.0.incr(what).await {
            tracing::warn!(what, %error, "not counted");
        }
    }

    async fn read(&self) -> Result<[u64; 2], SessionError> {
        let totals = self.0.mget(&[CREATED, USED]).await.map_err(|error| match error {
            KeyValueError::Store(error) => SessionError::Store(error),
            _ => SessionError::Unavailable,
        })?;
        let number = |total: Option<&Option<Vec<u8>>>| {
            let text = total?.as_deref().map(String::from_utf8_lossy)?;
            text.parse().ok()
        };
        Ok([number(totals.first()).unwrap_or(0), number(totals.get(1)).unwrap_or(0)])
    }
}

async fn redis_health(State(service): State<Service>) -> Response {
    let (code, status, message) = match service.redis_health().await {
        Ok(()) => (StatusCode::OK, "healthy", "Redis answers"),
        Err(message) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy", message),
    };
    let body = json!({ "status": status, "message": message, "timestamp": SystemClock.now().to_string() });
    let mut response = (code, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response();
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

impl Service {
    /// Active and consumed handshakes, and their totals.
    async fn counted(&self) -> Result<[u64; 4], SessionError> {
        let (active, used) = (self.handshakes.count().await?, self.frames.count().await?);
        let [total_created, total_used] = self.counters.read().await?;
        Ok([active, used, total_created, total_used])
    }

    /// The causes name servers, so they go to the log.
    async fn redis_health(&self) -> Result<(), &'static str> {
        let health = self.handshakes.health().await;
        if health.store != "redis" {
            return Err("there is no Redis: sessions are in memory");
        }
        if health.status != HealthStatus::Up {
            tracing::warn!(cause = health.cause.as_deref(), "Redis");
        }
        match health.status {
            HealthStatus::Up => Ok(()),
            HealthStatus::Degraded => Err("Redis answers, and takes no writes"),
            _ => Err("Redis does not answer"),
        }
    }
}

fn rejected(rejection: &Rejection, _: &http::Request<()>) -> Response {
    (rejection.status(), Json(json!({ "error": rejection.to_string() }))).into_response()
}

async fn without_cookies(mut request: Request) -> Request {
    request.headers_mut().remove(header::COOKIE);
    request
}

async fn log_request(request: Request) -> Request {
    tracing::info!(method = %request.method(), uri = %request.uri(), "request");
    request
}

/// A file that any site may embed. To restrict that, name the sites after `frame-ancestors`.
fn page(kind: &'static str, text: &'static str) -> MethodRouter<Service> {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; \
        base-uri 'none'; form-action 'none'; frame-ancestors *";
    get(async move || ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)], text))
}
