//! How long a session lives.

use std::{fmt, time::Duration};

use crate::time::millis;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// No session lives longer.
pub(crate) const LONGEST: Duration = Duration::from_secs(3653 * DAY.as_secs());

/// How long a session lives: two timeouts, always both.
///
/// * the **idle timeout** ends a session that nobody uses; activity moves it;
/// * the **absolute timeout** ends every session; nothing moves it but a new login.
///
/// The default is 30 minutes idle and 24 hours in all (NIST SP 800-63B's AAL2 allows an hour and 24 hours; OWASP advises 15 to 30
/// minutes idle for ordinary applications). A session keeps the lifetime it was given, whatever the layer is
/// configured to later: see [`Session::set_lifetime`](crate::Session::set_lifetime) for "remember me".
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
    /// A lifetime of these two timeouts, at a resolution of a millisecond.
    ///
    /// # Errors
    /// [`InvalidLifetime`] when one is under a millisecond, the idle timeout is longer than the absolute, or the absolute
    /// is longer than ten years: a session that never ends cannot be made.
    pub fn new(idle: Duration, absolute: Duration) -> Result<Self, InvalidLifetime> {
        if millis(idle) == 0 || millis(absolute) == 0 {
            return Err(InvalidLifetime::Zero);
        }
        if idle > absolute {
            return Err(InvalidLifetime::IdleBeyondAbsolute);
        }
        if absolute > LONGEST {
            return Err(InvalidLifetime::TooLong);
        }
        Ok(Self { idle, absolute, touch: None, persistent: false })
    }

    /// NIST SP 800-63B authenticator assurance level 1: 30 days in all, no tighter idle timeout, and a cookie that outlives
    /// the browser.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert_eq!(Lifetime::aal1().absolute_timeout().as_secs(), 30 * 24 * 3600);
    /// ```
    pub const fn aal1() -> Self {
        let month = Duration::from_secs(30 * DAY.as_secs());
        Self { idle: month, absolute: month, touch: None, persistent: true }
    }

    /// NIST SP 800-63B authenticator assurance level 2: an hour idle, 24 hours in all.
    ///
    /// ```
    /// # use tower_keep::Lifetime;
    /// assert_eq!(Lifetime::aal2().idle_timeout().as_secs(), 3600);
    /// ```
    pub const fn aal2() -> Self {
        Self { idle: HOUR, absolute: DAY, touch: None, persistent: false }
    }

    /// NIST SP 800-63B authenticator assurance level 3: 15 minutes idle, 12 hours in all.
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

    /// How much of the idle timeout must have passed before a read extends it again.
    ///
    /// Default: a tenth of the idle timeout, so that a busy session costs a write now and then and not at every request;
    /// an idle session may end that much early. Zero touches at every read. An interval as long as the idle timeout or
    /// longer never touches: only changes extend the session.
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

    /// Whether the cookie outlives the browser: with `Max-Age` and `Expires` at the absolute timeout.
    ///
    /// Default: no, the browser forgets it when it closes. Bearer tokens know no difference.
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

    /// After how long without use the session ends.
    pub const fn idle_timeout(&self) -> Duration {
        self.idle
    }

    /// After how long the session ends in any case.
    pub const fn absolute_timeout(&self) -> Duration {
        self.absolute
    }

    /// See [`touch_every`](Self::touch_every).
    pub fn touch_interval(&self) -> Duration {
        self.touch_interval_of(self.idle)
    }

    /// The touch interval for a session that may have an idle timeout of its own.
    pub(crate) fn touch_interval_of(&self, idle_timeout: Duration) -> Duration {
        self.touch.unwrap_or(idle_timeout / 10)
    }

    /// See [`persistent`](Self::persistent).
    pub const fn is_persistent(&self) -> bool {
        self.persistent
    }
}

/// 30 minutes idle, 24 hours in all, a cookie that ends with the browser.
impl Default for Lifetime {
    fn default() -> Self {
        Self { idle: 30 * MINUTE, absolute: DAY, touch: None, persistent: false }
    }
}

/// The two timeouts make no sense together.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{InvalidLifetime, Lifetime};
///
/// let error = Lifetime::new(Duration::ZERO, Duration::from_secs(1)).unwrap_err();
/// assert_eq!(error, InvalidLifetime::Zero);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidLifetime {
    /// A timeout is shorter than a millisecond.
    Zero,
    /// The idle timeout is longer than the absolute timeout.
    IdleBeyondAbsolute,
    /// The absolute timeout is longer than ten years.
    TooLong,
}

impl fmt::Display for InvalidLifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "a session timeout must be at least a millisecond",
            Self::IdleBeyondAbsolute => "the idle timeout is longer than the absolute timeout",
            Self::TooLong => "the absolute timeout is longer than ten years",
        })
    }
}

impl std::error::Error for InvalidLifetime {}
