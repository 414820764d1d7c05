//! The same faults behind Sentinels and in a cluster: what happens to one server there, sessions outlive, and nothing needs a
//! restart. (For a single server, see `faults.rs`; for servers that die or hang, `sentinel.rs` and `cluster.rs`.)
//!
//! A fault there may be over when another server takes over, and not when it ends itself. So what is asserted of each is: every request
//! is answered in time, with the session or with an outage, and never as if there were none; and all is served again by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod support;

use std::time::Duration;

use support::{
    cluster::Cluster,
    eventually,
    redis_server::{RedisServer, command_on},
    sentinel::Sentinels,
};
use tokio::time::timeout;
use tower_keep::{
    HealthStatus, Limits, SessionId, SessionLayer, Sessions, Token,
    store::redis::{RedisConfig, RedisStore},
};

const DISCONNECT: &str = "CLIENT KILL TYPE normal SKIPME yes";
/// Of what is to end by itself: only there so that a broken test ends. The store's own deadline is 250 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is done to a server, and what ends it.
const FAULTS: [(&str, &[&str], &[&str]); 11] = [
    ("connections killed", &[DISCONNECT], &[]),
    ("scripts flushed", &["SCRIPT FLUSH"], &[]),
    ("writes paused", &["CLIENT PAUSE 60000 WRITE"], &["CLIENT UNPAUSE"]),
    ("all paused", &["CLIENT PAUSE 700 ALL"], &[]),
    ("maxclients", &["CONFIG SET maxclients 1", DISCONNECT], &["CONFIG SET maxclients 10000"]),
    ("out of memory", &["CONFIG SET maxmemory 1"], &["CONFIG SET maxmemory 0"]),
    ("no replicas", &["CONFIG SET min-replicas-to-write 9"], &["CONFIG SET min-replicas-to-write 0"]),
    ("password changed", &["ACL SETUSER default resetpass >other", DISCONNECT], &["ACL SETUSER default nopass"]),
    ("no right to read", &["ACL SETUSER default -get"], &["ACL SETUSER default +@all"]),
    ("no right to write", &["ACL SETUSER default -@write"], &["ACL SETUSER default +@all"]),
    ("no right to anything", &["ACL SETUSER default -@all +acl"], &["ACL SETUSER default +@all"]),
];

/// A service, and a session of `user` on the server that the fault is done to.
struct Scene {
    sessions: Sessions,
    user: String,
    token: Token,
}

impl Scene {
    async fn new(config: RedisConfig, user: String) -> Self {
        let layer = SessionLayer::new(RedisStore::new(config)).limits(Limits::none());
        let sessions = layer.sessions();
        let token = loop {
            if let Ok(token) = sessions.create(user.as_str()).await {
                break token;
            }
        };
        Self { sessions, user, token }
    }

    /// Both a read and a write are answered; `true` when both are served.
    async fn is_served(&self, what: &str) -> bool {
        let read = timeout(PATIENCE, self.sessions.is_valid(&self.token)).await.expect("a read hangs");
        assert_ne!(read.as_ref().ok(), Some(&false), "{what}: an outage is no missing session");
        let write = timeout(PATIENCE, self.sessions.create(self.user.as_str())).await.expect("a write hangs");
        read.is_ok() && write.is_ok()
    }

    async fn survives(&self, server: &RedisServer, (name, begin, end): (&str, &[&str], &[&str])) {
        // Over this one connection it can be ended, whoever else is let in.
        let mut control = server.connect().await.unwrap();
        for command in begin {
            command_on(&mut control, command).await.unwrap();
        }
        for _ in 0..20 {
            self.is_served(name).await;
        }
        for command in end {
            command_on(&mut control, command).await.unwrap();
        }
        eventually(name, async || self.is_served(name).await).await;
        eventually(name, async || self.sessions.health().await.status == HealthStatus::Up).await;
    }
}

#[tokio::test]
async fn behind_sentinels() {
    let all = Sentinels::start().await;
    let config = RedisConfig::sentinel(all.addresses(), all.master_name()).unwrap();
    let scene = Scene::new(config, "ana".into()).await;
    for fault in FAULTS {
        // Whoever is the master by now: the Sentinels may have chosen another.
        eventually("a master that serves", async || scene.is_served(fault.0).await).await;
        let master = all.master().await;
        for server in (0..all.servers.len()).filter(|server| *server != master) {
            all.rejoined(server).await;
        }
        scene.survives(&all.servers[master], fault).await;
    }
}

#[tokio::test]
async fn in_a_cluster() {
    let cluster = Cluster::start().await;
    let config = RedisConfig::cluster(cluster.nodes.iter().map(RedisServer::address)).unwrap();
    let mut users = (0..).map(|number| format!("user{number}"));
    let user = loop {
        let user = users.next().unwrap();
        let key = format!("{{{}}}", SessionId::slot_tag_of(&user));
        if cluster.node_of_key(&key).await == 0 {
            break user;
        }
    };
    let scene = Scene::new(config, user).await;
    for fault in FAULTS {
        scene.survives(&cluster.nodes[0], fault).await;
        cluster.settled().await;
    }
}
