//! The fault table: faults of a standalone server, of the master behind Sentinels, and of a cluster node. Each row runs in all three
//! deployments.
//!
//! Every request gets a response in time: as without the fault, or an outage (503, or the anonymous page on a tolerant route). A live
//! session is never reported as missing. Afterwards service resumes by itself, acknowledged writes are there, and ended sessions
//! stay ended. If the fault itself deletes sessions, their clients are anonymous and can log in immediately.
//!
//! Behind Sentinels and in a cluster, a fault may be over with the failover instead of its own end. Network faults are between the
//! service and Redis. The network among the servers, which triggers failovers, fails only with the servers.
//!
//! Tested elsewhere: more about standalone servers (`faults.rs`); masters that are down until a failover, planned failovers and
//! moving slots (`sentinel.rs`, `cluster.rs`); a master that was demoted without a successor (the same files; it does not apply to a
//! cluster, whose replicas redirect clients to their master); certificates (`tls.rs`).

use std::{
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

use crate::support::{
    client::{Client, Reply},
    cluster::Cluster,
    eventually,
    redis_server::{Loading, NoSnapshot, Reached, RedisServer, command_on},
    sentinel::{Passwords, Sentinels},
    service::{COOKIE, HOUR, OK, Service, WrongClock, answer, assert_unavailable},
};
use serde_json::{Value, json};
use tower_keep::{
    HealthStatus, SessionId, SessionLayer, Token,
    store::redis::{RedisConfig, RedisStore},
};

const DISCONNECT: &str = "CLIENT KILL TYPE normal SKIPME yes";

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The start and the end of the fault.
    Commands(&'static [&'static str], &'static [&'static str]),
    /// Down until it is started again, with its data.
    Killed,
    /// The same, restarted immediately.
    Restarted,
    RestartedEmpty,
    /// SIGSTOP and SIGCONT.
    Hung,
    Loading,
    /// It cannot write its snapshot, and refuses writes.
    NoSnapshot,
    /// Memory is full, and sessions are evicted (`allkeys-lru`).
    Evicting,
    /// The key of the session has a value of the wrong type.
    WrongType,
    /// The network is cut.
    CutOff,
    /// A firewall has forgotten the connections.
    HalfOpen,
    ConnectionsRefused,
    ConnectionsReset,
    /// Each reply takes this many milliseconds.
    Slow(u64),
    /// The connection breaks during a reply, or before it.
    CutInReply,
    /// The clock of this process jumps.
    Clock,
}

/// The effect of the fault.
#[derive(Clone, Copy, PartialEq)]
enum Cost {
    /// No request fails, if it has enough time.
    Nothing,
    /// Requests fail while it lasts.
    Requests,
    /// Requests may fail.
    Little,
    /// The sessions of the server are lost; another server may still have them.
    Sessions,
}

use Cost::{Little, Nothing, Requests, Sessions};
use Fault::Commands;

const TABLE: [(&str, Fault, Cost); 28] = [
    ("connections killed", Commands(&[DISCONNECT], &[]), Nothing),
    ("connections reset", Fault::ConnectionsReset, Nothing),
    ("connections cut in the middle of a reply", Fault::CutInReply, Nothing),
    ("scripts flushed", Commands(&["SCRIPT FLUSH"], &[]), Nothing),
    ("slow, and in time", Fault::Slow(20), Nothing),
    ("the clock jumps", Fault::Clock, Nothing),
    ("killed", Fault::Killed, Requests),
    ("restarted", Fault::Restarted, Little),
    ("hung", Fault::Hung, Requests),
    ("cut off", Fault::CutOff, Requests),
    ("half-open", Fault::HalfOpen, Requests),
    ("connections refused", Fault::ConnectionsRefused, Requests),
    ("too slow", Fault::Slow(2000), Requests),
    ("loading", Fault::Loading, Requests),
    ("writes paused", Commands(&["CLIENT PAUSE 60000 WRITE"], &["CLIENT UNPAUSE"]), Requests),
    ("all paused", Commands(&["CLIENT PAUSE 700 ALL"], &[]), Requests),
    ("maxclients", Commands(&["CONFIG SET maxclients 1", DISCONNECT], &["CONFIG SET maxclients 10000"]), Requests),
    ("out of memory", Commands(&["CONFIG SET maxmemory 1"], &["CONFIG SET maxmemory 0"]), Requests),
    (
        "no replicas",
        Commands(&["CONFIG SET min-replicas-to-write 9"], &["CONFIG SET min-replicas-to-write 0"]),
        Requests,
    ),
    ("no snapshot", Fault::NoSnapshot, Requests),
    (
        "password changed",
        Commands(&["ACL SETUSER default resetpass >other", DISCONNECT], &["ACL SETUSER default nopass"]),
        Requests,
    ),
    ("no right to read", Commands(&["ACL SETUSER default -get"], &["ACL SETUSER default +@all"]), Requests),
    ("no right to write", Commands(&["ACL SETUSER default -@write"], &["ACL SETUSER default +@all"]), Requests),
    ("no right to anything", Commands(&["ACL SETUSER default -@all +acl"], &["ACL SETUSER default +@all"]), Requests),
    ("another type in the way", Fault::WrongType, Requests),
    ("flushed", Commands(&["FLUSHALL"], &[]), Sessions),
    ("evicting", Fault::Evicting, Sessions),
    ("restarted empty", Fault::RestartedEmpty, Sessions),
];

