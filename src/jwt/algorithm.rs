//! Algorithms of JWTs, and errors of their keys.

/// The algorithm of a signature, with the names of RFC 7518.
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
    /// The name in the header of a JWT.
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

    pub(super) const fn is_hmac(self) -> bool {
        matches!(self, Self::HS256 | Self::HS384 | Self::HS512)
    }

    /// The length of the hash in bytes, which is the minimum length of an HMAC secret.
    pub(super) const fn min_secret(self) -> usize {
        match self {
            Self::HS384 => 48,
            Self::HS512 => 64,
            _ => 32,
        }
    }
}

/// Why a key is invalid. The error does not contain the key.
///
/// ```
/// use tower_keep::{JwtAlgorithm, JwtKey};
///
/// let error = JwtKey::public_pem(JwtAlgorithm::ES256, "not a key").unwrap_err();
/// assert_eq!(error.to_string(), "this is not PEM of a key for this algorithm, or the key is too small");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidJwtKey {
    /// The HMAC secret is shorter than the hash.
    #[error("the secret has {length} bytes and needs at least {minimum}")]
    ShortSecret {
        /// The length in bytes.
        length: usize,
        /// The minimum in bytes.
        minimum: usize,
    },
    /// HMAC needs a secret, and all other algorithms need PEM.
    #[error("an HMAC needs a secret, any other algorithm a key in PEM")]
    WrongKind,
    /// It is not PEM, not a key for this algorithm, or an RSA key under 2048 bits.
    #[error("this is not PEM of a key for this algorithm, or the key is too small")]
    Unreadable,
    /// The application has chosen no crypto library: enable the feature `aws-lc` or `ring`.
    #[error("no crypto library: enable the feature `aws-lc` or `ring` of tower-keep")]
    NoCrypto,
}
