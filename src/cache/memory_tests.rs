//! What the cache in memory promises.

use bytes::Bytes;

use super::memory::{ENTRY_BYTES, MemoryCache};
use crate::cache::BlockCache;
use crate::model::ids::BlockId;
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
