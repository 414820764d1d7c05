//! The values of a session.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _};
use serde_json::value::RawValue;

/// A value as JSON text, decoded when it is read.
#[derive(Clone)]
pub(crate) struct Json(Arc<str>);

impl Json {
    /// # Errors
    /// If the value is not JSON, or nested too deep to be read again.
    pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        let text = serde_json::to_vec(value)?;
        // A shorter text cannot be nested so deep.
        if text.len() > 2 * MAX_NESTING && nesting(&text) > MAX_NESTING {
            return Err(serde_json::Error::custom(format_args!("nested deeper than {MAX_NESTING} levels")));
        }
        Ok(Self(String::from_utf8_lossy(&text).into())) // JSON is UTF-8
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    /// The value. `None` for the `null` of a `None` that was stored.
    pub(crate) fn decode_optional<T: DeserializeOwned>(&self) -> Result<Option<T>, serde_json::Error> {
        match self.decode() {
            Err(_) if self.is_null() => Ok(None),
            value => value.map(Some),
        }
    }

    /// A value from a string that should be JSON.
    #[cfg(feature = "messagepack")]
    pub(super) fn of_text(text: Arc<str>) -> Option<Self> {
        serde_json::from_str::<&RawValue>(&text).is_ok().then_some(Self(text))
    }

    pub(crate) fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Equal as JSON: the order of keys does not matter.
impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0, DEEPEST)
    }
}

/// The nesting that `serde_json` refuses to read.
pub(super) const DEEPEST: usize = 128;

/// The maximum nesting of a value. All values together are nested one level deeper.
const MAX_NESTING: usize = DEEPEST - 2;

/// How deep a JSON text is nested.
fn nesting(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut is_string, mut is_escaped) = (false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_string,
            b'"' => is_string = !is_string,
            _ if is_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn same(one: &str, other: &str, depth: usize) -> bool {
    type Map<'a> = BTreeMap<String, &'a RawValue>;
    type List<'a> = Vec<&'a RawValue>;
    let both = |(one, other): (&&RawValue, &&RawValue)| same(one.get(), other.get(), depth - 1);

    if one == other {
        return true;
    }
    // A value without maps is equal only if its text is: numbers may exceed all Rust types.
    if one.len() != other.len() || !one.starts_with(['{', '[']) || depth == 0 {
        return false;
    }
    if let (Ok(one), Ok(other)) = (serde_json::from_str::<Map<'_>>(one), serde_json::from_str::<Map<'_>>(other)) {
        return one.keys().eq(other.keys()) && one.values().zip(other.values()).all(both);
    }
    if let (Ok(one), Ok(other)) = (serde_json::from_str::<List<'_>>(one), serde_json::from_str::<List<'_>>(other)) {
        return one.len() == other.len() && one.iter().zip(&other).all(both);
    }
    false
}

/// Without the content, which may be secret.
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize, value: &str) -> Json {
        Json(format!("{}{value}{}", "[".repeat(depth), "]".repeat(depth)).into())
    }

    #[test]
    fn values_are_compared_as_deep_as_they_can_be_read() {
        assert_eq!(nested(100, r#"{"a":1,"b":2}"#), nested(100, r#"{"b":2,"a":1}"#));
        assert_ne!(nested(100, "1"), nested(100, "2"));
        // The maximum nesting, whatever a client sends.
        assert_ne!(nested(30_000, "1"), nested(30_000, "2"));
        assert_eq!(nested(30_000, "1"), nested(30_000, "1"));
    }
}
