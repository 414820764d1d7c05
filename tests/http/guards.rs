//! Who may use a route, and what the others get.

use axum::{
    Router,
    extract::Query,
    response::Redirect,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde_json::json;
use tonic::Code;
use tower_keep::{
    LoginRedirect, MemoryStore, Policy, Reason, Rejection, Session, SessionError, SessionLayer, Token, Typed, User,
    grpc,
};

use crate::support::{
    app::App,
    client::{Client, Reply},
};

/// A stranger, an anonymous visitor with a flash message, and a user.
async fn visitors(app: &App) -> [Client; 3] {
    let [stranger, visitor, user] = [app.client(), app.client(), app.client()];
    visitor.perform(json!([["insert", "flash", "wrong password"]])).await;
    user.perform(json!([["login", "ana"]])).await;
    [stranger, visitor, user]
}

async fn statuses(visitors: &[Client; 3], path: &str) -> [u16; 3] {
    let mut statuses = [0; 3];
    for (status, visitor) in statuses.iter_mut().zip(visitors) {
        *status = visitor.get(path).await.status.as_u16();
    }
    statuses
}

fn layer() -> SessionLayer {
    SessionLayer::new(MemoryStore::new())
}

#[tokio::test]
async fn only_a_login_passes_require_user() {
    let layer = layer();
    let app = App::serve(|router| {
        router
            .route("/layer", get("members").layer(layer.clone().require_user()))
            .route("/policy", get("members").layer(layer.clone().policy(Policy::new().require_user())))
            .route("/extractor", get(async |user: User| format!("hello {user}")))
            .route("/session", get("a session").layer(layer.clone().require_session()))
            .layer(layer)
    })
    .await;
    let visitors = visitors(&app).await;
    for path in ["/layer", "/policy", "/extractor"] {
        assert_eq!(statuses(&visitors, path).await, [401, 401, 200], "{path}");
    }
    assert_eq!(statuses(&visitors, "/session").await, [401, 200, 200]);
    assert_eq!(visitors[2].get("/extractor").await.text(), "hello ana");
}

#[tokio::test]
async fn the_reason_says_that_nobody_is_logged_in() {
    let layer = layer();
    let reason = |rejection: &Rejection, _: &Request<()>| {
        let mut response = axum::response::Response::new(format!("{:?}", rejection.reason()).into());
        *response.status_mut() = rejection.status();
        response
    };
    let members = layer.clone().require_user().reject_with(reason);
    let app = App::serve(|router| router.route("/members", get("members").layer(members)).layer(layer)).await;
    let visitors = visitors(&app).await;
    assert_eq!(visitors[0].get("/members").await.text(), format!("{:?}", Reason::NoCredential));
    assert_eq!(visitors[1].get("/members").await.text(), format!("{:?}", Reason::NotLoggedIn));
}

#[tokio::test]
async fn the_extractors_say_who_is_there() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    #[serde(default)]
    struct Visitor {
        visits: u32,
    }
    let app = App::serve(|router| {
        router
            .route("/user", get(async |user: Option<User>| user.map_or("nobody".into(), |user| user.to_string())))
            .route("/has", get(async |session: Option<Session>| session.is_some().to_string()))
            .route(
                "/visit",
                get(async |visitor: Typed<Visitor>| {
                    let visits = visitor.modify(|visitor| {
                        visitor.visits += 1;
                        visitor.visits
                    })?;
                    Ok::<_, SessionError>(visits.to_string())
                }),
            )
            .layer(layer())
    })
    .await;
    let [stranger, visitor, user] = visitors(&app).await;
    for (client, name, has) in [(&stranger, "nobody", "false"), (&visitor, "nobody", "true"), (&user, "ana", "true")] {
        assert_eq!(client.get("/user").await.text(), name);
        assert_eq!(client.get("/has").await.text(), has);
    }
    assert_eq!(user.get("/visit").await.text(), "1");
    assert_eq!(user.get("/visit").await.text(), "2");
}

/// `/account` and `/nested/account` for users, with a redirect to the login page.
async fn redirecting(login: &'static str) -> App {
    let layer = layer();
    let members = layer.clone().require_user().reject_with(LoginRedirect::to(login));
    let routes = || Router::new().route("/account", get("members").post("posted")).route_layer(members.clone());
    App::serve(|router| router.merge(routes()).nest("/nested", routes()).layer(layer.clone())).await
}

async fn refused(app: &App, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    app.client().request(method, path, headers, Bytes::new()).await
}

#[tokio::test]
async fn a_page_is_redirected_to_the_login_and_back() {
    for (login, before) in [("/login", "/login?"), ("/login?lang=en", "/login?lang=en&")] {
        let app = redirecting(login).await;
        for path in ["/account", "/account?tab=a%26b&x=1", "/nested/account?q=%C3%BC"] {
            let reply = refused(&app, Method::GET, path, &[("accept", "text/html, */*")]).await;
            assert_eq!(reply.status, StatusCode::SEE_OTHER);
            let location = reply.header("location").unwrap();
            let query = location.strip_prefix(before).unwrap();
            let next = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "next").unwrap().1;
            assert_eq!(LoginRedirect::next(&next), Some(path), "{location}");
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        }
    }
}

#[tokio::test]
async fn a_form_is_redirected_without_a_way_back() {
    let app = redirecting("/login").await;
    let reply = refused(&app, Method::POST, "/account", &[]).await;
    assert_eq!((reply.status, reply.header("location")), (StatusCode::SEE_OTHER, Some("/login")));
}

