//! One node's work: capture, upload, local restore.

mod capture;
mod fresh_directory;
mod journal;
mod restore;
mod restore_copy;
mod restore_error;
mod servers;
mod site;
mod swap;
#[cfg(test)]
mod swap_tests;

pub use capture::{NodeCapture, StoredNode, UploadError};
pub use fresh_directory::{FreshDirectory, Owner};
pub use journal::{RestoreRecord, StateDirectory, Step, TargetLock};
pub use restore::{CheckReceipt, LocalRestore, place_only};
pub use restore_copy::{PlaceProgress, PlaceReceipt, place};
pub use restore_error::RestoreError;
pub use servers::ServerLimits;
pub use swap::{Recovered, RecoveredTo, Steps, recover, settle, swap, swap_back};
