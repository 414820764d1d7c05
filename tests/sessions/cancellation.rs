//! Requests that end halfway: cancelled at every point where they wait, failing in the handler, failing in the store before or after
//! it did what it was asked. Whatever happens, the client's session is there exactly once, and the client can go on.
//!
//! What is asserted after every cut, of the sessions that `Sessions` shows (one that waits for another to end is not alive):
//!
//! | the request | the client's sessions that are alive |
//! |---|---|
//! | logs in, as another id | one: the old one if the old token opens it, else the new one |
//! | logs in again, rotates, renews, writes | one: the same id |
//! | logs out, consumes | the old one if the old token opens it, else none; none if it was answered |
//! | logs out and writes | the old one if the old token opens it, else at most the new one; the new one if it was answered |
//!
//! If a token was given, it opens that session, and the old one does only within the grace window of a renewal. If none was, and the
//! answer was no failure, the old one does. Where nobody answers, what opens it may be a token that went down with the response:
//! then the client logs in again, and nothing that it sends with the old one ends anything.

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
/// Of a wait that ends by itself: only there so that a broken test ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to the operations of a store, counted from the beginning of the request; those that are `done` are done
/// before it happens.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// One is not answered.
    Fails {
        at: usize,
        done: bool,
    },
    /// Neither is any after it.
    FailsFrom {
        at: usize,
        done: bool,
    },
    /// One never ends.
    Hangs {
        at: usize,
        done: bool,
    },
}

/// A store that fails as it is told. Each operation can be made to wait once before it is done and once after.
struct Stepped {
    inner: Arc<dyn SessionStore>,
    plan: Arc<Plan>,
}

struct Plan {
    steps: bool,
    fault: Mutex<Fault>,
    /// How many operations the request has begun.
    begun: AtomicUsize,
    hangs: Notify,
    given_up: Notify,
}

impl Plan {
    fn new(steps: bool, fault: Fault) -> Arc<Self> {
        let (begun, hangs, given_up) = (AtomicUsize::new(0), Notify::new(), Notify::new());
        Arc::new(Self { steps, fault: Mutex::new(fault), begun, hangs, given_up })
    }

    /// Counts from here.
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

/// Tells that the operation which hangs was given up.
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

/// What the request does, to a session of whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    /// A visitor logs in.
    Login,
    /// A visitor logs in as somebody who has another session, and with a limit of one may have no more.
    LoginAtLimit,
    /// A visitor logs in, saves, and changes more.
    LoginAndWriteTwice,
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
    /// Only looks: who is there, and what there is.
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
    /// Carries the session on under another id.
    fn moves(self) -> bool {
        matches!(self, Login | LoginAtLimit | LoginAndWriteTwice | LoginOther)
    }

    /// Ends the session.
    fn ends(self) -> bool {
        matches!(self, Logout | LogoutAndWrite | Consume)
    }

    /// Does nothing to the store before the handler has returned, and nothing that is worth keeping without a response.
    fn needs_a_response(self) -> bool {
        matches!(self, Login | LoginAtLimit | LoginAgain | LoginOther | Rotate | Renew)
    }
}

/// How the handler answers.
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

/// What a `Look` saw.
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
    /// Sees the sessions as they are.
    sessions: Sessions,
    layer: SessionLayer,
    /// Over the same sessions, without faults.
    sound: SessionLayer,
    limits: Limits,
    /// What the client has had.
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

/// The cookie that a response sets: empty if it takes it away.
fn told(answer: Option<&Answer>) -> Option<String> {
    let response = answer?.as_ref().ok()?;
    let value = response.headers().get(header::SET_COOKIE)?.to_str().unwrap();
    Some(value.split(['=', ';']).nth(1).unwrap().to_owned())
}

fn given(answer: Option<&Answer>) -> Option<Token> {
    told(answer).filter(|token| !token.is_empty()).map(|token| Token::parse(token).unwrap())
}

