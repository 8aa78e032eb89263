//! Get-or-compute for concurrent callers: the first one works, the others wait for its result.
//!
//! **Invariants.** At most one computation per key runs at a time. A result is not kept after the last waiter took it:
//! keeping is a cache's business. If the worker is dropped (its task was cancelled), a waiter takes over.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::base::sync::{Mutex, MutexGuard};

/// Shares one computation per key among all who ask while it runs.
#[derive(Debug)]
pub struct SingleFlight<K, V> {
    flights: Mutex<HashMap<K, Arc<OnceCell<V>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { flights: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SingleFlight<K, V> {
    /// Runs `work` unless the same key is under way, in which case that result is awaited. `V` carries errors too:
    /// everybody who waited sees the same one.
    pub async fn run<F: Future<Output = V>>(&self, key: K, work: impl FnOnce() -> F) -> V {
        let cell = self.lock().entry(key.clone()).or_default().clone();
        let value = cell.get_or_init(work).await.clone();
        let mut flights = self.lock();
        // Only our own flight is removed: a later one under the same key belongs to others.
        if flights.get(&key).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            flights.remove(&key);
        }
        value
    }
}

impl<K, V> SingleFlight<K, V> {
    /// How many are under way.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<OnceCell<V>>>> {
        self.flights.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
