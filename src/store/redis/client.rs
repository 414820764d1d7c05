//! Redis clients, and the pause before they connect again.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{RedisConfig, config::Address};

/// The TCP keepalive interval, so that firewalls and proxies keep idle connections.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Opens a connection to one server. `options` are for RESP3, which reports a lost connection immediately. A server or proxy without `HELLO`
/// gets RESP2: then the next command or ping finds that the connection is lost.
pub(super) async fn connect(
    config: &RedisConfig,
    address: &Address,
    options: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, RedisError> {
    let login = match &config.credentials {
        Some(provider) => provider.fill(&config.login).await?,
        None => config.login.clone(),
    };
    let resp3 = client(config, address, &login)?;
    match resp3.get_multiplexed_async_connection_with_config(options).await {
        Err(error) if is_without_hello(&error, &login) => {
            tracing::debug!(server = %address, "no HELLO command: RESP2 is used");
            let resp2 = client_of(config, address, &login, ProtocolVersion::RESP2)?;
            resp2.get_multiplexed_async_connection_with_config(&without_pushes(config)).await
        }
        connection => connection,
    }
}

/// Valkey says `NOAUTH` to unknown commands before a login. To `HELLO` with a password it says something else.
fn is_without_hello(error: &RedisError, login: &RedisConnectionInfo) -> bool {
    if login.password().is_some() && error.code() == Some("NOAUTH") {
        return true;
    }
    let detail = error.detail().unwrap_or_default();
    error.kind() == ErrorKind::RESP3NotSupported || detail.starts_with("unknown command") && detail.contains("HELLO")
}

/// The options of a connection, without a receiver of push messages.
pub(super) fn without_pushes(config: &RedisConfig) -> AsyncConnectionConfig {
    // No timeout of the client: the deadline of the operation includes waiting for a connection.
    AsyncConnectionConfig::new().set_connection_timeout(Some(config.connect_timeout)).set_response_timeout(None)
}

/// A client for one server.
pub(super) fn client(
    config: &RedisConfig,
    address: &Address,
    login: &RedisConnectionInfo,
) -> Result<Client, RedisError> {
    client_of(config, address, login, ProtocolVersion::RESP3)
}

#[cfg_attr(not(feature = "redis-tls"), allow(unused_variables))]
fn client_of(
    config: &RedisConfig,
    address: &Address,
    login: &RedisConnectionInfo,
    protocol: ProtocolVersion,
) -> Result<Client, RedisError> {
    let address = match address {
        #[cfg(feature = "redis-tls")]
        Address::Tcp(host, port) if config.tls.is_some() => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        }
        Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
        Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
    };
    // Without NODELAY, a request waits for the acknowledgment of the previous one, which doubles the latency over a network.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let info: ConnectionInfo = address.into_connection_info()?;
    let info = info.set_redis_settings(login.clone().set_protocol(protocol)).set_tcp_settings(tcp);
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

/// A random duration between half of `delay` and `delay`, so that instances do not reconnect at the same moment.
pub(super) fn jittered(delay: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    delay / 2 + delay.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}
