//! A connection that all requests share, and the task that maintains it.
//!
//! ```text
//!              ┌──────── first attempt failed ────────┐
//!   Connecting ┤                                        ▼
//!       ▲      └── connected ──▶ Up ─── hung ───────▶ Down ──┐ the task retries forever
//!       └───── lost, unusable ────┘ ◀─── connected ────┘ ◀────┘
//! ```
//!
//! While `Connecting`, a request waits until its timeout. While `Down`, it fails immediately. Only the task connects. A request that sees
//! the connection fail reports it, and the task opens another one.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{
    PushInfo, PushKind, Value,
    aio::{MultiplexedConnection, SendError},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout, timeout_at},
};

use super::{
    RedisConfig,
    client::jittered,
    error::{Failure, Verdict},
    health::{Server, Writes},
    request::Request,
    target::Target,
};
use crate::{
    error_chain::ErrorChain,
    store::{StoreError, span},
};

/// The pause after a failed attempt: minimum and maximum. It doubles with each attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The interval between pings by the task.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The number of consecutive timeouts after which the server is considered down.
const MAX_TIMEOUTS: u32 = 2;
/// The minimum lifetime of a connection that works but is unusable, for example to a replica.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

pub(super) struct SharedConnection {
    state: Arc<watch::Sender<State>>,
    writes: Writes,
    target: Target,
    config: RedisConfig,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
enum State {
    Connecting,
    Up(Connection),
    Down(Arc<StoreError>),
}

/// An established connection.
#[derive(Clone)]
struct Connection {
    inner: MultiplexedConnection,
    since: Instant,
    /// Its minimum lifetime if it works but is unusable.
    min_lifetime: Duration,
    /// The number of consecutive timeouts. It also identifies the connection.
    timeouts: ConsecutiveTimeouts,
}

type ConsecutiveTimeouts = Arc<AtomicU32>;

impl State {
    fn is_up(&self, timeouts: &ConsecutiveTimeouts) -> bool {
        matches!(self, Self::Up(connection) if Arc::ptr_eq(&connection.timeouts, timeouts))
    }
}

impl SharedConnection {
    pub(super) fn new(target: Target, config: RedisConfig) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::Connecting)),
            writes: Writes::default(),
            target,
            config,
            task: Mutex::new(None),
        }
    }

    /// Sends `request`, until `deadline`. If the connection is lost, the request is repeated once on the next one, unless it must not be.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        self.ensure_task()?;
        if let Some(span) = span::current() {
            self.target.describe(&span);
        }
        let mut used = None;
        let answer = timeout_at(deadline, async {
            let mut again = true;
            loop {
                let (connection, _) = used.insert((self.connection().await.map_err(Failure::unsent)?, Instant::now()));
                match request.send(&mut connection.inner).await {
                    Err(failure) if again && failure.verdict == Verdict::Lost && request.may_follow(&failure) => {
                        report(&self.state, connection, &failure);
                    }
                    answer => return answer,
                }
                again = false;
            }
        })
        .await
        .unwrap_or_else(|_| Err(Failure::timeout()));
        let answer = answer.map_err(|failure| if used.is_none() { failure.unsent() } else { failure });
        self.writes.note(&request, &answer);
        match (&answer, &used) {
            (Ok(_), Some((connection, _))) => connection.timeouts.store(0, Ordering::Relaxed),
            // The request waited for the connection most of the time.
            (Err(Failure { verdict: Verdict::TimedOut, .. }), Some((_, since)))
                if since.elapsed() < self.config.timeout / 2 => {}
            (Err(failure), Some((connection, _))) => report(&self.state, connection, failure),
            (_, None) => {}
        }
        answer
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(connection) => return Ok(connection.clone()),
                State::Down(error) => {
                    return Err(Failure::known_down(error.clone()));
                }
                State::Connecting => {}
            }
            if state.changed().await.is_err() {
                return Err(Failure::timeout()); // impossible: `self` has the sender
            }
        }
    }

    /// Starts the task if it does not run: at first use, or after its runtime has ended.
    fn ensure_task(&self) -> Result<(), Failure> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let runtime = Handle::try_current().map_err(|_| Failure::no_runtime())?;
        self.state.send_replace(State::Connecting);
        *task = Some(runtime.spawn(keep(self.state.clone(), self.target.clone(), self.config.clone())));
        Ok(())
    }
}

impl Server for SharedConnection {
    async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        Self::call(self, request, deadline).await
    }

    fn writes(&self) -> &Writes {
        &self.writes
    }
}

