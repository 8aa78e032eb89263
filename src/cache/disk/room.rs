//! Room for what is written: admission before writing, and what leaves for it.
//!
//! A file's charge is what is allocated for it now, and what the file system may yet allocate to find it again: extents of
//! a file that was written in pieces are described in blocks that appear only when the data reaches the disk.
//!
//! **Invariants.** Nothing is written without a reservation that covers the worst case. One at a time makes room. Locks are
//! taken in this order: making room, a file's turn, names, table.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::statvfs;

use super::Inner;
use super::map::Name;
use super::stored::{self, Stored};
use super::table::FILES_MAX;

/// No file system of ours allocates in smaller units.
pub(super) const UNIT_BYTES_MIN: u64 = 4096;
/// Network file systems name what they would like to move at once.
pub(super) const UNIT_BYTES_MAX: u64 = 64 * 1024;
/// Files of so few units are described in their inode.
const UNITS_IN_INODE: u64 = 4;
/// 340 extents fit a block of 4 KiB, half as many where blocks were split: a block for every 128 is more than it takes.
const UNITS_PER_EXTENT_BLOCK: u64 = 64;
/// Beside the block's own bytes: two units of map, what describes both, two names in a directory and its index.
const EXTRA_UNITS: u64 = 16;
const FLOOR: &str = "the disk has less left than it should";
/// After the disk was full.
pub(super) const FULL_PAUSE: Duration = Duration::from_secs(5);

/// Room for one write. However the write ends, what was really taken is measured.
pub(super) struct Reservation<'a> {
    inner: &'a Inner,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let folders = self.inner.measure_folders();
            let mut table = self.inner.table();
            table.folders = folders.max(table.folders);
            table.reserved -= self.bytes;
        }
    }
}

impl Reservation<'_> {
    /// The write is done: its file is charged with what it takes now.
    pub(super) fn settle(mut self, stored: &Stored) {
        let mut table = self.inner.table();
        // Measured under the lock, so that of two that are done together the later counts both.
        self.inner.charge(&mut table, stored);
        table.folders = self.inner.measure_folders();
        table.reserved -= self.bytes;
        self.bytes = 0;
    }
}

impl Inner {
    /// What a file takes that has so much allocated.
    pub(super) fn bound(&self, (data, map): (u64, u64)) -> u64 {
        let one = |bytes: u64| match bytes <= UNITS_IN_INODE * self.unit_bytes {
            true => bytes,
            false => bytes + bytes / UNITS_PER_EXTENT_BLOCK + 2 * self.unit_bytes,
        };
        one(data) + one(map)
    }

    fn charge(&self, table: &mut super::table::Table, stored: &Stored) {
        if let Ok(allocated) = stored.allocated() {
            table.charge(stored.name, self.bound(allocated));
        }
    }

    pub(super) fn measure_folders(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let one = |path: &std::path::Path| std::fs::metadata(path).map_or(self.unit_bytes, |metadata| metadata.blocks() * 512);
        // The lock's file has one line.
        one(&self.claim.root) + one(&self.claim.files) + self.unit_bytes
    }

    fn need(&self, block_bytes: u64) -> u64 {
        let whole = block_bytes.next_multiple_of(self.unit_bytes);
        whole + whole / UNITS_PER_EXTENT_BLOCK + EXTRA_UNITS * self.unit_bytes
    }

    /// Makes room for a block and reserves it; `None` when there cannot be any now.
    pub(super) fn admit(&self, block_bytes: u64) -> Option<Reservation<'_>> {
        let need = self.need(block_bytes);
        let _turn = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if self.table().folders + need > self.options.limit_bytes {
            // Not even an empty cache had room, so nothing has to go for it.
            return None;
        }
        let short = self.short(need)?;
        let mut freed = 0;
        let mut kept = HashSet::new();
        loop {
            let oldest = {
                let mut table = self.table();
                if freed >= short && table.len() < FILES_MAX && table.used() + need <= self.options.limit_bytes {
                    table.reserved += need;
                    break;
                }
                table.oldest(&kept)
            };
            let Some(oldest) = oldest else {
                // Nothing left to give: the disk is others'.
                if short > 0 {
                    self.pause(&FLOOR);
                }
                return None;
            };
            match self.evict(&oldest) {
                Some(bytes) => freed += bytes,
                None => _ = kept.insert(oldest),
            }
        }
        let reservation = Reservation { inner: self, bytes: need };
        if short > 0 && self.short(0)? > 0 {
            self.pause(&FLOOR);
            return None;
        }
        Some(reservation)
    }

    /// How much too little the disk has for a write of `need` beside all that are under way.
    fn short(&self, need: u64) -> Option<u64> {
        let status = statvfs(&self.claim.files).ok()?;
        let wanted = self.options.keep_free_bytes.saturating_add(self.table().reserved).saturating_add(need);
        Some(wanted.saturating_sub(status.f_bavail.saturating_mul(status.f_frsize)))
    }

    /// Takes a part of the file away, or all of it; how much less it takes. `None` when it cannot be had back now.
    pub(super) fn evict(&self, name: &Name) -> Option<u64> {
        let Some(stored) = self.find(name) else { return self.remove(name) };
        let _alone = stored.turn.write().unwrap_or_else(PoisonError::into_inner);
        if stored.is_gone.load(Ordering::Relaxed) {
            return Some(0);
        }
        if stored.is_held() {
            return None;
        }
        if !stored.was_handed_out() && matches!(stored.drop_oldest(), Ok(true)) {
            let mut table = self.table();
            let before = table.used();
            self.charge(&mut table, &stored);
            let freed = before.saturating_sub(table.used());
            if freed > 0 {
                return Some(freed);
            }
        }
        stored.is_gone.store(true, Ordering::Relaxed);
        if !stored.was_handed_out() {
            // Who waits for his turn has it open, and its bytes would stay until he has let it go.
            stored.empty();
        }
        let freed = self.remove(name);
        if freed.is_none() {
            self.table().close(name);
        }
        freed
    }

    /// What a file took that is removed now.
    pub(super) fn remove(&self, name: &Name) -> Option<u64> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match stored::remove(&self.claim.files, name) {
            Ok(()) => Some(self.table().remove(name)),
            Err(error) => {
                tracing::warn!(file = %name, %error, "a cached file cannot be removed");
                None
            }
        }
    }
}
