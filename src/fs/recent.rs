//! A small table of what was used lately, bounded by weight: opened manifests and listed directories.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

/// Keeps what was used last, up to a total weight. Meant for some hundred entries: making room looks at each.
#[derive(Debug)]
pub struct Recent<K, V> {
    limit: usize,
    kept: Mutex<Kept<K, V>>,
}

#[derive(Debug)]
struct Kept<K, V> {
    entries: HashMap<K, Entry<V>>,
    weight: usize,
    /// Counts uses; the entry with the smallest is the one not used for longest.
    uses: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    /// Keeps at most `limit` in weight.
    pub fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::new(Kept { entries: HashMap::new(), weight: 0, uses: 0 }) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The value, if it is still there.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut kept = self.kept();
        kept.uses += 1;
        let now = kept.uses;
        let entry = kept.entries.get_mut(key)?;
        entry.used = now;
        Some(entry.value.clone())
    }

    /// Keeps a value, unless it alone weighs more than the limit.
    pub fn put(&self, key: K, value: V, weight: usize) {
        if weight > self.limit {
            return;
        }
        let mut gone = Vec::new();
        let mut kept = self.kept();
        if let Some(previous) = kept.entries.remove(&key) {
            kept.weight -= previous.weight;
            gone.push(previous);
        }
        while kept.weight + weight > self.limit {
            let Some(oldest) = kept.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone()) else { break };
            if let Some(entry) = kept.entries.remove(&oldest) {
                kept.weight -= entry.weight;
                gone.push(entry);
            }
        }
        kept.uses += 1;
        let used = kept.uses;
        kept.weight += weight;
        kept.entries.insert(key, Entry { value, weight, used });
        drop(kept);
        // Large listings are freed without the lock.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let recent = Recent::new(10);
        recent.put("a", 1, 4);
        recent.put("b", 2, 4);
        recent.get(&"a");
        recent.put("c", 3, 5);
        assert_eq!((recent.get(&"a"), recent.get(&"b"), recent.get(&"c")), (Some(1), None, Some(3)));
    }

    #[test]
    fn what_is_too_heavy_is_not_kept() {
        let recent = Recent::new(10);
        recent.put("a", 1, 4);
        recent.put("b", 2, 11);
        assert_eq!((recent.get(&"a"), recent.get(&"b")), (Some(1), None));
    }
}
