//! The modes of a fallback, and their guarantees.

use std::time::Duration;

/// What a [`Fallback`](super::Fallback) does while its main store is unavailable, and what it guarantees.
///
/// | during the outage | `Reject` | `ReadStale` | `Memory`, `Drop` | `Memory`, `Merge` |
/// |---|---|---|---|---|
/// | a recently used session | 503 | can be read | works | works |
/// | another session | 503 | 503 | unknown: logged out | unknown: logged out |
/// | a change, a login, a new session | 503 | 503 | works | works |
/// | a logout, a revocation | 503 | 503; this process no longer serves the session | takes effect in this process | takes effect in this process |
/// | a single use | 503 | 503 | once per process | once per process |
/// | **after the outage** | | | | |
/// | replayed to the main store | nothing | nothing | ends | ends, then new and changed sessions |
/// | can be lost | nothing | nothing | new sessions and changes | changes of a session that another process changed too; sessions beyond the [`Limits`](crate::Limits) |
/// | lost if the process ends before the replay | nothing | nothing | everything from the outage; ended sessions are alive again | everything from the outage; ended sessions are alive again |
///
/// [Values](crate::KeyValue) from before the outage are unknown, because other processes may change them.
///
/// | values during the outage | `Reject`, `ReadStale` | `Memory`, `Drop` | `Memory`, `Merge` |
/// |---|---|---|---|
/// | a value that this process has not written in the outage | 503 | does not exist; a counter starts at zero | does not exist; a counter starts at zero |
/// | `set`, `del`, `expire`, `incr` | 503 | work in this process | work in this process |
/// | replayed to the main store | nothing | nothing | the current value of each written key, or its deletion; for a key that was only incremented, the difference |
/// | can be lost | nothing | everything | an increment whose reply is lost; a value that the main store refuses three times; what other processes wrote to the same key |
///
/// Values are replayed after all sessions. A value that the main store refuses permanently, or three times, is dropped and
/// [counted](super::FallbackStats::dropped). Increments are applied at most once: if the reply is lost, the increment is not retried and the
/// caller gets [`InDoubt`](crate::KeyValueError::InDoubt).
///
/// In every mode:
/// * **A change that the main store has confirmed is never lost.** A replayed write names the version that it changes. If the main store has a
///   newer version, that version stays, and the replayed write is dropped and counted.
/// * **A session that the main store knows as ended stays ended.** Only sessions that were created during the outage are created in the main
///   store, even if it comes back empty.
/// * **A session that ended during the outage, with a confirmed end, stays ended**: immediately in this process, and everywhere before the main
///   store serves again. The end wins over changes by other processes.
/// * **A token that was rotated away during the outage is not accepted again.** If the rotation cannot be replayed, the session ends. Rotations
///   by [`rotate_every`](crate::SessionLayer::rotate_every) wait until the main store has recovered.
///
/// No mode can guarantee this: during an outage, processes do not see each other's changes. A session that one process revokes may be
/// served by another until the main store recovers. When a revocation of all sessions of a user is replayed, it ends those that the main store
/// has at that time. A session that another process creates there later stays.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{MemoryStore, SessionLayer, store::{Fallback, FallbackMode, OnRecovery}};
///
/// // Chosen when the program starts:
/// let mode = match "merge" {
///     "reject" => FallbackMode::Reject,
///     "stale" => FallbackMode::ReadStale { max_age: Duration::from_secs(300) },
///     "drop" => FallbackMode::Memory { on_recovery: OnRecovery::Drop },
///     _ => FallbackMode::Memory { on_recovery: OnRecovery::Merge },
/// };
/// let layer = SessionLayer::new(Fallback::new(MemoryStore::new(), mode));
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FallbackMode {
    /// Operations fail, immediately when the outage is known: 503, or as [`OnOutage`](crate::OnOutage) says. The default.
    #[default]
    Reject,
    /// Recently used sessions can be read. Writes fail.
    ReadStale {
        /// How long after its last use a session can be read. A session that another process ends is served for that long. Some minutes
        /// are usual.
        max_age: Duration,
    },
    /// Sessions are served from the memory of this process. For services that value availability more than what can be lost. Route each
    /// user to one instance.
    Memory {
        /// What happens to new sessions and changes after the outage.
        on_recovery: OnRecovery,
    },
}

/// What happens to new sessions and changes when the main store has recovered. Ended sessions are always replayed.
///
/// ```
/// use tower_keep::{MemoryStore, store::{Fallback, FallbackMode, OnRecovery}};
///
/// let store = Fallback::new(MemoryStore::new(), FallbackMode::Memory { on_recovery: OnRecovery::Merge });
/// # let _ = store;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnRecovery {
    /// They are dropped. Older sessions are as the main store has them. The default.
    #[default]
    Drop,
    /// They are written to the main store, within the [`Limits`](crate::Limits). If another process changed or ended the session there, that
    /// stays.
    Merge,
}
