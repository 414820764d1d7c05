//! Faults of Redis: during each one, a route without sessions is served, a route that needs a session responds 503
//! within the deadline, and service resumes by itself.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::support::{
    app::App,
    eventually,
    proxy::Proxy,
    redis_server::{Loading, RedisServer, command_on, text},
    service::{COOKIE, HOUR, OK, Service, UNAVAILABLE, WrongClock, answer, assert_unavailable},
};
use http::StatusCode;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    task::JoinSet,
};
use tower_keep::{
    HealthStatus, SessionCookie, SessionLayer, Token,
    store::{
        Cursor, EndOutcome, Health, SessionStore, StoreError, StoreExt,
        redis::{RedisConfig, RedisStore},
    },
};

/// A server that loses nothing when it is killed.
async fn durable() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
}

mod gone {
    use super::*;

    #[tokio::test]
    async fn refused_from_the_start() {
        let mut server = RedisServer::stopped();
        let service = Service::with(RedisConfig::from_url(&server.url()).unwrap()).await;
        service.client.set_cookie(COOKIE, &"a".repeat(56));
        service.is_out().await;
        // Without a cookie there is no lookup, only a write.
        let stranger = service.app.client();
        assert_eq!(answer(&stranger, json!([["get", "k"]])).await.status, OK);
        assert_unavailable(&answer(&stranger, json!([["insert", "k", 1]])).await);
        assert_eq!(service.health().await, HealthStatus::Down);

        server.run().await;
        eventually("serving begins", async || service.read().await.status == OK).await;
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn killed_and_restarted() {
        let mut server = durable().await;
        let service = Service::at(&server.url()).await;
        for round in 1..=3 {
            server.stop();
            service.is_out().await;
            assert_eq!(service.health().await, HealthStatus::Down);
            server.run().await;
            service.resumes(round).await;
        }
    }

    #[tokio::test]
    async fn restarted_without_its_data() {
        let mut server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.run().await;
        eventually("serving resumes", async || service.read().await.status == OK).await;
        assert_eq!(service.read().await.json(), json!([null]), "lost is lost, and no error");
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn killed_during_a_request() {
        let mut server = durable().await;
        let service = Service::at(&server.url()).await;
        for change in [json!(["insert", "k", 2]), json!(["rotate"]), json!(["login", "ben"]), json!(["logout"])] {
            let steps = json!([["get", "k"], change, ["gate", "changed"]]);
            let (reply, ()) = tokio::join!(answer(&service.client, steps), async {
                service.app.reached("changed").await;
                server.stop();
                service.app.open("changed");
            });
            assert_unavailable(&reply);
            server.run().await;
            eventually("serving resumes", async || service.read().await.status == OK).await;
            assert_eq!(service.read().await.json(), json!([1]), "{change} was not saved, and that was said");
        }
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn an_explicit_save_fails_in_the_handler() {
        let mut server = durable().await;
        let service = Service::at(&server.url()).await;
        let steps = json!([["insert", "k", 2], ["gate", "changed"], ["save"]]);
        let (reply, ()) = tokio::join!(answer(&service.client, steps), async {
            service.app.reached("changed").await;
            server.stop();
            service.app.open("changed");
        });
        assert_eq!((reply.status, reply.set_cookies()), (UNAVAILABLE, vec![]));
        server.run().await;
        service.resumes(1).await;
    }
}

mod hung {
    use super::*;

    #[tokio::test]
    async fn paused_and_resumed() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        for round in 1..=2 {
            server.pause();
            service.is_out().await;
            assert_eq!(service.health().await, HealthStatus::Down);
            server.resume();
            service.resumes(round).await;
        }
    }

    #[tokio::test]
    async fn paused_during_a_request() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let steps = json!([["insert", "k", 2], ["gate", "changed"]]);
        let (reply, ()) = tokio::join!(answer(&service.client, steps), async {
            service.app.reached("changed").await;
            server.pause();
            service.app.open("changed");
        });
        assert_unavailable(&reply);
        server.resume();
        // Redis may have applied the write before the pause, or apply it afterwards.
        eventually("serving resumes", async || service.read().await.status == OK).await;
        eventually("writing resumes", async || service.write(3).await.status == OK).await;
        service.resumes(3).await;
        assert_eq!(server.sessions().await.len(), 1);
    }

    #[tokio::test]
    async fn a_late_reply_is_not_taken_for_another() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let service = Service::at(&proxy.url()).await;
        let other = service.app.client();
        other.perform(json!([["login", "ben"], ["insert", "k", "other"]])).await;
        for _ in 0..3 {
            proxy.hold_reply_to("GET");
            assert_unavailable(&service.read().await);
            proxy.release();
            assert_eq!(other.perform(json!([["user"], ["get", "k"]])).await, [json!("ben"), json!("other")]);
            assert_eq!(service.read().await.json(), json!([1]));
        }
    }

