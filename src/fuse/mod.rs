//! The kernel's side of the mount.
//!
//! [`adapter`] translates the kernel's requests into calls of [`crate::fs::SnapshotFs`] and nothing else, `clone_adapter`
//! into those of [`crate::fs::clone::CloneFs`]; [`session`]
//! mounts and ends; `passthrough` has the kernel read cached files on its own; [`request`] is our own one; [`mounts`] reads the kernel's table of mounts and takes mounts off it, also dead ones.
//!
//! **Invariants.** A session thread never waits for the source: what needs I/O moves into a bounded task with its reply.
//! A panic answers one request with EIO and ends nothing.
//!
//! **Not here**: what is shown (`fs`), which directories may be mounted on (`app`).

pub mod adapter;
mod clone_adapter;
mod clone_reply;
mod common;
pub mod mounts;
mod passthrough;
pub mod request;
pub mod session;

pub use mounts::MountEntry;
pub use passthrough::PassthroughState;
pub use session::{Session, SessionOptions};

/// File system type as the kernel's table shows it: how a mount of ours is told from others'.
pub const KERNEL_TYPE: &str = "fuse.tintype";
