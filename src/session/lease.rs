//! Leases: one holder across all requests and instances, for work that must not be done twice at once.

use std::{sync::Arc, time::Duration};

use super::{Inner, Session, SessionError};
use crate::{
    record::{self, Record},
    store::{Entry, Found, Loaded, Outcome, SessionStore},
    time::Timestamp,
};

/// The number of attempts when other requests write the session concurrently.
const MAX_ATTEMPTS: usize = 128;

/// A lease of a session: see [`Session::lease`].
///
/// If it is dropped without [`release`](Self::release), it lasts until it expires.
#[derive(Debug)]
#[must_use = "without a release, nobody else gets the lease until it expires"]
pub struct Lease {
    session: Session,
    name: Arc<str>,
    holder: u64,
    expires_at: Timestamp,
}

/// # Leases
impl Session {
    /// Takes the lease `name` of the session for at most `duration`. `None`: another request holds it, on this or another instance.
    ///
    /// For work that two requests of one session must not do at once, such as redeeming a refresh token of an OAuth provider. The
    /// lease is part of the stored session, so it works with every store, and ends with the session. Unsaved changes are saved
    /// first. Taking and releasing are one write each; they do not extend the session. Instances compare the expiry with their own clocks.
    ///
    /// # Errors
    /// [`SessionError::Ended`] without a stored session. [`SessionError::Store`] if the store is unavailable: the lease may be taken
    /// until it expires. [`SessionError::Conflict`], [`SessionError::Random`], and those of [`save`](Self::save).
    ///
    /// ```
    /// use std::time::Duration;
    /// # use tower_keep::{Session, SessionError};
    ///
    /// async fn refresh(session: &Session) -> Result<(), SessionError> {
    ///     if let Some(lease) = session.lease("provider-refresh", Duration::from_secs(10)).await? {
    ///         // Ask the provider for a new access token.
    ///         session.insert("access_token", "…")?;
    ///         session.save().await?; // before the next holder
    ///         lease.release().await?;
    ///     } // else another tab is doing it
    ///     Ok(())
    /// }
    /// # let _ = refresh;
    /// ```
    pub async fn lease(&self, name: &str, duration: Duration) -> Result<Option<Lease>, SessionError> {
        if !self.is_clean() {
            self.save().await?;
        }
        drop(self.writable()?);
        let (name, holder) = (Arc::<str>::from(name), getrandom::u64()?);
        let mut expires_at = None;
        self.inner
            .write_leases(|record, now| {
                record.leases.retain(|_, lease| lease.until > now);
                // After a lost reply, it may be this one.
                let is_held = record.leases.get(&name).is_some_and(|lease| lease.holder != holder);
                expires_at = (!is_held).then(|| now.plus(duration));
                if let Some(until) = expires_at {
                    record.leases.insert(name.clone(), record::Lease { holder, until });
                }
                !is_held
            })
            .await?;
        Ok(expires_at.map(|expires_at| Lease { session: self.clone(), name, holder, expires_at }))
    }
}

impl Lease {
    /// When another request can take the lease.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Lets another request take the lease. Does nothing if it has expired, or if the session has ended.
    ///
    /// # Errors
    /// [`SessionError::Store`] if the store is unavailable: the lease lasts until it expires. [`SessionError::Conflict`].
    ///
    /// ```
    /// # use tower_keep::{Lease, SessionError};
    /// async fn done(lease: Lease) -> Result<(), SessionError> {
    ///     lease.release().await
    /// }
    /// # let _ = done;
    /// ```
    pub async fn release(self) -> Result<(), SessionError> {
        let Self { session, name, holder, .. } = self;
        let released = session.inner.write_leases(|record, _| {
            let is_mine = record.leases.get(&name).is_some_and(|lease| lease.holder == holder);
            is_mine && record.leases.remove(&name).is_some()
        });
        match released.await {
            Err(SessionError::Ended) => Ok(()),
            released => released,
        }
    }
}

impl Inner {
    /// Changes the leases of the stored record, unless `change` returns `false`. It is called again after a conflict.
    async fn write_leases(&self, mut change: impl FnMut(&mut Record, Timestamp) -> bool) -> Result<(), SessionError> {
        let _turn = self.turn().await;
        let Some(id) = self.state().settled().map(|live| live.id) else { return Err(SessionError::Ended) };
        self.time_budget.reset(); // each call has the time of a request
        let mut found = self.time_budget.spend(self.context.store().load(&id)).await?;
        for _ in 0..MAX_ATTEMPTS {
            let loaded = match found {
                Found::Live(loaded) => loaded,
                Found::Ended(ended) => {
                    self.state().set_ended(false, Some(ended.reason));
                    return Err(SessionError::Ended);
                }
                Found::Unknown => return Err(SessionError::Ended),
            };
            let (now, expected) = (self.context.clock.now(), loaded.record.version());
            let ttl = loaded.record.ttl_left(now, loaded.ttl);
            let mut record = Record { version: expected.next()?, ..Record::clone(&loaded.record) };
            if !change(&mut record, now) {
                self.saw(loaded);
                return Ok(());
            }
            self.context.check_size(&record)?;
            let record = Arc::new(record);
            let entry = Entry { record: record.clone(), ttl };
            match self.time_budget.spend(self.context.store().update(&id, expected, entry)).await? {
                Outcome::Done => {
                    self.saw(Loaded { record, ttl: Some(ttl) });
                    return Ok(());
                }
                Outcome::Conflict(theirs) => found = Found::Live(theirs),
                Outcome::Gone => return Err(SessionError::Ended),
            }
        }
        Err(SessionError::Conflict)
    }

    /// Unsaved changes apply to this from now on.
    fn saw(&self, loaded: Loaded) {
        let env = self.environment();
        self.state().rebase(&env, None, loaded);
    }
}
