//! Keys, each for one algorithm.

use std::{error::Error, fmt, sync::Arc};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey,
    crypto::{CryptoProvider, aws_lc},
    jwk::EllipticCurve,
};

/// Named here, and not left to what the library makes the default of the process: another crate of the program may
/// have chosen differently.
const PROVIDER: &CryptoProvider = &aws_lc::DEFAULT_PROVIDER;

/// RSA keys have at least so many bytes (2048 bits).
const MIN_MODULUS: usize = 256;

/// How a JWT is signed: the names of RFC 7518.
///
/// ```
/// use tower_keep::JwtAlgorithm;
///
/// assert_eq!(JwtAlgorithm::EdDSA.name(), "EdDSA");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl JwtAlgorithm {
    /// As the header of a JWT names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }

    const fn in_library(self) -> Algorithm {
        match self {
            Self::HS256 => Algorithm::HS256,
            Self::HS384 => Algorithm::HS384,
            Self::HS512 => Algorithm::HS512,
            Self::RS256 => Algorithm::RS256,
            Self::RS384 => Algorithm::RS384,
            Self::RS512 => Algorithm::RS512,
            Self::PS256 => Algorithm::PS256,
            Self::PS384 => Algorithm::PS384,
            Self::PS512 => Algorithm::PS512,
            Self::ES256 => Algorithm::ES256,
            Self::ES384 => Algorithm::ES384,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }

    /// The bytes of its hash, which the secret of an HMAC must have at least.
    const fn min_secret(self) -> usize {
        match self {
            Self::HS384 => 48,
            Self::HS512 => 64,
            _ => 32,
        }
    }
}

/// A key, for exactly one algorithm: what the header of a JWT says about its algorithm chooses nothing.
///
/// Its `Debug` shows the algorithm and the id, and nothing of the key.
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
    signs: Option<EncodingKey>,
    verifies: DecodingKey,
}

impl JwtKey {
    /// A secret that signs and verifies: `HS256`, `HS384` or `HS512`.
    ///
    /// # Errors
    /// [`InvalidJwtKey::ShortSecret`] when it has fewer bytes than the hash: 32, 48 or 64 (RFC 7518, section 3.2);
    /// [`InvalidJwtKey::WrongKind`] for any other algorithm.
    pub fn hmac(algorithm: JwtAlgorithm, secret: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        let (secret, minimum) = (secret.as_ref(), algorithm.min_secret());
        if algorithm.in_library().family() != AlgorithmFamily::Hmac {
            return Err(InvalidJwtKey::WrongKind);
        }
        if secret.len() < minimum {
            return Err(InvalidJwtKey::ShortSecret { length: secret.len(), minimum });
        }
        let (signs, verifies) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        Ok(Self { algorithm, id: None, signs: Some(signs), verifies })
    }

    /// A private key that signs, and verifies by its public part: PEM of PKCS #8 (`PRIVATE KEY`), for RSA also of PKCS #1.
    ///
    /// # Errors
    /// [`InvalidJwtKey::Unreadable`] when that is no private key for the algorithm, or one of RSA under 2048 bits (RFC 7518, section 3.3);
    /// [`InvalidJwtKey::WrongKind`] for an HMAC.
    pub fn private_pem(algorithm: JwtAlgorithm, pem: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        let (pem, utils) = (pem.as_ref(), &PROVIDER.key_utils);
        let (signs, verifies) = match algorithm.in_library().family() {
            AlgorithmFamily::Rsa => {
                let signs = EncodingKey::from_rsa_pem(pem)?;
                let (n, e) = (utils.rsa_pub_components_from_private_key)(signs.as_bytes())?;
                (signs, rsa(&n, &e)?)
            }
            AlgorithmFamily::Ec => {
                let signs = EncodingKey::from_ec_pem(pem)?;
                let (_, x, y) = (utils.ec_pub_components_from_private_key)(signs.as_bytes(), algorithm.in_library())?;
                let point = [&[4], &x[..], &y[..]].concat(); // uncompressed
                (signs, DecodingKey::from_ec_der(&point))
            }
            AlgorithmFamily::Ed => {
                let signs = EncodingKey::from_ed_pem(pem)?;
                let point = (utils.ed_pub_components_from_private_key)(signs.as_bytes(), &EllipticCurve::Ed25519)?;
                (signs, DecodingKey::from_ed_der(&point))
            }
            AlgorithmFamily::Hmac => return Err(InvalidJwtKey::WrongKind),
        };
        let key = Self { algorithm, id: None, signs: Some(signs), verifies };
        // What cannot be used is found out now, and not by the first login.
        let signature = key.sign(b"trial").ok_or(InvalidJwtKey::Unreadable)?;
        if key.verifies(b"trial", &signature) { Ok(key) } else { Err(InvalidJwtKey::Unreadable) }
    }

