//! JSON Web Tokens: acceptance, expiry, refresh, and interoperability with Python's PyJWT.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::spy::Spy;
use crate::support::{
    app::App,
    client::{Client, Reply},
    eventually,
    log::Log,
    redis_server::RedisServer,
    watch::Metrics,
};
use axum::{Extension, Json, Router, extract::State, routing::post};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Bearer, Clock, EndReason, InvalidJwt, InvalidJwtKey, Jwt, JwtAlgorithm, JwtBuilder, JwtError, JwtIssueError,
    JwtKey, JwtPair, JwtRefreshError, ManualClock, MemoryStore, OnCorrupt, Rejection, Session, SessionId, SessionLayer,
    Sessions,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const COOKIE: &str = "__Host-session";
const SECRET: [u8; 32] = [7; 32];
const REFRESH_SECRET: [u8; 32] = [8; 32];
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn hs256(secret: [u8; 32]) -> JwtKey {
    JwtKey::hmac(JwtAlgorithm::HS256, secret).unwrap()
}

fn builder() -> JwtBuilder {
    Jwt::builder(hs256(SECRET)).refresh_key(hs256(REFRESH_SECRET))
}

fn jwt() -> Jwt {
    builder().build().unwrap()
}

fn redis_store(redis: &RedisServer) -> RedisStore {
    RedisStore::new(RedisConfig::from_url(&redis.url()).unwrap().timeout(Duration::from_secs(10)))
}

/// Several instances of a service over one store, and the events they received.
struct World {
    clock: ManualClock,
    jwt: Jwt,
    layers: Vec<SessionLayer>,
    apps: Vec<App>,
}

impl World {
    async fn new(jwt: Jwt, store: Arc<dyn SessionStore>) -> Self {
        Self::at(ManualClock::new(), jwt, store, |layer| layer).await
    }

    async fn in_memory(jwt: Jwt) -> Self {
        let clock = ManualClock::new();
        Self::at(clock.clone(), jwt, Arc::new(MemoryStore::new().clock(clock)), |layer| layer).await
    }

    async fn at(
        clock: ManualClock,
        jwt: Jwt,
        store: Arc<dyn SessionStore>,
        change: impl Fn(SessionLayer) -> SessionLayer,
    ) -> Self {
        let (mut layers, mut apps) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let layer = SessionLayer::new(store.clone()).without_cookie().jwt(jwt.clone()).clock(clock.clone());
            let layer = change(layer);
            apps.push(serve(&layer, &jwt).await);
            layers.push(layer);
        }
        Self { clock, jwt, layers, apps }
    }

    fn sessions(&self) -> Sessions {
        self.layers[0].sessions()
    }

    async fn login(&self) -> JwtPair {
        self.jwt.issue_new(&self.sessions(), "ana", &json!({ "role": "admin" })).await.unwrap()
    }

    async fn refresh(&self, pair: &JwtPair) -> Result<JwtPair, JwtRefreshError> {
        self.jwt.refresh(&self.sessions(), refresh_token(pair)).await
    }

    /// The response of each instance to the access token.
    async fn users(&self, pair: &JwtPair) -> Vec<Option<String>> {
        let mut users = Vec::new();
        for app in &self.apps {
            users.push(user(&app.client(), &pair.access_token).await);
        }
        users
    }

    async fn assert_serves(&self, pair: &JwtPair) {
        assert_eq!(self.users(pair).await, [Some("ana".to_owned()), Some("ana".to_owned())]);
    }

    async fn assert_refuses(&self, pair: &JwtPair) {
        assert_eq!(self.users(pair).await, [None, None]);
    }

    fn id(&self, pair: &JwtPair) -> SessionId {
        claims(&pair.access_token)["sid"].as_str().unwrap().parse().unwrap()
    }
}

/// The test service, with `POST /login`, `/refresh` and `/claims` in addition.
async fn serve(layer: &SessionLayer, jwt: &Jwt) -> App {
    let (layer, state) = (layer.clone(), (jwt.clone(), layer.sessions()));
    App::serve(move |router| {
        let own = Router::new()
            .route("/login", post(login))
            .route("/refresh", post(refresh))
            .route("/claims", post(async |session: Session| Json(session.claims::<Value>().unwrap())))
            .with_state(state);
        router.merge(own).layer(layer)
    })
    .await
}

type Tokens = State<(Jwt, Sessions)>;

async fn login(
    State((jwt, _)): Tokens,
    Extension(session): Extension<Session>,
    Json(user): Json<String>,
) -> Result<Json<JwtPair>, Rejection> {
    session.load().await?;
    session.login(user)?;
    Ok(Json(jwt.issue_with(&session, &json!({ "role": "user" })).await?))
}

async fn refresh(State((jwt, sessions)): Tokens, Json(token): Json<String>) -> Result<Json<JwtPair>, Rejection> {
    Ok(Json(jwt.refresh(&sessions, &token).await?))
}

async fn with(client: &Client, token: &str, path: &str, steps: Value) -> Reply {
    let headers = [("authorization", &*format!("Bearer {token}")), ("content-type", "application/json")];
    client.request(Method::POST, path, &headers, steps.to_string().into()).await
}

async fn act(client: &Client, token: &str, step: Value) -> Value {
    let reply = with(client, token, "/do", json!([step])).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply.json()[0].clone()
}

async fn user(client: &Client, token: &str) -> Option<String> {
    act(client, token, json!(["user"])).await.as_str().map(str::to_owned)
}

/// The unverified claims of a token.
fn claims(token: &str) -> Value {
    part(token, 1)
}