#[tokio::test]
async fn htmx_and_json_clients_get_what_they_understand() {
    let app = redirecting("/login").await;
    let page = "http://127.0.0.1/account?tab=2";
    let reply = refused(&app, Method::POST, "/account", &[("hx-request", "true"), ("hx-current-url", page)]).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.header("hx-redirect"), Some("/login?next=%2Faccount%3Ftab%3D2"));
    assert_eq!(reply.header("www-authenticate"), Some("Cookie"));
    for accept in ["application/json", "application/problem+json, text/html", "Application/JSON;q=0.9, */*"] {
        let reply = refused(&app, Method::GET, "/account", &[("accept", accept)]).await;
        assert_eq!((reply.status, reply.header("location")), (StatusCode::UNAUTHORIZED, None), "{accept}");
        assert_eq!(reply.json(), json!({ "error": "no session" }));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    let reply = refused(&app, Method::GET, "/account", &[("accept", "text/html, application/json")]).await;
    assert_eq!(reply.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn the_way_back_stays_on_this_origin() {
    for evil in [
        "",
        "account",
        "//evil.example",
        "/\\evil.example",
        "\\evil.example",
        "/%2Fevil.example",
        "/%2fevil.example",
        "/%5Cevil.example",
        "/%252Fevil.example",
        "/%25252fevil.example",
        "%2F%2Fevil.example",
        "/.//evil.example",
        "/..//evil.example",
        "/\t/evil.example",
        "/%09/evil.example",
        "/\n/evil.example",
        "/%0d%0aset-cookie:a=b",
        " //evil.example",
        "https://evil.example",
        "http:evil.example",
        "javascript:alert(1)",
        "/é",
    ] {
        assert_eq!(LoginRedirect::next(evil), None, "{evil:?}");
    }
    for good in ["/", "/account", "/a/b.c?next=//evil.example&x=%2F%2F", "/a%20b", "/a%25b", "/#top", "/@user", "/a:b"]
    {
        assert_eq!(LoginRedirect::next(good), Some(good));
    }
    // The request itself may be evil too.
    let layer = layer();
    let members = layer.clone().require_user().reject_with(LoginRedirect::to("/login"));
    let app = App::serve(|router| router.fallback(get("members")).layer(members).layer(layer)).await;
    let reply = refused(&app, Method::GET, "//evil.example/", &[]).await;
    assert_eq!((reply.status, reply.header("location")), (StatusCode::SEE_OTHER, Some("/login")));
}

#[tokio::test]
async fn a_visitor_logs_in_and_comes_back() {
    #[derive(serde::Deserialize)]
    struct Next {
        next: Option<String>,
    }
    async fn login(session: Session, Query(query): Query<Next>) -> Result<Redirect, SessionError> {
        session.login("ana")?;
        Ok(Redirect::to(query.next.as_deref().and_then(LoginRedirect::next).unwrap_or("/")))
    }
    let layer = layer();
    let members = layer.clone().require_user().reject_with(LoginRedirect::to("/login"));
    let app = App::serve(|router| {
        router.route("/account", get("members")).route_layer(members).route("/login", post(login)).layer(layer)
    })
    .await;
    let client = app.client();
    let location = client.get("/account?a=1").await.header("location").unwrap().to_owned();
    let back = client.post(&location, &json!(null)).await.header("location").unwrap().to_owned();
    assert_eq!(back, "/account?a=1");
    assert_eq!(client.get(&back).await.text(), "members");
}

#[tokio::test]
async fn every_401_has_a_challenge_that_no_browser_prompts_for() {
    let layer = layer();
    let app = App::serve(|router| {
        router
            .route("/layer", get("members").layer(layer.clone().require_user()))
            .route("/extractor", get(async |user: User| user.to_string()))
            .route("/ended", get(async || Err::<(), _>(SessionError::Ended)))
            .layer(layer)
    })
    .await;
    for path in ["/layer", "/extractor", "/ended"] {
        let reply = app.client().get(path).await;
        assert_eq!(
            (reply.status, reply.header("www-authenticate")),
            (StatusCode::UNAUTHORIZED, Some("Cookie")),
            "{path}"
        );
    }
}

// ---- gRPC

/// The status of a guard for a request with this token, behind an eager layer.
async fn guarded(
    guard: fn(&tonic::Request<()>) -> Result<std::sync::Arc<str>, tonic::Status>,
    token: Option<&str>,
) -> Code {
    use tower::{Layer, ServiceExt, service_fn};
    let layer = layer().eager();
    let known = layer.sessions().create("ana").await.unwrap();
    let token = token.map(|token| if token == "known" { known.expose().to_owned() } else { token.to_owned() });
    let service = layer.layer(service_fn(move |request: Request<()>| async move {
        let (head, ()) = request.into_parts();
        let request = tonic::Request::from_parts(tonic::metadata::MetadataMap::new(), head.extensions, ());
        let code = guard(&request).map_or_else(|status| status.code(), |_| Code::Ok);
        Ok::<_, std::convert::Infallible>(http::Response::new(format!("{}", code as i32)))
    }));
    let mut request = Request::builder();
    if let Some(token) = token {
        request = request.header("cookie", format!("__Host-session={token}"));
    }
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    Code::from_i32(response.into_body().parse().unwrap())
}

#[tokio::test]
async fn an_interceptor_knows_the_user_without_waiting() {
    let unknown = Token::parse("a".repeat(56)).unwrap();
    for (token, code) in [
        (None, Code::Unauthenticated),
        (Some("garbage"), Code::Unauthenticated),
        (Some(unknown.expose()), Code::Unauthenticated),
        (Some("known"), Code::Ok),
    ] {
        assert_eq!(guarded(grpc::loaded_user, token).await, code, "{token:?}");
    }
}
