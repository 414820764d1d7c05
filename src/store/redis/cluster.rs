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
    error::{Advice, Failure, reply},
    health::Check,
    reply::page,
    request::Request,
    shared_connection::SharedConnection,
    slots::{SLOTS, ScanPosition, SlotMap, slot_of},
    target::Target,
};
use crate::store::{Health, StoreError};

/// The shortest interval between two reads of the slot map.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// The pause before a retry while a slot is being moved.
const PAUSE: Duration = Duration::from_millis(5);
/// The maximum number of redirections of an operation.
const MAX_HOPS: usize = 16;

pub(super) struct Cluster {
    seeds: Vec<Address>,
    config: RedisConfig,
    topology: Mutex<Topology>,
    /// Only one request reads the slot map.
    asked: AsyncMutex<Option<Asked>>,
}

/// The time of the last read of the slot map, and its error.
struct Asked {
    at: Instant,
    failure: Option<Arc<StoreError>>,
}

#[derive(Default)]
struct Topology {
    slots: SlotMap,
    connections: HashMap<Address, Arc<SharedConnection>>,
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Address>, config: RedisConfig) -> Self {
        Self { seeds, config, topology: Mutex::default(), asked: AsyncMutex::new(None) }
    }

    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, address: &Address) -> Arc<SharedConnection> {
        let mut topology = self.topology();
        let connection = topology.connections.entry(address.clone());
        connection
            .or_insert_with(|| Arc::new(SharedConnection::new(Target::Server(address.clone()), self.config.clone())))
            .clone()
    }

    fn master_of(&self, slot: u16) -> Option<Address> {
        self.topology().slots.master_of(slot).cloned()
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
        for (command, result) in commands.cmd_iter().zip(replies) {
            answers.push(match reply(result).map_err(Failure::from) {
                Ok(result) => result,
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
            let failure = match self.connection(&master).call(request, deadline).await {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            hops += 1;
            if hops > MAX_HOPS || Instant::now() + PAUSE >= deadline {
                return Err(failure);
            }
            match &failure.advice {
                Some(Advice::Moved(address)) => self.topology().slots.moved(slot, address.clone()),
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

    /// Reads the slot map from all nodes except the one in doubt, unless it was read just now.
    async fn ask(&self, doubted: Option<&Address>, deadline: Instant) -> Result<(), Failure> {
        let mut asked = timeout_at(deadline, self.asked.lock()).await.map_err(|_| Failure::timeout())?;
        if let Some(Asked { at, failure }) = &*asked
            && at.elapsed() < ASK_INTERVAL
        {
            return failure.clone().map_or(Ok(()), |failure| Err(Failure::known_down(failure)));
        }
        let mut nodes: HashSet<_> = self.topology().connections.keys().chain(&self.seeds).cloned().collect();
        if nodes.len() > 1 {
            nodes.retain(|node| Some(node) != doubted);
        }
        let mut questions = JoinSet::new();
        for node in nodes {
            let connection = self.connection(&node);
            questions.spawn(async move {
                let result = connection.call(Request::read(pipe().cmd("CLUSTER").arg("SLOTS")), deadline).await?;
                let slots = match result {
                    Value::Array(replies) => replies.first().and_then(|slots| SlotMap::parse(slots, &node)),
                    _ => None,
                };
                Ok::<_, Failure>((slots, node))
            });
        }
        let mut failure = None;
        while let Some(result) = questions.join_next().await {
            match result {
                Ok(Ok((Some(slots), node))) if !slots.is_empty() => {
                    tracing::debug!(%node, ranges = slots.len(), "the slots of the cluster");
                    self.update_slots(slots);
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
    fn update_slots(&self, slots: SlotMap) {
        let mut topology = self.topology();
        let masters: HashSet<_> = slots.iter().map(|slots| slots.master.clone()).collect();
        let all = mem::take(&mut topology.connections);
        let (connections, gone): (HashMap<_, _>, HashMap<_, _>) =
            all.into_iter().partition(|(address, _)| masters.contains(address));
        (topology.connections, topology.slots) = (connections, slots);
        drop(topology);
        drop(gone); // outside the lock
    }

    /// All slots and their masters, ordered by first slot.
    pub(super) async fn slots(&self, deadline: Instant) -> Result<SlotMap, Failure> {
        if self.topology().slots.is_empty() {
            self.ask(None, deadline).await?;
        }
        Ok(self.topology().slots.clone())
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
        let Some(ScanPosition { slots, cursor }) = ScanPosition::parse(from, &known) else {
            return Ok((Vec::new(), None));
        };
        // `SCAN` is not redirected, so the slot map is read after it.
        let mut question = scan(&cursor);
        question.cmd("CLUSTER").arg("SLOTS");
        let result = self.connection(&slots.master).call(Request::read(&question), deadline).await;
        if result.as_ref().is_err_and(Failure::is_unavailable) {
            let _ = self.ask(Some(&slots.master), deadline).await;
        }
        let Value::Array(mut replies) = result? else { return Err(Failure::unexpected_reply()) };
        let now = replies.pop().and_then(|result| SlotMap::parse(&result, &slots.master));
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
            self.update_slots(now);
        }
        let next = match next {
            _ if !still_there => Some(slots.first.to_string()),
            Some(cursor) => Some(ScanPosition { slots, cursor }.to_string()),
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

    async fn health_of(&self, slots: &SlotMap, check: &Check, deadline: Instant) -> Health {
        let masters: HashSet<_> = slots.iter().map(|slots| &slots.master).collect();
        let mut checks = JoinSet::new();
        for master in masters {
            let (connection, check) = (self.connection(master), check.clone());
            let own: Vec<_> = slots.iter().filter(|slots| slots.master == *master).cloned().collect();
            let name = master.to_string();
            checks.spawn(async move {
                let has_slot = |slot| own.iter().any(|slots| slots.has(slot));
                (name, check.of_node(&*connection, has_slot, deadline).await)
            });
        }
        let mut healths = checks.join_all().await;
        healths.sort_unstable_by(|(name, _), (other, _)| name.cmp(other));
        let mut causes: Vec<_> =
            healths.iter().filter_map(|(name, health)| Some(format!("{name}: {}", health.cause()?))).collect();
        if slots.missing() > 0 {
            causes.push(format!("{} slots have no master", slots.missing()));
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

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topology = self.topology();
        f.debug_struct("Cluster")
            .field("seeds", &self.seeds)
            .field("connections", &topology.connections)
            .finish_non_exhaustive()
    }
}
