//! Requests that are interrupted: cancelled at every await point, failing in the handler, failing in the store before or after it
//! applied the operation. In every case, the client keeps exactly one session and can continue.
//!
//! Asserted after every interruption, about the sessions that `Sessions` lists (a pending login is not live):
//!
//! | the request | live sessions of the client |
//! |---|---|
//! | logs in | one: the old one if the old token is still valid, else the new one |
//! | rotates, renews, writes | one: the same id |
//! | logs out, consumes | the old one if the old token is still valid, else none; none after a successful response |
//! | logs out and writes | the old one if the old token is still valid, else at most the new one; the new one after a successful response |
//!
//! If the response had a token, it is valid, and the old one only within the grace window of a renewal. If a successful response had no
//! token, the old one is valid. Without a response, the valid token may be lost with it: then the client logs in again, and no request
//! with the old token ends anything.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::support::{app::App, redis_server::RedisServer};
use http::{Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet, time::timeout};
use tower::{Layer, Service, service_fn};
use tower_keep::{
    Limits, ManualClock, MemoryStore, NewSession, Session, SessionCookie, SessionId, SessionLayer, Sessions, Token,
    WhenFull,
    store::{
        Cursor, Health, Operation, SessionStore, StoreError, StoreFuture, StoreWrapper,
        redis::{RedisConfig, RedisStore},
    },
};

const MINUTE: Duration = Duration::from_secs(60);
/// Only so that a broken test ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// The fault of the store operations, counted from the start of the request. With `done`, the operation is applied before the
/// fault.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// One operation fails.
    Fails {
        at: usize,
        done: bool,
    },
    /// This operation and all later ones fail.
    FailsFrom {
        at: usize,
        done: bool,
    },
    /// One operation hangs.
    Hangs {
        at: usize,
        done: bool,
    },
}

/// A store with faults. Each operation can wait once before it is applied and once after.
struct Stepped {
    inner: Arc<dyn SessionStore>,
    plan: Arc<Plan>,
}

struct Plan {
    steps: bool,
    fault: Mutex<Fault>,
    /// The number of operations that the request has started.
    begun: AtomicUsize,
    hangs: Notify,
    given_up: Notify,
}

impl Plan {
    fn new(steps: bool, fault: Fault) -> Arc<Self> {
        let (begun, hangs, given_up) = (AtomicUsize::new(0), Notify::new(), Notify::new());
        Arc::new(Self { steps, fault: Mutex::new(fault), begun, hangs, given_up })
    }

    /// Restarts the count.
    fn begin(&self, fault: Fault) {
        self.begun.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = fault;
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    async fn step(&self) {
        let mut waited = !self.steps;
        std::future::poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }
}

/// Signals that the hanging operation was cancelled.
struct Hanging<'a>(&'a Plan);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

impl StoreWrapper for Stepped {
    type Inner = dyn SessionStore;

    fn inner(&self) -> &Self::Inner {
        &*self.inner
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            let number = self.plan.begun.fetch_add(1, Ordering::SeqCst);
            let fault = *self.plan.fault.lock().unwrap();
            let (hit, done) = match fault {
                Fault::None => (false, true),
                Fault::Fails { at, done } | Fault::Hangs { at, done } => (number == at, done),
                Fault::FailsFrom { at, done } => (number >= at, done),
            };
            self.plan.step().await;
            let reply = if hit && !done { None } else { Some(operation.run(&*self.inner).await?) };
            if hit && matches!(fault, Fault::Hangs { .. }) {
                let _hanging = Hanging(&self.plan);
                self.plan.hangs.notify_one();
                return std::future::pending().await;
            }
            self.plan.step().await;
            match reply {
                Some(reply) if !hit => Ok(reply),
                _ => Err(StoreError::Outage("the test says so".into())),
            }
        })
    }

    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        self.inner.health()
    }

    fn wrapper_name(&self) -> &'static str {
        "stepped"
    }
}

