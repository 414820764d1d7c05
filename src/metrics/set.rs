//! All metrics of the table in the module docs.

/// A metric of this crate.
#[cfg_attr(not(feature = "metrics"), allow(dead_code))]
pub(crate) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
    /// A counter without labels, initialized to 0.
    pub(super) from_zero: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy)]
pub(super) enum Unit {
    None,
    Seconds,
    Bytes,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal $unit:ident $zero:literal $help:literal;)*) => {
        $(
            pub(crate) const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, unit: Unit::$unit, from_zero: $zero, help: $help };
        )*

        #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
        pub(super) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    REQUESTS = Counter "session_requests_total" None false "Requests.";
    LOAD_DURATION = Histogram "session_load_duration_seconds" Seconds false "Lookups in the session store.";
    SAVE_DURATION = Histogram "session_save_duration_seconds" Seconds false "Writes to the session store.";
    VALUES_DURATION = Histogram "session_values_duration_seconds" Seconds false "Operations on values.";
    CREATED = Counter "session_created_total" None true "Sessions created by this process.";
    DESTROYED = Counter "session_destroyed_total" None false "Sessions ended by this process.";
    LIFETIME = Histogram "session_lifetime_seconds" Seconds false "The lifetime of sessions that this process ended.";
    TOUCH_SKIPPED = Counter "session_touch_skipped_total" None true "Lookups that did not extend the session, because it was extended recently.";
    SET_COOKIE = Counter "session_set_cookie_total" None false "Set-Cookie headers for the session cookie.";
    CONFLICTS = Counter "session_conflicts_total" None false "Saves with a conflict.";
    RESURRECTION_PREVENTED = Counter "session_resurrection_prevented_total" None true "Saves dropped because the session had ended.";
    UNSAVED = Counter "session_unsaved_total" None true "Requests that ended with unsaved changes.";
    ROTATION = Counter "session_rotation_total" None false "New tokens, and previous tokens within the grace window.";
    TOKEN_REUSE = Counter "session_token_reuse_total" None true "Sessions ended because a previous token was reused.";
    PAYLOAD = Histogram "session_payload_bytes" Bytes false "Size of written sessions.";
    ACTIVE = Gauge "session_active" None false "Live sessions in the store at the last count.";
    STORE_ERRORS = Counter "session_store_errors_total" None false "Failed operations of the session store.";
    DEGRADED = Gauge "session_degraded" None true "1 while the session store is degraded or unavailable.";
    DEGRADED_SECONDS = Counter "session_degraded_seconds_total" Seconds true "How long the session store was degraded or unavailable.";
    STORE_HEALTH = Gauge "session_store_health" None false "1 for the status of the last health check.";
    BREAKER_STATE = Gauge "session_breaker_state" None false "The circuit breaker: 0 closed, 1 half-open, 2 open.";
    FALLBACK_ACTIVE = Gauge "session_fallback_active" None false "1 during an outage of the main store.";
    FALLBACK_IN_MEMORY = Gauge "session_fallback_in_memory" None false "Sessions in memory during an outage.";
    FALLBACK_OUTAGES = Counter "session_fallback_outages_total" None false "Outages of the main store.";
    FALLBACK_REPLAYED = Counter "session_fallback_replayed_total" None false "Changes replayed to the main store after outages.";
    FALLBACK_DROPPED = Counter "session_fallback_dropped_total" None false "Changes lost after outages.";
    FALLBACK_REFUSED = Counter "session_fallback_refused_total" None false "Operations that failed because the memory for changes was full.";
    BUILD_INFO = Gauge "session_build_info" None false "1, with the version of tower-keep.";
}
