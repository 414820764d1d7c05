//! The sessions of users, outside and inside requests: listed, limited, revoked, used once, published; in memory and Redis.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::support::{app::App, client::Client, redis_server::RedisServer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use tower_keep::{
    ClientInfo, Consumed, EndReason, EventKind, Key, Lifetime, Limits, MemoryStore, Metadata, NewSession, OnCorrupt,
    PeerAddr, Session, SessionCookie, SessionError, SessionId, SessionLayer, Sessions, Token, WhenFull,
    store::{
        Codec, Cursor, SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const COOKIE: &str = "session";
const SECOND: Duration = Duration::from_secs(1);
const SEEN: Key<BTreeSet<u64>> = Key::new("seen");

/// Two instances with the same sessions.
struct World {
    layers: [SessionLayer; 2],
    redis: Option<RedisServer>,
    full: Arc<dyn SessionStore>,
}

impl World {
    fn over(stores: [Arc<dyn SessionStore>; 2], full: Arc<dyn SessionStore>, redis: Option<RedisServer>) -> Self {
        let layers = stores.map(|store| {
            SessionLayer::new(store)
                .cookie(SessionCookie::development())
                .limits_by(|user| match user {
                    "one" => Limits::per_user(1, WhenFull::EvictLeastRecentlyUsed),
                    "strict" => Limits::per_user(2, WhenFull::Reject),
                    _ => Limits::default(),
                })
                .merge(SEEN, |_, mine, theirs| {
                    Some(mine.unwrap_or_default().union(&theirs.unwrap_or_default()).copied().collect())
                })
                .client_info(ClientInfo::new().trust_proxies(["127.0.0.1"]).unwrap())
        });
        Self { layers, redis, full }
    }

    async fn memory() -> Self {
        let store = MemoryStore::new();
        let full = Arc::new(MemoryStore::new().capacity(3).reject_when_full());
        Self::over([Arc::new(store.clone()), Arc::new(store)], full, None)
    }

    async fn redis() -> Self {
        Self::redis_with(|config| config).await
    }

    async fn packed() -> Self {
        Self::redis_with(|config| config.codec(Codec::MessagePack)).await
    }

    async fn redis_with(change: impl Fn(RedisConfig) -> RedisConfig) -> Self {
        let redis = RedisServer::start().await;
        let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(10 * SECOND).connect_timeout(10 * SECOND);
        let config = change(config).share_events(100);
        let store = || Arc::new(RedisStore::new(config.clone()));
        let full = config.clone().prefix("full:").unwrap().max_sessions(3);
        Self::over([store(), store()], Arc::new(RedisStore::new(full)), Some(redis))
    }

    fn here(&self) -> Sessions {
        self.layers[0].sessions()
    }

    fn there(&self) -> Sessions {
        self.layers[1].sessions()
    }

    async fn app(&self) -> App {
        let layer = self.layers[0].clone();
        App::serve(|router| router.layer(layer).layer(axum::Extension(PeerAddr("127.0.0.1:1".parse().unwrap())))).await
    }

    async fn other_app(&self) -> App {
        App::start(self.layers[1].clone()).await
    }
}

async fn logged_in(app: &App, user: &str) -> Client {
    let client = app.client();
    client.one(json!(["login", user])).await;
    client
}

async fn id(client: &Client) -> SessionId {
    client.one(json!(["id"])).await.as_str().unwrap().parse().unwrap()
}

async fn ids(sessions: &Sessions, user: &str) -> Vec<SessionId> {
    sessions.list(user).await.unwrap().iter().map(|session| session.id()).collect()
}

macro_rules! promises {
    ($place:ident $($name:ident)*) => {
        mod $place {
            $(#[tokio::test]
            async fn $name() {
                crate::users::$name(crate::users::World::$place().await).await;
            })*
        }
    };
}

mod promised {
    promises! { memory
        a_user_lists_and_ends_own_sessions
        all_other_sessions_end_and_the_current_one_stays
    the_kept_session_never_looks_ended
        the_next_request_gets_the_end_reason
        one_device_at_a_time
        a_strict_limit_refuses_the_login_and_keeps_the_anonymous_session
        parallel_logins_never_exceed_the_limit
        parallel_logins_over_anonymous_sessions_never_exceed_the_limit
        a_full_store_is_429
        one_of_100_concurrent_uses_succeeds
        a_used_session_has_its_end_reason
        client_metadata_is_stored
        a_session_is_created_with_its_options
        every_session_is_scanned_and_counted
        two_writes_of_one_key_are_merged_by_the_function
        two_writes_of_one_key_without_a_merge_are_counted
        events_are_published
        a_typed_session_reads_and_writes_the_values
        a_moved_session_is_listed_once
        an_id_is_not_a_credential
    }
    promises! { redis
        a_user_lists_and_ends_own_sessions
        all_other_sessions_end_and_the_current_one_stays
        the_next_request_gets_the_end_reason
        one_device_at_a_time
        a_strict_limit_refuses_the_login_and_keeps_the_anonymous_session
        parallel_logins_never_exceed_the_limit
        parallel_logins_over_anonymous_sessions_never_exceed_the_limit
        a_full_store_is_429
        one_of_100_concurrent_uses_succeeds
        a_used_session_has_its_end_reason
        client_metadata_is_stored
        a_session_is_created_with_its_options
        every_session_is_scanned_and_counted
        two_writes_of_one_key_are_merged_by_the_function
        two_writes_of_one_key_without_a_merge_are_counted
        events_are_published
        events_of_other_instances_are_received
        a_typed_session_reads_and_writes_the_values
        a_moved_session_is_listed_once
        an_id_is_not_a_credential
        sessions_end_although_the_index_was_deleted
        a_lost_index_is_rebuilt
        ten_thousand_logins_leave_a_small_index
        all_keys_of_a_call_share_a_slot
        a_corrupt_record_is_an_outage_or_reset_as_configured
        a_corrupt_record_prevents_no_login
    }
    promises! { packed
        a_user_lists_and_ends_own_sessions
        one_device_at_a_time
        client_metadata_is_stored
        two_writes_of_one_key_are_merged_by_the_function
        a_moved_session_is_listed_once
        sessions_end_although_the_index_was_deleted
    }
}

async fn a_user_lists_and_ends_own_sessions(w: World) {
    let (app, other) = (w.app().await, w.other_app().await);
    let (phone, laptop, ben) =
        (logged_in(&app, "ana").await, logged_in(&other, "ana").await, logged_in(&app, "ben").await);
    let mut seen = ids(&w.here(), "ana").await;
    seen.sort_unstable();
    let mut expected = vec![id(&phone).await, id(&laptop).await];
    expected.sort_unstable();
    assert_eq!(seen, expected);
    assert!(w.here().revoke(&id(&phone).await).await.unwrap());
    // Refused at the next request, on every instance.
    assert_eq!(phone.one(json!(["user"])).await, json!(null));
    assert_eq!(phone.at(&other.url()).one(json!(["user"])).await, json!(null));
    assert_eq!(laptop.one(json!(["user"])).await, "ana");
    assert_eq!(ids(&w.there(), "ana").await, [id(&laptop).await]);
    assert_eq!(w.there().revoke_user("ana").await.unwrap(), 1);
    assert_eq!(laptop.one(json!(["user"])).await, json!(null));
    assert!(w.here().list("ana").await.unwrap().is_empty());
    assert_eq!(ben.one(json!(["user"])).await, "ben");
    assert!(!w.here().revoke(&expected[0]).await.unwrap(), "it had ended");
    // Then the client can log in again.
    phone.one(json!(["login", "ana"])).await;
    assert_eq!(ids(&w.here(), "ana").await, [id(&phone).await]);
}

async fn all_other_sessions_end_and_the_current_one_stays(w: World) {
    let app = w.app().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(logged_in(&app, "ana").await);
    }
    let current = logged_in(&app, "ana").await;
    current.one(json!(["insert", "k", 1])).await;
    let id = id(&current).await;
    for round in 0..2 {
        let ended = w.there().revoke_others("ana", &id).await.unwrap();
        assert_eq!(ended, if round == 0 { 3 } else { 0 });
        for other in &others {
            assert_eq!(other.one(json!(["user"])).await, json!(null));
        }
        assert_eq!(current.perform(json!([["user"], ["get", "k"], ["insert", "l", round]])).await[0], "ana");
        assert_eq!(ids(&w.here(), "ana").await, [id]);
    }
    current.one(json!(["rotate"])).await;
    assert_eq!(current.one(json!(["get", "l"])).await, 1);
}

