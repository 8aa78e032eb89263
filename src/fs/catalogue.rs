//! What the tree knows of the source, and how it learns the rest: listings, opened snapshots, trees and directories.
//!
//! **Invariants.** Only listings change; everything else is a cache of what cannot. What is loaded is loaded by one task
//! per thing, which ends at its deadline and does not depend on who asked still waiting.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::base::{Clock, SingleFlight};
use crate::fs::error::FsError;
use crate::fs::inode::NodeKey;
use crate::fs::listing::{Listing, ListingTimes};
use crate::fs::names::{Shown, SnapshotNames};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{ClusterManifest, TreeEntry};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::repo::{ListedSnapshot, NodeTree, PlacedEntry, RepoError, SnapshotSource};

/// Opened snapshots and nodes kept: a few per cluster that somebody looks into.
const OPENED_KEPT: usize = 256;
/// Entries of all listed directories kept together, at about half a kilobyte each.
const ENTRIES_KEPT: usize = 32 * 1024;
/// A renewal asks for this many of the newest snapshots, one small page of a listing.
const NEWEST: usize = 64;
/// How often a renewal lists everything, to notice what was dropped among the older ones.
const WHOLE_EVERY: Duration = Duration::from_secs(60);

/// Renders a snapshot's description.
pub type Describe = fn(&ClusterManifest) -> Vec<u8>;

/// A snapshot whose manifest was read.
#[derive(Debug)]
pub struct Opened {
    /// The manifest.
    pub manifest: Arc<ClusterManifest>,
    describe: Describe,
    description: OnceLock<Bytes>,
}

impl Opened {
    /// Content of the description file: the same bytes each time.
    pub fn description(&self) -> &Bytes {
        self.description.get_or_init(|| Bytes::from((self.describe)(&self.manifest)))
    }

    /// Nodes that have files.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.manifest.nodes.iter().filter(|node| node.manifest.is_some()).map(|node| &node.name)
    }
}

/// A node that was opened.
#[derive(Debug)]
pub struct OpenedNode {
    /// Its tree.
    pub tree: NodeTree,
    /// The entry of its own directory.
    pub root: TreeEntry,
}

/// A directory that was listed.
#[derive(Debug)]
pub struct Directory {
    entries: Vec<PlacedEntry>,
}

impl Directory {
    /// In the order of their names.
    pub fn entries(&self) -> &[PlacedEntry] {
        &self.entries
    }

    /// The entry of this name.
    pub fn find(&self, name: &[u8]) -> Option<&PlacedEntry> {
        self.entries.get(self.position(name)?)
    }

    /// Where the entry of this name stands.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|placed| placed.entry.path.file_name().cmp(name)).ok()
    }
}

type NodeId = (SnapshotId, NodeName);
type DirectoryId = (SnapshotId, NodeName, TreePath);
type Flights<K, V> = SingleFlight<K, Result<Arc<V>, FsError>>;

/// See the head of this file.
#[derive(Debug)]
pub struct Catalogue {
    source: Arc<dyn SnapshotSource>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    times: ListingTimes,
    describe: Describe,
    clusters: Arc<Listing<Vec<ClusterName>>>,
    snapshots: Mutex<HashMap<ClusterName, Arc<Listing<SnapshotNames>>>>,
    opened: Recent<SnapshotId, Opened>,
    nodes: Recent<NodeId, OpenedNode>,
    directories: Recent<DirectoryId, Directory>,
}

/// Things kept for a while, and those being loaded.
#[derive(Debug)]
struct Recent<K, V> {
    kept: crate::fs::recent::Recent<K, Arc<V>>,
    flights: Flights<K, V>,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { kept: crate::fs::recent::Recent::new(limit), flights: SingleFlight::default() }
    }
}

