//! Every sequence of three operations on one session.

use std::time::Duration;

use super::{
    HOUR, Report, all, answered, check, ended, listed,
    model::{Op, Session},
    new_entry, new_id, new_record, new_user, new_version,
};
use crate::{
    ended::EndReason,
    store::{End, Entry, SessionStore, StoreExt, Version},
    token::SessionId,
};

/// The next operation.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Update,
    UpdateStale,
    Touch,
    TouchStale,
    End(EndReason),
    Replace,
    ReplaceStale,
    ReplaceAny,
    Consume,
    /// By another caller.
    ConsumeToo,
    EndUser,
    /// The previous operation again, as after a lost reply.
    Again,
    /// The first operation again, as after a long delay.
    Late,
}

const STEPS: [Step; 15] = [
    Step::Create,
    Step::Update,
    Step::UpdateStale,
    Step::Touch,
    Step::TouchStale,
    Step::End(EndReason::LoggedOut),
    Step::End(EndReason::Revoked),
    Step::Replace,
    Step::ReplaceStale,
    Step::ReplaceAny,
    Step::Consume,
    Step::ConsumeToo,
    Step::EndUser,
    Step::Again,
    Step::Late,
];

pub(super) async fn run(store: &dyn SessionStore, report: &mut Report) {
    let steps: Vec<_> =
        STEPS.into_iter().filter(|step| store.users().is_some() || !matches!(step, Step::EndUser)).collect();
    for of_user in [false, true] {
        for first in &steps {
            for second in &steps {
                let sequences: Vec<_> = steps.iter().map(|third| sequence(*first, *second, *third)).collect();
                let results = all(sequences.iter().map(|steps| run_sequence(store, of_user, steps))).await;
                let whose = if of_user { "user" } else { "anonymous" };
                for (steps, result) in sequences.iter().zip(results) {
                    report.case(format!("{whose} session: {steps:?}"), result);
                }
            }
        }
    }
}

/// Most start with an existing session.
fn sequence(first: Step, second: Step, third: Step) -> Vec<Step> {
    match (first, second) {
        (Step::Create, _) | (_, Step::Create | Step::Late) => vec![first, second, third],
        _ => vec![Step::Create, first, second, third],
    }
}

/// One session and its operations.
struct Sequence<'a> {
    store: &'a dyn SessionStore,
    id: SessionId,
    user: Option<String>,
    /// The user whose sessions `EndUser` ends if the session is anonymous.
    other_user: String,
    session: Session,
    claims: [Version; 2],
    done: Vec<Op>,
}

async fn run_sequence(store: &dyn SessionStore, of_user: bool, steps: &[Step]) -> Result<(), String> {
    let user = of_user.then(new_user).transpose()?;
    let mut sequence = Sequence {
        store,
        id: new_id(user.as_deref())?,
        user,
        other_user: new_user()?,
        session: Session::Unknown,
        claims: [new_version()?, new_version()?],
        done: Vec::new(),
    };
    for (place, step) in steps.iter().enumerate() {
        let op = sequence.op(*step)?;
        sequence.perform(op).await.map_err(|problem| format!("step {}: {problem}", place + 1))?;
    }
    sequence.check_list().await
}

impl Sequence<'_> {
    fn op(&self, step: Step) -> Result<Op, String> {
        let user = self.user.as_deref();
        let current = match &self.session {
            Session::Live(live) => live.clone(),
            _ => new_entry(user)?,
        };
        let expected = current.record.version();
        // Another time to live, so that an extension is visible.
        let new = || Ok::<_, String>(Entry { record: new_record(user)?, ttl: 2 * HOUR });
        Ok(match step {
            Step::Create => Op::Create(new_entry(user)?),
            Step::Update => Op::Update { expected, new: new()? },
            Step::UpdateStale => Op::Update { expected: new_version()?, new: new()? },
            Step::Touch => Op::Touch(Entry { ttl: current.ttl + HOUR, ..current }),
            Step::TouchStale => Op::Touch(Entry { ttl: 9 * HOUR, ..new_entry(user)? }),
            Step::End(reason) => Op::End(reason),
            Step::Replace => Op::Replace { expected: Some(expected), successor: new_id(user)? },
            Step::ReplaceStale => Op::Replace { expected: Some(new_version()?), successor: new_id(user)? },
            Step::ReplaceAny => Op::Replace { expected: None, successor: new_id(None)? },
            Step::Consume => Op::Consume(self.claims[0]),
            Step::ConsumeToo => Op::Consume(self.claims[1]),
            Step::EndUser => Op::EndUser,
            Step::Again | Step::Late if self.done.is_empty() => self.op(Step::TouchStale)?,
            Step::Again => self.done[self.done.len() - 1].clone(),
            Step::Late => self.done[0].clone(),
        })
    }

    async fn perform(&mut self, op: Op) -> Result<(), String> {
        let (store, id) = (self.store, &self.id);
        let expected = self.session.apply(&op);
        match &op {
            Op::Create(new) => {
                expected.is_created(&answered(store.create(id, new.clone(), crate::Limits::none()).await)?)?
            }
            Op::Update { expected: version, new } => {
                expected.is_outcome(&answered(store.update(id, *version, new.clone()).await)?)?;
            }
            Op::Touch(entry) => answered(store.touch(id, entry.clone()).await)?,
            Op::End(reason) => expected.is_outcome(&ended(store.end(id, End::For(*reason)).await)?)?,
            Op::Replace { expected: version, successor } => {
                expected.is_outcome(&ended(store.replace(id, *version, successor).await)?)?;
            }
            Op::Consume(claim) => {
                let mut found = answered(store.consume(id, *claim).await)?;
                // A repeated claim returns a session that has ended, whose time to live is not specified.
                if let (crate::store::Found::Live(loaded), true) = (&mut found, self.is_repeated_claim(*claim)) {
                    loaded.ttl = Some(HOUR);
                }
                expected.is_found(&found)?;
            }
            Op::EndUser => {
                let user = self.user.as_deref().unwrap_or(&self.other_user);
                drop(answered(store.end_user(user, None, EndReason::Revoked).await)?);
            }
        }
        self.done.push(op);
        self.check().await
    }

    fn is_repeated_claim(&self, claim: Version) -> bool {
        self.done.iter().any(|op| matches!(op, Op::Consume(other) if *other == claim))
    }

    /// The stored session is that of the model.
    async fn check(&self) -> Result<(), String> {
        self.session.is(&answered(self.store.load(&self.id).await)?)
    }

    async fn check_list(&self) -> Result<(), String> {
        let Some(user) = &self.user else { return Ok(()) };
        let Some(listed) = listed(self.store, user).await? else { return Ok(()) };
        match &self.session {
            Session::Live(live) => {
                check!(listed.len() == 1 && listed[0].0 == self.id, "it is live and not listed");
                check!(listed[0].1.record.version() == live.record.version(), "an old version is listed");
                let left = listed[0].1.ttl.unwrap_or_default();
                check!(left <= live.ttl && left + Duration::from_secs(60) > live.ttl, "listed with {left:?} to live");
            }
            _ => check!(listed.is_empty(), "it is listed and not live"),
        }
        Ok(())
    }
}
