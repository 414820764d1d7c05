//! Moves sessions from one store to another while serving.

mod moving;
mod stuck;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use self::stuck::{MAX_ATTEMPTS, Stuck, contended};
use super::{
    error::StoreError,
    future::StoreFuture,
    health::Health,
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page},
    values::ValueStore,
};
use crate::{ended::EndReason, error_chain::ErrorChain, limits::Limits, record::Version, token::SessionId};

/// The approximate number of sessions per page of [`MigratingStore::move_all`].
const PAGE: usize = 100;

/// Two stores as one: new sessions are created in the new store, and sessions of the old store are moved when they are used.
///
/// It keeps the whole [contract](SessionStore) if both stores do. Each session is in one store at any time. Reading a session moves
/// it, so all other operations happen in the new store, with its guarantees. No user is logged out, and tokens stay valid.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer, store::MigratingStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let old = MemoryStore::new();
/// let token = SessionLayer::new(old.clone()).sessions().create("ana").await?;
///
/// let new = MemoryStore::new(); // a RedisStore, rather
/// let both = MigratingStore::new(old.clone(), new.clone());
/// let layer = SessionLayer::new(both.clone());
/// assert!(layer.sessions().is_valid(&token).await?); // and so it has moved
/// assert!(old.is_empty());
///
/// both.move_all().await?; // those that nobody uses
/// let layer = SessionLayer::new(new); // from the next deploy on
/// assert!(layer.sessions().is_valid(&token).await?);
/// # Ok(())
/// # }
/// ```
///
/// # A migration
/// 1. Deploy `MigratingStore::new(old, new)` on every instance. An instance with only the old store takes a moved session for a
///    replaced one, so do not mix both kinds for long, or keep each client on one instance.
/// 2. When no instance uses only the old store, call [`move_all`](Self::move_all) from one instance. Or wait for the longest
///    absolute timeout.
/// 3. Deploy the new store on every instance.
///
/// # How a session moves
/// 1. The session is created in the new store as a copy, which its version marks.
/// 2. The session ends in the old store, replaced by itself, unless it was written since it was read. This is the decisive step:
///    before, the old store is authoritative, afterwards the copy.
/// 3. The copy becomes the session, with its version and time to live.
///
/// A request that finds a copy queries the old store and completes the missing steps. So concurrent requests and instances can move
/// the same session, and one completes what another has left. A session that ended in the old store ends as a copy, and one that
/// ended in the new store is not copied again. So revocations and single use are correct before, during and after a move.
///
/// # What it costs
/// A moved session is loaded and updated in one round trip. A move takes five more. Unknown tokens, new sessions, lists and scans
/// query both stores.
///
/// # What is not as with one store
/// * **Outage of the old store**: an outage ([`StoreError::Outage`]) for sessions that the new store does not know, for new
///   sessions, and for operations on all sessions or on a user. Moved sessions are served.
/// * **Outage of the new store**: an outage. If the new store only refuses writes or is full, sessions of the old one can be read
///   and ended, and not changed or extended.
/// * **A process that dies between steps 2 and 3** leaves a copy that is completed when it is next used, listed or scanned. If that
///   does not happen before the tombstone in the old store is removed (1 hour by default), the session ends, because the old store
///   can no longer tell whether it was moved or revoked.
/// * **Time**: a session lives longer by the duration of its move, a few milliseconds.
/// * **Tombstones** of sessions that ended in the old store stay there.
/// * [`count`](ScanStore::count) is the sum of both stores; a session that is being moved counts twice. A scan may return such a
///   session twice. [`list`](UserStore::list) returns each session once. If sessions of a user change during the list, it may
///   contain one that has just ended, or miss one that was just created.
/// * **[`end_user`](UserStore::end_user)** ends the sessions in the old store first. A session that is created in between ends too,
///   and two concurrent callers may both return a session that was being moved.
/// * **Limits** hold across both stores: the sessions of a user are moved before another one is created. Sessions that instances
///   with only the old store create at the same moment are not counted.
/// * **Events and values** are those of the new store. Values are not moved.
#[derive(Clone)]
pub struct MigratingStore {
    old: Arc<dyn SessionStore>,
    new: Arc<dyn SessionStore>,
}

impl MigratingStore {
    /// Moves sessions from `old` to `new`.
    pub fn new(old: impl SessionStore + 'static, new: impl SessionStore + 'static) -> Self {
        Self { old: Arc::new(old), new: Arc::new(new) }
    }

