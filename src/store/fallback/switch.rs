//! Which of the two is asked: the main store, or what there is without it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{
    Fallback, FallbackMode, OnRecovery,
    cache::Sequence,
    error::Cause,
    in_memory::InMemory,
    local::{Local, Next},
    outage::{Asked, Outage, OutageState, ask, is_back},
    replay::{AT_ONCE, ROUNDS, TELLING, Task, Told, tell},
};
use crate::{
    metrics::{self, FALLBACK_ACTIVE, FALLBACK_IN_MEMORY},
    observe::ErrorChain,
    store::{all::all, error::StoreError, observation::Observation, operation::Operation, session_store::SessionStore},
    time::Clock,
};

/// How far the return of the main store has come.
enum Progress {
    /// It has been told everything.
    Over,
    More,
    /// It is away again, or does not take everything yet.
    Away,
}

fn fails_values(tasks: &[Task], answers: &[Result<Told, StoreError>]) -> bool {
    tasks.iter().zip(answers).any(|(task, answer)| matches!((task, answer), (Task::Value(_), Err(_))))
}

impl<S: SessionStore> Fallback<S> {
    pub(super) fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs an operation on the main store, or during an outage on what the mode provides instead.
    pub(super) async fn perform<O: Operation>(&self, operation: O) -> Result<O::Reply, StoreError> {
        let mut sent = false;
        loop {
            let outage = match self.present_outage().await {
                Some(outage) => outage,
                None => {
                    let sequence = self.cache.sequence();
                    match ask(&self.main, operation.clone()).await {
                        Asked::Replied(reply) => {
                            self.observe(&operation, &reply, sequence);
                            return reply;
                        }
                        Asked::Unavailable { cause, in_doubt } => {
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
        // A reply from before the outage that arrived during the outage.
        if let Some(outage) = self.outage()
            && let Some(mut local) = outage.local()
            && observation.alive().is_none_or(|id| self.cache.counts(id, sequence))
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

    /// The main store is away, since now or before.
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
                tracing::error!(store, ?mode, %error, "the session store lets nobody in: falling back");
            }
            _ => tracing::warn!(store, ?mode, %error, "the session store is away: falling back"),
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

    /// The outage, unless the main store turns out to be back.
    pub(super) async fn present_outage(&self) -> Option<Arc<Outage>> {
        let outage = self.outage()?;
        let Some(turn) = outage.turn() else { return Some(outage) };
        let progress = if is_back(&self.main).await { self.tell(&outage).await } else { Progress::Away };
        match progress {
            Progress::Over => {
                self.end(&outage);
                return None;
            }
            // The next request goes on with it.
            Progress::More => {}
            Progress::Away => outage.look_in(self.probe_interval),
        }
        drop(turn);
        Some(outage)
    }

    /// Tells the main store some of what it has missed.
    async fn tell(&self, outage: &Outage) -> Progress {
        let began = Instant::now();
        for _ in 0..ROUNDS {
            if began.elapsed() > TELLING {
                break;
            }
            let next = outage.local().map(|mut local| local.next(AT_ONCE, self.clock.now()));
            let tasks = match next {
                Some(Next::Tell(tasks)) => tasks,
                Some(Next::Over(dropped)) => {
                    self.counts.dropped.add(dropped as u64);
                    return Progress::Over;
                }
                None => return Progress::Over,
            };
            let answers = all(tasks.iter().map(|task| tell(&self.main, task))).await;
            // A value that it does not take must not keep the sessions from it. A session is told until it is taken.
            let is_there = fails_values(&tasks, &answers) && is_back(&self.main).await;
            let Some(mut local) = outage.local() else { return Progress::Over };
            let mut away = false;
            for (task, answer) in tasks.iter().zip(answers) {
                match answer {
                    Ok(told) => {
                        self.counts.dropped.add(local.settle(task, told, &self.cache, self.clock.now()));
                        self.counts.replayed.add(1);
                    }
                    Err(error) => {
                        outage.refused(self.main.name(), &error);
                        match task {
                            Task::Value(task) if is_there => {
                                self.counts.dropped.add(local.values().failed(task, &error));
                                away |= !local.values().has_more_than(task);
                            }
                            _ => {
                                local.not_told(task);
                                away = true;
                            }
                        }
                    }
                }
            }
            if away {
                return Progress::Away;
            }
        }
        Progress::More
    }

    fn end(&self, ended: &Arc<Outage>) {
        {
            let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
            if !outage.as_ref().is_some_and(|outage| Arc::ptr_eq(outage, ended)) {
                return; // it has ended before, and there may be another
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
            "the session store is back"
        );
    }

    /// Replayed, dropped, refused.
    fn counted(&self) -> [u64; 3] {
        [&self.counts.replayed, &self.counts.dropped, &self.counts.refused].map(super::stats::Count::get)
    }
}
