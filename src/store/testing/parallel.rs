//! Concurrent callers in separate tasks.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
};

use tokio::sync::{Barrier, oneshot};

use super::{Report, answered, check, ended, limits, listed, new_entry, new_id, new_user, new_version};
use crate::{
    ended::EndReason,
    limits::{Limits, WhenFull},
    store::{Created, End, Found, Outcome, SessionStore, StoreExt, Version},
    token::SessionId,
};

/// A task that [`run_parallel`] starts: `|task| drop(tokio::spawn(task))`.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tests the concurrent part of the [contract](SessionStore) of `store` with many tasks, and reports violations.
///
/// [`run`](super::run) uses one task, which interleaves operations but does not run them in parallel. So run this on a multi-threaded runtime.
/// `spawn` starts a task without waiting for it.
///
/// ```
/// use std::sync::Arc;
/// use tower_keep::{MemoryStore, store::testing};
///
/// # #[tokio::main(flavor = "multi_thread", worker_threads = 4)]
/// # async fn main() {
/// let report = testing::run_parallel(Arc::new(MemoryStore::new()), |task| drop(tokio::spawn(task))).await;
/// report.assert_passed();
/// assert!(report.passed() > 100);
/// # }
/// ```
pub async fn run_parallel(store: Arc<dyn SessionStore>, spawn: impl Fn(Task)) -> Report {
    let mut report = Report::new(&*store);
    let has_users = store.users().is_some();
    for callers in [2, 8, 32] {
        let ring = Ring { store: store.clone(), spawn: &spawn, callers };
        for round in 1..=5 {
            let case = |what: &str| format!("{callers} concurrent tasks, round {round}: {what}");
            for limit in [1, 3].into_iter().filter(|_| has_users) {
                for policy in [WhenFull::Reject, WhenFull::EvictOldest, WhenFull::EvictLeastRecentlyUsed] {
                    let what = format!("a limit of {limit}, {policy:?}");
                    report.case(case(&what), ring.limited(Limits::per_user(limit, policy)).await);
                }
            }
            report.case(case("one creates the id"), ring.one_creates().await);
            report.case(case("one updates the version"), ring.one_updates().await);
            report.case(case("one consumes"), ring.one_consumes().await);
            report.case(case("one replaces the version"), ring.one_replaces().await);
            report.case(case("no write is lost"), ring.none_is_lost().await);
            report.case(case("none resurrects an ended session"), ring.none_brings_back().await);
            if has_users {
                report.case(case("none survives the end of all"), ring.none_survives().await);
            }
        }
    }
    report
}

struct Ring<'a, S> {
    store: Arc<dyn SessionStore>,
    spawn: &'a S,
    callers: usize,
}

