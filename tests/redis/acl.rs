//! Redis ACL users with exactly the rights that sessions need.

use std::time::Duration;

use crate::support::{
    eventually,
    redis_server::{RedisServer, text},
    stores::{assert_keeps_the_contract, assert_serves, patient, sessions},
};
use bb8::Pool;
use bb8_redis::RedisConnectionManager;
use redis::Value;
use tower_keep::{
    Consumed, HealthStatus, KeyValue, KeyValueError, SessionError,
    store::{
        Cursor, StoreError,
        redis::{RedisConfig, RedisStore},
    },
};

/// The documented rule.
const SESSIONS: &str =
    "get pttl set pexpire unlink time eval evalsha zadd zcount zrange zrem zremrangebyscore zscan zscore";
const SCANS: &str = "scan getrange";
const PLACES: &str = "zcard";
const EVENTS: &str = "xadd xrange xrevrange";
const VALUES: &str = "exists incrby";

fn rules(commands: &[&str]) -> String {
    let allowed: Vec<_> = commands.iter().flat_map(|some| some.split(' ')).map(|name| format!("+{name}")).collect();
    format!("resetchannels ~sess:* -@all {}", allowed.join(" "))
}

/// The commands that were denied.
async fn denied(server: &RedisServer) -> Vec<String> {
    let Value::Array(entries) = server.command("ACL LOG").await else { panic!("not a list") };
    let field = |entry: &Value, name: &str| {
        let Value::Array(fields) = entry else { panic!("not an entry") };
        fields.chunks(2).find(|pair| text(&pair[0]) == name).map(|pair| text(&pair[1])).unwrap()
    };
    entries.iter().map(|entry| field(entry, "object")).collect()
}

#[tokio::test]
async fn the_documented_acl_rule_is_sufficient_and_minimal() {
    let server = RedisServer::start().await;
    let all = [SESSIONS, SCANS, PLACES, EVENTS, VALUES];
    server.add_user("app", "app-password", &rules(&all)).await;
    let config = RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap();
    assert_keeps_the_contract(config.clone()).await;

    // Global keys, and an end that cannot be recorded because memory is full.
    let config = patient(config).max_sessions(2).share_events(100);
    let (here, elsewhere) = (sessions(config.clone()), sessions(config));
    let mut events = here.events().await.unwrap();
    let token = elsewhere.create("ana").await.unwrap();
    assert_eq!(events.next().await.unwrap().session(), token.id());
    here.create("ben").await.unwrap();
    assert!(matches!(here.create("cid").await.unwrap_err(), SessionError::Full));
    server.command("CONFIG SET maxmemory 1").await;
    assert!(here.revoke(&token.id()).await.unwrap());
    assert!(here.create("cid").await.is_err());
    assert_eq!(here.health().await.status, HealthStatus::Degraded);
    server.command("CONFIG SET maxmemory 0").await;
    assert_eq!(here.health().await.status, HealthStatus::Up);

    assert_keeps_values(&here.key_value().unwrap()).await;

    let denied = denied(&server).await;
    assert!(denied.iter().all(|command| ["ping", "client|setinfo", "client"].contains(&&**command)), "{denied:?}");
    for command in all.iter().flat_map(|some| some.split(' ')) {
        assert!(server.calls(command).await > 0, "{command} is never used");
    }
}

/// Each operation on values.
async fn assert_keeps_values(values: &KeyValue) {
    values.set("a", "1", Duration::from_secs(60)).await.unwrap();
    assert_eq!(values.incr("a").await.unwrap(), 2);
    assert!(values.exists("a").await.unwrap() && values.expire("a", Duration::from_secs(60)).await.unwrap());
    assert_eq!(values.mget(&["a"]).await.unwrap(), [Some(b"2".to_vec())]);
    let mut place = Some(Cursor::start());
    while let Some(from) = place {
        place = values.scan("*", &from, 100).await.unwrap().next;
    }
    assert!(values.del("a").await.unwrap());
}

/// Without scans, values need two more rights than sessions, and only their own keys.
#[tokio::test]
async fn values_need_few_more_rights() {
    let server = RedisServer::start().await;
    server.add_user("app", "app-password", &rules(&[SESSIONS, VALUES])).await;
    let store = RedisStore::new(patient(RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap()));
    let values = KeyValue::new(store).unwrap();
    values.set("a", "1", None).await.unwrap();
    assert_eq!(values.incr("a").await.unwrap(), 2);
    assert!(values.exists("a").await.unwrap() && values.expire("a", Duration::from_secs(60)).await.unwrap());
    assert!(values.get("a").await.unwrap().is_some() && values.del("a").await.unwrap());
    let refused = values.scan("*", &Cursor::start(), 100).await;
    assert!(matches!(refused, Err(KeyValueError::Store(StoreError::Configuration(_)))), "{refused:?}");

    server.add_user("app", "app-password", &rules(&[SESSIONS])).await;
    for refused in [values.exists("a").await.unwrap_err(), values.incr("a").await.unwrap_err()] {
        assert!(matches!(refused, KeyValueError::Store(StoreError::Configuration(_))), "{refused:?}");
    }
    assert!(!values.del("a").await.unwrap(), "the rest goes on");
}

