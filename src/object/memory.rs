//! An object store in memory, for tests: the reference that the other stores are held against.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::keys::{check_folder, check_key, check_limit, check_prefix, check_range, invalid};
use super::{ObjectEntry, ObjectError, ObjectPage, ObjectStore, ObjectVersion, PutMode, PutReceipt};
use crate::base::{Clock, SystemClock};

/// An object store in memory. Clones share their objects, so that a test can look from outside or "restart" a user of it.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    puts: u64,
}

#[derive(Debug, Clone)]
struct Stored {
    body: Bytes,
    modified_us: i64,
    version: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store that stamps objects with the host's time.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock::default()))
    }

    /// An empty store that stamps objects with the time of `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), clock }
    }

    /// Replaces the bytes of an object behind everybody's back, as a rotten disk would: time and version stay.
    /// `false` when there is no such object.
    pub fn tamper(&self, key: &str, body: Bytes) -> bool {
        match self.state().objects.get_mut(key) {
            Some(stored) => {
                stored.body = body;
                true
            }
            None => false,
        }
    }

    /// Stored bytes of all objects together.
    pub fn total_bytes(&self) -> u64 {
        self.state().objects.values().map(|stored| stored.body.len() as u64).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    fn entry(&self, key: &str) -> ObjectEntry {
        ObjectEntry {
            key: key.to_owned(),
            size_bytes: self.body.len() as u64,
            modified_us: self.modified_us,
            version: Some(version_of(self.version)),
        }
    }
}

fn version_of(count: u64) -> ObjectVersion {
    ObjectVersion(format!("m{count}"))
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn location(&self) -> String {
        "memory:".to_owned()
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        check_key(key)?;
        let state = self.state();
        let stored = state.objects.get(key).ok_or_else(|| ObjectError::NotFound { key: key.to_owned() })?;
        let Some(range) = range else { return Ok(stored.body.clone()) };
        check_range(key, &range)?;
        if range.end > stored.body.len() as u64 {
            return Err(ObjectError::ShortRange { key: key.to_owned(), start: range.start, end: range.end });
        }
        // Both ends lie within a body that is in memory.
        Ok(stored.body.slice(range.start as usize..range.end as usize))
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        check_key(key)?;
        let modified_us = self.clock.wall_us();
        let mut state = self.state();
        let present = state.objects.get(key).map(|stored| version_of(stored.version));
        let is_allowed = match &mode {
            PutMode::Replace => true,
            PutMode::Create => present.is_none(),
            PutMode::IfMatch(version) => present.as_ref() == Some(version),
        };
        if !is_allowed {
            return Err(ObjectError::Conflict { key: key.to_owned() });
        }
        state.puts += 1;
        let version = state.puts;
        // A copy, because the room of a pack's body may be many times its bytes: with 10,000 of them kept as they came
        // the address space of a process is too large for a fork.
        let body = Bytes::copy_from_slice(&body);
        state.objects.insert(key.to_owned(), Stored { body, modified_us, version });
        Ok(PutReceipt { version: version_of(version), is_checked_by_store: true })
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        check_key(key)?;
        let state = self.state();
        let stored = state.objects.get(key).ok_or_else(|| ObjectError::NotFound { key: key.to_owned() })?;
        Ok(stored.entry(key))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        check_prefix(prefix)?;
        check_limit(prefix, limit)?;
        let state = self.state();
        let mut page = ObjectPage::default();
        for (key, stored) in state.objects.range(prefix.to_owned()..) {
            if !key.starts_with(prefix) {
                break;
            }
            if start_after.is_some_and(|after| key.as_str() <= after) {
                continue;
            }
            if page.objects.len() == limit {
                page.has_more = true;
                break;
            }
            page.objects.push(stored.entry(key));
        }
        Ok(page)
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        check_folder(prefix)?;
        let state = self.state();
        let mut folders: Vec<String> = Vec::new();
        for key in state.objects.range(prefix.to_owned()..).map(|(key, _)| key) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if let Some((folder, _)) = rest.split_once('/') {
                folders.push(folder.to_owned());
            }
        }
        // Keys are in order of `folder/`, names are to be in order of `folder`: `a.b/` comes before `a/`.
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        self.state().objects.remove(key);
        Ok(())
    }

    async fn put_with_wrong_checksum(&self, key: &str, _body: Bytes) -> Result<(), ObjectError> {
        check_key(key)?;
        Err(invalid(key, "the checksum does not fit the body"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[tokio::test]
    async fn memory_keeps_every_promise() {
        let store = MemoryStore::new();
        conformance::all(&store, &conformance::EVERYTHING).await;
        conformance::strict(&store).await;
    }
}
