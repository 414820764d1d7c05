//! Redis Cluster: three masters and their replicas, which fail, and whose slots move.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod support;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use support::{
    cluster::Cluster,
    eventually,
    redis_server::RedisServer,
    stores::{assert_keeps_the_contract, assert_keeps_the_contract_for_many, assert_serves, patient, sessions},
};
use tokio::task::JoinSet;
use tower_keep::{
    HealthStatus, Limits, NewSession, SessionError, SessionId, SessionLayer, Sessions, Token, WhenFull,
    store::redis::{RedisConfig, RedisStore},
};

fn config(cluster: &Cluster) -> RedisConfig {
    RedisConfig::cluster(cluster.nodes.iter().map(RedisServer::address)).unwrap()
}

/// The slot of a session, or of all sessions of a user.
fn key(tag: &str) -> String {
    format!("{{{tag}}}")
}

/// A user whose sessions this node has.
async fn user_of(cluster: &Cluster, node: usize) -> String {
    for i in 0.. {
        let user = format!("user-{i}");
        if cluster.node_of_key(&key(SessionId::slot_tag_of(&user).as_ref())).await == node {
            return user;
        }
    }
    unreachable!()
}

async fn create_of(sessions: &Sessions, users: &[String]) -> HashMap<String, Token> {
    let mut tokens = HashMap::new();
    for user in users {
        tokens.insert(user.clone(), sessions.create(user.as_str()).await.unwrap());
    }
    tokens
}

/// All replicas have what their masters have.
async fn replicated(cluster: &Cluster) {
    for node in &cluster.nodes[..3] {
        node.command("WAIT 1 0").await;
    }
}

mod contract {
    use super::*;

    #[tokio::test]
    async fn it_is_kept() {
        let cluster = Cluster::start().await;
        assert_keeps_the_contract(config(&cluster)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_kept_for_many_at_once_with_places() {
        let cluster = Cluster::start().await;
        assert_keeps_the_contract_for_many(config(&cluster).max_sessions(1_000_000)).await;
    }
}
