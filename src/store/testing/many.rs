//! Tests that need many sessions, many callers, or time.

use std::{collections::HashSet, time::Duration};

use super::{HOUR, Report, all, answered, check, ended, limits, listed, new_entry, new_id, new_user, new_version};
use crate::{
    ended::EndReason,
    limits::{Limits, WhenFull},
    store::{Created, Cursor, End, Entry, Found, Outcome, SessionStore, StoreExt},
    token::SessionId,
};

/// Long enough for a clock with milliseconds to advance.
const MOMENT: Duration = Duration::from_millis(3);

pub(super) async fn run(store: &dyn SessionStore, advance: &impl AsyncFn(Duration), report: &mut Report) {
    if store.users().is_some() {
        limits_hold(store, advance, report).await;
        users_end(store, report).await;
    }
    if store.scans().is_some() {
        scans_find_all(store, report).await;
    }
    for callers in [2, 16, 100] {
        let case = |what: &str| format!("{callers} concurrent callers: {what}");
        report.case(case("one creates the id"), one_creates(store, callers).await);
        report.case(case("one updates the version"), one_updates(store, callers).await);
        report.case(case("one consumes"), one_consumes(store, callers).await);
        report.case(case("one replaces the version"), one_replaces(store, callers).await);
        report.case(case("none resurrects an ended session"), none_brings_back(store, callers).await);
    }
    for ttl in [crate::lifetime::LONGEST, Duration::from_secs(1)] {
        report.case(format!("a TTL of {ttl:?} is kept"), time_to_live(store, ttl).await);
    }
    report.case("sessions expire", expired(store, advance).await);
    report.case("a TTL of zero expires immediately", no_time(store, advance).await);
}

async fn limits_hold(store: &dyn SessionStore, advance: &impl AsyncFn(Duration), report: &mut Report) {
    for limit in 1..=5 {
        for more in 1..=3 {
            let case = |what: &str| format!("{more} over a limit of {limit}: {what}");
            report.case(case("the new session is refused"), refused(store, limit, more).await);
            report.case(case("the oldest is evicted"), oldest_goes(store, advance, limit, more).await);
            for policy in [WhenFull::EvictOldest, WhenFull::EvictLeastRecentlyUsed] {
                let case = case(&format!("the oldest of one millisecond is evicted, {policy:?}"));
                report.case(case, oldest_of_one_millisecond_goes(store, limit, more, policy).await);
            }
            report.case(case("the least recently used is evicted"), least_used_goes(store, advance, limit, more).await);
        }
        for policy in [WhenFull::Reject, WhenFull::EvictOldest, WhenFull::EvictLeastRecentlyUsed] {
            for callers in [limit + 1, 16] {
                let case = format!("{callers} concurrent creations, a limit of {limit}, {policy:?}");
                report.case(case, creations_at_once(store, limit, policy, callers).await);
            }
            let case = format!("a limit lowered to {limit}, {policy:?}");
            report.case(case, lowered_limit(store, limit, policy).await);
        }
        let case = format!("an ended session makes room, a limit of {limit}");
        report.case(case, ended_makes_room(store, limit).await);
    }
    for policy in [WhenFull::Reject, WhenFull::EvictOldest, WhenFull::EvictLeastRecentlyUsed] {
        let case = format!("a session takes the place of the one that it replaces, {policy:?}");
        report.case(case, replacement_takes_the_place(store, policy).await);
    }
    report.case("expired sessions make room", expired_make_room(store, advance).await);
}

async fn users_end(store: &dyn SessionStore, report: &mut Report) {
    for callers in [2, 16, 100] {
        let case = format!("{callers} concurrent callers: none survives the end of all");
        report.case(case, none_survives(store, callers).await);
    }
    for sessions in [0, 1, 2, 10] {
        for excepted in [false, true] {
            let case = format!("all {sessions} of a user end, except one: {excepted}");
            report.case(case, end_user(store, sessions, excepted).await);
        }
    }
    report.case("ending a user ends earlier sessions and not later ones", login_again(store).await);
    report.case("ending a user can be repeated", end_user_twice(store).await);
    report.case("the excepted session must be the user's", spared_stranger(store).await);
}