    /// A public key, which verifies only: PEM of SubjectPublicKeyInfo (`PUBLIC KEY`), for RSA also of PKCS #1.
    ///
    /// # Errors
    /// Those of [`private_pem`](Self::private_pem).
    pub fn public_pem(algorithm: JwtAlgorithm, pem: impl AsRef<[u8]>) -> Result<Self, InvalidJwtKey> {
        let pem = pem.as_ref();
        let verifies = match algorithm.in_library().family() {
            AlgorithmFamily::Rsa => {
                let key = DecodingKey::from_rsa_pem(pem)?;
                let (n, e) = (PROVIDER.key_utils.rsa_pub_components_from_public_key)(key.try_get_as_bytes()?)?;
                rsa(&n, &e)?
            }
            AlgorithmFamily::Ec => {
                let key = DecodingKey::from_ec_pem(pem)?;
                let point_len = if algorithm == JwtAlgorithm::ES384 { 97 } else { 65 };
                if key.try_get_as_bytes()?.len() != point_len {
                    return Err(InvalidJwtKey::Unreadable); // of another curve
                }
                key
            }
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem)?,
            AlgorithmFamily::Hmac => return Err(InvalidJwtKey::WrongKind),
        };
        Ok(Self { algorithm, id: None, signs: None, verifies })
    }

    /// What the header `kid` of a JWT calls this key. Default: nothing, which is enough as long as there is one key of its algorithm.
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

    /// The signature of `message`; `None` if this key cannot sign.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signer = (PROVIDER.signer_factory)(&self.algorithm.in_library(), self.signs.as_ref()?).ok()?;
        signer.try_sign(message).ok()
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        let verifier = (PROVIDER.verifier_factory)(&self.algorithm.in_library(), &self.verifies);
        verifier.is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, InvalidJwtKey> {
    let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
    if bytes < MIN_MODULUS {
        return Err(InvalidJwtKey::Unreadable);
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("algorithm", &self.algorithm).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why something cannot be a key. It shows nothing of it.
///
/// ```
/// use tower_keep::{JwtAlgorithm, JwtKey};
///
/// let error = JwtKey::public_pem(JwtAlgorithm::ES256, "not a key").unwrap_err();
/// assert_eq!(error.to_string(), "this is not PEM of a key for this algorithm, or the key is too small");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidJwtKey {
    /// The secret of an HMAC is shorter than its hash.
    ShortSecret {
        /// What it has, in bytes.
        length: usize,
        /// What it needs, in bytes.
        minimum: usize,
    },
    /// An HMAC needs a secret; all other algorithms need PEM.
    WrongKind,
    /// It is not PEM, or not of a key for this algorithm; or it is of RSA, and under 2048 bits.
    Unreadable,
}

impl fmt::Display for InvalidJwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortSecret { length, minimum } => {
                write!(f, "the secret has {length} bytes and needs at least {minimum}")
            }
            Self::WrongKind => f.write_str("an HMAC needs a secret, any other algorithm a key in PEM"),
            Self::Unreadable => f.write_str("this is not PEM of a key for this algorithm, or the key is too small"),
        }
    }
}

impl Error for InvalidJwtKey {}

/// What the library says is left out: it may quote the key.
impl From<jsonwebtoken::errors::Error> for InvalidJwtKey {
    fn from(_: jsonwebtoken::errors::Error) -> Self {
        Self::Unreadable
    }
}
