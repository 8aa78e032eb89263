//! A store that is away is left alone, and noticed when it is back.
//!
//! The first reading call without an answer begins it: from then on one task asks the store for next to nothing now and
//! then, and all calls wait for that task's word instead of trying on their own. Who waited tries again once the store is
//! back. A store that was away for longer than the patience, and did not answer that task either, is given up: calls fail at
//! once, until it answers.
//!
//! A store that has not answered even once is more likely misnamed than away: its errors are passed on at once.
//!
//! **Invariants.** Only what is safe to repeat is repeated: puts and deletes pass through as they are. An answer of any
//! kind ends the wait, an error that is the store's own word too. No call waits longer than the patience.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Capabilities, ObjectEntry, ObjectError, ObjectPage, ObjectStore, PutMode, PutReceipt};
use crate::base::RetryPolicy;
use crate::base::retry::random_fraction;

/// When the store is asked whether it is back: soon at first, and then often enough that nobody waits long for it.
const PROBES: RetryPolicy =
    RetryPolicy { attempts: u32::MAX, first_wait: Duration::from_millis(250), longest_wait: Duration::from_secs(2) };

/// See the head of this file.
#[derive(Debug)]
pub struct Breaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn ObjectStore>,
    patience: Duration,
    has_answered: AtomicBool,
    away: Mutex<Option<Away>>,
}

/// The store did not answer.
#[derive(Debug)]
struct Away {
    since: Instant,
    reason: String,
    /// The probe had no answer either: it is not one connection alone.
    is_certain: bool,
    /// Who waits subscribes, and is woken by the sender's end.
    back: watch::Sender<()>,
}

impl Breaker {
    /// `patience`: how long a call waits for a store that is away. Calls must be made within a runtime.
    pub fn new(inner: Arc<dyn ObjectStore>, patience: Duration) -> Self {
        let has_answered = AtomicBool::new(false);
        Self { shared: Arc::new(Shared { inner, patience, has_answered, away: Mutex::new(None) }) }
    }

    /// For how long the store has not answered; `None` while it does.
    pub fn away_for(&self) -> Option<Duration> {
        self.shared.away().as_ref().map(|away| away.since.elapsed())
    }

    /// Calls, and calls again after each time that the store was away, as long as the patience lasts.
    async fn patiently<T, F: Future<Output = Result<T, ObjectError>>>(
        &self,
        key: &str,
        call: impl Fn() -> F,
    ) -> Result<T, ObjectError> {
        let began = Instant::now();
        loop {
            self.shared.wait_while_away(key, began).await?;
            let attempt = Attempt { shared: &self.shared, began: Instant::now() };
            let answer = call().await;
            let tried_since = attempt.over();
            match answer {
                Err(error) if error.is_transient() => {
                    if !self.shared.has_answered.load(Ordering::Relaxed) {
                        return Err(error);
                    }
                    self.shared.missed(tried_since, error.to_string());
                    if began.elapsed() >= self.shared.patience {
                        return Err(error);
                    }
                }
                answer => {
                    self.shared.answered();
                    return answer;
                }
            }
        }
    }
}

impl Shared {
    fn away(&self) -> MutexGuard<'_, Option<Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_while_away(&self, key: &str, began: Instant) -> Result<(), ObjectError> {
        loop {
            let (mut back, left) = {
                let away = self.away();
                let Some(away) = &*away else { return Ok(()) };
                let away_for = if away.is_certain { away.since.elapsed() } else { Duration::ZERO };
                let left = self.patience.saturating_sub(away_for.max(began.elapsed()));
                if left.is_zero() {
                    let reason = format!("no answer for {} s, last: {}", away.since.elapsed().as_secs(), away.reason);
                    return Err(ObjectError::Unavailable { key: key.to_owned(), reason });
                }
                (away.back.subscribe(), left)
            };
            // Both ways it is looked at again.
            let _ = tokio::time::timeout(left, back.changed()).await;
        }
    }

    fn missed(self: &Arc<Self>, since: Instant, reason: String) {
        let mut away = self.away();
        if let Some(away) = &mut *away {
            away.reason = reason;
            return;
        }
        // Outside of a runtime the program is ending, and nobody calls any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        tracing::warn!(store = %self.inner.location(), reason, "the store does not answer, and is left alone until it does");
        *away = Some(Away { since, reason, is_certain: false, back: watch::Sender::new(()) });
        runtime.spawn(probe(Arc::downgrade(self), since));
    }

    fn missed_again(&self, reason: String) {
        if let Some(away) = &mut *self.away() {
            (away.reason, away.is_certain) = (reason, true);
        }
    }

    fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
        let Some(away) = self.away().take() else { return };
        tracing::info!(store = %self.inner.location(), away_for = ?away.since.elapsed(), "the store answers again");
    }
}

