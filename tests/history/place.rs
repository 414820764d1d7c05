//! The Redis deployment.

use std::time::Duration;

use tower_keep::SessionId;

use super::{
    client::{Random, USERS},
    support::{
        cluster::Cluster,
        eventually,
        redis_server::{Loading, Reached, RedisServer, text},
        sentinel::{Passwords, Sentinels},
    },
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Alone,
    /// The same, with a connection pool.
    Pool,
    Sentinel,
    Cluster,
}

/// The servers, each behind a proxy.
pub enum Place {
    Alone(Box<RedisServer>),
    Pool(Box<RedisServer>),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

impl Place {
    pub async fn start(kind: Kind) -> Self {
        let how = Reached::ThroughProxies;
        match kind {
            Kind::Alone => Self::Alone(Box::new(Self::server_alone().await)),
            Kind::Pool => Self::Pool(Box::new(Self::server_alone().await)),
            Kind::Sentinel => Self::Sentinel(Sentinels::start_reached(&how, Passwords::default(), &[]).await),
            Kind::Cluster => Self::Cluster(Cluster::start_reached(&how, &[]).await),
        }
    }

    /// Acknowledged writes are on disk: a restart loses nothing.
    async fn server_alone() -> RedisServer {
        let durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "1000000", "1000000"];
        let mut redis = RedisServer::stopped_with(&[&durable, &*Loading::args()].concat());
        redis.be_reached(&Reached::ThroughProxies).await;
        redis.run().await;
        redis
    }

    /// The arguments of a server process. With replicas, this many confirm ends and rotations.
    pub fn address(&self, replicas: usize) -> String {
        match self {
            Self::Alone(redis) => redis.url(),
            Self::Pool(redis) => format!("pool {}", redis.url()),
            Self::Sentinel(scene) => {
                format!("sentinel {replicas} {} {}", scene.master_name(), scene.addresses().join(" "))
            }
            Self::Cluster(scene) => {
                let nodes: Vec<_> = scene.nodes.iter().map(RedisServer::address).collect();
                format!("cluster {replicas} {}", nodes.join(" "))
            }
        }
    }

    /// The time between two operations of a client: if a failover takes seconds, the client must not be
    /// finished before.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Alone(_) | Self::Pool(_) => Duration::ZERO,
            Self::Sentinel(_) | Self::Cluster(_) => Duration::from_millis(50),
        }
    }

    pub async fn master_dies(&mut self, random: &mut Random) {
        match self {
            Self::Alone(redis) | Self::Pool(redis) => redis.run().await,
            Self::Sentinel(scene) => {
                let old = scene.master().await;
                scene.servers[old].stop();
                scene.switched(old).await;
                scene.servers[old].run().await;
                scene.settled().await;
            }
            Self::Cluster(scene) => {
                let node = scene.master_of(random.below(3) as usize).await;
                scene.kill(node);
                scene.failed_over(node).await;
                scene.restart(node).await;
                scene.settled().await;
            }
        }
    }

    /// A planned failover. In a cluster it loses nothing.
    pub async fn master_hands_over(&mut self, random: &mut Random) {
        match self {
            Self::Alone(_) | Self::Pool(_) => unreachable!("there is nobody to take over"),
            Self::Sentinel(scene) => {
                scene.hands_over().await;
                scene.settled().await;
            }
            Self::Cluster(scene) => {
                let node = scene.master_of(random.below(3) as usize).await;
                scene.failover(node).await;
                scene.settled().await;
            }
        }
    }

    /// Moves the slot of a user to another node.
    pub async fn slot_moves(&mut self, random: &mut Random) {
        let Self::Cluster(scene) = self else { unreachable!("there are no slots") };
        let user = format!("user{}", random.below(USERS));
        let slot = scene.slot(&format!("{{{}}}", SessionId::slot_tag_of(&user))).await;
        let from = scene.node_of_slot(slot).await;
        let to = loop {
            let to = scene.master_of(random.below(3) as usize).await;
            if to != from {
                break to;
            }
        };
        scene.migrate_slot(slot, to).await;
    }

    /// One of the servers that have sessions.
    pub async fn server(&mut self, random: &mut Random) -> &mut RedisServer {
        match self {
            Self::Alone(redis) | Self::Pool(redis) => redis,
            Self::Sentinel(scene) => {
                let master = scene.master().await;
                &mut scene.servers[master]
            }
            Self::Cluster(scene) => {
                let node = scene.master_of(random.below(3) as usize).await;
                &mut scene.nodes[node]
            }
        }
    }

    /// Waits until Redis has noticed that the servers are gone, and has applied what they had sent. Data in transit
    /// is lost.
    pub async fn settles(&self) {
        let all = match self {
            Self::Alone(redis) | Self::Pool(redis) => std::slice::from_ref(&**redis),
            Self::Sentinel(scene) => &scene.servers,
            Self::Cluster(scene) => &scene.nodes,
        };
        for redis in all {
            // Silently dropped connections do not report the end of the servers either.
            redis.proxy().close_connections();
            eventually("only this process is connected", async || {
                let Ok(clients) = redis.try_command("CLIENT LIST TYPE normal").await else { return false };
                text(&clients).trim().lines().filter(|client| !client.contains("name=sentinel")).count() == 1
            })
            .await;
        }
    }
}
