//! What is under way: who comes first claims it, and all who come while it is under way wait for what the claim lands with.
//!
//! **Invariants.** One key has one claim at a time, and none where the keeper of what landed has it: it is asked again under
//! the lock that a claim leaves by, and a claim is kept before it leaves. However a claim ends, it leaves the table.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::base::sync::{Mutex, MutexGuard};

/// All claims.
#[derive(Debug)]
pub struct Flights<K, V> {
    under_way: Mutex<HashMap<K, Waiting<V>>>,
}

/// What somebody who asked has.
#[derive(Debug)]
pub enum Joined<K: Hash + Eq, V> {
    /// It is kept.
    Ready(V),
    /// It is under way.
    Waiting(Waiting<V>),
    /// It is up to the caller.
    Claimed(Claim<K, V>, Waiting<V>),
}

impl<K: Hash + Eq + Copy, V: Clone> Flights<K, V> {
    /// Nothing is under way.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::new(HashMap::new()) })
    }

    /// Whether it is under way now.
    pub fn has(&self, key: &K) -> bool {
        self.under_way().contains_key(key)
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.under_way().len()
    }

    /// Waits for what is under way, or claims it, unless it is `kept` now.
    pub fn join(self: &Arc<Self>, key: K, kept: impl FnOnce() -> Option<V>) -> Joined<K, V> {
        let mut under_way = self.under_way();
        if let Some(waiting) = under_way.get(&key) {
            return Joined::Waiting(waiting.clone());
        }
        // A claim is kept before it leaves the table, so a look under the lock cannot miss both.
        if let Some(value) = kept() {
            return Joined::Ready(value);
        }
        let (told, waiting) = watch::channel(None);
        let waiting = Waiting(waiting);
        under_way.insert(key, waiting.clone());
        Joined::Claimed(Claim { flights: self.clone(), key, told: Some(told) }, waiting)
    }
}

impl<K, V> Flights<K, V> {
    fn under_way(&self) -> MutexGuard<'_, HashMap<K, Waiting<V>>> {
        self.under_way.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The right and the duty to get something. Dropping it tells those who wait that nothing comes.
#[derive(Debug)]
pub struct Claim<K: Hash + Eq, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
    /// Until it landed.
    told: Option<watch::Sender<Option<V>>>,
}

impl<K: Hash + Eq, V> Claim<K, V> {
    /// Keeps the value by `keep`, leaves the table, and tells those who wait, in this order.
    pub fn land(mut self, value: V, keep: impl FnOnce(&V)) {
        keep(&value);
        if let Some(told) = self.leave() {
            // Nobody may be waiting any more; it is kept all the same.
            told.send_replace(Some(value));
        }
    }

    fn leave(&mut self) -> Option<watch::Sender<Option<V>>> {
        let told = self.told.take()?;
        self.flights.under_way().remove(&self.key);
        Some(told)
    }
}

impl<K: Hash + Eq, V> Drop for Claim<K, V> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Waits for what is under way. Giving up harms nobody.
#[derive(Debug)]
pub struct Waiting<V>(watch::Receiver<Option<V>>);

impl<V> Clone for Waiting<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Clone> Waiting<V> {
    /// What it landed with; `None` when the claim was dropped.
    pub async fn landed(mut self) -> Option<V> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}
