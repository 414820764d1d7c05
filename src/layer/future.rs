use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{Rejection, ResponseForRejection, respond};
use crate::session::{Delivery, Session, SessionError};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the response needs from the request.
pub(super) struct Exchange<R> {
    pub(super) session: Session,
    /// Nested in another layer over the same sessions, which saves them.
    pub(super) nested: bool,
    pub(super) grpc: bool,
    /// The head of the request, if rejections read it.
    pub(super) head: Option<Box<Request<()>>>,
    pub(super) reject: R,
}

pin_project! {
    /// The response of a [`SessionService`](crate::SessionService).
    ///
    /// Dropping it cancels the request. Unsaved changes are lost.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, R, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, S::Future, ReqBody, S::Response, S::Error>,
        exchange: Exchange<R>,
    }
}

pin_project! {
    /// The states of a request, from top to bottom. `Rejected` ends it early.
    #[project = StateProj]
    enum State<S, F, ReqBody, Res, Err> {
        LookingUp { lookup: BoxFuture<Result<(), Rejection>>, call: Option<Box<(S, Request<ReqBody>)>> },
        Calling { #[pin] response: F },
        Saving { save: BoxFuture<Result<(), SessionError>>, response: Option<Result<Res, Err>> },
        Rejected { rejection: Box<Rejection> },
    }
}

impl<S, R, ReqBody> ResponseFuture<S, R, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn looking_up(service: S, request: Request<ReqBody>, exchange: Exchange<R>) -> Self {
        let session = exchange.session.clone();
        let lookup = Box::pin(async move { session.load().await });
        Self { state: State::LookingUp { lookup, call: Some(Box::new((service, request))) }, exchange }
    }

    pub(super) fn calling(response: S::Future, exchange: Exchange<R>) -> Self {
        Self { state: State::Calling { response }, exchange }
    }

    pub(super) fn rejected(rejection: Rejection, exchange: Exchange<R>) -> Self {
        Self { state: State::Rejected { rejection: Box::new(rejection) }, exchange }
    }
}

impl<S, R, ReqBody, ResBody> Future for ResponseFuture<S, R, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    R: ResponseForRejection<ResBody>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let exchange = &*this.exchange;
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::LookingUp { lookup, call } => match (ready!(lookup.as_mut().poll(cx)), call.take()) {
                    (Ok(()), Some(mut call)) => {
                        let request = call.1;
                        State::Calling { response: call.0.call(request) }
                    }
                    (Err(rejection), _) => State::Rejected { rejection: Box::new(rejection) },
                    (Ok(()), None) => return Poll::Pending, // polled again after it was ready
                },
                StateProj::Calling { response } => {
                    let response = ready!(response.poll(cx)).map(|response| exchange.answer(response));
                    if exchange.nested {
                        return Poll::Ready(response);
                    }
                    if exchange.session.is_clean() {
                        return Poll::Ready(response.map(|response| respond::finish(response, &exchange.session)));
                    }
                    let delivery = if response.is_ok() { Delivery::Response } else { Delivery::None };
                    let session = exchange.session.clone();
                    let save = Box::pin(async move { session.commit(delivery).await });
                    State::Saving { save, response: Some(response) }
                }
                StateProj::Saving { save, response } => {
                    let saved = ready!(save.as_mut().poll(cx));
                    let Some(response) = response.take() else { return Poll::Pending };
                    return Poll::Ready(response.map(|response| {
                        let response = match saved {
                            Ok(()) => response,
                            Err(error) => exchange.reject(exchange.session.complete(Rejection::of_logged(error))),
                        };
                        respond::finish(response, &exchange.session)
                    }));
                }
                StateProj::Rejected { rejection } => {
                    let response = exchange.reject((**rejection).clone());
                    if exchange.nested {
                        return Poll::Ready(Ok(response));
                    }
                    return Poll::Ready(Ok(respond::finish(response, &exchange.session)));
                }
            };
            this.state.set(next);
        }
    }
}

/// After the request, completed or not, no token can reach the client.
impl<R> Drop for Exchange<R> {
    fn drop(&mut self) {
        if !self.nested {
            self.session.request_ended();
        }
    }
}

impl<R> Exchange<R> {
    fn reject<B>(&self, rejection: Rejection) -> Response<B>
    where
        R: ResponseForRejection<B>,
    {
        let rejection = rejection.for_grpc(self.grpc);
        let mut response = match &self.head {
            Some(head) => rejection.render(&self.reject, head),
            None => rejection.render(&self.reject, &Request::new(())),
        };
        respond::vary(response.headers_mut(), self.session.context().credentials.vary());
        response
    }

    /// Renders a rejection that the handler returned, unless other middleware has changed the response.
    fn answer<B>(&self, mut response: Response<B>) -> Response<B>
    where
        R: ResponseForRejection<B>,
    {
        match response.extensions_mut().remove::<Rejection>() {
            Some(rejection) if rejection.status() == response.status() => {
                let mut answer = self.reject(self.session.complete(rejection));
                respond::carry_over(response.headers_mut(), answer.headers_mut());
                answer
            }
            _ => response,
        }
    }
}

impl<S: Service<Request<ReqBody>>, R, ReqBody> fmt::Debug for ResponseFuture<S, R, ReqBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
