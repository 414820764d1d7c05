//! What a store keeps for a session, and its stored form.

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

/// The values of a session, shared by all copies of the record.
pub(crate) type Data = BTreeMap<Arc<str>, Json>;

/// What a store keeps for a session.
///
/// To a store it is opaque: keep it, or its [encoding](Self::encode), compare its [version](Self::version), and list it by its
/// [user](Self::user). The user of a session never changes: who logs in gets another session.
///
/// # Stored form
/// JSON in one line, so that an operator can read it where it lies:
/// ```json
/// {"v":2,"n":"AAAAAxbk0fTjK8pw","t":[1763679600000,42000,1800000,86400000],"user":"ana","data":{"visits":3}}
/// ```
/// `v` format · `n` version (every write has a new one) · `t` milliseconds: created at (since the Unix epoch), last written
/// (since created), idle timeout, absolute timeout (since created) · `data` the values. Present where they mean something:
/// `g` the rotation: which token is the current one, which was before, since when, and how long that is served still ·
/// `replaces` the session that must have ended in favour of this one before it begins · `persistent`
/// `true` when the cookie outlives the browser · `user` who is logged in · `meta` metadata.
///
/// Another form is [`Codec::MessagePack`]. [`decode`](Self::decode) reads both, and every format that was ever written.
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
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) data: Data,
}

/// Which of a session's tokens counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    current: Generation,
    /// What was current before; `None` is the token that the session began with.
    previous: Option<Generation>,
    at: Timestamp,
    grace: Duration,
}

/// What a token is to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The one that counts.
    Current,
    /// The one before, within the grace window: good, and its client is owed the one that counts.
    Graced,
    /// One from before, while requests that were sent with it may be on their way: not good, and no proof of a theft.
    Superseded,
    /// One that was good once. Its client has had a newer one, so somebody else has it too.
    Reused,
}

impl Record {
    /// A record created at `now`, without user or data.
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
            metadata: Arc::default(),
            data: Data::new(),
        }
    }

    /// The version: no two writes of a session share one.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The user the session is bound to, if anybody is logged in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// When the session was created, or last logged in to.
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// When it was last used, for a store that has it live for `ttl` from `now` on.
    pub fn last_used(&self, now: Timestamp, ttl: Duration) -> Timestamp {
        self.written_at.max(now.plus(ttl).minus(self.idle_timeout))
    }

    /// When the absolute timeout ends the session.
    pub(crate) fn absolute_deadline(&self) -> Timestamp {
        self.created_at.plus(self.absolute_timeout)
    }

    /// The time to live at `now` if somebody uses the session at `now`; zero when the absolute timeout has ended it.
    pub(crate) fn full_ttl(&self, now: Timestamp) -> Duration {
        self.idle_timeout.min(self.absolute_deadline().since(now))
    }

    /// The time to live at `now`, given what the store says is left; zero when the session has ended.
    ///
    /// Without an answer of the store the last write counts as the last use, so a session whose TTL was taken away
    /// (`PERSIST`) still ends.
    pub(crate) fn ttl_left(&self, now: Timestamp, stored: Option<Duration>) -> Duration {
        let idle_left = stored.unwrap_or_else(|| self.written_at.plus(self.idle_timeout).since(now));
        self.full_ttl(now).min(idle_left)
    }

    /// Since when its token is the one it is.
    pub(crate) fn rotated_at(&self) -> Timestamp {
        self.rotation.map_or(self.created_at, |rotation| rotation.at)
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.rotation.map(|rotation| rotation.current)
    }

    /// The token that counts, made from any of this session's.
    pub(crate) fn current_token(&self, token: &Token) -> Token {
        token.of_generation(self.generation())
    }

    /// What `token`, which named this session, is to it. `race` is how long requests may have been on their way when the token
    /// was changed.
    pub(crate) fn standing(&self, token: &Token, now: Timestamp, race: Duration) -> Standing {
        self.standing_of(|generation| token.is_of(generation), now, race)
    }

    /// What a token is to it that is good once: its client changes it, as often as it likes. So the race is that of the one before
    /// alone: who has a copy of an older one, and was faster, could go on changing it, and would never be found out.
    #[cfg(feature = "jwt")]
    pub(crate) fn standing_once(
        &self,
        is_of: impl Fn(Option<Generation>) -> bool,
        now: Timestamp,
        race: Duration,
    ) -> Standing {
        match self.standing_of(&is_of, now, race) {
            Standing::Superseded if !self.rotation.is_some_and(|rotation| is_of(rotation.previous)) => Standing::Reused,
            standing => standing,
        }
    }

    fn standing_of(&self, is_of: impl Fn(Option<Generation>) -> bool, now: Timestamp, race: Duration) -> Standing {
        let Some(rotation) = self.rotation else {
            return if is_of(None) { Standing::Current } else { Standing::Reused };
        };
        if is_of(Some(rotation.current)) {
            return Standing::Current;
        }
        let is_previous = is_of(rotation.previous);
        // A clock that is behind that of the instance which rotated says that no time has passed.
        let age = now.since(rotation.at);
        if is_previous && age < rotation.grace {
            Standing::Graced
        } else if age < race {
            Standing::Superseded
        } else {
            Standing::Reused
        }
    }

    /// Whether it was written with a new token.
    pub(crate) fn rotates(&self) -> bool {
        self.rotation.is_some_and(|rotation| rotation.at == self.written_at)
    }

    /// Makes another token the one that counts; that of now is served for `grace` still.
    pub(crate) fn rotate(&mut self, now: Timestamp, grace: Duration) -> Result<(), getrandom::Error> {
        let (current, previous) = (Generation::new()?, self.generation());
        self.rotation = Some(Rotation { current, previous, at: now, grace });
        Ok(())
    }

    /// What it weighs: the length of user, metadata, keys and values in bytes.
    pub(crate) fn weight(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.len());
        let values = self.data.iter().map(|(key, value)| key.len() + value.text().len()).sum::<usize>();
        user + self.metadata.weight() + values
    }

    /// The stored form as JSON. The [version](Version::of) is always in the same place of it.
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
