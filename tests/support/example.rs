//! The examples as their users run them: processes with an environment, an address and standard streams.
//!
//! `cargo test` builds them; after `cargo test --test programs` alone they may be missing, or old: `cargo build --examples`.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{client::Client, dir::Dir, eventually, redis_server::RedisServer};

/// Only so that a broken test ends.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The example `name`, in an environment without variables for Redis or secrets.
pub fn example(name: &str) -> Command {
    let this = env::current_exe().unwrap();
    let path: PathBuf = this.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    let mut command = Command::new(path);
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.contains("REDIS") || name.ends_with("_SECRET") || name == "ADDR" {
            command.env_remove(&variable);
        }
    }
    command.env("ADDR", "127.0.0.1:0").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A running example. Killed when dropped.
pub struct Server {
    pub child: Child,
    pub url: String,
    dir: Dir,
}

impl Server {
    pub async fn start(name: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = example(name);
        command.envs(variables.iter().copied());
        Self::of(command).await
    }

    /// Runs a program that logs its address, as the examples do.
    pub async fn of(mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        let dir = Dir::new();
        command.stderr(File::create(dir.join("log")).unwrap());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("a line on standard output");
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        assert!(url.starts_with("http://127.0.0.1:"), "{line:?}");
        Self { url: url.to_owned(), child, dir }
    }

    pub async fn on(name: &str, redis: &RedisServer) -> Self {
        Self::start(name, &[("REDIS_URL", &redis.url())]).await
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// `127.0.0.1:…`
    pub fn addr(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub async fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().unwrap();
        listens_to_sigterm(pid).await;
        let sent = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await.unwrap();
        assert!(sent.success());
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }
}

/// Returns when the process handles SIGTERM: it logs its address a moment before.
async fn listens_to_sigterm(pid: u32) {
    eventually("the process listens to SIGTERM", async || {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        u64::from_str_radix(caught, 16).unwrap() & (1 << (15 - 1)) != 0
    })
    .await;
}
