//! Connections of a pool that the application has.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bb8::{Pool, RunError};
use bb8_redis::RedisConnectionManager;
use redis::{Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout_at};

use super::{
    error::{Failure, Verdict},
    health::{Server, Writes},
    request::Request,
};

/// How long requests use a connection before the pool is asked for one again, which may send a ping first.
const TURN: Duration = Duration::from_secs(1);

/// The pool.
pub(super) struct Pooled {
    pool: Pool<RedisConnectionManager>,
    present: Mutex<Option<Present>>,
    writes: Writes,
}

/// A clone of one of its connections, which all requests share.
struct Present {
    connection: MultiplexedConnection,
    until: Instant,
}

impl Pooled {
    pub(super) fn new(pool: Pool<RedisConnectionManager>) -> Self {
        Self { pool, present: Mutex::default(), writes: Writes::default() }
    }

    /// Makes `request` by `deadline`. Every request can be repeated: one whose connection was lost is, on the next.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut again = true;
        let answer = loop {
            let answer = timeout_at(deadline, self.once(request)).await.unwrap_or_else(|_| Err(Failure::timeout()));
            if answer.as_ref().is_err_and(|failure| failure.verdict != Verdict::Sound) {
                *self.present() = None;
            }
            match answer {
                Err(failure) if again && failure.verdict == Verdict::Lost => again = false,
                answer => break answer,
            }
        };
        self.writes.note(&request, &answer);
        answer
    }

    async fn once(&self, request: Request<'_>) -> Result<Value, Failure> {
        let present = self.still_present();
        let mut connection = match present {
            Some(connection) => connection,
            None => self.next().await?,
        };
        request.send(&mut connection).await
    }

    /// The one in use. When its turn is over, one request is sent for the next, and the others use this a little longer.
    fn still_present(&self) -> Option<MultiplexedConnection> {
        let (mut present, now) = (self.present(), Instant::now());
        let present = present.as_mut()?;
        if present.until <= now {
            present.until = now + TURN;
            return None;
        }
        Some(present.connection.clone())
    }

    /// It is multiplexed: a clone does, and others can have the original at once.
    async fn next(&self) -> Result<MultiplexedConnection, Failure> {
        let connection = match self.pool.get().await {
            Ok(connection) => (*connection).clone(),
            Err(RunError::User(error)) => return Err(error.into()),
            Err(RunError::TimedOut) => return Err(Failure::timeout()),
        };
        *self.present() = Some(Present { connection: connection.clone(), until: Instant::now() + TURN });
        Ok(connection)
    }

    fn present(&self) -> MutexGuard<'_, Option<Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        f.debug_struct("Pooled").field("state", &self.pool.state()).finish()
    }
}
