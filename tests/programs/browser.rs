//! In a real browser: the forms of an example, an iframe on another site, and the operator page.

use std::collections::HashSet;

use crate::support::{
    app::App,
    browser::{Browser, Tab},
    example::Server,
    redis_server::RedisServer,
    tls_front::{Identity, TlsFront},
};
use axum::{Router, extract::Request, response::Html, routing::get};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tower_keep::{MemoryStore, Metadata, NewSession, SessionLayer, Sessions, operator};

#[tokio::test]
async fn the_forms_log_in_and_out() {
    let server = Server::start("quickstart", &[]).await;
    let browser = Browser::start(None).await;
    let tab = browser.tab().await;
    tab.goto(&server.url).await;
    tab.shows("Who are you?").await;
    assert_eq!(browser.cookies().await, [Value::Null; 0], "a visit creates no session");

    tab.fill("input[name=user]", "Ana <b>").await;
    tab.click("button").await;
    tab.shows("Hello, Ana <b>! Visits to /me in this session: 0.").await;
    let [cookie] = &browser.cookies().await[..] else { panic!("one cookie") };
    assert_eq!(
        (&cookie["name"], &cookie["httpOnly"], &cookie["sameSite"]),
        (&json!("session"), &json!(true), &json!("Lax"))
    );
    assert_eq!(tab.eval("document.cookie").await, "", "scripts do not see it");

    tab.click("a[href='/me']").await;
    tab.shows(r#""user":"Ana <b>""#).await;
    tab.goto(&server.url).await;
    tab.shows("Visits to /me in this session: 1.").await;

    tab.click("button").await;
    tab.shows("Who are you?").await;
    assert_eq!(browser.cookies().await, [Value::Null; 0], "it was taken away");
    browser.close().await;
}

/// A page on another site, with the URL in its query in an iframe.
async fn embedding() -> App {
    let page = async |request: Request| {
        let mut parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        let url = parameters.next().map(|(_, url)| url.into_owned()).unwrap_or_default();
        Html(format!("<!doctype html><title>outer</title><iframe id=frame src=\"{url}\"></iframe>"))
    };
    App::serve(|router| router.route("/embed", get(page))).await
}

/// The state of the embedded page on this site.
async fn embedded(browser: &Browser, tab: &Tab, site: &str, url: &str) -> Tab {
    // Then the iframe of the previous page is gone.
    tab.goto(&format!("{site}/public")).await;
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("url", url).finish();
    tab.goto(&format!("{site}/embed?{query}")).await;
    let origin = url.split("/client").next().unwrap();
    let frame = browser.frame(origin).await;
    frame.shows("igned in").await;
    frame
}

async fn the_iframe_has_a_session_of_its_own_on_each_site(server: Server) {
    let identity = Identity::of(&["inner.test", "one.test", "other.test"]);
    let outer = embedding().await;
    let inner_front = TlsFront::start(&identity, server.addr()).await;
    let outer_front = TlsFront::start(&identity, &outer.addr().to_string()).await;
    let inner = format!("https://inner.test:{}", inner_front.port);
    let (one, other) =
        (format!("https://one.test:{}", outer_front.port), format!("https://other.test:{}", outer_front.port));

    let created = server.client().request(Method::POST, "/auth/create-session", &[], Bytes::new()).await.json();
    let link = format!("{inner}{}", created["iframe_url"].as_str().unwrap());
    let page = format!("{inner}/client/iframe.html");

    let browser = Browser::start(Some(&identity.key)).await;
    let tab = browser.tab().await;
    let frame = embedded(&browser, &tab, &one, &link).await;
    frame.shows("Signed in.").await;
    assert_eq!(frame.eval("location.href").await, page, "the token is not left in the address");
    assert_eq!(frame.eval("document.cookie").await, "", "scripts do not see the cookie");
    assert_ne!(frame.eval("document.getElementById('used_at').textContent").await, "");

    let [cookie] = &browser.cookies().await[..] else { panic!("one cookie") };
    assert_eq!((&cookie["name"], &cookie["sameSite"]), (&json!("__Host-frame"), &json!("None")));
    assert_eq!(
        (&cookie["secure"], &cookie["httpOnly"], &cookie["partitionKey"]["topLevelSite"]),
        (&json!(true), &json!(true), &json!("https://one.test"))
    );

    // With the cookie alone, and with a used link.
    embedded(&browser, &tab, &one, &page).await.shows("Signed in.").await;
    embedded(&browser, &tab, &one, &link).await.shows("Signed in.").await;
    // On another site, and outside an iframe, the page has another session.
    embedded(&browser, &tab, &other, &page).await.shows("Not signed in: there is no session.").await;
    embedded(&browser, &tab, &other, &link).await.shows("Not signed in: the session is used.").await;
    tab.goto(&page).await;
    tab.shows("Not signed in: there is no session.").await;

    // The other site has its own session besides the first.
    let created = server.client().request(Method::POST, "/auth/create-session", &[], Bytes::new()).await.json();
    let link = format!("{inner}{}", created["iframe_url"].as_str().unwrap());
    embedded(&browser, &tab, &other, &link).await.shows("Signed in.").await;
    embedded(&browser, &tab, &one, &page).await.shows("Signed in.").await;
    let cookies = browser.cookies().await;
    let values: HashSet<_> = cookies.iter().map(|cookie| cookie["value"].as_str().unwrap()).collect();
    assert_eq!((cookies.len(), values.len()), (2, 2));
    browser.close().await;
}

#[tokio::test]
async fn the_iframe_has_one_session_per_site_in_memory() {
    the_iframe_has_a_session_of_its_own_on_each_site(Server::start("iframe_auth", &[]).await).await;
}

#[tokio::test]
async fn the_iframe_has_one_session_per_site_in_redis() {
    let redis = RedisServer::start().await;
    the_iframe_has_a_session_of_its_own_on_each_site(Server::on("iframe_auth", &redis).await).await;
}

#[tokio::test]
async fn the_demonstration_of_the_iframe_works() {
    let server = Server::start("iframe_auth", &[]).await;
    let browser = Browser::start(None).await;
    let tab = browser.tab().await;
    tab.goto(&server.url).await;
    tab.click("#embed").await;
    let shown = "document.getElementById('frame').contentDocument?.getElementById('state')?.textContent ?? ''";
    crate::support::eventually("the page signs in", async || tab.eval(shown).await == "Signed in.").await;
    browser.close().await;
}

/// An app with the operator page at `/ops`, and `/evil` with a form that posts there from any origin.
async fn operated(number: usize) -> (App, Sessions) {
    let layer = SessionLayer::new(MemoryStore::new());
    let sessions = layer.sessions();
    let agent = Metadata::default().with_user_agent("<script>document.title = 'broken'</script>");
    for i in 0..number {
        let new = NewSession::of(format!("user {}", i % 20)).metadata(agent.clone());
        sessions.create(new).await.unwrap();
    }
    let evil = async |request: Request| {
        let target = request.uri().query().unwrap_or_default().to_owned();
        let form = format!("<form method=post action=\"{target}/ops?revoke_user=user+1\"><button>Win!</button></form>");
        Html(format!("<!doctype html><title>evil</title>{form}<script>document.title = 'scripted'</script>"))
    };
    let page = operator::router(sessions.clone());
    let routes = Router::new().nest("/ops", page).route("/evil", get(evil));
    (App::serve(|router| router.merge(routes).layer(layer)).await, sessions)
}

/// The ids on the page, or none while it loads.
async fn ids(tab: &Tab) -> Vec<String> {
    let shown = "[...document.querySelectorAll('tbody code')].map(code => code.title)";
    let ids = tab.eval(&format!("document.readyState === 'complete' ? {shown} : []")).await;
    ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// `origin` decides whether the browser sends `Sec-Fetch-Site`, which it does only over a trusted connection.
async fn operators_work_without_scripts(sessions: Sessions, origin: &str) {
    let browser = Browser::start(None).await;
    let tab = browser.tab().await;
    tab.without_scripts().await;
    tab.goto(&format!("{origin}/evil?x")).await;
    assert_eq!(tab.eval("document.title").await, "evil", "no script runs");

    // To the last page.
    tab.goto(&format!("{origin}/ops")).await;
    tab.shows("200 sessions in total.").await;
    assert_eq!(tab.eval("getComputedStyle(document.body).marginTop").await, "0px", "the style sheet is applied");
    let mut seen = HashSet::new();
    let mut pages = 1;
    loop {
        let page = ids(&tab).await;
        assert!(!page.is_empty());
        seen.extend(page.iter().cloned());
        if tab.eval("document.querySelector('a[rel=next]') === null").await == true {
            break;
        }
        tab.click("a[rel=next]").await;
        crate::support::eventually("the next page", async || {
            let shown = ids(&tab).await;
            !shown.is_empty() && shown != page
        })
        .await;
        pages += 1;
    }
    tab.shows("This is the last page.").await;
    assert_eq!(seen.len(), 200);
    assert!(pages >= 3, "{pages} pages");

    // Find a user, revoke one session, then all.
    tab.fill("#user", "user 7").await;
    tab.click("#user + button").await;
    tab.shows("Sessions of user 7").await;
    let before = ids(&tab).await;
    assert_eq!(before.len(), 10);
    tab.click(&format!("tr:has(code[title='{}']) button", before[3])).await;
    tab.shows("The session was revoked.").await;
    assert_eq!(ids(&tab).await.len(), 9);
    assert!(sessions.get(&before[3].parse().unwrap()).await.unwrap().is_none());
    tab.click("button.danger").await;
    tab.shows("9 sessions were revoked.").await;
    tab.shows("No live sessions.").await;
    assert_eq!(sessions.list("user 7").await.unwrap().len(), 0);

    // Find a session by its id.
    let id = sessions.list("user 8").await.unwrap()[0].id();
    tab.fill("#id", &format!("{id}")).await;
    tab.click("#id + button").await;
    tab.shows("Revoke this session").await;
    tab.shows("<script>document.title = 'broken'</script>").await;
    tab.click("button.danger").await;
    tab.shows("It has ended: revoked").await;
    assert_eq!(sessions.count().await.unwrap(), 189);
    browser.close().await;
}

#[tokio::test]
async fn the_operator_page_works_without_scripts_with_fetch_metadata() {
    let (app, sessions) = operated(200).await;
    operators_work_without_scripts(sessions, &app.url()).await;
}

#[tokio::test]
async fn the_operator_page_works_without_scripts_with_origin_only() {
    let (app, sessions) = operated(200).await;
    operators_work_without_scripts(sessions, &format!("http://ops.test:{}", app.addr().port())).await;
}

#[tokio::test]
async fn another_site_cannot_submit_the_forms() {
    let (app, sessions) = operated(20).await;
    let port = app.addr().port();
    let browser = Browser::start(None).await;
    let tab = browser.tab().await;
    let here = app.url();
    let named = format!("http://ops.test:{port}");
    for (from, to) in [
        (format!("http://evil.test:{port}"), &here),
        (format!("http://evil.test:{port}"), &named),
        (format!("http://sub.ops.test:{port}"), &named),
        (format!("http://localhost:{port}"), &here),
    ] {
        tab.goto(&format!("{from}/evil?{to}")).await;
        assert_eq!(tab.eval("document.title").await, "scripted");
        tab.click("button").await;
        tab.shows("Nothing was done").await;
        assert_eq!(sessions.list("user 1").await.unwrap().len(), 1, "{from} {to}");
    }
    // From the same origin, the same form works. So the origin is what matters.
    tab.goto(&format!("{named}/evil?{named}")).await;
    tab.click("button").await;
    tab.shows("1 session was revoked.").await;
    browser.close().await;
}

#[tokio::test]
async fn the_operator_page_fits_a_phone_and_dark_mode() {
    let (app, sessions) = operated(30).await;
    let long = "a-name-without-any-place-to-break-it-".repeat(8);
    let long_id = sessions.create(long.as_str()).await.unwrap().id();
    let browser = Browser::start(None).await;
    let tab = browser.tab().await;
    let ground = "getComputedStyle(document.body).backgroundColor";
    tab.goto(&format!("{}/ops", app.url())).await;
    let light = tab.eval(ground).await;
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    tab.call("Emulation.setEmulatedMedia", dark).await;
    assert_ne!(tab.eval(ground).await, light);
    let phone = json!({ "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true });
    tab.call("Emulation.setDeviceMetricsOverride", phone).await;
    let user: String = form_urlencoded::byte_serialize(long.as_bytes()).collect();
    for query in ["".to_owned(), format!("?user={user}"), format!("?id={long_id}"), "?id=x".to_owned()] {
        tab.goto(&format!("{}/ops{query}", app.url())).await;
        assert_eq!(tab.eval("document.documentElement.scrollWidth").await, 360, "{query:.20}");
    }
    browser.close().await;
}
