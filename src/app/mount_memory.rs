//! What a mount does with the memory that it may take.

use std::time::Duration;

use crate::read::ReadOptions;

/// A cache smaller than a part of this would throw blocks away between two reads of the same one.
const BYTES_MIN: u64 = 32 << 20;
/// Ahead of one reader at most: eight requests of four blocks, which keep eight connections busy.
const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// Divides `bound` bytes: what the cache of blocks gets, and the limits of reading. Three eighths are kept; as much may be
/// under way, each byte of it once as stored and once as read. The rest is for listings, connections, and what the
/// allocator wastes.
pub(super) fn divide(bound: u64, deadline: Duration) -> (u64, ReadOptions) {
    let bound = bound.max(BYTES_MIN);
    let read = ReadOptions { in_flight_bytes: bound / 16 * 3, ahead_bytes: (bound / 8).min(AHEAD_BYTES_MAX), deadline };
    (bound / 8 * 3, read)
}

/// Keeps the C library's allocator to one heap. By default each busy thread may get one of its own, and what a block leaves
/// free in one of them serves no other: a mount took twice its bound. Blocks themselves are lent and lent again.
pub(super) fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator under the allocator's own lock, and takes no pointer.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::debug!("the allocator keeps its own number of heaps");
    }
}
