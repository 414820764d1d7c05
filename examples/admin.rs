//! Administrator sessions that several instances share: in Redis if the environment configures it, otherwise in memory. Memory also serves
//! while Redis is down.
//!
//! ```text
//! cargo run --example admin
//! curl -c jar -H 'content-type: application/json' -d '{"username":"admin","password":"admin"}' http://127.0.0.1:3000/admin/login
//! curl -b jar http://127.0.0.1:3000/admin
//! ```
//! `/admin/operator` is the operator page, for every logged-in user; `/metrics` is for Prometheus.
//!
//! To move to Redis without logging anybody out, export the sessions in memory, and import them:
//! ```text
//! curl -b jar -X POST http://127.0.0.1:3000/admin/sessions/export > sessions.jsonl
//! REDIS_URL=redis://127.0.0.1:6379 SESSION_IMPORT=sessions.jsonl cargo run --example admin
//! ```

mod support;

use std::{
    env,
    error::Error,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::ExitCode,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio_stream::StreamExt;
use tower_keep::{
    Imported, Rejection, Session, SessionLayer, Sessions, Timestamp, operator::OperatorPage, store::OnRecovery,
};

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let stopped = support::stopped()?;
    let store = support::store(OnRecovery::Merge).await?;
    let layer = SessionLayer::new(store.clone()).cookie(support::cookie()?);
    let sessions = layer.sessions();
    if let Some(path) = env::var_os("SESSION_IMPORT").filter(|path| !path.is_empty()) {
        let path = Path::new(&path);
        import(&sessions, path).await.map_err(|error| format!("SESSION_IMPORT={}: {error}", path.display()))?;
    }
    // Every user of this example is an administrator, and may see all sessions.
    let page = OperatorPage::new(sessions.clone())
        .fallback(move || store.stats())
        .router()
        .layer(layer.clone().require_user());
    let app = Router::new()
        .nest("/admin/operator", page)
        .route("/admin", get(admin))
        .route("/admin/login", post(support::login))
        .route("/admin/logout", post(support::logout))
        .route("/admin/sessions/export", post(export))
        .with_state(sessions.clone())
        .layer(layer)
        .route_service("/health/{probe}", sessions.health_service())
        .route("/metrics", support::metrics::route(sessions.clone())?); // keep it private
    let listener = support::listen(sessions.store_name()).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn admin(session: Session) -> Result<Json<serde_json::Value>, Rejection> {
    let user = session.require_user().await?;
    let since = session.created_at()?.map(|at| Timestamp::from(at).to_string());
    Ok(Json(json!({ "user": user, "since": since })))
}

/// One line per session. Personal data, and no credential.
async fn export(session: Session, State(sessions): State<Sessions>) -> Result<Response, Rejection> {
    session.require_user().await?;
    let headers = [(header::CONTENT_TYPE, "application/jsonl"), (header::CACHE_CONTROL, "no-store")];
    let lines = sessions.export().map(|line| line.map(|line| line + "\n"));
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn import(sessions: &Sessions, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut alive = 0;
    for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let imported = sessions.import(&line).await.map_err(|error| format!("line {}: {error}", number + 1))?;
        alive += usize::from(matches!(imported, Imported::Created | Imported::Updated | Imported::There));
    }
    tracing::info!(sessions = alive, "imported");
    Ok(())
}
