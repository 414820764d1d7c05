//! Keys for JWTs, each for one algorithm.

use std::{fmt, sync::Arc};

use super::{
    algorithm::{InvalidJwtKey, JwtAlgorithm},
    pem,
    signature::{self, SigningKey, VerifyingKey},
};

/// A key for exactly one algorithm. The header of a JWT cannot choose another.
///
/// `Debug` shows the algorithm and the id, and not the key.
///
/// ```
/// use tower_keep::{InvalidJwtKey, JwtAlgorithm, JwtKey};
///
/// let key = JwtKey::hmac(JwtAlgorithm::HS256, [7; 32])?.id("2026-11");
/// assert_eq!(format!("{key:?}"), r#"JwtKey { algorithm: HS256, id: Some("2026-11"), .. }"#);
/// assert_eq!(
///     JwtKey::hmac(JwtAlgorithm::HS256, "secret").unwrap_err(),
///     InvalidJwtKey::ShortSecret { length: 6, minimum: 32 },
/// );
/// # Ok::<(), InvalidJwtKey>(())
/// ```
#[derive(Clone)]
pub struct JwtKey {
    algorithm: JwtAlgorithm,
    id: Option<Arc<str>>,
    signing: Option<Arc<SigningKey>>,
    verifying: Arc<VerifyingKey>,
}

impl JwtKey {
    /// A secret that signs and verifies: `HS256`, `HS384` or `HS512`.
    ///
    /// # Errors
    /// [`InvalidJwtKey::ShortSecret`] if the secret has fewer bytes than the hash: 32, 48 or 64 (RFC 7518, section 3.2);
    /// [`InvalidJwtKey::WrongKind`] for any other algorithm; [`InvalidJwtKey::NoCrypto`] without a crypto library.
    pub fn hmac(algorithm: JwtAlgorithm, secret: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        let (secret, minimum) = (secret.as_ref(), algorithm.min_secret());
        if !algorithm.is_hmac() {
            return Err(InvalidJwtKey::WrongKind);
        }
        if secret.len() < minimum {
            return Err(InvalidJwtKey::ShortSecret { length: secret.len(), minimum });
        }
        Ok(Self::pair(algorithm, signature::hmac(algorithm, secret)?))
    }

    /// A private key that signs, and verifies by its public part: PEM of PKCS #8 (`PRIVATE KEY`), for RSA also of PKCS #1.
    ///
    /// # Errors
    /// [`InvalidJwtKey::Unreadable`] if this is not a private key for the algorithm, or an RSA key under 2048 bits (RFC 7518,
    /// section 3.3); [`InvalidJwtKey::WrongKind`] for HMAC; [`InvalidJwtKey::NoCrypto`] without a crypto library.
    pub fn private_pem(algorithm: JwtAlgorithm, pem: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        if algorithm.is_hmac() {
            return Err(InvalidJwtKey::WrongKind);
        }
        Ok(Self::pair(algorithm, signature::key_pair(algorithm, pem.as_ref())?))
    }

    /// A public key, which only verifies: PEM of SubjectPublicKeyInfo (`PUBLIC KEY`), for RSA also of PKCS #1.
    ///
    /// # Errors
    /// Those of [`private_pem`](Self::private_pem).
    pub fn public_pem(algorithm: JwtAlgorithm, pem: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        let oid = match algorithm {
            JwtAlgorithm::HS256 | JwtAlgorithm::HS384 | JwtAlgorithm::HS512 => return Err(InvalidJwtKey::WrongKind),
            JwtAlgorithm::ES256 | JwtAlgorithm::ES384 => pem::ELLIPTIC_CURVE,
            JwtAlgorithm::EdDSA => pem::ED25519,
            _ => pem::RSA,
        };
        let verifying = signature::public_key(algorithm, pem::public(pem.as_ref(), oid)?)?;
        Ok(Self { algorithm, id: None, signing: None, verifying: Arc::new(verifying) })
    }

    fn pair(algorithm: JwtAlgorithm, (signing, verifying): (SigningKey, VerifyingKey)) -> Self {
        Self { algorithm, id: None, signing: Some(Arc::new(signing)), verifying: Arc::new(verifying) }
    }

    /// The id of the key in the header `kid`. Default: none, which is enough for one key per algorithm.
    #[must_use]
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    pub(super) fn algorithm(&self) -> JwtAlgorithm {
        self.algorithm
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The signature of `message`. `None` if this key cannot sign.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.signing.as_ref()?.sign(message)
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifying.verifies(message, signature)
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("algorithm", &self.algorithm).field("id", &self.id).finish_non_exhaustive()
    }
}
