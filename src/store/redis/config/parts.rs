//! The configuration from environment variables or a file.

use std::{env, fs, path::PathBuf, time::Duration};

use redis::RedisConnectionInfo;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    InvalidRedisConfig, RedisConfig,
    error::{Place, Problem},
    place::{Address, Servers, of_url},
    tls::Tls,
};
use crate::SessionSecret;

/// All settings, each optional.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Parts {
    #[serde(deserialize_with = "secret")]
    url: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    database: Option<i64>,
    username: Option<String>,
    #[serde(deserialize_with = "secret")]
    password: Option<String>,
    tls: Option<bool>,
    ca_cert: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    cluster_nodes: Option<Vec<String>>,
    sentinels: Option<Vec<String>>,
    sentinel_master: Option<String>,
    sentinel_username: Option<String>,
    #[serde(deserialize_with = "secret")]
    sentinel_password: Option<String>,
    prefix: Option<String>,
    timeout_ms: Option<u64>,
    connect_timeout_ms: Option<u64>,
    remember_ended_secs: Option<u64>,
    max_sessions: Option<usize>,
    share_events: Option<usize>,
    wait_for_replicas: Option<usize>,
}

/// Deserializes a string. The error does not contain the value.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map_err(|_| D::Error::custom("a password or a URL that is not a string"))
}

/// The name of a setting in the environment, and in a file.
#[derive(Clone, Copy)]
enum Names {
    Environment,
    File,
}

impl Names {
    fn wrong(self, variable: &'static str, field: &'static str, problem: Problem) -> InvalidRedisConfig {
        let place = match self {
            Self::Environment => Place::Variable(variable),
            Self::File => Place::Field(field),
        };
        InvalidRedisConfig { place, problem }
    }
}

impl TryFrom<Parts> for RedisConfig {
    type Error = InvalidRedisConfig;

    fn try_from(parts: Parts) -> Result<Self, InvalidRedisConfig> {
        parts.config(Names::File)
    }
}

/// The configuration from variables, if they enable Redis.
pub(super) fn of_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<RedisConfig>, InvalidRedisConfig> {
    let var = |name: &'static str| var(name).filter(|value| !value.is_empty()).map(|value| Var { name, value });

    if let Some(secret) = var("SESSION_SECRET")
        && secret.value.parse::<SessionSecret>().is_err()
    {
        return Err(secret.wrong(Problem::Secret));
    }
    let switches = [var("USE_REDIS"), var("REDIS_ENABLED")];
    let switches: Vec<bool> = switches.iter().flatten().map(Var::boolean).collect::<Result<_, _>>()?;
    if switches.contains(&false) {
        return Ok(None);
    }
    // A secret in a file often ends with a line break.
    let text = |name| var(name).map(|var| var.value.trim_end_matches(['\r', '\n']).to_owned());
    let list = |name| var(name).map(|var| var.value.split(',').map(|node| node.trim().to_owned()).collect());
    let mut parts = Parts {
        url: text("REDIS_URL"),
        ca_cert: text("REDIS_CA_CERT").map(PathBuf::from),
        client_cert: text("REDIS_CLIENT_CERT").map(PathBuf::from),
        client_key: text("REDIS_CLIENT_KEY").map(PathBuf::from),
        cluster_nodes: list("REDIS_CLUSTER_NODES"),
        sentinels: list("REDIS_SENTINELS"),
        sentinel_master: text("REDIS_SENTINEL_MASTER"),
        sentinel_username: text("REDIS_SENTINEL_USERNAME"),
        sentinel_password: text("REDIS_SENTINEL_PASSWORD"),
        ..Parts::default()
    };
    if parts.url.is_none() {
        parts.host = text("REDIS_HOST");
        if let Some(port) = var("REDIS_PORT") {
            // Kubernetes sets it to `tcp://10.0.0.7:6379` if there is a Service with the name `redis`.
            let service = port.value.strip_prefix("tcp://").map(|service| port.with(service).parse(Problem::Port));
            match service.transpose()? {
                Some(Address::Tcp(host, port)) => {
                    parts.host.get_or_insert(host);
                    parts.port = Some(port);
                }
                _ => parts.port = Some(port.parse(Problem::Port)?),
            }
        }
        parts.database = var("REDIS_DB").map(|database| database.parse(Problem::Database)).transpose()?;
        parts.username = text("REDIS_USERNAME");
        parts.password = text("REDIS_PASSWORD");
        parts.tls = var("REDIS_TLS").map(|tls| tls.boolean()).transpose()?;
    }
    if switches.is_empty() && !parts.name_redis() {
        return Ok(None);
    }
    parts.config(Names::Environment).map(Some)
}