    #[tokio::test]
    async fn paused_from_the_start() {
        let server = RedisServer::start().await;
        server.pause();
        let service = Service::with(RedisConfig::from_url(&server.url()).unwrap()).await;
        service.client.set_cookie(COOKIE, &"a".repeat(56));
        service.is_out().await;
        server.resume();
        eventually("serving begins", async || service.read().await.status == OK).await;
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn fifty_concurrent_requests_get_their_responses() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.pause();
        let mut requests = JoinSet::new();
        for i in 0..50 {
            let client = service.client.twin();
            let step = if i % 2 == 0 { json!(["get", "k"]) } else { json!(["insert", "k", i]) };
            requests.spawn(async move { answer(&client, json!([step])).await });
        }
        for reply in requests.join_all().await {
            assert_unavailable(&reply);
        }
        service.serves_the_public().await;
        server.resume();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn no_request_waits_for_a_hung_redis_that_is_known() {
        for fault in [RedisServer::stop, |server: &mut RedisServer| server.pause()] {
            let mut server = RedisServer::start().await;
            let service = Service::at(&server.url()).await;
            fault(&mut server);
            let start = Instant::now();
            for _ in 0..100 {
                assert_unavailable(&service.read().await);
            }
            // A hundred that waited would take 25.
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        }
    }

    #[tokio::test]
    async fn the_configured_timeout_is_respected() {
        let server = RedisServer::start().await;
        let config = RedisConfig::from_url(&server.url()).unwrap();
        let service = Service::with(config.timeout(Duration::from_millis(50))).await;
        service.client.set_cookie(COOKIE, &"a".repeat(56));
        eventually("serving begins", async || service.read().await.status == OK).await;
        server.pause();
        let start = Instant::now();
        assert_unavailable(&service.read().await);
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn slower_than_usual_but_in_time() {
        let server = RedisServer::start().await;
        let config = RedisConfig::from_url(&server.url()).unwrap();
        let service = Service::with(config.timeout(Duration::from_secs(5))).await;
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        for round in 1..=3 {
            server.command("CLIENT PAUSE 200 ALL").await;
            assert_eq!(service.read().await.json(), json!([round]));
            server.command("CLIENT PAUSE 200 ALL").await;
            assert_eq!(service.write(round + 1).await.status, OK);
        }
        assert_eq!(service.layer.stats().outages, 0);
    }

    #[tokio::test]
    async fn slower_than_the_timeout() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("CLIENT PAUSE 2000 ALL").await;
        service.is_out().await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn busy_running_a_script() {
        let server = RedisServer::start_with(&["--lua-time-limit", "1"]).await;
        let service = Service::at(&server.url()).await;
        let mut endless = server.connect().await.unwrap();
        let mut control = server.connect().await.unwrap();
        let script = tokio::spawn(async move {
            redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<redis::Value>(&mut endless).await
        });
        let busy = async || command_on(&mut control.clone(), "PING").await.is_err();
        eventually("the server is busy", busy).await;
        service.is_out().await;
        command_on(&mut control, "SCRIPT KILL").await.unwrap();
        service.resumes(1).await;
        assert!(script.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn writes_paused_as_in_a_failover() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("CLIENT PAUSE 600000 WRITE").await;
        for _ in 0..3 {
            // A write delays everything after it on its connection until it times out.
            assert_unavailable(&service.write(2).await);
            service.serves_the_public().await;
            eventually("reads go on", async || service.read().await.status == OK).await;
            assert_eq!(service.read().await.json(), json!([1]));
        }
        server.command("CLIENT UNPAUSE").await;
        eventually("writing resumes", async || service.write(3).await.status == OK).await;
        service.resumes(3).await;
    }
}

mod refused {
    use super::*;

    #[tokio::test]
    async fn connections_killed_between_requests_cost_no_request() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let mut control = server.connect().await.unwrap();
        for round in 1..=20 {
            command_on(&mut control, "CLIENT KILL TYPE normal SKIPME yes").await.unwrap();
            let read = service.read().await;
            assert_eq!((read.status, read.text()), (OK, format!("[{round}]")));
            command_on(&mut control, "CLIENT KILL TYPE normal SKIPME yes").await.unwrap();
            assert_eq!(service.write(round + 1).await.status, OK);
        }
        assert_eq!(service.layer.stats().outages, 0);
    }

    #[tokio::test]
    async fn too_many_connections() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let mut control = server.connect().await.unwrap();
        command_on(&mut control, "CONFIG SET maxclients 1").await.unwrap();
        command_on(&mut control, "CLIENT KILL TYPE normal SKIPME yes").await.unwrap();
        service.is_out().await;
        assert_eq!(service.health().await, HealthStatus::Down);
        command_on(&mut control, "CONFIG SET maxclients 100").await.unwrap();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn password_changed_and_restored() {
        let mut server = RedisServer::start_with(&["--requirepass", "first"]).await;
        let service = Service::at(&format!("redis://:first@127.0.0.1:{}/", server.port())).await;
        for round in 1..=2 {
            server.set_password("second").await;
            server.command("CLIENT KILL TYPE normal").await;
            service.is_out().await;
            assert_eq!(service.health().await, HealthStatus::Down);
            server.set_password("first").await;
            service.resumes(round).await;
        }
    }

    #[tokio::test]
    async fn password_required_and_removed() {
        let mut server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.set_password("first").await;
        server.command("CLIENT KILL TYPE normal").await;
        service.is_out().await;
        let mut control = server.connect().await.unwrap();
        redis::cmd("CONFIG").arg(&["SET", "requirepass", ""]).query_async::<redis::Value>(&mut control).await.unwrap();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn user_deleted_and_recreated() {
        let server = RedisServer::start().await;
        let create = "ACL SETUSER app on >password ~* &* +@all";
        server.command(create).await;
        let service = Service::at(&format!("redis://app:password@127.0.0.1:{}/", server.port())).await;
        server.command("ACL DELUSER app").await;
        service.is_out().await;
        server.command(create).await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn user_loses_the_right_to_read() {
        let server = RedisServer::start().await;
        server.command("ACL SETUSER app on >password ~* &* +@all").await;
        let service = Service::at(&format!("redis://app:password@127.0.0.1:{}/", server.port())).await;
        for (lost, restored) in [("-get", "+get"), ("-@all", "+@all"), ("resetkeys", "~*")] {
            server.command(&format!("ACL SETUSER app {lost}")).await;
            service.is_out().await;
            server.command(&format!("ACL SETUSER app {restored}")).await;
            assert_eq!(service.read().await.status, OK, "a connection that works needs no other");
        }
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn user_loses_the_right_to_write() {
        let server = RedisServer::start().await;
        server.command("ACL SETUSER app on >password ~* &* +@all").await;
        let service = Service::at(&format!("redis://app:password@127.0.0.1:{}/", server.port())).await;
        for (lost, restored) in [("-evalsha -eval -set", "+evalsha +eval +set"), ("-@write", "+@write")] {
            server.command(&format!("ACL SETUSER app {lost}")).await;
            service.only_reads().await;
            server.command(&format!("ACL SETUSER app {restored}")).await;
        }
        service.resumes(1).await;
    }
}

mod read_only {
    use super::*;

    #[tokio::test]
    async fn out_of_memory() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("CONFIG SET maxmemory 1").await;
        service.only_reads().await;
        assert_eq!(service.health().await, HealthStatus::Degraded);
        // Ending a session needs no memory.
        let other = service.layer.sessions();
        assert!(other.create("ben").await.is_err());
        server.command("CONFIG SET maxmemory 0").await;
        service.resumes(1).await;
        assert_eq!(service.write(2).await.status, OK);
        assert_eq!(service.health().await, HealthStatus::Up);
    }

    #[tokio::test]
    async fn out_of_memory_logout_works() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let dead = service.client.twin();
        server.command("CONFIG SET maxmemory 1").await;
        service.client.one(json!(["logout"])).await;
        assert_eq!(service.client.cookie(COOKIE), None);
        assert_eq!(dead.one(json!(["user"])).await, json!(null));
    }

    /// The replacement of a session needs a tombstone, or both sessions would be lost.
    #[tokio::test]
    async fn out_of_memory_nothing_is_replaced() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap());
        let sessions = SessionLayer::new(store.clone()).sessions();
        let (old, new) = (sessions.create("ana").await.unwrap(), sessions.create("ana").await.unwrap());
        server.command("CONFIG SET maxmemory 1").await;
        assert!(matches!(store.replace(&old.id(), None, &new.id()).await, Err(StoreError::Outage(_))));
        assert!(sessions.is_valid(&old).await.unwrap());
        server.command("CONFIG SET maxmemory 0").await;
        for _ in 0..2 {
            let outcome = store.replace(&old.id(), None, &new.id()).await.unwrap();
            assert!(matches!(outcome, EndOutcome::Done), "it can be repeated: {outcome:?}");
        }
        assert!(!sessions.is_valid(&old).await.unwrap());
    }

    #[tokio::test]
    async fn a_replica() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let nobody = RedisServer::stopped();
        server.command(&format!("REPLICAOF 127.0.0.1 {}", nobody.port())).await;
        for _ in 0..10 {
            service.only_reads().await;
            assert_unavailable(&answer(&service.client, json!([["logout"]])).await);
        }
        server.command("REPLICAOF NO ONE").await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn too_few_replicas() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("CONFIG SET min-replicas-to-write 1").await;
        service.only_reads().await;
        server.command("CONFIG SET min-replicas-to-write 0").await;
        service.resumes(1).await;
    }

