//! A `redis-server` of the test's own: on a free port, in a directory of its own, gone when dropped.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
};

use super::eventually;

pub struct RedisServer {
    port: u16,
    dir: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
    /// What the test itself logs in with.
    password: Option<String>,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments: `&["--maxclients", "5"]`.
    pub async fn start_with(args: &[&str]) -> Self {
        let mut server = Self::stopped();
        server.args = args.iter().map(|arg| arg.to_string()).collect();
        if let Some(place) = args.iter().position(|arg| *arg == "--requirepass") {
            server.password = Some(args[place + 1].to_owned());
        }
        server.run().await;
        server
    }

    /// Not started yet: a port on which nobody answers.
    pub fn stopped() -> Self {
        let port = free_port();
        let dir = env::temp_dir().join(format!("tower-keep-{}-{port}", process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self { port, dir, args: Vec::new(), child: None, password: None }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Starts the server, again if need be, on the same port; returns when it answers.
    pub async fn run(&mut self) {
        self.stop();
        let binary = env::var("REDIS_SERVER_BIN").unwrap_or_else(|_| "redis-server".into());
        let child = Command::new(&binary)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(&self.dir)
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        self.child = Some(child);
        eventually("redis-server answers", async || self.connect().await.is_ok()).await;
    }

    /// Ends the server at once (SIGKILL).
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGSTOP: the server hangs; connections stay open, and new ones are accepted by the kernel.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info: ConnectionInfo = ("127.0.0.1", self.port).into_connection_info()?.set_redis_settings(settings);
        let patience = Some(Duration::from_secs(30)); // the machine may be busy
        let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        let mut connection = Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").query_async::<Value>(&mut connection).await?;
        Ok(connection)
    }

    /// Runs one command: `server.command("CONFIG SET maxmemory 1mb")`.
    pub async fn command(&self, command: &str) -> Value {
        self.try_command(command).await.unwrap()
    }

    pub async fn try_command(&self, command: &str) -> redis::RedisResult<Value> {
        command_on(&mut self.connect().await?, command).await
    }

    /// Changes the password; the test logs in with the new one from then on.
    pub async fn set_password(&mut self, password: &str) {
        self.command(&format!("CONFIG SET requirepass {password}")).await;
        self.password = Some(password.to_owned());
    }

    pub async fn keys(&self) -> Vec<String> {
        match self.command("KEYS *").await {
            Value::Array(keys) => keys.iter().map(text).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// The keys of live sessions: not what is remembered of those that ended, no index.
    pub async fn sessions(&self) -> Vec<String> {
        let mut sessions = Vec::new();
        for key in self.keys().await {
            let beginning = self.try_command(&format!("GETRANGE {key} 0 4")).await; // or it is no string
            if beginning.is_ok_and(|beginning| text(&beginning) == "{\"v\":") {
                sessions.push(key);
            }
        }
        sessions
    }

    /// The value of a string.
    pub async fn get(&self, key: &str) -> String {
        text(&self.command(&format!("GET {key}")).await)
    }

    /// How many milliseconds a key lives from now; negative as Redis says it.
    pub async fn pttl(&self, key: &str) -> i64 {
        match self.command(&format!("PTTL {key}")).await {
            Value::Int(millis) => millis,
            other => panic!("{other:?}"),
        }
    }

    /// Watches every command the server is given from now on.
    pub async fn monitor(&self) -> Monitor<'_> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        if let Some(password) = &self.password {
            stream.write_all(format!("AUTH {password}\r\n").as_bytes()).await.unwrap();
        }
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let mut monitor = Monitor { server: self, lines: BufReader::new(stream).lines(), marks: 0 };
        monitor.so_far().await;
        monitor
    }

    /// The directory of the server.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Calls of each command so far, from `INFO commandstats`.
    pub async fn calls(&self, command: &str) -> u64 {
        let info = text(&self.command("INFO commandstats").await);
        let line =
            info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{}:calls=", command.to_lowercase())));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

/// Below those that the kernel gives to whoever asks for any: a server that is down does not lose its port.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let process = (process::id() as u16).wrapping_mul(127);
        let port = 10_000 + process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What `MONITOR` shows.
pub struct Monitor<'a> {
    server: &'a RedisServer,
    lines: Lines<BufReader<TcpStream>>,
    marks: u32,
}

impl Monitor<'_> {
    /// The commands since the last call, a line each: `1763679600.123456 [0 127.0.0.1:50000] "GET" "key"`.
    pub async fn so_far(&mut self) -> Vec<String> {
        self.marks += 1;
        let mark = format!("mark-{}-{}", self.server.port, self.marks);
        self.server.command(&format!("ECHO {mark}")).await;
        let mut seen = Vec::new();
        loop {
            let line = self.lines.next_line().await.unwrap().expect("the monitor was disconnected");
            if line.contains(&mark) {
                return seen;
            }
            seen.push(line);
        }
    }
}

/// Runs one command on a connection that is already there.
pub async fn command_on(connection: &mut MultiplexedConnection, command: &str) -> redis::RedisResult<Value> {
    let mut words = command.split_whitespace();
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(connection).await
}

/// A reply as text.
pub fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::VerbatimString { text, .. } => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Okay => "OK".into(),
        other => panic!("not a text: {other:?}"),
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
