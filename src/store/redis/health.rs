//! Health checks: whether Redis replies, and whether it accepts writes.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Value, pipe};
use tokio::time::Instant;

#[cfg(feature = "redis-cluster")]
use super::slots::slot_of;
use super::{
    error::Failure,
    keys::Prefix,
    request::Request,
    script::{Call, Script},
};
use crate::store::Health;

/// Whether the server refused a write. It may still serve reads.
///
/// A later successful write does not reset this, because writes need different resources: ending a session needs no memory. Only a
/// [`Check`] resets it.
#[derive(Default)]
pub(super) struct Writes {
    refused: AtomicBool,
}

impl Writes {
    /// Records a refused write.
    pub(super) fn note(&self, request: &Request<'_>, answer: &Result<Value, Failure>) {
        if request.writes() && matches!(answer, Err(Failure { writes_only: true, .. })) {
            self.refused.store(true, Ordering::Relaxed);
        }
    }
}

/// What can be checked: the connection to a server, or a pool.
pub(super) trait Server {
    /// Sends `request`, until `deadline`.
    fn call(&self, request: Request<'_>, deadline: Instant) -> impl Future<Output = Result<Value, Failure>> + Send;

    fn writes(&self) -> &Writes;
}

/// A health check: a read, and a write if writes were refused. The write finds that writes work again even if no requests arrive.
#[derive(Clone)]
pub(super) struct Check {
    prefix: String,
    probe: Script,
    /// The number of replicas that must confirm the write, and the timeout in milliseconds.
    replicas: Option<(usize, u64)>,
}

impl Check {
    pub(super) fn new(prefix: &str, probe: &Script) -> Self {
        Self { prefix: prefix.to_owned(), probe: probe.clone(), replicas: None }
    }

    pub(super) fn confirmed_by(self, replicas: usize, within: u64) -> Self {
        Self { replicas: Some((replicas, within)), ..self }
    }

    /// The key has the prefix of sessions, so the same permissions suffice.
    fn key(&self) -> String {
        Prefix(&self.prefix).key("{health}")
    }

    /// A key in one of the `wanted` slots.
    #[cfg(feature = "redis-cluster")]
    fn key_in(&self, wanted: impl Fn(u16) -> bool) -> String {
        let mut numbered = (0..1_000_000).map(|number| Prefix(&self.prefix).key(&format!("{{health{number}}}")));
        numbered.find(|key| wanted(slot_of(key))).unwrap_or_else(|| self.key())
    }

    pub(super) async fn of(&self, server: &impl Server, deadline: Instant) -> Health {
        self.with(server, self.key(), deadline).await
    }

    /// Checks a node of a cluster that has these slots.
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
            // The node redirects, so it works.
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
