//! The effect of each Redis fault on requests: the time until the first failure, whether any request exceeds the deadline, how fast
//! requests fail once the fault is known, and the time until everything is served again. Starts its own servers.
//!
//! ```text
//! cargo bench --bench faults            # all
//! cargo bench --bench faults -- killed  # those whose name contains this
//! ```
//!
//! Eight clients read and write sessions all the time. A fault lasts two seconds, unless it ends by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    convert::Infallible,
    env,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Request, Response, header};
use support::{
    cluster::Cluster,
    proxy::Proxy,
    redis_server::{RedisServer, command_on},
    sentinel::Sentinels,
};
use tokio::{task::JoinSet, time::sleep};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Session, SessionCookie, SessionLayer,
    store::redis::{RedisConfig, RedisStore},
};

const CLIENTS: usize = 8;
/// The pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);
const LASTS: Duration = Duration::from_secs(2);
/// The default deadline of a request: twice the timeout of a store operation, which is 250 ms.
const DEADLINE: Duration = Duration::from_millis(500);
/// The tolerance for the scheduling of a busy machine.
const SLACK: Duration = Duration::from_millis(50);
const DISCONNECT: &str = "CLIENT KILL TYPE normal SKIPME yes";

/// A request: the time of its response, its duration, and whether it was served.
struct Answered {
    at: Instant,
    took: Duration,
    served: bool,
}

struct Load {
    log: Arc<Mutex<Vec<Answered>>>,
    clients: JoinSet<()>,
}

