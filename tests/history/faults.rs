//! What happens to Redis.

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
    support::redis_server::{RedisServer, command_on},
};

/// A way to fail, for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It forgets everything.
    Flush,
    /// It is stopped (`SIGSTOP`) and goes on.
    Pause,
    /// It is killed and restarted, with what it had.
    Restart,
    /// It closes all connections.
    Disconnect,
    ForgetScripts,
    /// It answers no writes, as in a planned failover.
    WritesPaused,
    OutOfMemory,
    /// It has no replica, and must have one.
    NoReplicas,
    /// It is a replica itself, of nobody.
    Replica,
    /// It lets nobody write.
    NoPermission,
    /// It lets in nobody who has not the new password.
    Password,
    /// It has no place for another connection.
    MaxClients,
    /// A master is killed, a replica takes over, and the dead one comes back as a replica.
    Death,
}

/// Those that lose nothing.
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
];

pub const WITH_LOSSES: &[Fault] = &[Fault::Flush, Fault::Pause, Fault::Flush, Fault::Restart, Fault::Disconnect];

pub const DEATHS: &[Fault] = &[Fault::Death];

impl Fault {
    /// Whether Redis may lose what it has confirmed.
    pub fn loses(self) -> bool {
        matches!(self, Self::Flush | Self::Death)
    }

    fn begins(self) -> &'static [&'static str] {
        match self {
            Self::Pause | Self::Restart | Self::Death => &[],
            Self::Flush => &["FLUSHALL"],
            Self::Disconnect => &[DISCONNECT],
            Self::ForgetScripts => &["SCRIPT FLUSH"],
            Self::WritesPaused => &["CLIENT PAUSE 10000 WRITE"],
            Self::OutOfMemory => &["CONFIG SET maxmemory 1"],
            Self::NoReplicas => &["CONFIG SET min-replicas-to-write 1"],
            Self::Replica => &["REPLICAOF 127.0.0.1 1"],
            Self::NoPermission => &["ACL SETUSER default -@write"],
            Self::Password => &["ACL SETUSER default resetpass >other", DISCONNECT],
            Self::MaxClients => &["CONFIG SET maxclients 1", DISCONNECT],
        }
    }

    fn ends(self) -> Option<&'static str> {
        match self {
            Self::Pause | Self::Restart | Self::Flush | Self::Disconnect | Self::ForgetScripts | Self::Death => None,
            Self::WritesPaused => Some("CLIENT UNPAUSE"),
            Self::OutOfMemory => Some("CONFIG SET maxmemory 0"),
            Self::NoReplicas => Some("CONFIG SET min-replicas-to-write 0"),
            Self::Replica => Some("REPLICAOF NO ONE"),
            Self::NoPermission => Some("ACL SETUSER default +@all"),
            Self::Password => Some("ACL SETUSER default nopass"),
            Self::MaxClients => Some("CONFIG SET maxclients 10000"),
        }
    }
}

const DISCONNECT: &str = "CLIENT KILL TYPE normal SKIPME yes";

/// What has happened.
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

    /// One after the other, until it is over.
    pub async fn happen(&mut self, place: &mut Place, is_over: &AtomicBool) {
        for number in 0.. {
            if self.kinds.is_empty() || is_over.load(Ordering::SeqCst) {
                return;
            }
            let mut random = Random::new(&[self.seed, u64::MAX, number]);
            sleep(Duration::from_millis(random.below(200) + 50)).await;
            let fault = self.kinds[((self.seed + number) % self.kinds.len() as u64) as usize];
            *self.counts.entry(fault).or_default() += 1;
            match place {
                Place::Alone(redis) => happens(fault, redis, &mut random).await,
                Place::Sentinel(_) | Place::Cluster(_) => place.master_dies(&mut random).await,
            }
        }
    }
}

async fn happens(fault: Fault, redis: &mut RedisServer, random: &mut Random) {
    // Over this one connection it can be ended, whoever else is let in.
    let mut control: MultiplexedConnection = redis.connect().await.unwrap();
    match fault {
        Fault::Pause => redis.pause(),
        Fault::Restart => redis.run().await, // killed first
        _ => {}
    }
    for command in fault.begins() {
        command_on(&mut control, command).await.unwrap();
    }
    if fault == Fault::Pause || fault.ends().is_some() {
        sleep(Duration::from_millis(random.below(400) + 100)).await;
    }
    redis.resume();
    if let Some(command) = fault.ends() {
        command_on(&mut control, command).await.unwrap();
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}
