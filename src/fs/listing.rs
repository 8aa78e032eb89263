//! Listings that change: clusters, and the snapshots of a cluster.
//!
//! What is known is served; it is renewed in the background when it is asked for and not fresh any more. Only who lists a
//! directory or follows `latest` waits a moment for the renewal, and not even that while an earlier one is already
//! overdue: with the network gone, directories that are known are listed at once.
//!
//! **Invariants.** One renewal at a time. A failure is logged once until the next success, and leaves what is known.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::base::Clock;
use crate::fs::error::FsError;
use crate::repo::RepoError;

/// How a listing is renewed.
#[derive(Debug, Clone, Copy)]
pub struct ListingTimes {
    /// For how long it is taken as it is.
    pub fresh_for: Duration,
    /// How long a caller who could be served what is known waits for what is new.
    pub patience: Duration,
    /// How long one renewal may take.
    pub deadline: Duration,
}

type Outcome<T> = Option<Result<Arc<T>, FsError>>;
type Fetch<T> = Box<dyn Fn(Option<Arc<T>>) -> BoxFuture<'static, Result<T, RepoError>> + Send + Sync>;

/// One listing.
pub struct Listing<T> {
    what: String,
    fetch: Fetch<T>,
    times: ListingTimes,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    state: Mutex<State<T>>,
}

struct State<T> {
    known: Option<Arc<T>>,
    /// End of the last renewal, also of one that failed.
    tried_at: Option<Duration>,
    renewal: Option<Renewal<T>>,
    is_failing: bool,
}

struct Renewal<T> {
    began_at: Duration,
    outcome: watch::Receiver<Outcome<T>>,
}

impl<T> std::fmt::Debug for Listing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Listing<T> {
    /// A listing of `what` (for messages); `fetch` is given what is known so far. Nothing is fetched yet.
    pub fn new(what: String, fetch: Fetch<T>, times: ListingTimes, clock: Arc<dyn Clock>, runtime: Handle) -> Arc<Self> {
        let state = Mutex::new(State { known: None, tried_at: None, renewal: None, is_failing: false });
        Arc::new(Self { what, fetch, times, clock, runtime, state })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_fresh(&self, state: &State<T>) -> bool {
        state.tried_at.is_some_and(|at| self.clock.monotonic() < at + self.times.fresh_for)
    }

    /// What is known, however old; begins a renewal when it is not fresh.
    pub fn known(self: &Arc<Self>) -> Option<Arc<T>> {
        let mut state = self.state();
        if !self.is_fresh(&state) && state.known.is_some() {
            self.renew(&mut state);
        }
        state.known.clone()
    }

    /// What can be answered without waiting: what is fresh, or what is known while a renewal is overdue.
    pub fn ready(self: &Arc<Self>) -> Option<Arc<T>> {
        let mut state = self.state();
        let known = state.known.clone()?;
        if self.is_fresh(&state) || self.is_overdue(self.renew(&mut state).began_at) {
            return Some(known);
        }
        None
    }

    /// The listing: fresh where that takes no longer than the patience, else as it is known; the first time the caller
    /// waits for as long as it takes.
    pub async fn current(self: &Arc<Self>) -> Result<Arc<T>, FsError> {
        let (known, mut outcome) = {
            let mut state = self.state();
            let known = state.known.clone();
            if let Some(known) = &known
                && self.is_fresh(&state)
            {
                return Ok(known.clone());
            }
            let renewal = self.renew(&mut state);
            if let Some(known) = &known
                && self.is_overdue(renewal.began_at)
            {
                return Ok(known.clone());
            }
            (known, renewal.outcome.clone())
        };
        let wait = async {
            match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
                Ok(Some(outcome)) => outcome,
                Ok(None) | Err(_) => Err(FsError::BrokenOff),
            }
        };
        match known {
            None => wait.await,
            Some(known) => match tokio::time::timeout(self.times.patience, wait).await {
                Ok(Ok(renewed)) => Ok(renewed),
                Ok(Err(_)) | Err(_) => Ok(known),
            },
        }
    }

    fn is_overdue(&self, began_at: Duration) -> bool {
        self.clock.monotonic() >= began_at + self.times.patience
    }

