//! Verifies JWTs.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{
    Jwt, JwtError, JwtKey, Purpose,
    claims::{JwtClaims, object},
};
use crate::{
    credential::{Bearer, Signed, VerifySigned},
    time::Timestamp,
    token::SessionId,
};

impl Jwt {
    /// Verifies an access token without looking up its session.
    ///
    /// The layer does this itself. `now` is the time of its [clock](crate::Clock).
    ///
    /// # Errors
    /// [`JwtError`] names the failed check.
    ///
    /// ```
    /// use tower_keep::{Clock, Jwt, JwtAlgorithm, JwtError, JwtKey, SystemClock};
    ///
    /// let jwt = Jwt::builder(JwtKey::hmac(JwtAlgorithm::HS256, [7; 32])?).build()?;
    /// assert_eq!(jwt.verify_access("no JWT", SystemClock.now()).unwrap_err(), JwtError::Malformed);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify_access(&self, token: impl AsRef<[u8]>, now: Timestamp) -> Result<JwtClaims, JwtError> {
        self.verify(&self.inner.access, token.as_ref(), now)
    }

    fn read_access(&self, token: &[u8], now: Timestamp) -> Result<Signed, JwtError> {
        let claims = self.verify(&self.inner.access, token, now)?;
        Ok(Signed {
            session: session(&claims, self.inner.settings.session_claim)?,
            user: claims.text("sub")?.map(Arc::from),
            suffices_in_outage: self.inner.settings.suffices_in_outage,
            claims: claims.into_value(),
        })
    }

    /// The session and the generation of a refresh token.
    pub(super) fn read_refresh(&self, token: &[u8], now: Timestamp) -> Result<(SessionId, String), JwtError> {
        let claims = self.verify(&self.inner.refresh, token, now)?;
        let generation = claims.text("jti")?.ok_or(JwtError::Claim("jti"))?;
        Ok((session(&claims, "sid")?, generation.to_owned()))
    }

    fn verify(&self, purpose: &Purpose, token: &[u8], now: Timestamp) -> Result<JwtClaims, JwtError> {
        if token.len() > self.inner.settings.max_size {
            return Err(JwtError::TooLarge);
        }
        let Parts { header, claims, signature, message } = Parts::of(token)?;
        let header = object(&decode(header)?)?;
        let key = purpose.key(&header, self.inner.settings.requires_key_id)?;
        // The key is for one algorithm only, so `none` is impossible, and a public key is never used as a secret.
        if text(&header, "alg")? != Some(key.algorithm().name()) {
            return Err(JwtError::Algorithm);
        }
        // Critical extensions (RFC 7515, section 4.1.11) are not supported.
        if header.contains_key("crit") {
            return Err(JwtError::Malformed);
        }
        if !key.verifies(message, &decode(signature)?) {
            return Err(JwtError::Signature);
        }
        let claims = JwtClaims::parse(&decode(claims)?)?;
        self.check(purpose, &header, &claims, now)?;
        Ok(claims)
    }

    /// Checks the claims of a token with a valid signature.
    fn check(
        &self,
        purpose: &Purpose,
        header: &Map<String, Value>,
        claims: &JwtClaims,
        now: Timestamp,
    ) -> Result<(), JwtError> {
        let leeway = self.inner.settings.leeway;
        if claims.expires().plus(leeway) <= now {
            return Err(JwtError::Expired);
        }
        if claims.time("nbf")?.is_some_and(|start| start > now.plus(leeway)) {
            return Err(JwtError::NotYet);
        }
        let audience = self.inner.settings.audience.as_deref();
        // A token with an audience is not for a verifier without one (RFC 7519, section 4.1.3).
        if !claims.is_for(audience)?.unwrap_or(audience.is_none()) {
            return Err(JwtError::Audience);
        }
        let issuer = claims.text("iss")?;
        if self.inner.settings.issuer.as_deref().is_some_and(|expected| issuer != Some(expected)) {
            return Err(JwtError::Issuer);
        }
        if !text(header, "typ")?.is_some_and(|typ| purpose.is_type(typ)) {
            return Err(JwtError::Type);
        }
        Ok(())
    }
}

impl VerifySigned for Jwt {
    fn verify(&self, token: &[u8], now: Timestamp) -> Option<Signed> {
        let signed = self.read_access(token, now);
        signed.inspect_err(|reason| tracing::debug!(%reason, "access token refused")).ok()
    }

    fn bearer(&self) -> &Bearer {
        &self.inner.settings.bearer
    }
}

impl Purpose {
    /// The key that the header names, or the only possible one.
    fn key(&self, header: &Map<String, Value>, by_id_only: bool) -> Result<&JwtKey, JwtError> {
        match text(header, "kid")? {
            Some(id) => self.keys.iter().find(|key| key.name() == Some(id)).ok_or(JwtError::UnknownKey),
            None if by_id_only => Err(JwtError::NoKeyId),
            None => {
                let algorithm = text(header, "alg")?;
                let mut keys = self.keys.iter().filter(|key| algorithm == Some(key.algorithm().name()));
                match (keys.next(), keys.next()) {
                    (Some(key), None) => Ok(key),
                    (None, _) => Err(JwtError::Algorithm),
                    (Some(_), Some(_)) => Err(JwtError::NoKeyId),
                }
            }
        }
    }

    fn is_type(&self, typ: &str) -> bool {
        bare_type(typ).eq_ignore_ascii_case(&self.typ)
    }
}

/// `at+jwt` and `application/at+jwt` are equal, and case-insensitive (RFC 7515, section 4.1.9).
pub(super) fn bare_type(typ: &str) -> &str {
    let prefix = "application/";
    match typ.split_at_checked(prefix.len()) {
        Some((start, rest)) if start.eq_ignore_ascii_case(prefix) => rest,
        _ => typ,
    }
}

/// The three parts of a JWT, and the signed message.
struct Parts<'a> {
    header: &'a [u8],
    claims: &'a [u8],
    signature: &'a [u8],
    message: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(token: &'a [u8]) -> Result<Self, JwtError> {
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::Malformed);
        };
        Ok(Self { header, claims, signature, message: &token[..header.len() + 1 + claims.len()] })
    }
}

fn decode(part: &[u8]) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed)
}

/// A string in the header.
fn text<'a>(header: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, JwtError> {
    match header.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(JwtError::Malformed),
    }
}

fn session(claims: &JwtClaims, claim: &'static str) -> Result<SessionId, JwtError> {
    let id = claims.text(claim)?.ok_or(JwtError::Claim(claim))?;
    id.parse().map_err(|_| JwtError::Claim(claim))
}
