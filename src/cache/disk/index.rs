//! Where blocks are, by their names: so that a block that another file has is not fetched again.
//!
//! A table of a fixed size without chains: a later block may push an earlier one out, and every answer is only a hint that
//! the map of the file it names confirms or not.

use super::map::Name;
use crate::model::ids::BlockId;

/// Entries at most: 8 MiB.
const ENTRIES_MAX: u64 = 1 << 18;
const ENTRIES_MIN: u64 = 1 << 10;
/// The smallest blocks that are worth an entry each.
const BLOCK_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u64,
    name: Name,
    slot: u32,
    is_set: bool,
}

#[derive(Debug)]
pub(super) struct Index {
    entries: Box<[Entry]>,
}

impl Index {
    /// For a cache of so many bytes.
    pub(super) fn new(limit_bytes: u64) -> Self {
        let count = (limit_bytes / BLOCK_BYTES).clamp(ENTRIES_MIN, ENTRIES_MAX).next_power_of_two();
        let empty = Entry { tag: 0, name: Name([0; 16]), slot: 0, is_set: false };
        Self { entries: vec![empty; count as usize].into() }
    }

    fn at(&self, id: &BlockId) -> (usize, u64) {
        let number = |from: usize| id.0[from..from + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        (number(0) as usize & (self.entries.len() - 1), number(8))
    }

    pub(super) fn insert(&mut self, id: &BlockId, name: Name, slot: u64) {
        let Ok(slot) = u32::try_from(slot) else { return };
        let (at, tag) = self.at(id);
        self.entries[at] = Entry { tag, name, slot, is_set: true };
    }

    pub(super) fn find(&self, id: &BlockId) -> Option<(Name, u64)> {
        let (at, tag) = self.at(id);
        let entry = &self.entries[at];
        (entry.is_set && entry.tag == tag).then(|| (entry.name, u64::from(entry.slot)))
    }

    /// The hint was wrong.
    pub(super) fn remove(&mut self, id: &BlockId) {
        let (at, tag) = self.at(id);
        if self.entries[at].tag == tag {
            self.entries[at].is_set = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_place_of_a_block_is_found_until_it_proves_wrong() {
        let mut index = Index::new(0);
        let id = |number: u8| BlockId([number; 32]);
        index.insert(&id(1), Name([1; 16]), 3);
        index.insert(&id(1), Name([2; 16]), 4);
        assert_eq!(index.find(&id(1)), Some((Name([2; 16]), 4)));
        assert_eq!(index.find(&id(2)), None);
        index.remove(&id(1));
        assert_eq!(index.find(&id(1)), None);
    }

    #[test]
    fn it_does_not_grow_with_the_cache() {
        assert_eq!(Index::new(u64::MAX).entries.len() as u64, ENTRIES_MAX);
        assert!(size_of::<Entry>() <= 32);
    }
}