/// What the request does, and whose session it has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    /// An anonymous client logs in.
    Login,
    /// An anonymous client logs in as a user who has another session, with a limit of one.
    LoginAtLimit,
    /// An anonymous client logs in, saves, and makes more changes.
    LoginAndWriteTwice,
    /// A user logs in again.
    LoginAgain,
    /// A user logs in as another.
    LoginOther,
    Rotate,
    /// The token is due for rotation.
    Renew,
    Write,
    /// Saves explicitly, and makes more changes.
    WriteTwice,
    RotateAndWriteTwice,
    Logout,
    LogoutAndWrite,
    Consume,
    /// Only reads.
    Look,
}

use Flow::*;

const FLOWS: [Flow; 13] = [
    Login,
    LoginAtLimit,
    LoginAndWriteTwice,
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

impl Flow {
    /// Replaces the session by one with another id.
    fn moves(self) -> bool {
        matches!(self, Login | LoginAtLimit | LoginAndWriteTwice | LoginAgain | LoginOther)
    }

    fn ends(self) -> bool {
        matches!(self, Logout | LogoutAndWrite | Consume)
    }

    /// Calls the store only after the handler, and keeps nothing without a response.
    fn needs_a_response(self) -> bool {
        matches!(self, Login | LoginAtLimit | LoginAgain | LoginOther | Rotate | Renew)
    }
}

/// The outcome of the handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Fine,
    ServerError,
    Failure,
}

const ENDINGS: [Ending; 3] = [Ending::Fine, Ending::ServerError, Ending::Failure];

const ONE: Limits = Limits::per_user(1, WhenFull::EvictLeastRecentlyUsed);
const THREE: Limits = Limits::per_user(3, WhenFull::EvictLeastRecentlyUsed);
const ONE_AND_NO_MORE: Limits = Limits::per_user(1, WhenFull::Reject);

async fn handle(request: Request<()>, flow: Flow, ending: Ending) -> Result<Response<()>, &'static str> {
    let session = request.extensions().get::<Session>().unwrap().clone();
    let with_status = |status| {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response
    };
    if session.load().await.is_err() {
        return Ok(with_status(StatusCode::SERVICE_UNAVAILABLE));
    }
    let mut seen = (None, None);
    let work = async {
        match flow {
            Login | LoginAtLimit | LoginAgain => session.login("ana")?,
            LoginAndWriteTwice => {
                session.login("ana")?;
                session.insert("k", &2)?;
                session.save().await?;
                session.insert("l", &3)?;
            }
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
            Look => seen = (session.user()?, session.get::<u64>("k")?),
        }
        Ok::<_, tower_keep::SessionError>(())
    };
    let failed = work.await.is_err();
    let mut response = match ending {
        _ if failed => with_status(StatusCode::SERVICE_UNAVAILABLE),
        Ending::Fine => with_status(StatusCode::OK),
        Ending::ServerError => with_status(StatusCode::INTERNAL_SERVER_ERROR),
        Ending::Failure => return Err("the handler fails"),
    };
    response.extensions_mut().insert(Seen { user: seen.0.map(|user| user.to_string()), k: seen.1 });
    Ok(response)
}

/// The result of a `Look`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    user: Option<String>,
    k: Option<u64>,
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
    /// Reads the real state of the sessions.
    sessions: Sessions,
    layer: SessionLayer,
    /// A service over the same sessions, without faults.
    sound: SessionLayer,
    limits: Limits,
    /// All tokens that the client received.
    token: Token,
    /// Another session of the same user.
    other: Option<SessionId>,
    plan: Arc<Plan>,
}

type Answer = Result<Response<()>, &'static str>;

fn request(layer: &SessionLayer, token: &Token, flow: Flow, ending: Ending) -> Pin<Box<dyn Future<Output = Answer>>> {
    let mut service = layer.layer(service_fn(move |request| handle(request, flow, ending)));
    let cookie = format!("session={}", token.expose());
    Box::pin(service.call(Request::builder().header(header::COOKIE, cookie).body(()).unwrap()))
}

