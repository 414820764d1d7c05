//! Why a JWT is refused.

use std::{error::Error, fmt};

/// Why a JWT is refused: the first failed check. The error contains no part of the token.
///
/// The response is always 401 with `invalid_token`.
///
/// ```
/// assert_eq!(tower_keep::JwtError::Claim("exp").to_string(), "the claim exp is missing or invalid");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwtError {
    /// Larger than [`max_size`](super::JwtBuilder::max_size).
    TooLarge,
    /// Not three parts in base64url, of which the first two are JSON objects without duplicate names; or a header with `crit`.
    Malformed,
    /// The header names an unknown key.
    UnknownKey,
    /// The header names no key, and there are several, or a key id [is required](super::JwtBuilder::require_key_id).
    NoKeyId,
    /// The algorithm is not that of the key.
    Algorithm,
    /// The signature is invalid.
    Signature,
    /// A required claim is missing, or a claim has the wrong type.
    Claim(&'static str),
    /// Expired: `exp`.
    Expired,
    /// Not valid yet: `nbf`.
    NotYet,
    /// For another audience: `aud`.
    Audience,
    /// By another issuer: `iss`.
    Issuer,
    /// Of another type, for example a refresh token instead of an access token.
    Type,
}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the JWT is too large",
            Self::Malformed => "this is not a JWT",
            Self::UnknownKey => "the JWT names an unknown key",
            Self::NoKeyId => "the JWT does not name its key",
            Self::Algorithm => "the algorithm of the JWT is not that of the key",
            Self::Signature => "the signature of the JWT is invalid",
            Self::Claim(name) => return write!(f, "the claim {name} is missing or invalid"),
            Self::Expired => "the JWT has expired",
            Self::NotYet => "the JWT is not valid yet",
            Self::Audience => "the JWT is for another audience",
            Self::Issuer => "the JWT is from another issuer",
            Self::Type => "the JWT has another type",
        })
    }
}

impl Error for JwtError {}
