//! Values in MessagePack.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Data, Json};

/// Values in MessagePack. A value that MessagePack cannot represent (a number beyond 64 bits) stays a JSON string.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packed {
    values: BTreeMap<Arc<str>, PackedValue>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    texts: BTreeMap<Arc<str>, Arc<str>>,
}

/// A value. Unlike a `serde_json::Value`, it is encoded alike whatever features of `serde_json` the program enables.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PackedValue {
    Null(()),
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

impl PackedValue {
    /// `None` for a number beyond 64 bits.
    fn of(value: Value) -> Option<Self> {
        Some(match value {
            Value::Null => Self::Null(()),
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Self::Unsigned(number),
                (None, Some(number)) => Self::Signed(number),
                (None, None) => Self::Float(number.as_f64()?),
            },
            Value::String(text) => Self::Text(text),
            Value::Array(values) => Self::List(values.into_iter().map(Self::of).collect::<Option<_>>()?),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| Some((name, Self::of(value)?)));
                Self::Map(fields.collect::<Option<_>>()?)
            }
        })
    }
}

impl From<&Data> for Packed {
    fn from(data: &Data) -> Self {
        let mut packed = Self { values: BTreeMap::new(), texts: BTreeMap::new() };
        for (key, json) in data {
            let value = json.decode().ok().and_then(PackedValue::of);
            match value.filter(|value| Json::encode(value).is_ok_and(|same| same == *json)) {
                Some(value) => drop(packed.values.insert(key.clone(), value)),
                None => drop(packed.texts.insert(key.clone(), json.text().into())),
            }
        }
        packed
    }
}

impl Packed {
    pub(super) fn unpacked(self) -> Option<Data> {
        let values = self.values.into_iter().map(|(key, value)| Some((key, Json::encode(&value).ok()?)));
        let texts = self.texts.into_iter().map(|(key, text)| Some((key, Json::of_text(text)?)));
        values.chain(texts).collect()
    }
}

/// The maximum nesting: that of a JSON value, in the three maps around it.
const MAX_DEPTH: usize = super::value::DEEPEST + 3;

/// Decodes all of `bytes`.
pub(super) fn read<T: DeserializeOwned>(mut bytes: &[u8]) -> Option<T> {
    let mut deserializer = rmp_serde::Deserializer::new(&mut bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer).ok()?;
    bytes.is_empty().then_some(value)
}