    /// The renewal under way, or a new one.
    fn renew<'a>(self: &Arc<Self>, state: &'a mut State<T>) -> &'a Renewal<T> {
        // One that ended without a result (a panic below) must not be waited for again.
        if state.renewal.as_ref().is_some_and(|renewal| renewal.outcome.has_changed().is_err()) {
            state.renewal = None;
        }
        state.renewal.get_or_insert_with(|| {
            let (sender, outcome) = watch::channel(None);
            let listing = self.clone();
            let work = (self.fetch)(state.known.clone());
            self.runtime.spawn(async move {
                let limit = listing.times.deadline;
                let result = match tokio::time::timeout(limit, work).await {
                    Ok(result) => result.map_err(FsError::from),
                    Err(_) => Err(FsError::DeadlineExceeded { limit }),
                };
                sender.send_replace(Some(listing.finish(result)));
            });
            Renewal { began_at: self.clock.monotonic(), outcome }
        })
    }

    fn finish(&self, result: Result<T, FsError>) -> Result<Arc<T>, FsError> {
        let mut state = self.state();
        state.renewal = None;
        state.tried_at = Some(self.clock.monotonic());
        match result {
            Ok(value) => {
                if state.is_failing {
                    tracing::info!(listing = %self.what, "can be listed again");
                }
                state.is_failing = false;
                let value = Arc::new(value);
                state.known = Some(value.clone());
                Ok(value)
            }
            Err(error) => {
                if !state.is_failing {
                    tracing::warn!(listing = %self.what, %error, "cannot be listed, what is known is served");
                }
                state.is_failing = true;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ManualClock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Setup {
        clock: ManualClock,
        fetches: Arc<AtomicU32>,
        hangs: Arc<watch::Sender<bool>>,
        listing: Arc<Listing<u32>>,
    }

    fn setup() -> Setup {
        let clock = ManualClock::at(0);
        let fetches = Arc::new(AtomicU32::new(0));
        let hangs = Arc::new(watch::Sender::new(false));
        let fetch: Fetch<u32> = Box::new({
            let (fetches, hangs) = (fetches.clone(), hangs.clone());
            move |_| {
                let number = fetches.fetch_add(1, Ordering::SeqCst);
                let mut hanging = hangs.subscribe();
                Box::pin(async move {
                    let _ = hanging.wait_for(|hangs| !hangs).await;
                    Ok(number)
                })
            }
        });
        let times = ListingTimes {
            fresh_for: Duration::from_secs(2),
            patience: Duration::from_millis(20),
            deadline: Duration::from_secs(30),
        };
        let listing = Listing::new("test".to_owned(), fetch, times, Arc::new(clock.clone()), Handle::current());
        Setup { clock, fetches, hangs, listing }
    }

    #[tokio::test]
    async fn what_is_fresh_is_not_fetched_again() {
        let setup = setup();
        setup.listing.current().await.expect("there");
        setup.clock.advance(Duration::from_millis(1999));
        assert_eq!(*setup.listing.current().await.expect("there"), 0);
        assert_eq!(setup.fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_is_not_fresh_is_renewed() {
        let setup = setup();
        setup.listing.current().await.expect("there");
        setup.clock.advance(Duration::from_secs(2));
        assert_eq!(*setup.listing.current().await.expect("there"), 1);
    }

    #[tokio::test]
    async fn while_the_source_hangs_what_is_known_is_served_and_soon_at_once() {
        let setup = setup();
        setup.listing.current().await.expect("there");
        setup.clock.advance(Duration::from_secs(2));
        setup.hangs.send_replace(true);
        assert!(setup.listing.ready().is_none());
        assert_eq!(*setup.listing.current().await.expect("known"), 0);
        setup.clock.advance(Duration::from_millis(20));
        assert_eq!(setup.listing.ready().as_deref(), Some(&0));
        assert_eq!(setup.fetches.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_is_known_never_waits() {
        let setup = setup();
        assert_eq!(setup.listing.known(), None);
        setup.listing.current().await.expect("there");
        setup.clock.advance(Duration::from_secs(100));
        setup.hangs.send_replace(true);
        assert_eq!(setup.listing.known().as_deref(), Some(&0));
    }
}
