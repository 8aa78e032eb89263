//! The block cache in memory, bounded by bytes; what was not asked for longest goes first.
//!
//! One lock is enough: it is held for a hash look-up (well under a microsecond) while the block that it finds takes a
//! hundred times as long to copy. Blocks that leave are freed after the lock is let go, because giving a megabyte back to
//! the system is not quick.

use bytes::Bytes;
use lru::LruCache;

use crate::base::sync::{Mutex, MutexGuard};
use crate::cache::BlockCache;
use crate::model::ids::BlockId;

/// What an entry costs beside its bytes: name, list links, hash slot, the header of the shared buffer. Counted, so that
/// a cache of tiny blocks keeps to its limit too.
pub const ENTRY_BYTES: u64 = 192;

/// Blocks in memory.
#[derive(Debug)]
pub struct MemoryCache {
    limit_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    blocks: LruCache<BlockId, Bytes>,
    used_bytes: u64,
}

impl MemoryCache {
    /// A cache that never holds more than `limit_bytes`; 0 keeps nothing.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, kept: Mutex::new(Kept { blocks: LruCache::unbounded(), used_bytes: 0 }) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn cost(block: &Bytes) -> u64 {
    block.len() as u64 + ENTRY_BYTES
}

impl BlockCache for MemoryCache {
    fn get(&self, id: &BlockId) -> Option<Bytes> {
        self.kept().blocks.get(id).cloned()
    }

    fn put(&self, id: BlockId, block: Bytes) {
        let added = cost(&block);
        let mut gone = Vec::new();
        let mut kept = self.kept();
        if let Some(previous) = kept.blocks.pop(&id) {
            kept.used_bytes -= cost(&previous);
            gone.push(previous);
        }
        if added > self.limit_bytes {
            return;
        }
        // Room first: the limit holds at every instant.
        while kept.used_bytes + added > self.limit_bytes {
            let Some((_, oldest)) = kept.blocks.pop_lru() else { break };
            kept.used_bytes -= cost(&oldest);
            gone.push(oldest);
        }
        kept.used_bytes += added;
        kept.blocks.put(id, block);
        drop(kept);
        drop(gone);
    }

    fn used_bytes(&self) -> u64 {
        self.kept().used_bytes
    }

    fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
}