fn part(token: &str, place: usize) -> Value {
    let part = token.split('.').nth(place).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn now(clock: &impl Clock) -> u64 {
    clock.now().as_millis() / 1000
}

/// A token with any header and claims, with or without a valid signature.
fn forge(header: &str, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

const HEADER: &str = r#"{"typ":"at+jwt","alg":"HS256"}"#;

/// A valid header, and these claims.
fn signed(claims: &str) -> String {
    forge(HEADER, claims, &SECRET)
}

fn fields(text: &str) -> String {
    // A session id as a store has it.
    format!(r#"{{{text},"sub":"ana","sid":"{}"}}"#, "a".repeat(44))
}

#[track_caller]
fn assert_challenged(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    assert_eq!(reply.header("www-authenticate"), Some(r#"Bearer error="invalid_token""#));
}

mod tokens {
    use super::*;

    #[tokio::test]
    async fn a_login_returns_a_pair_for_its_session_only() {
        let world = World::in_memory(builder().issuer("us").audience("api").build().unwrap()).await;
        let client = world.apps[0].client();
        let reply = client.post("/login", &json!("ana")).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.set_cookies(), [""; 0]);
        let pair = reply.json();
        assert_eq!(
            pair.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["access_token", "expires_in", "refresh_token"]
        );
        assert_eq!(pair["expires_in"], 900);
        let (access, refresh) = (pair["access_token"].as_str().unwrap(), pair["refresh_token"].as_str().unwrap());

        assert_eq!(part(access, 0), json!({ "typ": "at+jwt", "alg": "HS256" }));
        assert_eq!(part(refresh, 0), json!({ "typ": "rt+jwt", "alg": "HS256" }));
        let issued_at = now(&world.clock);
        let said = claims(access);
        assert_eq!(
            said,
            json!({
                "iss": "us", "aud": "api", "sub": "ana", "role": "user",
                "iat": issued_at, "exp": issued_at + 900, "jti": said["jti"], "sid": said["sid"],
            })
        );
        assert_eq!(claims(refresh)["sid"], said["sid"]);
        assert_eq!(claims(refresh)["exp"], issued_at + 24 * 60 * 60, "the absolute timeout of the session");

        assert_eq!(user(&client, access).await.as_deref(), Some("ana"));
        assert_eq!(act(&client, access, json!(["id"])).await, said["sid"]);
        assert_eq!(with(&client, access, "/claims", json!(null)).await.json(), said);
        assert_eq!(act(&client, access, json!(["insert", "cart", "tea"])).await, Value::Null);
        assert_eq!(act(&client, access, json!(["get", "cart"])).await, "tea");
        assert_eq!(act(&client, access, json!(["token"])).await, Value::Null, "no other token of it goes out");
        let other = world.apps[1].client();
        assert_eq!(act(&other, access, json!(["get", "cart"])).await, "tea");

        // Refresh token and id are not credentials.
        for token in [refresh, said["sid"].as_str().unwrap(), said["jti"].as_str().unwrap()] {
            assert_eq!(user(&client, token).await, None);
        }
    }

    #[tokio::test]
    async fn a_refresh_token_is_not_an_access_token_even_with_the_same_key() {
        let world = World::in_memory(Jwt::builder(hs256(SECRET)).build().unwrap()).await;
        let pair = world.login().await;
        let now = world.clock.now();
        assert_eq!(world.jwt.verify_access(refresh_token(&pair), now).unwrap_err(), JwtError::Type);
        assert_eq!(user(&world.apps[0].client(), refresh_token(&pair)).await, None);
        let refused = world.jwt.refresh(&world.sessions(), &pair.access_token).await.unwrap_err();
        assert!(matches!(refused, JwtRefreshError::Refused(JwtError::Type)), "{refused:?}");
        world.assert_serves(&pair).await;
    }

    #[tokio::test]
    async fn a_required_session_is_401_with_a_challenge_without_a_live_session() {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        let world = World::at(clock, jwt(), store, SessionLayer::require_session).await;
        let pair = world.login().await;
        let (client, sid) = (world.apps[0].client(), world.id(&pair));
        let tampered = format!("{}x", pair.access_token);
        for wrong in ["x", "a.b.c", refresh_token(&pair), &tampered, &sid.to_string(), &"a".repeat(56)] {
            assert_challenged(&with(&client, wrong, "/do", json!([["user"]])).await);
        }
        let nothing = client.post("/do", &json!([["user"]])).await;
        assert_eq!((nothing.status, nothing.header("www-authenticate")), (StatusCode::UNAUTHORIZED, Some("Bearer")));
        assert_eq!(act(&client, &pair.access_token, json!(["user"])).await, "ana");
        assert!(world.sessions().revoke(&sid).await.unwrap());
        for app in &world.apps {
            assert_challenged(&with(&app.client(), &pair.access_token, "/do", json!([["user"]])).await);
        }
        // The same for a gRPC client.
        let headers =
            [("authorization", &*format!("Bearer {}", pair.access_token)), ("content-type", "application/grpc")];
        let reply = client.request(Method::POST, "/do", &headers, Bytes::new()).await;
        assert_eq!((reply.status, reply.header("grpc-status")), (StatusCode::OK, Some("16")));
    }

    #[tokio::test]
    async fn a_logout_takes_effect_immediately_on_every_instance() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store).await;
            let (one, two) = (world.login().await, world.login().await);
            act(&world.apps[0].client(), &one.access_token, json!(["logout"])).await;
            world.assert_refuses(&one).await;
            assert!(matches!(world.refresh(&one).await, Err(JwtRefreshError::Ended(EndReason::LoggedOut))));
            world.assert_serves(&two).await;
            world.sessions().revoke_user("ana").await.unwrap();
            world.assert_refuses(&two).await;
            assert!(matches!(world.refresh(&two).await, Err(JwtRefreshError::Ended(EndReason::Revoked))));
        }
    }

    #[tokio::test]
    async fn opaque_tokens_are_accepted_with_jwts_only_if_configured() {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        let both = World::at(clock.clone(), jwt(), store.clone(), |layer| layer.bearer(Bearer::new())).await;
        let only = World::at(clock, jwt(), store, |layer| layer).await;
        let (opaque, pair) = (both.sessions().create("bob").await.unwrap(), both.login().await);
        both.assert_serves(&pair).await;
        assert_eq!(user(&both.apps[0].client(), opaque.expose()).await.as_deref(), Some("bob"));
        only.assert_serves(&pair).await;
        assert_eq!(user(&only.apps[0].client(), opaque.expose()).await, None);
    }

    #[tokio::test]
    async fn a_session_has_one_kind_of_token() {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        let world = World::at(clock, jwt(), store, |layer| layer.cookie(Default::default())).await;
        let client = world.apps[0].client();
        // A session with a pair gets no cookie.
        let reply = client.post("/login", &json!("ana")).await;
        assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::OK, 0));
        // A session with a cookie gets no pair, however often it is tried, and no session is created.
        client.one(json!(["login", "ana"])).await;
        assert!(client.cookie(COOKIE).is_some());
        for _ in 0..2 {
            let reply = client.post("/login", &json!("ana")).await;
            assert_eq!((reply.status, reply.header("www-authenticate")), (StatusCode::UNAUTHORIZED, Some("Bearer")));
            assert_eq!(world.sessions().count().await.unwrap(), 2);
        }
        assert_eq!(client.one(json!(["user"])).await, "ana", "the cookie is as good as it was");
        // Both together name two sessions.
        let pair = world.login().await;
        assert_eq!(with(&client, &pair.access_token, "/do", json!([["user"]])).await.status, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn issue_refuses_an_opaque_session_before_saving_it() {
        let (jwt, spy) = (jwt(), Spy::new());
        let layer = SessionLayer::new(spy.clone()).bearer(Bearer::new()).jwt(jwt.clone());
        let token = layer.sessions().create("ana").await.unwrap();
        let service = layer.layer(service_fn(async |request: Request<()>| {
            let session = request.extensions().get::<Session>().unwrap();
            session.load().await.unwrap();
            session.insert("k", &1).unwrap();
            let error = jwt.issue(session).await.unwrap_err();
            assert!(matches!(error, JwtIssueError::HasToken), "{error:?}");
            assert_eq!(spy.calls(), ["create", "load"]);
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
        let request =
            Request::builder().header("authorization", format!("Bearer {}", token.expose())).body(()).unwrap();
        assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
        assert_eq!(spy.calls(), ["update"]);
    }

    #[tokio::test]
    async fn an_unknown_opaque_token_does_not_prevent_a_pair() {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        let change = |layer: SessionLayer| layer.cookie(Default::default()).bearer(Bearer::new());
        let world = World::at(clock, jwt(), store, change).await;
        let sessions = world.sessions();
        let elsewhere = SessionLayer::new(MemoryStore::new()).sessions();
        let planted = elsewhere.create("ana").await.unwrap().expose().to_owned();
        let client = world.apps[0].client();
        client.one(json!(["login", "ana"])).await;
        let ended = client.cookie(COOKIE).unwrap();
        sessions.revoke_user("ana").await.unwrap();
        let mut live = 0;
        for token in [&planted, &ended] {
            client.set_cookie(COOKIE, token);
            let by_cookie = client.post("/login", &json!("ana")).await;
            assert_eq!(client.cookie(COOKIE), None, "beside a JWT it would be in the way");
            let by_bearer = with(&client, token, "/login", json!("ana")).await;
            assert_eq!(by_bearer.set_cookies(), [""; 0]);
            for reply in [by_cookie, by_bearer] {
                assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
                let pair: JwtPair = serde_json::from_value(reply.json()).unwrap();
                assert_eq!(user(&client, &pair.access_token).await.as_deref(), Some("ana"));
                world.assert_serves(&world.refresh(&pair).await.unwrap()).await;
            }
            live += 2;
            assert_eq!(sessions.count().await.unwrap(), live, "one for each pair");
        }
        // Also not the session of another user, which ends.
        client.one(json!(["login", "eve"])).await;
        let reply = client.post("/login", &json!("ana")).await;
        assert_eq!((reply.status, client.cookie(COOKIE)), (StatusCode::OK, None), "{reply:?}");
        assert!(sessions.list("eve").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_token_for_another_user_of_the_session_is_refused() {
        let world = World::in_memory(jwt()).await;
        let pair = world.login().await;
        let said = claims(&pair.access_token);
        let token = |sub: &str| signed(&json!({ "sub": sub, "sid": said["sid"], "exp": said["exp"] }).to_string());
        let client = world.apps[0].client();
        assert_eq!(user(&client, &token("ana")).await.as_deref(), Some("ana"), "the token is as it should be");
        assert_eq!(user(&client, &token("eve")).await, None);
    }

    #[tokio::test]
    async fn another_issuer_may_name_the_session_in_jti() {
        let world = World::in_memory(builder().session_in_jti().access_type("JWT").build().unwrap()).await;
        let pair = world.login().await;
        let said = claims(&pair.access_token);
        assert_eq!((&said["sid"], said["jti"].as_str().unwrap().len()), (&Value::Null, 44));
        world.assert_serves(&pair).await;
        world.assert_serves(&world.refresh(&pair).await.unwrap()).await;
    }

    #[tokio::test]
    async fn a_type_may_have_the_application_prefix() {
        for typ in ["application/at+jwt", "Application/AT+JWT", "at+jwt"] {
            let world = World::in_memory(builder().access_type(typ).build().unwrap()).await;
            let pair = world.login().await;
            assert!(part(&pair.access_token, 0)["typ"].as_str().unwrap().eq_ignore_ascii_case("at+jwt"));
            world.assert_serves(&pair).await;
        }
    }

    #[tokio::test]
    async fn new_tokens_can_be_issued_after_a_change_of_rights() {
        let world = World::in_memory(jwt()).await;
        let pair = world.login().await;
        let reply = with(&world.apps[0].client(), &pair.access_token, "/login", json!("ana")).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let new = reply.json();
        assert_ne!(claims(new["access_token"].as_str().unwrap())["sid"], claims(&pair.access_token)["sid"]);
        assert!(matches!(world.refresh(&pair).await, Err(JwtRefreshError::Ended(EndReason::Replaced))));
        let refreshed = world.jwt.refresh(&world.sessions(), new["refresh_token"].as_str().unwrap()).await.unwrap();
        world.assert_serves(&refreshed).await;
    }

    #[tokio::test]
    async fn tokens_and_keys_are_never_shown() {
        let log = Log::capture();
        let world = World::in_memory(builder().build().unwrap()).await;
        let pair = world.login().await;
        let client = world.apps[0].client();
        user(&client, &pair.access_token).await;
        user(&client, refresh_token(&pair)).await;
        user(&client, &format!("{}x", pair.access_token)).await;
        let refreshed = world.refresh(&pair).await.unwrap();
        world.clock.advance(MINUTE);
        world.refresh(&pair).await.unwrap_err();
        world.refresh(&refreshed).await.unwrap_err();
        let shown =
            format!("{}{world:?}{pair:?}", log.text(), world = (&world.jwt, &world.layers[0], world.sessions()));
        assert!(
            shown.contains("access token refused") && shown.contains("a previous session token was used again"),
            "{shown}"
        );
        for token in [&pair.access_token, refresh_token(&pair), &refreshed.access_token, refresh_token(&refreshed)] {
            for part in token.split('.') {
                assert!(!shown.contains(part), "{shown}");
            }
        }
        assert!(!shown.contains("[7, 7") && !shown.contains("[8, 8"), "{shown}");
    }
}

mod checks {
    use super::*;

    const EXP: &str = r#""exp":9000000000"#;

    fn refused(jwt: &Jwt, token: &str) -> Option<JwtError> {
        jwt.verify_access(token, ManualClock::new().now()).err()
    }

    #[test]
    fn every_check_has_its_error() {
        let jwt = builder().issuer("us").audience("api").build().unwrap();
        let good = r#""exp":9000000000,"iss":"us","aud":"api""#;
        let says = |text: &str| signed(&fields(text));
        let head = |header: &str| forge(header, &fields(good), &SECRET);
        let (whole, deep) = (says(good), format!(r#""exp":9000000000,"x":{}1{}"#, "[".repeat(500), "]".repeat(500)));
        let (message, signature) = whole.rsplit_once('.').unwrap();
        use JwtError::*;
        let table: Vec<(String, Option<JwtError>)> = vec![
            (whole.clone(), None),
            (says(r#""exp":9000000000.75,"iss":"us","aud":["web","api"]"#), None),
            (head(r#"{"alg":"HS256","typ":"application/AT+JWT"}"#), None),
            // 1. size
            (format!("{whole}{}", "a".repeat(8192)), Some(TooLarge)),
            // 2. form
            (String::new(), Some(Malformed)),
            ("..".into(), Some(Malformed)),
            (message.into(), Some(Malformed)),
            (format!("{whole}.x"), Some(Malformed)),
            (format!("{whole}="), Some(Malformed)),
            (format!(" {whole}"), Some(Malformed)),
            (head(r#"["HS256","at+jwt"]"#), Some(Malformed)),
            (head(r#"{"typ":"at+jwt","alg":"HS256","alg":"none"}"#), Some(Malformed)),
            (head(r#"{"typ":"at+jwt","alg":"HS256","crit":["exp"],"exp":1}"#), Some(Malformed)),
            (head(r#"{"typ":"at+jwt","alg":["HS256"]}"#), Some(Malformed)),
            (head(r#"{"typ":"at+jwt","alg":"HS256","kid":1}"#), Some(Malformed)),
            // 3. key
            (head(r#"{"typ":"at+jwt","alg":"HS256","kid":"../../dev/null"}"#), Some(UnknownKey)),
            // 4. algorithm
            (head(r#"{"typ":"at+jwt"}"#), Some(Algorithm)),
            (head(r#"{"typ":"at+jwt","alg":"none"}"#), Some(Algorithm)),
            (head(r#"{"typ":"at+jwt","alg":"hs256"}"#), Some(Algorithm)),
            (head(r#"{"typ":"at+jwt","alg":"HS512"}"#), Some(Algorithm)),
            (head(r#"{"typ":"at+jwt","alg":"RS256"}"#), Some(Algorithm)),
            (
                format!(
                    "{}.{}.",
                    URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"at+jwt"}"#),
                    URL_SAFE_NO_PAD.encode("{}")
                ),
                Some(Algorithm),
            ),
            // 5. signature
            (format!("{message}."), Some(Signature)),
            (format!("{message}.{}", &signature[4..]), Some(Signature)),
            (forge(HEADER, &fields(good), &REFRESH_SECRET), Some(Signature)),
            (forge(HEADER, &fields(good), b""), Some(Signature)),
            (forge(HEADER, "no JSON", &REFRESH_SECRET), Some(Signature)),
            // 6. claims
            (signed("no JSON"), Some(Malformed)),
            (signed("[]"), Some(Malformed)),
            (signed("\u{feff}{}"), Some(Malformed)),
            (says(&deep), Some(Malformed)),
            (says(r#""exp":1,"exp":9000000000,"iss":"us","aud":"api""#), Some(Malformed)),
            (says(r#""exp":9000000000,"e\u0078p":9000000000"#), Some(Malformed)),
            (says(r#""exp":9000000000,"role":"user","role":"admin""#), Some(Malformed)),
            (says(r#""exp":1e400"#), Some(Malformed)),
            (signed(&format!("{{{EXP}}}{{")), Some(Malformed)),
            (says(r#""iss":"us","aud":"api""#), Some(Claim("exp"))),
            (says(r#""exp":null"#), Some(Claim("exp"))),
            (says(r#""exp":"9000000000""#), Some(Claim("exp"))),
            (says(r#""exp":true"#), Some(Claim("exp"))),
            (says(r#""exp":[9000000000]"#), Some(Claim("exp"))),
            (says(r#""exp":-1"#), Some(Claim("exp"))),
            (says(r#""exp":99999999999999999999999"#), Some(Claim("exp"))),
            (says(r#""exp":18446744073709551615"#), Some(Claim("exp"))),
            (says(r#""exp":9223372036854775807"#), Some(Claim("exp"))),
            (says(r#""exp":0"#), Some(Expired)),
            (says(r#""exp":1700000000"#), Some(Expired)),
            (says(&format!(r#"{good},"nbf":"soon""#)), Some(Claim("nbf"))),
            (says(&format!(r#"{good},"nbf":8000000000"#)), Some(NotYet)),
            (says(r#""exp":9000000000,"iss":"us""#), Some(Audience)),
            (says(r#""exp":9000000000,"iss":"us","aud":"web""#), Some(Audience)),
            (says(r#""exp":9000000000,"iss":"us","aud":[]"#), Some(Audience)),
            (says(r#""exp":9000000000,"iss":"us","aud":7"#), Some(Claim("aud"))),
            (says(r#""exp":9000000000,"iss":"us","aud":["api",7]"#), Some(Claim("aud"))),
            (says(r#""exp":9000000000,"aud":"api""#), Some(Issuer)),
            (says(r#""exp":9000000000,"aud":"api","iss":"them""#), Some(Issuer)),
            (says(r#""exp":9000000000,"aud":"api","iss":["us"]"#), Some(Claim("iss"))),
            // 7. type
            (head(r#"{"alg":"HS256"}"#), Some(Type)),
            (head(r#"{"alg":"HS256","typ":"JWT"}"#), Some(Type)),
            (head(r#"{"alg":"HS256","typ":"rt+jwt"}"#), Some(Type)),
            (head(r#"{"alg":"HS256","typ":"application/"}"#), Some(Type)),
        ];
        for (token, reason) in table {
            assert_eq!(
                refused(&jwt, &token),
                reason,
                "{token}: {:?}",
                token.split('.').nth(1).map(|part| URL_SAFE_NO_PAD.decode(part))
            );
        }
    }

    #[tokio::test]
    async fn a_token_without_a_session_id_is_refused() {
        let world = World::in_memory(jwt()).await;
        let client = world.apps[0].client();
        for sid in
            [r#""""#, r#""sess:*""#, "7", "null", &format!("{:?}", "a".repeat(44)), &format!("{:?}", "a".repeat(56))]
        {
            assert_eq!(user(&client, &signed(&format!(r#"{{{EXP},"sub":"ana","sid":{sid}}}"#))).await, None);
        }
        assert_eq!(user(&client, &signed(&format!(r#"{{{EXP},"sub":"ana"}}"#))).await, None);
    }

    #[test]
    fn a_token_with_an_audience_is_refused_by_others() {
        assert_eq!(refused(&jwt(), &signed(&fields(&format!(r#"{EXP},"aud":"api""#)))), Some(JwtError::Audience));
        assert_eq!(refused(&jwt(), &signed(&fields(&format!(r#"{EXP},"iss":"anybody""#)))), None);
    }

    #[tokio::test]
    async fn time_comes_from_the_clock_of_the_layer() {
        let clock = ManualClock::new();
        let store = Arc::new(MemoryStore::new().clock(clock.clone()));
        let built = builder().access_lifetime(MINUTE).leeway(10 * SECOND).build().unwrap();
        let world = World::at(clock, built, store, |layer| layer).await;
        // At the start of a second.
        world.clock.advance(Duration::from_millis(1000 - world.clock.now().as_millis() % 1000));
        let pair = world.login().await;
        assert_eq!(pair.expires_in, 60);
        world.clock.advance(Duration::from_millis(69_999));
        world.assert_serves(&pair).await;
        world.clock.advance(Duration::from_millis(1));
        world.assert_refuses(&pair).await;
        let error = world.jwt.verify_access(&pair.access_token, world.clock.now()).unwrap_err();
        assert_eq!(error, JwtError::Expired);

        let start = now(&world.clock) + 20;
        let token = signed(&fields(&format!(r#"{EXP},"nbf":{start}"#)));
        world.clock.advance(Duration::from_millis(9_999));
        assert_eq!(world.jwt.verify_access(&token, world.clock.now()).unwrap_err(), JwtError::NotYet);
        world.clock.advance(Duration::from_millis(1));
        assert!(world.jwt.verify_access(&token, world.clock.now()).is_ok());
    }

    #[tokio::test]
    async fn tokens_expire_with_their_session() {
        let world = World::in_memory(builder().access_lifetime(48 * 60 * MINUTE).build().unwrap()).await;
        let pair = world.login().await;
        assert_eq!(pair.expires_in, 24 * 60 * 60, "the absolute timeout");
        // No token has the idle timeout of the session.
        world.clock.advance(30 * MINUTE + 10 * SECOND);
        world.assert_refuses(&pair).await;
        assert!(matches!(world.refresh(&pair).await, Err(JwtRefreshError::Ended(EndReason::Expired))));
        world.clock.advance(24 * 60 * MINUTE);
        assert!(matches!(world.refresh(&pair).await, Err(JwtRefreshError::Refused(JwtError::Expired))));
    }

    #[tokio::test]
    async fn using_a_session_keeps_it_refreshable() {
        let world = World::in_memory(builder().access_lifetime(24 * 60 * MINUTE).build().unwrap()).await;
        let pair = world.login().await;
        for _ in 0..70 {
            world.clock.advance(20 * MINUTE);
            world.assert_serves(&pair).await;
        }
        let pair = world.refresh(&pair).await.unwrap();
        world.assert_serves(&pair).await;
        assert_eq!(pair.expires_in, 40 * 60, "the absolute timeout is that of the session still");
    }

    #[test]
    fn a_public_key_is_never_used_as_a_secret() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let public = key.public_key_pem();
        let jwt = Jwt::builder(JwtKey::public_pem(JwtAlgorithm::ES256, &public).unwrap().id("k")).build().unwrap();
        for kid in ["", r#","kid":"k""#] {
            for secret in [public.as_bytes(), public.trim().as_bytes(), key.public_key_raw()] {
                for alg in ["HS256", "none", "ES256"] {
                    let header = format!(r#"{{"typ":"at+jwt","alg":"{alg}"{kid}}}"#);
                    let reason = if alg == "ES256" { JwtError::Signature } else { JwtError::Algorithm };
                    assert_eq!(refused(&jwt, &forge(&header, &fields(EXP), secret)), Some(reason));
                }
            }
        }
    }

    #[tokio::test]
    async fn keys_are_replaced_without_logouts() {
        let store = Arc::new(MemoryStore::new());
        let key = |number: u8| hs256([number; 32]).id(format!("key {number}"));
        let keys = |signs: u8, verifies: &[u8]| {
            let jwt = Jwt::builder(key(signs)).refresh_key(key(signs + 10));
            let add = |jwt: JwtBuilder, number: &u8| jwt.also_verify(key(*number)).refresh_key(key(number + 10));
            verifies.iter().fold(jwt, add).build().unwrap()
        };
        let mut worlds = Vec::new();
        for jwt in [keys(1, &[]), keys(1, &[2]), keys(2, &[1]), keys(2, &[])] {
            worlds.push(World::new(jwt, store.clone()).await);
        }
        let [before, first, second, after] = &worlds[..] else { panic!() };
        let (old, new) = (first.login().await, second.login().await);
        assert_eq!(
            (&part(&old.access_token, 0)["kid"], &part(refresh_token(&new), 0)["kid"]),
            (&json!("key 1"), &json!("key 12"))
        );
        for world in [before, first, second] {
            world.assert_serves(&old).await;
        }
        for world in [first, second, after] {
            world.assert_serves(&new).await;
        }
        before.assert_refuses(&new).await;
        after.assert_refuses(&old).await;
        assert!(matches!(after.refresh(&old).await, Err(JwtRefreshError::Refused(JwtError::UnknownKey))));
        let renewed = second.refresh(&old).await.unwrap();
        assert_eq!(part(refresh_token(&renewed), 0)["kid"], "key 12");
        after.assert_serves(&renewed).await;
    }

    #[test]
    fn a_token_without_kid_uses_the_only_key_of_its_algorithm() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let ed = JwtKey::private_pem(JwtAlgorithm::EdDSA, key.serialize_pem()).unwrap();
        let token = signed(&fields(EXP));
        let two = Jwt::builder(hs256(SECRET)).also_verify(ed.clone()).build().unwrap();
        assert_eq!(refused(&two, &token), None);
        let strict = Jwt::builder(hs256(SECRET)).require_key_id().build().unwrap();
        assert_eq!(refused(&strict, &token), Some(JwtError::NoKeyId));
        let several = Jwt::builder(hs256(SECRET).id("1")).also_verify(hs256(REFRESH_SECRET).id("2")).build().unwrap();
        assert_eq!(refused(&several, &token), Some(JwtError::NoKeyId));
        let named =
            |kid: &str| forge(&format!(r#"{{"typ":"at+jwt","alg":"HS256","kid":"{kid}"}}"#), &fields(EXP), &SECRET);
        assert_eq!(refused(&several, &named("1")), None);
        assert_eq!(refused(&several, &named("2")), Some(JwtError::Signature));
        assert_eq!(refused(&several, &named("3")), Some(JwtError::UnknownKey));
        assert_eq!(refused(&two, &named("1")), Some(JwtError::UnknownKey));

        let ambiguous = Jwt::builder(hs256(SECRET).id("1")).also_verify(hs256(REFRESH_SECRET)).build();
        assert_eq!(ambiguous.unwrap_err(), InvalidJwt::NoKeyId(JwtAlgorithm::HS256));
        let twice = Jwt::builder(hs256(SECRET).id("1")).also_verify(ed.id("1")).build();
        assert_eq!(twice.unwrap_err(), InvalidJwt::DuplicateKeyId("1".into()));
        for typ in ["RT+JWT", "application/rt+jwt", "Application/RT+jwt"] {
            assert_eq!(builder().access_type(typ).build().unwrap_err(), InvalidJwt::SameType);
        }
        assert_eq!(
            builder().access_lifetime(Duration::from_millis(999)).build().unwrap_err(),
            InvalidJwt::ShortLifetime
        );
    }

    #[tokio::test]
    async fn every_algorithm_signs_and_verifies() {
        let pem = |algorithm| KeyPair::generate_for(algorithm).unwrap();
        let (p256, p384, ed) = (pem(&PKCS_ECDSA_P256_SHA256), pem(&PKCS_ECDSA_P384_SHA384), pem(&PKCS_ED25519));
        let mut keys = Vec::new();
        for (algorithm, length) in [(JwtAlgorithm::HS256, 32), (JwtAlgorithm::HS384, 48), (JwtAlgorithm::HS512, 64)] {
            let key = JwtKey::hmac(algorithm, vec![7; length]).unwrap();
            keys.push((algorithm, key.clone(), key));
            assert_eq!(
                JwtKey::hmac(algorithm, vec![7; length - 1]).unwrap_err(),
                InvalidJwtKey::ShortSecret { length: length - 1, minimum: length }
            );
        }
        for (algorithm, pair) in
            [(JwtAlgorithm::ES256, &p256), (JwtAlgorithm::ES384, &p384), (JwtAlgorithm::EdDSA, &ed)]
        {
            let private = JwtKey::private_pem(algorithm, pair.serialize_pem()).unwrap();
            keys.push((algorithm, private, JwtKey::public_pem(algorithm, pair.public_key_pem()).unwrap()));
            // The key is for this algorithm only.
            for other in [
                JwtAlgorithm::ES256,
                JwtAlgorithm::ES384,
                JwtAlgorithm::EdDSA,
                JwtAlgorithm::RS256,
                JwtAlgorithm::PS512,
            ] {
                if other != algorithm {
                    assert_eq!(
                        JwtKey::private_pem(other, pair.serialize_pem()).unwrap_err(),
                        InvalidJwtKey::Unreadable
                    );
                    assert_eq!(
                        JwtKey::public_pem(other, pair.public_key_pem()).unwrap_err(),
                        InvalidJwtKey::Unreadable
                    );
                }
            }
            assert_eq!(JwtKey::hmac(algorithm, [7; 64]).unwrap_err(), InvalidJwtKey::WrongKind);
            assert_eq!(JwtKey::private_pem(algorithm, pair.public_key_pem()).unwrap_err(), InvalidJwtKey::Unreadable);
            assert_eq!(JwtKey::public_pem(algorithm, pair.serialize_pem()).unwrap_err(), InvalidJwtKey::Unreadable);
            assert_eq!(JwtKey::public_pem(algorithm, "").unwrap_err(), InvalidJwtKey::Unreadable);
        }
        assert_eq!(JwtKey::private_pem(JwtAlgorithm::HS256, ed.serialize_pem()).unwrap_err(), InvalidJwtKey::WrongKind);
        for (algorithm, signs, verifies) in keys {
            let store = Arc::new(MemoryStore::new());
            let issuer = World::new(Jwt::builder(signs).build().unwrap(), store.clone()).await;
            let elsewhere = World::new(Jwt::builder(verifies).build().unwrap(), store).await;
            let pair = issuer.login().await;
            assert_eq!(part(&pair.access_token, 0)["alg"], algorithm.name());
            issuer.assert_serves(&pair).await;
            elsewhere.assert_serves(&pair).await;
            issuer.assert_serves(&issuer.refresh(&pair).await.unwrap()).await;
        }
    }

    #[tokio::test]
    async fn a_failed_issue_has_no_effect() {
        let world = World::in_memory(jwt()).await;
        let pair = world.login().await;
        let sessions = world.sessions();
        for name in ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid"] {
            let error = world.jwt.issue_new(&sessions, "eve", &json!({ name: "x" })).await.unwrap_err();
            assert!(matches!(error, JwtIssueError::ReservedClaim(reserved) if reserved == name), "{error:?}");
        }
        let error = world.jwt.issue_new(&sessions, "eve", &"text").await.unwrap_err();
        assert!(matches!(error, JwtIssueError::NoObject), "{error:?}");
        assert!(sessions.list("eve").await.unwrap().is_empty());
        let error =
            world.jwt.refresh_with(&sessions, refresh_token(&pair), |_| json!({ "sub": "root" })).await.unwrap_err();
        assert!(matches!(error, JwtRefreshError::Issue(JwtIssueError::ReservedClaim("sub"))), "{error:?}");
        let who = |session: &tower_keep::SessionInfo| json!({ "name": session.user() });
        let pair = world.jwt.refresh_with(&sessions, refresh_token(&pair), who).await.unwrap();
        assert_eq!(claims(&pair.access_token)["name"], "ana");

        let public = KeyPair::generate_for(&PKCS_ED25519).unwrap().public_key_pem();
        let verifier = Jwt::builder(JwtKey::public_pem(JwtAlgorithm::EdDSA, public).unwrap()).build().unwrap();
        let error = verifier.issue_new(&sessions, "eve", &json!({})).await.unwrap_err();
        assert!(matches!(error, JwtIssueError::CannotSign), "{error:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn random_input_neither_panics_nor_is_accepted(input in prop::collection::vec(any::<u8>(), 0..600), header in ".*", body in ".*") {
            let jwt = jwt();
            let now = ManualClock::new().now();
            prop_assert!(jwt.verify_access(&input, now).is_err());
            prop_assert!(jwt.verify_access(forge(&header, &body, &SECRET), now).is_err());
            let part = URL_SAFE_NO_PAD.encode(&input);
            let parts = [&*part, &*part, &*part].join(".");
            prop_assert!(jwt.verify_access(parts, now).is_err());
        }

        #[test]
        fn a_token_with_any_character_changed_is_refused(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let jwt = jwt();
            let now = ManualClock::new().now();
            let mut token = signed(&fields(EXP)).into_bytes();
            prop_assert!(jwt.verify_access(&token, now).is_ok());
            let place = place.index(token.len());
            prop_assume!(token[place] != byte);
            token[place] = byte;
            prop_assert!(jwt.verify_access(&token, now).is_err());
        }

        #[test]
        fn a_date_must_be_a_number_of_seconds(exp in prop_oneof![
            any::<f64>().prop_map(|exp| json!(exp)), any::<i64>().prop_map(|exp| json!(exp)), any::<u64>().prop_map(|exp| json!(exp)),
            (0u64..9_000_000_000).prop_map(|exp| json!(exp)), ".*".prop_map(|exp| json!(exp)), any::<bool>().prop_map(|exp| json!(exp)),
        ]) {
            let clock = ManualClock::new();
            let seconds = exp.as_f64().filter(|exp| (0.0..253_402_300_799.5).contains(exp));
            let alive = seconds.is_some_and(|exp| exp + 5.0 > clock.now().as_millis() as f64 / 1000.0);
            let token = signed(&fields(&format!(r#""exp":{exp}"#)));
            prop_assert_eq!(jwt().verify_access(token, clock.now()).is_ok(), alive);
        }
    }
}

fn refresh_token(pair: &JwtPair) -> &str {
    pair.refresh_token.as_deref().unwrap()
}

mod refreshing {
    use super::*;

    #[tokio::test]
    async fn a_refresh_returns_another_pair_for_the_same_session() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store).await;
            let mut pair = world.login().await;
            for step in 0..5 {
                let reply = world.apps[step % 2].client().post("/refresh", &json!(pair.refresh_token)).await;
                assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
                let before = pair;
                pair = serde_json::from_value(reply.json()).unwrap();
                assert_eq!(world.id(&pair), world.id(&before));
                assert_ne!(pair.refresh_token, before.refresh_token);
                world.assert_serves(&pair).await;
                world.assert_serves(&before).await; // the access token has its own expiry
                act(&world.apps[0].client(), &pair.access_token, json!(["insert", "step", step])).await;
            }
            assert_eq!(world.layers[0].stats().rotations + world.layers[1].stats().rotations, 5);
            assert_eq!(act(&world.apps[1].client(), &pair.access_token, json!(["get", "step"])).await, 4);
        }
    }

    #[tokio::test]
    async fn reuse_after_the_grace_window_ends_the_session_everywhere() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store).await;
            let (first, other) = (world.login().await, world.login().await);
            let second = world.refresh(&first).await.unwrap();
            let third = world.refresh(&second).await.unwrap();
            // A moment later it may be another tab.
            world.clock.advance(29 * SECOND);
            let reply = world.apps[1].client().post("/refresh", &json!(second.refresh_token)).await;
            assert_eq!((reply.status, &reply.json()["refresh_token"]), (StatusCode::OK, &Value::Null));
            world.assert_serves(&serde_json::from_value(reply.json()).unwrap()).await;
            world.assert_serves(&third).await;
            world.clock.advance(SECOND);
            let reply = world.apps[1].client().post("/refresh", &json!(second.refresh_token)).await;
            assert_challenged(&reply);
            for pair in [&first, &second, &third] {
                world.assert_refuses(pair).await;
                assert!(matches!(world.refresh(pair).await, Err(JwtRefreshError::Ended(EndReason::TokenReused))));
            }
            assert_eq!(world.layers[1].stats().reused_tokens, 1);
            assert_eq!(
                world.sessions().ended(&world.id(&first)).await.unwrap().unwrap().reason,
                EndReason::TokenReused
            );
            world.assert_serves(&other).await;
        }
    }

    /// Reuse is detected even if the client refreshes more often than the grace window.
    #[tokio::test]
    async fn reuse_of_an_older_token_ends_the_session_at_any_time() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store).await;
            for refreshes in 2..5 {
                let owners = world.login().await;
                let mut thiefs = owners.clone();
                for _ in 0..refreshes {
                    thiefs = world.refresh(&thiefs).await.unwrap();
                    world.clock.advance(SECOND);
                }
                let refused = world.refresh(&owners).await.unwrap_err();
                assert!(matches!(refused, JwtRefreshError::Ended(EndReason::TokenReused)), "{refreshes}: {refused:?}");
                world.assert_refuses(&thiefs).await;
                assert!(matches!(world.refresh(&thiefs).await, Err(JwtRefreshError::Ended(EndReason::TokenReused))));
            }
        }
    }

    #[tokio::test]
    async fn reuse_is_published_like_that_of_any_token() {
        let (log, metrics) = (Log::capture(), Metrics::collect());
        let world = World::in_memory(jwt()).await;
        let first = world.login().await;
        world.clock.advance(MINUTE);
        world.refresh(&first).await.unwrap();
        assert_eq!(world.refresh(&first).await.unwrap().refresh_token, None);
        assert_eq!(metrics.get(r#"session_rotation_total{case="superseded"}"#), 1.0);
        assert!(!log.text().contains("token_reused"), "{}", log.text());
        world.clock.advance(MINUTE);
        world.refresh(&first).await.unwrap_err();
        let told = log.text();
        let told: Vec<_> = told.lines().filter(|line| line.contains("tower_keep::security")).collect();
        let reused = told.iter().find(|line| line.contains(r#"event="token_reused""#)).expect("an event");
        assert!(reused.contains("WARN") && reused.contains(&format!("session={}", world.id(&first))), "{reused}");
        assert!(reused.contains(r#"user="ana""#), "{reused}");
        assert!(told.last().unwrap().contains(r#"event="ended""#), "{told:?}");
        assert_eq!(metrics.get("session_token_reuse_total"), 1.0);
        assert_eq!(metrics.get("session_lifetime_seconds_sum"), 120.0);
    }

    #[tokio::test]
    async fn without_a_grace_window_reuse_ends_the_session_immediately() {
        let store = Arc::new(MemoryStore::new());
        let world = World::at(ManualClock::new(), jwt(), store, |layer| layer.rotation_grace(Duration::ZERO)).await;
        let first = world.login().await;
        let second = world.refresh(&first).await.unwrap();
        assert!(matches!(world.refresh(&first).await, Err(JwtRefreshError::Ended(EndReason::TokenReused))));
        world.assert_refuses(&second).await;
        assert!(matches!(world.refresh(&second).await, Err(JwtRefreshError::Ended(EndReason::TokenReused))));
    }

    /// A hundred concurrent refreshes on two instances: who gets a pair, and the errors of the others.
    async fn hundred(world: &World) -> (Vec<JwtPair>, Vec<JwtRefreshError>) {
        let pair = world.login().await;
        let tasks: Vec<_> = (0..100)
            .map(|number| {
                let (jwt, sessions, token) =
                    (world.jwt.clone(), world.layers[number % 2].sessions(), refresh_token(&pair).to_owned());
                tokio::spawn(async move { jwt.refresh(&sessions, &token).await })
            })
            .collect();
        let (mut pairs, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.await.unwrap() {
                Ok(pair) => pairs.push(pair),
                Err(error) => errors.push(error),
            }
        }
        (pairs, errors)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_of_a_hundred_concurrent_refreshes_gets_the_next_refresh_token() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store.clone()).await;
            let (pairs, errors) = hundred(&world).await;
            assert_eq!(pairs.len(), 100, "{errors:?}");
            let (whole, others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|pair| pair.refresh_token.is_some());
            assert_eq!(whole.len(), 1);
            world.assert_serves(&whole[0]).await;
            world.assert_serves(&others[0]).await;
            world.assert_serves(&world.refresh(&whole[0]).await.unwrap()).await;

            let strict =
                World::at(ManualClock::new(), jwt(), store, |layer| layer.rotation_grace(Duration::ZERO)).await;
            let (pairs, errors) = hundred(&strict).await;
            assert_eq!(pairs.len(), 1, "{errors:?}");
            let reused = |error: &JwtRefreshError| matches!(error, JwtRefreshError::Ended(EndReason::TokenReused));
            assert!(errors.iter().all(reused), "{errors:?}");
            strict.assert_refuses(&pairs[0]).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_writes_do_not_fail_a_refresh() {
        let redis = RedisServer::start().await;
        let world = World::new(jwt(), Arc::new(redis_store(&redis))).await;
        let pair = world.login().await;
        let writers: Vec<_> = (0..10)
            .map(|number| {
                let (client, token) = (world.apps[number % 2].client(), pair.access_token.clone());
                tokio::spawn(async move {
                    for step in 0..10 {
                        act(&client, &token, json!(["insert", format!("{number}"), step])).await;
                    }
                })
            })
            .collect();
        let mut newest = pair.clone();
        for _ in 0..20 {
            newest = world.refresh(&newest).await.unwrap();
        }
        for writer in writers {
            writer.await.unwrap();
        }
        for number in 0..10 {
            assert_eq!(
                act(&world.apps[0].client(), &newest.access_token, json!(["get", format!("{number}")])).await,
                9
            );
        }
        world.refresh(&newest).await.unwrap();
    }

    /// A concurrent change between the read and the write of a refresh.
    #[tokio::test(flavor = "multi_thread")]
    async fn changes_during_a_refresh_are_noticed() {
        let redis = RedisServer::start().await;
        for store in [Arc::new(MemoryStore::new()) as Arc<dyn SessionStore>, Arc::new(redis_store(&redis))] {
            let world = World::new(jwt(), store).await;
            let (sessions, client) = (world.sessions(), world.apps[1].client());
            let concurrent = async |pair: &JwtPair, step: Value| {
                let interfered = AtomicUsize::new(0);
                let interfere = |_: &tower_keep::SessionInfo| {
                    if interfered.fetch_add(1, Ordering::SeqCst) == 0 {
                        tokio::task::block_in_place(|| {
                            tokio::runtime::Handle::current().block_on(async {
                                match step[0].as_str() {
                                    Some("refresh") => drop(world.refresh(pair).await.unwrap()),
                                    _ => drop(act(&client, &pair.access_token, step.clone()).await),
                                }
                            });
                        });
                    }
                    json!({})
                };
                let result = world.jwt.refresh_with(&sessions, refresh_token(pair), interfere).await;
                (result, interfered.into_inner())
            };
            let pair = world.login().await;
            let (result, times) = concurrent(&pair, json!(["insert", "cart", "tea"])).await;
            let pair = result.unwrap();
            assert_eq!(times, 2, "tried again");
            assert_eq!(act(&client, &pair.access_token, json!(["get", "cart"])).await, "tea");
            let (result, _) = concurrent(&pair, json!(["refresh"])).await;
            assert_eq!(result.unwrap().refresh_token, None);
            let pair = world.login().await;
            let (result, _) = concurrent(&pair, json!(["logout"])).await;
            assert!(matches!(result, Err(JwtRefreshError::Ended(EndReason::LoggedOut))), "{result:?}");
            world.assert_refuses(&pair).await;
        }
    }

    #[tokio::test]
    async fn refreshing_keeps_the_session_alive_up_to_its_absolute_timeout() {
        let world = World::in_memory(jwt()).await;
        let mut pair = world.login().await;
        for _ in 0..71 {
            world.clock.advance(20 * MINUTE);
            pair = world.refresh(&pair).await.unwrap();
        }
        assert_eq!(pair.expires_in, 15 * 60);
        world.clock.advance(19 * MINUTE);
        pair = world.refresh(&pair).await.unwrap();
        assert!(pair.expires_in <= 60, "{pair:?}");
        world.clock.advance(2 * MINUTE);
        assert!(world.refresh(&pair).await.is_err());
        world.assert_refuses(&pair).await;
    }
}

mod outage {
    use super::*;

    async fn world(redis: &RedisServer, jwt: Jwt) -> World {
        let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(Duration::from_millis(500));
        World::new(jwt, Arc::new(RedisStore::new(config))).await
    }

    #[tokio::test]
    async fn an_outage_is_503_and_never_401() {
        let mut redis = RedisServer::start().await;
        let world = world(&redis, jwt()).await;
        let pair = world.login().await;
        world.assert_serves(&pair).await;
        redis.stop();
        let client = world.apps[0].client();
        let reply = with(&client, &pair.access_token, "/do", json!([["user"]])).await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
        let reply = client.post("/refresh", &json!(pair.refresh_token)).await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
        // A foreign token costs no store call.
        assert_eq!(user(&client, refresh_token(&pair)).await, None);
        assert_challenged(&client.post("/refresh", &json!(pair.access_token)).await);
        assert_eq!(world.layers[0].stats().signature_only, 0);
    }

    #[tokio::test]
    async fn the_signature_is_enough_if_enabled() {
        let log = Log::capture();
        let mut redis = RedisServer::start().await;
        let world = world(&redis, builder().accept_in_outage().build().unwrap()).await;
        let (pair, ended) = (world.login().await, world.login().await);
        let client = world.apps[0].client();
        act(&client, &pair.access_token, json!(["insert", "cart", "tea"])).await;
        act(&client, &ended.access_token, json!(["logout"])).await;
        assert_eq!(user(&client, &ended.access_token).await, None, "the store has answered");
        assert_eq!(world.layers[0].stats().signature_only, 0);
        redis.stop();

        let steps = json!([["user"], ["id"], ["is_degraded"]]);
        let reply = with(&client, &pair.access_token, "/do", steps).await;
        assert_eq!(reply.json(), json!(["ana", world.id(&pair), true]), "{reply:?}");
        assert_eq!(with(&client, &pair.access_token, "/claims", json!(null)).await.json()["role"], "admin");
        assert_eq!(world.layers[0].stats().signature_only, 2);
        assert_eq!(world.layers[0].stats().outages, 2);
        assert!(log.text().contains("the JWT is accepted by its signature"), "{}", log.text());
        // Its record is unreadable, so it cannot be refreshed or ended.
        for step in [
            json!(["get", "cart"]),
            json!(["insert", "k", 1]),
            json!(["logout"]),
            json!(["rotate"]),
            json!(["created_at"]),
            json!(["login", "eve"]),
        ] {
            let reply = with(&client, &pair.access_token, "/do", json!([step])).await;
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{step}");
        }
        assert_eq!(client.post("/refresh", &json!(pair.refresh_token)).await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            with(&client, &pair.access_token, "/login", json!("ana")).await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        // Only tokens that pass all other checks.
        for wrong in [
            refresh_token(&pair),
            &format!("{}x", pair.access_token),
            &forge(HEADER, &fields(r#""exp":9000000000"#), &REFRESH_SECRET),
        ] {
            assert_eq!(act(&client, wrong, json!(["user"])).await, Value::Null);
        }
        world.clock.advance(16 * MINUTE);
        assert_eq!(user(&client, &pair.access_token).await, None, "expired");

        redis.run().await;
        let again = world.login_eventually().await;
        eventually("the store is back", async || {
            act(&client, &again.access_token, json!(["is_degraded"])).await == json!(false)
        })
        .await;
        act(&client, &again.access_token, json!(["insert", "cart", "tea"])).await;
    }

    impl World {
        async fn login_eventually(&self) -> JwtPair {
            loop {
                match self.jwt.issue_new(&self.sessions(), "ana", &json!({})).await {
                    Ok(pair) => return pair,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        }
    }

    #[tokio::test]
    async fn the_signature_is_not_enough_for_a_corrupt_record() {
        let redis = RedisServer::start().await;
        let world = world(&redis, builder().accept_in_outage().build().unwrap()).await;
        let pair = world.login().await;
        let key = redis.sessions().await.pop().unwrap();
        redis.command(&format!("SET {key} garbage KEEPTTL")).await;
        let reply = with(&world.apps[0].client(), &pair.access_token, "/do", json!([["user"]])).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.layers[0].stats().signature_only, 0);
    }

    #[tokio::test]
    async fn the_signature_is_not_enough_for_a_misconfigured_store() {
        let redis = RedisServer::start().await;
        let world = world(&redis, builder().accept_in_outage().build().unwrap()).await;
        let pair = world.login().await;
        world.assert_serves(&pair).await;
        redis.command("ACL SETUSER default resetkeys").await;
        let reply = with(&world.apps[0].client(), &pair.access_token, "/do", json!([["user"]])).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
        assert_eq!(world.layers[0].stats().signature_only, 0);
    }

    /// The record exists and is unreadable. That it cannot be ended does not allow the signature alone.
    #[tokio::test]
    async fn the_signature_is_not_enough_if_another_operation_failed() {
        let spy = Spy::new();
        let jwt = builder().accept_in_outage().build().unwrap();
        let reset = |layer: SessionLayer| layer.on_corrupt(OnCorrupt::Reset);
        let world = World::at(ManualClock::new(), jwt, Arc::new(spy.clone()), reset).await;
        let pair = world.login().await;
        world.assert_serves(&pair).await;
        let steps = json!([["user"]]);
        spy.corrupt("load");
        spy.fail_next("end");
        let reply = with(&world.apps[0].client(), &pair.access_token, "/do", steps.clone()).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
        assert_eq!(world.layers[0].stats().signature_only, 0);
        assert_eq!(user(&world.apps[0].client(), &pair.access_token).await, None, "ended now");
        spy.recover();
        world.assert_refuses(&pair).await;
    }

    #[tokio::test]
    async fn a_route_that_requires_a_session_accepts_the_signature() {
        let redis = RedisServer::stopped();
        let store = Arc::new(redis_store(&redis));
        let jwt = builder().accept_in_outage().build().unwrap();
        let world = World::at(ManualClock::new(), jwt, store, SessionLayer::require_session).await;
        let token = signed(&fields(r#""exp":9000000000"#));
        assert_eq!(user(&world.apps[0].client(), &token).await.as_deref(), Some("ana"));
    }
}

/// Python's PyJWT, an independent implementation.
mod pyjwt {
    use super::*;

    use std::{
        env,
        io::Write,
        process::{Command, Stdio},
    };

    /// A Python that has PyJWT with `cryptography`.
    fn python() -> String {
        let known = [env::var("PYTHON").ok(), Some("/usr/bin/python3".into()), Some("python3".into())];
        let has_it = |python: &String| {
            let mut check = Command::new(python);
            check.args(["-c", "import jwt.algorithms, cryptography; assert jwt.algorithms.has_crypto"]);
            check.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let missing =
            "PyJWT is missing: install python3-jwt and python3-cryptography, or name a Python that has them in PYTHON";
        known.into_iter().flatten().find(has_it).expect(missing)
    }

    /// Runs `script`, with its input in `given`. Returns `answer`.
    fn run(script: &str, input: &Value) -> Value {
        let script =
            format!("import json, sys, jwt\ngiven = json.load(sys.stdin)\n{script}\njson.dump(answer, sys.stdout)\n");
        let mut child =
            Command::new(python()).args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Each algorithm, with the signing and verifying keys for PyJWT.
    fn keys() -> Vec<(JwtAlgorithm, String, String)> {
        use JwtAlgorithm::*;
        let pem = run(
            "
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat, NoEncryption
def pem(key, private=PrivateFormat.PKCS8, public=PublicFormat.SubjectPublicKeyInfo):
    return [
        key.private_bytes(Encoding.PEM, private, NoEncryption()).decode(),
        key.public_key().public_bytes(Encoding.PEM, public).decode(),
    ]
big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
answer = {
    'RSA': pem(big),
    'RSA, the older form': pem(big, PrivateFormat.TraditionalOpenSSL, PublicFormat.PKCS1),
    'P-256': pem(ec.generate_private_key(ec.SECP256R1())),
    'P-384': pem(ec.generate_private_key(ec.SECP384R1())),
    'Ed25519': pem(ed25519.Ed25519PrivateKey.generate()),
    'small': pem(small),
}",
            &Value::Null,
        );
        let of = |name: &str| (pem[name][0].as_str().unwrap().to_owned(), pem[name][1].as_str().unwrap().to_owned());
        let secret = "s3cr3t, ".repeat(8);
        let mut keys: Vec<_> =
            [HS256, HS384, HS512].map(|algorithm| (algorithm, secret.clone(), secret.clone())).into();
        for (algorithm, name) in [
            (RS256, "RSA"),
            (RS384, "RSA"),
            (RS512, "RSA"),
            (PS256, "RSA"),
            (PS384, "RSA"),
            (PS512, "RSA"),
            (RS256, "RSA, the older form"),
            (ES256, "P-256"),
            (ES384, "P-384"),
            (EdDSA, "Ed25519"),
        ] {
            let (private, public) = of(name);
            keys.push((algorithm, private, public));
        }
        let (private, public) = of("small");
        assert_eq!(JwtKey::private_pem(RS256, private).unwrap_err(), InvalidJwtKey::Unreadable);
        assert_eq!(JwtKey::public_pem(RS256, public).unwrap_err(), InvalidJwtKey::Unreadable);
        keys
    }

    fn of(key: Result<JwtKey, InvalidJwtKey>, id: usize) -> Jwt {
        Jwt::builder(key.unwrap().id(id.to_string())).issuer("us").audience("api").build().unwrap()
    }

    fn private(algorithm: JwtAlgorithm, key: &str) -> Result<JwtKey, InvalidJwtKey> {
        if algorithm.name().starts_with("HS") {
            JwtKey::hmac(algorithm, key)
        } else {
            JwtKey::private_pem(algorithm, key)
        }
    }

    fn public(algorithm: JwtAlgorithm, key: &str) -> Result<JwtKey, InvalidJwtKey> {
        if algorithm.name().starts_with("HS") {
            JwtKey::hmac(algorithm, key)
        } else {
            JwtKey::public_pem(algorithm, key)
        }
    }

    #[tokio::test]
    async fn accepts_our_tokens() {
        let mut ours = Vec::new();
        for (id, (algorithm, signs, verifies)) in keys().into_iter().enumerate() {
            let world = World::in_memory(of(private(algorithm, &signs), id)).await;
            let pair = world.login().await;
            for (token, typ) in [(&pair.access_token[..], "at+jwt"), (refresh_token(&pair), "rt+jwt")] {
                ours.push(json!({ "token": token, "key": verifies, "alg": algorithm.name(), "kid": id.to_string(), "typ": typ }));
            }
        }
        let read = run(
            "
answer = []
for it in given:
    required = ['exp', 'iat', 'iss', 'aud', 'sub', 'jti', 'sid']
    claims = jwt.decode(it['token'], it['key'], algorithms=[it['alg']], audience='api', issuer='us', options={'require': required})
    answer.append([claims, jwt.get_unverified_header(it['token'])])",
            &json!(ours),
        );
        assert_eq!(read.as_array().unwrap().len(), 26);
        for (ours, read) in ours.iter().zip(read.as_array().unwrap()) {
            assert_eq!(read[0], claims(ours["token"].as_str().unwrap()));
            assert_eq!(read[0]["sub"], "ana");
            assert_eq!(read[1], json!({ "alg": ours["alg"], "kid": ours["kid"], "typ": ours["typ"] }));
        }
    }

    #[tokio::test]
    async fn creates_tokens_that_we_accept() {
        let mut asked = Vec::new();
        let mut worlds = Vec::new();
        for (id, (algorithm, signs, verifies)) in keys().into_iter().enumerate() {
            let world = World::in_memory(of(public(algorithm, &verifies), id)).await;
            // The session exists, and PyJWT gets its id.
            let sid = world.sessions().create("ana").await.unwrap().id();
            asked.push(json!({ "key": signs, "alg": algorithm.name(), "kid": id.to_string(), "sid": sid }));
            worlds.push(world);
        }
        let theirs = run(
            "
import time
answer = []
for it in given:
    header = {'typ': 'at+jwt', 'kid': it['kid']}
    claims = {'iss': 'us', 'aud': ['web', 'api'], 'sub': 'ana', 'sid': it['sid'], 'exp': time.time() + 600.5, 'nbf': int(time.time()) - 300, 'role': 'admin'}
    make = lambda **other: jwt.encode({**claims, **other}, it['key'], it['alg'], header)
    answer.append({
        'good': make(),
        'wrong': [
            make(exp=int(time.time()) - 600), make(nbf=int(time.time()) + 600), make(aud='web'), make(iss='them'), make(sub='eve'), make(sid='x'),
            jwt.encode(claims, it['key'], it['alg'], {'typ': 'JWT', 'kid': it['kid']}),
            jwt.encode(claims, it['key'], it['alg'], {'typ': 'at+jwt', 'kid': 'another'}),
            jwt.encode(claims, None, 'none', header),
            jwt.encode(claims, 'another secret of thirty-two bytes', 'HS256', header),
        ],
    })",
            &json!(asked),
        );
        assert_eq!(theirs.as_array().unwrap().len(), worlds.len());
        for (world, theirs) in worlds.iter().zip(theirs.as_array().unwrap()) {
            let client = world.apps[0].client();
            let good = theirs["good"].as_str().unwrap();
            assert_eq!(user(&client, good).await.as_deref(), Some("ana"), "{good}");
            assert_eq!(with(&client, good, "/claims", json!(null)).await.json()["role"], "admin");
            let wrong = theirs["wrong"].as_array().unwrap();
            assert_eq!(wrong.len(), 10);
            for wrong in wrong {
                assert_eq!(user(&client, wrong.as_str().unwrap()).await, None, "{wrong}");
            }
        }
    }

    #[tokio::test]
    async fn refuses_our_tokens_for_other_audiences() {
        let world = World::in_memory(of(JwtKey::hmac(JwtAlgorithm::HS256, SECRET), 0)).await;
        let pair = world.login().await;
        let another = forge(HEADER, &fields(r#""exp":1700000000,"aud":"api","iss":"us""#), &SECRET);
        let reasons = run(
            "
answer = []
for token, key, audience, issuer in given:
    try:
        answer.append(jwt.decode(token, bytes(key), algorithms=['HS256'], audience=audience, issuer=issuer))
    except jwt.PyJWTError as error:
        answer.append(type(error).__name__)",
            &json!([
                [pair.access_token, REFRESH_SECRET, "api", "us"],
                [pair.access_token, SECRET, "web", "us"],
                [pair.access_token, SECRET, "api", "them"],
                [another, SECRET, "api", "us"],
            ]),
        );
        assert_eq!(
            reasons,
            json!(["InvalidSignatureError", "InvalidAudienceError", "InvalidIssuerError", "ExpiredSignatureError"])
        );
    }
}
