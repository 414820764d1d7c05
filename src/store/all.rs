//! Runs several futures concurrently in one task.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

/// The outputs in order.
pub(super) async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T> + Send>) -> Vec<T> {
    enum Part<F, T> {
        Running(Pin<Box<F>>),
        Done(T),
    }
    let mut parts: Vec<_> = futures.map(|future| Part::Running(Box::pin(future))).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for part in &mut parts {
            if let Part::Running(future) = part {
                match future.as_mut().poll(cx) {
                    Poll::Ready(result) => *part = Part::Done(result),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let done = parts.into_iter().filter_map(|part| if let Part::Done(result) = part { Some(result) } else { None });
    done.collect()
}
