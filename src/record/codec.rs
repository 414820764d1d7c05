//! Encodings of records. Decoding accepts any bytes without panicking.
//!
//! ```text
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000]   the head, in every format
//! ,"user":"ana","data":{"visits":3}}                                          the body as JSON
//! }….user.ana.data..visits.                                                   the body in MessagePack
//! ```

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Data, Lease, Record, Rotation, Version};
use crate::{
    metadata::Metadata,
    time::{Timestamp, millis},
    token::{Generation, SessionId},
};

/// The encoding of new records. All encodings can be read.
///
/// ```
/// use tower_keep::store::Codec;
///
/// assert_eq!(Codec::default(), Codec::Json);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// JSON in one line, which operators can read with `redis-cli GET`.
    #[default]
    Json,
    /// A short head in JSON (version and times), and the rest in MessagePack: smaller if the values are numbers, lists and maps.
    #[cfg(feature = "messagepack")]
    MessagePack,
}

/// The format numbers. An older version of the crate must not read a record in part and drop the rest: it refuses unknown formats, and
/// unknown fields of [`Body`].
mod format {
    /// JSON without rotation, predecessor and metadata.
    pub(super) const FIRST: u32 = 1;
    pub(super) const JSON: u32 = 2;
    #[cfg(feature = "messagepack")]
    pub(super) const MESSAGEPACK: u32 = 3;
}

/// The length of the common beginning: `{"v":2,"n":"AAAAAxbk0fTjK8pw"`.
#[cfg(feature = "redis")]
pub(crate) const HEAD_LEN: usize = super::version::PLACE.end + 1;

/// The part that scripts of stores read. The order of the fields is part of the format.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    v: u32,
    n: String,
    t: [u64; 4],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<D> {
    /// Current, previous (empty: the first), at, grace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    g: Option<(String, String, u64, u64)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<SessionId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    persistent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    /// By name: holder, until.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    leases: BTreeMap<Arc<str>, (u64, u64)>,
    #[serde(default, skip_serializing_if = "is_empty")]
    meta: Arc<Metadata>,
    data: D,
}

fn is_empty(metadata: &Arc<Metadata>) -> bool {
    metadata.is_empty()
}

impl Record {
    /// Encodes the record.
    ///
    /// ```
    /// # use tower_keep::store::{Codec, Record};
    /// let stored = br#"{"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,0,1800000,86400000],"data":{}}"#;
    /// assert_eq!(Record::decode(stored)?.encode_as(Codec::Json), stored);
    /// # Ok::<(), tower_keep::store::InvalidRecord>(())
    /// ```
    pub fn encode_as(&self, codec: Codec) -> Vec<u8> {
        let head = |v| {
            let times = [
                self.created_at.as_millis(),
                millis(self.written_at.since(self.created_at)),
                millis(self.idle_timeout),
                millis(self.absolute_timeout),
            ];
            // Encoding strings and numbers cannot fail.
            serde_json::to_vec(&Head { v, n: self.version.to_string(), t: times }).unwrap_or_default()
        };
        match codec {
            Codec::Json => {
                let mut stored = head(format::JSON);
                stored.pop();
                let body = stored.len();
                stored.extend(serde_json::to_vec(&self.body(Cow::Borrowed(&self.data))).unwrap_or_default());
                stored[body] = b',';
                stored
            }
            #[cfg(feature = "messagepack")]
            Codec::MessagePack => {
                let mut stored = head(format::MESSAGEPACK);
                let body = self.body(super::packed::Packed::from(&self.data));
                stored.extend(rmp_serde::to_vec_named(&body).unwrap_or_default());
                stored
            }
        }
    }

