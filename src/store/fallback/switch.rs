//! Chooses between the main store and the fallback, and ends an outage.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{
    Fallback, FallbackMode, OnRecovery,
    cache::Sequence,
    error::Cause,
    in_memory::InMemory,
    local::{Local, Next},
    outage::{MainReply, Outage, OutageState, has_recovered, run_on_main},
    replay::{BATCH, BATCHES, REPLAY_BUDGET, ReplayReply, ReplayTask, replay},
};
use crate::{
    error_chain::ErrorChain,
    metrics::{self, FALLBACK_ACTIVE, FALLBACK_IN_MEMORY},
    store::{all::all, error::StoreError, observation::Observation, operation::Operation, session_store::SessionStore},
    time::Clock,
};

/// The progress of a recovery.
enum Progress {
    /// Everything is replayed.
    Done,
    More,
    /// The main store is unavailable again, or refuses a change for now.
    Unavailable,
}

fn fails_values(tasks: &[ReplayTask], replies: &[Result<ReplayReply, StoreError>]) -> bool {
    tasks.iter().zip(replies).any(|(task, reply)| matches!((task, reply), (ReplayTask::Value(_), Err(_))))
}

impl Fallback {
    pub(super) fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs an operation on the main store, or during an outage on what the mode provides instead.
    pub(super) async fn perform<O: Operation>(&self, operation: O) -> Result<O::Reply, StoreError> {
        let mut sent = false;
        loop {
            let outage = match self.current_outage().await {
                Some(outage) => outage,
                None => {
                    let sequence = self.cache.sequence();
                    match run_on_main(&*self.main, operation.clone()).await {
                        MainReply::Replied(reply) => {
                            self.observe(&operation, &reply, sequence);
                            return reply;
                        }
                        MainReply::Unavailable { cause, in_doubt } => {
                            let outage = self.begin_outage(cause);
                            // It may have been applied, and must not be applied twice.
                            if in_doubt {
                                return O::unconfirmed(Cause::InDoubt.into());
                            }
                            sent = true;
                            outage
                        }
                    }
                }
            };
            let reply = match &outage.state {
                OutageState::Unavailable => Err(outage.error()),
                OutageState::ReadStale => self.read_stale(&outage, &operation),
                OutageState::InMemory(_) => {
                    let in_memory = InMemory { fallback: self, outage: &outage, sent };
                    match operation.clone().run(&in_memory).await {
                        Err(error) if Cause::is_recovered(&error) => continue,
                        reply => reply,
                    }
                }
            };
            return reply;
        }
    }

    fn observe<O: Operation>(&self, operation: &O, reply: &Result<O::Reply, StoreError>, sequence: Sequence) {
        if self.mode != FallbackMode::Reject {
            operation.observe(reply.as_ref(), self.clock.now(), &mut |observation| self.apply(&observation, sequence));
        }
    }

    fn apply(&self, observation: &Observation<'_>, sequence: Sequence) {
        let now = self.clock.now();
        if !self.cache.observe(observation, sequence, now) {
            return;
        }
        // The reply to a request from before the outage.
        if let Some(outage) = self.outage()
            && let Some(mut local) = outage.local()
            && observation.alive().is_none_or(|id| self.cache.is_current(id, sequence))
        {
            local.observe(observation, now);
        }
    }

    fn read_stale<O: Operation>(&self, outage: &Outage, operation: &O) -> Result<O::Reply, StoreError> {
        let now = self.clock.now();
        let cached = O::skipped().or_else(|| operation.read_cached(|id| self.cache.stale(id, self.seen_within, now)));
        cached.ok_or_else(|| {
            let error = outage.error();
            // The caller gets an error, but a failed end may have reached the main store before.
            operation.observe(Err(&error), now, &mut |observation| {
                self.cache.observe(&observation, self.cache.sequence(), now);
            });
            error
        })
    }

