//! What a session holds.

use serde::{Serialize, de::DeserializeOwned};

use super::{Session, SessionError, Typed};
use crate::{
    key::{AsKey, KeyOf},
    record::Json,
};

/// What it holds.
impl Session {
    /// The value of `key`, or `None`. A key is a text, or a typed [`Key`](crate::Key).
    ///
    /// # Errors
    /// [`SessionError::Decode`] when the value is not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
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
        value.map(|value| decode(key, &value)).transpose()
    }

    /// Whether there is a value of `key`.
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

    /// Sets the value of `key`. The first value makes a session where there was none. Setting the value it has already
    /// changes nothing, and costs no write.
    ///
    /// # Errors
    /// [`SessionError::Encode`] when JSON cannot hold the value; [`SessionError::NotLoaded`], [`SessionError::Unavailable`], [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # fn example(session: &Session) -> Result<(), SessionError> {
    /// session.insert("theme", "dark")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert<T: Serialize + ?Sized>(&self, key: impl KeyOf<T>, value: &T) -> Result<(), SessionError> {
        let key = key.name();
        let value = Json::encode(value).map_err(|source| SessionError::Encode { key: key.to_owned(), source })?;
        self.writable()?.set(key, Some(value));
        Ok(())
    }

    /// Removes the value of `key`, and says whether there was one. Removing what is not there costs no write.
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

    /// Removes the value of `key` and returns it: a message to be shown once.
    ///
    /// # Errors
    /// [`SessionError::Decode`] when the value is not a `T`: it is then kept; [`SessionError::NotLoaded`],
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
        let value = decode(key, &raw)?;
        let mut state = self.writable()?;
        // Another clone may have taken it while this one decoded: only one gets it.
        let mine = state.value(key).is_some_and(|current| current.is_same_as(&raw));
        Ok((mine && state.set(key, None)).then_some(value))
    }

    /// Removes all values. Who is logged in stays so.
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

    /// The session as one value of your own type: its fields are the values.
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

fn decode<T: DeserializeOwned>(key: &str, value: &Json) -> Result<T, SessionError> {
    value.decode().map_err(|_| SessionError::Decode { key: key.to_owned() })
}
