//! The parts of a store.

use super::{RedisConfig, local_tombstones::LocalTombstones, route::Route, script::Scripts};

pub(super) struct Inner {
    pub(super) route: Route,
    /// The connection for writes that wait for replicas.
    pub(super) replica_wait: Option<Route>,
    pub(super) config: RedisConfig,
    pub(super) scripts: Scripts,
    pub(super) local_tombstones: LocalTombstones,
}
