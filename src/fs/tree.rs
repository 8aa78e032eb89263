//! The calls of the file system: attributes and look-ups here, directories and files in `opening`.
//!
//! Most calls come twice: `…_ready` answers from memory or says `None`, on any thread; the asynchronous one answers in any
//! case, within the deadline. Both find the same things by the same functions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::base::Clock;
use crate::fs::DESCRIPTION;
use crate::fs::attributes::{Attributes, Owner};
use crate::fs::catalogue::{Catalogue, Describe, Opened, OpenedNode};
use crate::fs::error::FsError;
use crate::fs::extended::About;
use crate::fs::handle::{OpenDirectory, OpenFile};
use crate::fs::handle_table::HandleTable;
use crate::fs::inode::{Inode, InodeTable, NodeKey, Place, ROOT};
use crate::fs::listing::ListingTimes;
use crate::fs::names::{LATEST, Shown, SnapshotNames, may_be_prefix};
use crate::fs::walks::Walks;
use crate::model::manifest::{ClusterManifest, FileKind, TreeEntry};
use crate::model::names::{COMPONENT_BYTES_MAX, ClusterName, TreePath};
use crate::read::{BlockReader, FileMap};

/// Mode of a node's directory whose own entry cannot be read: shown, so that the damage is seen, and closed.
const UNREADABLE_MODE: u32 = 0o500;

/// How the tree behaves.
#[derive(Debug, Clone)]
pub struct FsOptions {
    /// Replaces the owner of everything.
    pub owner: Option<Owner>,
    /// Owner of what was not captured (the directories above nodes, links, descriptions).
    pub own_owner: Owner,
    /// No call takes longer.
    pub deadline: Duration,
    /// For how long a listing of clusters or snapshots is taken as it is.
    pub fresh_for: Duration,
    /// How long listing a directory waits for what may be new there.
    pub patience: Duration,
    /// Renders descriptions; must give the same bytes for the same manifest.
    pub describe: Describe,
    /// Files, and directories, open at a time.
    pub open_max: usize,
    /// What the root says of the mount in its extended attributes.
    pub about: About,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            owner: None,
            own_owner: (0, 0),
            deadline: Duration::from_secs(30),
            fresh_for: Duration::from_secs(2),
            patience: Duration::from_millis(500),
            describe: describe_as_json,
            open_max: 1 << 16,
            about: About::default(),
        }
    }
}

/// The manifest as JSON for people.
pub fn describe_as_json(manifest: &ClusterManifest) -> Vec<u8> {
    // Field order is that of the type and its maps are sorted, so the bytes are always the same.
    let mut text = serde_json::to_vec_pretty(manifest).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}").into_bytes());
    text.push(b'\n');
    text
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its attributes.
    pub attributes: Attributes,
    /// The attributes never change.
    pub is_immutable: bool,
    /// The name never stands for something else, and never goes.
    pub is_name_immutable: bool,
}

/// The tree. Every call may come from any thread.
#[derive(Debug)]
pub struct SnapshotFs {
    pub(super) blocks: Arc<BlockReader>,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) options: FsOptions,
    deadline_ns: AtomicU64,
    began_ns: i64,
    inodes: InodeTable,
    pub(super) files: HandleTable<OpenFile>,
    pub(super) directories: HandleTable<OpenDirectory>,
    /// Shared by all handles of one inode, for as long as there are any.
    pub(super) maps: Mutex<HashMap<u64, Weak<FileMap>>>,
    pub(super) walks: Walks,
}

type Child = (Place, Attributes);

impl SnapshotFs {
    /// The tree of what `blocks` reads from. Nothing is read yet.
    pub fn new(blocks: Arc<BlockReader>, clock: Arc<dyn Clock>, options: FsOptions) -> Arc<Self> {
        let times = ListingTimes { fresh_for: options.fresh_for, patience: options.patience, deadline: options.deadline };
        let runtime = blocks.runtime().clone();
        let catalogue = Catalogue::new(blocks.source().clone(), clock.clone(), runtime, times, options.describe);
        let inodes = InodeTable::default();
        let began_ns = clock.wall_us().saturating_mul(1000);
        // The kernel holds the root without ever having looked it up.
        inodes.remember(Place::Root, Attributes::own_directory(ROOT, options.own_owner, began_ns));
        Arc::new(Self {
            blocks,
            catalogue,
            clock,
            began_ns,
            inodes,
            files: HandleTable::new(options.open_max),
            directories: HandleTable::new(options.open_max),
            maps: Mutex::new(HashMap::new()),
            walks: Walks::default(),
            deadline_ns: AtomicU64::new(nanoseconds(options.deadline)),
            options,
        })
    }

