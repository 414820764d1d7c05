//! The settings and shared state of a layer.

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
    endings::Endings,
    error_chain::ErrorChain,
    event::{Event, EventKind},
    health::Monitor,
    lifetime::Lifetime,
    limits::Limits,
    metadata::ClientInfo,
    metrics::{self, LIFETIME, PAYLOAD, Stopwatch},
    observe::Counters,
    record::{Json, Record},
    security,
    store::{Ability, Found, SessionStore, StoreError, StoreExt, observed::Observed},
    subscription::{self, Events},
    time::Clock,
    token::SessionId,
};

#[derive(Clone)]
pub(crate) struct LayerContext {
    pub(crate) store: Arc<Observed>,
    pub(crate) credentials: Credentials,
    pub(crate) lifetime: Lifetime,
    pub(crate) rotation: Rotation,
    /// The limits that the application sets. `None`: the default, if the store can enforce limits.
    pub(crate) limits: Option<LimitsByUser>,
    pub(crate) merges: HashMap<Arc<str>, Merge>,
    pub(crate) client_info: Option<ClientInfo>,
    pub(crate) on_corrupt: OnCorrupt,
    pub(crate) on_undecodable: OnUndecodable,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_size: usize,
    /// The time budget of a request for all store operations.
    pub(crate) deadline: Option<Duration>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) announcer: Announcer,
    pub(crate) security: Arc<security::EventRateLimit>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) endings: Arc<Endings>,
}

/// The limits of a user.
pub(crate) type LimitsByUser = Arc<dyn Fn(&str) -> Limits + Send + Sync>;

/// Merges two concurrent changes: the value before, the value to save, and the value that was saved first.
pub(crate) type Merge = Arc<dyn Fn(Option<&Json>, Option<&Json>, Option<&Json>) -> Option<Json> + Send + Sync>;

/// When tokens are rotated because of their age.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    pub(crate) every: Option<Duration>,
    pub(crate) grace: Duration,
}

/// What to do with a corrupt record: it is damaged, or in a format that this version of the crate does not know.
///
/// Both are counted: [`Stats::corrupt`](crate::Stats::corrupt).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCorrupt {
    /// Treat it as an [outage](crate::OnOutage): 503. The record stays, because a newer version of the service may be able to read
    /// it.
    #[default]
    Outage,
    /// End the session. The user has to log in again.
    Reset,
}

/// What [`Session::get`](crate::Session::get) and [`take`](crate::Session::take) do with a value that is not of the requested type,
/// for example because the type has changed since the value was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUndecodable {
    /// Return [`SessionError::Decode`](crate::SessionError::Decode): 500. The value is kept.
    #[default]
    Error,
    /// Return `None`, and log a warning with the key and the type. The value is kept until it is overwritten.
    Absent,
}

/// A session exceeds the maximum size.
pub(crate) struct TooLarge {
    pub(crate) size: usize,
    pub(crate) limit: usize,
}

impl LayerContext {
    /// The store. A call through the `Arc` would take a detour over the `SessionStore` of `Arc`.
    pub(crate) fn store(&self) -> &Observed {
        &self.store
    }

    pub(crate) fn check_size(&self, record: &Record) -> Result<(), TooLarge> {
        let (size, limit) = (record.weight(), self.max_size);
        if size > limit {
            return Err(TooLarge { size, limit });
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
        match (self.store().users(), limits) {
            (Some(_), limits) => Ok(limits.unwrap_or_default()),
            (None, Some(limits)) if limits.sessions().is_some() => Err(StoreError::Unsupported(Ability::Users)),
            (None, _) => Ok(Limits::none()),
        }
    }

    /// Whether the session is active, and not pending in a login.
    pub(crate) async fn is_activated(&self, id: &SessionId, record: &Record) -> Result<bool, StoreError> {
        Ok(match &record.replaces {
            Some(old) => match self.store().load(old).await? {
                Found::Ended(ended) => ended.successor == Some(*id),
                Found::Live(_) | Found::Unknown => false,
            },
            None => true,
        })
    }

    /// Reports that a limit refused a session.
    pub(crate) fn refused(&self, user: Option<&str>, from: Option<IpAddr>) {
        self.security.limit_refused(&*self.clock, user, from);
    }

    /// Records the lifetime of a session that ended.
    pub(crate) fn record_lifetime(&self, record: &Record) {
        if Stopwatch::RUNS {
            metrics::record(&LIFETIME, [], self.clock.now().since(record.created_at).as_secs_f64());
        }
    }

    /// Counts and publishes events. This process receives them even if the store is unavailable.
    pub(crate) async fn announce(
        &self,
        all: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>,
        from: Option<IpAddr>,
    ) {
        let events = self.record_events(all, from);
        self.publish(&events).await;
    }

    /// Counts events and sends them to subscribers in this process. Returns them for publication to other processes.
    pub(crate) fn record_events(
        &self,
        all: impl IntoIterator<Item = (SessionId, Option<Arc<str>>, EventKind)>,
        from: Option<IpAddr>,
    ) -> Vec<Event> {
        let Announcer { origin, here } = &self.announcer;
        let record = |(session, user, kind)| {
            self.counters.count(kind);
            let event = Event::new(session, user, kind, *origin);
            security::log(&event, from);
            if let Some(here) = here.get() {
                let _ = here.send(event.clone()); // there may be no subscriber
            }
            event
        };
        all.into_iter().map(record).collect()
    }

    /// Subscribes to the events of all processes.
    pub(crate) async fn subscribe(&self) -> Result<Events, StoreError> {
        let Announcer { origin, .. } = self.announcer;
        Events::subscribe(self.announcer.subscribe(), self.store.clone(), origin).await
    }

    /// Publishes events to other processes. A failure is only logged.
    pub(crate) async fn publish(&self, events: &[Event]) {
        for event in events {
            if let Err(error) = self.store().publish(event).await {
                let (session, kind) = (event.session(), event.kind());
                tracing::warn!(%session, ?kind, error = %ErrorChain(&error), "session event not published");
            }
        }
    }
}

/// Sends events to subscribers in this process.
#[derive(Clone)]
pub(crate) struct Announcer {
    pub(crate) origin: u64,
    /// Created at the first subscription.
    here: Arc<OnceLock<broadcast::Sender<Event>>>,
}

impl Announcer {
    pub(crate) fn new() -> Self {
        // Without random numbers, a process may take events of another for its own.
        Self { origin: getrandom::u64().unwrap_or_default(), here: Arc::default() }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.here.get_or_init(|| broadcast::Sender::new(subscription::CAPACITY)).subscribe()
    }
}

/// Queues for requests that write the same session concurrently. Without them, repeated conflicts would slow all of them down.
pub(crate) struct Queues([Semaphore; 64]);

impl Queues {
    pub(crate) async fn wait(&self, id: &SessionId) -> Option<SemaphorePermit<'_>> {
        let queue = &self.0[(id.shard_hash() % self.0.len() as u64) as usize];
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
            .field("store", &self.store().name())
            .field("credentials", &self.credentials)
            .field("lifetime", &self.lifetime)
            .field("max_size", &self.max_size)
            .finish_non_exhaustive()
    }
}
