//! An HTML page for operators: the health of the store, the live sessions, and buttons to revoke them.
//!
//! <div class="warning">
//!
//! **The page does not authenticate anybody.** It shows who is logged in from where, and can log out every user. Mount it behind your own
//! authorization, as below.
//!
//! </div>
//!
//! ```
//! use axum::{Router, extract::Request, http::StatusCode, middleware::{self, Next}, response::{IntoResponse, Response}};
//! use tower_keep::{MemoryStore, Rejection, Session, SessionLayer, operator};
//!
//! /// Your own check. Here it is the name.
//! async fn operators_only(session: Session, request: Request, next: Next) -> Result<Response, Rejection> {
//!     let user = session.require_user().await?; // 401 without a login
//!     Ok(if &*user == "root" { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() })
//! }
//!
//! let layer = SessionLayer::new(MemoryStore::new());
//! let page = operator::router(layer.sessions())
//!     .layer(middleware::from_fn(operators_only)) // yours
//!     .layer(layer.clone().require_user());
//! let app: Router = Router::new().nest("/operator", page).layer(layer);
//! # let _ = app;
//! ```
//!
//! The page uses one path and relative links, so it can be mounted anywhere, and more than once. It is HTML with its own style sheet, without
//! scripts and external resources.
//!
//! # Content
//! * The health of the store (status, cause, since when, latency), and the [counters](crate::Stats) of this process. Both work during an outage.
//! * The number of live sessions, on the first page: counted if that takes less than a third of a second, else on demand.
//! * Sessions by page, by user, or by id, with user, times, client IP and user agent. **No value of a session is shown**, and no token.
//! * Buttons that [revoke](Sessions::revoke) one session or [all of a user](Sessions::revoke_user).
//!
//! URLs of searches contain user names and session ids, so they are in the access logs of proxies. Ids grant no access.
//!
//! # Requests from other sites
//! Actions are POST requests, and a POST must come from the page itself: with `Sec-Fetch-Site: same-origin`, or, in old browsers and without TLS,
//! with an `Origin` that equals the `Host` of the request. Other requests are refused. Other sites cannot forge these headers, so the forms need no
//! token. A script must send `Sec-Fetch-Site: same-origin`. Without TLS, a proxy must pass `Host` unchanged.
//!
//! Other pages cannot embed the page (`frame-ancestors 'none'`). Text from clients is escaped, and invisible characters are shown by their code.

mod origin;
mod query;
mod render;
mod response;
mod visible;

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use http::{HeaderMap, StatusCode, Uri};
use tokio::time::timeout;

use self::{
    query::{Act, Done, Query, View},
    render::{Content, Live, MAX_OF_USER, Page},
};
use crate::{
    error_chain::ErrorChain,
    session::Session,
    sessions::{SessionInfo, Sessions},
    store::{Cursor, FallbackStats, StoreError},
};

/// The approximate number of sessions of a page.
const PAGE: usize = 50;
/// The maximum number of queries for a page.
const TRIES: usize = 20;
/// The time limits for counting sessions: by default, and on demand.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

/// The operator page. **It has no authorization**: see the [module documentation](self).
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer, operator};
///
/// let layer = SessionLayer::new(MemoryStore::new());
/// let page: axum::Router = operator::router(layer.sessions()); // to be mounted behind a check of yours
/// # let _ = page;
/// ```
pub fn router<S: Clone + Send + Sync + 'static>(sessions: Sessions) -> Router<S> {
    OperatorPage::new(sessions).router()
}

/// Builds an operator page with more content than [`router`].
///
/// ```
/// use std::sync::Arc;
/// use tower_keep::{MemoryStore, SessionLayer, operator::OperatorPage, store::{Fallback, FallbackMode}};
///
/// let store = Arc::new(Fallback::new(MemoryStore::new(), FallbackMode::default()));
/// let layer = SessionLayer::new(store.clone());
/// let page: axum::Router = OperatorPage::new(layer.sessions()).fallback(move || store.stats()).router();
/// # let _ = page;
/// ```
#[derive(Clone)]
#[must_use = "mount the returned router"]
pub struct OperatorPage {
    sessions: Sessions,
    fallback: Option<Arc<dyn Fn() -> FallbackStats + Send + Sync>>,
}

