//! Metrics, through the facade `metrics`. Without an installed recorder they cost nothing.
//!
//! Install a recorder, call [`describe`] once, and serve what the recorder has collected. A recorder that is installed later counts from then
//! on, and sees gauges of existing guards and fallbacks when they change.
//!
//! ```
//! use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
//!
//! /// `handle.render()` is the response to `GET /metrics`.
//! fn recorder() -> Result<PrometheusHandle, BuildError> {
//!     let handle = PrometheusBuilder::new()
//!         .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &tower_keep::metrics::DURATION_BUCKETS)?
//!         .set_buckets_for_metric(Matcher::Full("session_lifetime_seconds".into()), &tower_keep::metrics::LIFETIME_BUCKETS)?
//!         .set_buckets_for_metric(Matcher::Full("session_payload_bytes".into()), &tower_keep::metrics::PAYLOAD_BUCKETS)?
//!         .install_recorder()?;
//!     tower_keep::metrics::describe();
//!     Ok(handle)
//! }
//! # assert!(recorder().is_ok());
//! ```
//!
//! No label contains a user, an id, an address, a path or anything else that a client chooses. These are all label values:
//!
//! | metric | kind | labels | meaning |
//! |---|---|---|---|
//! | `session_requests_total` | counter | `transport`: `cookie`, `bearer`, `both`, `none`; `outcome`: see below | requests |
//! | `session_load_duration_seconds` | histogram | `result`: `live`, `ended`, `unknown`, `error`, `cancelled` | lookups in the store |
//! | `session_save_duration_seconds` | histogram | `kind`: `create`, `update`, `rotate`, `touch`, `end`, `replace`, `consume`; `result`: `done`, `conflict`, `gone`, `taken`, `full`, `ended`, `unknown`, `error`, `cancelled` | writes to the store |
//! | `session_values_duration_seconds` | histogram | `operation`: `get`, `set`, `delete`, `exists`, `expire`, `add`, `scan_values`, `value_stats`; `result`: `done`, `refused`, `in_doubt`, `error`, `cancelled` | operations of [`KeyValue`](crate::KeyValue) |
//! | `session_created_total` | counter | | sessions created by this process |
//! | `session_destroyed_total` | counter | `reason`: an [`EndReason`](crate::EndReason) as its `as_str` says | sessions ended by this process, without expired ones |
//! | `session_lifetime_seconds` | histogram | | the time from creation or login to the end of a session, if the process that ended it had the record |
//! | `session_touch_skipped_total` | counter | | lookups that did not extend the session, because it was extended recently |
//! | `session_set_cookie_total` | counter | `op`: `set`, `remove` | `Set-Cookie` headers |
//! | `session_conflicts_total` | counter | `resolution`: `merged`, `overwritten`, `gave_up` | saves with a conflict: merged; one value overwrote another; given up after too many |
//! | `session_resurrection_prevented_total` | counter | | saves dropped because the session had ended |
//! | `session_unsaved_total` | counter | | requests that ended with unsaved changes |
//! | `session_rotation_total` | counter | `case`: `login`, `rotated`, `graced`, `superseded` | new tokens: by a login, by a rotation; previous tokens within the grace window: accepted, not accepted |
//! | `session_token_reuse_total` | counter | | sessions ended because a previous token was reused |
//! | `session_payload_bytes` | histogram | | size of written sessions: user, metadata and values |
//! | `session_active` | gauge | | live sessions in the store at the last [`Sessions::count`](crate::Sessions::count) |
//! | `session_store_errors_total` | counter | `class`: `outage`, `corrupt`, `configuration`, `cancelled` | failed store operations. `cancelled`: the caller stopped waiting, because of the [deadline](crate::SessionLayer::deadline) or because the client disconnected. A cancelled count of all sessions is not counted |
//! | `session_degraded` | gauge | | 1 while store operations fail or are degraded, else 0 |
//! | `session_degraded_seconds_total` | counter | | the duration of `session_degraded`. Updated by operations and health checks |
//! | `session_store_health` | gauge | `status`: `up`, `degraded`, `down` | 1 for the status of the last [health check](crate::Sessions::health), 0 for the others |
//! | `session_breaker_state` | gauge | | [`Guard`](crate::store::Guard): 0 closed, 1 half-open, 2 open |
//! | `session_fallback_active` | gauge | | [`Fallback`](crate::store::Fallback): 1 during an outage, else 0 |
//! | `session_fallback_in_memory` | gauge | | sessions in memory during an outage |
//! | `session_fallback_outages_total` | counter | | outages |
//! | `session_fallback_replayed_total` | counter | | changes replayed after outages |
//! | `session_fallback_dropped_total` | counter | | changes lost after outages |
//! | `session_fallback_refused_total` | counter | | operations that failed because the memory for changes was full |
//! | `session_build_info` | gauge | `version` | 1 after [`describe`] |
//!
//! Several layers, guards or fallbacks in one process are counted together, and gauges show the last change.
//!
//! | `outcome` | the request |
//! |---|---|
//! | `hit` | has a live session |
//! | `degraded` | the store was degraded |
//! | `anonymous` | has no credential |
//! | `unused` | has a credential that was not looked up |
//! | `expired`, `revoked`, `reused`, `ended` | has an ended session: expired; [revoked](crate::EndReason::Revoked) or evicted; token reused; other reasons |
//! | `superseded` | has a token that was just replaced |
//! | `unknown` | has a token that the store does not know |
//! | `malformed` | has a malformed cookie, for example with an invalid signature, or a malformed bearer header |
//! | `foreign` | has a bearer token of another kind |
//! | `disagreement` | has a cookie and a bearer token that differ |
//! | `store_error` | could not be looked up |

#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;
mod set;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{Stopwatch, add, count, record, set};
#[cfg(feature = "metrics")]
pub use self::on::describe;
#[cfg(feature = "metrics")]
pub(crate) use self::on::{Stopwatch, add, count, record, set};
pub(crate) use self::set::*;

/// Buckets for durations: 100 µs to 10 s. Redis in the same data center needs a few hundred µs. The default timeout of a
/// [`RedisStore`](crate::store::redis::RedisStore) is 250 ms.
#[cfg(feature = "metrics")]
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// Buckets for `session_lifetime_seconds`: 1 minute to 30 days.
#[cfg(feature = "metrics")]
pub const LIFETIME_BUCKETS: [f64; 8] =
    [60.0, 300.0, 1_800.0, 3_600.0, 4.0 * 3_600.0, 86_400.0, 7.0 * 86_400.0, 30.0 * 86_400.0];

/// Buckets for `session_payload_bytes`: 64 bytes to 64 KiB, the default [maximum](crate::SessionLayer::max_size).
#[cfg(feature = "metrics")]
pub const PAYLOAD_BUCKETS: [f64; 6] = [64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0];
