//! What is done while the main store is away, and what that promises.

use std::time::Duration;

/// What a [`Fallback`](super::Fallback) does while its main store is away. Each mode is a promise:
///
/// | | `Reject` | `ReadStale` | `Memory`, `Drop` | `Memory`, `Merge` |
/// |---|---|---|---|---|
/// | a session that this process saw lately | outage: 503 | is read, as it was then | goes on | goes on |
/// | one that it did not | outage: 503 | outage: 503 | unknown: logged out | unknown: logged out |
/// | a change, a login, a new session | fails: 503 | fails: 503 | is acknowledged | is acknowledged |
/// | a logout, a revocation | fails: 503 | fails: 503, and this process serves the session no more until the main store is back | is acknowledged, and counts in this process at once | the same |
/// | a single use | fails: 503 | fails: 503 | once in each process | once in each process |
/// | what the main store is told on its return | nothing | nothing | what ended | what ended; then what began, changed and was used, in that order |
/// | what can be lost on its return | nothing | nothing | changes and sessions of the outage: the clients of such sessions are logged out. The idle timeout of the others ran on | changes of a session that was changed elsewhere too; sessions beyond the [`Limits`](crate::Limits) |
/// | what is lost if the process ends before | nothing | nothing | changes, sessions, and what ended: it is alive again | the same |
///
/// Of [values](crate::KeyValue) nothing is remembered from before the outage: nobody can tell what other processes do with them.
///
/// | | `Reject`, `ReadStale` | `Memory`, `Drop` | `Memory`, `Merge` |
/// |---|---|---|---|
/// | a value that this process has not written in the outage | outage | is not there; a counter begins at zero | the same |
/// | `set`, `del`, `expire`, `incr` | fail | are acknowledged, and count in this process | the same |
/// | what the main store is told on its return | nothing | nothing | for each key that was written what has become of it: it is set, with the time that it has left, or deleted, also if it has expired. To one that was only added to, the difference is added, and its new time to live is set if it was given one |
/// | what can be lost on its return | nothing | whatever was written | a difference whose answer is lost, for it is told once, or that cannot be added; what the main store, being there, does not take three times; what others wrote under the same keys meanwhile |
/// | what is lost if the process ends before | nothing | whatever was written | the same |
///
/// Values are told after all sessions, and before anybody asks the main store again. One that it refuses for good (a missing permission)
/// is given up, and [counted](super::FallbackStats::dropped). So is one that it fails to take three times while it is
/// [there](super::Fallback): it has no room, or the value is too large for it or for its deadline. In between it is told everything else, and
/// [looked at](super::Fallback::probe_interval) again. So values do not keep the sessions from their store for long; sessions that it does not
/// take are told again until it does. To add to a number is done once: if the main store was asked as it went away and its answer is lost, it is done
/// nowhere else, and its caller is told [so](crate::KeyValueError::InDoubt).
///
/// What holds of sessions in every mode:
/// * **A change that the main store has confirmed is never lost.** A write of the outage names the version it was made to, so the main
///   store takes it only when it holds that version still; if it holds a newer one, that stays, and the write of the outage is dropped
///   and [counted](super::FallbackStats::dropped).
/// * **What the main store knows as ended stays ended.** It is never created again; nor is what it has lost, if it comes back
///   empty: only sessions that began in the outage are created.
/// * **What ended in an outage, and was acknowledged, has ended**: at once for this process, and for all when the main store is
///   back; it is told so before anything else, and asked by nobody before it knows all of it. It counts more than what others wrote
///   meanwhile.
/// * **A token that was changed in an outage does not come back.** If the change is lost, the session ends: the main store would
///   take the old token for good, and the new one for a thief's. Renewals that can wait
///   ([`rotate_every`](crate::SessionLayer::rotate_every)) wait for the main store.
///
/// What no process can know alone, and no mode promises: while the main store is away, instances do not see what the others do. A
/// session revoked by one may be served by another that saw it lately, until the main store is back. When a revocation of all of a user's
/// sessions is told to it, those end that it holds then, whenever they began; one that another instance holds back still, and
/// creates later, does not.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{MemoryStore, SessionLayer, store::{Fallback, FallbackMode, OnRecovery}};
///
/// // Decided when the program starts:
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
    /// What the main store cannot do fails, and is answered 503, or as [`OnOutage`](crate::OnOutage) says: at once when it is known
    /// to be away. Nothing is kept. The default.
    #[default]
    Reject,
    /// Sessions that were seen lately can be read. Nothing is acknowledged that the main store has not confirmed.
    ReadStale {
        /// For how long after it was last seen. A session that another instance ends in an outage of this one's connection is served
        /// for so long; some minutes are usual.
        max_age: Duration,
    },
    /// Everything goes on in the memory of this process. For services where staying available counts for more than what may be lost;
    /// a user should reach the same instance all the while.
    Memory {
        /// What becomes of it when the main store is back.
        on_recovery: OnRecovery,
    },
}

/// What becomes of what happened in memory when the main store is back. What ended is told to it in any case.
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
    /// New sessions and changes are forgotten; sessions from before go on as the main store has them. The default: nobody meets
    /// what an outage has made.
    #[default]
    Drop,
    /// New sessions are created in the main store, within the [`Limits`](crate::Limits), and changes are made there, unless the session was
    /// changed or ended there meanwhile: that stays.
    Merge,
}
