//! What a request has changed and the store does not have yet.

use std::sync::Arc;

use crate::{
    lifetime::Lifetime,
    record::{Data, Json, Record},
    time::Timestamp,
};

/// The unsaved changes of a request. A save applies them to the record that the store holds at that moment.
///
/// Each change has the generation in which it was made. A write carries the generation in which it was planned, so changes that
/// are made while it is under way stay unsaved when it succeeds.
#[derive(Default)]
pub(super) struct Changes {
    generation: u64,
    action: Option<Change<Action>>,
    /// Nothing of the previous session is kept: it was another user's.
    discard_previous: Option<Change<()>>,
    cleared: Option<Change<()>>,
    values: Vec<Entry<Json>>,
    login: Option<Change<Arc<str>>>,
    lifetime: Option<Box<Change<Lifetime>>>,
    metadata: Vec<Entry<Arc<str>>>,
}

/// What to do with the stored session, apart from changing its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Rotate because the token is old. The previous token is accepted until the client uses the new one, and for the grace window from
    /// then on.
    Renew,
    /// The client uses the current token for the first time.
    Confirm,
    /// Rotate. The previous token is not accepted any more.
    Rotate,
    /// End the session. Later changes belong to a new session.
    Destroy,
}

/// What a key is set to. `None` removes it.
type Entry<T> = Change<(Arc<str>, Option<T>)>;

/// A change, and the generation in which it was made.
#[derive(Clone, Copy)]
struct Change<T> {
    what: T,
    generation: u64,
}

impl Changes {
    /// Changes whenever anything changes.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn action(&self) -> Option<Action> {
        self.action.map(|change| change.what)
    }

    pub(super) fn set_action(&mut self, action: Option<Action>) {
        self.generation += 1;
        self.action = action.map(|what| Change { what, generation: self.generation });
    }

    /// What is due by itself. It is not a change by the handler.
    pub(super) fn set_due(&mut self, action: Action) {
        self.action = Some(Change { what: action, generation: self.generation });
    }

    pub(super) fn drop_action(&mut self) {
        self.action = None;
    }

    /// The user who logs in.
    pub(super) fn login(&self) -> Option<&Arc<str>> {
        self.login.as_ref().map(|login| &login.what)
    }

    pub(super) fn set_login(&mut self, user: Arc<str>) {
        self.generation += 1;
        self.login = Some(Change { what: user, generation: self.generation });
    }

    pub(super) fn discards_previous(&self) -> bool {
        self.discard_previous.is_some()
    }

    /// Forgets all changes but the lifetime: another user logs in. `previous` says whether there is a stored session to discard.
    pub(super) fn discard(&mut self, previous: bool) {
        self.generation += 1;
        let generation = self.generation;
        let discard_previous = previous.then_some(Change { what: (), generation });
        let lifetime = self.lifetime.take().map(|change| Box::new(Change { generation, ..*change }));
        *self = Self { generation, action: self.action, discard_previous, lifetime, ..Self::default() };
    }

    /// Forgets all changes.
    pub(super) fn reset(&mut self) {
        *self = Self { generation: self.generation, ..Self::default() };
    }

    /// The changes up to `generation` are in the store.
    pub(super) fn saved(&mut self, generation: u64) {
        self.action.take_if(|change| change.generation <= generation);
        self.discard_previous.take_if(|change| change.generation <= generation);
        self.cleared.take_if(|change| change.generation <= generation);
        self.values.retain(|change| change.generation > generation);
        self.login.take_if(|change| change.generation <= generation);
        self.lifetime.take_if(|change| change.generation <= generation);
        self.metadata.retain(|change| change.generation > generation);
    }

    /// Whether the content of the session stays as it is stored.
    pub(super) fn is_empty(&self) -> bool {
        self.cleared.is_none()
            && self.values.is_empty()
            && self.login.is_none()
            && self.lifetime.is_none()
            && self.metadata.is_empty()
    }

    /// Whether the changes create a session where there is none.
    pub(super) fn creates(&self) -> bool {
        self.login.is_some() || self.values.iter().any(|change| change.what.1.is_some())
    }

    pub(super) fn is_cleared(&self) -> bool {
        self.cleared.is_some()
    }

    /// What `key` is set to, if it has changed.
    pub(super) fn value(&self, key: &str) -> Option<Option<&Json>> {
        self.values.iter().find(|change| *change.what.0 == *key).map(|change| change.what.1.as_ref())
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Option<Json>)> {
        self.values.iter_mut().map(|change| (&change.what.0, &mut change.what.1))
    }

    /// Sets or removes a value. With `is_stored`, that is what the store has.
    pub(super) fn set(&mut self, key: &str, stored_key: Option<&Arc<str>>, value: Option<Json>, is_stored: bool) {
        self.generation += 1;
        let generation = self.generation;
        match self.values.iter().position(|change| *change.what.0 == *key) {
            Some(place) if is_stored => drop(self.values.swap_remove(place)),
            Some(place) => {
                let change = &mut self.values[place];
                (change.what.1, change.generation) = (value, generation);
            }
            None => {
                let key = stored_key.cloned().unwrap_or_else(|| Arc::from(key));
                self.values.push(Change { what: (key, value), generation });
            }
        }
    }

    /// Removes all values. With `stored`, the store may have some.
    pub(super) fn clear(&mut self, stored: bool) {
        if self.values.is_empty() && (self.cleared.is_some() || !stored) {
            return;
        }
        self.generation += 1;
        self.values.clear();
        self.cleared = stored.then_some(Change { what: (), generation: self.generation });
    }

    pub(super) fn sets_lifetime(&self) -> bool {
        self.lifetime.is_some()
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Lifetime) {
        self.generation += 1;
        self.lifetime = Some(Box::new(Change { what: lifetime, generation: self.generation }));
    }

    pub(super) fn set_metadata(&mut self, name: &str, value: Option<Arc<str>>) {
        self.generation += 1;
        self.metadata.retain(|change| *change.what.0 != *name);
        self.metadata.push(Change { what: (name.into(), value), generation: self.generation });
    }

    /// Applies the changes to `record`.
    pub(super) fn apply(&self, record: &mut Record, now: Timestamp) {
        record.written_at = now;
        if let Some(lifetime) = self.lifetime.as_ref().map(|change| &change.what) {
            record.set_lifetime(lifetime);
        }
        if let Some(user) = self.login() {
            record.user = Some(user.clone());
            record.created_at = now;
        }
        for (name, value) in self.metadata.iter().map(|change| &change.what) {
            Arc::make_mut(&mut record.metadata).set_field(name, value.clone());
        }
        self.apply_to_values(&mut record.data);
    }

    /// Applies the changes of values to `data`.
    pub(super) fn apply_to_values(&self, data: &mut Data) {
        if self.cleared.is_some() {
            data.clear();
        }
        for (key, value) in self.values.iter().map(|change| &change.what) {
            match value {
                Some(value) => drop(data.insert(key.clone(), value.clone())),
                None => drop(data.remove(key)),
            }
        }
    }
}
