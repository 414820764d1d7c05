//! How many sessions a user may have.

/// How many live sessions a user may have, and what happens to one more.
///
/// The default is 100, of which the least recently used makes room: more than anybody has devices, and few enough that what is
/// kept of a user is bounded. A store counts and creates in one step, so parallel logins never exceed it. A login over another session
/// that was cut off in the middle, by an outage for example, may hold its place for half a minute.
///
/// ```
/// use tower_keep::{Limits, MemoryStore, SessionLayer, WhenFull};
///
/// let one_device = Limits::per_user(1, WhenFull::EvictLeastRecentlyUsed);
/// let layer = SessionLayer::new(MemoryStore::new()).limits(one_device);
/// // Or by user:
/// let layer = layer.limits_by(move |user| if user == "kiosk" { Limits::none() } else { one_device });
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    per_user: Option<usize>,
    when_full: WhenFull,
}

/// What happens to a new session when the limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It is not made: [`SessionError::Full`](crate::SessionError::Full), 429.
    Reject,
    /// The least recently used session ends. Among those last used in the same millisecond, the oldest.
    #[default]
    EvictLeastRecentlyUsed,
    /// The oldest session ends: the one that was created first, even within one millisecond.
    EvictOldest,
}

impl Limits {
    /// At most so many sessions a user; at least one.
    pub const fn per_user(sessions: usize, when_full: WhenFull) -> Self {
        Self { per_user: Some(if sessions == 0 { 1 } else { sessions }), when_full }
    }

    /// No limit but the memory of the store.
    ///
    /// ```
    /// assert_eq!(tower_keep::Limits::none().sessions(), None);
    /// ```
    pub const fn none() -> Self {
        Self { per_user: None, when_full: WhenFull::EvictLeastRecentlyUsed }
    }

    /// How many sessions a user may have; `None`: any number.
    ///
    /// ```
    /// assert_eq!(tower_keep::Limits::default().sessions(), Some(100));
    /// ```
    pub const fn sessions(&self) -> Option<usize> {
        self.per_user
    }

    /// What happens to one more.
    pub const fn when_full(&self) -> WhenFull {
        self.when_full
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::per_user(100, WhenFull::EvictLeastRecentlyUsed)
    }
}