impl OperatorPage {
    /// For `sessions`.
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions, fallback: None }
    }

    /// Shows the state of a [`Fallback`](crate::store::Fallback). Default: no.
    pub fn fallback(mut self, stats: impl Fn() -> FallbackStats + Send + Sync + 'static) -> Self {
        self.fallback = Some(Arc::new(stats));
        self
    }

    /// Builds the page. **It has no authorization**: see the [module documentation](self).
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new().route("/", get(show).post(act)).with_state(self)
    }

    /// The health of the store, and `content`.
    async fn page(&self, status: StatusCode, content: Content) -> Response {
        let context = self.sessions.context();
        let page = Page {
            health: self.sessions.health().await,
            stats: self.sessions.stats(),
            fallback: self.fallback.as_ref().map(|stats| stats()),
            now: context.clock.now(),
            content,
        };
        response::page(status, page.html())
    }

    async fn failed(&self, view: View, error: StoreError) -> Response {
        tracing::warn!(error = %ErrorChain(&error), "the store is unavailable for the operator page");
        self.page(StatusCode::SERVICE_UNAVAILABLE, Content::Failed { view }).await
    }

    async fn view(&self, query: Query) -> Result<Response, StoreError> {
        let done = query.done;
        let (status, content) = match query.view {
            View::All(from) => {
                let (sessions, next) = self.some(from.clone()).await?;
                // Only the first page shows the count.
                let live = match from.as_str() {
                    "" => Some(self.live(if query.count { LONG } else { SHORT }).await?),
                    _ => None,
                };
                (StatusCode::OK, Content::All { from, sessions, next, live, done })
            }
            View::User(user) => {
                let mut sessions = self.sessions.list(&user).await?;
                let number = sessions.len();
                sessions.truncate(MAX_OF_USER);
                (StatusCode::OK, Content::User { user, sessions, number, done })
            }
            View::One(id) => match self.sessions.get(&id).await? {
                Some(session) => (StatusCode::OK, Content::One { session, done }),
                None => {
                    let ended = self.sessions.ended(&id).await?;
                    // A session that was just revoked here is not an error.
                    let status = if done.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    (status, Content::Gone { id, ended, done })
                }
            },
            View::NoId(text) => (StatusCode::BAD_REQUEST, Content::NoId { text }),
        };
        Ok(self.page(status, content).await)
    }

    /// The sessions of about one page, without duplicates.
    async fn some(&self, from: Cursor) -> Result<(Vec<SessionInfo>, Option<Cursor>), StoreError> {
        let (mut sessions, mut next) = (Vec::new(), Some(from));
        for _ in 0..TRIES {
            let Some(from) = next.take_if(|_| sessions.len() < PAGE) else { break };
            let more;
            (more, next) = self.sessions.page(&from, PAGE).await?;
            sessions.extend(more);
        }
        sessions.sort_by_key(SessionInfo::id);
        sessions.dedup_by_key(|session| session.id());
        sessions.sort_by_key(|session| std::cmp::Reverse(session.last_seen()));
        Ok((sessions, next))
    }

    async fn live(&self, time_limit: Duration) -> Result<Live, StoreError> {
        match timeout(time_limit, self.sessions.count()).await {
            Ok(number) => number.map(Live::Counted),
            Err(_) => Ok(Live::Many),
        }
    }
}

impl fmt::Debug for OperatorPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorPage").field("store", &self.sessions.store_name()).finish_non_exhaustive()
    }
}

async fn show(State(page): State<OperatorPage>, headers: HeaderMap, uri: Uri) -> Response {
    let mut query = Query::of(uri.query().unwrap_or_default());
    if origin::is_other(&headers) {
        query.done = None; // a link cannot confirm an action
    }
    if query.style {
        return response::style();
    }
    let view = query.view.clone();
    match page.view(query).await {
        Ok(response) => response,
        Err(error) => page.failed(view, error).await,
    }
}

async fn act(State(page): State<OperatorPage>, request: Request) -> Response {
    if !origin::is_same(request.headers(), request.uri()) {
        tracing::warn!("operator page: cross-site request refused");
        return page.page(StatusCode::FORBIDDEN, Content::NotFromHere).await;
    }
    let query = Query::of(request.uri().query().unwrap_or_default());
    let Some(act) = query.act else {
        return page.page(StatusCode::BAD_REQUEST, Content::NothingToDo).await;
    };
    let from = request.extensions().get().and_then(Session::client_ip);
    match perform(&act, &page.sessions.for_client(from)).await {
        Ok(done) => response::redirect(&query.view.after(done)),
        Err(error) => page.failed(query.view, error).await,
    }
}

async fn perform(act: &Act, sessions: &Sessions) -> Result<Done, StoreError> {
    Ok(match act {
        Act::Revoke(id) => {
            if sessions.revoke(id).await? {
                Done::Revoked
            } else {
                Done::WasGone
            }
        }
        Act::RevokeUser(user) => Done::UserRevoked(sessions.revoke_user(user).await?),
    })
}