async fn the_kept_session_never_looks_ended(w: World) {
    let (here, there) = (w.here(), w.there());
    let spared = here.create("ana").await.unwrap();
    let id = spared.id();
    for _ in 0..50 {
        here.create("ana").await.unwrap();
        let look = async || there.is_valid(&spared).await.unwrap();
        let (.., alive, alive_still) = tokio::join!(here.revoke_others("ana", &id), look(), look(), look());
        assert!(alive && alive_still);
    }
}

async fn the_next_request_gets_the_end_reason(w: World) {
    let app = w.app().await;
    let revoked = logged_in(&app, "ana").await;
    w.here().revoke_user("ana").await.unwrap();
    assert_eq!(revoked.one(json!(["ended"])).await, "revoked");
    let elsewhere = logged_in(&app, "one").await;
    logged_in(&app, "one").await;
    assert_eq!(elsewhere.one(json!(["ended"])).await, "evicted");
    let out = logged_in(&app, "ana").await;
    let copy = out.twin();
    out.one(json!(["logout"])).await;
    assert_eq!(copy.one(json!(["ended"])).await, "logged_out");
    assert_eq!(app.client().one(json!(["ended"])).await, json!(null));
    let stranger = app.client();
    stranger.set_cookie(COOKIE, &"x".repeat(56));
    assert_eq!(stranger.one(json!(["ended"])).await, json!(null));
    // The end reason is returned until another session starts.
    revoked.one(json!(["login", "ana"])).await;
    assert_eq!(revoked.perform(json!([["user"], ["ended"]])).await, [json!("ana"), json!(null)]);
    // Also an expired one, if it had a user.
    let short = Lifetime::new(Duration::from_millis(30), Duration::from_millis(30)).unwrap();
    let token = w.here().create(NewSession::of("ana").lifetime(short)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(w.here().ended(&token.id()).await.unwrap().unwrap().reason, EndReason::Expired);
}

async fn one_device_at_a_time(w: World) {
    let (app, other) = (w.app().await, w.other_app().await);
    let first = logged_in(&app, "one").await;
    let second = logged_in(&other, "one").await;
    assert_eq!(first.perform(json!([["user"], ["ended"]])).await, [json!(null), json!("evicted")]);
    assert_eq!(second.one(json!(["user"])).await, "one");
    assert_eq!(w.layers[1].stats().evictions, 1);
    // Logging in over a session of the same user evicts nothing.
    second.one(json!(["login", "one"])).await;
    assert_eq!(ids(&w.here(), "one").await, [id(&second).await]);
    let error = first.post("/do", &json!([["login", "one"]])).await.status;
    assert_eq!(error.as_u16(), 200);
    assert_eq!(second.one(json!(["ended"])).await, "evicted");
}

async fn a_strict_limit_refuses_the_login_and_keeps_the_anonymous_session(w: World) {
    let app = w.app().await;
    let (a, _b) = (logged_in(&app, "strict").await, logged_in(&app, "strict").await);
    let third = app.client();
    third.one(json!(["insert", "cart", 1])).await;
    let reply = third.post("/do", &json!([["login", "strict"]])).await;
    assert_eq!(reply.status.as_u16(), 429);
    assert!(reply.set_cookies().is_empty());
    assert_eq!(third.perform(json!([["user"], ["get", "cart"]])).await, [json!(null), json!(1)]);
    assert!(matches!(w.here().create("strict").await, Err(SessionError::Full)));
    a.one(json!(["logout"])).await;
    third.one(json!(["login", "strict"])).await;
    assert_eq!(third.perform(json!([["user"], ["get", "cart"]])).await, [json!("strict"), json!(1)]);
}

async fn parallel_logins_never_exceed_the_limit(w: World) {
    let mut logins = JoinSet::new();
    for n in 0..32 {
        let sessions = if n % 2 == 0 { w.here() } else { w.there() };
        logins.spawn(async move { sessions.create("strict").await });
    }
    let results = logins.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(SessionError::Full))));
    assert_eq!(w.here().list("strict").await.unwrap().len(), 2);
}