    /// Where its tasks run.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.blocks.runtime()
    }

    /// No call takes longer.
    pub fn deadline(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns.load(Ordering::Relaxed))
    }

    /// Another deadline for the calls that come; never a longer one than at first, since work for them ends by that.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline_ns.store(nanoseconds(deadline.min(self.options.deadline)), Ordering::Relaxed);
    }

    /// Inodes that the kernel knows, for `statfs` and for tests of forgetting.
    pub fn inode_count(&self) -> usize {
        self.inodes.count()
    }

    /// Open files and directories.
    pub fn open_count(&self) -> usize {
        self.files.count() + self.directories.count()
    }

    pub(super) fn inode(&self, number: u64) -> Result<Arc<Inode>, FsError> {
        self.inodes.get(number).ok_or(FsError::Stale)
    }

    pub(super) async fn within<T>(&self, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
        let limit = self.deadline();
        tokio::time::timeout(limit, work).await.unwrap_or(Err(FsError::DeadlineExceeded { limit }))
    }

    fn own_owner(&self) -> Owner {
        self.options.owner.unwrap_or(self.options.own_owner)
    }

    /// Attributes that follow from the place and what is in memory; only for places that are not captured.
    pub(super) fn own_attributes(&self, place: &Place) -> Attributes {
        let (number, owner) = (place.number(), self.own_owner());
        match place {
            Place::Root => Attributes::own_directory(number, owner, self.began_ns),
            Place::Cluster(cluster) => {
                let names = self.catalogue.snapshots(cluster).known();
                let newest = names.as_deref().and_then(SnapshotNames::newest).map(|shown| date_ns(shown));
                Attributes::own_directory(number, owner, newest.unwrap_or(self.began_ns))
            }
            Place::Alias { shown, .. } => Attributes::own_link(number, owner, date_ns(shown), shown.name.len() as u64),
            Place::Snapshot(shown) => Attributes::own_directory(number, owner, date_ns(shown)),
            // Those of a description need its length: see `description`.
            Place::Description(_) | Place::Captured { .. } => {
                let directory = Attributes::own_directory(number, owner, self.began_ns);
                Attributes { mode: UNREADABLE_MODE, ..directory }
            }
        }
    }

    fn captured(&self, place: &Place, entry: &TreeEntry) -> Attributes {
        Attributes::captured(place.number(), self.options.owner, entry)
    }

    fn found(&self, inode: &Inode) -> Found {
        let place = &inode.place;
        let attributes = match place {
            Place::Root | Place::Cluster(_) => Attributes { inode: inode.attributes.inode, ..self.own_attributes(place) },
            _ => inode.attributes,
        };
        let is_name_immutable = matches!(place, Place::Description(_) | Place::Captured { .. });
        Found { attributes, is_immutable: place.is_immutable(), is_name_immutable }
    }

    pub(super) fn remember(&self, (place, attributes): Child) -> Found {
        self.found(&self.inodes.remember(place, attributes))
    }

    fn in_root(&self, clusters: &[ClusterName], name: &ClusterName) -> Option<Child> {
        clusters.contains(name).then(|| self.own(Place::Cluster(name.clone())))
    }

    fn own(&self, place: Place) -> Child {
        let attributes = self.own_attributes(&place);
        (place, attributes)
    }

    fn in_cluster(&self, names: &SnapshotNames, name: &str) -> Option<Child> {
        if name == LATEST {
            return names.latest().map(|shown| self.own(Place::Alias { name: name.into(), shown: shown.clone() }));
        }
        if let Some(shown) = names.find(name) {
            return Some(self.own(Place::Snapshot(shown.clone())));
        }
        let shown = names.resolve(name)?;
        Some(self.own(Place::Alias { name: name.into(), shown: shown.clone() }))
    }

    fn node_key(&self, shown: &Arc<Shown>, opened: &Opened, name: &[u8]) -> Option<Arc<NodeKey>> {
        let name = std::str::from_utf8(name).ok()?;
        let name = opened.nodes().find(|node| node.as_str() == name)?.clone();
        Some(Arc::new(NodeKey { shown: shown.clone(), name }))
    }

    pub(super) fn node_root(&self, node: Arc<NodeKey>, opened: &OpenedNode) -> Child {
        let place = Place::Captured { node, path: TreePath::root(), target: None };
        let attributes = self.captured(&place, &opened.root);
        (place, attributes)
    }

    pub(super) fn description(&self, shown: &Arc<Shown>, opened: &Opened) -> Child {
        let place = Place::Description(shown.clone());
        let size = opened.description().len() as u64;
        let attributes = Attributes::own_file(place.number(), self.own_owner(), date_ns(shown), size);
        (place, attributes)
    }

    fn entry(&self, node: &Arc<NodeKey>, entry: &TreeEntry) -> Child {
        let target = entry.target.as_deref().map(Box::from);
        let place = Place::Captured { node: node.clone(), path: entry.path.clone(), target };
        let attributes = self.captured(&place, entry);
        (place, attributes)
    }

    /// A look-up answered from memory; counts as one of the kernel's look-ups.
    pub fn lookup_ready(&self, parent: u64, name: &[u8]) -> Option<Result<Found, FsError>> {
        let parent = match self.inode(parent) {
            Ok(parent) => parent,
            Err(error) => return Some(Err(error)),
        };
        let child = match self.child_ready(&parent, name)? {
            Ok(child) => child,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(self.remember(child)))
    }

    /// `Some` when memory knows the answer.
    fn child_ready(&self, parent: &Inode, name: &[u8]) -> Option<Result<Child, FsError>> {
        if name.len() > COMPONENT_BYTES_MAX {
            return Some(Err(FsError::NameTooLong));
        }
        let absent = Some(Err(FsError::NotFound));
        match &parent.place {
            Place::Root => {
                // A name that no cluster can have is not worth a listing: shells and file managers look up many.
                let Some(name) = cluster_name(name) else { return absent };
                let listing = self.catalogue.clusters();
                if let Some(child) = listing.known().and_then(|known| self.in_root(&known, &name)) {
                    return Some(Ok(child));
                }
                listing.ready().map(|known| self.in_root(&known, &name).ok_or(FsError::NotFound))
            }
            Place::Cluster(cluster) => {
                let Ok(name) = std::str::from_utf8(name) else { return absent };
                let listing = self.catalogue.snapshots(cluster);
                let known = listing.known();
                if let Some(shown) = known.as_ref().and_then(|known| known.find(name)) {
                    return Some(Ok(self.own(Place::Snapshot(shown.clone()))));
                }
                if name != LATEST && !may_be_prefix(name) {
                    return absent;
                }
                listing.ready().map(|names| self.in_cluster(&names, name).ok_or(FsError::NotFound))
            }
            Place::Snapshot(shown) => {
                let opened = self.catalogue.known_snapshot(shown)?;
                if name == DESCRIPTION.as_bytes() {
                    return Some(Ok(self.description(shown, &opened)));
                }
                let Some(node) = self.node_key(shown, &opened, name) else { return absent };
                let opened = self.catalogue.known_node(&node)?;
                Some(Ok(self.node_root(node, &opened)))
            }
            Place::Captured { node, path, .. } if parent.attributes.kind == FileKind::Directory => {
                let Ok(path) = path.join(name) else { return Some(Err(FsError::NameTooLong)) };
                let found = self.catalogue.known_entry(node, &path)?;
                Some(found.map(|placed| self.entry(node, &placed.entry)).ok_or(FsError::NotFound))
            }
            Place::Alias { .. } | Place::Description(_) | Place::Captured { .. } => Some(Err(FsError::NotADirectory)),
        }
    }

    /// A look-up; counts as one of the kernel's look-ups when it finds something.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found, FsError> {
        let parent = self.inode(parent)?;
        let child = match self.child_ready(&parent, name) {
            Some(child) => child?,
            None => self.within(self.child(&parent, name)).await?,
        };
        Ok(self.remember(child))
    }

    async fn child(&self, parent: &Inode, name: &[u8]) -> Result<Child, FsError> {
        let child = match &parent.place {
            Place::Root => {
                let clusters = self.catalogue.clusters().current().await?;
                cluster_name(name).and_then(|name| self.in_root(&clusters, &name))
            }
            Place::Cluster(cluster) => {
                let names = self.catalogue.snapshots(cluster).current().await?;
                std::str::from_utf8(name).ok().and_then(|name| self.in_cluster(&names, name))
            }
            Place::Snapshot(shown) => {
                let opened = self.catalogue.snapshot(shown).await?;
                if name == DESCRIPTION.as_bytes() {
                    return Ok(self.description(shown, &opened));
                }
                let node = self.node_key(shown, &opened, name).ok_or(FsError::NotFound)?;
                let opened = self.catalogue.node(&node).await?;
                Some(self.node_root(node, &opened))
            }
            Place::Captured { node, path, .. } => {
                let path = path.join(name).map_err(|_| FsError::NameTooLong)?;
                let placed = self.catalogue.entry(node, &path).await?;
                Some(self.entry(node, &placed.entry))
            }
            Place::Alias { .. } | Place::Description(_) => return Err(FsError::NotADirectory),
        };
        child.ok_or(FsError::NotFound)
    }

    /// The kernel forgets `lookups` of an inode.
    pub fn forget(&self, inode: u64, lookups: u64) {
        if inode != ROOT {
            self.inodes.forget(inode, lookups);
        }
    }

    /// Attributes of an inode that the kernel knows: always from memory.
    pub fn attributes(&self, inode: u64) -> Result<Found, FsError> {
        Ok(self.found(&*self.inode(inode)?))
    }

    /// Where a symbolic link points: always from memory.
    pub fn target(&self, inode: u64) -> Result<Vec<u8>, FsError> {
        match &self.inode(inode)?.place {
            Place::Alias { shown, .. } => Ok(shown.name.as_bytes().to_vec()),
            Place::Captured { target: Some(target), .. } => Ok(target.to_vec()),
            _ => Err(FsError::WrongKind),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn date_ns(shown: &Shown) -> i64 {
    shown.listed.date.seconds().saturating_mul(1_000_000_000)
}

fn cluster_name(name: &[u8]) -> Option<ClusterName> {
    std::str::from_utf8(name).ok().and_then(|name| ClusterName::new(name).ok())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
