//! Errors that a handler has handled do not come back, and what a user does with all their sessions.

use std::time::Duration;

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use serde_json::json;
use tower_keep::{Lifetime, Limits, MemoryStore, Session, SessionCookie, SessionError, SessionLayer, WhenFull};

use crate::support::app::{App, Kept};

const COOKIE: &str = "session";

fn layer() -> SessionLayer {
    SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::development())
}

#[tokio::test]
async fn a_login_beyond_the_limit_is_handled_by_the_handler() {
    async fn login(session: Session) -> Result<Response, SessionError> {
        session.login("ana")?;
        session.insert("role", "admin")?;
        match session.save().await {
            Err(SessionError::Full) => {
                assert_eq!(session.user()?, None, "the login has not happened");
                assert_eq!(session.get::<String>("role")?, None, "nor what belongs to it");
                Ok((StatusCode::CONFLICT, "too many devices").into_response())
            }
            result => result.map(|()| "welcome".into_response()),
        }
    }
    let layer = layer().limits(Limits::per_user(1, WhenFull::Reject));
    let app = App::serve(|router| router.route("/login", post(login)).layer(layer)).await;
    let (first, second, visitor) = (app.client(), app.client(), app.client());
    assert_eq!(first.post("/login", &json!(null)).await.text(), "welcome");
    visitor.perform(json!([["insert", "cart", 1]])).await;
    for client in [&second, &visitor] {
        let reply = client.post("/login", &json!(null)).await;
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::CONFLICT, "too many devices"));
    }
    assert_eq!(visitor.perform(json!([["get", "cart"], ["user"]])).await, [json!(1), json!(null)]);
    assert_eq!(first.one(json!(["user"])).await, json!("ana"));
}

