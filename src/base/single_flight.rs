//! Get-or-compute for concurrent callers: the first one works, the others wait for its result.
//!
//! **Invariants.** At most one computation per key runs at a time. A result is not kept after the last waiter took it:
//! keeping is a cache's business. If the worker is dropped (its task was cancelled), a waiter takes over, and where there is none
//! nothing is left behind.

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
        let cell = Some(self.lock().entry(key.clone()).or_default().clone());
        let aboard = Aboard { flights: self, key, cell };
        let cell = aboard.cell.as_ref().expect("it is let go of by dropping");
        cell.get_or_init(work).await.clone()
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

/// Somebody who works or waits, until the result is there or the caller gives up.
struct Aboard<'a, K: Hash + Eq, V> {
    flights: &'a SingleFlight<K, V>,
    key: K,
    cell: Option<Arc<OnceCell<V>>>,
}

impl<K: Hash + Eq, V> Drop for Aboard<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let Some(cell) = self.cell.take() else { return };
        // Only our own flight is removed: a later one under the same key belongs to others. One without a result goes with
        // the last who let go of it, which all do under the lock: the table and we have it.
        let is_ours = flights.get(&self.key).is_some_and(|current| Arc::ptr_eq(current, &cell));
        if is_ours && (cell.initialized() || Arc::strong_count(&cell) == 2) {
            flights.remove(&self.key);
        }
        drop(cell);
    }
}
