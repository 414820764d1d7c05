//! The sessions of an outage: a memory store and the journal, which change together under one lock.

use std::sync::Arc;

use super::{
    cache::{Cache, State},
    journal::{Base, Journal, Pending},
    replay::{ReplayReply, ReplayTask, ReplayWrite},
    values::LocalValues,
};
use crate::{
    ended::{EndReason, Ended},
    limits::Limits,
    record::{Record, Version},
    store::{
        error::StoreError,
        memory::MemoryStore,
        observation::Observation,
        types::{Created, End, EndOutcome, Entry, Found, Loaded, Outcome},
    },
    time::{Clock, Timestamp},
    token::SessionId,
};

pub(super) struct Local {
    store: MemoryStore,
    journal: Journal,
    values: LocalValues,
    /// Whether changes are replayed, or dropped.
    merges: bool,
    capacity: usize,
    /// The number of changes that were lost.
    lost: usize,
    /// Everything is replayed, and the main store serves again.
    done: bool,
}

/// The next step of a replay.
pub(super) enum Next {
    Replay(Vec<ReplayTask>),
    /// Everything is replayed. This many changes were dropped.
    Done(usize),
}

impl Local {
    /// Starts with the recently cached sessions. `capacity` limits the writes and the ends, `values_capacity` the bytes of values.
    pub(super) fn new(
        cached: Vec<(SessionId, State)>,
        merges: bool,
        capacity: usize,
        values_capacity: usize,
        clock: impl Clock,
    ) -> Self {
        let now = clock.now();
        // The journal is the real limit.
        let places = cached.len().saturating_add(capacity).saturating_mul(2);
        let store = MemoryStore::new().capacity(places).reject_when_full().clock(clock);
        for (id, state) in cached {
            match state {
                State::Live { record, until } if until > now => {
                    store.create_now(&id, Entry { record, ttl: until.since(now) }, Limits::none());
                }
                State::Live { until, .. } => {
                    store.bury_now(&id, Ended::new(EndReason::Expired, until));
                }
                State::Ended(_, Some(claimed)) => {
                    let (claim, was) = *claimed;
                    store.create_now(&id, entry(was, now), Limits::none());
                    store.end_now(&id, &End::Used { claim }, now);
                }
                State::Ended(ended, None) => {
                    store.bury_now(&id, ended);
                }
                State::InDoubt => {}
            }
        }
        let (journal, values) = (Journal::new(capacity), LocalValues::new(values_capacity));
        Self { store, journal, values, merges, capacity: places, lost: 0, done: false }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn store(&self) -> &MemoryStore {
        &self.store
    }

    pub(super) fn values(&mut self) -> &mut LocalValues {
        &mut self.values
    }

    pub(super) fn journalled(&self) -> usize {
        self.journal.len() + self.values.changed()
    }

    fn record_of(&self, id: &SessionId) -> Option<Arc<Record>> {
        self.store.load_now(id).live().map(|loaded| loaded.record)
    }

    fn version_of(&self, id: &SessionId) -> Option<Version> {
        self.record_of(id).map(|record| record.version())
    }

    /// `sent`: the main store may have applied the creation as well.
    pub(super) fn create(
        &mut self,
        id: &SessionId,
        new: &Entry,
        limits: Limits,
        sent: bool,
        now: Timestamp,
    ) -> Result<Created, StoreError> {
        let version = new.record.version();
        let before = self.store.load_now(id);
        if matches!(before, Found::Unknown) && !self.journal.has_room_for_write(id) {
            return Err(full());
        }
        let created = self.store.create_now(id, new.clone(), limits);
        if created == Created::Full && self.store.len() >= self.capacity {
            return Err(full()); // not the limit of the user
        }
        match (before, &created) {
            (Found::Unknown, Created::Done { evicted }) => {
                for id in evicted {
                    self.journal.ended(id, End::For(EndReason::Evicted));
                }
                self.journal.written(id, Base::Nothing(limits), sent.then_some(version));
            }
            // The main store may have applied what is refused here.
            (_, Created::Full) if sent => {
                self.store.end_now(id, &End::For(EndReason::Evicted), now);
                self.journal.ended(id, End::For(EndReason::Evicted));
            }
            (Found::Live(ours), Created::Taken) if sent => {
                self.journal.written(id, Base::Version(ours.record.version()), Some(version));
            }
            _ => {}
        }
        Ok(created)
    }

    pub(super) fn update(
        &mut self,
        id: &SessionId,
        expected: Version,
        new: &Entry,
        sent: bool,
    ) -> Result<Outcome, StoreError> {
        let version = new.record.version();
        let before = self.record_of(id).filter(|before| before.version() == expected && version != expected);
        if before.is_some() && !self.journal.has_room_for_write(id) {
            return Err(full());
        }
        let outcome = self.store.update_now(id, expected, new.clone());
        match (&outcome, before) {
            (Outcome::Done, Some(before)) => {
                let pending = self.journal.written(id, Base::Version(expected), sent.then_some(version));
                pending.rotated |= before.generation() != new.record.generation();
            }
            // The main store may have applied what is refused here. The version in memory is newer.
            (Outcome::Conflict(ours), _) if sent => {
                self.journal.written(id, Base::Version(ours.record.version()), Some(version));
            }
            _ => {}
        }
        Ok(outcome)
    }

    pub(super) fn touch(&mut self, id: &SessionId, entry: &Entry) {
        let version = entry.record.version();
        if self.version_of(id) == Some(version) {
            self.store.touch_now(id, entry);
            if self.merges && self.journal.has_room_for_touch(id) {
                self.journal.written(id, Base::Version(version), None);
            }
        }
    }

    pub(super) fn end(&mut self, id: &SessionId, end: End, now: Timestamp) -> Result<EndOutcome, StoreError> {
        match end {
            End::For(_) => self.end_unconditionally(id, end, now),
            End::Replaced { expected, successor } => self.replace(id, expected, successor, now),
            End::Used { .. } => self.claim(id, end, now),
        }
    }

    fn end_unconditionally(&mut self, id: &SessionId, end: End, now: Timestamp) -> Result<EndOutcome, StoreError> {
        // The main store knows the end already, or will. An expired session may have been extended by another process.
        if let Found::Ended(Ended { reason, .. }) = self.store.load_now(id)
            && reason != EndReason::Expired
        {
            return Ok(EndOutcome::Gone);
        }
        self.check_room_for_end()?;
        let outcome = self.store.end_now(id, &end, now);
        self.journal.ended(id, end);
        Ok(outcome)
    }

    fn replace(
        &mut self,
        id: &SessionId,
        expected: Option<Version>,
        successor: SessionId,
        now: Timestamp,
    ) -> Result<EndOutcome, StoreError> {
        let expected_there = match self.store.load_now(id) {
            Found::Ended(ended) if ended.successor == Some(successor) => return Ok(EndOutcome::Done),
            Found::Ended(Ended { reason, .. }) if reason != EndReason::Expired => return Ok(EndOutcome::Gone),
            Found::Live(loaded) if expected.is_some_and(|expected| expected != loaded.record.version()) => {
                return Ok(EndOutcome::Conflict(loaded));
            }
            // The session has ended here, whatever version another process writes.
            Found::Live(_) => None,
            Found::Ended(_) | Found::Unknown => expected,
        };
        self.check_room_for_end()?;
        let outcome = self.store.end_now(id, &End::Replaced { expected, successor }, now);
        self.journal.ended(id, End::Replaced { expected: expected_there, successor });
        Ok(outcome)
    }

    fn claim(&mut self, id: &SessionId, end: End, now: Timestamp) -> Result<EndOutcome, StoreError> {
        let is_live = self.version_of(id).is_some();
        if is_live {
            self.check_room_for_end()?;
        }
        let outcome = self.store.end_now(id, &end, now);
        if is_live {
            self.journal.ended(id, end);
        }
        Ok(outcome)
    }

    pub(super) fn end_user(
        &mut self,
        user: &str,
        except: Option<&SessionId>,
        reason: EndReason,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.check_room_for_end()?;
        let ids = self.store.end_user_now(user, except, reason);
        self.journal.all_ended(user, except, reason, &ids);
        Ok(ids)
    }

    fn check_room_for_end(&self) -> Result<(), StoreError> {
        if self.journal.has_room_for_end() { Ok(()) } else { Err(full()) }
    }

    /// Applies a reply of the main store to a request that was sent before the outage.
    pub(super) fn observe(&mut self, observation: &Observation<'_>, now: Timestamp) {
        match observation {
            Observation::Live(id, loaded) => {
                let is_old = |ours: Arc<Record>| ours.version().is_after(loaded.record.version());
                if !self.journal.is_written(id) && !self.record_of(id).is_some_and(is_old) {
                    self.copy_from_main(id, loaded, now);
                }
            }
            Observation::Extended(id, entry) => self.store.touch_now(id, entry),
            Observation::Ended(id, ended, claim) => {
                match claim {
                    Some((claim, _)) => drop(self.store.end_now(id, &End::Used { claim: *claim }, now)),
                    None => self.store.bury_now(id, *ended),
                }
                self.journal.forget(id);
            }
            Observation::UserEnded { user, except, reason, .. } => {
                for id in self.store.end_user_now(user, *except, *reason) {
                    self.journal.forget(&id);
                }
            }
            Observation::NotLive(_) | Observation::MaybeEnded(_) | Observation::UserMaybeEnded { .. } => {}
        }
    }

    /// Copies a session of the main store to memory, unless it ended here.
    fn copy_from_main(&self, id: &SessionId, loaded: &Loaded, now: Timestamp) {
        let theirs = entry(loaded.clone(), now);
        match self.store.load_now(id) {
            Found::Live(ours) => drop(self.store.update_now(id, ours.record.version(), theirs)),
            Found::Unknown => drop(self.store.create_now(id, theirs, Limits::none())),
            Found::Ended(_) => {}
        }
    }

    /// The next changes to replay. Ends come first.
    pub(super) fn next(&mut self, count: usize, now: Timestamp) -> Next {
        let ends = self.journal.first_ends(count);
        if !ends.is_empty() {
            return Next::Replay(ends.into_iter().map(ReplayTask::End).collect());
        }
        let mut tasks = Vec::new();
        while self.merges && tasks.is_empty() {
            let writes = self.journal.first_writes(count);
            if writes.is_empty() {
                break;
            }
            tasks.extend(writes.iter().filter_map(|id| self.task_of(id)));
        }
        if !tasks.is_empty() {
            return Next::Replay(tasks);
        }
        if self.merges {
            let (tasks, lost) = self.values.tasks(count, now);
            self.lost += lost;
            if !tasks.is_empty() {
                return Next::Replay(tasks.into_iter().map(ReplayTask::Value).collect());
            }
        }
        let ended = self.journal.end_rotated();
        if ended > 0 {
            self.lost += ended;
            return self.next(count, now);
        }
        self.done = true;
        Next::Done(self.lost + self.journal.drop_writes() + self.values.changed())
    }

    /// The write to replay. An expired session needs none.
    fn task_of(&mut self, id: &SessionId) -> Option<ReplayTask> {
        let Found::Live(Loaded { record, ttl }) = self.store.load_now(id) else {
            self.journal.forget(id);
            return None;
        };
        let version = record.version();
        let entry = Entry { record, ttl: ttl.unwrap_or_default() };
        let pending = self.journal.write(id)?;
        let writing = match pending.base {
            Base::Nothing(limits) => ReplayWrite::Create(entry, limits),
            Base::Version(base) if base == version => ReplayWrite::Touch(entry),
            Base::Version(base) => ReplayWrite::Update(base, entry),
        };
        if !matches!(writing, ReplayWrite::Touch(_)) {
            pending.send(version);
        }
        Some(ReplayTask::Write(*id, writing))
    }

    /// Applies the reply to a replay. Returns the number of lost changes.
    pub(super) fn apply_reply(&mut self, task: &ReplayTask, reply: ReplayReply, cache: &Cache, now: Timestamp) -> u64 {
        let (id, writing) = match task {
            ReplayTask::End(end) => {
                self.journal.end_replayed(end);
                return 0;
            }
            ReplayTask::Write(id, writing) => (id, writing),
            ReplayTask::Value(task) => {
                return match reply {
                    ReplayReply::Value(reply) => self.values.apply_reply(task, reply),
                    _ => 0,
                };
            }
        };
        let written = writing.entry().record.version();
        match reply {
            ReplayReply::Done(evicted) => {
                if self.journal.is_written(id) {
                    let Entry { record, ttl } = writing.entry().clone();
                    let rotated = self.record_of(id).filter(|ours| ours.version() != written);
                    let rotated = rotated.map(|ours| ours.generation() != record.generation());
                    // The reply to a touch does not say whether the session exists.
                    if !matches!(writing, ReplayWrite::Touch(_)) {
                        cache.observe(&Observation::Live(id, Loaded { record, ttl: Some(ttl) }), cache.sequence(), now);
                    }
                    match (self.journal.write(id), rotated) {
                        // Written again: that is replayed next.
                        (Some(pending), Some(rotated)) => {
                            *pending = Pending { rotated, ..Pending::new(Base::Version(written)) };
                        }
                        _ => drop(self.journal.forget(id)),
                    }
                }
                let lost = evicted.iter().map(|id| self.ended_in_main(id, EndReason::Evicted, cache, now));
                lost.sum()
            }
            // An earlier write of this process, whose reply was lost.
            ReplayReply::Conflict(theirs) if self.is_ours(id, theirs.record.version()) => {
                if let Some(pending) = self.journal.write(id) {
                    pending.base = Base::Version(theirs.record.version());
                }
                0
            }
            ReplayReply::Conflict(theirs) => {
                let Some(lost) = self.journal.forget(id) else { return 0 };
                tracing::debug!(session = %id, "session changed by another process during the outage; changes dropped");
                if lost.rotated {
                    // The previous token must not be accepted again, and the new one would look stolen.
                    self.journal.ended(id, End::For(EndReason::Revoked));
                    self.ended_in_main(id, EndReason::Revoked, cache, now);
                } else {
                    self.copy_from_main(id, &theirs, now);
                    cache.observe(&Observation::Live(id, theirs), cache.sequence(), now);
                }
                1
            }
            ReplayReply::Gone(reason) => self.ended_in_main(id, reason, cache, now),
            ReplayReply::Value(_) => 0,
        }
    }

    /// A change was not replayed, because the main store is unavailable.
    pub(super) fn not_replayed(&mut self, task: &ReplayTask) {
        if let ReplayTask::Value(task) = task {
            self.values.not_replayed(task);
        }
    }

    fn is_ours(&mut self, id: &SessionId, version: Version) -> bool {
        self.journal.write(id).is_some_and(|pending| pending.sent.contains(&version))
    }

    /// A session has ended in the main store: it ends here too, and its changes are lost.
    fn ended_in_main(&mut self, id: &SessionId, reason: EndReason, cache: &Cache, now: Timestamp) -> u64 {
        let ended = Ended::new(reason, now);
        self.store.bury_now(id, ended);
        cache.observe(&Observation::Ended(id, ended, None), cache.sequence(), now);
        let lost = self.journal.forget(id).is_some();
        if lost {
            tracing::debug!(session = %id, %reason, "session ended by another process during the outage; changes dropped");
        }
        lost.into()
    }
}

fn entry(Loaded { record, ttl }: Loaded, now: Timestamp) -> Entry {
    Entry { ttl: ttl.unwrap_or_else(|| record.ttl_left(now, None)), record }
}

fn full() -> StoreError {
    super::error::Cause::Full.into()
}