    /// Moves all sessions of the old store. Returns their number.
    ///
    /// Call it while serving, when no instance uses only the old store. It can be cancelled and called again.
    ///
    /// # Errors
    /// [`StoreError`] if a store is unavailable, or the new one is full: some sessions may have moved.
    ///
    /// ```
    /// # use tower_keep::store::{MigratingStore, StoreError};
    /// async fn finish(both: &MigratingStore) -> Result<(), StoreError> {
    ///     println!("{} sessions moved", both.move_all().await?);
    ///     Ok(())
    /// }
    /// # let _ = finish;
    /// ```
    pub async fn move_all(&self) -> Result<u64, StoreError> {
        let mut moved = 0;
        for (store, copies) in [(&self.old, false), (&self.new, true)] {
            let mut place = Some(Cursor::start());
            while let Some(from) = place {
                let page = ScanStore::scan(store, &from, PAGE).await?;
                for (id, loaded) in page.sessions {
                    if (!copies || loaded.record.version().is_copy()) && self.take(&id).await?.is_some() {
                        moved += 1;
                    }
                }
                place = page.next;
            }
        }
        Ok(moved)
    }

    /// The session, if it is alive. It is in the new store afterwards.
    async fn take(&self, id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        Ok(self.moved(id).await.map_err(|stuck| stuck.error)?.live())
    }

    async fn load(&self, id: &SessionId) -> Result<Found, StoreError> {
        match self.moved(id).await {
            Ok(found) => Ok(found),
            // A read works even if writes fail.
            Err(Stuck { in_old: Some(loaded), error }) => {
                tracing::warn!(session = %id, error = %ErrorChain(&error), "session not moved");
                Ok(Found::Live(loaded))
            }
            Err(stuck) => Err(stuck.error),
        }
    }

    async fn create(&self, id: &SessionId, new: Entry, limits: Limits) -> Result<Created, StoreError> {
        if !matches!(self.old.load(id).await?, Found::Unknown) {
            let is_same = |there: Loaded| there.record.version() == new.record.version();
            let done = self.take(id).await?.is_some_and(is_same);
            return Ok(if done { Created::Done { evicted: Vec::new() } } else { Created::Taken });
        }
        if let (Some(user), Some(_)) = (new.record.user(), limits.sessions()) {
            self.move_user(user).await?;
        }
        self.new.create(id, new, limits).await
    }

    /// Moves all sessions of a user, so that limits count them.
    async fn move_user(&self, user: &str) -> Result<(), StoreError> {
        for (id, _) in self.old.list(user).await? {
            self.take(&id).await?;
        }
        for (id, loaded) in self.new.list(user).await? {
            if loaded.record.version().is_copy() {
                self.take(&id).await?;
            }
        }
        Ok(())
    }

