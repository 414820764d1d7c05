//! The slots of a Redis Cluster, and their masters.

use std::{fmt, ops::Deref};

use redis::Value;

use super::config::Address;

pub(super) const SLOTS: u16 = 16384;

/// The slot of a key, or of its hash tag.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    // CRC-16/XMODEM
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ (0x1021 * (crc >> 15)))
    });
    crc % SLOTS
}

/// The slots from `first` to `last`, and their master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Address,
}

impl Slots {
    pub(super) fn has(&self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

/// The known slots, ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotMap(Vec<Slots>);

impl SlotMap {
    /// Parses the reply of `node` to `CLUSTER SLOTS`: first, last, master, replicas…; a server is host, port, ….
    pub(super) fn parse(answer: &Value, node: &Address) -> Option<Self> {
        let Value::Array(ranges) = answer else { return None };
        let mut all = Vec::with_capacity(ranges.len());
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &**range else { return None };
            let [host, Value::Int(port), ..] = &**master else { return None };
            let host = match (host, node) {
                (Value::BulkString(host), _) if !host.is_empty() && host != b"?" => std::str::from_utf8(host).ok()?,
                // The node does not know the name that the client uses.
                (_, Address::Tcp(host, _)) => host,
                _ => return None,
            };
            all.push(Slots {
                first: u16::try_from(*first).ok()?,
                last: u16::try_from(*last).ok()?,
                master: Address::tcp(host, u16::try_from(*port).ok()?).ok()?,
            });
        }
        all.sort_unstable_by_key(|slots| slots.first);
        Some(Self(all))
    }

    pub(super) fn master_of(&self, slot: u16) -> Option<&Address> {
        let place = self.0.partition_point(|slots| slots.last < slot);
        self.0.get(place).filter(|slots| slots.first <= slot).map(|slots| &slots.master)
    }

    /// Gives a slot another master.
    pub(super) fn moved(&mut self, slot: u16, to: Address) {
        if let Some(place) = self.0.iter().position(|slots| slots.has(slot)) {
            let Slots { first, last, master } = self.0.swap_remove(place);
            if first < slot {
                self.0.push(Slots { first, last: slot - 1, master: master.clone() });
            }
            if slot < last {
                self.0.push(Slots { first: slot + 1, last, master });
            }
        }
        self.0.push(Slots { first: slot, last: slot, master: to });
        self.0.sort_unstable_by_key(|slots| slots.first);
    }

    /// The number of slots without a master.
    pub(super) fn missing(&self) -> usize {
        let covered: usize = self.0.iter().map(|slots| usize::from(slots.last - slots.first) + 1).sum();
        usize::from(SLOTS).saturating_sub(covered)
    }
}

impl Deref for SlotMap {
    type Target = [Slots];

    fn deref(&self) -> &[Slots] {
        &self.0
    }
}

/// The position of a scan: in a slot range of a master, or before the range that begins with `first`.
pub(super) struct ScanPosition {
    pub(super) slots: Slots,
    pub(super) cursor: String,
}

impl ScanPosition {
    /// `first`, or `first/last/master/cursor`. `None` at the end.
    pub(super) fn parse(text: &str, known: &[Slots]) -> Option<Self> {
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next();
        let first: u16 = next().and_then(|first| first.parse().ok()).unwrap_or(0);
        let now = known.iter().find(|slots| slots.last >= first)?;
        let now = Slots { first: first.max(now.first), ..now.clone() };
        let last = next().and_then(|last| last.parse().ok());
        let (master, cursor) = (next(), next());
        Some(match (last, cursor) {
            // If the master still has the range, continue. Otherwise scan the range again.
            (Some(last), Some(cursor)) if last <= now.last && master == Some(&*now.master.to_string()) => {
                Self { slots: Slots { last, ..now }, cursor: cursor.to_owned() }
            }
            _ => Self { slots: now, cursor: "0".into() },
        })
    }
}

impl fmt::Display for ScanPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots: Slots { first, last, master }, cursor } = self;
        write!(f, "{first}/{last}/{master}/{cursor}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_redis_computes() {
        // `CLUSTER KEYSLOT`
        for (key, slot) in
            [("123456789", 12739), ("foo", 12182), ("sess:{AAAA}:x", slot_of("AAAA")), ("{}x", slot_of("{}x"))]
        {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_eq!(slot_of("a{foo}b{bar}"), 12182);
    }

    fn masters(map: &SlotMap, slots: &[u16]) -> Vec<Option<String>> {
        slots.iter().map(|slot| map.master_of(*slot).map(Address::to_string)).collect()
    }

    #[test]
    fn a_moved_slot_has_another_master_and_its_neighbors_do_not() -> Result<(), Box<dyn std::error::Error>> {
        let mut map = SlotMap::default();
        let node = |name| Address::tcp(name, 1).map_err(|problem| format!("{problem:?}"));
        // Only single slots are known.
        for slot in [9, 3] {
            map.moved(slot, node("b")?);
        }
        let b = Some("b:1".to_owned());
        assert_eq!(masters(&map, &[2, 3, 4, 9]), [None, b.clone(), None, b.clone()]);
        let a = Some("a:1".to_owned());
        map = SlotMap(vec![Slots { first: 0, last: 9, master: node("a")? }]);
        for slot in [0, 5, 9] {
            map.moved(slot, node("b")?);
        }
        let expected = [b.clone(), a.clone(), a.clone(), b.clone(), a.clone(), a, b, None];
        assert_eq!(masters(&map, &[0, 1, 4, 5, 6, 8, 9, 10]), expected);
        Ok(())
    }

    #[test]
    fn a_scan_continues_unless_the_slots_have_other_masters() -> Result<(), Box<dyn std::error::Error>> {
        let slots = |first, last, name| {
            let master = Address::tcp(name, 1).map_err(|problem| format!("{problem:?}"))?;
            Ok::<_, String>(Slots { first, last, master })
        };
        let known = [slots(0, 99, "a")?, slots(100, 16383, "b")?];
        let position = |text: &str| ScanPosition::parse(text, &known).map(|position| position.to_string());
        for (from, to) in [
            ("", Some("0/99/a:1/0")),
            ("0/99/a:1/17", Some("0/99/a:1/17")),
            ("0/50/a:1/17", Some("0/50/a:1/17")),
            ("0/150/a:1/17", Some("0/99/a:1/0")),
            ("0/99/b:1/17", Some("0/99/a:1/0")),
            ("50", Some("50/99/a:1/0")),
            ("100", Some("100/16383/b:1/0")),
            ("16384", None),
            ("invalid", Some("0/99/a:1/0")),
        ] {
            assert_eq!(position(from).as_deref(), to, "{from}");
        }
        Ok(())
    }
}
