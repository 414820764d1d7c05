//! Signed session cookies.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command, time::Duration};

use crate::support::spy::Spy;
use crate::support::{
    app::{App, who},
    client::Client,
    example::Server,
    redis_server::RedisServer,
};
use http::StatusCode;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use serde_json::json;
use tower_keep::{
    Bearer, InvalidSessionSecret, Lifetime, ManualClock, OnMissing, SessionCookie, SessionLayer, SessionSecret, Token,
};

const NAME: &str = "session";
/// A token, a dot, a signature.
const LENGTH: usize = 56 + 1 + 32;

fn secret(letter: &str) -> SessionSecret {
    SessionSecret::new(letter.repeat(32)).unwrap()
}

fn signed(secret: SessionSecret) -> SessionCookie {
    SessionCookie::development().signed(secret)
}

async fn who_by_cookie(app: &App, value: &str) -> String {
    who(app, &[("cookie", &format!("{NAME}={value}"))]).await
}

/// An app that signs with key `a`, its store, and the cookie of a session of Ana.
async fn app_with_session() -> (App, Spy, String) {
    let store = Spy::new();
    let app = App::with_me(SessionLayer::new(store.clone()).cookie(signed(secret("a")))).await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    store.calls();
    let value = client.cookie(NAME).unwrap();
    (app, store, value)
}

#[tokio::test]
async fn a_signed_cookie_is_accepted() {
    let (app, store, value) = app_with_session().await;
    assert_eq!(value.len(), LENGTH);
    assert!(Token::parse(&value[..56]).is_ok());
    assert_eq!(who_by_cookie(&app, &value).await, "ana");
    assert_eq!(store.calls(), ["load"]);

    let client = app.client();
    client.set_cookie(NAME, &value);
    client.one(json!(["rotate"])).await;
    let rotated = client.cookie(NAME).unwrap();
    assert_eq!(rotated.len(), LENGTH + 16);
    assert_eq!(client.get("/me").await.text(), "ana");
    client.one(json!(["logout"])).await;
    assert_eq!(client.cookie(NAME), None);
}

#[tokio::test]
async fn an_unsigned_cookie_costs_no_store_call() {
    let (app, store, value) = app_with_session().await;
    let (token, signature) = value.split_once('.').unwrap();
    let other = async |cookie: SessionCookie| {
        let app = App::with_me(SessionLayer::new(store.clone()).cookie(cookie.clone())).await;
        let client = app.client();
        client.one(json!(["login", "ana"])).await;
        client.cookie(cookie.name()).unwrap()
    };
    let of_other_key = other(signed(secret("b"))).await;
    let of_other_name = SessionCookie::builder().name("other").secure(false).build().unwrap();
    let of_other_name = other(of_other_name.signed(secret("a"))).await;
    let unsigned = other(SessionCookie::development()).await;
    store.calls();

    for value in [
        token.to_owned(),
        unsigned,
        of_other_key.clone(),
        of_other_name,
        format!("{token}."),
        format!("{token}{signature}"),
        format!("{token}.{}", &signature[1..]),
        format!("{token}.{signature}="),
        format!("{token}..{signature}"),
        format!("{token}.{signature}.{signature}"),
        format!("{token}.{}", "A".repeat(32)),
        format!("{token}.{}", of_other_key.split_once('.').unwrap().1),
        format!("{}.{signature}", "a".repeat(56)),
        format!(".{signature}"),
        signature.to_owned(),
        String::new(),
    ] {
        assert_eq!(who_by_cookie(&app, &value).await, "nobody", "{value}");
        assert_eq!(store.calls(), [""; 0], "{value}");
    }
}

#[tokio::test]
async fn an_unsigned_cookie_is_401_where_a_session_is_required() {
    let layer = SessionLayer::new(Spy::new()).cookie(signed(secret("a"))).on_missing(OnMissing::Reject);
    let app = App::with_me(layer).await;
    let client = app.client();
    client.set_cookie(NAME, &format!("{}.{}", "a".repeat(56), "b".repeat(32)));
    let reply = client.get("/me").await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
}

