//! The chat of the example, with several instances.

use crate::support::{
    client::Client,
    example::{PATIENCE, Server},
    redis_server::RedisServer,
};
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

type Socket = WebSocketStream<TcpStream>;

async fn connect(server: &Server, client: &Client, origin: Option<&str>) -> Result<Socket, Error> {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{address}/chat").into_client_request()?;
    if let Some(token) = client.cookie("session") {
        request.headers_mut().insert("cookie", format!("session={token}").parse().unwrap());
    }
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    Ok(client_async(request, TcpStream::connect(address).await.unwrap()).await?.0)
}

async fn logged_in(server: &Server, user: &str) -> Client {
    let client = server.client();
    let reply = client.post("/login", &json!({ "username": user, "password": user })).await;
    assert_eq!(reply.status, StatusCode::OK);
    client
}

async fn next(socket: &mut Socket) -> Message {
    timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

async fn assert_closes(socket: &mut Socket, reason: &str) {
    let Message::Close(Some(frame)) = next(socket).await else { panic!("no close frame") };
    assert_eq!((frame.code, &*frame.reason), (CloseCode::Policy, reason));
}

async fn send(socket: &mut Socket, text: &str) {
    socket.send(text.into()).await.unwrap();
}

#[tokio::test]
async fn members_chat_and_nobody_else() {
    let server = Server::start("websocket", &[]).await;
    let (ana, ben) = (logged_in(&server, "ana").await, logged_in(&server, "ben").await);
    let (mut one, mut two) = (connect(&server, &ana, None).await.unwrap(), connect(&server, &ben, None).await.unwrap());
    send(&mut one, "hello").await;
    for socket in [&mut one, &mut two] {
        assert_eq!(next(socket).await, Message::from("ana: hello"));
    }
    let status = |error: Result<Socket, Error>| match error {
        Err(Error::Http(response)) => response.status(),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(connect(&server, &server.client(), None).await), StatusCode::UNAUTHORIZED);
    assert_eq!(status(connect(&server, &ana, Some("http://evil.example")).await), StatusCode::FORBIDDEN);
    assert!(connect(&server, &ana, Some(&server.url)).await.is_ok());
}

#[tokio::test]
async fn a_socket_closes_when_its_user_logs_out_in_another_tab() {
    let server = Server::start("websocket", &[]).await;
    let (ana, ben) = (logged_in(&server, "ana").await, logged_in(&server, "ben").await);
    let (mut one, mut two) = (connect(&server, &ana, None).await.unwrap(), connect(&server, &ben, None).await.unwrap());
    assert_eq!(ana.post("/logout", &json!({})).await.status, StatusCode::NO_CONTENT);
    assert_closes(&mut one, "signed out").await;
    send(&mut two, "still here").await;
    assert_eq!(next(&mut two).await, Message::from("ben: still here"));
}

#[tokio::test]
async fn a_socket_closes_when_its_user_logs_out_on_another_instance() {
    let redis = RedisServer::start().await;
    let (server, elsewhere) = (Server::on("websocket", &redis).await, Server::on("websocket", &redis).await);
    let ana = logged_in(&server, "ana").await;
    let mut socket = connect(&server, &ana, None).await.unwrap();
    send(&mut socket, "hello").await;
    assert_eq!(next(&mut socket).await, Message::from("ana: hello"));
    let client = elsewhere.client();
    client.set_cookie("session", &ana.cookie("session").unwrap());
    assert_eq!(client.post("/logout", &json!({})).await.status, StatusCode::NO_CONTENT);
    assert_closes(&mut socket, "signed out").await;
}