enum Place {
    Alone(Box<RedisServer>),
    Sentinels(Sentinels),
    Cluster(Cluster),
}

impl Place {
    /// Settings of the servers: they keep acknowledged writes, and can fail to write a snapshot.
    fn args() -> Vec<&'static str> {
        let durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "1000000", "1000000"];
        [&durable, &*Loading::args()].concat()
    }

    async fn alone() -> Self {
        let mut server = RedisServer::stopped_with(&Self::args());
        server.be_reached(&Reached::ThroughProxies).await;
        server.run().await;
        Self::Alone(Box::new(server))
    }

    async fn sentinels() -> Self {
        let how = Reached::ThroughProxies;
        let all = Sentinels::start_reached(&how, Passwords::default(), &Self::args()).await;
        // Other tests cover failovers, which here would lose writes in rows that must lose none.
        all.are_patient().await;
        Self::Sentinels(all)
    }

    async fn cluster() -> Self {
        let all = Cluster::start_reached(&Reached::ThroughProxies, &Self::args()).await;
        all.is_patient().await;
        Self::Cluster(all)
    }

    fn config(&self) -> RedisConfig {
        match self {
            Self::Alone(server) => RedisConfig::from_url(&server.url()),
            Self::Sentinels(all) => RedisConfig::sentinel(all.addresses(), all.master_name()),
            Self::Cluster(all) => RedisConfig::cluster(all.nodes.iter().map(RedisServer::address)),
        }
        .unwrap()
    }

    /// Waits until all servers are up and all replicas are up to date.
    async fn is_whole(&mut self) {
        let replicas = match self {
            Self::Alone(_) => 0,
            Self::Sentinels(all) => {
                all.settled().await;
                all.servers.len() - 1
            }
            Self::Cluster(all) => {
                all.settled().await;
                1
            }
        };
        if replicas > 0 {
            self.server().await.command(&format!("WAIT {replicas} 0")).await;
        }
    }

    /// The server with the sessions of ana.
    async fn server(&mut self) -> &mut RedisServer {
        match self {
            Self::Alone(server) => server,
            Self::Sentinels(all) => {
                let master = all.master().await;
                &mut all.servers[master]
            }
            Self::Cluster(all) => {
                let node = all.node_of_key(&format!("{{{}}}", SessionId::slot_tag_of("ana"))).await;
                &mut all.nodes[node]
            }
        }
    }

    fn all(&mut self) -> Vec<&mut RedisServer> {
        match self {
            Self::Alone(server) => vec![server],
            Self::Sentinels(all) => all.servers.iter_mut().chain(&mut all.sentinels).collect(),
            Self::Cluster(all) => all.nodes.iter_mut().collect(),
        }
    }
}

/// The requests of ana, and the responses.
struct Scene {
    service: Service,
    /// The same, with a longer timeout.
    patient: Service,
    clock: WrongClock,
    /// The last acknowledged value, and the last attempt.
    saved: Cell<u64>,
    tried: Cell<u64>,
    /// The number of outages.
    outages: Cell<u32>,
    /// The number of anonymous responses.
    lost: Cell<u32>,
}

impl Scene {
    async fn at(place: &Place) -> Self {
        let clock = WrongClock::default();
        let layer = |config| SessionLayer::new(RedisStore::new(config)).clock(clock.clone());
        let service = Service::of(layer(place.config())).await;
        let patient = Service::of(layer(place.config().timeout(Duration::from_secs(8)))).await;
        let log_in = async || answer(&service.client, json!([["login", "ana"], ["insert", "k", 0]])).await.status == OK;
        eventually("she logs in", log_in).await;
        let [saved, tried] = [0, 0].map(Cell::new);
        let [outages, lost] = [0, 0].map(Cell::new);
        Self { service, patient, clock, saved, tried, outages, lost }
    }

    fn token(&self) -> Token {
        Token::parse(self.service.client.cookie(COOKIE).unwrap()).unwrap()
    }