/// The cookie in a response: empty if the response removes it.
fn told(answer: Option<&Answer>) -> Option<String> {
    let response = answer?.as_ref().ok()?;
    let value = response.headers().get(header::SET_COOKIE)?.to_str().unwrap();
    Some(value.split(['=', ';']).nth(1).unwrap().to_owned())
}

fn given(answer: Option<&Answer>) -> Option<Token> {
    told(answer).filter(|token| !token.is_empty()).map(|token| Token::parse(token).unwrap())
}

/// Whether the response was successful.
fn fine(answer: Option<&Answer>) -> bool {
    let response = answer.and_then(|answer| answer.as_ref().ok());
    response.is_some_and(|response| matches!(response.status().as_u16(), 200 | 500))
}

impl World {
    fn new(flow: Flow, limits: Limits, fault: Fault) -> Self {
        let clock = ManualClock::new();
        let memory = MemoryStore::new().clock(clock.clone());
        let layer = |store: Arc<dyn SessionStore>| {
            SessionLayer::new(store)
                .cookie(SessionCookie::development())
                .clock(clock.clone())
                .rotate_every(10 * MINUTE)
                .limits(limits)
        };
        let sound = layer(Arc::new(memory.clone()));
        let sessions = sound.sessions();
        let new = match flow {
            Login | LoginAtLimit | LoginAndWriteTwice => NewSession::anonymous(),
            _ => NewSession::of("ana"),
        };
        let token = now(sessions.create(new.insert("k", &1).unwrap())).unwrap();
        let other = (flow == LoginAtLimit).then(|| now(sessions.create("ana")).unwrap().id());
        if flow == Renew {
            clock.advance(10 * MINUTE);
        }
        let plan = Plan::new(true, fault);
        let layer = layer(Arc::new(Stepped { inner: Arc::new(memory), plan: plan.clone() }));
        Self { clock, sessions, layer, sound, limits, token, other, plan }
    }

    /// The live sessions, without that of the other device.
    fn alive(&self) -> Vec<SessionId> {
        let (page, next) = now(self.sessions.page(&Cursor::start(), 1000)).unwrap();
        assert_eq!(next, None);
        page.iter().map(|session| session.id()).filter(|id| Some(*id) != self.other).collect()
    }

    fn opens(&self, token: &Token) -> bool {
        now(self.sessions.is_valid(token)).unwrap()
    }

    /// A request without a fault.
    fn ask(&self, token: &Token, flow: Flow) -> Answer {
        now(request(&self.sound, token, flow, Ending::Fine))
    }

    /// The invariants after any interruption: see the table above.
    fn check(&self, flow: Flow, ending: Ending, answer: Option<&Answer>, what: &str) {
        let (alive, fine, given) = (self.alive(), fine(answer), given(answer));
        let (old, old_opens) = (self.token.id(), self.opens(&self.token));
        match flow {
            Logout | Consume => {
                assert_eq!(alive, if old_opens { vec![old] } else { vec![] }, "{what}");
                assert!(!fine || alive.is_empty(), "{what}: it was answered as ended");
            }
            // For a moment there may be none: the end of a session does not wait for the start of another.
            LogoutAndWrite if old_opens => {
                assert_eq!(alive, [old], "{what}");
                assert!(!fine, "{what}: it was answered as ended");
            }
            LogoutAndWrite => {
                assert!(!alive.contains(&old) && alive.len() <= 1, "{what}: {alive:?}");
                assert!(!fine || given.is_some(), "{what}: the new session was not given");
            }
            _ if flow.moves() => {
                assert_eq!(alive.len(), 1, "{what}: exactly one is alive");
                assert_eq!(alive[0] == old, old_opens, "{what}: the old token and the old session");
                let user = now(self.sessions.get(&alive[0])).unwrap().unwrap().user().map(str::to_owned);
                let as_before = if matches!(flow, LoginAgain | LoginOther) { Some("ana") } else { None };
                let after = if flow == LoginOther { "ben" } else { "ana" };
                assert_eq!(user.as_deref(), if old_opens { as_before } else { Some(after) }, "{what}");
            }
            _ => assert_eq!(alive, [old], "{what}: exactly the one is alive"),
        }
        // The received token is valid, and no other except within the grace window.
        if let Some(given) = &given {
            assert_eq!(alive, [given.id()], "{what}: the given token is another session's");
            assert!(self.opens(given), "{what}: the given token opens nothing");
            assert_eq!(old_opens, flow == Renew, "{what}: the token before");
        } else if !flow.ends() && fine {
            assert!(old_opens, "{what}: nothing was given, and the old token is dead");
        }
        if told(answer).as_deref() == Some("") {
            assert!(!old_opens, "{what}: the cookie of a live session was taken away");
        }
        // A client without a response to a renewal, or with a failed handler, can continue.
        if flow == Renew && given.is_none() {
            assert!(old_opens, "{what}: within the grace window");
        }
        if ending == Ending::Failure && flow.needs_a_response() {
            assert!(old_opens, "{what}: changed without a response");
        }
        // The lists of users agree, and the limit holds.
        for user in ["ana", "ben"] {
            let listed = now(self.sessions.list(user)).unwrap();
            assert!(listed.len() <= self.limits.sessions().unwrap(), "{what}: too many of {user}");
            let of_client = listed.iter().filter(|session| Some(session.id()) != self.other);
            assert!(of_client.map(|session| session.id()).all(|id| alive.contains(&id)), "{what}");
        }
    }
}

