//! Tokens and session ids.
//!
//! ```text
//! token   AAAAAAAAAAAA SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSS                    56 characters
//!         slot tag (12) secret (44 = 264 random bits)
//! rotated AAAAAAAAAAAA SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSS PPPPPPPPPPPPPPPP   72 characters
//!                                                                   proof (16 = 96 bits)
//! id      AAAAAAAAAAAA HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH                                44 characters
//!         slot tag (12) hash of slot tag and secret (32 = 192 bits)
//! ```
//!
//! A session keeps its secret, and with it its id. A rotation changes the proof: a hash of the secret and of a random number that
//! only the record has. So every token of a session leads to the same record, and the record tells which token is current. A
//! previous token is recognized however old it is, and nobody can compute the next token from it.
//!
//! Every part has a multiple of three bytes, so base64url needs no padding, and each value has exactly one encoding. Tokens and ids
//! have different lengths, so an id is never parsed as a token.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The length of a token, and of a rotated token.
pub(crate) const TOKEN_LEN: usize = 56;
pub(crate) const ROTATED_LEN: usize = TOKEN_LEN + PROOF_LEN;
const PROOF_LEN: usize = 16;
const TAG_LEN: usize = 12;
const HASH_LEN: usize = 24;
const ID_LEN: usize = TAG_LEN + HASH_LEN / 3 * 4;

/// The keys of the hashes. They separate ids, tags, and other uses of BLAKE3.
const ID_KEY: &[u8; 32] = b"tower-keep v1, session id, token";
const TAG_KEY: &[u8; 32] = b"tower-keep v1 slot tag of a user";
const PROOF_KEY: &[u8; 32] = b"tower-keep v1 proof of a rotated";
#[cfg(feature = "jwt")]
const NAME_KEY: &[u8; 32] = b"tower-keep v1 name of generation";

fn is_base64url(bytes: &[u8]) -> bool {
    // Without early exit or branches, so the compiler can vectorize it.
    bytes.iter().fold(true, |ok, &byte| {
        let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        let digit = byte.wrapping_sub(b'0') < 10;
        ok & (letter | digit | (byte == b'-') | (byte == b'_'))
    })
}

/// The secret that a client holds: 264 random bits of the operating system, in base64url.
///
/// It gives access to the session. It is never stored or logged: `Debug` is redacted, there is no `Display`, and the memory is
/// wiped when it is dropped. Stores, logs and operators see its [`SessionId`].
///
/// ```
/// use tower_keep::Token;
///
/// // Strict: 56 or 72 characters of the base64url alphabet, nothing else.
/// assert!(Token::parse("short").is_err());
/// let token = Token::parse(&"a".repeat(56))?;
/// assert_eq!(format!("{token:?}"), "Token(redacted)");
/// assert_eq!(token.expose().len(), 56);
/// # Ok::<(), tower_keep::InvalidToken>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: [u8; ROTATED_LEN],
    rotated: bool,
}

