//! What the cache knows of its files without looking: which there are, what each takes, which are open, which was used last.
//!
//! **Invariants.** Every byte that is allocated below the directory is in `charged`, in `folders`, or covered by what is
//! `reserved`, at every instant: a charge is measured under the table's lock, and a reservation ends in the same step. A
//! cached file is open at most once, so that its `turn` keeps everybody in order.

use std::collections::HashSet;
use std::sync::Arc;

use lru::LruCache;

use super::map::Name;
use super::stored::Stored;

/// Files held open: two descriptors each.
const OPEN_MAX: usize = 64;
/// Files known, at about a hundred bytes each.
pub(super) const FILES_MAX: usize = 1 << 17;

#[derive(Debug)]
pub(super) struct Table {
    /// What each file takes; most recently used first.
    files: LruCache<Name, u64>,
    open: LruCache<Name, Arc<Stored>>,
    charged: u64,
    pub(super) reserved: u64,
    /// What directories and the lock take.
    pub(super) folders: u64,
    /// All files that there are are known.
    pub(super) is_complete: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            files: LruCache::unbounded(),
            open: LruCache::unbounded(),
            charged: 0,
            reserved: 0,
            folders: 0,
            is_complete: false,
        }
    }
}

impl Table {
    pub(super) fn used(&self) -> u64 {
        self.charged + self.folders + self.reserved
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn knows(&self, name: &Name) -> bool {
        self.files.contains(name)
    }

    /// An open file. Looking for it is no use of it.
    pub(super) fn opened(&mut self, name: &Name) -> Option<Arc<Stored>> {
        self.open.get(name).cloned()
    }

    /// The file was used.
    pub(super) fn touch(&mut self, name: &Name) {
        self.files.promote(name);
    }

    /// One that was just opened, or the one that was quicker.
    pub(super) fn insert_open(&mut self, stored: Arc<Stored>) -> Arc<Stored> {
        if let Some(before) = self.open.get(&stored.name) {
            return before.clone();
        }
        self.open.put(stored.name, stored.clone());
        if self.open.len() > OPEN_MAX {
            // Only what nobody uses may be opened a second time.
            let idle = self.open.iter().rev().find(|(_, stored)| Arc::strong_count(stored) == 1).map(|(name, _)| *name);
            idle.and_then(|name| self.open.pop(&name));
        }
        stored
    }

    /// What a file takes from now on.
    pub(super) fn charge(&mut self, name: Name, bytes: u64) {
        let before = match self.files.peek_mut(&name) {
            Some(charge) => std::mem::replace(charge, bytes),
            None => {
                self.files.put(name, bytes);
                0
            }
        };
        self.charged = self.charged - before + bytes;
    }

    /// A file from before this start: used before all others that are known.
    pub(super) fn charge_older(&mut self, name: Name, bytes: u64) {
        let is_new = !self.knows(&name);
        self.charge(name, bytes);
        if is_new {
            self.files.demote(&name);
        }
    }

    /// It is not open any more.
    pub(super) fn close(&mut self, name: &Name) {
        self.open.pop(name);
    }

    /// What it took.
    pub(super) fn remove(&mut self, name: &Name) -> u64 {
        self.open.pop(name);
        let charge = self.files.pop(name).unwrap_or(0);
        self.charged -= charge;
        charge
    }

    /// The file that was not used for longest, but for those.
    pub(super) fn oldest(&self, but: &HashSet<Name>) -> Option<Name> {
        self.files.iter().rev().map(|(name, _)| *name).find(|name| !but.contains(name))
    }

    pub(super) fn names(&self) -> Vec<Name> {
        self.files.iter().map(|(name, _)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_and_the_least_recently_used_is_the_oldest() {
        let mut table = Table::default();
        let name = |number| Name([number; 16]);
        for number in 1..=3 {
            table.charge(name(number), 100);
        }
        table.charge(name(1), 50);
        table.charge_older(name(9), 7);
        assert_eq!(table.used(), 257);
        assert_eq!(table.oldest(&HashSet::new()), Some(name(9)));
        table.touch(&name(9));
        assert_eq!(table.oldest(&HashSet::new()), Some(name(1)));
        assert_eq!(table.oldest(&HashSet::from([name(1)])), Some(name(2)));
        assert_eq!((table.remove(&name(1)), table.remove(&name(1)), table.used()), (50, 0, 207));
    }
}
