//! A snapshot source made of maps, for tests here and above: what it holds is known, and it hangs, fails and counts on
//! demand.
//!
//! Not compiled out of the library, because the integration tests mount it; nothing in the programs uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::model::extent::{Extent, PackRef, Segment, SegmentRun};
use crate::model::ids::{BlockId, PackId, SnapshotId};
use crate::model::manifest::{
    CaptureProof, ClusterManifest, Consistency, CutKind, CutRecord, FORMAT_VERSION, FileClass, FileContent, FileKind,
    NodeDescription, NodeManifest, NodeRecord, NodeStatus, NodeTotals, Ownership, SnapshotStatus, TreeEntry,
};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::model::time::{SnapshotDate, Timestamp};
use crate::repo::{ListedSnapshot, NodeTree, ObjectError, PlacedEntry, RepoError, SnapshotSource};

/// Segments per run, few on purpose: files of a few blocks then cross runs.
const RUN_SEGMENTS: usize = 4;

/// One entry of a node to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeEntry {
    /// A directory; its parents are made with it.
    Directory,
    /// A regular file.
    File(Vec<u8>),
    /// A symbolic link.
    Link(Vec<u8>),
}

/// A snapshot source in memory.
#[derive(Debug)]
pub struct FakeSource {
    held: Mutex<Held>,
    is_hanging: watch::Sender<bool>,
    /// Blocks asked for so far.
    pub blocks_read: AtomicU64,
    /// Calls of `read_blocks` so far.
    pub fetches: AtomicU64,
    /// Calls that read anything but blocks so far.
    pub small_reads: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    snapshots: BTreeMap<ClusterName, Vec<Arc<FakeSnapshot>>>,
    blocks: HashMap<BlockId, Bytes>,
    corrupt: bool,
    unavailable: bool,
}

#[derive(Debug)]
struct FakeSnapshot {
    listed: ListedSnapshot,
    manifest: Arc<ClusterManifest>,
    nodes: BTreeMap<NodeName, FakeNode>,
}

#[derive(Debug)]
struct FakeNode {
    manifest: Arc<NodeManifest>,
    entries: BTreeMap<TreePath, PlacedEntry>,
    runs: HashMap<TreePath, Vec<Arc<SegmentRun>>>,
}

/// Entries of a node by path.
pub type FakeTree = BTreeMap<Vec<u8>, FakeEntry>;

impl Default for FakeSource {
    fn default() -> Self {
        Self {
            held: Mutex::new(Held::default()),
            is_hanging: watch::Sender::new(false),
            blocks_read: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            small_reads: AtomicU64::new(0),
        }
    }
}

fn legal<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.expect("the fixture is given legal names and dates")
}

impl FakeSource {
    /// Nothing in it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Publishes a complete snapshot of nodes with files of blocks of `block_bytes`; its identity comes from its names.
    pub fn publish(&self, cluster: &str, date: &str, block_bytes: u32, nodes: &[(&str, FakeTree)]) -> ListedSnapshot {
        let uuid =
            SnapshotId::from_bytes(legal(blake3::hash(format!("{cluster}/{date}").as_bytes()).as_bytes()[..16].try_into()));
        self.publish_as(uuid, true, cluster, date, block_bytes, nodes)
    }

