//! The test harness works: servers in all deployments, and their faults.

use std::{
    fs, io,
    net::{self, TcpListener},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    certificates::{Certificate, Certificates},
    cluster::Cluster,
    eventually,
    port::Port,
    proxy::Proxy,
    redis_server::{RedisServer, command_on, text},
    sentinel::{Passwords, Sentinels},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use redis::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};

/// A command to the server at `url`.
async fn ask(url: &str, command: &str) -> redis::RedisResult<String> {
    let mut connection = Client::open(url)?.get_multiplexed_async_connection().await?;
    Ok(text(&command_on(&mut connection, command).await?))
}

mod one_server {
    use super::*;

    #[test]
    fn a_port_is_reserved_until_it_is_released() {
        let ports: Vec<_> = (0..50).map(|_| Port::free()).collect();
        let mut numbers: Vec<_> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        for port in ports {
            TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        }
        assert!(Port::free_with_bus().number() < 20_000);
    }

    #[test]
    fn a_server_ends_with_a_test_that_panics() {
        let (tell, told) = mpsc::channel();
        let panic = panic_of(async move || {
            let server = RedisServer::start().await;
            server.pause();
            tell.send((server.port(), server.dir().to_owned())).unwrap();
            panic!("the server of {} is left behind", server.url());
        });
        let (port, dir) = told.recv().unwrap();
        assert!(panic.contains(&port.to_string()), "{panic}");
        let refused = net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(!dir.exists());
    }

    #[test]
    fn a_server_that_does_not_start_reports_the_reason() {
        let panic = panic_of(async || drop(RedisServer::start_with(&["--no-such-option", "1"]).await));
        assert!(panic.contains("no-such-option"), "{panic}");
    }

    fn panic_of(test: impl AsyncFnOnce() + Send + 'static) -> String {
        let test = thread::spawn(|| Runtime::new().unwrap().block_on(test()));
        *test.join().unwrap_err().downcast().unwrap()
    }

    #[tokio::test]
    async fn by_unix_socket() {
        let server = RedisServer::start_unix().await;
        assert_eq!(ask(&server.unix_url(), "SET k v").await.unwrap(), "OK");
        assert_eq!(server.get("k").await, "v");
    }

    #[tokio::test]
    async fn by_a_user_with_few_rights() {
        let server = RedisServer::start().await;
        server.add_user("a@b:c/d%", "p@ss:w/rd?#% e", "~k +get").await;
        let url = server.url_as("a@b:c/d%", "p@ss:w/rd?#% e");
        server.command("SET k v").await;
        assert_eq!(ask(&url, "GET k").await.unwrap(), "v");
        assert_eq!(ask(&url, "GET other").await.unwrap_err().code(), Some("NOPERM"));
        assert_eq!(ask(&url, "SET k v").await.unwrap_err().code(), Some("NOPERM"));
        assert!(ask(&server.url_as("a@b:c/d%", "other"), "GET k").await.is_err());
    }

    #[tokio::test]
    async fn a_replica_follows_its_master_after_a_restart() {
        let master = RedisServer::start_with(&["--requirepass", "open-sesame"]).await;
        master.command("SET k v").await;
        let mut replica = RedisServer::start_replica_of(&master).await;
        assert_eq!(replica.get("k").await, "v");
        assert_eq!((master.role().await, replica.role().await), ("master".into(), "slave".into()));
        assert_eq!(replica.try_command("SET k v").await.unwrap_err().code(), Some("READONLY"));
        replica.run().await;
        eventually("in sync again", async || replica.is_in_sync().await).await;
        assert_eq!(replica.get("k").await, "v");
    }
}

mod tls {
    use super::*;

    #[tokio::test]
    async fn a_server_presents_and_requests_certificates() {
        let certificates = Certificates::new();
        let Certificates { server, wrong_name, expired, strange_server, .. } = &certificates;
        for (shown, mutual) in [(server, false), (server, true), (wrong_name, false), (expired, false)] {
            let redis = RedisServer::start_tls_as(&certificates, shown, mutual).await;
            assert_eq!(greeted(redis.tls_port()).await, (der(shown), mutual));
            assert_eq!(text(&redis.command("PING").await), "PONG");
        }
        let redis = RedisServer::start_tls_as(&certificates, strange_server, false).await;
        assert_eq!(greeted(redis.tls_port()).await.0, der(strange_server));
    }

    #[tokio::test]
    async fn it_works_through_a_proxy() {
        let certificates = Certificates::new();
        let redis = RedisServer::start_tls(&certificates, false).await;
        let proxy = Proxy::start(redis.tls_port()).await;
        assert_eq!(greeted(proxy.port()).await.0, der(&certificates.server));
    }

