//! A page for operators: how the store does, which sessions live, and how to end them.
//!
//! <div class="warning">
//!
//! **It asks nobody who they are.** Whoever reaches it sees who is logged in from where, and can log anybody out. Mount it only behind your
//! own authorization, as below, and never on an address that the world can reach without it.
//!
//! </div>
//!
//! ```
//! use axum::{Router, extract::Request, http::StatusCode, middleware::{self, Next}, response::{IntoResponse, Response}};
//! use tower_keep::{MemoryStore, Rejection, Session, SessionLayer, operator};
//!
//! /// Your own check: here the name decides.
//! async fn operators_only(session: Session, request: Request, next: Next) -> Result<Response, Rejection> {
//!     let user = session.require_user().await?; // or 401
//!     Ok(if &*user == "root" { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() })
//! }
//!
//! let layer = SessionLayer::new(MemoryStore::new());
//! let page = operator::router(layer.sessions())
//!     .layer(middleware::from_fn(operators_only)) // yours
//!     .layer(layer.clone().require()); // nobody without a session gets as far as that
//! let app: Router = Router::new().nest("/operator", page).layer(layer);
//! # let _ = app;
//! ```
//!
//! It is one path, with everything else in the query, and all its links are relative: it can be mounted anywhere, as deep as you
//! like, and more than once. It is plain HTML with a style sheet of its own: no script, nothing from elsewhere.
//!
//! # What it shows
//! * The health of the store: status, cause, since when, and how long it took to answer; and what this process has
//!   [counted](crate::Stats). These two are there when the store is away.
//! * How many sessions live, on the first page: counted when that takes under a third of a second, else on demand.
//! * Sessions, a page at a time by the cursors of [`Sessions::page`], never all at once; those of one user; one by its id. Of each its user, times, address
//!   and user agent. **No value of a session is ever shown**, and no token: the store does not have any.
//! * Buttons that [revoke](Sessions::revoke) one session or [all of a user](Sessions::revoke_user).
//!
//! Names of users are in the URLs of searches, and session ids too, so they get into the access log of whatever is in front; ids are no credentials.
//!
//! # Requests from other sites
//! What changes something is a POST, and a POST is served only when the browser says that the page itself has sent it: by `Sec-Fetch-Site:
//! same-origin`, or, where a browser does not send that (older ones, and all of them without TLS), by an `Origin` that is the `Host` of
//! the request. A request with neither is refused, so a browser that is too old for both is of no use here, and of no danger. No page can make
//! a browser lie in these headers, which is why there is no token in the forms; nor would one protect from more. A script that posts
//! must say `Sec-Fetch-Site: same-origin`. Where browsers do not send it, a link can show the message that something was done, and nothing
//! was. A proxy in front has to pass `Host` on unchanged where there is no TLS.
//!
//! Nothing is embedded by other pages (`frame-ancestors 'none'`), and what clients say of themselves is only ever text: characters that cannot
//! be seen, or turn others around, are shown by their numbers.

mod answer;
mod asked;
mod html;
mod origin;
mod render;

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
    asked::{Act, Asked, Done, View},
    render::{Content, Live, Page},
};
use crate::{
    observe::ErrorChain,
    session::Session,
    sessions::{SessionInfo, Sessions},
    store::{Cursor, FallbackStats, StoreError},
};

/// How many sessions a page has, about.
const PAGE: usize = 50;
/// How often the store is asked for some before a page is shown with fewer.
const TRIES: usize = 20;
/// How many of a user's sessions are shown.
const MOST_OF_A_USER: usize = 500;
/// How long a page waits for the number of sessions; and when it was asked for.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

/// The page for operators, of these sessions. **Without any authorization**: read the [module's documentation](self).
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

/// The page for operators, with more to show than [`router`] does.
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
#[must_use = "it is mounted by its router"]
pub struct OperatorPage {
    sessions: Sessions,
    fallback: Option<Arc<dyn Fn() -> FallbackStats + Send + Sync>>,
}

impl OperatorPage {
    /// For these sessions.
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions, fallback: None }
    }

    /// Show where a [`Fallback`](crate::store::Fallback) stands. Default: nothing of it.
    pub fn fallback(mut self, stats: impl Fn() -> FallbackStats + Send + Sync + 'static) -> Self {
        self.fallback = Some(Arc::new(stats));
        self
    }

    /// The page. **Without any authorization**: read the [module's documentation](self).
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new().route("/", get(show).post(act)).with_state(self)
    }

    /// How the store does, and `content`.
    async fn page(&self, status: StatusCode, content: Content) -> Response {
        let context = self.sessions.context();
        let page = Page {
            health: self.sessions.health().await,
            stats: self.sessions.stats(),
            fallback: self.fallback.as_ref().map(|stats| stats()),
            now: context.clock.now(),
            content,
        };
        answer::page(status, page.html())
    }

    async fn failed(&self, view: View, error: StoreError) -> Response {
        tracing::warn!(error = %ErrorChain(&error), "operator's page without an answer of the store");
        self.page(StatusCode::SERVICE_UNAVAILABLE, Content::Failed { view }).await
    }

    async fn view(&self, asked: Asked) -> Result<Response, StoreError> {
        let done = asked.done;
        let (status, content) = match asked.view {
            View::All(from) => {
                let (sessions, next) = self.some(from.clone()).await?;
                // Every further page would count the same again.
                let live = match from.as_str() {
                    "" => Some(self.live(if asked.count { LONG } else { SHORT }).await?),
                    _ => None,
                };
                (StatusCode::OK, Content::All { from, sessions, next, live, done })
            }
            View::User(user) => {
                let mut sessions = self.sessions.list(&user).await?;
                let number = sessions.len();
                sessions.truncate(MOST_OF_A_USER);
                (StatusCode::OK, Content::User { user, sessions, number, done })
            }
            View::One(id) => match self.sessions.get(&id).await? {
                Some(session) => (StatusCode::OK, Content::One { session, done }),
                None => {
                    let ended = self.sessions.ended(&id).await?;
                    // What has just been ended here is not missed.
                    let status = if done.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    (status, Content::Gone { id, ended, done })
                }
            },
            View::NoId(text) => (StatusCode::BAD_REQUEST, Content::NoId { text }),
        };
        Ok(self.page(status, content).await)
    }

    /// About a page full of sessions, without any of them twice.
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

    async fn live(&self, patience: Duration) -> Result<Live, StoreError> {
        match timeout(patience, self.sessions.count()).await {
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
    let mut asked = Asked::of(uri.query().unwrap_or_default());
    if origin::is_other(&headers) {
        asked.done = None; // nothing was done: somebody made a link
    }
    if asked.style {
        return answer::style();
    }
    let view = asked.view.clone();
    match page.view(asked).await {
        Ok(response) => response,
        Err(error) => page.failed(view, error).await,
    }
}

async fn act(State(page): State<OperatorPage>, request: Request) -> Response {
    if !origin::is_same(request.headers(), request.uri()) {
        tracing::warn!("operator's page: a request from elsewhere was refused");
        return page.page(StatusCode::FORBIDDEN, Content::NotFromHere).await;
    }
    let asked = Asked::of(request.uri().query().unwrap_or_default());
    let Some(act) = asked.act else {
        return page.page(StatusCode::BAD_REQUEST, Content::NothingToDo).await;
    };
    let from = request.extensions().get().and_then(Session::client_ip);
    match perform(&act, &page.sessions.for_client(from)).await {
        Ok(done) => answer::see(&asked.view.after(done)),
        Err(error) => page.failed(asked.view, error).await,
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