impl Catalogue {
    /// Nothing is read yet.
    pub fn new(
        source: Arc<dyn SnapshotSource>,
        clock: Arc<dyn Clock>,
        runtime: Handle,
        times: ListingTimes,
        describe: Describe,
    ) -> Arc<Self> {
        let fetch = {
            let source = source.clone();
            move |_| -> futures::future::BoxFuture<'static, Result<Vec<ClusterName>, RepoError>> {
                let source = source.clone();
                Box::pin(async move { source.clusters().await })
            }
        };
        let clusters = Listing::new("clusters".to_owned(), Box::new(fetch), times, clock.clone(), runtime.clone());
        Arc::new(Self {
            source,
            clock,
            runtime,
            times,
            describe,
            clusters,
            snapshots: Mutex::new(HashMap::new()),
            opened: Recent::new(OPENED_KEPT),
            nodes: Recent::new(OPENED_KEPT),
            directories: Recent::new(ENTRIES_KEPT),
        })
    }

    /// The clusters.
    pub fn clusters(&self) -> &Arc<Listing<Vec<ClusterName>>> {
        &self.clusters
    }

    /// The snapshots of a cluster. Ask for clusters that exist only: each is kept from then on.
    pub fn snapshots(&self, cluster: &ClusterName) -> Arc<Listing<SnapshotNames>> {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(listing) = snapshots.get(cluster) {
            return listing.clone();
        }
        let renewal = Arc::new(SnapshotRenewal {
            source: self.source.clone(),
            clock: self.clock.clone(),
            cluster: cluster.clone(),
            whole_at: Mutex::new(None),
        });
        let fetch = move |known| -> futures::future::BoxFuture<'static, Result<SnapshotNames, RepoError>> {
            let renewal = renewal.clone();
            Box::pin(async move { renewal.run(known).await })
        };
        let what = format!("snapshots of {cluster}");
        let listing = Listing::new(what, Box::new(fetch), self.times, self.clock.clone(), self.runtime.clone());
        snapshots.insert(cluster.clone(), listing.clone());
        listing
    }

    /// A snapshot that was opened lately.
    pub fn known_snapshot(&self, shown: &Shown) -> Option<Arc<Opened>> {
        self.opened.kept.get(&shown.listed.uuid)
    }

    /// Opens a snapshot.
    pub async fn snapshot(self: &Arc<Self>, shown: &Arc<Shown>) -> Result<Arc<Opened>, FsError> {
        if let Some(opened) = self.known_snapshot(shown) {
            return Ok(opened);
        }
        let (me, listed) = (self.clone(), shown.listed.clone());
        self.load(|me| &me.opened, shown.listed.uuid, async move {
            let manifest = me.source.manifest(&listed).await?;
            let opened = Arc::new(Opened { manifest, describe: me.describe, description: OnceLock::new() });
            me.opened.kept.put(listed.uuid, opened.clone(), 1);
            Ok(opened)
        })
        .await
    }

    /// A node that was opened lately.
    pub fn known_node(&self, node: &NodeKey) -> Option<Arc<OpenedNode>> {
        self.nodes.kept.get(&node_id(node))
    }

    /// Opens a node.
    pub async fn node(self: &Arc<Self>, node: &Arc<NodeKey>) -> Result<Arc<OpenedNode>, FsError> {
        if let Some(opened) = self.known_node(node) {
            return Ok(opened);
        }
        let (me, node, id) = (self.clone(), node.clone(), node_id(node));
        self.load(|me| &me.nodes, id.clone(), async move {
            let snapshot = me.snapshot(&node.shown).await?;
            let tree = me.source.open_node(&snapshot.manifest, &node.name).await?;
            let root = me.source.entry(&tree, &TreePath::root()).await?;
            let root = root.ok_or_else(|| RepoError::corrupt(node.name.to_string(), "its own directory has no entry"))?;
            let opened = Arc::new(OpenedNode { tree, root: root.entry });
            me.nodes.kept.put(id, opened.clone(), 1);
            Ok(opened)
        })
        .await
    }

    /// A directory that was listed lately.
    pub fn known_directory(&self, node: &NodeKey, path: &TreePath) -> Option<Arc<Directory>> {
        self.directories.kept.get(&directory_id(node, path))
    }

    /// Lists a directory of a node.
    pub async fn directory(self: &Arc<Self>, node: &Arc<NodeKey>, path: &TreePath) -> Result<Arc<Directory>, FsError> {
        if let Some(directory) = self.known_directory(node, path) {
            return Ok(directory);
        }
        let (me, node, path, id) = (self.clone(), node.clone(), path.clone(), directory_id(node, path));
        self.load(|me| &me.directories, id.clone(), async move {
            let opened = me.node(&node).await?;
            let mut entries = me.source.directory(&opened.tree, &path).await?;
            // A source that returned its entries out of order, or others than asked for, must not break the look-ups.
            entries.retain(|placed| !placed.entry.path.is_root() && placed.entry.path.parent_bytes() == path.as_bytes());
            if !entries.is_sorted_by(|one, next| one.entry.path < next.entry.path) {
                entries.sort_by(|one, other| one.entry.path.cmp(&other.entry.path));
                entries.dedup_by(|next, one| next.entry.path == one.entry.path);
            }
            let weight = entries.len() + 1;
            let directory = Arc::new(Directory { entries });
            me.directories.kept.put(id, directory.clone(), weight);
            Ok(directory)
        })
        .await
    }

    /// The entry at a path and the tree that it is in: from a directory that is known, else by one small read.
    pub async fn entry(self: &Arc<Self>, node: &Arc<NodeKey>, path: &TreePath) -> Result<PlacedEntry, FsError> {
        if let Some(found) = self.known_entry(node, path) {
            return found.ok_or(FsError::NotFound);
        }
        let opened = self.node(node).await?;
        self.source.entry(&opened.tree, path).await?.ok_or(FsError::NotFound)
    }

    /// The same from a directory that is known; `Some(None)` when it is known to have no such entry.
    pub fn known_entry(&self, node: &NodeKey, path: &TreePath) -> Option<Option<PlacedEntry>> {
        let directory = self.known_directory(node, &path.parent()?)?;
        Some(directory.find(path.file_name()).cloned())
    }

    /// Runs `work` as a task of its own, once for all who ask for `key` meanwhile.
    async fn load<K, V, F>(self: &Arc<Self>, of: fn(&Self) -> &Recent<K, V>, key: K, work: F) -> Result<Arc<V>, FsError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        F: Future<Output = Result<Arc<V>, FsError>> + Send + 'static,
    {
        let (me, limit) = (self.clone(), self.times.deadline);
        let task = self.runtime.spawn(async move {
            let bounded =
                || async { tokio::time::timeout(limit, work).await.unwrap_or(Err(FsError::DeadlineExceeded { limit })) };
            of(&me).flights.run(key, bounded).await
        });
        task.await.unwrap_or(Err(FsError::BrokenOff))
    }
}

