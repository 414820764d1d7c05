//! Which of the two is asked: the main store, or what there is without it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{
    Fallback, FallbackMode, OnRecovery,
    local::{Local, Next},
    operations::Operation,
    outage::{Away, Meanwhile, Outage, ask, is_back},
    replay::{AT_ONCE, ROUNDS, TELLING, Task, Told, tell},
    seen::{Asked, Lesson},
};
use crate::{
    metrics::{self, FALLBACK_ACTIVE, FALLBACK_IN_MEMORY, Stopwatch},
    observe::ErrorChain,
    store::{SessionStore, StoreError, all::all},
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

    /// Asks the main store if it is there, else does what can be done.
    pub(super) async fn perform<O: Operation>(&self, operation: O) -> Result<O::Answer, StoreError> {
        let mut sent = false;
        loop {
            let outage = match self.present_outage().await {
                Some(outage) => outage,
                None => {
                    let asked = self.seen.asked();
                    match ask(&self.main, operation.ask(&self.main)).await {
                        Ok(answer) => {
                            self.learn_from(&operation, &answer, asked);
                            return answer;
                        }
                        Err(Away(cause)) => {
                            sent = true;
                            self.goes_away(cause)
                        }
                    }
                }
            };
            let answer = match &outage.meanwhile {
                Meanwhile::Nothing => Err(outage.error()),
                Meanwhile::Stale => self.read_stale(&outage, &operation),
                Meanwhile::Local(_) => match self.perform_here(&outage, &operation, sent) {
                    Some(answer) => answer,
                    None => continue, // it was over in this very moment
                },
            };
            return answer;
        }
    }

    fn learn_from<O: Operation>(&self, operation: &O, answer: &Result<O::Answer, StoreError>, asked: Asked) {
        match answer {
            _ if self.mode == FallbackMode::Reject => {}
            Ok(answer) => operation.lessons(answer, self.clock.now(), &mut |lesson| self.learn(&lesson, asked)),
            Err(_) => operation.in_doubt(&self.seen),
        }
    }

    fn learn(&self, lesson: &Lesson<'_>, asked: Asked) {
        let now = self.clock.now();
        if !self.seen.learn(lesson, asked, now) {
            return;
        }
        // Asked before the outage, and answered in it.
        if let Some(outage) = self.outage()
            && let Some(mut local) = outage.local()
            && lesson.alive().is_none_or(|id| self.seen.counts(id, asked))
        {
            local.learn(lesson, now);
        }
    }

    fn read_stale<O: Operation>(&self, outage: &Outage, operation: &O) -> Result<O::Answer, StoreError> {
        operation.stale(&self.seen, self.seen_within, self.clock.now()).ok_or_else(|| {
            operation.in_doubt(&self.seen);
            outage.error()
        })
    }

    /// Does it in memory; `None` if the outage is over. `sent`: the main store was asked as well, and has not answered.
    fn perform_here<O: Operation>(
        &self,
        outage: &Outage,
        operation: &O,
        sent: bool,
    ) -> Option<Result<O::Answer, StoreError>> {
        let mut local = outage.local()?;
        let now = self.clock.now();
        let answer = operation.perform(&mut local, now, sent);
        if Stopwatch::RUNS {
            metrics::set(&FALLBACK_IN_MEMORY, [], local.store().len() as f64);
        }
        match &answer {
            // What ended here must not come back with the next outage.
            Ok(answer) => operation.lessons(answer, now, &mut |lesson| {
                if lesson.is_end() {
                    self.seen.learn(&lesson, self.seen.asked(), now);
                }
            }),
            Err(_) => self.counts.refused.add(1),
        }
        Some(answer)
    }

    /// The main store is away, since now or before.
    pub(super) fn goes_away(&self, cause: StoreError) -> Arc<Outage> {
        let mut outage = self.outage.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*outage
            && (known.local().is_some() || !matches!(known.meanwhile, Meanwhile::Local(_)))
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
        let meanwhile = match self.mode {
            FallbackMode::Reject => Meanwhile::Nothing,
            FallbackMode::ReadStale { .. } => Meanwhile::Stale,
            FallbackMode::Memory { on_recovery } => {
                let seen = self.seen.all(self.seen_within, self.clock.now());
                let merges = on_recovery == OnRecovery::Merge;
                let local = Local::new(seen, merges, self.capacity, self.values_capacity, self.clock.clone());
                Meanwhile::Local(Box::new(Mutex::new(local)))
            }
        };
        let begun = Arc::new(Outage::new(cause, meanwhile, self.counted(), self.probe_interval));
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
                        self.counts.dropped.add(local.settle(task, told, &self.seen, self.clock.now()));
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
