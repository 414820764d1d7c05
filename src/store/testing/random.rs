//! Long random sequences of operations on several sessions of one user.

use std::collections::HashSet;

use super::{
    HOUR, Report, all, answered, check, ended, listed,
    model::{Op, Session},
    new_entry, new_id, new_user, new_version,
};
use crate::{
    ended::EndReason,
    limits::{Limits, WhenFull},
    record::{Record, Version},
    store::{Created, End, Entry, Found, SessionStore, StoreExt},
    token::SessionId,
};

const SEEDS: u64 = 400;
const OPERATIONS: usize = 40;
const SESSIONS: usize = 8;

pub(super) async fn run(store: &dyn SessionStore, report: &mut Report) {
    let seeds: Vec<u64> = (1..=SEEDS).collect();
    for seeds in seeds.chunks(20) {
        let results = all(seeds.iter().map(|seed| sequence(store, *seed))).await;
        for (seed, result) in seeds.iter().zip(results) {
            report.case(format!("{OPERATIONS} random operations, seed {seed}"), result);
        }
    }
}

/// The same numbers for the same seed, on every machine (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        (number % limit as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        if all.is_empty() { None } else { Some(all[self.below(all.len())]) }
    }
}

/// An operation on one session, or on all sessions of the user.
#[derive(Clone, Debug)]
enum Action {
    One(usize, Op, Limits),
    /// Except one.
    All(Option<usize>, EndReason),
}

/// The sessions of a user in the model.
struct World<'a> {
    store: &'a dyn SessionStore,
    random: Random,
    user: String,
    sessions: Vec<(SessionId, Session)>,
    /// The claims of two callers.
    claims: [Version; 2],
    done: Vec<Action>,
    /// The number of records so far. Each is younger than the previous one.
    records: u32,
}

async fn sequence(store: &dyn SessionStore, seed: u64) -> Result<(), String> {
    let user = new_user()?;
    let ids = (0..SESSIONS).map(|_| new_id(Some(&user)).map(|id| (id, Session::Unknown)));
    let mut world = World {
        store,
        // Small seeds are similar, and zero is invalid.
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        sessions: ids.collect::<Result<_, _>>()?,
        user,
        claims: [new_version()?, new_version()?],
        done: Vec::new(),
        records: 0,
    };
    for step in 1..=OPERATIONS {
        let action = world.choose()?;
        world.perform(&action).await.map_err(|problem| format!("step {step}, {action:?}: {problem}"))?;
        world.done.push(action);
    }
    world.check_all().await
}

