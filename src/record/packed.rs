//! Values in MessagePack.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Data, Json};

/// Values in MessagePack. A value that MessagePack cannot represent (a number beyond 64 bits) stays a JSON string.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packed {
    values: BTreeMap<Arc<str>, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    texts: BTreeMap<Arc<str>, Arc<str>>,
}

impl From<&Data> for Packed {
    fn from(data: &Data) -> Self {
        let mut packed = Self { values: BTreeMap::new(), texts: BTreeMap::new() };
        for (key, json) in data {
            let value: Option<Value> = json.decode().ok();
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

/// The maximum nesting, as in JSON.
const MAX_DEPTH: usize = 128;

/// Decodes all of `bytes`.
pub(super) fn read<T: DeserializeOwned>(mut bytes: &[u8]) -> Option<T> {
    let mut deserializer = rmp_serde::Deserializer::new(&mut bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer).ok()?;
    bytes.is_empty().then_some(value)
}
