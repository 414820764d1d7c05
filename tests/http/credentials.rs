//! Cookies and bearer tokens, valid and invalid.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::support::spy::Spy;
use crate::support::{
    app::{App, me, who},
    client::{Client, Reply},
};
use axum::{body::Body, routing::get};
use bytes::Bytes;
use cookie::{Cookie, time::OffsetDateTime};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Bearer, Clock, InvalidCookie, Lifetime, Limits, ManualClock, MemoryStore, OnMissing, Reason, Rejection, SameSite,
    Session, SessionCookie, SessionCookieBuilder, SessionLayer, Token,
    store::{Entry, Record, SessionStore},
};

const NAME: &str = "__Host-session";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

// ---- building a cookie

fn named(name: &str) -> SessionCookieBuilder {
    SessionCookie::builder().name(name)
}

#[test]
fn a_host_cookie_needs_secure_path_root_and_no_domain() {
    for name in ["__Host-s", "__host-s", "__HOST-S", "__hOsT-s", "__Host-"] {
        assert_eq!(named(name).secure(false).build(), Err(InvalidCookie::PrefixNeedsSecure), "{name}");
        assert_eq!(named(name).domain("example.com").build(), Err(InvalidCookie::HostPrefix), "{name}");
        assert_eq!(named(name).path("/app").build(), Err(InvalidCookie::HostPrefix), "{name}");
        assert!(named(name).build().is_ok(), "{name}");
    }
}

#[test]
fn a_secure_prefixed_cookie_needs_only_secure() {
    for name in ["__Secure-s", "__secure-s", "__SECURE-S"] {
        assert_eq!(named(name).secure(false).build(), Err(InvalidCookie::PrefixNeedsSecure), "{name}");
        assert!(named(name).domain("example.com").path("/app").http_only(false).build().is_ok(), "{name}");
    }
}

#[test]
fn an_http_prefixed_cookie_must_be_http_only() {
    for name in ["__Http-s", "__http-s", "__HTTP-S", "__Host-Http-s", "__host-http-s"] {
        assert_eq!(named(name).secure(false).build(), Err(InvalidCookie::PrefixNeedsSecure), "{name}");
        assert_eq!(named(name).http_only(false).build(), Err(InvalidCookie::HttpPrefix), "{name}");
        assert!(named(name).build().is_ok(), "{name}");
    }
    assert!(named("__Http-s").domain("example.com").path("/app").build().is_ok());
    assert_eq!(named("__Host-Http-s").path("/app").build(), Err(InvalidCookie::HostPrefix));
}

#[test]
fn a_same_site_none_cookie_must_be_secure() {
    let cookie = || named("s").same_site(SameSite::None);
    assert_eq!(cookie().secure(false).build(), Err(InvalidCookie::SameSiteNoneNeedsSecure));
    assert!(cookie().build().is_ok());
}

#[test]
fn a_partitioned_cookie_must_be_secure() {
    let cookie = || named("s").partitioned(true);
    assert_eq!(cookie().secure(false).build(), Err(InvalidCookie::PartitionedNeedsSecure));
    assert!(cookie().build().is_ok());
}

#[test]
fn a_cookie_name_is_a_token() {
    for name in
        ["", " ", "a b", "a;b", "a=b", "a,b", "a\"b", "a\\b", "a/b", "a(b", "a\tb", "a\r\nb", "a\0b", "a\x7f", "é"]
    {
        assert_eq!(named(name).build(), Err(InvalidCookie::Name), "{name:?}");
    }
    for name in ["s", "S1", "a.b", "a-b_c", "!#$%&'*+-.^_`|~", "_", "__Host", "Host-s"] {
        assert_eq!(named(name).build().unwrap().name(), name);
    }
}

#[test]
fn name_and_token_have_at_most_4096_bytes() {
    // A signed cookie has a dot and the signature.
    let longest = 72 + 1 + 32;
    assert!(named(&"n".repeat(4096 - longest)).build().is_ok());
    assert_eq!(named(&"n".repeat(4096 - longest + 1)).build(), Err(InvalidCookie::TooLong));
}

#[test]
fn a_path_begins_with_a_slash_and_cannot_add_attributes() {
    let long = format!("/{}", "p".repeat(1024));
    for path in ["", "app", " /", "/a;b", "/a\nb", "/a\0", "/\x7f", "/é", &long] {
        assert_eq!(named("s").path(path).build(), Err(InvalidCookie::Path), "{path:?}");
    }
    for path in ["/", "/app", "/a/b c/", "/a=b,c", &long[..1024]] {
        assert!(named("s").path(path).build().is_ok(), "{path:?}");
    }
}

#[test]
fn a_domain_is_a_host_name() {
    let long = "d".repeat(1025);
    for domain in ["", " ", ".", "a b", "a;b", "a\nb", "a\0", "é.example", &long] {
        assert_eq!(named("s").domain(domain).build(), Err(InvalidCookie::Domain), "{domain:?}");
    }
    for domain in ["example.com", ".example.com", "localhost", "xn--9ca.example", "a-b.example", "127.0.0.1"] {
        assert!(named("s").domain(domain).build().is_ok(), "{domain:?}");
    }
}

#[test]
fn a_domain_is_not_an_origin_or_a_url() {
    for domain in ["example.com:8443", "https://example.com", "example.com/app", "a,b", "*.example.com"] {
        assert_eq!(named("s").domain(domain).build(), Err(InvalidCookie::Domain), "{domain:?}");
    }
}

