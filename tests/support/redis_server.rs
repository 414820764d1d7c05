//! A `redis-server` of the test's own: on a free port, in a directory of its own, gone when dropped.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    certificates::{Certificate, Certificates},
    dir::Dir,
    eventually,
    port::Port,
    process::Process,
    proxy::Proxy,
};

/// In the directory of the server.
const SOCKET: &str = "redis.sock";
const CONFIG: &str = "redis.conf";

pub struct RedisServer {
    process: Option<Process>, // the first to be dropped
    args: Vec<String>,
    /// What the test itself logs in with.
    password: Option<String>,
    dir: Dir,
    port: Port,
    /// Where it speaks TLS, if it does.
    tls_port: Option<Port>,
    /// What is between it and everybody but this test, if there is something.
    proxy: Option<Proxy>,
}

/// How servers that work together find each other, and how clients find them. The test's own connections are always direct.
pub enum Reached<'a> {
    Directly,
    ThroughProxies,
    ByTls(&'a Certificates),
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments: `&["--maxclients", "5"]`.
    pub async fn start_with(args: &[&str]) -> Self {
        let mut server = Self::stopped_with(args);
        server.run().await;
        server
    }

    /// With a Unix socket too: see [`unix_url`](Self::unix_url).
    pub async fn start_unix() -> Self {
        Self::start_with(&["--unixsocket", SOCKET]).await
    }

    /// With TLS at [`tls_url`](Self::tls_url), and the certificate `shown`. With `mutual`, clients need a certificate of
    /// the same authority. The test's own connections are plain, on the [`port`](Self::port).
    pub async fn start_tls_as(certificates: &Certificates, shown: &Certificate, mutual: bool) -> Self {
        let mut server = Self::stopped();
        server.speak_tls(certificates, shown, mutual);
        server.run().await;
        server
    }

    /// The same, with a valid certificate.
    pub async fn start_tls(certificates: &Certificates, mutual: bool) -> Self {
        Self::start_tls_as(certificates, &certificates.server, mutual).await
    }

    /// A replica of `master`, in sync. It stays a replica when it is restarted.
    pub async fn start_replica_of(master: &RedisServer) -> Self {
        let mut args = vec!["--repl-diskless-sync-delay", "0"];
        if let Some(password) = &master.password {
            args.extend(["--requirepass", password, "--masterauth", password]);
        }
        let replica = Self::start_with(&args).await;
        replica.replicate(master).await;
        replica
    }

    /// Not started yet: a closed port.
    pub fn stopped() -> Self {
        Self::stopped_with(&[])
    }

    /// Not started yet, with more arguments.
    pub fn stopped_with(args: &[&str]) -> Self {
        let port = if args.contains(&"--cluster-enabled") { Port::free_with_bus() } else { Port::free() };
        let mut server = Self::of(port, "");
        let number = server.port().to_string();
        let own = ["--bind", "127.0.0.1", "--port", &number, "--save", "", "--appendonly", "no", "--daemonize", "no"];
        server.args.extend(own.iter().chain(args).map(|arg| arg.to_string()));
        if let Some(place) = args.iter().position(|arg| *arg == "--requirepass") {
            server.password = Some(args[place + 1].to_owned());
        }
        server
    }

    /// A Sentinel, not started yet. Tests use it like any other server.
    pub fn stopped_sentinel() -> Self {
        let port = Port::free();
        let config = format!("port {}\nbind 127.0.0.1\n", port.number());
        let mut sentinel = Self::of(port, &config);
        sentinel.args.push("--sentinel".into());
        sentinel
    }

    /// Adds lines to its configuration file, before it is started.
    pub fn configure(&mut self, lines: &str) {
        let file = self.dir.join(CONFIG);
        fs::write(&file, fs::read_to_string(&file).unwrap() + lines).unwrap();
        let password = lines.lines().find_map(|line| line.strip_prefix("requirepass "));
        self.password = password.map(str::to_owned).or(self.password.take());
    }

    /// Before it is started.
    pub async fn be_reached(&mut self, how: &Reached<'_>) {
        match how {
            Reached::Directly => {}
            Reached::ByTls(certificates) => self.speak_tls(certificates, &certificates.server, false),
            Reached::ThroughProxies => {
                let proxy = Proxy::start(self.port()).await;
                let announced = if self.is_in_cluster() { "cluster" } else { "replica" };
                self.args.extend([format!("--{announced}-announce-port"), proxy.port().to_string()]);
                self.proxy = Some(proxy);
            }
        }
    }

    fn speak_tls(&mut self, certificates: &Certificates, shown: &Certificate, mutual: bool) {
        let port = if self.is_in_cluster() { Port::free_with_bus() } else { Port::free() };
        self.configure(&format!(
            "tls-port {}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {}\n\
             tls-replication yes\ntls-cluster yes\n",
            port.number(),
            path(&shown.certificate),
            path(&shown.key),
            path(&certificates.authority),
            if mutual { "yes" } else { "no" },
        ));
        self.tls_port = Some(port);
    }

    fn is_in_cluster(&self) -> bool {
        self.args.iter().any(|arg| arg == "--cluster-enabled")
    }

    /// It has its own configuration file, which it may rewrite.
    fn of(port: Port, config: &str) -> Self {
        let dir = Dir::new();
        let file = dir.join(CONFIG);
        fs::write(&file, config).unwrap();
        let args = vec![path(&file).to_owned(), "--dir".into(), path(&dir).to_owned()];
        Self { process: None, args, password: None, dir, port, tls_port: None, proxy: None }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The address for everybody but this test.
    pub fn public_port(&self) -> u16 {
        self.proxy.as_ref().map(Proxy::port).or(self.tls_port.as_ref().map(Port::number)).unwrap_or(self.port())
    }

    /// Whether the server has this port, directly or through its proxy.
    pub fn is_at(&self, port: u16) -> bool {
        [self.port(), self.public_port()].contains(&port)
    }

    /// The port for cluster nodes: the bus port is 10000 above.
    pub fn meeting_port(&self) -> u16 {
        self.tls_port.as_ref().unwrap_or(&self.port).number()
    }

    /// The proxy in front of it.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a server behind a proxy")
    }

    /// `127.0.0.1:…`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.public_port())
    }

    /// Without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.proxy.as_ref().map_or(self.port(), Proxy::port))
    }

    /// With this user name.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{}:{}@127.0.0.1:{}/", percent_encoded(user), percent_encoded(password), self.port())
    }

    /// For a server started with [`start_unix`](Self::start_unix).
    pub fn unix_url(&self) -> String {
        format!("unix://{}", path(&self.dir.join(SOCKET)))
    }

    /// For a server with TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port.as_ref().expect("a server with TLS").number()
    }

    /// For a server with TLS.
    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}/", self.tls_port())
    }

    /// Starts or restarts the server on the same port. Returns when it replies.
    pub async fn run(&mut self) {
        self.launch();
        self.answers().await;
    }

    /// The same, without waiting.
    pub fn launch(&mut self) {
        self.stop();
        self.process = Some(Process::start(&self.dir, &self.args));
    }

    pub async fn answers(&self) {
        let answers = async || {
            self.process().assert_runs();
            self.connect().await.is_ok()
        };
        eventually("redis-server answers", answers).await;
    }

    /// Kills the server (SIGKILL).
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// SIGSTOP: the server hangs. Connections stay open, and the kernel accepts new ones.
    pub fn pause(&self) {
        self.process().pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Neither stopped nor paused by the test.
    pub fn is_up(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_paused())
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("a server that was started")
    }

    /// A connection of the test.
    pub async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info: ConnectionInfo = ("127.0.0.1", self.port()).into_connection_info()?.set_redis_settings(settings);
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

    /// Changes the password. The test uses the new one from then on.
    pub async fn set_password(&mut self, password: &str) {
        self.command(&format!("CONFIG SET requirepass {password}")).await;
        self.password = Some(password.to_owned());
    }

    /// Adds a user with these ACL rules: `"~keep:* +get +set"`.
    pub async fn add_user(&self, user: &str, password: &str, rules: &str) {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(user).arg("reset").arg("on").arg(format!(">{password}"));
        for rule in rules.split_whitespace() {
            cmd.arg(rule);
        }
        cmd.exec_async(&mut self.connect().await.unwrap()).await.unwrap();
    }

    /// Makes it a replica of `master`. Returns when it is in sync.
    pub async fn replicate(&self, master: &RedisServer) {
        self.command(&format!("REPLICAOF 127.0.0.1 {}", master.public_port())).await;
        self.command("CONFIG REWRITE").await;
        eventually("the replica is in sync", async || self.is_in_sync().await).await;
    }

    /// Whether this is a replica with a link to its master.
    pub async fn is_in_sync(&self) -> bool {
        let info = self.try_info("replication").await.unwrap_or_default();
        info.get("master_link_status").is_some_and(|status| status == "up")
    }

    /// `master` or `slave`.
    pub async fn role(&self) -> String {
        self.info("replication").await["role"].clone()
    }

    /// A section of `INFO`.
    pub async fn info(&self, section: &str) -> HashMap<String, String> {
        self.try_info(section).await.unwrap()
    }

    /// The same. A server that becomes a replica closes the connections of its clients.
    pub async fn try_info(&self, section: &str) -> redis::RedisResult<HashMap<String, String>> {
        let info = text(&self.try_command(&format!("INFO {section}")).await?);
        let pairs = info.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub async fn keys(&self) -> Vec<String> {
        match self.command("KEYS *").await {
            Value::Array(keys) => keys.iter().map(text).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// The keys of live sessions, without tombstones and indexes.
    pub async fn sessions(&self) -> Vec<String> {
        let mut sessions = Vec::new();
        for key in self.keys().await {
            let beginning = self.try_command(&format!("GETRANGE {key} 0 4")).await; // or it is not a string
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

    /// The TTL of a key in milliseconds, or the negative codes of Redis.
    pub async fn pttl(&self, key: &str) -> i64 {
        match self.command(&format!("PTTL {key}")).await {
            Value::Int(millis) => millis,
            other => panic!("{other:?}"),
        }
    }

    /// Records every command that the server receives from now on.
    pub async fn monitor(&self) -> Monitor<'_> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port())).await.unwrap();
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

    /// The number of calls per command so far, from `INFO commandstats`.
    pub async fn calls(&self, command: &str) -> u64 {
        let info = text(&self.command("INFO commandstats").await);
        let line =
            info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{}:calls=", command.to_lowercase())));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

fn is_redis_6() -> bool {
    let version = Command::new(super::process::binary()).arg("--version").output().unwrap().stdout;
    String::from_utf8_lossy(&version).contains("v=6.")
}

/// A server that takes long to load its data.
pub struct Loading {
    control: MultiplexedConnection,
    reload: JoinHandle<redis::RedisResult<Value>>,
}

impl Loading {
    /// The arguments that the server needs.
    pub fn args() -> Vec<&'static str> {
        let mut args = vec!["--rdbcompression", "no"];
        if !is_redis_6() {
            args.extend(["--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024"]);
        }
        args
    }

    /// Starts loading its data, and more with keys that begin with `tag`.
    pub async fn of(server: &RedisServer, tag: &str) -> Self {
        // It replies between two keys: before Redis 7 only every two megabytes.
        let (keys, size) = if is_redis_6() { (12, 2_100_000) } else { (100, 2000) };
        for i in 0..keys {
            server.command(&format!("SET {tag}filler{i} {}", "x".repeat(size))).await;
        }
        let mut control = server.connect().await.unwrap();
        let mut reloading = server.connect().await.unwrap();
        command_on(&mut control, "CONFIG SET key-load-delay 100000").await.unwrap();
        let reload = tokio::spawn(async move { command_on(&mut reloading, "DEBUG RELOAD").await });
        let loads = async || command_on(&mut control.clone(), "PING").await.is_err();
        eventually("the server loads", loads).await;
        Self { control, reload }
    }

    /// Lets it finish.
    pub async fn ends(mut self) {
        let at_once = "CONFIG SET key-load-delay 0";
        // Before Redis 7 it cannot be reconfigured while it loads.
        let told = command_on(&mut self.control, at_once).await;
        self.reload.await.unwrap().unwrap();
        if told.is_err() {
            command_on(&mut self.control, at_once).await.unwrap();
        }
    }
}

/// A server that cannot write its snapshot, and refuses writes (`MISCONF`). It must be configured to write snapshots.
pub struct NoSnapshot {
    /// Connected before: it refuses even a ping.
    control: MultiplexedConnection,
    /// A directory in the place of the file.
    in_the_way: PathBuf,
}

impl NoSnapshot {
    pub async fn of(server: &RedisServer) -> Self {
        let control = server.connect().await.unwrap();
        let in_the_way = server.dir().join("dump.rdb");
        let _ = fs::remove_file(&in_the_way);
        fs::create_dir(&in_the_way).unwrap();
        let failing = Self { control, in_the_way };
        failing.saves("err").await;
        failing
    }

    pub async fn ends(self) {
        fs::remove_dir(&self.in_the_way).unwrap();
        self.saves("ok").await;
    }

    async fn saves(&self, result: &str) {
        let began = async || command_on(&mut self.control.clone(), "BGSAVE").await.is_ok();
        eventually("it saves", began).await;
        let line = format!("rdb_last_bgsave_status:{result}");
        let has = async || {
            let info = command_on(&mut self.control.clone(), "INFO persistence").await.unwrap();
            text(&info).lines().any(|said| said == line)
        };
        eventually(&line, has).await;
    }
}

/// The output of `MONITOR`.
pub struct Monitor<'a> {
    server: &'a RedisServer,
    lines: Lines<BufReader<TcpStream>>,
    marks: u32,
}

impl Monitor<'_> {
    /// The commands since the last call, a line each: `1763679600.123456 [0 127.0.0.1:50000] "GET" "key"`.
    pub async fn so_far(&mut self) -> Vec<String> {
        self.marks += 1;
        let mark = format!("mark-{}-{}", self.server.port(), self.marks);
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

/// Sends one command over an existing connection.
pub async fn command_on(connection: &mut MultiplexedConnection, command: &str) -> redis::RedisResult<Value> {
    let mut words = command.split_whitespace();
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(connection).await
}

/// A reply as a string.
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

/// A reply of names and values.
pub fn pairs(value: &Value) -> HashMap<String, String> {
    match value {
        Value::Array(items) => items.chunks(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
        other => panic!("not pairs: {other:?}"),
    }
}

/// Percent-encodes a name for a URL.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
