//! The reply of a store operation.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use super::StoreError;

/// The reply of a store operation: ready, without an allocation, or a boxed future.
///
/// ```
/// use tower_keep::store::StoreFuture;
///
/// # async fn example() -> Result<(), tower_keep::store::StoreError> {
/// assert_eq!(StoreFuture::ready(Ok(1)).await?, 1);
/// assert_eq!(StoreFuture::boxed(async { Ok(2) }).await?, 2);
/// # Ok(())
/// # }
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct StoreFuture<'a, T>(Reply<'a, T>);

enum Reply<'a, T> {
    Ready(Option<Result<T, StoreError>>),
    Pending(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>),
}

impl<'a, T> StoreFuture<'a, T> {
    /// A reply that is available now.
    pub fn ready(reply: Result<T, StoreError>) -> Self {
        Self(Reply::Ready(Some(reply)))
    }

    /// A reply that takes time.
    pub fn boxed(reply: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> Self {
        Self(Reply::Pending(Box::pin(reply)))
    }

    /// The reply, if it is available without polling.
    pub(crate) fn peek(&self) -> Option<&Result<T, StoreError>> {
        match &self.0 {
            Reply::Ready(reply) => reply.as_ref(),
            Reply::Pending(_) => None,
        }
    }
}

// Nothing is pinned in place: a ready reply is moved out, and a future has its own box.
impl<T> Unpin for StoreFuture<'_, T> {}

impl<T> Future for StoreFuture<'_, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Reply::Ready(reply) => match reply.take() {
                Some(reply) => Poll::Ready(reply),
                None => Poll::Pending, // polled after completion, which only a broken caller does
            },
            Reply::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreFuture")
    }
}
