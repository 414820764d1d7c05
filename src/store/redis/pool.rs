//! Redis through a connection pool of the application.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{RedisError, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout_at};

use super::{
    error::{Failure, Verdict},
    health::{Server, Writes},
    request::Request,
};

/// A pool of Redis connections that the application has already.
///
/// The feature `redis-bb8` implements it for `bb8::Pool<bb8_redis::RedisConnectionManager>`. For another pool, implement it in a few
/// lines, here for deadpool-redis:
///
/// ```
/// use deadpool_redis::{Connection, Pool, PoolError};
/// use redis::{RedisError, aio::MultiplexedConnection};
/// use tower_keep::store::redis::{PooledConnection, RedisPool, RedisStore};
///
/// struct Deadpool(Pool);
///
/// impl RedisPool for Deadpool {
///     fn connection(&self) -> PooledConnection<'_> {
///         Box::pin(async { Ok((*self.0.get().await.map_err(error)?).clone()) })
///     }
///
///     fn dedicated_connection(&self) -> PooledConnection<'_> {
///         Box::pin(async { Ok(Connection::take(self.0.get().await.map_err(error)?)) })
///     }
/// }
///
/// fn error(error: PoolError) -> RedisError {
///     match error {
///         PoolError::Backend(error) => error,
///         PoolError::Timeout(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
///         error => std::io::Error::other(error).into(),
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = deadpool_redis::Config::from_url("redis://127.0.0.1:6379").create_pool(Some(deadpool_redis::Runtime::Tokio1))?;
/// let store = RedisStore::from_pool(Deadpool(pool));
/// # let _ = store;
/// # Ok(())
/// # }
/// ```
pub trait RedisPool: Send + Sync {
    /// A connection of the pool. The store keeps a clone for up to a second, and the pool can lend the connection to others meanwhile.
    ///
    /// # Errors
    /// Those of the pool. If the pool timed out, an [`std::io::ErrorKind::TimedOut`].
    fn connection(&self) -> PooledConnection<'_>;

    /// A connection that nobody else uses. The store asks for one when a connection of the pool has failed, and for writes that wait
    /// for replicas.
    ///
    /// # Errors
    /// As for [`connection`](Self::connection).
    fn dedicated_connection(&self) -> PooledConnection<'_>;
}

/// What a [`RedisPool`] returns.
pub type PooledConnection<'a> = Pin<Box<dyn Future<Output = Result<MultiplexedConnection, RedisError>> + Send + 'a>>;

#[cfg(feature = "redis-bb8")]
impl RedisPool for bb8::Pool<bb8_redis::RedisConnectionManager> {
    fn connection(&self) -> PooledConnection<'_> {
        Box::pin(async {
            match self.get().await {
                Ok(connection) => Ok((*connection).clone()),
                Err(bb8::RunError::User(error)) => Err(error),
                Err(bb8::RunError::TimedOut) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            }
        })
    }

    fn dedicated_connection(&self) -> PooledConnection<'_> {
        Box::pin(Self::dedicated_connection(self))
    }
}

/// How long requests share a connection before the next one is taken from the pool, which may send a ping first.
const TURN: Duration = Duration::from_secs(1);

/// The pool.
pub(super) struct Pooled {
    pool: Arc<dyn RedisPool>,
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
    pub(super) fn new(pool: Arc<dyn RedisPool>) -> Self {
        Self { pool, present: Mutex::new(Present::None), writes: Writes::default() }
    }

    /// A connection of its own, beside the pool's: what waits on it holds nobody up.
    pub(super) fn apart(pool: Arc<dyn RedisPool>) -> Self {
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
            if answer.as_ref().is_err_and(|failure| failure.verdict != Verdict::Working) {
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
        let connection = self.pool.connection().await?;
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
        f.debug_struct("Pooled").finish_non_exhaustive()
    }
}
