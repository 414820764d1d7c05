//! Users see where they are logged in, and end unknown sessions: immediately, on every instance.
//!
//! ```text
//! cargo run --example devices
//! curl -c jar -H 'content-type: application/json' -d '{"username":"ana","password":"ana"}' http://127.0.0.1:3000/login
//! curl -b jar http://127.0.0.1:3000/sessions
//! curl -b jar -X DELETE 'http://127.0.0.1:3000/sessions?except=current'
//! ```

mod support;

use std::{error::Error, net::SocketAddr, process::ExitCode};

use axum::{
    Json, Router,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::StatusCode,
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::{
    ClientInfo, Rejection, Session, SessionId, SessionInfo, SessionLayer, Sessions, Timestamp, store::OnRecovery,
};

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let stopped = support::stopped()?;
    let layer = SessionLayer::new(support::store(OnRecovery::Merge).await?)
        .cookie(support::cookie()?)
        .client_info(ClientInfo::new());
    let sessions = layer.sessions();
    let store = sessions.store_name();
    let app = Router::new()
        .route("/login", post(support::login))
        .route("/logout", post(support::logout))
        .route("/sessions", get(list).delete(end_all))
        .route("/sessions/{id}", delete(end))
        .with_state(sessions.clone())
        .layer(layer)
        .route("/metrics", support::metrics::route(sessions)?) // keep it private
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = support::listen(store).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn list(session: Session, State(sessions): State<Sessions>) -> Result<Json<Value>, Rejection> {
    let user = session.require_user().await?;
    let current = session.id()?;
    let mut list = sessions.list(&user).await?;
    list.sort_by_key(|info| std::cmp::Reverse(info.last_seen()));
    Ok(list.iter().map(|info| shown(info, current)).collect::<Value>().into())
}

fn shown(info: &SessionInfo, current: Option<SessionId>) -> Value {
    json!({
        "id": info.id(),
        "created_at": Timestamp::from(info.created_at()).to_string(),
        "last_seen": Timestamp::from(info.last_seen()).to_string(),
        "ip": info.metadata().ip(),
        "user_agent": info.metadata().user_agent(),
        "current": Some(info.id()) == current,
    })
}

async fn end(
    session: Session,
    State(sessions): State<Sessions>,
    id: Result<Path<SessionId>, PathRejection>,
) -> Result<StatusCode, Rejection> {
    let user = session.require_user().await?;
    let Ok(Path(id)) = id else { return Ok(StatusCode::NOT_FOUND) };
    let sessions = sessions.for_client(session.client_ip());
    let is_own = sessions.get(&id).await?.is_some_and(|info| info.user() == Some(&user));
    Ok(if is_own && sessions.revoke(&id).await? { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    except: Option<Except>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Except {
    Current,
}

async fn end_all(
    session: Session,
    State(sessions): State<Sessions>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<StatusCode, Rejection> {
    let user = session.require_user().await?;
    let Ok(Query(Which { except })) = which else { return Ok(StatusCode::BAD_REQUEST) };
    let sessions = sessions.for_client(session.client_ip());
    match (except, session.id()?) {
        (Some(Except::Current), Some(current)) => sessions.revoke_others(&user, &current).await?,
        _ => sessions.revoke_user(&user).await?,
    };
    Ok(StatusCode::NO_CONTENT)
}
