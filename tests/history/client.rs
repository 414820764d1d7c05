//! The clients, and the recorded events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    join,
    time::{sleep, timeout},
};
use tower_keep::{HealthStatus, Sessions, Token, store::Cursor};

use super::{
    CLIENTS,
    server::{self, Server},
    support::client::{Client, Reply},
};

/// Users whose sessions every client ends. In addition, each client has its own users, one after the other, whose sessions no other client
/// ends.
pub const USERS: u64 = 3;
/// The number of its own keys that a client writes in turn.
const KEYS: u64 = 8;
/// The end of an event without a response: it may be applied at any time.
const NEVER: u64 = u64::MAX;

/// An operation of a client: its start and end by one common clock, and the operation.
#[derive(Clone, Debug)]
pub struct Event {
    pub client: u64,
    pub begun: u64,
    pub ended: u64,
    pub what: What,
    pub answer: Answer,
    /// The index of the returned token among those of the session.
    pub given: Option<usize>,
}

/// Sessions by id, and tokens by their index in the session.
#[derive(Clone, Debug)]
pub enum What {
    Login {
        user: String,
    },
    /// Over a session of the same user, which the new one replaces.
    LoginAgain {
        user: String,
        session: String,
    },
    Write {
        session: String,
        token: usize,
        key: String,
        value: u64,
    },
    Read {
        session: String,
        token: usize,
    },
    Rotate {
        session: String,
        token: usize,
    },
    Logout {
        session: String,
        token: usize,
    },
    Revoke {
        session: String,
    },
    RevokeUser {
        user: String,
    },
    List {
        user: String,
    },
    Use {
        ticket: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Done,
    /// Of a login.
    Session(String),
    /// The value that the handler of a write read before.
    Instead(Option<u64>),
    Values(BTreeMap<String, u64>),
    Listed(Vec<String>),
    Won(bool),
    /// The session is unknown, or the token is invalid.
    Refused,
    /// It is unknown whether it was applied.
    Unknown,
}

impl Event {
    /// Whether the client got an acknowledgment.
    pub fn is_acknowledged(&self) -> bool {
        !matches!(self.answer, Answer::Refused | Answer::Unknown)
    }
}

/// A session as its clients know it.
#[derive(Clone, Debug)]
pub struct Known {
    pub user: String,
    /// All tokens, newest last.
    pub tokens: Vec<String>,
}

#[derive(Default)]
pub struct History {
    clock: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Clone, Default)]
struct Book {
    events: Vec<Event>,
    sessions: BTreeMap<String, Known>,
    /// The sessions by user that may be live and are used.
    current: BTreeMap<String, BTreeSet<String>>,
    tickets: Vec<String>,
}

/// The final state.
#[derive(Clone, Default)]
pub struct End {
    pub sessions: BTreeMap<String, Known>,
    /// The indices of valid tokens by session.
    pub open: BTreeMap<String, Vec<usize>>,
    pub values: BTreeMap<String, BTreeMap<String, u64>>,
    /// Listed sessions by user.
    pub listed: BTreeMap<String, BTreeSet<String>>,
    /// Sessions by user in a scan.
    pub scanned: BTreeMap<String, BTreeSet<String>>,
    /// The tickets that can still be used.
    pub tickets: Vec<bool>,
    /// The number of conflicts in which servers reported an overwritten value.
    pub overwrites: u64,
}

/// splitmix64
pub struct Random(u64);