#[tokio::test]
async fn a_planted_cookie_does_not_hide_the_real_one() {
    let (app, store, value) = app_with_session().await;
    let forged: Vec<_> = (b'a'..=b'z')
        .map(|letter| format!("{NAME}={}.{}", char::from(letter).to_string().repeat(56), "x".repeat(32)))
        .collect();
    // Many more than are tried for unsigned cookies.
    assert_eq!(who(&app, &[("cookie", &format!("{}; {NAME}={value}", forged.join("; ")))]).await, "ana");
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn bearer_tokens_have_no_signature() {
    let store = Spy::new();
    let layer = SessionLayer::new(store.clone()).cookie(signed(secret("a"))).bearer(Bearer::new());
    let app = App::with_me(layer).await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    let value = client.cookie(NAME).unwrap();
    let token = value.split_once('.').unwrap().0;
    let bearer = format!("Bearer {token}");
    assert_eq!(who(&app, &[("authorization", &bearer)]).await, "ana");
    // The same token in both ways is no conflict.
    assert_eq!(who(&app, &[("authorization", &bearer), ("cookie", &format!("{NAME}={value}"))]).await, "ana");
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {value}"))]).await, "nobody");
}

#[tokio::test]
async fn a_key_is_replaced_without_logouts() {
    let day = Duration::from_secs(24 * 60 * 60);
    let clock = ManualClock::new();
    let store = Spy::with_clock(clock.clone());
    let layer = |secret| {
        let lifetime = Lifetime::new(day, 30 * day).unwrap().persistent(true);
        SessionLayer::new(store.clone()).clock(clock.clone()).lifetime(lifetime).cookie(signed(secret))
    };
    let before = App::with_me(layer(secret("a"))).await;
    let client = before.client();
    client.one(json!(["login", "ana"])).await;
    let value = client.cookie(NAME).unwrap();

    let between = App::with_me(layer(secret("b").older("a".repeat(32)).unwrap())).await;
    let client = client.at(&between.url());
    assert_eq!(client.get("/me").await.text(), "ana");
    assert_eq!(client.cookie(NAME).unwrap(), value, "a cookie that is good is not given again");
    // The next cookie is signed with the newest key.
    clock.advance(day / 2);
    client.one(json!(["rotate"])).await;
    assert_ne!(client.cookie(NAME).unwrap(), value);

    let after = App::with_me(layer(secret("b"))).await;
    assert_eq!(client.at(&after.url()).get("/me").await.text(), "ana");
    assert_eq!(who_by_cookie(&after, &value).await, "nobody");

    // Instances with only the old key must know the new one before it signs.
    assert_eq!(client.at(&before.url()).get("/me").await.text(), "nobody");
    let prepared = App::with_me(layer(secret("a").older("b".repeat(32)).unwrap())).await;
    assert_eq!(client.at(&prepared.url()).get("/me").await.text(), "ana");
}

#[test]
fn a_secret_has_at_least_32_bytes_and_is_never_shown() {
    let short = "hunter2".to_owned() + &"x".repeat(24);
    assert_eq!(short.len(), 31);
    let keys = ["", ",", "hunter2", &short];
    let good = "g".repeat(32);
    for key in keys {
        for text in [key.to_owned(), format!("{good},{key}"), format!("{key},{good}"), format!("{key} ,{good}")] {
            let error = text.parse::<SessionSecret>().unwrap_err();
            assert_eq!(error.to_string(), "each key needs at least 32 bytes");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
    for key in ["", "hunter2", &short] {
        assert_eq!(SessionSecret::new(key), secret("a").older(key));
    }
    let of_text = |text: &str| text.parse::<SessionSecret>();
    assert_eq!(of_text(&good), SessionSecret::new(&good));
    assert_eq!(of_text(&format!(" {good} ,\t{}\n", "a".repeat(32))), secret("g").older("a".repeat(32)));
    assert_ne!(secret("g"), secret("a"));
    let cookie = format!("{:?}", signed(SessionSecret::new("hunter2".repeat(5)).unwrap()));
    assert!(cookie.contains("SessionSecret(redacted)") && !cookie.contains("hunter2"), "{cookie}");
    let _: InvalidSessionSecret = SessionSecret::new("x").unwrap_err();
}

/// Not a test: the child processes of the next test run it.
#[test]
fn child() {
    if std::env::var_os("SIGNED_CHILD").is_some() {
        let secret = SessionSecret::from_env();
        println!("child: {:?}", secret.map(|secret| secret.map(signed)).map_err(|error| error.to_string()));
    }
}

#[test]
fn the_environment_has_valid_keys_or_an_error() {
    let of = |secret: Option<&OsStr>| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "signed::child", "--nocapture"]).env("SIGNED_CHILD", "1").env_remove("SESSION_SECRET");
        child.envs(secret.map(|secret| ("SESSION_SECRET", secret)));
        let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
        assert!(!output.contains("hunter2"), "{output}");
        output.lines().find_map(|line| Some(line.split_once("child: ")?.1.to_owned())).expect("what it found")
    };
    for nothing in [None, Some(OsStr::new(""))] {
        assert_eq!(of(nothing), "Ok(None)");
    }
    let good = "g".repeat(32);
    for secret in [good.clone(), format!("{good}, {good}")] {
        let found = of(Some(OsStr::new(&secret)));
        assert!(found.starts_with("Ok(Some(SessionCookie") && found.contains("SessionSecret(redacted)"), "{found}");
    }
    for wrong in
        [OsStr::new("hunter2"), OsStr::new(" "), OsStr::new(&format!("{good},")), OsStr::from_bytes(&[0xff; 64])]
    {
        assert_eq!(of(Some(wrong)), r#"Err("SESSION_SECRET: each key needs at least 32 bytes")"#);
    }
}

#[test]
fn any_changed_character_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (app, store, value) = runtime.block_on(app_with_session());
    let seed = RngSeed::Fixed(11);
    proptest!(Config { cases: 300, rng_seed: seed, ..Config::default() }, |(at in 0..LENGTH, character in "[!-:<-~]")| {
        prop_assume!(value[at..=at] != character && !"\",\\".contains(&character));
        let changed = format!("{}{character}{}", &value[..at], &value[at + 1..]);
        runtime.block_on(async {
            assert_eq!(who_by_cookie(&app, &changed).await, "nobody", "{changed}");
            assert_eq!(store.calls(), [""; 0]);
        });
    });
}

