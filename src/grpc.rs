//! tonic: the session of a gRPC request, and errors as [`Status`].
//!
//! Wrap the server with [`SessionLayer`](crate::SessionLayer) through `Server::builder().layer(…)`. Its rejections are
//! `UNAUTHENTICATED` or `UNAVAILABLE`. In a method:
//!
//! ```
//! use tonic::{Request, Response, Status};
//!
//! async fn who_am_i(request: Request<()>) -> Result<Response<String>, Status> {
//!     let session = tower_keep::grpc::session(&request).await?;
//!     let user = session.user()?.ok_or(Status::unauthenticated("log in first"))?;
//!     Ok(Response::new(user.to_string()))
//! }
//! # let _ = who_am_i;
//! ```

use tonic::{Code, Request, Status};

use crate::{Reason, Rejection, Session, SessionError};

/// Loads the session of `request`.
///
/// # Errors
/// `UNAVAILABLE` in an outage, `UNAUTHENTICATED` if the policy requires a live session and there is none, `INTERNAL` without a
/// session layer.
pub async fn session<T>(request: &Request<T>) -> Result<Session, Status> {
    // Cloned before the await, because the message may not be `Sync`.
    let session = request.extensions().get::<Session>().cloned();
    let session = session.ok_or(Rejection::new(Reason::NoLayer, None))?;
    session.load().await?;
    Ok(session)
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
