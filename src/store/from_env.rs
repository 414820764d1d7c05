//! A store chosen by the environment.

use std::sync::Arc;

use super::{
    MemoryStore, SessionStore,
    redis::{InvalidRedisConfig, RedisConfig, RedisStore},
};

/// The store that the environment selects: Redis if its variables are set, otherwise memory.
///
/// See [`RedisConfig::from_env`] for the variables. The choice is logged. To fail without Redis, use [`RedisStore::from_env`].
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
        Some(config) => {
            tracing::info!(server = %config.server(), "sessions are in Redis, as the environment says");
            Arc::new(RedisStore::new(config))
        }
        None => {
            tracing::info!("sessions are in the memory of this process: no variable of Redis is set");
            Arc::new(MemoryStore::new())
        }
    })
}
