//! A wrapper that breaks an object store in named ways, for tests.
//!
//! Each [`Rule`] names an operation, which of its calls (counted among those that match), and the fault: the same test meets
//! the same fault every time. The first rule that strikes decides; later ones count on.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Capabilities, ObjectEntry, ObjectError, ObjectPage, ObjectStore, ObjectVersion, PutMode, PutReceipt};

/// A verb of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Whole or ranged.
    Get,
    /// In any mode.
    Put,
    /// Head.
    Head,
    /// One page.
    List,
    /// Folders.
    ListFolders,
    /// Delete.
    Delete,
}

/// Which of the matching calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// This one alone, counted from 1.
    Nth(u64),
    /// This one, counted from 1, and all after it.
    From(u64),
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call fails with this and does nothing.
    Fail(ObjectError),
    /// A get answers [`ObjectError::ShortRange`] of its range.
    ShortRange,
    /// A get delivers this many bytes fewer, as if all were well.
    ShortBody(usize),
    /// A get delivers one flipped bit: the lowest of the byte at this offset of what is delivered, modulo its length.
    FlipBit(usize),
    /// Nothing comes for this long, then [`ObjectError::DeadlineExceeded`].
    Hang(Duration),
    /// The call is done, and fails with this all the same.
    DoneButFails(ObjectError),
    /// A put or delete is answered well and never done.
    Dropped,
    /// A listing leaves out what was put last through this wrapper.
    OmitNewest,
    /// The caller's end: this call is not done, and it and every later one fails.
    Crash,
    /// As [`Fault::Crash`], but this call was still done.
    CrashAfter,
}

/// When what goes wrong.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The verb.
    pub operation: Operation,
    /// Only keys (or listed prefixes) that contain this.
    pub key_contains: Option<String>,
    /// Which of the calls that match.
    pub occurrence: Occurrence,
    /// The fault.
    pub fault: Fault,
}

impl Rule {
    /// `fault` at the nth call of `operation`, counted from 1.
    pub fn nth(operation: Operation, nth: u64, fault: Fault) -> Self {
        Self { operation, key_contains: None, occurrence: Occurrence::Nth(nth), fault }
    }

    /// `fault` at every call of `operation`.
    pub fn always(operation: Operation, fault: Fault) -> Self {
        Self { operation, key_contains: None, occurrence: Occurrence::From(1), fault }
    }

    /// Only for keys that contain `part`.
    pub fn on_key(mut self, part: &str) -> Self {
        self.key_contains = Some(part.to_owned());
        self
    }
}

/// An object store that does what the one inside does, except where a rule says otherwise.
/// Clones share rules, counts and the crash.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
    is_crashed: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(Rule, u64)>,
    calls: Vec<(Operation, String)>,
    newest: Option<String>,
}

impl FaultyStore {
    /// Without rules everything passes.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default(), is_crashed: Arc::default() }
    }

    /// Adds a rule; its count begins now.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push((rule, 0));
    }

    /// Takes all rules away and, if it crashed, the crash.
    pub fn heal(&self) {
        self.state().rules.clear();
        self.is_crashed.store(false, Ordering::SeqCst);
    }

    /// Whether a crash has struck.
    pub fn is_crashed(&self) -> bool {
        self.is_crashed.load(Ordering::SeqCst)
    }

    /// Every call so far, in order: the verb and its key or prefix.
    pub fn calls(&self) -> Vec<(Operation, String)> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, and settles those faults that need nothing but an error.
    async fn meet(&self, operation: Operation, key: &str) -> Result<Option<Fault>, ObjectError> {
        let fault = self.note(operation, key);
        if self.is_crashed() {
            return Err(crashed(key));
        }
        match fault {
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Hang(limit)) => {
                tokio::time::sleep(limit).await;
                Err(ObjectError::DeadlineExceeded { key: key.to_owned(), limit })
            }
            Some(Fault::Crash) => {
                self.is_crashed.store(true, Ordering::SeqCst);
                Err(crashed(key))
            }
            fault => Ok(fault),
        }
    }

    fn note(&self, operation: Operation, key: &str) -> Option<Fault> {
        let mut state = self.state();
        state.calls.push((operation, key.to_owned()));
        let mut struck = None;
        for (rule, count) in &mut state.rules {
            if rule.operation != operation || rule.key_contains.as_ref().is_some_and(|part| !key.contains(part.as_str())) {
                continue;
            }
            *count += 1;
            let strikes = match rule.occurrence {
                Occurrence::Nth(nth) => *count == nth,
                Occurrence::From(first) => *count >= first,
            };
            if strikes && struck.is_none() {
                struck = Some(rule.fault.clone());
            }
        }
        struck
    }

    /// Faults that let the call be done and then hide its answer.
    fn answer<T>(&self, fault: Option<Fault>, key: &str, answer: Result<T, ObjectError>) -> Result<T, ObjectError> {
        match fault {
            Some(Fault::DoneButFails(error)) => Err(error),
            Some(Fault::CrashAfter) => {
                self.is_crashed.store(true, Ordering::SeqCst);
                Err(crashed(key))
            }
            _ => answer,
        }
    }
}

