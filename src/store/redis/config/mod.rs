//! Where Redis is, how to log in to it, and how long to wait for it.
//!
//! * `place.rs` — one server, or several;
//! * `tls.rs` — whom to trust, and who we are;
//! * `parts.rs` — the same from the environment, or from a file;
//! * `error.rs` — what is wrong with it;
//! * this file — what a program can set.

mod error;
mod parts;
mod place;
mod tls;

#[cfg(feature = "redis-pool")]
use std::sync::Arc;
use std::{fmt, time::Duration};

use redis::RedisConnectionInfo;
use serde::Deserialize;

pub use self::error::InvalidRedisConfig;
use self::error::Problem;
pub(super) use self::place::{Address, Servers};
pub(super) use self::tls::Tls;
#[cfg(feature = "redis-tls")]
pub(super) use self::tls::install_provider;
#[cfg(feature = "redis-pool")]
use super::pool::RedisPool;
use crate::{
    lifetime::LONGEST,
    store::{Codec, MIN_TOMBSTONE_TTL},
};

/// Where Redis is, how to log in to it, and how long to wait for it.
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
///
/// It can be part of a configuration file, by serde. Every field is optional, and an unknown one is an error:
///
/// | field | meaning |
/// |---|---|
/// | `url` | see [`from_url`](Self::from_url); wins over the next five and `tls` |
/// | `host`, `port`, `database` | default: `127.0.0.1`, 6379, 0 |
/// | `username`, `password` | default: none |
/// | `tls`, `ca_cert`, `client_cert`, `client_key` | whether with TLS (default: no); paths of PEM files |
/// | `cluster_nodes` | a list of `host:port`: [`cluster`](Self::cluster) |
/// | `sentinels`, `sentinel_master` | a list of `host:port`, and a name: [`sentinel`](Self::sentinel) |
/// | `sentinel_username`, `sentinel_password` | who logs in to the Sentinels; default: nobody |
/// | `prefix`, `timeout_ms`, `connect_timeout_ms`, `remember_ended_secs`, `max_sessions`, `share_events`, `wait_for_replicas` | as the methods |
///
/// ```
/// # use tower_keep::store::redis::RedisConfig;
/// let config: RedisConfig = serde_json::from_str(r#"{"host": "redis.internal", "timeout_ms": 100}"#)?;
/// let error = serde_json::from_str::<RedisConfig>(r#"{"host": "redis internal"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "host: not a host name");
/// # let _ = config;
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "parts::Parts")]
pub struct RedisConfig {
    pub(super) servers: Servers,
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<Tls>,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) codec: Codec,
    pub(super) remember_ended: Duration,
    pub(super) max_sessions: Option<usize>,
    pub(super) shared_events: Option<usize>,
    pub(super) replicas: Option<usize>,
}

impl RedisConfig {
    /// The Redis of a URL: `redis://[[user]:password@]host[:port][/database]`, `rediss://…` with TLS, or
    /// `redis+unix:///path[?db=…&user=…&pass=…]`. Whatever is special in a URL is percent-encoded in user and password.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`], which never holds the URL. `rediss://` needs the feature `redis-tls`.
    pub fn from_url(url: &str) -> Result<Self, InvalidRedisConfig> {
        let (address, login, tls) = place::of_url(url).map_err(Problem::here)?;
        let config = Self::of(Servers::One(address), login);
        if tls { config.secured(Tls::default()).map_err(Problem::here) } else { Ok(config) }
    }

