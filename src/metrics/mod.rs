//! What is measured, by the facade of the crate `metrics`: whoever installs a recorder has it, and without one it is thrown away.
//!
//! Install the recorder, call [`describe`] once, and serve what the recorder has collected. Nothing else is to be done; a recorder that is
//! installed later counts from then on, and sees the gauges of a guard or a fallback that was there before when they change.
//!
//! ```
//! use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
//!
//! /// `handle.render()` is the answer to `GET /metrics`.
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
//! No label ever holds a user, an id, an address, a path or anything else that a client chooses: the values that are listed here are
//! all there are, whatever comes.
//!
//! | metric | kind | labels | what |
//! |---|---|---|---|
//! | `session_requests_total` | counter | `transport`: `cookie`, `bearer`, `both`, `none`; `outcome`: see below | requests that passed a layer |
//! | `session_load_duration_seconds` | histogram | `result`: `live`, `ended`, `unknown`, `error`, `cancelled` | look-ups in the store |
//! | `session_save_duration_seconds` | histogram | `kind`: `create`, `update`, `rotate`, `touch`, `end`, `replace`, `consume`; `result`: `done`, `conflict`, `gone`, `taken`, `full`, `ended`, `unknown`, `error`, `cancelled` | writes to the store |
//! | `session_values_duration_seconds` | histogram | `operation`: `get`, `set`, `delete`, `exists`, `expire`, `add`, `scan_values`, `value_stats`; `result`: `done`, `refused`, `in_doubt`, `error`, `cancelled` | what a [`KeyValue`](crate::KeyValue) asks of a [`ValueStore`](crate::store::ValueStore) |
//! | `session_created_total` | counter | | sessions created by this process |
//! | `session_destroyed_total` | counter | `reason`: an [`EndReason`](crate::EndReason) as its `as_str` says | sessions ended by this process. One that nobody uses any more expires unseen |
//! | `session_lifetime_seconds` | histogram | | how long sessions lived, from their creation or login to their end, where the process that ended them had their record |
//! | `session_touch_skipped_total` | counter | | look-ups that did not extend the session, for it was extended a moment ago |
//! | `session_set_cookie_total` | counter | `op`: `set`, `remove` | `Set-Cookie` headers |
//! | `session_conflicts_total` | counter | `resolution`: `merged`, `overwritten`, `gave_up` | saves that met another request's: all of both was kept; one value won over another; too many at once |
//! | `session_resurrection_prevented_total` | counter | | saves given up, for their session had ended meanwhile |
//! | `session_unsaved_total` | counter | | requests that went away with changes which nobody had saved |
//! | `session_rotation_total` | counter | `case`: `login`, `rotated`, `graced`, `superseded` | new tokens: by a login, otherwise; an old one that came while the new one was on its way: served, not served |
//! | `session_token_reuse_total` | counter | | sessions ended because an old token came back: somebody has a copy |
//! | `session_payload_bytes` | histogram | | size of what is written: user, metadata and values |
//! | `session_active` | gauge | | live sessions in the store, as [`Sessions::count`](crate::Sessions::count) last found. Nobody else asks: it walks through all of them |
//! | `session_store_errors_total` | counter | `class`: `outage`, `corrupt`, `configuration`, `cancelled` | operations of the store that failed; and those that were given up (`cancelled`) before there was an answer: the request's [deadline](crate::SessionLayer::deadline) was over, its client went away, or whoever asked stopped waiting. A count of all sessions that is given up is no failure |
//! | `session_degraded` | gauge | | 1 from the first operation that the store does not serve as usual to the first that it does; else 0 |
//! | `session_degraded_seconds_total` | counter | | how long that was, in all. It moves with operations and health checks |
//! | `session_store_health` | gauge | `status`: `up`, `degraded`, `down` | 1 for what the last [health check](crate::Sessions::health) found, 0 for the others |
//! | `session_breaker_state` | gauge | | of a [`Guard`](crate::store::Guard): 0 closed, 1 half-open, 2 open |
//! | `session_fallback_active` | gauge | | of a [`Fallback`](crate::store::Fallback): 1 in an outage of its main store; else 0 |
//! | `session_fallback_in_memory` | gauge | | sessions that go on in its memory |
//! | `session_fallback_outages_total` | counter | | how often its main store went away |
//! | `session_fallback_replayed_total` | counter | | what the main store was told on its returns |
//! | `session_fallback_dropped_total` | counter | | sessions and values of an outage that were lost on a return |
//! | `session_fallback_refused_total` | counter | | what had no room in an outage, and failed |
//! | `session_build_info` | gauge | `version` | 1, since [`describe`] was called |
//!
//! A process with several layers, guards or fallbacks counts them together, and its gauges show what changed last.
//!
//! | `outcome` | a request |
//! |---|---|
//! | `hit` | whose session is alive |
//! | `degraded` | the same, or without a session, as far as a store knows that answers less than usual |
//! | `anonymous` | without a credential |
//! | `unused` | with a credential that nobody looked up |
//! | `expired`, `revoked`, `reused`, `ended` | whose session is over: in time; by [revocation](crate::EndReason::Revoked) or eviction; because its token was copied; otherwise |
//! | `superseded` | whose token is being changed for another in this moment |
//! | `unknown` | with a token that the store does not know |
//! | `malformed` | with what cannot be a token of ours: in our cookie, signed with no key of ours for example, or in a bearer header that breaks the grammar |
//! | `foreign` | with a bearer token that is none of ours |
//! | `disagreement` | with a cookie and a bearer token that differ |
//! | `store_error` | whose session could not be looked up |

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

/// Upper bounds for the histograms of durations: 100 µs to 10 s. What Redis answers in the same data centre takes some hundred µs; 250 ms is
/// the time that a [`RedisStore`](crate::store::redis::RedisStore) gives it, unless told otherwise.
#[cfg(feature = "metrics")]
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// Upper bounds for `session_lifetime_seconds`: a minute to thirty days.
#[cfg(feature = "metrics")]
pub const LIFETIME_BUCKETS: [f64; 8] =
    [60.0, 300.0, 1_800.0, 3_600.0, 4.0 * 3_600.0, 86_400.0, 7.0 * 86_400.0, 30.0 * 86_400.0];

/// Upper bounds for `session_payload_bytes`: 64 bytes to 64 KiB, which is what a session may have unless
/// [told otherwise](crate::SessionLayer::max_size).
#[cfg(feature = "metrics")]
pub const PAYLOAD_BUCKETS: [f64; 6] = [64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0];
