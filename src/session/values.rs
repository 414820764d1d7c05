//! The values of a session.

use std::any::type_name;

use serde::{Serialize, de::DeserializeOwned};

use super::{Inner, Session, SessionError, Typed};
use crate::{
    context::OnUndecodable,
    key::{AsKey, KeyFor, KeyOf},
    record::Json,
};

/// # Values
impl Session {
    /// The value of `key`, or `None`. A key is a string or a typed [`Key`](crate::Key). An inserted `None` is read as `None`.
    ///
    /// # Errors
    /// [`SessionError::Decode`] if the value is not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let visits: u32 = session.get("visits")?.unwrap_or(0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let key = key.name();
        // Decoded outside the lock: a `Deserialize` may do anything.
        let value = self.readable()?.value(key).cloned();
        value.map_or(Ok(None), |value| self.inner.decode(key, &value))
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if !session.contains("csrf")? { /* … */ }
    /// # Ok(())
    /// # }
    /// ```
    pub fn contains(&self, key: impl AsKey) -> Result<bool, SessionError> {
        Ok(self.readable()?.value(key.name()).is_some())
    }

    /// Sets the value of `key`. The first value creates the session. Setting the value that the key already has costs no write.
    ///
    /// # Errors
    /// [`SessionError::Encode`] if the value cannot be written as JSON; [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.insert("theme", "dark")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert<T: Serialize + ?Sized>(&self, key: impl KeyFor<T>, value: &T) -> Result<(), SessionError> {
        let key = key.name();
        let value = Json::encode(value).map_err(|source| SessionError::unencodable::<T>(key, source))?;
        self.writable()?.set(key, Some(value));
        Ok(())
    }

    /// Removes the value of `key`. Returns whether there was one. Removing a value that does not exist costs no write.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// let was_there = session.remove("cart")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove(&self, key: impl AsKey) -> Result<bool, SessionError> {
        Ok(self.writable()?.set(key.name(), None))
    }

    /// Removes the value of `key` and returns it, for example a message to show once.
    ///
    /// # Errors
    /// [`SessionError::Decode`] if the value is not a `T`; the value is kept then; [`SessionError::NotLoaded`],
    /// [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// if let Some(notice) = session.take::<String>("notice")? {
    ///     println!("{notice}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn take<T: DeserializeOwned>(&self, key: impl KeyOf<T>) -> Result<Option<T>, SessionError> {
        let key = key.name();
        let Some(raw) = self.writable()?.value(key).cloned() else { return Ok(None) };
        let value = self.inner.decode(key, &raw)?;
        if value.is_none() && !raw.is_null() {
            return Ok(None); // it cannot be decoded
        }
        let mut state = self.writable()?;
        // Another clone may have taken the value while this one decoded it.
        let unchanged = state.value(key).is_some_and(|current| current.is_same_as(&raw));
        Ok(if unchanged && state.set(key, None) { value } else { None })
    }

    /// Removes all values. The user stays logged in.
    ///
    /// # Errors
    /// [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.clear()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn clear(&self) -> Result<(), SessionError> {
        self.writable()?.clear();
        Ok(())
    }

    /// The session as a value of your own type: each field is a value of the session.
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// #[serde(default)]
    /// struct Visitor { visits: u32, theme: Option<String> }
    ///
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.typed::<Visitor>().modify(|visitor| visitor.visits += 1)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> Typed<T> {
        Typed::new(self.clone())
    }
}

impl Inner {
    fn decode<T: DeserializeOwned>(&self, key: &str, value: &Json) -> Result<Option<T>, SessionError> {
        match value.decode_optional() {
            Ok(value) => Ok(value),
            Err(_) if self.context.on_undecodable == OnUndecodable::Absent => {
                tracing::warn!(key, expected = type_name::<T>(), "session value cannot be decoded; treated as absent");
                Ok(None)
            }
            Err(_) => Err(SessionError::undecodable::<T>(key)),
        }
    }
}