#[test]
fn the_default_and_development_cookies_are_valid() {
    assert_eq!(SessionCookie::builder().build(), Ok(SessionCookie::default()));
    assert_eq!(named("session").secure(false).build(), Ok(SessionCookie::development()));
}

// ---- setting and removing a cookie

/// The only `Set-Cookie` of `reply`.
fn set_cookie(reply: &Reply) -> String {
    let mut all = reply.set_cookies();
    assert_eq!(all.len(), 1, "{reply:?}");
    all.remove(0)
}

fn attributes(set_cookie: &str) -> Vec<&str> {
    let mut attributes: Vec<_> = set_cookie.split("; ").skip(1).collect();
    attributes.sort_unstable();
    attributes
}

async fn steps(client: &Client, steps: Value) -> Reply {
    let reply = client.post("/do", &steps).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply
}

#[tokio::test]
async fn the_default_cookie_is_host_only_secure_http_only_and_not_persistent() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let set_cookie = set_cookie(&steps(&app.client(), json!([["login", "ana"]])).await);
    let (pair, _) = set_cookie.split_once("; ").unwrap();
    let (name, token) = pair.split_once('=').unwrap();
    assert_eq!(name, "__Host-session");
    assert!(Token::parse(token).is_ok());
    assert_eq!(attributes(&set_cookie), ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]);
}

#[tokio::test]
async fn a_persistent_cookie_expires_with_the_session() {
    let clock = ManualClock::new();
    let lifetime = Lifetime::new(7 * DAY, 30 * DAY).unwrap().persistent(true);
    let store = MemoryStore::new().clock(clock.clone());
    let app = App::start(SessionLayer::new(store).clock(clock.clone()).lifetime(lifetime)).await;
    let client = app.client();
    let first = set_cookie(&steps(&client, json!([["login", "ana"]])).await);
    clock.advance(2 * DAY);
    let later = set_cookie(&steps(&client, json!([["rotate"]])).await);

    for (text, days) in [(first, 30), (later, 28)] {
        let cookie = Cookie::parse(text).unwrap();
        assert_eq!(cookie.max_age().unwrap().whole_seconds(), days * 24 * 60 * 60);
        let at_creation = clock.now().as_millis() / 1000 - 2 * DAY.as_secs();
        assert_eq!(expires(&cookie).unix_timestamp() as u64, at_creation + 30 * DAY.as_secs());
    }
}

fn expires(cookie: &Cookie<'_>) -> OffsetDateTime {
    cookie.expires_datetime().unwrap()
}

#[tokio::test]
async fn max_age_is_at_most_400_days() {
    let clock = ManualClock::new();
    let lifetime = Lifetime::new(DAY, 3650 * DAY).unwrap().persistent(true);
    let app = App::start(SessionLayer::new(MemoryStore::new()).clock(clock.clone()).lifetime(lifetime)).await;
    let text = set_cookie(&steps(&app.client(), json!([["login", "ana"]])).await);
    let cookie = Cookie::parse(text).unwrap();
    assert_eq!(cookie.max_age().unwrap().whole_days(), 400);
    assert_eq!(expires(&cookie).unix_timestamp() as u64, clock.now().as_millis() / 1000 + 400 * DAY.as_secs());
}

#[tokio::test]
async fn the_removal_cookie_has_every_attribute_of_the_cookie() {
    let cookies = [
        SessionCookie::default(),
        SessionCookie::development(),
        named("s").path("/").domain("example.com").same_site(SameSite::None).partitioned(true).build().unwrap(),
        named("s").path("/do").same_site(SameSite::Strict).http_only(false).build().unwrap(),
        named("__Secure-s").domain("example.com").build().unwrap(),
    ];
    for cookie in cookies {
        let app = App::start(SessionLayer::new(MemoryStore::new()).cookie(cookie.clone())).await;
        let client = app.client();
        let given = set_cookie(&steps(&client, json!([["login", "ana"]])).await);
        let removed = set_cookie(&steps(&client, json!([["logout"]])).await);

        assert!(removed.starts_with(&format!("{}=; ", cookie.name())), "{removed}");
        let (ages, rest): (Vec<_>, Vec<_>) = attributes(&removed)
            .into_iter()
            .partition(|text| text.starts_with("Max-Age") || text.starts_with("Expires"));
        assert_eq!(rest, attributes(&given));
        assert_eq!(ages, ["Expires=Thu, 01 Jan 1970 00:00:00 GMT", "Max-Age=0"]);
    }
}

#[tokio::test]
async fn a_configured_cookie_has_the_configured_attributes() {
    let cookie =
        named("__Secure-shop").path("/do").domain("example.com").same_site(SameSite::None).partitioned(true).build();
    let app = App::start(SessionLayer::new(MemoryStore::new()).cookie(cookie.unwrap())).await;
    let set_cookie = set_cookie(&steps(&app.client(), json!([["login", "ana"]])).await);
    assert!(set_cookie.starts_with("__Secure-shop="));
    assert_eq!(
        attributes(&set_cookie),
        ["Domain=example.com", "HttpOnly", "Partitioned", "Path=/do", "SameSite=None", "Secure"]
    );
}

