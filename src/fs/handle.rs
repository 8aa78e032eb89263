//! Open files and directories.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use crate::fs::attributes::{Attributes, Owner};
use crate::fs::catalogue::Directory;
use crate::fs::error::FsError;
use crate::fs::inode::{Inode, NodeKey, Place};
use crate::fs::names::{LATEST, SnapshotNames};
use crate::model::manifest::FileKind;
use crate::model::names::ClusterName;
use crate::read::FileReader;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// Its inode.
    pub inode: u64,
    /// Its bytes.
    pub content: OpenContent,
    /// The last read that ran into trouble: where, when, and what it was.
    failure: Mutex<Option<(u64, Duration, FsError)>>,
}

/// Where an open file's bytes come from.
#[derive(Debug)]
pub enum OpenContent {
    /// Stored blocks.
    Stored(FileReader),
    /// Memory.
    Ready(Bytes),
}

/// How long a failed read is answered with the same failure. The kernel reads a page again at once when its read-ahead
/// failed; without this, a read from a source that hangs would take two deadlines.
const FAILURE_HOLDS: Duration = Duration::from_secs(1);
/// How far around a failed read the failure holds: what one read-ahead of the kernel spans.
const FAILURE_SPAN: u64 = 4 * 1024 * 1024;

impl OpenFile {
    /// Opened just now.
    pub fn new(inode: u64, content: OpenContent) -> Self {
        Self { inode, content, failure: Mutex::new(None) }
    }

    fn failure(&self) -> MutexGuard<'_, Option<(u64, Duration, FsError)>> {
        self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes note of a read at `offset` that failed at `now` (monotonic).
    pub fn failed(&self, offset: u64, now: Duration, error: &FsError) {
        *self.failure() = Some((offset, now, error.clone()));
    }

    /// The failure that a read at `offset` is to repeat instead of trying.
    pub fn recent_failure(&self, offset: u64, now: Duration) -> Option<FsError> {
        let failure = self.failure();
        let (at, when, error) = failure.as_ref()?;
        (offset.abs_diff(*at) <= FAILURE_SPAN && now < *when + FAILURE_HOLDS).then(|| error.clone())
    }
}

/// An open directory: what it held when it was opened. Offsets count from there, so they stay good.
#[derive(Debug)]
pub struct OpenDirectory {
    /// The directory.
    pub inode: Arc<Inode>,
    /// What it held.
    pub content: DirectoryContent,
    /// Replaces the owners of what was captured.
    pub owner: Option<Owner>,
}

/// What a directory held when it was opened.
#[derive(Debug)]
pub enum DirectoryContent {
    /// The root.
    Clusters(Arc<Vec<ClusterName>>),
    /// A cluster.
    Snapshots(Arc<SnapshotNames>),
    /// A snapshot: the attributes of its description, and its nodes with theirs.
    Nodes(Attributes, Vec<(Arc<NodeKey>, Attributes)>),
    /// A directory of a node.
    Entries(Arc<NodeKey>, Arc<Directory>),
}

/// One entry of an open directory.
#[derive(Debug)]
pub struct DirectoryItem {
    /// Where to go on behind it.
    pub next: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Its number.
    pub inode: u64,
    /// Its kind.
    pub kind: FileKind,
    /// What it is; absent for `.` and `..`.
    pub place: Option<ItemPlace>,
}

/// What an item is, as far as the directory knows it.
#[derive(Debug)]
pub struct ItemPlace {
    /// What it is.
    pub place: Place,
    /// Its attributes, where they do not follow from the place alone.
    pub attributes: Option<Attributes>,
}

impl OpenDirectory {
    /// The items from an offset on; 0 is the beginning.
    pub fn items(&self, offset: u64) -> impl Iterator<Item = DirectoryItem> + '_ {
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        (first..usize::MAX).map_while(|index| self.item(index))
    }

    fn item(&self, index: usize) -> Option<DirectoryItem> {
        let next = index as u64 + 1;
        let dots = |name: &[u8], inode| {
            let (name, kind) = (name.to_vec(), FileKind::Directory);
            Some(DirectoryItem { next, name, inode, kind, place: None })
        };
        match index {
            0 => return dots(b".", self.inode.attributes.inode),
            1 => return dots(b"..", self.inode.place.parent().number()),
            _ => {}
        }
        let (name, kind, place, attributes) = self.content(index - 2)?;
        Some(DirectoryItem { next, name, inode: place.number(), kind, place: Some(ItemPlace { place, attributes }) })
    }

    fn content(&self, index: usize) -> Option<(Vec<u8>, FileKind, Place, Option<Attributes>)> {
        match &self.content {
            DirectoryContent::Clusters(clusters) => {
                let cluster = clusters.get(index)?;
                Some((cluster.as_str().into(), FileKind::Directory, Place::Cluster(cluster.clone()), None))
            }
            DirectoryContent::Snapshots(names) => {
                let behind_latest = match names.latest() {
                    Some(shown) if index == 0 => {
                        let place = Place::Alias { name: LATEST.into(), shown: shown.clone() };
                        return Some((LATEST.into(), FileKind::Link, place, None));
                    }
                    Some(_) => index - 1,
                    None => index,
                };
                let shown = names.shown().get(behind_latest)?;
                Some((shown.name.as_bytes().to_vec(), FileKind::Directory, Place::Snapshot(shown.clone()), None))
            }
            DirectoryContent::Nodes(description, nodes) => {
                if index == 0 {
                    let Place::Snapshot(shown) = &self.inode.place else { return None };
                    let place = Place::Description(shown.clone());
                    return Some((crate::fs::DESCRIPTION.into(), FileKind::File, place, Some(*description)));
                }
                let (node, attributes) = nodes.get(index - 1)?;
                let place = Place::Captured { node: node.clone(), path: Default::default(), target: None };
                let name = node.name.as_str().into();
                Some((name, FileKind::Directory, place, Some(*attributes)))
            }
            DirectoryContent::Entries(node, directory) => {
                let entry = &directory.entries().get(index)?.entry;
                let target = entry.target.as_deref().map(Box::from);
                let place = Place::Captured { node: node.clone(), path: entry.path.clone(), target };
                let attributes = Attributes::captured(place.number(), self.owner, entry);
                Some((entry.path.file_name().to_vec(), entry.kind, place, Some(attributes)))
            }
        }
    }
}