async fn parallel_logins_over_anonymous_sessions_never_exceed_the_limit(w: World) {
    let app = w.app().await;
    let mut logins = JoinSet::new();
    for _ in 0..8 {
        let visitor = app.client();
        visitor.one(json!(["insert", "cart", 1])).await;
        logins.spawn(async move {
            visitor.one(json!(["login", "one"])).await;
            visitor
        });
    }
    let mut live = 0;
    for visitor in logins.join_all().await {
        live += usize::from(visitor.one(json!(["user"])).await == "one");
    }
    assert_eq!(live, 1);
    assert_eq!(w.here().list("one").await.unwrap().len(), 1);
}

async fn a_full_store_is_429(w: World) {
    let layer = SessionLayer::new(w.full.clone()).cookie(SessionCookie::development());
    let app = App::start(layer.clone()).await;
    let visitor = app.client();
    visitor.one(json!(["insert", "k", 1])).await;
    let mut creations = JoinSet::new();
    for n in 0..20 {
        let sessions = layer.sessions();
        let new = if n % 2 == 0 { NewSession::anonymous() } else { NewSession::of(format!("user {n}")) };
        creations.spawn(async move { sessions.create(new).await });
    }
    let created: Vec<Token> = creations.join_all().await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(created.len(), 2);
    assert_eq!(layer.sessions().count().await.unwrap(), 3);
    let refused = app.client();
    let reply = refused.post("/do", &json!([["insert", "k", 1]])).await;
    assert_eq!((reply.status.as_u16(), reply.set_cookies().len()), (429, 0));
    // Existing sessions are served.
    visitor.perform(json!([["insert", "k", 2], ["rotate"]])).await;
    assert!(layer.sessions().revoke(&created[0].id()).await.unwrap());
    refused.one(json!(["insert", "k", 1])).await;
    assert_eq!(layer.sessions().count().await.unwrap(), 3);
    visitor.one(json!(["logout"])).await;
    assert!(matches!(layer.sessions().consume(&created[1]).await.unwrap(), Consumed::Now(_)));
    assert!(layer.sessions().create("ana").await.is_ok());
    assert!(layer.sessions().create("ana").await.is_ok());
    assert!(matches!(layer.sessions().create("ana").await, Err(SessionError::Full)));
    assert_eq!(layer.sessions().revoke_user("ana").await.unwrap(), 2);
    assert!(layer.sessions().create("ana").await.is_ok());
}

