//! Sessions in a tonic server, and a client.
//!
//! ```text
//! cargo run --example grpc                        # the server
//! cargo run --example grpc -- client login ana    # prints a token
//! cargo run --example grpc -- client whoami TOKEN
//! cargo run --example grpc -- client logout TOKEN
//! ```

mod support;

/// Generated from `grpc/keep.proto`.
#[allow(clippy::all, missing_docs)]
#[path = "grpc/keep.v1.rs"]
mod pb;

use std::{env, error::Error, process::ExitCode};

use pb::{
    LoginReply, LoginRequest, LogoutReply, LogoutRequest, WhoAmIReply, WhoAmIRequest,
    keep_client::KeepClient,
    keep_server::{Keep, KeepServer},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, service::Routes, transport::Server};
use tower_keep::{Bearer, SessionLayer, grpc, store};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => {
            support::log();
            support::exit(serve().await)
        }
        ["client", command, argument] => support::exit(client(command, argument).await),
        _ => support::exit(Err("usage: grpc [client login USER | client whoami TOKEN | client logout TOKEN]".into())),
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let layer = SessionLayer::new(store::from_env()?).without_cookie().bearer(Bearer::new());
    let store = layer.sessions().store_name();
    // Keep it private: `GET /metrics`, which Prometheus queries over HTTP/1.1.
    let metrics = support::metrics::route(layer.sessions())?;
    let routes = Routes::new(KeepServer::new(Service)).into_axum_router().layer(layer).route("/metrics", metrics);
    let stopped = support::stopped()?;
    let listener = support::listen(store).await?;
    Server::builder()
        .accept_http1(true)
        .add_routes(routes.into())
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped)
        .await?;
    Ok(())
}

struct Service;

#[tonic::async_trait]
impl Keep for Service {
    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginReply>, Status> {
        let session = grpc::session(&request).await?;
        let user = request.into_inner().user;
        if user.trim().is_empty() {
            return Err(Status::invalid_argument("a user needs a name"));
        }
        session.login(user)?;
        session.save().await?; // the session is stored and has its token
        let token = session.token()?.ok_or(Status::internal("no token"))?;
        Ok(Response::new(LoginReply { token: token.expose().to_owned() }))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIReply>, Status> {
        let session = grpc::session(&request).await?;
        let (Some(user), Some(id)) = (session.user()?, session.id()?) else {
            return Err(Status::unauthenticated("log in first"));
        };
        let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
        session.insert("visits", &visits)?;
        Ok(Response::new(WhoAmIReply { user: user.to_string(), visits, session_id: id.to_string() }))
    }

    async fn logout(&self, request: Request<LogoutRequest>) -> Result<Response<LogoutReply>, Status> {
        let session = grpc::session(&request).await?;
        if session.user()?.is_none() {
            return Err(Status::unauthenticated("log in first"));
        }
        session.logout()?;
        Ok(Response::new(LogoutReply {}))
    }
}

async fn client(command: &str, argument: &str) -> Result<(), Box<dyn Error>> {
    let mut client = KeepClient::connect(format!("http://{}", support::addr())).await?;
    match command {
        "login" => {
            let reply = client.login(LoginRequest { user: argument.into() }).await.map_err(plain)?;
            println!("{}", reply.into_inner().token);
        }
        "whoami" => {
            let request = with_token(WhoAmIRequest {}, argument)?;
            let WhoAmIReply { user, visits, session_id } = client.who_am_i(request).await.map_err(plain)?.into_inner();
            println!("user {user}, visits {visits}, session {session_id}");
        }
        "logout" => {
            client.logout(with_token(LogoutRequest {}, argument)?).await.map_err(plain)?;
            println!("logged out");
        }
        _ => return Err("commands: login USER, whoami TOKEN, logout TOKEN".into()),
    }
    Ok(())
}

fn with_token<T>(message: T, token: &str) -> Result<Request<T>, Box<dyn Error>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}

fn plain(status: Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
