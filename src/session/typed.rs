//! A session as one value of the application's own type.

use std::{fmt, marker::PhantomData};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Session, SessionError};
use crate::record::Json;

/// The name that errors give to the whole.
const WHOLE: &str = "*";

/// A session whose values are the fields of a `T`: see [`Session::typed`].
///
/// Each field is a value under its own name, so requests that change different fields at the same time both win, and
/// [`Session::get`] sees what this sees. Values that are no field of `T` are left alone.
pub struct Typed<T> {
    session: Session,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Typed<T> {
    pub(super) fn new(session: Session) -> Self {
        Self { session, of: PhantomData }
    }

    /// What the session holds. A field that was never set needs a default (`#[serde(default)]`).
    ///
    /// # Errors
    /// [`SessionError::Decode`] when that is no `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// #[serde(default)]
    /// struct Visitor { visits: u32, theme: Option<String> }
    ///
    /// fn visits(session: &Session) -> Result<u32, SessionError> {
    ///     Ok(session.typed::<Visitor>().get()?.visits)
    /// }
    /// # let _ = visits;
    /// ```
    pub fn get(&self) -> Result<T, SessionError> {
        let values = self.session.readable()?.values();
        let undecodable = || SessionError::Decode { key: WHOLE.into() };
        Json::encode(&values).and_then(|whole| whole.decode()).map_err(|_| undecodable())
    }

    /// Changes what the session holds, field by field: only what `change` made different is written.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`SessionError::Encode`] when the changed value is no JSON object; [`SessionError::Ended`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionError};
    /// # #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// # #[serde(default)]
    /// # struct Visitor { visits: u32, theme: Option<String> }
    /// fn visit(session: &Session) -> Result<u32, SessionError> {
    ///     session.typed::<Visitor>().modify(|visitor| {
    ///         visitor.visits += 1;
    ///         visitor.visits
    ///     })
    /// }
    /// # let _ = visit;
    /// ```
    pub fn modify<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, SessionError> {
        let mut value = self.get()?;
        let before = fields(&value)?;
        let result = change(&mut value);
        let after = fields(&value)?;
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.session.remove(name)?;
        }
        for (name, value) in &after {
            if before.get(name) != Some(value) {
                self.session.insert(name, value)?;
            }
        }
        Ok(result)
    }
}

fn fields(value: &impl Serialize) -> Result<Map<String, Value>, SessionError> {
    let fields = serde_json::to_value(value).and_then(serde_json::from_value);
    fields.map_err(|source| SessionError::Encode { key: WHOLE.into(), source })
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed").field("session", &self.session).finish()
    }
}
