//! Records: what a store keeps for a session.

mod codec;
#[cfg(feature = "messagepack")]
mod packed;
mod value;
mod version;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[cfg(feature = "redis")]
pub(crate) use self::codec::HEAD_LEN;
pub(crate) use self::value::Json;
pub use self::{
    codec::{Codec, InvalidRecord},
    version::Version,
};
use crate::{
    lifetime::Lifetime,
    metadata::Metadata,
    time::Timestamp,
    token::{Generation, SessionId, Token},
};

/// The values of a session, shared by all copies of a record.
pub(crate) type Data = BTreeMap<Arc<str>, Json>;

/// What a store keeps for a session.
///
/// A store keeps a record or its [encoding](Self::encode), compares its [version](Self::version), and indexes it by its
/// [user](Self::user). A store that limits sessions also reads [`replaces`](Self::replaces). The user of a record never changes: a login
/// creates another session.
///
/// # Stored form
/// JSON in one line, which operators can read:
/// ```json
/// {"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"user":"ana","data":{"visits":3}}
/// ```
/// `v` is the format, `n` the version (each write has a new one), `t` times in milliseconds: creation (since the Unix epoch), last
/// write (since creation), idle timeout, absolute timeout. `data` has the values. Optional fields: `g` the rotation (current and
/// previous token, time, grace window), `replaces` the old session of a pending login, `persistent` if the cookie outlives the
/// browser session, `user`, and `meta` the metadata. `unused` if the client has not used the current token yet, and `leases`.
///
/// [`Codec::MessagePack`] is another encoding. [`decode`](Self::decode) reads all formats.
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) version: Version,
    pub(crate) created_at: Timestamp,
    /// When the record was last written. A touch does not write it: see [`Loaded::ttl`](crate::store::Loaded).
    pub(crate) written_at: Timestamp,
    pub(crate) idle_timeout: Duration,
    pub(crate) absolute_timeout: Duration,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) replaces: Option<SessionId>,
    pub(crate) persistent: bool,
    pub(crate) user: Option<Arc<str>>,
    pub(crate) leases: BTreeMap<Arc<str>, Lease>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) data: Data,
}

/// Who holds a lease of the session, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) holder: u64,
    pub(crate) until: Timestamp,
}

/// The current and previous token of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    current: Generation,
    /// The previous token. `None` is the first token of the session.
    previous: Option<Generation>,
    /// When the client first used the current token. While it has not, when the token was created.
    at: Timestamp,
    /// How long the previous token is accepted from `at` on. Zero: not at all.
    grace: Duration,
    /// The client has not used the current token yet. The response that carried it may be lost, so the previous token is no sign of theft.
    unused: bool,
}

/// The status of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The current token.
    Current,
    /// The previous token within its grace window: accepted, and the client receives the current token.
    Graced,
    /// A previous token while the client may not have the current one, or requests may still be on their way: not accepted, and not a sign
    /// of theft.
    Superseded,
    /// An older token. The client has used a newer one, so another client has this one.
    Reused,
}

impl Record {
    /// A record without user and data.
    pub(crate) fn new(now: Timestamp, lifetime: &Lifetime, version: Version) -> Self {
        Self {
            version,
            created_at: now,
            written_at: now,
            idle_timeout: lifetime.idle_timeout(),
            absolute_timeout: lifetime.absolute_timeout(),
            rotation: None,
            replaces: None,
            persistent: lifetime.is_persistent(),
            user: None,
            leases: BTreeMap::new(),
            metadata: Arc::default(),
            data: Data::new(),
        }
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: &Lifetime) {
        self.idle_timeout = lifetime.idle_timeout();
        self.absolute_timeout = lifetime.absolute_timeout();
        self.persistent = lifetime.is_persistent();
    }

    /// The version. Each write has another one.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The user who is logged in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The session that this one replaces, of a login that is not complete. If it is the same user's, it does not count toward the limit for
    /// this one.
    pub fn replaces(&self) -> Option<&SessionId> {
        self.replaces.as_ref()
    }

    /// When the session was created, or when its user last logged in.
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// When the session was last used, if its time to live is `ttl` at `now`.
    pub fn last_used(&self, now: Timestamp, ttl: Duration) -> Timestamp {
        self.written_at.max(now.plus(ttl).minus(self.idle_timeout))
    }

    /// When the absolute timeout ends the session.
    pub(crate) fn absolute_deadline(&self) -> Timestamp {
        self.created_at.plus(self.absolute_timeout)
    }

    /// The time to live after a use at `now`. Zero if the absolute timeout is over.
    pub(crate) fn full_ttl(&self, now: Timestamp) -> Duration {
        self.idle_timeout.min(self.absolute_deadline().since(now))
    }

