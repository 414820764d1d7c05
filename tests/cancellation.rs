//! Requests that end halfway: cancelled at every point where they wait, failing in the handler, failing in the store before or after
//! it did what it was asked. Whatever happens, the client's session is there exactly once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

mod support;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use serde_json::json;
use support::{app::App, redis_server::RedisServer};
use tower::{Layer, Service, service_fn};
use tower_keep::{
    EndReason, Limits, ManualClock, MemoryStore, Session, SessionCookie, SessionId, SessionLayer, Token, WhenFull,
    store::{
        Created, Cursor, Entry, Found, Health, Loaded, Outcome, Page, SessionStore, StoreError, StoreFuture, Version,
        redis::{RedisConfig, RedisStore},
    },
};

const MINUTE: Duration = Duration::from_secs(60);

/// A store whose every operation waits once before it is done and once after, and one of which may fail.
struct Stepped {
    memory: MemoryStore,
    done: Arc<AtomicUsize>,
    /// Which operation fails, and whether it was done all the same.
    fails: Option<(usize, bool)>,
}

/// Waits once.
async fn step() {
    let mut waited = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

impl Stepped {
    fn run<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        StoreFuture::boxed(async move {
            let number = self.done.fetch_add(1, Ordering::SeqCst);
            step().await;
            let fails = self.fails.filter(|(which, _)| *which == number);
            let answer = if matches!(fails, Some((_, false))) { None } else { Some(operation().await?) };
            step().await;
            match (fails, answer) {
                (None, Some(answer)) => Ok(answer),
                _ => Err(StoreError::Outage("the test says so".into())),
            }
        })
    }
}

impl SessionStore for Stepped {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        self.run(move || self.memory.load(id))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        self.run(move || self.memory.create(id, new, limits))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        self.run(move || self.memory.update(id, expected, new))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        self.run(move || self.memory.touch(id, entry))
    }

    fn end<'a>(&'a self, id: &'a SessionId, expected: Option<Version>, reason: EndReason) -> StoreFuture<'a, Outcome> {
        self.run(move || self.memory.end(id, expected, reason))
    }

    fn consume<'a>(&'a self, id: &'a SessionId, claim: Version) -> StoreFuture<'a, Found> {
        self.run(move || self.memory.consume(id, claim))
    }

    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        self.run(move || self.memory.list(user))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        self.run(move || self.memory.end_user(user, except, reason))
    }

    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        self.run(move || self.memory.scan(from, count))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        self.run(|| self.memory.count())
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        self.memory.health()
    }

    fn name(&self) -> &'static str {
        "stepped"
    }
}

/// What the request does, to a session of whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    /// A visitor logs in.
    Login,
    /// A visitor logs in as somebody who may have one session, and has one.
    LoginAtLimit,
    /// A user logs in again.
    LoginAgain,
    /// A user logs in as another.
    LoginOther,
    Rotate,
    /// The token is old enough to be changed.
    Renew,
    Write,
    /// Saves by itself, and changes more.
    WriteTwice,
    RotateAndWriteTwice,
    Logout,
    LogoutAndWrite,
    Consume,
}

use Flow::*;

const FLOWS: [Flow; 12] = [
    Login,
    LoginAtLimit,
    LoginAgain,
    LoginOther,
    Rotate,
    Renew,
    Write,
    WriteTwice,
    RotateAndWriteTwice,
    Logout,
    LogoutAndWrite,
    Consume,
];

/// How the handler answers.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Fine,
    ServerError,
    Failure,
}

