//! Logins with JSON Web Tokens that can be revoked: a short-lived access token, and a refresh token that is used once.
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
//! | `JWT_SECRET`, `REFRESH_SECRET` | what access and refresh tokens are signed with, 32 bytes at least; without, random ones for this run |
//! | `ACCESS_TOKEN_EXPIRY` | how long an access token lives: `900`, `15m`, `1h`; default 15 minutes |
//! | `REFRESH_TOKEN_EXPIRY` | how long a session lives without a refresh or another request; default `7d`. After 90 days everybody logs in again |
//! | `REDIS_URL` and the like | where the sessions are; without, in memory. If Redis goes away, memory takes over; what began there is not carried back |

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
    Jwt, JwtAlgorithm, JwtKey, JwtPair, Lifetime, Reason, Rejection, Session, SessionLayer, Sessions, store::OnRecovery,
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
        .leeway(Duration::ZERO) // who signs verifies: there is one clock, or several that agree
        .access_lifetime(duration("ACCESS_TOKEN_EXPIRY", Duration::from_secs(15 * 60))?)
        .build()?;
    let idle = duration("REFRESH_TOKEN_EXPIRY", 7 * DAY)?;
    let lifetime = Lifetime::new(idle, idle.max(90 * DAY)).map_err(|error| format!("REFRESH_TOKEN_EXPIRY: {error}"))?;
    let layer = SessionLayer::new(support::store(OnRecovery::Drop).await?)
        .without_cookie()
        .jwt(jwt.clone())
        .lifetime(lifetime)
        .client_info(support::client_info()) // for the log of security events
        .rotation_grace(Duration::ZERO) // a refresh token that is used twice ends its family at once
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
        .route("/metrics", support::metrics::route(sessions)?) // for operators, not for the world
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = support::listen(name).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

type Tokens = State<(Jwt, Sessions)>;

/// The session of the request, not looked up: a login and a refresh need none.
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
    let token = body["refresh_token"].as_str().unwrap_or_default(); // which is none
    Ok(pair(jwt.refresh(&sessions.for_client(session.client_ip()), token).await?))
}

async fn logout(session: Session) -> Result<StatusCode, Rejection> {
    session.require_user().await?;
    session.logout()?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whatever is wrong with a token, it is 401 here.
fn rejected(rejection: &Rejection) -> Response {
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

/// The key in the environment variable `name`, or one that nobody else has.
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
    Ok(Duration::from_secs(seconds.ok_or(format!("{name}: {text:?} is no duration like 900, 15m, 12h or 7d"))?))
}