/// Until the store is back, or was found to be by another call.
async fn probe(shared: Weak<Shared>, since: Instant) {
    let mut failed = 1;
    // A store that is away may be back at once, so the jitter begins at half of each wait.
    while let Some(wait) = PROBES.wait_after(failed, 0.5 + random_fraction() / 2.0) {
        tokio::time::sleep(wait).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.away().as_ref().is_none_or(|away| away.since != since) {
            return;
        }
        // Bounded by the store's own limits: a second question while the first hangs would tell nothing more.
        match shared.inner.list("", None, 1).await {
            Err(error) if error.is_transient() => shared.missed_again(error.to_string()),
            _ => return shared.answered(),
        }
        failed = failed.saturating_add(1);
    }
}

/// One try. Given up after half of the patience, it counts as one without an answer: its caller's deadline passed.
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    began: Instant,
}

impl Attempt<'_> {
    fn over(self) -> Instant {
        let began = self.began;
        std::mem::forget(self);
        began
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let waited = self.began.elapsed();
        if self.shared.has_answered.load(Ordering::Relaxed) && waited >= self.shared.patience / 2 {
            self.shared.missed(self.began, format!("given up after {} s", waited.as_secs()));
        }
    }
}

#[async_trait]
impl ObjectStore for Breaker {
    fn location(&self) -> String {
        self.shared.inner.location()
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        self.patiently(key, || self.shared.inner.get(key, range.clone())).await
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        self.shared.inner.put(key, body, mode).await
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        self.patiently(key, || self.shared.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        self.patiently(prefix, || self.shared.inner.list(prefix, start_after, limit)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        self.patiently(prefix, || self.shared.inner.list_folders(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.shared.inner.delete(key).await
    }

    async fn put_with_wrong_checksum(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        self.shared.inner.put_with_wrong_checksum(key, body).await
    }

    fn assume(&self, capabilities: &Capabilities) {
        self.shared.inner.assume(capabilities);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::super::faulty::{Fault, FaultyStore, Operation, Rule};
    use super::super::memory::MemoryStore;
    use super::*;

    const BODY: Bytes = Bytes::from_static(b"body");

    async fn store(patience: Duration) -> (Arc<FaultyStore>, Arc<Breaker>) {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let breaker = Breaker::new(faulty.clone(), patience);
        breaker.put("a", BODY, PutMode::Replace).await.expect("put");
        breaker.head("a").await.expect("there");
        (faulty, Arc::new(breaker))
    }

    fn away() -> Fault {
        Fault::Fail(ObjectError::Unavailable { key: "a".to_owned(), reason: "refused".to_owned() })
    }

    fn cut(faulty: &FaultyStore) {
        for operation in [Operation::Get, Operation::Head, Operation::List] {
            faulty.add(Rule::always(operation, away()));
        }
    }

    fn count(faulty: &FaultyStore, operation: Operation) -> usize {
        faulty.calls().iter().filter(|(called, _)| *called == operation).count()
    }

    async fn poll(mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < until, "not in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn while_the_store_answers_every_promise_is_kept() {
        conformance::all(&Breaker::new(Arc::new(MemoryStore::new()), Duration::from_secs(1)), &conformance::EVERYTHING).await;
    }

    #[tokio::test]
    async fn many_calls_outlive_a_short_absence_and_only_one_asks() {
        let (faulty, breaker) = store(Duration::from_secs(30)).await;
        cut(&faulty);
        let first = tokio::spawn({
            let breaker = breaker.clone();
            async move { breaker.get("a", None).await }
        });
        poll(|| breaker.away_for().is_some()).await;
        let others: Vec<_> = (0..50)
            .map(|_| {
                let breaker = breaker.clone();
                tokio::spawn(async move { breaker.get("a", None).await })
            })
            .collect();
        poll(|| count(&faulty, Operation::List) >= 2).await;
        assert_eq!(count(&faulty, Operation::Get), 1, "only the first tried");
        faulty.heal();
        for call in others.into_iter().chain([first]) {
            assert_eq!(call.await.expect("no panic").expect("the store is back"), BODY);
        }
        assert_eq!(breaker.away_for(), None);
    }

    #[tokio::test]
    async fn a_store_away_for_long_is_given_up_at_once_and_found_when_it_is_back() {
        let (faulty, breaker) = store(Duration::from_millis(300)).await;
        cut(&faulty);
        let error = breaker.get("a", None).await.expect_err("away");
        assert!(error.is_transient(), "{error}");
        poll(|| breaker.away_for().is_some_and(|away| away > Duration::from_millis(300))).await;
        let tries = count(&faulty, Operation::Get);
        for _ in 0..1000 {
            let error = breaker.get("a", None).await.expect_err("away").to_string();
            assert!(error.contains("refused"), "{error}");
        }
        assert_eq!(count(&faulty, Operation::Get), tries, "the store is left alone");
        faulty.heal();
        poll(|| breaker.away_for().is_none()).await;
        assert_eq!(breaker.get("a", None).await.expect("back"), BODY);
    }

    #[tokio::test]
    async fn what_the_store_itself_says_is_no_absence() {
        let (faulty, breaker) = store(Duration::from_secs(1)).await;
        for error in [
            ObjectError::Denied { key: "a".to_owned(), reason: "no".to_owned() },
            ObjectError::ShortRange { key: "a".to_owned(), start: 0, end: 9 },
        ] {
            faulty.add(Rule::nth(Operation::Get, 1, Fault::Fail(error)));
            breaker.get("a", None).await.expect_err("as it is");
            faulty.heal();
        }
        assert!(matches!(breaker.get("b", None).await, Err(ObjectError::NotFound { .. })));
        assert_eq!((breaker.away_for(), count(&faulty, Operation::List)), (None, 0));
    }

    #[tokio::test]
    async fn a_call_given_up_by_its_caller_counts_as_unanswered() {
        let (faulty, breaker) = store(Duration::from_millis(100)).await;
        faulty.add(Rule::always(Operation::Get, Fault::Hang(Duration::from_secs(60))));
        tokio::time::timeout(Duration::from_millis(120), breaker.get("a", None)).await.expect_err("its caller's deadline");
        assert!(breaker.away_for().is_some());
        // The probe finds that it answers.
        poll(|| breaker.away_for().is_none()).await;
    }

    #[tokio::test]
    async fn a_store_that_never_answered_is_not_waited_for() {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        cut(&faulty);
        let breaker = Breaker::new(faulty.clone(), Duration::from_secs(60));
        breaker.get("a", None).await.expect_err("away");
        assert_eq!((breaker.away_for(), faulty.calls().len()), (None, 1));
    }

    #[tokio::test]
    async fn one_call_that_hangs_fails_no_other() {
        let (faulty, breaker) = store(Duration::from_secs(2)).await;
        faulty.add(Rule::nth(Operation::Get, 1, Fault::Hang(Duration::from_secs(60))));
        tokio::time::timeout(Duration::from_millis(1100), breaker.get("a", None)).await.expect_err("its caller's deadline");
        assert!(breaker.away_for().is_some());
        assert_eq!(breaker.get("a", None).await.expect("waits for the probe"), BODY);
    }

    #[tokio::test]
    async fn puts_are_never_repeated() {
        let (faulty, breaker) = store(Duration::from_secs(1)).await;
        faulty.add(Rule::always(Operation::Put, away()));
        breaker.put("b", BODY, PutMode::Create).await.expect_err("away");
        assert_eq!(count(&faulty, Operation::Put), 2, "one before, one now");
    }
}
