//! axum: [`Session`] and [`SingleUse`] as extractors, and the errors as responses. The guide for users is `docs/axum.md`.

use axum_core::{
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::request::Parts;

use crate::{Reason, Rejection, Session, SessionError, SingleUse, SingleUseError};

/// Loads the session. If that fails, the client gets the [`Rejection`] and the handler does not run.
impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let session = parts.extensions.get::<Self>().cloned().ok_or(Rejection::new(Reason::NoLayer, None))?;
        session.load().await?;
        Ok(session)
    }
}

impl<S: Sync> FromRequestParts<S> for SingleUse {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(Rejection::new(Reason::NoLayer, None))
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        Rejection::into_response::<Body>(self)
    }
}

/// A [`Rejection`]: 503 when the store is the cause, 401 when the session has ended, 429 when there are too many, else 500.
impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        IntoResponse::into_response(Rejection::from(self))
    }
}

/// A [`Rejection`]: 503 when the store is the cause, else 401.
impl IntoResponse for SingleUseError {
    fn into_response(self) -> Response {
        IntoResponse::into_response(Rejection::from(self))
    }
}

/// A [`Rejection`]: that of the [`SessionError`], 401 without a session, else 500.
#[cfg(feature = "jwt")]
impl IntoResponse for crate::JwtIssueError {
    fn into_response(self) -> Response {
        IntoResponse::into_response(Rejection::from(self))
    }
}

/// A [`Rejection`]: 401, 503 when the store is the cause, or 500.
#[cfg(feature = "jwt")]
impl IntoResponse for crate::JwtRefreshError {
    fn into_response(self) -> Response {
        IntoResponse::into_response(Rejection::from(self))
    }
}