    /// It refuses writes from now on.
    async fn fail_to_save(server: &RedisServer, control: &mut MultiplexedConnection) {
        fs::remove_dir_all(server.dir()).unwrap();
        command_on(control, "BGSAVE").await.unwrap();
        let refuses = async || command_on(&mut control.clone(), "SET probe 1").await.is_err();
        eventually("the snapshot failed", refuses).await;
    }

    #[tokio::test]
    async fn unable_to_save_its_snapshot() {
        let server = RedisServer::start_with(&["--save", "1000000", "1000000"]).await;
        let service = Service::at(&server.url()).await;
        let mut control = server.connect().await.unwrap();
        fail_to_save(&server, &mut control).await;
        service.only_reads().await;
        command_on(&mut control, "CONFIG SET stop-writes-on-bgsave-error no").await.unwrap();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn unable_to_save_its_snapshot_is_not_down() {
        let server = RedisServer::start_with(&["--save", "1000000", "1000000"]).await;
        let service = Service::at(&server.url()).await;
        fail_to_save(&server, &mut server.connect().await.unwrap()).await;
        assert_eq!(service.read().await.status, OK);
        assert_ne!(service.health().await, HealthStatus::Down, "reads are served");
    }

    #[tokio::test]
    async fn loading_its_data() {
        let server = RedisServer::start_with(&Loading::args()).await;
        let service = Service::at(&server.url()).await;
        let loading = Loading::of(&server, "").await;
        service.serves_the_public().await;
        assert_unavailable(&service.read().await);
        assert_unavailable(&service.write(99).await);
        loading.ends().await;
        service.resumes(1).await;
    }
}

/// The network between the service and Redis.
mod network {
    use super::*;