    /// The same with an identity of the caller's, and perhaps partial.
    pub fn publish_as(
        &self,
        uuid: SnapshotId,
        is_complete: bool,
        cluster: &str,
        date: &str,
        block_bytes: u32,
        nodes: &[(&str, FakeTree)],
    ) -> ListedSnapshot {
        let cluster: ClusterName = legal(ClusterName::new(cluster));
        let date: SnapshotDate = legal(date.parse());
        let cut_at = Timestamp(date.seconds() * 1_000_000);
        let mut held = self.held();
        let nodes: BTreeMap<_, _> = nodes
            .iter()
            .map(|(name, tree)| {
                let name = legal(NodeName::new(*name));
                let node = make_node(&mut held.blocks, uuid, &cluster, &name, cut_at, block_bytes, tree);
                (name, node)
            })
            .collect();
        let manifest = Arc::new(ClusterManifest {
            format: FORMAT_VERSION,
            uuid,
            cluster: cluster.clone(),
            date,
            cut_at,
            published_at: cut_at,
            predecessor: None,
            status: if is_complete { SnapshotStatus::Completed } else { SnapshotStatus::Partial },
            store: "files".to_owned(),
            cut: CutRecord {
                kind: CutKind::None,
                consistent: Consistency::No,
                scope: "node".to_owned(),
                pause_us: 0,
                capture_us: 0,
                skew_us: 0,
            },
            nodes: nodes.iter().map(|(name, node)| record(name, node)).collect(),
            tags: BTreeMap::new(),
            writer: "fixture".to_owned(),
        });
        let listed =
            ListedSnapshot { cluster: cluster.clone(), date, uuid, is_complete, key: format!("clusters/{cluster}/{date}") };
        let list = held.snapshots.entry(cluster).or_default();
        list.push(Arc::new(FakeSnapshot { listed: listed.clone(), manifest, nodes }));
        list.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.listed.date, snapshot.listed.uuid)));
        listed
    }

    /// Takes a snapshot away, as a drop does.
    pub fn remove(&self, uuid: SnapshotId) {
        let mut held = self.held();
        held.snapshots.values_mut().for_each(|list| list.retain(|snapshot| snapshot.listed.uuid != uuid));
        held.snapshots.retain(|_, list| !list.is_empty());
    }

    /// From now on every call waits until [`Self::resume`].
    pub fn hang(&self) {
        self.is_hanging.send_replace(true);
    }

    /// Lets everything go on.
    pub fn resume(&self) {
        self.is_hanging.send_replace(false);
    }

    /// Whether blocks are reported as corrupt.
    pub fn set_corrupt(&self, corrupt: bool) {
        self.held().corrupt = corrupt;
    }

    /// Whether every call reports the store as unavailable.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.held().unavailable = unavailable;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn enter(&self) -> Result<(), RepoError> {
        let mut hanging = self.is_hanging.subscribe();
        // The sender lives in self, so the wait ends only by `resume`.
        let _ = hanging.wait_for(|hangs| !hangs).await;
        if self.held().unavailable {
            let (key, reason) = ("fixture".to_owned(), "told to be".to_owned());
            return Err(RepoError::Object(ObjectError::Unavailable { key, reason }));
        }
        Ok(())
    }

    async fn small(&self) -> Result<(), RepoError> {
        self.small_reads.fetch_add(1, Ordering::SeqCst);
        self.enter().await
    }

    fn snapshot(&self, cluster: &ClusterName, uuid: SnapshotId) -> Result<Arc<FakeSnapshot>, RepoError> {
        let held = self.held();
        let found = held.snapshots.get(cluster).and_then(|list| list.iter().find(|snapshot| snapshot.listed.uuid == uuid));
        found.cloned().ok_or_else(|| RepoError::NotFound { what: format!("{cluster}/{uuid}") })
    }

    fn with_node<T>(&self, tree: &NodeTree, look: impl FnOnce(&FakeNode) -> T) -> Result<T, RepoError> {
        let snapshot = self.snapshot(&tree.snapshot.cluster, tree.snapshot.uuid)?;
        let node = snapshot.nodes.get(&tree.manifest.node);
        node.map(look).ok_or_else(|| RepoError::NotFound { what: tree.manifest.node.to_string() })
    }
}

fn record(name: &NodeName, node: &FakeNode) -> NodeRecord {
    NodeRecord {
        name: name.clone(),
        status: NodeStatus::Completed,
        reason: None,
        manifest: Some(BlockId([7; 32])),
        description: NodeDescription::default(),
        proof: CaptureProof::none(),
        keys: None,
        totals: node.manifest.totals,
    }
}

fn make_node(
    blocks: &mut HashMap<BlockId, Bytes>,
    snapshot: SnapshotId,
    cluster: &ClusterName,
    name: &NodeName,
    cut_at: Timestamp,
    block_bytes: u32,
    tree: &FakeTree,
) -> FakeNode {
    let mut maker = NodeMaker {
        blocks,
        pack: Arc::new(PackRef { node: name.clone(), pack: PackId([1; 16]) }),
        modified_ns: cut_at.0 * 1000 + 123,
        block_bytes,
        entries: BTreeMap::new(),
        runs: HashMap::new(),
        packed_bytes: 0,
    };
    maker.add(TreePath::root(), &FakeEntry::Directory);
    for (path, entry) in tree {
        let path = legal(TreePath::new(path.clone()));
        let mut parent = path.parent();
        while let Some(above) = parent.filter(|above| !maker.entries.contains_key(above)) {
            parent = above.parent();
            maker.add(above, &FakeEntry::Directory);
        }
        maker.add(path, entry);
    }
    let files = maker.entries.values().filter(|placed| placed.entry.kind == FileKind::File);
    let totals = NodeTotals {
        files: files.clone().count() as u64,
        total_bytes: files.map(|placed| placed.entry.size_bytes()).sum(),
        ..NodeTotals::default()
    };
    let manifest = Arc::new(NodeManifest {
        format: FORMAT_VERSION,
        snapshot,
        cluster: cluster.clone(),
        node: name.clone(),
        tree: Vec::new(),
        totals,
        newest_pack: None,
    });
    FakeNode { manifest, entries: maker.entries, runs: maker.runs }
}

struct NodeMaker<'a> {
    blocks: &'a mut HashMap<BlockId, Bytes>,
    pack: Arc<PackRef>,
    modified_ns: i64,
    block_bytes: u32,
    entries: BTreeMap<TreePath, PlacedEntry>,
    runs: HashMap<TreePath, Vec<Arc<SegmentRun>>>,
    packed_bytes: u32,
}

