//! Sessions for tower services: cookies and bearer tokens, Redis or memory, safe by default.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
pub mod axum;
mod credential;
#[cfg(feature = "grpc")]
pub mod grpc;
mod layer;
mod lifetime;
mod observe;
mod record;
mod session;
mod sessions;
mod shared;
pub mod store;
mod time;
mod token;

pub use crate::{
    credential::{Bearer, InvalidCookie, SameSite, SessionCookie, SessionCookieBuilder},
    layer::{
        EmptyBody, OnMissing, OnOutage, Policy, Reason, Rejection, ResponseForRejection, ResponseFuture, SessionLayer,
        SessionService,
    },
    lifetime::{InvalidLifetime, Lifetime},
    observe::Stats,
    session::{Session, SessionError},
    sessions::Sessions,
    store::MemoryStore,
    time::{Clock, ManualClock, SystemClock, Timestamp},
    token::{InvalidSessionId, InvalidToken, SessionId, Token},
};