    /// The Redis of the environment, or `None` when there is none in it, or it is turned off.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `REDIS_URL` | see [`from_url`](Self::from_url); the next six then count for nothing |
    /// | `REDIS_HOST`, `REDIS_PORT` | default: `127.0.0.1`, `6379` |
    /// | `REDIS_DB` | the number of the database; default: 0 |
    /// | `REDIS_USERNAME`, `REDIS_PASSWORD` | as they are, not percent-encoded; default: none |
    /// | `REDIS_TLS` | `true`: with TLS |
    /// | `REDIS_CA_CERT` | a PEM file: whom to trust instead of the system's certificate authorities |
    /// | `REDIS_CLIENT_CERT`, `REDIS_CLIENT_KEY` | PEM files: who we are, for a server that asks |
    /// | `REDIS_CLUSTER_NODES` | `host:port,host:port`: see [`cluster`](Self::cluster) |
    /// | `REDIS_SENTINELS`, `REDIS_SENTINEL_MASTER` | `host:port,host:port` and a name: see [`sentinel`](Self::sentinel) |
    /// | `REDIS_SENTINEL_USERNAME`, `REDIS_SENTINEL_PASSWORD` | who logs in to the Sentinels; default: nobody |
    /// | `SESSION_SECRET` | checked here, used by [`SessionSecret`](crate::SessionSecret): the key of signed cookies, and older ones after commas |
    /// | `USE_REDIS`, `REDIS_ENABLED` | `false`: no Redis, whatever else is set; `true`: Redis, even if nothing else is set |
    ///
    /// An empty variable counts as absent. Variables that contradict each other are an error.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] names the variable, and never shows its value. TLS, Sentinel and Cluster need the features `redis-tls`,
    /// `redis-sentinel` and `redis-cluster`.
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
        parts::of_vars(parts::of_process)
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
        parts::of_vars(var)
    }

    /// A Redis Cluster, of which these nodes (`host:port`) are known; they tell of the others.
    ///
    /// The sessions of a user share a slot, so everything about a user is one call to one node. See the
    /// [module](crate::store::redis#cluster) for what happens when nodes fail and slots move.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] when there is none, or one is not `host:port`.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// let config = RedisConfig::cluster(["redis-0:6379", "redis-1:6379"])?.login("app", "secret");
    /// # let _ = config;
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[cfg(feature = "redis-cluster")]
    pub fn cluster(nodes: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, InvalidRedisConfig> {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let servers = Self::nodes(&nodes).and_then(Self::cluster_of).map_err(Problem::here)?;
        Ok(Self::of(servers, RedisConnectionInfo::default()))
    }

    /// The master called `master` of these Redis Sentinels (`host:port`).
    ///
    /// Whichever server they call the master is used, and left as soon as one of them names another. The login and TLS are those of
    /// the master; Sentinels are asked with the same TLS, and without a login unless
    /// [`sentinel_login`](Self::sentinel_login) says otherwise.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] when there is none, or one is not `host:port`.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// let sentinels = ["sentinel-0:26379", "sentinel-1:26379", "sentinel-2:26379"];
    /// let config = RedisConfig::sentinel(sentinels, "mymaster")?.login("app", "secret");
    /// # let _ = config;
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[cfg(feature = "redis-sentinel")]
    pub fn sentinel(
        sentinels: impl IntoIterator<Item = impl AsRef<str>>,
        master: &str,
    ) -> Result<Self, InvalidRedisConfig> {
        let nodes: Vec<_> = sentinels.into_iter().collect();
        let servers = Self::nodes(&nodes)
            .and_then(|nodes| Self::sentinel_of(nodes, master, RedisConnectionInfo::default()))
            .map_err(Problem::here)?;
        Ok(Self::of(servers, RedisConnectionInfo::default()))
    }

    /// The Redis that a pool of the application leads to: database, login and TLS are the pool's.
    ///
    /// A connection is taken from it, cloned and given back at once, for they are multiplexed: one serves many
    /// requests, and the pool needs no more than the rest of the application does. The clone is used for a second, or until it is lost;
    /// then the pool is asked for the next. The [timeout](Self::timeout) covers the wait for it. When the pool has none in time, or gives one
    /// that does not answer, sessions get a connection of their own, made as the pool makes them. Let the pool's connections not wait to fill
    /// packets (`TcpSettings::set_nodelay`), and leave `test_on_check_out` on: without it, a pool does not notice that a connection is lost. See [`RedisStore::from_pool`](super::RedisStore::from_pool).
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manager = bb8_redis::RedisConnectionManager::new("redis://127.0.0.1:6379/0")?;
    /// let pool = bb8::Pool::builder().build_unchecked(manager);
    /// let config = RedisConfig::from_pool(pool).prefix("shop:sess:")?;
    /// # let _ = config;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis-pool")]
    pub fn from_pool(pool: impl RedisPool + 'static) -> Self {
        Self::of(Servers::Pool(Arc::new(pool)), RedisConnectionInfo::default())
    }

    fn of(servers: Servers, login: RedisConnectionInfo) -> Self {
        Self {
            servers,
            login,
            tls: None,
            prefix: "sess:".into(),
            timeout: Duration::from_millis(250),
            connect_timeout: Duration::from_millis(500),
            codec: Codec::Json,
            remember_ended: Duration::from_secs(60 * 60),
            max_sessions: None,
            shared_events: None,
            replicas: None,
        }
    }

    fn nodes(nodes: &[impl AsRef<str>]) -> Result<Vec<Address>, Problem> {
        if nodes.is_empty() {
            return Err(Problem::Nodes);
        }
        nodes.iter().map(|node| node.as_ref().parse()).collect()
    }

    #[cfg(feature = "redis-cluster")]
    fn cluster_of(nodes: Vec<Address>) -> Result<Servers, Problem> {
        Ok(Servers::Cluster(nodes))
    }

    #[cfg(not(feature = "redis-cluster"))]
    fn cluster_of(_: Vec<Address>) -> Result<Servers, Problem> {
        Err(Problem::Feature("redis-cluster"))
    }

    #[cfg(feature = "redis-sentinel")]
    fn sentinel_of(sentinels: Vec<Address>, master: &str, login: RedisConnectionInfo) -> Result<Servers, Problem> {
        if master.is_empty() || master.contains(char::is_whitespace) {
            return Err(Problem::NoMaster);
        }
        Ok(Servers::Sentinel { sentinels, master: master.to_owned(), login })
    }

    #[cfg(not(feature = "redis-sentinel"))]
    fn sentinel_of(_: Vec<Address>, _: &str, _: RedisConnectionInfo) -> Result<Servers, Problem> {
        Err(Problem::Feature("redis-sentinel"))
    }

    /// With TLS, if it can be made.
    fn secured(mut self, tls: Tls) -> Result<Self, Problem> {
        tls.check()?;
        self.tls = Some(tls);
        Ok(self)
    }

    /// Who logs in: an ACL user (`default` is everybody's) and its password. Default: what the URL says, or nobody.
    ///
    /// The [module](crate::store::redis#permissions) says what the user must be allowed to do.
    ///
    /// ```
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::from_url("redis://localhost")?.login("app", "secret");
    /// assert!(!format!("{config:?}").contains("secret"));
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn login(mut self, username: &str, password: &str) -> Self {
        self.login = self.login.set_username(username).set_password(password);
        self
    }

    /// Who logs in to the Sentinels. Default: nobody. Where only a password is asked for, the user is `default`.
    ///
    /// ```
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::sentinel(["localhost:26379"], "mymaster")?.sentinel_login("app", "secret");
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[cfg(feature = "redis-sentinel")]
    #[must_use]
    pub fn sentinel_login(mut self, username: &str, password: &str) -> Self {
        if let Servers::Sentinel { login, .. } = &mut self.servers {
            *login = RedisConnectionInfo::default().set_username(username).set_password(password);
        }
        self
    }

    /// Connect with TLS, and trust these certificate authorities (PEM, one or several) instead of the system's. Default: no TLS, unless
    /// the URL begins with `rediss://`; then the system's.
    ///
    /// The server's certificate must be valid for the host name, or the address, that the configuration names, or by which Sentinels and
    /// nodes of a cluster name another server. The cryptography is what the process has installed for rustls; where it has installed none,
    /// ring is installed.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] when it is no certificate in PEM.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// let error = RedisConfig::from_url("rediss://localhost")?.ca_cert("nonsense").unwrap_err();
    /// assert_eq!(error.to_string(), "not a certificate in PEM");
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[cfg(feature = "redis-tls")]
    pub fn ca_cert(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, InvalidRedisConfig> {
        let tls = Tls { ca_cert: Some(pem.into()), ..self.tls.take().unwrap_or_default() };
        self.secured(tls).map_err(Problem::here)
    }

    /// Connect with TLS, and show this certificate to a server that asks (mutual TLS); both in PEM. Default: none.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] when it is no certificate in PEM, or the key is not its key.
    ///
    /// ```no_run
    /// use std::fs;
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (certificate, key) = (fs::read("client.pem")?, fs::read("client.key")?);
    /// let config = RedisConfig::from_url("rediss://localhost")?.client_cert(certificate, key)?;
    /// # let _ = config;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis-tls")]
    pub fn client_cert(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Result<Self, InvalidRedisConfig> {
        let tls = Tls { client: Some((certificate.into(), key.into())), ..self.tls.take().unwrap_or_default() };
        self.secured(tls).map_err(Problem::here)
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
            return Err(Problem::Prefix.here());
        }
        Ok(self)
    }

    /// How long an operation may take in all, the wait for a connection included. Default: 250 ms, some hundred times what
    /// a healthy Redis nearby needs. At least a millisecond.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::store::redis::{InvalidRedisConfig, RedisConfig};
    /// let config = RedisConfig::from_url("redis://localhost")?.timeout(Duration::from_millis(100));
    /// # Ok::<(), InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = within_reason(timeout);
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
        self.connect_timeout = within_reason(timeout);
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
        self.remember_ended = time.clamp(MIN_TOMBSTONE_TTL, LONGEST);
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

    /// After what must not come undone (the end of a session, the end of all of a user's, a new token), wait until so many
    /// replicas have it as well, within the [timeout](Self::timeout). Default: for none.
    ///
    /// A server that fails takes what its replicas do not have yet with it, though it has confirmed it. With this, an operation that too few
    /// replicas confirmed is an outage to its caller; it may have been done all the same, and can be repeated. Costs a connection more,
    /// and a round trip between the servers. `min-replicas-to-write` in the server's configuration covers every write, and costs nothing
    /// here: prefer it where you can set it.
    ///
    /// Behind Sentinels with several replicas, one confirmation may be that of a replica that is not the next master; and in a planned
    /// failover the old master takes writes a moment longer, which the others confirm. Only as many as there are replicas rule that out; then
    /// such operations are an outage while one of them is away.
    ///
    /// ```
    /// # use tower_keep::store::redis::RedisConfig;
    /// let config = RedisConfig::from_url("redis://localhost")?.wait_for_replicas(1);
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn wait_for_replicas(mut self, replicas: usize) -> Self {
        self.replicas = (replicas > 0).then_some(replicas);
        self
    }
}

/// Says where Redis is, and never how to log in to it.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("server", &self.servers.to_string())
            .field("database", &self.login.db())
            .field("tls", &self.tls.is_some())
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// What can be added to a time, and is not over before it began.
fn within_reason(timeout: Duration) -> Duration {
    timeout.clamp(Duration::from_millis(1), LONGEST)
}