async fn handle(request: Request<()>, flow: Flow, ending: Ending) -> Result<Response<()>, &'static str> {
    let session = request.extensions().get::<Session>().unwrap().clone();
    let unavailable = |_| {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    };
    if let Err(response) = session.load().await.map_err(unavailable) {
        return Ok(response);
    }
    let work = async {
        match flow {
            Login | LoginAtLimit | LoginAgain => session.login("ana")?,
            LoginOther => session.login("ben")?,
            Rotate => session.rotate()?,
            Renew => {}
            Write => session.insert("k", &2)?,
            WriteTwice => {
                session.insert("k", &2)?;
                session.save().await?;
                session.insert("l", &3)?;
            }
            RotateAndWriteTwice => {
                session.rotate()?;
                session.insert("k", &2)?;
                session.save().await?;
                session.insert("l", &3)?;
            }
            Logout => session.logout()?,
            LogoutAndWrite => {
                session.logout()?;
                session.insert("notice", "Goodbye!")?;
            }
            Consume => drop(session.consume().await?),
        }
        Ok::<_, tower_keep::SessionError>(())
    };
    let failed = work.await.is_err();
    let mut response = Response::new(());
    match ending {
        _ if failed => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        Ending::Fine => {}
        Ending::ServerError => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        Ending::Failure => return Err("the handler fails"),
    }
    Ok(response)
}

fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

struct World {
    clock: ManualClock,
    memory: MemoryStore,
    layer: SessionLayer,
    token: Token,
    /// How many operations of the store the request has begun.
    done: Arc<AtomicUsize>,
}

type Answer = Result<Response<()>, &'static str>;

impl World {
    fn new(flow: Flow, fails: Option<(usize, bool)>) -> Self {
        let clock = ManualClock::new();
        let memory = MemoryStore::new().clock(clock.clone());
        let done = Arc::<AtomicUsize>::default();
        let layer = |store: Arc<dyn SessionStore>| {
            SessionLayer::new(store)
                .cookie(SessionCookie::development())
                .clock(clock.clone())
                .rotate_every(10 * MINUTE)
                .limits(Limits::per_user(1, WhenFull::EvictLeastRecentlyUsed))
        };
        let sessions = layer(Arc::new(memory.clone())).sessions();
        let new = match flow {
            Login | LoginAtLimit => tower_keep::NewSession::anonymous(),
            _ => tower_keep::NewSession::of("ana"),
        };
        let token = now(sessions.create(new.insert("k", &1).unwrap())).unwrap();
        if flow == LoginAtLimit {
            now(sessions.create("ana")).unwrap();
        }
        if flow == Renew {
            clock.advance(10 * MINUTE);
        }
        let stepped = Stepped { memory: memory.clone(), done: done.clone(), fails };
        let layer = layer(Arc::new(stepped));
        Self { clock, memory, layer, token, done }
    }

    fn request(&self, flow: Flow, ending: Ending) -> Pin<Box<dyn Future<Output = Answer>>> {
        let mut service = self.layer.layer(service_fn(move |request| handle(request, flow, ending)));
        let cookie = format!("session={}", self.token.expose());
        Box::pin(service.call(Request::builder().header(header::COOKIE, cookie).body(()).unwrap()))
    }

    /// The sessions that are alive, as a look at the store itself shows.
    fn alive(&self) -> Vec<SessionId> {
        let sessions = SessionLayer::new(self.memory.clone()).clock(self.clock.clone()).sessions();
        let (page, next) = now(sessions.page(&Cursor::start(), 1000)).unwrap();
        assert_eq!(next, None);
        page.iter().map(|session| session.id()).collect()
    }

    fn opens(&self, token: &Token) -> bool {
        let sessions = SessionLayer::new(self.memory.clone()).clock(self.clock.clone()).sessions();
        now(sessions.is_valid(token)).unwrap()
    }

