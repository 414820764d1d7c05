//! What the clients do, and how it is written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;
use tower_keep::{SessionLayer, Token};

use super::{
    server::{self, Server},
    support::client::{Client, Reply},
};

/// Users whose sessions everybody ends; beside them, each client has a user of its own whose session nobody ends.
const USERS: u64 = 3;

/// Something a client did: when it asked, when it was answered (by one clock for all), and what.
#[derive(Clone, Debug)]
pub struct Event {
    pub begun: u64,
    pub ended: u64,
    pub what: What,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
pub enum What {
    Login { user: String },
    Write { session: String, key: String, value: u64 },
    Read { session: String },
    Rotate { session: String },
    Logout { session: String },
    Revoke { session: String },
    RevokeUser { user: String },
    List { user: String },
    Use { ticket: String },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Done,
    /// Of a login.
    Session(String),
    Values(BTreeMap<String, u64>),
    Listed(Vec<String>),
    Won(bool),
    /// There is no such session, or its token is not good.
    Refused,
    /// Nobody knows whether it was done.
    Unknown,
}

/// A session as its clients know it.
#[derive(Clone, Debug)]
pub struct Known {
    pub user: String,
    /// All that were given, the latest last.
    pub tokens: Vec<String>,
}

#[derive(Default)]
pub struct History {
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
    sessions: Mutex<BTreeMap<String, Known>>,
    tickets: Mutex<Vec<String>>,
}

/// What is true after everything has happened.
pub struct End {
    pub sessions: BTreeMap<String, Known>,
    /// By session, which of its tokens open it, by their places.
    pub open: BTreeMap<String, Vec<usize>>,
    pub values: BTreeMap<String, BTreeMap<String, u64>>,
    pub listed: BTreeMap<String, BTreeSet<String>>,
}

/// xorshift64*
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { all.get(self.below(all.len() as u64) as usize) }
    }
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn write_down(&self, begun: u64, what: What, answer: Answer) {
        let ended = self.tick();
        self.events.lock().unwrap().push(Event { begun, ended, what, answer });
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// A session, and its latest token.
    fn session(&self, random: &mut Random, own: Option<&str>) -> Option<(String, String)> {
        let sessions = self.sessions.lock().unwrap();
        let all: Vec<_> = match own {
            Some(user) => sessions.iter().filter(|(_, known)| known.user == user).collect(),
            // The latest are the most likely to be alive.
            None => {
                let shared = sessions.iter().filter(|(_, known)| !known.user.starts_with("calm"));
                shared.filter(|(_, known)| known.user.starts_with("user")).collect()
            }
        };
        let (id, known) = random.of(&all)?;
        Some((id.to_string(), known.tokens.last()?.clone()))
    }

    fn given(&self, id: &str, user: Option<&str>, token: Option<String>) {
        let mut sessions = self.sessions.lock().unwrap();
        if let Some(user) = user {
            sessions.entry(id.to_owned()).or_insert_with(|| Known { user: user.to_owned(), tokens: Vec::new() });
        }
        if let (Some(known), Some(token)) = (sessions.get_mut(id), token)
            && !known.tokens.contains(&token)
        {
            known.tokens.push(token);
        }
    }

    /// Forgets a session that is known to have ended, so that others are used.
    fn forget(&self, id: &str) {
        if let Some(known) = self.sessions.lock().unwrap().get_mut(id)
            && known.user.starts_with("user")
        {
            known.user = format!("gone {}", known.user);
        }
    }

    /// Looks at everything once more, when nothing happens any more.
    pub async fn end(&self, redis: &str) -> End {
        let layer: SessionLayer = server::layer(redis, true);
        let sessions = layer.sessions();
        while !sessions.health().await.is_ok_and(|health| health == tower_keep::store::Health::Up) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let known = self.sessions.lock().unwrap().clone();
        let (mut open, mut values) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
        for (id, known) in &known {
            for (place, token) in known.tokens.iter().enumerate() {
                if let Some(session) = sessions.open(&Token::parse(token).unwrap()).await.unwrap() {
                    open.entry(id.clone()).or_default().push(place);
                    let keys = (0..super::CLIENTS).flat_map(|n| [format!("own{n}"), "shared".to_owned()]);
                    let held = keys.filter_map(|key| Some((key.clone(), session.value::<u64>(&key).unwrap()?)));
                    values.insert(id.clone(), held.collect());
                }
            }
        }
        let mut listed = BTreeMap::new();
        let users: BTreeSet<_> =
            known.values().map(|known| known.user.trim_start_matches("gone ").to_owned()).collect();
        for user in users {
            let ids = sessions.list(&user).await.unwrap().iter().map(|session| session.id().to_string()).collect();
            listed.insert(user, ids);
        }
        End { sessions: known, open, values, listed }
    }
}

struct Actor<'a> {
    number: u64,
    random: Random,
    servers: Vec<Client>,
    history: &'a History,
    counter: u64,
}

pub async fn run(number: u64, random: Random, operations: usize, servers: &[Server], history: &History) {
    let servers = servers.iter().map(|server| Client::new(&server.url)).collect();
    let mut actor = Actor { number, random, servers, history, counter: 0 };
    let calm = format!("calm{number}");
    while history.sessions.lock().unwrap().values().all(|known| known.user != calm) {
        actor.login(&calm).await;
    }
    for _ in 0..operations {
        actor.act().await;
    }
}