async fn one_of_100_concurrent_uses_succeeds(w: World) {
    let token = w.here().create(NewSession::anonymous().insert("document", &17).unwrap()).await.unwrap();
    let mut uses = JoinSet::new();
    for n in 0..100 {
        let (sessions, token) = (if n % 2 == 0 { w.here() } else { w.there() }, token.clone());
        uses.spawn(async move { sessions.consume(&token).await.unwrap() });
    }
    let mut winners = 0;
    for used in uses.join_all().await {
        match used {
            Consumed::Now(session) => {
                assert_eq!(session.value::<u32>("document").unwrap(), Some(17));
                winners += 1;
            }
            Consumed::Before(ended) => assert_eq!(ended.reason, EndReason::Used),
            Consumed::Unknown => panic!("it was known"),
        }
    }
    assert_eq!(winners, 1);
    assert!(!w.here().is_valid(&token).await.unwrap());
    let stranger = Token::parse("x".repeat(56)).unwrap();
    assert!(matches!(w.here().consume(&stranger).await.unwrap(), Consumed::Unknown));
}

async fn a_used_session_has_its_end_reason(w: World) {
    let app = w.app().await;
    let client = app.client();
    client.one(json!(["insert", "voucher", 5])).await;
    let twin = client.twin();
    assert_eq!(client.perform(json!([["get", "voucher"], ["consume"]])).await, [json!(5), json!(true)]);
    assert_eq!(client.cookie(COOKIE), None, "its cookie is of no more use");
    assert_eq!(
        twin.perform(json!([["get", "voucher"], ["consume"], ["ended"]])).await,
        [json!(null), json!(false), json!("used")]
    );
    assert_eq!(app.client().one(json!(["consume"])).await, false);
    // Earlier changes are not saved afterwards.
    let other = app.client();
    other.one(json!(["insert", "voucher", 6])).await;
    let reply = other.post("/do", &json!([["insert", "voucher", 7], ["consume"]])).await;
    assert_eq!(reply.json()[1], true);
    assert_eq!(w.here().count().await.unwrap(), 0);
}

