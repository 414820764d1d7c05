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
//! # Words
//! * A **token** is the secret that a client holds ([`Token`]); the **session id** ([`SessionId`]) is a hash of it, and what
//!   everybody else sees.
//! * A **record** is what a store keeps ([`store::Record`]); a **session** is what a handler works with ([`Session`]).
//! * The **idle timeout** ends a session that is not used, the **absolute timeout** ends every session ([`Lifetime`]). To **touch** is
//!   to extend the first.
//! * To **rotate** is to give a session a new token; to **revoke** is to end it from outside, to **destroy** from inside.
//! * The **user** is whom a session is bound to by a login.
//! * An **outage** is a store that does not answer. It is never the same thing as "no such session".
//!
//! # How a request goes
//! Data flows one way, and each part knows the next only by its interface:
//!
//! ```text
//! credential ─▶ layer ─▶ store ─▶ session ─▶ handler ─▶ layer ─▶ store ─▶ credential
//! read token   policy    load     changes    yours     save     write    Set-Cookie
//! ```
//!
//! 1. [`SessionLayer`] finds the token in a cookie ([`SessionCookie`]) or a header ([`Bearer`], [`Jwt`]), and puts a [`Session`] into the
//!    request's extensions. That costs no store call.
//! 2. The handler loads the session when it needs it; or the layer does, before the handler runs, where the [`Policy`] says so. Without
//!    a live session, or without an answer of the store, the policy decides between an empty session and a [`Rejection`].
//! 3. The handler's changes stay in the session until it returns. Then the layer saves them, all in one write, and the response
//!    leaves when the store has confirmed it. If the store does not, the client gets 503 instead.
//! 4. `Set-Cookie` goes out only when the client must learn something: a session was created, rotated or destroyed, or its cookie
//!    lives longer.
//!
//! # What a save means
//! A save says which version of the session it changes. If another request saved first, the changes of this one, key by key, are
//! made to what the other left, and saved again: both win where they changed different keys, and the later where they changed the same.
//! If the session has ended meanwhile, the changes are dropped: nothing brings an ended session back. A save is idempotent, so one whose
//! answer was lost can be repeated.
//!
//! # Tokens and ids
//! A session keeps its id for life; what changes when it rotates is its token. The record knows which token counts and which did before, so a
//! rotation is a write like any other: atomic, and merged with those of other requests. Any token that a session ever had leads to
//! its record, and the record says what it is worth now:
//!
//! | the token is | the request | the client |
//! |---|---|---|
//! | the one that counts | is served | |
//! | the one before, changed for its age, within the grace window | is served | is given the one that counts |
//! | one from before, changed a moment ago | has no session | keeps what it has: it is being given the new one |
//! | one from before, later | ends the session | somebody has a copy: [`EndReason::TokenReused`] |
//!
//! A request that is being served while another changes the token at once keeps what it loaded, and what it saves is merged; but it is not told the new
//! token, unless it logs in or rotates as well: the token may have been changed because of who sent it.
//!
//! Only a login begins another session, with another id, in the slot of its user. First that one is created, naming the one before, for half a
//! minute; then the one before ends in its favour, if nobody wrote it meanwhile: at that moment the new one begins; and is told so, and
//! gets its time to live, with a third write. So a request that is cut off anywhere leaves one of the two, and a new session that never began
//! comes to nothing, however the other ends. If somebody else ends it first, by a logout or by using it up, the login begins without anything
//! of it: of what was ended nothing is carried on twice.
//!
//! A [`Jwt`] is no such token: it names the session by its id, and its signature is the proof. What counts for it is whether
//! the session is alive; and for a refresh token, whether it is of the present generation, by the same record and the same rule.
//!
//! # Users
//! The ids of a user's sessions share a [slot tag](SessionId::slot_tag), so that a store can do what concerns a user in one step:
//! count and create within [`Limits`], list, end all. See [`Sessions`] for what can be done outside requests, and [`Events`] for what
//! can be watched.
//!
//! # Stores
//! [`MemoryStore`] and [`store::redis::RedisStore`], or your own: [`store::SessionStore`] is the contract. A layer does not
//! show which store it has, so [`store::from_env`] can choose when the program starts. What else an application keeps, it can keep beside its
//! sessions: [`KeyValue`].
//!
//! # Watching
//! The feature `metrics` measures: see the module `metrics` for all that it does. What follows is there without it, by `tracing`.
//!
//! Every operation of a store is in a **span** `session_store` at DEBUG level, target `tower_keep::store`, with the attributes that
//! OpenTelemetry gives to calls of databases:
//!
//! | attribute | value |
//! |---|---|
//! | `db.system.name` | the [name](store::SessionStore::name) of the store: `redis`, `memory` |
//! | `db.operation.name`, `otel.name` | what it was asked: `load`, `create`, `update`, `touch`, `end`, `replace`, `consume`, `list`, `end_user`, `scan`, `count`, `health`, `publish`, `events`; and on values `get`, `set`, `delete`, `exists`, `expire`, `add`, `scan_values`, `value_stats` |
//! | `db.operation.batch.size` | how many commands went to Redis at once, if several |
//! | `db.stored_procedure.name` | which script Redis was told to run, if any |
//! | `db.response.status_code` | the code of a refusal of Redis: `OOM`, `READONLY` |
//! | `error.type` | of a failure: that code, or `outage`, `corrupt`, `configuration`; `cancelled` when nobody waited for the answer any more |
//! | `server.address`, `server.port` | which server was asked, where that is known: not with Sentinel, and not with a pool |
//! | `otel.kind`, `otel.status_code` | `client`; `ERROR` of a failure |
//!
//! **Security events** have the target `tower_keep::security`, which will stay, as will their fields. Time is what the subscriber gives:
//!
//! | `event` | level | fields | when |
//! |---|---|---|---|
//! | `created`, `logged_in`, `rotated` | INFO | `session`, `user`, `client_ip` | as [`EventKind`] has it |
//! | `ended` | INFO | `session`, `user`, `client_ip`, `reason` | the same; for the [reason](EndReason::as_str) |
//! | `token_reused` | WARN | `session`, `user`, `client_ip` | an old token came back: somebody has a copy |
//! | `credentials_disagree` | WARN | `client_ip`, `left_out` | a cookie and another bearer token came together |
//! | `unknown_token` | INFO | `session`, `client_ip`, `left_out` | a token was looked up that the store does not know |
//! | `malformed_credential` | INFO | `transport`, `client_ip`, `left_out` | what was to be looked up cannot be a token of ours: also a cookie that is not signed with a key of ours |
//! | `limit_refused` | INFO | `user`, `client_ip`, `left_out` | a login or a session was refused, for there are too many |
//!
//! `session` is a [`SessionId`], which opens nothing; no field holds a token, or a value of a session. `user` and `client_ip` are there when they
//! are known: the address with [`SessionLayer::client_info`], of what a request has caused, and where [`Sessions::for_client`] was told. Of
//! the last four kinds, which anybody can cause as often as they like, ten each a second are logged; `left_out` is how many were not, since the last one that was. What is done through
//! another instance is logged there.
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
    allow(rustdoc::broken_intra_doc_links)
)]

