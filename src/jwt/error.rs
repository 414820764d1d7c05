//! Why a JWT is refused.

/// Why a JWT is refused: the first failed check. The error contains no part of the token.
///
/// The response is always 401 with `invalid_token`.
///
/// ```
/// assert_eq!(tower_keep::JwtError::Claim("exp").to_string(), "the claim exp is missing or invalid");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// Larger than [`max_size`](super::JwtBuilder::max_size).
    #[error("the JWT is too large")]
    TooLarge,
    /// Not three parts in base64url, of which the first two are JSON objects without duplicate names; or a header with `crit`.
    #[error("this is not a JWT")]
    Malformed,
    /// The header names an unknown key.
    #[error("the JWT names an unknown key")]
    UnknownKey,
    /// The header names no key, and there are several, or a key id [is required](super::JwtBuilder::require_key_id).
    #[error("the JWT does not name its key")]
    NoKeyId,
    /// The algorithm is not that of the key.
    #[error("the algorithm of the JWT is not that of the key")]
    Algorithm,
    /// The signature is invalid.
    #[error("the signature of the JWT is invalid")]
    Signature,
    /// A required claim is missing, or a claim has the wrong type.
    #[error("the claim {0} is missing or invalid")]
    Claim(&'static str),
    /// Expired: `exp`.
    #[error("the JWT has expired")]
    Expired,
    /// Not valid yet: `nbf`.
    #[error("the JWT is not valid yet")]
    NotYet,
    /// For another audience: `aud`.
    #[error("the JWT is for another audience")]
    Audience,
    /// By another issuer: `iss`.
    #[error("the JWT is from another issuer")]
    Issuer,
    /// Of another type, for example a refresh token instead of an access token.
    #[error("the JWT has another type")]
    Type,
}
