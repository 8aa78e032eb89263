//! The block cache: plain, verified blocks kept for the next reader.
//!
//! The port is [`BlockCache`].
//!
//! **Not here**: fetching what is missing (`read`).

use std::fmt::Debug;

use bytes::Bytes;

use crate::model::ids::BlockId;

pub mod memory;

pub use memory::MemoryCache;

/// Keeps blocks by their names.
///
/// Promises: the bytes returned are the bytes put; anything may be forgotten at any time; the limit in bytes is never
/// exceeded; a block larger than the limit is not kept.
pub trait BlockCache: Send + Sync + Debug {
    /// The block, if it is still there.
    fn get(&self, id: &BlockId) -> Option<Bytes>;
    /// Keeps a block; putting one twice is fine.
    fn put(&self, id: BlockId, block: Bytes);
    /// Bytes kept now.
    fn used_bytes(&self) -> u64;
    /// The most that is ever kept; read-ahead stays well below it.
    fn limit_bytes(&self) -> u64;
}
