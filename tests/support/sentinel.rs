//! A master, its replicas, and the Sentinels that watch them.

use std::time::Duration;

use super::{
    eventually,
    redis_server::{Reached, RedisServer, pairs, text},
};
use redis::Value;
use tokio::time::timeout;

const SERVERS: usize = 3;
const SENTINELS: usize = 3;
/// The name of the master.
const NAME: &str = "keep";

/// Three servers, one of them the master, and three Sentinels with a quorum of two. Stopped when dropped.
///
/// A server is identified by its number, whatever its role.
pub struct Sentinels {
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<RedisServer>,
}

/// The passwords.
#[derive(Default, Clone, Copy)]
pub struct Passwords<'a> {
    pub servers: Option<&'a str>,
    pub sentinels: Option<&'a str>,
}

impl Sentinels {
    pub async fn start() -> Self {
        Self::start_with(Passwords::default(), &[]).await
    }

    /// With passwords, and more arguments for the servers: `&["--min-replicas-to-write", "1"]`. Server 0 is the master at
    /// first. Returns when all Sentinels know each other and all servers.
    pub async fn start_with(passwords: Passwords<'_>, args: &[&str]) -> Self {
        Self::start_reached(&Reached::Directly, passwords, args).await
    }

    /// The Sentinels are never behind proxies.
    pub async fn start_reached(how: &Reached<'_>, passwords: Passwords<'_>, args: &[&str]) -> Self {
        let mut all = vec!["--repl-diskless-sync-delay", "0"];
        if let Some(password) = passwords.servers {
            all.extend(["--requirepass", password, "--masterauth", password]);
        }
        all.extend(args);
        let mut servers: Vec<_> = (0..SERVERS).map(|_| RedisServer::stopped_with(&all)).collect();
        for server in &mut servers {
            server.be_reached(how).await;
            server.launch();
        }
        for server in &servers {
            server.answers().await;
        }
        for replica in &servers[1..] {
            replica.replicate(&servers[0]).await;
        }

        let mut sentinels: Vec<_> = (0..SENTINELS).map(|_| RedisServer::stopped_sentinel()).collect();
        if let Reached::ByTls(_) = how {
            for sentinel in &mut sentinels {
                sentinel.be_reached(how).await;
            }
        }
        let ports: Vec<_> = sentinels.iter().map(RedisServer::public_port).collect();
        for (i, sentinel) in sentinels.iter_mut().enumerate() {
            sentinel.configure(&config(i, &ports, servers[0].public_port(), passwords));
            sentinel.launch();
        }
        let started = Self { servers, sentinels };
        for sentinel in &started.sentinels {
            sentinel.answers().await;
        }
        eventually("the Sentinels see everybody", async || started.is_complete().await).await;
        started
    }

