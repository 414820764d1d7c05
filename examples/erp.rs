//! An ERP: Express-style sessions that live for 24 hours and are extended by activity, and a small key-value service. In memory or, with
//! `REDIS_URL` or its parts in the environment, in Redis. While Redis is down, memory serves; afterwards the changes are replayed.
//!
//! ```text
//! cargo run --example erp
//!
//! curl -i -c jar -H 'content-type: application/json' -d '{"username":"admin","password":"admin"}' http://127.0.0.1:3000/api/auth/login
//! curl -b jar http://127.0.0.1:3000/api/user/profile
//! curl -b jar -X PUT http://127.0.0.1:3000/api/cart/apples -d 3                     # values in the session
//! curl -b jar http://127.0.0.1:3000/api/cart
//! curl -b jar -X PUT 'http://127.0.0.1:3000/api/kv/rate:usd?ttl=300' -d 1.08        # the key-value service
//! curl -b jar -X POST 'http://127.0.0.1:3000/api/kv/invoices/incr?by=1'
//! curl -b jar 'http://127.0.0.1:3000/api/kv?pattern=rate:*'
//! curl http://127.0.0.1:3000/api/session/stats
//! ```
//!
//! | request | response |
//! |---|---|
//! | `POST /api/auth/login` `{"username","password"}` | `{"success":true}` and a cookie, or 401 |
//! | `GET /api/user/profile` | `{"userId","username"}`, or 401 |
//! | `POST /api/auth/logout` | `{"success":true}` |
//! | `GET /api/session/stats` | `{"success":true,"store","totalSessions","redisStats":{"connected","usingFallback","inMemoryKeys"}}` |
//! | `PUT`, `DELETE /api/cart/{item}`, `GET`, `DELETE /api/cart` | `{"cart":{…}}` |
//! | `GET`, `PUT`, `DELETE /api/kv/{key}`, `?ttl=` in seconds | the value, or 404; `{"success":true}`; `{"deleted"}` |
//! | `GET /api/kv/{key}/exists`, `POST …/expire?ttl=`, `POST …/incr?by=` | `{"exists"}`; `{"exists"}`; `{"value"}`, or 409 |
//! | `GET /api/kv?keys=a,b` | `{"values":{"a":…,"b":null}}` |
//! | `GET /api/kv?pattern=a*&cursor=&count=` | `{"keys":[…],"cursor":null}`, or the cursor of the next page |
//! | `GET /api/kv-status` | `{"ready","connected","usingFallback","inMemoryKeys"}` |
//!
//! Carts and keys need a login. `SESSION_TOUCH=false`: activity does not extend sessions, only changes do.

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    error::Error,
    process::ExitCode,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};