    async fn scene() -> (RedisServer, Proxy, Service) {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let service = Service::at(&proxy.url()).await;
        (server, proxy, service)
    }

    #[tokio::test]
    async fn cut_and_healed() {
        let (_server, proxy, service) = scene().await;
        for value in 1..=2 {
            proxy.black_hole();
            service.is_out().await;
            assert_eq!(service.health().await, HealthStatus::Down);
            proxy.heal();
            service.resumes(value).await;
        }
    }

    /// A firewall has forgotten the connection: nothing arrives, and no error either.
    #[tokio::test]
    async fn a_half_open_connection_is_replaced() {
        let (_server, proxy, service) = scene().await;
        for value in 1..=2 {
            proxy.strand_connections();
            service.resumes(value).await;
        }
    }

    #[tokio::test]
    async fn reset_between_requests_costs_no_request() {
        let (_server, proxy, service) = scene().await;
        for value in 2..=10 {
            proxy.reset_connections();
            assert_eq!(service.write(value).await.status, OK);
            assert_eq!(service.read().await.json(), json!([value]));
        }
    }

    #[tokio::test]
    async fn refused_and_accepted_again() {
        let (_server, proxy, service) = scene().await;
        proxy.refuse().await;
        proxy.close_connections();
        service.is_out().await;
        proxy.accept();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn high_latency_within_the_timeout() {
        let (_server, proxy, service) = scene().await;
        proxy.delay_replies(Duration::from_millis(60));
        for value in 2..=4 {
            assert_eq!(service.write(value).await.status, OK);
        }
        assert_eq!(service.layer.stats().outages, 0);
    }

    #[tokio::test]
    async fn latency_over_the_timeout() {
        let (_server, proxy, service) = scene().await;
        proxy.delay_replies(Duration::from_secs(2));
        service.is_out().await;
        proxy.delay_replies(Duration::ZERO);
        eventually("serving resumes", async || service.read().await.status == OK).await;
        // Writes that timed out may have been applied; the last one, if any.
        assert_eq!(service.write(1).await.status, OK);
        service.resumes(1).await;
    }
}

/// Sessions when Redis loses or damages data.
mod data {
    use super::*;

    /// A client whose session is lost is anonymous, and logs in again: no error, and no outage.
    async fn is_gone(service: &Service) {
        let seen = service.client.perform(json!([["user"], ["get", "k"]])).await;
        assert_eq!(json!(seen), json!([null, null]));
        assert_eq!(service.health().await, HealthStatus::Up);
        assert_eq!(service.layer.stats().outages, 0);
        service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn flushed() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("FLUSHALL").await;
        is_gone(&service).await;
        server.command("SCRIPT FLUSH").await;
        service.resumes(2).await;
    }

    /// With `maxmemory-policy allkeys-lru`, sessions are evicted when memory is full.
    #[tokio::test]
    async fn evicted() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.command("CONFIG SET maxmemory-policy allkeys-lru").await;
        server.command("CONFIG SET maxmemory 1").await;
        eventually("all is evicted", async || {
            let _ = server.try_command("SET filler 1").await;
            server.sessions().await.is_empty()
        })
        .await;
        server.command("CONFIG SET maxmemory 0").await;
        is_gone(&service).await;
        // If only the index of the user is evicted, the session stays.
        let index = server.keys().await.into_iter().find(|key| key.ends_with('}')).expect("an index");
        server.command(&format!("DEL {index}")).await;
        assert_eq!(service.layer.sessions().revoke_user("ana").await.unwrap(), 0, "none is known");
        assert_eq!(service.client.one(json!(["user"])).await, json!(null), "and none is left");
    }

