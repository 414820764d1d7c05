//! Redis Sentinel: failovers, and Sentinels that are down.

use std::time::Duration;

use crate::support::{
    eventually,
    redis_server::{RedisServer, text},
    sentinel::{Passwords, Sentinels},
    stores::{assert_keeps_the_contract, assert_keeps_the_contract_for_many, assert_serves, patient, sessions},
};
use tower_keep::{HealthStatus, Sessions, Token, store::redis::RedisConfig};

fn config(scene: &Sentinels) -> RedisConfig {
    RedisConfig::sentinel(scene.addresses(), scene.master_name()).unwrap()
}

async fn is_served(sessions: &Sessions) -> bool {
    sessions.create("ana").await.is_ok()
}

async fn is_well(sessions: &Sessions) -> bool {
    sessions.health().await.status == HealthStatus::Up
}

/// A session on all servers, and one that this process has ended.
struct Known {
    kept: Token,
    ended: Token,
}

impl Known {
    async fn new(scene: &Sentinels, sessions: &Sessions) -> Self {
        eventually("it is served", async || is_served(sessions).await).await;
        let known = Self { kept: sessions.create("ana").await.unwrap(), ended: sessions.create("ana").await.unwrap() };
        scene.master_server().await.command("WAIT 2 0").await;
        known
    }

    async fn is_as_it_was(&self, sessions: &Sessions) {
        eventually("it is served", async || is_served(sessions).await).await;
        assert!(sessions.is_valid(&self.kept).await.unwrap(), "no session is lost");
        assert!(!sessions.is_valid(&self.ended).await.unwrap(), "what has ended stays so");
        eventually("all is well", async || is_well(sessions).await).await;
    }
}

mod contract {
    use super::*;