/// The task: connects, monitors the connection, and connects again.
async fn keep(state: Arc<watch::Sender<State>>, target: Target, config: RedisConfig) {
    let mut backoff = BACKOFF.0;
    let switched = Arc::new(Notify::new());
    let mut listeners = JoinSet::new(); // aborted with this task
    let min_lifetime = listen(&target, &config, &state, &switched, &mut listeners);
    loop {
        let timeouts = ConsecutiveTimeouts::default();
        let connected = timeout(config.connect_timeout, connect(&state, &target, &config, timeouts.clone())).await;
        let connected = connected.map_err(|_| Failure::timeout()).and_then(|connected| connected);
        #[cfg(feature = "redis-tls")]
        let connected = connected.map_err(|failure| if config.tls.is_some() { failure.with_tls() } else { failure });
        let pause = match connected {
            Ok(inner) => {
                tracing::info!(server = %target, "connected to Redis");
                let connection = Connection { inner, since: Instant::now(), min_lifetime, timeouts };
                let since = connection.since;
                state.send_replace(State::Up(connection.clone()));
                monitor(&state, connection, &target, config.timeout).await;
                if since.elapsed() > MIN_LIFETIME {
                    backoff = BACKOFF.0;
                    continue;
                }
                // The connection was lost immediately: the peer may accept connections only to close them. The pause is short enough that a
                // waiting request does not time out.
                backoff.min(config.timeout / 4)
            }
            Err(failure) => {
                let known = matches!(&*state.borrow(), State::Down(_));
                if !known {
                    tracing::warn!(server = %target, error = %ErrorChain(&failure.error), "no connection to Redis");
                }
                state.send_replace(State::Down(Arc::new(failure.error)));
                backoff
            }
        };
        let _ = timeout(jittered(pause), switched.notified()).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn connect(
    state: &Arc<watch::Sender<State>>,
    target: &Target,
    config: &RedisConfig,
    timeouts: ConsecutiveTimeouts,
) -> Result<MultiplexedConnection, Failure> {
    // The state owns the connection, and the connection owns this closure: a strong reference would be a cycle.
    let listener = Arc::downgrade(state);
    let on_push = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            disconnected(&listener, &timeouts);
        }
        Ok::<_, SendError>(())
    };
    target.connect(config, on_push).await
}

/// Listens for failovers. Returns the minimum lifetime of an unusable connection: zero if the next one certainly leads to another server.
#[cfg_attr(not(feature = "redis-sentinel"), allow(unused_variables))]
fn listen(
    target: &Target,
    config: &RedisConfig,
    state: &Arc<watch::Sender<State>>,
    switched: &Arc<Notify>,
    listeners: &mut JoinSet<()>,
) -> Duration {
    match target {
        Target::Server(_) => MIN_LIFETIME,
        #[cfg(feature = "redis-sentinel")]
        Target::Master(sentinels) => {
            let (state, switched) = (Arc::downgrade(state), switched.clone());
            sentinels.listen(config, listeners, move || {
                if let Some(state) = state.upgrade() {
                    let mut ended = None;
                    state.send_if_modified(|state| {
                        let is_up = matches!(state, State::Up(_));
                        if is_up {
                            ended = Some(mem::replace(state, State::Connecting));
                        }
                        is_up
                    });
                    drop(ended); // outside the lock of the channel
                }
                switched.notify_one();
            });
            Duration::ZERO
        }
    }
}

fn disconnected(state: &Weak<watch::Sender<State>>, connection: &ConsecutiveTimeouts) {
    if let Some(state) = state.upgrade()
        && change(&state, connection, || State::Connecting)
    {
        tracing::warn!("lost the connection to Redis");
    }
}

/// Pings the connection. Returns when it is no longer used.
async fn monitor(
    state: &Arc<watch::Sender<State>>,
    mut connection: Connection,
    target: &Target,
    ping_timeout: Duration,
) {
    let mut changes = state.subscribe();
    let ping = target.ping();
    loop {
        let ended = changes.wait_for(|state| !state.is_up(&connection.timeouts));
        if timeout(PING_INTERVAL, ended).await.is_ok() {
            return;
        }
        match timeout(ping_timeout, connection.inner.send_packed_command(&ping)).await {
            Ok(Ok(reply)) => match target.check_reply(&reply) {
                Ok(()) => connection.timeouts.store(0, Ordering::Relaxed),
                Err(failure) => report(state, &connection, &failure),
            },
            Ok(Err(error)) => report(state, &connection, &Failure::from(error)),
            Err(_) => report(state, &connection, &Failure::timeout()),
        }
    }
}

/// Replaces the connection if the failure requires it, unless it is replaced already.
fn report(state: &watch::Sender<State>, connection: &Connection, failure: &Failure) {
    let hung = || connection.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS;
    let ended = match failure.verdict {
        Verdict::Lost => change(state, &connection.timeouts, || State::Connecting),
        // The next connection may lead to another server. If not, reads on this one must not suffer.
        Verdict::Unusable if connection.since.elapsed() >= connection.min_lifetime => {
            change(state, &connection.timeouts, || State::Connecting)
        }
        Verdict::TimedOut if hung() => {
            change(state, &connection.timeouts, || State::Down(Arc::new(Failure::timeout().error)))
        }
        Verdict::TimedOut => false,
        Verdict::Working | Verdict::Unusable => {
            connection.timeouts.store(0, Ordering::Relaxed); // the server replied
            false
        }
    };
    if ended {
        tracing::warn!(error = %ErrorChain(&failure.error), "closed the connection to Redis");
    }
}

/// Replaces the state if it still has this connection.
fn change(state: &watch::Sender<State>, connection: &ConsecutiveTimeouts, to: impl FnOnce() -> State) -> bool {
    let mut ended = None;
    let changed = state.send_if_modified(|state| {
        let current = state.is_up(connection);
        if current {
            ended = Some(mem::replace(state, to()));
        }
        current
    });
    drop(ended); // outside the lock of the channel
    changed
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl fmt::Debug for SharedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &*self.state.borrow() {
            State::Connecting => "connecting",
            State::Up(_) => "up",
            State::Down(_) => "down",
        };
        f.debug_struct("SharedConnection")
            .field("server", &format_args!("{}", self.target))
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