    /// Redis itself is a TLS client: as a replica.
    #[tokio::test]
    async fn a_client_with_a_certificate_is_accepted() {
        let certificates = Certificates::new();
        let master = RedisServer::start_tls(&certificates, true).await;
        master.command("SET k v").await;
        let replica = follower(&certificates, &certificates.client, &master).await;
        eventually("the replica is in sync", async || replica.is_in_sync().await).await;
        assert_eq!(replica.get("k").await, "v");
    }

    #[tokio::test]
    async fn invalid_certificates_are_refused() {
        let certificates = Certificates::new();
        let Certificates { server, expired, strange_server, client, strange_client, .. } = &certificates;
        for (shown, client, complaint) in [
            (expired, client, "certificate verify failed"),
            (strange_server, client, "certificate verify failed"),
            (server, strange_client, "unknown ca"),
        ] {
            let master = RedisServer::start_tls_as(&certificates, shown, true).await;
            let replica = follower(&certificates, client, &master).await;
            let log = replica.dir().join("log");
            let complains = async || fs::read_to_string(&log).unwrap().contains(complaint);
            eventually(complaint, complains).await;
            assert!(!replica.is_in_sync().await);
        }
    }

    async fn follower(certificates: &Certificates, own: &Certificate, master: &RedisServer) -> RedisServer {
        let replica = RedisServer::start_with(&[
            "--tls-replication",
            "yes",
            "--tls-ca-cert-file",
            certificates.authority.to_str().unwrap(),
            "--tls-cert-file",
            own.certificate.to_str().unwrap(),
            "--tls-key-file",
            own.key.to_str().unwrap(),
        ])
        .await;
        replica.command(&format!("REPLICAOF 127.0.0.1 {}", master.tls_port())).await;
        replica
    }

    /// The certificate of a server, and whether it requires one: in TLS 1.2 both are visible in plain text.
    async fn greeted(port: u16) -> (Vec<u8>, bool) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&client_hello()).await.unwrap();
        let mut said = Vec::new();
        let (mut certificate, mut wants_one) = (Vec::new(), false);
        loop {
            while let Some((kind, message)) = next_message(&mut said) {
                match kind {
                    11 => {
                        // A chain with a length of three bytes, and so has its first certificate.
                        let length = u32::from_be_bytes([0, message[3], message[4], message[5]]) as usize;
                        certificate = message[6..6 + length].to_vec();
                    }
                    13 => wants_one = true,
                    14 => return (certificate, wants_one),
                    _ => {}
                }
            }
            let mut head = [0; 5];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], 22, "no handshake");
            let mut body = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
            stream.read_exact(&mut body).await.unwrap();
            said.extend(body);
        }
    }

    fn next_message(said: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
        let length = u32::from_be_bytes([0, *said.get(1)?, *said.get(2)?, *said.get(3)?]) as usize;
        (said.len() >= 4 + length).then(|| {
            let message: Vec<_> = said.drain(..4 + length).collect();
            (message[0], message[4..].to_vec())
        })
    }

    /// TLS 1.2, ECDSA with AES-GCM, P-256.
    fn client_hello() -> Vec<u8> {
        let extensions: [&[u8]; 3] = [
            &[0, 10, 0, 4, 0, 2, 0, 23],            // groups
            &[0, 11, 0, 2, 1, 0],                   // points
            &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1], // signatures
        ];
        let extensions = extensions.concat();
        let mut hello = vec![3, 3];
        hello.extend([7; 32]); // "random"
        hello.extend([0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2C, 1, 0]); // no session, ciphers, no compression
        hello.extend((extensions.len() as u16).to_be_bytes());
        hello.extend(extensions);
        let mut record = vec![22, 3, 1];
        record.extend((hello.len() as u16 + 4).to_be_bytes());
        record.extend([1, 0]);
        record.extend((hello.len() as u16).to_be_bytes());
        record.extend(hello);
        record
    }

    fn der(certificate: &Certificate) -> Vec<u8> {
        let pem = fs::read_to_string(&certificate.certificate).unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        BASE64_STANDARD.decode(base64).unwrap()
    }
}

mod sentinels {
    use super::*;

    #[tokio::test]
    async fn replace_a_master_that_is_killed() {
        let mut scene = Sentinels::start().await;
        assert_eq!((scene.master().await, scene.servers[0].role().await), (0, "master".into()));
        scene.master_server().await.command("SET k v").await;
        scene.servers[0].command("WAIT 2 0").await;
        scene.servers[0].stop();
        let new = scene.switched(0).await;
        assert_eq!(scene.servers[new].get("k").await, "v");
        scene.servers[0].run().await;
        scene.rejoined(0).await;
        assert_eq!(scene.servers[0].get("k").await, "v");
    }

