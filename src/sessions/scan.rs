//! A stream of all sessions.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use super::{SessionInfo, Sessions};
use crate::store::{Cursor, StoreError};

/// The approximate size of a page.
const PAGE: usize = 100;

type Fetch = Pin<Box<dyn Future<Output = Result<(Vec<SessionInfo>, Option<Cursor>), StoreError>> + Send>>;

/// A stream of all live sessions: see [`Sessions::scan`].
///
/// A session that is alive during the whole scan is returned at least once. An error does not end the stream: the next call tries
/// again.
///
/// ```
/// # async fn example(sessions: tower_keep::Sessions) -> Result<(), tower_keep::store::StoreError> {
/// let mut scan = sessions.scan();
/// while let Some(session) = scan.next().await {
///     println!("{}", session?.id());
/// }
/// # Ok(())
/// # }
/// ```
pub struct Scan {
    sessions: Sessions,
    fetched: VecDeque<SessionInfo>,
    /// The start of the next page. `None` at the end.
    place: Option<Cursor>,
    fetch: Option<Fetch>,
}

impl Scan {
    pub(super) fn new(sessions: Sessions, place: Cursor) -> Self {
        Self { sessions, fetched: VecDeque::new(), place: Some(place), fetch: None }
    }

    /// The next session.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable. The next call tries again.
    pub async fn next(&mut self) -> Option<Result<SessionInfo, StoreError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The start of the next page, to [continue](Sessions::scan_from) later. `None` at the end.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.place.as_ref()
    }
}

impl Stream for Scan {
    type Item = Result<SessionInfo, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(session) = this.fetched.pop_front() {
                return Poll::Ready(Some(Ok(session)));
            }
            let Some(place) = &this.place else { return Poll::Ready(None) };
            let fetch = this.fetch.get_or_insert_with(|| {
                let (sessions, place) = (this.sessions.clone(), place.clone());
                Box::pin(async move { sessions.page(&place, PAGE).await })
            });
            let page = ready!(fetch.as_mut().poll(cx));
            this.fetch = None;
            match page {
                Ok((sessions, next)) => {
                    this.fetched.extend(sessions);
                    this.place = next;
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("place", &self.place).finish_non_exhaustive()
    }
}