    /// Begins an outage, unless one has begun.
    pub(super) fn begin_outage(&self, cause: StoreError) -> Arc<Outage> {
        let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*outage
            && (known.local().is_some() || !matches!(known.state, OutageState::InMemory(_)))
        {
            return known.clone();
        }
        let (store, mode, error) = (self.main.name(), self.mode, ErrorChain(&cause));
        match cause {
            StoreError::Configuration(_) => {
                tracing::error!(store, ?mode, %error, "the session store rejects this client; using the fallback");
            }
            _ => tracing::warn!(store, ?mode, %error, "the session store is unavailable; using the fallback"),
        }
        self.counts.outages.add(1);
        let state = match self.mode {
            FallbackMode::Reject => OutageState::Unavailable,
            FallbackMode::ReadStale { .. } => OutageState::ReadStale,
            FallbackMode::Memory { on_recovery } => {
                let cached = self.cache.all(self.seen_within, self.clock.now());
                let merges = on_recovery == OnRecovery::Merge;
                let local = Local::new(cached, merges, self.capacity, self.values_capacity, self.clock.clone());
                OutageState::InMemory(Box::new(Mutex::new(local)))
            }
        };
        let begun = Arc::new(Outage::new(cause, state, self.counted(), self.probe_interval));
        metrics::set(&FALLBACK_ACTIVE, [], 1.0);
        *outage = Some(begun.clone());
        begun
    }

    /// The current outage, unless a probe finds that the main store has recovered.
    pub(super) async fn current_outage(&self) -> Option<Arc<Outage>> {
        let outage = self.outage()?;
        let Some(permit) = outage.probe_permit() else { return Some(outage) };
        let progress =
            if has_recovered(&*self.main).await { self.replay(&outage).await } else { Progress::Unavailable };
        match progress {
            Progress::Done => {
                self.end(&outage);
                return None;
            }
            // The next request continues the replay.
            Progress::More => {}
            Progress::Unavailable => outage.probe_in(self.probe_interval),
        }
        drop(permit);
        Some(outage)
    }

    /// Replays some of the changes to the main store.
    async fn replay(&self, outage: &Outage) -> Progress {
        let began = Instant::now();
        for _ in 0..BATCHES {
            if began.elapsed() > REPLAY_BUDGET {
                break;
            }
            let next = outage.local().map(|mut local| local.next(BATCH, self.clock.now()));
            let tasks = match next {
                Some(Next::Replay(tasks)) => tasks,
                Some(Next::Done(dropped)) => {
                    self.counts.dropped.add(dropped as u64);
                    return Progress::Done;
                }
                None => return Progress::Done,
            };
            let replies = all(tasks.iter().map(|task| replay(&*self.main, task))).await;
            // A refused value must not keep the sessions from their store. Sessions are replayed until they are accepted.
            let is_available = fails_values(&tasks, &replies) && has_recovered(&*self.main).await;
            let Some(mut local) = outage.local() else { return Progress::Done };
            let mut is_unavailable = false;
            for (task, reply) in tasks.iter().zip(replies) {
                match reply {
                    Ok(reply) => {
                        self.counts.dropped.add(local.apply_reply(task, reply, &self.cache, self.clock.now()));
                        self.counts.replayed.add(1);
                    }
                    Err(error) => {
                        outage.refused(self.main.name(), &error);
                        match task {
                            ReplayTask::Value(task) if is_available => {
                                self.counts.dropped.add(local.values().failed(task, &error));
                                is_unavailable |= !local.values().has_more_than(task);
                            }
                            _ => {
                                local.not_replayed(task);
                                is_unavailable = true;
                            }
                        }
                    }
                }
            }
            if is_unavailable {
                return Progress::Unavailable;
            }
        }
        Progress::More
    }

    fn end(&self, ended: &Arc<Outage>) {
        {
            let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
            if !outage.as_ref().is_some_and(|outage| Arc::ptr_eq(outage, ended)) {
                return; // another request ended it
            }
            *outage = None;
            metrics::set(&FALLBACK_ACTIVE, [], 0.0);
            metrics::set(&FALLBACK_IN_MEMORY, [], 0.0);
        }
        let ([replayed, dropped, refused], before) = (self.counted(), ended.counts);
        tracing::info!(
            store = self.main.name(),
            lasted = ?ended.began.elapsed(),
            replayed = replayed - before[0],
            dropped = dropped - before[1],
            refused = refused - before[2],
            "the session store has recovered"
        );
    }

    /// The number of replayed, dropped and refused changes.
    fn counted(&self) -> [u64; 3] {
        [&self.counts.replayed, &self.counts.dropped, &self.counts.refused].map(super::stats::Count::get)
    }
}
