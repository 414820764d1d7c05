//! Ended sessions stay ended, and keep their reasons.

use std::{sync::Arc, time::Duration};

use super::{HOUR, Report, all, answered, check, ended, limits, listed, new_entry, new_id, new_user, new_version};
use crate::{
    ended::EndReason,
    limits::{Limits, WhenFull},
    store::{Created, End, Entry, Found, Outcome, Record, SessionStore, StoreExt},
    token::SessionId,
};

/// How a session ends, except by expiry.
#[derive(Clone, Copy, Debug)]
enum Ending {
    ForReason,
    Replaced,
    BeforeCreation,
    Consumed,
    UserEnded,
    Evicted,
}

const ENDINGS: [Ending; 6] =
    [Ending::ForReason, Ending::Replaced, Ending::BeforeCreation, Ending::Consumed, Ending::UserEnded, Ending::Evicted];

/// Operations that must neither resurrect it nor change the reason.
#[derive(Clone, Copy, Debug)]
enum Attempt {
    CreateLate,
    CreateAgain,
    Update,
    Touch,
    End,
    Replace,
    Consume,
}

const ATTEMPTS: [Attempt; 7] = [
    Attempt::CreateLate,
    Attempt::CreateAgain,
    Attempt::Update,
    Attempt::Touch,
    Attempt::End,
    Attempt::Replace,
    Attempt::Consume,
];

/// Every sequence of three attempts.
fn sequences() -> impl Iterator<Item = [Attempt; 3]> {
    let pairs = ATTEMPTS.into_iter().flat_map(|first| ATTEMPTS.map(|second| (first, second)));
    pairs.flat_map(|(first, second)| ATTEMPTS.map(|third| [first, second, third]))
}

pub(super) async fn run(store: &dyn SessionStore, advance: &impl AsyncFn(Duration), report: &mut Report) {
    for of_user in [false, true] {
        let whose = if of_user { "user" } else { "anonymous" };
        let as_a_user = of_user && store.users().is_some();
        for ending in ENDINGS.into_iter().take(if as_a_user { 6 } else { 4 }) {
            for reason in EndReason::ALL {
                let case = format!("{whose} session, ended ({ending:?}) for {reason:?}: its reason is kept");
                report.case(case, attempted(store, of_user, ending, reason, &[]).await);
            }
            let reasons = EndReason::ALL.into_iter().cycle();
            let cases: Vec<_> = sequences().zip(reasons).collect();
            for cases in cases.chunks(36) {
                let results = cases.iter().map(|(steps, reason)| attempted(store, of_user, ending, *reason, steps));
                for ((steps, _), result) in cases.iter().zip(all(results).await) {
                    report.case(format!("{whose} session, ended ({ending:?}), then {steps:?}"), result);
                }
            }
        }
        for (steps, result) in expired(store, advance, of_user).await {
            report.case(format!("{whose} session, expired, then {steps:?}"), result);
        }
    }
}

/// An ended session.
struct EndedSession<'a> {
    store: &'a dyn SessionStore,
    id: SessionId,
    /// The record and time to live of its creation.
    entry: Entry,
    /// The reason, if the store has a tombstone.
    reason: Option<EndReason>,
}

impl EndedSession<'_> {
    async fn attempt(&self, attempt: Attempt) -> Result<(), String> {
        let (store, id) = (self.store, &self.id);
        match attempt {
            Attempt::CreateLate | Attempt::CreateAgain => {
                let new = match attempt {
                    Attempt::CreateLate => self.entry.clone(),
                    _ => new_entry(self.entry.record.user())?,
                };
                let created = answered(store.create(id, new, Limits::none()).await)?;
                check!(created == Created::Taken, "{attempt:?}: {created:?}");
            }
            Attempt::Update => {
                let new = new_entry(self.entry.record.user())?;
                self.gone(answered(store.update(id, self.entry.record.version(), new).await), attempt)?;
            }
            Attempt::Touch => answered(store.touch(id, self.entry.clone()).await)?,
            Attempt::End => {
                let other =
                    if self.reason == Some(EndReason::Revoked) { EndReason::LoggedOut } else { EndReason::Revoked };
                self.gone(ended(store.end(id, End::For(other)).await), attempt)?;
            }
            Attempt::Replace => self.gone(ended(store.replace(id, None, &new_id(None)?).await), attempt)?,
            Attempt::Consume => self.check(&answered(store.consume(id, new_version()?).await)?)?,
        }
        Ok(())
    }

    fn gone(&self, outcome: Result<Outcome, String>, attempt: Attempt) -> Result<(), String> {
        let outcome = outcome?;
        check!(matches!(outcome, Outcome::Gone), "{attempt:?}: {outcome:?}");
        Ok(())
    }

    fn check(&self, found: &Found) -> Result<(), String> {
        match (found, self.reason) {
            (Found::Ended(ended), Some(reason)) if ended.reason == reason => Ok(()),
            (Found::Ended(_) | Found::Unknown, None) => Ok(()),
            (Found::Live(_), _) => Err("it was resurrected".into()),
            (other, _) => Err(format!("it is {other:?}, and ended for {:?}", self.reason)),
        }
    }

    async fn stays(&self, attempts: &[Attempt]) -> Result<(), String> {
        self.check(&answered(self.store.load(&self.id).await)?)?;
        for attempt in attempts {
            self.attempt(*attempt).await?;
            self.check(&answered(self.store.load(&self.id).await)?)
                .map_err(|problem| format!("{attempt:?}: {problem}"))?;
        }
        let Some(user) = self.entry.record.user() else { return Ok(()) };
        let listed = listed(self.store, user).await?.unwrap_or_default();
        check!(listed.iter().all(|(id, _)| *id != self.id), "it is listed");
        Ok(())
    }
}

