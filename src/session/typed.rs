//! A session as one value of the application's own type.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Session, SessionError};
use crate::record::Json;

/// The key that errors name for the whole value.
const WHOLE: &str = "*";

/// A session whose values are the fields of a `T`: see [`Session::typed`].
///
/// Each field is a value under its own name: concurrent changes to different fields are both kept, and [`Session::get`] returns the same
/// values. Values that are not a field of `T` do not change.
pub struct Typed<T> {
    session: Session,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Typed<T> {
    pub(super) fn new(session: Session) -> Self {
        Self { session, of: PhantomData }
    }

    /// The current value. A field that was never set needs a default (`#[serde(default)]`).
    ///
    /// # Errors
    /// [`SessionError::Decode`] if the values are not a `T`; [`SessionError::NotLoaded`], [`SessionError::Unavailable`].
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
        let whole = serde_json::to_string(&values);
        whole.and_then(|whole| serde_json::from_str(&whole)).map_err(|_| SessionError::undecodable::<T>(WHOLE))
    }

    /// Changes the value. Only the fields that `change` modifies are written.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`SessionError::Encode`] if the changed value is not a JSON object; [`SessionError::Ended`].
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
        let mut state = self.session.writable()?;
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            state.set(name, None);
        }
        for (name, value) in after {
            if before.get(&name) != Some(&value) {
                state.set(&name, Some(value));
            }
        }
        Ok(result)
    }
}

/// The fields as they are stored. Numbers of any size stay exact.
fn fields<T: Serialize>(value: &T) -> Result<BTreeMap<String, Json>, SessionError> {
    let unencodable = |source| SessionError::unencodable::<T>(WHOLE, source);
    let whole = serde_json::to_string(value).map_err(unencodable)?;
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(&whole).map_err(unencodable)?;
    fields.into_iter().map(|(name, value)| Ok((name, Json::encode(value).map_err(unencodable)?))).collect()
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed").field("session", &self.session).finish()
    }
}