    /// A value of the wrong type needs an operator. It is not reported as a missing session.
    #[tokio::test]
    async fn a_key_of_the_wrong_type() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let key = server.sessions().await.remove(0);
        let record = server.get(&key).await;
        server.command(&format!("DEL {key}")).await;
        server.command(&format!("LPUSH {key} x")).await;
        assert_unavailable(&service.read().await);
        assert_unavailable(&service.write(2).await);
        let other = service.app.client();
        other.perform(json!([["login", "ben"], ["insert", "k", 1]])).await;
        assert_eq!(service.health().await, HealthStatus::Up, "one session is ill, and Redis is not");
        server.command(&format!("DEL {key}")).await;
        server.command(&format!("SET {key} {record} PX 60000")).await;
        service.resumes(1).await;
    }

    /// The other keys of a user: the index and the epoch.
    #[tokio::test]
    async fn an_index_of_the_wrong_type() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        let index = server.keys().await.into_iter().find(|key| key.ends_with('}')).expect("an index");
        server.command(&format!("RENAME {index} aside")).await;
        server.command(&format!("SET {index} x")).await;
        assert_eq!(service.read().await.status, OK);
        assert_unavailable(&service.write(2).await);
        assert_eq!(service.read().await.json(), json!([1]), "nothing is written by halves");
        let ben = service.app.client();
        ben.perform(json!([["login", "ben"], ["insert", "k", 1]])).await;
        server.command(&format!("RENAME aside {index}")).await;
        service.resumes(1).await;
        // Logout and revocation do not need the index.
        server.command(&format!("SET {index} x")).await;
        let other = Token::parse(service.client.cookie(COOKIE).unwrap()).unwrap();
        assert_eq!(service.layer.sessions().revoke_user("ana").await.unwrap(), 0, "none is known");
        assert!(!service.layer.sessions().is_valid(&other).await.unwrap(), "and none is left");
        service.client.one(json!(["logout"])).await;
        assert_eq!(service.client.cookie(COOKIE), None);
    }
}

/// The clock of this process jumps, and that of Redis does not.
mod clock {
    use super::*;

    #[tokio::test]
    async fn jumps_by_an_hour() {
        let server = RedisServer::start().await;
        let clock = WrongClock::default();
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap());
        let layer = SessionLayer::new(store).cookie(SessionCookie::development()).clock(clock.clone());
        let app = App::start(layer.clone()).await;
        let right = App::start(
            SessionLayer::new(RedisStore::new(RedisConfig::from_url(&server.url()).unwrap()))
                .cookie(SessionCookie::development()),
        )
        .await;
        let client = app.client();
        client.perform(json!([["login", "ana"], ["insert", "k", 0]])).await;
        for (value, hours) in [1, -1, 0, 1, 0, -1].into_iter().enumerate() {
            clock.is_off_by(hours * HOUR);
            // A session expires after half an hour without use. This one was used.
            assert_eq!(client.perform(json!([["user"], ["insert", "k", value]])).await[0], "ana", "{hours}");
            client.perform(json!([["rotate"], ["insert", "l", value]])).await;
            // Its lifetime is unchanged, and instances with a correct clock see it.
            let seen = client.at(&right.url()).perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
            assert_eq!(json!(seen), json!(["ana", value, value]), "{hours}");
            let left = server.pttl(&server.sessions().await[0]).await;
            assert!((29 * 60_000..=30 * 60_000).contains(&left), "{hours}: {left}");
            assert_eq!(layer.sessions().list("ana").await.unwrap().len(), 1);
        }
        let new = app.client();
        new.one(json!(["login", "ben"])).await;
        clock.is_off_by(HOUR);
        assert_eq!(new.one(json!(["user"])).await, "ben");
    }
}

/// The store sent a command, Redis applied it, and the connection broke before the reply.
mod lost_replies {
    use super::*;

    struct Scene {
        server: RedisServer,
        proxy: Proxy,
        service: Service,
    }

    /// `k` is 1, and the connection was never lost. Time does not matter here.
    async fn scene() -> Scene {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let config = RedisConfig::from_url(&proxy.url()).unwrap().timeout(Duration::from_secs(8));
        let service = Service::with(config).await;
        // Redis knows all the scripts.
        service
            .client
            .perform(json!([["insert", "k", 0], ["save"], ["logout"], ["login", "ana"], ["save"], ["rotate"]]))
            .await;
        service.client.perform(json!([["insert", "k", 1]])).await;
        Scene { server, proxy, service }
    }

    impl Scene {
        async fn calls(&self, command: &str) -> u64 {
            self.server.calls(command).await
        }