    #[tokio::test]
    async fn replace_a_master_that_hangs() {
        let scene = Sentinels::start().await;
        scene.servers[0].pause();
        let new = scene.switched(0).await;
        scene.servers[0].resume();
        scene.rejoined(0).await;
        assert_eq!(scene.master().await, new);
    }

    #[tokio::test]
    async fn replace_a_healthy_master_and_require_passwords() {
        let passwords = Passwords { servers: Some("open-sesame"), sentinels: Some("who-goes-there") };
        let scene = Sentinels::start_with(passwords, &[]).await;
        assert!(ask(&scene.urls()[0], "PING").await.is_err());
        assert!(ask(&scene.servers[0].url(), "PING").await.is_err());
        let old = scene.hands_over().await;
        let new = scene.master().await;
        assert_eq!((scene.servers[new].role().await, old), ("master".into(), 0));
    }
}

mod cluster {
    use super::*;

    #[tokio::test]
    async fn a_replica_replaces_a_master_that_is_killed() {
        let mut cluster = Cluster::start().await;
        let node = cluster.node_of_key("k").await;
        cluster.nodes[node].command("SET k v").await;
        cluster.nodes[node].command("WAIT 1 0").await;
        cluster.kill(node);
        let new = cluster.failed_over(node).await;
        assert_eq!((cluster.node_of_key("k").await, cluster.nodes[new].get("k").await), (new, "v".into()));
        cluster.restart(node).await;
        cluster.settled().await;
        assert_eq!((cluster.nodes[node].role().await, cluster.master_of(node).await), ("slave".into(), new));
        // And back, with all servers running.
        assert_eq!(cluster.failover(new).await, node);
        cluster.settled().await;
        assert_eq!(cluster.nodes[node].get("k").await, "v");
    }

    #[tokio::test]
    async fn a_replica_replaces_a_master_that_hangs() {
        let cluster = Cluster::start_with(&["--requirepass", "open-sesame"]).await;
        cluster.pause(1);
        let new = cluster.failed_over(1).await;
        cluster.resume(1);
        cluster.settled().await;
        assert_eq!((new, cluster.master_of(1).await), (4, 4));
    }

    #[tokio::test]
    async fn a_slot_moves_with_its_keys() {
        let cluster = Cluster::start_with(&["--requirepass", "open-sesame"]).await;
        let (slot, from) = (cluster.slot("{k}").await, cluster.node_of_key("{k}").await);
        let to = (from + 1) % 3;
        for i in 0..3 {
            cluster.nodes[from].command(&format!("SET {{k}}{i} v{i}")).await;
        }

        let migration = cluster.migration(slot, to).await;
        assert_eq!((migration.from, migration.remaining().await.len()), (from, 3));
        assert_eq!(cluster.nodes[from].get("{k}0").await, "v0");
        migration.give_up().await;
        assert_eq!(cluster.node_of_slot(slot).await, from);

        // Half way, some keys are on one node and some on the other.
        let migration = cluster.migration(slot, to).await;
        migration.move_key("{k}0").await;
        assert_eq!(cluster.nodes[from].try_command("GET {k}0").await.unwrap_err().code(), Some("ASK"));
        assert_eq!(cluster.nodes[to].try_command("GET {k}0").await.unwrap_err().code(), Some("MOVED"));
        assert_eq!(cluster.nodes[from].get("{k}1").await, "v1");
        let both = cluster.nodes[from].try_command("MGET {k}0 {k}1").await;
        let both = both.unwrap_err();
        assert!(matches!(both.code(), Some("TRYAGAIN" | "ASK")), "{both}"); // ASK: Redis 6
        migration.move_keys().await;
        migration.finish().await;
        assert_eq!(cluster.node_of_slot(slot).await, to);
        assert_eq!(cluster.nodes[to].get("{k}2").await, "v2");
        assert_eq!(cluster.nodes[from].try_command("GET {k}0").await.unwrap_err().code(), Some("MOVED"));

        cluster.migrate_slot(slot, from).await;
        assert_eq!(cluster.nodes[from].get("{k}0").await, "v0");
    }
}

mod proxy {
    use super::*;

    struct Scene {
        server: RedisServer,
        proxy: Proxy,
        stream: TcpStream,
    }

    /// With an established connection.
    async fn scene() -> Scene {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        let stream = connect(&proxy).await;
        let mut scene = Scene { server, proxy, stream };
        assert_eq!(ping(&mut scene.stream).await.unwrap(), "+PONG\r\n");
        scene
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
    }