impl Load {
    async fn start(config: RedisConfig) -> Self {
        let layer = SessionLayer::new(RedisStore::new(config)).cookie(SessionCookie::development());
        let log = Arc::<Mutex<Vec<Answered>>>::default();
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let token = layer.sessions().create(format!("user{number}").as_str()).await.unwrap();
            let (layer, log, writes) = (layer.clone(), log.clone(), number % 2 == 0);
            clients.spawn(async move {
                let cookie = format!("session={}", token.expose());
                for n in 0_u64.. {
                    let service = layer.layer(service_fn(move |request: Request<()>| async move {
                        let session = request.extensions().get::<Session>().unwrap().clone();
                        let served = match session.load().await {
                            Ok(()) if writes => session.insert("n", &n).is_ok() && session.save().await.is_ok(),
                            Ok(()) => session.get::<u64>("n").is_ok(),
                            Err(_) => false,
                        };
                        let mut response = Response::new(());
                        response.extensions_mut().insert(served);
                        Ok::<_, Infallible>(response)
                    }));
                    let request = Request::builder().header(header::COOKIE, &cookie).body(()).unwrap();
                    let began = Instant::now();
                    let Ok(response) = service.oneshot(request).await;
                    let served = response.extensions().get() == Some(&true);
                    let at = Instant::now();
                    log.lock().unwrap().push(Answered { at, took: at - began, served });
                    sleep(PAUSE).await;
                }
            });
        }
        Self { log, clients }
    }

    /// Waits until everything has been served for a while.
    async fn settles(&self) {
        let began = Instant::now();
        loop {
            sleep(Duration::from_millis(50)).await;
            let log = self.log.lock().unwrap();
            let is_well = log.len() > 200 && log.iter().rev().take(200).all(|answered| answered.served);
            if is_well || began.elapsed() > Duration::from_secs(60) {
                return;
            }
        }
    }

    async fn report(mut self, name: &str, began: Instant, ended: Instant) {
        self.settles().await;
        self.clients.shutdown().await;
        let log = self.log.lock().unwrap();
        let during: Vec<_> = log.iter().filter(|answered| answered.at >= began).collect();
        let refused: Vec<_> = during.iter().filter(|answered| !answered.served).collect();
        let first = refused.first().map(|answered| answered.at - began);
        let late = log.iter().filter(|answered| answered.took > DEADLINE + SLACK).count();
        let longest = log.iter().map(|answered| answered.took).max().unwrap_or_default();
        // Once the fault is known: half a second after the first failure, while it lasts.
        let known = first.map(|first| began + first + Duration::from_millis(500));
        let mut fast: Vec<_> =
            refused.iter().filter(|one| known.is_some_and(|known| one.at > known && one.at < ended)).collect();
        fast.sort_by_key(|answered| answered.took);
        let median = fast.get(fast.len() / 2).map(|answered| answered.took);
        let recovered = refused.last().map(|answered| answered.at.saturating_duration_since(ended));
        let shown =
            |time: Option<Duration>| time.map_or("–".into(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
        println!(
            "{name:44} {:>6} {:>6} {:>10} {late:>4} {:>10} {:>12} {:>11}",
            during.len(),
            refused.len(),
            shown(first),
            shown(Some(longest)),
            shown(median),
            shown(recovered),
        );
    }
}

fn config(url: &str) -> RedisConfig {
    RedisConfig::from_url(url).unwrap()
}

/// Whether the fault is selected.
fn wanted(name: &str) -> bool {
    let filters: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
}

/// A fault that lasts from the end of `begins` to the end of `ends`.
async fn case<T>(
    name: &str,
    config: RedisConfig,
    scene: &mut T,
    begins: impl AsyncFnOnce(&mut T),
    ends: impl AsyncFnOnce(&mut T),
) {
    let load = Load::start(config).await;
    load.settles().await;
    let began = Instant::now();
    begins(scene).await;
    sleep(LASTS.saturating_sub(began.elapsed())).await;
    ends(scene).await;
    let ended = Instant::now();
    load.report(name, began, ended).await;
}

/// Faults that consist of commands.
const BY_COMMANDS: [(&str, &[&str], &[&str]); 10] = [
    ("CLIENT KILL", &[DISCONNECT], &[]),
    ("writes paused, as in a planned failover", &["CLIENT PAUSE 60000 WRITE"], &["CLIENT UNPAUSE"]),
    ("all paused", &["CLIENT PAUSE 2000 ALL"], &[]),
    ("maxclients", &["CONFIG SET maxclients 1", DISCONNECT], &["CONFIG SET maxclients 10000"]),
    ("OOM (maxmemory, noeviction)", &["CONFIG SET maxmemory 1"], &["CONFIG SET maxmemory 0"]),
    ("READONLY replica", &["REPLICAOF 127.0.0.1 1"], &["REPLICAOF NO ONE"]),
    ("NOREPLICAS", &["CONFIG SET min-replicas-to-write 1"], &["CONFIG SET min-replicas-to-write 0"]),
    (
        "NOAUTH after a password change",
        &["ACL SETUSER default resetpass >other", DISCONNECT],
        &["ACL SETUSER default nopass"],
    ),
    ("NOPERM", &["ACL SETUSER default -get -evalsha -eval"], &["ACL SETUSER default +@all"]),
    ("SCRIPT FLUSH", &["SCRIPT FLUSH"], &[]),
];

async fn standalone() {
    for (name, begin, end) in BY_COMMANDS {
        if !wanted(name) {
            continue;
        }
        let mut server = RedisServer::start().await;
        let control = server.connect().await.unwrap();
        let run = async |commands: &'static [&'static str]| {
            for command in commands {
                command_on(&mut control.clone(), command).await.unwrap();
            }
        };
        case(name, config(&server.url()), &mut server, async |_| run(begin).await, async |_| run(end).await).await;
    }
    let durable = &["--appendonly", "yes", "--appendfsync", "always"];
    if wanted("killed, restarted with its data (AOF)") {
        let mut server = RedisServer::start_with(durable).await;
        let name = "killed, restarted with its data (AOF)";
        case(name, config(&server.url()), &mut server, async |server| server.stop(), async |server| server.run().await)
            .await;
    }
    if wanted("SIGSTOP and SIGCONT") {
        let mut server = RedisServer::start().await;
        let name = "SIGSTOP and SIGCONT";
        case(name, config(&server.url()), &mut server, async |server| server.pause(), async |server| server.resume())
            .await;
    }
    type Act = fn(&Proxy);
    let on_the_way: [(&str, Act, Act); 5] = [
        ("network cut and healed", Proxy::black_hole, Proxy::heal),
        ("half-open connection", Proxy::strand_connections, |_| {}),
        ("connection reset", Proxy::reset_connections, |_| {}),
        (
            "slow: 150 ms",
            |proxy| proxy.delay_replies(Duration::from_millis(150)),
            |proxy| proxy.delay_replies(Duration::ZERO),
        ),
        (
            "slow: 400 ms",
            |proxy| proxy.delay_replies(Duration::from_millis(400)),
            |proxy| proxy.delay_replies(Duration::ZERO),
        ),
    ];
    for (name, begin, end) in on_the_way {
        if wanted(name) {
            let server = RedisServer::start().await;
            let mut proxy = Proxy::start(server.port()).await;
            let config = config(&proxy.url());
            case(name, config, &mut proxy, async |proxy| begin(proxy), async |proxy| end(proxy)).await;
        }
    }
}

