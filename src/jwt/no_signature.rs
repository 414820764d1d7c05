//! Replaces `signature.rs` without a crypto library.

use super::algorithm::{InvalidJwtKey, JwtAlgorithm};

pub(super) enum SigningKey {}

pub(super) enum VerifyingKey {}

pub(super) fn hmac(_: JwtAlgorithm, _: &[u8]) -> Result<(SigningKey, VerifyingKey), InvalidJwtKey> {
    Err(InvalidJwtKey::NoCrypto)
}

pub(super) fn key_pair(_: JwtAlgorithm, _: &[u8]) -> Result<(SigningKey, VerifyingKey), InvalidJwtKey> {
    Err(InvalidJwtKey::NoCrypto)
}

pub(super) fn public_key(_: JwtAlgorithm, _: Vec<u8>) -> Result<VerifyingKey, InvalidJwtKey> {
    Err(InvalidJwtKey::NoCrypto)
}

impl SigningKey {
    pub(super) fn sign(&self, _: &[u8]) -> Option<Vec<u8>> {
        match *self {}
    }
}

impl VerifyingKey {
    pub(super) fn verifies(&self, _: &[u8], _: &[u8]) -> bool {
        match *self {}
    }
}
