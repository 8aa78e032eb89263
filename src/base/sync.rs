//! The locks of those modules whose schedules are tried: `tests/schedules.rs` includes them with locks that it controls.

pub use std::sync::{Mutex, MutexGuard};
