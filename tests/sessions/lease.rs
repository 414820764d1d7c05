//! Leases: one holder across requests and instances.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;
use tower_keep::{
    ManualClock, MemoryStore, Session, SessionCookie, SessionError, SessionLayer,
    store::{
        Codec, SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

use crate::support::{
    app::{App, Kept},
    client::Client,
    redis_server::RedisServer,
    spy::Spy,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Two instances with one client, each with a handle of its session.
struct World {
    clock: ManualClock,
    client: Client,
    one: Session,
    two: Session,
    _apps: [App; 2],
}

impl World {
    async fn over(store: Arc<dyn SessionStore>, clock: ManualClock) -> Self {
        let (one, client, session) = instance(&store, &clock, None).await;
        let (two, _, other) = instance(&store, &clock, client.cookie("session")).await;
        Self { clock, client, one: session, two: other, _apps: [one, two] }
    }
}

async fn instance(store: &Arc<dyn SessionStore>, clock: &ManualClock, token: Option<String>) -> (App, Client, Session) {
    let (kept, layer) = (Kept::default(), SessionLayer::new(store.clone()));
    let layer = layer.cookie(SessionCookie::development()).clock(clock.clone());
    let app = App::serve(|router| router.route("/keep", kept.handler()).layer(layer)).await;
    let client = app.client();
    match token {
        Some(token) => client.set_cookie("session", &token),
        None => drop(client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await),
    }
    client.get("/keep").await;
    (app, client, kept.session())
}

async fn one_request_holds_a_lease(store: Arc<dyn SessionStore>) {
    let w = World::over(store, ManualClock::new()).await;
    let lease = w.one.lease("refresh", MINUTE).await.unwrap().expect("it is free");
    assert!(w.two.lease("refresh", MINUTE).await.unwrap().is_none());
    assert!(w.one.lease("refresh", MINUTE).await.unwrap().is_none(), "also in the same process");
    assert!(w.two.lease("another", MINUTE).await.unwrap().is_some());
    // The session is used as usual meanwhile.
    w.client.perform(json!([["insert", "k", 2]])).await;
    w.one.insert("token", "new").unwrap();
    w.one.save().await.unwrap();
    lease.release().await.unwrap();
    let lease = w.two.lease("refresh", MINUTE).await.unwrap().expect("it was released");
    assert_eq!(
        w.two.get::<String>("token").unwrap().as_deref(),
        Some("new"),
        "the holder sees what the one before saved"
    );
    let seen = w.client.perform(json!([["get", "k"], ["get", "token"]])).await;
    assert_eq!(seen, [json!(2), json!("new")]);
    // Expired, because its holder died. It releases nothing any more.
    w.clock.advance(MINUTE);
    let next = w.one.lease("refresh", MINUTE).await.unwrap().expect("it has expired");
    assert!(next.expires_at() > lease.expires_at());
    lease.release().await.unwrap();
    assert!(w.two.lease("refresh", MINUTE).await.unwrap().is_none());
    // A lease does not extend the session, and ends with it.
    w.client.perform(json!([["logout"]])).await;
    assert!(matches!(w.two.lease("refresh", MINUTE).await, Err(SessionError::Ended)));
    next.release().await.unwrap();
}

#[tokio::test]
async fn one_request_holds_a_lease_in_memory() {
    one_request_holds_a_lease(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn one_request_holds_a_lease_in_redis() {
    let server = RedisServer::start().await;
    for codec in [Codec::Json, Codec::MessagePack] {
        let config = RedisConfig::from_url(&server.url()).unwrap().codec(codec);
        one_request_holds_a_lease(Arc::new(RedisStore::new(config))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_concurrent_requests_gets_the_lease() {
    let w = World::over(Arc::new(MemoryStore::new()), ManualClock::new()).await;
    let mut requests = JoinSet::new();
    for n in 0..32 {
        let session = if n % 2 == 0 { w.one.clone() } else { w.two.clone() };
        requests.spawn(async move { session.lease("refresh", MINUTE).await.unwrap() });
    }
    assert_eq!(requests.join_all().await.into_iter().flatten().count(), 1);
}

#[tokio::test]
async fn a_lease_does_not_extend_the_session() {
    let clock = ManualClock::new();
    let w = World::over(Arc::new(MemoryStore::new().clock(clock.clone())), clock).await;
    w.clock.advance(20 * MINUTE);
    let left = w.one.expires_in().unwrap();
    let lease = w.one.lease("refresh", MINUTE).await.unwrap().unwrap();
    assert_eq!(w.one.expires_in().unwrap(), left);
    lease.release().await.unwrap();
    w.clock.advance(10 * MINUTE);
    assert!(matches!(w.one.lease("refresh", MINUTE).await, Err(SessionError::Ended)));
}

/// It may be taken, and expires then.
#[tokio::test]
async fn a_lost_reply_leaves_a_lease_that_expires() {
    let spy = Spy::new();
    let w = World::over(Arc::new(spy.clone()), ManualClock::new()).await;
    spy.lose_next_answer("update");
    assert!(matches!(w.one.lease("refresh", MINUTE).await, Err(SessionError::Store(_))));
    assert!(w.two.lease("refresh", MINUTE).await.unwrap().is_none());
    w.clock.advance(MINUTE);
    assert!(w.two.lease("refresh", MINUTE).await.unwrap().is_some());
}