    pub fn master_name(&self) -> &'static str {
        NAME
    }

    /// The URLs of the Sentinels.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(RedisServer::url).collect()
    }

    /// `127.0.0.1:…` of each Sentinel.
    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(RedisServer::address).collect()
    }

    /// The master according to the first running Sentinel.
    pub async fn master(&self) -> usize {
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_up()).expect("a Sentinel that is up");
        self.master_by(sentinel).await
    }

    pub async fn master_server(&self) -> &RedisServer {
        &self.servers[self.master().await]
    }

    /// Starts a planned failover. Returns the old master. See [`switched`](Self::switched).
    pub async fn failover(&self) -> usize {
        let old = self.master().await;
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_up()).expect("a Sentinel that is up");
        // Not during another failover.
        let agreed = async || sentinel.try_command(&format!("SENTINEL FAILOVER {NAME}")).await.is_ok();
        eventually("a failover begins", agreed).await;
        old
    }

    /// A planned failover. Returns the old master when it is complete.
    pub async fn hands_over(&self) -> usize {
        loop {
            let old = self.failover().await;
            // Sentinels that abort a slow failover do not retry it.
            if timeout(Duration::from_secs(15), self.switched(old)).await.is_ok() {
                return old;
            }
        }
    }

    /// Waits until all running Sentinels agree on a master other than `old`, and it has the role. Returns
    /// it.
    pub async fn switched(&self, old: usize) -> usize {
        let switched = async || match self.agreed().await {
            Some(new) if new != old && self.servers[new].is_up() => {
                let info = self.servers[new].try_info("replication").await.unwrap_or_default();
                info.get("role").is_some_and(|role| role == "master")
            }
            _ => false,
        };
        eventually("another master", switched).await;
        self.master().await
    }

    /// From now on the Sentinels start no failover: on a busy machine a master seems to be down sooner than a test wants.
    pub async fn are_patient(&self) {
        for sentinel in &self.sentinels {
            sentinel.command(&format!("SENTINEL SET {NAME} down-after-milliseconds 600000")).await;
        }
    }

    /// Waits until `server` is a replica of the current master, and in sync.
    pub async fn rejoined(&self, server: usize) {
        let rejoined = async || self.follows(server, self.master().await).await;
        eventually("the server is a replica", rejoined).await;
    }

    async fn follows(&self, server: usize, master: usize) -> bool {
        let info = self.servers[server].try_info("replication").await.unwrap_or_default();
        info.get("master_port").is_some_and(|port| self.servers[master].is_at(port.parse().unwrap()))
            && info["master_link_status"] == "up"
    }

    /// Waits until all running Sentinels agree on a master, and all other servers are its replicas, and in sync.
    pub async fn settled(&self) {
        let settled = async || {
            let Some(master) = self.agreed().await else { return false };
            let info = self.servers[master].try_info("replication").await.unwrap_or_default();
            let mut settled = info.get("role").is_some_and(|role| role == "master");
            for replica in (0..SERVERS).filter(|server| *server != master) {
                settled = settled && self.follows(replica, master).await;
            }
            settled
        };
        eventually("a master that all agree on, and follow", settled).await;
    }

    async fn agreed(&self) -> Option<usize> {
        let mut agreed = None;
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_up()) {
            let master = self.master_by(sentinel).await;
            if *agreed.get_or_insert(master) != master {
                return None;
            }
        }
        agreed
    }

    async fn master_by(&self, sentinel: &RedisServer) -> usize {
        let port = match sentinel.command(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {NAME}")).await {
            Value::Array(address) => text(&address[1]).parse().unwrap(),
            other => panic!("{other:?}"),
        };
        self.servers.iter().position(|server| server.is_at(port)).expect("a server of ours")
    }

    async fn is_complete(&self) -> bool {
        for sentinel in &self.sentinels {
            if sentinel.try_command(&format!("SENTINEL CKQUORUM {NAME}")).await.is_err() {
                return false;
            }
            for (others, number) in [("SENTINELS", SENTINELS - 1), ("REPLICAS", SERVERS - 1)] {
                let seen = match sentinel.command(&format!("SENTINEL {others} {NAME}")).await {
                    Value::Array(seen) => seen,
                    other => panic!("{other:?}"),
                };
                if seen.len() != number || !seen.iter().all(is_well) {
                    return false;
                }
            }
        }
        true
    }
}

/// Connected, and known to be a replica of its master.
fn is_well(seen: &Value) -> bool {
    let seen = pairs(seen);
    let flags: Vec<_> = seen["flags"].split(',').collect();
    !flags.contains(&"disconnected")
        && !flags.contains(&"s_down")
        && seen.get("master-link-status").is_none_or(|status| status == "ok")
}

/// The configuration of a Sentinel that knows the others: discovery would take seconds.
fn config(i: usize, sentinels: &[u16], master: u16, passwords: Passwords<'_>) -> String {
    let id = |i: usize| format!("{:040x}", i + 1);
    let millis = |time: Duration| time.as_millis();
    let (down, failover) = (millis(Duration::from_secs(1)), millis(Duration::from_secs(3)));
    let mut lines = vec![
        format!("sentinel myid {}", id(i)),
        format!("sentinel monitor {NAME} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {NAME} {down}"),
        format!("sentinel failover-timeout {NAME} {failover}"),
        format!("sentinel parallel-syncs {NAME} {SERVERS}"),
    ];
    if let Some(password) = passwords.servers {
        lines.push(format!("sentinel auth-pass {NAME} {password}"));
    }
    if let Some(password) = passwords.sentinels {
        lines.push(format!("requirepass {password}"));
        lines.push(format!("sentinel sentinel-pass {password}"));
    }
    for (other, port) in sentinels.iter().enumerate().filter(|(other, _)| *other != i) {
        lines.push(format!("sentinel known-sentinel {NAME} 127.0.0.1 {port} {}", id(other)));
    }
    lines.join("\n") + "\n"
}
