use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use tower_service::Service;

use super::{Lookup, Policy, ResponseForRejection, ResponseFuture, future::Exchange};
use crate::{context::LayerContext, credential::PresentedCredentials, session::Session};

/// A service wrapped by [`SessionLayer`](crate::SessionLayer).
///
/// ```
/// use http::{Request, Response};
/// use tower::{Layer, service_fn};
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// let inner = service_fn(async |_: Request<()>| Ok::<_, std::convert::Infallible>(Response::new(())));
/// let service = SessionLayer::new(MemoryStore::new()).layer(inner);
/// # let _ = service;
/// ```
#[derive(Clone)]
pub struct SessionService<S, R> {
    inner: S,
    context: Arc<LayerContext>,
    policy: Policy,
    reject: R,
}

impl<S, R> SessionService<S, R> {
    pub(super) fn new(inner: S, context: Arc<LayerContext>, policy: Policy, reject: R) -> Self {
        Self { inner, context, policy, reject }
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for SessionService<S, R>
where
    // Cloned only for a lookup before the call: the call must go to the service that is ready, after `call` has returned.
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: ResponseForRejection<ResBody> + Clone,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S, R, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        // Nested in another layer over the same sessions, this layer only changes the policy.
        let outer = request.extensions().get::<Session>().filter(|session| session.belongs_to(&self.context));
        let (session, policy, nested) = match outer {
            Some(session) => (session.with_policy(self.policy), self.policy, true),
            None => {
                // Only the outer layer uses the policy of the request: it must not override the policy of an inner layer.
                let policy = request.extensions_mut().remove::<Policy>().unwrap_or(self.policy);
                let presented = self.context.credentials.read(request.headers(), &*self.context.clock);
                let client = self.context.client_info.as_ref();
                let client = client.map(|info| info.metadata(request.headers(), request.extensions()));
                (Session::new(self.context.clone(), presented, client, policy), policy, false)
            }
        };
        let head = R::READS_REQUEST.then(|| Box::new(head_of(&request)));
        let exchange = Exchange { session, nested, grpc: is_grpc(&request), head, reject: self.reject.clone() };
        let presented = exchange.session.presented();
        let look_up_first = match (policy.lookup, presented) {
            (_, PresentedCredentials::Disagreement) => {
                exchange.session.report_disagreement();
                return ResponseFuture::rejected(exchange.session.unauthenticated(), exchange);
            }
            (Lookup::Lazy, _) | (Lookup::Eager, PresentedCredentials::Nothing) => false,
            (Lookup::Eager | Lookup::RequireSession | Lookup::RequireUser, _) => true,
        };
        request.extensions_mut().insert(exchange.session.clone());
        if look_up_first {
            let next = self.inner.clone();
            let ready = mem::replace(&mut self.inner, next);
            ResponseFuture::looking_up(ready, request, exchange)
        } else {
            ResponseFuture::calling(self.inner.call(request), exchange)
        }
    }
}

/// Method, URI and headers.
fn head_of<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    // A nested router has removed its prefix.
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(original)) = request.extensions().get() {
        *head.uri_mut() = original.clone();
    }
    *head.headers_mut() = request.headers().clone();
    head
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    // gRPC uses POST only.
    request.method() == Method::POST
        && request.headers().get(header::CONTENT_TYPE).is_some_and(|value| is_grpc_type(value.as_bytes()))
}

/// `application/grpc`, with or without a suffix like `+proto`. Not `application/grpc-web`, which its own layer translates.
fn is_grpc_type(content_type: &[u8]) -> bool {
    content_type.split_at_checked("application/grpc".len()).is_some_and(|(name, rest)| {
        name.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

impl<S: fmt::Debug, R> fmt::Debug for SessionService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