    async fn ping(stream: &mut TcpStream) -> io::Result<String> {
        stream.write_all(b"PING\r\n").await?;
        heard(stream).await
    }

    /// Empty if the other side has closed.
    async fn heard(stream: &mut TcpStream) -> io::Result<String> {
        let mut reply = [0; 100];
        let read = stream.read(&mut reply).await?;
        Ok(String::from_utf8_lossy(&reply[..read]).into_owned())
    }

    async fn is_silent(stream: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(100), heard(stream)).await.is_err()
    }

    #[tokio::test]
    async fn a_black_hole_keeps_connections_and_data_in_transit() {
        let Scene { server, proxy, mut stream } = scene().await;
        let before = server.calls("ping").await;
        proxy.black_hole();
        stream.write_all(b"PING\r\n").await.unwrap();
        let mut new = connect(&proxy).await;
        new.write_all(b"PING\r\n").await.unwrap();
        assert!(is_silent(&mut stream).await && is_silent(&mut new).await);
        assert_eq!(server.calls("ping").await - before, server_own_pings());
        proxy.heal();
        assert_eq!(heard(&mut stream).await.unwrap(), "+PONG\r\n");
        assert_eq!(heard(&mut new).await.unwrap(), "+PONG\r\n");
    }

    /// The test's own connection starts with a PING.
    fn server_own_pings() -> u64 {
        1
    }

    #[tokio::test]
    async fn forgotten_connections_stay_silent_and_new_ones_work() {
        let Scene { server: _server, proxy, mut stream } = scene().await;
        proxy.strand_connections();
        stream.write_all(b"PING\r\n").await.unwrap();
        assert_eq!(ping(&mut connect(&proxy).await).await.unwrap(), "+PONG\r\n");
        assert!(is_silent(&mut stream).await);
        assert_eq!(proxy.connections(), 2);
    }

    #[tokio::test]
    async fn replies_are_late_and_do_not_wait_for_each_other() {
        let Scene { server: _server, proxy, mut stream } = scene().await;
        let delay = Duration::from_secs(1);
        proxy.delay_replies(delay);
        let begin = Instant::now();
        for _ in 0..3 {
            stream.write_all(b"PING\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut replies = [0; 21];
        stream.read_exact(&mut replies[..7]).await.unwrap();
        assert!(begin.elapsed() >= delay);
        stream.read_exact(&mut replies[7..]).await.unwrap();
        assert!(begin.elapsed() < 3 * delay, "{:?}", begin.elapsed());
        assert_eq!(&replies, b"+PONG\r\n+PONG\r\n+PONG\r\n");
        proxy.heal();
        assert_eq!(ping(&mut stream).await.unwrap(), "+PONG\r\n");
    }

    #[tokio::test]
    async fn connections_end_in_either_way() {
        let Scene { server, proxy, mut stream } = scene().await;
        proxy.close_connections();
        assert_eq!(heard(&mut stream).await.unwrap(), "");
        let mut stream = connect(&proxy).await;
        ping(&mut stream).await.unwrap();
        proxy.reset_connections();
        assert_eq!(heard(&mut stream).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        eventually("all are closed", async || proxy.open_connections() == 0).await;
        let clients = async || text(&server.command("CLIENT LIST").await).lines().count();
        eventually("Redis knows", async || clients().await == 1).await;
        assert_eq!(ping(&mut connect(&proxy).await).await.unwrap(), "+PONG\r\n");
        assert_eq!(proxy.connections(), 3);
    }

    #[tokio::test]
    async fn a_reset_loses_the_data_in_a_black_hole() {
        let Scene { server, proxy, mut stream } = scene().await;
        proxy.black_hole();
        stream.write_all(b"SET k v\r\n").await.unwrap();
        proxy.reset_connections();
        assert!(heard(&mut stream).await.is_err());
        proxy.heal();
        assert_eq!(ping(&mut connect(&proxy).await).await.unwrap(), "+PONG\r\n");
        assert_eq!(server.keys().await, [""; 0]);
    }

    #[tokio::test]
    async fn new_connections_are_refused_and_old_ones_continue() {
        let Scene { server: _server, proxy, mut stream } = scene().await;
        proxy.refuse().await;
        let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(ping(&mut stream).await.unwrap(), "+PONG\r\n");
        proxy.accept();
        assert_eq!(ping(&mut connect(&proxy).await).await.unwrap(), "+PONG\r\n");
    }

    #[tokio::test]
    async fn it_ends_with_its_connections() {
        let Scene { server: _server, proxy, mut stream } = scene().await;
        drop(proxy);
        assert_eq!(heard(&mut stream).await.unwrap(), "");
    }
}
