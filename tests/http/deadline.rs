//! The time that a request waits for its store.

use std::{convert::Infallible, sync::Arc, time::Duration};

use crate::support::spy::Spy;
use http::{Request, Response, StatusCode, header};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Bearer, ManualClock, NewSession, Session, SessionError, SessionLayer,
    store::{Fallback, FallbackMode, Guard, MigratingStore, SessionStore, StoreError},
};

const OPERATION: Duration = Duration::from_millis(100);
const REQUEST: Duration = Duration::from_millis(200);

/// A layer with a deadline of 200 ms, its store, and the bearer token of a session.
async fn place() -> (SessionLayer, Spy, String) {
    let spy = Spy::new();
    let layer = SessionLayer::new(spy.clone()).bearer(Bearer::new()).deadline(REQUEST);
    let token = layer.sessions().create("ana").await.unwrap();
    (layer, spy, format!("Bearer {}", token.expose()))
}

/// Serves a request with a handler. Returns the status and the duration.
async fn request<F>(layer: &SessionLayer, authorization: &str, handler: impl Fn(Session) -> F) -> (StatusCode, Duration)
where
    F: Future<Output = Result<(), SessionError>>,
{
    let handler = &handler;
    let service = layer.layer(service_fn(move |request: Request<()>| async move {
        let session = request.extensions().get::<Session>().unwrap().clone();
        let mut response = Response::new(String::new());
        *response.status_mut() = match session.load().await {
            Ok(()) => match handler(session).await {
                Ok(()) => StatusCode::OK,
                Err(_) => StatusCode::BAD_GATEWAY,
            },
            Err(rejection) => rejection.status(),
        };
        Ok::<_, Infallible>(response)
    }));
    let request = Request::builder().header(header::AUTHORIZATION, authorization).body(()).unwrap();
    let began = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    (response.status(), began.elapsed())
}

async fn change(session: Session) -> Result<(), SessionError> {
    session.insert("n", &(session.get::<u32>("n")?.unwrap_or(0) + 1))
}

#[tokio::test(start_paused = true)]
async fn a_lookup_is_limited() {
    let (layer, spy, token) = place().await;
    spy.hang();
    let nothing = async |_: Session| Ok(());
    assert_eq!(request(&layer, &token, nothing).await, (StatusCode::SERVICE_UNAVAILABLE, REQUEST));
    assert_eq!(layer.stats().outages, 1);
}

