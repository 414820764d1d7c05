//! The tower layer.
//!
//! The path of a request:
//!
//! ```text
//!             read credentials ── disagree ──────────────────────────────▶ reject 401
//!                    │
//!        put a Session into the extensions
//!                    │
//!   lazy ┌───────────┴───────────┐ eager, required
//!        │                   look it up ── missing or outage ──▶ reject 401, 503
//!        └───────────┬───────────┘
//!            call the service
//!                    │
//!      save what it did to the session ── fails ──▶ reject 503
//!                    │
//!        set cookie and cache headers
//! ```

mod future;
#[allow(clippy::module_inception)] // the layer of the module `layer`
mod layer;
mod login_redirect;
mod policy;
mod reject;
mod respond;
mod service;
mod single_use;

use self::policy::Lookup;
pub(crate) use self::reject::retry_after;
pub use self::{
    future::ResponseFuture,
    layer::SessionLayer,
    login_redirect::LoginRedirect,
    policy::{OnMissing, OnOutage, Policy},
    reject::{EmptyBody, Reason, Rejection, ResponseForRejection},
    service::SessionService,
    single_use::{SingleUse, SingleUseError, SingleUseFuture, SingleUseLayer, SingleUseService},
};
