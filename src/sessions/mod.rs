//! Sessions outside requests.

mod account;
mod info;
mod new;
mod scan;
mod transfer;
mod until_ended;

use std::{fmt, net::IpAddr, sync::Arc};

use ::http::{Extensions, HeaderMap};

pub use self::{
    info::{Consumed, SessionInfo},
    new::NewSession,
    scan::Scan,
    transfer::{Export, ImportError, Imported},
};
use crate::{
    context::LayerContext,
    ended::{EndReason, Ended},
    event::EventKind,
    health::HealthReport,
    key_value::{KeyValue, KeyValueError},
    metrics::{self, ACTIVE},
    observe::Stats,
    record::{Record, Standing, Version},
    session::SessionError,
    store::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, SessionStore, StoreError, StoreExt},
    subscription::Events,
    token::{SessionId, Tag, Token},
};

/// The sessions of a [`SessionLayer`](crate::SessionLayer), for work outside requests.
///
/// Every method queries the store, so the results are valid for all instances.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = SessionLayer::new(MemoryStore::new());
/// let sessions = layer.sessions();
/// // A bearer token for a script:
/// let token = sessions.create("ana").await?;
/// assert!(sessions.is_valid(&token).await?);
/// // After a password change:
/// assert_eq!(sessions.list("ana").await?.len(), 1);
/// sessions.revoke_user("ana").await?;
/// assert!(!sessions.is_valid(&token).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sessions {
    context: Arc<LayerContext>,
    client_ip: Option<IpAddr>,
}

impl Sessions {
    pub(crate) fn new(context: Arc<LayerContext>) -> Self {
        Self { context, client_ip: None }
    }

    /// The same sessions, for work on behalf of a client: security events have this client IP. Default: none. Created sessions do
    /// not store it: see [`NewSession::metadata`].
    ///
    /// ```
    /// # use tower_keep::{Session, SessionId, Sessions, store::StoreError};
    /// async fn end(session: &Session, sessions: &Sessions, id: &SessionId) -> Result<bool, StoreError> {
    ///     sessions.for_client(session.client_ip()).revoke(id).await
    /// }
    /// # let _ = end;
    /// ```
    #[must_use]
    pub fn for_client(&self, ip: impl Into<Option<IpAddr>>) -> Self {
        Self { context: self.context.clone(), client_ip: ip.into() }
    }

    pub(crate) fn context(&self) -> &LayerContext {
        &self.context
    }

    /// For the client of a request, if the layer determines it.
    pub(crate) fn for_request(&self, headers: &HeaderMap, extensions: &Extensions) -> Self {
        let info = self.context.client_info.as_ref();
        self.for_client(info.and_then(|info| info.kept_ip(headers, extensions)))
    }

