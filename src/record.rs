//! What a store keeps for a session, and its stored form.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _};
use serde_json::value::RawValue;

use crate::{
    lifetime::Lifetime,
    time::{Timestamp, millis},
};

/// The values of a session, shared by all copies of the record.
pub(crate) type Data = BTreeMap<Arc<str>, Json>;

/// A value as JSON text, decoded only when read.
#[derive(Clone, Debug)]
pub(crate) struct Json(Arc<str>);

impl Json {
    pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        let text = serde_json::to_vec(value)?;
        Ok(Self(String::from_utf8_lossy(&text).into())) // JSON is UTF-8
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Equal as JSON: a map that was written in another order is the same map.
impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

fn same(one: &str, other: &str) -> bool {
    type Map<'a> = BTreeMap<String, &'a RawValue>;
    type List<'a> = Vec<&'a RawValue>;
    let both = |(one, other): (&&RawValue, &&RawValue)| same(one.get(), other.get());

    if one == other {
        return true;
    }
    // What is no map, and holds none, is the same only if its text is: a number may be more than any type of ours holds.
    if one.len() != other.len() || !one.starts_with(['{', '[']) {
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

/// What a store keeps for a session.
///
/// To a store it is opaque: keep it, or its [encoding](Self::encode), and compare its [version](Self::version).
///
/// # Stored form
/// JSON in one line, so that an operator can read it where it lies:
/// ```json
/// {"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"user":"ana","data":{"visits":3}}
/// ```
/// `v` format · `n` version (every write has a new one) · `t` milliseconds: created at (since the Unix epoch), last written
/// (since created), idle timeout, absolute timeout (since created) · `persistent` present and `true` when the cookie
/// outlives the browser · `user` present when logged in · `data` the values.
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) version: Version,
    pub(crate) created_at: Timestamp,
    /// When the record was last written. A touch does not write it: see [`Stored::ttl`](crate::store::Stored).
    pub(crate) written_at: Timestamp,
    pub(crate) idle_timeout: Duration,
    pub(crate) absolute_timeout: Duration,
    pub(crate) persistent: bool,
    pub(crate) user: Option<Arc<str>>,
    pub(crate) data: Data,
}

impl Record {
    /// A record created at `now`, without user or data.
    pub(crate) fn new(now: Timestamp, lifetime: &Lifetime, version: Version) -> Self {
        Self {
            version,
            created_at: now,
            written_at: now,
            idle_timeout: lifetime.idle_timeout(),
            absolute_timeout: lifetime.absolute_timeout(),
            persistent: lifetime.is_persistent(),
            user: None,
            data: Data::new(),
        }
    }

    /// The version: no two writes of a session share one.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The user the session is bound to, if anybody is logged in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// When the session was created, or last logged in to.
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// When the absolute timeout ends the session.
    pub(crate) fn absolute_deadline(&self) -> Timestamp {
        self.created_at.plus(self.absolute_timeout)
    }

    /// The time to live at `now` if somebody uses the session at `now`; zero when the absolute timeout has ended it.
    pub(crate) fn full_ttl(&self, now: Timestamp) -> Duration {
        self.idle_timeout.min(self.absolute_deadline().since(now))
    }

    /// The time to live at `now`, given what the store says is left; zero when the session has ended.
    ///
    /// Without an answer of the store the last write counts as the last use, so a session whose TTL was taken away
    /// (`PERSIST`) still ends.
    pub(crate) fn ttl_left(&self, now: Timestamp, stored: Option<Duration>) -> Duration {
        let idle_left = stored.unwrap_or_else(|| self.written_at.plus(self.idle_timeout).since(now));
        self.full_ttl(now).min(idle_left)
    }

    /// What it weighs: the length of user, keys and values in bytes.
    pub(crate) fn weight(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.len());
        user + self.data.iter().map(|(key, value)| key.len() + value.text().len()).sum::<usize>()
    }

