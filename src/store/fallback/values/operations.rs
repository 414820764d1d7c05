//! The operations on values: what the main store is asked, and what is done without it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::super::{
    error::Cause,
    local::Local,
    operations::{LOCAL, Operation},
    seen::Lesson,
};
use crate::{
    store::{Added, Cursor, KeyPage, SessionStore, StoreError, StoreFuture, ask_values},
    time::Timestamp,
};

type Learn<'l> = dyn FnMut(Lesson<'_>) + 'l;

pub(super) struct Get<'a> {
    pub(super) keys: &'a [&'a str],
}

impl Operation for Get<'_> {
    type Answer = Vec<Option<Vec<u8>>>;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Self::Answer> {
        ask_values(main, |values| values.get(self.keys))
    }

    fn lessons(&self, _: &Self::Answer, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<Self::Answer, StoreError> {
        Ok(self.keys.iter().map(|key| local.values().get(key, now)).collect())
    }
}

pub(super) struct Set<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
    pub(super) ttl: Option<Duration>,
}

impl Operation for Set<'_> {
    type Answer = ();

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, ()> {
        ask_values(main, |values| values.set(self.key, self.value, self.ttl))
    }

    fn lessons(&self, (): &(), _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<(), StoreError> {
        local.values().set(self.key, self.value, self.ttl, now)
    }
}

pub(super) struct Delete<'a> {
    pub(super) key: &'a str,
}

impl Operation for Delete<'_> {
    type Answer = bool;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, bool> {
        ask_values(main, |values| values.delete(self.key))
    }

    fn lessons(&self, _: &bool, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<bool, StoreError> {
        local.values().delete(self.key, now)
    }
}

pub(super) struct Exists<'a> {
    pub(super) key: &'a str,
}

impl Operation for Exists<'_> {
    type Answer = bool;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, bool> {
        ask_values(main, |values| values.exists(self.key))
    }

    fn lessons(&self, _: &bool, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<bool, StoreError> {
        Ok(local.values().exists(self.key, now))
    }
}

pub(super) struct Expire<'a> {
    pub(super) key: &'a str,
    pub(super) ttl: Duration,
}

impl Operation for Expire<'_> {
    type Answer = bool;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, bool> {
        ask_values(main, |values| values.expire(self.key, self.ttl))
    }

    fn lessons(&self, _: &bool, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<bool, StoreError> {
        Ok(local.values().expire(self.key, self.ttl, now))
    }
}

/// Done once: where the main store may have done it, it is done nowhere else, and not again.
pub(super) struct Add<'a> {
    key: &'a str,
    by: i64,
    in_doubt: AtomicBool,
}

impl<'a> Add<'a> {
    pub(super) fn new(key: &'a str, by: i64) -> Self {
        Self { key, by, in_doubt: AtomicBool::new(false) }
    }

    /// The main store was told, and has not said what it did.
    pub(super) fn may_be_done(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }
}

impl Operation for &Add<'_> {
    type Answer = Added;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, Added> {
        if self.may_be_done() {
            return StoreFuture::ready(Err(Cause::InDoubt.into()));
        }
        ask_values(main, |values| {
            StoreFuture::boxed(async move {
                match values.add(self.key, self.by).await {
                    // An error, so that it shows an outage.
                    Ok(Added::InDoubt(error)) => {
                        self.in_doubt.store(true, Ordering::Relaxed);
                        Err(error)
                    }
                    answer => answer,
                }
            })
        })
    }

    fn lessons(&self, _: &Added, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<Added, StoreError> {
        if self.may_be_done() {
            return Ok(Added::InDoubt(Cause::InDoubt.into()));
        }
        local.values().add(self.key, self.by, now)
    }
}

pub(super) struct Scan<'a> {
    pub(super) pattern: &'a str,
    pub(super) from: &'a Cursor,
    pub(super) count: usize,
}

impl Operation for Scan<'_> {
    type Answer = KeyPage;

    fn ask<'a>(&'a self, main: &'a impl SessionStore) -> StoreFuture<'a, KeyPage> {
        const START: &Cursor = &Cursor(String::new());
        let from = if self.from.as_str().starts_with(LOCAL) { START } else { self.from };
        ask_values(main, |values| values.scan(self.pattern, from, self.count))
    }

    fn lessons(&self, _: &KeyPage, _: Timestamp, _: &mut Learn<'_>) {}

    fn perform(&self, local: &mut Local, now: Timestamp, _: bool) -> Result<KeyPage, StoreError> {
        let from = self.from.as_str().strip_prefix(LOCAL).unwrap_or_default();
        let page = local.values().scan(self.pattern, &from.to_owned().into(), self.count, now);
        let next = page.next.map(|next| format!("{LOCAL}{}", next.as_str()).into());
        Ok(KeyPage { next, ..page })
    }
}