/// Whether the client was answered that it was done.
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

    /// The sessions that are alive, but for that of the other device.
    fn alive(&self) -> Vec<SessionId> {
        let (page, next) = now(self.sessions.page(&Cursor::start(), 1000)).unwrap();
        assert_eq!(next, None);
        page.iter().map(|session| session.id()).filter(|id| Some(*id) != self.other).collect()
    }

    fn opens(&self, token: &Token) -> bool {
        now(self.sessions.is_valid(token)).unwrap()
    }

    /// A request that nothing happens to.
    fn ask(&self, token: &Token, flow: Flow) -> Answer {
        now(request(&self.sound, token, flow, Ending::Fine))
    }

    /// What must be true however the request ended: see the head of this file.
    fn check(&self, flow: Flow, ending: Ending, answer: Option<&Answer>, what: &str) {
        let (alive, fine, given) = (self.alive(), fine(answer), given(answer));
        let (old, old_opens) = (self.token.id(), self.opens(&self.token));
        match flow {
            Logout | Consume => {
                assert_eq!(alive, if old_opens { vec![old] } else { vec![] }, "{what}");
                assert!(!fine || alive.is_empty(), "{what}: it was answered as ended");
            }
            // In between there is none: the end of a session does not wait for the beginning of another.
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
                let as_before = if flow == LoginOther { Some("ana") } else { None };
                let after = if flow == LoginOther { "ben" } else { "ana" };
                assert_eq!(user.as_deref(), if old_opens { as_before } else { Some(after) }, "{what}");
            }
            _ => assert_eq!(alive, [old], "{what}: exactly the one is alive"),
        }
        // What the client was given works, and nothing else does then, but within the grace window.
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
        // A client that was told nothing of a renewal can go on; so can one whose handler failed.
        if flow == Renew && given.is_none() {
            assert!(old_opens, "{what}: within the grace window");
        }
        if ending == Ending::Failure && flow.needs_a_response() {
            assert!(old_opens, "{what}: changed without a response");
        }
        // The lists of users show the same, and no more than may be.
        for user in ["ana", "ben"] {
            let listed = now(self.sessions.list(user)).unwrap();
            assert!(listed.len() <= self.limits.sessions().unwrap(), "{what}: too many of {user}");
            let of_client = listed.iter().filter(|session| Some(session.id()) != self.other);
            assert!(of_client.map(|session| session.id()).all(|id| alive.contains(&id)), "{what}");
        }
    }
}

/// Drops the request after so many polls.
fn cancelled(world: &World, flow: Flow, ending: Ending, polls: usize) -> Option<Answer> {
    let mut request = request(&world.layer, &world.token, flow, ending);
    for _ in 0..polls {
        if let Poll::Ready(answer) = request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(answer);
        }
    }
    None
}

/// A request cancelled at every point; returns how many there are.
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

/// A request whose every operation fails in turn, by itself and with all that follow; returns how many there are.
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

/// Every request that is cut off in any way.
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
                // The look-up waits twice, and so does every write. Without a response no token is changed.
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
fn after_a_request_was_cut_off_the_client_goes_on() {
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
            // It is given the successor now, unless it was before.
            assert!(token != world.token || given(Some(&answer)).is_some(), "{what}: no successor");
            let successor = given(Some(&answer)).unwrap_or(token);
            world.clock.advance(MINUTE);
            assert!(world.opens(&successor) && !world.opens(&world.token), "{what}: after the grace window");
            assert_eq!(world.alive(), [world.token.id()], "{what}");
            return;
        }
        assert_eq!(told(Some(&answer)), None, "{what}: a look has told the client something");
    });
}

/// Whether the client's token opens anything or not, it can log in with it, and nothing but what it cannot be told of stays.
#[test]
fn a_login_after_a_request_was_cut_off_leaves_exactly_one_live_token() {
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

/// Whoever was not answered tries again.
#[test]
fn a_request_cut_off_and_repeated_leaves_exactly_one_live_token() {
    for limits in [ONE, THREE] {
        however_it_is_cut_off(&FLOWS, limits, |world, flow, answer, what| {
            let token = given(answer).unwrap_or_else(|| world.token.clone());
            if !world.opens(&token) {
                return; // what was done is not undone, and nobody can be told
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

/// A login that was cut off is not carried on by whatever ends the session it was begun with.
#[test]
fn a_logout_after_a_request_was_cut_off_leaves_nothing_alive() {
    however_it_is_cut_off(&FLOWS, THREE, |world, _, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        if world.opens(&token) {
            let answer = world.ask(&token, Logout);
            assert!(fine(Some(&answer)), "{what}, and a logout: {answer:?}");
            assert_eq!(world.alive(), [], "{what}, and a logout: something is alive");
        }
    });
}

/// Nor by a revocation.
#[test]
fn a_revocation_after_a_request_was_cut_off_leaves_nothing_alive() {
    however_it_is_cut_off(&FLOWS, THREE, |world, _, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        if world.opens(&token) {
            assert!(now(world.sessions.revoke(&token.id())).unwrap());
            assert_eq!(world.alive(), [], "{what}, and a revocation: something is alive");
        }
    });
}

/// Where one session too many is refused, a login that was cut off does not lock its user out for long.
#[test]
fn a_login_cut_off_takes_up_a_place_for_half_a_minute_at_most() {
    however_it_is_cut_off(&[Login, LoginAndWriteTwice, LoginOther], ONE_AND_NO_MORE, |world, flow, answer, what| {
        let token = given(answer).unwrap_or_else(|| world.token.clone());
        world.clock.advance(Duration::from_secs(30));
        if world.opens(&token) {
            let answer = world.ask(&token, flow);
            assert!(fine(Some(&answer)), "{what}, repeated: {answer:?}");
        }
    });
}

/// A user agent goes away while a real server waits for a real Redis, which has done what it was asked, or is about to.
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
                // With the cookie that it has, it is served as who it is, or as nobody, and that changes nothing.
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

/// Nobody waits for anybody: some are saved before it, some after, some at the same time.
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
