//! All that is measured: the table in the docs of the module, for programs.

/// A metric of this crate.
#[cfg_attr(not(feature = "metrics"), allow(dead_code))]
pub(crate) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
    /// It has no labels, and is 0 before anything happens.
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
    REQUESTS = Counter "session_requests_total" None false "Requests that passed a session layer.";
    LOAD_DURATION = Histogram "session_load_duration_seconds" Seconds false "Look-ups in the session store.";
    SAVE_DURATION = Histogram "session_save_duration_seconds" Seconds false "Writes to the session store.";
    VALUES_DURATION = Histogram "session_values_duration_seconds" Seconds false "Operations on values beside the sessions.";
    CREATED = Counter "session_created_total" None true "Sessions created by this process.";
    DESTROYED = Counter "session_destroyed_total" None false "Sessions ended by this process.";
    LIFETIME = Histogram "session_lifetime_seconds" Seconds false "How long sessions lived that this process has ended.";
    TOUCH_SKIPPED = Counter "session_touch_skipped_total" None true "Look-ups that did not extend the session, for it was extended a moment ago.";
    SET_COOKIE = Counter "session_set_cookie_total" None false "Set-Cookie headers for the session cookie.";
    CONFLICTS = Counter "session_conflicts_total" None false "Saves that met the save of another request.";
    RESURRECTION_PREVENTED = Counter "session_resurrection_prevented_total" None true "Saves given up, for their session had ended meanwhile.";
    UNSAVED = Counter "session_unsaved_total" None true "Requests that went away with changes which nobody had saved.";
    ROTATION = Counter "session_rotation_total" None false "New tokens, and old ones that came while the new one was on its way.";
    TOKEN_REUSE = Counter "session_token_reuse_total" None true "Sessions ended because an old token of theirs came back.";
    PAYLOAD = Histogram "session_payload_bytes" Bytes false "Size of the sessions that are written.";
    ACTIVE = Gauge "session_active" None false "Live sessions in the store, when they were last counted.";
    STORE_ERRORS = Counter "session_store_errors_total" None false "Operations of the session store that failed.";
    DEGRADED = Gauge "session_degraded" None true "1 while the session store does not serve as usual.";
    DEGRADED_SECONDS = Counter "session_degraded_seconds_total" Seconds true "How long the session store did not serve as usual.";
    STORE_HEALTH = Gauge "session_store_health" None false "1 for what the last health check of the session store has found.";
    BREAKER_STATE = Gauge "session_breaker_state" None false "The circuit breaker before the session store: 0 closed, 1 half-open, 2 open.";
    FALLBACK_ACTIVE = Gauge "session_fallback_active" None false "1 while sessions are served without the main store.";
    FALLBACK_IN_MEMORY = Gauge "session_fallback_in_memory" None false "Sessions that go on in memory while the main store is away.";
    FALLBACK_OUTAGES = Counter "session_fallback_outages_total" None false "How often the main store went away.";
    FALLBACK_REPLAYED = Counter "session_fallback_replayed_total" None false "What the main store was told on its returns.";
    FALLBACK_DROPPED = Counter "session_fallback_dropped_total" None false "Sessions and values of an outage that were lost on the return of the main store.";
    FALLBACK_REFUSED = Counter "session_fallback_refused_total" None false "What had no room in an outage, and failed.";
    BUILD_INFO = Gauge "session_build_info" None false "The version of tower-keep, and 1.";
}
