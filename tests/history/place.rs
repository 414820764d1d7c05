//! Where the sessions are.

use std::time::Duration;

use super::{
    client::Random,
    support::{
        cluster::Cluster,
        eventually,
        redis_server::{RedisServer, text},
        sentinel::Sentinels,
    },
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Alone,
    Sentinel,
    Cluster,
}

pub enum Place {
    Alone(RedisServer),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

impl Place {
    pub async fn start(kind: Kind) -> Self {
        match kind {
            // What it acknowledged is on its disk: a restart loses nothing.
            Kind::Alone => {
                Self::Alone(RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await)
            }
            Kind::Sentinel => Self::Sentinel(Sentinels::start().await),
            Kind::Cluster => Self::Cluster(Cluster::start().await),
        }
    }

    /// What a server is told.
    pub fn address(&self) -> String {
        match self {
            Self::Alone(redis) => redis.url(),
            Self::Sentinel(scene) => format!("sentinel {} {}", scene.master_name(), scene.addresses().join(" ")),
            Self::Cluster(scene) => {
                let nodes: Vec<_> = scene.nodes.iter().map(RedisServer::address).collect();
                format!("cluster {}", nodes.join(" "))
            }
        }
    }

    /// How long a client waits between two operations: where it takes seconds until another master is there, it must not be
    /// through by then.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Alone(_) => Duration::ZERO,
            Self::Sentinel(_) | Self::Cluster(_) => Duration::from_millis(50),
        }
    }

    pub async fn master_dies(&mut self, random: &mut Random) {
        match self {
            Self::Alone(redis) => redis.run().await,
            Self::Sentinel(scene) => {
                let old = scene.master().await;
                scene.servers[old].stop();
                scene.switched(old).await;
                scene.servers[old].run().await;
                scene.rejoined(old).await;
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

    /// What the servers sent before they were killed is done when Redis has noticed that they are gone.
    pub async fn settles(&self) {
        let all = match self {
            Self::Alone(redis) => std::slice::from_ref(redis),
            Self::Sentinel(scene) => &scene.servers,
            Self::Cluster(scene) => &scene.nodes,
        };
        for redis in all {
            eventually("only this process is connected", async || {
                let Ok(clients) = redis.try_command("CLIENT LIST TYPE normal").await else { return false };
                text(&clients).trim().lines().filter(|client| !client.contains("name=sentinel")).count() == 1
            })
            .await;
        }
    }
}