fn crashed(key: &str) -> ObjectError {
    ObjectError::Unavailable { key: key.to_owned(), reason: "the caller crashed".to_owned() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        let fault = self.meet(Operation::Get, key).await?;
        if matches!(fault, Some(Fault::ShortRange)) {
            let range = range.unwrap_or(0..0);
            return Err(ObjectError::ShortRange { key: key.to_owned(), start: range.start, end: range.end });
        }
        let body = self.inner.get(key, range).await;
        let body = match (&fault, body) {
            (Some(Fault::ShortBody(fewer)), Ok(body)) => Ok(body.slice(..body.len().saturating_sub(*fewer))),
            (Some(Fault::FlipBit(offset)), Ok(body)) if !body.is_empty() => {
                let mut bytes = body.to_vec();
                let index = offset % bytes.len();
                bytes[index] ^= 1;
                Ok(Bytes::from(bytes))
            }
            (_, body) => body,
        };
        self.answer(fault, key, body)
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        let fault = self.meet(Operation::Put, key).await?;
        if matches!(fault, Some(Fault::Dropped)) {
            return Ok(PutReceipt { version: ObjectVersion("dropped".to_owned()), is_checked_by_store: true });
        }
        let answer = self.inner.put(key, body, mode).await;
        if answer.is_ok() {
            self.state().newest = Some(key.to_owned());
        }
        self.answer(fault, key, answer)
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        let fault = self.meet(Operation::Head, key).await?;
        let answer = self.inner.head(key).await;
        self.answer(fault, key, answer)
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        let fault = self.meet(Operation::List, prefix).await?;
        let mut answer = self.inner.list(prefix, start_after, limit).await;
        if let (Some(Fault::OmitNewest), Ok(page)) = (&fault, &mut answer) {
            let newest = self.state().newest.clone();
            page.objects.retain(|entry| Some(&entry.key) != newest.as_ref());
        }
        self.answer(fault, prefix, answer)
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        let fault = self.meet(Operation::ListFolders, prefix).await?;
        let answer = self.inner.list_folders(prefix).await;
        self.answer(fault, prefix, answer)
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let fault = self.meet(Operation::Delete, key).await?;
        if matches!(fault, Some(Fault::Dropped)) {
            return Ok(());
        }
        let answer = self.inner.delete(key).await;
        self.answer(fault, key, answer)
    }

    async fn put_with_wrong_checksum(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        self.inner.put_with_wrong_checksum(key, body).await
    }

    fn assume(&self, capabilities: &Capabilities) {
        self.inner.assume(capabilities);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::super::memory::MemoryStore;
    use super::*;

    fn store() -> (MemoryStore, FaultyStore) {
        let inner = MemoryStore::new();
        (inner.clone(), FaultyStore::new(Arc::new(inner)))
    }

    fn body() -> Bytes {
        Bytes::from_static(b"body")
    }

    #[tokio::test]
    async fn without_rules_every_promise_is_kept() {
        conformance::all(&store().1, &conformance::EVERYTHING).await;
    }

    #[tokio::test]
    async fn only_the_nth_matching_call_fails() {
        let (_, store) = store();
        let error = ObjectError::Unavailable { key: "b".to_owned(), reason: "slow down".to_owned() };
        store.add(Rule::nth(Operation::Put, 2, Fault::Fail(error)).on_key("b"));
        let mut answers = Vec::new();
        for key in ["a", "b", "a", "b2", "b3"] {
            answers.push(store.put(key, body(), PutMode::Replace).await.is_ok());
        }
        assert_eq!(answers, [true, true, true, false, true]);
        assert_eq!(store.calls().len(), 5);
    }

    #[tokio::test]
    async fn a_flipped_bit_is_one_bit() {
        let (_, store) = store();
        store.put("a", body(), PutMode::Replace).await.expect("put");
        store.add(Rule::nth(Operation::Get, 1, Fault::FlipBit(5)));
        assert_eq!(store.get("a", None).await.expect("get"), Bytes::from_static(b"bndy"));
        assert_eq!(store.get("a", None).await.expect("get"), body());
    }

    #[tokio::test]
    async fn a_put_may_land_though_it_fails_and_be_lost_though_it_does_not() {
        let (inner, store) = store();
        let error = ObjectError::Unavailable { key: "a".to_owned(), reason: "reset".to_owned() };
        store.add(Rule::nth(Operation::Put, 1, Fault::DoneButFails(error)));
        store.add(Rule::nth(Operation::Put, 2, Fault::Dropped));
        store.put("a", body(), PutMode::Replace).await.expect_err("the answer is an error");
        store.put("b", body(), PutMode::Replace).await.expect("the answer is well");
        assert!(inner.head("a").await.is_ok() && inner.head("b").await.is_err());
    }

    #[tokio::test]
    async fn a_listing_may_omit_the_newest() {
        let (_, store) = store();
        for key in ["b", "a"] {
            store.put(key, body(), PutMode::Replace).await.expect("put");
        }
        store.add(Rule::always(Operation::List, Fault::OmitNewest));
        let page = store.list("", None, 10).await.expect("list");
        assert_eq!(page.objects.len(), 1);
        assert_eq!(page.objects[0].key, "b");
    }

    #[tokio::test]
    async fn after_a_crash_nothing_answers() {
        let (inner, store) = store();
        store.add(Rule::nth(Operation::Put, 2, Fault::CrashAfter));
        store.put("a", body(), PutMode::Replace).await.expect("before the crash");
        store.put("b", body(), PutMode::Replace).await.expect_err("the crash");
        store.get("a", None).await.expect_err("after the crash");
        assert!(inner.head("b").await.is_ok(), "done before the crash");
        store.heal();
        store.get("b", None).await.expect("healed");
    }
}