impl World<'_> {
    fn choose(&mut self) -> Result<Action, String> {
        let place = self.random.below(SESSIONS);
        let current = match &self.sessions[place].1 {
            Session::Live(live) => live.clone(),
            _ => self.new_entry(place)?,
        };
        let expected = current.record.version();
        let reason = self.random.one_of(&EndReason::ALL).unwrap_or(EndReason::Revoked);
        let op = match self.random.below(16) {
            0..=4 => Op::Create(self.new_entry(place)?),
            5..=6 => Op::Update { expected, new: Entry { ttl: 2 * HOUR, ..self.new_entry(place)? } },
            7 => Op::Update { expected: new_version()?, new: self.new_entry(place)? },
            8 => Op::Touch(Entry { ttl: current.ttl + HOUR, ..current }),
            9 => Op::End(reason),
            10 => Op::Replace { expected: Some(expected), successor: new_id(None)? },
            11 => Op::Replace { expected: Some(new_version()?), successor: new_id(None)? },
            12 => Op::Consume(self.claims[self.random.below(2)]),
            13 if self.store.users().is_some() => {
                let excepted = self.random.below(SESSIONS + 1);
                return Ok(Action::All((excepted < SESSIONS).then_some(excepted), reason));
            }
            // An earlier operation again, as after a lost reply or a delay.
            _ => match self.random.below(self.done.len() + 1) {
                before if before < self.done.len() => return Ok(self.done[before].clone()),
                _ => Op::Touch(current),
            },
        };
        let policies = [WhenFull::Reject, WhenFull::EvictOldest, WhenFull::EvictLeastRecentlyUsed];
        let policy = self.random.one_of(&policies).unwrap_or_default();
        let limits = match self.random.below(6) {
            _ if self.store.users().is_none() => Limits::none(),
            0..=1 => Limits::none(),
            limit => Limits::per_user(limit, policy),
        };
        Ok(Action::One(place, op, limits))
    }

    fn new_entry(&mut self, place: usize) -> Result<Entry, String> {
        let mut record = Record::clone(&*new_entry(Some(&self.user))?.record);
        self.records += 1;
        // A write does not change the time of creation.
        record.created_at = match &self.sessions[place].1 {
            Session::Live(live) => live.record.created_at,
            _ => record.created_at.minus(HOUR).plus(std::time::Duration::from_secs(self.records.into())),
        };
        record.written_at = record.created_at;
        Ok(Entry { record: record.into(), ttl: HOUR })
    }

    fn live(&self) -> Vec<usize> {
        let places = 0..self.sessions.len();
        places.filter(|place| matches!(self.sessions[*place].1, Session::Live(_))).collect()
    }

    fn place_of(&self, id: &SessionId) -> Result<usize, String> {
        self.sessions.iter().position(|(other, _)| other == id).ok_or_else(|| "an unknown id".into())
    }

    async fn perform(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::One(place, Op::Create(new), limits) => self.create(*place, new, *limits).await?,
            Action::One(place, op, _) => self.other(*place, op).await?,
            Action::All(excepted, reason) => self.end_all(*excepted, *reason).await?,
        }
        let checked = match action {
            Action::One(place, ..) => *place,
            Action::All(..) => self.random.below(SESSIONS),
        };
        self.check(checked).await
    }

    async fn create(&mut self, place: usize, new: &Entry, limits: Limits) -> Result<(), String> {
        let id = self.sessions[place].0;
        let created = answered(self.store.create(&id, new.clone(), limits).await)?;
        if !matches!(self.sessions[place].1, Session::Unknown) {
            self.sessions[place].1.apply(&Op::Create(new.clone())).is_created(&created)?;
            return check_evicted(&created, 0);
        }
        let live = self.live();
        let over = (live.len() + 1).saturating_sub(limits.sessions().unwrap_or(usize::MAX));
        if over > 0 && limits.when_full() == WhenFull::Reject {
            check!(created == Created::Full, "{created:?} over the limit");
            return Ok(());
        }
        check_evicted(&created, over)?;
        let Created::Done { evicted } = created else { return Err(format!("{created:?} within the limit")) };
        for id in &evicted {
            let gone = self.place_of(id)?;
            if let (WhenFull::EvictOldest, Session::Live(gone)) = (limits.when_full(), &self.sessions[gone].1) {
                let older = live.iter().filter(|place| match &self.sessions[**place].1 {
                    Session::Live(live) => live.record.created_at < gone.record.created_at,
                    _ => false,
                });
                check!(older.count() < over, "an older session was not evicted");
            }
        }
        for id in &evicted {
            let gone = self.place_of(id)?;
            check!(matches!(self.sessions[gone].1, Session::Live(_)), "an evicted session was not live");
            self.sessions[gone].1 = Session::ended(EndReason::Evicted);
        }
        self.sessions[place].1.apply(&Op::Create(new.clone()));
        for id in &evicted {
            self.check(self.place_of(id)?).await?;
        }
        Ok(())
    }

    async fn other(&mut self, place: usize, op: &Op) -> Result<(), String> {
        let (store, id) = (self.store, self.sessions[place].0);
        let was_live = matches!(self.sessions[place].1, Session::Live(_));
        let expected = self.sessions[place].1.apply(op);
        match op {
            Op::Update { expected: version, new } => {
                expected.is_outcome(&answered(store.update(&id, *version, new.clone()).await)?)
            }
            Op::Touch(entry) => answered(store.touch(&id, entry.clone()).await),
            Op::End(reason) => expected.is_outcome(&ended(store.end(&id, End::For(*reason)).await)?),
            Op::Replace { expected: version, successor } => {
                expected.is_outcome(&ended(store.replace(&id, *version, successor).await)?)
            }
            Op::Consume(claim) => {
                let mut found = answered(store.consume(&id, *claim).await)?;
                // The TTL of a session that was consumed before is not specified.
                if let (Found::Live(loaded), false) = (&mut found, was_live) {
                    loaded.ttl = Some(HOUR);
                }
                expected.is_found(&found)
            }
            Op::Create(_) | Op::EndUser => Ok(()),
        }
    }

    async fn end_all(&mut self, excepted: Option<usize>, reason: EndReason) -> Result<(), String> {
        let except = excepted.map(|place| self.sessions[place].0);
        let ended = answered(self.store.end_user(&self.user, except.as_ref(), reason).await)?;
        let mut expected = self.live();
        expected.retain(|place| Some(*place) != excepted);
        let ended: HashSet<_> = ended.into_iter().collect();
        check!(
            ended == expected.iter().map(|place| self.sessions[*place].0).collect(),
            "the ended sessions are not those that were live"
        );
        for place in expected {
            self.sessions[place].1 = Session::ended(reason);
        }
        Ok(())
    }

    async fn check(&self, place: usize) -> Result<(), String> {
        let (id, session) = &self.sessions[place];
        session.is(&answered(self.store.load(id).await)?)
    }

    async fn check_all(&self) -> Result<(), String> {
        for place in 0..SESSIONS {
            self.check(place).await.map_err(|problem| format!("at the end, session {place}: {problem}"))?;
        }
        let Some(listed) = listed(self.store, &self.user).await? else { return Ok(()) };
        let live = self.live();
        check!(listed.len() == live.len(), "{} are listed, and {} are live", listed.len(), live.len());
        for (id, loaded) in listed {
            self.sessions[self.place_of(&id)?].1.is(&Found::Live(loaded))?;
        }
        Ok(())
    }
}

fn check_evicted(created: &Created, over: usize) -> Result<(), String> {
    if let Created::Done { evicted } = created {
        let different: HashSet<_> = evicted.iter().collect();
        check!(evicted.len() == over && different.len() == over, "{} were evicted instead of {over}", evicted.len());
    }
    Ok(())
}
