//! Certificates for servers and clients, created for each test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::dir::Dir;

/// Two authorities and their certificates, in PEM files. Removed when dropped.
pub struct Certificates {
    /// The certificate of the trusted authority. It has signed everything that is not called strange.
    pub authority: PathBuf,
    /// The certificate of an authority that is not trusted.
    pub strange_authority: PathBuf,
    /// For `127.0.0.1` and `localhost`.
    pub server: Certificate,
    /// For another host.
    pub wrong_name: Certificate,
    /// For `127.0.0.1` and `localhost`, until the year 2001.
    pub expired: Certificate,
    /// For `127.0.0.1` and `localhost`, by the strange authority.
    pub strange_server: Certificate,
    pub client: Certificate,
    /// By the strange authority.
    pub strange_client: Certificate,
    _dir: Dir,
}

/// A certificate and its key (PKCS #8, not encrypted).
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = Dir::new();
        let authority = Authority::new(&dir, "authority");
        let strange = Authority::new(&dir, "strange-authority");
        // A cluster node is a client of the others.
        let server = || vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let here = || named(&["127.0.0.1", "localhost"], server());
        let elsewhere = named(&["elsewhere.example"], server());
        let client = || named(&[], vec![ExtendedKeyUsagePurpose::ClientAuth]);
        let mut expired = here();
        (expired.not_before, expired.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        Self {
            server: authority.sign(&dir, "server", here()),
            wrong_name: authority.sign(&dir, "wrong-name", elsewhere),
            expired: authority.sign(&dir, "expired", expired),
            strange_server: strange.sign(&dir, "strange-server", here()),
            client: authority.sign(&dir, "client", client()),
            strange_client: strange.sign(&dir, "strange-client", client()),
            authority: authority.certificate,
            strange_authority: strange.certificate,
            _dir: dir,
        }
    }
}

struct Authority {
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = write(dir, &format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, dir: &Path, name: &str, mut params: CertificateParams) -> Certificate {
        params.distinguished_name = called(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            certificate: write(dir, &format!("{name}.pem"), &certificate.pem()),
            key: write(dir, &format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

fn named(names: &[&str], purposes: Vec<ExtendedKeyUsagePurpose>) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes;
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

fn write(dir: &Path, name: &str, pem: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, pem).unwrap();
    path
}