        /// There is one session, that of the client, and no error was visible.
        async fn is_well(&self, k: u32) {
            assert!(self.proxy.is_done(), "no reply was lost");
            assert_eq!(self.server.sessions().await.len(), 1);
            assert_eq!(self.service.client.perform(json!([["user"], ["get", "k"]])).await, [json!("ana"), json!(k)]);
            let stats = self.service.layer.stats();
            assert_eq!((stats.outages, stats.conflicts, stats.ended_concurrently, stats.unsaved), (0, 0, 0, 0));
        }
    }

    #[tokio::test]
    async fn of_a_lookup() {
        let scene = scene().await;
        for command in ["GET", "PTTL"] {
            scene.proxy.lose_reply_to(command);
            assert_eq!(scene.service.read().await.json(), json!([1]));
        }
        scene.is_well(1).await;
    }

    #[tokio::test]
    async fn of_a_truncated_lookup() {
        let scene = scene().await;
        for bytes in [1, 5, 40] {
            scene.proxy.cut_reply_to("GET", bytes);
            assert_eq!(scene.service.read().await.json(), json!([1]), "{bytes}");
        }
        scene.is_well(1).await;
    }

    #[tokio::test]
    async fn of_a_new_session() {
        let scene = scene().await;
        scene.server.command("FLUSHDB").await;
        scene.service.client.forget_cookies();
        let before = scene.calls("evalsha").await;
        scene.proxy.lose_reply_to("EVALSHA");
        scene.service.client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
        assert_eq!(scene.calls("evalsha").await - before, 2);
        scene.is_well(1).await;
    }

    #[tokio::test]
    async fn of_a_session_created_outside_a_request() {
        let scene = scene().await;
        scene.server.command("FLUSHDB").await;
        scene.proxy.lose_reply_to("EVALSHA");
        let token = scene.service.layer.sessions().create("ana").await.unwrap();
        scene.service.client.set_cookie(COOKIE, token.expose());
        scene.service.client.one(json!(["insert", "k", 1])).await;
        scene.is_well(1).await;
    }

    #[tokio::test]
    async fn of_a_write() {
        let scene = scene().await;
        let before = scene.calls("evalsha").await;
        scene.proxy.lose_reply_to("EVALSHA");
        assert_eq!(scene.service.write(2).await.status, OK);
        assert_eq!(scene.calls("evalsha").await - before, 2);
        scene.is_well(2).await;
    }

    /// It was applied, and the session ended before the retry: the writer learns that the session has ended.
    #[tokio::test]
    async fn of_a_write_to_a_session_that_ends_before_the_retry() {
        let scene = scene().await;
        let other = SessionLayer::new(RedisStore::new(RedisConfig::from_url(&scene.server.url()).unwrap())).sessions();
        let token = Token::parse(scene.service.client.cookie(COOKIE).unwrap()).unwrap();
        scene.proxy.hold_reply_to("EVALSHA");
        let (reply, ()) = tokio::join!(answer(&scene.service.client, json!([["insert", "k", 2], ["save"]])), async {
            scene.proxy.holds().await;
            let is_seen = async || other.open(&token).await.unwrap().unwrap().value::<u64>("k").unwrap() == Some(2);
            eventually("others see it", is_seen).await;
            assert!(other.revoke(&token.id()).await.unwrap());
            scene.proxy.cut();
        });
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert!(!other.is_valid(&token).await.unwrap());
    }

    #[tokio::test]
    async fn of_a_write_with_an_unknown_script() {
        let scene = scene().await;
        for (command, value) in [("EVALSHA", 2), ("EVAL", 3)] {
            scene.server.command("SCRIPT FLUSH").await;
            scene.proxy.lose_reply_to(command);
            assert_eq!(scene.service.write(value).await.status, OK);
            scene.is_well(value).await;
        }
    }

    #[tokio::test]
    async fn of_a_rotation() {
        let scene = scene().await;
        let dead = scene.service.client.twin();
        let before = scene.calls("evalsha").await;
        scene.proxy.lose_reply_to("EVALSHA");
        scene.service.client.perform(json!([["rotate"], ["insert", "k", 2]])).await;
        assert_eq!(scene.calls("evalsha").await - before, 2);
        scene.is_well(2).await;
        assert_eq!(dead.one(json!(["user"])).await, json!(null));
    }

    #[tokio::test]
    async fn of_a_login() {
        let scene = scene().await;
        scene.service.client.one(json!(["login", "ben"])).await;
        let dead = scene.service.client.twin();
        scene.proxy.lose_reply_to("EVALSHA");
        scene.service.client.perform(json!([["login", "ana"], ["insert", "k", 2]])).await;
        scene.is_well(2).await;
        assert_eq!(dead.one(json!(["user"])).await, json!(null));
    }

