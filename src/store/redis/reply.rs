//! What Redis answers, understood.

use std::{sync::Arc, time::Duration};

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

/// The epoch that a record carries between its version and its times, and where it ends.
fn epoch_of(stored: &[u8]) -> Option<(u64, usize)> {
    let digits = stored.get(HEAD_LEN..)?.strip_prefix(br#","e":"#)?;
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let epoch = std::str::from_utf8(&digits[..len]).ok()?.parse().ok()?;
    Some((epoch, HEAD_LEN + 5 + len))
}

/// Whether the record began before this epoch of its user's.
pub(super) fn is_before(stored: &[u8], epoch: u64) -> bool {
    epoch_of(stored).map_or(0, |(epoch, _)| epoch) < epoch
}

/// What a session's key held.
pub(super) fn found(stored: &[u8], pttl: i64, epoch: u64) -> Result<Found, Failure> {
    if let Some(ended) = ended(stored) {
        return Ok(Found::Ended(ended));
    }
    if is_record(stored) && is_before(stored, epoch) {
        return Ok(Found::Ended(Ended::new(EndReason::Revoked, Timestamp::from_millis(epoch))));
    }
    loaded(stored, pttl).map(Found::Live)
}

/// What is remembered of a session that ended: `{"end":"revoked","at":1763679600000}`, and perhaps more.
fn ended(stored: &[u8]) -> Option<Ended> {
    let text = stored.strip_prefix(br#"{"end":""#)?;
    let (reason, rest) = text.split_at(text.iter().position(|byte| *byte == b'"')?);
    let digits = rest.strip_prefix(br#"","at":"#)?;
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let at = std::str::from_utf8(&digits[..len]).ok()?.parse().ok()?;
    // A reason that only a newer version knows is a revocation to this one.
    let reason = std::str::from_utf8(reason).ok().and_then(EndReason::from_name).unwrap_or(EndReason::Revoked);
    let to = digits[len..]
        .strip_prefix(br#","to":""#)
        .and_then(|rest| std::str::from_utf8(rest.strip_suffix(br#""}"#)?).ok());
    let (at, successor) = (Timestamp::from_millis(at), to.and_then(|to| to.parse().ok()));
    Some(successor.map_or(Ended::new(reason, at), |successor| Ended::replaced(successor, at)))
}

/// A record as Redis returned it, with the reply to `PTTL`.
pub(super) fn loaded(stored: &[u8], pttl: i64) -> Result<Loaded, Failure> {
    let record = match epoch_of(stored) {
        Some((_, end)) => Record::decode(&[&stored[..HEAD_LEN], &stored[end..]].concat()),
        None => Record::decode(stored),
    };
    // -1: it has none. -2: it expired between the two commands.
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

/// An epoch; none is the first.
pub(super) fn number(value: &Value) -> u64 {
    match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        _ => 0,
    }
}
