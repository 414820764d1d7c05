//! A connection that all requests share, and the task that keeps it.
//!
//! ```text
//!              ┌──────── first attempt failed ────────┐
//!   Connecting ┤                                        ▼
//!       ▲      └── connected ──▶ Up ─── hung ───────▶ Down ──┐ attempts go on, for ever
//!       └───── lost, useless ────┘ ◀─── connected ────┘ ◀────┘
//! ```
//!
//! While `Connecting` a request waits, within its timeout. While `Down` it fails at once. Only the task connects;
//! whoever sees the connection fail says so, and the task makes another.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{
    PushInfo, PushKind, RedisError, Value,
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
    connect::Target,
    error::{Failure, Verdict},
    health::{Server, Writes},
    request::Request,
};
use crate::{
    observe::ErrorChain,
    store::{StoreError, span},
};

/// How long the task waits after a failed attempt: from the first to the second, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often the task asks the connection whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How many operations in a row may go unanswered before the server counts as hung.
const MAX_SILENCE: u32 = 2;
/// How long a connection lasts at least that answers, but is of no use.
const RENEWAL: Duration = Duration::from_secs(1);

pub(super) struct Link {
    state: Arc<watch::Sender<State>>,
    writes: Writes,
    target: Target,
    config: RedisConfig,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
enum State {
    Connecting,
    Up(Line),
    Down(Arc<StoreError>),
}

/// An established connection.
#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    since: Instant,
    /// How long it lasts at least if it answers, but is of no use.
    renewal: Duration,
    /// How many operations in a row went unanswered. Shared by all that use the connection, and by nobody else.
    silence: Silence,
}

type Silence = Arc<AtomicU32>;

impl State {
    fn is_up(&self, silence: &Silence) -> bool {
        matches!(self, Self::Up(line) if Arc::ptr_eq(&line.silence, silence))
    }
}

impl Link {
    pub(super) fn new(target: Target, config: RedisConfig) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::Connecting)),
            writes: Writes::default(),
            target,
            config,
            task: Mutex::new(None),
        }
    }

    /// Makes `request` by `deadline`. One whose connection was lost is repeated on the next, unless it must not be.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        self.keep_task()?;
        if let Some(span) = span::current() {
            self.target.describe(&span);
        }
        let mut used = None;
        let answer = timeout_at(deadline, async {
            let mut again = true;
            loop {
                let (line, _) = used.insert((self.line().await.map_err(Failure::unsent)?, Instant::now()));
                match request.send(&mut line.connection).await {
                    Err(failure) if again && failure.verdict == Verdict::Lost && request.may_follow(&failure) => {
                        report(&self.state, line, &failure);
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
            (Ok(_), Some((line, _))) => line.silence.store(0, Ordering::Relaxed),
            // Most of the time went by before there was a connection: that is not its fault.
            (Err(Failure { verdict: Verdict::Silent, .. }), Some((_, since)))
                if since.elapsed() < self.config.timeout / 2 => {}
            (Err(failure), Some((line, _))) => report(&self.state, line, failure),
            (_, None) => {}
        }
        answer
    }

    async fn line(&self) -> Result<Line, Failure> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(line) => return Ok(line.clone()),
                State::Down(error) => {
                    return Err(Failure::known_down(error.clone()));
                }
                State::Connecting => {}
            }
            if state.changed().await.is_err() {
                return Err(Failure::timeout()); // cannot be: the sender is ours
            }
        }
    }

    /// Starts the task, if it does not run: at first use, or when the runtime it ran on has ended.
    fn keep_task(&self) -> Result<(), Failure> {
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

impl Server for Link {
    async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        Self::call(self, request, deadline).await
    }

    fn writes(&self) -> &Writes {
        &self.writes
    }
}