/// Drops the request after this many polls.
fn cancelled(world: &World, flow: Flow, ending: Ending, polls: usize) -> Option<Answer> {
    let mut request = request(&world.layer, &world.token, flow, ending);
    for _ in 0..polls {
        if let Poll::Ready(answer) = request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(answer);
        }
    }
    None
}

/// Cancels a request at every await point. Returns their number.
fn at_every_point(
    flow: Flow,
    ending: Ending,
    limits: Limits,
    look: &mut impl FnMut(&World, Option<&Answer>, &str),
) -> usize {
    let mut polls = 0;
    loop {
        let world = World::new(flow, limits, Fault::None);
        let answer = cancelled(&world, flow, ending, polls);
        look(&world, answer.as_ref(), &format!("{flow:?}, {ending:?}, {limits:?}, dropped after {polls} polls"));
        if answer.is_some() {
            return polls;
        }
        polls += 1;
    }
}

/// Fails each operation of a request in turn, alone and with all later ones. Returns their number.
fn with_every_outage(
    flow: Flow,
    ending: Ending,
    limits: Limits,
    look: &mut impl FnMut(&World, Option<&Answer>, &str),
) -> usize {
    let mut most = 0;
    for fault in [|at, done| Fault::Fails { at, done }, |at, done| Fault::FailsFrom { at, done }]
        as [fn(usize, bool) -> Fault; 2]
    {
        for done in [false, true] {
            for at in 0.. {
                let fault = fault(at, done);
                let world = World::new(flow, limits, fault);
                let answer = now(request(&world.layer, &world.token, flow, ending));
                look(&world, Some(&answer), &format!("{flow:?}, {ending:?}, {limits:?}, {fault:?}"));
                if world.plan.begun() <= at {
                    most = most.max(at);
                    break;
                }
            }
        }
    }
    most
}

/// All interrupted requests.
fn however_it_is_cut_off(flows: &[Flow], limits: Limits, mut look: impl FnMut(&World, Flow, Option<&Answer>, &str)) {
    for &flow in flows {
        for ending in ENDINGS {
            let mut look = |world: &World, answer: Option<&Answer>, what: &str| look(world, flow, answer, what);
            at_every_point(flow, ending, limits, &mut look);
            with_every_outage(flow, ending, limits, &mut look);
        }
    }
}