use support::Credentials;
use tower_keep::{
    Key, KeyValue, KeyValueError, Lifetime, Session, SessionError, SessionLayer, Sessions,
    store::{Cursor, OnRecovery, StoreError},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const USER_ID: Key<String> = Key::new("userId");
const USERNAME: Key<String> = Key::new("username");
const CART: Key<BTreeMap<String, u32>> = Key::new("cart");

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let stopped = support::stopped()?;
    let lifetime = lifetime()?;
    let layer =
        SessionLayer::new(support::store(OnRecovery::Merge).await?).cookie(support::cookie()?).lifetime(lifetime);
    let sessions = layer.sessions();
    let state = Erp { values: sessions.key_value()?, sessions: sessions.clone() };
    let store = state.sessions.store_name();
    let app = Router::new()
        .route("/api/cart", get(cart).delete(empty_cart))
        .route("/api/cart/{item}", put(put_into_cart).delete(take_out_of_cart))
        .route("/api/kv", get(find))
        .route("/api/kv/{key}", get(value).put(set).delete(delete))
        .route("/api/kv/{key}/exists", get(exists))
        .route("/api/kv/{key}/expire", post(expire))
        .route("/api/kv/{key}/incr", post(incr))
        .route_layer(layer.clone().require_user()) // all of the above
        .route("/api/auth/login", post(login))
        .route("/api/auth/logout", post(logout))
        .route("/api/user/profile", get(profile))
        .route("/api/session/stats", get(stats))
        .route("/api/kv-status", get(status))
        .with_state(state)
        .layer(layer)
        .route("/metrics", support::metrics::route(sessions)?); // keep it private
    let listener = support::listen(store).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

/// 24 hours from the last request, and at most a month.
fn lifetime() -> Result<Lifetime, Box<dyn Error>> {
    let lifetime = Lifetime::new(DAY, 30 * DAY)?;
    match env::var("SESSION_TOUCH").as_deref() {
        Err(env::VarError::NotPresent) | Ok("" | "true") => Ok(lifetime),
        Ok("false") => Ok(lifetime.touch_every(DAY)),
        _ => Err("SESSION_TOUCH: neither true nor false".into()),
    }
}

#[derive(Clone)]
struct Erp {
    sessions: Sessions,
    values: KeyValue,
}

async fn login(session: Session, Json(credentials): Json<Credentials>) -> Result<Response, SessionError> {
    let Some(username) = credentials.user() else {
        let error = json!({ "success": false, "error": "Invalid credentials" });
        return Ok((StatusCode::UNAUTHORIZED, Json(error)).into_response());
    };
    session.login(&*username)?; // changes the token; then store more about the user
    session.insert(USER_ID, &format!("user-{username}"))?;
    session.insert(USERNAME, &username)?;
    Ok(Json(json!({ "success": true })).into_response())
}

async fn profile(session: Session) -> Result<Response, SessionError> {
    Ok(match session.get(USER_ID)? {
        Some(user_id) => Json(json!({ "userId": user_id, "username": session.get(USERNAME)? })).into_response(),
        None => (StatusCode::UNAUTHORIZED, Json(json!({ "error": "Not authenticated" }))).into_response(),
    })
}

async fn logout(session: Session) -> Result<Json<Value>, SessionError> {
    session.destroy()?;
    Ok(Json(json!({ "success": true })))
}

async fn stats(State(Erp { sessions, values }): State<Erp>) -> Result<Json<Value>, Failed> {
    let total_sessions = sessions.count().await?; // in an outage: those of this process
    let stats = values.stats().await;
    Ok(Json(json!({
        "success": true,
        "store": sessions.store_name(),
        "totalSessions": total_sessions,
        "redisStats": {
            "connected": stats.connected,
            "usingFallback": stats.using_fallback,
            "inMemoryKeys": stats.in_memory_keys,
        },
    })))
}

// Values of the session.

fn cart_of(session: &Session) -> Result<BTreeMap<String, u32>, SessionError> {
    Ok(session.get(CART)?.unwrap_or_default())
}

fn shown(cart: &BTreeMap<String, u32>) -> Json<Value> {
    Json(json!({ "cart": cart }))
}

async fn cart(session: Session) -> Result<Json<Value>, SessionError> {
    Ok(shown(&cart_of(&session)?))
}

async fn put_into_cart(session: Session, Path(item): Path<String>, pieces: String) -> Result<Response, SessionError> {
    let Ok(pieces) = pieces.trim().parse() else {
        return Ok((StatusCode::BAD_REQUEST, "how many?\n").into_response());
    };
    let mut cart = cart_of(&session)?;
    cart.insert(item, pieces);
    session.insert(CART, &cart)?;
    Ok(shown(&cart).into_response())
}

async fn take_out_of_cart(session: Session, Path(item): Path<String>) -> Result<Json<Value>, SessionError> {
    let mut cart = cart_of(&session)?;
    cart.remove(&item);
    session.insert(CART, &cart)?;
    Ok(shown(&cart))
}

async fn empty_cart(session: Session) -> Result<Json<Value>, SessionError> {
    session.remove(CART)?;
    Ok(shown(&BTreeMap::new()))
}

// The key-value service.

#[derive(Deserialize)]
struct Ttl {
    /// In seconds.
    ttl: Option<u64>,
}

#[derive(Deserialize)]
struct By {
    by: Option<i64>,
}

#[derive(Deserialize)]
struct Search {
    keys: Option<String>,
    pattern: Option<String>,
    cursor: Option<String>,
    count: Option<usize>,
}

async fn value(State(erp): State<Erp>, Path(key): Path<String>) -> Result<Response, Failed> {
    Ok(match erp.values.get(&key).await? {
        Some(value) => value.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn set(
    State(erp): State<Erp>,
    Path(key): Path<String>,
    Query(Ttl { ttl }): Query<Ttl>,
    value: Bytes,
) -> Result<Json<Value>, Failed> {
    erp.values.set(&key, value, ttl.map(Duration::from_secs)).await?;
    Ok(Json(json!({ "success": true })))
}

async fn delete(State(erp): State<Erp>, Path(key): Path<String>) -> Result<Json<Value>, Failed> {
    Ok(Json(json!({ "deleted": erp.values.del(&key).await? })))
}

async fn exists(State(erp): State<Erp>, Path(key): Path<String>) -> Result<Json<Value>, Failed> {
    Ok(Json(json!({ "exists": erp.values.exists(&key).await? })))
}

async fn expire(
    State(erp): State<Erp>,
    Path(key): Path<String>,
    Query(Ttl { ttl }): Query<Ttl>,
) -> Result<Response, Failed> {
    let Some(ttl) = ttl else { return Ok((StatusCode::BAD_REQUEST, "ttl=seconds\n").into_response()) };
    let exists = erp.values.expire(&key, Duration::from_secs(ttl)).await?;
    Ok(Json(json!({ "exists": exists })).into_response())
}

async fn incr(
    State(erp): State<Erp>,
    Path(key): Path<String>,
    Query(By { by }): Query<By>,
) -> Result<Json<Value>, Failed> {
    Ok(Json(json!({ "value": erp.values.incr_by(&key, by.unwrap_or(1)).await? })))
}

async fn find(State(erp): State<Erp>, Query(search): Query<Search>) -> Result<Response, Failed> {
    Ok(match search {
        Search { keys: Some(keys), .. } => {
            let keys: Vec<_> = keys.split(',').collect();
            let values = erp.values.mget(&keys).await?.into_iter();
            let values = values.map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned()));
            let values: HashMap<_, _> = keys.into_iter().zip(values).collect();
            Json(json!({ "values": values })).into_response()
        }
        Search { pattern: Some(pattern), cursor, count, .. } => {
            let cursor = Cursor::from(cursor.unwrap_or_default());
            let page = erp.values.scan(&pattern, &cursor, count.unwrap_or(100)).await?;
            let next = page.next.as_ref().map(Cursor::as_str);
            Json(json!({ "keys": page.keys, "cursor": next })).into_response()
        }
        _ => (StatusCode::BAD_REQUEST, "keys=a,b or pattern=a*\n").into_response(),
    })
}

async fn status(State(erp): State<Erp>) -> Json<Value> {
    let stats = erp.values.stats().await;
    Json(json!({
        "ready": erp.values.is_ready().await,
        "connected": stats.connected,
        "usingFallback": stats.using_fallback,
        "inMemoryKeys": stats.in_memory_keys,
    }))
}

/// The key-value store failed.
enum Failed {
    Value(KeyValueError),
    Store(StoreError),
}

impl From<KeyValueError> for Failed {
    fn from(error: KeyValueError) -> Self {
        Self::Value(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let (status, text) = match &self {
            Self::Value(error) if !error.is_unavailable() => (StatusCode::CONFLICT, error.to_string()),
            Self::Value(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Self::Store(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        };
        let mut response = (status, Json(json!({ "error": text }))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
