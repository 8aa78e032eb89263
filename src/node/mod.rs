//! One node's work: capture, upload, local restore by copy and by links, hydration.

mod capture;
mod exchange;
mod fresh_directory;
mod hydrate;
mod journal;
mod mount_host;
mod place_file;
mod proxy;
mod restore;
mod restore_back;
mod restore_copy;
mod restore_error;
mod restore_link;
mod restore_stage;
mod servers;
mod site;
mod spool;
mod swap;
#[cfg(test)]
mod swap_tests;

pub use capture::{NodeCapture, StoredNode, UploadError};
pub use fresh_directory::{FreshDirectory, Owner};
pub use hydrate::{Holder, Link, clear_leavings, holders, hydrate, links_in_place, links_into};
pub use journal::{RestoreRecord, StateDirectory, Step, TargetLock};
pub use mount_host::MountHost;
pub use place_file::{PlaceProgress, RunLimit};
pub use restore::{CheckReceipt, LocalRestore};
pub use restore_copy::{PlaceOptions, PlaceReceipt, place, place_only};
pub use restore_error::RestoreError;
pub use restore_link::copied_by_links;
pub use servers::{ServerLimits, run as run_command};
pub use site::used_bytes;
pub use spool::SpoolOptions;
pub use swap::{Recovered, RecoveredTo, Steps, recover, settle, stays, swap, swap_back};
