//! The clock port: wall time for names, monotonic time for deadlines, and sleeping, so that a test can own all three.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::Notify;

/// What the rest of the program knows of time.
///
/// Promises: `monotonic` never goes back; `wall_us` may (somebody set the clock); `sleep` of zero returns at once.
#[async_trait]
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Microseconds since 1970-01-01T00:00:00Z by the host's wall clock.
    fn wall_us(&self) -> i64;
    /// Time since an arbitrary start; only differences mean anything.
    fn monotonic(&self) -> Duration;
    /// Returns once `duration` has passed on the monotonic clock.
    async fn sleep(&self, duration: Duration);
}

/// The host's clock.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn wall_us(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that moves only when told. Clones share one time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    state: Arc<Mutex<ManualState>>,
    moved: Arc<Notify>,
}

#[derive(Debug)]
struct ManualState {
    wall_us: i64,
    monotonic: Duration,
    /// When sleepers wake, and how many do then.
    sleepers: BTreeMap<Duration, usize>,
}

impl ManualClock {
    /// A clock that stands at `wall_us`.
    pub fn at(wall_us: i64) -> Self {
        Self {
            state: Arc::new(Mutex::new(ManualState { wall_us, monotonic: Duration::ZERO, sleepers: BTreeMap::new() })),
            moved: Arc::new(Notify::new()),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, ManualState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Moves both clocks on and wakes the sleepers whose time has come.
    pub fn advance(&self, by: Duration) {
        {
            let mut state = self.state();
            state.monotonic += by;
            state.wall_us += i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        }
        self.moved.notify_waiters();
    }

    /// Moves both clocks on to when the next sleeper wakes; false when nobody sleeps.
    pub fn advance_to_next(&self) -> bool {
        let state = self.state();
        let Some(next) = state.sleepers.keys().next().copied() else { return false };
        let by = next.saturating_sub(state.monotonic);
        drop(state);
        self.advance(by);
        true
    }

    /// Sets the wall clock, also backwards; the monotonic clock stays.
    pub fn set_wall_us(&self, wall_us: i64) {
        self.state().wall_us = wall_us;
    }
}

/// Somebody who sleeps, for as long as this is there.
struct Sleeper<'a> {
    clock: &'a ManualClock,
    until: Duration,
}

impl<'a> Sleeper<'a> {
    fn begin(clock: &'a ManualClock, until: Duration) -> Self {
        *clock.state().sleepers.entry(until).or_default() += 1;
        Self { clock, until }
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        let mut state = self.clock.state();
        if let Some(count) = state.sleepers.get_mut(&self.until) {
            *count -= 1;
            if *count == 0 {
                state.sleepers.remove(&self.until);
            }
        }
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn wall_us(&self) -> i64 {
        self.state().wall_us
    }

    fn monotonic(&self) -> Duration {
        self.state().monotonic
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.monotonic().saturating_add(duration);
        let _asleep = Sleeper::begin(self, until);
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the time is read, so that an advance in between is not missed.
            moved.as_mut().enable();
            if self.monotonic() >= until {
                return;
            }
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_sleeper_wakes_only_after_its_time() {
        let clock = ManualClock::at(0);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(2)).await }
        });
        // The sleeper reads the time when it is first polled.
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.expect("the sleeper does not panic");
        assert_eq!(clock.wall_us(), 2_000_000);
    }

    #[test]
    fn setting_the_wall_clock_back_leaves_monotonic_time_alone() {
        let clock = ManualClock::at(50);
        clock.advance(Duration::from_micros(10));
        clock.set_wall_us(5);
        assert_eq!((clock.wall_us(), clock.monotonic()), (5, Duration::from_micros(10)));
    }
}