impl<S: Fn(Task)> Ring<'_, S> {
    /// One concurrent `job` per caller.
    async fn each<T, F>(&self, mut job: impl FnMut(usize, Arc<dyn SessionStore>) -> F) -> Result<Vec<T>, String>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let start = Arc::new(Barrier::new(self.callers));
        let mut answers = Vec::new();
        for caller in 0..self.callers {
            let (answer, wait) = oneshot::channel();
            let (job, start) = (job(caller, self.store.clone()), start.clone());
            (self.spawn)(Box::pin(async move {
                start.wait().await;
                let _ = answer.send(job.await); // or the receiver is gone
            }));
            answers.push(wait);
        }
        let mut results = Vec::new();
        for answer in answers {
            results.push(answer.await.map_err(|_| "a task panicked")??);
        }
        Ok(results)
    }

    /// A session of a user, and its version.
    async fn session(&self, user: &str) -> Result<(SessionId, Version), String> {
        let (id, new) = (new_id(Some(user))?, new_entry(Some(user))?);
        let version = new.record.version();
        let created = answered(self.store.create(&id, new, Limits::none()).await)?;
        check!(matches!(created, Created::Done { .. }), "{created:?}");
        Ok((id, version))
    }

    async fn dead(&self, user: &str, ids: &[SessionId]) -> Result<(), String> {
        for id in ids {
            check!(answered(self.store.load(id).await)?.live().is_none(), "one is live");
        }
        check!(listed(&*self.store, user).await?.unwrap_or_default().is_empty(), "one is listed");
        Ok(())
    }

    async fn limited(&self, limits: Limits) -> Result<(), String> {
        let user = new_user()?;
        let limit = limits.sessions().unwrap_or(usize::MAX);
        let created = self
            .each(|_, store| {
                let user = user.clone();
                async move {
                    let id = new_id(Some(&user))?;
                    let created = answered(store.create(&id, new_entry(Some(&user))?, limits).await)?;
                    let listed = answered(store.list(&user).await)?.len();
                    check!(listed <= limit, "{listed} are live");
                    Ok((id, created))
                }
            })
            .await?;
        let (mut done, mut evicted) = (HashSet::new(), Vec::new());
        for (id, created) in created {
            match created {
                Created::Done { evicted: those } => {
                    done.insert(id);
                    evicted.extend(those);
                }
                Created::Full => check!(limits.when_full() == WhenFull::Reject, "it is full"),
                Created::Taken => return Err("a new id is taken".into()),
            }
        }
        for id in &evicted {
            check!(done.remove(id), "one was evicted twice, or never created");
        }
        let listed: HashSet<_> = answered(self.store.list(&user).await)?.into_iter().map(|(id, _)| id).collect();
        let expected = limit.min(self.callers);
        check!(listed.len() == expected, "{} are live instead of {expected}", listed.len());
        check!(listed == done, "the live sessions are not those that were created and not evicted");
        Ok(())
    }

    async fn one_creates(&self) -> Result<(), String> {
        let user = new_user()?;
        let id = new_id(Some(&user))?;
        let created = self
            .each(|_, store| {
                let user = user.clone();
                async move {
                    let new = new_entry(Some(&user))?;
                    let version = new.record.version();
                    let created = answered(store.create(&id, new, limits(&*store)).await)?;
                    Ok(matches!(created, Created::Done { .. }).then_some(version))
                }
            })
            .await?;
        let winners: Vec<_> = created.into_iter().flatten().collect();
        check!(winners.len() == 1, "{} have created it", winners.len());
        let loaded = answered(self.store.load(&id).await)?.live().ok_or("it does not exist")?;
        check!(loaded.record.version() == winners[0], "the stored session is not the created one");
        Ok(())
    }

    async fn one_updates(&self) -> Result<(), String> {
        let user = new_user()?;
        let (id, first) = self.session(&user).await?;
        let outcomes = self
            .each(|_, store| {
                let user = user.clone();
                async move {
                    let new = new_entry(Some(&user))?;
                    let version = new.record.version();
                    match answered(store.update(&id, first, new).await)? {
                        Outcome::Done => Ok((true, version)),
                        Outcome::Conflict(loaded) => Ok((false, loaded.record.version())),
                        Outcome::Gone => Err("it is gone".into()),
                    }
                }
            })
            .await?;
        let winners = outcomes.iter().filter(|(won, _)| *won).count();
        check!(winners == 1, "{winners} have replaced it");
        check!(
            outcomes.iter().all(|(_, version)| *version == outcomes[0].1),
            "the conflict does not have the record of the winner"
        );
        Ok(())
    }

    async fn one_consumes(&self) -> Result<(), String> {
        let user = new_user()?;
        let (id, _) = self.session(&user).await?;
        let found = self
            .each(|_, store| async move {
                let claim = new_version()?;
                let first = answered(store.consume(&id, claim).await)?;
                let again = answered(store.consume(&id, claim).await)?;
                Ok((first, again))
            })
            .await?;
        let mut winners = 0;
        for found in found {
            match found {
                (Found::Live(first), Found::Live(again)) => {
                    check!(
                        first.record.version() == again.record.version(),
                        "a repeated claim returned another record"
                    );
                    winners += 1;
                }
                (Found::Ended(_), Found::Ended(ended)) => check!(ended.reason == EndReason::Used, "{ended:?}"),
                other => return Err(format!("{other:?}")),
            }
        }
        check!(winners == 1, "{winners} have consumed it");
        self.dead(&user, &[id]).await
    }

    async fn one_replaces(&self) -> Result<(), String> {
        let user = new_user()?;
        let (id, version) = self.session(&user).await?;
        let replaces = self.each(|_, store| async move {
            let successor = new_id(None)?;
            match ended(store.replace(&id, Some(version), &successor).await)? {
                Outcome::Done => Ok(Some(successor)),
                Outcome::Gone => Ok(None),
                Outcome::Conflict(_) => Err("a conflict without a write".into()),
            }
        });
        let winners: Vec<_> = replaces.await?.into_iter().flatten().collect();
        check!(winners.len() == 1, "{} have replaced it", winners.len());
        let found = answered(self.store.load(&id).await)?;
        check!(matches!(&found, Found::Ended(ended) if ended.successor == Some(winners[0])), "{found:?}");
        self.dead(&user, &[id]).await
    }

    /// Every caller writes three times, each over the version that it finds.
    async fn none_is_lost(&self) -> Result<(), String> {
        let user = new_user()?;
        let (id, first) = self.session(&user).await?;
        let writes = self
            .each(|_, store| {
                let user = user.clone();
                async move {
                    let mut writes = Vec::new();
                    let mut expected = first;
                    while writes.len() < 3 {
                        let new = new_entry(Some(&user))?;
                        let version = new.record.version();
                        match answered(store.update(&id, expected, new).await)? {
                            Outcome::Done => {
                                writes.push((expected.to_string(), version.to_string()));
                                expected = version;
                            }
                            Outcome::Conflict(loaded) => expected = loaded.record.version(),
                            Outcome::Gone => return Err("it is gone".into()),
                        }
                    }
                    Ok(writes)
                }
            })
            .await?;
        let after: HashMap<_, _> = writes.into_iter().flatten().collect();
        check!(after.len() == 3 * self.callers, "two writes have replaced the same version");
        let (mut version, mut writes) = (first.to_string(), 0);
        while let Some(next) = after.get(&version) {
            version = next.clone();
            writes += 1;
        }
        check!(writes == after.len(), "only {writes} of {} writes form a chain", after.len());
        let loaded = answered(self.store.load(&id).await)?.live().ok_or("it does not exist")?;
        check!(loaded.record.version().to_string() == version, "the last write was lost");
        Ok(())
    }

    async fn none_brings_back(&self) -> Result<(), String> {
        let user = new_user()?;
        let (id, first) = (new_id(Some(&user))?, new_entry(Some(&user))?);
        answered(self.store.create(&id, first.clone(), Limits::none()).await)?;
        self.each(|caller, store| {
            let (user, first) = (user.clone(), first.clone());
            async move {
                let version = first.record.version();
                match caller % 4 {
                    1 => answered(store.update(&id, version, new_entry(Some(&user))?).await).map(drop),
                    2 => answered(store.touch(&id, first).await),
                    3 => answered(store.create(&id, first, Limits::none()).await).map(drop),
                    _ => ended(store.end(&id, End::For(EndReason::LoggedOut)).await).map(drop),
                }
            }
        })
        .await?;
        self.dead(&user, &[id]).await
    }

    async fn none_survives(&self) -> Result<(), String> {
        let user = new_user()?;
        let mut sessions = Vec::new();
        for _ in 0..self.callers {
            sessions.push(self.session(&user).await?);
        }
        self.each(|caller, store| {
            let (user, (id, version)) = (user.clone(), sessions[caller]);
            async move {
                if caller == 0 {
                    return answered(store.end_user(&user, None, EndReason::Revoked).await).map(drop);
                }
                answered(store.update(&id, version, new_entry(Some(&user))?).await).map(drop)
            }
        })
        .await?;
        let ids: Vec<_> = sessions.iter().map(|(id, _)| *id).collect();
        self.dead(&user, &ids).await
    }
}