async fn sentinel() {
    let config = |scene: &Sentinels| RedisConfig::sentinel(scene.addresses(), scene.master_name()).unwrap();
    if wanted("Sentinel: failover, planned") {
        let mut scene = Sentinels::start().await;
        let name = "Sentinel: failover, planned";
        case(name, config(&scene), &mut scene, async |scene| _ = scene.failover().await, async |_| {}).await;
    }
    if wanted("Sentinel: master killed") {
        let mut scene = Sentinels::start().await;
        let name = "Sentinel: master killed";
        let begin = async |scene: &mut Sentinels| {
            let old = scene.master().await;
            scene.servers[old].stop();
            scene.switched(old).await;
        };
        case(name, config(&scene), &mut scene, begin, async |_| {}).await;
    }
    if wanted("Sentinel: master hung") {
        let mut scene = Sentinels::start().await;
        let name = "Sentinel: master hung";
        let begin = async |scene: &mut Sentinels| {
            let old = scene.master().await;
            scene.servers[old].pause();
            scene.switched(old).await;
        };
        case(name, config(&scene), &mut scene, begin, async |_| {}).await;
    }
}

async fn cluster() {
    let config = |scene: &Cluster| RedisConfig::cluster(scene.nodes.iter().map(RedisServer::address)).unwrap();
    if wanted("Cluster: node killed") {
        let mut scene = Cluster::start().await;
        let begin = async |scene: &mut Cluster| {
            let node = scene.master_of(0).await;
            scene.kill(node);
            scene.failed_over(node).await;
        };
        case("Cluster: node killed", config(&scene), &mut scene, begin, async |_| {}).await;
    }
    if wanted("Cluster: node hung") {
        let mut scene = Cluster::start().await;
        let begin = async |scene: &mut Cluster| {
            let node = scene.master_of(0).await;
            scene.pause(node);
            scene.failed_over(node).await;
        };
        case("Cluster: node hung", config(&scene), &mut scene, begin, async |_| {}).await;
    }
    if wanted("Cluster: failover, planned") {
        let mut scene = Cluster::start().await;
        let begin = async |scene: &mut Cluster| {
            let node = scene.master_of(0).await;
            scene.failover(node).await;
        };
        case("Cluster: failover, planned", config(&scene), &mut scene, begin, async |_| {}).await;
    }
}

#[tokio::main]
async fn main() {
    if env::args().any(|arg| arg == "--test") {
        return; // `cargo test --benches` only checks that it starts
    }
    println!(
        "{:44} {:>6} {:>6} {:>10} {:>4} {:>10} {:>12} {:>11}",
        "fault", "all", "failed", "first", "late", "longest", "when known", "recovery"
    );
    standalone().await;
    sentinel().await;
    cluster().await;
    println!(
        "all: requests since the fault began; first: from its beginning to the first refusal; late: requests that took longer than \
         {DEADLINE:?} and {SLACK:?} for the machine; when known: the median time of a refusal half a second later; recovery: from the end of the \
         fault to the last refusal"
    );
}
