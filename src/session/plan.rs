//! The next write: state → write. No I/O here.

use std::{sync::Arc, time::Duration};

use super::{
    SessionError,
    changes::Action,
    state::{LoginTransfer, Phase, Snapshot, State, TokenOrigin, TransferStage},
    write::{Delivery, NewSession, PendingWrite, Write},
};
use crate::{
    context::LayerContext,
    credential::PresentedCredentials,
    ended::EndReason,
    metadata::Metadata,
    record::{Record, Version},
    store::Entry,
    time::Timestamp,
    token::{Tag, Token},
};

/// How long a pending session lives: a request that is cut off during a login leaves it behind.
const PENDING_TTL: Duration = Duration::from_secs(30);

/// What planning a write needs besides the state.
pub(super) struct Environment<'a> {
    pub(super) now: Timestamp,
    pub(super) context: &'a LayerContext,
    pub(super) presented: &'a PresentedCredentials,
    pub(super) client: Option<&'a Metadata>,
}

pub(super) enum NextWrite {
    Nothing,
    /// The pending write, whose reply was lost.
    Repeat,
    New(Write),
}

/// The write that brings the store closer to what the request wants.
pub(super) fn plan(state: &State, env: &Environment<'_>, delivery: Delivery) -> Result<NextWrite, SessionError> {
    let can_give_token = delivery == Delivery::Response;
    match state.pending.as_deref() {
        // It may have created a session whose token cannot reach the client any more.
        Some(PendingWrite { write: Write::Create(new), .. }) if !can_give_token => {
            return Ok(NextWrite::New(Write::End { id: new.id, reason: EndReason::LoggedOut }));
        }
        // It may have changed the token, which cannot reach the client any more. The next write shows whether it did.
        Some(pending) if !can_give_token && pending.write.gives_token() => {}
        Some(_) => return Ok(NextWrite::Repeat),
        None => {}
    }
    let write = match &state.phase {
        Phase::NotLoaded | Phase::Unavailable | Phase::SignatureOnly | Phase::Ended => None,
        Phase::Absent if state.changes.creates() => Some(create(record(state, env, None)?, env, delivery)?),
        Phase::Absent => None,
        Phase::Live(live) => plan_live(state, live, env, delivery)?,
        Phase::Transfer(transfer) => Some(plan_transfer(state, transfer, env, delivery)?),
    };
    Ok(write.map_or(NextWrite::Nothing, NextWrite::New))
}

fn plan_live(
    state: &State,
    live: &Snapshot,
    env: &Environment<'_>,
    delivery: Delivery,
) -> Result<Option<Write>, SessionError> {
    let can_give_token = delivery == Delivery::Response;
    let grace = match state.changes.action() {
        Some(Action::Destroy) => return Ok(Some(Write::End { id: live.id, reason: EndReason::LoggedOut })),
        Some(Action::Renew) if can_give_token => Some(env.context.rotation.grace),
        Some(Action::Rotate) if !can_give_token => return Err(SessionError::ResponseSent),
        Some(Action::Rotate) => Some(Duration::ZERO),
        Some(Action::Renew | Action::Confirm) | None => None,
    };
    let confirms = state.changes.action() == Some(Action::Confirm);
    if grace.is_none() && !confirms && state.changes.is_empty() {
        return Ok(None);
    }
    let discards = state.changes.discards_previous();
    // A login has a session of its own, so an older token says nothing about it.
    if discards || state.changes.login().is_some() {
        let mut record = record(state, env, (!discards).then_some(&*live.record))?;
        record.begin_transfer(live);
        return create(record, env, delivery).map(Some);
    }
    let mut record = record(state, env, Some(&live.record))?;
    if let TokenOrigin::Presented(_) = live.token {
        record.token_used(env.now);
    }
    // Zero if the session has expired: then it ends, unless another request has extended it.
    let ttl = record.full_ttl(env.now);
    let mut token = None;
    if let Some(grace) = grace {
        // If another request has rotated already, this one gets the same token.
        if !live.token_superseded {
            record.rotate(env.now, grace)?;
        }
        token = live.token(env.presented).map(|token| record.current_token(&token));
    }
    let (id, expected, entry) = (live.id, live.record.version(), Entry { record: Arc::new(record), ttl });
    Ok(Some(Write::Update { id, expected, entry, token, in_transfer: false }))
}

fn plan_transfer(
    state: &State,
    LoginTransfer { old, new, stage, .. }: &LoginTransfer,
    env: &Environment<'_>,
    delivery: Delivery,
) -> Result<Write, SessionError> {
    let log_out = |id| Ok(Write::End { id, reason: EndReason::LoggedOut });
    if state.changes.action() == Some(Action::Destroy) {
        return log_out(if stage.old_has_ended() { new.id } else { old.id });
    }
    // The token of a session that replaced the old one was sent with the response.
    let is_given = delivery == Delivery::Late && *stage == TransferStage::Replaced;
    if delivery != Delivery::Response && !is_given {
        return log_out(new.id);
    }
    let expected = new.record.version();
    let record = match stage {
        TransferStage::Pending => {
            let expected = (!state.changes.discards_previous()).then(|| old.record.version());
            return Ok(Write::Replace { id: old.id, expected, successor: new.id });
        }
        TransferStage::Stale => {
            let mut record = record(state, env, Some(&old.record))?;
            record.begin_transfer(old);
            record
        }
        TransferStage::Replaced => Record { replaces: None, ..Record::clone(&new.record) },
        TransferStage::Lost => return create(record(state, env, Some(&new.record))?, env, delivery),
        TransferStage::Detached => record(state, env, None)?,
    };
    let record = Arc::new(Record { version: expected.next()?, ..record });
    let entry = Entry { ttl: ttl_of(&record, env.now), record };
    Ok(Write::Update { id: new.id, expected, entry, token: None, in_transfer: true })
}

impl Record {
    /// Makes it the record of the new session of a login, pending until `old` has ended.
    fn begin_transfer(&mut self, old: &Snapshot) {
        self.replaces = Some(old.id);
        self.rotation = None; // the new session has its own token
        self.leases.clear();
    }
}

/// The record to store: the previous one, if it is kept, with the changes.
fn record(state: &State, env: &Environment<'_>, previous: Option<&Record>) -> Result<Record, SessionError> {
    let mut record = match previous {
        Some(previous) => Record { version: previous.version.next()?, replaces: None, ..previous.clone() },
        None => Record::new(env.now, &env.context.lifetime, Version::first()?),
    };
    if let Some(client) = env.client
        && (previous.is_none() || state.changes.login().is_some())
    {
        let mut metadata = client.clone();
        for (name, value) in record.metadata.fields() {
            metadata.set_field(name, Some(value.into()));
        }
        record.metadata = Arc::new(metadata);
    }
    if state.changes.login().is_some() {
        record.set_lifetime(&env.context.lifetime);
    }
    state.changes.apply(&mut record, env.now);
    env.context.check_size(&record)?;
    Ok(record)
}

/// Creates a session with this record and a new token, in the slot of its user.
fn create(record: Record, env: &Environment<'_>, delivery: Delivery) -> Result<Write, SessionError> {
    if delivery != Delivery::Response {
        return Err(SessionError::ResponseSent);
    }
    let token = Token::mint(record.user().map(Tag::of_user))?;
    let entry = Entry { ttl: ttl_of(&record, env.now), record: Arc::new(record) };
    Ok(Write::Create(NewSession { id: token.id(), token, entry }))
}

fn ttl_of(record: &Record, now: Timestamp) -> Duration {
    record.full_ttl(now).min(if record.replaces.is_some() { PENDING_TTL } else { Duration::MAX })
}
