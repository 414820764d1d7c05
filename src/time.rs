//! Clocks and timestamps.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A point in time in milliseconds since the Unix epoch, like in Redis.
///
/// `Display` is RFC 3339 in UTC.
///
/// ```
/// use std::time::{Duration, SystemTime, UNIX_EPOCH};
/// use tower_keep::Timestamp;
///
/// let moment = Timestamp::from(UNIX_EPOCH + Duration::from_millis(1_500));
/// assert_eq!(moment.as_millis(), 1_500);
/// assert_eq!(moment.to_string(), "1970-01-01T00:00:01.500Z");
/// assert_eq!(SystemTime::from(moment), UNIX_EPOCH + Duration::from_millis(1_500));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// The duration since `earlier`. Zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A duration in whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis().into())
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(millis(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        UNIX_EPOCH.checked_add(Duration::from_millis(timestamp.0)).unwrap_or(UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, millis) = (self.0 / DAY, self.0 % DAY);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", millis % 1000)
    }
}

/// Milliseconds.
const DAY: u64 = 86_400_000;

/// Year, month and day of a number of days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097; // after which the calendar repeats itself
    let (mut year, mut month) = (1970 + days / DAYS_OF_400_YEARS * 400, 1);
    let mut day = days % DAYS_OF_400_YEARS;
    while day >= 365 + leap_day(year) {
        day -= 365 + leap_day(year);
        year += 1;
    }
    for length in [31, 28 + leap_day(year), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// The number of leap days of a year: 0 or 1.
fn leap_day(year: u64) -> u64 {
    (year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)).into()
}

/// The source of time: [`SystemClock`], or a [`ManualClock`] in tests.
///
/// ```
/// use tower_keep::{Clock, SystemClock};
///
/// assert!(SystemClock.now().as_millis() > 0);
/// ```
pub trait Clock: Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

/// The clock of the operating system.
///
/// ```
/// use tower_keep::{MemoryStore, SessionLayer, SystemClock};
///
/// let layer = SessionLayer::new(MemoryStore::new()).clock(SystemClock); // the default
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock for tests, which moves only on demand.
///
/// Clones share the time.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{Clock, ManualClock, MemoryStore, SessionLayer};
///
/// let clock = ManualClock::new();
/// let layer = SessionLayer::new(MemoryStore::new().clock(clock.clone())).clock(clock.clone());
/// # let _ = layer;
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().as_millis() - before.as_millis(), 60_000);
/// ```
#[derive(Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that starts at the current time.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(SystemClock.now().0)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(millis(by), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock").field(&self.now()).finish()
    }
}
