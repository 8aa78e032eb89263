//! The tree of snapshots as a file system: names, inodes and handles, without a kernel.
//!
//! ```text
//! <root>/
//!   prod/                                  a cluster
//!     latest -> 2026-11-20T10-15-30Z       the newest complete snapshot
//!     2026-11-20T10-15-30Z/                a snapshot
//!       .snapshot.json                     its description
//!       node-1/…                           what was captured of a node
//! ```
//!
//! [`SnapshotFs`] is a plain asynchronous type: [`tree`] holds the calls, [`names`] what a cluster's directory shows and
//! finds, `extended` the extended attributes, [`inode`] the numbers, [`catalogue`] and [`listing`] what is known of the source and how it is renewed.
//!
//! **Invariants.** Nothing is ever changed. What is inside a dated snapshot is the same at every call and after every
//! remount. Attributes and listings of what is known never wait for the source, and no call outlives its deadline.
//!
//! **Not here**: the kernel's types (`fuse`), reading content (`read`).

pub mod attributes;
pub mod catalogue;
pub mod clone;
pub mod error;
mod extended;
pub mod handle;
pub mod handle_table;
pub mod inode;
pub mod listing;
pub mod names;
mod opening;
pub mod recent;
pub mod tree;
mod walks;

pub use attributes::{Attributes, Owner};
pub use error::FsError;
pub use extended::About;
pub use inode::ROOT;
pub use tree::{Found, FsOptions, SnapshotFs};

/// Name of the description in a snapshot's directory; no node can have it, since node names begin with a letter or digit.
pub const DESCRIPTION: &str = ".snapshot.json";
