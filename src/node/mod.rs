//! One node's work: capture, upload, local restore.

mod capture;
mod fresh_directory;
mod restore_copy;
mod restore_error;

pub use capture::{NodeCapture, StoredNode, UploadError};
pub use fresh_directory::{FreshDirectory, Owner};
pub use restore_copy::{PlaceProgress, PlaceReceipt, place};
pub use restore_error::RestoreError;
