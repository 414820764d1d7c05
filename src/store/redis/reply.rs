//! Parses replies of Redis.

use std::{borrow::Cow, sync::Arc, time::Duration};

use redis::Value;

use super::error::Failure;
use crate::{
    ended::{EndReason, Ended},
    record::HEAD_LEN,
    store::{Found, Loaded, Outcome, Record},
    time::Timestamp,
    token::SessionId,
};

pub(super) fn is_record(stored: &[u8]) -> bool {
    stored.starts_with(br#"{"v":"#)
}

/// The number after `label`, and the rest.
fn number_after<'a>(label: &str, stored: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let digits = stored.strip_prefix(label.as_bytes())?;
    let (number, rest) = digits.split_at(digits.iter().take_while(|byte| byte.is_ascii_digit()).count());
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

const EPOCH: &str = ",\"e\":";
const ORDER: &str = ",\"o\":";

/// A stored record without the epoch and the order that the scripts add after its head.
fn without_added(stored: &[u8]) -> Cow<'_, [u8]> {
    let Some((head, added)) = stored.split_at_checked(HEAD_LEN) else { return stored.into() };
    let rest = number_after(EPOCH, added).map_or(added, |(_, rest)| rest);
    let rest = number_after(ORDER, rest).map_or(rest, |(_, rest)| rest);
    if rest.len() == added.len() { stored.into() } else { [head, rest].concat().into() }
}

/// Orders the sessions of a user that were created within the same millisecond.
pub(super) fn order_of(stored: &[u8]) -> u64 {
    let added = stored.get(HEAD_LEN..).unwrap_or_default();
    let rest = number_after(EPOCH, added).map_or(added, |(_, rest)| rest);
    number_after(ORDER, rest).map_or(0, |(order, _)| order)
}

/// Whether the record was created before this epoch of its user.
pub(super) fn is_before(stored: &[u8], epoch: u64) -> bool {
    let added = stored.get(HEAD_LEN..).and_then(|rest| number_after(EPOCH, rest));
    added.map_or(0, |(epoch, _)| epoch) < epoch
}

/// The session in a stored value.
pub(super) fn found(stored: &[u8], pttl: i64, epoch: u64) -> Result<Found, Failure> {
    if let Some(ended) = ended(stored) {
        return Ok(Found::Ended(ended));
    }
    if is_record(stored) && is_before(stored, epoch) {
        return Ok(Found::Ended(Ended::new(EndReason::Revoked, Timestamp::from_millis(epoch))));
    }
    loaded(stored, pttl).map(Found::Live)
}

/// A tombstone: `{"end":"revoked","at":1763679600000}`, and perhaps more fields.
fn ended(stored: &[u8]) -> Option<Ended> {
    let text = stored.strip_prefix(br#"{"end":""#)?;
    let (reason, rest) = text.split_at(text.iter().position(|byte| *byte == b'"')?);
    let (at, rest) = number_after("\",\"at\":", rest)?;
    // A reason of a newer version of the crate counts as a revocation.
    let reason = std::str::from_utf8(reason).ok().and_then(EndReason::from_name).unwrap_or(EndReason::Revoked);
    let to = rest.strip_prefix(br#","to":""#).and_then(|rest| std::str::from_utf8(rest.strip_suffix(br#""}"#)?).ok());
    let (at, successor) = (Timestamp::from_millis(at), to.and_then(|to| to.parse().ok()));
    Some(successor.map_or(Ended::new(reason, at), |successor| Ended::replaced(successor, at)))
}

/// A record as Redis returned it, with the reply to `PTTL`.
pub(super) fn loaded(stored: &[u8], pttl: i64) -> Result<Loaded, Failure> {
    let record = Record::decode(&without_added(stored));
    // -1: no time to live. -2: the session expired between the two commands.
    let ttl = match pttl {
        -1 => None,
        left => Some(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
    };
    Ok(Loaded { record: Arc::new(record.map_err(Failure::corrupt)?), ttl })
}

pub(super) fn outcome(answer: &Value) -> Result<Outcome, Failure> {
    match answer {
        Value::Int(1) => Ok(Outcome::Done),
        Value::Int(0) => Ok(Outcome::Gone),
        Value::Array(found) => match &**found {
            [Value::BulkString(stored), Value::Int(ttl)] => loaded(stored, *ttl).map(Outcome::Conflict),
            _ => Err(Failure::unexpected_reply()),
        },
        _ => Err(Failure::unexpected_reply()),
    }
}

pub(super) fn id(tag: &str, member: &Value) -> Option<SessionId> {
    let Value::BulkString(member) = member else { return None };
    format!("{tag}{}", std::str::from_utf8(member).ok()?).parse().ok()
}

pub(super) fn ids(tag: &str, members: &[Value]) -> Vec<SessionId> {
    members.iter().filter_map(|member| id(tag, member)).collect()
}

/// The cursor of the first slice of an index.
pub(super) const FIRST_SLICE: &[u8] = b"0";

/// Parses a slice of an index: the cursor of the next one, if there is one, and what the script found.
pub(super) fn slice(answer: Value) -> Result<(Option<Vec<u8>>, Vec<Value>), Failure> {
    let Value::Array(found) = answer else { return Err(Failure::unexpected_reply()) };
    let mut found = found.into_iter();
    let Some(Value::BulkString(next)) = found.next() else { return Err(Failure::unexpected_reply()) };
    Ok(((next != FIRST_SLICE).then_some(next), found.collect()))
}

/// An epoch. `nil` is the first.
pub(super) fn number(value: &Value) -> u64 {
    match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        _ => 0,
    }
}

/// Parses the reply to `SCAN`: the next cursor, if there is one, and the keys.
pub(super) fn page(answer: Value) -> Result<(Option<String>, Vec<Value>), Failure> {
    let Value::Array(replies) = answer else { return Err(Failure::unexpected_reply()) };
    let Ok([Value::Array(page)]) = <[Value; 1]>::try_from(replies) else { return Err(Failure::unexpected_reply()) };
    let Ok([Value::BulkString(next), Value::Array(keys)]) = <[Value; 2]>::try_from(page) else {
        return Err(Failure::unexpected_reply());
    };
    let next = String::from_utf8_lossy(&next).into_owned();
    Ok(((next != "0").then_some(next), keys))
}
