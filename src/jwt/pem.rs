//! Keys in PEM.

use super::algorithm::InvalidJwtKey;

#[cfg_attr(not(any(feature = "aws-lc", feature = "ring")), allow(dead_code))]
pub(super) enum PrivateKey {
    /// RSA only.
    Pkcs1(Vec<u8>),
    Pkcs8(Vec<u8>),
}

#[cfg_attr(not(any(feature = "aws-lc", feature = "ring")), allow(dead_code))]
impl PrivateKey {
    pub(super) fn pkcs8(&self) -> Result<&[u8], InvalidJwtKey> {
        match self {
            Self::Pkcs8(der) => Ok(der),
            Self::Pkcs1(_) => Err(InvalidJwtKey::Unreadable),
        }
    }
}

#[cfg_attr(not(any(feature = "aws-lc", feature = "ring")), allow(dead_code))]
pub(super) fn private(text: &[u8]) -> Result<PrivateKey, InvalidJwtKey> {
    let pem = pem::parse(text).map_err(|_| InvalidJwtKey::Unreadable)?;
    match pem.tag() {
        "PRIVATE KEY" => Ok(PrivateKey::Pkcs8(pem.into_contents())),
        "RSA PRIVATE KEY" => Ok(PrivateKey::Pkcs1(pem.into_contents())),
        _ => Err(InvalidJwtKey::Unreadable),
    }
}

/// The bits of a public key: of a `PUBLIC KEY` whose algorithm has the object identifier `oid`, or of an `RSA PUBLIC KEY`.
pub(super) fn public(text: &[u8], oid: &str) -> Result<Vec<u8>, InvalidJwtKey> {
    let pem = pem::parse(text).map_err(|_| InvalidJwtKey::Unreadable)?;
    match pem.tag() {
        "PUBLIC KEY" => {
            let info =
                spki::SubjectPublicKeyInfoRef::try_from(pem.contents()).map_err(|_| InvalidJwtKey::Unreadable)?;
            let bits = info.subject_public_key.as_bytes().ok_or(InvalidJwtKey::Unreadable)?;
            if info.algorithm.oid.to_string() == oid { Ok(bits.to_vec()) } else { Err(InvalidJwtKey::Unreadable) }
        }
        "RSA PUBLIC KEY" if oid == RSA => Ok(pem.into_contents()),
        _ => Err(InvalidJwtKey::Unreadable),
    }
}

pub(super) const RSA: &str = "1.2.840.113549.1.1.1";
pub(super) const ELLIPTIC_CURVE: &str = "1.2.840.10045.2.1";
pub(super) const ED25519: &str = "1.3.101.112";
