//! What is seen of a store from outside: a span for every operation, how long it took, and what came of it.
//!
//! It lies around the store of a layer. Where nobody wants the spans, and without the feature `metrics`, an operation goes
//! through as it is.

mod troubles;
mod values;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tracing::Span;

use self::troubles::Troubles;
use super::{
    Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, Published, SessionStore, StoreError, StoreFuture,
    ValueStore, Version, health::HealthStatus,
};
use crate::{
    ended::EndReason,
    event::Event,
    limits::Limits,
    metrics::{self, LOAD_DURATION, SAVE_DURATION, STORE_ERRORS, Stopwatch, VALUES_DURATION},
    token::SessionId,
};

/// The target of the spans.
const SPANS: &str = "tower_keep::store";

/// What an operation ends with that is dropped before there is an answer.
const GIVEN_UP: &str = "cancelled";

/// The span of the operation that is under way, if it is watched. Those of others are not for us to write in.
#[cfg(feature = "redis")]
pub(crate) fn span() -> Option<Span> {
    let enabled = tracing::span_enabled!(target: SPANS, tracing::Level::DEBUG);
    enabled.then(Span::current).filter(|span| span.metadata().is_some_and(|metadata| metadata.target() == SPANS))
}

pub(crate) struct Observed<S> {
    store: S,
    troubles: Troubles,
}

impl<S: SessionStore> Observed<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, troubles: Troubles::default() }
    }

    fn observe<'a, T: Answer + Send + 'a>(
        &'a self,
        operation: Operation,
        ask: impl FnOnce(&'a S) -> StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        let span = tracing::debug_span!(
            target: SPANS,
            "session_store",
            otel.name = operation.name(),
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            db.system.name = self.store.name(),
            db.operation.name = operation.name(),
            db.operation.batch.size = tracing::field::Empty,
            db.stored_procedure.name = tracing::field::Empty,
            db.response.status_code = tracing::field::Empty,
            error.type = tracing::field::Empty,
            server.address = tracing::field::Empty,
            server.port = tracing::field::Empty,
        );
        if span.is_disabled() && !Stopwatch::RUNS {
            return ask(&self.store);
        }
        let began = Stopwatch::start();
        let answer = span.in_scope(|| ask(&self.store));
        let observation = Observation { store: self, operation, span, began };
        match answer.known() {
            Some(known) => {
                observation.ends(known);
                answer
            }
            None => StoreFuture::boxed(Observing { answer, observation, is_over: false }),
        }
    }
}

/// What is asked of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Load,
    Create,
    Update { rotates: bool },
    Touch,
    End,
    Replace,
    Consume,
    List,
    EndUser,
    Scan,
    Count,
    Health,
    Publish,
    Events,
    OnValues(&'static str),
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Create => "create",
            Self::Update { .. } => "update",
            Self::Touch => "touch",
            Self::End => "end",
            Self::Replace => "replace",
            Self::Consume => "consume",
            Self::List => "list",
            Self::EndUser => "end_user",
            Self::Scan => "scan",
            Self::Count => "count",
            Self::Health => "health",
            Self::Publish => "publish",
            Self::Events => "events",
            Self::OnValues(name) => name,
        }
    }

    /// As what its duration counts among the saves, if it is one.
    fn kind_of_save(self) -> Option<&'static str> {
        match self {
            Self::Update { rotates: true } => Some("rotate"),
            Self::Create | Self::Update { .. } | Self::Touch | Self::End | Self::Replace | Self::Consume => {
                Some(self.name())
            }
            _ => None,
        }
    }
}

/// An operation under way.
struct Observation<'a, S> {
    store: &'a Observed<S>,
    operation: Operation,
    span: Span,
    began: Stopwatch,
}

impl<S: SessionStore> Observation<'_, S> {
    fn ends<T: Answer>(&self, answer: &Result<T, StoreError>) {
        if let Some(error) = failure(answer)
            && !self.span.is_disabled()
        {
            let code = error.status_code();
            if let Some(code) = code {
                self.span.record("db.response.status_code", code);
            }
            self.fails(code.unwrap_or(error.class()));
        }
        if Stopwatch::RUNS {
            self.measure(answer);
        }
    }

    /// Nobody waits for the answer any more.
    fn is_given_up(&self) {
        if self.operation == Operation::Count {
            return; // it takes as long as there are sessions: whoever asks waits as long as they like
        }
        self.fails(GIVEN_UP);
        if Stopwatch::RUNS {
            self.took(GIVEN_UP);
            metrics::count(&STORE_ERRORS, [("class", GIVEN_UP)]);
        }
    }

    fn fails(&self, why: &str) {
        self.span.record("error.type", why);
        self.span.record("otel.status_code", "ERROR");
    }

    fn took(&self, result: &'static str) {
        if self.operation == Operation::Load {
            metrics::record(&LOAD_DURATION, [("result", result)], self.began.seconds());
        } else if let Some(kind) = self.operation.kind_of_save() {
            let result = if result == "live" { "done" } else { result }; // what was consumed is not alive any more
            metrics::record(&SAVE_DURATION, [("kind", kind), ("result", result)], self.began.seconds());
        } else if let Operation::OnValues(name) = self.operation {
            let labels = [("operation", name), ("result", result)];
            metrics::record(&VALUES_DURATION, labels, self.began.seconds());
        }
    }

    fn measure<T: Answer>(&self, answer: &Result<T, StoreError>) {
        self.took(answer.as_ref().map_or("error", T::result));
        if let Some(error) = failure(answer) {
            metrics::count(&STORE_ERRORS, [("class", error.class())]);
        }
        let Observed { store, troubles } = self.store;
        let answers = match answer {
            Ok(_) => !store.is_degraded(),
            Err(StoreError::Corrupt(_)) => true,
            Err(StoreError::Outage(_) | StoreError::Configuration(_)) => false,
        };
        match (self.operation, answer.as_ref().ok().and_then(T::health)) {
            (_, Some(HealthStatus::Degraded)) => troubles.written(false),
            (_, Some(HealthStatus::Down)) | (Operation::Health, None) => troubles.read(false),
            // Nobody's session depends on them.
            (Operation::Publish | Operation::Events | Operation::OnValues(_), _) => {}
            (Operation::Load | Operation::List | Operation::Scan | Operation::Count, _) => troubles.read(answers),
            _ => troubles.written(answers),
        }
    }
}

