//! How much a test does, what it draws at random, and what it tells.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `small`, or `full` where `TINTYPE_EFFORT` says so.
pub fn effort(small: usize, full: usize) -> usize {
    if std::env::var("TINTYPE_EFFORT").is_ok_and(|effort| effort == "full") { full } else { small }
}

/// For figures that are looked at and not asserted; shown with `--nocapture` and where a test fails.
#[allow(clippy::print_stderr, reason = "the test harness shows it")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}

/// Numbers from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Seeded by `TINTYPE_SEED`, else by the clock; tells the seed.
    pub fn begin(what: &str) -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let seed = match std::env::var("TINTYPE_SEED") {
            Ok(text) => text.parse().expect("TINTYPE_SEED is a number"),
            Err(_) => clock(),
        };
        tell(&format!("{what}: TINTYPE_SEED={seed}"));
        Self { state: seed }
    }

    /// Another sequence that depends on this one.
    pub fn fork(&mut self) -> Self {
        Self { state: self.next() }
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform up to `limit`.
    pub fn duration(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.next() % (limit.as_micros() as u64 + 1))
    }

    /// The numbers below `count` in some order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for index in (1..count).rev() {
            order.swap(index, self.next() as usize % (index + 1));
        }
        order
    }
}