impl Token {
    /// Parses a token.
    ///
    /// # Errors
    /// [`InvalidToken`] unless the input is exactly 56 characters of the base64url alphabet, or 72 for a rotated token. The store
    /// may not know a valid token.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, InvalidToken> {
        let given = text.as_ref();
        let rotated = match given.len() {
            TOKEN_LEN => false,
            ROTATED_LEN => true,
            _ => return Err(InvalidToken),
        };
        if !is_base64url(given) {
            return Err(InvalidToken);
        }
        let mut token = Self { text: [0; ROTATED_LEN], rotated };
        token.text[..given.len()].copy_from_slice(given);
        Ok(token)
    }

    /// The secret itself. Give it to its client only.
    pub fn expose(&self) -> &str {
        let len = if self.rotated { ROTATED_LEN } else { TOKEN_LEN };
        std::str::from_utf8(&self.text[..len]).unwrap_or_default()
    }

    /// The id of the session of this token.
    ///
    /// ```
    /// use tower_keep::Token;
    ///
    /// let token = Token::parse(&"a".repeat(56))?;
    /// let id = token.id().to_string();
    /// assert_eq!(id.len(), 44);
    /// assert!(Token::parse(&id).is_err(), "an id is not a credential");
    /// # Ok::<(), tower_keep::InvalidToken>(())
    /// ```
    pub fn id(&self) -> SessionId {
        let digest = blake3::keyed_hash(ID_KEY, &self.text[..TOKEN_LEN]);
        let mut id = SessionId { tag: Tag([0; TAG_LEN]), hash: [0; HASH_LEN] };
        id.tag.0.copy_from_slice(&self.text[..TAG_LEN]);
        id.hash.copy_from_slice(&digest.as_bytes()[..HASH_LEN]);
        id
    }

    /// Creates a token. `None`: with a random slot tag.
    pub(crate) fn mint(tag: Option<Tag>) -> Result<Self, getrandom::Error> {
        let mut random = [0; TOKEN_LEN / 4 * 3];
        getrandom::fill(&mut random)?;
        let mut token = Self { text: [0; ROTATED_LEN], rotated: false };
        encode(&random, &mut token.text[..TOKEN_LEN]);
        random.zeroize();
        if let Some(tag) = tag {
            token.text[..TAG_LEN].copy_from_slice(&tag.0);
        }
        Ok(token)
    }

    /// The token of the same session for another generation. `None` is the first.
    pub(crate) fn of_generation(&self, generation: Option<Generation>) -> Self {
        let mut token = self.clone();
        token.rotated = generation.is_some();
        token.text[TOKEN_LEN..].fill(0);
        if let Some(Generation(nonce)) = generation {
            let mut hasher = blake3::Hasher::new_keyed(PROOF_KEY);
            hasher.update(&self.text[..TOKEN_LEN]).update(&nonce);
            encode(&hasher.finalize().as_bytes()[..PROOF_LEN / 4 * 3], &mut token.text[TOKEN_LEN..]);
        }
        token
    }

    /// Whether this is the token of the generation. Takes constant time.
    pub(crate) fn is_of(&self, generation: Option<Generation>) -> bool {
        match generation {
            None => !self.rotated,
            Some(_) => {
                let right = self.of_generation(generation);
                self.rotated && same(&self.text, &right.text)
            }
        }
    }
}

/// Compares in constant time.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (one, other)| sum | (one ^ other)) == 0
}

/// The random number that distinguishes the tokens of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation([u8; PROOF_LEN / 4 * 3]);

impl Generation {
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut nonce = [0; PROOF_LEN / 4 * 3];
        getrandom::fill(&mut nonce)?;
        Ok(Self(nonce))
    }

    /// Identifies the generation in a JWT. It is public: the random number, and so a token, cannot be computed from it.
    #[cfg(feature = "jwt")]
    pub(crate) fn name(generation: Option<Self>, session: &SessionId) -> String {
        let mut hasher = blake3::Hasher::new_keyed(NAME_KEY);
        hasher.update(&session.text());
        if let Some(Self(nonce)) = generation {
            hasher.update(&nonce);
        }
        URL_SAFE_NO_PAD.encode(&hasher.finalize().as_bytes()[..PROOF_LEN / 4 * 3])
    }

    pub(crate) fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut nonce = [0; PROOF_LEN / 4 * 3];
        (text.len() == PROOF_LEN && URL_SAFE_NO_PAD.decode_slice(text, &mut nonce).is_ok()).then_some(Self(nonce))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

impl ZeroizeOnDrop for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// The input is not a token: wrong length, or a character outside the base64url alphabet.
///
/// The error does not contain the input, so that it cannot get into a log.
///
/// ```
/// use tower_keep::Token;
///
/// let error = Token::parse("' OR 1=1 --").unwrap_err();
/// assert_eq!(error.to_string(), "not a session token");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("not a session token")]
pub struct InvalidToken;

