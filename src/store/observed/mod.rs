//! Spans and metrics around the store of a layer: one span per operation, its duration, and its result.
//!
//! Without a subscriber for the spans and without the feature `metrics`, an operation passes through unchanged.

mod health_metric;

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tracing::Span;

use self::health_metric::HealthMetric;
use super::{
    error::StoreError,
    future::StoreFuture,
    health::HealthStatus,
    operation::{Kind, Operation},
    session_store::SessionStore,
    span,
    wrapper::StoreWrapper,
};
use crate::metrics::{self, LOAD_DURATION, SAVE_DURATION, STORE_ERRORS, Stopwatch, VALUES_DURATION};

/// The result of an operation that was dropped before there was a reply.
const CANCELLED: &str = "cancelled";

/// A store with spans and metrics.
pub(crate) struct Observed {
    store: Arc<dyn SessionStore>,
    health: HealthMetric,
}

impl Observed {
    pub(crate) fn new(store: impl SessionStore + 'static) -> Self {
        Self { store: Arc::new(store), health: HealthMetric::default() }
    }

    fn span(&self, operation: &impl Operation) -> Span {
        tracing::debug_span!(
            target: span::TARGET,
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
        )
    }
}

impl StoreWrapper for Observed {
    type Inner = dyn SessionStore;

    fn inner(&self) -> &Self::Inner {
        &*self.store
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        let span = self.span(&operation);
        if span.is_disabled() && !Stopwatch::RUNS {
            return operation.run(&*self.store);
        }
        let (name, is_rotation) = (operation.name(), operation.is_rotation());
        let started = Stopwatch::start();
        let reply = span.in_scope(|| operation.run(&*self.store));
        let measurement = Measurement::<O> { store: self, name, is_rotation, span, started, of: PhantomData };
        match reply.peek() {
            Some(ready) => {
                measurement.complete(ready);
                reply
            }
            None => StoreFuture::boxed(Measured { reply, measurement, is_complete: false }),
        }
    }
}

/// A measurement of a running operation.
struct Measurement<'a, O> {
    store: &'a Observed,
    name: &'static str,
    is_rotation: bool,
    span: Span,
    started: Stopwatch,
    of: PhantomData<fn(O)>,
}

impl<O: Operation> Measurement<'_, O> {
    fn complete(&self, reply: &Result<O::Reply, StoreError>) {
        let error = reply.as_ref().map_or_else(Some, O::doubt_in);
        if let Some(error) = error
            && !self.span.is_disabled()
        {
            let code = server_code(error);
            if let Some(code) = code {
                self.span.record("db.response.status_code", code);
            }
            self.record_error(code.unwrap_or(error.class()));
        }
        if Stopwatch::RUNS {
            self.record_duration(reply.as_ref().map_or("error", O::result));
            if let Some(error) = error {
                metrics::count(&STORE_ERRORS, [("class", error.class())]);
            }
            self.record_health(reply);
        }
    }

    /// The caller dropped the operation.
    fn cancelled(&self) {
        if self.name == "count" {
            return; // it takes time in proportion to the sessions, so callers limit it themselves
        }
        self.record_error(CANCELLED);
        if Stopwatch::RUNS {
            self.record_duration(CANCELLED);
            metrics::count(&STORE_ERRORS, [("class", CANCELLED)]);
        }
    }

    fn record_error(&self, class: &str) {
        self.span.record("error.type", class);
        self.span.record("otel.status_code", "ERROR");
    }

    fn record_duration(&self, result: &'static str) {
        let seconds = || self.started.seconds();
        match O::KIND {
            Kind::Load => metrics::record(&LOAD_DURATION, [("result", result)], seconds()),
            Kind::Write => {
                let kind = if self.is_rotation { "rotate" } else { self.name };
                metrics::record(&SAVE_DURATION, [("kind", kind), ("result", result)], seconds());
            }
            Kind::Value => {
                metrics::record(&VALUES_DURATION, [("operation", self.name), ("result", result)], seconds());
            }
            Kind::Read | Kind::WriteUser | Kind::Health | Kind::Event => {}
        }
    }

    fn record_health(&self, reply: &Result<O::Reply, StoreError>) {
        let Observed { store, health } = self.store;
        let served = match reply {
            Ok(_) => !store.is_degraded(),
            Err(StoreError::Corrupt(_) | StoreError::Unsupported(_)) => true,
            Err(StoreError::Outage(_) | StoreError::Configuration(_)) => false,
        };
        match O::KIND {
            Kind::Health => match reply.as_ref().ok().and_then(O::health_in) {
                Some(HealthStatus::Up) => health.write(served),
                Some(HealthStatus::Degraded) => health.write(false),
                Some(HealthStatus::Down) | None => health.read(false),
            },
            Kind::Event | Kind::Value => {}
            Kind::Load | Kind::Read => health.read(served),
            Kind::Write | Kind::WriteUser => health.write(served),
        }
    }
}

/// The code of a Redis error reply.
fn server_code(error: &StoreError) -> Option<&str> {
    #[cfg(feature = "redis")]
    return super::redis::status_code(error);
    #[cfg(not(feature = "redis"))]
    {
        let _ = error;
        None
    }
}

/// The reply to an operation that is being measured.
struct Measured<'a, O: Operation> {
    reply: StoreFuture<'a, O::Reply>,
    measurement: Measurement<'a, O>,
    is_complete: bool,
}

impl<O: Operation> Future for Measured<'_, O> {
    type Output = Result<O::Reply, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { reply, measurement, is_complete } = &mut *self;
        let reply = {
            let _entered = measurement.span.enter();
            ready!(Pin::new(reply).poll(cx))
        };
        *is_complete = true;
        measurement.complete(&reply);
        Poll::Ready(reply)
    }
}

impl<O: Operation> Drop for Measured<'_, O> {
    fn drop(&mut self) {
        if !self.is_complete {
            self.measurement.cancelled();
        }
    }
}
