//! The lifetime of sessions.

use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest lifetime.
pub(crate) const LONGEST: Duration = Duration::from_secs(3653 * DAY.as_secs());

/// The lifetime of a session: two timeouts that both apply.
///
/// * The **idle timeout** ends a session that is not used. Activity extends it.
/// * The **absolute timeout** ends every session. Only a new login restarts it.
///
/// Default: 30 minutes idle and 24 hours absolute (NIST SP 800-63B AAL2 allows 1 hour and 24 hours; OWASP recommends 15 to 30
/// minutes idle for ordinary applications). A session keeps its lifetime when the layer is configured differently later.
/// [`Session::set_lifetime`](crate::Session::set_lifetime) changes one session, for "remember me".
///
/// ```
/// use std::time::Duration;
/// use tower_keep::Lifetime;
///
/// const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// let remember_me = Lifetime::new(14 * DAY, 90 * DAY)?.persistent(true);
/// assert_eq!(remember_me.idle_timeout(), 14 * DAY);
/// assert!(Lifetime::new(2 * DAY, DAY).is_err(), "idle beyond absolute means nothing");
/// # Ok::<(), tower_keep::InvalidLifetime>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    idle: Duration,
    absolute: Duration,
    touch: Option<Duration>,
    persistent: bool,
}

impl Lifetime {
    /// Creates a lifetime. The resolution is a millisecond.
    ///
    /// # Errors
    /// [`InvalidLifetime`] if a timeout is shorter than a millisecond, the idle timeout is longer than the absolute timeout, or the
    /// absolute timeout is longer than ten years.
    ///
    /// In a handler, `?` converts it to a [`SessionError`](crate::SessionError). In a constant:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::Lifetime;
    /// const REMEMBERED: Lifetime = match Lifetime::new(Duration::from_secs(1_209_600), Duration::from_secs(7_776_000)) {
    ///     Ok(lifetime) => lifetime.persistent(true),
    ///     Err(_) => panic!("an invalid lifetime"), // when the program is compiled
    /// };
    /// # let _ = REMEMBERED;
    /// ```
    pub const fn new(idle: Duration, absolute: Duration) -> Result<Self, InvalidLifetime> {
        if idle.as_millis() == 0 || absolute.as_millis() == 0 {
            return Err(InvalidLifetime::Zero);
        }
        if idle.as_nanos() > absolute.as_nanos() {
            return Err(InvalidLifetime::IdleBeyondAbsolute);
        }
        if absolute.as_nanos() > LONGEST.as_nanos() {
            return Err(InvalidLifetime::TooLong);
        }
        Ok(Self { idle, absolute, touch: None, persistent: false })
    }

    /// NIST SP 800-63B authenticator assurance level 1: 30 days absolute, no shorter idle timeout, and a cookie that outlives the
    /// browser session.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert_eq!(Lifetime::aal1().absolute_timeout().as_secs(), 30 * 24 * 3600);
    /// ```
    pub const fn aal1() -> Self {
        let month = Duration::from_secs(30 * DAY.as_secs());
        Self { idle: month, absolute: month, touch: None, persistent: true }
    }

    /// NIST SP 800-63B authenticator assurance level 2: 1 hour idle, 24 hours absolute.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert_eq!(Lifetime::aal2().idle_timeout().as_secs(), 3600);
    /// ```
    pub const fn aal2() -> Self {
        Self { idle: HOUR, absolute: DAY, touch: None, persistent: false }
    }

    /// NIST SP 800-63B authenticator assurance level 3: 15 minutes idle, 12 hours absolute.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert_eq!(Lifetime::aal3().idle_timeout().as_secs(), 900);
    /// ```
    pub const fn aal3() -> Self {
        Self {
            idle: Duration::from_secs(15 * 60),
            absolute: Duration::from_secs(12 * 60 * 60),
            touch: None,
            persistent: false,
        }
    }

    /// How much of the idle timeout must pass before a read extends it again.
    ///
    /// Default: a tenth of the idle timeout, so that a busy session is not written at every request. An idle session may end that
    /// much earlier. With zero, every read extends. With the idle timeout or more, only changes extend.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_keep::Lifetime;
    /// let lifetime = Lifetime::default();
    /// assert_eq!(lifetime.touch_interval(), Duration::from_secs(3 * 60));
    /// assert_eq!(lifetime.touch_every(Duration::ZERO).touch_interval(), Duration::ZERO);
    /// ```
    #[must_use]
    pub const fn touch_every(mut self, interval: Duration) -> Self {
        self.touch = Some(interval);
        self
    }

    /// Whether the cookie outlives the browser session, with `Max-Age` and `Expires` at the absolute timeout.
    ///
    /// Default: no. Bearer tokens are not affected.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert!(!Lifetime::default().is_persistent());
    /// assert!(Lifetime::default().persistent(true).is_persistent());
    /// ```
    #[must_use]
    pub const fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// The idle timeout.
    pub const fn idle_timeout(&self) -> Duration {
        self.idle
    }

    /// The absolute timeout.
    pub const fn absolute_timeout(&self) -> Duration {
        self.absolute
    }

    /// See [`touch_every`](Self::touch_every).
    pub fn touch_interval(&self) -> Duration {
        self.touch_interval_of(self.idle)
    }

    /// The touch interval for a session with its own idle timeout.
    pub(crate) fn touch_interval_of(&self, idle_timeout: Duration) -> Duration {
        self.touch.unwrap_or(idle_timeout / 10)
    }

    /// See [`persistent`](Self::persistent).
    pub const fn is_persistent(&self) -> bool {
        self.persistent
    }
}

/// 30 minutes idle, 24 hours absolute, and a cookie for the browser session.
impl Default for Lifetime {
    fn default() -> Self {
        Self { idle: 30 * MINUTE, absolute: DAY, touch: None, persistent: false }
    }
}

/// The timeouts are invalid.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{InvalidLifetime, Lifetime};
///
/// let error = Lifetime::new(Duration::ZERO, Duration::from_secs(1)).unwrap_err();
/// assert_eq!(error, InvalidLifetime::Zero);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLifetime {
    /// A timeout is shorter than a millisecond.
    #[error("a session timeout must be at least a millisecond")]
    Zero,
    /// The idle timeout is longer than the absolute timeout.
    #[error("the idle timeout is longer than the absolute timeout")]
    IdleBeyondAbsolute,
    /// The absolute timeout is longer than ten years.
    #[error("the absolute timeout is longer than ten years")]
    TooLong,
}
