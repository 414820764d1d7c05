//! Signatures of session cookies.

use std::{env, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::token::{InvalidToken, Token, same};

/// The minimum length of a key in bytes.
const MIN_KEY: usize = 32;
/// The length of a signature in bytes (192 bits), and in characters.
const SIGNATURE: usize = 24;
pub(super) const SIGNATURE_LEN: usize = SIGNATURE / 3 * 4;
/// Separates the token and its signature.
const DOT: u8 = b'.';

const VARIABLE: &str = "SESSION_SECRET";
/// The context of the key derivation.
const CONTEXT: &str = "tower-keep 2026-11-21 signature of a session cookie v1";

/// The keys of [signed cookies](crate::SessionCookie::signed).
///
/// The first key signs. All keys verify, so a key can be replaced without logging users out. With several instances, that takes
/// three deployments: `old,new` everywhere; then `new,old`; and `new` when no session signed with the old key is left, after the
/// longest absolute timeout of a session.
///
/// `Debug` is redacted, and the keys are wiped from memory when dropped.
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
    /// One key of at least 32 random bytes, for example from `openssl rand -base64 32`. White space is part of the key.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] if the key is shorter.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, InvalidSessionSecret> {
        Ok(Self { newest: Key::new(key.as_ref())?, older: Vec::new() })
    }

    /// Adds a key that only verifies: an old one, or the next one before all instances have it.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] if the key has less than 32 bytes.
    pub fn older(mut self, key: impl AsRef<[u8]>) -> Result<Self, InvalidSessionSecret> {
        self.older.push(Key::new(key.as_ref())?);
        Ok(self)
    }

    /// Reads the environment variable `SESSION_SECRET`: the key, and older keys after commas. `None` if it is unset or empty.
    ///
    /// # Errors
    /// [`InvalidSessionSecret`] if a key has less than 32 bytes, or the variable is not UTF-8.
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

    /// The value of a cookie with this name.
    pub(super) fn sign(&self, name: &str, token: &Token) -> String {
        format!("{}{}{}", token.expose(), char::from(DOT), self.newest.signature(name, token))
    }

    /// The token in the value of a cookie with this name, if one of the keys has signed it.
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

    /// A cookie name has no `=`, so the border between name and token is unambiguous.
    fn signature(&self, name: &str, token: &Token) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(name.as_bytes()).update(b"=").update(token.expose().as_bytes());
        URL_SAFE_NO_PAD.encode(&hasher.finalize().as_bytes()[..SIGNATURE])
    }
}

impl std::str::FromStr for SessionSecret {
    type Err = InvalidSessionSecret;

    /// Parses keys separated by commas, the newest first. White space around a key is ignored.
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

/// A key of a [`SessionSecret`] has less than 32 bytes, or the variable is not UTF-8. The error does not contain the key.
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
        f.write_str("each key needs at least 32 bytes")
    }
}

impl std::error::Error for InvalidSessionSecret {}