/// The answer to an operation that is observed.
struct Observing<'a, S: SessionStore, T> {
    answer: StoreFuture<'a, T>,
    observation: Observation<'a, S>,
    is_over: bool,
}

impl<S: SessionStore, T: Answer> Future for Observing<'_, S, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { answer, observation, is_over } = &mut *self;
        let answer = {
            let _entered = observation.span.enter();
            ready!(Pin::new(answer).poll(cx))
        };
        *is_over = true;
        observation.ends(&answer);
        Poll::Ready(answer)
    }
}

impl<S: SessionStore, T> Drop for Observing<'_, S, T> {
    fn drop(&mut self) {
        if !self.is_over {
            self.observation.is_given_up();
        }
    }
}

/// What came of an operation.
trait Answer {
    fn result(&self) -> &'static str {
        "done"
    }

    fn health(&self) -> Option<HealthStatus> {
        None
    }

    /// What failed, though there is an answer.
    fn error(&self) -> Option<&StoreError> {
        None
    }
}

fn failure<T: Answer>(answer: &Result<T, StoreError>) -> Option<&StoreError> {
    answer.as_ref().map_or_else(Some, T::error)
}

impl Answer for Found {
    fn result(&self) -> &'static str {
        match self {
            Self::Live(_) => "live",
            Self::Ended(_) => "ended",
            Self::Unknown => "unknown",
        }
    }
}

impl Answer for Created {
    fn result(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Taken => "taken",
            Self::Full => "full",
        }
    }
}

impl Answer for Outcome {
    fn result(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Conflict(_) => "conflict",
            Self::Gone => "gone",
        }
    }
}

impl Answer for Health {
    fn health(&self) -> Option<HealthStatus> {
        Some(self.status())
    }
}

impl Answer for () {}
impl Answer for u64 {}
impl Answer for Page {}
impl Answer for Published {}
impl<T> Answer for Vec<T> {}

impl<S: SessionStore> SessionStore for Observed<S> {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.observe(Operation::Load, |store| store.load(id))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.observe(Operation::Create, |store| store.create(id, new, limits))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        let rotates = new.record.rotates();
        self.observe(Operation::Update { rotates }, |store| store.update(id, expected, new))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.observe(Operation::Touch, |store| store.touch(id, entry))
    }

    fn end<'a>(&'a self, id: &'a SessionId, reason: EndReason) -> StoreFuture<'a, Outcome> {
        self.observe(Operation::End, |store| store.end(id, reason))
    }

    fn replace<'a>(
        &'a self,
        id: &'a SessionId,
        expected: Option<Version>,
        successor: &'a SessionId,
    ) -> StoreFuture<'a, Outcome> {
        self.observe(Operation::Replace, |store| store.replace(id, expected, successor))
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        self.observe(Operation::Consume, |store| store.consume(id, claim))
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.observe(Operation::List, |store| store.list(user))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.observe(Operation::EndUser, |store| store.end_user(user, except, reason))
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        self.observe(Operation::Scan, |store| store.scan(from, count))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.observe(Operation::Count, |store| store.count())
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.observe(Operation::Health, |store| store.health())
    }

    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn operation_deadline(&self) -> Option<Duration> {
        self.store.operation_deadline()
    }

    fn is_degraded(&self) -> bool {
        self.store.is_degraded()
    }

    fn publish<'a>(&'a self, event: &'a Event) -> StoreFuture<'a, ()> {
        self.observe(Operation::Publish, |store| store.publish(event))
    }

    fn events<'a>(&'a self, from: Option<&'a Cursor>) -> StoreFuture<'a, Published> {
        self.observe(Operation::Events, |store| store.events(from))
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        self.store.values().map(|_| self as &dyn ValueStore)
    }
}
