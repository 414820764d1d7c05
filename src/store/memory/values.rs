//! Values in the memory of the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    lifetime::LONGEST,
    store::{Added, Cursor, KeyPage, StoreError, glob::Glob},
    time::Timestamp,
};

/// The overhead of a value in bytes.
const OVERHEAD: usize = 128;

/// The number of expired values that an operation frees.
const FREED: usize = 16;

/// Values by key, and by expiry.
#[derive(Default)]
pub(in crate::store) struct Values {
    kept: BTreeMap<Arc<str>, Kept>,
    expiring: BTreeSet<(Timestamp, Arc<str>)>,
    size: usize,
}

struct Kept {
    value: Vec<u8>,
    until: Option<Timestamp>,
}

impl Kept {
    fn is_live(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// The size of a value in bytes.
pub(in crate::store) fn weight(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + OVERHEAD
}

/// The expiry of a value with this time to live.
pub(in crate::store) fn until(ttl: Duration, now: Timestamp) -> Timestamp {
    now.plus(ttl.clamp(Duration::from_millis(1), LONGEST))
}

impl Values {
    fn free_expired(&mut self, now: Timestamp, most: usize) {
        for _ in 0..most {
            match self.expiring.first() {
                Some((until, key)) if *until <= now => {
                    let key = key.clone();
                    self.take_out(&key);
                }
                _ => return,
            }
        }
    }

    fn take_out(&mut self, key: &str) -> Option<Kept> {
        let (key, kept) = self.kept.remove_entry(key)?;
        self.size -= weight(&key, &kept.value);
        if let Some(until) = kept.until {
            self.expiring.remove(&(until, key));
        }
        Some(kept)
    }

    fn live(&mut self, key: &str, now: Timestamp) -> Option<&Kept> {
        self.free_expired(now, FREED);
        self.kept.get(key).filter(|kept| kept.is_live(now))
    }

    pub(in crate::store) fn len(&mut self, now: Timestamp) -> usize {
        self.free_expired(now, usize::MAX);
        self.kept.len()
    }

    pub(in crate::store) fn get(&mut self, key: &str, now: Timestamp) -> Option<Vec<u8>> {
        self.live(key, now).map(|kept| kept.value.clone())
    }

    /// The value, and its time to live if it expires.
    pub(in crate::store) fn get_with_ttl(&mut self, key: &str, now: Timestamp) -> Option<(Vec<u8>, Option<Duration>)> {
        let kept = self.live(key, now)?;
        Some((kept.value.clone(), kept.until.map(|until| until.since(now))))
    }

    pub(in crate::store) fn exists(&mut self, key: &str, now: Timestamp) -> bool {
        self.live(key, now).is_some()
    }

    /// # Errors
    /// If the value does not fit in `capacity` bytes. Nothing is changed then.
    pub(in crate::store) fn set(
        &mut self,
        key: &str,
        value: Vec<u8>,
        until: Option<Timestamp>,
        capacity: usize,
        now: Timestamp,
    ) -> Result<(), Full> {
        self.free_expired(now, FREED);
        let weight = weight(key, &value);
        let fits = |values: &Self| {
            let before = values.kept.get(key).map_or(0, |kept| self::weight(key, &kept.value));
            values.size - before + weight <= capacity
        };
        if !fits(self) {
            self.free_expired(now, usize::MAX);
            if !fits(self) {
                return Err(Full);
            }
        }
        self.take_out(key);
        let key: Arc<str> = key.into();
        if let Some(until) = until {
            self.expiring.insert((until, key.clone()));
        }
        self.kept.insert(key, Kept { value, until });
        self.size += weight;
        Ok(())
    }

    pub(in crate::store) fn remove(&mut self, key: &str, now: Timestamp) -> bool {
        self.free_expired(now, FREED);
        self.take_out(key).is_some_and(|kept| kept.is_live(now))
    }

    pub(in crate::store) fn expire(&mut self, key: &str, until: Timestamp, now: Timestamp) -> bool {
        if self.live(key, now).is_none() {
            return false;
        }
        if let Some((key, _)) = self.kept.get_key_value(key) {
            let key = key.clone();
            let before = self.kept.get_mut(&key).and_then(|kept| kept.until.replace(until));
            if let Some(before) = before {
                self.expiring.remove(&(before, key.clone()));
            }
            self.expiring.insert((until, key));
        }
        true
    }

    /// # Errors
    /// Those of [`set`](Self::set).
    pub(in crate::store) fn add(&mut self, key: &str, by: i64, capacity: usize, now: Timestamp) -> Result<Added, Full> {
        let (number, until) = match self.live(key, now) {
            Some(kept) => (number(&kept.value), kept.until),
            None => (Some(0), None),
        };
        let Some(number) = number else { return Ok(Added::NotANumber) };
        let Some(sum) = number.checked_add(by) else { return Ok(Added::Overflow) };
        self.set(key, sum.to_string().into_bytes(), until, capacity, now)?;
        Ok(Added::To(sum))
    }

    pub(in crate::store) fn scan(&self, pattern: &str, from: &Cursor, count: usize, now: Timestamp) -> KeyPage {
        let (glob, count) = (Glob::new(pattern), count.clamp(1, 1000));
        let from = after(from);
        let from = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.kept.range::<str, _>((from, Bound::Unbounded));
        let (mut keys, mut last) = (Vec::new(), None);
        for (key, kept) in rest.by_ref().take(count) {
            if kept.is_live(now) && glob.matches(key) {
                keys.push(key.to_string());
            }
            last = Some(key);
        }
        let next = rest.next().and(last).map(|last| cursor(last));
        KeyPage { keys, next }
    }
}

/// The prefix of a cursor, followed by the last key, which may be part of a URL.
const AFTER: &str = "after-";

fn cursor(last: &str) -> Cursor {
    format!("{AFTER}{}", URL_SAFE_NO_PAD.encode(last)).into()
}

fn after(cursor: &Cursor) -> Option<String> {
    let last = URL_SAFE_NO_PAD.decode(cursor.as_str().strip_prefix(AFTER)?).ok()?;
    String::from_utf8(last).ok()
}

/// A number exactly as Redis writes it: not `+1`, `01` or ` 1`.
fn number(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

/// The value does not fit.
#[derive(Debug, thiserror::Error)]
#[error("the memory for values is full")]
pub(in crate::store) struct Full;

impl From<Full> for StoreError {
    fn from(full: Full) -> Self {
        Self::Outage(full.into())
    }
}
