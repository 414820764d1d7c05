//! An HTTP client with a cookie jar like that of a browser, which shows complete responses.

use std::sync::Mutex;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// A client with its own cookie jar.
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    base: String,
    jar: Mutex<Vec<(String, String)>>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// For the server at `base` (`http://127.0.0.1:…`).
    pub fn new(base: &str) -> Self {
        Self::of(HyperClient::builder(TokioExecutor::new()).build_http(), base)
    }

    /// Speaks HTTP/2 only.
    pub fn http2(base: &str) -> Self {
        Self::of(HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http(), base)
    }

    fn of(http: HyperClient<HttpConnector, Full<Bytes>>, base: &str) -> Self {
        Self { http, base: base.to_owned(), jar: Mutex::default() }
    }

    /// Another client with the same cookies: a second tab, or a thief.
    pub fn twin(&self) -> Self {
        Self { http: self.http.clone(), base: self.base.clone(), jar: Mutex::new(self.jar.lock().unwrap().clone()) }
    }

    /// The same cookies at another instance of the service.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.twin() }
    }

    /// The address of its server.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn cookie(&self, name: &str) -> Option<String> {
        self.jar.lock().unwrap().iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
    }

    pub fn set_cookie(&self, name: &str, value: &str) {
        let mut jar = self.jar.lock().unwrap();
        jar.retain(|(n, _)| n != name);
        jar.push((name.to_owned(), value.to_owned()));
    }

    pub fn forget_cookies(&self) {
        self.jar.lock().unwrap().clear();
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, json: &Value) -> Reply {
        self.request(Method::POST, path, &[("content-type", "application/json")], json.to_string().into()).await
    }

    /// Any request. `headers` may repeat names, and a `cookie` header replaces those of the jar.
    pub async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Reply {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("cookie")) {
            let jar: Vec<_> = self.jar.lock().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
            if !jar.is_empty() {
                request = request.header(header::COOKIE, jar.join("; "));
            }
        }
        let response = self.http.request(request.body(Full::new(body)).unwrap()).await.expect("an answer");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let reply = Reply { status: head.status, version: head.version, headers: head.headers, body };
        self.keep(&reply);
        reply
    }

    fn keep(&self, reply: &Reply) {
        for set_cookie in reply.set_cookies() {
            let (pair, attributes) = set_cookie.split_once(';').unwrap_or((&set_cookie, ""));
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                self.jar.lock().unwrap().retain(|(n, _)| n != name);
            } else {
                self.set_cookie(name, value);
            }
        }
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn set_cookies(&self) -> Vec<String> {
        self.headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}
