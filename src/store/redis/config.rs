//! Where Redis is, and how long to wait for it.

use std::{env, fmt, net::Ipv6Addr, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::store::{Codec, REMEMBER_AT_LEAST};

/// Where Redis is, and how long to wait for it.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::store::redis::RedisConfig;
///
/// let config = RedisConfig::from_url("redis://app:secret@127.0.0.1:6379/2")?
///     .prefix("shop:sess:")?
///     .timeout(Duration::from_millis(100));
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) info: ConnectionInfo,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) codec: Codec,
    pub(super) remember_ended: Duration,
    pub(super) max_sessions: Option<usize>,
    pub(super) shared_events: Option<usize>,
}

impl RedisConfig {
    /// The Redis of a URL: `redis://[[user]:password@]host[:port][/database]` or `redis+unix:///path[?db=…&user=…&pass=…]`.
    /// Whatever is special in a URL is percent-encoded in user and password.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`], which never holds the URL.
    pub fn from_url(url: &str) -> Result<Self, InvalidRedisConfig> {
        Self::of_url(url).map_err(|problem| InvalidRedisConfig { variable: None, problem })
    }

    /// The Redis of the environment, or `None` when there is none in it, or it is turned off.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `REDIS_URL` | see [`from_url`](Self::from_url); the next five then count for nothing |
    /// | `REDIS_HOST`, `REDIS_PORT` | default: `127.0.0.1`, `6379` |
    /// | `REDIS_DB` | the number of the database; default: 0 |
    /// | `REDIS_USERNAME`, `REDIS_PASSWORD` | as they are, not percent-encoded; default: none |
    /// | `SESSION_SECRET` | a key of at least 32 bytes, or several with commas between; for signed cookies, which do not exist yet: only checked |
    /// | `USE_REDIS`, `REDIS_ENABLED` | `false`: no Redis, whatever else is set; `true`: Redis, even if nothing else is set |
    ///
    /// An empty variable counts as absent. TLS (`REDIS_TLS`, `rediss://`), Sentinel (`REDIS_SENTINELS`) and Cluster
    /// (`REDIS_CLUSTER_NODES`) are not supported yet, and an error rather than something else than was asked for.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] names the variable, and never shows its value.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// if let Some(config) = RedisConfig::from_env()? {
    ///     println!("sessions in {config:?}");
    /// }
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    pub fn from_env() -> Result<Option<Self>, InvalidRedisConfig> {
        Self::from_vars(|name| match env::var(name) {
            Ok(value) => Some(value),
            Err(env::VarError::NotPresent) => None,
            // Not text: let it fail like every other nonsense.
            Err(env::VarError::NotUnicode(_)) => Some("\u{fffd}".into()),
        })
    }

    /// As [`from_env`](Self::from_env), with variables from somewhere else.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// let vars = |name: &str| (name == "REDIS_PORT").then(|| "seventy".to_owned());
    /// let error = RedisConfig::from_vars(vars).unwrap_err();
    /// assert_eq!(error.to_string(), "REDIS_PORT: not a port number");
    /// ```
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, InvalidRedisConfig> {
        let var = |name: &'static str| var(name).filter(|value| !value.is_empty()).map(|value| Var { name, value });

        if let Some(secret) = var("SESSION_SECRET")
            && secret.value.split(',').any(|key| key.len() < 32)
        {
            return Err(secret.wrong(Problem::Secret));
        }
        let switches = [var("USE_REDIS"), var("REDIS_ENABLED")];
        let switches: Vec<bool> = switches.iter().flatten().map(Var::boolean).collect::<Result<_, _>>()?;
        if switches.contains(&false) {
            return Ok(None);
        }
        let mut wanted = !switches.is_empty();
        for unsupported in ["REDIS_CLUSTER_NODES", "REDIS_SENTINELS", "REDIS_SENTINEL_MASTER"] {
            if let Some(var) = var(unsupported) {
                return Err(var.wrong(Problem::Unsupported));
            }
        }
        for tls in ["REDIS_CA_CERT", "REDIS_CLIENT_CERT", "REDIS_CLIENT_KEY"] {
            if let Some(var) = var(tls) {
                return Err(var.wrong(Problem::Tls));
            }
        }
        if let Some(tls) = var("REDIS_TLS")
            && tls.boolean()?
        {
            return Err(tls.wrong(Problem::Tls));
        }
        if let Some(url) = var("REDIS_URL") {
            return Self::of_url(&url.value).map(Some).map_err(|problem| url.wrong(problem));
        }

        let (host, port, database) = (var("REDIS_HOST"), var("REDIS_PORT"), var("REDIS_DB"));
        let (username, password) = (var("REDIS_USERNAME"), var("REDIS_PASSWORD"));
        wanted |= [&host, &port, &database, &username, &password].into_iter().any(Option::is_some);
        if !wanted {
            return Ok(None);
        }
        let host = match host {
            Some(host) if !is_host(&host.value) => return Err(host.wrong(Problem::Host)),
            Some(host) => unbracketed(&host.value).to_owned(),
            None => "127.0.0.1".into(),
        };
        let port = port.map(|port| port.number(1..=65_535, Problem::Port)).transpose()?.unwrap_or(6379);
        let database = database.map(|db| db.number(0..=i64::MAX, Problem::Database)).transpose()?.unwrap_or(0);
        let mut settings = RedisConnectionInfo::default().set_db(database);
        if let Some(username) = username {
            if password.is_none() {
                return Err(username.wrong(Problem::NoPassword));
            }
            settings = settings.set_username(username.value);
        }
        if let Some(password) = password {
            settings = settings.set_password(password.value);
        }
        let port = u16::try_from(port).unwrap_or(6379);
        let info = (host, port).into_connection_info();
        let info = info.map_err(|_| InvalidRedisConfig { variable: Some("REDIS_HOST"), problem: Problem::Host })?;
        Ok(Some(Self::of_info(info.set_redis_settings(settings))))
    }

