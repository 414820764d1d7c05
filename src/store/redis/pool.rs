//! Connections of a pool that the application has.

use std::fmt;

use bb8::{Pool, RunError};
use bb8_redis::RedisConnectionManager;
use redis::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    error::{Failure, Verdict},
    request::Request,
};
use crate::store::Health;

/// The pool.
pub(super) struct Pooled(pub(super) Pool<RedisConnectionManager>);

impl Pooled {
    /// Makes `request` by `deadline`. Every request can be repeated: one whose connection was lost is, on the next.
    pub(super) async fn call(&self, request: Request<'_>, deadline: Instant) -> Result<Value, Failure> {
        let mut again = true;
        loop {
            let answer = timeout_at(deadline, self.once(request)).await.unwrap_or_else(|_| Err(Failure::timeout()));
            match answer {
                Err(failure) if again && failure.verdict == Verdict::Lost => again = false,
                answer => return answer,
            }
        }
    }

    async fn once(&self, request: Request<'_>) -> Result<Value, Failure> {
        // It is multiplexed: a clone does, and others can have the original while this one waits for its reply.
        let mut connection = match self.0.get().await {
            Ok(connection) => (*connection).clone(),
            Err(RunError::User(error)) => return Err(error.into()),
            Err(RunError::TimedOut) => return Err(Failure::timeout()),
        };
        request.send(&mut connection).await
    }

    pub(super) async fn health(&self, deadline: Instant) -> Health {
        match self.call(Request::ping(), deadline).await {
            Ok(_) => Health::Up,
            Err(failure) => failure.health,
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("state", &self.0.state()).finish()
    }
}
