//! The requests that are measured.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::{HeaderMap, Request, Response, header};
use tower::{Layer, Service, service_fn};
use tower_keep::{MemoryStore, Session, SessionCookie, SessionLayer};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Case {
    /// No layer: the handler's request has one shared value in its extensions. Every layer that passes something to a
    /// handler pays this price to the `http` crate.
    Extension,
    Anonymous,
    Unused,
    Read,
    Write,
}

pub const CASES: [(&str, Case); 5] = [
    ("(an extension, and no layer)", Case::Extension),
    ("no token", Case::Anonymous),
    ("token present, session unused", Case::Unused),
    ("session read", Case::Read),
    ("session written", Case::Write),
];
/// Serves this many requests.
pub fn run(case: Case, bare: bool, times: u64) {
    let layer = SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::development());
    let cookie = (!matches!(case, Case::Extension | Case::Anonymous)).then(|| log_in(&layer));
    let mut service = service_fn(move |request| handle(case, request));
    let mut wrapped = layer.layer(service);
    for _ in 0..times {
        let mut request = request(cookie.as_deref());
        let response = match case {
            _ if bare => now(service.call(request)),
            Case::Extension => {
                request.extensions_mut().insert(Arc::new(0_u64));
                now(service.call(request))
            }
            _ => now(wrapped.call(request)),
        };
        black_box(response.unwrap());
    }
}

async fn handle(case: Case, request: Request<()>) -> Result<Response<()>, Infallible> {
    let session = request.extensions().get::<Session>();
    match (case, session) {
        (Case::Read, Some(session)) => {
            session.load().await.unwrap();
            black_box(session.get::<u64>("visits").unwrap());
        }
        (Case::Write, Some(session)) => {
            session.load().await.unwrap();
            let visits = session.get::<u64>("visits").unwrap().unwrap_or(0);
            session.insert("visits", &(visits + 1)).unwrap();
        }
        _ => {}
    }
    Ok(Response::new(()))
}

fn request(cookie: Option<&str>) -> Request<()> {
    let mut headers = HeaderMap::with_capacity(4);
    if let Some(cookie) = cookie {
        headers.insert(header::COOKIE, cookie.parse().unwrap());
    }
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    request
}

fn log_in(layer: &SessionLayer) -> String {
    let mut login = layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap();
        session.load().await.unwrap();
        session.login("ana").unwrap();
        session.insert("visits", &1_000_000).unwrap();
        Ok::<_, Infallible>(Response::new(()))
    }));
    let response = now(login.call(request(None))).unwrap();
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

/// In memory nothing ever waits, so there is no runtime to measure.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("waited"),
    }
}
