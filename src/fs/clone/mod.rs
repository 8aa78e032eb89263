//! Clones: a node of a snapshot as a file system that can be written.
//!
//! The *base* is the snapshot's node, fetched lazily and never touched. The *upper layer* is a directory of the local disk:
//! below `tree/` it holds every name of the clone as a real file, directory or link with its real owner, mode, times and
//! extended attributes, so that renames, hard links, locks and the durability of names are those of the local file system
//! and of its journal. What is not there yet is marked:
//!
//! - a directory with the mark (`upper::BASE`) is *unopened*: its entries are made when somebody first looks into it. Until
//!   the mark is gone, after everything else is durable, nothing in it counts;
//! - a file with the mark is *layered* (`layered`): it has its length, and pages that it does not have itself are the base's
//!   (`pages`). Which these are is kept in `pages/`, written only after the data that it speaks of;
//! - anything else is the clone's own, and nothing of ours is between it and the local disk but the kernel's requests.
//!
//! [`CloneFs`] has the calls, `nodes` knows what the kernel knows.
//!
//! **Invariants.** What was fsynced survives the end of this process, of the store, and of the host. A page shows the bytes
//! of the base or those written last, never anything else. A base that cannot be reached is waited for; one that is damaged
//! is EIO.
//!
//! **Not here**: the kernel's types (`fuse`), where the upper layer is and who may have a clone (`app`).

mod attributes;
mod base;
mod directory;
mod files;
mod layered;
mod nodes;
mod pages;
mod storage;
mod tree;
mod upper;

pub use attributes::{Changes, TimeChange};
pub use base::BaseNode;
pub use directory::Item;
pub use files::{LayeredHandle, OpenFile};
pub use nodes::ROOT;
pub use tree::{CloneFs, CloneOptions, Maker};
pub use upper::Upper;

/// What a call gives: an error is what the local file system said, or what [`BaseNode`] made of the repository's words.
pub type Result<T> = std::result::Result<T, rustix::io::Errno>;
