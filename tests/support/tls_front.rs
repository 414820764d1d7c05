//! A TLS terminator in front of an HTTP server.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use ring::digest;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, rustls};

/// A key and a self-signed certificate for these names.
pub struct Identity {
    config: Arc<rustls::ServerConfig>,
    /// The SHA-256 of the public key, in base64.
    pub key: String,
}

impl Identity {
    pub fn of(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let hash = digest::digest(&digest::SHA256, &key.subject_public_key_info());
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        Self { config: Arc::new(config), key: STANDARD.encode(hash) }
    }
}

/// Stopped when dropped, with its connections.
pub struct TlsFront {
    pub port: u16,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// In front of the server at `address`.
    pub async fn start(identity: &Identity, address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (acceptor, address) = (TlsAcceptor::from(identity.config.clone()), address.to_owned());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, address) = (acceptor.clone(), address.clone());
                connections.spawn(async move {
                    // A disconnect is not an error.
                    if let (Ok(mut client), Ok(mut server)) =
                        (acceptor.accept(client).await, TcpStream::connect(&address).await)
                    {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, task }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}