    #[cfg(feature = "jwt")]
    pub(crate) fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }

    /// Counts and publishes events: see [`LayerContext::announce`].
    pub(crate) async fn announce(&self, events: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>) {
        self.context.announce(events, self.client_ip).await;
    }

    /// Creates a session of a user, or from a [`NewSession`]. Returns the only copy of its token.
    ///
    /// # Errors
    /// [`SessionError::Full`] if a [limit](crate::SessionLayer::limits) is reached, [`SessionError::TooLarge`],
    /// [`SessionError::Store`] if the store fails, [`SessionError::Random`] without random numbers, [`SessionError::Conflict`] if
    /// the id exists, which its size excludes.
    pub async fn create(&self, new: impl Into<NewSession>) -> Result<Token, SessionError> {
        Ok(self.create_stored(new.into()).await?.0)
    }

    /// Creates a session. Returns the stored record too.
    pub(crate) async fn create_stored(&self, new: NewSession) -> Result<(Token, Arc<Record>), SessionError> {
        let context = &self.context;
        let now = context.clock.now();
        let record = new.record(now, &context.lifetime)?;
        context.check_size(&record)?;
        let user = record.user.clone();
        let token = Token::mint(user.as_deref().map(Tag::of_user))?;
        let (id, limits) = (token.id(), context.limits_of(user.as_deref())?);
        let (ttl, record) = (record.full_ttl(now), Arc::new(record));
        let entry = Entry { ttl, record: record.clone() };
        match context.store().create(&id, entry, limits).await? {
            Created::Done { evicted } => {
                let evicted = evicted.into_iter().map(|id| (id, user.clone(), EventKind::Ended(EndReason::Evicted)));
                self.announce(evicted.chain([(id, user.clone(), EventKind::Created)])).await;
                Ok((token, record))
            }
            Created::Full => {
                context.refused(user.as_deref(), self.client_ip);
                Err(SessionError::Full)
            }
            Created::Taken => Err(SessionError::Conflict),
        }
    }

    /// The live session with this id.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    ///
    /// ```
    /// # async fn example(sessions: tower_keep::Sessions, id: tower_keep::SessionId) -> Result<(), tower_keep::store::StoreError> {
    /// if let Some(session) = sessions.get(&id).await? {
    ///     println!("{:?}, since {:?}", session.user(), session.created_at());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get(&self, id: &SessionId) -> Result<Option<SessionInfo>, StoreError> {
        match self.context.store().load(id).await? {
            Found::Live(loaded) => self.begun(*id, &loaded).await,
            Found::Ended(_) | Found::Unknown => Ok(None),
        }
    }

    /// The live session of this token. This does not extend it.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    ///
    /// ```
    /// # use tower_keep::{Sessions, Token, store::StoreError};
    /// async fn user_of(sessions: &Sessions, token: &Token) -> Result<Option<String>, StoreError> {
    ///     let session = sessions.open(token).await?;
    ///     Ok(session.and_then(|session| session.user().map(str::to_owned)))
    /// }
    /// # let _ = user_of;
    /// ```
    pub async fn open(&self, token: &Token) -> Result<Option<SessionInfo>, StoreError> {
        let id = token.id();
        match self.context.store().load(&id).await? {
            Found::Live(loaded) if self.is_good(token, &loaded) => self.begun(id, &loaded).await,
            _ => Ok(None),
        }
    }

    /// Whether the token belongs to a live session.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    pub async fn is_valid(&self, token: &Token) -> Result<bool, StoreError> {
        Ok(self.open(token).await?.is_some())
    }

    /// Why a session ended, if the store still has its tombstone.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    ///
    /// ```
    /// # async fn example(sessions: tower_keep::Sessions, id: tower_keep::SessionId) -> Result<(), tower_keep::store::StoreError> {
    /// if let Some(ended) = sessions.ended(&id).await? {
    ///     println!("ended: {}", ended.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ended(&self, id: &SessionId) -> Result<Option<Ended>, StoreError> {
        match self.context.store().load(id).await? {
            Found::Ended(ended) => Ok(Some(ended)),
            Found::Live(_) | Found::Unknown => Ok(None),
        }
    }

    /// The live sessions of a user, newest first.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    pub async fn list(&self, user: &str) -> Result<Vec<SessionInfo>, StoreError> {
        let (mut sessions, mut replaced) = (Vec::new(), Vec::new());
        for (id, loaded) in self.context.store().list(user).await? {
            if let Some(session) = self.begun(id, &loaded).await? {
                sessions.push(session);
                replaced.extend(loaded.record.replaces); // ended since the store listed it
            }
        }
        sessions.retain(|session| !replaced.contains(&session.id()));
        sessions.sort_by_key(SessionInfo::created_at); // stable: a store lists the oldest first
        sessions.reverse();
        Ok(sessions)
    }

    /// Ends a session. Returns whether it was alive.
    ///
    /// After `Ok`, no new request is served with the session, on any instance.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable: the session may have ended.
    pub async fn revoke(&self, id: &SessionId) -> Result<bool, StoreError> {
        // The user is part of the event, if it can be read.
        let record = match self.context.store().load(id).await {
            Ok(Found::Live(loaded)) => Some(loaded.record),
            _ => None,
        };
        let outcome = self.context.store().end(id, End::For(EndReason::Revoked)).await?;
        let ended = matches!(outcome, EndOutcome::Done);
        if ended {
            record.iter().for_each(|record| self.context.record_lifetime(record));
            let user = record.and_then(|record| record.user.clone());
            self.announce([(*id, user, EventKind::Ended(EndReason::Revoked))]).await;
        }
        Ok(ended)
    }

    /// Ends all sessions of a user, for example after a password change. Returns the number of sessions in the index. Sessions that
    /// the index has lost end too.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable: some sessions may have ended.
    pub async fn revoke_user(&self, user: &str) -> Result<usize, StoreError> {
        self.end_user(user, None).await
    }

    /// Ends all sessions of a user except one: "log out everywhere else". Returns the number of ended sessions in the index.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable: some sessions may have ended.
    ///
    /// ```
    /// # use tower_keep::{Session, Sessions};
    /// async fn only_here(sessions: &Sessions, session: &Session) -> Result<(), Box<dyn std::error::Error>> {
    ///     if let (Some(user), Some(id)) = (session.user()?, session.id()?) {
    ///         sessions.revoke_others(&user, &id).await?;
    ///     }
    ///     Ok(())
    /// }
    /// # let _ = only_here;
    /// ```
    pub async fn revoke_others(&self, user: &str, current: &SessionId) -> Result<usize, StoreError> {
        self.end_user(user, Some(current)).await
    }

    async fn end_user(&self, user: &str, except: Option<&SessionId>) -> Result<usize, StoreError> {
        let ended = self.context.store().end_user(user, except, EndReason::Revoked).await?;
        let user: Arc<str> = user.into();
        let events = ended.iter().map(|id| (*id, Some(user.clone()), EventKind::Ended(EndReason::Revoked)));
        self.announce(events).await;
        Ok(ended.len())
    }

    /// Uses up a single-use session, and returns it to exactly one caller: of all concurrent callers, on all instances, one gets
    /// [`Consumed::Now`].
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable: the session may have been used.
    ///
    /// ```
    /// # use tower_keep::{Consumed, Sessions, Token, store::StoreError};
    /// async fn validate(sessions: &Sessions, token: &Token) -> Result<&'static str, StoreError> {
    ///     Ok(match sessions.consume(token).await? {
    ///         Consumed::Now(_) => "welcome",
    ///         Consumed::Before(ended) => ended.reason.as_str(), // "used"
    ///         Consumed::Unknown => "unknown",
    ///     })
    /// }
    /// # let _ = validate;
    /// ```
    pub async fn consume(&self, token: &Token) -> Result<Consumed, StoreError> {
        let id = token.id();
        match self.context.store().load(&id).await? {
            Found::Ended(ended) => return Ok(Consumed::Before(ended)),
            // An invalid token must not use the session up.
            Found::Live(loaded) if self.is_good(token, &loaded) && self.begun(id, &loaded).await?.is_some() => {}
            Found::Live(_) | Found::Unknown => return Ok(Consumed::Unknown),
        }
        let claim = Version::first().map_err(|error| StoreError::Outage(error.into()))?;
        Ok(match self.context.store().consume(&id, claim).await? {
            Found::Live(loaded) => {
                self.context.record_lifetime(&loaded.record);
                let user = loaded.record.user.clone();
                self.announce([(id, user, EventKind::Ended(EndReason::Used))]).await;
                self.alive(id, &loaded).map_or(Consumed::Unknown, Consumed::Now)
            }
            Found::Ended(ended) => Consumed::Before(ended),
            Found::Unknown => Consumed::Unknown,
        })
    }

    /// The number of live sessions. It visits every session, so it is for operators and not for every request. While sessions
    /// change, it is an estimate.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable.
    pub async fn count(&self) -> Result<u64, StoreError> {
        let count = self.context.store().count().await?;
        metrics::set(&ACTIVE, [], count as f64);
        Ok(count)
    }

    /// A page of about `count` live sessions, beginning at `from`, and the cursor of the next page.
    ///
    /// A session that is alive during the whole scan is on at least one page, and may be on several.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable. The page can be requested again.
    ///
    /// ```
    /// # use tower_keep::{Sessions, store::{Cursor, StoreError}};
    /// async fn first_page(sessions: &Sessions) -> Result<(), StoreError> {
    ///     let (page, next) = sessions.page(&Cursor::start(), 50).await?;
    ///     println!("{} sessions; the next page is {next:?}", page.len());
    ///     Ok(())
    /// }
    /// # let _ = first_page;
    /// ```
    pub async fn page(&self, from: &Cursor, count: usize) -> Result<(Vec<SessionInfo>, Option<Cursor>), StoreError> {
        let page = self.context.store().scan(from, count).await?;
        let mut sessions = Vec::with_capacity(page.sessions.len());
        for (id, loaded) in page.sessions {
            sessions.extend(self.begun(id, &loaded).await?);
        }
        Ok((sessions, page.next))
    }

    /// All live sessions, as a stream of [pages](Self::page).
    pub fn scan(&self) -> Scan {
        Scan::new(self.clone(), Cursor::start())
    }

    /// Continues a [`scan`](Self::scan) at a [cursor](Scan::cursor).
    pub fn scan_from(&self, place: Cursor) -> Scan {
        Scan::new(self.clone(), place)
    }

    /// The events of sessions from now on, of this process and, if the store [shares
    /// events](crate::store::redis::RedisConfig::share_events), of others.
    ///
    /// An event may arrive twice: it is published again if the connection to the store is lost. Each subscription asks the store for the
    /// events of other processes twice a second. To wait for the end of a session, use [`until_ended`](Self::until_ended).
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable, because the start of the stream is then unknown.
    ///
    /// ```
    /// # use tower_keep::{EventKind, Sessions};
    /// async fn watch(sessions: &Sessions) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut events = sessions.events().await?;
    ///     loop {
    ///         let event = events.next().await?;
    ///         if let EventKind::Ended(reason) = event.kind() {
    ///             println!("{} of {:?}: {reason}", event.session(), event.user());
    ///         }
    ///     }
    /// }
    /// # let _ = watch;
    /// ```
    pub async fn events(&self) -> Result<Events, StoreError> {
        self.context.subscribe().await
    }

    /// The counters of the layer and its clones.
    pub fn stats(&self) -> Stats {
        self.context.counters.stats()
    }

    /// The health of the store: up, degraded or down, the cause, and since when. Concurrent calls share one query.
    ///
    /// All clones of the layer share `since`. It is the time of the first check that found the status.
    ///
    /// ```
    /// # use tower_keep::{HealthStatus, Sessions};
    /// async fn log_health(sessions: &Sessions) {
    ///     let health = sessions.health().await;
    ///     if health.status != HealthStatus::Up {
    ///         println!("{} has been {} since {}: {:?}", health.store, health.status, health.since, health.cause);
    ///     }
    /// }
    /// # let _ = log_health;
    /// ```
    pub async fn health(&self) -> HealthReport {
        self.context.monitor.check(self.context.store(), &*self.context.clock).await
    }

    /// A key-value store on the same store.
    ///
    /// # Errors
    /// [`KeyValueError::Unsupported`] if the store has no values. The stores of this crate have them.
    ///
    /// ```
    /// # use tower_keep::{MemoryStore, SessionLayer};
    /// let values = SessionLayer::new(MemoryStore::new()).sessions().key_value()?;
    /// # let _ = values;
    /// # Ok::<(), tower_keep::KeyValueError>(())
    /// ```
    pub fn key_value(&self) -> Result<KeyValue, KeyValueError> {
        KeyValue::of(self.context.store.clone())
    }

    /// The name of the store: `"redis"`, `"memory"`.
    pub fn store_name(&self) -> &'static str {
        self.context.store().name()
    }

    fn is_good(&self, token: &Token, loaded: &Loaded) -> bool {
        let (now, race) = (self.context.clock.now(), self.context.rotation.grace);
        matches!(loaded.record.standing(token, now, race), Standing::Current | Standing::Graced)
    }

    fn alive(&self, id: SessionId, loaded: &Loaded) -> Option<SessionInfo> {
        SessionInfo::of(id, loaded, self.context.clock.now())
    }

    /// The session, if it is not pending in a login.
    async fn begun(&self, id: SessionId, loaded: &Loaded) -> Result<Option<SessionInfo>, StoreError> {
        let begun = self.context.is_activated(&id, &loaded.record).await?;
        Ok(self.alive(id, loaded).filter(|_| begun))
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("context", &self.context).finish()
    }
}