/// The task: connects, watches, connects again.
async fn keep(state: Arc<watch::Sender<State>>, target: Target, config: RedisConfig) {
    let mut backoff = BACKOFF.0;
    let switched = Arc::new(Notify::new());
    let mut listeners = JoinSet::new(); // gone with this task
    let renewal = listen(&target, &config, &state, &switched, &mut listeners);
    loop {
        let silence = Silence::default();
        let connected = timeout(config.connect_timeout, connect(&state, &target, &config, silence.clone())).await;
        let connected = connected.map_err(|_| Failure::timeout()).and_then(|connected| connected);
        #[cfg(feature = "redis-tls")]
        let connected = connected.map_err(|failure| if config.tls.is_some() { failure.with_tls() } else { failure });
        let pause = match connected {
            Ok(connection) => {
                tracing::info!(server = %target, "connected to Redis");
                let line = Line { connection, since: Instant::now(), renewal, silence };
                let since = line.since;
                state.send_replace(State::Up(line.clone()));
                watch_over(&state, line, &target, config.timeout).await;
                if since.elapsed() > RENEWAL {
                    backoff = BACKOFF.0;
                    continue;
                }
                // Lost at once: perhaps whatever is there takes connections only to close them. Not so long a pause that a
                // request which waits for the next one must fail.
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
    silence: Silence,
) -> Result<MultiplexedConnection, Failure> {
    // The closure lives in the connection, and the connection in the state: it must not keep the state alive.
    let listener = Arc::downgrade(state);
    let on_push = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            disconnected(&listener, &silence);
        }
        Ok::<_, SendError>(())
    };
    target.connect(config, on_push).await
}

/// Has whoever knows of a change of servers tell of it. Returns how long a useless connection lasts at least: none, where
/// the next is sure to lead to another server.
#[cfg_attr(not(feature = "redis-sentinel"), allow(unused_variables))]
fn listen(
    target: &Target,
    config: &RedisConfig,
    state: &Arc<watch::Sender<State>>,
    switched: &Arc<Notify>,
    listeners: &mut JoinSet<()>,
) -> Duration {
    match target {
        Target::Server(_) => RENEWAL,
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
                    drop(ended); // not under the lock of the channel
                }
                switched.notify_one();
            });
            Duration::ZERO
        }
    }
}

fn disconnected(state: &Weak<watch::Sender<State>>, line: &Silence) {
    if let Some(state) = state.upgrade()
        && change(&state, line, || State::Connecting)
    {
        tracing::warn!("lost the connection to Redis");
    }
}

/// Returns when the connection is not in use any more.
async fn watch_over(state: &Arc<watch::Sender<State>>, mut line: Line, target: &Target, patience: Duration) {
    let mut changes = state.subscribe();
    let question = target.question();
    loop {
        let ended = changes.wait_for(|state| !state.is_up(&line.silence));
        if timeout(PING_INTERVAL, ended).await.is_ok() {
            return;
        }
        match timeout(patience, line.connection.send_packed_command(&question)).await {
            Ok(Ok(answer)) => match target.is_answered(&answer) {
                Ok(()) => line.silence.store(0, Ordering::Relaxed),
                Err(failure) => report(state, &line, &failure),
            },
            Ok(Err(error)) => report(state, &line, &Failure::from(error)),
            Err(_) => report(state, &line, &Failure::timeout()),
        }
    }
}

/// Draws the consequence of a failure for the connection it happened on, unless that was done already.
fn report(state: &watch::Sender<State>, line: &Line, failure: &Failure) {
    let hung = || line.silence.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_SILENCE;
    let ended = match failure.verdict {
        Verdict::Lost => change(state, &line.silence, || State::Connecting),
        // Another may lead to another server. If it does not, the reads that this one serves must not suffer from it.
        Verdict::Useless if line.since.elapsed() >= line.renewal => change(state, &line.silence, || State::Connecting),
        Verdict::Silent if hung() => change(state, &line.silence, || State::Down(Arc::new(Failure::timeout().error))),
        Verdict::Silent => false,
        Verdict::Sound | Verdict::Useless => {
            line.silence.store(0, Ordering::Relaxed); // an answer all the same
            false
        }
    };
    if ended {
        tracing::warn!(error = %ErrorChain(&failure.error), "gave up the connection to Redis");
    }
}

/// Ends the connection that has this count of silence, unless it has ended already.
fn change(state: &watch::Sender<State>, line: &Silence, to: impl FnOnce() -> State) -> bool {
    let mut ended = None;
    let changed = state.send_if_modified(|state| {
        let current = state.is_up(line);
        if current {
            ended = Some(mem::replace(state, to()));
        }
        current
    });
    drop(ended); // not under the lock of the channel
    changed
}

pub(super) fn reply(value: Value) -> Result<Value, RedisError> {
    match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

/// Somewhere between half of `delay` and all of it, so that instances do not all come back at once.
pub(super) fn jittered(delay: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    delay / 2 + delay.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &*self.state.borrow() {
            State::Connecting => "connecting",
            State::Up(_) => "up",
            State::Down(_) => "down",
        };
        f.debug_struct("Link")
            .field("server", &format_args!("{}", self.target))
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
