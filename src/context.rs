//! What all sessions of a layer have in common.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit, broadcast};

use crate::{
    credential::Credentials,
    event::{self, Event, EventKind},
    health::Monitor,
    lifetime::Lifetime,
    limits::Limits,
    metadata::ClientInfo,
    metrics::{self, LIFETIME, PAYLOAD, Stopwatch},
    observe::{Counters, ErrorChain},
    record::{Json, Record},
    security,
    session::SessionError,
    store::{Ability, Found, SessionStore, StoreError, StoreExt},
    time::Clock,
    token::SessionId,
};

#[derive(Clone)]
pub(crate) struct LayerContext {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) credentials: Credentials,
    pub(crate) lifetime: Lifetime,
    pub(crate) rotation: Rotation,
    /// The limits that the application sets. `None`: the default, if the store can enforce limits.
    pub(crate) limits: Option<LimitsByUser>,
    pub(crate) merges: HashMap<Arc<str>, Merge>,
    pub(crate) client_info: Option<ClientInfo>,
    pub(crate) on_corrupt: OnCorrupt,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_size: usize,
    /// How long a request waits for the store, all in all.
    pub(crate) deadline: Option<Duration>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) announcer: Announcer,
    pub(crate) security: Arc<security::EventRateLimit>,
    pub(crate) monitor: Arc<Monitor>,
}

/// The limits of a user.
pub(crate) type LimitsByUser = Arc<dyn Fn(&str) -> Limits + Send + Sync>;

/// Makes one value of what two requests made of it: from what it was, what is to be saved, and what was saved first.
pub(crate) type Merge = Arc<dyn Fn(Option<&Json>, Option<&Json>, Option<&Json>) -> Option<Json> + Send + Sync>;

/// When tokens are changed for others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    pub(crate) every: Option<Duration>,
    pub(crate) grace: Duration,
}

/// What to do with a session whose record cannot be read: it is damaged, or of a format that this version of the crate
/// does not know.
///
/// Either is counted: [`Stats::corrupt`](crate::Stats::corrupt).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCorrupt {
    /// Treat it as an [outage](crate::OnOutage): 503. The record stays as it is, for whoever can read it: while versions change, an
    /// instance that is older must not end the sessions of one that is newer.
    #[default]
    Outage,
    /// End the session. Its user has to log in again.
    Reset,
}

impl LayerContext {
    pub(crate) fn check_size(&self, record: &Record) -> Result<(), SessionError> {
        let (size, limit) = (record.weight(), self.max_size);
        if size > limit {
            return Err(SessionError::TooLarge { size, limit });
        }
        metrics::record(&PAYLOAD, [], size as f64);
        Ok(())
    }

    /// The limits for a new session of `user`.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if the application sets limits that the store cannot enforce.
    pub(crate) fn limits_of(&self, user: Option<&str>) -> Result<Limits, StoreError> {
        let Some(user) = user else { return Ok(Limits::none()) };
        let limits = self.limits.as_ref().map(|limits| limits(user));
        match (self.store.users(), limits) {
            (Some(_), limits) => Ok(limits.unwrap_or_default()),
            (None, Some(limits)) if limits.sessions().is_some() => Err(StoreError::Unsupported(Ability::Users)),
            (None, _) => Ok(Limits::none()),
        }
    }

    /// Whether a session waits for no other to end in its favour, or that has.
    pub(crate) async fn is_activated(&self, id: &SessionId, record: &Record) -> Result<bool, StoreError> {
        Ok(match &record.replaces {
            Some(old) => match self.store.load(old).await? {
                Found::Ended(ended) => ended.successor == Some(*id),
                Found::Live(_) | Found::Unknown => false,
            },
            None => true,
        })
    }

    /// There are as many sessions as there may be.
    pub(crate) fn refused(&self, user: Option<&str>, from: Option<IpAddr>) {
        self.security.limit_refused(&*self.clock, user, from);
    }

    /// A session has ended that had this record.
    pub(crate) fn record_lifetime(&self, record: &Record) {
        if Stopwatch::RUNS {
            metrics::record(&LIFETIME, [], self.clock.now().since(record.created_at).as_secs_f64());
        }
    }

    /// Counts and tells what happened: in this process at once, whatever becomes of the request; to others as far as the store takes it.
    pub(crate) async fn announce(
        &self,
        all: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>,
        from: Option<IpAddr>,
    ) {
        let events = self.tell(all, from);
        self.publish(&events).await;
    }

    /// Counts what happened, and tells this process. The events are for the others.
    pub(crate) fn tell(
        &self,
        all: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>,
        from: Option<IpAddr>,
    ) -> Vec<Event> {
        let Announcer { origin, here } = &self.announcer;
        let tell = |(session, user, happened)| {
            self.counters.happened(happened);
            let event = Event::new(session, user, happened, *origin);
            security::happened(&event, from);
            if let Some(here) = here.get() {
                let _ = here.send(event.clone()); // perhaps nobody listens any more
            }
            event
        };
        all.into_iter().map(tell).collect()
    }

    /// Tells the others. What cannot be told to them is logged: it has happened all the same.
    pub(crate) async fn publish(&self, events: &[Event]) {
        for event in events {
            if let Err(error) = self.store.publish(event).await {
                let (session, happened) = (event.session(), event.kind());
                tracing::warn!(%session, ?happened, error = %ErrorChain(&error), "session event not published");
            }
        }
    }
}

/// Tells subscribers what happened.
#[derive(Clone)]
pub(crate) struct Announcer {
    pub(crate) origin: u64,
    /// Made when the first one subscribes.
    here: Arc<OnceLock<broadcast::Sender<Event>>>,
}

impl Announcer {
    pub(crate) fn new() -> Self {
        // Without random numbers, an instance may take another's events for its own.
        Self { origin: getrandom::u64().unwrap_or_default(), here: Arc::default() }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.here.get_or_init(|| broadcast::Sender::new(event::CAPACITY)).subscribe()
    }
}

/// Where the writers of one session in this process line up once they have met: each that tries again beats the others', so all
/// at once would get in each other's way for long.
pub(crate) struct Queues([Semaphore; 64]);

impl Queues {
    pub(crate) async fn wait(&self, id: &SessionId) -> Option<SemaphorePermit<'_>> {
        let queue = &self.0[(id.spread() % self.0.len() as u64) as usize];
        queue.acquire().await.ok() // it is never closed
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(1)))
    }
}

impl fmt::Debug for LayerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerContext")
            .field("store", &self.store.name())
            .field("credentials", &self.credentials)
            .field("lifetime", &self.lifetime)
            .field("max_size", &self.max_size)
            .finish_non_exhaustive()
    }
}
