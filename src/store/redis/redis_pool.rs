//! The trait for a connection pool of the application.

use std::{future::Future, pin::Pin};

use redis::{RedisError, aio::MultiplexedConnection};

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
    /// A connection of the pool. The store keeps a clone for up to a second, and the pool can lend the connection to others at the same time.
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