fn node_id(node: &NodeKey) -> NodeId {
    (node.shown.listed.uuid, node.name.clone())
}

fn directory_id(node: &NodeKey, path: &TreePath) -> DirectoryId {
    (node.shown.listed.uuid, node.name.clone(), path.clone())
}

/// How the snapshots of one cluster are listed again: the newest ones each time, all of them now and then.
#[derive(Debug)]
struct SnapshotRenewal {
    source: Arc<dyn SnapshotSource>,
    clock: Arc<dyn Clock>,
    cluster: ClusterName,
    whole_at: Mutex<Option<Duration>>,
}

impl SnapshotRenewal {
    async fn run(&self, known: Option<Arc<SnapshotNames>>) -> Result<SnapshotNames, RepoError> {
        if let Some(known) = &known
            && self.whole_at().is_some_and(|at| self.clock.monotonic() < at + WHOLE_EVERY)
        {
            let newest = self.source.newest(&self.cluster, NEWEST).await?;
            if let Some(listed) = merge(known, newest) {
                return Ok(SnapshotNames::new(listed, Some(known)));
            }
        }
        let began_at = self.clock.monotonic();
        let listed = self.source.snapshots(&self.cluster).await?;
        *self.whole_at.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(began_at);
        Ok(SnapshotNames::new(listed, known.as_deref()))
    }

    fn whole_at(&self) -> Option<Duration> {
        *self.whole_at.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The newest snapshots in front of the older ones that are known; `None` when there may be others between them.
fn merge(known: &SnapshotNames, mut newest: Vec<ListedSnapshot>) -> Option<Vec<ListedSnapshot>> {
    if newest.len() < NEWEST {
        return Some(newest);
    }
    let oldest = newest.iter().map(|listed| listed.date).min()?;
    let overlaps = known.shown().iter().any(|shown| newest.iter().any(|listed| listed.uuid == shown.listed.uuid));
    if !overlaps {
        return None;
    }
    // Of the oldest second there may be more than the page had room for; what is there twice is shown once.
    newest.extend(known.shown().iter().filter(|shown| shown.listed.date <= oldest).map(|shown| shown.listed.clone()));
    Some(newest)
}
