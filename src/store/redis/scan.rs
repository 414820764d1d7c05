//! Pages of sessions, with `SCAN`.

use redis::{Value, pipe};

use super::{
    error::Failure,
    operation::Operation,
    reply::{found, is_before, is_record, number},
};
use crate::{
    record::HEAD_LEN,
    store::{Cursor, Found, Page},
    token::SessionId,
};

impl Operation<'_> {
    pub(super) async fn scan(&self, from: &Cursor, count: usize) -> Result<Page, Failure> {
        let (ids, next) = self.scan_ids(from, count).await?;
        let mut loads = pipe();
        for id in &ids {
            let [session, _, epoch] = self.prefix().keys(id).all;
            loads.get(&epoch).get(&session).pttl(&session);
        }
        let replies = match ids.first() {
            Some(first) => self.read(self.prefix().keys(first).session(), &loads).await?,
            None => Vec::new(),
        };
        let mut sessions = Vec::new();
        for (id, reply) in ids.into_iter().zip(replies.chunks_exact(3)) {
            if let [epoch, Value::BulkString(stored), Value::Int(ttl)] = reply {
                match found(stored, *ttl, number(epoch)) {
                    Ok(Found::Live(loaded)) if self.local_tombstones.get(&id).is_none() => sessions.push((id, loaded)),
                    Ok(_) => {}
                    Err(_) => tracing::warn!(session = %id, "session record not readable"),
                }
            }
        }
        Ok(Page { sessions, next })
    }

    /// The number of live sessions on a page, and the next cursor.
    pub(super) async fn count(&self, from: &Cursor) -> Result<(u64, Option<Cursor>), Failure> {
        let (ids, next) = self.scan_ids(from, 1000).await?;
        let mut beginnings = pipe();
        for id in &ids {
            let [session, _, epoch] = self.prefix().keys(id).all;
            beginnings.get(epoch).cmd("GETRANGE").arg(session).arg(0).arg(HEAD_LEN + 25);
        }
        let replies = match ids.first() {
            Some(first) => self.read(self.prefix().keys(first).session(), &beginnings).await?,
            None => Vec::new(),
        };
        let alive = replies.chunks_exact(2).filter(|reply| match reply {
            [epoch, Value::BulkString(beginning)] => is_record(beginning) && !is_before(beginning, number(epoch)),
            _ => false,
        });
        Ok((alive.count() as u64, next))
    }

    async fn scan_ids(&self, from: &Cursor, count: usize) -> Result<(Vec<SessionId>, Option<Cursor>), Failure> {
        let (keys, next) = self.scan_keys(&self.prefix().pattern(), from, count).await?;
        Ok((keys.iter().filter_map(|key| self.prefix().id_of(key)).collect(), next))
    }

    /// A page of matching keys, and the next cursor.
    pub(super) async fn scan_keys(
        &self,
        pattern: &str,
        from: &Cursor,
        count: usize,
    ) -> Result<(Vec<Value>, Option<Cursor>), Failure> {
        let scan = |cursor: &str| {
            let mut scan = pipe();
            // An invalid cursor, which may come from a link, starts over.
            scan.cmd("SCAN")
                .arg(cursor.parse::<u64>().unwrap_or(0))
                .arg("MATCH")
                .arg(pattern)
                .arg("COUNT")
                .arg(count.clamp(1, 1000));
            scan
        };
        let (keys, next) = self.route.scan(from.as_str(), scan, self.deadline).await?;
        Ok((keys, next.map(Into::into)))
    }
}
