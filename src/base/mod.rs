//! The ground floor: time, pace, retry, buffers, large and durable writes, locks, the host's accounts and processes, and sharing of work that is already under way.

pub mod accounts;
pub mod buffers;
pub mod clock;
pub mod direct;
pub mod durable;
pub mod file_lock;
pub mod pace;
pub mod process;
pub mod retry;
pub mod single_flight;
pub mod sync;

// Beside the module and not inside it, so that the module can be included alone.
#[cfg(test)]
mod single_flight_tests;

pub use accounts::Accounts;
pub use clock::{Clock, ManualClock, SystemClock};
pub use pace::Pace;
pub use retry::RetryPolicy;
pub use single_flight::SingleFlight;
