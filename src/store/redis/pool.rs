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
    present: Mutex<Present>,
    writes: Writes,
}

/// The connection that all requests share.
enum Present {
    /// None yet.
    None,
    /// A clone of one of the pool's, until its turn is over.
    Lent(MultiplexedConnection, Instant),
    /// The pool gives none, or none that works, and may not notice. So the next one is made for us alone.
    Lost,
    Own(MultiplexedConnection),
}

impl Pooled {
    pub(super) fn new(pool: Pool<RedisConnectionManager>) -> Self {
        Self { pool, present: Mutex::new(Present::None), writes: Writes::default() }
    }

    /// A connection of its own, beside the pool's: what waits on it holds nobody up.
    pub(super) fn apart(pool: Pool<RedisConnectionManager>) -> Self {
        Self { pool, present: Mutex::new(Present::Lost), writes: Writes::default() }
    }

    /// Makes `request` by `deadline`. One whose connection was lost is repeated on the next, unless it must not be.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut again = true;
        let answer = loop {
            let mut sent = false;
            let answer = timeout_at(deadline, self.once(request, &mut sent)).await;
            let answer = answer.unwrap_or_else(|_| Err(Failure::timeout()));
            let answer = answer.map_err(|failure| if sent { failure } else { failure.unsent() });
            if answer.as_ref().is_err_and(|failure| failure.verdict != Verdict::Sound) {
                *self.present() = Present::Lost;
            }
            match answer {
                Err(failure) if again && failure.verdict == Verdict::Lost && request.may_follow(&failure) => {
                    again = false;
                }
                answer => break answer,
            }
        };
        self.writes.note(&request, &answer);
        answer
    }

    /// `sent`: from then on it may be done.
    async fn once(&self, request: Request<'_>, sent: &mut bool) -> Result<Value, Failure> {
        let mut connection = match self.still_present() {
            Still::There(connection) => connection,
            Still::Over => self.borrow().await?,
            Still::Gone => self.connect().await?,
        };
        *sent = true;
        request.send(&mut connection).await
    }

    /// The one in use. When its turn is over, one request is sent for the next, and the others use this a little longer.
    fn still_present(&self) -> Still {
        let now = Instant::now();
        match &mut *self.present() {
            Present::None => Still::Over,
            Present::Lent(_, until) if *until <= now => {
                *until = now + TURN;
                Still::Over
            }
            Present::Lent(connection, _) | Present::Own(connection) => Still::There(connection.clone()),
            Present::Lost => Still::Gone,
        }
    }

    /// It is multiplexed: a clone does, and others can have the original at once.
    async fn borrow(&self) -> Result<MultiplexedConnection, Failure> {
        let connection = match self.pool.get().await {
            Ok(connection) => (*connection).clone(),
            Err(RunError::User(error)) => return Err(error.into()),
            Err(RunError::TimedOut) => return Err(Failure::timeout()),
        };
        *self.present() = Present::Lent(connection.clone(), Instant::now() + TURN);
        Ok(connection)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let connection = self.pool.dedicated_connection().await?;
        *self.present() = Present::Own(connection.clone());
        Ok(connection)
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is for the next request.
enum Still {
    There(MultiplexedConnection),
    Over,
    Gone,
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
