//! The files in `examples/deploy`, as far as possible without containers: they create the certificates, they start Redis, and an
//! example runs with their environment.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use crate::support::{dir::Dir, eventually, example::Server, port::Port};
use http::StatusCode;
use serde_json::json;
use yaml_rust2::{Yaml, YamlLoader};

const APP_PASSWORD: &str = "s3cret-of-the-app";
const OPERATOR_PASSWORD: &str = "s3cret-of-the-operator";

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy").join(file)
}

fn yaml(file: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&fs::read_to_string(deploy(file)).unwrap()).unwrap()
}

/// The server with these files, other paths and another port. Killed when dropped.
struct Redis {
    child: Child,
    port: Port,
    tls: PathBuf,
    dir: Dir,
}

impl Redis {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With the snapshot of another server, as the README describes.
    async fn start_with(snapshot: Option<&Path>) -> Self {
        let (dir, port) = (Dir::new(), Port::free());
        let (tls, data) = (dir.join("tls"), dir.join("data"));
        let made = Command::new(deploy("certificates.sh")).arg(&tls).args(["redis", "localhost"]).status().unwrap();
        assert!(made.success());
        fs::create_dir(&data).unwrap();
        if let Some(snapshot) = snapshot {
            fs::copy(snapshot, data.join("dump.rdb")).unwrap();
            restore(&data, &dir.join("restore.sock")).await;
        }
        let config = fs::read_to_string(deploy("redis.conf")).unwrap();
        let config = config
            .replace("/tls/", &format!("{}/", tls.display()))
            .replace("dir /data", &format!("dir {}", data.display()))
            .replace("tls-port 6379", &format!("tls-port {}", port.number()));
        let file = dir.join("redis.conf");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("/bin/sh");
        command.arg(deploy("start.sh")).arg(&file);
        command.env("ACL_FILE", dir.join("users.acl")).env("APP_PASSWORD", APP_PASSWORD);
        command.env("OPERATOR_PASSWORD", OPERATOR_PASSWORD).stdout(log.try_clone().unwrap()).stderr(log);
        let redis = Self { child: command.spawn().unwrap(), port, tls, dir };
        eventually("Redis answers", async || redis.cli(Some("operator"), &["PING"]) == "PONG").await;
        redis
    }