async fn client_metadata_is_stored(w: World) {
    let app = w.app().await;
    let client = app.client();
    let headers =
        [("user-agent", "curl/8"), ("x-forwarded-for", "6.6.6.6, 203.0.113.7"), ("content-type", "application/json")];
    let body = r#"[["login","ana"],["set_metadata","device","phone"]]"#;
    client.request(http::Method::POST, "/do", &headers, body.into()).await;
    // A later address changes nothing: the metadata is that of the login.
    client.perform(json!([["insert", "k", 1], ["rotate"]])).await;
    let listed = w.there().list("ana").await.unwrap();
    let metadata = listed[0].metadata();
    assert_eq!(metadata.ip(), Some([203, 0, 113, 7].into()));
    assert_eq!(metadata.user_agent(), Some("curl/8"));
    assert_eq!(metadata.field("device"), Some("phone"));
    // A new login has the metadata of its request.
    client.one(json!(["login", "ana"])).await;
    let metadata = w.there().list("ana").await.unwrap()[0].metadata().clone();
    assert_eq!((metadata.user_agent(), metadata.field("device")), (None, Some("phone")));
    client.one(json!(["set_metadata", "device", null])).await;
    assert_eq!(w.there().list("ana").await.unwrap()[0].metadata().field("device"), None);
    let large = "x".repeat(70_000);
    assert_eq!(client.post("/do", &json!([["set_metadata", "device", large]])).await.status.as_u16(), 500);
}

async fn a_session_is_created_with_its_options(w: World) {
    let half_an_hour = Duration::from_secs(30 * 60);
    let new = NewSession::of("ana")
        .lifetime(Lifetime::new(half_an_hour, half_an_hour).unwrap())
        .metadata(Metadata::default().with_field("made for", "a test"))
        .insert("k", &1)
        .unwrap();
    let token = w.here().create(new).await.unwrap();
    assert!(w.there().is_valid(&token).await.unwrap());
    let session = w.there().get(&token.id()).await.unwrap().unwrap();
    assert_eq!((session.id(), session.user()), (token.id(), Some("ana")));
    assert_eq!(session.value::<u32>("k").unwrap(), Some(1));
    assert!(session.value::<String>("k").is_err());
    assert_eq!(session.metadata().field("made for"), Some("a test"));
    let lives = session.expires_at().duration_since(session.created_at()).unwrap();
    assert!(lives <= half_an_hour && lives > half_an_hour - Duration::from_secs(20), "{lives:?}");
    assert!(!format!("{session:?}").contains("a test"));
    let too_large = NewSession::anonymous().insert("k", &"x".repeat(70_000)).unwrap();
    assert!(matches!(w.here().create(too_large).await, Err(SessionError::TooLarge { .. })));
    assert!(w.here().get(&Token::parse("x".repeat(56)).unwrap().id()).await.unwrap().is_none());
}

async fn every_session_is_scanned_and_counted(w: World) {
    let mut expected = BTreeSet::new();
    for n in 0..250 {
        let new = if n % 2 == 0 { NewSession::anonymous() } else { NewSession::of(format!("user {}", n % 7)) };
        expected.insert(w.here().create(new).await.unwrap().id());
    }
    for id in expected.iter().copied().take(10).collect::<Vec<_>>() {
        w.here().revoke(&id).await.unwrap();
        expected.remove(&id);
    }
    assert_eq!(w.there().count().await.unwrap(), 240);
    let mut scan = w.there().scan();
    let mut seen = BTreeSet::new();
    while let Some(session) = scan.next().await {
        seen.insert(session.unwrap().id());
    }
    assert_eq!(seen, expected);
    assert_eq!(scan.cursor(), None);
    // In pages, like a web page.
    let (mut seen, mut from) = (BTreeSet::new(), Some(Cursor::start()));
    while let Some(place) = from {
        let place = Cursor::from(place.as_str().to_owned()); // as in a link
        let (page, next) = w.here().page(&place, 20).await.unwrap();
        seen.extend(page.iter().map(|session| session.id()));
        from = next;
    }
    assert_eq!(seen, expected);
}

async fn two_writes_of_one_key_are_merged_by_the_function(w: World) {
    let (app, other) = (w.app().await, w.other_app().await);
    let client = logged_in(&app, "ana").await;
    client.one(json!(["insert", "seen", [1]])).await;
    let there = client.at(&other.url());
    let slow = json!([["get", "seen"], ["gate", "slow"], ["insert", "seen", [1, 2]]]);
    let (reply, ()) = tokio::join!(client.post("/do", &slow), async {
        app.reached("slow").await;
        there.one(json!(["insert", "seen", [1, 3]])).await;
        app.open("slow");
    });
    assert_eq!(reply.status.as_u16(), 200);
    assert_eq!(client.one(json!(["get", "seen"])).await, json!([1, 2, 3]));
    let stats = w.layers[0].stats();
    assert_eq!((stats.conflicts, stats.overwrites), (1, 0));
}

