//! Sessions in a plain hyper server, without a framework.
//!
//! ```text
//! cargo run --example hyper
//! curl -i -c jar -d '{"user":"ana"}' http://127.0.0.1:3000/login
//! curl -i -b jar http://127.0.0.1:3000/me
//! ```

mod support;

use std::{error::Error, process::ExitCode};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::json;
use support::{
    Credentials,
    metrics::{self, Metrics},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_keep::{Bearer, Rejection, Session, SessionLayer, store};

#[tokio::main]
async fn main() -> ExitCode {
    support::log();
    support::exit(serve().await)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let layer = SessionLayer::new(store::from_env()?).cookie(support::cookie()?).bearer(Bearer::new());
    let store = layer.sessions().store_name();
    let metrics = Metrics::install(layer.sessions())?;
    let with_sessions = ServiceBuilder::new().layer(layer).service(service_fn(route));
    let service = TowerToHyperService::new(service_fn(move |request: Request<Incoming>| {
        let (with_sessions, metrics) = (with_sessions.clone(), metrics.clone());
        async move {
            match (request.method(), request.uri().path()) {
                (&Method::GET, "/metrics") => scrape(&metrics).await, // keep it private
                _ => with_sessions.oneshot(request).await,
            }
        }
    }));

    let mut stopped = std::pin::pin!(support::stopped()?);
    let listener = support::listen(store).await?;
    let server = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue, // the client has disconnected
            },
            () = &mut stopped => break,
        };
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service.clone()).into_owned();
        tokio::spawn(connections.watch(connection));
    }
    connections.shutdown().await;
    Ok(())
}

type Answer = Response<Full<Bytes>>;

async fn scrape(metrics: &Metrics) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    let body = metrics.render().await;
    Ok(Response::builder().header(header::CONTENT_TYPE, metrics::CONTENT_TYPE).body(body.into())?)
}

/// A rejection is a complete response. Any other error of a handler is a 500.
async fn route(request: Request<Incoming>) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    handle(request).await.or_else(|error| match error.downcast::<Rejection>() {
        Ok(rejection) => Ok(rejection.into_response()),
        Err(error) => {
            tracing::error!(error, "request failed");
            Ok(status(StatusCode::INTERNAL_SERVER_ERROR))
        }
    })
}

async fn handle(request: Request<Incoming>) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    let session = request.extensions().get::<Session>().cloned().ok_or("no session layer")?;
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/public") => Ok(Response::new("open to everybody\n".into())),
        (&Method::GET, "/me") => {
            let user = session.require_user().await?; // or 401
            let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
            session.insert("visits", &visits)?;
            let body = json!({ "user": user, "visits": visits, "session_id": session.id()? });
            Ok(Response::builder().header(header::CONTENT_TYPE, "application/json").body(body.to_string().into())?)
        }
        (&Method::POST, "/login") => {
            session.load().await?;
            let Ok(body) = Limited::new(request.into_body(), 4096).collect().await else {
                return Ok(status(StatusCode::PAYLOAD_TOO_LARGE));
            };
            let user = match serde_json::from_slice(&body.to_bytes()) {
                Ok(Login::Name { user }) if !user.trim().is_empty() => user,
                Ok(Login::Credentials(credentials)) => match credentials.user() {
                    Some(user) => user,
                    None => return Ok(status(StatusCode::UNAUTHORIZED)),
                },
                _ => return Ok(status(StatusCode::BAD_REQUEST)),
            };
            session.login(user)?;
            Ok(see_home())
        }
        (&Method::POST, "/logout") => {
            session.load().await?;
            session.logout()?;
            Ok(see_home())
        }
        _ => Ok(status(StatusCode::NOT_FOUND)),
    }
}

/// Without a password, or with the password of the other examples.
#[derive(Deserialize)]
#[serde(untagged)]
enum Login {
    Name { user: String },
    Credentials(Credentials),
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

fn see_home() -> Answer {
    let mut answer = status(StatusCode::SEE_OTHER);
    answer.headers_mut().insert(header::LOCATION, header::HeaderValue::from_static("/"));
    answer
}