#[cfg(feature = "axum")]
mod axum_integration; // not `axum`: `use tower_keep::*` must not shadow the crate
mod context;
mod credential;
mod ended;
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
mod time;
mod token;

pub use crate::{
    context::OnCorrupt,
    credential::{
        Bearer, InvalidCookie, InvalidSessionSecret, SameSite, SessionCookie, SessionCookieBuilder, SessionSecret,
    },
    ended::{EndReason, Ended},
    event::{Event, EventKind, Events, Missed},
    health::{HealthFuture, HealthReport, HealthService},
    key::{AsKey, Key, KeyOf},
    key_value::{KeyValue, KeyValueError},
    layer::{
        EmptyBody, OnMissing, OnOutage, Policy, Reason, Rejection, ResponseForRejection, ResponseFuture, SessionLayer,
        SessionService, SingleUse, SingleUseError, SingleUseFuture, SingleUseLayer, SingleUseService,
    },
    lifetime::{InvalidLifetime, Lifetime},
    limits::{Limits, WhenFull},
    metadata::{ClientInfo, ForwardedHeader, InvalidProxy, Metadata, PeerAddr},
    observe::Stats,
    session::{Session, SessionError, Typed},
    sessions::{Consumed, Export, ImportError, Imported, NewSession, Scan, SessionInfo, Sessions},
    store::{MemoryStore, health::HealthStatus},
    time::{Clock, ManualClock, SystemClock, Timestamp},
    token::{InvalidSessionId, InvalidToken, SessionId, Token},
};

#[cfg(feature = "jwt")]
pub use crate::jwt::{
    InvalidJwt, InvalidJwtKey, Jwt, JwtAlgorithm, JwtBuilder, JwtClaims, JwtError, JwtIssueError, JwtKey, JwtPair,
    JwtRefreshError,
};

/// The README's programs are tested like any other.
#[cfg(all(doctest, feature = "axum", feature = "operator", feature = "grpc", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
