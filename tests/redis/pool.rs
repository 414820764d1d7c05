//! A connection pool of the application.

use std::time::Duration;

use crate::support::{
    eventually,
    proxy::Proxy,
    redis_server::RedisServer,
    stores::{
        PATIENCE, assert_keeps_the_contract, assert_keeps_the_contract_for_many, assert_serves, patient, sessions,
    },
};
use bb8::Pool;
use bb8_redis::RedisConnectionManager;
use redis::{ConnectionInfo, IntoConnectionInfo, RedisError, Value, io::tcp::TcpSettings};
use tokio::task::JoinSet;
use tower_keep::{
    HealthStatus,
    store::{
        StoreExt,
        redis::{PooledConnection, RedisConfig, RedisPool, RedisStore},
    },
};

type Bb8Pool = Pool<RedisConnectionManager>;

fn pool(url: &str, connections: u32) -> Bb8Pool {
    let manager = RedisConnectionManager::new(url).unwrap();
    Pool::builder().max_size(connections).connection_timeout(PATIENCE).build_unchecked(manager)
}

/// Fast settings: TCP_NODELAY, and no ping before every use.
#[tokio::test]
async fn bb8_keeps_the_contract() {
    let server = RedisServer::start().await;
    let info: ConnectionInfo = server.url().into_connection_info().unwrap();
    let manager = RedisConnectionManager::new(info.set_tcp_settings(TcpSettings::default().set_nodelay(true))).unwrap();
    let pool = Pool::builder().max_size(2).test_on_check_out(false).build_unchecked(manager);
    assert_keeps_the_contract(RedisConfig::from_pool(pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bb8_keeps_the_contract_for_many_threads() {
    let server = RedisServer::start().await;
    assert_keeps_the_contract_for_many(RedisConfig::from_pool(pool(&server.url(), 4))).await;
}

/// A pool of another library behind the trait.
struct Deadpool(deadpool_redis::Pool);

impl Deadpool {
    fn new(url: &str) -> Self {
        let runtime = Some(deadpool_redis::Runtime::Tokio1);
        Self(deadpool_redis::Config::from_url(url).create_pool(runtime).unwrap())
    }
}

impl RedisPool for Deadpool {
    fn connection(&self) -> PooledConnection<'_> {
        Box::pin(async { Ok((*self.0.get().await.map_err(deadpool_error)?).clone()) })
    }

    fn dedicated_connection(&self) -> PooledConnection<'_> {
        Box::pin(async { Ok(deadpool_redis::Connection::take(self.0.get().await.map_err(deadpool_error)?)) })
    }
}

fn deadpool_error(error: deadpool_redis::PoolError) -> RedisError {
    match error {
        deadpool_redis::PoolError::Backend(error) => error,
        deadpool_redis::PoolError::Timeout(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        error => std::io::Error::other(error).into(),
    }
}

#[tokio::test]
async fn a_deadpool_keeps_the_contract() {
    let server = RedisServer::start().await;
    assert_keeps_the_contract(RedisConfig::from_pool(Deadpool::new(&server.url()))).await;
}

#[tokio::test]
async fn a_deadpool_survives_a_restart_of_redis() {
    let mut server = RedisServer::stopped();
    let sessions = sessions(patient(RedisConfig::from_pool(Deadpool::new(&server.url()))));
    server.run().await;
    sessions.create("ana").await.unwrap();
    server.stop();
    assert!(sessions.create("ana").await.is_err());
    server.run().await;
    eventually("it serves again", async || sessions.create("ana").await.is_ok()).await;
}

/// RESP2, the default of the client, and RESP3.
#[tokio::test]
async fn both_protocol_versions_work() {
    let server = RedisServer::start().await;
    for protocol in ["resp2", "resp3"] {
        let url = format!("{}?protocol={protocol}", server.url());
        assert_serves(RedisConfig::from_pool(pool(&url, 1))).await;
    }
}

#[tokio::test]
async fn a_connection_is_returned_before_the_reply_arrives() {
    let server = RedisServer::start().await;
    let pool = pool(&server.url(), 1);
    let sessions = sessions(patient(RedisConfig::from_pool(pool.clone())));
    let token = sessions.create("ana").await.unwrap();
    server.pause();
    let mut waiting = JoinSet::new();
    for _ in 0..10 {
        let (sessions, token) = (sessions.clone(), token.clone());
        waiting.spawn(async move { sessions.is_valid(&token).await });
    }
    // All of them wait for Redis, and the only connection is free.
    eventually("it is idle", async || pool.state().idle_connections == 1).await;
    server.resume();
    for valid in waiting.join_all().await {
        assert!(valid.unwrap());
    }
    assert_eq!(pool.state().connections, 1);
}

/// If the application uses all connections, sessions wait at most their timeout, and only once.
#[tokio::test]
async fn an_exhausted_pool_is_bypassed_by_a_dedicated_connection() {
    let server = RedisServer::start().await;
    let pool = pool(&server.url(), 1);
    let sessions = sessions(RedisConfig::from_pool(pool.clone()).timeout(Duration::from_millis(200)));
    let taken = pool.get().await.unwrap();
    assert!(sessions.create("ana").await.is_err());
    eventually("it serves", async || sessions.create("ana").await.is_ok()).await;
    assert_eq!(sessions.health().await.status, HealthStatus::Up);
    drop(taken);
}

/// A firewall has forgotten the connection: the pool does not notice, and lends it again.
#[tokio::test]
async fn a_half_open_connection_is_replaced() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    for pings in [false, true] {
        let manager = RedisConnectionManager::new(proxy.url()).unwrap();
        let pool = Pool::builder().max_size(1).test_on_check_out(pings).build_unchecked(manager);
        let sessions = sessions(RedisConfig::from_pool(pool));
        let token = sessions.create("ana").await.unwrap();
        for _ in 0..2 {
            proxy.strand_connections();
            eventually("it serves", async || sessions.is_valid(&token).await.is_ok_and(|valid| valid)).await;
        }
        proxy.close_connections();
        eventually("it serves", async || sessions.is_valid(&token).await.is_ok_and(|valid| valid)).await;
    }
}

/// Waiting for replicas delays neither the application nor other requests.
#[tokio::test]
async fn waiting_for_replicas_uses_a_dedicated_connection() {
    let server = RedisServer::start().await;
    let pool = pool(&server.url(), 1);
    let sessions = sessions(patient(RedisConfig::from_pool(pool.clone()).wait_for_replicas(1)));
    let tokens = [sessions.create("ana").await.unwrap(), sessions.create("ben").await.unwrap()];
    let id = tokens[0].id();
    let revoked = sessions.revoke(&id);
    let concurrent = async {
        eventually("it is revoked", async || !sessions.is_valid(&tokens[0]).await.unwrap()).await;
        // The revocation still waits for a replica that does not exist.
        assert!(sessions.is_valid(&tokens[1]).await.unwrap());
        redis::cmd("PING").query_async::<Value>(&mut *pool.get().await.unwrap()).await.unwrap();
    };
    let (revoked, ()) = tokio::join!(revoked, concurrent);
    assert!(revoked.is_err(), "nobody has confirmed it");
}

#[tokio::test]
async fn a_server_that_was_down_is_used_again() {
    let mut server = RedisServer::start().await;
    let pool = pool(&server.url(), 2);
    let sessions = sessions(RedisConfig::from_pool(pool).timeout(Duration::from_millis(500)));
    sessions.create("ana").await.unwrap();
    for _ in 0..2 {
        server.stop();
        assert!(sessions.create("ana").await.is_err());
        assert_eq!(sessions.health().await.status, HealthStatus::Down);
        server.run().await;
        eventually("it serves", async || sessions.create("ana").await.is_ok()).await;
        eventually("and is well", async || sessions.health().await.status == HealthStatus::Up).await;
    }
    // One connection is cut unnoticed.
    server.command("CLIENT KILL TYPE normal").await;
    sessions.create("ana").await.unwrap();
}

#[tokio::test]
async fn the_health_reports_refused_writes() {
    let server = RedisServer::start().await;
    let sessions = sessions(patient(RedisConfig::from_pool(pool(&server.url(), 2))));
    sessions.create("ana").await.unwrap();
    server.command("CONFIG SET maxmemory 1").await;
    assert!(sessions.create("ana").await.is_err());
    let health = sessions.health().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.cause.unwrap().contains("OOM"));
    server.command("CONFIG SET maxmemory 0").await;
    assert_eq!(sessions.health().await.status, HealthStatus::Up);
}

/// A script that a server does not know, or no longer knows.
#[tokio::test]
async fn flushed_scripts_are_sent_again() {
    let server = RedisServer::start().await;
    let store = RedisStore::from_pool(pool(&server.url(), 2));
    let sessions = tower_keep::SessionLayer::new(store.clone()).sessions();
    for _ in 0..3 {
        sessions.create("ana").await.unwrap();
        assert!(matches!(server.command("SCRIPT FLUSH").await, Value::Okay));
    }
    assert_eq!(store.list("ana").await.unwrap().len(), 3);
}
