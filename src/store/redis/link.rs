//! The one connection that all requests share, and the task that keeps it.
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
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, ProtocolVersion, PushKind, RedisError, Value,
    aio::{MultiplexedConnection, SendError},
    cmd,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    RedisConfig,
    error::{Failure, Verdict},
    script::Call,
};
use crate::{observe::Causes, store::StoreError};

/// How long the task waits after a failed attempt: from the first to the second, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often the task asks the connection whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How many operations in a row may go unanswered before the server counts as hung.
const MAX_SILENCE: u32 = 2;
/// How long a connection lasts at least that answers, but is of no use.
const RENEWAL: Duration = Duration::from_secs(1);
/// How often the kernel asks an idle connection whether its peer is there, so that what lies between does not forget it.
const KEEPALIVE: Duration = Duration::from_secs(15);

pub(super) struct Link {
    state: Arc<watch::Sender<State>>,
    /// A write was refused, by a server that may serve reads, and since then none was seen to be served.
    pub(super) refuses_writes: AtomicBool,
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
    /// How many operations in a row went unanswered. Shared by all that use the connection, and by nobody else.
    silence: Silence,
}

type Silence = Arc<AtomicU32>;

impl State {
    fn is_up(&self, silence: &Silence) -> bool {
        matches!(self, Self::Up(line) if Arc::ptr_eq(&line.silence, silence))
    }
}

/// What goes to Redis in one round trip.
pub(super) enum Request<'a> {
    /// So many commands; their replies come as an array.
    Read(&'a Pipeline, usize),
    Write(&'a Cmd),
    Script(&'a Call<'a>),
}

impl Request<'_> {
    async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Value, RedisError> {
        match self {
            Self::Write(command) => reply(connection.send_packed_command(command).await?),
            Self::Read(commands, count) => {
                let replies = connection.send_packed_commands(commands, 0, *count).await?;
                Ok(Value::Array(replies.into_iter().map(reply).collect::<Result<_, _>>()?))
            }
            Self::Script(call) => match reply(connection.send_packed_command(&call.by_sha()).await?) {
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    reply(connection.send_packed_command(&call.by_text()).await?)
                }
                answer => answer,
            },
        }
    }
}

impl Link {
    pub(super) fn new(config: RedisConfig) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::Connecting)),
            refuses_writes: AtomicBool::new(false),
            config,
            task: Mutex::new(None),
        }
    }

    /// Makes `request` within the timeout. Every request can be repeated: one whose connection was lost is, on the next.
    pub(super) async fn call(&self, request: &Request<'_>) -> Result<Value, Failure> {
        self.keep_task()?;
        let mut used = None;
        let answer = timeout(self.config.timeout, async {
            let mut again = true;
            loop {
                let (line, _) = used.insert((self.line().await?, Instant::now()));
                match request.send(&mut line.connection).await.map_err(Failure::from) {
                    Err(failure) if again && failure.verdict == Verdict::Lost => report(&self.state, line, &failure),
                    answer => return answer,
                }
                again = false;
            }
        })
        .await
        .unwrap_or_else(|_| Err(Failure::timeout()));
        if let (Request::Write(_) | Request::Script(_), Err(Failure { writes_only: true, .. })) = (request, &answer) {
            self.refuses_writes.store(true, Ordering::Relaxed);
        }
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
        *task = Some(runtime.spawn(keep(self.state.clone(), self.config.clone())));
        Ok(())
    }
}

/// The task: connects, watches, connects again.
async fn keep(state: Arc<watch::Sender<State>>, config: RedisConfig) {
    let mut backoff = BACKOFF.0;
    loop {
        let silence = Silence::default();
        let connected = timeout(config.connect_timeout, connect(&state, &config, silence.clone())).await;
        let pause = match connected.map_err(|_| Failure::timeout()).and_then(|connected| connected) {
            Ok(connection) => {
                tracing::info!(server = %config.info.addr(), "connected to Redis");
                let line = Line { connection, since: Instant::now(), silence };
                let since = line.since;
                state.send_replace(State::Up(line.clone()));
                watch_over(&state, line, config.timeout).await;
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
                    tracing::warn!(server = %config.info.addr(), error = %Causes(&failure.error), "no connection to Redis");
                }
                state.send_replace(State::Down(Arc::new(failure.error)));
                backoff
            }
        };
        sleep(jittered(pause)).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn connect(
    state: &Arc<watch::Sender<State>>,
    config: &RedisConfig,
    silence: Silence,
) -> Result<MultiplexedConnection, Failure> {
    let settings = config.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    // Without NODELAY a request waits for the acknowledgement of the one before: with a network between, twice the latency.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let info = config.info.clone().set_redis_settings(settings).set_tcp_settings(tcp);
    // The closure lives in the connection, and the connection in the state: it must not keep the state alive.
    let listener = Arc::downgrade(state);
    let on_push = move |push: redis::PushInfo| {
        if push.kind == PushKind::Disconnection {
            disconnected(&listener, &silence);
        }
        Ok::<_, SendError>(())
    };
    // The operation's timeout is ours: it covers the wait for a connection as well.
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(None)
        .set_push_sender(on_push);
    Ok(Client::open(info)?.get_multiplexed_async_connection_with_config(&options).await?)
}

fn disconnected(state: &Weak<watch::Sender<State>>, line: &Silence) {
    if let Some(state) = state.upgrade()
        && change(&state, line, || State::Connecting)
    {
        tracing::warn!("lost the connection to Redis");
    }
}

/// Returns when the connection is not in use any more.
async fn watch_over(state: &Arc<watch::Sender<State>>, mut line: Line, patience: Duration) {
    let mut changes = state.subscribe();
    let ping = cmd("PING");
    loop {
        let ended = changes.wait_for(|state| !state.is_up(&line.silence));
        if timeout(PING_INTERVAL, ended).await.is_ok() {
            return;
        }
        // Whatever is an answer will do.
        match timeout(patience, line.connection.send_packed_command(&ping)).await {
            Ok(Ok(_)) => line.silence.store(0, Ordering::Relaxed),
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
        Verdict::Useless if line.since.elapsed() > RENEWAL => change(state, &line.silence, || State::Connecting),
        Verdict::Silent if hung() => change(state, &line.silence, || State::Down(Arc::new(Failure::timeout().error))),
        Verdict::Silent => false,
        Verdict::Sound | Verdict::Useless => {
            line.silence.store(0, Ordering::Relaxed); // an answer all the same
            false
        }
    };
    if ended {
        tracing::warn!(error = %Causes(&failure.error), "gave up the connection to Redis");
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

fn reply(value: Value) -> Result<Value, RedisError> {
    match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

/// Somewhere between half of `delay` and all of it, so that instances do not all come back at once.
fn jittered(delay: Duration) -> Duration {
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
        f.debug_struct("Link").field("server", &self.config.info.addr()).field("state", &state).finish_non_exhaustive()
    }
}