    /// The call counts as successful, and a local tombstone covers the case that Redis loses its own.
    #[tokio::test]
    async fn of_a_revocation() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let sessions = SessionLayer::new(RedisStore::new(RedisConfig::from_url(&proxy.url()).unwrap())).sessions();
        let token = sessions.create("ana").await.unwrap();
        let key = server.sessions().await.remove(0);
        let record = server.get(&key).await;
        assert!(!sessions.revoke(&Token::parse("a".repeat(56)).unwrap().id()).await.unwrap(), "Redis knows the script");
        proxy.lose_reply_to("EVALSHA");
        assert!(sessions.revoke(&token.id()).await.unwrap());
        assert!(proxy.is_done());
        assert!(!sessions.revoke(&token.id()).await.unwrap(), "another call");
        server.command(&format!("SET {key} {record} PX 60000")).await;
        assert!(!sessions.is_valid(&token).await.unwrap());
    }

    /// As far as this process knows, another request ended it.
    #[tokio::test]
    async fn earlier_ends_are_remembered() {
        let server = RedisServer::start().await;
        let config = RedisConfig::from_url(&server.url()).unwrap();
        let [here, there] = [0, 1].map(|_| SessionLayer::new(RedisStore::new(config.clone())).sessions());
        let token = here.create("ana").await.unwrap();
        let key = server.sessions().await.remove(0);
        let record = server.get(&key).await;
        assert!(there.revoke(&token.id()).await.unwrap());
        assert!(!here.revoke(&token.id()).await.unwrap());
        server.command(&format!("SET {key} {record} PX 60000")).await;
        assert!(!here.is_valid(&token).await.unwrap());
    }

    #[tokio::test]
    async fn of_a_logout() {
        let scene = scene().await;
        let dead = scene.service.client.twin();
        scene.proxy.lose_reply_to("EVALSHA");
        let before = scene.calls("evalsha").await;
        scene.service.client.one(json!(["logout"])).await;
        assert!(scene.proxy.is_done());
        assert_eq!(scene.calls("evalsha").await - before, 2);
        assert_eq!(scene.service.client.cookie(COOKIE), None);
        assert_eq!(scene.server.sessions().await, [""; 0]);
        assert_eq!(dead.one(json!(["user"])).await, json!(null));
    }

    #[tokio::test]
    async fn of_a_touch() {
        let scene = scene().await;
        let key = scene.server.sessions().await.remove(0);
        // Once before, so that Redis knows the script.
        scene.server.command(&format!("PEXPIRE {key} 60000")).await;
        assert_eq!(scene.service.read().await.json(), json!([1]));
        scene.server.command(&format!("PEXPIRE {key} 60000")).await;
        scene.proxy.lose_reply_to("EVALSHA");
        assert_eq!(scene.service.read().await.json(), json!([1]));
        assert!(scene.server.pttl(&key).await > 60_000);
        scene.is_well(1).await;
    }

    #[tokio::test]
    async fn twice_in_a_row_is_an_outage_and_sets_no_cookie() {
        for (command, step) in [
            ("EVALSHA", json!(["insert", "k", 2])),
            ("EVALSHA", json!(["rotate"])),
            ("EVALSHA", json!(["login", "ben"])),
            ("EVALSHA", json!(["logout"])),
            ("PTTL", json!(["get", "k"])),
        ] {
            let scene = scene().await;
            scene.proxy.lose_reply_to(command);
            scene.proxy.lose_reply_to(command);
            assert_unavailable(&answer(&scene.service.client, json!([step])).await);
            assert!(scene.proxy.is_done());
            let (alive, _) = scene.service.layer.sessions().page(&Cursor::start(), 100).await.unwrap();
            assert!(alive.len() <= 1, "{step} left two sessions");
            assert_eq!(scene.service.read().await.status, OK, "{step}");
        }
    }

    #[tokio::test]
    async fn of_many_concurrent_requests() {
        let scene = scene().await;
        scene.proxy.hold_reply_to("GET");
        let mut requests = JoinSet::new();
        for i in 0..20 {
            let client = scene.service.client.twin();
            let step = if i % 2 == 0 { json!(["user"]) } else { json!(["insert", format!("k{i}"), i]) };
            requests.spawn(async move { answer(&client, json!([step])).await });
        }
        scene.proxy.holds().await;
        scene.proxy.cut();
        for reply in requests.join_all().await {
            assert_eq!((reply.status, reply.set_cookies()), (OK, vec![]), "{reply:?}");
        }
        for i in (1..20).step_by(2) {
            assert_eq!(scene.service.client.one(json!(["get", format!("k{i}")])).await, i);
        }
        assert_eq!(scene.service.layer.stats().outages, 0);
    }
}

mod given_up {
    use super::*;

