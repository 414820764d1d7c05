//! A map in insertion order.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

pub(super) struct OrderedMap<K, V> {
    values: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    last: u64,
}

impl<K: Clone + Eq + Hash, V> OrderedMap<K, V> {
    pub(super) fn new() -> Self {
        Self { values: HashMap::new(), order: BTreeMap::new(), last: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.values.contains_key(key)
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        self.values.get_mut(key).map(|(_, value)| value)
    }

    /// The value of `key`, or else `value`, which is inserted last.
    pub(super) fn get_or_insert(&mut self, key: K, value: V) -> &mut V {
        let Self { values, order, last } = self;
        let (_, value) = values.entry(key).or_insert_with_key(|key| {
            *last += 1;
            order.insert(*last, key.clone());
            (*last, value)
        });
        value
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (place, value) = self.values.remove(key)?;
        self.order.remove(&place);
        Some(value)
    }

    /// The first entries in order.
    pub(super) fn first(&self, count: usize) -> impl Iterator<Item = (&K, &V)> {
        self.order.values().take(count).filter_map(|key| Some((key, &self.values.get(key)?.1)))
    }
}