impl NodeMaker<'_> {
    fn add(&mut self, path: TreePath, entry: &FakeEntry) {
        let (kind, mode, content, target) = match entry {
            FakeEntry::Directory => (FileKind::Directory, 0o755, None, None),
            FakeEntry::Link(target) => (FileKind::Link, 0o777, None, Some(target.clone())),
            FakeEntry::File(bytes) => (FileKind::File, 0o4640, Some(self.content(&path, bytes)), None),
        };
        let owner = Ownership { uid: 1234, gid: 4321, user: None, group: None };
        let entry = TreeEntry { path: path.clone(), kind, mode, owner, modified_ns: self.modified_ns, content, target };
        self.entries.insert(path, PlacedEntry { entry, shared_table: None });
    }

    fn content(&mut self, path: &TreePath, bytes: &[u8]) -> FileContent {
        let segments: Vec<_> = bytes.chunks(self.block_bytes as usize).map(|chunk| self.segment(chunk)).collect();
        let mut start = 0;
        let runs = segments
            .chunks(RUN_SEGMENTS)
            .map(|segments| {
                let run = SegmentRun::new(start, segments.to_vec());
                start = run.end();
                Arc::new(run)
            })
            .collect();
        self.runs.insert(path.clone(), runs);
        FileContent {
            size_bytes: bytes.len() as u64,
            block_bytes: self.block_bytes,
            class: FileClass::Immutable,
            id: BlockId(*blake3::hash(bytes).as_bytes()),
            tables: Vec::new(),
            fingerprint: None,
        }
    }

    fn segment(&mut self, chunk: &[u8]) -> Segment {
        // Tails this short are literal, as a writer does it.
        if chunk.len() <= 16 {
            return Segment::Literal(chunk.to_vec());
        }
        let id = BlockId(*blake3::hash(chunk).as_bytes());
        self.blocks.entry(id).or_insert_with(|| Bytes::copy_from_slice(chunk));
        let length = legal(u32::try_from(chunk.len()));
        let offset = self.packed_bytes;
        self.packed_bytes = self.packed_bytes.wrapping_add(length);
        Segment::Block(Extent { id, pack: self.pack.clone(), offset, stored_bytes: length, plain_bytes: length })
    }
}

#[async_trait]
impl SnapshotSource for FakeSource {
    async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        self.small().await?;
        Ok(self.held().snapshots.keys().cloned().collect())
    }

    async fn snapshots(&self, cluster: &ClusterName) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.newest(cluster, usize::MAX).await
    }

    async fn newest(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.small().await?;
        let held = self.held();
        let list = held.snapshots.get(cluster).map(Vec::as_slice).unwrap_or_default();
        Ok(list.iter().take(limit).map(|snapshot| snapshot.listed.clone()).collect())
    }

    async fn manifest(&self, snapshot: &ListedSnapshot) -> Result<Arc<ClusterManifest>, RepoError> {
        self.small().await?;
        Ok(self.snapshot(&snapshot.cluster, snapshot.uuid)?.manifest.clone())
    }

    async fn open_node(&self, snapshot: &Arc<ClusterManifest>, node: &NodeName) -> Result<NodeTree, RepoError> {
        self.small().await?;
        let found = self.snapshot(&snapshot.cluster, snapshot.uuid)?;
        let manifest = found.nodes.get(node).map(|node| node.manifest.clone());
        let manifest = manifest.ok_or_else(|| RepoError::NotFound { what: node.to_string() })?;
        Ok(NodeTree { snapshot: snapshot.clone(), manifest })
    }

    async fn entry(&self, tree: &NodeTree, path: &TreePath) -> Result<Option<PlacedEntry>, RepoError> {
        self.small().await?;
        self.with_node(tree, |node| node.entries.get(path).cloned())
    }

    async fn directory(&self, tree: &NodeTree, path: &TreePath) -> Result<Vec<PlacedEntry>, RepoError> {
        self.small().await?;
        self.with_node(tree, |node| {
            let entries = node.entries.values().filter(|placed| !placed.entry.path.is_root());
            entries.filter(|placed| placed.entry.path.parent_bytes() == path.as_bytes()).cloned().collect()
        })
    }

    async fn segments(&self, tree: &NodeTree, file: &PlacedEntry, offset: u64) -> Result<Option<Arc<SegmentRun>>, RepoError> {
        self.small().await?;
        self.with_node(tree, |node| {
            let runs = node.runs.get(&file.entry.path).map(Vec::as_slice).unwrap_or_default();
            runs.iter().find(|run| run.position(offset).is_some()).cloned()
        })
    }

    async fn read_blocks(&self, _tree: &NodeTree, extents: &[Extent]) -> Result<Vec<Bytes>, RepoError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        self.blocks_read.fetch_add(extents.len() as u64, Ordering::SeqCst);
        self.enter().await?;
        let held = self.held();
        if held.corrupt {
            return Err(RepoError::corrupt("pack", "told to be"));
        }
        let found = extents.iter().map(|extent| held.blocks.get(&extent.id).cloned());
        found.collect::<Option<_>>().ok_or_else(|| RepoError::corrupt("pack", "no such block"))
    }
    fn is_block(&self, _tree: &NodeTree, extent: &Extent, plain: &[u8]) -> bool {
        BlockId(*blake3::hash(plain).as_bytes()) == extent.id
    }
}
