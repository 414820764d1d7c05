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

/// What is known of the caller that only its answer needs.
pub(super) struct Caller<R> {
    pub(super) reject: R,
    pub(super) grpc: bool,
}

pin_project! {
    /// The response of a [`SessionService`](crate::SessionService).
    ///
    /// Dropping it cancels the request: what it has not saved is not saved.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, R, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, S::Future, ReqBody, S::Response, S::Error>,
        caller: Caller<R>,
    }
}

pin_project! {
    /// The life of a request, from top to bottom; `Rejected` and `Done` end it early.
    #[project = StateProj]
    enum State<S, F, ReqBody, Res, Err> {
        LookingUp { lookup: BoxFuture<Result<(), Rejection>>, call: Option<(S, Request<ReqBody>)>, session: Session, nested: bool },
        Calling { #[pin] response: F, session: Session, nested: bool },
        Saving { save: BoxFuture<Result<(), SessionError>>, response: Option<Result<Res, Err>>, session: Session },
        Rejected { rejection: Rejection },
        Done,
    }
}

impl<S, R, ReqBody> ResponseFuture<S, R, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn looking_up(
        session: Session,
        nested: bool,
        service: S,
        request: Request<ReqBody>,
        caller: Caller<R>,
    ) -> Self {
        let lookup = session.clone();
        let lookup = Box::pin(async move { lookup.load().await });
        Self { state: State::LookingUp { lookup, call: Some((service, request)), session, nested }, caller }
    }

    pub(super) fn calling(response: S::Future, session: Session, nested: bool, caller: Caller<R>) -> Self {
        Self { state: State::Calling { response, session, nested }, caller }
    }

    pub(super) fn rejected(rejection: Rejection, caller: Caller<R>) -> Self {
        Self { state: State::Rejected { rejection }, caller }
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
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::LookingUp { lookup, call, session, nested } => {
                    let found = ready!(lookup.as_mut().poll(cx));
                    match (found, call.take()) {
                        (Ok(()), Some((mut service, request))) => State::Calling {
                            response: service.call(request),
                            session: session.clone(),
                            nested: *nested,
                        },
                        (Err(rejection), _) => State::Rejected { rejection },
                        (Ok(()), None) => return Poll::Pending,
                    }
                }
                StateProj::Calling { response, session, nested } => {
                    let response = ready!(response.poll(cx)).map(|response| this.caller.answer(response));
                    if *nested {
                        return Poll::Ready(response);
                    }
                    let delivery = if response.is_ok() { Delivery::Response } else { Delivery::None };
                    if session.is_settled() {
                        return Poll::Ready(response.map(|response| respond::finish(response, session)));
                    }
                    let (session, save) = (session.clone(), session.clone());
                    let save = Box::pin(async move { save.commit(delivery).await });
                    State::Saving { save, response: Some(response), session }
                }
                StateProj::Saving { save, response, session } => {
                    let saved = ready!(save.as_mut().poll(cx));
                    let Some(response) = response.take() else { return Poll::Pending };
                    let response = response.map(|response| {
                        let response = match saved {
                            Ok(()) => response,
                            Err(_) => this.caller.reject(session.unsaved()),
                        };
                        respond::finish(response, session)
                    });
                    this.state.set(State::Done);
                    return Poll::Ready(response);
                }
                StateProj::Rejected { rejection } => {
                    let response = this.caller.reject(rejection.clone());
                    this.state.set(State::Done);
                    return Poll::Ready(Ok(response));
                }
                StateProj::Done => return Poll::Pending,
            };
            this.state.set(next);
        }
    }
}

impl<R> Caller<R> {
    fn reject<B>(&self, rejection: Rejection) -> Response<B>
    where
        R: ResponseForRejection<B>,
    {
        rejection.for_grpc(self.grpc).render(&self.reject)
    }

    /// A rejection that the handler returned gets the form that the layer gives rejections.
    fn answer<B>(&self, mut response: Response<B>) -> Response<B>
    where
        R: ResponseForRejection<B>,
    {
        match response.extensions_mut().remove::<Rejection>() {
            None => response,
            Some(rejection) => self.reject(rejection),
        }
    }
}

impl<S: Service<Request<ReqBody>>, R, ReqBody> fmt::Debug for ResponseFuture<S, R, ReqBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
