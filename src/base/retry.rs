//! Bounded retries with full jitter: a pure schedule of waits; who sleeps and what counts as passing is the caller's.

use std::time::Duration;

/// How often and how patiently something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first one included; at least 1.
    pub attempts: u32,
    /// Upper bound of the first wait; each later bound doubles.
    pub first_wait: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    /// Four tries within about 4 s: outlives a connection reset or a SlowDown, and still answers an operator soon.
    fn default() -> Self {
        Self { attempts: 4, first_wait: Duration::from_millis(100), longest_wait: Duration::from_secs(2) }
    }
}

impl RetryPolicy {
    /// One try, no wait.
    pub const ONCE: Self = Self { attempts: 1, first_wait: Duration::ZERO, longest_wait: Duration::ZERO };

    /// The wait after failed try number `failed` (1 for the first), or `None` when no try is left.
    /// `random` in 0..=1 spreads callers that failed together (full jitter).
    pub fn wait_after(&self, failed: u32, random: f64) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        let doublings = failed.saturating_sub(1).min(20);
        let bound = self.first_wait.saturating_mul(1 << doublings).min(self.longest_wait);
        Some(bound.mul_f64(random.clamp(0.0, 1.0)))
    }
}

/// A number in 0..1 from the system's random source; one half where there is none (jitter is no secret).
pub fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_then_end() {
        let policy =
            RetryPolicy { attempts: 5, first_wait: Duration::from_millis(100), longest_wait: Duration::from_millis(300) };
        let waits: Vec<_> = (1..=5).map(|failed| policy.wait_after(failed, 1.0)).collect();
        let ms = |value| Some(Duration::from_millis(value));
        assert_eq!(waits, [ms(100), ms(200), ms(300), ms(300), None]);
    }

    #[test]
    fn once_never_waits() {
        assert_eq!(RetryPolicy::ONCE.wait_after(1, 1.0), None);
    }
}