#[tokio::test]
async fn the_token_appears_only_in_the_cookie() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let client = app.client();
    let reply = steps(&client, json!([["login", "ana"], ["insert", "k", 1], ["id"], ["user"]])).await;
    let token = client.cookie(NAME).unwrap();
    for (name, value) in reply.headers.iter().filter(|(name, _)| *name != header::SET_COOKIE) {
        assert!(!String::from_utf8_lossy(value.as_bytes()).contains(&token), "{name}");
    }
    assert!(!reply.text().contains(&token));
    assert_eq!(set_cookie(&reply).matches(&token).count(), 1);

    let id = client.one(json!(["id"])).await;
    assert!(Token::parse(id.as_str().unwrap()).is_err(), "an id is not a token");
}

#[tokio::test]
async fn every_login_has_its_own_token() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let client = app.client();
    let mut tokens = HashSet::new();
    for _ in 0..200 {
        client.one(json!(["login", "ana"])).await;
        let token = client.cookie(NAME).unwrap();
        assert!(matches!(token.len(), 56 | 72));
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
        // The common part of two tokens of one user reveals nothing of the secret.
        tokens.insert(token[12..].to_owned());
    }
    assert_eq!(tokens.len(), 200);
}

// ---- reading cookies

/// An app, its store, and the token of a session of Ana.
async fn app_with_session() -> (App, Spy, String) {
    let store = Spy::new();
    let app = App::with_me(SessionLayer::new(store.clone())).await;
    let client = app.client();
    client.one(json!(["login", "ana"])).await;
    store.calls();
    (app, store, client.cookie(NAME).unwrap())
}

/// A well-formed token that is in no store.
fn unknown(letter: &str) -> String {
    letter.repeat(56)
}

#[tokio::test]
async fn the_cookie_is_found_among_others_in_several_lines() {
    let (app, _, token) = app_with_session().await;
    let ours = format!("{NAME}={token}");
    for lines in [
        vec![format!("a=1; {ours}; b=2")],
        vec![format!("a=1;{ours};b=2")],
        vec![format!("  ;; a=1 ;  {ours}  ; b")],
        vec![format!("{ours};")],
        vec![format!("a=\"x; y\"; {ours}")],
        vec![format!("{NAME}2=x; x{NAME}=y; {NAME}; {ours}")],
        vec!["a=1".into(), ours.clone(), "b=2".into()],
        vec![String::new(), "a=1; b=2".into(), format!("c=3; {ours}")],
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("cookie", line.as_str())).collect();
        assert_eq!(who(&app, &headers).await, "ana", "{lines:?}");
    }
}

