//! Which pages of a file of a clone are its own, and which are still those of the snapshot: a decision without I/O.
//!
//! A file of a clone begins as a *limit* and nothing else: every byte below the limit is the base's, every byte at and
//! behind it is the upper layer's (which has a hole there at first). What is written below the limit becomes the upper
//! layer's, a page of [`PAGE_BYTES`] at a time, whatever the size of the stored blocks. Pages only ever come to the upper
//! layer, and the limit only ever falls: so a map that lost its newest changes is still true of the data before them.
//!
//! **Stored form.** A header of [`PAGE_BYTES`] bytes, see [`header`], then one bit per page, least significant first.

use std::collections::BTreeSet;
use std::ops::Range;

/// What validity is counted in: what the kernel's page cache and the stores write in.
pub const PAGE_BYTES: u64 = 4096;
/// Pages whose bits stand in one page of the stored map.
const PAGES_PER_LEAF: u64 = PAGE_BYTES * 8;
const MAGIC: &[u8; 16] = b"tintype pages 1\n";

/// Whose bytes a stretch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The snapshot's.
    Base,
    /// The clone's own.
    Upper,
}

/// A stretch of one layer.
pub type Stretch = (Range<u64>, Layer);

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMap {
    limit: u64,
    /// One bit per page below the limit that the map began with.
    words: Vec<u64>,
    /// Stored pages of the map that differ from what was saved.
    leaves: BTreeSet<u64>,
    is_limit_changed: bool,
    /// What was taken to be saved and is not known to be: it counts as unsaved. Whether the limit is part of that.
    in_flight: Option<bool>,
}

/// What has to be stored for the map to be as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsaved {
    /// Offset in the stored map, and the bytes there.
    pub writes: Vec<(u64, Vec<u8>)>,
    leaves: BTreeSet<u64>,
    is_limit_changed: bool,
}

impl PageMap {
    /// All of the first `limit` bytes are the base's. `None`: there is no memory for so many pages.
    pub fn new(limit: u64) -> Option<Self> {
        let count = usize::try_from(limit.div_ceil(PAGE_BYTES).div_ceil(64)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize(count, 0);
        Some(Self { limit, words, leaves: BTreeSet::new(), is_limit_changed: false, in_flight: None })
    }

    /// Reads a stored map of a file whose base has `base_bytes` bytes; `None` when it is none.
    pub fn parse(stored: &[u8], base_bytes: u64) -> Option<Self> {
        let (head, bits) = stored.split_at_checked(PAGE_BYTES as usize)?;
        let limit = head.strip_prefix(MAGIC)?.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))?;
        let mut map = Self::new(base_bytes)?;
        map.limit = (limit <= base_bytes).then_some(limit)?;
        for (word, bytes) in map.words.iter_mut().zip(bits.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        Some(map)
    }

    fn is_upper(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_none_or(|word| word >> (page % 64) & 1 == 1)
    }

    /// `offset..end` as stretches of one layer each, in order.
    pub fn stretches(&self, offset: u64, end: u64) -> Vec<Stretch> {
        let mut found: Vec<Stretch> = Vec::new();
        let mut at = offset;
        while at < end {
            let page = at / PAGE_BYTES;
            let (layer, until) = if at >= self.limit {
                (Layer::Upper, end)
            } else {
                let layer = if self.is_upper(page) { Layer::Upper } else { Layer::Base };
                (layer, end.min(self.limit).min((page + 1) * PAGE_BYTES))
            };
            match found.last_mut() {
                Some((range, last)) if *last == layer => range.end = until,
                _ => found.push((at..until, layer)),
            }
            at = until;
        }
        found
    }

    /// The bytes of the base that have to be copied before `offset..end` may be written: those that share a page with it and
    /// are not covered by it. At most two stretches, each within one page; none where whole pages are written, or behind the
    /// limit.
    pub fn to_complete(&self, offset: u64, end: u64) -> Vec<Range<u64>> {
        if offset >= end || offset >= self.limit {
            return Vec::new();
        }
        let first = offset / PAGE_BYTES;
        let last = (end.min(self.limit) - 1) / PAGE_BYTES;
        let mut found = Vec::new();
        for page in if first == last { vec![first] } else { vec![first, last] } {
            let own = page * PAGE_BYTES..((page + 1) * PAGE_BYTES).min(self.limit);
            let is_covered = offset <= own.start && own.end <= end;
            if !is_covered && !self.is_upper(page) {
                found.push(own);
            }
        }
        found
    }

