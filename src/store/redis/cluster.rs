//! Redis Cluster: the slot map, and redirections.
//!
//! Every operation concerns one slot, so it is one call to the master of the slot, over one [`SharedConnection`] per master. The slot map is
//! read from the nodes at first use, after a redirection, and when a node is unreachable, within the deadline of the operation.

use std::{
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Arg, Cmd, Pipeline, Value, pipe};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    RedisConfig,
    config::Address,
    connect::Target,
    error::{Advice, Failure},
    health::Check,
    request::Request,
    route::page,
    shared_connection::{SharedConnection, reply},
};
use crate::store::{Health, StoreError};

const SLOTS: u16 = 16384;
/// The shortest interval between two reads of the slot map.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// The pause before a retry while a slot is being moved.
const PAUSE: Duration = Duration::from_millis(5);
/// The maximum number of redirections of an operation.
const MAX_HOPS: usize = 16;

pub(super) struct Cluster {
    seeds: Vec<Address>,
    config: RedisConfig,
    known: Mutex<Known>,
    /// Only one request reads the slot map.
    asked: AsyncMutex<Option<Asked>>,
}

/// The time of the last read of the slot map, and its error.
struct Asked {
    at: Instant,
    failure: Option<Arc<StoreError>>,
}

#[derive(Default)]
struct Known {
    /// EndedBy their first slots, without gaps where the cluster has none.
    slots: Vec<Slots>,
    links: HashMap<Address, Arc<SharedConnection>>,
}

/// The slots from `first` to `last`, and their master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Address,
}

