//! Sessions for every tower service, with cookies and bearer tokens, in memory or in Redis.
//!
//! ```
//! use tower_keep::{MemoryStore, Session, SessionError, SessionLayer};
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//!
//! async fn visits(session: Session) -> Result<String, SessionError> {
//!     let visits = session.get("visits")?.unwrap_or(0) + 1;
//!     session.insert("visits", &visits)?;
//!     Ok(format!("visit number {visits}"))
//! }
//!
//! let app: Router = Router::new().route("/", get(visits)).layer(SessionLayer::new(MemoryStore::new()));
//! # let _ = app;
//! # }
//! ```
//!
//! The [`guide`] has a page for each framework and task: [axum](guide::axum), [hyper](guide::hyper), [tonic](guide::tonic),
//! [testing your app](guide::testing_your_app), [outages](guide::outages), [deployment](guide::deployment), and more.
//!
//! # Terms
//! * A **token** is the secret that a client holds ([`Token`]). The **session id** ([`SessionId`]) is a hash of it, and grants no access.
//! * A **record** is what a store keeps ([`store::Record`]). A **session** is the handle for handlers ([`Session`]).
//! * The **idle timeout** ends a session that is not used. The **absolute timeout** ends every session ([`Lifetime`]).
//!   To **touch** a session extends the idle timeout.
//! * To **rotate** a session gives it a new token. To **destroy** it ends it from a handler, to **revoke** it from outside.
//! * The **user** is bound to a session by a login.
//! * An **outage** means that the store does not reply in time. It never means "no such session".
//!
//! # A request
//! Data flows one way:
//!
//! ```text
//! credential ─▶ layer ─▶ store ─▶ session ─▶ handler ─▶ layer ─▶ store ─▶ credential
//! read token   policy    load     changes    yours     save     write    Set-Cookie
//! ```
//!
//! 1. [`SessionLayer`] finds the token in a cookie ([`SessionCookie`]) or a header ([`Bearer`], [`Jwt`]), and puts a [`Session`] into the
//!    extensions of the request. This sends no command to the store.
//! 2. The handler loads the session when it needs it. With a [`Policy`], the layer loads it before the handler runs. Without a live session,
//!    or in an outage, the policy chooses between an empty session and a [`Rejection`].
//! 3. Changes stay in the session until the handler returns. Then the layer saves them in one write, and sends the response when the
//!    store has confirmed it. If the store does not confirm, the client gets 503.
//! 4. `Set-Cookie` is sent only if the session was created, rotated or destroyed, or its cookie lives longer.
//!
//! # Guarantees
//! * **Concurrent changes** to different keys are both kept. For the same key the last save wins, unless a
//!   [merge function](SessionLayer::merge) is registered.
//! * **An ended session stays ended.** No late save, touch, rotation or replayed command brings it back.
//! * **A login changes the token**, so session fixation is impossible. The values of an anonymous session are kept; the values of
//!   another user are not.
//! * **A previous token that is reused** after its grace window ends the session, because it was probably copied ([`EndReason::TokenReused`]).
//! * **An unknown token is never adopted.**
//!
//! # Stores
//! [`MemoryStore`] and [`store::redis::RedisStore`], or [your own](guide::writing_a_store). A layer is not generic over its store, so
//! [`store::from_env`] can choose when the program starts. [`store::Fallback`] says what to do in an outage. [`KeyValue`] stores small values
//! besides the sessions.
//!
//! # Outside requests
//! [`SessionLayer::sessions`] returns [`Sessions`]: create, list, revoke, count and export sessions, and receive [`Events`].
//!
//! # Logs
//! Store operations have `tracing` spans, target `tower_keep::store`. Security events have the target `tower_keep::security`. The guide
//! [health and metrics](guide::health_and_metrics) lists both.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::await_holding_lock)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The docs of one feature may link to those of another.
#![cfg_attr(
    not(all(
        feature = "axum",
        feature = "grpc",
        feature = "jwt",
        feature = "messagepack",
        feature = "metrics",
        feature = "operator",
        feature = "redis-bb8",
        feature = "redis-cluster",
        feature = "redis-sentinel",
        feature = "redis-tls",
        feature = "testing"
    )),
    allow(rustdoc::broken_intra_doc_links, rustdoc::private_intra_doc_links)
)]

#[cfg(feature = "axum")]
mod axum_integration; // not `axum`: `use tower_keep::*` must not shadow the crate
mod context;
mod credential;
mod ended;
mod endings;
mod error_chain;
mod event;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(any(doc, doctest))]
pub mod guide;
mod health;
#[cfg(feature = "jwt")]
mod jwt;
mod key;
mod key_value;
mod layer;
mod lifetime;
mod limits;
mod metadata;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(not(feature = "metrics"))]
mod metrics;
mod observe;
#[cfg(feature = "operator")]
pub mod operator;
mod record;
mod security;
mod session;
mod sessions;
pub mod store;
mod subscription;
mod time;
mod token;

pub use crate::{
    context::{OnCorrupt, OnUndecodable},
    credential::{
        Bearer, InvalidCookie, InvalidSessionSecret, SameSite, SessionCookie, SessionCookieBuilder, SessionSecret,
    },
    ended::{EndReason, Ended},
    event::{Event, EventKind},
    health::{HealthFuture, HealthReport, HealthService},
    key::{AsKey, Key, KeyFor, KeyOf},
    key_value::{KeyValue, KeyValueError},
    layer::{
        EmptyBody, LoginRedirect, OnMissing, OnOutage, Policy, Reason, Rejection, ResponseForRejection, ResponseFuture,
        SessionLayer, SessionService, SingleUse, SingleUseError, SingleUseFuture, SingleUseLayer, SingleUseService,
    },
    lifetime::{InvalidLifetime, Lifetime},
    limits::{Limits, WhenFull},
    metadata::{ClientInfo, ForwardedHeader, InvalidProxy, Metadata, PeerAddr},
    observe::Stats,
    session::{Lease, Session, SessionError, Typed},
    sessions::{Consumed, Export, ImportError, Imported, NewSession, Scan, SessionInfo, Sessions},
    store::{MemoryStore, health::HealthStatus},
    subscription::{Events, Missed},
    time::{Clock, ManualClock, SystemClock, Timestamp},
    token::{InvalidSessionId, InvalidToken, SessionId, Token},
};

#[cfg(feature = "axum")]
pub use crate::axum_integration::User;
#[cfg(feature = "jwt")]
pub use crate::jwt::{
    InvalidJwt, InvalidJwtKey, Jwt, JwtAlgorithm, JwtBuilder, JwtClaims, JwtError, JwtIssueError, JwtKey, JwtPair,
    JwtRefreshError,
};

/// The programs of the README are tested.
#[cfg(all(doctest, feature = "axum", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
