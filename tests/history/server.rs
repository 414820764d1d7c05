//! A server process.

use std::{
    env,
    io::{self, BufRead, BufReader, Read},
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
use bb8::Pool;
use bb8_redis::RedisConnectionManager;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};
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
    /// See [`config`] for the format of `redis`.
    pub fn start(redis: &str, guarded: bool) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["server::process", "--exact", "--nocapture"]).env(ROLE, redis);
        if !guarded {
            command.env(UNGUARDED, "yes");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let listening = lines.find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        // A process that runs for a minute writes progress, and exits if nobody reads it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: listening.expect("the server listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Parses a URL with or without `pool`, or `sentinel` or `cluster`, a number of replicas, and addresses. If a server that dies may lose acknowledged writes,
/// replicas must confirm ends and rotations.
fn config(redis: &str) -> RedisConfig {
    let mut words = redis.split(' ');
    let mut next = || words.next().unwrap();
    match next() {
        "sentinel" => {
            let (replicas, master) = (next().parse().unwrap(), next());
            RedisConfig::sentinel(words, master).unwrap().wait_for_replicas(replicas)
        }
        "cluster" => {
            let replicas = next().parse().unwrap();
            RedisConfig::cluster(words).unwrap().wait_for_replicas(replicas)
        }
        "pool" => {
            let manager = RedisConnectionManager::new(next()).unwrap();
            RedisConfig::from_pool(Pool::builder().max_size(2).build_unchecked(manager))
        }
        url => RedisConfig::from_url(url).unwrap(),
    }
}

pub fn layer(redis: &str, guarded: bool) -> SessionLayer {
    let config = config(redis);
    let store = if guarded { RedisStore::new(config) } else { RedisStore::without_guards(config) };
    SessionLayer::new(store)
        .cookie(SessionCookie::development())
        .limits(Limits::per_user(LIMIT, WhenFull::EvictLeastRecentlyUsed))
        // Clients reuse old tokens, which must be refused without ending the session after half a minute.
        .rotation_grace(Duration::from_secs(24 * 3600))
}

/// Not a test, unless it is started as a server.
#[test]
fn process() {
    let Ok(redis) = env::var(ROLE) else { return };
    // If the parent is gone, its end of the pipe is closed.
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let layer = layer(&redis, env::var_os(UNGUARDED).is_none());
    let sessions = layer.sessions();
    let app = Router::new()
        .route("/visit", post(visit))
        .route("/login/{user}", post(login))
        .route("/relogin/{user}", post(login_again))
        .route("/write/{key}/{value}/{pause}", post(write))
        .route("/read", get(read))
        .route("/rotate", post(rotate))
        .route("/logout", post(logout))
        .route("/revoke/{id}", post(revoke))
        .route("/revoke_user/{user}", post(revoke_user))
        .route("/list/{user}", get(list))
        .route("/ticket", post(ticket))
        .route("/use/{token}", post(use_ticket))
        .route("/overwrites", get(overwrites))
        .layer(axum::Extension(sessions))
        .layer(layer);
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nlistening on http://{}", listener.local_addr().unwrap());
        axum::serve(listener, app).await.unwrap();
    });
}

/// The response without a live session.
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

/// An anonymous session.
async fn visit(session: Session) -> Result<Json<Value>, Response> {
    session.insert("visited", &true).map_err(IntoResponse::into_response)?;
    saved(&session).await
}

async fn login(session: Session, Path(user): Path<String>) -> Result<Json<Value>, Response> {
    session.login(user).map_err(IntoResponse::into_response)?;
    saved(&session).await
}

async fn login_again(session: Session, user: Path<String>) -> Result<Json<Value>, Response> {
    if !has_user(&session) {
        return Err(refused());
    }
    login(session, user).await
}

fn has_user(session: &Session) -> bool {
    matches!(session.user(), Ok(Some(_)))
}

/// Returns the value that it read.
async fn write(session: Session, Path((key, value, pause)): Path<(String, u64, u64)>) -> Result<Json<Value>, Response> {
    if !has_user(&session) {
        return Err(refused());
    }
    let was: Option<u64> = session.get(&*key).map_err(IntoResponse::into_response)?;
    sleep(Duration::from_millis(pause)).await;
    session.insert(&*key, &value).map_err(IntoResponse::into_response)?;
    session.save().await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!(was)))
}

async fn read(session: Session) -> Result<Json<Value>, Response> {
    if !has_user(&session) {
        return Err(refused());
    }
    let mut values: Value = session.typed().get().map_err(IntoResponse::into_response)?;
    values.as_object_mut().map(|values| values.remove("visited"));
    Ok(Json(json!({"id": session.id().map_err(IntoResponse::into_response)?, "values": values})))
}

async fn rotate(session: Session) -> Result<Json<Value>, Response> {
    if !has_user(&session) {
        return Err(refused());
    }
    session.rotate().map_err(IntoResponse::into_response)?;
    saved(&session).await
}

async fn logout(session: Session) -> Result<Json<Value>, Response> {
    if !has_user(&session) {
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

/// The number of conflicts in which this process reported an overwritten value.
async fn overwrites(sessions: Sessions_) -> Json<Value> {
    Json(json!(sessions.stats().overwrites))
}
