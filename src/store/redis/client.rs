//! Redis clients, and the pause before they connect again.

use std::time::Duration;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{RedisConfig, config::Address};

/// The TCP keepalive interval, so that firewalls and proxies keep idle connections.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A client for one server.
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
    // Without NODELAY, a request waits for the acknowledgment of the previous one, which doubles the latency over a network.
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

/// A random duration between half of `delay` and `delay`, so that instances do not reconnect at the same moment.
pub(super) fn jittered(delay: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    delay / 2 + delay.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}