#[test]
fn a_request_cancelled_at_any_point_leaves_exactly_one_live_token() {
    for limits in [ONE, THREE] {
        for flow in FLOWS {
            for ending in ENDINGS {
                let points = at_every_point(flow, ending, limits, &mut |world, answer, what| {
                    world.check(flow, ending, answer, what);
                });
                // The lookup waits twice, and so does every write. Without a response no token is rotated.
                let writes = ending != Ending::Failure || !flow.needs_a_response();
                assert!(points >= if writes { 5 } else { 3 }, "{flow:?}, {ending:?}: {points} points");
                assert!(points >= if flow.moves() && writes { 7 } else { 0 }, "{flow:?}, {ending:?}: {points} points");
            }
        }
    }
}

#[test]
fn a_store_that_fails_at_any_point_leaves_exactly_one_live_token() {
    for limits in [ONE, THREE] {
        for flow in FLOWS {
            for ending in ENDINGS {
                let operations = with_every_outage(flow, ending, limits, &mut |world, answer, what| {
                    world.check(flow, ending, answer, what);
                });
                let writes = ending != Ending::Failure || !flow.needs_a_response();
                assert!(operations > usize::from(writes), "{flow:?}, {ending:?}: {operations} operations");
            }
        }
    }
}

#[test]
fn after_a_cancelled_request_the_client_continues() {
    however_it_is_cut_off(&FLOWS, THREE, |world, flow, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        let alive = world.alive();
        let session = now(world.sessions.open(&token)).unwrap();
        let answer = world.ask(&token, Look);
        assert!(fine(Some(&answer)), "{what}, and then: {answer:?}");
        assert_eq!(world.alive(), alive, "{what}: a look has changed what is alive");
        let seen = answer.as_ref().unwrap().extensions().get::<Seen>().unwrap().clone();
        match session {
            Some(session) => {
                let k = session.value::<u64>("k").unwrap();
                assert_eq!(seen, Seen { user: session.user().map(str::to_owned), k }, "{what}");
                let wrote = matches!(flow, Write | WriteTwice | RotateAndWriteTwice | LoginAndWriteTwice);
                let anew = matches!(flow, LogoutAndWrite | LoginOther) && session.id() != world.token.id();
                assert!(if anew { k.is_none() } else { k == Some(1) || (wrote && k == Some(2)) }, "{what}: {k:?}");
            }
            None => assert_eq!(seen, Seen::default(), "{what}: who is that?"),
        }
        if flow == Renew {
            // The client gets the successor now, unless it had it before.
            assert!(token != world.token || given(Some(&answer)).is_some(), "{what}: no successor");
            let successor = given(Some(&answer)).unwrap_or(token);
            world.clock.advance(MINUTE);
            assert!(fine(Some(&world.ask(&successor, Look))), "{what}: the successor");
            world.clock.advance(MINUTE);
            assert!(world.opens(&successor) && !world.opens(&world.token), "{what}: after the grace window");
            assert_eq!(world.alive(), [world.token.id()], "{what}");
            return;
        }
        assert_eq!(told(Some(&answer)), None, "{what}: a look has told the client something");
    });
}

/// With a valid or invalid token, the client can log in, and only undeliverable sessions remain.
#[test]
fn a_login_after_a_cancelled_request_leaves_exactly_one_live_token() {
    however_it_is_cut_off(&FLOWS, THREE, |world, _, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        let mut expected = if world.opens(&token) { vec![] } else { world.alive() };
        let answer = world.ask(&token, LoginOther);
        assert!(fine(Some(&answer)), "{what}, and a login: {answer:?}");
        let token = given(Some(&answer)).unwrap_or_else(|| panic!("{what}, and a login: no token"));
        assert!(world.opens(&token), "{what}, and a login");
        expected.push(token.id());
        let mut alive = world.alive();
        alive.sort();
        expected.sort();
        assert_eq!(alive, expected, "{what}, and a login: the client's session is alive, and nothing else");
    });
}