    #[tokio::test]
    async fn holds() {
        assert_keeps_the_contract(config(&Sentinels::start().await)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn holds_for_many_threads() {
        assert_keeps_the_contract_for_many(config(&Sentinels::start().await)).await;
    }
}

mod connecting {
    use super::*;

    #[tokio::test]
    async fn with_both_passwords_and_any_sentinel() {
        let passwords = Passwords { servers: Some("open-sesame"), sentinels: Some("who-goes-there") };
        let mut scene = Sentinels::start_with(passwords, &[]).await;
        let both = || config(&scene).login("default", "open-sesame").sentinel_login("default", "who-goes-there");
        assert_serves(both()).await;
        for (config, cause) in [
            (config(&scene).login("default", "open-sesame"), "NOAUTH"),
            (config(&scene).sentinel_login("default", "who-goes-there"), "NOAUTH"),
            (config(&scene).sentinel_login("default", "no-idea"), "WRONGPASS"),
        ] {
            let sessions = sessions(patient(config));
            assert!(!is_served(&sessions).await);
            let health = sessions.health().await;
            assert_eq!(health.status, HealthStatus::Down);
            assert!(health.cause.as_ref().is_some_and(|said| said.contains(cause)), "{health:?}");
            let said = format!("{health:?}");
            assert!(!["open-sesame", "who-goes-there", "no-idea"].iter().any(|secret| said.contains(secret)), "{said}");
        }

        // A user with the documented rights, on servers and Sentinels.
        for server in &scene.servers {
            let commands = "+get +pttl +set +pexpire +unlink +time +eval +evalsha +zadd +zcount +zrange +zrem \
                            +zremrangebyscore +zscan +zscore +role";
            server.add_user("app", "app-password", &format!("resetchannels ~sess:* -@all {commands}")).await;
        }
        for sentinel in &scene.sentinels {
            let rules = "resetchannels &+switch-master -@all +sentinel|get-master-addr-by-name +subscribe";
            sentinel.add_user("app", "app-password", rules).await;
        }
        let app = || config(&scene).login("app", "app-password").sentinel_login("app", "app-password");
        assert_serves(app()).await;
        let subscribed = sessions(patient(app()));
        assert!(is_served(&subscribed).await);
        for sentinel in &scene.sentinels {
            let subscribers = async || {
                let clients = text(&sentinel.command("CLIENT LIST").await);
                clients.lines().any(|client| client.contains("user=app") && client.contains(" sub=1 "))
            };
            eventually("every Sentinel is listened to", subscribers).await;
        }

        // From the environment and from a file. Neither is shown.
        let addresses = scene.addresses();
        let vars = |name: &str| match name {
            "REDIS_SENTINELS" => Some(addresses.join(",")),
            "REDIS_SENTINEL_MASTER" => Some(scene.master_name().to_owned()),
            "REDIS_PASSWORD" => Some("open-sesame".to_owned()),
            "REDIS_SENTINEL_PASSWORD" => Some("who-goes-there".to_owned()),
            _ => None,
        };
        let file = serde_json::json!({
            "sentinels": addresses, "sentinel_master": scene.master_name(), "username": "app", "password": "app-password",
            "sentinel_username": "app", "sentinel_password": "app-password",
        });
        for config in [RedisConfig::from_vars(vars).unwrap().unwrap(), serde_json::from_value(file).unwrap()] {
            let shown = format!("{config:?}");
            assert!(!["open-sesame", "who-goes-there", "app-password"].iter().any(|secret| shown.contains(secret)));
            assert_serves(config).await;
        }
        let vars = |name: &str| match name {
            "REDIS_SENTINEL_USERNAME" => Some("app".to_owned()),
            name => vars(name).filter(|_| name != "REDIS_SENTINEL_PASSWORD"),
        };
        let error = RedisConfig::from_vars(vars).unwrap_err();
        assert_eq!(error.to_string(), "REDIS_SENTINEL_USERNAME: a user name without a password");

        let config = both();
        scene.sentinels[0].stop();
        scene.sentinels[1].pause();
        assert_serves(config).await;
    }

    #[tokio::test]
    async fn an_unknown_master_is_an_error() {
        let scene = Sentinels::start().await;
        let sessions_of = |config| sessions(patient(config));
        let other = sessions_of(RedisConfig::sentinel(scene.addresses(), "other").unwrap());
        assert!(!is_served(&other).await);
        let health = other.health().await;
        assert!(
            health.cause.as_ref().is_some_and(|said| said.contains("no Sentinel knows a master of this name")),
            "{health:?}"
        );
        // A server that is not a Sentinel, and a closed port.
        let no_sentinel = sessions_of(RedisConfig::sentinel([scene.servers[0].address()], "keep").unwrap());
        assert!(!is_served(&no_sentinel).await);
        let health = no_sentinel.health().await;
        assert!(health.cause.as_ref().is_some_and(|said| said.contains("unknown command")), "{health:?}");
        let nobody = sessions_of(RedisConfig::sentinel([RedisServer::stopped().address()], "keep").unwrap());
        assert!(!is_served(&nobody).await);
        assert_eq!(nobody.health().await.status, HealthStatus::Down);
        // From the environment.
        let addresses = scene.addresses().join(",");
        let vars = |name: &str| match name {
            "REDIS_SENTINELS" => Some(addresses.clone()),
            "REDIS_SENTINEL_MASTER" => Some(scene.master_name().to_owned()),
            _ => None,
        };
        assert_serves(RedisConfig::from_vars(vars).unwrap().unwrap()).await;
    }
}

mod failing_over {
    use super::*;

    #[tokio::test]
    async fn planned_again_and_again() {
        let scene = Sentinels::start().await;
        let sessions = sessions(config(&scene));
        for _ in 0..2 {
            let known = Known::new(&scene, &sessions).await;
            assert!(sessions.revoke(&known.ended.id()).await.unwrap());
            scene.hands_over().await;
            known.is_as_it_was(&sessions).await;
            scene.settled().await;
        }
    }

    #[tokio::test]
    async fn master_and_a_sentinel_killed() {
        let mut scene = Sentinels::start().await;
        let sessions = sessions(config(&scene));
        let known = Known::new(&scene, &sessions).await;
        // Only this process knows of the end: replication is cut.
        for replica in &scene.servers[1..] {
            replica.pause();
        }
        assert!(sessions.revoke(&known.ended.id()).await.unwrap());
        scene.servers[0].stop();
        for replica in &scene.servers[1..] {
            replica.resume();
        }
        scene.sentinels[2].stop();
        assert!(!is_served(&sessions).await);
        scene.switched(0).await;
        known.is_as_it_was(&sessions).await;
        // Others see it too, after this lookup.
        assert!(!crate::support::stores::sessions(patient(config(&scene))).is_valid(&known.ended).await.unwrap());
        scene.servers[0].run().await;
        scene.rejoined(0).await;
        known.is_as_it_was(&sessions).await;
    }

    #[tokio::test]
    async fn master_hung_and_returned() {
        let scene = Sentinels::start().await;
        let sessions = sessions(config(&scene));
        let known = Known::new(&scene, &sessions).await;
        assert!(sessions.revoke(&known.ended.id()).await.unwrap());
        scene.servers[0].pause();
        assert!(!is_served(&sessions).await);
        let new = scene.switched(0).await;
        known.is_as_it_was(&sessions).await;
        scene.servers[0].resume();
        scene.rejoined(0).await;
        known.is_as_it_was(&sessions).await;
        assert_eq!(scene.master().await, new);
    }

    /// A demoted master serves reads but is not a master: the store leaves it, and retries as long as there is no other.
    #[tokio::test]
    async fn master_demoted() {
        let scene = Sentinels::start().await;
        let sessions = sessions(config(&scene));
        eventually("it is served", async || is_served(&sessions).await).await;
        scene.servers[0].command(&format!("REPLICAOF 127.0.0.1 {}", scene.servers[1].port())).await;
        eventually("it is noticed", async || {
            let health = sessions.health().await;
            health.cause.is_some_and(|cause| cause.contains("no master is known"))
        })
        .await;
        assert!(!is_served(&sessions).await);
        scene.servers[0].command("REPLICAOF NO ONE").await;
        eventually("it is served", async || is_served(&sessions).await).await;
        eventually("all is well", async || is_well(&sessions).await).await;
    }

    #[tokio::test]
    async fn the_sentinels_are_needed_only_for_a_failover() {
        let mut scene = Sentinels::start().await;
        let sessions = sessions(config(&scene));
        eventually("it is served", async || is_served(&sessions).await).await;
        scene.sentinels.iter_mut().for_each(RedisServer::stop);
        for _ in 0..20 {
            assert!(is_served(&sessions).await && is_well(&sessions).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The connection is lost, and no Sentinel replies.
        scene.servers[0].command("CLIENT KILL TYPE normal").await;
        eventually("it is an outage", async || !is_served(&sessions).await).await;
        assert_eq!(sessions.health().await.status, HealthStatus::Down);
        for sentinel in &mut scene.sentinels {
            sentinel.run().await;
        }
        eventually("it is served", async || is_served(&sessions).await).await;
        scene.hands_over().await;
        eventually("it is served by another", async || is_served(&sessions).await).await;
        eventually("all is well", async || is_well(&sessions).await).await;
    }

    /// A write with too few replicas fails, and the health check reports it without another write.
    #[tokio::test]
    async fn replicas_confirm_the_writes() {
        let scene = Sentinels::start().await;
        let sessions = sessions(config(&scene).timeout(Duration::from_secs(2)).wait_for_replicas(2));
        let known = Known::new(&scene, &sessions).await;
        assert!(sessions.revoke(&known.ended.id()).await.unwrap());
        for replica in &scene.servers[1..] {
            assert!(!replica.get(&key(&known.ended)).await.contains(r#""v":"#), "they know");
        }
        scene.servers[2].pause();
        assert!(sessions.revoke(&known.kept.id()).await.is_err());
        let health = sessions.health().await;
        assert_eq!(health.status, HealthStatus::Degraded, "{health:?}");
        assert!(health.cause.as_ref().unwrap().contains("too few replicas"), "{health:?}");
        assert!(is_served(&sessions).await, "what may come undone is served");
        scene.servers[2].resume();
        eventually("all is well", async || is_well(&sessions).await).await;
        assert!(!sessions.is_valid(&known.kept).await.unwrap(), "it was ended all the same");
    }

    fn key(token: &Token) -> String {
        let id = token.id().to_string();
        let (tag, rest) = id.split_at(12);
        format!("sess:{{{tag}}}:{rest}")
    }
}
