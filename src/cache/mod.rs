//! The block caches: plain, verified blocks kept for the next reader, in memory and on a disk.
//!
//! The ports are [`BlockCache`], which knows blocks by their names, and [`FileCache`], which also knows the files that they
//! belong to, outlives the process, and may have a file whole.
//!
//! **Not here**: fetching what is missing (`read`).

use std::fmt::Debug;

use bytes::Bytes;

use crate::model::ids::BlockId;

pub mod disk;
pub mod memory;

// Beside the module and not inside it, so that the module can be included alone.
#[cfg(test)]
mod memory_tests;

pub use disk::{DiskCache, DiskCacheError, DiskOptions, SharedCache};
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

/// A file by its content: the same on every date that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Content id of the whole file.
    pub content: BlockId,
    /// Plain length.
    pub size_bytes: u64,
    /// Length of each block but the last.
    pub block_bytes: u32,
}

/// A block and where it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    /// The file.
    pub file: FileKey,
    /// File offset of the block's first byte.
    pub offset: u64,
    /// The block's name.
    pub id: BlockId,
    /// The block's length.
    pub plain_bytes: u32,
}

/// Keeps blocks as parts of files. Calls block: they are for threads that may.
///
/// Promises: the bytes returned are the bytes put; anything may be forgotten at any time; whatever fails is a miss. The
/// limit in bytes is never exceeded, by what the cache needs for itself neither.
pub trait FileCache: Send + Sync + Debug {
    /// The block, if it is there, as part of this file or of another.
    fn get(&self, place: &BlockPlace) -> Option<Bytes>;
    /// Keeps a block, unless there is no room for it; putting one twice is fine.
    fn put(&self, place: &BlockPlace, block: &Bytes);
    /// The file itself, open for reading, when every byte of it is there and was verified since the host started. What it
    /// reads does not change, whatever becomes of the cache.
    fn whole_file(&self, file: &FileKey) -> Option<std::fs::File>;
    /// How much of the file is there.
    fn cached_bytes(&self, file: &FileKey) -> u64;
    /// Bytes kept now, counted as the file system counts them, and rather too many than too few.
    fn used_bytes(&self) -> u64;
    /// The most that is ever kept.
    fn limit_bytes(&self) -> u64;
}