    /// Reads and writes. Each response is correct or an outage. Returns `true` if both are correct.
    async fn is_served(&self, client: &Client, cost: Cost) -> bool {
        let is_served = |reply: &Reply| {
            if reply.status != OK {
                assert_unavailable(reply);
                self.outages.set(self.outages.get() + 1);
            }
            reply.status == OK
        };
        let read = answer(client, json!([["get", "k"]])).await;
        let mut steps = vec![];
        if is_served(&read) {
            match read.json()[0].as_u64() {
                Some(value) => {
                    assert!((self.saved.get()..=self.tried.get()).contains(&value), "{value} is not what was saved");
                }
                None => {
                    assert!(cost == Sessions, "an outage is not a missing session");
                    self.lost.set(self.lost.get() + 1);
                    steps.push(json!(["login", "ana"]));
                }
            }
        } else if cost == Sessions {
            return false; // a client that does not know about the loss creates an anonymous session
        }
        let next = self.tried.get() + 1;
        self.tried.set(next);
        steps.push(json!(["insert", "k", next]));
        let write = answer(client, Value::Array(steps)).await;
        if is_served(&write) {
            self.saved.set(next);
        }
        read.status == OK && write.status == OK
    }

    /// Requests on routes that do not need the session.
    async fn is_tolerated(&self, cost: Cost) {
        self.service.serves_the_public().await;
        let tolerant = self.service.client.at(&self.service.tolerant.url());
        let seen = answer(&tolerant, json!([["is_degraded"], ["user"]])).await;
        assert_eq!((seen.status, seen.set_cookies()), (OK, vec![]));
        let seen = seen.json();
        let is_right = seen == json!([true, null]) || seen == json!([false, "ana"]);
        assert!(is_right || cost == Sessions && seen == json!([false, null]), "{seen}");
    }

    async fn survives(&self, place: &mut Place, (name, fault, cost): (&str, Fault, Cost)) {
        place.is_whole().await;
        let served = async || self.is_served(&self.service.client, cost).await;
        eventually("all is served", served).await;
        let ended = self.service.app.client();
        eventually("a session begins", async || is_done(&ended, json!(["login", "ana"])).await).await;
        let leaver = ended.twin();
        eventually("and ends", async || is_done(&leaver, json!(["logout"])).await).await;

        let token = self.token();
        self.outages.set(0);
        self.lost.set(0);
        let patient = self.service.client.at(&self.patient.app.url());
        if cost == Nothing {
            assert!(self.is_served(&patient, cost).await, "{name}: it is connected");
        }
        let round = async || {
            self.is_served(if cost == Nothing { &patient } else { &self.service.client }, cost).await;
            self.is_tolerated(cost).await;
        };
        self.befalls(place.server().await, fault, round).await;

        match cost {
            Nothing => assert_eq!(self.outages.get(), 0, "{name}: it costs nothing"),
            Requests => assert!(self.outages.get() > 0, "{name}: nothing was felt"),
            Sessions if fault != Fault::RestartedEmpty || matches!(place, Place::Alone(_)) => {
                assert!(self.lost.get() > 0, "{name}: nothing was lost");
            }
            Little | Sessions => {}
        }
        eventually(name, served).await;
        if cost != Sessions {
            assert_eq!(self.token(), token, "{name}: it is the same session");
        }
        let tolerant = self.service.client.at(&self.service.tolerant.url());
        assert_eq!(tolerant.perform(json!([["is_degraded"], ["user"]])).await, [json!(false), json!("ana")], "{name}");
        assert_eq!(ended.one(json!(["user"])).await, json!(null), "{name}: what has ended stays so");
        eventually(name, async || self.service.health().await == HealthStatus::Up).await;
    }

