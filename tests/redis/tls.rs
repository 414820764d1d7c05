//! TLS to Redis: trusted authorities, client certificates, and error messages.

use std::{fs, path::Path, time::Duration};

use crate::support::{
    certificates::{Certificate, Certificates},
    cluster::Cluster,
    eventually,
    log::Log,
    redis_server::{Reached, RedisServer},
    sentinel::{Passwords, Sentinels},
};
use tower_keep::{
    HealthReport, HealthStatus, SessionLayer, Sessions,
    store::redis::{RedisConfig, RedisStore},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn pem(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// A store at this port that trusts the authority of the certificates.
fn trusting(certificates: &Certificates, port: u16) -> RedisConfig {
    let config = RedisConfig::from_url(&format!("rediss://127.0.0.1:{port}/")).unwrap();
    config.timeout(PATIENCE).connect_timeout(PATIENCE).ca_cert(pem(&certificates.authority)).unwrap()
}

fn showing(config: RedisConfig, own: &Certificate) -> RedisConfig {
    config.client_cert(pem(&own.certificate), pem(&own.key)).unwrap()
}

fn sessions(config: RedisConfig) -> Sessions {
    SessionLayer::new(RedisStore::new(config)).sessions()
}

async fn assert_serves(config: RedisConfig) {
    let sessions = sessions(config);
    let token = sessions.create("ana").await.unwrap();
    assert!(sessions.is_valid(&token).await.unwrap());
    assert_eq!(sessions.health().await.status, HealthStatus::Up);
}

/// Nothing is served, and the health has this cause.
async fn assert_refused(config: RedisConfig, why: &str) {
    let sessions = sessions(config);
    assert!(sessions.create("ana").await.is_err());
    let HealthReport { status, cause, .. } = sessions.health().await;
    let cause = cause.unwrap_or_default();
    assert_eq!(status, HealthStatus::Down);
    assert!(cause.contains(why), "{cause}");
}

#[tokio::test]
async fn a_server_with_a_trusted_authority_is_accepted() {
    let certificates = Certificates::new();
    let server = RedisServer::start_tls(&certificates, false).await;
    assert_serves(trusting(&certificates, server.tls_port())).await;
    let by_name = RedisConfig::from_url(&format!("rediss://localhost:{}/", server.tls_port())).unwrap();
    assert_serves(by_name.timeout(PATIENCE).ca_cert(pem(&certificates.authority)).unwrap()).await;
    // A client certificate may be configured although the server does not require one.
    assert_serves(showing(trusting(&certificates, server.tls_port()), &certificates.client)).await;
}

#[tokio::test]
async fn the_client_certificate_is_sent_on_request() {
    let certificates = Certificates::new();
    let server = RedisServer::start_tls(&certificates, true).await;
    let config = trusting(&certificates, server.tls_port());
    assert_serves(showing(config.clone(), &certificates.client)).await;
    assert_refused(config.clone(), "CertificateRequired").await;
    assert_refused(showing(config, &certificates.strange_client), "UnknownCA").await;
}

#[tokio::test]
async fn an_invalid_certificate_is_reported() {
    let certificates = Certificates::new();
    let Certificates { wrong_name, expired, strange_server, .. } = &certificates;
    for (shown, why) in [(strange_server, "UnknownIssuer"), (expired, "expired"), (wrong_name, "elsewhere.example")] {
        let server = RedisServer::start_tls_as(&certificates, shown, false).await;
        assert_refused(trusting(&certificates, server.tls_port()), why).await;
    }
    // The system does not know the authority of this test.
    let server = RedisServer::start_tls(&certificates, false).await;
    let config = RedisConfig::from_url(&server.tls_url()).unwrap().timeout(PATIENCE).connect_timeout(PATIENCE);
    assert_refused(config, "UnknownIssuer").await;
}

#[tokio::test]
async fn a_port_without_tls_is_reported() {
    let certificates = Certificates::new();
    let server = RedisServer::start_tls(&certificates, false).await;
    let soon = Duration::from_millis(500);
    let not_tls = trusting(&certificates, server.port()).connect_timeout(soon);
    assert_refused(not_tls, "it may not use TLS on this port").await;
    let not_plain = RedisConfig::from_url(&format!("redis://127.0.0.1:{}/", server.tls_port())).unwrap();
    assert_refused(not_plain.timeout(PATIENCE).connect_timeout(PATIENCE), "no connection to Redis").await;
}

#[tokio::test]
async fn an_expired_and_renewed_certificate_needs_no_restart() {
    let certificates = Certificates::new();
    let Certificates { server: good, expired, client, .. } = &certificates;
    let mut server = RedisServer::start_tls(&certificates, true).await;
    let shows = |shown: &Certificate| {
        fs::write(&good.certificate, pem(&shown.certificate)).unwrap();
        fs::write(&good.key, pem(&shown.key)).unwrap();
    };
    let renewed = Certificate { certificate: server.dir().join("renewed.pem"), key: server.dir().join("renewed.key") };
    fs::copy(&good.certificate, &renewed.certificate).unwrap();
    fs::copy(&good.key, &renewed.key).unwrap();

    let sessions = sessions(showing(trusting(&certificates, server.tls_port()), client));
    let has = async |status, why: &str| {
        let health = sessions.health().await;
        health.status == status && health.cause.unwrap_or_default().contains(why)
    };
    sessions.create("ana").await.unwrap();
    shows(expired);
    server.run().await;
    eventually("the certificate has expired", async || has(HealthStatus::Down, "certificate expired").await).await;
    shows(&renewed);
    server.run().await;
    eventually("it is renewed", async || has(HealthStatus::Up, "").await).await;
    sessions.create("ana").await.unwrap();
}

/// Several servers, with TLS among themselves too.
mod together {
    use super::*;

    /// Any change of its settings reloads the certificates.
    async fn read_certificates_again(server: &RedisServer) {
        server.command("CONFIG SET tls-session-caching no").await;
    }

    /// From now on servers that reload get an expired certificate.
    fn expire(certificates: &Certificates) {
        let Certificates { server, expired, .. } = certificates;
        fs::write(&server.certificate, pem(&expired.certificate)).unwrap();
        fs::write(&server.key, pem(&expired.key)).unwrap();
    }

    fn patient(config: RedisConfig) -> RedisConfig {
        config.timeout(PATIENCE).connect_timeout(PATIENCE)
    }

    /// The trust settings.
    async fn assert_trust_counts(certificates: &Certificates, config: &RedisConfig) {
        let with = |authority| patient(config.clone()).ca_cert(pem(authority)).unwrap();
        assert_serves(with(&certificates.authority)).await;
        assert_refused(with(&certificates.strange_authority), "UnknownIssuer").await;
        let not_tls = config.clone().timeout(PATIENCE).connect_timeout(PATIENCE);
        assert_refused(not_tls, "no connection to Redis").await;
    }

    #[tokio::test]
    async fn behind_sentinels() {
        let certificates = Certificates::new();
        let how = Reached::ByTls(&certificates);
        let mut all = Sentinels::start_reached(&how, Passwords::default(), &[]).await;
        let config = RedisConfig::sentinel(all.addresses(), all.master_name()).unwrap();
        assert_trust_counts(&certificates, &config).await;

        let trusting = || patient(config.clone()).ca_cert(pem(&certificates.authority)).unwrap();
        let sessions = sessions(trusting());
        let token = sessions.create("ana").await.unwrap();
        all.master_server().await.command("WAIT 2 0").await;
        all.hands_over().await;
        eventually("the next master serves", async || sessions.create("ana").await.is_ok()).await;
        assert!(sessions.is_valid(&token).await.unwrap());

        // First the Sentinels, while the master has a valid certificate; then the master.
        let good = pem(&certificates.server.certificate);
        let key = pem(&certificates.server.key);
        expire(&certificates);
        for sentinel in &mut all.sentinels {
            sentinel.run().await;
        }
        assert_refused(trusting(), "certificate expired").await;
        fs::write(&certificates.server.certificate, good).unwrap();
        fs::write(&certificates.server.key, key).unwrap();
        for sentinel in &mut all.sentinels {
            sentinel.run().await;
        }
        assert_serves(trusting()).await;
        expire(&certificates);
        read_certificates_again(all.master_server().await).await;
        assert_refused(trusting(), "certificate expired").await;
    }

    #[tokio::test]
    async fn in_a_cluster() {
        let certificates = Certificates::new();
        let mut all = Cluster::start_reached(&Reached::ByTls(&certificates), &[]).await;
        let config = RedisConfig::cluster(all.nodes.iter().map(RedisServer::address)).unwrap();
        assert_trust_counts(&certificates, &config).await;

        // All nodes are found from one address, and so is the one that takes over.
        let config = RedisConfig::cluster([all.nodes[4].address()]).unwrap();
        let trusting = || patient(config.clone()).ca_cert(pem(&certificates.authority)).unwrap();
        let sessions = sessions(trusting());
        for user in 0..20 {
            let token = sessions.create(format!("user-{user}")).await.unwrap();
            assert!(sessions.is_valid(&token).await.unwrap());
        }
        all.kill(0);
        all.failed_over(0).await;
        let all_served = async || {
            let mut served = true;
            for user in 0..20 {
                served &= sessions.create(format!("user-{user}")).await.is_ok();
            }
            served
        };
        eventually("all are served", all_served).await;

        expire(&certificates);
        for node in &all.nodes[1..] {
            read_certificates_again(node).await;
        }
        assert_refused(trusting(), "certificate expired").await;
    }
}

mod settings {
    use super::*;

    #[test]
    fn an_invalid_certificate_file_is_refused_immediately() {
        let certificates = Certificates::new();
        let Certificates { authority, client, strange_client, .. } = &certificates;
        let config = || RedisConfig::from_url("rediss://localhost/").unwrap();
        let (certificate, key) = (pem(&client.certificate), pem(&client.key));
        let half = &pem(authority)[..200];
        for nonsense in [b"".as_slice(), b"nonsense", &key, half] {
            assert_eq!(config().ca_cert(nonsense).unwrap_err().to_string(), "not a certificate in PEM");
            let error = config().client_cert(nonsense, key.clone()).unwrap_err();
            assert_eq!(error.to_string(), "not a certificate in PEM");
        }
        for nonsense in [b"".as_slice(), b"nonsense", &certificate, &pem(&strange_client.key)] {
            let error = config().client_cert(certificate.clone(), nonsense).unwrap_err();
            assert_eq!(error.to_string(), "not the private key of the certificate in PEM");
        }
    }

    #[tokio::test]
    async fn environment_variables_name_files() {
        let certificates = Certificates::new();
        let server = RedisServer::start_tls(&certificates, true).await;
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let all = [
            ("REDIS_PORT", server.tls_port().to_string()),
            ("REDIS_TLS", "true".to_owned()),
            ("REDIS_CA_CERT", path(&certificates.authority)),
            ("REDIS_CLIENT_CERT", path(&certificates.client.certificate)),
            ("REDIS_CLIENT_KEY", path(&certificates.client.key)),
        ];
        let with = |changed: &str, to: Option<&str>| {
            RedisConfig::from_vars(|name| match name {
                name if name == changed => to.map(str::to_owned),
                name => all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()),
            })
        };
        assert_serves(with("", None).unwrap().unwrap().timeout(PATIENCE).connect_timeout(PATIENCE)).await;
        let other_key = path(&certificates.strange_client.key);
        let missing = path(&server.dir().join("nothing.pem"));
        for (variable, value, problem) in [
            ("REDIS_CA_CERT", Some(&other_key), "not a certificate in PEM"),
            ("REDIS_CA_CERT", Some(&missing), "the file cannot be read: entity not found"),
            ("REDIS_CLIENT_CERT", Some(&other_key), "not a certificate in PEM"),
            ("REDIS_CLIENT_KEY", Some(&other_key), "not the private key of the certificate in PEM"),
        ] {
            let error = with(variable, value.map(String::as_str)).unwrap_err();
            assert_eq!(error.to_string(), format!("{variable}: {problem}"));
        }
        let error = with("REDIS_CLIENT_KEY", None).unwrap_err();
        assert_eq!(error.to_string(), "REDIS_CLIENT_CERT: a client certificate without its key");
        let error = with("REDIS_CLIENT_CERT", None).unwrap_err();
        assert_eq!(error.to_string(), "REDIS_CLIENT_KEY: a client key without its certificate");
        let error = with("REDIS_TLS", None).unwrap_err();
        assert_eq!(error.to_string(), "REDIS_CA_CERT: a certificate without TLS (rediss:// or REDIS_TLS)");
    }

    #[tokio::test]
    async fn settings_are_never_shown() {
        let log = Log::capture();
        let certificates = Certificates::new();
        let server = RedisServer::start_tls(&certificates, true).await;
        let config = trusting(&certificates, server.tls_port());
        let config = showing(config, &certificates.strange_client).login("app", "app-password");
        assert!(!format!("{config:?}").contains("PRIVATE"));
        assert_refused(config, "alert").await;
        let said = log.text();
        assert!(said.contains("no connection to Redis"), "{said}");
        assert!(!said.contains("PRIVATE KEY") && !said.contains("app-password"), "{said}");
    }
}
