//! The block cache in memory, bounded by bytes.

/// Blocks in memory.
#[derive(Debug)]
pub struct MemoryCache;