/// Rights for optional settings, and commands that hosted servers lack, are needed only with these settings.
#[tokio::test]
async fn the_minimal_rule_is_enough_for_a_service() {
    let server = RedisServer::start().await;
    server.add_user("app", "app-password", &rules(&[SESSIONS])).await;
    let config = RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap();
    assert_serves(config.clone()).await;
    let sessions = sessions(patient(config));
    let tokens = [sessions.create("ben").await.unwrap(), sessions.create("ben").await.unwrap()];
    assert_eq!(sessions.list("ben").await.unwrap().len(), 2);
    sessions.revoke_others("ben", &tokens[0].id()).await.unwrap();
    assert!(sessions.is_valid(&tokens[0]).await.unwrap() && !sessions.is_valid(&tokens[1]).await.unwrap());
    assert!(matches!(sessions.consume(&tokens[0]).await.unwrap(), Consumed::Now(_)));

    // A denied operation fails with an error, and everything else works.
    assert!(matches!(sessions.count().await.unwrap_err(), StoreError::Configuration(_)));
    assert!(matches!(sessions.scan().next().await.unwrap().unwrap_err(), StoreError::Configuration(_)));
    sessions.create("ana").await.unwrap();
    assert_eq!(sessions.health().await.status, HealthStatus::Up);
}

/// A denied ping is a reply, so the connection is kept.
#[tokio::test]
async fn a_connection_without_the_right_to_ping_is_kept() {
    let server = RedisServer::start().await;
    server.add_user("app", "app-password", &rules(&[SESSIONS])).await;
    assert_serves(RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap()).await;
    let sessions = sessions(patient(RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap()));
    sessions.create("ana").await.unwrap();
    let begin = server.calls("ping").await;
    let pinged = async || denied(&server).await.contains(&"ping".to_owned()) && server.calls("ping").await > begin;
    eventually("it is refused a ping", pinged).await;
    sessions.create("ana").await.unwrap();
    let clients = text(&server.command("CLIENT LIST").await);
    assert_eq!(clients.lines().filter(|client| client.contains("user=app")).count(), 1, "{clients}");
}

/// Keys outside the prefix are out of reach.
#[tokio::test]
async fn other_keys_are_out_of_reach() {
    let server = RedisServer::start().await;
    server.add_user("app", "app-password", &rules(&[SESSIONS])).await;
    let config = RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap();
    let others = sessions(patient(config.prefix("shop:").unwrap()));
    assert!(others.create("ana").await.is_err());
    assert_eq!(others.health().await.status, HealthStatus::Down);
    assert!(
        others.health().await.cause.unwrap().to_lowercase().contains("no permissions"),
        "{:?}",
        others.health().await
    );
    assert_eq!(server.keys().await, [""; 0]);
}

/// The documented rule is the tested one.
#[test]
fn the_rule_is_documented() {
    let docs = include_str!("../../src/store/redis/mod.rs");
    let rule: Vec<_> = docs.lines().skip_while(|line| !line.contains("ACL SETUSER app")).take(2).collect();
    let documented: Vec<_> =
        rule.iter().flat_map(|line| line.split(' ')).filter_map(|word| word.strip_prefix('+')).collect();
    assert_eq!(documented, SESSIONS.split(' ').collect::<Vec<_>>());
    for some in [SCANS, PLACES, EVENTS, VALUES] {
        assert!(docs.contains(&format!("| `+{}` |", some.replace(' ', " +"))), "{some}");
    }
}

#[tokio::test]
async fn another_database_replicas_and_a_testing_pool_need_one_more_right_each() {
    let server = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&server).await;
    let config = || RedisConfig::from_url(&server.url_as("app", "app-password")).unwrap();
    let in_database = RedisConfig::from_url(&format!("{}2", server.url_as("app", "app-password"))).unwrap();
    let manager = RedisConnectionManager::new(server.url_as("app", "app-password")).unwrap();
    let pool = || Pool::builder().connection_timeout(Duration::from_millis(500)).build_unchecked(manager.clone());
    for (right, config) in
        [("select", in_database), ("wait", config().wait_for_replicas(1)), ("ping", RedisConfig::from_pool(pool()))]
    {
        server.add_user("app", "app-password", &rules(&[SESSIONS])).await;
        let ends_one = async |config: RedisConfig| {
            let sessions = sessions(patient(config));
            match sessions.create("ana").await {
                Ok(token) => sessions.revoke(&token.id()).await.is_ok_and(|revoked| revoked),
                Err(_) => false,
            }
        };
        assert!(!ends_one(config.clone()).await, "{right} was not needed");
        server.add_user("app", "app-password", &rules(&[SESSIONS, right])).await;
        assert!(ends_one(config).await, "{right} was not enough");
    }
    assert!(replica.is_in_sync().await);
}