// ---- the examples

async fn login(client: &Client) {
    let reply = client.post("/admin/login", &json!({ "username": "admin", "password": "admin" })).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}

#[tokio::test]
async fn the_examples_sign_with_the_secret_of_the_environment() {
    let redis = RedisServer::start().await;
    let (new, old) = ("n".repeat(32), "o".repeat(40));
    let url = redis.url();
    let on = async |secret: &str| Server::start("admin", &[("REDIS_URL", &url), ("SESSION_SECRET", secret)]).await;
    let first = on(&old).await;
    let client = first.client();
    login(&client).await;
    assert_eq!(client.cookie(NAME).unwrap().len(), LENGTH);

    for (secret, status) in [
        (old.as_str(), StatusCode::OK),
        (&format!("{new},{old}"), StatusCode::OK),
        (&new, StatusCode::UNAUTHORIZED),
        ("", StatusCode::UNAUTHORIZED),
    ] {
        let server = on(secret).await;
        assert_eq!(client.at(&server.url).get("/admin").await.status, status, "{secret}");
    }
    // An empty variable disables signing, like a missing one.
    let unsigned = on("").await;
    let client = unsigned.client();
    login(&client).await;
    assert_eq!(client.cookie(NAME).unwrap().len(), LENGTH - 33);
}
