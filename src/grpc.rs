//! tonic: the session of a gRPC request, and errors as [`Status`].
//!
//! Wrap the server with [`SessionLayer`](crate::SessionLayer) through `Server::builder().layer(…)`. Its rejections are
//! `UNAUTHENTICATED` or `UNAVAILABLE`. In a method:
//!
//! ```
//! use tonic::{Request, Response, Status};
//! use tower_keep::grpc;
//!
//! async fn who_am_i(request: Request<()>) -> Result<Response<String>, Status> {
//!     let user = grpc::user(&request).await?; // UNAUTHENTICATED without a login
//!     Ok(Response::new(user.to_string()))
//! }
//! # let _ = who_am_i;
//! ```
//!
//! An interceptor cannot wait for a lookup. With [`SessionLayer::eager`](crate::SessionLayer::eager), the session is loaded before:
//!
//! ```
//! use tonic::{Request, Status};
//! use tower_keep::grpc;
//!
//! /// For `MyServer::with_interceptor(service, users_only)`.
//! fn users_only(request: Request<()>) -> Result<Request<()>, Status> {
//!     grpc::loaded_user(&request)?;
//!     Ok(request)
//! }
//! # let _ = users_only;
//! ```

use std::sync::Arc;

use tonic::{Code, Request, Status};

use crate::{Rejection, Session, SessionError};

/// Loads the session of `request`.
///
/// # Errors
/// `UNAVAILABLE` in an outage, `UNAUTHENTICATED` if the policy requires a live session and there is none, `INTERNAL` without a
/// session layer.
pub async fn session<T>(request: &Request<T>) -> Result<Session, Status> {
    // Cloned before the await, because the message may not be `Sync`.
    let session = session_of(request);
    let session = session?;
    session.load().await?;
    Ok(session)
}

/// Loads the session of `request`, and returns the user who is logged in.
///
/// # Errors
/// Those of [`session`], and `UNAUTHENTICATED` without a login.
pub async fn user<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    let session = session_of(request);
    Ok(session?.require_user().await?)
}

/// The session of `request`, which an [eager](crate::SessionLayer::eager) layer has loaded: for interceptors.
///
/// # Errors
/// `UNAVAILABLE` in an outage, `INTERNAL` without a session layer or if it is not eager.
pub fn loaded_session<T>(request: &Request<T>) -> Result<Session, Status> {
    let session = session_of(request)?;
    session.user()?;
    Ok(session)
}

/// The user who is logged in, without waiting: see [`loaded_session`].
///
/// # Errors
/// Those of [`loaded_session`], and `UNAUTHENTICATED` without a login.
pub fn loaded_user<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    let session = session_of(request)?;
    Ok(session.user()?.ok_or_else(|| session.unauthenticated())?)
}

fn session_of<T>(request: &Request<T>) -> Result<Session, Rejection> {
    request.extensions().get::<Session>().cloned().ok_or_else(Rejection::no_layer)
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        Self::new(Code::from_i32(rejection.grpc_status().into()), rejection.message())
    }
}

/// `UNAVAILABLE` in an outage, `UNAUTHENTICATED` if the session has ended, `RESOURCE_EXHAUSTED` if a limit is reached, else
/// `INTERNAL`.
impl From<SessionError> for Status {
    fn from(error: SessionError) -> Self {
        Rejection::from(error).into()
    }
}

/// That of the [`SessionError`], `UNAUTHENTICATED` without a session, else `INTERNAL`.
#[cfg(feature = "jwt")]
impl From<crate::JwtIssueError> for Status {
    fn from(error: crate::JwtIssueError) -> Self {
        Rejection::from(error).into()
    }
}

/// `UNAUTHENTICATED`, `UNAVAILABLE` in an outage, or `INTERNAL`.
#[cfg(feature = "jwt")]
impl From<crate::JwtRefreshError> for Status {
    fn from(error: crate::JwtRefreshError) -> Self {
        Rejection::from(error).into()
    }
}