impl Slots {
    fn has(&self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Address>, config: RedisConfig) -> Self {
        Self { seeds, config, known: Mutex::default(), asked: AsyncMutex::new(None) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, address: &Address) -> Arc<SharedConnection> {
        let mut known = self.known();
        let link = known.links.entry(address.clone());
        link.or_insert_with(|| Arc::new(SharedConnection::new(Target::Server(address.clone()), self.config.clone())))
            .clone()
    }

    fn master_of(&self, slot: u16) -> Option<Address> {
        let known = self.known();
        let place = known.slots.partition_point(|slots| slots.last < slot);
        known.slots.get(place).filter(|slots| slots.first <= slot).map(|slots| slots.master.clone())
    }

    /// The indices of the keys, grouped by master, or by slot if the master is unknown.
    pub(super) fn by_master(&self, keys: &[String]) -> Vec<Vec<usize>> {
        let mut groups = HashMap::<_, Vec<_>>::new();
        for (place, key) in keys.iter().enumerate() {
            let slot = slot_of(key);
            let master = self.master_of(slot);
            groups.entry(master.ok_or(slot)).or_default().push(place);
        }
        groups.into_values().collect()
    }

    /// Sends `request` to the master of `key`, until `deadline`.
    pub(super) async fn call(&self, key: &str, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let Some(commands) = request.reads() else {
            return self.follow(slot_of(key), request, deadline).await;
        };
        let replies = match self.follow(slot_of(key), request.lenient(), deadline).await? {
            Value::Array(replies) if replies.len() == commands.len() => replies,
            _ => return Err(Failure::unexpected_reply()),
        };
        let mut answers = Vec::with_capacity(replies.len());
        for (command, answer) in commands.cmd_iter().zip(replies) {
            answers.push(match reply(answer).map_err(Failure::from) {
                Ok(answer) => answer,
                // While a slot is being moved, its keys are on two nodes. A page has keys of many slots.
                Err(failure) if failure.advice.is_some() || failure.is_unavailable() => {
                    self.alone(command, deadline).await?
                }
                Err(failure) => return Err(failure),
            });
        }
        Ok(Value::Array(answers))
    }

    /// Sends a command whose first argument is its key.
    async fn alone(&self, command: &Cmd, deadline: Instant) -> Result<Value, Failure> {
        let Some(Arg::Simple(key)) = command.args_iter().nth(1) else { return Err(Failure::unexpected_reply()) };
        let slot = slot_of(&String::from_utf8_lossy(key));
        let mut alone = pipe();
        alone.add_command(command.clone());
        match self.follow(slot, Request::read(&alone), deadline).await? {
            Value::Array(mut answers) => answers.pop().ok_or_else(Failure::unexpected_reply),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    /// Follows redirections until the deadline.
    async fn follow(&self, slot: u16, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut named = None;
        let mut hops = 0;
        loop {
            let (master, request) = match (named.take(), self.master_of(slot)) {
                (Some(address), _) => (address, request.asking()),
                (None, Some(master)) => (master, request),
                (None, None) => {
                    self.ask(None, deadline).await?;
                    (self.master_of(slot).ok_or_else(Failure::no_master)?, request)
                }
            };
            let failure = match self.link(&master).call(request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            hops += 1;
            if hops > MAX_HOPS || Instant::now() + PAUSE >= deadline {
                return Err(failure);
            }
            match &failure.advice {
                Some(Advice::Moved(address)) => self.moved(slot, address.clone()),
                Some(Advice::Ask(address)) => named = Some(address.clone()),
                Some(Advice::TryAgain) => {
                    // This is not a new redirection.
                    hops = 0;
                    sleep(PAUSE).await;
                }
                None if failure.is_unavailable() => {
                    // A replica may have taken over.
                    let _ = self.ask(Some(&master), deadline).await;
                    if !request.may_follow(&failure) || self.master_of(slot).is_none_or(|now| now == master) {
                        return Err(failure);
                    }
                }
                None => return Err(failure),
            }
        }
    }

    fn moved(&self, slot: u16, to: Address) {
        let mut known = self.known();
        if let Some(place) = known.slots.iter().position(|slots| slots.has(slot)) {
            let Slots { first, last, master } = known.slots.swap_remove(place);
            if first < slot {
                known.slots.push(Slots { first, last: slot - 1, master: master.clone() });
            }
            if slot < last {
                known.slots.push(Slots { first: slot + 1, last, master });
            }
        }
        known.slots.push(Slots { first: slot, last: slot, master: to });
        known.slots.sort_unstable_by_key(|slots| slots.first);
    }

    /// Reads the slot map from all nodes except the one in doubt, unless it was read just now.
    async fn ask(&self, doubted: Option<&Address>, deadline: Instant) -> Result<(), Failure> {
        let mut asked = timeout_at(deadline, self.asked.lock()).await.map_err(|_| Failure::timeout())?;
        if let Some(Asked { at, failure }) = &*asked
            && at.elapsed() < ASK_INTERVAL
        {
            return failure.clone().map_or(Ok(()), |failure| Err(Failure::known_down(failure)));
        }
        let mut nodes: HashSet<_> = self.known().links.keys().chain(&self.seeds).cloned().collect();
        if nodes.len() > 1 {
            nodes.retain(|node| Some(node) != doubted);
        }
        let mut questions = JoinSet::new();
        for node in nodes {
            let link = self.link(&node);
            questions.spawn(async move {
                let answer = link.call(Request::read(pipe().cmd("CLUSTER").arg("SLOTS")), deadline).await?;
                let slots = match answer {
                    Value::Array(replies) => replies.first().and_then(|slots| slots_of(slots, &node)),
                    _ => None,
                };
                Ok::<_, Failure>((slots, node))
            });
        }
        let mut failure = None;
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok(Ok((Some(slots), node))) if !slots.is_empty() => {
                    tracing::debug!(%node, ranges = slots.len(), "the slots of the cluster");
                    self.learn(slots);
                    *asked = Some(Asked { at: Instant::now(), failure: None });
                    return Ok(());
                }
                Ok(Ok(_)) => failure = Some(Failure::no_master()),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => {}
            }
        }
        let failure = Arc::new(failure.unwrap_or_else(Failure::no_master).error);
        *asked = Some(Asked { at: Instant::now(), failure: Some(failure.clone()) });
        Err(Failure::known_down(failure))
    }

    /// Replaces the slot map. Connections to other nodes are closed.
    fn learn(&self, slots: Vec<Slots>) {
        let mut known = self.known();
        let masters: HashSet<_> = slots.iter().map(|slots| slots.master.clone()).collect();
        let all = mem::take(&mut known.links);
        let (links, gone): (HashMap<_, _>, HashMap<_, _>) =
            all.into_iter().partition(|(address, _)| masters.contains(address));
        (known.links, known.slots) = (links, slots);
        drop(known);
        drop(gone); // outside the lock
    }

    /// All slots and their masters, ordered by first slot.
    pub(super) async fn slots(&self, deadline: Instant) -> Result<Vec<Slots>, Failure> {
        if self.known().slots.is_empty() {
            self.ask(None, deadline).await?;
        }
        Ok(self.known().slots.clone())
    }

    /// A page of all keys, and the next cursor: one slot range after the other, on the current master of the range. If the range moves during
    /// the scan, it is scanned again.
    pub(super) async fn scan(
        &self,
        from: &str,
        scan: impl Fn(&str) -> Pipeline,
        deadline: Instant,
    ) -> Result<(Vec<Value>, Option<String>), Failure> {
        let known = self.slots(deadline).await?;
        let Some(Place { slots, cursor }) = Place::parse(from, &known) else {
            return Ok((Vec::new(), None));
        };
        // `SCAN` is not redirected, so the slot map is read after it.
        let mut question = scan(&cursor);
        question.cmd("CLUSTER").arg("SLOTS");
        let answer = self.link(&slots.master).call(Request::read(&question), deadline).await;
        if answer.as_ref().is_err_and(Failure::is_unavailable) {
            let _ = self.ask(Some(&slots.master), deadline).await;
        }
        let Value::Array(mut replies) = answer? else { return Err(Failure::unexpected_reply()) };
        let now = replies.pop().and_then(|answer| slots_of(&answer, &slots.master));
        let now = now.ok_or_else(Failure::unexpected_reply)?;
        let (next, keys) = page(Value::Array(replies))?;
        let owner = |slot| now.iter().find(|slots| slots.has(slot)).map(|slots| &slots.master);
        let keys = keys.into_iter().filter(|key| match key {
            Value::BulkString(key) => {
                let slot = slot_of(&String::from_utf8_lossy(key));
                // A key that was moved before its slot is not on any other page.
                slots.has(slot) || owner(slot) != Some(&slots.master)
            }
            _ => false,
        });
        let keys = keys.collect();
        let still_there = (slots.first..=slots.last).all(|slot| owner(slot) == Some(&slots.master));
        if now != known && !now.is_empty() {
            self.learn(now);
        }
        let next = match next {
            _ if !still_there => Some(slots.first.to_string()),
            Some(cursor) => Some(Place { slots, cursor }.to_string()),
            None => (slots.last < SLOTS - 1).then(|| (slots.last + 1).to_string()),
        };
        Ok((keys, next))
    }

    /// Up if all masters are up, down if all are down, else degraded with the causes.
    pub(super) async fn health(&self, check: &Check, deadline: Instant) -> Health {
        let slots = match self.slots(deadline).await {
            Ok(slots) => slots,
            Err(failure) => return Health::down(&failure.error),
        };
        let health = self.health_of(&slots, check, deadline).await;
        if health == Health::Up {
            return health;
        }
        // A replica may have taken over without any request noticing.
        let _ = self.ask(None, deadline).await;
        match self.slots(deadline).await {
            Ok(now) if now != slots => self.health_of(&now, check, deadline).await,
            _ => health,
        }
    }

    async fn health_of(&self, slots: &[Slots], check: &Check, deadline: Instant) -> Health {
        let masters: HashSet<_> = slots.iter().map(|slots| &slots.master).collect();
        let mut checks = JoinSet::new();
        for master in masters {
            let (link, check) = (self.link(master), check.clone());
            let own: Vec<_> = slots.iter().filter(|slots| slots.master == *master).cloned().collect();
            let name = master.to_string();
            checks.spawn(async move {
                let has_slot = |slot| own.iter().any(|slots| slots.has(slot));
                (name, check.of_node(&*link, has_slot, deadline).await)
            });
        }
        let mut healths = checks.join_all().await;
        healths.sort_unstable_by(|(name, _), (other, _)| name.cmp(other));
        let mut causes: Vec<_> =
            healths.iter().filter_map(|(name, health)| Some(format!("{name}: {}", health.cause()?))).collect();
        let covered: usize = slots.iter().map(|slots| usize::from(slots.last - slots.first) + 1).sum();
        if covered < usize::from(SLOTS) {
            causes.push(format!("{} slots have no master", usize::from(SLOTS) - covered));
        }
        if causes.is_empty() {
            return Health::Up;
        }
        let causes = causes.join("; ").into();
        if healths.iter().all(|(_, health)| matches!(health, Health::Down(_))) {
            Health::Down(causes)
        } else {
            Health::Degraded(causes)
        }
    }
}

/// The position of a scan: in a slot range of a master, or before the range that begins with `first`.
struct Place {
    slots: Slots,
    cursor: String,
}

impl Place {
    /// `first`, or `first/last/master/cursor`. `None` at the end.
    fn parse(text: &str, known: &[Slots]) -> Option<Self> {
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next();
        let first: u16 = next().and_then(|first| first.parse().ok()).unwrap_or(0);
        let now = known.iter().find(|slots| slots.last >= first)?;
        let now = Slots { first: first.max(now.first), ..now.clone() };
        let last = next().and_then(|last| last.parse().ok());
        let (master, cursor) = (next(), next());
        Some(match (last, cursor) {
            // If the master still has the range, continue. Otherwise scan the range again.
            (Some(last), Some(cursor)) if last <= now.last && master == Some(&*now.master.to_string()) => {
                Self { slots: Slots { last, ..now }, cursor: cursor.to_owned() }
            }
            _ => Self { slots: now, cursor: "0".into() },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots: Slots { first, last, master }, cursor } = self;
        write!(f, "{first}/{last}/{master}/{cursor}")
    }
}

/// The reply to `CLUSTER SLOTS`: first, last, master, replicas…; a node is host, port, ….
fn slots_of(answer: &Value, node: &Address) -> Option<Vec<Slots>> {
    let Value::Array(ranges) = answer else { return None };
    let mut all = Vec::with_capacity(ranges.len());
    for range in ranges {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &**range else { return None };
        let [host, Value::Int(port), ..] = &**master else { return None };
        let host = match (host, node) {
            (Value::BulkString(host), _) if !host.is_empty() && host != b"?" => std::str::from_utf8(host).ok()?,
            // The node does not know the name that the client uses.
            (_, Address::Tcp(host, _)) => host,
            _ => return None,
        };
        all.push(Slots {
            first: u16::try_from(*first).ok()?,
            last: u16::try_from(*last).ok()?,
            master: Address::tcp(host, u16::try_from(*port).ok()?).ok()?,
        });
    }
    all.sort_unstable_by_key(|slots| slots.first);
    Some(all)
}

/// The slot of a key, or of its hash tag.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    // CRC-16/XMODEM
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ (0x1021 * (crc >> 15)))
    });
    crc % SLOTS
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known();
        f.debug_struct("Cluster").field("seeds", &self.seeds).field("links", &known.links).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_redis_computes() {
        // `CLUSTER KEYSLOT`
        for (key, slot) in
            [("123456789", 12739), ("foo", 12182), ("sess:{AAAA}:x", slot_of("AAAA")), ("{}x", slot_of("{}x"))]
        {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_eq!(slot_of("a{foo}b{bar}"), 12182);
    }

    fn masters(cluster: &Cluster, slots: &[u16]) -> Vec<Option<String>> {
        slots.iter().map(|slot| cluster.master_of(*slot).map(|master| master.to_string())).collect()
    }

    #[test]
    fn a_slot_that_has_moved_is_elsewhere_and_its_neighbours_are_not() -> Result<(), Box<dyn std::error::Error>> {
        let config = RedisConfig::cluster(["a:1"])?;
        let cluster = Cluster::new(Vec::new(), config);
        let node = |name| Address::tcp(name, 1).map_err(|problem| format!("{problem:?}"));
        // Only single slots are known.
        for slot in [9, 3] {
            cluster.moved(slot, node("b")?);
        }
        let b = Some("b:1".to_owned());
        assert_eq!(masters(&cluster, &[2, 3, 4, 9]), [None, b.clone(), None, b.clone()]);
        let a = Some("a:1".to_owned());
        cluster.learn(vec![Slots { first: 0, last: 9, master: node("a")? }]);
        for slot in [0, 5, 9] {
            cluster.moved(slot, node("b")?);
        }
        let expected = [b.clone(), a.clone(), a.clone(), b.clone(), a.clone(), a, b, None];
        assert_eq!(masters(&cluster, &[0, 1, 4, 5, 6, 8, 9, 10]), expected);
        Ok(())
    }

    #[test]
    fn a_scan_goes_on_where_it_was_unless_the_slots_have_other_masters() -> Result<(), Box<dyn std::error::Error>> {
        let slots = |first, last, name| {
            let master = Address::tcp(name, 1).map_err(|problem| format!("{problem:?}"))?;
            Ok::<_, String>(Slots { first, last, master })
        };
        let known = [slots(0, 99, "a")?, slots(100, 16383, "b")?];
        let place = |text: &str| Place::parse(text, &known).map(|place| place.to_string());
        for (from, to) in [
            ("", Some("0/99/a:1/0")),
            ("0/99/a:1/17", Some("0/99/a:1/17")),
            ("0/50/a:1/17", Some("0/50/a:1/17")),
            ("0/150/a:1/17", Some("0/99/a:1/0")),
            ("0/99/b:1/17", Some("0/99/a:1/0")),
            ("50", Some("50/99/a:1/0")),
            ("100", Some("100/16383/b:1/0")),
            ("16384", None),
            ("nonsense", Some("0/99/a:1/0")),
        ] {
            assert_eq!(place(from).as_deref(), to, "{from}");
        }
        Ok(())
    }
}