async fn two_writes_of_one_key_without_a_merge_are_counted(w: World) {
    let app = w.app().await;
    let client = logged_in(&app, "ana").await;
    for (theirs, mine, overwrites) in [(json!(1), json!(2), 1), (json!(3), json!(3), 1)] {
        let slow = json!([["get", "k"], ["gate", "slow"], ["insert", "k", mine]]);
        let (reply, _) = tokio::join!(client.post("/do", &slow), async {
            app.reached("slow").await;
            client.one(json!(["insert", "k", theirs])).await;
            app.open("slow");
        });
        assert_eq!(reply.status.as_u16(), 200);
        assert_eq!(client.one(json!(["get", "k"])).await, mine, "the later save wins");
        assert_eq!(w.layers[0].stats().overwrites, overwrites, "the same value twice is no loss");
    }
}

async fn events_are_published(w: World) {
    let app = w.app().await;
    let mut events = w.here().events().await.unwrap();
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    let visitor = id(&client).await;
    client.one(json!(["login", "one"])).await;
    let member = id(&client).await;
    client.one(json!(["rotate"])).await;
    let second = logged_in(&app, "one").await;
    let second_id = id(&second).await;
    second.one(json!(["logout"])).await;
    let third = w.here().create("ana").await.unwrap().id();
    w.here().revoke(&third).await.unwrap();
    let ended = EventKind::Ended;
    for (session, happened) in [
        (visitor, EventKind::Created),
        (member, EventKind::Created),
        (visitor, ended(EndReason::Replaced)),
        (member, EventKind::LoggedIn),
        (member, EventKind::Rotated),
        (member, ended(EndReason::Evicted)),
        (second_id, EventKind::Created),
        (second_id, EventKind::LoggedIn),
        (second_id, ended(EndReason::LoggedOut)),
        (third, EventKind::Created),
        (third, ended(EndReason::Revoked)),
    ] {
        let event = events.next().await.unwrap();
        assert_eq!((event.session(), event.kind()), (session, happened));
    }
}

async fn events_of_other_instances_are_received(w: World) {
    let mut there = w.there().events().await.unwrap();
    let mut seen = Vec::new();
    let mut expected = Vec::new();
    for n in 0..5 {
        let sessions = if n % 2 == 0 { w.here() } else { w.there() };
        let id = sessions.create("ana").await.unwrap().id();
        sessions.revoke(&id).await.unwrap();
        expected.extend([(id, EventKind::Created), (id, EventKind::Ended(EndReason::Revoked))]);
    }
    for _ in 0..expected.len() {
        let event = there.next().await.unwrap();
        seen.push((event.session(), event.kind()));
    }
    // Each once, and those of one instance in order.
    for (id, happened) in &expected {
        assert_eq!(seen.iter().filter(|event| **event == (*id, *happened)).count(), 1);
    }
    let redis = w.redis.unwrap();
    assert!(redis.pttl("sess:events").await > 0);
}

async fn a_typed_session_reads_and_writes_the_values(w: World) {
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Visitor {
        visits: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        theme: Option<String>,
    }
    async fn visit(session: Session) -> Result<String, SessionError> {
        let typed = session.typed::<Visitor>();
        let visits = typed.modify(|visitor| {
            visitor.visits += 1;
            visitor.theme = (visitor.visits < 3).then(|| "dark".to_owned());
            visitor.visits
        })?;
        assert_eq!(typed.get()?.visits, visits);
        assert_eq!(session.get::<u32>("visits")?, Some(visits));
        Ok(format!("{:?}", session.get::<String>("theme")?))
    }
    let layer = w.layers[0].clone();
    let app = App::serve(|router| router.route("/visit", axum::routing::get(visit)).layer(layer)).await;
    let client = app.client();
    client.one(json!(["insert", "other", 1])).await;
    for theme in ["Some(\"dark\")", "Some(\"dark\")", "None"] {
        assert_eq!(client.get("/visit").await.text(), theme);
    }
    assert_eq!(client.perform(json!([["get", "other"], ["contains", "theme"]])).await, [json!(1), json!(false)]);
    client.one(json!(["insert", "visits", "many"])).await;
    assert_eq!(client.get("/visit").await.status.as_u16(), 500);
}

