//! With the feature `metrics`: measurements go to the installed recorder.

use std::time::Instant;

use metrics::{Key, Label, Level, Metadata, with_recorder};

use super::set::{ALL, BUILD_INFO, Kind, Metric, Unit};

const METADATA: Metadata<'static> = Metadata::new("tower_keep", Level::INFO, Some("tower_keep"));

/// Measures a duration.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) const RUNS: bool = true;

    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

pub(crate) fn count<const N: usize>(metric: &Metric, labels: [(&'static str, &'static str); N]) {
    with_recorder(|recorder| recorder.register_counter(&key(metric, labels), &METADATA).increment(1));
}

pub(crate) fn add(metric: &Metric, number: u64) {
    with_recorder(|recorder| recorder.register_counter(&key(metric, []), &METADATA).increment(number));
}

pub(crate) fn set<const N: usize>(metric: &Metric, labels: [(&'static str, &'static str); N], value: f64) {
    with_recorder(|recorder| recorder.register_gauge(&key(metric, labels), &METADATA).set(value));
}

pub(crate) fn record<const N: usize>(metric: &Metric, labels: [(&'static str, &'static str); N], value: f64) {
    with_recorder(|recorder| recorder.register_histogram(&key(metric, labels), &METADATA).record(value));
}

/// Labels are static strings of this crate, so their number is bounded.
fn key<const N: usize>(metric: &Metric, labels: [(&'static str, &'static str); N]) -> Key {
    match N {
        0 => Key::from_static_name(metric.name),
        _ => Key::from_parts(
            metric.name,
            labels.into_iter().map(|(name, value)| Label::from_static_parts(name, value)).collect::<Vec<_>>(),
        ),
    }
}

/// Describes all metrics and their units, sets `session_build_info`, and initializes counters without labels to 0, so that rates
/// see the first event. Call it once, after installing the recorder.
///
/// ```
/// tower_keep::metrics::describe();
/// ```
pub fn describe() {
    with_recorder(|recorder| {
        for metric in ALL {
            let (name, unit, help) = (metric.name.into(), unit(metric.unit), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
    });
    for metric in ALL.iter().filter(|metric| metric.from_zero) {
        match metric.kind {
            Kind::Counter => add(metric, 0),
            Kind::Gauge => set(metric, [], 0.0),
            Kind::Histogram => {}
        }
    }
    set(&BUILD_INFO, [("version", env!("CARGO_PKG_VERSION"))], 1.0);
}

fn unit(unit: Unit) -> Option<metrics::Unit> {
    match unit {
        Unit::None => None,
        Unit::Seconds => Some(metrics::Unit::Seconds),
        Unit::Bytes => Some(metrics::Unit::Bytes),
    }
}