    /// Applies the fault, with some rounds of requests.
    async fn befalls(&self, server: &mut RedisServer, fault: Fault, round: impl AsyncFn()) {
        let rounds = async || {
            for _ in 0..10 {
                round().await;
            }
        };
        match fault {
            Commands(begin, end) => {
                // Over this connection the fault can be ended, even if no other connection is accepted.
                let mut control = server.connect().await.unwrap();
                for command in begin {
                    command_on(&mut control, command).await.unwrap();
                }
                rounds().await;
                for command in end {
                    command_on(&mut control, command).await.unwrap();
                }
            }
            Fault::Killed => {
                server.stop();
                rounds().await;
                server.run().await;
            }
            Fault::Restarted => {
                server.run().await;
                rounds().await;
            }
            Fault::RestartedEmpty => {
                server.stop();
                forget(server);
                server.run().await;
                eventually("it is queried again", async || self.service.health().await == HealthStatus::Up).await;
                rounds().await;
            }
            Fault::Hung => {
                server.pause();
                rounds().await;
                server.resume();
            }
            Fault::Loading => {
                let loading = Loading::of(server, &format!("{{{}}}", SessionId::slot_tag_of("ana"))).await;
                round().await; // it replies ten times a second
                loading.ends().await;
            }
            Fault::NoSnapshot => {
                let failing = NoSnapshot::of(server).await;
                rounds().await;
                failing.ends().await;
            }
            Fault::Evicting => {
                server.command("CONFIG SET maxmemory-policy allkeys-lru").await;
                server.command("CONFIG SET maxmemory 1").await;
                eventually("all is evicted", async || server.sessions().await.is_empty()).await;
                rounds().await;
                server.command("CONFIG SET maxmemory 0").await;
                server.command("CONFIG SET maxmemory-policy noeviction").await;
                rounds().await;
            }
            Fault::WrongType => {
                let key = key(&self.token());
                server.command(&format!("RENAME {key} {key}:aside")).await;
                server.command(&format!("LPUSH {key} x")).await;
                rounds().await;
                let other = self.service.app.client();
                eventually("others are served", async || is_done(&other, json!(["login", "ben"])).await).await;
                assert_eq!(self.service.health().await, HealthStatus::Up, "one session is ill, and Redis is not");
                server.command(&format!("RENAME {key}:aside {key}")).await;
            }
            Fault::CutOff => {
                server.proxy().black_hole();
                rounds().await;
                server.proxy().heal();
            }
            Fault::HalfOpen => {
                server.proxy().strand_connections();
                rounds().await;
            }
            Fault::ConnectionsRefused => {
                server.proxy().refuse().await;
                server.proxy().close_connections();
                rounds().await;
                server.proxy().accept();
            }
            Fault::ConnectionsReset => {
                for _ in 0..3 {
                    server.proxy().reset_connections();
                    round().await;
                }
            }
            Fault::Slow(millis) => {
                server.proxy().delay_replies(Duration::from_millis(millis));
                rounds().await;
                server.proxy().heal();
            }
            Fault::CutInReply => {
                for (command, bytes) in [("GET", 1), ("GET", 40), ("EVALSHA", 0)] {
                    server.proxy().cut_reply_to(command, bytes);
                    round().await;
                    assert!(server.proxy().is_done());
                }
            }
            Fault::Clock => {
                for hours in [1, -1, 0] {
                    self.clock.is_off_by(hours * HOUR);
                    round().await;
                    round().await;
                }
            }
        }
    }
}

/// Whether the step is correct. If not, it must be an outage.
async fn is_done(client: &Client, step: Value) -> bool {
    let reply = answer(client, json!([step])).await;
    if reply.status != OK {
        assert_unavailable(&reply);
    }
    reply.status == OK
}

fn key(token: &Token) -> String {
    let id = token.id().to_string();
    let (tag, rest) = id.split_at(12);
    format!("sess:{{{tag}}}:{rest}")
}

/// Deletes the data of a stopped server.
fn forget(server: &RedisServer) {
    let _ = fs::remove_dir_all(server.dir().join("appendonlydir"));
    for file in ["appendonly.aof", "dump.rdb"] {
        let _ = fs::remove_file(server.dir().join(file));
    }
}

/// No request waits for a server that is known to be down: a hundred that did would take 25 seconds.
async fn is_refused_at_once(service: &Service) {
    let start = Instant::now();
    for _ in 0..100 {
        assert_unavailable(&service.read().await);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(service.health().await, HealthStatus::Down);
}

/// All servers at once: some hang, some die, and a service starts during the fault.
async fn all_survive(mut place: Place, scene: Scene) {
    place.is_whole().await;
    place.all().iter().for_each(|server| server.pause());
    is_refused_at_once(&scene.service).await;
    place.all().iter().for_each(|server| server.resume());
    eventually("all is served", async || scene.is_served(&scene.service.client, Requests).await).await;

    place.is_whole().await;
    place.all().into_iter().for_each(RedisServer::stop);
    is_refused_at_once(&scene.service).await;
    let new = Service::with(place.config()).await;
    new.client.set_cookie(COOKIE, scene.token().expose());
    new.is_out().await;
    is_refused_at_once(&new).await;
    for server in place.all() {
        server.run().await;
    }
    eventually("all is served", async || scene.is_served(&scene.service.client, Requests).await).await;
    eventually("all is well", async || new.health().await == HealthStatus::Up).await;
    new.resumes(scene.saved.get() as u32).await;
}

async fn all_rows(mut place: Place) {
    let scene = Scene::at(&place).await;
    for row in TABLE {
        let start = Instant::now();
        scene.survives(&mut place, row).await;
        println!("{}: {} outages, {} lost, {:?}", row.0, scene.outages.get(), scene.lost.get(), start.elapsed());
    }
    all_survive(place, scene).await;
}

#[tokio::test]
async fn standalone() {
    all_rows(Place::alone().await).await;
}

#[tokio::test]
async fn behind_sentinels() {
    all_rows(Place::sentinels().await).await;
}

#[tokio::test]
async fn in_a_cluster() {
    all_rows(Place::cluster().await).await;
}
