//! What a mount does with the memory that it may take.

use std::time::Duration;

use crate::read::ReadOptions;

/// A cache smaller than a part of this would throw blocks away between two reads of the same one.
const BYTES_MIN: u64 = 32 << 20;
/// Ahead of one reader at most: twelve requests of four blocks, which keep as many connections busy.
const AHEAD_BYTES_MAX: u64 = 48 << 20;
/// Memory of this size and more goes back to the system when it is freed.
const RETURNED_BYTES_MIN: libc::c_int = 256 << 10;

/// Divides `bound` bytes: what the cache of blocks gets, and the limits of reading. Three eighths are kept; a quarter may be
/// under way, most of it as stored only, since few blocks are being opened at a time. The rest is for those, for listings,
/// connections, and buffers between two uses.
pub(super) fn divide(bound: u64, deadline: Duration) -> (u64, ReadOptions) {
    let bound = bound.max(BYTES_MIN);
    let read = ReadOptions { in_flight_bytes: bound / 4, ahead_bytes: (bound / 16 * 3).min(AHEAD_BYTES_MAX), deadline };
    (bound / 8 * 3, read)
}

/// Keeps the C library's allocator to one heap, and large memory out of it. By default each busy thread may get a heap of
/// its own, and what a block leaves free in one of them serves no other: a mount took twice its bound. In one heap, ranges
/// and blocks of different lengths leave holes that fit nothing: it was still half as much again. Blocks themselves are lent
/// and lent again, so that little is asked of the system.
pub(super) fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, RETURNED_BYTES_MIN)] {
        // SAFETY: it sets a number of the allocator under the allocator's own lock, and takes no pointer.
        if unsafe { libc::mallopt(what, value) } == 0 {
            tracing::debug!(what, "the allocator keeps its own way");
        }
    }
}
