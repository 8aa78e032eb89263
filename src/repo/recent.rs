//! What was read lately, kept within a limit of bytes: two generations, the older one dropped when the newer is full.
//!
//! Blocks have a cache of their own (`cache`); this one is for manifests and pages, which every read passes through.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

/// A small cache. Each generation holds at most half of the limit.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    half_bytes: usize,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    young_bytes: usize,
    young: HashMap<K, (Arc<V>, usize)>,
    old: HashMap<K, (Arc<V>, usize)>,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            half_bytes: limit_bytes / 2,
            state: Mutex::new(State { young_bytes: 0, young: HashMap::new(), old: HashMap::new() }),
        }
    }

    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut state = self.lock();
        if let Some((value, _)) = state.young.get(key) {
            return Some(value.clone());
        }
        let (value, weight) = state.old.remove(key)?;
        self.insert(&mut state, key.clone(), value.clone(), weight);
        Some(value)
    }

    /// Keeps a value that takes about `weight` bytes; one beyond half of the limit is not kept.
    pub fn put(&self, key: K, value: Arc<V>, weight: usize) {
        self.insert(&mut self.lock(), key, value, weight);
    }

    fn insert(&self, state: &mut State<K, V>, key: K, value: Arc<V>, weight: usize) {
        if weight > self.half_bytes {
            return;
        }
        if state.young_bytes + weight > self.half_bytes {
            state.old = std::mem::take(&mut state.young);
            state.young_bytes = 0;
        }
        if let Some((_, before)) = state.young.insert(key, (value, weight)) {
            state.young_bytes -= before;
        }
        state.young_bytes += weight;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_limit_holds() {
        let recent = Recent::new(20);
        for key in 0..100 {
            recent.put(key, Arc::new(key), 2);
            assert!(recent.get(&0).is_some(), "0 is asked for all the time");
        }
        assert!(recent.get(&50).is_none());
        let state = recent.lock();
        assert!(state.young.len() + state.old.len() <= 10);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let recent = Recent::new(20);
        recent.put(1, Arc::new(()), 11);
        assert!(recent.get(&1).is_none());
    }
}