async fn scans_find_all(store: &dyn SessionStore, report: &mut Report) {
    for size in [1, 7, 100, 100_000] {
        report.case(format!("a scan in pages of {size} finds every live session"), scanned(store, size).await);
    }
    for size in [1, 7, 100] {
        let case = format!("a scan in pages of {size} finds every live session during writes");
        report.case(case, scanned_amid_writes(store, size).await);
    }
    report.case("sessions are counted", counted(store).await);
}

async fn create(store: &dyn SessionStore, user: &str, limits: Limits) -> Result<(SessionId, Created), String> {
    let id = new_id(Some(user))?;
    Ok((id, answered(store.create(&id, new_entry(Some(user))?, limits).await)?))
}

async fn created(store: &dyn SessionStore, user: &str, sessions: usize) -> Result<Vec<SessionId>, String> {
    let mut ids = Vec::new();
    for _ in 0..sessions {
        let (id, created) = create(store, user, Limits::none()).await?;
        check!(matches!(created, Created::Done { .. }), "{created:?}");
        ids.push(id);
    }
    Ok(ids)
}

async fn is_live(store: &dyn SessionStore, id: &SessionId) -> Result<bool, String> {
    Ok(answered(store.load(id).await)?.live().is_some())
}

/// Exactly these are live and listed.
async fn alive(store: &dyn SessionStore, user: &str, ids: &[SessionId], of: &[SessionId]) -> Result<(), String> {
    for id in of {
        let live = is_live(store, id).await?;
        let place = of.iter().position(|other| other == id).unwrap_or_default();
        check!(live == ids.contains(id), "number {place} is live: {live}");
    }
    let Some(listed) = listed(store, user).await? else { return Ok(()) };
    let listed: HashSet<_> = listed.into_iter().map(|(id, _)| id).collect();
    check!(listed == ids.iter().copied().collect(), "{} are listed, and {} are live", listed.len(), ids.len());
    Ok(())
}

async fn refused(store: &dyn SessionStore, limit: usize, more: usize) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, WhenFull::Reject));
    let mut ids = Vec::new();
    for n in 0..limit + more {
        let (id, created) = create(store, &user, limits).await?;
        let expected = if n < limit { Created::Done { evicted: Vec::new() } } else { Created::Full };
        check!(created == expected, "{created:?} instead of {expected:?}");
        ids.push(id);
    }
    alive(store, &user, &ids[..limit], &ids).await
}

async fn oldest_goes(
    store: &dyn SessionStore,
    advance: &impl AsyncFn(Duration),
    limit: usize,
    more: usize,
) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, WhenFull::EvictOldest));
    let base = new_entry(Some(&user))?.record;
    let mut ids: Vec<SessionId> = Vec::new();
    for n in 0..limit + more {
        let id = new_id(Some(&user))?;
        // The record has the age, because the store may have another clock.
        let mut record = crate::store::Record::clone(&base);
        record.version = new_version()?;
        record.created_at = record.created_at.minus(HOUR).plus(Duration::from_secs(n as u64));
        let new = Entry { record: record.into(), ttl: HOUR };
        let created = answered(store.create(&id, new.clone(), limits).await)?;
        let expected = if n < limit { Vec::new() } else { vec![ids[n - limit]] };
        check!(created == Created::Done { evicted: expected }, "number {n}: {created:?}");
        if let Some(oldest) = (n < limit).then(|| ids.first()).flatten() {
            advance(MOMENT).await;
            // A touch does not make it younger.
            let entry = Entry { ttl: 2 * HOUR, ..new };
            answered(store.touch(oldest, entry).await)?;
        }
        ids.push(id);
    }
    let (gone, left) = ids.split_at(more);
    for id in gone {
        let found = answered(store.load(id).await)?;
        check!(matches!(found, Found::Ended(ended) if ended.reason == EndReason::Evicted), "{found:?}");
    }
    alive(store, &user, left, &ids).await
}

/// Sessions whose records have the same times of creation and last use.
async fn oldest_of_one_millisecond_goes(
    store: &dyn SessionStore,
    limit: usize,
    more: usize,
    policy: WhenFull,
) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, policy));
    let mut record = crate::store::Record::clone(&*new_entry(Some(&user))?.record);
    // According to the time to live, the session was not used since it was written.
    record.idle_timeout = crate::lifetime::LONGEST;
    record.absolute_timeout = crate::lifetime::LONGEST;
    let mut ids: Vec<SessionId> = Vec::new();
    for n in 0..limit + more {
        record.version = new_version()?;
        let (id, new) = (new_id(Some(&user))?, Entry { record: record.clone().into(), ttl: HOUR });
        let created = answered(store.create(&id, new, limits).await)?;
        let expected = if n < limit { Vec::new() } else { vec![ids[n - limit]] };
        check!(created == Created::Done { evicted: expected }, "number {n}: {created:?}");
        ids.push(id);
    }
    let listed: Vec<_> = answered(store.list(&user).await)?.into_iter().map(|(id, _)| id).collect();
    check!(listed == ids[more..], "the sessions are not listed oldest first");
    alive(store, &user, &ids[more..], &ids).await
}

