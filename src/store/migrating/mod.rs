//! From one store to another, while sessions are served.

mod moving;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use self::moving::{MAX_ATTEMPTS, Stuck, contended};
use super::{
    error::StoreError,
    future::StoreFuture,
    health::Health,
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page},
    values::ValueStore,
};
use crate::{ended::EndReason, limits::Limits, observe::ErrorChain, record::Version, token::SessionId};

/// How many sessions [`MigratingStore::move_all`] asks for at once, about.
const PAGE: usize = 100;

/// Two stores as one: new sessions begin in the new store, and those of the old one are moved when they are used.
///
/// It keeps the whole [contract](SessionStore) if both stores do. Each session has one place: while it is only in the old store,
/// that one says what it is; from one moment on, the new. To read a session moves it, so that everything else happens in
/// the new store, and is as atomic as that store is. Nobody is logged out, and tokens stay what they are.
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
/// 1. Deploy every instance with `MigratingStore::new(old, new)`. An instance that knows only the old store takes a session that
///    has moved for one that was replaced, so do not serve with both kinds for long, or keep each client at one instance meanwhile.
/// 2. Call [`move_all`](Self::move_all), from one instance, after the last of the other kind has stopped. Or wait as long as the longest
///    absolute timeout.
/// 3. Deploy every instance with the new store alone.
///
/// # How a session moves
/// 1. It is created in the new store as a copy, marked as one by its version.
/// 2. In the old store it ends in favour of itself, if nobody wrote it since it was read. This is what counts: until then the old
///    store says what the session is, and from then on the copy.
/// 3. The copy becomes the session, with the version and the time to live that it had.
///
/// Whoever meets a copy asks the old store, and makes the steps that are missing. So any number of requests and instances may move the same
/// session at once, and what one leaves half done the next one completes. What ended in the old store ends as a copy, what ended in the
/// new one cannot be copied again: a revocation counts before, after and amid a move, and one caller consumes.
///
/// # What it costs
/// What is in the new store is loaded and updated in one round trip, as ever. A move takes five more. A token that is unknown, a new
/// session, a listing and a page of a scan ask both stores.
///
/// # What is not as with one store
/// * **An outage of the old store** is an outage ([`StoreError::Outage`]) for sessions that the new one does not know, for new
///   sessions, and for what concerns all sessions or all of a user. Sessions that have moved are served.
/// * **An outage of the new store** is an outage. When it answers, and only refuses to write or is full, sessions of the old one can be read,
///   and ended, but neither changed nor extended.
/// * **A process that dies in the moment between steps 2 and 3** leaves a copy that is completed when it is next used, listed or
///   scanned. If that does not happen for as long as the old store remembers what ended (an hour by default), the session is over: the
///   old store cannot tell any more whether it was moved or revoked.
/// * **Time**: a session lives longer by the time its move took: milliseconds.
/// * **What ended in the old store** before it came to the new one is remembered there, so its end is no longer explained
///   once the old store is gone.
/// * [`count`](ScanStore::count) is the sum of both: it counts what moves in that moment twice. A scan shows what moves
///   meanwhile once or twice. [`list`](UserStore::list) shows each session once; if a user's sessions move, end and begin all the while it
///   is asked, one may be listed that has just ended, or one missing that has just begun.
/// * **[Ending all](UserStore::end_user)** sessions of a user ends those of the old store first. One that begins in between ends as
///   well, and two callers at once may both name a session that was on its way.
/// * **Limits** hold across both stores: a user's sessions are moved before one more is created. Those of the old store that
///   instances of the other kind create in the same moment are not counted.
/// * [Events](EventStore::events) are those of the new store.
/// * [Values](SessionStore::values) are those of the new store too. They are not moved: those of the old one stay there, and are not seen.
#[derive(Clone)]
pub struct MigratingStore {
    old: Arc<dyn SessionStore>,
    new: Arc<dyn SessionStore>,
}

impl MigratingStore {
    /// The sessions of `old` on their way to `new`.
    pub fn new(old: impl SessionStore + 'static, new: impl SessionStore + 'static) -> Self {
        Self { old: Arc::new(old), new: Arc::new(new) }
    }

    /// Moves every session that is in the old store, and completes what others have begun. Returns how many it found.
    ///
    /// To be called while sessions are served, when no instance writes to the old store alone any more. It may be stopped at any
    /// time, and called again.
    ///
    /// # Errors
    /// [`StoreError`] when a store does not answer, or the new one is full: some may have moved.
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

    /// The session, in the new store, if it is alive.
    async fn take(&self, id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        Ok(self.moved(id).await.map_err(|stuck| stuck.error)?.live())
    }

    async fn load(&self, id: &SessionId) -> Result<Found, StoreError> {
        match self.moved(id).await {
            Ok(found) => Ok(found),
            // A read keeps working where writes fail.
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

    /// Brings together what limits count.
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
                // It is not there, or not yet.
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
            // Wherever it is, or will be created.
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
            // Perhaps by this claim. A copy of a session that ended in the old store must not be claimed.
            Found::Ended(_) => match self.new.load(id).await? {
                Found::Ended(_) => self.new.end(id, end).await,
                Found::Live(_) | Found::Unknown => Ok(EndOutcome::Gone),
            },
            Found::Unknown => Ok(EndOutcome::Gone),
        }
    }

    /// What old lists before and after new does is there in that moment. What moves, moves to new.
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

    /// Those of the new store that are more than copies.
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

    /// The old store comes first: what is copied before is ended in the new one, what is copied later was ended when it was.
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

    /// The old store comes first: what moves meanwhile is found in the new one.
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

/// What the cursor of a scan begins with.
const IN_OLD: &str = "old:";
const IN_NEW: &str = "new:";

fn ids(sessions: &[(SessionId, Loaded)]) -> HashSet<SessionId> {
    sessions.iter().map(|(id, _)| *id).collect()
}

/// Of two stores that were told to end a session, one had it, or none.
fn either(in_old: EndOutcome, in_new: EndOutcome) -> EndOutcome {
    match (in_old, in_new) {
        (EndOutcome::Done, _) | (_, EndOutcome::Done) => EndOutcome::Done,
        (_, in_new) => in_new,
    }
}

/// What the two stores are together, and what is the matter with each.
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

    /// To move a session takes two operations of each.
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
