//! How a connection is made, and to whom.

use std::fmt;
#[cfg(feature = "redis-sentinel")]
use std::sync::Arc;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo,
    RedisConnectionInfo, RedisError, Value,
    aio::{MultiplexedConnection, SendError},
    cmd,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use tracing::Span;

#[cfg(feature = "redis-sentinel")]
use super::sentinel::{Sentinels, is_master, role};
use super::{RedisConfig, config::Address, error::Failure};

/// How often the kernel asks an idle connection whether its peer is there, so that what lies between does not forget it.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(15);

/// Whom a link leads to.
#[derive(Clone)]
pub(super) enum Target {
    Server(Address),
    /// Whoever is the master right now.
    #[cfg(feature = "redis-sentinel")]
    Master(Arc<Sentinels>),
}

impl Target {
    /// Within the timeout for connecting, which is the caller's to see to.
    pub(super) async fn connect(
        &self,
        config: &RedisConfig,
        on_push: impl Fn(PushInfo) -> Result<(), SendError> + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, Failure> {
        // The operation's timeout is ours: it covers the wait for a connection as well.
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(None)
            .set_push_sender(on_push);
        match self {
            Self::Server(address) => {
                let client = client(config, address, &config.login)?;
                Ok(client.get_multiplexed_async_connection_with_config(&options).await?)
            }
            #[cfg(feature = "redis-sentinel")]
            Self::Master(sentinels) => sentinels.connect_to_master(config, &options).await,
        }
    }
}

impl Target {
    /// Says on the span of an operation where it goes, if that is always the same.
    pub(super) fn describe(&self, span: &Span) {
        match self {
            Self::Server(Address::Tcp(host, port)) => {
                span.record("server.address", host);
                span.record("server.port", port);
            }
            Self::Server(Address::Unix(path)) => {
                span.record("server.address", tracing::field::display(path.display()));
            }
            #[cfg(feature = "redis-sentinel")]
            Self::Master(_) => {}
        }
    }

    /// What is asked now and then, to see whether somebody is there.
    pub(super) fn question(&self) -> Cmd {
        match self {
            Self::Server(_) => cmd("PING"),
            #[cfg(feature = "redis-sentinel")]
            Self::Master(_) => role(),
        }
    }

    /// Whether that is the answer of whom we want: of a server any will do, and what calls itself a replica is no master any more.
    #[cfg_attr(not(feature = "redis-sentinel"), allow(unused_variables))]
    pub(super) fn is_answered(&self, answer: &Value) -> Result<(), Failure> {
        match (self, answer) {
            #[cfg(feature = "redis-sentinel")]
            (Self::Master(_), Value::Array(_)) => is_master(answer),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(address) => write!(f, "{address}"),
            #[cfg(feature = "redis-sentinel")]
            Self::Master(sentinels) => write!(f, "{sentinels}"),
        }
    }
}

/// A client for one server: what connects.
#[cfg_attr(not(feature = "redis-tls"), allow(unused_variables))]
pub(super) fn client(
    config: &RedisConfig,
    address: &Address,
    login: &RedisConnectionInfo,
) -> Result<Client, RedisError> {
    let address = match address {
        #[cfg(feature = "redis-tls")]
        Address::Tcp(host, port) if config.tls.is_some() => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        }
        Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
        Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
    };
    // Without NODELAY a request waits for the acknowledgement of the one before: with a network between, twice the latency.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let info: ConnectionInfo = address.into_connection_info()?;
    let info = info.set_redis_settings(login.clone().set_protocol(ProtocolVersion::RESP3)).set_tcp_settings(tcp);
    #[cfg(feature = "redis-tls")]
    if let Some(tls) = &config.tls
        && !matches!(info.addr(), ConnectionAddr::Unix(_))
    {
        super::config::install_provider();
        let client_tls =
            tls.client.clone().map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
        let certificates = redis::TlsCertificates { client_tls, root_cert: tls.ca_cert.clone() };
        return Client::build_with_tls(info, certificates);
    }
    Client::open(info)
}
