//! A chat over WebSockets. A socket closes when its user logs out, in another tab or on another instance, and when the session expires.
//!
//! ```text
//! cargo run --example websocket
//! ```
//! Open <http://127.0.0.1:3000> in two tabs, log in (the password equals the name), chat, and log out in one of them. With
//! `REDIS_URL`, several instances share the sessions; each has its own chat.

mod support;

use std::{error::Error, pin::pin, process::ExitCode, sync::Arc};

use axum::{
    Json, Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};
use tower_keep::{
    MemoryStore, Session, SessionLayer, User,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let stopped = support::stopped()?;
    // With shared events, a logout on another instance closes a socket within half a second.
    let store: Arc<dyn SessionStore> = match RedisConfig::from_env()? {
        Some(config) => Arc::new(RedisStore::new(config.share_events(10_000))),
        None => Arc::new(MemoryStore::new()),
    };
    let name = store.name();
    let sessions = SessionLayer::new(store).cookie(support::cookie()?);
    let app = Router::new()
        .route("/chat", get(chat).route_layer(sessions.clone().require_user()))
        .route("/", get(async || Html(include_str!("websocket.html"))))
        .route("/me", get(async |user: Option<User>| Json(json!({ "user": user.map(|user| user.to_string()) }))))
        .route("/login", post(support::login))
        .route("/logout", post(support::logout))
        .layer(sessions)
        .with_state(Sender::<String>::new(100));
    let listener = support::listen(name).await?;
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn chat(
    session: Session,
    user: User,
    headers: HeaderMap,
    State(room): State<Sender<String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    // Browsers send cookies with WebSockets of other sites, too, unless `SameSite` forbids it.
    if !is_from_here(&headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let messages = room.subscribe(); // whoever is connected misses nothing
    upgrade.on_upgrade(async move |mut socket| {
        let reason = talk(&mut socket, &session, &user, &room, messages).await;
        let frame = CloseFrame { code: close_code::POLICY, reason: reason.into() };
        let _ = socket.send(Message::Close(Some(frame))).await; // the client may be gone
    })
}

/// Returns why the socket closes.
async fn talk(
    socket: &mut WebSocket,
    session: &Session,
    user: &User,
    room: &Sender<String>,
    mut messages: Receiver<String>,
) -> String {
    let mut ended = pin!(session.until_ended());
    loop {
        tokio::select! {
            ended = &mut ended => {
                return match ended {
                    Ok(Some(reason)) => reason.to_string(),
                    _ => "the session is gone".to_owned(),
                };
            }
            received = socket.recv() => match received {
                Some(Ok(Message::Text(text))) => {
                    // Whoever writes is active: the session is extended, as by a request.
                    match session.touch().await {
                        Ok(true) => drop(room.send(format!("{user}: {text}"))),
                        Ok(false) => return "the session has ended".to_owned(),
                        Err(_) => drop(socket.send("not sent: try again".into()).await),
                    }
                }
                Some(Ok(_)) => {} // pings are answered by axum
                Some(Err(_)) | None => return String::new(),
            },
            message = messages.recv() => match message {
                Ok(message) => {
                    if socket.send(message.into()).await.is_err() {
                        return String::new();
                    }
                }
                Err(RecvError::Lagged(_)) => {} // a slow reader misses messages
                Err(RecvError::Closed) => return "the chat is over".to_owned(),
            },
        }
    }
}

fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (text(header::ORIGIN), text(header::HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from == host),
        (None, _) => true, // not a browser
        (Some(_), None) => false,
    }
}