    async fn update(&self, id: &SessionId, expected: Version, new: Entry) -> Result<Outcome, StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            match self.new.update(id, expected, new.clone()).await? {
                Outcome::Done => return Ok(Outcome::Done),
                Outcome::Conflict(loaded) if !loaded.record.version().is_copy() => {
                    return Ok(Outcome::Conflict(loaded));
                }
                // The session is not in the new store, or not yet.
                Outcome::Conflict(_) | Outcome::Gone => {
                    if self.take(id).await?.is_none() {
                        return Ok(Outcome::Gone);
                    }
                }
            }
        }
        Err(contended())
    }

    async fn touch(&self, id: &SessionId, entry: Entry) -> Result<(), StoreError> {
        match self.take(id).await? {
            Some(_) => self.new.touch(id, entry).await,
            None => Ok(()),
        }
    }

    async fn end(&self, id: &SessionId, end: End) -> Result<EndOutcome, StoreError> {
        match end {
            End::For(_) => self.end_anywhere(id, end).await,
            End::Replaced { expected, successor } => self.replace(id, expected, successor).await,
            End::Used { .. } => self.claim(id, end).await,
        }
    }

    async fn end_anywhere(&self, id: &SessionId, end: End) -> Result<EndOutcome, StoreError> {
        match self.moved(id).await {
            Ok(Found::Live(_)) => self.new.end(id, end).await,
            Ok(Found::Ended(_)) => Ok(EndOutcome::Gone),
            // The session may be in either store, or may be created later.
            Ok(Found::Unknown) | Err(Stuck { in_old: Some(_), .. } | Stuck { error: StoreError::Corrupt(_), .. }) => {
                let in_old = self.old.end(id, end).await?;
                Ok(either(in_old, self.new.end(id, end).await?))
            }
            Err(stuck) => Err(stuck.error),
        }
    }

    async fn replace(
        &self,
        id: &SessionId,
        expected: Option<Version>,
        successor: SessionId,
    ) -> Result<EndOutcome, StoreError> {
        let end = End::Replaced { expected, successor };
        match self.moved(id).await.map_err(|stuck| stuck.error)? {
            Found::Live(_) => self.new.end(id, end).await,
            Found::Ended(ended) if ended.successor == Some(successor) => Ok(EndOutcome::Done), // by an earlier identical call
            Found::Ended(_) => Ok(EndOutcome::Gone),
            Found::Unknown if expected.is_some() => Ok(EndOutcome::Gone),
            Found::Unknown => {
                let in_old = self.old.end(id, end).await?;
                Ok(either(in_old, self.new.end(id, end).await?))
            }
        }
    }

    async fn claim(&self, id: &SessionId, end: End) -> Result<EndOutcome, StoreError> {
        match self.moved(id).await.map_err(|stuck| stuck.error)? {
            Found::Live(_) => self.new.end(id, end).await,
            // The session may have ended by this claim. A copy of a session that ended in the old store must not be claimed.
            Found::Ended(_) => match self.new.load(id).await? {
                Found::Ended(_) => self.new.end(id, end).await,
                Found::Live(_) | Found::Unknown => Ok(EndOutcome::Gone),
            },
            Found::Unknown => Ok(EndOutcome::Gone),
        }
    }

    /// If the old store lists the same sessions before and after the query of the new store, both lists together are complete.
    async fn list(&self, user: &str) -> Result<Vec<(SessionId, Loaded)>, StoreError> {
        let mut in_old = self.old.list(user).await?;
        let mut in_new = self.new.list(user).await?;
        for _ in 0..MAX_ATTEMPTS {
            if in_old.is_empty() {
                break;
            }
            let still = self.old.list(user).await?;
            if ids(&still) == ids(&in_old) {
                break;
            }
            in_old = still;
            in_new = self.new.list(user).await?;
        }
        let still = ids(&in_old);
        in_new.retain(|(id, loaded)| !(loaded.record.version().is_copy() && still.contains(id)));
        let mut sessions = self.begun(in_new).await?;
        let known = ids(&sessions);
        sessions.extend(in_old.into_iter().filter(|(id, _)| !known.contains(id)));
        sessions.sort_by_key(|(_, loaded)| loaded.record.created_at());
        Ok(sessions)
    }

    /// The sessions of the new store without incomplete copies.
    async fn begun(&self, sessions: Vec<(SessionId, Loaded)>) -> Result<Vec<(SessionId, Loaded)>, StoreError> {
        let mut begun = Vec::with_capacity(sessions.len());
        for (id, loaded) in sessions {
            if loaded.record.version().is_copy() {
                begun.extend(self.take(&id).await?.map(|loaded| (id, loaded)));
            } else {
                begun.push((id, loaded));
            }
        }
        Ok(begun)
    }

    /// The old store comes first: a session that was copied before ends in the new store, and a later copy finds that the original
    /// has ended.
    async fn end_user(
        &self,
        user: &str,
        except: Option<&SessionId>,
        reason: EndReason,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut gone = self.old.end_user(user, except, reason).await?;
        gone.extend(self.new.end_user(user, except, reason).await?);
        let mut seen = HashSet::new();
        gone.retain(|id| seen.insert(*id));
        Ok(gone)
    }

    /// The old store comes first: a session that is moved during the scan is found in the new one.
    async fn scan(&self, from: &Cursor, count: usize) -> Result<Page, StoreError> {
        if let Some(place) = from.as_str().strip_prefix(IN_NEW) {
            let page = ScanStore::scan(&self.new, &place.to_owned().into(), count).await?;
            let next = page.next.map(|place| format!("{IN_NEW}{}", place.as_str()).into());
            return Ok(Page { sessions: self.begun(page.sessions).await?, next });
        }
        let place = from.as_str().strip_prefix(IN_OLD).unwrap_or_default();
        let page = ScanStore::scan(&self.old, &place.to_owned().into(), count).await?;
        let next = page.next.map_or(IN_NEW.to_owned(), |place| format!("{IN_OLD}{}", place.as_str()));
        Ok(Page { sessions: page.sessions, next: Some(next.into()) })
    }
}