    fn of_url(url: &str) -> Result<Self, Problem> {
        match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "redis+unix" | "unix") => {}
            Some("rediss") => return Err(Problem::Tls),
            _ => return Err(Problem::Url),
        }
        // The client's error is dropped: it may quote the URL.
        let info = url.into_connection_info().map_err(|_| Problem::Url)?;
        match info.addr() {
            ConnectionAddr::Tcp(host, _) if !is_host(host) => Err(Problem::Url),
            _ if info.redis_settings().db() < 0 => Err(Problem::Url),
            // The client would log in as the default user.
            _ if info.redis_settings().username().is_some()
                && info.redis_settings().password().is_none_or(str::is_empty) =>
            {
                Err(Problem::NoPassword)
            }
            _ => Ok(Self::of_info(info)),
        }
    }

    fn of_info(info: ConnectionInfo) -> Self {
        Self {
            info,
            prefix: "sess:".into(),
            timeout: Duration::from_millis(250),
            connect_timeout: Duration::from_millis(500),
            codec: Codec::Json,
            remember_ended: Duration::from_secs(60 * 60),
            max_sessions: None,
            shared_events: None,
        }
    }

    /// What every key begins with. Default: `sess:`. Applications that share a database need different prefixes.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] when it holds braces, which mark the slot in Redis Cluster, white space or control characters,
    /// or is longer than 128 bytes.
    ///
    /// ```
    /// # use tower_keep::store::redis::{InvalidRedisConfig, RedisConfig};
    /// assert!(RedisConfig::from_url("redis://localhost")?.prefix("a{b}").is_err());
    /// # Ok::<(), InvalidRedisConfig>(())
    /// ```
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, InvalidRedisConfig> {
        self.prefix = prefix.into();
        let forbidden = |c: char| matches!(c, '{' | '}') || c.is_whitespace() || c.is_control();
        if self.prefix.len() > 128 || self.prefix.contains(forbidden) {
            return Err(InvalidRedisConfig { variable: None, problem: Problem::Prefix });
        }
        Ok(self)
    }

    /// How long an operation may take in all, the wait for a connection included. Default: 250 ms, some hundred times what
    /// a healthy Redis nearby needs.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::store::redis::{InvalidRedisConfig, RedisConfig};
    /// let config = RedisConfig::from_url("redis://localhost")?.timeout(Duration::from_millis(100));
    /// # Ok::<(), InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long one attempt to connect may take, names resolved and password checked. Default: 500 ms. No request waits
    /// that long: attempts are made in the background.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::store::redis::{InvalidRedisConfig, RedisConfig};
    /// let config = RedisConfig::from_url("redis://localhost")?.connect_timeout(Duration::from_secs(2));
    /// # Ok::<(), InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How records are written; all are read. Default: [`Codec::Json`].
    ///
    /// ```
    /// # use tower_keep::store::{Codec, redis::RedisConfig};
    /// let config = RedisConfig::from_url("redis://localhost")?.codec(Codec::Json);
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How long it is remembered that and why a session ended. Default: an hour; at least a minute, for within that time a
    /// command that was given up may still be on its way. Costs some 200 bytes a session that was ended by a logout, a login or
    /// a revocation; what expires costs nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::from_url("redis://localhost")?.remember_ended(Duration::from_secs(24 * 3600));
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn remember_ended(mut self, time: Duration) -> Self {
        self.remember_ended = time.max(REMEMBER_AT_LEAST);
        self
    }

    /// How many sessions there may be in all, of users and of nobody, on all instances; one more is refused:
    /// [`SessionError::Full`](crate::SessionError::Full), 429. Default: no limit. At least one.
    ///
    /// With a limit, sessions take their places in one sorted set, which costs a round trip more a write and some 130 bytes a session.
    /// Instances that share a prefix need the same limit. Sessions from before there was a limit take a place when they are next
    /// written or touched.
    ///
    /// ```
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::from_url("redis://localhost")?.max_sessions(1_000);
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = Some(sessions.max(1));
        self
    }

    /// Tell the other instances what happens to sessions, for [`Sessions::events`](crate::Sessions::events): through a stream, of which the
    /// last `kept` events (about) can be fetched for a day. Default: off. Costs two round trips more for every session that
    /// begins, rotates or ends.
    ///
    /// An event is added right after what it tells of. If the process or Redis dies in between, it is not told.
    ///
    /// ```
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::from_url("redis://localhost")?.share_events(10_000);
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn share_events(mut self, kept: usize) -> Self {
        self.shared_events = Some(kept.max(1));
        self
    }
}

