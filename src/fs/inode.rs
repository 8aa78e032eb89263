//! Inodes: what the kernel knows by number, as long as it does.
//!
//! A number is a keyed hash of what the thing is (cluster, identity of the snapshot, node, path) and of nothing else: the
//! same after every remount, on every host, in every order of look-ups. `latest` and other links are another thing once they
//! point elsewhere, so that the kernel may keep what they point to for ever.
//!
//! **Invariants.** One number, one place: where two places that the kernel knows at the same time have one hash, the later
//! one gets the next free number for as long as it is known. With a million files known that is less likely than one in
//! ten million; the number is the kernel's key, so a wrong file would be worse than a number that changes.
//! An inode is in the table exactly while the kernel holds look-ups of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::fs::attributes::Attributes;
use crate::fs::names::Shown;
use crate::model::names::{ClusterName, NodeName, TreePath};

/// The number of the root, fixed by the kernel.
pub const ROOT: u64 = 1;

/// Keeps these hashes apart from all others of the same bytes. Another key gives every file another number, which backup
/// programs take for another file.
const NUMBERS: &str = "tintype 2026-11 inode numbers of the mount";

fn key() -> &'static [u8; 32] {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    KEY.get_or_init(|| blake3::derive_key(NUMBERS, b""))
}

/// A node of a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeKey {
    /// The snapshot.
    pub shown: Arc<Shown>,
    /// The node.
    pub name: NodeName,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The root.
    Root,
    /// A cluster's directory.
    Cluster(ClusterName),
    /// A link to a snapshot beside it: `latest`, a day, another prefix.
    Alias {
        /// Its own name.
        name: Box<str>,
        /// Where it points.
        shown: Arc<Shown>,
    },
    /// A snapshot's directory.
    Snapshot(Arc<Shown>),
    /// The description inside a snapshot's directory.
    Description(Arc<Shown>),
    /// Something captured; the empty path is the node's directory.
    Captured {
        /// Of which node.
        node: Arc<NodeKey>,
        /// Where in it.
        path: TreePath,
        /// Of a symbolic link: where it points.
        target: Option<Box<[u8]>>,
    },
}

impl Place {
    /// The number that it has unless another place has the same hash.
    pub fn number(&self) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(key());
        // Each part behind its length, so that no two lists of parts are the same bytes.
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        match self {
            Self::Root => return ROOT,
            Self::Cluster(cluster) => {
                part(b"cluster");
                part(cluster.as_str().as_bytes());
            }
            Self::Alias { name, shown } => {
                part(b"alias");
                part(shown.listed.cluster.as_str().as_bytes());
                part(name.as_bytes());
                part(shown.name.as_bytes());
                part(shown.listed.uuid.as_bytes());
            }
            Self::Snapshot(shown) => {
                part(b"snapshot");
                part(shown.listed.cluster.as_str().as_bytes());
                part(shown.listed.uuid.as_bytes());
            }
            Self::Description(shown) => {
                part(b"description");
                part(shown.listed.cluster.as_str().as_bytes());
                part(shown.listed.uuid.as_bytes());
            }
            Self::Captured { node, path, .. } => {
                part(b"captured");
                part(node.shown.listed.cluster.as_str().as_bytes());
                part(node.shown.listed.uuid.as_bytes());
                part(node.name.as_str().as_bytes());
                part(path.as_bytes());
            }
        }
        let mut number = [0; 8];
        number.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // 0 means nothing to the kernel and 1 is the root; some programs read numbers as signed.
        (u64::from_le_bytes(number) >> 1).max(ROOT + 1)
    }

    /// The directory that holds it.
    pub fn parent(&self) -> Self {
        match self {
            Self::Root | Self::Cluster(_) => Self::Root,
            Self::Alias { shown, .. } | Self::Snapshot(shown) => Self::Cluster(shown.listed.cluster.clone()),
            Self::Description(shown) => Self::Snapshot(shown.clone()),
            Self::Captured { node, path, .. } => match path.parent() {
                Some(path) => Self::Captured { node: node.clone(), path, target: None },
                None => Self::Snapshot(node.shown.clone()),
            },
        }
    }

    /// What is inside, or it itself, never changes.
    pub fn is_immutable(&self) -> bool {
        !matches!(self, Self::Root | Self::Cluster(_))
    }
}

/// An inode that the kernel knows.
#[derive(Debug)]
pub struct Inode {
    /// What it is.
    pub place: Place,
    /// As they were at the first look-up; of the root and of clusters only the number is to be used.
    pub attributes: Attributes,
}

/// All inodes that the kernel knows, with the number of its look-ups.
#[derive(Debug, Default)]
pub struct InodeTable {
    slots: Mutex<HashMap<u64, Slot>>,
}

#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    lookups: u64,
}

impl InodeTable {
    fn slots(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The inode of this number, if the kernel knows it.
    pub fn get(&self, number: u64) -> Option<Arc<Inode>> {
        self.slots().get(&number).map(|slot| slot.inode.clone())
    }

    /// Counts one look-up and returns the inode, with the number that it got.
    pub fn remember(&self, place: Place, mut attributes: Attributes) -> Arc<Inode> {
        let mut number = place.number();
        let mut slots = self.slots();
        while let Some(slot) = slots.get_mut(&number) {
            if slot.inode.place == place {
                slot.lookups += 1;
                return slot.inode.clone();
            }
            number = number.wrapping_add(1).max(ROOT + 1);
        }
        attributes.inode = number;
        let inode = Arc::new(Inode { place, attributes });
        slots.insert(number, Slot { inode: inode.clone(), lookups: 1 });
        inode
    }

    /// The kernel lets go of `lookups` of them.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut slots = self.slots();
        if let Some(slot) = slots.get_mut(&number) {
            slot.lookups = slot.lookups.saturating_sub(lookups);
            if slot.lookups == 0 {
                slots.remove(&number);
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Place {
        Place::Cluster(ClusterName::new(name).expect("legal"))
    }

    fn attributes() -> Attributes {
        Attributes::own_directory(0, (0, 0), 0)
    }

    #[test]
    fn a_number_is_the_same_after_a_remount() {
        let number = |table: &InodeTable| table.remember(cluster("prod"), attributes()).attributes.inode;
        assert_eq!(number(&InodeTable::default()), number(&InodeTable::default()));
    }

    #[test]
    fn a_number_stays_the_same_between_versions() {
        assert_eq!(cluster("prod").number(), 1_623_688_520_917_862_556);
    }

    #[test]
    fn what_was_looked_up_twice_is_forgotten_twice() {
        let table = InodeTable::default();
        let number = table.remember(cluster("prod"), attributes()).attributes.inode;
        table.remember(cluster("prod"), attributes());
        table.forget(number, 1);
        assert!(table.get(number).is_some());
        table.forget(number, 1);
        assert!(table.get(number).is_none());
    }

    #[test]
    fn places_of_one_hash_get_different_numbers() {
        let table = InodeTable::default();
        let place = cluster("prod");
        let number = place.number();
        let other = Arc::new(Inode { place: cluster("other"), attributes: attributes() });
        table.slots().insert(number, Slot { inode: other, lookups: 1 });
        assert_eq!(table.remember(place.clone(), attributes()).attributes.inode, number + 1);
        assert_eq!(table.remember(place, attributes()).attributes.inode, number + 1);
    }

    #[test]
    fn forgetting_what_is_not_known_is_fine() {
        InodeTable::default().forget(99, 5);
    }
}
