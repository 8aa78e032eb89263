//! Get-or-compute for concurrent callers: the first one works, the others wait for its result.
//!
//! **Invariants.** At most one computation per key runs at a time. A result is not kept after the last waiter took it:
//! keeping is a cache's business. If the worker is dropped (its task was cancelled), a waiter takes over.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<OnceCell<V>>>> {
        self.flights.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn callers_at_the_same_time_share_one_computation() {
        let flights = Arc::new(SingleFlight::<u32, usize>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
                tokio::spawn(async move {
                    flights
                        .run(7, || async move {
                            let _permit = gate.acquire().await;
                            runs.fetch_add(1, Ordering::SeqCst)
                        })
                        .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for caller in callers {
            assert_eq!(caller.await.expect("no caller panics"), 0);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_worker_hands_over() {
        let flights = Arc::new(SingleFlight::<u32, u32>::default());
        let stuck = tokio::spawn({
            let flights = flights.clone();
            async move { flights.run(1, std::future::pending).await }
        });
        tokio::task::yield_now().await;
        let waiter = tokio::spawn({
            let flights = flights.clone();
            async move { flights.run(1, || async { 5 }).await }
        });
        tokio::task::yield_now().await;
        stuck.abort();
        assert_eq!(waiter.await.expect("the waiter takes over"), 5);
    }
}