/// Says where Redis is, and never how to log in to it.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("server", &self.info.addr().to_string())
            .field("database", &self.info.redis_settings().db())
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// A variable of the environment.
struct Var {
    name: &'static str,
    value: String,
}

impl Var {
    fn wrong(&self, problem: Problem) -> InvalidRedisConfig {
        InvalidRedisConfig { variable: Some(self.name), problem }
    }

    fn boolean(&self) -> Result<bool, InvalidRedisConfig> {
        match self.value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.wrong(Problem::Boolean)),
        }
    }

    fn number(&self, range: std::ops::RangeInclusive<i64>, problem: Problem) -> Result<i64, InvalidRedisConfig> {
        self.value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| self.wrong(problem))
    }
}

/// A name, or an address: IPv6 with or without brackets.
fn is_host(host: &str) -> bool {
    let address = unbracketed(host);
    if address.contains(':') {
        return address.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// An IPv6 address as sockets take it, of one as URLs write it.
fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// What is wrong with the configuration of Redis. It names the variable, and never shows its value.
///
/// ```
/// use tower_keep::store::redis::RedisConfig;
///
/// let error = RedisConfig::from_url("http://user:secret@localhost").unwrap_err();
/// assert_eq!(error.to_string(), "not a Redis URL (redis://[[user]:password@]host[:port][/database])");
/// assert_eq!(error.variable(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRedisConfig {
    variable: Option<&'static str>,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    Url,
    Host,
    Port,
    Database,
    NoPassword,
    Boolean,
    Tls,
    Unsupported,
    Prefix,
    Secret,
}

impl InvalidRedisConfig {
    /// The variable that is wrong, when the configuration came from the environment.
    pub fn variable(&self) -> Option<&'static str> {
        self.variable
    }
}

impl fmt::Display for InvalidRedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(variable) = self.variable {
            write!(f, "{variable}: ")?;
        }
        f.write_str(match self.problem {
            Problem::Url => "not a Redis URL (redis://[[user]:password@]host[:port][/database])",
            Problem::Host => "not a host name",
            Problem::Port => "not a port number",
            Problem::Database => "not the number of a database",
            Problem::NoPassword => "a user name without a password",
            Problem::Boolean => "neither true nor false",
            Problem::Tls => "TLS to Redis is not supported yet",
            Problem::Unsupported => "Redis Sentinel and Cluster are not supported yet",
            Problem::Secret => "each key needs at least 32 bytes",
            Problem::Prefix => "a key prefix has at most 128 bytes, and no braces, white space or control characters",
        })
    }
}

impl std::error::Error for InvalidRedisConfig {}