async fn a_moved_session_is_listed_once(w: World) {
    let app = w.app().await;
    let client = app.client();
    client.one(json!(["insert", "cart", 1])).await;
    client.one(json!(["login", "ana"])).await;
    assert_eq!(ids(&w.here(), "ana").await, [id(&client).await]);
    assert_eq!(w.here().count().await.unwrap(), 1);
    client.one(json!(["login", "ben"])).await;
    assert!(w.here().list("ana").await.unwrap().is_empty());
    assert_eq!(ids(&w.here(), "ben").await, [id(&client).await]);
}

async fn an_id_is_not_a_credential(w: World) {
    let app = w.app().await;
    let client = logged_in(&app, "ana").await;
    let id = id(&client).await.to_string();
    for guess in [id.clone(), format!("{id}{}", "A".repeat(12)), format!("{}{}", &id[..12], &id)] {
        let thief = app.client();
        thief.set_cookie(COOKIE, &guess);
        assert_eq!(thief.one(json!(["user"])).await, json!(null));
    }
    assert_eq!(client.one(json!(["user"])).await, "ana", "nor does it end anything");
}

async fn sessions_end_although_the_index_was_deleted(w: World) {
    let (app, redis) = (w.app().await, w.redis.as_ref().unwrap());
    let (phone, laptop) = (logged_in(&app, "ana").await, logged_in(&app, "ana").await);
    let index = format!("sess:{{{}}}", SessionId::slot_tag_of("ana"));
    redis.command(&format!("DEL {index}")).await;
    assert_eq!(w.there().revoke_user("ana").await.unwrap(), 0, "none was known");
    for client in [&phone, &laptop] {
        let seen = client.perform(json!([["user"], ["ended"]])).await;
        assert_eq!(seen, [json!(null), json!("revoked")]);
        let reply = client.post("/do", &json!([["insert", "k", 1]])).await;
        assert_eq!(reply.status.as_u16(), 200, "a new session");
    }
    assert!(redis.pttl(&format!("{index}:epoch")).await > 0);
    // A slow request does not resurrect it.
    let slow = logged_in(&app, "ana").await;
    let steps = json!([["get", "k"], ["gate", "slow"], ["insert", "k", 2]]);
    let (reply, ()) = tokio::join!(slow.post("/do", &steps), async {
        app.reached("slow").await;
        redis.command(&format!("DEL {index}")).await;
        w.there().revoke_user("ana").await.unwrap();
        app.open("slow");
    });
    assert!(reply.set_cookies().is_empty());
    assert_eq!(slow.one(json!(["user"])).await, json!(null));
    assert_eq!(w.layers[0].stats().ended_concurrently, 1);
    assert!(w.here().list("ana").await.unwrap().is_empty());
}

async fn a_lost_index_is_rebuilt(w: World) {
    let (app, redis) = (w.app().await, w.redis.as_ref().unwrap());
    let (phone, laptop) = (logged_in(&app, "ana").await, logged_in(&app, "ana").await);
    let index = format!("sess:{{{}}}", SessionId::slot_tag_of("ana"));
    redis.command(&format!("DEL {index}")).await;
    phone.one(json!(["insert", "k", 1])).await; // a write
    let key = redis.sessions().await.into_iter().find(|key| !key.ends_with("x")).unwrap();
    assert!(key.starts_with(&index));
    let id = id(&laptop).await.to_string();
    redis.command(&format!("PEXPIRE sess:{{{}}}:{} 60000", &id[..12], &id[12..])).await;
    laptop.one(json!(["get", "k"])).await; // a touch
    assert_eq!(w.here().list("ana").await.unwrap().len(), 2);
    assert!(redis.pttl(&index).await > 0);
}

async fn ten_thousand_logins_leave_a_small_index(w: World) {
    let redis = w.redis.as_ref().unwrap();
    let sessions = w.here();
    for _ in 0..100 {
        let mut logins = JoinSet::new();
        for _ in 0..100 {
            let sessions = sessions.clone();
            logins.spawn(async move { sessions.create("ana").await.unwrap() });
        }
        logins.join_all().await;
    }
    let index = format!("sess:{{{}}}", SessionId::slot_tag_of("ana"));
    assert_eq!(redis.command(&format!("ZCARD {index}")).await, redis::Value::Int(100));
    assert_eq!(w.here().list("ana").await.unwrap().len(), 100);
    assert_eq!(sessions.count().await.unwrap(), 100);
}