async fn least_used_goes(
    store: &dyn SessionStore,
    advance: &impl AsyncFn(Duration),
    limit: usize,
    more: usize,
) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, WhenFull::EvictLeastRecentlyUsed));
    let mut sessions: Vec<(SessionId, Entry)> = Vec::new();
    for _ in 0..limit {
        advance(MOMENT).await;
        let (id, new) = (new_id(Some(&user))?, aged(&user)?);
        answered(store.create(&id, new.clone(), limits).await)?;
        sessions.push((id, new));
    }
    // Touched in reverse order.
    for (id, entry) in sessions.iter().rev() {
        advance(MOMENT).await;
        answered(store.touch(id, entry.clone()).await)?;
    }
    let mut expected: Vec<_> = sessions.iter().rev().map(|(id, _)| *id).collect();
    let mut ids = expected.clone();
    for _ in 0..more {
        advance(MOMENT).await;
        let id = new_id(Some(&user))?;
        let created = answered(store.create(&id, aged(&user)?, limits).await)?;
        expected.push(id);
        ids.push(id);
        let evicted = vec![expected.remove(0)];
        check!(created == Created::Done { evicted }, "{created:?}");
    }
    alive(store, &user, &expected, &ids).await
}

/// A session written long ago, so that only its last use determines its age.
fn aged(user: &str) -> Result<Entry, String> {
    let mut record = crate::store::Record::clone(&*new_entry(Some(user))?.record);
    record.idle_timeout = HOUR;
    record.created_at = record.created_at.minus(2 * HOUR);
    record.written_at = record.created_at;
    Ok(Entry { record: record.into(), ttl: HOUR })
}

async fn creations_at_once(
    store: &dyn SessionStore,
    limit: usize,
    policy: WhenFull,
    callers: usize,
) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, policy));
    let results = all((0..callers).map(|_| create(store, &user, limits))).await;
    let results: Vec<_> = results.into_iter().collect::<Result<_, _>>()?;
    let done = results.iter().filter(|(_, created)| matches!(created, Created::Done { .. })).count();
    let allowed = if policy == WhenFull::Reject { limit } else { callers };
    check!(done == allowed, "{done} were created, and {allowed} are allowed");
    let mut live = Vec::new();
    for (id, _) in &results {
        if is_live(store, id).await? {
            live.push(*id);
        }
    }
    check!(live.len() == limit, "{} are live", live.len());
    alive(store, &user, &live, &live).await
}

async fn lowered_limit(store: &dyn SessionStore, limit: usize, policy: WhenFull) -> Result<(), String> {
    let user = new_user()?;
    let mut ids = created(store, &user, 8).await?;
    let (id, result) = create(store, &user, Limits::per_user(limit, policy)).await?;
    ids.push(id);
    let expected = if policy == WhenFull::Reject { 8 } else { limit };
    check!((result == Created::Full) == (policy == WhenFull::Reject), "{result:?}");
    let listed = answered(store.list(&user).await)?.len();
    check!(listed == expected, "{listed} are left, not {expected}");
    check!(is_live(store, &id).await? == (policy != WhenFull::Reject), "the new session");
    Ok(())
}

async fn ended_makes_room(store: &dyn SessionStore, limit: usize) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(limit, WhenFull::Reject));
    let ids = created(store, &user, limit).await?;
    for (n, id) in ids.iter().enumerate() {
        check!(create(store, &user, limits).await?.1 == Created::Full, "there was room before");
        if n % 2 == 0 {
            ended(store.end(id, End::For(EndReason::LoggedOut)).await)?;
        } else {
            answered(store.consume(id, new_version()?).await)?;
        }
        let (_, created) = create(store, &user, limits).await?;
        check!(matches!(created, Created::Done { .. }), "no room after an end: {created:?}");
    }
    Ok(())
}