    /// What must be true however the request ended.
    fn check(&self, flow: Flow, answer: Option<&Answer>, what: &str) {
        let alive = self.alive();
        let response = answer.and_then(|answer| answer.as_ref().ok());
        let told = response.and_then(|response| response.headers().get(header::SET_COOKIE));
        let told = told.map(|value| value.to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned());
        let given = told.as_ref().filter(|token| !token.is_empty()).map(|token| Token::parse(token).unwrap());
        let fine = response.is_some_and(|response| response.status() != StatusCode::SERVICE_UNAVAILABLE);
        let other_device = usize::from(flow == LoginAtLimit && alive.len() == 2);
        match flow {
            Logout | Consume => {
                assert!(alive.len() <= 1, "{what}: {} are alive", alive.len());
                assert!(!fine || alive.is_empty(), "{what}: it was answered as ended");
            }
            // In between there is none: the end of a session does not wait for the beginning of another.
            LogoutAndWrite => {
                assert!(alive.len() <= 1, "{what}: {} are alive", alive.len());
                assert!(!fine || !self.opens(&self.token), "{what}: it was answered as ended");
            }
            _ => assert_eq!(alive.len() - other_device, 1, "{what}: exactly one is alive"),
        }
        // What the client was given works, and nothing else does then, but within the grace window.
        if let Some(given) = &given {
            assert!(self.opens(given), "{what}: the given token opens nothing");
            assert_eq!(self.opens(&self.token), flow == Renew, "{what}: the token before");
        } else if !matches!(flow, Logout | LogoutAndWrite | Consume) && fine {
            assert!(self.opens(&self.token), "{what}: nothing was given, and the old token is dead");
        }
        if let Some("") = told.as_deref() {
            assert!(!self.opens(&self.token), "{what}: the cookie of a live session was taken away");
        }
        // A client that was told nothing of a renewal can go on.
        if flow == Renew && given.is_none() {
            assert!(self.opens(&self.token), "{what}: within the grace window");
        }
        // Nor do more of its user's sessions live than may.
        let sessions = SessionLayer::new(self.memory.clone()).clock(self.clock.clone()).sessions();
        for user in ["ana", "ben"] {
            assert!(now(sessions.list(user)).unwrap().len() <= 1, "{what}: too many of {user}");
        }
    }
}

#[test]
fn a_request_cancelled_at_any_point_leaves_exactly_one_live_token() {
    for flow in FLOWS {
        for ending in [Ending::Fine, Ending::ServerError, Ending::Failure] {
            let mut cancelled = 0;
            loop {
                let world = World::new(flow, None);
                let mut request = world.request(flow, ending);
                let mut answer = None;
                for _ in 0..cancelled {
                    if let Poll::Ready(ready) = request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                        answer = Some(ready);
                        break;
                    }
                }
                drop(request);
                world.check(flow, answer.as_ref(), &format!("{flow:?}, {ending:?}, dropped after {cancelled} polls"));
                if answer.is_some() {
                    break;
                }
                cancelled += 1;
            }
            // The look-up waits twice, and so does every write. Without a response no token is changed.
            let writes = !matches!(ending, Ending::Failure) || matches!(flow, Write | WriteTwice | Logout | Consume);
            assert!(cancelled >= if writes { 5 } else { 3 }, "{flow:?}, {ending:?}: {cancelled} points");
        }
    }
}

#[test]
fn a_store_that_fails_at_any_point_leaves_exactly_one_live_token() {
    for flow in FLOWS {
        for ending in [Ending::Fine, Ending::ServerError, Ending::Failure] {
            for applied in [false, true] {
                let mut failing = 0;
                loop {
                    let world = World::new(flow, Some((failing, applied)));
                    let answer = now(world.request(flow, ending));
                    let what = format!("{flow:?}, {ending:?}, operation {failing} fails, done: {applied}");
                    world.check(flow, Some(&answer), &what);
                    if world.done.load(Ordering::SeqCst) <= failing {
                        break;
                    }
                    failing += 1;
                }
                assert!(failing > 0);
            }
        }
    }
}

