//! What all sessions of a layer have in common.

use std::{fmt, sync::Arc};

use crate::{credential::Credentials, lifetime::Lifetime, observe::Counters, store::SessionStore, time::Clock};

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) credentials: Credentials,
    pub(crate) lifetime: Lifetime,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_size: usize,
    pub(crate) counters: Arc<Counters>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("store", &self.store.name())
            .field("credentials", &self.credentials)
            .field("lifetime", &self.lifetime)
            .field("max_size", &self.max_size)
            .finish_non_exhaustive()
    }
}