async fn one_creates(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    for user in [None, Some(new_user()?)] {
        let user = user.as_deref();
        let id = new_id(user)?;
        let entries: Vec<_> = (0..callers).map(|_| new_entry(user)).collect::<Result<_, _>>()?;
        let results = all(entries.iter().map(|entry| store.create(&id, entry.clone(), limits(store)))).await;
        let mut winner = None;
        for (entry, result) in entries.iter().zip(results) {
            match answered(result)? {
                Created::Done { .. } if winner.is_none() => winner = Some(entry),
                Created::Done { .. } => return Err("two have created it".into()),
                Created::Taken => {}
                Created::Full => return Err("it is full".into()),
            }
        }
        let loaded = answered(store.load(&id).await)?.live().ok_or("it does not exist")?;
        let there = winner.is_some_and(|winner| loaded.record.version() == winner.record.version());
        check!(there, "the stored session is not the created one");
    }
    Ok(())
}

async fn one_updates(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    let (id, first) = (new_id(None)?, new_entry(None)?);
    answered(store.create(&id, first.clone(), Limits::none()).await)?;
    let entries: Vec<_> = (0..callers).map(|_| new_entry(None)).collect::<Result<_, _>>()?;
    let updates = entries.iter().map(|entry| store.update(&id, first.record.version(), entry.clone()));
    let mut done = Vec::new();
    let mut conflicts = Vec::new();
    for (entry, result) in entries.iter().zip(all(updates).await) {
        match answered(result)? {
            Outcome::Done => done.push(entry.record.version()),
            Outcome::Conflict(loaded) => conflicts.push(loaded.record.version()),
            Outcome::Gone => return Err("it is gone".into()),
        }
    }
    check!(done.len() == 1, "{} have replaced it", done.len());
    check!(conflicts.iter().all(|version| *version == done[0]), "the conflict does not have the record of the winner");
    Ok(())
}

async fn one_consumes(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    for user in [None, Some(new_user()?)] {
        let user = user.as_deref();
        let id = new_id(user)?;
        answered(store.create(&id, new_entry(user)?, Limits::none()).await)?;
        let claims: Vec<_> = (0..callers).map(|_| new_version()).collect::<Result<_, _>>()?;
        let mut winners = 0;
        for found in all(claims.iter().map(|claim| store.consume(&id, *claim))).await {
            match answered(found)? {
                Found::Live(_) => winners += 1,
                Found::Ended(ended) => check!(ended.reason == EndReason::Used, "{ended:?}"),
                Found::Unknown => return Err("it is unknown".into()),
            }
        }
        check!(winners == 1, "{winners} have consumed it");
    }
    Ok(())
}

async fn one_replaces(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    let (id, first) = (new_id(None)?, new_entry(None)?);
    answered(store.create(&id, first.clone(), Limits::none()).await)?;
    let version = Some(first.record.version());
    let successors = (0..callers).map(|_| new_id(None)).collect::<Result<Vec<_>, _>>()?;
    let mut winner = None;
    for (successor, outcome) in
        successors.iter().zip(all(successors.iter().map(|successor| store.replace(&id, version, successor))).await)
    {
        match ended(outcome)? {
            Outcome::Done => {
                check!(winner.is_none(), "two have replaced it");
                winner = Some(*successor);
            }
            Outcome::Gone => {}
            Outcome::Conflict(_) => return Err("a conflict without a write".into()),
        }
    }
    let found = answered(store.load(&id).await)?;
    let Found::Ended(ended) = found else { return Err(format!("{found:?}")) };
    check!(
        winner.is_some() && ended.successor == winner,
        "{winner:?} was confirmed, and {:?} is stored",
        ended.successor
    );
    Ok(())
}

async fn none_survives(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    let user = new_user()?;
    let ids = created(store, &user, callers).await?;
    let entry = new_entry(Some(&user))?;
    let work = ids.iter().enumerate().map(|(n, id)| {
        let (entry, user) = (entry.clone(), &user);
        async move {
            if n == callers / 2 {
                return answered(store.end_user(user, None, EndReason::Revoked).await).map(|_| ());
            }
            answered(store.touch(id, entry.clone()).await)?;
            answered(store.update(id, entry.record.version(), entry).await).map(|_| ())
        }
    });
    for result in all(work).await {
        result?;
    }
    alive(store, &user, &[], &ids).await
}

