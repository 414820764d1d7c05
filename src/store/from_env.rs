//! A store chosen by the environment.

use std::sync::Arc;

use super::{
    MemoryStore, SessionStore,
    redis::{InvalidRedisConfig, RedisConfig, RedisStore},
};

/// The store that the environment selects: Redis if its variables are set, otherwise memory.
///
/// See [`RedisConfig::from_env`] for the variables.
///
/// # Errors
/// [`InvalidRedisConfig`] names the variable that is wrong.
///
/// ```
/// use tower_keep::{SessionLayer, store};
///
/// let layer = SessionLayer::new(store::from_env()?);
/// # let _ = layer;
/// # Ok::<(), tower_keep::store::redis::InvalidRedisConfig>(())
/// ```
pub fn from_env() -> Result<Arc<dyn SessionStore>, InvalidRedisConfig> {
    Ok(match RedisConfig::from_env()? {
        Some(config) => Arc::new(RedisStore::new(config)),
        None => Arc::new(MemoryStore::new()),
    })
}