impl Actor<'_> {
    async fn act(&mut self) {
        let user = format!("user{}", self.random.below(USERS));
        let calm = format!("calm{}", self.number);
        let own = (self.random.below(5) == 0).then_some(calm);
        let session = self.history.session(&mut self.random, own.as_deref());
        let Some((session, token)) = session else { return self.login(&user).await };
        match self.random.below(100) {
            0..12 => self.login(&user).await,
            12..45 => self.write(session, &token).await,
            45..70 => self.read(session, &token).await,
            70..76 => self.rotate(session, &token).await,
            76..79 if own.is_none() => self.end(What::Logout { session }, Some(&token), "/logout").await,
            79..82 if own.is_none() => {
                let path = format!("/revoke/{session}");
                self.end(What::Revoke { session }, None, &path).await;
            }
            82..83 => {
                let path = format!("/revoke_user/{user}");
                self.end(What::RevokeUser { user }, None, &path).await;
            }
            83..87 => self.list(user).await,
            87..91 => self.ticket().await,
            91..100 => self.use_ticket().await,
            _ => self.read(session, &token).await,
        }
    }

    async fn ask(&mut self, method: Method, path: &str, token: Option<&str>) -> (u64, Reply) {
        let server = self.random.below(self.servers.len() as u64) as usize;
        let cookie = token.map(|token| format!("session={token}")).unwrap_or_default();
        let begun = self.history.tick();
        (begun, self.servers[server].request(method, path, &[("cookie", &cookie)], Bytes::new()).await)
    }

    async fn login(&mut self, user: &str) {
        let (begun, reply) = self.ask(Method::POST, &format!("/login/{user}"), None).await;
        let answer = answer(&reply, |value| Answer::Session(value["id"].as_str().unwrap().to_owned()));
        let what = What::Login { user: user.to_owned() };
        self.history.write_down(begun, what, answer.clone());
        // Known to others from then on.
        if let Answer::Session(id) = answer {
            self.history.given(&id, Some(user), given(&reply));
        }
    }

    async fn write(&mut self, session: String, token: &str) {
        self.counter += 1;
        let value = self.number * 1_000_000 + self.counter;
        let key = if self.random.below(2) == 0 { "shared".to_owned() } else { format!("own{}", self.number) };
        let (begun, reply) = self.ask(Method::POST, &format!("/write/{key}/{value}"), Some(token)).await;
        let answer = answer(&reply, |_| Answer::Done);
        self.leave(&session, &answer);
        self.history.write_down(begun, What::Write { session, key, value }, answer);
    }

    async fn read(&mut self, session: String, token: &str) {
        let (begun, reply) = self.ask(Method::GET, "/read", Some(token)).await;
        let answer = answer(&reply, |value| {
            assert_eq!(value["id"], *session, "another's session");
            Answer::Values(serde_json::from_value(value["values"].clone()).unwrap())
        });
        self.leave(&session, &answer);
        self.history.write_down(begun, What::Read { session }, answer);
    }

    /// Mostly turns to other sessions when one is refused.
    fn leave(&mut self, session: &str, answer: &Answer) {
        if *answer == Answer::Refused && self.random.below(3) > 0 {
            self.history.forget(session);
        }
    }

    async fn rotate(&mut self, session: String, token: &str) {
        let (begun, reply) = self.ask(Method::POST, "/rotate", Some(token)).await;
        let answer = answer(&reply, |_| Answer::Done);
        self.history.given(&session, None, given(&reply));
        self.history.write_down(begun, What::Rotate { session }, answer);
    }

    async fn end(&mut self, what: What, token: Option<&str>, path: &str) {
        let (begun, reply) = self.ask(Method::POST, path, token).await;
        let answer = answer(&reply, |_| Answer::Done);
        if let (What::Logout { session } | What::Revoke { session }, Answer::Done) = (&what, &answer)
            && self.random.below(4) > 0
        {
            self.history.forget(session); // mostly; sometimes it is tried again
        }
        self.history.write_down(begun, what, answer);
    }

    async fn list(&mut self, user: String) {
        let (begun, reply) = self.ask(Method::GET, &format!("/list/{user}"), None).await;
        let answer = answer(&reply, |value| Answer::Listed(serde_json::from_value(value.clone()).unwrap()));
        self.history.write_down(begun, What::List { user }, answer);
    }

    async fn ticket(&mut self) {
        let (_, reply) = self.ask(Method::POST, "/ticket", None).await;
        if reply.status == StatusCode::OK {
            self.history.tickets.lock().unwrap().push(reply.json().as_str().unwrap().to_owned());
        }
    }

    async fn use_ticket(&mut self) {
        // The latest, so that several meet.
        let Some(ticket) = self.history.tickets.lock().unwrap().last().cloned() else { return };
        let (begun, reply) = self.ask(Method::POST, &format!("/use/{ticket}"), None).await;
        let answer = answer(&reply, |value| Answer::Won(value.as_bool().unwrap()));
        self.history.write_down(begun, What::Use { ticket }, answer);
    }
}

fn answer(reply: &Reply, ok: impl FnOnce(&Value) -> Answer) -> Answer {
    match reply.status {
        StatusCode::OK => ok(&reply.json()),
        StatusCode::UNAUTHORIZED => Answer::Refused,
        StatusCode::SERVICE_UNAVAILABLE => Answer::Unknown,
        status => panic!("{status}: {reply:?}"),
    }
}

fn given(reply: &Reply) -> Option<String> {
    let set_cookie = reply.set_cookies().into_iter().next()?;
    let token = set_cookie.strip_prefix("session=")?.split(';').next()?.to_owned();
    (!token.is_empty()).then_some(token)
}
