//! The metrics, spans and security events of this thread: with a single-threaded runtime,
//! those of one test.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt::Debug,
};

use metrics::LocalRecorderGuard;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tower_keep::metrics::{DURATION_BUCKETS, LIFETIME_BUCKETS, PAYLOAD_BUCKETS, describe};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context};

/// Collects metrics from here on.
pub struct Metrics {
    handle: PrometheusHandle,
    _recording: LocalRecorderGuard<'static>,
}

impl Metrics {
    pub fn collect() -> Self {
        let recorder: &'static PrometheusRecorder = Box::leak(Box::new(
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &DURATION_BUCKETS)
                .and_then(|it| {
                    it.set_buckets_for_metric(Matcher::Suffix("_lifetime_seconds".into()), &LIFETIME_BUCKETS)
                })
                .and_then(|it| it.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &PAYLOAD_BUCKETS))
                .unwrap()
                .build_recorder(),
        ));
        let recording = metrics::set_default_local_recorder(recorder);
        describe();
        Self { handle: recorder.handle(), _recording: recording }
    }

    /// The response of `/metrics`.
    pub fn handle(&self) -> PrometheusHandle {
        self.handle.clone()
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::of(&self.handle.render())
    }

    /// The current value of one series, or 0 if it does not exist.
    pub fn get(&self, series: &str) -> f64 {
        self.scrape().get(series)
    }
}

/// The content of `/metrics`.
#[derive(Clone, Default)]
pub struct Scrape {
    pub text: String,
    pub series: BTreeMap<String, f64>,
    /// `counter`, `gauge`, `histogram`
    pub kinds: BTreeMap<String, String>,
}

impl Scrape {
    pub fn of(text: &str) -> Self {
        let mut scrape = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                scrape.series.insert(series.to_owned(), value.parse().unwrap());
            }
        }
        scrape
    }

    pub fn get(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }
}

/// A span or an event, with all recorded fields.
#[derive(Clone, Debug)]
pub struct Said {
    pub target: String,
    pub level: tracing::Level,
    pub name: String,
    pub fields: HashMap<String, String>,
}

impl Said {
    pub fn get(&self, field: &str) -> Option<&str> {
        self.fields.get(field).map(String::as_str)
    }
}

thread_local! {
    static SPANS: RefCell<Vec<(u64, Said)>> = const { RefCell::new(Vec::new()) };
    static EVENTS: RefCell<Vec<Said>> = const { RefCell::new(Vec::new()) };
}

/// All traces from here on.
pub struct Trace(());

impl Trace {
    pub fn collect() -> Self {
        super::log::subscribe();
        SPANS.with_borrow_mut(Vec::clear);
        EVENTS.with_borrow_mut(Vec::clear);
        Self(())
    }

    pub fn all_spans(&self) -> Vec<Said> {
        SPANS.with_borrow(|spans| spans.iter().map(|(_, span)| span.clone()).collect())
    }

    /// Those of store operations.
    pub fn spans(&self) -> Vec<Said> {
        self.all_spans().into_iter().filter(|span| span.target == "tower_keep::store").collect()
    }

    pub fn events(&self) -> Vec<Said> {
        EVENTS.with_borrow(Clone::clone)
    }

    /// Those of security events.
    pub fn security(&self) -> Vec<Said> {
        self.events().into_iter().filter(|event| event.target == "tower_keep::security").collect()
    }

    /// Everything as a string.
    pub fn text(&self) -> String {
        format!("{:?} {:?}", SPANS.with_borrow(Clone::clone), self.events())
    }
}

pub(super) struct ToThisThread;

impl<S: Subscriber> Layer<S> for ToThisThread {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut span = said(attributes.metadata());
        attributes.record(&mut Fields(&mut span.fields));
        SPANS.with_borrow_mut(|spans| spans.push((id.into_u64(), span)));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        SPANS.with_borrow_mut(|spans| {
            if let Some((_, span)) = spans.iter_mut().rev().find(|(known, _)| *known == id.into_u64()) {
                values.record(&mut Fields(&mut span.fields));
            }
        });
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut told = said(event.metadata());
        event.record(&mut Fields(&mut told.fields));
        EVENTS.with_borrow_mut(|events| events.push(told));
    }
}

fn said(metadata: &Metadata<'_>) -> Said {
    Said {
        target: metadata.target().to_owned(),
        level: *metadata.level(),
        name: metadata.name().to_owned(),
        fields: HashMap::new(),
    }
}

struct Fields<'a>(&'a mut HashMap<String, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}
