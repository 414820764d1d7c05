//! The cost of the examples: commands and round trips to Redis, stored bytes, and requests per second compared with a bare axum server.
//!
//! ```text
//! cargo build --release --examples && cargo bench --bench examples           # all
//! cargo build --release --examples && cargo bench --bench examples -- admin  # one
//! ```
//!
//! The load comes from this process, over 64 connections that each wait for a response before the next request. It shares the machine with the
//! servers: compare the columns of one run, not different runs. Rounds of the servers alternate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::{client::Client, example::Server, redis_server::RedisServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
/// The number of sessions for the average of bytes.
const SESSIONS: usize = 200;
/// Marks the process of the bare server.
const BARE: &str = "TOWER_KEEP_BARE_SERVER";

/// The repeated request.
#[derive(Clone, Debug)]
enum Ask {
    /// The same request.
    Again { path: &'static str, header: (&'static str, String) },
    /// A single-use session is created and consumed, in turn.
    Handshake,
}

struct Case {
    example: &'static str,
    login: &'static str,
}

const CASES: [Case; 5] = [
    Case { example: "admin", login: "/admin/login" },
    Case { example: "iframe_auth", login: "/auth/create-session" },
    Case { example: "jwt_auth", login: "/login" },
    Case { example: "erp", login: "/api/auth/login" },
    Case { example: "devices", login: "/login" },
];

impl Case {
    /// Logs a user in, and returns the request to repeat.
    async fn log_in(&self, client: &Client, user: &str) -> Ask {
        let reply = client.post(self.login, &json!({ "username": user, "password": user })).await;
        assert!(reply.status.is_success(), "{reply:?}");
        let cookie = || ("cookie", format!("session={}", client.cookie("session").expect("a cookie")));
        match self.example {
            "admin" => Ask::Again { path: "/admin", header: cookie() },
            "jwt_auth" => {
                let token = reply.json()["access_token"].as_str().unwrap().to_owned();
                Ask::Again { path: "/verify", header: ("authorization", format!("Bearer {token}")) }
            }
            "erp" => Ask::Again { path: "/api/user/profile", header: cookie() },
            "devices" => Ask::Again { path: "/sessions", header: cookie() },
            _ => Ask::Handshake,
        }
    }

    /// One request of a logged-in user.
    async fn request(&self, client: &Client, ask: &Ask, login: &Value) {
        let reply = match ask {
            Ask::Again { path, header: (name, value) } => {
                client.request(Method::GET, path, &[(name, value)], Bytes::new()).await
            }
            Ask::Handshake => client.get(&validation(login)).await,
        };
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    }

    /// The cost of a login and of a request in Redis.
    async fn costs(&self) {
        let redis = RedisServer::start().await;
        let wire = Wire::start(redis.port()).await;
        let server = Server::start(self.example, &[("REDIS_URL", &wire.url())]).await;
        let client = server.client();
        let warm = self.log_in(&client, "warm").await; // now Redis has the scripts
        if let Ask::Again { .. } = warm {
            self.request(&client, &warm, &Value::Null).await;
        }
        let mut monitor = redis.monitor().await;
        let mut counted = async || {
            let lines = monitor.so_far().await;
            let ours = lines.iter().filter(|line| !line.contains(" lua]") && !line.contains("\"PING\""));
            (ours.count(), wire.turns())
        };
        client.forget_cookies();
        counted().await;
        let body = json!({ "username": "ana", "password": "ana" });
        let reply = client.post(self.login, &body).await;
        let login = counted().await;
        let ask = match &warm {
            Ask::Handshake => Ask::Handshake,
            Ask::Again { .. } => {
                client.forget_cookies();
                self.log_in(&client, "bob").await
            }
        };
        counted().await;
        self.request(&client, &ask, &if reply.body.is_empty() { Value::Null } else { reply.json() }).await;
        let request = counted().await;
        let before = bytes(&redis).await;
        for number in 0..SESSIONS {
            client.forget_cookies();
            self.log_in(&client, &format!("user{number}")).await;
        }
        let each = (bytes(&redis).await - before) / SESSIONS as i64;
        println!(
            "{:12} login: {} commands in {} round trips; request: {} in {}; {each} bytes a session",
            self.example, login.0, login.1, request.0, request.1
        );
    }

    async fn speed(&self, bare: &Server) {
        let redis = RedisServer::start().await;
        let (in_memory, on_redis) = (Server::start(self.example, &[]).await, Server::on(self.example, &redis).await);
        let mut measured = [Measured::default(), Measured::default(), Measured::default()];
        let asks = [
            Ask::Again { path: "/", header: ("x-nothing", String::new()) },
            self.log_in(&in_memory.client(), "ana").await,
            self.log_in(&on_redis.client(), "ana").await,
        ];
        for _ in 0..ROUNDS {
            for (server, (ask, measured)) in
                [bare, &in_memory, &on_redis].into_iter().zip(asks.iter().zip(&mut measured))
            {
                measured.round(server.addr(), ask).await;
            }
        }
        let base = measured[0].rate();
        for (name, measured) in ["bare axum", "memory", "Redis"].into_iter().zip(&mut measured) {
            let (rate, p50, p99) = (measured.rate(), measured.percentile(50), measured.percentile(99));
            println!(
                "{:12} {name:10} {rate:>8.0} requests/s ({:.2} of bare)   p50 {p50:>6.2} ms   p99 {p99:>6.2} ms",
                self.example,
                rate / base
            );
        }
    }
}