    /// The output of `redis-cli`.
    fn cli(&self, user: Option<&str>, command: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["--tls", "--cacert", self.tls.join("ca.crt").to_str().unwrap(), "-h", "localhost", "-p"]);
        cli.arg(self.port.number().to_string());
        if let Some(user) = user {
            let password = if user == "app" { APP_PASSWORD } else { OPERATOR_PASSWORD };
            cli.args(["--user", user]).env("REDISCLI_AUTH", password);
        }
        let output = cli.args(command).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap().trim().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The commands of the README.
async fn restore(data: &Path, socket: &Path) {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (data, socket) = (data.to_str().unwrap(), socket.to_str().unwrap());
    let server = ["--port", "0", "--unixsocket", socket, "--dir", data, "--appendonly", "no", "--daemonize", "yes"];
    run("redis-server", &server);
    let answers = || Command::new("redis-cli").args(["-s", socket, "ping"]).output().unwrap().stdout == b"PONG\n";
    eventually("it answers", async || answers()).await;
    run("redis-cli", &["-s", socket, "config", "set", "appendonly", "yes"]);
    eventually("the log is written", async || {
        let info = run("redis-cli", &["-s", socket, "info", "persistence"]);
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    })
    .await;
    run("redis-cli", &["-s", socket, "shutdown"]);
    eventually("it is gone", async || !answers()).await;
}

/// The environment of an instance in `compose.yaml`, with the port and paths of the test.
fn environment(redis: &Redis) -> Vec<(String, String)> {
    let compose = &yaml("compose.yaml")[0];
    let environment = compose["services"]["one"]["environment"].as_hash().unwrap();
    let variables = environment.iter().map(|(name, value)| {
        let name = name.as_str().unwrap();
        let value = match name {
            "ADDR" => "127.0.0.1:0".into(),
            "REDIS_HOST" => "localhost".into(),
            "REDIS_PORT" => redis.port.number().to_string(),
            "REDIS_PASSWORD" => APP_PASSWORD.into(),
            "REDIS_CA_CERT" => value.as_str().unwrap().replace("/tls", redis.tls.to_str().unwrap()),
            _ => value.as_str().expect("a text").to_owned(),
        };
        (name.to_owned(), value)
    });
    variables.collect()
}

#[tokio::test]
async fn an_example_runs_on_redis_from_the_deploy_files() {
    let redis = Redis::start().await;
    let variables = environment(&redis);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (one, two) = (Server::start("admin", &variables).await, Server::start("admin", &variables).await);
    let client = one.client();
    let body = json!({ "username": "admin", "password": "admin" });
    assert_eq!(client.post("/admin/login", &body).await.status, StatusCode::OK);
    assert_eq!(client.at(&two.url).get("/admin").await.json()["user"], "admin");
    assert_eq!(client.get("/health/ready").await.status, StatusCode::OK);
    assert_eq!(client.get("/health/report").await.json()["status"], "up");
    let export = client.post("/admin/sessions/export", &json!({})).await;
    assert_eq!((export.status, export.text().lines().count()), (StatusCode::OK, 1));
    assert!(!one.log().contains("s3cret"), "{}", one.log());

    // The README's instructions for operators work.
    let operator = |command: &[&str]| redis.cli(Some("operator"), command);
    let key = operator(&["--scan", "--pattern", "sess:{*}:*"]);
    assert!(key.starts_with("sess:{") && !key.contains('\n'), "{key}");
    let (index, _) = key.rsplit_once(':').unwrap();
    assert!(operator(&["GET", &key]).contains("admin"));
    assert!(operator(&["PTTL", &key]).parse::<u64>().unwrap() > 0);
    assert_eq!(operator(&["ZRANGE", index, "0", "-1", "WITHSCORES"]).lines().count(), 2);
    assert!(operator(&["MEMORY", "USAGE", &key]).parse::<u64>().unwrap() > 100);
    for (section, field) in
        [("memory", "maxmemory_policy:noeviction"), ("stats", "evicted_keys:0"), ("persistence", "aof_enabled:1")]
    {
        assert!(operator(&["INFO", section]).contains(field), "{section}");
    }
    assert!(!operator(&["SLOWLOG", "GET", "10"]).contains("NOPERM"));
    assert!(operator(&["BGSAVE"]).contains("ackground"));
    assert!(operator(&["LASTSAVE"]).parse::<u64>().is_ok());

    // Its backup is valid.
    let snapshot = redis.dir.join("data/dump.rdb");
    eventually("the snapshot is written", async || {
        operator(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0") && snapshot.exists()
    })
    .await;
    let restored = Redis::start_with(Some(&snapshot)).await;
    let variables = environment(&restored);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let there = Server::start("admin", &variables).await;
    assert_eq!(client.at(&there.url).get("/admin").await.json()["user"], "admin");

    // No user has the rights of another.
    for command in ["SET sess:x 1", "DEL sess:x", "CONFIG GET maxmemory", "FLUSHALL"] {
        let command: Vec<_> = command.split(' ').collect();
        assert!(operator(&command).contains("NOPERM"), "{command:?}");
    }
    for command in ["GET other", "CONFIG GET maxmemory", "KEYS *", "SCRIPT FLUSH"] {
        let command: Vec<_> = command.split(' ').collect();
        assert!(redis.cli(Some("app"), &command).contains("NOPERM"), "{command:?}");
    }
    assert!(redis.cli(None, &["PING"]).contains("NOAUTH"));
}

/// The variables of the examples.
fn known() -> BTreeSet<&'static str> {
    let all = "ADDR REDIS_URL REDIS_HOST REDIS_PORT REDIS_DB REDIS_USERNAME REDIS_PASSWORD REDIS_TLS REDIS_CLUSTER_NODES REDIS_SENTINELS \
        REDIS_SENTINEL_MASTER REDIS_SENTINEL_USERNAME REDIS_SENTINEL_PASSWORD REDIS_CA_CERT REDIS_CLIENT_CERT REDIS_CLIENT_KEY USE_REDIS REDIS_ENABLED SESSION_SECRET";
    all.split_whitespace().collect()
}

#[tokio::test]
async fn the_manifests_use_variables_of_the_examples() {
    let documents = [yaml("kubernetes/redis.yaml"), yaml("kubernetes/admin.yaml")].concat();
    let named = |kind: &str, name: &str| {
        let is = |document: &&Yaml| {
            document["kind"].as_str() == Some(kind) && document["metadata"]["name"].as_str() == Some(name)
        };
        documents.iter().find(is).unwrap_or_else(|| panic!("{kind} {name}"))
    };
    let app = named("Deployment", "admin");
    let pod = &app["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    for variable in container["env"].as_vec().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known().contains(name), "{name}");
    }
    // Each selector matches its pods, and each port has its name there.
    for (kind, name) in [("Deployment", "admin"), ("StatefulSet", "redis")] {
        let set = named(kind, name);
        let pod = &set["spec"]["template"];
        assert_eq!(set["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]);
        let service = named("Service", name);
        assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
        let port = &pod["spec"]["containers"][0]["ports"][0];
        assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
        // Mounted volumes exist.
        let volumes = |list: &Yaml| -> BTreeSet<String> {
            list.as_vec().into_iter().flatten().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
        };
        let mut there = volumes(&pod["spec"]["volumes"]);
        let claims = set["spec"]["volumeClaimTemplates"].as_vec().into_iter().flatten();
        there.extend(claims.map(|claim| claim["metadata"]["name"].as_str().unwrap().to_owned()));
        assert_eq!(volumes(&pod["spec"]["containers"][0]["volumeMounts"]), there, "{name}");
    }
    // The paths of the probes exist.
    let server = Server::start("admin", &[]).await;
    for probe in ["livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(server.client().get(path).await.status, StatusCode::OK, "{path}");
    }
    // The variables of compose exist too.
    let compose = &yaml("compose.yaml")[0];
    for name in compose["services"]["one"]["environment"].as_hash().unwrap().keys() {
        assert!(known().contains(name.as_str().unwrap()), "{name:?}");
    }
}
