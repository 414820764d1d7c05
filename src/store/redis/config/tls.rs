//! TLS: certificate authorities and the client certificate.

#[cfg(feature = "redis-tls")]
use std::sync::Arc;

#[cfg(feature = "redis-tls")]
use rustls::crypto::CryptoProvider;

use super::error::Problem;

/// TLS to Redis.
#[cfg_attr(not(feature = "redis-tls"), allow(dead_code))]
#[derive(Clone, Default)]
pub(in crate::store::redis) struct Tls {
    /// PEM. `None`: the certificate authorities of the system.
    pub(in crate::store::redis) ca_cert: Option<Vec<u8>>,
    /// The client certificate and its key, in PEM.
    pub(in crate::store::redis) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Checks the settings. The client would fail at the first connection.
    pub(super) fn check(&self) -> Result<(), Problem> {
        check(self)
    }
}

#[cfg(not(feature = "redis-tls"))]
fn check(_: &Tls) -> Result<(), Problem> {
    Err(Problem::Feature("redis-tls"))
}

#[cfg(feature = "redis-tls")]
fn check(tls: &Tls) -> Result<(), Problem> {
    provider()?;
    if let Some(pem) = &tls.ca_cert {
        roots(pem)?;
    }
    if let Some((certificate, key)) = &tls.client {
        client(certificate, key)?;
    }
    Ok(())
}

#[cfg(feature = "redis-tls")]
fn certificates(pem: &[u8]) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, Problem> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|certificates| !certificates.is_empty()).ok_or(Problem::Certificate)
}

#[cfg(feature = "redis-tls")]
fn roots(pem: &[u8]) -> Result<rustls::RootCertStore, Problem> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|_| Problem::Certificate)?;
    }
    Ok(roots)
}

#[cfg(feature = "redis-tls")]
fn client(certificate: &[u8], key: &[u8]) -> Result<(), Problem> {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Problem::Key)?;
    rustls::ClientConfig::builder_with_provider(provider()?)
        .with_safe_default_protocol_versions()
        .map_err(|_| Problem::Key)?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(chain, key)
        .map_err(|_| Problem::Key)?;
    Ok(())
}

/// The crypto provider of the process, or else the library that the application has chosen.
#[cfg(feature = "redis-tls")]
fn provider() -> Result<Arc<CryptoProvider>, Problem> {
    CryptoProvider::get_default().cloned().or_else(|| chosen().map(Arc::new)).ok_or(Problem::NoCrypto)
}

#[cfg(feature = "redis-tls")]
fn chosen() -> Option<CryptoProvider> {
    #[cfg(feature = "aws-lc")]
    return Some(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
    return Some(rustls::crypto::ring::default_provider());
    #[cfg(not(any(feature = "aws-lc", feature = "ring")))]
    None
}

/// Before the first connection: the Redis client panics in a process without a crypto provider.
#[cfg(feature = "redis-tls")]
pub(in crate::store::redis) fn install_provider() {
    if let (None, Some(chosen)) = (CryptoProvider::get_default(), chosen()) {
        let _ = chosen.install_default(); // another thread may be faster
    }
}
