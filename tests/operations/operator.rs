//! The operator page, over HTTP.

use std::{collections::HashSet, future::Future, sync::Arc, time::Duration};

use crate::support::{
    app::App,
    client::{Client, Reply},
    eventually,
    redis_server::RedisServer,
    stores,
    watch::Trace,
};
use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use tower_keep::{
    ClientInfo, Clock, EndReason, ManualClock, MemoryStore, Metadata, NewSession, Rejection, Session, SessionCookie,
    SessionId, SessionLayer, Sessions, Token,
    operator::{self, OperatorPage},
    store::{
        Fallback, FallbackMode, OnRecovery, SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const SAME_ORIGIN: (&str, &str) = ("sec-fetch-site", "same-origin");

/// An app with the page at `/operator`.
struct Operated {
    app: App,
    sessions: Sessions,
    client: Client,
}

impl Operated {
    async fn start(store: impl SessionStore + 'static) -> Self {
        let layer = SessionLayer::new(store).cookie(SessionCookie::development());
        let sessions = layer.sessions();
        let page = operator::router(sessions.clone());
        let app = App::serve(|router| router.nest("/operator", page).layer(layer)).await;
        Self { client: app.client(), app, sessions }
    }

    async fn get(&self, query: &str) -> Reply {
        self.client.get(&format!("/operator{query}")).await
    }

    /// The page, which must exist.
    async fn page(&self, query: &str) -> String {
        let reply = self.get(query).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        reply.text()
    }

    /// Submits the form with this action, like a browser that shows the page.
    async fn post(&self, action: &str) -> Reply {
        self.client.request(Method::POST, &format!("/operator{action}"), &[SAME_ORIGIN], Bytes::new()).await
    }

    async fn is_served(&self, token: &Token) -> bool {
        let headers = [("cookie", &*format!("session={}", token.expose())), ("content-type", "application/json")];
        let reply = self.app.client().request(Method::POST, "/do", &headers, Bytes::from(r#"[["user"]]"#)).await;
        reply.json()[0].is_string()
    }
}

async fn on_both<F: Future<Output = ()>>(test: impl Fn(Operated) -> F) {
    test(Operated::start(MemoryStore::new()).await).await;
    let redis = RedisServer::start().await;
    let config = stores::patient(RedisConfig::from_url(&redis.url()).unwrap());
    test(Operated::start(RedisStore::new(config)).await).await;
}

/// The unescaped values of an attribute of some elements, in order: `<a href="`.
fn attributes(html: &str, before: &str) -> Vec<String> {
    let values = html.split(before).skip(1).map(|rest| rest.split('"').next().unwrap());
    values.map(|value| value.replace("&amp;", "&").replace("&#39;", "'")).collect()
}

/// The sessions on a page.
fn listed(html: &str) -> Vec<SessionId> {
    attributes(html, "<th scope=\"row\"><a href=\"?id=").iter().map(|id| id.parse().unwrap()).collect()
}

fn next_page(html: &str) -> Option<String> {
    attributes(html, "<a rel=\"next\" href=\"").pop()
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn shows_health_and_counts() {
    on_both(async |operated| {
        operated.sessions.create("ana").await.unwrap();
        let html = operated.page("").await;
        let store = operated.sessions.store_name();
        assert!(html.contains("<strong>up</strong>") && html.contains(&format!("store <b>{store}</b>")), "{html}");
        assert!(html.contains("1 session in total") && html.contains("<dt>created</dt><dd>1</dd>"), "{html}");
        assert!(html.contains(" ms</b>") && html.contains("since <time datetime="), "{html}");
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_sessions_are_shown_in_pages() {
    on_both(async |operated| {
        let mut created = HashSet::new();
        for i in 0..10_000 {
            created.insert(operated.sessions.create(format!("user{}", i % 200)).await.unwrap().id());
        }
        let (mut seen, mut query, mut pages) = (HashSet::new(), String::new(), 0);
        loop {
            let html = operated.page(&query).await;
            let page = listed(&html);
            assert_eq!(page.iter().collect::<HashSet<_>>().len(), page.len(), "none is twice on a page");
            // Memory returns whole shards.
            assert!(page.len() < 700, "{} on a page", page.len());
            seen.extend(page);
            pages += 1;
            match next_page(&html) {
                Some(next) => query = next,
                None => break,
            }
        }
        assert_eq!(seen, created);
        assert!(pages >= 20, "{pages} pages");
        let html = operated.page(&query).await;
        assert!(html.contains("last page") && html.contains("First page"));
    })
    .await;
}

#[tokio::test]
async fn pages_are_filled_although_redis_has_many_other_keys() {
    let redis = RedisServer::start().await;
    let mut connection = redis.connect().await.unwrap();
    let mut fill = redis::cmd("EVAL");
    fill.arg("for i = 1, 3000 do redis.call('SET', 'other:' .. i, i) end").arg(0);
    fill.exec_async(&mut connection).await.unwrap();
    let config = stores::patient(RedisConfig::from_url(&redis.url()).unwrap());
    let operated = Operated::start(RedisStore::new(config)).await;
    let id = operated.sessions.create("ana").await.unwrap().id();
    let (mut query, mut found, mut pages) = (String::new(), false, 0);
    loop {
        let html = operated.page(&query).await;
        found |= listed(&html).contains(&id);
        pages += 1;
        match next_page(&html) {
            Some(next) => {
                assert!(!listed(&html).is_empty() || html.contains("None on this page."));
                query = next;
            }
            None => break,
        }
    }
    assert!(found && (2..=6).contains(&pages), "a bounded number of questions a page, and {pages} pages");
}

#[tokio::test]
async fn an_invalid_cursor_is_the_first_page() {
    on_both(async |operated| {
        let id = operated.sessions.create("ana").await.unwrap().id();
        for place in ["", "x", "-1", "99999999999999999999999", "0%0aFLUSHALL", "%00", "1e3", &"9".repeat(10_000)] {
            let html = operated.page(&format!("?from={place}")).await;
            // Memory accepts any number as a cursor.
            assert!(listed(&html) == [id] || place.starts_with("999"), "{place:.30}: {html}");
        }
        assert!(operated.page("").await.contains("<strong>up</strong>"), "the store takes no offence");
    })
    .await;
}

#[tokio::test]
async fn a_user_is_found_and_all_sessions_are_revoked() {
    on_both(async |operated| {
        let name = "ana & \"bruno\"?=#/é";
        let tokens = [operated.sessions.create(name).await.unwrap(), operated.sessions.create(name).await.unwrap()];
        let other = operated.sessions.create("carla").await.unwrap();
        let query = format!("?user={}", encoded(name));
        let html = operated.page(&query).await;
        assert_eq!(
            listed(&html).into_iter().collect::<HashSet<_>>(),
            tokens.iter().map(Token::id).collect::<HashSet<_>>()
        );
        assert_eq!(
            attributes(&operated.page("").await, "<td class=\"user\"><a href=\"")
                .iter()
                .filter(|link| **link == query)
                .count(),
            2
        );

        let revoke_all = attributes(&html, "<form method=\"post\" class=\"all\" action=\"").remove(0);
        let reply = operated.post(&revoke_all).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        let html = operated.page(reply.header("location").unwrap()).await;
        assert!(html.contains("2 sessions were revoked") && html.contains("No live sessions."), "{html}");
        for token in &tokens {
            assert!(!operated.is_served(token).await);
        }
        assert!(operated.is_served(&other).await);
        assert!(operated.page("?user=nobody+of+that+name").await.contains("No live sessions."));
    })
    .await;
}

#[tokio::test]
async fn a_session_is_found_by_its_id_and_revoked_immediately() {
    on_both(async |operated| {
        let metadata = Metadata::default().with_ip([203, 0, 113, 7].into()).with_user_agent("Browser/1 <b>");
        let new =
            NewSession::of("ana").metadata(metadata.with_field("note", "FIELD")).insert("secret", "VALUE").unwrap();
        let token = operated.sessions.create(new).await.unwrap();
        let id = token.id();
        let html = operated.page(&format!("?id=+{id}%0a")).await;
        for shown in [&*id.to_string(), "ana", "203.0.113.7", "Browser/1 &lt;b&gt;", "Created", "Last seen", "Expires"]
        {
            assert!(html.contains(shown), "{shown}: {html}");
        }
        assert!(!html.contains("VALUE") && !html.contains("secret") && !html.contains(token.expose()), "{html}");

        assert!(operated.is_served(&token).await);
        let revoke = attributes(&html, "<form method=\"post\" action=\"").remove(0);
        let reply = operated.post(&revoke).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
        assert!(!operated.is_served(&token).await);
        let html = operated.page(reply.header("location").unwrap()).await;
        assert!(html.contains("was revoked.") && html.contains("It has ended: <strong>revoked</strong>"), "{html}");

        // Again, from a page that is still open.
        let reply = operated.post(&revoke).await;
        assert!(operated.page(reply.header("location").unwrap()).await.contains("no longer live"));
        let gone = operated.get(&format!("?id={id}")).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND);
        assert_eq!(operated.sessions.ended(&id).await.unwrap().unwrap().reason, EndReason::Revoked);
    })
    .await;
}

#[tokio::test]
async fn revoking_from_a_list_returns_to_it() {
    on_both(async |operated| {
        let ids =
            [operated.sessions.create("ana").await.unwrap().id(), operated.sessions.create("ana").await.unwrap().id()];
        for (query, start) in [("", "?done="), ("?user=ana", "?user=ana&done=")] {
            let html = operated.page(query).await;
            let revoke = attributes(&html, "<td class=\"act\"><form method=\"post\" action=\"").remove(0);
            let before = listed(&html).len();
            let reply = operated.post(&revoke).await;
            let back = reply.header("location").unwrap();
            assert!(back.starts_with(start), "{back}");
            let html = operated.page(back).await;
            assert!(html.contains("The session was revoked."));
            assert_eq!(listed(&html).len(), before - 1);
        }
        assert_eq!(operated.sessions.count().await.unwrap(), 0, "{ids:?}");
    })
    .await;
}

#[tokio::test]
async fn a_link_cannot_fake_a_confirmation() {
    let operated = Operated::start(MemoryStore::new()).await;
    for query in ["?done=revoked", "?done=gone", "?done=user&n=7", "?user=ana&done=user&n=7"] {
        for (site, tells) in [("same-origin", true), ("cross-site", false), ("same-site", false), ("none", false)] {
            let headers = [("sec-fetch-site", site)];
            let reply =
                operated.client.request(Method::GET, &format!("/operator{query}"), &headers, Bytes::new()).await;
            assert_eq!(reply.status, StatusCode::OK);
            assert_eq!(reply.text().contains("role=\"status\""), tells, "{query} {site}: {}", reply.text());
        }
    }
}

#[tokio::test]
async fn the_log_has_the_client_ip_of_the_operator() {
    let trace = Trace::collect();
    let info = ClientInfo::new().peer(|_| Some([203, 0, 113, 9].into()));
    let layer = SessionLayer::new(MemoryStore::new()).client_info(info);
    let sessions = layer.sessions();
    let page = operator::router(sessions.clone());
    let app = App::serve(|router| router.nest("/operator", page).layer(layer)).await;
    let ids = [sessions.create("ana").await.unwrap().id(), sessions.create("bob").await.unwrap().id()];
    for action in [format!("revoke={}", ids[0]), "revoke_user=bob".to_owned()] {
        let path = format!("/operator?{action}");
        let reply = app.client().request(Method::POST, &path, &[SAME_ORIGIN], Bytes::new()).await;
        assert_eq!(reply.status, StatusCode::SEE_OTHER);
    }
    let ended = trace.security().into_iter().filter(|event| event.get("event") == Some("ended"));
    let ended: Vec<_> = ended
        .map(|event| (event.get("session").unwrap().to_owned(), event.get("client_ip").map(str::to_owned)))
        .collect();
    assert_eq!(ended, ids.map(|id| (id.to_string(), Some("203.0.113.9".to_owned()))));
}

#[tokio::test]
async fn missing_data_is_explained() {
    on_both(async |operated| {
        let unknown = operated.get(&format!("?id={}", "A".repeat(44))).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        assert!(unknown.text().contains("No session with this id is known"));
        let token = operated.sessions.create("ana").await.unwrap();
        for no_id in ["nonsense", "", token.expose()] {
            let reply = operated.get(&format!("?id={no_id}")).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert!(reply.text().contains("is not a session id"));
        }
        let nothing = operated.post("").await;
        assert_eq!(nothing.status, StatusCode::BAD_REQUEST);
        assert_eq!(operated.post("?revoke=nonsense").await.status, StatusCode::BAD_REQUEST);
        let put = operated.client.request(Method::PUT, "/operator", &[SAME_ORIGIN], Bytes::new()).await;
        assert_eq!(put.status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(operated.is_served(&token).await);
    })
    .await;
}

#[tokio::test]
async fn only_the_page_itself_can_change_anything() {
    let operated = Operated::start(MemoryStore::new()).await;
    let host = operated.app.addr().to_string();
    let (origin, secure) = (format!("http://{host}"), format!("https://{host}"));
    let upper = origin.to_uppercase();
    let other_port = "http://127.0.0.1:1".to_owned();
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let refused: &[Headers] = &[
        &[],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
        &[("sec-fetch-site", "")],
        &[("sec-fetch-site", "Same-Origin")],
        &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-origin, same-origin")],
        &[("sec-fetch-site", "cross-site"), ("origin", &origin)],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", &host)],
        &[("origin", "http://evil.example")],
        &[("origin", &other_port)],
        &[("origin", &origin), ("origin", "http://evil.example")],
        &[("origin", "http://127.0.0.1")],
        &[("referer", &origin)],
        &[("host", "evil.example"), ("origin", &origin)],
    ];
    let allowed: &[Headers] = &[
        &[SAME_ORIGIN],
        &[SAME_ORIGIN, ("origin", "null")],
        &[("origin", &origin)],
        &[("origin", &secure)], // TLS ends at a proxy
        &[("origin", &upper)],
    ];
    for (headers, served) in
        refused.iter().map(|headers| (headers, false)).chain(allowed.iter().map(|headers| (headers, true)))
    {
        for by_user in [false, true] {
            let token = operated.sessions.create("ana").await.unwrap();
            let action = if by_user { "revoke_user=ana".to_owned() } else { format!("revoke={}", token.id()) };
            let reply =
                operated.client.request(Method::POST, &format!("/operator?{action}"), headers, Bytes::new()).await;
            let status = if served { StatusCode::SEE_OTHER } else { StatusCode::FORBIDDEN };
            assert_eq!(reply.status, status, "{headers:?}");
            assert_eq!(operated.sessions.is_valid(&token).await.unwrap(), !served, "{headers:?}");
            operated.sessions.revoke_user("ana").await.unwrap();
        }
    }
}

#[tokio::test]
async fn viewing_changes_nothing() {
    let operated = Operated::start(MemoryStore::new()).await;
    let token = operated.sessions.create("ana").await.unwrap();
    for method in [Method::GET, Method::HEAD] {
        for action in [format!("revoke={}", token.id()), "revoke_user=ana".to_owned()] {
            let path = format!("/operator?{action}");
            let reply = operated.client.request(method.clone(), &path, &[SAME_ORIGIN], Bytes::new()).await;
            assert_eq!(reply.status, StatusCode::OK);
        }
    }
    assert!(operated.is_served(&token).await);
}

#[tokio::test]
async fn client_input_is_escaped() {
    on_both(async |operated| {
        let evil = "\"'><script>alert(1)</script>&lt;\u{202e}\u{0}\u{7f}\u{200b}\r\n</title>";
        let shown = "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;lt;⟨U+202E⟩⟨U+0000⟩⟨U+007F⟩⟨U+200B⟩⟨U+000D⟩⟨U+000A⟩&lt;/title&gt;";
        let new = NewSession::of(evil).metadata(Metadata::default().with_user_agent(evil));
        let token = operated.sessions.create(new).await.unwrap();
        let search = format!("?user={}", encoded(evil));
        for query in ["".to_owned(), search.clone(), format!("?id={}", token.id()), format!("?id={}", encoded(evil)), format!("?from={}", encoded(evil))] {
            let html = operated.get(&query).await.text();
            assert!(html.contains(shown) || query.starts_with("?from"), "{query}: {html}");
            assert!(!html.contains("<script") && !html.contains(evil) && html.matches("</title>").count() == 1, "{query}: {html}");
            assert!(!html.contains(|c: char| c.is_control() && c != '\n'), "{query}: {html:?}");
        }
        // The name is unchanged after the round trip.
        let html = operated.page(&search).await;
        let revoke_all = attributes(&html, "<form method=\"post\" class=\"all\" action=\"").remove(0);
        operated.post(&revoke_all).await;
        assert!(!operated.sessions.is_valid(&token).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn long_strings_are_truncated_in_lists() {
    let operated = Operated::start(MemoryStore::new()).await;
    let agent = "é".repeat(2000);
    let new = NewSession::of("ü".repeat(1000)).metadata(Metadata::default().with_user_agent(&agent));
    let id = operated.sessions.create(new).await.unwrap().id();
    let html = operated.page("").await;
    assert!(html.contains(&format!("{}…", "é".repeat(60))) && !html.contains(&"é".repeat(61)));
    assert!(html.contains(&format!("{}…", "ü".repeat(40))) && !html.contains(&"ü".repeat(41)));
    let html = operated.page(&format!("?id={id}")).await;
    assert!(html.contains(&agent) && html.contains(&"ü".repeat(1000)), "and shown in full where there is room");
}

#[tokio::test]
async fn responses_have_security_headers() {
    let operated = Operated::start(MemoryStore::new()).await;
    let policy = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    for reply in [
        operated.get("").await,
        operated.get("?id=x").await,
        operated.post("").await,
        operated.post("?revoke_user=ana").await,
        operated.client.request(Method::POST, "/operator", &[], Bytes::new()).await,
    ] {
        assert_eq!(reply.header("content-security-policy"), Some(policy));
        assert_eq!(
            (reply.header("cache-control"), reply.header("x-content-type-options")),
            (Some("no-store"), Some("nosniff"))
        );
        assert_eq!(reply.header("referrer-policy"), Some("same-origin"));
        let html = reply.text();
        for outside in ["http:", "https:", "//", "style=\"", "<script", "onclick", "<img", "javascript:"] {
            assert!(!html.contains(outside), "{outside}: {html}");
        }
    }
    let style = attributes(&operated.page("").await, "<link rel=\"stylesheet\" href=\"").remove(0);
    let reply = operated.get(&style).await;
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, Some("text/css; charset=utf-8")));
    assert!(reply.text().contains("color-scheme: light dark"));
}

#[tokio::test]
async fn without_the_store_its_health_is_shown() {
    let mut redis = RedisServer::start().await;
    let operated = Operated::start(RedisStore::new(RedisConfig::from_url(&redis.url()).unwrap())).await;
    let token = operated.sessions.create("ana").await.unwrap();
    redis.stop();
    let id = token.id();
    for reply in [
        operated.get("").await,
        operated.get("?user=ana").await,
        operated.get(&format!("?id={id}")).await,
        operated.get("?count").await,
        operated.post(&format!("?revoke={id}")).await,
        operated.post("?revoke_user=ana&user=ana").await,
    ] {
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
        let html = reply.text();
        assert!(html.contains("<strong>down</strong>") && html.contains("class=\"cause\""), "{html}");
        assert!(html.contains("The store is unavailable") && html.contains("Try again"), "{html}");
        assert!(html.contains("<dt>created</dt><dd>1</dd>"), "{html}");
    }
    redis.run().await;
    eventually("the page is back", async || operated.get("").await.status == StatusCode::OK).await;
    assert!(operated.page("").await.contains("<strong>up</strong>"));
}

#[tokio::test]
async fn a_fallback_is_shown() {
    let mut redis = RedisServer::start().await;
    let main = RedisStore::new(RedisConfig::from_url(&redis.url()).unwrap());
    let store = Arc::new(Fallback::new(main, FallbackMode::Memory { on_recovery: OnRecovery::Merge }));
    let layer = SessionLayer::new(store.clone());
    let sessions = layer.sessions();
    let page = OperatorPage::new(sessions.clone()).fallback(move || store.stats()).router();
    let app = App::serve(|router| router.nest("/operator", page).layer(layer)).await;
    assert!(app.client().get("/operator").await.text().contains("fallback: <b>not in use</b>"));
    redis.stop();
    eventually("the fallback is used", async || sessions.create("ana").await.is_ok()).await;
    let html = app.client().get("/operator").await.text();
    assert!(html.contains("fallback: <b>in use</b>") && html.contains("1 outage"), "{html}");
}

#[tokio::test]
async fn it_works_under_any_prefix_and_behind_the_authorization_of_the_app() {
    async fn operators_only(session: Session, request: Request, next: Next) -> Result<Response, Rejection> {
        let user = session.require_user().await?;
        Ok(if &*user == "root" { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() })
    }
    let layer = SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::development());
    let sessions = layer.sessions();
    let page = || {
        operator::router(sessions.clone())
            .layer(middleware::from_fn(operators_only))
            .layer(layer.clone().require_session())
    };
    let deep = Router::new().nest("/b", Router::new().nest("/operator", page()));
    let app = App::serve(|router| router.nest("/a", deep).merge(page()).layer(layer.clone())).await;
    let root = sessions.create("root").await.unwrap();
    let ana = sessions.create("ana").await.unwrap();
    let client = app.client();
    for path in ["/a/b/operator", "/"] {
        assert_eq!(app.client().get(path).await.status, StatusCode::UNAUTHORIZED);
        client.set_cookie("session", ana.expose());
        assert_eq!(client.get(path).await.status, StatusCode::FORBIDDEN);
        let post =
            client.request(Method::POST, &format!("{path}?revoke_user=root"), &[SAME_ORIGIN], Bytes::new()).await;
        assert_eq!(post.status, StatusCode::FORBIDDEN);
        client.set_cookie("session", root.expose());
        let html = client.get(path).await.text();
        assert_eq!(listed(&html).len(), 2);
        // All links are relative queries, so the page works under any path.
        let references = [attributes(&html, "href=\""), attributes(&html, "action=\"")].concat();
        assert!(
            references.len() > 5 && references.iter().all(|reference| reference.starts_with('?')),
            "{references:?}"
        );
        for link in attributes(&html, "<a href=\"") {
            assert_eq!(client.get(&format!("{path}{link}")).await.status, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn times_come_from_the_clock_of_the_layer() {
    let clock = ManualClock::new();
    let layer = SessionLayer::new(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
    let sessions = layer.sessions();
    let page = operator::router(sessions.clone());
    let app = App::serve(|router| router.nest("/operator", page).layer(layer)).await;
    sessions.create("ana").await.unwrap();
    let then = clock.now();
    clock.advance(Duration::from_secs(10 * 60));
    let html = app.client().get("/operator").await.text();
    assert!(html.contains(&format!("<time datetime=\"{then}\" title=\"{then}\">10 min ago</time>")), "{html}");
    assert!(html.contains(">in 20 min</time>"), "{html}");
}