async fn attempted(
    store: &dyn SessionStore,
    of_user: bool,
    ending: Ending,
    reason: EndReason,
    attempts: &[Attempt],
) -> Result<(), String> {
    let user = of_user.then(new_user).transpose()?;
    let user = user.as_deref();
    let (id, entry) = (new_id(user)?, new_entry(user)?);
    if !matches!(ending, Ending::BeforeCreation) {
        let created = answered(store.create(&id, entry.clone(), Limits::none()).await)?;
        check!(matches!(created, Created::Done { .. }), "{created:?}");
    }
    let reason = match ending {
        Ending::ForReason | Ending::BeforeCreation => {
            ended(store.end(&id, End::For(reason)).await)?;
            reason
        }
        Ending::Replaced => {
            ended(store.replace(&id, Some(entry.record.version()), &new_id(user)?).await)?;
            EndReason::Replaced
        }
        Ending::Consumed => {
            answered(store.consume(&id, new_version()?).await)?;
            EndReason::Used
        }
        Ending::UserEnded => {
            answered(store.end_user(user.unwrap_or_default(), None, reason).await)?;
            reason
        }
        Ending::Evicted => {
            let limits = Limits::per_user(1, WhenFull::EvictOldest);
            answered(store.create(&new_id(user)?, new_entry(user)?, limits).await)?;
            EndReason::Evicted
        }
    };
    EndedSession { store, id, entry, reason: Some(reason) }.stays(attempts).await
}

/// All expire at the same time, because waiting may be slow.
async fn expired(
    store: &dyn SessionStore,
    advance: &impl AsyncFn(Duration),
    of_user: bool,
) -> Vec<([Attempt; 3], Result<(), String>)> {
    let ttl = Duration::from_millis(100);
    let created = all(sequences().map(|steps| async move { (steps, short_lived(store, of_user, ttl).await) })).await;
    advance(ttl + ttl / 4).await;
    let attempted = created
        .into_iter()
        .map(|(steps, created)| async move { (steps, async { expired_stays(store, created?, &steps).await }.await) });
    all(attempted).await
}

async fn short_lived(
    store: &dyn SessionStore,
    of_user: bool,
    ttl: Duration,
) -> Result<(SessionId, Arc<Record>), String> {
    let user = of_user.then(new_user).transpose()?;
    let (id, new) = (new_id(user.as_deref())?, new_entry(user.as_deref())?);
    let created = answered(store.create(&id, Entry { ttl, ..new.clone() }, limits(store)).await)?;
    check!(matches!(created, Created::Done { .. }), "{created:?}");
    Ok((id, new.record))
}

async fn expired_stays(
    store: &dyn SessionStore,
    (id, record): (SessionId, Arc<Record>),
    attempts: &[Attempt],
) -> Result<(), String> {
    let reason = match answered(store.load(&id).await)? {
        Found::Live(_) => return Err("it has not expired".into()),
        Found::Ended(ended) if ended.reason == EndReason::Expired => Some(EndReason::Expired),
        Found::Ended(ended) => return Err(format!("it expired, and its reason is {:?}", ended.reason)),
        Found::Unknown => None,
    };
    // An unknown id can be created, or ended before its creation.
    let begins = |attempt: &&Attempt| {
        matches!(attempt, Attempt::CreateLate | Attempt::CreateAgain | Attempt::End | Attempt::Replace)
    };
    let attempts: Vec<_> = attempts.iter().filter(|attempt| reason.is_some() || !begins(attempt)).copied().collect();
    EndedSession { store, id, entry: Entry { record, ttl: HOUR }, reason }.stays(&attempts).await
}