async fn none_brings_back(store: &dyn SessionStore, callers: usize) -> Result<(), String> {
    let user = new_user()?;
    let (id, first) = (new_id(Some(&user))?, new_entry(Some(&user))?);
    answered(store.create(&id, first.clone(), Limits::none()).await)?;
    let version = first.record.version();
    let work = (0..callers).map(|n| {
        let (id, first, user) = (&id, first.clone(), &user);
        async move {
            if n == callers / 2 {
                return ended(store.end(id, End::For(EndReason::LoggedOut)).await).map(|_| ());
            }
            match n % 3 {
                0 => answered(store.update(id, version, new_entry(Some(user))?).await).map(|_| ()),
                1 => answered(store.touch(id, first).await),
                _ => answered(store.create(id, first, Limits::none()).await).map(|_| ()),
            }
        }
    });
    for result in all(work).await {
        result?;
    }
    alive(store, &user, &[], &[id]).await
}

async fn end_user(store: &dyn SessionStore, sessions: usize, excepted: bool) -> Result<(), String> {
    let (user, other) = (new_user()?, new_user()?);
    let ids = created(store, &user, sessions).await?;
    let others = created(store, &other, 1).await?;
    let except = ids.first().filter(|_| excepted);
    let ended = answered(store.end_user(&user, except, EndReason::Revoked).await)?;
    let left: Vec<_> = except.into_iter().copied().collect();
    check!(ended.len() == ids.len() - left.len(), "{} have ended", ended.len());
    for id in &ended {
        let found = answered(store.load(id).await)?;
        check!(matches!(found, Found::Ended(ended) if ended.reason == EndReason::Revoked), "{found:?}");
    }
    alive(store, &user, &left, &ids).await?;
    alive(store, &other, &others, &others).await?;
    // The excepted session is unchanged.
    if let Some(id) = except {
        let loaded = answered(store.load(id).await)?.live().ok_or("it is gone")?;
        check!(loaded.ttl.is_some_and(|ttl| ttl > HOUR / 2), "its TTL is {:?}", loaded.ttl);
        let updated = answered(store.update(id, loaded.record.version(), new_entry(Some(&user))?).await)?;
        check!(matches!(updated, Outcome::Done), "{updated:?}");
        alive(store, &user, &left, &ids).await?;
    }
    Ok(())
}

async fn login_again(store: &dyn SessionStore) -> Result<(), String> {
    let user = new_user()?;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.extend(created(store, &user, 2).await?);
        answered(store.end_user(&user, None, EndReason::Revoked).await)?;
        alive(store, &user, &[], &ids).await?;
    }
    let new = created(store, &user, 2).await?;
    ids.extend(&new);
    alive(store, &user, &new, &ids).await?;
    let loaded = answered(store.load(&new[0]).await)?.live().ok_or("it is gone")?;
    answered(store.update(&new[0], loaded.record.version(), new_entry(Some(&user))?).await)?;
    alive(store, &user, &new, &ids).await
}

async fn end_user_twice(store: &dyn SessionStore) -> Result<(), String> {
    let user = new_user()?;
    let ids = created(store, &user, 3).await?;
    for _ in 0..2 {
        answered(store.end_user(&user, Some(&ids[1]), EndReason::Revoked).await)?;
        alive(store, &user, &[ids[1]], &ids).await?;
    }
    Ok(())
}

async fn spared_stranger(store: &dyn SessionStore) -> Result<(), String> {
    let (user, other) = (new_user()?, new_user()?);
    let ids = created(store, &user, 2).await?;
    let others = created(store, &other, 1).await?;
    answered(store.end_user(&user, Some(&others[0]), EndReason::Revoked).await)?;
    alive(store, &user, &[], &ids).await?;
    alive(store, &other, &others, &others).await
}

async fn scanned(store: &dyn SessionStore, size: usize) -> Result<(), String> {
    let user = new_user()?;
    let mut live: HashSet<_> = created(store, &user, 40).await?.into_iter().collect();
    for _ in 0..40 {
        let id = new_id(None)?;
        answered(store.create(&id, new_entry(None)?, Limits::none()).await)?;
        live.insert(id);
    }
    let dead: HashSet<_> = live.iter().copied().take(20).collect();
    for id in &dead {
        ended(store.end(id, End::For(EndReason::LoggedOut)).await)?;
        live.remove(id);
    }
    let mut from = Cursor::start();
    for _ in 0..1_000_000 {
        let page = answered(store.scan(&from, size).await)?;
        for (id, _) in page.sessions {
            check!(!dead.contains(&id), "the scan found an ended session");
            live.remove(&id);
        }
        match page.next {
            Some(next) => from = next,
            None => {
                check!(live.is_empty(), "the scan missed {}", live.len());
                return Ok(());
            }
        }
    }
    Err("the scan does not end".into())
}