    #[tokio::test]
    async fn a_disconnected_client_affects_no_other() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let config = RedisConfig::from_url(&proxy.url()).unwrap().timeout(Duration::from_secs(8));
        let service = Service::with(config).await;
        let (leaver, stayer) = (service.app.client(), service.app.client());
        leaver.perform(json!([["login", "ana"], ["insert", "k", "leaver's"]])).await;
        stayer.perform(json!([["login", "ben"], ["insert", "k", "stayer's"]])).await;
        stayer.one(json!(["insert", "k", "stayer's own"])).await; // Redis knows the script
        for round in 1..=5 {
            // The client disconnects when its write has reached Redis, before the reply.
            proxy.hold_reply_to("EVALSHA");
            let write = leaver.twin();
            tokio::select! {
                reply = answer(&write, json!([["insert", "round", round]])) => panic!("{reply:?}"),
                () = proxy.holds() => {}
            }
            eventually("the request is dropped", async || service.layer.stats().unsaved == round).await;
            let read = json!([["user"], ["get", "k"]]);
            let (seen, ()) = tokio::join!(stayer.perform(read), async { proxy.release() });
            assert_eq!(seen, [json!("ben"), json!("stayer's own")]);
            assert_eq!(leaver.perform(json!([["user"], ["get", "round"]])).await, [json!("ana"), json!(round)]);
        }
        let connections = text(&server.command("CLIENT LIST").await);
        assert_eq!(
            connections.lines().count(),
            2,
            "the connection is the same, and nothing but its own: {connections}"
        );
        assert_eq!(service.layer.stats().outages, 0);
    }

    #[tokio::test]
    async fn clients_that_disconnect_while_redis_hangs_affect_no_other() {
        let server = RedisServer::start().await;
        let service = Service::at(&server.url()).await;
        server.pause();
        let mut requests = JoinSet::new();
        for _ in 0..20 {
            let client = service.client.twin();
            requests.spawn(async move { client.post("/do", &json!([["get", "k"]])).await });
        }
        assert_unavailable(&service.read().await);
        requests.shutdown().await;
        server.resume();
        service.resumes(1).await;
    }

    #[tokio::test]
    async fn a_dropped_store_closes_its_connection_and_ends_its_task() {
        let server = RedisServer::start().await;
        let mut control = server.connect().await.unwrap();
        let tasks = Handle::current().metrics().num_alive_tasks();
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap());
        let clone = store.clone();
        assert_eq!(store.health().await.unwrap(), Health::Up);
        drop(store);
        assert_eq!(clone.health().await.unwrap(), Health::Up, "the clone is as good as the original");
        let connections =
            async |control: &mut _| text(&command_on(control, "CLIENT LIST").await.unwrap()).lines().count();
        assert_eq!(connections(&mut control).await, 2);
        drop(clone);
        eventually("the connection is closed", async || connections(&mut control).await == 1).await;
        eventually("the task ends", async || Handle::current().metrics().num_alive_tasks() == tasks).await;
    }

    #[tokio::test]
    async fn a_store_dropped_in_an_outage_stops_reconnecting() {
        let server = RedisServer::stopped();
        let tasks = Handle::current().metrics().num_alive_tasks();
        let store = RedisStore::new(RedisConfig::from_url(&server.url()).unwrap());
        assert_eq!(store.health().await.unwrap().status(), HealthStatus::Down);
        drop(store);
        eventually("the task ends", async || Handle::current().metrics().num_alive_tasks() == tasks).await;
    }

    #[test]
    fn a_store_works_after_its_runtime_has_ended() {
        let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        let servers = runtime();
        let server = servers.block_on(RedisServer::start());
        let layer = SessionLayer::new(RedisStore::new(RedisConfig::from_url(&server.url()).unwrap()));
        let token = runtime().block_on(layer.sessions().create("ana")).unwrap();
        for _ in 0..3 {
            runtime().block_on(async {
                let app = App::start(layer.clone()).await;
                let client = app.client();
                client.set_cookie(COOKIE, token.expose());
                assert_eq!(client.one(json!(["user"])).await, "ana");
            });
        }
        // First two concurrent users, then one.
        let (first, second) = (runtime(), runtime());
        assert_eq!(first.block_on(layer.sessions().health()).status, HealthStatus::Up);
        drop(first);
        assert_eq!(second.block_on(layer.sessions().health()).status, HealthStatus::Up);
    }

    #[test]
    fn a_store_is_created_without_a_runtime() {
        let server = RedisServer::stopped();
        drop(SessionLayer::new(RedisStore::new(RedisConfig::from_url(&server.url()).unwrap())));
    }
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_an_outage() {
    let impostor = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = impostor.local_addr().unwrap().port();
    let answers = tokio::spawn(async move {
        loop {
            let (stream, _) = impostor.accept().await.unwrap();
            stream.writable().await.unwrap();
            stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        }
    });
    let service = Service::with(RedisConfig::from_url(&format!("redis://127.0.0.1:{port}")).unwrap()).await;
    service.client.set_cookie(COOKIE, &"a".repeat(56));
    service.is_out().await;
    assert_eq!(service.health().await, HealthStatus::Down);
    answers.abort();
}
