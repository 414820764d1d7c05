//! The errors of a session, and the responses to them.

use std::{any::type_name, error::Error};

use crate::{
    context::TooLarge,
    layer::{Reason, Rejection},
    lifetime::InvalidLifetime,
    store::StoreError,
};

/// An error of a [`Session`](crate::Session).
///
/// It never contains a token or a value of the session. It converts to a [`Rejection`]: 503 if the store is the cause, 401 if the
/// session has ended, 429 if a limit is reached, else 500, which is logged with its cause. With the features `axum` and `grpc` it
/// is a response.
///
/// ```
/// use tower_keep::SessionError;
///
/// assert_eq!(SessionError::NotLoaded.to_string(), "the session is not loaded: call `load` first");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The session was used before [`load`](crate::Session::load).
    #[error("the session is not loaded: call `load` first")]
    NotLoaded,
    /// The lookup failed, so the session can be neither read nor changed. This includes a JWT that is accepted by its signature.
    #[error("the session could not be looked up")]
    Unavailable,
    /// A value cannot be written as JSON.
    #[error("the session value {key:?}, a `{of}`, cannot be written as JSON")]
    Encode {
        /// The key of the value.
        key: String,
        /// The type of the value.
        of: &'static str,
        /// The error of the serializer.
        source: serde_json::Error,
    },
    /// A value is not of the requested type, for example because the type has changed since the value was stored. The error of the
    /// deserializer is not included: it may contain the value.
    #[error(
        "the session value {key:?} is not a `{expected}`: give new fields a default (`#[serde(default)]`), use another key, or see \
         `SessionLayer::on_undecodable`"
    )]
    Decode {
        /// The key of the value.
        key: String,
        /// The requested type.
        expected: &'static str,
    },
    /// The session exceeds [`SessionLayer::max_size`](crate::SessionLayer::max_size), and was not saved.
    #[error("the session has {size} bytes, more than {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The limit of sessions is reached, of the user or of the store: see [`Limits`](crate::Limits). The login has not happened.
    #[error("there are too many sessions")]
    Full,
    /// Another request ended the session. It cannot be changed, and nothing was saved.
    #[error("the session was ended by another request")]
    Ended,
    /// Other requests kept writing the session. This one gave up after many attempts to merge.
    #[error("too many concurrent requests write this session")]
    Conflict,
    /// The head of the response was sent, or there is no response: a new token cannot reach the client any more.
    #[error("the response is sent: a new session token cannot reach the client")]
    ResponseSent,
    /// The operating system provides no random numbers for a new token.
    #[error("no random numbers for a new session token")]
    Random(#[source] Box<dyn Error + Send + Sync>),
    /// The store failed.
    #[error("the session store failed")]
    Store(#[from] StoreError),
    /// A custom lifetime is invalid.
    #[error("invalid lifetime")]
    Lifetime(#[from] InvalidLifetime),
    /// A [`Rejection`], so that a handler needs only one error type.
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

impl SessionError {
    pub(crate) fn undecodable<T: ?Sized>(key: &str) -> Self {
        Self::Decode { key: key.to_owned(), expected: type_name::<T>() }
    }

    pub(crate) fn unencodable<T: ?Sized>(key: &str, source: serde_json::Error) -> Self {
        Self::Encode { key: key.to_owned(), of: type_name::<T>(), source }
    }

    /// Whether the store is the cause, so that trying again later may help.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable | Self::Conflict => true,
            Self::Store(error) => !matches!(error, StoreError::Unsupported(_)),
            _ => false,
        }
    }
}

/// The response to the error. The layer adds what only it knows. With this, `?` works in a handler whose error is a [`Rejection`].
///
/// An error that is a mistake of the program (500) is logged here.
impl From<SessionError> for Rejection {
    fn from(error: SessionError) -> Self {
        Self::of(error).unwrap_or_else(|error| Self::mistake(&error))
    }
}

impl Rejection {
    /// The response to an error, or the error if it is a mistake of the program.
    fn of(error: SessionError) -> Result<Self, SessionError> {
        Ok(match error {
            SessionError::Rejected(rejection) => rejection,
            SessionError::Ended => Self::new(Reason::InvalidToken, None),
            SessionError::Full => Self::new(Reason::TooManySessions, None),
            error if error.is_unavailable() => Self::new(Reason::Unavailable, None),
            error => return Err(error),
        })
    }

    /// The response to an error that is logged already.
    pub(crate) fn of_logged(error: SessionError) -> Self {
        Self::of(error).unwrap_or_else(|_| Self::new(Reason::Internal, None))
    }

    /// No layer wraps the route, which is a mistake of the program.
    #[cfg(any(feature = "axum", feature = "grpc"))]
    pub(crate) fn no_layer() -> Self {
        tracing::error!(
            "no SessionLayer wraps this route: add the route before `.layer(session_layer)`, which wraps only the routes before it"
        );
        Self::new(Reason::NoLayer, None)
    }
}

/// The same, for handlers that work with [`Sessions`](crate::Sessions).
impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        SessionError::from(error).into()
    }
}

impl From<TooLarge> for SessionError {
    fn from(TooLarge { size, limit }: TooLarge) -> Self {
        Self::TooLarge { size, limit }
    }
}

impl From<getrandom::Error> for SessionError {
    fn from(error: getrandom::Error) -> Self {
        Self::Random(error.into())
    }
}
