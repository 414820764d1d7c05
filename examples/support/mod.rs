//! The common part of the example servers: listen on `ADDR`, stop on a signal, and report configuration errors in
//! one line.

#![allow(dead_code)] // each example uses a part

pub mod metrics;

use std::{env, error::Error, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{net::TcpListener, signal};
use tower_keep::{
    InvalidSessionSecret, Session, SessionCookie, SessionError, SessionSecret,
    store::{self, Fallback, FallbackMode, OnRecovery},
};

/// Turns the result of a server into an exit code.
pub fn exit(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error.
pub fn log() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
}

/// The address in `ADDR`, or 127.0.0.1:3000.
pub fn addr() -> String {
    let addr = env::var_os("ADDR").filter(|addr| !addr.is_empty());
    addr.map_or("127.0.0.1:3000".into(), |addr| addr.to_string_lossy().into_owned())
}

/// Listens, and prints the address and the store.
pub async fn listen(store: &str) -> Result<TcpListener, Box<dyn Error>> {
    let addr = addr();
    let listener = TcpListener::bind(&addr).await.map_err(|error| format!("ADDR={addr}: {error}"))?;
    match addr.strip_suffix(":0") {
        Some(_) => println!("listening on http://{}", listener.local_addr()?), // with the actual port
        None => println!("listening on http://{addr}"),
    }
    tracing::info!(store, "sessions");
    Ok(listener)
}

/// Completes on Ctrl-C or SIGTERM, which from this call on no longer kill the process. Requests then have five seconds to end, or
/// until the next signal.
pub fn stopped() -> Result<impl Future<Output = ()>, Box<dyn Error>> {
    #[cfg(unix)]
    {
        use signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tokio::spawn(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    () = tokio::time::sleep(Duration::from_secs(5)) => {}
                }
                std::process::exit(0);
            });
        })
    }
    #[cfg(not(unix))]
    Ok(async { drop(signal::ctrl_c().await) })
}

/// Redis or memory, as the environment configures. Memory also serves while Redis is down, from the start or later.
pub async fn store(on_recovery: OnRecovery) -> Result<Arc<Fallback>, Box<dyn Error>> {
    let store = Fallback::new(store::from_env()?, FallbackMode::Memory { on_recovery });
    store.start().await;
    let store = Arc::new(store);
    let watched = store.clone();
    tokio::spawn(async move { watched.watch().await }); // for the lifetime of the process
    Ok(store)
}

/// The session cookie for plain HTTP on localhost. Behind TLS, use the default cookie. Signed if `SESSION_SECRET`
/// is set.
pub fn cookie() -> Result<SessionCookie, InvalidSessionSecret> {
    Ok(SessionCookie::development().signed(SessionSecret::from_env()?))
}

/// The body of a login.
#[derive(Deserialize)]
pub struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    /// The user, if the password is right: in the examples it equals the name.
    pub fn user(self) -> Option<String> {
        (!self.username.is_empty() && self.password == self.username).then_some(self.username)
    }
}

/// Logs the user in, or answers 401.
pub async fn login(session: Session, Json(credentials): Json<Credentials>) -> Result<Response, SessionError> {
    let Some(user) = credentials.user() else { return Ok(StatusCode::UNAUTHORIZED.into_response()) };
    session.login(user.as_str())?;
    Ok(Json(json!({ "user": user })).into_response())
}

/// Logs the user out.
pub async fn logout(session: Session) -> Result<StatusCode, SessionError> {
    session.logout()?;
    Ok(StatusCode::NO_CONTENT)
}