/// The prefixes of cursors.
const IN_OLD: &str = "old:";
const IN_NEW: &str = "new:";

fn ids(sessions: &[(SessionId, Loaded)]) -> HashSet<SessionId> {
    sessions.iter().map(|(id, _)| *id).collect()
}

/// The outcome of ending a session in both stores.
fn either(in_old: EndOutcome, in_new: EndOutcome) -> EndOutcome {
    match (in_old, in_new) {
        (EndOutcome::Done, _) | (_, EndOutcome::Done) => EndOutcome::Done,
        (_, in_new) => in_new,
    }
}

/// The worse health of both stores, with the causes.
fn worse(old: Health, new: Health) -> Health {
    let cause = |name, health: &Health| health.cause().map(|cause| format!("the {name} store: {cause}"));
    let causes: Vec<_> = [cause("old", &old), cause("new", &new)].into_iter().flatten().collect();
    let causes = causes.join("; ").into();
    match (old, new) {
        (Health::Up, Health::Up) => Health::Up,
        (Health::Down(_), _) | (_, Health::Down(_)) => Health::Down(causes),
        (Health::Degraded(_), _) | (_, Health::Degraded(_)) => Health::Degraded(causes),
    }
}

impl SessionStore for MigratingStore {
    fn load<'a>(&'a self, id: &'a SessionId) -> StoreFuture<'a, Found> {
        StoreFuture::boxed(self.load(id))
    }

    fn create<'a>(&'a self, id: &'a SessionId, new: Entry, limits: Limits) -> StoreFuture<'a, Created> {
        StoreFuture::boxed(self.create(id, new, limits))
    }

    fn update<'a>(&'a self, id: &'a SessionId, expected: Version, new: Entry) -> StoreFuture<'a, Outcome> {
        StoreFuture::boxed(self.update(id, expected, new))
    }

    fn touch<'a>(&'a self, id: &'a SessionId, entry: Entry) -> StoreFuture<'a, ()> {
        StoreFuture::boxed(self.touch(id, entry))
    }

    fn end<'a>(&'a self, id: &'a SessionId, end: End) -> StoreFuture<'a, EndOutcome> {
        StoreFuture::boxed(self.end(id, end))
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        StoreFuture::boxed(async {
            let of =
                async |store: &Arc<dyn SessionStore>| store.health().await.unwrap_or_else(|error| Health::down(&error));
            Ok(worse(of(&self.old).await, of(&self.new).await))
        })
    }

    fn name(&self) -> &'static str {
        "migrating"
    }

    /// Moving a session takes two operations of each store.
    fn operation_deadline(&self) -> Option<Duration> {
        let (old, new) = (self.old.operation_deadline()?, self.new.operation_deadline()?);
        Some(old.saturating_add(new).saturating_mul(2))
    }

    fn is_degraded(&self) -> bool {
        self.old.is_degraded() || self.new.is_degraded()
    }

    fn users(&self) -> Option<&dyn UserStore> {
        self.old.users().and(self.new.users()).map(|_| self as &dyn UserStore)
    }

    fn scans(&self) -> Option<&dyn ScanStore> {
        self.old.scans().and(self.new.scans()).map(|_| self as &dyn ScanStore)
    }

    fn event_log(&self) -> Option<&dyn EventStore> {
        self.new.event_log()
    }

    fn values(&self) -> Option<&dyn ValueStore> {
        self.new.values()
    }
}

impl UserStore for MigratingStore {
    fn list<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<(SessionId, Loaded)>> {
        StoreFuture::boxed(self.list(user))
    }

    fn end_user<'a>(
        &'a self,
        user: &'a str,
        except: Option<&'a SessionId>,
        reason: EndReason,
    ) -> StoreFuture<'a, Vec<SessionId>> {
        StoreFuture::boxed(self.end_user(user, except, reason))
    }
}

impl ScanStore for MigratingStore {
    fn scan<'a>(&'a self, from: &'a Cursor, count: usize) -> StoreFuture<'a, Page> {
        StoreFuture::boxed(self.scan(from, count))
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        StoreFuture::boxed(async { Ok(self.old.count().await? + self.new.count().await?) })
    }
}

impl fmt::Debug for MigratingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigratingStore").field("old", &self.old.name()).field("new", &self.new.name()).finish()
    }
}
