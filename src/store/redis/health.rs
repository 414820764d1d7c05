//! How Redis does: whether it answers, and whether it serves writes.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Value, pipe};
use tokio::time::Instant;

#[cfg(feature = "redis-cluster")]
use super::cluster::slot_of;
use super::{
    error::Failure,
    keys::Prefix,
    request::Request,
    script::{Call, Script},
};
use crate::store::Health;

/// Whether writes have been refused by a server that may serve reads.
///
/// That another write was served takes nothing back, for they need different things: to end a session takes no memory. Only a
/// [`Check`] does.
#[derive(Default)]
pub(super) struct Writes {
    refused: AtomicBool,
}

impl Writes {
    /// Learns from an answer.
    pub(super) fn note(&self, request: &Request<'_>, answer: &Result<Value, Failure>) {
        if request.writes() && matches!(answer, Err(Failure { writes_only: true, .. })) {
            self.refused.store(true, Ordering::Relaxed);
        }
    }
}

/// What can be checked: the connection to one server, or a pool of them.
pub(super) trait Server {
    /// Makes `request` by `deadline`.
    fn call(&self, request: Request<'_>, deadline: Instant) -> impl Future<Output = Result<Value, Failure>> + Send;

    fn writes(&self) -> &Writes;
}

/// A read, and a write as well if writes have been refused: so it is noticed that they are served again even where nobody writes,
/// because what is degraded is sent no requests.
#[derive(Clone)]
pub(super) struct Check {
    prefix: String,
    probe: Script,
    /// So many replicas must confirm the write, within so many milliseconds.
    replicas: Option<(usize, u64)>,
}

impl Check {
    pub(super) fn new(prefix: &str, probe: &Script) -> Self {
        Self { prefix: prefix.to_owned(), probe: probe.clone(), replicas: None }
    }

    pub(super) fn confirmed_by(self, replicas: usize, within: u64) -> Self {
        Self { replicas: Some((replicas, within)), ..self }
    }

    /// It begins like a session's: whoever may use those may use it.
    fn key(&self) -> String {
        Prefix(&self.prefix).key("{health}")
    }

    /// The same, in one of the slots that are `wanted`, if there is one.
    #[cfg(feature = "redis-cluster")]
    fn key_in(&self, wanted: impl Fn(u16) -> bool) -> String {
        let mut numbered = (0..1_000_000).map(|number| Prefix(&self.prefix).key(&format!("{{health{number}}}")));
        numbered.find(|key| wanted(slot_of(key))).unwrap_or_else(|| self.key())
    }

    pub(super) async fn of(&self, server: &impl Server, deadline: Instant) -> Health {
        self.with(server, self.key(), deadline).await
    }

    /// Of a node of a cluster, which has these slots.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn of_node(
        &self,
        server: &impl Server,
        has_slot: impl Fn(u16) -> bool,
        deadline: Instant,
    ) -> Health {
        let key = self.key_in(has_slot);
        self.with(server, key, deadline).await
    }

    async fn with(&self, server: &impl Server, key: String, deadline: Instant) -> Health {
        match self.make(server, key, deadline).await {
            Ok(()) => Health::Up,
            // Another node has the slot by now: whoever knows that is well.
            #[cfg(feature = "redis-cluster")]
            Err(Failure { advice: Some(_), .. }) => Health::Up,
            Err(failure) if failure.writes_only => Health::degraded(&failure.error),
            Err(failure) => Health::down(&failure.error),
        }
    }

    async fn make(&self, server: &impl Server, key: String, deadline: Instant) -> Result<(), Failure> {
        let read = server.call(Request::read(pipe().get(&key)), deadline).await;
        read.map_err(|failure| Failure { writes_only: false, ..failure })?;
        let refused = &server.writes().refused;
        if refused.load(Ordering::Relaxed) {
            let call = Call { script: &self.probe, keys: &[key], args: Vec::new() };
            let write = Request::script(&call).confirmed_by(self.replicas);
            server.call(write, deadline).await?;
            refused.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}
