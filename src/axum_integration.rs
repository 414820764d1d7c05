//! axum: [`Session`], [`User`], [`Typed`] and [`SingleUse`] as extractors, and the errors as responses. The guide for users is
//! `docs/axum.md`.

use std::{fmt, ops::Deref, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Rejection, Session, SessionError, SingleUse, SingleUseError, Typed};

/// The user who is logged in: an extractor for axum. Without a login, the client gets a 401 and the handler does not run.
///
/// `Option<User>` is `None` without a login. In an outage, both are a 503 unless the [policy](crate::Policy) allows it.
///
/// ```
/// use tower_keep::User;
///
/// async fn account(user: User) -> String {
///     format!("hello {user}")
/// }
///
/// async fn home(user: Option<User>) -> String {
///     user.map_or("log in first".into(), |user| format!("hello {user}"))
/// }
/// # let _ = axum::Router::<()>::new().route("/account", axum::routing::get(account)).route("/", axum::routing::get(home));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User(Arc<str>);

impl User {
    /// The user name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Deref for User {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The session of the request, not loaded.
fn session_of(parts: &Parts) -> Result<Session, Rejection> {
    parts.extensions.get::<Session>().cloned().ok_or_else(Rejection::no_layer)
}

async fn loaded(parts: &Parts) -> Result<Session, Rejection> {
    let session = session_of(parts)?;
    session.load().await?;
    Ok(session)
}

/// `None` instead of a 401.
fn unless_unauthenticated<T>(result: Result<T, Rejection>) -> Result<Option<T>, Rejection> {
    match result {
        Err(rejection) if rejection.status() == StatusCode::UNAUTHORIZED => Ok(None),
        result => result.map(Some),
    }
}

/// Loads the session. If that fails, the client gets the [`Rejection`] and the handler does not run.
impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        loaded(parts).await
    }
}

/// `None` if the request has no live session. Use [`Session`] to create one.
impl<S: Sync> OptionalFromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        Ok(match unless_unauthenticated(loaded(parts).await)? {
            Some(session) if session.id()?.is_some() => Some(session),
            _ => None,
        })
    }
}

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        session_of(parts)?.require_user().await.map(Self)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for User {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        Ok(match unless_unauthenticated(loaded(parts).await)? {
            Some(session) => session.user()?.map(Self),
            None => None,
        })
    }
}

/// Loads the session, as for [`Session`].
impl<S: Sync, T: Serialize + DeserializeOwned> FromRequestParts<S> for Typed<T> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Ok(loaded(parts).await?.typed())
    }
}

impl<S: Sync> FromRequestParts<S> for SingleUse {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or_else(Rejection::no_layer)
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