#[tokio::test]
async fn cookies_with_similar_names_are_ignored() {
    let (app, store, token) = app_with_session().await;
    for line in [
        format!("x{NAME}={token}"),
        format!("{NAME}2={token}"),
        format!("__host-session={token}"),
        format!("session={token}"),
        format!("a={NAME}={token}"),
        format!("{NAME}:{token}"),
        token.clone(),
        format!("={token}"),
    ] {
        assert_eq!(who(&app, &[("cookie", &line)]).await, "nobody", "{line}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn a_malformed_token_costs_no_store_call() {
    let (app, store, token) = app_with_session().await;
    let huge = "a".repeat(100_000);
    for value in [
        "",
        "\"\"",
        &format!("\"{token}\""),
        &token[..55],
        &format!("{token}a"),
        &format!("{token} {token}"),
        &format!("{}+", &token[..55]),
        &format!("{}=", &token[..55]),
        &format!("{}%", &token[..55]),
        &format!("{}é", &token[..54]),
        "' OR 1=1 --",
        "../../etc/passwd",
        &huge,
    ] {
        assert_eq!(who(&app, &[("cookie", &format!("{NAME}={value}"))]).await, "nobody", "{value}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn binary_garbage_is_ignored() {
    let (app, store, _) = app_with_session().await;
    let garbage: Vec<u8> = (0x80..=0xff).chain(b'\t'..=b'\t').chain(b' '..=b'~').collect();
    for name in ["cookie", "authorization"] {
        let mut request = format!("GET /me HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{name}: ").into_bytes();
        request.extend_from_slice(&garbage);
        request.extend_from_slice(format!("; {NAME}=").as_bytes());
        request.extend_from_slice(&garbage[..56]);
        request.extend_from_slice(b"\r\n\r\n");
        let answer = raw(&app, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("nobody"), "{answer}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

/// Sends `request` unchanged.
async fn raw(app: &App, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.addr()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn planted_cookies_do_not_hide_the_real_one() {
    let (app, store, token) = app_with_session().await;
    let (a, b, c) = (unknown("a"), unknown("b"), unknown("c"));
    for (values, loads) in [
        (vec![&a, &token], 2),
        (vec![&token, &a], 1),
        (vec![&a, &b, &token, &c], 3),
        (vec![&a, &a, &a, &a, &a, &token], 2),
    ] {
        let line: Vec<_> = values.iter().map(|value| format!("{NAME}={value}")).collect();
        assert_eq!(who(&app, &[("cookie", &line.join("; "))]).await, "ana");
        assert_eq!(store.calls(), vec!["load"; loads]);

        let lines: Vec<_> = line.iter().map(|line| ("cookie", line.as_str())).collect();
        assert_eq!(who(&app, &lines).await, "ana");
        assert_eq!(store.calls(), vec!["load"; loads]);
    }
}

#[tokio::test]
async fn malformed_cookies_of_the_same_name_do_not_hide_the_real_one() {
    let (app, store, token) = app_with_session().await;
    let line = format!("{NAME}=; {NAME}=x; {NAME}=\"y\"; {NAME}=1; {NAME}=2; {NAME}={token}; {NAME}=z");
    assert_eq!(who(&app, &[("cookie", &line)]).await, "ana");
    assert_eq!(store.calls(), ["load"]);
}

#[tokio::test]
async fn at_most_four_cookies_are_tried() {
    let (app, store, token) = app_with_session().await;
    let line = |tokens: &[String]| tokens.iter().map(|token| format!("{NAME}={token}")).collect::<Vec<_>>().join("; ");
    let planted = ["a", "b", "c", "d"].map(unknown);
    let fourth = [&planted[..3], std::slice::from_ref(&token)].concat();
    assert_eq!(who(&app, &[("cookie", &line(&fourth))]).await, "ana");
    assert_eq!(store.calls(), ["load"; 4]);
    let fifth = [&planted[..], &[token]].concat();
    assert_eq!(who(&app, &[("cookie", &line(&fifth))]).await, "nobody");
    assert_eq!(store.calls(), ["load"; 4]);
}

#[tokio::test]
async fn a_token_in_the_url_or_body_is_ignored() {
    let (app, store, token) = app_with_session().await;
    let client = app.client();
    let form = format!("{NAME}={token}&access_token={token}&session={token}");
    let reply = client.get(&format!("/me?{form}")).await;
    assert_eq!(reply.text(), "nobody");
    for content_type in ["application/x-www-form-urlencoded", "text/plain", "application/json"] {
        let headers = [("content-type", content_type)];
        let reply = client.request(Method::POST, "/me", &headers, Bytes::from(form.clone())).await;
        assert_eq!(reply.text(), "nobody");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn a_bearer_token_is_ignored_unless_enabled() {
    let (app, store, token) = app_with_session().await;
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {token}"))]).await, "nobody");
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn a_cookie_is_ignored_without_cookies() {
    let app = App::with_me(SessionLayer::new(MemoryStore::new()).without_cookie().bearer(Bearer::new())).await;
    let token = bearer_token(&app).await;
    assert_eq!(who(&app, &[("cookie", &format!("{NAME}={token}"))]).await, "nobody");
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {token}"))]).await, "ana");
}

// ---- next to cookies of the handler

#[tokio::test]
async fn the_session_cookie_replaces_a_handlers_cookie_of_the_same_name() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let client = app.client();
    let evil = json!(["header", "set-cookie", format!("{NAME}=evil; Path=/")]);
    let spaced = json!(["header", "set-cookie", format!(" {NAME} = evil")]);
    let reply = steps(&client, json!([evil, spaced, ["login", "ana"]])).await;
    assert!(!set_cookie(&reply).contains("evil"));
    let reply = steps(&client, json!([evil, ["logout"]])).await;
    assert!(set_cookie(&reply).contains("Max-Age=0"));
}

#[tokio::test]
async fn other_cookies_of_the_handler_are_kept() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let others = ["theme=dark", "__Host-session2=x; Path=/", "lang=de; Max-Age=60"];
    let set = |value: &str| json!(["header", "set-cookie", value]);
    let reply = steps(&app.client(), json!([set(others[0]), set(others[1]), ["login", "ana"], set(others[2])])).await;
    let set_cookies = reply.set_cookies();
    assert_eq!(set_cookies.len(), 4, "{set_cookies:?}");
    for other in others {
        assert!(set_cookies.iter().any(|set_cookie| set_cookie == other), "{other}");
    }
}

// ---- fixation

#[tokio::test]
async fn a_planted_token_is_never_adopted() {
    for begin in [json!([["insert", "k", 1]]), json!([["clear"], ["insert", "k", 1]]), json!([["login", "ana"]])] {
        let (app, _, _) = app_with_session().await;
        let victim = app.client();
        victim.set_cookie(NAME, &unknown("p"));
        victim.perform(begin.clone()).await;
        assert_ne!(victim.cookie(NAME).unwrap(), unknown("p"), "{begin}");

        let attacker = app.client();
        attacker.set_cookie(NAME, &unknown("p"));
        let seen = attacker.perform(json!([["get", "k"], ["user"], ["id"]])).await;
        assert_eq!(seen, [Value::Null, Value::Null, Value::Null], "{begin}");
    }
}

#[tokio::test]
async fn a_planted_session_ends_when_the_victim_logs_in() {
    let (app, _, _) = app_with_session().await;
    let attacker = app.client();
    attacker.one(json!(["insert", "k", "planted"])).await;
    let victim = attacker.twin();
    victim.one(json!(["login", "ana"])).await;
    assert_ne!(victim.cookie(NAME), attacker.cookie(NAME));
    assert_eq!(attacker.perform(json!([["user"], ["get", "k"]])).await, [Value::Null, Value::Null]);
}

#[tokio::test]
async fn a_planted_bearer_token_is_never_adopted() {
    let app = App::with_me(both()).await;
    let planted = format!("Bearer {}", unknown("p"));
    let reply = bearer_steps(&app, &planted, json!([["login", "ana"], ["save"], ["token"]])).await;
    assert_ne!(reply.json()[2], unknown("p"));
    assert_eq!(who(&app, &[("authorization", &planted)]).await, "nobody");
}

// ---- bearer tokens

/// Cookies and bearer tokens.
fn both() -> SessionLayer {
    SessionLayer::new(MemoryStore::new()).bearer(Bearer::new())
}

fn bearer_only(store: impl SessionStore + 'static) -> SessionLayer {
    SessionLayer::new(store).without_cookie().bearer(Bearer::new())
}

/// The token of a session of Ana.
async fn bearer_token(app: &App) -> String {
    let results = app.client().perform(json!([["login", "ana"], ["save"], ["token"]])).await;
    results[2].as_str().unwrap().to_owned()
}

async fn bearer_steps(app: &App, authorization: &str, steps: Value) -> Reply {
    let headers = [("authorization", authorization), ("content-type", "application/json")];
    app.client().request(Method::POST, "/do", &headers, steps.to_string().into()).await
}

async fn with_authorization(app: &App, values: &[&str]) -> Reply {
    let headers: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
    app.client().request(Method::GET, "/me", &headers, Bytes::new()).await
}

fn challenges(reply: &Reply) -> Vec<&str> {
    reply.headers.get_all(header::WWW_AUTHENTICATE).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn the_bearer_scheme_is_case_insensitive() {
    let app = App::with_me(bearer_only(MemoryStore::new())).await;
    let token = bearer_token(&app).await;
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "] {
        assert_eq!(who(&app, &[("authorization", &format!("{scheme} {token}"))]).await, "ana", "{scheme}");
    }
}

#[tokio::test]
async fn a_bearer_session_lives_until_logout() {
    let app = App::with_me(bearer_only(MemoryStore::new())).await;
    let authorization = format!("Bearer {}", bearer_token(&app).await);
    bearer_steps(&app, &authorization, json!([["insert", "k", 7]])).await;
    assert_eq!(bearer_steps(&app, &authorization, json!([["get", "k"]])).await.json(), json!([7]));
    bearer_steps(&app, &authorization, json!([["logout"]])).await;
    assert_eq!(bearer_steps(&app, &authorization, json!([["get", "k"], ["user"]])).await.json(), json!([null, null]));
}

#[tokio::test]
async fn the_handler_returns_a_rotated_bearer_token_and_the_old_one_is_invalid() {
    let app = App::with_me(bearer_only(MemoryStore::new())).await;
    let old = bearer_token(&app).await;
    let reply = bearer_steps(&app, &format!("Bearer {old}"), json!([["rotate"], ["save"], ["token"]])).await;
    let new = reply.json()[2].as_str().unwrap().to_owned();
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {new}"))]).await, "ana");
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {old}"))]).await, "nobody");
}

#[tokio::test]
async fn a_missing_credential_is_challenged_without_an_error_code() {
    let app = App::with_me(bearer_only(MemoryStore::new()).on_missing(OnMissing::Reject)).await;
    let reply = with_authorization(&app, &[]).await;
    assert_eq!((reply.status, challenges(&reply)), (StatusCode::UNAUTHORIZED, vec!["Bearer"]));
}

#[tokio::test]
async fn other_schemes_are_not_credentials() {
    let store = Spy::new();
    let strict = App::with_me(bearer_only(store.clone()).on_missing(OnMissing::Reject)).await;
    let open = App::with_me(bearer_only(store.clone())).await;
    let token = unknown("a");
    for value in ["Basic dXNlcjpwYXNz", &format!("Bearerx {token}"), &format!("Bear {token}"), &token, "Bearer,x", ""] {
        let reply = with_authorization(&strict, &[value]).await;
        assert_eq!((reply.status, challenges(&reply)), (StatusCode::UNAUTHORIZED, vec!["Bearer"]), "{value}");
        assert_eq!(with_authorization(&open, &[value]).await.text(), "nobody", "{value}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn another_scheme_next_to_a_bearer_token_is_ignored() {
    let app = App::with_me(bearer_only(MemoryStore::new())).await;
    let bearer = format!("Bearer {}", bearer_token(&app).await);
    assert_eq!(with_authorization(&app, &["Basic dXNlcjpwYXNz", &bearer]).await.text(), "ana");
    assert_eq!(with_authorization(&app, &[&bearer, "Basic dXNlcjpwYXNz"]).await.text(), "ana");
}

#[tokio::test]
async fn a_malformed_authorization_header_is_a_bad_request() {
    let store = Spy::new();
    let strict = App::with_me(bearer_only(store.clone()).on_missing(OnMissing::Reject)).await;
    let required = App::with_me(bearer_only(store.clone()).require_session()).await;
    let open = App::with_me(bearer_only(store.clone())).await;
    let (token, other) = (unknown("a"), unknown("b"));
    let one = format!("Bearer {token}");
    let cases: Vec<Vec<String>> = vec![
        vec!["Bearer".into()],
        vec!["bearer ".into()],
        vec!["Bearer ====".into()],
        vec![format!("{one} {other}")],
        vec![format!("{one}, Bearer {other}")],
        vec![format!("Bearer \"{token}\"")],
        vec!["Bearer a=b".into()],
        vec![format!("Bearer {}é", &token[..54])],
        vec![one.clone(), one.clone()],
        vec![one.clone(), "Bearer".into()],
        vec![one.clone(), "Basic x".into(), format!("Bearer {other}")],
    ];
    for case in &cases {
        let values: Vec<_> = case.iter().map(String::as_str).collect();
        for app in [&strict, &required] {
            let reply = with_authorization(app, &values).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{case:?}");
            assert_eq!(challenges(&reply), ["Bearer error=\"invalid_request\""], "{case:?}");
        }
        let reply = with_authorization(&open, &values).await;
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, "nobody"), "{case:?}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn a_foreign_token_is_an_invalid_token() {
    let store = Spy::new();
    let strict = App::with_me(bearer_only(store.clone()).on_missing(OnMissing::Reject)).await;
    let open = App::with_me(bearer_only(store.clone())).await;
    let a = "a".repeat(57);
    for token in ["abc", &a, &a[..55], "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "abc==", &format!("{}+", &a[..55])] {
        let authorization = format!("Bearer {token}");
        let reply = with_authorization(&strict, &[&authorization]).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{token}");
        assert_eq!(challenges(&reply), ["Bearer error=\"invalid_token\""], "{token}");
        assert_eq!(with_authorization(&open, &[&authorization]).await.text(), "nobody", "{token}");
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn unknown_expired_and_revoked_tokens_are_invalid_tokens() {
    let clock = ManualClock::new();
    let layer = bearer_only(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    let open = App::with_me(layer.clone()).await;
    let strict = App::with_me(layer.on_missing(OnMissing::Reject)).await;

    let expired = bearer_token(&open).await;
    clock.advance(DAY);
    let revoked = bearer_token(&open).await;
    bearer_steps(&open, &format!("Bearer {revoked}"), json!([["logout"]])).await;

    for token in [unknown("a"), expired, revoked] {
        let authorization = format!("Bearer {token}");
        let reply = with_authorization(&strict, &[&authorization]).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(challenges(&reply), ["Bearer error=\"invalid_token\""]);
        assert!(reply.body.is_empty());
        assert_eq!(with_authorization(&open, &[&authorization]).await.text(), "nobody");
    }
}

#[tokio::test]
async fn the_realm_is_in_every_challenge() {
    let bearer = Bearer::new().realm("api");
    let app = App::with_me(SessionLayer::new(MemoryStore::new()).bearer(bearer).on_missing(OnMissing::Reject)).await;
    assert_eq!(challenges(&with_authorization(&app, &[]).await), ["Bearer realm=\"api\""]);
    let reply = with_authorization(&app, &["Bearer x"]).await;
    assert_eq!(challenges(&reply), ["Bearer realm=\"api\", error=\"invalid_token\""]);
    let reply = with_authorization(&app, &["Bearer"]).await;
    assert_eq!(challenges(&reply), ["Bearer realm=\"api\", error=\"invalid_request\""]);
}

#[tokio::test]
async fn a_realm_cannot_break_out_of_its_quotes() {
    let bearer = Bearer::new().realm("a\", evil=\"b\\c\r\nset-cookie: x=y é");
    let app = App::with_me(SessionLayer::new(MemoryStore::new()).bearer(bearer).on_missing(OnMissing::Reject)).await;
    let reply = with_authorization(&app, &[]).await;
    assert_eq!(challenges(&reply), ["Bearer realm=\"a, evil=bcset-cookie: x=y \""]);
    assert!(reply.set_cookies().is_empty());
}

#[tokio::test]
async fn a_bad_cookie_is_not_a_bearer_error() {
    let app = App::with_me(both().on_missing(OnMissing::Reject)).await;
    let cookie = format!("{NAME}={}", unknown("a"));
    let reply = app.client().request(Method::GET, "/me", &[("cookie", &cookie)], Bytes::new()).await;
    assert_eq!((reply.status, challenges(&reply)), (StatusCode::UNAUTHORIZED, vec!["Bearer"]));
}

#[tokio::test]
async fn the_challenge_is_added_to_those_of_a_custom_rejection() {
    let reject = |rejection: &Rejection, _: &http::Request<()>| {
        Response::builder()
            .status(rejection.status())
            .header(header::WWW_AUTHENTICATE, "Basic realm=\"old\"")
            .body(Body::from(rejection.to_string()))
            .unwrap()
    };
    let layer = bearer_only(MemoryStore::new()).on_missing(OnMissing::Reject).reject_with(reject);
    let app = App::serve(|router| router.route("/me", get(me)).layer(layer)).await;
    let reply = with_authorization(&app, &["Bearer x"]).await;
    assert_eq!(challenges(&reply), ["Basic realm=\"old\"", "Bearer error=\"invalid_token\""]);
    assert_eq!(reply.text(), "the session token is not valid");
}

#[tokio::test]
async fn a_bearer_token_may_come_in_another_header() {
    let bearer = Bearer::new().header(HeaderName::from_static("x-forwarded-authorization"));
    let app = App::with_me(SessionLayer::new(MemoryStore::new()).without_cookie().bearer(bearer)).await;
    let token = bearer_token(&app).await;
    let value = format!("Bearer {token}");
    assert_eq!(who(&app, &[("x-forwarded-authorization", &value)]).await, "ana");
    assert_eq!(who(&app, &[("x-forwarded-authorization", &token)]).await, "nobody");
    assert_eq!(who(&app, &[("authorization", &value)]).await, "nobody");
    let reply = app.client().get("/me").await;
    assert_eq!(reply.header("vary"), Some("x-forwarded-authorization"));
}

#[tokio::test]
async fn a_bearer_token_may_come_without_a_scheme() {
    let bearer = Bearer::new().header(HeaderName::from_static("x-session-token")).without_scheme();
    let layer = SessionLayer::new(MemoryStore::new()).without_cookie().bearer(bearer);
    let open = App::with_me(layer.clone()).await;
    let strict = App::with_me(layer.on_missing(OnMissing::Reject)).await;
    let token = bearer_token(&open).await;
    assert_eq!(who(&open, &[("x-session-token", &token)]).await, "ana");
    assert_eq!(who(&open, &[("x-session-token", &format!("Bearer {token}"))]).await, "nobody");
    for (value, status) in
        [("x", StatusCode::UNAUTHORIZED), ("", StatusCode::BAD_REQUEST), ("a b", StatusCode::BAD_REQUEST)]
    {
        let reply = strict.client().request(Method::GET, "/me", &[("x-session-token", value)], Bytes::new()).await;
        assert_eq!(reply.status, status, "{value:?}");
    }
}

#[tokio::test]
async fn a_bearer_session_never_sets_a_cookie() {
    for app in [App::with_me(both()).await, App::with_me(bearer_only(MemoryStore::new())).await] {
        let token = app.client().perform(json!([["insert", "k", 1], ["save"], ["token"]])).await[2].clone();
        let mut authorization = format!("Bearer {}", token.as_str().unwrap());
        for step in [
            json!(["login", "ana"]),
            json!(["rotate"]),
            json!(["insert", "k", 2]),
            json!(["lifetime", 3600, 7200, true]),
            json!(["login", "bob"]),
            json!(["logout"]),
        ] {
            let reply = bearer_steps(&app, &authorization, json!([step, ["save"], ["token"]])).await;
            assert_eq!(reply.status, StatusCode::OK, "{step}");
            assert_eq!(reply.set_cookies(), [""; 0], "{step}");
            if let Some(token) = reply.json()[2].as_str() {
                authorization = format!("Bearer {token}");
            }
        }
        // The token is invalid: the new session has no cookie either.
        let reply = bearer_steps(&app, &authorization, json!([["user"], ["login", "ana"]])).await;
        assert_eq!(reply.json()[0], Value::Null);
        assert_eq!(reply.set_cookies(), [""; 0]);
    }
}

#[tokio::test]
async fn without_cookies_a_login_sets_none() {
    let app = App::with_me(bearer_only(MemoryStore::new())).await;
    assert_eq!(steps(&app.client(), json!([["login", "ana"]])).await.set_cookies(), [""; 0]);
}

// ---- cookie and bearer token together

/// The response of `path` to a request with this cookie header and this `Authorization`.
async fn with_both(app: &App, path: &str, cookie: &str, authorization: &str) -> Reply {
    let headers = [("cookie", cookie), ("authorization", authorization)];
    app.client().request(Method::GET, path, &headers, Bytes::new()).await
}

#[tokio::test]
async fn cookie_and_bearer_token_that_agree_are_served() {
    let app = App::with_me(both()).await;
    let token = bearer_token(&app).await;
    let (cookie, authorization) = (format!("{NAME}={token}"), format!("Bearer {token}"));
    assert_eq!(with_both(&app, "/me", &cookie, &authorization).await.text(), "ana");
    assert_eq!(with_both(&app, "/me", &format!("{cookie}; {cookie}"), &authorization).await.text(), "ana");
    assert_eq!(with_both(&app, "/public", &cookie, &authorization).await.text(), "public");
}

#[tokio::test]
async fn cookie_and_bearer_token_that_disagree_are_refused_everywhere() {
    let store = Spy::new();
    let app = App::with_me(SessionLayer::new(store.clone()).bearer(Bearer::new())).await;
    let (one, other) = (bearer_token(&app).await, bearer_token(&app).await);
    store.calls();
    let cookies =
        [format!("{NAME}={one}"), format!("{NAME}={other}; {NAME}={one}"), format!("{NAME}={}", unknown("a"))];
    for path in ["/me", "/public"] {
        for cookie in &cookies {
            let reply = with_both(&app, path, cookie, &format!("Bearer {other}")).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(challenges(&reply), ["Bearer error=\"invalid_token\""]);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
            assert_eq!(reply.set_cookies(), [""; 0]);
        }
    }
    assert_eq!(store.calls(), [""; 0]);
}

#[tokio::test]
async fn a_malformed_bearer_token_with_a_valid_cookie_is_refused() {
    let app = App::with_me(both()).await;
    let cookie = format!("{NAME}={}", bearer_token(&app).await);
    for authorization in ["Bearer", "Bearer x", "Bearer a b", "bearer eyJ.e30.c2ln"] {
        for path in ["/me", "/public"] {
            let reply = with_both(&app, path, &cookie, authorization).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} {authorization}");
        }
    }
    assert_eq!(with_both(&app, "/me", &cookie, "Basic dXNlcjpwYXNz").await.text(), "ana");
}

#[tokio::test]
async fn a_cookie_that_is_not_a_token_is_ignored_next_to_a_bearer_token() {
    let app = App::with_me(both()).await;
    let authorization = format!("Bearer {}", bearer_token(&app).await);
    for cookie in [format!("{NAME}=x"), format!("{NAME}="), "theme=dark".into()] {
        assert_eq!(with_both(&app, "/me", &cookie, &authorization).await.text(), "ana", "{cookie}");
        let headers =
            [("cookie", cookie.as_str()), ("authorization", &authorization), ("content-type", "application/json")];
        let body = json!([["insert", "k", 1], ["lifetime", 60, 60, true]]).to_string();
        let reply = app.client().request(Method::POST, "/do", &headers, body.into()).await;
        assert_eq!((reply.status, reply.set_cookies()), (StatusCode::OK, vec![]));
    }
}

// ---- random input

const LIVE: &str = "Live_token-Live_token-Live_token-Live_token-Live_token-X";

/// A layer over a store that has [`LIVE`].
async fn layer_with_live_session(store: &Spy) -> SessionLayer {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let record = format!(r#"{{"v":1,"n":"AAAAAxbk0fTjK8pw","t":[{now},0,1800000,86400000],"user":"ana","data":{{}}}}"#);
    let record = Arc::new(Record::decode(record.as_bytes()).unwrap());
    let new = Entry { record, ttl: DAY };
    store.create(&Token::parse(LIVE).unwrap().id(), new, Limits::default()).await.unwrap();
    store.calls();
    SessionLayer::new(store.clone()).bearer(Bearer::new())
}

/// Random bytes, and fragments that the parsers look for.
fn header_value() -> impl Strategy<Value = HeaderValue> {
    let text = |text: &'static str| Just(text.as_bytes().to_vec());
    let piece = prop_oneof![
        4 => text("__Host-session="),
        4 => text("Bearer "),
        4 => text(LIVE),
        4 => Just(format!("__Host-session={LIVE}").into_bytes()),
        4 => Just(format!("Bearer {LIVE}").into_bytes()),
        3 => text("; "),
        1 => text("\""),
        1 => text("="),
        1 => text(" "),
        1 => text(","),
        1 => text(&LIVE[..55]),
        2 => vec(proptest::sample::select(b"ABCXYZabcxyz0189-_".to_vec()), 55..=57),
        2 => vec(any::<u8>(), 0..60),
    ];
    vec(piece, 0..7).prop_map(|pieces| {
        let valid = |byte: u8| if byte < b' ' || byte == 0x7f { byte | 0x80 } else { byte };
        let bytes: Vec<u8> = pieces.concat().into_iter().map(valid).collect();
        HeaderValue::from_bytes(&bytes).unwrap()
    })
}

/// Whether it contains exactly 56 consecutive base64url characters.
fn has_token(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .split(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_'))
        .any(|run| run.len() == 56)
}

proptest! {
    #![proptest_config(Config {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(56),
        ..Config::default()
    })]

    #[test]
    fn no_input_except_the_token_gives_the_session(
        cookies in vec(header_value(), 0..3),
        authorizations in vec(header_value(), 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = Spy::new();
        let user = runtime.block_on(async {
            let layer = layer_with_live_session(&store).await;
            let service = layer.layer(service_fn(async |request: Request<()>| {
                let session = request.extensions().get::<Session>().unwrap();
                session.load().await.unwrap();
                Ok::<_, Infallible>(Response::new(session.user().unwrap().map(|user| user.to_string())))
            }));
            let mut request = Request::new(());
            for value in &cookies {
                request.headers_mut().append(header::COOKIE, value.clone());
            }
            for value in &authorizations {
                request.headers_mut().append(header::AUTHORIZATION, value.clone());
            }
            service.oneshot(request).await.unwrap().into_body()
        });
        let mut headers = cookies.iter().chain(&authorizations);
        if user.is_some() {
            prop_assert!(headers.clone().any(|value| has_token(value) && contains(value, LIVE)));
        }
        let calls = store.calls();
        prop_assert!(calls.len() <= 4 && calls.iter().all(|call| *call == "load"), "{calls:?}");
        if !headers.any(has_token) {
            prop_assert!(calls.is_empty(), "{calls:?}");
        }
    }
}

fn contains(value: &HeaderValue, text: &str) -> bool {
    value.as_bytes().windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn the_generator_of_strange_headers_includes_the_token() {
    let store = Spy::new();
    let app = App::with_me(layer_with_live_session(&store).await).await;
    assert_eq!(who(&app, &[("cookie", &format!("{NAME}={LIVE}"))]).await, "ana");
    assert_eq!(who(&app, &[("authorization", &format!("Bearer {LIVE}"))]).await, "ana");
}

#[tokio::test]
async fn a_rejection_names_its_reason_to_the_handler() {
    async fn reason(session: axum::Extension<Session>) -> String {
        let reason = session.load().await.err().map(|rejection| rejection.reason());
        match reason {
            Some(Reason::NoCredential) => "no credential".into(),
            Some(Reason::InvalidToken) => "invalid".into(),
            Some(Reason::MalformedCredential) => "malformed".into(),
            other => format!("{other:?}"),
        }
    }
    let layer = both().on_missing(OnMissing::Reject);
    let app = App::serve(|router| router.route("/me", get(reason)).layer(layer)).await;
    assert_eq!(who(&app, &[]).await, "no credential");
    assert_eq!(who(&app, &[("authorization", "Bearer x")]).await, "invalid");
    assert_eq!(who(&app, &[("cookie", &format!("{NAME}=x"))]).await, "invalid");
    assert_eq!(who(&app, &[("authorization", "Bearer a b")]).await, "malformed");
}

#[tokio::test]
async fn a_foreign_authorization_header_does_not_prevent_a_cookie_login() {
    for header in ["Bearer junk", "Bearer a b", "Basic YTpi"] {
        let app = App::start(SessionLayer::new(MemoryStore::new()).bearer(Bearer::new())).await;
        let client = app.client();
        let (headers, steps) =
            ([("authorization", header), ("content-type", "application/json")], r#"[["login","ana"]]"#);
        let reply = client.request(Method::POST, "/do", &headers, steps.into()).await;
        assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::OK, 1), "{header}");
        assert_eq!(client.one(json!(["user"])).await, "ana");
    }
}
