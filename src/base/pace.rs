//! So many bytes a second, over all who share it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A limit of bytes a second. What was not used is not saved up.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Pace {
    /// At most `bytes_per_second`, at least 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    /// Returns once `bytes` may be moved.
    pub async fn wait(&self, bytes: u64) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_share_it_take_turns_and_a_rest_is_not_saved_up() {
        let (pace, began) = (Pace::new(10_000), Instant::now());
        tokio::join!(pace.wait(500), pace.wait(500));
        pace.wait(1).await;
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let rested = Instant::now();
        pace.wait(1000).await;
        pace.wait(1).await;
        assert!(rested.elapsed() >= Duration::from_millis(100), "{:?}", rested.elapsed());
    }
}
