//! What happens to Redis.

use std::{collections::BTreeMap, fmt, time::Duration};

use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use super::{
    client::Random,
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

impl Fault {
    fn begins(self) -> &'static [&'static str] {
        match self {
            Self::Pause | Self::Restart => &[],
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
            Self::Pause | Self::Restart | Self::Flush | Self::Disconnect | Self::ForgetScripts => None,
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
    /// The one that has begun and not ended.
    present: Option<(Fault, MultiplexedConnection)>,
}

impl Faults {
    pub fn new(kinds: &'static [Fault], seed: u64) -> Self {
        Self { kinds, seed, counts: BTreeMap::new(), present: None }
    }

    pub fn count(&self) -> u32 {
        self.counts.values().sum()
    }

    /// One after the other, for ever.
    pub async fn happen(&mut self, redis: &mut RedisServer) {
        for number in 0.. {
            let mut random = Random::new(&[self.seed, u64::MAX, number]);
            sleep(Duration::from_millis(random.below(200) + 50)).await;
            let fault = self.kinds[((self.seed + number) % self.kinds.len() as u64) as usize];
            *self.counts.entry(fault).or_default() += 1;
            // Over this one connection it can be ended, whoever else is let in.
            let mut control = redis.connect().await.unwrap();
            self.present = Some((fault, control.clone()));
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
            self.end(redis).await;
        }
    }

    /// What has begun ends.
    pub async fn end(&mut self, redis: &mut RedisServer) {
        if let Some((fault, mut control)) = self.present.take() {
            redis.resume();
            if let Some(command) = fault.ends() {
                command_on(&mut control, command).await.unwrap();
            }
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}
