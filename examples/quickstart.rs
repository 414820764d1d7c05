//! Sessions in an axum app, in memory or, with `REDIS_URL` or its parts in the environment, in Redis.
//!
//! ```text
//! cargo run --example quickstart
//! ```

mod support;

use std::{error::Error, process::ExitCode};

use axum::{
    Form, Json, Router,
    extract::{FromRequest, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use support::Credentials;
use tower_http::csrf::CsrfLayer;
use tower_keep::{Bearer, Rejection, Session, SessionError, SessionLayer, Sessions, store};

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let layer = SessionLayer::new(store::from_env()?).cookie(support::cookie()?).bearer(Bearer::new());
    let sessions = layer.sessions();
    let store = sessions.store_name();
    let app = Router::new()
        .route("/", get(home))
        .route("/me", get(me))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/token", post(token))
        .route("/public", get(async || "open to everybody, whatever happens to the sessions\n"))
        .route("/health", get(health))
        .route_service("/health/{probe}", sessions.health_service()) // live, ready, and a report for operators
        .with_state(sessions.clone())
        .layer(layer)
        .layer(CsrfLayer::new()) // refuses what the pages of other sites send
        .route("/metrics", support::metrics::route(sessions)?); // keep it private
    let stopped = support::stopped()?;
    let listener = support::listen(store).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn home(session: Session) -> Result<Html<String>, SessionError> {
    let body = match session.user()? {
        None => r#"<p>Who are you?</p>
<form method="post" action="/login"><input name="user" placeholder="your name" required autofocus><button>Log in</button></form>"#
            .to_owned(),
        Some(user) => format!(
            r#"<p>Hello, <strong>{}</strong>! Visits to <a href="/me">/me</a> in this session: {}.</p>
<form method="post" action="/logout"><button>Log out</button></form>"#,
            escape(&user),
            session.get::<u64>("visits")?.unwrap_or(0),
        ),
    };
    Ok(Html(page(&body)))
}

#[derive(Deserialize)]
struct Login {
    user: String,
}

/// From the form of the page, or as JSON with the password of the other examples.
async fn login(session: Session, request: Request) -> Result<Response, SessionError> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/json")) {
        return match Json::<Credentials>::from_request(request, &()).await {
            Ok(credentials) => support::login(session, credentials).await,
            Err(rejection) => Ok(rejection.into_response()),
        };
    }
    let user = match Form::<Login>::from_request(request, &()).await {
        Ok(Form(Login { user })) => user,
        Err(rejection) => return Ok(rejection.into_response()),
    };
    if user.trim().is_empty() {
        return Ok((StatusCode::BAD_REQUEST, "a user needs a name\n").into_response());
    }
    session.login(user)?;
    Ok(Redirect::to("/").into_response())
}

async fn logout(session: Session) -> Result<Redirect, SessionError> {
    session.logout()?;
    Ok(Redirect::to("/"))
}

async fn me(session: Session) -> Result<Response, Rejection> {
    let user = session.require_user().await?; // or 401
    let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
    session.insert("visits", &visits)?;
    Ok(Json(json!({ "user": user, "visits": visits, "session_id": session.id()? })).into_response())
}

/// A separate session for a script: `curl -H "Authorization: Bearer $TOKEN" …/me`.
async fn token(State(sessions): State<Sessions>, Json(Login { user }): Json<Login>) -> Result<Response, SessionError> {
    if user.trim().is_empty() {
        return Ok((StatusCode::BAD_REQUEST, "a user needs a name\n").into_response());
    }
    let token = sessions.create(user).await?;
    Ok(([("cache-control", "no-store")], Json(json!({ "token": token.expose() }))).into_response())
}

async fn health(State(sessions): State<Sessions>) -> Json<serde_json::Value> {
    let health = sessions.health().await;
    Json(json!({ "status": health.status.as_str(), "store": health.store }))
}

fn page(body: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>tower-keep</title>
<style>
  body {{ font: 1.1rem/1.6 system-ui, sans-serif; color: #23303d; background: #eef1f5; margin: 0; min-height: 100vh; display: grid; place-items: center }}
  main {{ background: #fff; padding: 2rem 2.5rem; border-radius: 1rem; box-shadow: 0 .5rem 2rem #23303d22; max-width: 26rem }}
  h1 {{ font-size: 1.3rem; margin: 0 0 1rem }}
  form {{ display: flex; gap: .5rem }}
  input, button {{ font: inherit; padding: .4rem .8rem; border: 1px solid #b9c3cf; border-radius: .5rem; min-width: 0 }}
  button {{ background: #2b5f8a; border-color: #2b5f8a; color: #fff; cursor: pointer }}
</style>
<main>
<h1>tower-keep</h1>
{body}
</main>
</html>
"#
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