#[tokio::test]
async fn a_value_that_is_too_large_is_handled_by_the_handler() {
    async fn store(session: Session) -> Result<Response, SessionError> {
        session.insert("text", &"x".repeat(2000))?;
        match session.save().await {
            Err(SessionError::TooLarge { .. }) => {
                assert_eq!(session.get::<String>("text")?, None);
                session.insert("notice", "too long")?;
                Ok((StatusCode::PAYLOAD_TOO_LARGE, "too long").into_response())
            }
            result => result.map(|()| "stored".into_response()),
        }
    }
    let app = App::serve(|router| router.route("/store", post(store)).layer(layer().max_size(1000))).await;
    let client = app.client();
    client.perform(json!([["insert", "k", 1]])).await;
    let reply = client.post("/store", &json!(null)).await;
    assert_eq!((reply.status, reply.text().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too long"));
    let values = client.perform(json!([["get", "k"], ["get", "text"], ["get", "notice"]])).await;
    assert_eq!(values, [json!(1), json!(null), json!("too long")]);
}

#[tokio::test]
async fn after_the_response_a_login_is_refused_and_saves_still_work() {
    let kept = Kept::default();
    let app = App::serve(|router| router.route("/socket", kept.handler()).layer(layer())).await;
    let client = app.client();
    client.perform(json!([["login", "ana"]])).await;
    client.get("/socket").await;
    let session = kept.session();
    assert!(matches!(session.login("bob"), Err(SessionError::ResponseSent)));
    assert!(matches!(session.rotate(), Err(SessionError::ResponseSent)));
    assert_eq!(session.user().unwrap().as_deref(), Some("ana"));
    session.insert("messages", &1).unwrap();
    session.save().await.unwrap();
    assert_eq!(client.perform(json!([["user"], ["get", "messages"]])).await, [json!("ana"), json!(1)]);
}

#[tokio::test]
async fn after_the_response_a_new_session_fails_once() {
    let kept = Kept::default();
    let app = App::serve(|router| router.route("/socket", kept.handler()).layer(layer())).await;
    app.client().get("/socket").await;
    let session = kept.session();
    session.insert("messages", &1).unwrap();
    assert!(matches!(session.save().await, Err(SessionError::ResponseSent)));
    assert_eq!(session.get::<u32>("messages").unwrap(), None);
    session.save().await.unwrap();
}

#[tokio::test]
async fn a_login_has_the_lifetime_of_the_layer_unless_told_otherwise() {
    let remembered = Lifetime::aal1();
    let login = move |session: Session, Path(remember): Path<bool>| async move {
        session.login("ana")?;
        if remember {
            session.set_lifetime(remembered)?;
        }
        Ok::<_, SessionError>("welcome")
    };
    let app = App::serve(|router| router.route("/login/{remember}", post(login)).layer(layer())).await;
    let client = app.client();
    for remember in [true, true, false, false, true] {
        let reply = client.post(&format!("/login/{remember}"), &json!(null)).await;
        let set_cookie = &reply.set_cookies()[0];
        assert_eq!(set_cookie.contains("Max-Age="), remember, "{set_cookie}");
        let times = client.perform(json!([["created_at"], ["expires_at"]])).await;
        let lifetime = times[1].as_u64().unwrap() - times[0].as_u64().unwrap();
        let expected = if remember { remembered } else { Lifetime::default() }.idle_timeout();
        assert!(Duration::from_millis(lifetime).abs_diff(expected) < Duration::from_secs(60), "{lifetime}");
    }
}

/// A browser has two cookies with one name after a change of their path.
#[tokio::test]
async fn a_logout_ends_the_sessions_of_all_cookies() {
    let layer = layer();
    let sessions = layer.sessions();
    let app = App::serve(|router| router.layer(layer)).await;
    let tokens = [sessions.create("ana").await.unwrap(), sessions.create("ana").await.unwrap()];
    let other = sessions.create("ana").await.unwrap();
    let outdated = app.client();
    outdated.set_cookie(COOKIE, sessions.create("bob").await.unwrap().expose());
    let stolen = outdated.cookie(COOKIE).unwrap();
    outdated.perform(json!([["rotate"]])).await;
    let cookies = format!("session={}; session={}; session={stolen}", tokens[0].expose(), tokens[1].expose());
    let body = json!([["logout"]]).to_string();
    let headers = [("cookie", &*cookies), ("content-type", "application/json")];
    let reply = app.client().request(http::Method::POST, "/do", &headers, body.into()).await;
    assert_eq!(reply.status, StatusCode::OK);
    for token in &tokens {
        let ended = sessions.ended(&token.id()).await.unwrap().unwrap();
        assert_eq!(ended.reason, tower_keep::EndReason::LoggedOut);
    }
    assert!(sessions.is_valid(&other).await.unwrap(), "a session of another browser");
    assert_eq!(outdated.one(json!(["user"])).await, json!("bob"), "an outdated token ends nothing");
}

/// An app with the actions, and two devices of Ana and one of Bob.
async fn devices() -> (App, [crate::support::client::Client; 3]) {
    let everywhere = async |session: Session| -> Result<String, SessionError> {
        let ended = session.logout_everywhere().await?;
        session.insert("notice", "logged out everywhere")?;
        Ok(ended.to_string())
    };
    let others = async |session: Session| session.revoke_others().await.map(|ended| ended.to_string());
    let password = async |session: Session| session.password_changed().await.map(|ended| ended.to_string());
    let login = async |session: Session| -> Result<String, SessionError> {
        session.login("ana")?;
        session.revoke_others().await.map(|ended| ended.to_string())
    };
    let app = App::serve(|router| {
        router
            .route("/everywhere", post(everywhere))
            .route("/others", post(others))
            .route("/password", post(password))
            .route("/login", post(login))
            .layer(layer())
    })
    .await;
    let clients = [app.client(), app.client(), app.client()];
    for (client, user) in clients.iter().zip(["ana", "ana", "bob"]) {
        client.perform(json!([["login", user]])).await;
    }
    (app, clients)
}

#[tokio::test]
async fn logout_everywhere_ends_all_and_the_notice_is_kept() {
    let (_app, [here, there, bob]) = devices().await;
    assert_eq!(here.post("/everywhere", &json!(null)).await.text(), "2");
    assert_eq!(there.one(json!(["user"])).await, json!(null));
    assert_eq!(bob.one(json!(["user"])).await, json!("bob"));
    let state = here.perform(json!([["user"], ["get", "notice"]])).await;
    assert_eq!(state, [json!(null), json!("logged out everywhere")]);
}

#[tokio::test]
async fn revoke_others_spares_this_session() {
    let (app, [here, there, bob]) = devices().await;
    let before = here.cookie(COOKIE);
    assert_eq!(here.post("/others", &json!(null)).await.text(), "1");
    assert_eq!(here.one(json!(["user"])).await, json!("ana"));
    assert_eq!(here.cookie(COOKIE), before);
    assert_eq!(there.one(json!(["user"])).await, json!(null));
    assert_eq!(bob.one(json!(["user"])).await, json!("bob"));
    let stranger = app.client();
    assert_eq!(stranger.post("/others", &json!(null)).await.text(), "0");
    // With a login in the same request.
    assert_eq!(stranger.post("/login", &json!(null)).await.text(), "1");
    assert_eq!(stranger.one(json!(["user"])).await, json!("ana"));
    assert_eq!(here.one(json!(["user"])).await, json!(null));
}

#[tokio::test]
async fn a_changed_password_rotates_and_ends_the_others() {
    let (_app, [here, there, bob]) = devices().await;
    let thief = here.twin();
    assert_eq!(here.post("/password", &json!(null)).await.text(), "1");
    assert_eq!(here.one(json!(["user"])).await, json!("ana"));
    assert_ne!(here.cookie(COOKIE), thief.cookie(COOKIE));
    assert_eq!(there.one(json!(["user"])).await, json!(null));
    assert_eq!(bob.one(json!(["user"])).await, json!("bob"));
}
