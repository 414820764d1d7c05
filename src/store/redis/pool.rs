//! Redis through a connection pool of the application.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout_at};

use super::{
    error::{Failure, Verdict},
    health::{Server, Writes},
    redis_pool::RedisPool,
    request::Request,
};

/// How long requests share a connection before the next one is taken from the pool, which may check it with a `PING` first.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Pooled {
    pool: Arc<dyn RedisPool>,
    current: Mutex<Current>,
    writes: Writes,
}

/// The connection that all requests share.
enum Current {
    None,
    /// A clone of a connection of the pool, until this time.
    Shared(MultiplexedConnection, Instant),
    /// The last connection failed, and the pool may not have noticed. So the next one is dedicated to the store.
    Lost,
    Dedicated(MultiplexedConnection),
}

impl Pooled {
    pub(super) fn new(pool: Arc<dyn RedisPool>) -> Self {
        Self { pool, current: Mutex::new(Current::None), writes: Writes::default() }
    }

    /// With a dedicated connection: writes that wait for replicas delay no other request.
    pub(super) fn dedicated(pool: Arc<dyn RedisPool>) -> Self {
        Self { pool, current: Mutex::new(Current::Lost), writes: Writes::default() }
    }

    /// Sends `request`. If the connection is lost, the request is sent once more over a new one, if it may be.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut retry = true;
        let answer = loop {
            let mut sent = false;
            let answer = timeout_at(deadline, self.try_once(request, &mut sent)).await;
            let answer = answer.unwrap_or_else(|_| Err(Failure::timeout()));
            let answer = answer.map_err(|failure| if sent { failure } else { failure.unsent() });
            if answer.as_ref().is_err_and(|failure| failure.verdict != Verdict::Working) {
                *self.current() = Current::Lost;
            }
            match answer {
                Err(failure) if retry && failure.verdict == Verdict::Lost && request.may_follow(&failure) => {
                    retry = false;
                }
                answer => break answer,
            }
        };
        self.writes.note(&request, &answer);
        answer
    }

    /// Sets `sent` before the request is sent: from then on it may be applied.
    async fn try_once(&self, request: Request<'_>, sent: &mut bool) -> Result<Value, Failure> {
        let mut connection = match self.next() {
            Next::Use(connection) => connection,
            Next::FromPool => self.take_from_pool().await?,
            Next::Connect => self.connect().await?,
        };
        *sent = true;
        request.send(&mut connection).await
    }

    /// When the interval has passed, one request takes the next connection from the pool, and the others use the current one until
    /// then.
    fn next(&self) -> Next {
        let now = Instant::now();
        match &mut *self.current() {
            Current::None => Next::FromPool,
            Current::Shared(_, until) if *until <= now => {
                *until = now + SHARE_INTERVAL;
                Next::FromPool
            }
            Current::Shared(connection, _) | Current::Dedicated(connection) => Next::Use(connection.clone()),
            Current::Lost => Next::Connect,
        }
    }

    /// The connection is multiplexed, so the pool can lend the original to others while this store uses a clone.
    async fn take_from_pool(&self) -> Result<MultiplexedConnection, Failure> {
        let connection = self.pool.connection().await?;
        *self.current() = Current::Shared(connection.clone(), Instant::now() + SHARE_INTERVAL);
        Ok(connection)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let connection = self.pool.dedicated_connection().await?;
        *self.current() = Current::Dedicated(connection.clone());
        Ok(connection)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection for the next request.
enum Next {
    Use(MultiplexedConnection),
    FromPool,
    Connect,
}

impl Server for Pooled {
    async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        Self::call(self, request, deadline).await
    }

    fn writes(&self) -> &Writes {
        &self.writes
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").finish_non_exhaustive()
    }
}