/// The variables of this process.
pub(super) fn of_process(name: &str) -> Option<String> {
    match env::var(name) {
        Ok(value) => Some(value),
        Err(env::VarError::NotPresent) => None,
        // Not UTF-8: an invalid value.
        Err(env::VarError::NotUnicode(_)) => Some("\u{fffd}".into()),
    }
}

impl Parts {
    /// Whether any setting enables Redis. Disabling TLS does not.
    fn name_redis(&self) -> bool {
        let sentinel = [&self.sentinel_master, &self.sentinel_username, &self.sentinel_password];
        let texts = [&self.url, &self.host, &self.username, &self.password].into_iter().chain(sentinel);
        let files = [&self.ca_cert, &self.client_cert, &self.client_key];
        texts.into_iter().flatten().next().is_some()
            || files.into_iter().any(Option::is_some)
            || self.port.is_some()
            || self.database.is_some()
            || self.cluster_nodes.is_some()
            || self.sentinels.is_some()
            || self.tls == Some(true)
    }

    fn config(self, names: Names) -> Result<RedisConfig, InvalidRedisConfig> {
        let wrong = |variable, field, problem| names.wrong(variable, field, problem);
        let (servers, login, tls) = self.servers(names)?;
        let tls = self.tls(tls, names)?;
        let mut config = RedisConfig::of(servers, login);
        if let Some(tls) = tls {
            let name = if self.url.is_some() { ("REDIS_URL", "url") } else { ("REDIS_TLS", "tls") };
            config = config.secured(tls).map_err(|problem| wrong(name.0, name.1, problem))?;
        }
        if let Some(prefix) = self.prefix {
            config = config.prefix(prefix).map_err(|error| wrong("", "prefix", error.problem))?;
        }
        if let Some(timeout) = self.timeout_ms {
            config = config.timeout(Duration::from_millis(timeout));
        }
        if let Some(timeout) = self.connect_timeout_ms {
            config = config.connect_timeout(Duration::from_millis(timeout));
        }
        if let Some(time) = self.remember_ended_secs {
            config = config.remember_ended(Duration::from_secs(time));
        }
        if let Some(sessions) = self.max_sessions {
            config = config.max_sessions(sessions);
        }
        if let Some(kept) = self.share_events {
            config = config.share_events(kept);
        }
        if let Some(replicas) = self.wait_for_replicas {
            config = config.wait_for_replicas(replicas);
        }
        Ok(config)
    }

    /// The servers, the login, and whether the URL enables TLS.
    fn servers(&self, names: Names) -> Result<(Servers, RedisConnectionInfo, bool), InvalidRedisConfig> {
        let wrong = |variable, field, problem| names.wrong(variable, field, problem);
        let database = self.database.unwrap_or(0);
        if database < 0 {
            return Err(wrong("REDIS_DB", "database", Problem::Database));
        }
        let sentinel_login = self.sentinel_login(names)?;
        let several = match (&self.cluster_nodes, &self.sentinels, &self.sentinel_master) {
            (Some(_), Some(_), _) => return Err(wrong("REDIS_SENTINELS", "sentinels", Problem::TwoPlaces)),
            (Some(_), _, Some(_)) => return Err(wrong("REDIS_SENTINEL_MASTER", "sentinel_master", Problem::TwoPlaces)),
            (None, Some(_), None) => return Err(wrong("REDIS_SENTINELS", "sentinels", Problem::NoMaster)),
            (None, None, Some(_)) => {
                return Err(wrong("REDIS_SENTINEL_MASTER", "sentinel_master", Problem::NoSentinels));
            }
            (Some(nodes), None, None) => {
                let name = ("REDIS_CLUSTER_NODES", "cluster_nodes");
                if database != 0 {
                    return Err(wrong("REDIS_DB", "database", Problem::DatabaseInCluster));
                }
                Some((name, RedisConfig::nodes(nodes).and_then(RedisConfig::cluster_of)))
            }
            (None, Some(sentinels), Some(master)) => {
                let name = ("REDIS_SENTINELS", "sentinels");
                Some((
                    name,
                    RedisConfig::nodes(sentinels)
                        .and_then(|nodes| RedisConfig::sentinel_of(nodes, master, sentinel_login)),
                ))
            }
            (None, None, None) => None,
        };
        if let Some((name, servers)) = several {
            let servers = servers.map_err(|problem| wrong(name.0, name.1, problem))?;
            if self.url.is_some() || self.host.is_some() || self.port.is_some() {
                return Err(wrong(name.0, name.1, Problem::TwoPlaces));
            }
            return Ok((servers, self.login(database, names)?, false));
        }
        if let Some(url) = &self.url {
            let (address, login, tls) = of_url(url).map_err(|problem| wrong("REDIS_URL", "url", problem))?;
            return Ok((Servers::One(address), login, tls));
        }
        let port = match self.port {
            Some(0) => return Err(wrong("REDIS_PORT", "port", Problem::Port)),
            port => port.unwrap_or(6379),
        };
        let host = self.host.as_deref().unwrap_or("127.0.0.1");
        let address = Address::tcp(host, port).map_err(|problem| wrong("REDIS_HOST", "host", problem))?;
        Ok((Servers::One(address), self.login(database, names)?, false))
    }

