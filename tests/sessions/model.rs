//! Random requests of random steps, compared with a simple model of a session.
//!
//! The model knows no versions, merges or stores: a session is a user, some values and four times. Responses, cookies and stored
//! records of the service must agree with the model.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    sync::Arc,
    time::Duration,
};

use crate::support::{
    app::App,
    client::{Client, Reply},
    redis_server::RedisServer,
};
use http::StatusCode;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use tower_keep::{
    Clock, ManualClock, MemoryStore, SessionCookie, SessionLayer, Token,
    store::{
        SessionStore,
        redis::{RedisConfig, RedisStore},
    },
};

const COOKIE: &str = "session";
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A random event.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends a request with these steps.
    Request(usize, Vec<Step>),
    /// A client gets the cookies of the other.
    Twin(usize),
    /// One of the clients loses its cookies.
    Forget(usize),
    /// A client reuses an earlier token.
    Replay(usize, prop::sample::Index),
    Advance(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Get(&'static str),
    Contains(&'static str),
    Insert(&'static str, u8),
    Remove(&'static str),
    Take(&'static str),
    Clear,
    Login(&'static str),
    Logout,
    Destroy,
    Rotate,
    Save,
    Lifetime(Lifetime),
    Status(u16),
    User,
    IsNew,
    /// Whether it has an id and a token.
    Stored,
    CreatedAt,
    ExpiresAt,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lifetime {
    idle: u64,
    absolute: u64,
    persistent: bool,
}

/// The default of the crate.
const DEFAULT: Lifetime = Lifetime { idle: 30 * MINUTE, absolute: 24 * HOUR, persistent: false };

fn step() -> impl Strategy<Value = Step> {
    let key = || prop::sample::select(vec!["a", "b"]);
    let lifetime = prop::sample::select(vec![
        DEFAULT,
        Lifetime { persistent: true, ..DEFAULT },
        Lifetime { idle: 20 * MINUTE, absolute: 12 * HOUR, persistent: true },
        Lifetime { idle: 10 * MINUTE, absolute: 20 * MINUTE, persistent: false },
    ]);
    prop_oneof![
        4 => key().prop_map(Step::Get),
        1 => key().prop_map(Step::Contains),
        5 => (key(), 0..3_u8).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => key().prop_map(Step::Remove),
        2 => key().prop_map(Step::Take),
        1 => Just(Step::Clear),
        3 => prop::sample::select(vec!["ana", "bob"]).prop_map(Step::Login),
        1 => Just(Step::Logout),
        1 => Just(Step::Destroy),
        2 => Just(Step::Rotate),
        2 => Just(Step::Save),
        2 => lifetime.prop_map(Step::Lifetime),
        1 => prop::sample::select(vec![201_u16, 404, 500, 503]).prop_map(Step::Status),
        2 => Just(Step::User),
        1 => Just(Step::IsNew),
        1 => Just(Step::Stored),
        1 => Just(Step::CreatedAt),
        1 => Just(Step::ExpiresAt),
    ]
}

fn event(with_clock: bool) -> impl Strategy<Value = Event> {
    let client = || 0..2_usize;
    let advance =
        prop::sample::select(vec![1, SECOND, MINUTE, 4 * MINUTE, 15 * MINUTE, 29 * MINUTE, 31 * MINUTE, 25 * HOUR]);
    prop_oneof![
        12 => (client(), prop::collection::vec(step(), 0..8)).prop_map(|(client, steps)| Event::Request(client, steps)),
        2 => client().prop_map(Event::Twin),
        1 => client().prop_map(Event::Forget),
        1 => (client(), any::<prop::sample::Index>()).prop_map(|(client, which)| Event::Replay(client, which)),
        if with_clock { 3 } else { 0 } => advance.prop_map(Event::Advance),
    ]
}

/// A session that is stored.
#[derive(Clone, Debug)]
struct Stored {
    user: Option<String>,
    values: BTreeMap<String, Value>,
    lifetime: Lifetime,
    created_at: u64,
    ends_at: u64,
    /// Rotated, and the client has not used the new token yet.
    unused: bool,
    /// The token before the rotation. It is refused until the client uses the new one, and ends the session after that.
    previous: Option<String>,
}

impl Stored {
    /// The time to live if it is used at `now`.
    fn full_ttl(&self, now: u64) -> u64 {
        self.lifetime.idle.min((self.created_at + self.lifetime.absolute).saturating_sub(now))
    }

    /// The expiry of a persistent cookie.
    fn kept_until(&self) -> Option<u64> {
        self.lifetime.persistent.then_some(self.created_at + self.lifetime.absolute)
    }
}

/// The expected cookie of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Nothing,
    /// A new token.
    New,
    /// The current token of the client, with a new expiry.
    Again,
    Removed,
}

/// A request in the model.
struct Model {
    now: u64,
    /// The token of the request.
    presented: Option<String>,
    stored: Option<Stored>,
    is_new: bool,
    /// What the handler reads.
    user: Option<String>,
    values: BTreeMap<String, Value>,
    lifetime: Option<Lifetime>,
    /// Pending changes.
    cleared: bool,
    logged_in: bool,
    /// The request uses the token for the first time.
    confirms: bool,
    rotated: bool,
    destroyed: bool,
    told: Told,
    /// The stored session has another token than the request.
    moved: bool,
    /// The session expired before it was saved.
    ended: bool,
}

impl Model {
    /// A lookup extends the session after a tenth of its idle timeout.
    fn begin(now: u64, presented: Option<String>, mut stored: Option<Stored>) -> Self {
        if let Some(stored) = &mut stored {
            let ttl = stored.full_ttl(now);
            if ttl - ttl.min(stored.ends_at - now) >= stored.lifetime.idle / 10 {
                stored.ends_at = now + ttl;
            }
        }
        let mut model = Self {
            now,
            presented,
            stored,
            is_new: false,
            user: None,
            values: BTreeMap::new(),
            lifetime: None,
            cleared: false,
            logged_in: false,
            confirms: false,
            rotated: false,
            destroyed: false,
            told: Told::Nothing,
            moved: false,
            ended: false,
        };
        model.settle();
        model.confirms = model.stored.as_ref().is_some_and(|stored| stored.unused);
        model
    }

    /// The stored session, unless this request has ended it.
    fn live(&self) -> Option<&Stored> {
        self.stored.as_ref().filter(|_| !self.destroyed)
    }

    /// Nothing differs from the stored session.
    fn settle(&mut self) {
        self.user = self.stored.as_ref().and_then(|stored| stored.user.clone());
        self.values = self.stored.as_ref().map(|stored| stored.values.clone()).unwrap_or_default();
        self.lifetime = None;
        (self.cleared, self.logged_in, self.rotated, self.destroyed) = (false, false, false, false);
        self.confirms = false;
    }

    fn destroy(&mut self) {
        self.user = None;
        self.values.clear();
        self.lifetime = None;
        (self.cleared, self.logged_in, self.rotated) = (false, false, false);
        self.destroyed = self.stored.is_some();
        if self.stored.is_none() && self.presented.is_some() {
            // Removes the cookie of an ended session.
            self.told = Told::Removed;
        }
    }

    fn rotate(&mut self) {
        self.rotated |= self.live().is_some();
    }

    /// Performs `step`, and returns the expected result, if there is one.
    fn perform(&mut self, step: &Step) -> Option<Value> {
        Some(match step {
            Step::Get(key) => self.values.get(*key).cloned().unwrap_or_default(),
            Step::Contains(key) => json!(self.values.contains_key(*key)),
            Step::Insert(key, value) => {
                self.values.insert((*key).to_owned(), json!(value));
                Value::Null
            }
            Step::Remove(key) => json!(self.values.remove(*key).is_some()),
            Step::Take(key) => self.values.remove(*key).unwrap_or_default(),
            Step::Clear => {
                self.cleared |= self.live().is_some_and(|stored| !stored.values.is_empty());
                self.values.clear();
                Value::Null
            }
            Step::Login(user) => {
                if self.user.as_deref().is_some_and(|current| current != *user) {
                    // The lifetime that this request has set applies to the new session.
                    let lifetime = self.lifetime;
                    self.destroy();
                    self.lifetime = lifetime;
                }
                self.rotate();
                self.user = Some((*user).to_owned());
                self.logged_in = true;
                Value::Null
            }
            Step::Logout | Step::Destroy => {
                self.destroy();
                Value::Null
            }
            Step::Rotate => {
                self.rotate();
                Value::Null
            }
            Step::Save => {
                self.save();
                Value::Null
            }
            Step::Lifetime(lifetime) => {
                let differs = self.logged_in || self.live().is_none_or(|stored| stored.lifetime != *lifetime);
                if self.lifetime.is_some() || differs {
                    self.lifetime = Some(*lifetime);
                }
                Value::Null
            }
            Step::Status(_) => return None,
            Step::User => json!(self.user),
            Step::IsNew => json!(self.is_new || self.live().is_none()),
            Step::Stored => json!([self.live().is_some(), self.live().is_some()]),
            Step::CreatedAt => json!(self.live().map(|stored| stored.created_at)),
            Step::ExpiresAt => json!(self.live().map(|stored| stored.ends_at)),
        })
    }

    /// Applies the changes of the handler.
    fn save(&mut self) {
        let now = self.now;
        if let Some(live) = self.live() {
            let changed = self.cleared
                || self.logged_in
                || self.rotated
                || self.lifetime.is_some()
                || self.values != live.values
                || self.confirms;
            if changed {
                let mut next = live.clone();
                next.user = self.user.clone();
                next.values = self.values.clone();
                next.lifetime = self.lifetime.unwrap_or(if self.logged_in { DEFAULT } else { next.lifetime });
                if self.logged_in {
                    next.created_at = now;
                }
                let ttl = next.full_ttl(now);
                if ttl == 0 {
                    // Its new lifetime is in the past.
                    self.end();
                    self.settle();
                    self.ended = true;
                    return;
                }
                next.ends_at = now + ttl;
                if self.logged_in {
                    (next.unused, next.previous) = (false, None);
                } else if self.rotated {
                    // The last token that the client used: not one that this request created.
                    next.previous = if self.moved { next.previous } else { self.presented.clone() };
                    next.unused = true;
                } else if self.confirms {
                    (next.unused, next.previous) = (false, None);
                }
                if self.rotated {
                    self.told = Told::New;
                    self.moved = true;
                } else if next.kept_until() != live.kept_until() && self.told != Told::New {
                    self.told = Told::Again;
                }
                self.stored = Some(next);
                self.settle();
            }
        } else if self.user.is_some() || !self.values.is_empty() {
            let lifetime = self.lifetime.unwrap_or(DEFAULT);
            let (user, values) = (self.user.clone(), self.values.clone());
            let mut next =
                Stored { user, values, lifetime, created_at: now, ends_at: 0, unused: false, previous: None };
            next.ends_at = now + next.full_ttl(now);
            self.stored = Some(next);
            self.told = Told::New;
            (self.is_new, self.moved) = (true, true);
            self.settle();
        } else if self.destroyed {
            self.end();
        }
    }

    /// The stored session is gone. A lifetime that was set since applies to the next one.
    fn end(&mut self) {
        self.stored = None;
        self.destroyed = false;
        (self.is_new, self.moved) = (false, false);
        self.told = if self.presented.is_some() { Told::Removed } else { Told::Nothing };
    }
}

/// The store.
enum Place<'a> {
    Memory,
    Redis(&'a RedisServer),
}

/// The service and its clients.
struct World<'a> {
    place: Place<'a>,
    memory: MemoryStore,
    store: Arc<dyn SessionStore>,
    clock: ManualClock,
    app: App,
    clients: [Client; 2],
    /// The live sessions, by token.
    alive: HashMap<String, Stored>,
    /// Tokens that must never be valid again.
    dead: Vec<String>,
    /// The number of expired sessions, which may still use capacity in memory.
    expired: usize,
}

impl<'a> World<'a> {
    async fn new(place: Place<'a>) -> Self {
        let clock = ManualClock::new();
        let memory = MemoryStore::new().clock(clock.clone());
        let store: Arc<dyn SessionStore> = match place {
            Place::Memory => Arc::new(memory.clone()),
            Place::Redis(server) => {
                server.command("FLUSHALL").await;
                let config = RedisConfig::from_url(&server.url()).unwrap();
                let patience = Duration::from_secs(10);
                Arc::new(RedisStore::new(config.timeout(patience).connect_timeout(patience)))
            }
        };
        let layer = SessionLayer::new(store.clone()).cookie(SessionCookie::development()).clock(clock.clone());
        // A rotated token is reuse immediately.
        let layer = layer.rotation_grace(Duration::ZERO);
        let app = App::start(layer).await;
        let clients = [app.client(), app.client()];
        Self { place, memory, store, clock, app, clients, alive: HashMap::new(), dead: Vec::new(), expired: 0 }
    }

    fn now(&self) -> u64 {
        self.clock.now().as_millis()
    }

    async fn happens(&mut self, event: &Event) {
        match event {
            Event::Request(client, steps) => self.request(*client, steps).await,
            Event::Twin(client) => {
                let token = self.clients[1 - client].cookie(COOKIE);
                self.clients[*client].forget_cookies();
                if let Some(token) = token {
                    self.clients[*client].set_cookie(COOKIE, &token);
                }
            }
            Event::Forget(client) => self.clients[*client].forget_cookies(),
            Event::Replay(client, which) if !self.dead.is_empty() => {
                self.clients[*client].set_cookie(COOKIE, &self.dead[which.index(self.dead.len())]);
            }
            Event::Replay(..) => {}
            Event::Advance(millis) => {
                self.advance(*millis);
            }
        }
        self.check_store().await;
    }

    fn advance(&mut self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        let now = self.now();
        let ended: Vec<_> = self.alive.extract_if(|_, stored| stored.ends_at <= now).collect();
        self.expired += ended.len();
        self.dead.extend(ended.into_iter().map(|(token, _)| token));
    }

    async fn request(&mut self, client: usize, steps: &[Step]) {
        let client = &self.clients[client];
        let presented = client.cookie(COOKIE);
        // A request that does not use its session has no effect.
        let unused = steps.iter().all(|step| matches!(step, Step::Status(_)));
        if let Some(token) = presented.as_ref().filter(|token| self.is_superseded(token)) {
            return self.check_superseded(token).await;
        }
        // A rotated token is reuse: its session ends.
        if let Some(copy) = presented.as_ref().filter(|token| !unused && !self.alive.contains_key(*token)) {
            let ended = self.alive.extract_if(|token, _| of_one_session(token, copy)).map(|(token, _)| token);
            self.dead.extend(ended);
        }
        let stored = presented.as_ref().and_then(|token| self.alive.get(token)).cloned();
        let before = stored.clone();
        let mut model = Model::begin(self.now(), presented.clone(), stored);
        if unused {
            model.stored = before;
        }

        let sent: Vec<Value> = steps.iter().flat_map(wire).collect();
        let reply = client.post("/do", &Value::Array(sent)).await;

        let mut expected = Vec::new();
        for (place, step) in steps.iter().enumerate() {
            expected.extend(model.perform(step).map(|result| (place, step, result, model.moved)));
            if model.ended {
                break; // the handler gets the error and stops
            }
        }
        let status = steps.iter().rev().find_map(|step| if let Step::Status(code) = step { Some(*code) } else { None });
        let status = if model.ended { 401 } else { status.unwrap_or(200) };
        assert_eq!(reply.status, StatusCode::from_u16(status).unwrap(), "{reply:?}");
        let results = if model.ended { json!([]) } else { reply.json() };
        let Value::Array(results) = results else { panic!("{reply:?}") };
        let mut results = results.into_iter();
        for (place, step, expected, moved) in expected.into_iter().filter(|_| !model.ended) {
            let result = results.next().expect("a result of every step");
            let what = format!("step {place}: {step:?}");
            match step {
                Step::Stored => {
                    let token = results.next().expect("a result of every step");
                    assert_eq!(json!([!result.is_null(), !token.is_null()]), expected, "{what}");
                    if let Some(token) = token.as_str() {
                        assert_eq!(json!(Token::parse(token).unwrap().id()), result, "{what}");
                        assert_eq!(Some(token) == presented.as_deref(), !moved, "{what}");
                        assert!(!self.dead.iter().any(|dead| dead == token), "{what}");
                    }
                }
                // Redis has its own clock, while that of the layer stands.
                Step::ExpiresAt if matches!(self.place, Place::Redis(_)) && !expected.is_null() => {
                    let (result, expected) = (result.as_u64().unwrap(), expected.as_u64().unwrap());
                    assert!(result <= expected && result + MINUTE > expected, "{what}: {result}, {expected}");
                }
                _ => assert_eq!(result, expected, "{what}"),
            }
        }
        assert_eq!(results.next(), None);

        if !unused && !model.ended {
            model.save();
        }
        let new = self.check_cookie(&reply, &model, presented.as_deref());

        if let Some(token) = &presented
            && self.alive.contains_key(token)
            && (model.moved || model.stored.is_none())
        {
            self.alive.remove(token);
            self.dead.push(token.clone());
        }
        if let Some(stored) = model.stored {
            let token = if model.moved { new } else { presented };
            let token = token.expect("a token");
            assert_eq!(client.cookie(COOKIE).as_ref(), Some(&token), "the client holds the token that lives");
            self.alive.insert(token, stored);
        }
        if model.ended {
            // It has ended, and its capacity is released a moment later.
            self.expired += 1;
            self.advance(1);
        }
    }

    /// Checks the cookie of the response. Returns the new token, if there is one.
    fn check_cookie(&self, reply: &Reply, model: &Model, presented: Option<&str>) -> Option<String> {
        let set_cookies = reply.set_cookies();
        if model.told == Told::Nothing {
            assert!(set_cookies.is_empty(), "no cookie is expected: {reply:?}");
            return None;
        }
        let [set_cookie] = set_cookies.as_slice() else { panic!("{:?} is expected: {reply:?}", model.told) };
        let (pair, attributes) = set_cookie.split_once("; ").unwrap();
        let token = pair.strip_prefix("session=").unwrap();
        if model.told == Told::Removed {
            assert!(token.is_empty() && attributes.contains("Max-Age=0"), "{set_cookie}");
            return None;
        }
        let until = model.stored.as_ref().unwrap().kept_until();
        let max_age = attributes.split("; ").find_map(|attribute| attribute.strip_prefix("Max-Age="));
        let expected = until.map(|until| ((until - model.now) / SECOND).to_string());
        assert_eq!(max_age, expected.as_deref(), "{set_cookie}");
        if model.told == Told::Again {
            assert_eq!(Some(token), presented);
            return None;
        }
        assert_ne!(Some(token), presented);
        assert!(!self.alive.contains_key(token) && !self.dead.iter().any(|dead| dead == token), "a token used twice");
        Some(token.to_owned())
    }

    /// The store has exactly the sessions of the model.
    async fn check_store(&self) {
        for (token, stored) in &self.alive {
            let id = Token::parse(token).unwrap().id();
            let loaded = self.store.load(&id).await.unwrap().live().expect("a live session");
            let record: Value = serde_json::from_slice(&loaded.record.encode()).unwrap();
            assert_eq!(record["data"], json!(stored.values));
            assert_eq!(loaded.record.user(), stored.user.as_deref());
            assert_eq!(loaded.record.created_at().as_millis(), stored.created_at);
            let (left, expected) = (loaded.ttl.unwrap().as_millis() as u64, stored.ends_at - self.now());
            match self.place {
                Place::Memory => assert_eq!(left, expected),
                Place::Redis(_) => assert!(left <= expected && left + MINUTE > expected, "{left}, {expected}"),
            }
        }
        for token in self.dead.iter().filter(|dead| !self.alive.keys().any(|token| of_one_session(token, dead))) {
            let id = Token::parse(token).unwrap().id();
            assert!(self.store.load(&id).await.unwrap().live().is_none(), "a dead session is back");
        }
        match self.place {
            Place::Memory => {
                let (len, alive) = (self.memory.len(), self.alive.len());
                assert!(len >= alive && len <= alive + self.expired, "{len} held, {alive} alive");
            }
            Place::Redis(server) => assert_eq!(server.sessions().await.len(), self.alive.len()),
        }
    }

    /// Whether the session of the token was rotated, and its new token is not used yet.
    fn is_superseded(&self, token: &str) -> bool {
        self.alive.values().any(|stored| stored.previous.as_deref() == Some(token))
    }

    /// A superseded token reads nothing, changes nothing, and ends nothing.
    async fn check_superseded(&self, token: &str) {
        let client = self.app.client();
        client.set_cookie(COOKIE, token);
        let reply = client.post("/do", &json!([["user"], ["get", "a"], ["id"], ["ended"]])).await;
        assert_eq!((reply.json(), reply.set_cookies().len()), (json!([null, null, null, "replaced"]), 0));
        let reply = client.post("/do", &json!([["insert", "a", 9]])).await;
        assert_eq!((reply.status, reply.set_cookies().len()), (StatusCode::UNAUTHORIZED, 0));
    }

    /// Invalid tokens are refused, and not adopted.
    async fn check_the_dead(&self) {
        for token in self.dead.iter().rev().take(4) {
            if self.is_superseded(token) {
                self.check_superseded(token).await;
                continue;
            }
            let thief = self.app.client();
            thief.set_cookie(COOKIE, token);
            let seen = thief.perform(json!([["user"], ["get", "a"], ["get", "b"], ["id"], ["insert", "a", 9]])).await;
            assert_eq!(json!(seen), json!([null, null, null, null, null]));
            let given = thief.cookie(COOKIE).unwrap();
            assert!(given != *token && !self.alive.contains_key(&given));
        }
    }
}

/// Whether one token is a rotation of the other.
fn of_one_session(one: &str, other: &str) -> bool {
    one[..56] == other[..56]
}

/// The step as the service parses it.
fn wire(step: &Step) -> Vec<Value> {
    vec![match step {
        Step::Get(key) => json!(["get", key]),
        Step::Contains(key) => json!(["contains", key]),
        Step::Insert(key, value) => json!(["insert", key, value]),
        Step::Remove(key) => json!(["remove", key]),
        Step::Take(key) => json!(["take", key]),
        Step::Clear => json!(["clear"]),
        Step::Login(user) => json!(["login", user]),
        Step::Logout => json!(["logout"]),
        Step::Destroy => json!(["destroy"]),
        Step::Rotate => json!(["rotate"]),
        Step::Save => json!(["save"]),
        Step::Lifetime(Lifetime { idle, absolute, persistent }) => {
            json!(["lifetime", idle / SECOND, absolute / SECOND, persistent])
        }
        Step::Status(code) => json!(["status", code]),
        Step::User => json!(["user"]),
        Step::IsNew => json!(["is_new"]),
        Step::Stored => return vec![json!(["id"]), json!(["token"])],
        Step::CreatedAt => json!(["created_at"]),
        Step::ExpiresAt => json!(["expires_at"]),
    }]
}

fn runner(cases: u32) -> TestRunner {
    let default = Config::default();
    let cases = if env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    TestRunner::new(Config { cases, failure_persistence: None, ..default })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn sessions_in_memory_follow_the_model() {
    let runtime = runtime();
    let result = runner(256).run(&prop::collection::vec(event(true), 1..24), |events| {
        runtime.block_on(async {
            let mut world = World::new(Place::Memory).await;
            for event in &events {
                world.happens(event).await;
            }
            world.check_the_dead().await;
        });
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn sessions_in_redis_follow_the_model() {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let result = runner(48).run(&prop::collection::vec(event(false), 1..24), |events| {
        runtime.block_on(async {
            let mut world = World::new(Place::Redis(&server)).await;
            for event in &events {
                world.happens(event).await;
            }
            world.check_the_dead().await;
        });
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
