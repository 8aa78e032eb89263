//! What is open, by the numbers that the kernel is given.
//!
//! **Invariants.** A number is given once. There are never more than the limit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::sync::{Mutex, MutexGuard};
use crate::fs::error::FsError;

/// Handles by number. A number is given once.
#[derive(Debug)]
pub struct HandleTable<T> {
    limit: usize,
    open: Mutex<Open<T>>,
}

#[derive(Debug)]
struct Open<T> {
    handles: HashMap<u64, Arc<T>>,
    next: u64,
}

impl<T> HandleTable<T> {
    /// At most `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::new(Open { handles: HashMap::new(), next: 1 }) }
    }

    fn open(&self) -> MutexGuard<'_, Open<T>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A number for `value`; [`FsError::TooManyOpen`] at the limit.
    pub fn insert(&self, value: Arc<T>) -> Result<u64, FsError> {
        let mut open = self.open();
        if open.handles.len() >= self.limit {
            return Err(FsError::TooManyOpen);
        }
        let number = open.next;
        open.next += 1;
        open.handles.insert(number, value);
        Ok(number)
    }

    /// What is open under this number.
    pub fn get(&self, number: u64) -> Result<Arc<T>, FsError> {
        self.open().handles.get(&number).cloned().ok_or(FsError::BadHandle)
    }

    /// Releases a number; releasing it twice is fine. Returns what was open.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open().handles.remove(&number)
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open().handles.len()
    }
}
