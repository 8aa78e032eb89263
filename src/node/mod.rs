//! One node's work: capture, upload, local restore.

mod capture;

pub use capture::{NodeCapture, StoredNode, UploadError};
