//! The block cache in memory, bounded by bytes; what was not asked for longest goes first.
//!
//! One lock is enough: it is held for a hash look-up (well under a microsecond) while the block that it finds takes a
//! hundred times as long to copy. Blocks that leave are freed after the lock is let go, because giving a megabyte back to
//! the system is not quick.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use lru::LruCache;

use crate::cache::BlockCache;
use crate::model::ids::BlockId;

/// What an entry costs beside its bytes: name, list links, hash slot, the header of the shared buffer. Counted, so that
/// a cache of tiny blocks keeps to its limit too.
const ENTRY_BYTES: u64 = 192;

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8) -> BlockId {
        BlockId([number; 32])
    }

    fn block(number: u8, length: usize) -> Bytes {
        Bytes::from(vec![number; length])
    }

    #[test]
    fn the_bytes_returned_are_the_bytes_put() {
        let cache = MemoryCache::new(1 << 20);
        cache.put(id(1), block(1, 1000));
        assert_eq!(cache.get(&id(1)), Some(block(1, 1000)));
        assert_eq!(cache.get(&id(2)), None);
    }

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let cache = MemoryCache::new(3 * (1000 + ENTRY_BYTES));
        for number in 1..=3 {
            cache.put(id(number), block(number, 1000));
        }
        cache.get(&id(1));
        cache.put(id(4), block(4, 1000));
        let there: Vec<_> = (1..=4).map(|number| cache.get(&id(number)).is_some()).collect();
        assert_eq!(there, [true, false, true, true]);
    }

    #[test]
    fn a_block_larger_than_the_limit_is_not_kept_and_drives_nothing_out() {
        let cache = MemoryCache::new(2000);
        cache.put(id(1), block(1, 100));
        cache.put(id(2), block(2, 2000));
        assert_eq!((cache.get(&id(1)).is_some(), cache.get(&id(2)).is_some()), (true, false));
    }

    #[test]
    fn a_limit_of_nothing_keeps_nothing() {
        let cache = MemoryCache::new(0);
        cache.put(id(1), Bytes::new());
        assert_eq!((cache.get(&id(1)), cache.used_bytes()), (None, 0));
    }

    #[test]
    fn putting_a_block_twice_counts_it_once() {
        let cache = MemoryCache::new(1 << 20);
        cache.put(id(1), block(1, 1000));
        let once = cache.used_bytes();
        cache.put(id(1), block(1, 1000));
        assert_eq!(cache.used_bytes(), once);
    }

    proptest! {
        #[test]
        fn the_limit_is_never_exceeded(puts in prop::collection::vec((0u8..20, 0usize..5000), 0..200), limit in 0u64..20_000) {
            let cache = MemoryCache::new(limit);
            for (number, length) in puts {
                cache.put(id(number), block(number, length));
                prop_assert!(cache.used_bytes() <= limit);
                if let Some(found) = cache.get(&id(number)) {
                    prop_assert_eq!(found, block(number, length));
                }
            }
        }
    }
}
