//! Limits for the sessions of a user.

/// The maximum number of live sessions of a user, and what happens to one more.
///
/// Default: 100, and the least recently used session ends. The limit holds for concurrent logins too. A login that is cut off, for
/// example by an outage, may count for 30 seconds.
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
    /// The login fails: [`SessionError::Full`](crate::SessionError::Full), 429.
    Reject,
    /// The least recently used session ends. Among those last used in the same millisecond, the oldest.
    #[default]
    EvictLeastRecentlyUsed,
    /// The oldest session ends: the one that was created first, even within one millisecond.
    EvictOldest,
}

impl Limits {
    /// At most `sessions` per user. At least 1.
    pub const fn per_user(sessions: usize, when_full: WhenFull) -> Self {
        Self { per_user: Some(if sessions == 0 { 1 } else { sessions }), when_full }
    }

    /// No limit except the capacity of the store.
    ///
    /// ```
    /// assert_eq!(tower_keep::Limits::none().sessions(), None);
    /// ```
    pub const fn none() -> Self {
        Self { per_user: None, when_full: WhenFull::EvictLeastRecentlyUsed }
    }

    /// The maximum number of sessions of a user. `None`: no limit.
    ///
    /// ```
    /// assert_eq!(tower_keep::Limits::default().sessions(), Some(100));
    /// ```
    pub const fn sessions(&self) -> Option<usize> {
        self.per_user
    }

    /// What happens when the limit is reached.
    pub const fn when_full(&self) -> WhenFull {
        self.when_full
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::per_user(100, WhenFull::EvictLeastRecentlyUsed)
    }
}
