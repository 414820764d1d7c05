//! Logins with JSON Web Tokens that can be revoked: a short-lived access token, and a refresh token for a single use.
//!
//! ```text
//! cargo run --example jwt_auth
//!
//! curl -d '{"username":"ana","password":"ana"}' -H content-type:application/json localhost:3000/login
//! curl -H "authorization: Bearer $ACCESS_TOKEN" localhost:3000/verify
//! curl -d '{"refresh_token":"'$REFRESH_TOKEN'"}' -H content-type:application/json localhost:3000/refresh
//! curl -X POST -H "authorization: Bearer $ACCESS_TOKEN" localhost:3000/logout
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `JWT_SECRET`, `REFRESH_SECRET` | the signing keys of access and refresh tokens, at least 32 bytes; without them, random keys for this run |
//! | `ACCESS_TOKEN_EXPIRY` | lifetime of an access token: `900`, `15m`, `1h`; default 15 minutes |
//! | `REFRESH_TOKEN_EXPIRY` | idle timeout of a session; default `7d`. After 90 days everybody logs in again |
//! | `REDIS_URL` and related | the Redis server; without it, sessions are in memory. Memory also serves while Redis is down, and its sessions are not replayed |

mod support;

use std::{env, error::Error, ffi::OsString, net::SocketAddr, process::ExitCode, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use support::Credentials;
use tower_keep::{
    ClientInfo, Jwt, JwtAlgorithm, JwtKey, JwtPair, Lifetime, Reason, Rejection, Session, SessionLayer, Sessions,
    store::OnRecovery,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let stopped = support::stopped()?;
    let jwt = Jwt::builder(key("JWT_SECRET")?)
        .refresh_key(key("REFRESH_SECRET")?)
        .leeway(Duration::ZERO) // the same servers sign and verify, with one clock or synchronized ones
        .access_lifetime(duration("ACCESS_TOKEN_EXPIRY", Duration::from_secs(15 * 60))?)
        .build()?;
    let idle = duration("REFRESH_TOKEN_EXPIRY", 7 * DAY)?;
    let lifetime = Lifetime::new(idle, idle.max(90 * DAY)).map_err(|error| format!("REFRESH_TOKEN_EXPIRY: {error}"))?;
    let layer = SessionLayer::new(support::store(OnRecovery::Drop).await?)
        .without_cookie()
        .jwt(jwt.clone())
        .lifetime(lifetime)
        .client_info(ClientInfo::new()) // for security events in the log
        .rotation_grace(Duration::ZERO) // a refresh token that is used twice ends its session immediately
        .reject_with(rejected);
    for name in ["JWT_SECRET", "REFRESH_SECRET"].into_iter().filter(|name| variable(name).is_none()) {
        tracing::warn!("{name} is not set: this run has a random one, and tokens are good for it alone");
    }
    let sessions = layer.sessions();
    let name = sessions.store_name();
    let app = Router::new()
        .route("/login", post(login))
        .route("/verify", get(verify))
        .route("/refresh", post(refresh))
        .route("/logout", post(logout))
        .route_service("/health/{probe}", sessions.health_service())
        .with_state((jwt, sessions.clone()))
        .layer(layer)
        .route("/metrics", support::metrics::route(sessions)?) // keep it private
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = support::listen(name).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

type Tokens = State<(Jwt, Sessions)>;

/// The session of the request, not loaded: login and refresh do not need one.
type Unused = Extension<Session>;

async fn login(
    State((jwt, sessions)): Tokens,
    Extension(session): Unused,
    Json(credentials): Json<Credentials>,
) -> Result<Response, Rejection> {
    let Some(user) = credentials.user() else { return Ok(StatusCode::UNAUTHORIZED.into_response()) };
    Ok(pair(jwt.issue_new(&sessions.for_client(session.client_ip()), user, &json!({})).await?))
}

async fn verify(session: Session) -> Result<Json<Option<Value>>, Rejection> {
    session.require_user().await?; // or 401
    Ok(Json(session.claims()?))
}

async fn refresh(
    State((jwt, sessions)): Tokens,
    Extension(session): Unused,
    Json(body): Json<Value>,
) -> Result<Response, Rejection> {
    let token = body["refresh_token"].as_str().unwrap_or_default(); // empty: not a token
    Ok(pair(jwt.refresh(&sessions.for_client(session.client_ip()), token).await?))
}

async fn logout(session: Session) -> Result<StatusCode, Rejection> {
    session.require_user().await?;
    session.logout()?;
    Ok(StatusCode::NO_CONTENT)
}

/// Any invalid token is 401 here.
fn rejected(rejection: &Rejection, _: &http::Request<()>) -> Response {
    match rejection.reason() {
        Reason::MalformedCredential => StatusCode::UNAUTHORIZED.into_response(),
        _ => rejection.status().into_response(),
    }
}

fn pair(pair: JwtPair) -> Response {
    ([("cache-control", "no-store")], Json(pair)).into_response()
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The key in the environment variable `name`, or a random one.
fn key(name: &str) -> Result<JwtKey, Box<dyn Error>> {
    let secret = match variable(name) {
        Some(secret) => secret.into_encoded_bytes(),
        None => {
            let mut random = vec![0; 32];
            getrandom::fill(&mut random)?;
            random
        }
    };
    Ok(JwtKey::hmac(JwtAlgorithm::HS256, secret).map_err(|error| format!("{name}: {error}"))?)
}

/// The duration in the environment variable `name`: seconds, or a number with a unit.
fn duration(name: &str, default: Duration) -> Result<Duration, Box<dyn Error>> {
    let Some(text) = variable(name) else { return Ok(default) };
    let text = text.to_string_lossy();
    let (number, unit) = match text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8)) {
        (number, "s") => (number, 1),
        (number, "m") => (number, 60),
        (number, "h") => (number, 60 * 60),
        (number, "d") => (number, 24 * 60 * 60),
        _ => (&*text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds > 0);
    Ok(Duration::from_secs(seconds.ok_or(format!("{name}: {text:?} is not a duration like 900, 15m, 12h or 7d"))?))
}
