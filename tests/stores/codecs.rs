//! What a session accepts can be read again: all depths, sizes and forms of numbers, in every codec and store.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use http::{Request, Response, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    MemoryStore, Session, SessionError, SessionLayer,
    store::{
        Codec, SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

use crate::support::redis_server::RedisServer;

/// Runs `handler` in a request with this cookie. Returns the result, and the cookie of the response.
async fn request<T: Send + 'static>(
    layer: &SessionLayer,
    cookie: Option<&str>,
    handler: impl Fn(&Session) -> Result<T, SessionError> + Clone + Send + 'static,
) -> (Result<T, SessionError>, Option<String>) {
    let service = layer.clone().layer(service_fn(move |request: Request<()>| {
        let handler = handler.clone();
        async move {
            let session = request.extensions().get::<Session>().unwrap().clone();
            session.load().await.unwrap();
            let result = handler(&session);
            Ok::<_, Infallible>(Response::new(Some(result)))
        }
    }));
    let mut request = Request::builder();
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "it is saved");
    let set_cookie = response.headers().get(header::SET_COOKIE).map(|value| value.to_str().unwrap());
    let cookie = set_cookie.map(|value| value.split(';').next().unwrap().to_owned());
    (response.into_body().unwrap(), cookie)
}

/// Stores `json`, and reads it again in another request. Returns whether it was accepted.
async fn is_kept(layer: &SessionLayer, json: &str) -> bool {
    let raw: Arc<RawValue> = RawValue::from_string(json.to_owned()).unwrap().into();
    let (inserted, cookie) = request(layer, None, move |session| session.insert("v", &*raw)).await;
    let Some(cookie) = cookie else {
        assert!(matches!(inserted, Err(SessionError::Encode { .. })), "{inserted:?}");
        return false;
    };
    inserted.unwrap();
    let expected: serde_json::Value = serde_json::from_str(json).unwrap();
    let (read, _) = request(layer, Some(&cookie), |session| {
        let all = session.typed::<BTreeMap<String, serde_json::Value>>().get()?;
        Ok((session.get::<serde_json::Value>("v")?.unwrap(), all["v"].clone()))
    })
    .await;
    assert_eq!(read.unwrap(), (expected.clone(), expected));
    true
}

async fn layers(server: &RedisServer) -> [SessionLayer; 3] {
    let config = RedisConfig::from_url(&server.url()).unwrap();
    let layer = |store: Arc<dyn SessionStore>| SessionLayer::new(store);
    [
        layer(Arc::new(MemoryStore::new())),
        layer(Arc::new(RedisStore::new(config.clone()))),
        layer(Arc::new(RedisStore::new(config.codec(Codec::MessagePack)))),
    ]
}

#[tokio::test]
async fn every_depth_is_kept_or_refused() {
    let server = RedisServer::start().await;
    for layer in layers(&server).await {
        for depth in 100..140 {
            let list = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
            let map = format!("{}1{}", r#"{"k":"#.repeat(depth), "}".repeat(depth));
            let brackets = format!("{{\"text\":\"{}\\\"\"}}", "[".repeat(depth));
            assert_eq!(is_kept(&layer, &list).await, depth <= 126, "{depth} lists");
            assert_eq!(is_kept(&layer, &map).await, depth <= 126, "{depth} maps");
            assert!(is_kept(&layer, &brackets).await, "a string is not nested");
        }
    }
}

#[tokio::test]
async fn every_number_is_kept_exactly() {
    let server = RedisServer::start().await;
    for layer in layers(&server).await {
        for number in [
            "0",
            "-0.0",
            "1.0",
            "1e2",
            "1.5e300",
            "-1",
            "0.1",
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
        ] {
            assert!(is_kept(&layer, number).await, "{number}");
            assert!(is_kept(&layer, &format!(r#"{{"n":[{number}]}}"#)).await, "{number}");
        }
    }
}

/// A change of one field does not touch the numbers in the others.
#[tokio::test]
async fn modify_keeps_numbers_beyond_64_bits() {
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Account {
        balance: i128,
        id: u64,
        rate: f64,
        visits: u32,
        note: Option<String>,
    }
    let server = RedisServer::start().await;
    for layer in layers(&server).await {
        let (written, cookie) = request(&layer, None, |session| {
            session.typed::<Account>().modify(|account| {
                account.balance = i128::MAX;
                account.id = u64::MAX;
                account.rate = 0.1;
            })
        })
        .await;
        written.unwrap();
        let cookie = cookie.unwrap();
        let (modified, _) = request(&layer, Some(&cookie), |session| {
            session.typed::<Account>().modify(|account| {
                account.balance -= 1;
                account.visits += 1;
                account.note = Some("$serde_json::private::Number".into());
            })
        })
        .await;
        modified.unwrap();
        let (read, _) = request(&layer, Some(&cookie), |session| session.typed::<Account>().get()).await;
        let note = Some("$serde_json::private::Number".into());
        let expected = Account { balance: i128::MAX - 1, id: u64::MAX, rate: 0.1, visits: 1, note };
        assert_eq!(read.unwrap(), expected);
    }
}