impl Random {
    pub fn new(seed: &[u64]) -> Self {
        let mut random = Self(0);
        for part in seed {
            random.0 = random.next() ^ part;
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub fn events(&self) -> Vec<Event> {
        self.book().events.clone()
    }

    /// Reads everything once more at the end.
    pub async fn end(&self, redis: &str, overwrites: u64) -> End {
        let sessions: Sessions = server::layer(redis, true).sessions();
        while sessions.health().await.status != HealthStatus::Up {
            sleep(Duration::from_millis(20)).await;
        }
        let Book { sessions: known, tickets, .. } = self.book().clone();
        let mut end = End { overwrites, ..End::default() };
        for (id, known) in &known {
            for (place, token) in known.tokens.iter().enumerate() {
                if let Some(session) = sessions.open(&Token::parse(token).unwrap()).await.unwrap() {
                    end.open.entry(id.clone()).or_default().push(place);
                    let keys = (0..CLIENTS).flat_map(|n| (0..KEYS).map(move |key| format!("own{n}.{key}")));
                    let held = keys.chain(["shared".to_owned()]);
                    let held = held.filter_map(|key| Some((key.clone(), session.value::<u64>(&*key).unwrap()?)));
                    end.values.insert(id.clone(), held.collect());
                }
            }
        }
        let mut from = Some(Cursor::start());
        while let Some(place) = from {
            let page;
            (page, from) = sessions.page(&place, 500).await.unwrap();
            for session in page {
                if let Some(user) = session.user() {
                    end.scanned.entry(user.to_owned()).or_default().insert(session.id().to_string());
                }
            }
        }
        // Some were created by a server without a response to the client.
        let users: BTreeSet<_> = known.values().map(|known| &known.user).chain(end.scanned.keys()).cloned().collect();
        for user in users {
            let ids = sessions.list(&user).await.unwrap().iter().map(|session| session.id().to_string()).collect();
            end.listed.insert(user, ids);
        }
        for ticket in tickets {
            end.tickets.push(sessions.is_valid(&Token::parse(ticket).unwrap()).await.unwrap());
        }
        end.sessions = known;
        end
    }
}

/// The number of conflicts that the servers reported.
pub async fn overwrites(servers: &[Server]) -> u64 {
    let mut sum = 0;
    for server in servers {
        sum += Client::new(&server.url).get("/overwrites").await.json().as_u64().unwrap();
    }
    sum
}

struct Actor<'a> {
    number: u64,
    servers: Vec<Client>,
    history: &'a History,
    counter: AtomicU64,
}

/// A session and one of its tokens.
#[derive(Clone)]
struct Held {
    session: String,
    place: usize,
    token: String,
}

/// A request and its start.
struct Asked {
    begun: u64,
    /// `None` if the client did not wait for the response.
    reply: Option<Reply>,
}

/// `pause` is the time between two operations of a client.
pub async fn run(number: u64, seed: u64, operations: usize, pause: Duration, servers: &[Server], history: &History) {
    let servers = servers.iter().map(|server| Client::new(&server.url)).collect();
    let actor = Actor { number, servers, history, counter: AtomicU64::new(0) };
    for operation in 0..operations {
        // The kind of an operation does not depend on the results of earlier ones.
        let calm = format!("calm{number}.{}", operation / 200);
        actor.act(&calm, &mut Random::new(&[seed, number, operation as u64])).await;
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

impl Actor<'_> {
    async fn act(&self, calm: &str, random: &mut Random) {
        let some = format!("user{}", random.below(USERS));
        let is_calm = random.below(4) == 0;
        let user = if is_calm { calm } else { &some };
        let (kind, pick) = (random.below(100), random.below(1 << 32));
        let Some(held) = self.held(user, pick, false) else { return self.login(user, None, random).await };
        match kind {
            0..6 if !is_calm => self.login(user, None, random).await,
            6..9 if !is_calm => self.login_from_a_visit(user, random).await,
            9..12 => self.login_again(user, held, random).await,
            12..36 => self.write(held, 0, random).await,
            36..42 => {
                // Two concurrent requests of one session.
                let (mut one, mut two) = (Random::new(&[random.next()]), Random::new(&[random.next()]));
                let pause = random.below(4);
                join!(self.write(held.clone(), pause, &mut one), self.write(held, pause, &mut two));
            }
            42..62 => self.read(held, random).await,
            62..66 => {
                let old = self.held(user, pick, true).unwrap_or(held);
                self.read(old, random).await;
            }
            66..72 => self.rotate(held, random).await,
            72..75 if !is_calm => {
                self.log_out(&held, random).await;
                self.read(held, random).await;
            }
            75..78 if !is_calm => {
                self.revoke(&held, random).await;
                self.read(held, random).await;
            }
            78..83 if !is_calm => {
                // During a concurrent write, probably on another server.
                let (mut one, mut two) = (Random::new(&[random.next()]), Random::new(&[random.next()]));
                let (pause, logs_out) = (random.below(6), random.below(2) == 0);
                let end = async {
                    sleep(Duration::from_millis(pause / 2)).await;
                    if logs_out { self.log_out(&held, &mut two).await } else { self.revoke(&held, &mut two).await }
                };
                join!(self.write(held.clone(), pause, &mut one), end);
                self.read(held.clone(), random).await;
            }
            83..84 if !is_calm => {
                self.revoke_user(user, random).await;
                self.read(held, random).await;
            }
            84..91 => self.list(user, random).await,
            91..96 => self.ticket(random).await,
            _ => self.use_latest_ticket(random).await,
        }
    }

    /// A session of `user` that may be live, with its latest token or an earlier one.
    fn held(&self, user: &str, pick: u64, old: bool) -> Option<Held> {
        let book = self.history.book();
        let current = book.current.get(user).filter(|current| !current.is_empty())?;
        let session = current.iter().nth(pick as usize % current.len())?;
        let tokens = &book.sessions.get(session)?.tokens;
        let place = if old { (tokens.len() - 1) / 2 } else { tokens.len() - 1 };
        Some(Held { session: session.clone(), place, token: tokens[place].clone() })
    }

    async fn ask(&self, method: Method, path: &str, token: Option<&str>, random: &mut Random) -> Asked {
        let server = &self.servers[random.below(self.servers.len() as u64) as usize];
        let cookie = token.map(|token| format!("session={token}")).unwrap_or_default();
        let hangs_up = random.below(30) == 0;
        let patience = Duration::from_micros(random.below(4000));
        let begun = self.history.tick();
        let headers = [("cookie", cookie.as_str())];
        let reply = server.request(method, path, &headers, Bytes::new());
        let reply = if hangs_up { timeout(patience, reply).await.ok() } else { Some(reply.await) };
        if reply.as_ref().is_some_and(|reply| reply.status == StatusCode::SERVICE_UNAVAILABLE) {
            sleep(Duration::from_millis(10)).await; // so that an outage does not use up all operations
        }
        Asked { begun, reply }
    }

    /// Records the event, and publishes the new token to the other clients.
    fn write_down(&self, asked: Asked, what: What, answer: impl FnOnce(&Value) -> Answer) {
        let mut answer = match &asked.reply {
            None => Answer::Unknown,
            Some(reply) => match reply.status {
                StatusCode::OK => answer(&reply.json()),
                StatusCode::UNAUTHORIZED => Answer::Refused,
                StatusCode::SERVICE_UNAVAILABLE => Answer::Unknown,
                status => panic!("{what:?}: {status}: {reply:?}"),
            },
        };
        let token = asked.reply.as_ref().and_then(given);
        let id = token.as_ref().map(|token| Token::parse(token).unwrap().id().to_string());
        let logs_in = |what: &What| matches!(what, What::Login { .. } | What::LoginAgain { .. });
        if let (true, Answer::Unknown, Some(id)) = (logs_in(&what), &answer, &id) {
            answer = Answer::Session(id.clone()); // an error with a token
        }
        let mut book = self.history.book();
        let ended = if asked.reply.is_some() { self.history.tick() } else { NEVER };
        if let (What::Login { user } | What::LoginAgain { user, .. }, Answer::Session(id)) = (&what, &answer) {
            let known = Known { user: user.clone(), tokens: Vec::new() };
            book.sessions.insert(id.clone(), known);
            book.current.entry(user.clone()).or_default().insert(id.clone());
        }
        let mut place = None;
        if let (Some(token), Some(id)) = (token, id) {
            let tokens = &mut book.sessions.get_mut(&id).unwrap_or_else(|| panic!("{what:?}: {id} is unknown")).tokens;
            place = Some(tokens.iter().position(|known| *known == token).unwrap_or_else(|| {
                tokens.push(token);
                tokens.len() - 1
            }));
        }
        if let Answer::Session(id) = &answer {
            assert!(place.is_some(), "a login without a token: {id}");
        }
        book.events.push(Event { client: self.number, begun: asked.begun, ended, what, answer, given: place });
    }

    /// Stops using a session.
    fn leave(&self, session: &str) {
        let mut book = self.history.book();
        for current in book.current.values_mut() {
            current.remove(session);
        }
    }

    async fn login(&self, user: &str, token: Option<&str>, random: &mut Random) {
        let asked = self.ask(Method::POST, &format!("/login/{user}"), token, random).await;
        self.write_down(asked, What::Login { user: user.to_owned() }, |value| Answer::Session(id(value)));
    }

    /// Over an anonymous session, which the login replaces.
    async fn login_from_a_visit(&self, user: &str, random: &mut Random) {
        let asked = self.ask(Method::POST, "/visit", None, random).await;
        let token = asked.reply.as_ref().and_then(given);
        self.login(user, token.as_deref(), random).await;
    }

    async fn login_again(&self, user: &str, held: Held, random: &mut Random) {
        let asked = self.ask(Method::POST, &format!("/relogin/{user}"), Some(&held.token), random).await;
        let what = What::LoginAgain { user: user.to_owned(), session: held.session.clone() };
        if asked.reply.as_ref().and_then(given).is_some() && random.below(4) > 0 {
            self.leave(&held.session); // usually; sometimes the old token is used again
        }
        self.write_down(asked, what, |value| Answer::Session(id(value)));
    }

    async fn write(&self, held: Held, pause: u64, random: &mut Random) {
        let Held { session, place, token } = held;
        let count = self.counter.fetch_add(1, Ordering::SeqCst);
        let value = (self.number + 1) * 1_000_000_000 + count;
        let own = format!("own{}.{}", self.number, count % KEYS);
        let key = if random.below(3) == 0 { "shared".to_owned() } else { own };
        let path = format!("/write/{key}/{value}/{pause}");
        let asked = self.ask(Method::POST, &path, Some(&token), random).await;
        self.leave_if_refused(&session, &asked, random);
        let what = What::Write { session, token: place, key, value };
        self.write_down(asked, what, |value| Answer::Instead(value.as_u64()));
    }

    async fn read(&self, held: Held, random: &mut Random) {
        let Held { session, place, token } = held;
        let asked = self.ask(Method::GET, "/read", Some(&token), random).await;
        self.leave_if_refused(&session, &asked, random);
        let expected = session.clone();
        self.write_down(asked, What::Read { session, token: place }, |value| {
            assert_eq!(id(value), expected, "another's session");
            Answer::Values(serde_json::from_value(value["values"].clone()).unwrap())
        });
    }

    /// After a refusal, usually stops using the session.
    fn leave_if_refused(&self, session: &str, asked: &Asked, random: &mut Random) {
        let refused = asked.reply.as_ref().is_some_and(|reply| reply.status == StatusCode::UNAUTHORIZED);
        if refused && random.below(3) > 0 {
            self.leave(session);
        }
    }

    async fn rotate(&self, held: Held, random: &mut Random) {
        let Held { session, place, token } = held;
        let asked = self.ask(Method::POST, "/rotate", Some(&token), random).await;
        self.write_down(asked, What::Rotate { session, token: place }, |_| Answer::Done);
    }

    async fn log_out(&self, held: &Held, random: &mut Random) {
        let asked = self.ask(Method::POST, "/logout", Some(&held.token), random).await;
        let what = What::Logout { session: held.session.clone(), token: held.place };
        self.write_down(asked, what, |_| Answer::Done);
        if random.below(4) > 0 {
            self.leave(&held.session); // usually; sometimes it is retried
        }
    }

    async fn revoke(&self, held: &Held, random: &mut Random) {
        let asked = self.ask(Method::POST, &format!("/revoke/{}", held.session), None, random).await;
        self.write_down(asked, What::Revoke { session: held.session.clone() }, |_| Answer::Done);
        if random.below(4) > 0 {
            self.leave(&held.session);
        }
    }

    async fn revoke_user(&self, user: &str, random: &mut Random) {
        let asked = self.ask(Method::POST, &format!("/revoke_user/{user}"), None, random).await;
        self.write_down(asked, What::RevokeUser { user: user.to_owned() }, |_| Answer::Done);
    }

    async fn list(&self, user: &str, random: &mut Random) {
        let asked = self.ask(Method::GET, &format!("/list/{user}"), None, random).await;
        self.write_down(asked, What::List { user: user.to_owned() }, |value| {
            Answer::Listed(serde_json::from_value(value.clone()).unwrap())
        });
    }

    /// A ticket for several concurrent users. One in five is kept for later, or stays unused.
    async fn ticket(&self, random: &mut Random) {
        let asked = self.ask(Method::POST, "/ticket", None, random).await;
        let Some(reply) = asked.reply.filter(|reply| reply.status == StatusCode::OK) else { return };
        let ticket = reply.json().as_str().unwrap().to_owned();
        let place = {
            let mut book = self.history.book();
            book.tickets.push(ticket.clone());
            book.tickets.len() - 1
        };
        if random.below(5) > 0 {
            let [mut one, mut two, mut three] = [(); 3].map(|()| Random::new(&[random.next()]));
            join!(
                self.use_ticket(place, &ticket, &mut one),
                self.use_ticket(place, &ticket, &mut two),
                self.use_ticket(place, &ticket, &mut three),
            );
        }
    }

    async fn use_latest_ticket(&self, random: &mut Random) {
        let latest = self.history.book().tickets.iter().cloned().enumerate().next_back();
        if let Some((place, ticket)) = latest {
            self.use_ticket(place, &ticket, random).await;
        }
    }

    async fn use_ticket(&self, place: usize, ticket: &str, random: &mut Random) {
        let asked = self.ask(Method::POST, &format!("/use/{ticket}"), None, random).await;
        self.write_down(asked, What::Use { ticket: place }, |value| Answer::Won(value.as_bool().unwrap()));
    }
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

fn given(reply: &Reply) -> Option<String> {
    let set_cookie = reply.set_cookies().into_iter().next()?;
    let token = set_cookie.strip_prefix("session=")?.split(';').next()?.to_owned();
    (!token.is_empty()).then_some(token)
}
