//! Versions of records.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// The version of a record: a counter, which tells which of two is newer, and a random number, so that no two writers create the
/// same version. Its text has 16 base64url characters.
///
/// ```
/// use tower_keep::store::{Record, Version};
///
/// let stored = br#"{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,0,1800000,86400000],"data":{}}"#;
/// let version = Record::decode(stored)?.version();
/// assert_eq!(version.to_string(), "AAAAAxbk0fTjK8pw");
/// // The version of an encoding can be read without decoding it.
/// assert_eq!(Version::of(stored), Some(version));
/// # Ok::<(), tower_keep::store::InvalidRecord>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    counter: u32,
    nonce: u64,
}

/// The length of a version in characters.
const LEN: usize = 16;

/// The bit of the counter that marks a copy. No session is written that often.
const COPY: u32 = 1 << 31;

/// The position of the version in every encoding.
pub(super) const PLACE: std::ops::Range<usize> = 12..12 + LEN;

impl Version {
    /// The version of an [encoding](super::Record::encode), which is always at the same position. `None` if this is not an
    /// encoding.
    pub fn of(encoding: &[u8]) -> Option<Self> {
        Self::from_text(encoding.get(PLACE)?)
    }

    /// The version of the first write.
    pub(crate) fn first() -> Result<Self, getrandom::Error> {
        Ok(Self { counter: 1, nonce: getrandom::u64()? })
    }

    /// The version of the next write.
    pub(crate) fn next(self) -> Result<Self, getrandom::Error> {
        Ok(Self { counter: self.counter.wrapping_add(1) & !COPY, nonce: getrandom::u64()? })
    }

    /// Whether this is the version of a copy, while the original is in another store.
    pub(crate) fn is_copy(self) -> bool {
        self.counter & COPY != 0
    }

    /// The version of the copy of a record with this version.
    pub(crate) fn of_copy(self) -> Self {
        Self { counter: self.counter | COPY, ..self }
    }

    /// The version of the original.
    pub(crate) fn of_original(self) -> Self {
        Self { counter: self.counter & !COPY, ..self }
    }

    /// Whether this version of the same session is newer than `other`.
    pub(crate) fn is_after(self, other: Self) -> bool {
        self.of_original().counter > other.of_original().counter
    }

    pub(super) fn text(self) -> [u8; LEN] {
        let mut bytes = [0; LEN / 4 * 3];
        bytes[..4].copy_from_slice(&self.counter.to_be_bytes());
        bytes[4..].copy_from_slice(&self.nonce.to_be_bytes());
        let mut text = [0; LEN];
        let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        debug_assert_eq!(written, Ok(LEN));
        text
    }

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; LEN / 4 * 3];
        if URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()? != bytes.len() {
            return None;
        }
        let [a, b, c, d, nonce @ ..] = bytes;
        Some(Self { counter: u32::from_be_bytes([a, b, c, d]), nonce: u64::from_be_bytes(nonce) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}
