//! Where sessions are kept: the [contract](SessionStore) of a store, and the stores of this crate.

use std::time::Duration;

pub use crate::record::{Codec, InvalidRecord, Record, Version};

mod all;
mod error;
mod ext;
mod fallback;
#[cfg(feature = "redis")]
mod from_env;
mod future;
mod glob;
mod guard;
pub(crate) mod health;
mod memory;
mod migrating;
mod observation;
pub(crate) mod observed;
mod operation;
#[cfg(feature = "redis")]
pub mod redis;
mod session_store;
mod span;
#[cfg(feature = "testing")]
pub mod testing;
mod types;
mod values;
mod wrapper;

#[cfg(feature = "redis")]
pub use self::from_env::from_env;
pub use self::{
    error::{Ability, StoreError},
    ext::StoreExt,
    fallback::{Fallback, FallbackMode, FallbackStats, OnRecovery},
    future::StoreFuture,
    guard::Guard,
    health::Health,
    memory::MemoryStore,
    migrating::MigratingStore,
    operation::Operation,
    session_store::{EventStore, ScanStore, SessionStore, UserStore},
    types::{Created, Cursor, End, EndOutcome, Entry, Found, Loaded, Outcome, Page, Published},
    values::{Added, KeyPage, ValueStats, ValueStore},
    wrapper::StoreWrapper,
};

/// The shortest time that tombstones are kept: no command is delayed for longer.
const MIN_TOMBSTONE_TTL: Duration = Duration::from_secs(60);