    /// The remaining time to live at `now`, given the time to live in the store. Zero if the session has expired.
    ///
    /// Without a time to live in the store, the last write counts as the last use, so a session still expires after another program
    /// removed its time to live (`PERSIST`).
    pub(crate) fn ttl_left(&self, now: Timestamp, stored: Option<Duration>) -> Duration {
        let idle_left = stored.unwrap_or_else(|| self.written_at.plus(self.idle_timeout).since(now));
        self.full_ttl(now).min(idle_left)
    }

    /// When the current token was first used, or created.
    pub(crate) fn rotated_at(&self) -> Timestamp {
        self.rotation.map_or(self.created_at, |rotation| rotation.at)
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.rotation.map(|rotation| rotation.current)
    }

    /// The current token, computed from any token of the session.
    pub(crate) fn current_token(&self, token: &Token) -> Token {
        token.of_generation(self.generation())
    }

    /// The status of `token`. `race` is how long requests with older tokens may be on their way.
    pub(crate) fn standing(&self, token: &Token, now: Timestamp, race: Duration) -> Standing {
        let Some(rotation) = self.rotation else {
            return if token.is_of(None) { Standing::Current } else { Standing::Reused };
        };
        if token.is_of(Some(rotation.current)) {
            return Standing::Current;
        }
        let is_previous = token.is_of(rotation.previous);
        // The clock may be behind that of the instance that rotated.
        let age = now.since(rotation.at);
        if is_previous && !rotation.grace.is_zero() && (rotation.unused || age < rotation.grace) {
            Standing::Graced
        } else if is_previous && rotation.unused || age < race {
            Standing::Superseded
        } else {
            Standing::Reused
        }
    }

    /// The status of a refresh token, which works once. Only the previous one is superseded, and only during the race window: otherwise a
    /// thief with an older token could keep refreshing unnoticed.
    #[cfg(feature = "jwt")]
    pub(crate) fn standing_once(
        &self,
        is_of: impl Fn(Option<Generation>) -> bool,
        now: Timestamp,
        race: Duration,
    ) -> Standing {
        match self.rotation {
            _ if is_of(self.generation()) => Standing::Current,
            Some(rotation) if is_of(rotation.previous) && now.since(rotation.at) < race => Standing::Superseded,
            _ => Standing::Reused,
        }
    }

    /// Whether the record was written by a rotation.
    pub(crate) fn rotates(&self) -> bool {
        self.rotation.is_some_and(|rotation| rotation.unused && rotation.at == self.written_at)
    }

    /// Rotates. With a `grace` other than zero, the last token that the client used is accepted until the new one is first used, and for
    /// `grace` from then on.
    pub(crate) fn rotate(&mut self, now: Timestamp, grace: Duration) -> Result<(), getrandom::Error> {
        // If the client has not used the current token, it may only have the one before.
        let previous = match self.rotation {
            Some(Rotation { unused: true, previous, .. }) => previous,
            _ => self.generation(),
        };
        let current = Generation::new()?;
        self.rotation = Some(Rotation { current, previous, at: now, grace, unused: true });
        Ok(())
    }

    /// Whether the client has not used the current token yet.
    pub(crate) fn is_token_unused(&self) -> bool {
        self.rotation.is_some_and(|rotation| rotation.unused)
    }

    /// The client uses the current token, so it does not need the previous one any more.
    pub(crate) fn token_used(&mut self, now: Timestamp) {
        if let Some(rotation) = self.rotation.as_mut().filter(|rotation| rotation.unused) {
            (rotation.at, rotation.unused) = (now, false);
        }
    }

    /// The length of user, metadata, leases, keys and values in bytes.
    pub(crate) fn weight(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.len());
        let values = self.data.iter().map(|(key, value)| key.len() + value.text().len()).sum::<usize>();
        let leases = self.leases.keys().map(|name| name.len() + size_of::<Lease>()).sum::<usize>();
        user + self.metadata.weight() + values + leases
    }

    /// The JSON encoding. The [version](Version::of) is always at the same position.
    ///
    /// ```
    /// # use tower_keep::store::{Record, Version};
    /// let stored = r#"{"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,0,1800000,86400000],"user":"ana","data":{"visits":3}}"#;
    /// let record = Record::decode(stored.as_bytes())?;
    /// assert_eq!(record.user(), Some("ana"));
    /// assert_eq!(record.encode(), stored.as_bytes());
    /// assert_eq!(Version::of(stored.as_bytes()), Some(record.version()));
    /// # Ok::<(), tower_keep::store::InvalidRecord>(())
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(Codec::Json)
    }
}
