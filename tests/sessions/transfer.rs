//! Export and import: sessions as lines.

use std::time::Duration;

use crate::support::{app::App, redis_server::RedisServer, stores::patient};
use serde_json::{Value, json};
use tower_keep::{
    EndReason, ImportError, Imported, Lifetime, ManualClock, MemoryStore, NewSession, SessionLayer, Sessions, Token,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const MINUTE: Duration = Duration::from_secs(60);

fn in_redis(server: &RedisServer) -> RedisStore {
    RedisStore::new(patient(RedisConfig::from_url(&server.url()).unwrap()))
}

fn sessions(store: impl SessionStore + 'static) -> Sessions {
    SessionLayer::new(store).sessions()
}

async fn lines(sessions: &Sessions) -> Vec<String> {
    let (mut export, mut lines) = (sessions.export(), Vec::new());
    while let Some(line) = export.next().await {
        lines.push(line.unwrap());
    }
    lines
}

/// The only exported line.
async fn line(sessions: &Sessions) -> String {
    let mut lines = lines(sessions).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// A new session in memory, exported.
async fn exported(user: &str) -> (Sessions, Token, String) {
    let old = sessions(MemoryStore::new());
    let token = old.create(user).await.unwrap();
    let line = line(&old).await;
    (old, token, line)
}

#[tokio::test]
async fn a_deploy_from_memory_to_redis_and_back_logs_nobody_out() {
    let server = RedisServer::start().await;
    let first = SessionLayer::new(MemoryStore::new());
    let app = App::start(first.clone()).await;
    let ana = app.client();
    ana.perform(json!([["login", "ana"], ["insert", "cart", [1, 2]], ["set_metadata", "device", "phone"]])).await;
    let nobody = app.client();
    nobody.perform(json!([["insert", "seen", true], ["lifetime", 3600, 86400, true]])).await;
    let everything = json!([["id"], ["user"], ["get", "cart"], ["get", "seen"], ["metadata"], ["created_at"]]);
    let before = [ana.perform(everything.clone()).await, nobody.perform(everything.clone()).await];

    let second = SessionLayer::new(in_redis(&server));
    let third = SessionLayer::new(MemoryStore::new());
    for (from, to) in [(&first, &second), (&second, &third)] {
        let lines = lines(&from.sessions()).await;
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(to.sessions().import(line).await.unwrap(), Imported::Created);
            assert_eq!(to.sessions().import(line).await.unwrap(), Imported::Created, "or again");
        }
        let app = App::start(to.clone()).await;
        let clients = [ana.at(&app.url()), nobody.at(&app.url())];
        let after = [clients[0].perform(everything.clone()).await, clients[1].perform(everything.clone()).await];
        assert_eq!(after, before);
        assert_eq!(to.sessions().list("ana").await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_exported_session_is_one_line_without_a_token() {
    let old = sessions(MemoryStore::new());
    let new = NewSession::of("ana\n\"ben\"\u{0}").insert("k", "a\nb\r\u{2028}").unwrap();
    let token = old.create(new).await.unwrap();
    let line = line(&old).await;
    assert_eq!(line.lines().count(), 1);
    assert!(!line.contains(token.expose()) && !line.contains(&token.expose()[12..]), "{line}");
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&json["id"], &json["record"]["v"]), (&json!(token.id().to_string()), &json!(2)));
    let new = sessions(MemoryStore::new());
    new.import(&line).await.unwrap();
    let session = new.open(&token).await.unwrap().unwrap();
    assert_eq!(session.value::<String>("k").unwrap().unwrap(), "a\nb\r\u{2028}");
    assert_eq!(session.user(), Some("ana\n\"ben\"\u{0}"));
}

#[tokio::test]
async fn deadlines_are_kept_and_expired_sessions_stay_expired() {
    let clock = ManualClock::new();
    let layer = || SessionLayer::new(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    let (old, new) = (layer().sessions(), layer().sessions());
    let lifetime = Lifetime::new(30 * MINUTE, 60 * MINUTE).unwrap();
    let token = old.create(NewSession::of("ana").lifetime(lifetime)).await.unwrap();
    clock.advance(10 * MINUTE);
    let line = line(&old).await;
    clock.advance(10 * MINUTE);
    assert_eq!(new.import(&line).await.unwrap(), Imported::Created);
    let (was, is) = (old.get(&token.id()).await.unwrap().unwrap(), new.get(&token.id()).await.unwrap().unwrap());
    assert_eq!((was.expires_at(), was.created_at()), (is.expires_at(), is.created_at()));
    clock.advance(9 * MINUTE);
    assert!(new.is_valid(&token).await.unwrap());
    clock.advance(MINUTE);
    assert!(!new.is_valid(&token).await.unwrap());
    assert_eq!(layer().sessions().import(&line).await.unwrap(), Imported::Expired);
    assert_eq!(lines(&old).await, [""; 0]);
}

#[tokio::test]
async fn the_later_version_wins_in_any_order() {
    let layer = SessionLayer::new(MemoryStore::new());
    let app = App::start(layer.clone()).await;
    let client = app.client();
    client.perform(json!([["login", "ana"], ["insert", "n", 1]])).await;
    let earlier = line(&layer.sessions()).await;
    client.perform(json!([["insert", "n", 2]])).await;
    let later = line(&layer.sessions()).await;
    let server = RedisServer::start().await;
    let id = layer.sessions().list("ana").await.unwrap()[0].id();
    let value = async |new: &Sessions| new.get(&id).await.unwrap().unwrap().value::<u32>("n").unwrap();

    let new = sessions(in_redis(&server));
    assert_eq!(new.import(&earlier).await.unwrap(), Imported::Created);
    assert_eq!(value(&new).await, Some(1));
    assert_eq!(new.import(&later).await.unwrap(), Imported::Updated);
    assert_eq!(value(&new).await, Some(2));
    assert_eq!(new.import(&earlier).await.unwrap(), Imported::There);
    assert_eq!(value(&new).await, Some(2));
}

#[tokio::test]
async fn an_ended_session_is_not_imported() {
    let server = RedisServer::start().await;
    for new in [sessions(MemoryStore::new()), sessions(in_redis(&server))] {
        let (_, token, line) = exported("ana").await;
        new.import(&line).await.unwrap();
        new.revoke(&token.id()).await.unwrap();
        assert_eq!(new.import(&line).await.unwrap(), Imported::Ended);
        assert!(!new.is_valid(&token).await.unwrap());
        assert_eq!(new.ended(&token.id()).await.unwrap().unwrap().reason, EndReason::Revoked);
        assert_eq!(lines(&new).await, [""; 0]);
    }
}

#[tokio::test]
async fn an_invalid_line_is_refused_and_not_shown() {
    let new = sessions(MemoryStore::new());
    let (_, token, line) = exported("ana").await;
    let stranger = sessions(MemoryStore::new());
    let other = stranger.create("ben").await.unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(line.contains(from), "{from} in {line}");
        line.replacen(from, to, 1)
    };
    let id = token.id().to_string();
    for wrong in [
        "",
        "{}",
        "null",
        "[]",
        &line[1..],
        &line[..line.len() - 1],
        &format!("{line}{line}"),
        &replaced(r#""id":"#, r#""ID":"#),
        &replaced(&id, "short"),
        // A session under the slot tag of another user would not be found.
        &replaced(&id, &other.id().to_string()),
        &replaced(r#""v":2"#, r#""v":9"#),
        &replaced(r#""id":"#, r#""more":1,"id":"#),
        &replaced(r#""record":{"#, r#""record":{"secret":1,"#),
    ] {
        let error = new.import(wrong).await.unwrap_err();
        assert!(matches!(error, ImportError::Invalid), "{wrong}: {error:?}");
        assert_eq!(error.to_string(), "not a line of an export that this version can read");
    }
    assert_eq!(new.count().await.unwrap(), 0);
    // White space around a line is ignored.
    assert_eq!(new.import(&format!(" {line}\r")).await.unwrap(), Imported::Created);
}

#[tokio::test]
async fn a_session_that_is_too_large_or_over_capacity_is_refused() {
    let big = sessions(MemoryStore::new());
    big.create(NewSession::of("ana").insert("k", &"x".repeat(2000)).unwrap()).await.unwrap();
    let line = line(&big).await;
    let small = SessionLayer::new(MemoryStore::new()).max_size(1000).sessions();
    let error = small.import(&line).await.unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { limit: 1000, .. }), "{error:?}");
    let error = small.import(&"x".repeat(100_000)).await.unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { size: 100_000, .. }), "{error:?}");

    let full = sessions(MemoryStore::new().capacity(1).reject_when_full());
    full.create("ben").await.unwrap();
    assert!(matches!(full.import(&line).await.unwrap_err(), ImportError::Full));
    let server = RedisServer::stopped();
    let away = SessionLayer::new(RedisStore::new(RedisConfig::from_url(&server.url()).unwrap())).sessions();
    assert!(matches!(away.import(&line).await.unwrap_err(), ImportError::Store(_)));
    assert!(away.export().next().await.unwrap().is_err());
}