/// A client without a response retries.
#[test]
fn a_cancelled_and_repeated_request_leaves_exactly_one_live_token() {
    for limits in [ONE, THREE] {
        however_it_is_cut_off(&FLOWS, limits, |world, flow, answer, what| {
            let token = given(answer).unwrap_or_else(|| world.token.clone());
            if !world.opens(&token) {
                return; // an applied operation is not undone
            }
            let answer = world.ask(&token, flow);
            assert!(fine(Some(&answer)), "{what}, repeated: {answer:?}");
            let last = given(Some(&answer)).unwrap_or(token);
            let expected = if matches!(flow, Logout | Consume) { vec![] } else { vec![last.id()] };
            assert_eq!(world.alive(), expected, "{what}, repeated: the client's session is alive, and nothing else");
            assert_eq!(world.opens(&last), !expected.is_empty(), "{what}, repeated");
        });
    }
}

/// The end of the session under a cancelled login ends that login too.
#[test]
fn a_logout_after_a_cancelled_request_leaves_no_live_session() {
    however_it_is_cut_off(&FLOWS, THREE, |world, _, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        if world.opens(&token) {
            let answer = world.ask(&token, Logout);
            assert!(fine(Some(&answer)), "{what}, and a logout: {answer:?}");
            assert_eq!(world.alive(), [], "{what}, and a logout: something is alive");
        }
    });
}

/// A revocation does so too.
#[test]
fn a_revocation_after_a_cancelled_request_leaves_no_live_session() {
    however_it_is_cut_off(&FLOWS, THREE, |world, _, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        if world.opens(&token) {
            assert!(now(world.sessions.revoke(&token.id())).unwrap());
            assert_eq!(world.alive(), [], "{what}, and a revocation: something is alive");
        }
    });
}

/// With a strict limit, a cancelled login locks its user out only for a short time.
#[test]
fn a_cancelled_login_counts_toward_limits_for_at_most_half_a_minute() {
    however_it_is_cut_off(
        &[Login, LoginAndWriteTwice, LoginAgain, LoginOther],
        ONE_AND_NO_MORE,
        |world, flow, answer, what| {
            let token = given(answer).unwrap_or_else(|| world.token.clone());
            world.clock.advance(Duration::from_secs(30));
            if world.opens(&token) {
                let answer = world.ask(&token, flow);
                assert!(fine(Some(&answer)), "{what}, repeated: {answer:?}");
            }
        },
    );
}

/// The client disconnects while a real server waits for a real Redis, before or after Redis has applied the write.
#[tokio::test]
async fn a_dropped_connection_leaves_exactly_one_live_token() {
    let redis = RedisServer::start().await;
    let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(PATIENCE).connect_timeout(PATIENCE);
    let plan = Plan::new(false, Fault::None);
    let layer = |store: Arc<dyn SessionStore>| SessionLayer::new(store).cookie(SessionCookie::development());
    let store: Arc<dyn SessionStore> = Arc::new(RedisStore::new(config));
    let sessions = layer(store.clone()).sessions();
    let app = App::start(layer(Arc::new(Stepped { inner: store, plan: plan.clone() }))).await;
    let login = json!(["login", "ana"]);
    for (first, steps, is_moved, ends) in [
        (json!(["insert", "k", 1]), json!([["login", "ana"]]), true, false),
        (json!(["insert", "k", 1]), json!([["insert", "k", 2], ["save"], ["login", "ana"]]), true, false),
        (login.clone(), json!([["login", "ben"]]), true, false),
        (login.clone(), json!([["rotate"]]), false, false),
        (login.clone(), json!([["rotate"], ["save"], ["insert", "k", 3]]), false, false),
        (login.clone(), json!([["insert", "k", 3]]), false, false),
        (login.clone(), json!([["logout"]]), false, true),
        (login.clone(), json!([["consume"]]), false, true),
    ] {
        for done in [false, true] {
            for at in 0.. {
                let what = format!("{steps}, operation {at}, done: {done}");
                redis.command("FLUSHALL").await;
                plan.begin(Fault::None);
                let client = Arc::new(app.client());
                client.one(first.clone()).await;
                let token = Token::parse(client.cookie("session").unwrap()).unwrap();
                plan.begin(Fault::Hangs { at, done });
                let answered = {
                    let (client, steps) = (client.clone(), steps.clone());
                    let mut request = tokio::spawn(async move { client.perform(steps).await });
                    tokio::select! {
                        answer = &mut request => { answer.unwrap(); true }
                        () = plan.hangs.notified() => {
                            request.abort();
                            timeout(PATIENCE, plan.given_up.notified()).await.expect("the server notices");
                            false
                        }
                    }
                };
                plan.begin(Fault::None);
                let (page, _) = sessions.page(&Cursor::start(), 1000).await.unwrap();
                let alive: Vec<_> = page.iter().map(|session| session.id()).collect();
                let opens = sessions.is_valid(&token).await.unwrap();
                assert_eq!(alive.len(), usize::from(!ends || opens), "{what}: {alive:?}");
                assert_eq!(alive.contains(&token.id()), opens || !(is_moved || ends), "{what}");
                // The client is served as its user or as anonymous, and that changes nothing.
                let token = client.cookie("session").map(|token| Token::parse(token).unwrap());
                let user = match &token {
                    Some(token) => sessions.open(token).await.unwrap(),
                    None => None,
                };
                let user = user.and_then(|session| session.user().map(str::to_owned));
                assert_eq!(client.one(json!(["user"])).await, user.map_or(Value::Null, Value::String), "{what}");
                let (page, _) = sessions.page(&Cursor::start(), 1000).await.unwrap();
                assert_eq!(page.iter().map(|session| session.id()).collect::<Vec<_>>(), alive, "{what}");
                if answered {
                    assert!(at >= 2, "{steps}: {at} operations");
                    assert_eq!(token.is_some_and(|token| alive.contains(&token.id())), !ends, "{what}");
                    break;
                }
            }
        }
    }
}