    fn login(&self, database: i64, names: Names) -> Result<RedisConnectionInfo, InvalidRedisConfig> {
        let username = (&self.username, "REDIS_USERNAME", "username");
        Ok(login(username, &self.password, names)?.set_db(database))
    }

    fn sentinel_login(&self, names: Names) -> Result<RedisConnectionInfo, InvalidRedisConfig> {
        let username = (&self.sentinel_username, "REDIS_SENTINEL_USERNAME", "sentinel_username");
        let password = (&self.sentinel_password, "REDIS_SENTINEL_PASSWORD", "sentinel_password");
        for (given, variable, field) in [username, password] {
            if given.is_some() && self.sentinels.is_none() {
                return Err(names.wrong(variable, field, Problem::LoginWithoutSentinels));
            }
        }
        login(username, &self.sentinel_password, names)
    }

    /// `of_url`: the URL enables TLS.
    fn tls(&self, of_url: bool, names: Names) -> Result<Option<Tls>, InvalidRedisConfig> {
        let wrong = |variable, field, problem| names.wrong(variable, field, problem);
        let read = |path: &Option<PathBuf>, variable, field| {
            let read =
                |path: &PathBuf| fs::read(path).map_err(|error| wrong(variable, field, Problem::File(error.kind())));
            path.as_ref().map(read).transpose()
        };
        // The URL decides about TLS. Without a URL, the setting does.
        if !(of_url || self.url.is_none() && self.tls == Some(true)) {
            for (file, variable, field) in [
                (&self.ca_cert, "REDIS_CA_CERT", "ca_cert"),
                (&self.client_cert, "REDIS_CLIENT_CERT", "client_cert"),
                (&self.client_key, "REDIS_CLIENT_KEY", "client_key"),
            ] {
                if file.is_some() {
                    return Err(wrong(variable, field, Problem::NoTls));
                }
            }
            return Ok(None);
        }
        let mut tls = Tls { ca_cert: read(&self.ca_cert, "REDIS_CA_CERT", "ca_cert")?, client: None };
        tls.check().map_err(|problem| match problem {
            Problem::Certificate => wrong("REDIS_CA_CERT", "ca_cert", problem),
            problem if of_url => wrong("REDIS_URL", "url", problem),
            problem => wrong("REDIS_TLS", "tls", problem),
        })?;
        let certificate = read(&self.client_cert, "REDIS_CLIENT_CERT", "client_cert")?;
        let key = read(&self.client_key, "REDIS_CLIENT_KEY", "client_key")?;
        tls.client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => return Err(wrong("REDIS_CLIENT_CERT", "client_cert", Problem::NoKey)),
            (None, Some(_)) => return Err(wrong("REDIS_CLIENT_KEY", "client_key", Problem::NoCertificate)),
            (None, None) => None,
        };
        tls.check().map_err(|problem| match problem {
            Problem::Key => wrong("REDIS_CLIENT_KEY", "client_key", problem),
            problem => wrong("REDIS_CLIENT_CERT", "client_cert", problem),
        })?;
        Ok(Some(tls))
    }
}

/// A user name with its names, and a password.
fn login(
    (username, variable, field): (&Option<String>, &'static str, &'static str),
    password: &Option<String>,
    names: Names,
) -> Result<RedisConnectionInfo, InvalidRedisConfig> {
    let mut login = RedisConnectionInfo::default();
    if let Some(username) = username {
        if password.is_none() {
            return Err(names.wrong(variable, field, Problem::NoPassword));
        }
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    Ok(login)
}

/// An environment variable.
struct Var {
    name: &'static str,
    value: String,
}

impl Var {
    fn wrong(&self, problem: Problem) -> InvalidRedisConfig {
        InvalidRedisConfig { place: Place::Variable(self.name), problem }
    }

    fn boolean(&self) -> Result<bool, InvalidRedisConfig> {
        match self.value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.wrong(Problem::Boolean)),
        }
    }

    /// The same variable with a part of its value.
    fn with(&self, value: &str) -> Self {
        Self { name: self.name, value: value.to_owned() }
    }

    fn parse<T: std::str::FromStr>(&self, problem: Problem) -> Result<T, InvalidRedisConfig> {
        self.value.parse().map_err(|_| self.wrong(problem))
    }
}