/// Between two pages some sessions end, some are created, and some are written.
async fn scanned_amid_writes(store: &dyn SessionStore, size: usize) -> Result<(), String> {
    let user = new_user()?;
    let mut missing: HashSet<_> = created(store, &user, 30).await?.into_iter().collect();
    let written: Vec<_> = missing.iter().copied().take(10).collect();
    let mut ending = created(store, &user, 30).await?;
    let mut from = Cursor::start();
    for page in 0..1_000_000 {
        if page < 60 {
            created(store, &user, 5).await?;
            if let Some(id) = ending.pop() {
                ended(store.end(&id, End::For(EndReason::LoggedOut)).await)?;
            }
            let id = &written[page % written.len()];
            let loaded = answered(store.load(id).await)?.live().ok_or("it is gone")?;
            answered(store.update(id, loaded.record.version(), new_entry(Some(&user))?).await)?;
        }
        let found = answered(store.scan(&from, size).await)?;
        for (id, _) in found.sessions {
            missing.remove(&id);
        }
        match found.next {
            Some(next) => from = next,
            None => {
                check!(missing.is_empty(), "the scan missed {}", missing.len());
                return Ok(());
            }
        }
    }
    Err("the scan does not end".into())
}

async fn time_to_live(store: &dyn SessionStore, ttl: Duration) -> Result<(), String> {
    for user in [None, Some(new_user()?)] {
        let user = user.as_deref();
        let (id, first) = (new_id(user)?, new_entry(user)?);
        answered(store.create(&id, Entry { ttl, ..first.clone() }, limits(store)).await)?;
        let check = async |after: &str| {
            let left = answered(store.load(&id).await)?.live().and_then(|loaded| loaded.ttl).unwrap_or_default();
            // Even on a slow machine the TTL is neither longer nor another one.
            check!(left <= ttl && left + HOUR / 2 > ttl, "after {after} its TTL is {left:?}");
            Ok(())
        };
        check("its creation").await?;
        let second = new_entry(user)?;
        answered(store.update(&id, first.record.version(), second.clone()).await)?;
        answered(store.touch(&id, Entry { ttl, ..second.clone() }).await)?;
        check("a touch").await?;
        answered(store.update(&id, second.record.version(), Entry { ttl, ..new_entry(user)? }).await)?;
        check("an update").await?;
    }
    Ok(())
}

async fn counted(store: &dyn SessionStore) -> Result<(), String> {
    let (user, before) = (new_user()?, answered(store.count().await)?);
    let ids = created(store, &user, 30).await?;
    let count = answered(store.count().await)?;
    check!(count == before + 30, "{count} instead of {before} + 30");
    ended(store.end(&ids[0], End::For(EndReason::LoggedOut)).await)?;
    answered(store.consume(&ids[1], new_version()?).await)?;
    let count = answered(store.count().await)?;
    check!(count == before + 28, "{count} instead of {before} + 28");
    match store.users() {
        Some(users) => drop(answered(users.end_user(&user, None, EndReason::Revoked).await)?),
        None => {
            for id in &ids[2..] {
                ended(store.end(id, End::For(EndReason::LoggedOut)).await)?;
            }
        }
    }
    let count = answered(store.count().await)?;
    check!(count == before, "{count} instead of {before}");
    Ok(())
}