/// The first 12 characters of a token and its id, which group sessions.
///
/// Random for an anonymous session, derived from the user after a login. A distributed store keeps sessions with the same tag in
/// one place: it is the hash tag of Redis Cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tag([u8; TAG_LEN]);

impl Tag {
    pub(crate) fn of_user(user: &str) -> Self {
        let digest = blake3::keyed_hash(TAG_KEY, user.as_bytes());
        let mut tag = Self([0; TAG_LEN]);
        encode(&digest.as_bytes()[..TAG_LEN / 4 * 3], &mut tag.0);
        tag
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// For choosing a shard.
    pub(crate) fn shard_hash(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()))
    }
}

/// The public identifier of a session, for stores, logs, operators and users.
///
/// It is a hash of the [`Token`], so it grants no access. Its text has 44 base64url characters.
///
/// ```
/// use tower_keep::{SessionId, Token};
///
/// let id = Token::parse(&"a".repeat(56))?.id();
/// let same: SessionId = id.to_string().parse().unwrap();
/// assert_eq!(id, same);
/// # Ok::<(), tower_keep::InvalidToken>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    tag: Tag,
    hash: [u8; HASH_LEN],
}

impl SessionId {
    /// The slot tag (12 characters): equal for all sessions of a user, random before a login.
    ///
    /// A distributed store keeps sessions with the same tag in one place.
    pub fn slot_tag(&self) -> &str {
        self.tag.as_str()
    }

    /// The slot tag of the sessions of `user`.
    ///
    /// ```
    /// use tower_keep::SessionId;
    ///
    /// assert_eq!(SessionId::slot_tag_of("ana").len(), 12);
    /// ```
    pub fn slot_tag_of(user: &str) -> String {
        Tag::of_user(user).as_str().to_owned()
    }

    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    /// Eight well-distributed bytes, for choosing a shard or a bucket.
    pub(crate) fn shard_hash(&self) -> u64 {
        u64::from_le_bytes([
            self.hash[0],
            self.hash[1],
            self.hash[2],
            self.hash[3],
            self.hash[4],
            self.hash[5],
            self.hash[6],
            self.hash[7],
        ])
    }

    fn text(&self) -> [u8; ID_LEN] {
        let mut text = [0; ID_LEN];
        text[..TAG_LEN].copy_from_slice(&self.tag.0);
        encode(&self.hash, &mut text[TAG_LEN..]);
        text
    }
}

impl std::hash::Hash for SessionId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.shard_hash());
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        let text: &[u8; ID_LEN] = text.as_bytes().try_into().map_err(|_| InvalidSessionId)?;
        if !is_base64url(text) {
            return Err(InvalidSessionId);
        }
        let mut id = Self { tag: Tag([0; TAG_LEN]), hash: [0; HASH_LEN] };
        id.tag.0.copy_from_slice(&text[..TAG_LEN]);
        match URL_SAFE_NO_PAD.decode_slice(&text[TAG_LEN..], &mut id.hash) {
            Ok(HASH_LEN) => Ok(id),
            _ => Err(InvalidSessionId),
        }
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The input is not a session id: wrong length, or a character outside the base64url alphabet.
///
/// ```
/// use tower_keep::SessionId;
///
/// assert_eq!("sess:*".parse::<SessionId>().unwrap_err().to_string(), "not a session id");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("not a session id")]
pub struct InvalidSessionId;

/// Writes `bytes` as base64url to `text`, which must have exactly four characters for every three bytes.
fn encode(bytes: &[u8], text: &mut [u8]) {
    debug_assert_eq!(bytes.len() / 3 * 4, text.len());
    let written = URL_SAFE_NO_PAD.encode_slice(bytes, text);
    debug_assert!(written.is_ok(), "every length here is a constant multiple of three");
}
