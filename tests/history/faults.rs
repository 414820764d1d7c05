//! The faults.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use super::{
    client::Random,
    place::Place,
    support::redis_server::{Loading, NoSnapshot, RedisServer, command_on},
};

/// A temporary fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It loses all data.
    Flush,
    /// It is paused (`SIGSTOP`) and resumed.
    Pause,
    /// It is killed and restarted with its data.
    Restart,
    /// It closes all connections.
    Disconnect,
    ForgetScripts,
    /// It holds writes, as in a planned failover.
    WritesPaused,
    OutOfMemory,
    /// It requires a replica and has none.
    NoReplicas,
    /// It is a replica without a master.
    Replica,
    /// It denies writes.
    NoPermission,
    /// It requires a new password.
    Password,
    /// It accepts no more connections.
    MaxClients,
    /// It is loading its data.
    Loading,
    /// It cannot write its snapshot, and refuses writes.
    NoSnapshot,
    /// The network is cut.
    CutOff,
    /// Replies are slow.
    Slow,
    /// Existing connections are silently dropped.
    HalfOpen,
    /// All connections are reset.
    Reset,
    /// A write is applied, and its reply is lost.
    AnswerLost,
    /// A reply is truncated.
    AnswerCut,
    /// A master is killed, a replica takes over, and the old master returns as a replica.
    Death,
    /// A planned failover.
    HandOver,
    /// The slot of a user moves to another node.
    Move,
}

/// Faults that lose no data.
pub const HARMLESS: &[Fault] = &[
    Fault::Pause,
    Fault::Restart,
    Fault::Disconnect,
    Fault::ForgetScripts,
    Fault::WritesPaused,
    Fault::OutOfMemory,
    Fault::NoReplicas,
    Fault::Replica,
    Fault::NoPermission,
    Fault::Password,
    Fault::MaxClients,
    Fault::Loading,
    Fault::NoSnapshot,
];

/// Faults of the network, which lose only connections.
pub const NETWORK: &[Fault] = &[
    Fault::AnswerLost,
    Fault::CutOff,
    Fault::AnswerCut,
    Fault::Slow,
    Fault::Reset,
    Fault::AnswerLost,
    Fault::HalfOpen,
];

pub const WITH_LOSSES: &[Fault] = &[Fault::Flush, Fault::Pause, Fault::Flush, Fault::Restart, Fault::Disconnect];

pub const DEATHS: &[Fault] = &[Fault::Death];

/// Behind Sentinels, the new master may lack the last writes, in any failover.
pub const CHANGES_OF_MASTERS: &[Fault] = &[Fault::HandOver, Fault::Death];

/// Faults of a cluster that lose no data.
pub const MOVES: &[Fault] = &[
    Fault::Move,
    Fault::AnswerLost,
    Fault::HandOver,
    Fault::Move,
    Fault::Slow,
    Fault::Disconnect,
    Fault::Move,
    Fault::Reset,
    Fault::CutOff,
    Fault::ForgetScripts,
];

impl Fault {
    /// Whether Redis may lose acknowledged writes.
    pub fn loses(self) -> bool {
        matches!(self, Self::Flush | Self::Death)
    }

    /// The commands that start the fault, and the one that ends it, if it consists of commands.
    fn commands(self) -> Option<(&'static [&'static str], Option<&'static str>)> {
        Some(match self {
            Self::Flush => (&["FLUSHALL"], None),
            Self::Disconnect => (&[DISCONNECT], None),
            Self::ForgetScripts => (&["SCRIPT FLUSH"], None),
            Self::WritesPaused => (&["CLIENT PAUSE 10000 WRITE"], Some("CLIENT UNPAUSE")),
            Self::OutOfMemory => (&["CONFIG SET maxmemory 1"], Some("CONFIG SET maxmemory 0")),
            Self::NoReplicas => (&["CONFIG SET min-replicas-to-write 1"], Some("CONFIG SET min-replicas-to-write 0")),
            Self::Replica => (&["REPLICAOF 127.0.0.1 1"], Some("REPLICAOF NO ONE")),
            Self::NoPermission => (&["ACL SETUSER default -@write"], Some("ACL SETUSER default +@all")),
            Self::Password => {
                (&["ACL SETUSER default resetpass >other", DISCONNECT], Some("ACL SETUSER default nopass"))
            }
            Self::MaxClients => (&["CONFIG SET maxclients 1", DISCONNECT], Some("CONFIG SET maxclients 10000")),
            _ => return None,
        })
    }
}

const DISCONNECT: &str = "CLIENT KILL TYPE normal SKIPME yes";

/// The faults that happened.
pub struct Faults {
    kinds: &'static [Fault],
    seed: u64,
    counts: BTreeMap<Fault, u32>,
}

impl Faults {
    pub fn new(kinds: &'static [Fault], seed: u64) -> Self {
        Self { kinds, seed, counts: BTreeMap::new() }
    }

    pub fn count(&self) -> u32 {
        self.counts.values().sum()
    }

    /// One fault after the other until the end.
    pub async fn happen(&mut self, place: &mut Place, is_over: &AtomicBool) {
        for number in 0.. {
            if self.kinds.is_empty() || is_over.load(Ordering::SeqCst) {
                return;
            }
            let mut random = Random::new(&[self.seed, u64::MAX, number]);
            sleep(Duration::from_millis(random.below(200) + 50)).await;
            let fault = self.kinds[((self.seed + number) % self.kinds.len() as u64) as usize];
            *self.counts.entry(fault).or_default() += 1;
            match fault {
                Fault::Death => place.master_dies(&mut random).await,
                Fault::HandOver => place.master_hands_over(&mut random).await,
                Fault::Move => place.slot_moves(&mut random).await,
                _ => befalls(fault, place.server(&mut random).await, &mut random).await,
            }
        }
    }
}

async fn befalls(fault: Fault, redis: &mut RedisServer, random: &mut Random) {
    let a_while = Duration::from_millis(random.below(400) + 100);
    if let Some((begin, end)) = fault.commands() {
        // Over this connection the fault can be ended, even if no other connection is accepted.
        let mut control: MultiplexedConnection = redis.connect().await.unwrap();
        for command in begin {
            command_on(&mut control, command).await.unwrap();
        }
        if let Some(command) = end {
            sleep(a_while).await;
            command_on(&mut control, command).await.unwrap();
        }
        return;
    }
    match fault {
        Fault::Pause => {
            redis.pause();
            sleep(a_while).await;
            redis.resume();
        }
        Fault::Restart => redis.run().await, // killed first
        Fault::Loading => {
            let loading = Loading::of(redis, "").await;
            sleep(a_while).await;
            loading.ends().await;
        }
        Fault::NoSnapshot => {
            let failing = NoSnapshot::of(redis).await;
            sleep(a_while).await;
            failing.ends().await;
        }
        Fault::CutOff => {
            redis.proxy().black_hole();
            sleep(a_while).await;
            redis.proxy().heal();
        }
        Fault::Slow => {
            // Some replies are in time, and some are not.
            redis.proxy().delay_replies(Duration::from_millis(random.below(300)));
            sleep(a_while).await;
            redis.proxy().heal();
        }
        Fault::HalfOpen => redis.proxy().strand_connections(),
        Fault::Reset => redis.proxy().reset_connections(),
        Fault::AnswerLost => redis.proxy().lose_reply_to("EVALSHA"),
        Fault::AnswerCut => redis.proxy().cut_reply_to("GET", random.below(60) as usize),
        fault => unreachable!("{fault:?} is none of a server"),
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}
