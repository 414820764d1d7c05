//! The signature of a session cookie.

use std::{env, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::token::{InvalidToken, Token, same};

/// The fewest bytes of a key.
const MIN_KEY: usize = 32;
/// Bytes of a signature (192 bits), and its characters.
const SIGNATURE: usize = 24;
pub(super) const SIGNATURE_LEN: usize = SIGNATURE / 3 * 4;
/// Between the token and its signature.
const DOT: u8 = b'.';

const VARIABLE: &str = "SESSION_SECRET";
/// What makes of a secret the key of this one purpose.
const CONTEXT: &str = "tower-keep 2026-11-21 signature of a session cookie v1";

/// The keys that session cookies are signed with: see [`SessionCookie::signed`](crate::SessionCookie::signed).
///
/// The first signs; it and the older ones verify, so that a key can be replaced and nobody is logged out. With several instances that takes
/// three steps: all of them get `old,new`; when all have it, `new,old`; and when no session is left that the old key signed, `new`. That
/// is after the longest absolute timeout that any session was [given](crate::Session::set_lifetime).
///
/// Its `Debug` is redacted, and the keys are wiped from memory when dropped.
///
/// ```
/// use tower_keep::{InvalidSessionSecret, SessionSecret};
///
/// # let (new, old) = ("n".repeat(32), "o".repeat(32));
/// let secret = SessionSecret::new(&new)?.older(&old)?;
/// assert_eq!(format!("{secret:?}"), "SessionSecret(redacted)");
/// // The same, as `SESSION_SECRET` has it.
/// assert_eq!(format!("{new},{old}").parse::<SessionSecret>()?, secret);
/// # Ok::<(), InvalidSessionSecret>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSecret {
    newest: Key,
    older: Vec<Key>,
}

#[derive(Clone, PartialEq, Eq)]
struct Key(Zeroizing<[u8; blake3::KEY_LEN]>);

impl SessionSecret {
    /// One key: at least 32 bytes that nobody can guess, such as `openssl rand -base64 32` prints. All of them count, white space as well.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] when it is shorter.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, InvalidSessionSecret> {
        Ok(Self { newest: Key::new(key.as_ref())?, older: Vec::new() })
    }

    /// A key that verifies as well: one that signed before, or is to sign when all instances have it.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] when it has less than 32 bytes.
    pub fn older(mut self, key: impl AsRef<[u8]>) -> Result<Self, InvalidSessionSecret> {
        self.older.push(Key::new(key.as_ref())?);
        Ok(self)
    }

    /// What the variable `SESSION_SECRET` says: a key, and older ones after commas. None if it is not set, or empty.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] when a key has less than 32 bytes, or is no text.
    ///
    /// ```
    /// use tower_keep::{MemoryStore, SessionCookie, SessionLayer, SessionSecret};
    ///
    /// let cookie = SessionCookie::default().signed(SessionSecret::from_env()?);
    /// let layer = SessionLayer::new(MemoryStore::new()).cookie(cookie);
    /// # let _ = layer;
    /// # Ok::<(), tower_keep::InvalidSessionSecret>(())
    /// ```
    pub fn from_env() -> Result<Option<Self>, InvalidSessionSecret> {
        let wrong = InvalidSessionSecret { variable: Some(VARIABLE) };
        match env::var_os(VARIABLE).filter(|keys| !keys.is_empty()) {
            Some(keys) => keys.to_str().and_then(|keys| keys.parse().ok()).map(Some).ok_or(wrong),
            None => Ok(None),
        }
    }

    /// The value of a cookie of this name.
    pub(super) fn sign(&self, name: &str, token: &Token) -> String {
        format!("{}{}{}", token.expose(), char::from(DOT), self.newest.signature(name, token))
    }

    /// The token in the value of a cookie of this name, if one of the keys signed it.
    pub(super) fn verify(&self, name: &str, value: &[u8]) -> Result<Token, InvalidToken> {
        let (value, given) = value.split_at_checked(value.len().wrapping_sub(SIGNATURE_LEN)).ok_or(InvalidToken)?;
        let token = Token::parse(value.strip_suffix(&[DOT]).ok_or(InvalidToken)?)?;
        let mut keys = std::iter::once(&self.newest).chain(&self.older);
        let signed = keys.any(|key| same(key.signature(name, &token).as_bytes(), given));
        if signed { Ok(token) } else { Err(InvalidToken) }
    }
}

impl Key {
    fn new(secret: &[u8]) -> Result<Self, InvalidSessionSecret> {
        if secret.len() < MIN_KEY {
            return Err(InvalidSessionSecret { variable: None });
        }
        Ok(Self(Zeroizing::new(blake3::derive_key(CONTEXT, secret))))
    }

    /// A name has no `=` in it: so nobody can shift the border between it and the token.
    fn signature(&self, name: &str, token: &Token) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(name.as_bytes()).update(b"=").update(token.expose().as_bytes());
        URL_SAFE_NO_PAD.encode(&hasher.finalize().as_bytes()[..SIGNATURE])
    }
}

impl std::str::FromStr for SessionSecret {
    type Err = InvalidSessionSecret;

    /// The keys with commas between, the newest first; white space around a key is not part of it.
    fn from_str(keys: &str) -> Result<Self, InvalidSessionSecret> {
        let mut keys = keys.split(',').map(str::trim);
        let newest = Self::new(keys.next().unwrap_or_default())?;
        keys.try_fold(newest, Self::older)
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(redacted)")
    }
}

/// A key of a [`SessionSecret`] has less than 32 bytes, or its variable is no text. It does not show the key.
///
/// ```
/// use tower_keep::SessionSecret;
///
/// let error = SessionSecret::new("hunter2").unwrap_err();
/// assert_eq!(error.to_string(), "each key needs at least 32 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSessionSecret {
    variable: Option<&'static str>,
}

impl fmt::Display for InvalidSessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(variable) = self.variable {
            write!(f, "{variable}: ")?;
        }
        f.write_str("each key needs at least 32 bytes")?;
        // Where anything can stand in its place.
        f.write_str(if self.variable.is_some() { " of text" } else { "" })
    }
}

impl std::error::Error for InvalidSessionSecret {}