/// The URL that consumes the session that was just created.
fn validation(created: &Value) -> String {
    format!("/auth/validate-session?session_id={}", created["session_id"].as_str().expect("a session id"))
}

/// The memory of all keys in Redis.
async fn bytes(redis: &RedisServer) -> i64 {
    let mut sum = 0;
    for key in redis.keys().await {
        if let redis::Value::Int(bytes) = redis.command(&format!("MEMORY USAGE {key} SAMPLES 0")).await {
            sum += bytes;
        }
    }
    sum
}

#[derive(Default)]
struct Measured {
    /// The latency of each request in microseconds.
    took: Vec<u32>,
    time: Duration,
}

impl Measured {
    async fn round(&mut self, addr: &str, ask: &Ask) {
        let addr: SocketAddr = addr.parse().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let mut connections = JoinSet::new();
        let began = Instant::now();
        for _ in 0..CONNECTIONS {
            let (ask, over) = (ask.clone(), over.clone());
            connections.spawn(async move {
                let mut connection = Connection::open(addr).await;
                while !over.load(Ordering::Relaxed) {
                    connection.ask(&ask).await;
                }
                connection.took
            });
        }
        tokio::time::sleep(ROUND).await;
        over.store(true, Ordering::Relaxed);
        for took in connections.join_all().await {
            self.took.extend(took);
        }
        self.time += began.elapsed();
    }

    fn rate(&self) -> f64 {
        self.took.len() as f64 / self.time.as_secs_f64()
    }

    /// In milliseconds.
    fn percentile(&mut self, percent: usize) -> f64 {
        self.took.sort_unstable();
        let place = (self.took.len() * percent / 100).min(self.took.len() - 1);
        f64::from(self.took[place]) / 1000.0
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    took: Vec<u32>,
}

impl Connection {
    async fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, took: Vec::new() }
    }

    async fn ask(&mut self, ask: &Ask) {
        match ask {
            Ask::Again { path, header } => {
                self.send(Method::GET, path, header).await;
            }
            Ask::Handshake => {
                let header = ("content-type", "application/json".to_owned());
                let created = self.send(Method::POST, "/auth/create-session", &header).await;
                let path = validation(&serde_json::from_slice(&created).unwrap());
                self.send(Method::GET, &path, &header).await;
            }
        }
    }

    async fn send(&mut self, method: Method, path: &str, (name, value): &(&'static str, String)) -> Bytes {
        let request = Request::builder().method(method).uri(path).header("host", "localhost").header(*name, value);
        let began = Instant::now();
        let response = self.sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        self.took.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        assert!(status.is_success(), "{path}: {status}");
        body
    }
}

/// A proxy between an example and Redis that counts round trips.
struct Wire {
    addr: SocketAddr,
    turns: Arc<AtomicU64>,
}

impl Wire {
    async fn start(redis: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, turns) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let counted = turns.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let turns = counted.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", redis)).await.unwrap();
                    let (mut question, mut answer) = ([0; 65_536], [0; 65_536]);
                    let mut asked = false;
                    loop {
                        tokio::select! {
                            read = near.read(&mut question) => match read {
                                Ok(read @ 1..) => {
                                    // Not the pings that keep the connection alive.
                                    let is_ping = question[..read].ends_with(b"PING\r\n");
                                    turns.fetch_add(u64::from(!asked && !is_ping), Ordering::Relaxed);
                                    asked = true;
                                    far.write_all(&question[..read]).await.unwrap();
                                }
                                _ => return,
                            },
                            read = far.read(&mut answer) => match read {
                                Ok(read @ 1..) => {
                                    asked = false;
                                    near.write_all(&answer[..read]).await.unwrap();
                                }
                                _ => return,
                            },
                        }
                    }
                });
            }
        });
        Self { addr, turns }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Since the last call.
    fn turns(&self) -> u64 {
        self.turns.swap(0, Ordering::Relaxed)
    }
}

async fn serve_bare() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    axum::serve(listener, Router::new().route("/", get(async || "hello\n"))).await.unwrap();
}

#[tokio::main]
async fn main() {
    if env::var_os(BARE).is_some() {
        return serve_bare().await;
    }
    let names: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| case.example == name);
    for case in CASES.iter().filter(wanted) {
        case.costs().await;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(BARE, "1").kill_on_drop(true);
    let bare = Server::of(command).await;
    for case in CASES.iter().filter(wanted) {
        case.speed(&bare).await;
    }
}
