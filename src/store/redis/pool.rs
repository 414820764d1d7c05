//! Connections of a pool that the application has.

use std::fmt;

use bb8::{Pool, RunError};
use bb8_redis::RedisConnectionManager;
use redis::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    error::{Failure, Verdict},
    health::{Server, Writes},
    request::Request,
};

/// The pool.
pub(super) struct Pooled {
    pool: Pool<RedisConnectionManager>,
    writes: Writes,
}

impl Pooled {
    pub(super) fn new(pool: Pool<RedisConnectionManager>) -> Self {
        Self { pool, writes: Writes::default() }
    }

    /// Makes `request` by `deadline`. Every request can be repeated: one whose connection was lost is, on the next.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut again = true;
        let answer = loop {
            let answer = timeout_at(deadline, self.once(request)).await.unwrap_or_else(|_| Err(Failure::timeout()));
            match answer {
                Err(failure) if again && failure.verdict == Verdict::Lost => again = false,
                answer => break answer,
            }
        };
        self.writes.note(&request, &answer);
        answer
    }

    async fn once(&self, request: Request<'_>) -> Result<Value, Failure> {
        // It is multiplexed: a clone does, and others can have the original while this one waits for its reply.
        let mut connection = match self.pool.get().await {
            Ok(connection) => (*connection).clone(),
            Err(RunError::User(error)) => return Err(error.into()),
            Err(RunError::TimedOut) => return Err(Failure::timeout()),
        };
        request.send(&mut connection).await
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