    /// Pages of `offset..end` are the upper layer's from now on. What [`Self::to_complete`] named has been written.
    pub fn take(&mut self, offset: u64, end: u64) {
        let end = end.min(self.limit);
        if offset >= end {
            return;
        }
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            if !self.is_upper(page) {
                self.words[(page / 64) as usize] |= 1 << (page % 64);
                self.leaves.insert(page / PAGES_PER_LEAF);
            }
        }
    }

    /// The head of the map as it is stored.
    pub fn header(&self) -> Vec<u8> {
        header(self.limit)
    }

    /// [`Self::cut`] would change something.
    pub fn would_cut(&self, limit: u64) -> bool {
        limit < self.limit
    }

    /// The byte at `offset` is one that the base has.
    pub fn is_below_limit(&self, offset: u64) -> bool {
        offset < self.limit
    }

    /// What is at and behind `limit` is no longer the base's.
    pub fn cut(&mut self, limit: u64) {
        if self.would_cut(limit) {
            self.limit = limit;
            self.is_limit_changed = true;
        }
    }

    /// Nothing of the base is left.
    pub fn is_whole(&self) -> bool {
        let pages = self.limit.div_ceil(PAGE_BYTES);
        // A word at a time: this is asked whenever a file is closed.
        let (whole, rest) = self.words.split_at((pages / 64) as usize);
        let is_full = |word: &u64| *word == u64::MAX;
        whole.iter().all(is_full)
            && (pages.is_multiple_of(64) || rest.first().is_some_and(|word| is_full(&(word | u64::MAX << (pages % 64)))))
    }

    /// The limit is to be saved.
    pub fn is_limit_unsaved(&self) -> bool {
        self.is_limit_changed || self.in_flight == Some(true)
    }

    /// Something is to be saved, or is being saved.
    pub fn is_unsaved(&self) -> bool {
        self.is_limit_changed || !self.leaves.is_empty() || self.in_flight.is_some()
    }

    /// Takes what is to be saved, until [`Self::saved`] or [`Self::restore`]. The data that it speaks of has to be durable before it is written.
    pub fn unsaved(&mut self) -> Unsaved {
        let (leaves, is_limit_changed) = (std::mem::take(&mut self.leaves), std::mem::take(&mut self.is_limit_changed));
        self.in_flight = Some(is_limit_changed);
        // The header goes with every save: the first one makes the file.
        let mut writes = vec![(0, self.header())];
        for leaf in &leaves {
            let first = (leaf * PAGES_PER_LEAF / 64) as usize;
            let words = &self.words[first..self.words.len().min(first + (PAGES_PER_LEAF / 64) as usize)];
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            writes.push((PAGE_BYTES * (leaf + 1), bytes));
        }
        Unsaved { writes, leaves, is_limit_changed }
    }

    /// What was taken is durable.
    pub fn saved(&mut self) {
        self.in_flight = None;
    }

    /// It was not saved after all.
    pub fn restore(&mut self, unsaved: Unsaved) {
        self.in_flight = None;
        self.leaves.extend(unsaved.leaves);
        self.is_limit_changed |= unsaved.is_limit_changed;
    }
}

/// The head of a stored map: its mark, and the limit as eight bytes, least significant first.
fn header(limit: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(limit.to_le_bytes());
    bytes.resize(PAGE_BYTES as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE_BYTES;

    #[test]
    fn an_append_completes_nothing_and_a_patch_only_its_own_edges() {
        let map = PageMap::new(3 * P + 100).expect("small");
        assert!(map.to_complete(3 * P + 100, 3 * P + 200).is_empty(), "an append in the middle of a page");
        assert!(map.to_complete(P, 2 * P).is_empty(), "a whole page");
        assert!(map.to_complete(3 * P, 3 * P + 100).is_empty(), "all that there is of the last one");
        assert_eq!(map.to_complete(P + 1, P + 2), vec![P..2 * P]);
        assert_eq!(map.to_complete(1, 2 * P + 1), [0..P, 2 * P..3 * P]);
        assert_eq!(map.to_complete(3 * P + 10, 4 * P), vec![3 * P..3 * P + 100]);
        assert_eq!(map.to_complete(5 * P, 6 * P), []);
        let mut map = map;
        map.take(0, P);
        assert_eq!(map.to_complete(1, 2 * P + 1), vec![2 * P..3 * P]);
    }

    #[test]
    fn stretches_are_joined_and_end_at_the_limit() {
        let mut map = PageMap::new(4 * P + 1).expect("small");
        map.take(P, 3 * P);
        let found = map.stretches(10, 6 * P);
        let wanted =
            [(10..P, Layer::Base), (P..3 * P, Layer::Upper), (3 * P..4 * P + 1, Layer::Base), (4 * P + 1..6 * P, Layer::Upper)];
        assert_eq!(found, wanted);
        map.cut(P + 5);
        assert_eq!(map.stretches(0, 2 * P), [(0..P, Layer::Base), (P..2 * P, Layer::Upper)]);
        assert!(!map.is_whole());
        map.take(0, 1);
        assert!(map.is_whole());
    }

    #[test]
    fn a_saved_map_is_the_same_map_and_losing_a_save_loses_nothing_older() {
        let base = 70_000 * P;
        let mut map = PageMap::new(base).expect("small");
        let mut stored = Vec::new();
        let store = |stored: &mut Vec<u8>, unsaved: &Unsaved| {
            for (offset, bytes) in &unsaved.writes {
                let end = *offset as usize + bytes.len();
                stored.resize(stored.len().max(end), 0);
                stored[*offset as usize..end].copy_from_slice(bytes);
            }
        };
        map.take(40_000 * P, 40_010 * P);
        map.cut(60_000 * P);
        let unsaved = map.unsaved();
        assert_eq!(unsaved.writes.len(), 2, "the header and the one stretch that changed");
        store(&mut stored, &unsaved);
        assert!(map.is_unsaved() && map.is_limit_unsaved(), "it may still fail");
        map.saved();
        assert!(!map.is_unsaved() && !map.is_limit_unsaved());
        assert_eq!(PageMap::parse(&stored, base), Some(map.clone()));
        let before = map.clone();
        map.take(5 * P, 6 * P);
        let lost = map.unsaved();
        assert_eq!(PageMap::parse(&stored, base), Some(before));
        map.restore(lost);
        store(&mut stored, &map.unsaved());
        map.saved();
        assert_eq!(PageMap::parse(&stored, base), Some(map));
        assert_eq!(PageMap::new(1 << 62), None, "more than there is memory for");
        assert_eq!(PageMap::parse(b"something else", base), None);
        assert_eq!(PageMap::parse(&header(base + 1), base), None, "a limit behind the base");
    }
}
