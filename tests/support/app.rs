//! A service whose handler does what the request says: `POST /do` with a list of steps returns the list of their results.
//!
//! ```json
//! [["insert", "k", 1], ["get", "k"], ["login", "ana"], ["save"], ["status", 500]]
//! ```

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tower_keep::{Lifetime, Session, SessionError, SessionLayer};

use super::client::Client;

/// A running instance of the service. Stopped when dropped.
pub struct App {
    addr: SocketAddr,
    gates: Gates,
    server: JoinHandle<()>,
}

/// Points where a handler waits for the test.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<HashMap<String, Arc<Gate>>>>);

#[derive(Default)]
struct Gate {
    reached: Notify,
    opened: Notify,
}

impl Gates {
    fn get(&self, name: &str) -> Arc<Gate> {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }
}

impl App {
    /// `layer` around everything.
    pub async fn start(layer: SessionLayer) -> Self {
        Self::serve(|router| router.layer(layer)).await
    }

    /// With `/me` in addition, which returns the session's user: see [`who`].
    pub async fn with_me(layer: SessionLayer) -> Self {
        Self::serve(|router| router.route("/me", get(me).post(me)).layer(layer)).await
    }

    /// With `wrap` around the routes.
    pub async fn serve(wrap: impl FnOnce(Router) -> Router) -> Self {
        let gates = Gates::default();
        let router = Router::new()
            .route("/public", get(async || "public"))
            .route("/do", post(perform))
            .with_state(gates.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = wrap(router);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, gates, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A new client.
    pub fn client(&self) -> Client {
        Client::new(&self.url())
    }

    /// Waits until a handler is at the step `["gate", name]`.
    pub async fn reached(&self, name: &str) {
        self.gates.get(name).reached.notified().await;
    }

    /// Releases one handler at the gate, now or later.
    pub fn open(&self, name: &str) {
        self.gates.get(name).opened.notify_one();
    }
}

/// The session of a handler that keeps it, as a socket does.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Option<Session>>>);

impl Kept {
    /// The handler.
    pub fn handler(&self) -> axum::routing::MethodRouter {
        let kept = self.clone();
        get(async move |session: Session| *kept.0.lock().unwrap() = Some(session))
    }

    /// The session of the last request.
    pub fn session(&self) -> Session {
        self.0.lock().unwrap().take().unwrap()
    }
}

pub async fn me(session: Session) -> Result<String, SessionError> {
    Ok(session.user()?.as_deref().unwrap_or("nobody").to_owned())
}

/// The user that the server sees for a request with these headers.
pub async fn who(app: &App, headers: &[(&str, &str)]) -> String {
    let reply = app.client().request(Method::GET, "/me", headers, Bytes::new()).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply.text()
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Client {
    /// Performs `steps`, which must succeed; returns their results.
    pub async fn perform(&self, steps: Value) -> Vec<Value> {
        let reply = self.post("/do", &steps).await;
        assert_eq!(reply.status, StatusCode::OK, "{steps}: {reply:?}");
        match reply.json() {
            Value::Array(results) => results,
            other => panic!("{other}"),
        }
    }

    /// The result of the single step.
    pub async fn one(&self, step: Value) -> Value {
        self.perform(json!([step])).await.remove(0)
    }
}

async fn perform(
    State(gates): State<Gates>,
    session: axum::Extension<Session>,
    Json(steps): Json<Vec<Vec<Value>>>,
) -> Result<Response, Response> {
    // Loads at the first step that is not "unloaded": earlier steps use a session that is not loaded.
    let mut status = StatusCode::OK;
    let mut headers = Vec::new();
    let mut results = Vec::new();
    let mut loaded = false;
    for step in &steps {
        let name = step[0].as_str().unwrap();
        if !loaded && !matches!(name, "unloaded" | "gate" | "status" | "header") {
            session.load().await.map_err(IntoResponse::into_response)?;
            loaded = true;
        }
        match name {
            "gate" => {
                let gate = gates.get(text(&step[1]));
                gate.reached.notify_one();
                gate.opened.notified().await;
                results.push(Value::Null);
            }
            "status" => status = StatusCode::from_u16(step[1].as_u64().unwrap() as u16).unwrap(),
            "header" => headers.push((text(&step[1]).to_owned(), text(&step[2]).to_owned())),
            _ => results.push(act(&session, name, &step[1..]).await.map_err(IntoResponse::into_response)?),
        }
    }
    let mut response = (status, Json(results)).into_response();
    for (name, value) in headers {
        let name = http::HeaderName::try_from(name).unwrap();
        response.headers_mut().append(name, HeaderValue::try_from(value).unwrap());
    }
    Ok(response)
}

async fn act(session: &Session, name: &str, args: &[Value]) -> Result<Value, SessionError> {
    Ok(match name {
        "load" => Value::Null,
        "get" => session.get::<Value>(text(&args[0]))?.unwrap_or_default(),
        "contains" => json!(session.contains(text(&args[0]))?),
        "insert" => json!(session.insert(text(&args[0]), &args[1])?),
        "remove" => json!(session.remove(text(&args[0]))?),
        "take" => session.take::<Value>(text(&args[0]))?.unwrap_or_default(),
        "clear" => json!(session.clear()?),
        "login" => json!(session.login(text(&args[0]))?),
        "logout" => json!(session.logout()?),
        "destroy" => json!(session.destroy()?),
        "rotate" => json!(session.rotate()?),
        "save" => json!(session.save().await?),
        "user" => json!(session.user()?),
        "consume" => json!(session.consume().await?),
        "ended" => json!(session.ended()?),
        "set_metadata" => json!(session.set_metadata(text(&args[0]), args[1].as_str())?),
        "metadata" => json!(session.metadata()?),
        "id" => json!(session.id()?),
        "token" => json!(session.token()?.map(|token| token.expose().to_owned())),
        "is_new" => json!(session.is_new()?),
        "is_degraded" => json!(session.is_degraded()),
        "created_at" => millis(session.created_at()?),
        "last_seen" => millis(session.last_seen()?),
        "expires_at" => millis(session.expires_at()?),
        // ["lifetime", idle seconds, absolute seconds, persistent]
        "lifetime" => {
            let seconds = |arg: &Value| Duration::from_secs(arg.as_u64().unwrap());
            let lifetime = Lifetime::new(seconds(&args[0]), seconds(&args[1])).unwrap();
            json!(session.set_lifetime(lifetime.persistent(args[2].as_bool().unwrap()))?)
        }
        // The results of the accessors before the session is loaded.
        "unloaded" => match session.get::<Value>("any") {
            Err(SessionError::NotLoaded) => json!("NotLoaded"),
            other => json!(format!("{other:?}")),
        },
        other => panic!("no such step: {other}"),
    })
}

fn millis(time: Option<SystemTime>) -> Value {
    json!(time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}