#[tokio::test(start_paused = true)]
async fn lookup_and_save_share_the_limit() {
    let (layer, spy, token) = place().await;
    spy.slow_down(Duration::from_millis(90));
    assert_eq!(request(&layer, &token, change).await, (StatusCode::OK, Duration::from_millis(180)));
    spy.slow_down(Duration::from_millis(150));
    assert_eq!(request(&layer, &token, change).await, (StatusCode::SERVICE_UNAVAILABLE, REQUEST));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_extended_in_time_is_served() {
    let clock = ManualClock::new();
    let spy = Spy::with_clock(clock.clone());
    let layer = SessionLayer::new(spy.clone()).bearer(Bearer::new()).deadline(REQUEST).clock(clock.clone());
    let token = format!("Bearer {}", layer.sessions().create("ana").await.unwrap().expose());
    clock.advance(Duration::from_secs(20 * 60));
    let _never = spy.hold_next("touch");
    let user = async |session: Session| {
        assert_eq!(session.user()?.as_deref(), Some("ana"));
        Ok(())
    };
    assert_eq!(request(&layer, &token, user).await, (StatusCode::OK, REQUEST));
    assert_eq!(spy.calls(), ["create", "load", "touch"]);
    assert_eq!(layer.stats().outages, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_save_does_not_wait_again() {
    let (layer, spy, token) = place().await;
    let store = spy.clone();
    let handler = move |session: Session| {
        store.hang();
        async move {
            session.insert("k", &1)?;
            assert!(matches!(session.save().await, Err(SessionError::Store(StoreError::Outage(_)))));
            Ok(())
        }
    };
    assert_eq!(request(&layer, &token, handler).await, (StatusCode::SERVICE_UNAVAILABLE, REQUEST));
    assert_eq!(spy.calls().iter().filter(|call| **call == "update").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_handler_does_not_count() {
    let (layer, spy, token) = place().await;
    spy.slow_down(Duration::from_millis(90));
    let handler = async |session: Session| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        change(session).await
    };
    assert_eq!(request(&layer, &token, handler).await, (StatusCode::OK, Duration::from_millis(60_180)));
}

#[tokio::test(start_paused = true)]
async fn each_explicit_save_starts_a_new_budget() {
    let (layer, spy, token) = place().await;
    spy.slow_down(Duration::from_millis(90));
    let handler = async |session: Session| {
        for n in 0..100 {
            session.insert("k", &n)?;
            session.save().await?;
        }
        Ok(())
    };
    assert_eq!(request(&layer, &token, handler).await, (StatusCode::OK, Duration::from_millis(101 * 90)));
}

/// Events of a login are published after the login.
#[tokio::test(start_paused = true)]
async fn events_do_not_use_the_time_of_writes() {
    let (layer, spy, _) = place().await;
    let token = layer.sessions().create(NewSession::anonymous()).await.unwrap();
    let store = spy.clone();
    let handler = move |session: Session| {
        store.hang_on_events();
        async move { session.login("ana") }
    };
    let authorization = format!("Bearer {}", token.expose());
    assert_eq!(request(&layer, &authorization, handler).await, (StatusCode::OK, REQUEST));
    assert_eq!(layer.sessions().list("ana").await.unwrap().len(), 2);
}

/// Waiting for other requests that write the same session is bounded, even if their store hangs.
#[tokio::test(start_paused = true)]
async fn many_requests_that_wait_for_one_session_end_in_time() {
    let (layer, spy, token) = place().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let store = spy.clone();
    let handler = |number: u32| {
        let (barrier, store) = (barrier.clone(), store.clone());
        move |session: Session| {
            let (barrier, store) = (barrier.clone(), store.clone());
            async move {
                session.insert("n", &number)?;
                barrier.wait().await; // all have loaded the same version
                store.slow_down(Duration::from_millis(60));
                Ok(())
            }
        }
    };
    let all = (0..50).map(|number| request(&layer, &token, handler(number)));
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let began = Instant::now();
    std::future::poll_fn(|cx| {
        all.retain_mut(|request| request.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert!(began.elapsed() <= 2 * REQUEST, "{:?}", began.elapsed());
}

/// A WebSocket or an event stream runs for hours.
#[tokio::test(start_paused = true)]
async fn a_save_after_the_response_is_limited_by_the_store() {
    let (layer, spy, token) = place().await;
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = kept.clone();
    let handler = move |session: Session| {
        *keep.lock().unwrap() = Some(session);
        async { Ok(()) }
    };
    assert_eq!(request(&layer, &token, handler).await.0, StatusCode::OK);
    let session = kept.lock().unwrap().take().unwrap();
    spy.hang();
    for _ in 0..3 {
        session.insert("k", &1).unwrap();
        let began = Instant::now();
        assert!(matches!(session.save().await, Err(SessionError::Store(_))));
        assert_eq!(began.elapsed(), REQUEST);
    }
    spy.recover();
    session.save().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_default_is_twice_the_timeout_of_an_operation() {
    let spy = Spy::new();
    let layer = SessionLayer::new(Guard::new(spy.clone()).deadline(OPERATION).open_after(1000)).bearer(Bearer::new());
    let token = format!("Bearer {}", layer.sessions().create("ana").await.unwrap().expose());
    let store = spy.clone();
    // A hundred milliseconds each: at least 1,000 without the limit of the layer.
    let handler = move |session: Session| {
        store.hang();
        async move {
            session.insert("k", &1)?;
            for _ in 0..10 {
                let _ = session.save().await;
            }
            Ok(())
        }
    };
    assert_eq!(request(&layer, &token, handler).await, (StatusCode::SERVICE_UNAVAILABLE, REQUEST));
}

#[tokio::test]
async fn wrappers_include_the_deadline_of_their_store() {
    let guard = || Guard::new(Spy::new()).deadline(OPERATION);
    assert_eq!(Spy::new().operation_deadline(), None);
    assert_eq!(guard().operation_deadline(), Some(OPERATION));
    assert_eq!(Arc::new(guard()).operation_deadline(), Some(OPERATION));
    assert!(Fallback::new(guard(), FallbackMode::Reject).operation_deadline() > Some(OPERATION));
    assert_eq!(Fallback::new(Spy::new(), FallbackMode::Reject).operation_deadline(), None);
    assert_eq!(MigratingStore::new(guard(), guard()).operation_deadline(), Some(4 * OPERATION));
    assert_eq!(MigratingStore::new(guard(), Spy::new()).operation_deadline(), None);
}