    fn body<D>(&self, data: D) -> Body<D> {
        let text = |generation: Option<Generation>| generation.map(Generation::text).unwrap_or_default();
        Body {
            g: self.rotation.map(|rotation| {
                let grace = millis(rotation.grace);
                (rotation.current.text(), text(rotation.previous), rotation.at.as_millis(), grace)
            }),
            unused: self.is_token_unused(),
            replaces: self.replaces,
            persistent: self.persistent,
            user: self.user.clone(),
            leases: self
                .leases
                .iter()
                .map(|(name, lease)| (name.clone(), (lease.holder, lease.until.as_millis())))
                .collect(),
            meta: self.metadata.clone(),
            data,
        }
    }

    /// Decodes a record in any format.
    ///
    /// # Errors
    /// [`InvalidRecord`] for any other bytes. Never panics.
    ///
    /// ```
    /// # use tower_keep::store::Record;
    /// assert!(Record::decode(b"PHP serialized: a:0:{}").is_err());
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let end = bytes.iter().position(|byte| *byte == b']').ok_or(InvalidRecord)? + 1;
        let (head, rest) = bytes.split_at(end);
        let head: Head = serde_json::from_slice(&[head, b"}"].concat()).map_err(|_| InvalidRecord)?;
        // A record must have its version at the fixed position.
        let version = Version::of(bytes).filter(|version| version.to_string() == head.n).ok_or(InvalidRecord)?;
        match (head.v, rest.split_first()) {
            (format::FIRST | format::JSON, Some((b',', fields))) if fields.ends_with(b"}") => {
                let body = [b"{", fields].concat();
                let body: Body<Data> = serde_json::from_slice(&body).map_err(|_| InvalidRecord)?;
                let older = head.v == format::FIRST;
                let has_later_fields =
                    body.g.is_some() || body.replaces.is_some() || !body.meta.is_empty() || !body.leases.is_empty();
                if older && has_later_fields {
                    return Err(InvalidRecord);
                }
                Self::assembled(version, head.t, body)
            }
            #[cfg(feature = "messagepack")]
            (format::MESSAGEPACK, Some((b'}', packed))) => {
                let body: Body<super::packed::Packed> = super::packed::read(packed).ok_or(InvalidRecord)?;
                let Body { g, unused, replaces, persistent, user, leases, meta, data } = body;
                let data = data.unpacked().ok_or(InvalidRecord)?;
                Self::assembled(version, head.t, Body { g, unused, replaces, persistent, user, leases, meta, data })
            }
            _ => Err(InvalidRecord),
        }
    }

    fn assembled(version: Version, times: [u64; 4], body: Body<Data>) -> Result<Self, InvalidRecord> {
        let [created, written, idle, absolute] = times;
        if idle == 0 || absolute == 0 || idle > absolute {
            return Err(InvalidRecord);
        }
        if body.unused && body.g.is_none() {
            return Err(InvalidRecord);
        }
        let rotation = body.g.map(|(current, previous, at, grace)| {
            let previous = match previous.as_str() {
                "" => None,
                text => Some(Generation::from_text(text).ok_or(InvalidRecord)?),
            };
            Ok(Rotation {
                current: Generation::from_text(&current).ok_or(InvalidRecord)?,
                previous,
                at: Timestamp::from_millis(at),
                grace: Duration::from_millis(grace),
                unused: body.unused,
            })
        });
        let created_at = Timestamp::from_millis(created);
        Ok(Self {
            version,
            created_at,
            written_at: created_at.plus(Duration::from_millis(written)),
            idle_timeout: Duration::from_millis(idle),
            absolute_timeout: Duration::from_millis(absolute),
            rotation: rotation.transpose()?,
            replaces: body.replaces,
            persistent: body.persistent,
            user: body.user,
            leases: body
                .leases
                .into_iter()
                .map(|(name, (holder, until))| (name, Lease { holder, until: Timestamp::from_millis(until) }))
                .collect(),
            metadata: body.meta,
            data: body.data,
        })
    }
}

/// The bytes are not a record in a known format.
///
/// The error does not contain the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("not a session record of a known format")]
pub struct InvalidRecord;
