//! Records are stored unchanged.

use std::{collections::BTreeMap, net::Ipv6Addr, sync::Arc, time::Duration};

use super::{HOUR, Report, answered, check, limits, listed, new_id, new_record, new_user};
use crate::{
    metadata::Metadata,
    record::{Json, Record},
    store::{Created, Entry, Found, Outcome, SessionStore, StoreExt},
    time::Timestamp,
};

pub(super) async fn run(store: &dyn SessionStore, report: &mut Report) {
    for (name, change) in SHAPES {
        for of_user in [false, true] {
            let whose = if of_user { "user" } else { "anonymous" };
            report.case(format!("{whose} record: {name}"), round_trip(store, of_user, *change).await);
        }
    }
}

type Change = fn(&mut Record);

const SHAPES: &[(&str, Change)] = &[
    ("no values", |record| record.data.clear()),
    ("a value of 64 KiB", |record| set(record, "big", &"x".repeat(65_536))),
    ("a thousand values", |record| (0..1000).for_each(|n| set(record, &format!("key {n}"), &n))),
    ("an empty key", |record| set(record, "", &"")),
    ("characters of all kinds", |record| {
        set(record, "\u{1F5DD} ключ \"'\\ \u{7f}\n\0", &"\u{10FFFF}\u{0}\r\n\t{}[]:,")
    }),
    ("a value like a record", |record| set(record, "k", &r#"{"v":2,"n":"AAAAAAAAAAAAAAAA","t":[1,2,3,4]}"#)),
    ("a key like a tombstone", |record| set(record, r#"{"end":"revoked","at":1}"#, &1)),
    ("numbers", |record| set(record, "n", &(u64::MAX, i64::MIN, 0.1 + 0.2, f64::MIN_POSITIVE, 1e300, -0.0))),
    ("numbers beyond 64 bits", |record| set(record, "n", &(u128::MAX, i128::MIN))),
    ("null, true and false", |record| set(record, "n", &((), true, false, None::<u8>))),
    ("lists in maps in lists", |record| {
        set(record, "n", &[BTreeMap::from([("a", vec![vec![BTreeMap::from([("b", 1)])]])])])
    }),
    ("metadata", |record| {
        let metadata = Metadata::default().with_ip(Ipv6Addr::LOCALHOST.into()).with_user_agent("curl/8 \u{1F5DD}");
        record.metadata = Arc::new(metadata.with_field("device", "Ana's \"phone\""));
    }),
    ("a rotated token", |record| rotate(record, Duration::from_secs(30))),
    ("a token rotated twice", |record| {
        rotate(record, Duration::from_secs(30));
        rotate(record, Duration::ZERO);
    }),
    ("a replaced session", |record| record.replaces = new_id(None).ok()),
    ("a persistent cookie", |record| record.persistent = true),
    ("the shortest lifetime", |record| {
        (record.idle_timeout, record.absolute_timeout) = (Duration::from_millis(1), Duration::from_millis(1));
    }),
    ("the longest lifetime", |record| {
        (record.idle_timeout, record.absolute_timeout) = (crate::lifetime::LONGEST, crate::lifetime::LONGEST);
    }),
    ("the Unix epoch", |record| {
        (record.created_at, record.written_at) = (Timestamp::from_millis(0), Timestamp::from_millis(0));
    }),
    ("a written time long after the creation", |record| record.written_at = record.created_at.plus(1000 * HOUR)),
];

fn set<T: serde::Serialize + ?Sized>(record: &mut Record, key: &str, value: &T) {
    if let Ok(value) = Json::encode(value) {
        record.data.insert(key.into(), value);
    }
}

fn rotate(record: &mut Record, grace: Duration) {
    // Without random numbers the record is unchanged.
    let _ = record.rotate(record.created_at, grace);
}

async fn round_trip(store: &dyn SessionStore, of_user: bool, change: Change) -> Result<(), String> {
    let user = of_user.then(new_user).transpose()?;
    let id = new_id(user.as_deref())?;
    let shaped = || -> Result<Entry, String> {
        let mut record = Record::clone(&*new_record(user.as_deref())?);
        change(&mut record);
        Ok(Entry { record: Arc::new(record), ttl: HOUR })
    };
    let is = async |written: &Entry| -> Result<(), String> {
        let Found::Live(loaded) = answered(store.load(&id).await)? else { return Err("it does not exist".into()) };
        same(&loaded.record, &written.record)?;
        if let Some(user) = &user
            && let Some(listed) = listed(store, user).await?
        {
            check!(listed.len() == 1, "it is listed {} times", listed.len());
            same(&listed[0].1.record, &written.record)?;
        }
        Ok(())
    };

    let first = shaped()?;
    let created = answered(store.create(&id, first.clone(), limits(store)).await)?;
    check!(matches!(created, Created::Done { .. }), "{created:?}");
    is(&first).await?;
    let second = shaped()?;
    let updated = answered(store.update(&id, first.record.version(), second.clone()).await)?;
    check!(matches!(updated, Outcome::Done), "{updated:?}");
    is(&second).await?;
    match answered(store.update(&id, first.record.version(), shaped()?).await)? {
        Outcome::Conflict(loaded) => same(&loaded.record, &second.record)?,
        other => return Err(format!("{other:?}")),
    }
    match answered(store.consume(&id, first.record.version()).await)? {
        Found::Live(loaded) => same(&loaded.record, &second.record),
        other => Err(format!("{other:?}")),
    }
}

fn same(one: &Record, other: &Record) -> Result<(), String> {
    let same = one.encode() == other.encode() || (one.data == other.data && without_data(one) == without_data(other));
    check!(same, "the record differs from the written one");
    Ok(())
}

/// Values may have an equivalent encoding.
fn without_data(record: &Record) -> Vec<u8> {
    Record { data: BTreeMap::new(), ..record.clone() }.encode()
}
