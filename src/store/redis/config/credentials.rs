//! Credentials that change: asked for at each new connection.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc};

use redis::{ErrorKind, RedisConnectionInfo, RedisError};

/// The credentials of one connection: see [`RedisConfig::credentials`](super::RedisConfig::credentials). `Debug` does not show the
/// password.
///
/// ```
/// use tower_keep::store::redis::RedisCredentials;
///
/// let password = RedisCredentials::password("s3cret");
/// let user = RedisCredentials::user("app", "s3cret");
/// assert!(!format!("{user:?}").contains("s3cret"));
/// # let _ = password;
/// ```
#[derive(Clone)]
pub struct RedisCredentials {
    user: Option<String>,
    password: String,
}

impl RedisCredentials {
    /// The password of the default user.
    pub fn password(password: impl Into<String>) -> Self {
        Self { user: None, password: password.into() }
    }

    /// The name and the password of a user.
    pub fn user(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(name.into()), password: password.into() }
    }
}

impl fmt::Debug for RedisCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

type Answer = Result<RedisCredentials, Box<dyn Error + Send + Sync>>;

/// What the application passes to [`RedisConfig::credentials`](super::RedisConfig::credentials).
#[derive(Clone)]
pub(in crate::store::redis) struct Provider(
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>,
);

impl Provider {
    pub(super) fn new<F>(provide: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provide())))
    }

    /// `login` with the credentials of now.
    pub(in crate::store::redis) async fn fill(
        &self,
        login: &RedisConnectionInfo,
    ) -> Result<RedisConnectionInfo, RedisError> {
        let RedisCredentials { user, password } = (self.0)().await.map_err(|error| {
            RedisError::from((ErrorKind::AuthenticationFailed, "no credentials for Redis", error.to_string()))
        })?;
        let login = login.clone().set_password(password);
        Ok(match user {
            Some(user) => login.set_username(user),
            None => login,
        })
    }
}