async fn expired(store: &dyn SessionStore, advance: &impl AsyncFn(Duration)) -> Result<(), String> {
    let short = Duration::from_millis(400);
    let user = new_user()?;
    let of_user: Vec<_> = (0..3).map(|_| new_id(Some(&user))).collect::<Result<_, _>>()?;
    let entry = Entry { ttl: short, ..new_entry(Some(&user))? };
    for id in &of_user {
        let created = answered(store.create(id, entry.clone(), limits(store)).await)?;
        check!(matches!(created, Created::Done { .. }), "{created:?}");
    }
    let [touched, updated, left] = [new_id(None)?, new_id(None)?, new_id(None)?];
    let short_lived = Entry { ttl: short, ..new_entry(None)? };
    for id in [&touched, &updated, &left] {
        answered(store.create(id, short_lived.clone(), Limits::none()).await)?;
    }
    answered(store.touch(&touched, Entry { ttl: HOUR, ..short_lived.clone() }).await)?;
    answered(store.update(&updated, short_lived.record.version(), new_entry(None)?).await)?;
    answered(store.update(&left, short_lived.record.version(), Entry { ttl: short, ..new_entry(None)? }).await)?;

    advance(short + short / 4).await;
    check!(is_live(store, &touched).await?, "a touched session has ended");
    check!(is_live(store, &updated).await?, "an updated session has ended");
    check!(!is_live(store, &left).await?, "a session has not expired");
    for id in &of_user {
        let found = answered(store.load(id).await)?;
        check!(matches!(found, Found::Ended(ended) if ended.reason == EndReason::Expired), "of a user: {found:?}");
        // No operation resurrects it.
        answered(store.touch(id, Entry { ttl: HOUR, ..entry.clone() }).await)?;
        let outcome = answered(store.update(id, entry.record.version(), new_entry(Some(&user))?).await)?;
        check!(matches!(outcome, Outcome::Gone), "{outcome:?}");
        let consumed = answered(store.consume(id, new_version()?).await)?;
        check!(consumed.live().is_none(), "an expired session was consumed");
        let outcome = ended(store.end(id, End::For(EndReason::LoggedOut)).await)?;
        check!(matches!(outcome, Outcome::Gone), "{outcome:?}");
    }
    alive(store, &user, &[], &of_user).await
}

async fn replacement_takes_the_place(store: &dyn SessionStore, policy: WhenFull) -> Result<(), String> {
    let (user, limits) = (new_user()?, Limits::per_user(2, policy));
    let (old, other) = (create(store, &user, limits).await?.0, create(store, &user, limits).await?.0);
    let mut new = crate::store::Record::clone(&new_entry(Some(&user))?.record);
    new.replaces = Some(old);
    let (id, new) = (new_id(Some(&user))?, Entry { record: new.into(), ttl: HOUR });
    let created = answered(store.create(&id, new.clone(), limits).await)?;
    check!(created == Created::Done { evicted: Vec::new() }, "{created:?}");
    alive(store, &user, &[old, other, id], &[]).await?;
    answered(store.end(&old, End::Replaced { expected: None, successor: id }).await)?;
    // A session that has ended keeps no place.
    let created = answered(store.create(&new_id(Some(&user))?, new, limits).await)?;
    let holds = match policy {
        WhenFull::Reject => created == Created::Full,
        _ => matches!(&created, Created::Done { evicted } if evicted.len() == 1),
    };
    check!(holds, "{created:?}");
    Ok(())
}

async fn expired_make_room(store: &dyn SessionStore, advance: &impl AsyncFn(Duration)) -> Result<(), String> {
    let short = Duration::from_millis(400);
    let (user, limits) = (new_user()?, Limits::per_user(3, WhenFull::Reject));
    for ttl in [short, HOUR] {
        for _ in 0..3 {
            let entry = Entry { ttl, ..new_entry(Some(&user))? };
            let created = answered(store.create(&new_id(Some(&user))?, entry, limits).await)?;
            check!(matches!(created, Created::Done { .. }), "{created:?}");
        }
        advance(short + short / 4).await;
    }
    Ok(())
}

async fn no_time(store: &dyn SessionStore, advance: &impl AsyncFn(Duration)) -> Result<(), String> {
    for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1)] {
        for user in [None, Some(new_user()?)] {
            let user = user.as_deref();
            let (id, entry) = (new_id(user)?, Entry { ttl, ..new_entry(user)? });
            let created = answered(store.create(&id, entry.clone(), limits(store)).await)?;
            check!(matches!(created, Created::Done { .. }), "{ttl:?}: {created:?}");
            advance(MOMENT).await;
            check!(!is_live(store, &id).await?, "{ttl:?}: it is live");
            let (id, first) = (new_id(user)?, new_entry(user)?);
            answered(store.create(&id, first.clone(), limits(store)).await)?;
            let updated = answered(store.update(&id, first.record.version(), entry).await)?;
            check!(matches!(updated, Outcome::Done), "{ttl:?}: {updated:?}");
            advance(MOMENT).await;
            check!(!is_live(store, &id).await?, "{ttl:?}: it is live after an update");
        }
    }
    Ok(())
}