    /// The stored form; it starts with [`Version::stamp`].
    ///
    /// ```
    /// # use tower_keep::store::Record;
    /// let stored = r#"{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,0,1800000,86400000],"user":"ana","data":{"visits":3}}"#;
    /// let record = Record::decode(stored.as_bytes())?;
    /// assert_eq!(record.user(), Some("ana"));
    /// assert_eq!(record.encode(), stored.as_bytes());
    /// assert!(stored.as_bytes().starts_with(record.version().stamp().as_bytes()));
    /// # Ok::<(), tower_keep::store::InvalidRecord>(())
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            v: FORMAT,
            n: self.version.text(),
            t: [
                self.created_at.as_millis(),
                millis(self.written_at.since(self.created_at)),
                millis(self.idle_timeout),
                millis(self.absolute_timeout),
            ],
            persistent: self.persistent,
            user: self.user.clone(),
            data: Cow::Borrowed(&self.data),
        };
        // Strings, numbers and JSON into memory: nothing here can fail.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`InvalidRecord`] for anything that is not of this form, from the stamp of its version to the last brace. Never panics,
    /// whatever the bytes.
    ///
    /// ```
    /// # use tower_keep::store::Record;
    /// assert!(Record::decode(b"PHP serialized: a:0:{}").is_err());
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let stored: Stored<'_> = serde_json::from_slice(bytes).map_err(|_| InvalidRecord)?;
        let version = Version::from_text(&stored.n).ok_or(InvalidRecord)?;
        let [created, written, idle, absolute] = stored.t;
        // What does not start with its stamp could be read, but never replaced.
        let stamped = bytes.starts_with(version.stamp().as_bytes()) && bytes.ends_with(b"}");
        if !stamped || stored.v != FORMAT || idle == 0 || absolute == 0 || idle > absolute {
            return Err(InvalidRecord);
        }
        let created_at = Timestamp::from_millis(created);
        Ok(Self {
            version,
            created_at,
            written_at: created_at.plus(Duration::from_millis(written)),
            idle_timeout: Duration::from_millis(idle),
            absolute_timeout: Duration::from_millis(absolute),
            persistent: stored.persistent,
            user: stored.user,
            data: stored.data.into_owned(),
        })
    }
}

/// The number of the stored form. It changes with any change to [`Stored`]: what an older version could not read whole
/// it must not read at all, or it would drop the rest when it writes.
const FORMAT: u32 = 1;

/// The stored form. The order of the first two fields is part of it: they are the [`Version::stamp`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    v: u32,
    n: String,
    t: [u64; 4],
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    persistent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    data: Cow<'a, Data>,
}

/// The version of a record: a counter, so that it can be told which of two is newer, and a random number, so that no two
/// writers ever produce the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    counter: u32,
    nonce: u64,
}

impl Version {
    /// The version of a first write.
    pub(crate) fn first() -> Result<Self, getrandom::Error> {
        Ok(Self { counter: 1, nonce: getrandom::u64()? })
    }

    /// The version of the write after this one.
    pub(crate) fn next(self) -> Result<Self, getrandom::Error> {
        Ok(Self { counter: self.counter.wrapping_add(1), nonce: getrandom::u64()? })
    }

    /// What every [encoding](Record::encode) of this version starts with, and of no other: a store that keeps encodings
    /// compares versions by comparing beginnings, without decoding.
    pub fn stamp(&self) -> String {
        format!(r#"{{"v":{FORMAT},"n":"{}""#, self.text())
    }

    fn text(self) -> String {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.counter.to_be_bytes());
        bytes[4..].copy_from_slice(&self.nonce.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut bytes = [0; 12];
        if URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()? != bytes.len() {
            return None;
        }
        let [a, b, c, d, nonce @ ..] = bytes;
        Some(Self { counter: u32::from_be_bytes([a, b, c, d]), nonce: u64::from_be_bytes(nonce) })
    }
}

/// The bytes are not a record of a format this version of the crate knows.
///
/// It carries none of the bytes: they are somebody's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidRecord;

impl fmt::Display for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a session record of a known format")
    }
}

impl std::error::Error for InvalidRecord {}
