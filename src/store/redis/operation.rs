//! The operations of the store as Redis commands.

use std::{collections::HashMap, fmt, ops::Deref, time::Duration};

use redis::{Cmd, Pipeline, Value, cmd, pipe};
use tokio::time::Instant;

use super::{
    error::Failure,
    health::Check,
    inner::Inner,
    keys::Keys,
    local_tombstones::EndedBy,
    reply::{FIRST_SLICE, found, id, ids, is_record, loaded, number, order_of, outcome, slice},
    request::Request,
    script::{Call, Script},
};
use crate::{
    ended::{EndReason, Ended},
    lifetime::LONGEST,
    limits::{Limits, WhenFull},
    record::HEAD_LEN,
    store::{Created, End, EndOutcome, Entry, Found, Health, Loaded, Outcome, Record, Version},
    time::{Clock, SystemClock, Timestamp, millis},
    token::SessionId,
};

/// One operation of the store. All of its commands share one deadline.
pub(super) struct Operation<'a> {
    pub(super) inner: &'a Inner,
    pub(super) deadline: Instant,
}

impl Deref for Operation<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner
    }
}

impl Operation<'_> {
    /// Sends read commands to the server of `key`.
    pub(super) async fn read(&self, key: &str, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        match self.route.call(key, Request::read(commands), self.deadline).await? {
            Value::Array(replies) if replies.len() == commands.len() => Ok(replies),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    pub(super) async fn write(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        self.route.call(key, Request::write(command), self.deadline).await
    }

    pub(super) async fn run(&self, script: &Script, keys: &[String], args: Vec<Vec<u8>>) -> Result<Value, Failure> {
        let call = Call { script, keys, args };
        self.route.call(&keys[0], Request::script(&call), self.deadline).await
    }

    /// Runs a script whose effect must survive a failover: waits for replicas if that is configured.
    pub(super) async fn run_confirmed(
        &self,
        script: &Script,
        keys: &[String],
        args: Vec<Vec<u8>>,
    ) -> Result<Value, Failure> {
        let (Some(route), Some(replicas)) = (&self.replica_wait, self.config.replicas) else {
            return self.run(script, keys, args).await;
        };
        let call = Call { script, keys, args };
        let request = Request::script(&call).confirmed_by(Some((replicas, self.replica_timeout())));
        route.call(&keys[0], request, self.deadline).await
    }

    pub(super) async fn health(&self) -> Health {
        let (check, deadline) = (Check::new(&self.config.prefix, &self.scripts.probe), self.deadline);
        let health = self.route.health(&check, deadline).await;
        let (Health::Up, Some(route), Some(replicas)) = (&health, &self.replica_wait, self.config.replicas) else {
            return health;
        };
        match route.health(&check.confirmed_by(replicas, self.replica_timeout()), deadline).await {
            Health::Up => Health::Up,
            Health::Degraded(cause) | Health::Down(cause) => Health::Degraded(cause),
        }
    }

    pub(super) async fn load(&self, id: &SessionId) -> Result<Found, Failure> {
        let keys = self.prefix().keys(id);
        // Read the epoch first: when all sessions of a user end, a spared session gets the new epoch before the user does.
        let [session, _, epoch] = &keys.all;
        let found = match &*self.read(session, pipe().get(epoch).get(session).pttl(session)).await? {
            [_, Value::Nil, _] => self.unless_expired(&keys).await?,
            [epoch, Value::BulkString(stored), Value::Int(ttl)] => found(stored, *ttl, number(epoch))?,
            _ => return Err(Failure::unexpected_reply()),
        };
        match (found, self.local_tombstones.get(id)) {
            (Found::Live(_), Some(ended)) => {
                tracing::warn!(session = %id, "Redis lost the end of a session; the session is ended again");
                // Best effort: the next request tries again.
                let end = match ended.successor {
                    Some(successor) => End::Replaced { expected: None, successor },
                    None => End::For(ended.reason),
                };
                let _ = self.end(id, end).await;
                Ok(Found::Ended(ended))
            }
            (found, _) => Ok(found),
        }
    }

    /// Distinguishes an expired session from an unknown one: the index still has the id of an expired session. The index is read first, so a
    /// session that is created at the same moment is not taken for an expired one.
    async fn unless_expired(&self, keys: &Keys) -> Result<Found, Failure> {
        let [session, index, epoch] = &keys.all;
        let mut reads = pipe();
        reads.cmd("ZSCORE").arg(index).arg(&keys.member).get(epoch).get(session).pttl(session);
        let expired = |at: f64| Found::Ended(Ended::new(EndReason::Expired, Timestamp::from_millis(at as u64)));
        match &*self.read(session, &reads).await? {
            [_, epoch, Value::BulkString(stored), Value::Int(ttl)] => found(stored, *ttl, number(epoch)),
            [Value::Nil, _, Value::Nil, _] => Ok(Found::Unknown),
            [Value::Double(at), _, Value::Nil, _] => Ok(expired(*at)),
            [Value::BulkString(at), _, Value::Nil, _] => {
                let at = std::str::from_utf8(at).ok().and_then(|text| text.parse().ok());
                Ok(expired(at.unwrap_or_default()))
            }
            _ => Err(Failure::unexpected_reply()),
        }
    }

    pub(super) async fn create(&self, id: &SessionId, new: Entry, limits: Limits) -> Result<Created, Failure> {
        let keys = self.prefix().keys(id);
        if self.local_tombstones.get(id).is_some() {
            return Ok(Created::Taken);
        }
        if !self.reserve(id, new.ttl, false).await? {
            return Ok(Created::Full);
        }
        let created = match new.record.user() {
            Some(_) => self.create_of_user(id, &keys, &new, limits).await,
            None => self.create_anonymous(&keys, &new).await,
        }?;
        let (created, holds_place) = created;
        if !holds_place {
            self.release(&[*id]).await;
        }
        if let Created::Done { evicted } = &created {
            self.local_tombstones.add(evicted, EndReason::Evicted);
            self.release(evicted).await;
        }
        Ok(created)
    }

    /// The reply, and whether the id is live now.
    async fn create_of_user(
        &self,
        id: &SessionId,
        keys: &Keys,
        new: &Entry,
        limits: Limits,
    ) -> Result<(Created, bool), Failure> {
        let mut args = self.written(&keys.member, new);
        let policy = match limits.when_full() {
            WhenFull::Reject => "reject",
            WhenFull::EvictOldest => "oldest",
            WhenFull::EvictLeastRecentlyUsed => "used",
        };
        let replaced = new.record.replaces().filter(|old| old.tag() == id.tag());
        let replaced = replaced.map(|old| self.prefix().keys(old).member).unwrap_or_default();
        args.extend([keys.prefix().into(), text(limits.sessions().unwrap_or(0)), policy.into(), replaced.into()]);
        match self.run(&self.scripts.create, &keys.all, args).await? {
            Value::Array(answer) => match answer.split_first() {
                Some((Value::Int(1), evicted)) => Ok((Created::Done { evicted: ids(id.slot_tag(), evicted) }, true)),
                Some((Value::Int(0), _)) => Ok((Created::Taken, true)),
                Some((Value::Int(-2), _)) => Ok((Created::Taken, false)),
                Some((Value::Int(-1), _)) => Ok((Created::Full, false)),
                _ => Err(Failure::unexpected_reply()),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }

    /// The reply, and whether the id is live now.
    async fn create_anonymous(&self, keys: &Keys, new: &Entry) -> Result<(Created, bool), Failure> {
        let mut create = cmd("SET");
        create.arg(keys.session()).arg(self.encode(&new.record)).arg("NX").arg("PX").arg(ttl_of(new.ttl));
        match self.write(keys.session(), &create).await? {
            Value::Okay => Ok((Created::Done { evicted: Vec::new() }, true)),
            // The id exists, perhaps because of this same write, whose reply was lost.
            Value::Nil => match &*self.read(keys.session(), pipe().get(keys.session())).await? {
                [Value::BulkString(stored)] if Version::of(stored) == Some(new.record.version()) => {
                    Ok((Created::Done { evicted: Vec::new() }, true))
                }
                [Value::BulkString(stored)] => Ok((Created::Taken, is_record(stored))),
                _ => Ok((Created::Taken, false)),
            },
            _ => Err(Failure::unexpected_reply()),
        }
    }

    pub(super) async fn update(&self, id: &SessionId, expected: Version, new: Entry) -> Result<Outcome, Failure> {
        let keys = self.prefix().keys(id);
        if self.local_tombstones.get(id).is_some() {
            return Ok(Outcome::Gone);
        }
        self.reserve(id, new.ttl, true).await?;
        let mut args = self.written(keys.member_of(&new.record), &new);
        args.push(text(expected));
        let update = &self.scripts.update;
        let outcome = outcome(&if new.record.rotates() {
            self.run_confirmed(update, &keys.all, args).await?
        } else {
            self.run(update, &keys.all, args).await?
        })?;
        if let Outcome::Gone = outcome {
            self.release(&[*id]).await;
        }
        Ok(outcome)
    }

    pub(super) async fn touch(&self, id: &SessionId, entry: Entry) -> Result<(), Failure> {
        let keys = self.prefix().keys(id);
        if self.local_tombstones.get(id).is_some() {
            return Ok(());
        }
        self.reserve(id, entry.ttl, true).await?;
        let member = keys.member_of(&entry.record);
        let args =
            vec![text(entry.record.version()), text(ttl_of(entry.ttl)), member.into(), text(self.tombstone_ttl())];
        if self.run(&self.scripts.touch, &keys.all, args).await? == Value::Int(0) {
            self.release(&[*id]).await;
        }
        Ok(())
    }

    pub(super) async fn end(&self, id: &SessionId, end: End) -> Result<EndOutcome, Failure> {
        let (expected, successor) = match end {
            End::Used { claim } => return self.claim(id, claim).await,
            End::Replaced { expected, successor } => (expected, Some(successor)),
            End::For(_) => (None, None),
        };
        let keys = self.prefix().keys(id);
        let args = vec![
            expected.map(text).unwrap_or_default(),
            end.reason().as_str().into(),
            keys.member.clone().into(),
            text(self.tombstone_ttl()),
            successor.map(text).unwrap_or_default(),
            text(format_args!("{:x}", getrandom::u64().unwrap_or_default())),
        ];
        let outcome = match outcome(&self.run_confirmed(&self.scripts.end, &keys.all, args).await?)? {
            Outcome::Done => EndOutcome::Done,
            Outcome::Conflict(loaded) => EndOutcome::Conflict(loaded),
            Outcome::Gone => EndOutcome::Gone,
        };
        let by = match outcome {
            EndOutcome::Done => Some(EndedBy::ThisProcess),
            EndOutcome::Gone if expected.is_none() => Some(EndedBy::Other),
            EndOutcome::Gone | EndOutcome::Claimed(_) | EndOutcome::Conflict(_) => None,
        };
        if let Some(by) = by {
            self.local_tombstones.add_one(id, end.tombstone(SystemClock.now()), by);
            self.release(&[*id]).await;
        }
        Ok(outcome)
    }

    async fn claim(&self, id: &SessionId, claim: Version) -> Result<EndOutcome, Failure> {
        let keys = self.prefix().keys(id);
        let args = vec![text(claim), keys.member.clone().into(), text(self.tombstone_ttl())];
        let Value::Array(was) = self.run_confirmed(&self.scripts.consume, &keys.all, args).await? else {
            return Ok(EndOutcome::Gone);
        };
        if self.local_tombstones.get_unless(id, claim).is_some() {
            return Ok(EndOutcome::Gone); // a failover brought the session back
        }
        self.local_tombstones.add_one(id, Ended::new(EndReason::Used, SystemClock.now()), EndedBy::Claim(claim));
        self.release(&[*id]).await;
        match &*was {
            [Value::BulkString(stored), Value::Int(ttl)] => Ok(EndOutcome::Claimed(loaded(stored, *ttl)?)),
            _ => Err(Failure::unexpected_reply()),
        }
    }

    pub(super) async fn list(&self, user: &str) -> Result<Vec<(SessionId, Loaded)>, Failure> {
        let tag = SessionId::slot_tag_of(user);
        let keys = self.prefix().keys_of(&tag, "");
        let (mut sessions, mut from) = (HashMap::new(), FIRST_SLICE.to_vec());
        loop {
            let args = vec![keys.prefix().into(), from];
            let (next, listed) = slice(self.run(&self.scripts.list, &keys.all, args).await?)?;
            for session in listed.chunks_exact(3) {
                if let ([_, Value::BulkString(stored), Value::Int(ttl)], Some(id)) = (session, id(&tag, &session[0])) {
                    match loaded(stored, *ttl) {
                        Ok(loaded)
                            if loaded.record.user() == Some(user) && self.local_tombstones.get(&id).is_none() =>
                        {
                            sessions.insert(id, (order_of(stored), loaded));
                        }
                        Ok(_) => {}
                        Err(_) => tracing::warn!(session = %id, "session record is corrupt"),
                    }
                }
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        let mut sessions: Vec<_> = sessions.into_iter().collect();
        sessions.sort_by_key(|(_, (order, loaded))| (loaded.record.created_at(), *order));
        Ok(sessions.into_iter().map(|(id, (_, loaded))| (id, loaded)).collect())
    }

    pub(super) async fn end_user(
        &self,
        user: &str,
        except: Option<&SessionId>,
        reason: EndReason,
    ) -> Result<Vec<SessionId>, Failure> {
        let tag = SessionId::slot_tag_of(user);
        let keys = match except.filter(|id| id.slot_tag() == tag) {
            Some(spared) => self.prefix().keys(spared),
            None => self.prefix().keys_of(&tag, ""),
        };
        let (mut all, mut from) = (Vec::new(), FIRST_SLICE.to_vec());
        loop {
            let args = vec![
                keys.prefix().into(),
                keys.member.clone().into(),
                reason.as_str().into(),
                text(self.tombstone_ttl()),
                text(millis(LONGEST)),
                from,
            ];
            let (next, gone) = slice(self.run_confirmed(&self.scripts.end_user, &keys.all, args).await?)?;
            let gone = ids(&tag, &gone);
            self.local_tombstones.add(&gone, reason);
            self.release(&gone).await;
            all.extend(gone);
            match next {
                Some(next) => from = next,
                None => return Ok(all),
            }
        }
    }

    /// The arguments of every script that writes a record.
    fn written(&self, member: &str, new: &Entry) -> Vec<Vec<u8>> {
        let mut head = self.encode(&new.record);
        let tail = head.split_off(HEAD_LEN.min(head.len()));
        vec![text(new.record.version()), head, tail, text(ttl_of(new.ttl)), member.into(), text(self.tombstone_ttl())]
    }

    fn encode(&self, record: &Record) -> Vec<u8> {
        record.encode_as(self.config.codec)
    }
}

pub(super) fn text(value: impl fmt::Display) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Redis refuses a time to live of zero.
pub(super) fn ttl_of(ttl: Duration) -> u64 {
    millis(ttl).max(1)
}