async fn slow_writers_against_a_revocation_among_them(apps: &[App; 2], layer: &SessionLayer) {
    let client = apps[0].client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let mut writers = JoinSet::new();
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

/// Concurrent writers without synchronization: some save before the logout, some after, some concurrently.
async fn slow_writers_against_a_logout_among_them(apps: &[App; 2], layer: &SessionLayer) {
    let client = apps[0].client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let mut writers = JoinSet::new();
    for n in 0..100 {
        let twin = client.at(&apps[n % 2].url());
        let change = match n % 3 {
            0 => json!(["insert", "k", n]),
            1 => json!(["insert", format!("k{n}"), n]),
            _ => json!(["set_metadata", "device", "phone"]),
        };
        writers.spawn(
            async move { twin.post("/do", &json!([["get", "k"], ["gate", format!("among{n}")], change])).await },
        );
    }
    for n in 0..100 {
        apps[n % 2].reached(&format!("among{n}")).await;
    }
    let logout = async { client.one(json!(["logout"])).await };
    let open = async {
        for n in 0..100 {
            apps[n % 2].open(&format!("among{n}"));
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(open, logout);
    for reply in writers.join_all().await {
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.set_cookies().is_empty(), "no writer sets a cookie: {reply:?}");
    }
    assert_eq!(client.cookie("session"), None);
    assert!(layer.sessions().list("ana").await.unwrap().is_empty());
    assert_eq!(layer.sessions().count().await.unwrap(), 0, "nothing is alive");
}

async fn slow_writers_against_a_logout_that_came_first(apps: &[App; 2], layer: &SessionLayer) {
    let client = apps[0].client();
    client.perform(json!([["login", "ana"], ["insert", "k", 1]])).await;
    let mut writers = JoinSet::new();
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
    slow_writers_against_a_logout_among_them(&apps, &layers[0]).await;
    slow_writers_against_a_revocation_among_them(&apps, &layers[0]).await;
}

#[tokio::test]
async fn a_hundred_slow_writers_resurrect_nothing_in_memory() {
    let store = MemoryStore::new();
    against_a_hundred([Arc::new(store.clone()), Arc::new(store)]).await;
}

#[tokio::test]
async fn a_hundred_slow_writers_resurrect_nothing_in_redis() {
    let redis = RedisServer::start().await;
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(patience).connect_timeout(patience);
    against_a_hundred([Arc::new(RedisStore::new(config.clone())), Arc::new(RedisStore::new(config))]).await;
}
