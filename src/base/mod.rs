//! The ground floor: time, retry, buffers, and sharing of work that is already under way.

pub mod buffers;
pub mod clock;
pub mod retry;
pub mod single_flight;

pub use clock::{Clock, ManualClock, SystemClock};
pub use retry::RetryPolicy;
pub use single_flight::SingleFlight;