/// Redis reports the slot of a key.
async fn all_keys_of_a_call_share_a_slot(w: World) {
    let redis = w.redis.as_ref().unwrap();
    let mut monitor = redis.monitor().await;
    let app = w.app().await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    client.perform(json!([["login", "ana"], ["insert", "k", 2]])).await;
    client.perform(json!([["rotate"], ["insert", "k", 3]])).await;
    client.one(json!(["login", "ben"])).await;
    client.one(json!(["consume"])).await;
    logged_in(&app, "one").await;
    logged_in(&app, "one").await;
    let token = w.here().create("ana").await.unwrap();
    w.here().list("ana").await.unwrap();
    w.here().revoke_others("ana", &token.id()).await.unwrap();
    w.here().revoke_user("ana").await.unwrap();
    let layer = SessionLayer::new(w.full.clone());
    layer.sessions().create("ana").await.unwrap();
    let (mut calls, mut within) = (0, BTreeSet::new());
    for line in monitor.so_far().await {
        let words: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        // A script that is sent in full was called by its hash before, with the same keys.
        let keys = match words[0].to_uppercase().as_str() {
            "EVALSHA" => {
                within.clear();
                calls += 1;
                &words[3..3 + words[2].parse::<usize>().unwrap()]
            }
            "TIME" => continue,
            _ if line.contains(" lua] ") => &words[1..2],
            _ => continue,
        };
        within.extend(keys.iter().map(|key| slot(key.as_bytes())));
        assert_eq!(within.len(), 1, "{line}");
    }
    assert!(calls >= 12, "{calls}");
}

/// The slot of a key, as the specification of Redis Cluster computes it.
fn slot(key: &[u8]) -> u16 {
    let open = key.iter().position(|byte| *byte == b'{');
    let tag = open.and_then(|open| {
        let len = key[open + 1..].iter().position(|byte| *byte == b'}')?;
        (len > 0).then(|| &key[open + 1..open + 1 + len])
    });
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % 16384
}

/// It is evicted first.
async fn a_corrupt_record_prevents_no_login(w: World) {
    let redis = w.redis.as_ref().unwrap();
    let app = w.app().await;
    for content in [r#"{"v":2}"#, r#"{"v":9,"n":"AAAAAxbk0fTjK8pw","t":"?"}"#, "{}"] {
        let id = id(&logged_in(&app, "one").await).await.to_string();
        redis.command(&format!("SET sess:{{{}}}:{} {content} KEEPTTL", &id[..12], &id[12..])).await;
        assert_eq!(ids(&w.here(), "one").await, []);
        logged_in(&app, "one").await;
        assert_eq!(ids(&w.here(), "one").await.len(), 1);
    }
}

async fn a_corrupt_record_is_an_outage_or_reset_as_configured(w: World) {
    let redis = w.redis.as_ref().unwrap();
    for reset in [false, true] {
        let layer = w.layers[0].clone().on_corrupt(if reset { OnCorrupt::Reset } else { OnCorrupt::Outage });
        let app = App::start(layer.clone()).await;
        for content in ["x", r#"{"v":9,"n":"AAAAAxbk0fTjK8pw","t":[1,2,3,4],"data":{}}"#] {
            let before = layer.stats().corrupt;
            let client = logged_in(&app, "ana").await;
            let id = id(&client).await.to_string();
            let key = format!("sess:{{{}}}:{}", &id[..12], &id[12..]);
            redis.command(&format!("SET {key} {content} KEEPTTL")).await;
            let status = client.post("/do", &json!([["user"]])).await.status.as_u16();
            assert_eq!((status, layer.stats().corrupt - before), (if reset { 200 } else { 503 }, 1));
            if reset {
                let copy = client.twin();
                assert_eq!(copy.perform(json!([["user"], ["ended"]])).await, [json!(null), json!("corrupt")]);
                client.one(json!(["login", "ana"])).await;
                assert_eq!(client.one(json!(["user"])).await, "ana");
            } else {
                assert_eq!(redis.get(&key).await, content, "it stays as it is");
            }
        }
    }
}
