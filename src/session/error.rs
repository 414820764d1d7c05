use std::error::Error;

use crate::{
    context::TooLarge,
    layer::{Reason, Rejection},
    store::StoreError,
};

/// What went wrong in a [`Session`](crate::Session).
///
/// It never holds a token or a value of the session. With the `axum` and `grpc` features it is an answer as well: 503 when the
/// store is the cause, 401 when the session has ended, 429 when there are too many, else 500.
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
    /// The session could not be looked up, so it can neither be read nor changed; also where a signature says whose it is.
    #[error("the session could not be looked up")]
    Unavailable,
    /// A value cannot be written as JSON.
    #[error("the session value {key:?} cannot be written as JSON")]
    Encode {
        /// The value's key.
        key: String,
        /// What the serializer says.
        source: serde_json::Error,
    },
    /// A value is not of the type that was asked for. (What the deserializer says would show the value.)
    #[error("the session value {key:?} does not have the requested type")]
    Decode {
        /// The value's key.
        key: String,
    },
    /// The session has outgrown [`SessionLayer::max_size`](crate::SessionLayer::max_size), and was not saved.
    #[error("the session has {size} bytes, more than {limit}")]
    TooLarge {
        /// What it has grown to, in bytes.
        size: usize,
        /// What it may have, in bytes.
        limit: usize,
    },
    /// There are as many sessions as there may be, of the user or in all: see [`Limits`](crate::Limits). A login that meets this has
    /// not happened.
    #[error("there are too many sessions")]
    Full,
    /// Another request ended the session while this one was served: it cannot be changed, and nothing was saved.
    #[error("the session was ended by another request")]
    Ended,
    /// Other requests kept writing the session: this one gave up after many attempts to merge.
    #[error("too many concurrent requests write this session")]
    Conflict,
    /// The head of the response has left, or there is none: a new token cannot reach the client any more.
    #[error("the response is sent: a new session token cannot reach the client")]
    ResponseSent,
    /// The operating system gave no random numbers for a new token.
    #[error("no random numbers for a new session token")]
    Random(#[source] Box<dyn Error + Send + Sync>),
    /// The store failed.
    #[error("the session store failed")]
    Store(#[from] StoreError),
}

impl SessionError {
    /// Whether the store is the cause, so that trying again later may help.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable | Self::Conflict => true,
            Self::Store(error) => !matches!(error, StoreError::Unsupported(_)),
            _ => false,
        }
    }
}

/// What to answer; the layer adds what only it knows. With it, `?` works in a handler whose error is a [`Rejection`].
impl From<SessionError> for Rejection {
    fn from(error: SessionError) -> Self {
        let reason = match error {
            SessionError::Ended => Reason::InvalidToken,
            SessionError::Full => Reason::TooManySessions,
            error if error.is_unavailable() => Reason::Unavailable,
            _ => Reason::Internal,
        };
        Self::new(reason, None)
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
