//! The configuration of Redis.
//!
//! `place.rs` has the addresses, `tls.rs` the TLS settings, `parts.rs` the settings from the environment or a file.

mod credentials;
mod error;
mod parts;
mod place;
mod tls;

#[cfg(feature = "redis-pool")]
use std::sync::Arc;
use std::{error::Error, fmt, future::Future, time::Duration};

use redis::RedisConnectionInfo;
use serde::Deserialize;

pub(super) use self::place::{Address, Servers};
pub(super) use self::tls::Tls;
#[cfg(feature = "redis-tls")]
pub(super) use self::tls::install_provider;
use self::{credentials::Provider, error::Problem};
pub use self::{credentials::RedisCredentials, error::InvalidRedisConfig};
#[cfg(feature = "redis-pool")]
use super::redis_pool::RedisPool;
use crate::{
    lifetime::LONGEST,
    store::{Codec, MIN_TOMBSTONE_TTL},
};

/// The address of Redis, the login, timeouts, and other settings.
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
/// | `sentinel_username`, `sentinel_password` | the login to the Sentinels; default: none |
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
    pub(super) credentials: Option<Provider>,
}

impl RedisConfig {
    /// Parses a URL: `redis://[[user]:password@]host[:port][/database]`, `rediss://…` with TLS, or
    /// `redis+unix:///path[?db=…&user=…&pass=…]`. The database can also be a parameter (`?db=3`). The schemes of Valkey
    /// (`valkey://`, `valkeys://`) mean the same. Percent-encode special characters in user and password.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`], which never contains the URL. A part of the URL that would be ignored is an error. `rediss://` needs the feature `redis-tls`, and `aws-lc` or `ring`.
    pub fn from_url(url: &str) -> Result<Self, InvalidRedisConfig> {
        let (address, login, tls) = place::of_url(url).map_err(Problem::here)?;
        let config = Self::of(Servers::One(address), login);
        if tls { config.secured(Tls::default()).map_err(Problem::here) } else { Ok(config) }
    }

    /// Reads environment variables. `None` if they do not name a Redis, or disable it.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `REDIS_URL` | see [`from_url`](Self::from_url); the next six are then ignored |
    /// | `REDIS_HOST`, `REDIS_PORT` | default: `127.0.0.1`, `6379`. A port may be an address, as Kubernetes sets it (`tcp://10.0.0.7:6379`) |
    /// | `REDIS_DB` | the number of the database; default: 0 |
    /// | `REDIS_USERNAME`, `REDIS_PASSWORD` | not percent-encoded; default: none |
    /// | `REDIS_TLS` | `true`: use TLS |
    /// | `REDIS_CA_CERT` | a PEM file: certificate authorities instead of those of the system |
    /// | `REDIS_CLIENT_CERT`, `REDIS_CLIENT_KEY` | PEM files: the client certificate, for mutual TLS |
    /// | `REDIS_CLUSTER_NODES` | `host:port,host:port`: see [`cluster`](Self::cluster) |
    /// | `REDIS_SENTINELS`, `REDIS_SENTINEL_MASTER` | `host:port,host:port` and a name: see [`sentinel`](Self::sentinel) |
    /// | `REDIS_SENTINEL_USERNAME`, `REDIS_SENTINEL_PASSWORD` | the login to the Sentinels; default: none |
    /// | `SESSION_SECRET` | checked here, used by [`SessionSecret`](crate::SessionSecret): the key of signed cookies, and older keys after commas |
    /// | `USE_REDIS`, `REDIS_ENABLED` | `false`: no Redis, even if other variables are set; `true`: Redis, even if no other variable is set |
    ///
    /// An empty variable counts as unset. Contradicting variables are an error.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] names the variable, and never contains its value. TLS, Sentinel and Cluster need the features `redis-tls`,
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

    /// Like [`from_env`](Self::from_env), with variables from another source.
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
    /// [`InvalidRedisConfig`] if the list is empty, or an entry is not `host:port`.
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
    /// The store follows the master: it reconnects as soon as a Sentinel announces another one. The login and TLS are for the master. Sentinels
    /// use the same TLS, and no login unless [`sentinel_login`](Self::sentinel_login) sets one.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] if the list is empty, or an entry is not `host:port`.
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

    /// Uses a connection pool of the application, with its database, login and TLS.
    ///
    /// The store takes a connection, clones it and returns it immediately: connections are multiplexed, so one serves many requests. It uses the
    /// clone for a second, or until it is lost. The [timeout](Self::timeout) includes waiting for the pool. If the pool has no connection in
    /// time, or one that does not reply, the store opens a dedicated connection. Enable `TcpSettings::set_nodelay` and, with `bb8`,
    /// `test_on_check_out`: otherwise a pool does not notice lost connections. See [`RedisStore::from_pool`](super::RedisStore::from_pool).
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
            credentials: None,
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

    /// Enables TLS, if the settings are valid.
    fn secured(mut self, tls: Tls) -> Result<Self, Problem> {
        tls.check()?;
        self.tls = Some(tls);
        Ok(self)
    }