/// Connections that break while a real server waits for a real Redis.
#[tokio::test]
async fn a_dropped_connection_leaves_exactly_one_live_token() {
    let redis = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(patience).connect_timeout(patience);
    let layer = SessionLayer::new(RedisStore::new(config)).cookie(SessionCookie::development());
    let app = App::start(layer.clone()).await;
    for (user, steps) in [
        (None, json!([["login", "ana"]])),
        (None, json!([["insert", "k", 2], ["save"], ["login", "ana"]])),
        (Some("ana"), json!([["rotate"]])),
        (Some("ana"), json!([["rotate"], ["save"], ["insert", "k", 3]])),
        (Some("ana"), json!([["login", "ben"]])),
    ] {
        for polls in 0..40 {
            redis.command("FLUSHALL").await;
            let client = app.client();
            let first = user.map_or(json!(["insert", "k", 1]), |user| json!(["login", user]));
            client.one(first).await;
            {
                // Redis hangs while the request is under way, so that it is cut off wherever it happens to be.
                let mut request = Box::pin(client.post("/do", &steps));
                for _ in 0..polls {
                    if futures_poll(request.as_mut()).await {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            // What was sent to Redis is done by now, or never will be.
            layer.sessions().health().await.unwrap();
            tokio::task::yield_now().await;
            let (alive, _) = layer.sessions().page(&Cursor::start(), 1000).await.unwrap();
            assert_eq!(alive.len(), 1, "{steps} cut off after {polls} polls");
        }
    }
}

/// Polls once; whether it is ready.
async fn futures_poll(mut future: Pin<&mut impl Future>) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

async fn slow_writers_against_a_logout(apps: &[App; 2], layer: &SessionLayer) {
    let client = apps[0].client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..100 {
        let twin = client.at(&apps[n % 2].url());
        let change = match n % 4 {
            0 => json!(["insert", "k", n]),
            1 => json!(["rotate"]),
            2 => json!(["insert", format!("k{n}"), n]),
            _ => json!(["set_metadata", "device", "phone"]),
        };
        writers
            .spawn(async move { twin.post("/do", &json!([["get", "k"], ["gate", format!("slow{n}")], change])).await });
    }
    for n in 0..100 {
        apps[n % 2].reached(&format!("slow{n}")).await;
    }
    for n in 0..100 {
        if n == 50 {
            client.forget_cookies();
        }
        apps[n % 2].open(&format!("slow{n}"));
        if n == 40 {
            layer.sessions().revoke_user("ana").await.unwrap();
        }
    }
    let mut told = 0;
    for reply in writers.join_all().await {
        assert_eq!(reply.status, StatusCode::OK);
        told += usize::from(!reply.set_cookies().is_empty());
    }
    assert!(told <= 11, "only rotations before the end were told, and {told} responses set a cookie");
    assert!(layer.sessions().list("ana").await.unwrap().is_empty());
    assert_eq!(layer.sessions().count().await.unwrap(), 0, "nothing is alive");
}

async fn slow_writers_against_a_logout_that_came_first(apps: &[App; 2], layer: &SessionLayer) {
    let client = apps[0].client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..100 {
        let twin = client.at(&apps[n % 2].url());
        let change = if n % 2 == 0 { json!(["insert", "k", n]) } else { json!(["rotate"]) };
        writers
            .spawn(async move { twin.post("/do", &json!([["get", "k"], ["gate", format!("late{n}")], change])).await });
    }
    for n in 0..100 {
        apps[n % 2].reached(&format!("late{n}")).await;
    }
    client.one(json!(["logout"])).await;
    for n in 0..100 {
        apps[n % 2].open(&format!("late{n}"));
    }
    for reply in writers.join_all().await {
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.set_cookies().is_empty(), "a late response sets no cookie: {reply:?}");
    }
    assert_eq!(layer.sessions().count().await.unwrap(), 0, "nothing is alive");
}

async fn against_a_hundred(stores: [Arc<dyn SessionStore>; 2]) {
    let layers = stores.map(|store| SessionLayer::new(store).cookie(SessionCookie::development()));
    let apps = [App::start(layers[0].clone()).await, App::start(layers[1].clone()).await];
    slow_writers_against_a_logout_that_came_first(&apps, &layers[0]).await;
    slow_writers_against_a_logout(&apps, &layers[0]).await;
}

#[tokio::test]
async fn a_hundred_slow_writers_bring_nothing_back_in_memory() {
    let store = MemoryStore::new();
    against_a_hundred([Arc::new(store.clone()), Arc::new(store)]).await;
}

#[tokio::test]
async fn a_hundred_slow_writers_bring_nothing_back_in_redis() {
    let redis = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(patience).connect_timeout(patience);
    against_a_hundred([Arc::new(RedisStore::new(config.clone())), Arc::new(RedisStore::new(config))]).await;
}
