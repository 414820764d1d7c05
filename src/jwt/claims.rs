//! The claims of a JWT.

use std::{fmt, time::SystemTime};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::JwtError;
use crate::time::Timestamp;

/// Registered claims, which the application must not set.
pub(super) const REGISTERED: [&str; 8] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid"];

/// Seconds since the Unix epoch at the end of the year 9999. Later values are invalid.
const LATEST: f64 = 253_402_300_799.0;

/// The verified claims of a JWT.
///
/// `Debug` shows none of them, because they may be personal data.
///
/// ```
/// # use tower_keep::{Jwt, JwtAlgorithm, JwtError, JwtKey, SystemClock, Clock};
/// #[derive(serde::Deserialize)]
/// struct Mine { sub: String, role: Option<String> }
///
/// fn role(jwt: &Jwt, token: &str) -> Result<Option<String>, JwtError> {
///     let claims = jwt.verify_access(token, SystemClock.now())?;
///     Ok(claims.decode::<Mine>().ok().and_then(|mine| mine.role))
/// }
/// # let _ = role;
/// ```
#[derive(Clone)]
pub struct JwtClaims {
    all: Value,
    expires_at: Timestamp,
}

impl JwtClaims {
    /// Parses a JSON object without duplicate names, and with `exp`.
    pub(super) fn parse(json: &[u8]) -> Result<Self, JwtError> {
        let all = object(json)?;
        let mut claims = Self { all: Value::Object(all), expires_at: Timestamp::from_millis(0) };
        claims.expires_at = claims.time("exp")?.ok_or(JwtError::Claim("exp"))?;
        Ok(claims)
    }

    /// The user: `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.all.get("sub")?.as_str()
    }

    /// The expiry: `exp`.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at.into()
    }

    /// All claims, as your own type.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.all)
    }

    pub(super) fn into_value(self) -> Value {
        self.all
    }

    pub(super) fn expires(&self) -> Timestamp {
        self.expires_at
    }

    /// A string claim.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, JwtError> {
        match self.all.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or(JwtError::Claim(name)),
        }
    }

    /// A time claim, in seconds with an optional fraction.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<Timestamp>, JwtError> {
        let Some(value) = self.all.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(seconds) if (0.0..=LATEST).contains(&seconds) => {
                Ok(Some(Timestamp::from_millis((seconds * 1000.0) as u64)))
            }
            _ => Err(JwtError::Claim(name)),
        }
    }

    /// Whether `name` is in the audience. `None`: there is no audience.
    pub(super) fn is_for(&self, name: Option<&str>) -> Result<Option<bool>, JwtError> {
        let is_it = |value: &Value| value.as_str().map(|audience| Some(audience) == name);
        match self.all.get("aud") {
            None => Ok(None),
            Some(Value::Array(all)) => {
                let all: Option<Vec<bool>> = all.iter().map(is_it).collect();
                let all = all.ok_or(JwtError::Claim("aud"))?;
                Ok(Some(all.contains(&true)))
            }
            Some(one) => is_it(one).map(Some).ok_or(JwtError::Claim("aud")),
        }
    }
}

impl fmt::Debug for JwtClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtClaims").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// A JSON object without duplicate names, which parsers could read differently.
pub(super) fn object(json: &[u8]) -> Result<Map<String, Value>, JwtError> {
    serde_json::from_slice::<Unique>(json).map(|unique| unique.0).map_err(|_| JwtError::Malformed)
}

struct Unique(Map<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unique, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = members.next_entry::<String, Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(A::Error::custom("duplicate name"));
                    }
                }
                Ok(Unique(map))
            }
        }

        deserializer.deserialize_map(Members)
    }
}
