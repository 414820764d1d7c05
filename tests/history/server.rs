//! A process that serves.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_keep::{
    Consumed, Limits, NewSession, Session, SessionCookie, SessionError, SessionLayer, Sessions, Token, WhenFull,
    store::{
        StoreError,
        redis::{RedisConfig, RedisStore},
    },
};

use super::LIMIT;

const ROLE: &str = "TOWER_KEEP_HISTORY_SERVER";
const UNGUARDED: &str = "TOWER_KEEP_HISTORY_UNGUARDED";

/// A process of this binary. Killed when dropped.
pub struct Server {
    child: Child,
    pub url: String,
}

impl Server {
    pub fn start(redis: &str, guarded: bool) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["server::process", "--exact", "--nocapture"]).env(ROLE, redis);
        if !guarded {
            command.env(UNGUARDED, "yes");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = lines.map(Result::unwrap).find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        Self { child, url: listening.expect("the server listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn layer(redis: &str, guarded: bool) -> SessionLayer {
    let config = RedisConfig::from_url(redis).unwrap();
    let store = if guarded { RedisStore::new(config) } else { RedisStore::without_guards(config) };
    SessionLayer::new(store)
        .cookie(SessionCookie::development())
        .limits(Limits::per_user(LIMIT, WhenFull::EvictLeastRecentlyUsed))
}

/// Not a test, unless it is asked to be a server.
#[test]
fn process() {
    let Ok(redis) = env::var(ROLE) else { return };
    let layer = layer(&redis, env::var_os(UNGUARDED).is_none());
    let sessions = layer.sessions();
    let app = Router::new()
        .route("/login/{user}", post(login))
        .route("/write/{key}/{value}", post(write))
        .route("/read", get(read))
        .route("/rotate", post(rotate))
        .route("/logout", post(logout))
        .route("/revoke/{id}", post(revoke))
        .route("/revoke_user/{user}", post(revoke_user))
        .route("/list/{user}", get(list))
        .route("/ticket", post(ticket))
        .route("/use/{token}", post(use_ticket))
        .layer(axum::Extension(sessions))
        .layer(layer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nlistening on http://{}", listener.local_addr().unwrap());
        // Whoever started it may be gone without a word.
        tokio::select! {
            _ = axum::serve(listener, app) => {}
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
    });
}

/// The answer to somebody whose session has ended, or who has none.
fn refused() -> Response {
    StatusCode::UNAUTHORIZED.into_response()
}

fn failed(error: StoreError) -> Response {
    SessionError::from(error).into_response()
}

type Sessions_ = axum::Extension<Sessions>;

async fn saved(session: &Session) -> Result<Json<Value>, Response> {
    session.save().await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!({"id": session.id().map_err(IntoResponse::into_response)?})))
}

async fn login(session: Session, Path(user): Path<String>) -> Result<Json<Value>, Response> {
    session.login(user).map_err(IntoResponse::into_response)?;
    saved(&session).await
}

fn is_somebodys(session: &Session) -> bool {
    matches!(session.user(), Ok(Some(_)))
}

async fn write(session: Session, Path((key, value)): Path<(String, u64)>) -> Result<Json<Value>, Response> {
    if !is_somebodys(&session) {
        return Err(refused());
    }
    session.insert(&key, &value).map_err(IntoResponse::into_response)?;
    saved(&session).await
}

async fn read(session: Session) -> Result<Json<Value>, Response> {
    if !is_somebodys(&session) {
        return Err(refused());
    }
    let values: Value = session.typed().get().map_err(IntoResponse::into_response)?;
    Ok(Json(json!({"id": session.id().map_err(IntoResponse::into_response)?, "values": values})))
}

async fn rotate(session: Session) -> Result<Json<Value>, Response> {
    if !is_somebodys(&session) {
        return Err(refused());
    }
    session.rotate().map_err(IntoResponse::into_response)?;
    saved(&session).await
}

async fn logout(session: Session) -> Result<Json<Value>, Response> {
    if !is_somebodys(&session) {
        return Err(refused());
    }
    session.logout().map_err(IntoResponse::into_response)?;
    session.save().await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!({})))
}

async fn revoke(sessions: Sessions_, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    let id = id.parse().map_err(|_| StatusCode::BAD_REQUEST.into_response())?;
    Ok(Json(json!(sessions.revoke(&id).await.map_err(failed)?)))
}

async fn revoke_user(sessions: Sessions_, Path(user): Path<String>) -> Result<Json<Value>, Response> {
    Ok(Json(json!(sessions.revoke_user(&user).await.map_err(failed)?)))
}

async fn list(sessions: Sessions_, Path(user): Path<String>) -> Result<Json<Value>, Response> {
    let listed = sessions.list(&user).await.map_err(failed)?;
    Ok(Json(json!(listed.iter().map(|session| session.id()).collect::<Vec<_>>())))
}

async fn ticket(sessions: Sessions_) -> Result<Json<Value>, Response> {
    let token = sessions.create(NewSession::anonymous()).await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!(token.expose())))
}

async fn use_ticket(sessions: Sessions_, Path(token): Path<String>) -> Result<Json<Value>, Response> {
    let token = Token::parse(token).map_err(|_| StatusCode::BAD_REQUEST.into_response())?;
    let used = sessions.consume(&token).await.map_err(failed)?;
    Ok(Json(json!(matches!(used, Consumed::Now(_)))))
}
