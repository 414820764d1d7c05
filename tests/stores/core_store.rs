//! A store with only the six required operations.

use std::{convert::Infallible, sync::Arc};

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Limits, ManualClock, MemoryStore, Rejection, Session, SessionError, SessionId, SessionLayer, WhenFull,
    store::{
        Ability, Created, End, EndOutcome, Entry, Found, Health, Outcome, SessionStore, StoreError, StoreExt,
        StoreFuture, Version, testing,
    },
};

use crate::support::log::Log;

/// With `forgets`, ended sessions leave no tombstone.
struct CoreStore {
    memory: MemoryStore,
    forgets: bool,
}

impl CoreStore {
    fn new(clock: &ManualClock) -> Self {
        Self { memory: MemoryStore::new().clock(clock.clone()), forgets: false }
    }
}

impl SessionStore for CoreStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(async move {
            match self.memory.load(id).await? {
                Found::Ended(_) if self.forgets => Ok(Found::Unknown),
                found => Ok(found),
            }
        })
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        assert_eq!(limits, Limits::none(), "limits that the store cannot enforce");
        self.memory.create(id, new, limits)
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.memory.update(id, expected, new)
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.memory.touch(id, entry)
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        self.memory.end(id, end)
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.memory.health()
    }
}

#[tokio::test]
async fn the_core_is_tested_alone() {
    let clock = ManualClock::new();
    let store = CoreStore::new(&clock);
    let report = testing::run(&store, async |time| clock.advance(time)).await;
    report.assert_passed();
    assert_eq!(report.skipped(), [Ability::Users, Ability::Scan]);
    assert!(report.passed() > 5_000, "{report}");

    let complete = MemoryStore::new().clock(clock.clone());
    let report = testing::run(&complete, async |time| clock.advance(time)).await;
    assert_eq!(report.skipped(), []);
}

#[tokio::test]
async fn a_core_that_breaks_a_promise_is_found() {
    let clock = ManualClock::new();
    let store = CoreStore { forgets: true, ..CoreStore::new(&clock) };
    let report = testing::run(&store, async |time| clock.advance(time)).await;
    assert!(report.failures().len() > 100, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_core_is_tested_alone_by_many_threads() {
    let store = Arc::new(CoreStore::new(&ManualClock::new()));
    let report = testing::run_parallel(store, |task| drop(tokio::spawn(task))).await;
    report.assert_passed();
    assert!(report.passed() > 80, "{report}");
}

async fn log_in(layer: &SessionLayer) -> StatusCode {
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap().clone();
        session.load().await.unwrap();
        session.login("ana").unwrap();
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    service.oneshot(Request::new(())).await.unwrap().status()
}

#[tokio::test]
async fn a_core_without_limits_serves_users() {
    let layer = SessionLayer::new(CoreStore::new(&ManualClock::new()));
    layer.check().unwrap();
    assert_eq!(log_in(&layer).await, StatusCode::OK);
    // A function that sets no limit for this user.
    let layer = layer.limits_by(|_| Limits::none());
    assert_eq!(log_in(&layer).await, StatusCode::OK);
}

#[tokio::test]
async fn limits_that_cannot_be_enforced_are_an_error() {
    let log = Log::capture();
    let layer = SessionLayer::new(CoreStore::new(&ManualClock::new())).limits(Limits::per_user(1, WhenFull::Reject));
    assert_eq!(log.text().matches("the store cannot enforce them").count(), 1, "{}", log.text());
    assert!(matches!(layer.check(), Err(StoreError::Unsupported(Ability::Users))));
    assert_eq!(log_in(&layer).await, StatusCode::INTERNAL_SERVER_ERROR);
    let error = layer.sessions().create("ana").await.unwrap_err();
    assert!(matches!(error, SessionError::Store(StoreError::Unsupported(Ability::Users))), "{error:?}");
    assert_eq!(Rejection::from(error).status(), StatusCode::INTERNAL_SERVER_ERROR);
    layer.sessions().create(tower_keep::NewSession::default()).await.unwrap();
}

#[tokio::test]
async fn missing_abilities_are_unsupported() {
    let layer = SessionLayer::new(CoreStore::new(&ManualClock::new()));
    let sessions = layer.sessions();
    assert!(matches!(sessions.list("ana").await, Err(StoreError::Unsupported(Ability::Users))));
    assert!(matches!(sessions.revoke_user("ana").await, Err(StoreError::Unsupported(Ability::Users))));
    assert!(matches!(sessions.count().await, Err(StoreError::Unsupported(Ability::Scan))));
    let store = CoreStore::new(&ManualClock::new());
    assert!(matches!(store.require_values(), Err(StoreError::Unsupported(Ability::Values))));
}