    /// The login: an ACL user (`default` for servers with only a password) and its password. Default: that of the URL, or none.
    ///
    /// The [module](crate::store::redis#permissions) lists the required permissions.
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

    /// The login to the Sentinels. Default: none. If they require only a password, the user is `default`.
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

    /// Enables TLS with these certificate authorities (PEM, one or several) instead of those of the system. Default: no TLS; with a
    /// `rediss://` URL, TLS with the certificate authorities of the system.
    ///
    /// The certificate of the server must be valid for the host name or address in the configuration, or for the name by which Sentinels or
    /// cluster nodes refer to it. TLS uses the crypto provider that the process has installed for rustls, or else that of the feature `aws-lc` or
    /// `ring`.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] if this is not a certificate in PEM, or there is no crypto provider.
    ///
    /// ```
    /// use tower_keep::store::redis::RedisConfig;
    ///
    /// let error = RedisConfig::from_url("rediss://localhost")?.ca_cert("not PEM").unwrap_err();
    /// assert_eq!(error.to_string(), "not a certificate in PEM");
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[cfg(feature = "redis-tls")]
    pub fn ca_cert(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, InvalidRedisConfig> {
        let tls = Tls { ca_cert: Some(pem.into()), ..self.tls.take().unwrap_or_default() };
        self.secured(tls).map_err(Problem::here)
    }

    /// Enables TLS with a client certificate and its key (mutual TLS), both in PEM. Default: none.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] if this is not a certificate in PEM, or the key does not belong to it.
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

    /// The prefix of all keys. Default: `sess:`. Applications that share a database need different prefixes.
    ///
    /// # Errors
    /// [`InvalidRedisConfig`] if it contains braces, which mark the slot in Redis Cluster, white space or control characters, or is longer
    /// than 128 bytes.
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

    /// The deadline of an operation, including waiting for a connection. Default: 250 ms, about a hundred times what a healthy Redis nearby
    /// needs. At least 1 ms.
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

    /// The timeout of a connection attempt, including name resolution and login. Default: 500 ms. Attempts run in the background, so no request
    /// waits that long.
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

    /// The encoding of new records. Records in other encodings can be read. Default: [`Codec::Json`].
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

    /// How long the tombstone of an ended session is kept. Default: 1 hour. At least 1 minute, because a delayed command may still arrive.
    /// A tombstone needs about 200 bytes. Expired sessions have none.
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

    /// The maximum number of sessions of all users and anonymous visitors, on all instances. One more fails with
    /// [`SessionError::Full`](crate::SessionError::Full), 429. Default: no limit. At least 1.
    ///
    /// The limit needs a sorted set of all sessions: one more round trip per write, and about 130 bytes per session. All instances with the same
    /// prefix need the same limit. Older sessions are counted when they are next written or touched.
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

    /// Asks `provide` for the credentials at each new connection, instead of using those of the URL: for passwords that change, such as the
    /// tokens of cloud providers. Default: the credentials of the URL or of the environment.
    ///
    /// It is called within the [connect timeout](Self::connect_timeout). An error is logged, so it must not contain a secret; connecting is
    /// tried again later. Existing connections keep the credentials that they were opened with. Sentinels have their own login.
    ///
    /// ```
    /// use tower_keep::store::redis::{RedisConfig, RedisCredentials};
    ///
    /// async fn token() -> Result<String, std::io::Error> {
    ///     std::fs::read_to_string("/run/secrets/redis-token") // renewed by another program
    /// }
    ///
    /// let config = RedisConfig::from_url("redis://localhost")?
    ///     .credentials(async || Ok(RedisCredentials::user("app", token().await?)));
    /// # let _ = config;
    /// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
    /// ```
    #[must_use]
    pub fn credentials<F>(mut self, provide: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<RedisCredentials, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.credentials = Some(Provider::new(provide));
        self
    }

    /// Shares events with other instances, for [`Sessions::events`](crate::Sessions::events). A stream keeps about the last `kept` events for a
    /// day. Default: off. Costs two more round trips for each creation, rotation and end of a session.
    ///
    /// The event is published after the write. If the process or Redis fails in between, the event is lost.
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

    /// Ends and rotations wait until this many replicas have confirmed them, within the [timeout](Self::timeout). Default: 0.
    ///
    /// A master that fails loses what its replicas do not have yet. With this setting, an operation that too few replicas confirm fails with an
    /// outage. It may have been applied, and can be repeated. It costs one more connection, and a round trip between the servers. The
    /// server setting `min-replicas-to-write` covers every write and costs nothing here: prefer it if you can set it.
    ///
    /// With several replicas, the confirming replica may not become the next master, and in a planned failover the old master accepts writes a
    /// moment longer. Only a confirmation by all replicas excludes that; then these operations fail while a replica is down.
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

impl RedisConfig {
    /// The address, without the login.
    pub(in crate::store) fn server(&self) -> impl fmt::Display {
        &self.servers
    }
}

/// Contains the address, and never the login.
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
