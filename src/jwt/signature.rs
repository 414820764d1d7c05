//! Signatures by `aws-lc-rs` or `ring`, which have the same API.

#[cfg(feature = "aws-lc")]
use aws_lc_rs as crypto;
#[cfg(not(feature = "aws-lc"))]
use ring as crypto;

use crypto::{
    hmac,
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair, VerificationAlgorithm},
};

use super::{
    algorithm::{InvalidJwtKey, JwtAlgorithm},
    pem,
};

pub(super) enum SigningKey {
    Hmac(Box<hmac::Key>),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

pub(super) enum VerifyingKey {
    Hmac(Box<hmac::Key>),
    /// In the format of the algorithm.
    Public(&'static dyn VerificationAlgorithm, Vec<u8>),
}

pub(super) fn hmac(algorithm: JwtAlgorithm, secret: &[u8]) -> Result<(SigningKey, VerifyingKey), InvalidJwtKey> {
    let algorithm = match algorithm {
        JwtAlgorithm::HS256 => hmac::HMAC_SHA256,
        JwtAlgorithm::HS384 => hmac::HMAC_SHA384,
        JwtAlgorithm::HS512 => hmac::HMAC_SHA512,
        _ => return Err(InvalidJwtKey::WrongKind),
    };
    let key = hmac::Key::new(algorithm, secret);
    Ok((SigningKey::Hmac(Box::new(key.clone())), VerifyingKey::Hmac(Box::new(key))))
}

/// Parses a key pair. It signs once, so that an unusable key is found at startup.
pub(super) fn key_pair(algorithm: JwtAlgorithm, text: &[u8]) -> Result<(SigningKey, VerifyingKey), InvalidJwtKey> {
    let key = pem::private(text)?;
    let (signing, public) = match algorithm {
        JwtAlgorithm::RS256 => rsa(&key, &signature::RSA_PKCS1_SHA256)?,
        JwtAlgorithm::RS384 => rsa(&key, &signature::RSA_PKCS1_SHA384)?,
        JwtAlgorithm::RS512 => rsa(&key, &signature::RSA_PKCS1_SHA512)?,
        JwtAlgorithm::PS256 => rsa(&key, &signature::RSA_PSS_SHA256)?,
        JwtAlgorithm::PS384 => rsa(&key, &signature::RSA_PSS_SHA384)?,
        JwtAlgorithm::PS512 => rsa(&key, &signature::RSA_PSS_SHA512)?,
        JwtAlgorithm::ES256 => ecdsa(&key, &signature::ECDSA_P256_SHA256_FIXED_SIGNING)?,
        JwtAlgorithm::ES384 => ecdsa(&key, &signature::ECDSA_P384_SHA384_FIXED_SIGNING)?,
        JwtAlgorithm::EdDSA => {
            let pair =
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.pkcs8()?).map_err(|_| InvalidJwtKey::Unreadable)?;
            let public = pair.public_key().as_ref().to_vec();
            (SigningKey::Ed25519(pair), public)
        }
        JwtAlgorithm::HS256 | JwtAlgorithm::HS384 | JwtAlgorithm::HS512 => return Err(InvalidJwtKey::WrongKind),
    };
    let verifying = public_key(algorithm, public)?;
    let trial = signing.sign(b"trial").ok_or(InvalidJwtKey::Unreadable)?;
    if verifying.verifies(b"trial", &trial) { Ok((signing, verifying)) } else { Err(InvalidJwtKey::Unreadable) }
}

fn rsa(key: &pem::PrivateKey, padding: &'static dyn RsaEncoding) -> Result<(SigningKey, Vec<u8>), InvalidJwtKey> {
    let pair = match key {
        pem::PrivateKey::Pkcs1(der) => RsaKeyPair::from_der(der),
        pem::PrivateKey::Pkcs8(der) => RsaKeyPair::from_pkcs8(der),
    };
    let pair = pair.map_err(|_| InvalidJwtKey::Unreadable)?;
    let public = pair.public_key().as_ref().to_vec();
    Ok((SigningKey::Rsa(pair, padding), public))
}

fn ecdsa(
    key: &pem::PrivateKey,
    algorithm: &'static signature::EcdsaSigningAlgorithm,
) -> Result<(SigningKey, Vec<u8>), InvalidJwtKey> {
    #[cfg(feature = "aws-lc")]
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.pkcs8()?);
    #[cfg(not(feature = "aws-lc"))]
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.pkcs8()?, &SystemRandom::new());
    let pair = pair.map_err(|_| InvalidJwtKey::Unreadable)?;
    let public = pair.public_key().as_ref().to_vec();
    Ok((SigningKey::Ecdsa(pair), public))
}

/// A public key: `RSAPublicKey` in DER, an uncompressed point, or the 32 bytes of Ed25519.
pub(super) fn public_key(algorithm: JwtAlgorithm, key: Vec<u8>) -> Result<VerifyingKey, InvalidJwtKey> {
    let (algorithm, fits): (&'static dyn VerificationAlgorithm, bool) = match algorithm {
        JwtAlgorithm::RS256 => (&signature::RSA_PKCS1_2048_8192_SHA256, is_large_rsa(&key)),
        JwtAlgorithm::RS384 => (&signature::RSA_PKCS1_2048_8192_SHA384, is_large_rsa(&key)),
        JwtAlgorithm::RS512 => (&signature::RSA_PKCS1_2048_8192_SHA512, is_large_rsa(&key)),
        JwtAlgorithm::PS256 => (&signature::RSA_PSS_2048_8192_SHA256, is_large_rsa(&key)),
        JwtAlgorithm::PS384 => (&signature::RSA_PSS_2048_8192_SHA384, is_large_rsa(&key)),
        JwtAlgorithm::PS512 => (&signature::RSA_PSS_2048_8192_SHA512, is_large_rsa(&key)),
        JwtAlgorithm::ES256 => (&signature::ECDSA_P256_SHA256_FIXED, key.len() == 65),
        JwtAlgorithm::ES384 => (&signature::ECDSA_P384_SHA384_FIXED, key.len() == 97),
        JwtAlgorithm::EdDSA => (&signature::ED25519, key.len() == 32),
        JwtAlgorithm::HS256 | JwtAlgorithm::HS384 | JwtAlgorithm::HS512 => return Err(InvalidJwtKey::WrongKind),
    };
    if fits { Ok(VerifyingKey::Public(algorithm, key)) } else { Err(InvalidJwtKey::Unreadable) }
}

/// Whether the modulus of an `RSAPublicKey` in DER has at least 2048 bits (RFC 7518, section 3.3).
fn is_large_rsa(der: &[u8]) -> bool {
    // A sequence, then an integer. For this size, both have a length of two bytes.
    let [0x30, 0x82, _, _, 0x02, 0x82, high, low, modulus @ ..] = der else { return false };
    let Some(modulus) = modulus.get(..usize::from(u16::from_be_bytes([*high, *low]))) else { return false };
    modulus.iter().skip_while(|byte| **byte == 0).count() >= 256
}

impl SigningKey {
    /// The signature of `message`. `None` if the library fails.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Self::Rsa(pair, padding) => {
                #[cfg(feature = "aws-lc")]
                let mut signature = vec![0; pair.public_modulus_len()];
                #[cfg(not(feature = "aws-lc"))]
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*padding, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            Self::Ecdsa(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl VerifyingKey {
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Self::Public(algorithm, key) => {
                signature::UnparsedPublicKey::new(*algorithm, key).verify(message, signature).is_ok()
            }
        }
    }
}
