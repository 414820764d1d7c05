//! Redis Cluster: three masters and their replicas, with failing nodes and moving slots.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::support::{
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

/// A user whose sessions are on this node.
async fn user_of(cluster: &Cluster, node: usize) -> String {
    for i in 0.. {
        let user = format!("user-{i}");
        if cluster.node_of_key(&key(&SessionId::slot_tag_of(&user))).await == node {
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

/// All replicas are up to date.
async fn replicated(cluster: &Cluster) {
    for node in &cluster.nodes[..3] {
        node.command("WAIT 1 0").await;
    }
}

mod contract {
    use super::*;

    #[tokio::test]
    async fn holds() {
        let cluster = Cluster::start().await;
        assert_keeps_the_contract(config(&cluster)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn holds_for_many_threads_with_max_sessions() {
        let cluster = Cluster::start().await;
        assert_keeps_the_contract_for_many(config(&cluster).max_sessions(1_000_000)).await;
    }
}

/// All keys of a user are in one slot, and global keys are in every slot that they need.
#[tokio::test]
async fn users_are_spread_over_the_nodes_and_each_has_one_slot() {
    let cluster = Cluster::start().await;
    let config = patient(config(&cluster)).max_sessions(100).share_events(100);
    let layer = SessionLayer::new(RedisStore::new(config.clone())).limits(Limits::per_user(2, WhenFull::EvictOldest));
    let (here, elsewhere) = (layer.sessions(), sessions(config));
    let mut events = elsewhere.events().await.unwrap();
    let mut all = HashSet::new();
    for i in 0..30 {
        let user = format!("user-{i}");
        let first = here.create(user.as_str()).await.unwrap();
        for _ in 0..2 {
            all.insert(here.create(user.as_str()).await.unwrap().id());
        }
        assert!(!elsewhere.is_valid(&first).await.unwrap(), "the third has taken its place");
        let listed: Vec<_> = elsewhere.list(&user).await.unwrap().iter().map(|session| session.id()).collect();
        assert!(listed.len() == 2 && listed.iter().all(|id| all.contains(id)));
    }
    assert!(events.next().await.unwrap().user().is_some_and(|user| user.starts_with("user-")));
    for node in &cluster.nodes[..3] {
        assert!(!node.sessions().await.is_empty(), "each node has some");
    }
    assert_eq!(scanned(&elsewhere).await, all);
    assert_eq!(elsewhere.count().await.unwrap(), 60);
    // The maximum is a hundred.
    for _ in 60..100 {
        here.create(NewSession::anonymous()).await.unwrap();
    }
    assert!(matches!(here.create(NewSession::anonymous()).await.unwrap_err(), SessionError::Full));
    for i in 0..30 {
        assert_eq!(elsewhere.revoke_user(&format!("user-{i}")).await.unwrap(), 2);
    }
    assert_eq!(here.count().await.unwrap(), 40);
    here.create(NewSession::anonymous()).await.unwrap();
}

async fn scanned(sessions: &Sessions) -> HashSet<SessionId> {
    let (mut scan, mut ids) = (sessions.scan(), HashSet::new());
    while let Some(session) = scan.next().await {
        ids.insert(session.unwrap().id());
    }
    ids
}

mod connecting {
    use super::*;

    #[tokio::test]
    async fn one_reachable_node_is_enough() {
        let cluster = Cluster::start_with(&["--requirepass", "open-sesame"]).await;
        let nobody = RedisServer::stopped();
        let login = |config: RedisConfig| config.login("default", "open-sesame");
        for node in [0, 4] {
            let seeds = [nobody.address(), cluster.nodes[node].address()];
            assert_serves(login(RedisConfig::cluster(seeds).unwrap())).await;
        }
        let nodes = cluster.nodes.iter().map(RedisServer::address).collect::<Vec<_>>().join(",");
        let vars = |name: &str| match name {
            "REDIS_CLUSTER_NODES" => Some(nodes.clone()),
            "REDIS_PASSWORD" => Some("open-sesame".to_owned()),
            _ => None,
        };
        assert_serves(RedisConfig::from_vars(vars).unwrap().unwrap()).await;

        let without = sessions(patient(config(&cluster)));
        assert!(without.create("ana").await.is_err());
        let health = without.health().await;
        assert_eq!(health.status, HealthStatus::Down);
        assert!(health.cause.as_ref().unwrap().contains("NOAUTH"), "{health:?}");

        // A user with the documented rights.
        for node in &cluster.nodes {
            let commands = "+get +pttl +set +pexpire +unlink +time +eval +evalsha +zadd +zcount +zrange +zrem \
                            +zremrangebyscore +zscan +zscore +scan +getrange +cluster|slots +asking";
            node.add_user("app", "app-password", &format!("resetchannels ~sess:* -@all {commands}")).await;
        }
        let app = config(&cluster).login("app", "app-password");
        assert_serves(app.clone()).await;
        let app = sessions(patient(app));
        let user = user_of(&cluster, 0).await;
        let token = app.create(user.as_str()).await.unwrap();
        let migration = cluster.migration(cluster.slot(&key(&SessionId::slot_tag_of(&user))).await, 1).await;
        migration.move_keys().await;
        assert!(app.is_valid(&token).await.unwrap());
        assert_eq!(app.count().await.unwrap(), 5);
        migration.finish().await;
        assert_eq!(app.list(&user).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_server_outside_a_cluster_is_an_error() {
        let server = RedisServer::start().await;
        let sessions = sessions(patient(RedisConfig::cluster([server.address()]).unwrap()));
        assert!(sessions.create("ana").await.is_err());
        let health = sessions.health().await;
        assert_eq!(health.status, HealthStatus::Down);
        assert!(health.cause.as_ref().unwrap().contains("cluster support disabled"), "{health:?}");
    }
}

mod failing {
    use super::*;

    /// Sessions on every node. Those of node 0 are unavailable until its replica takes over; the others are always served.
    async fn fails_over(cluster: &mut Cluster, fail: impl AsyncFnOnce(&mut Cluster)) -> Sessions {
        let sessions = sessions(config(cluster));
        let mut users = Vec::new();
        for node in 0..3 {
            users.push(user_of(cluster, node).await);
        }
        let (first, others) = users.split_first().unwrap();
        let served = async |user: &String| sessions.create(user.as_str()).await.is_ok();
        for user in &users {
            eventually("it is served", async || served(user).await).await;
        }
        let tokens = create_of(&sessions, &users).await;
        replicated(cluster).await;
        assert_eq!(sessions.health().await.status, HealthStatus::Up);
        let dead = cluster.nodes[0].address();

        fail(cluster).await;
        let away = async || {
            let health = sessions.health().await;
            health.status == HealthStatus::Degraded && health.cause.unwrap().contains(&dead)
        };
        eventually("the health names the node", away).await;
        for user in others {
            assert!(sessions.is_valid(&tokens[user]).await.unwrap(), "the others are served");
        }
        eventually("its sessions are served", async || sessions.is_valid(&tokens[first]).await.is_ok()).await;
        eventually("and written", async || served(first).await).await;
        assert!(sessions.is_valid(&tokens[first]).await.unwrap(), "none is lost");
        eventually("all is well", async || sessions.health().await.status == HealthStatus::Up).await;
        sessions
    }

    #[tokio::test]
    async fn a_killed_node_is_replaced_and_returns() {
        let mut cluster = Cluster::start_with(&["--appendonly", "yes"]).await;
        let sessions = fails_over(&mut cluster, async |cluster: &mut Cluster| cluster.kill(0)).await;
        let count = sessions.count().await.unwrap();
        cluster.restart(0).await;
        cluster.settled().await;
        assert_eq!(sessions.count().await.unwrap(), count);
        // It becomes a master again, and redirections lead to it.
        let user = user_of(&cluster, cluster.partner(0)).await;
        cluster.failover(3).await;
        eventually("sessions are served", async || sessions.create(user.as_str()).await.is_ok()).await;
        eventually("all is well", async || sessions.health().await.status == HealthStatus::Up).await;
    }

    #[tokio::test]
    async fn a_hung_node_is_replaced_and_returns() {
        let mut cluster = Cluster::start().await;
        let sessions = fails_over(&mut cluster, async |cluster: &mut Cluster| cluster.pause(0)).await;
        let count = sessions.count().await.unwrap();
        cluster.resume(0);
        cluster.settled().await;
        assert_eq!(sessions.count().await.unwrap(), count);
        assert_eq!(sessions.health().await.status, HealthStatus::Up);
    }

    #[tokio::test]
    async fn nodes_that_die_and_return_are_found() {
        let mut cluster = Cluster::start_with(&["--appendonly", "yes"]).await;
        let sessions = sessions(config(&cluster));
        eventually("it serves", async || sessions.create("ana").await.is_ok()).await;
        (0..6).for_each(|node| cluster.kill(node));
        assert!(sessions.create("ana").await.is_err());
        let health = sessions.health().await;
        assert_eq!(health.status, HealthStatus::Down, "{health:?}");
        for node in 0..6 {
            cluster.restart(node).await;
        }
        eventually("it serves again", async || sessions.create("ana").await.is_ok()).await;
        eventually("all is well", async || sessions.health().await.status == HealthStatus::Up).await;
    }
}

mod moving {
    use super::*;

    /// Counts in sessions, and remembers the acknowledged values.
    struct Load {
        workers: JoinSet<u64>,
        stop: Arc<AtomicBool>,
    }

    impl Load {
        fn start(layer: &SessionLayer, users: &[String]) -> Self {
            let stop = Arc::new(AtomicBool::new(false));
            let mut workers = JoinSet::new();
            for user in users {
                let (sessions, user, stop) = (layer.sessions(), user.clone(), stop.clone());
                workers.spawn(async move {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let token = sessions.create(user.as_str()).await.unwrap();
                        assert!(sessions.is_valid(&token).await.unwrap(), "what has begun is there");
                        let listed = sessions.list(&user).await.unwrap();
                        assert!(listed.iter().any(|session| session.id() == token.id()));
                        assert!(sessions.revoke(&token.id()).await.unwrap());
                        assert!(!sessions.is_valid(&token).await.unwrap(), "what has ended stays so");
                        rounds += 1;
                    }
                    rounds
                });
            }
            Self { workers, stop }
        }

        async fn end(mut self) {
            self.stop.store(true, Ordering::Relaxed);
            while let Some(rounds) = self.workers.join_next().await {
                assert!(rounds.unwrap() > 0);
            }
        }
    }

    /// Back and forth between nodes, while its sessions are used, without an error.
    #[tokio::test]
    async fn a_slot_moved_under_load_loses_nothing() {
        let cluster = Cluster::start().await;
        let layer = SessionLayer::new(RedisStore::new(patient(config(&cluster))));
        let sessions = layer.sessions();
        let user = user_of(&cluster, 0).await;
        let kept = create_of(&sessions, std::slice::from_ref(&user)).await;
        let slot = cluster.slot(&key(&SessionId::slot_tag_of(&user))).await;
        let load = Load::start(&layer, &vec![user.clone(); 4]);
        for to in [1, 2, 0, 1] {
            cluster.migrate_slot(slot, to).await;
        }
        load.end().await;
        assert!(sessions.is_valid(&kept[&user]).await.unwrap());
        assert_eq!(sessions.list(&user).await.unwrap().len(), 1);
        assert_eq!(sessions.count().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn during_a_slot_move_reads_work_and_writes_wait() {
        let cluster = Cluster::start().await;
        let sessions = sessions(patient(config(&cluster)));
        let user = user_of(&cluster, 0).await;
        let mut tokens = Vec::new();
        for _ in 0..6 {
            tokens.push(sessions.create(user.as_str()).await.unwrap());
        }
        let slot = cluster.slot(&key(&SessionId::slot_tag_of(&user))).await;
        let migration = cluster.migration(slot, 1).await;
        let all: HashSet<_> = tokens.iter().map(Token::id).collect();
        for moved in migration.remaining().await {
            for token in &tokens {
                assert!(sessions.is_valid(token).await.unwrap(), "before {moved} moves");
            }
            assert_eq!(scanned(&sessions).await, all);
            migration.move_key(&moved).await;
        }
        assert_eq!(scanned(&sessions).await, all);
        for token in &tokens {
            assert!(sessions.is_valid(token).await.unwrap());
        }
        // A script with existing and missing keys gets `TRYAGAIN` until the slot has moved.
        let waiting = [
            tokio::spawn({
                let (sessions, user) = (sessions.clone(), user.clone());
                async move { sessions.list(&user).await.map(|listed| listed.len()).unwrap() }
            }),
            tokio::spawn({
                let (sessions, id) = (sessions.clone(), tokens[0].id());
                async move { usize::from(sessions.revoke(&id).await.unwrap()) }
            }),
        ];
        migration.finish().await;
        let [listed, revoked] = waiting;
        assert_eq!(revoked.await.unwrap(), 1);
        assert!([5, 6].contains(&listed.await.unwrap()));
        assert_eq!(scanned(&sessions).await.len(), 5);
        assert_eq!(sessions.count().await.unwrap(), 5);
    }

    /// Every scan returns all sessions while slots move.
    #[tokio::test]
    async fn a_scan_sees_sessions_that_are_resharded() {
        let cluster = Cluster::start().await;
        let sessions = sessions(patient(config(&cluster)));
        let users: Vec<_> = (0..60).map(|i| format!("user-{i}")).collect();
        let all: HashSet<_> = create_of(&sessions, &users).await.values().map(Token::id).collect();
        let mut slots = Vec::new();
        for user in &users[..20] {
            slots.push(cluster.slot(&key(&SessionId::slot_tag_of(user))).await);
        }
        // A slot moves between pages: before and behind the cursor.
        let mut place = None;
        let mut seen = HashSet::new();
        let mut moves = slots.iter().copied().enumerate();
        loop {
            let from = place.unwrap_or_default();
            let (page, next) = sessions.page(&from, 5).await.unwrap();
            seen.extend(page.iter().map(|session| session.id()));
            let Some(next) = next else { break };
            place = Some(next);
            if let Some((i, slot)) = moves.next() {
                let owner = cluster.node_of_slot(slot).await;
                cluster.migrate_slot(slot, (owner + 1 + i % 2) % 3).await;
            }
        }
        assert!(seen.is_superset(&all), "{} of {}", seen.len(), all.len());
        assert!(moves.next().is_none(), "all have moved while it scanned");
        assert_eq!(sessions.count().await.unwrap(), 60);
        for user in &users {
            assert_eq!(sessions.list(user).await.unwrap().len(), 1);
        }
    }
}
