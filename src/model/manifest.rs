//! The stored description of a snapshot: the cluster manifest, the node manifests, and the entries of a node's tree.
//!
//! `repo/FORMAT.md` is the reference for every field; fields are only ever added, and readers pass over what they do
//! not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::extent::Extent;
use super::ids::{BlockId, PackId, SnapshotId};
use super::names::{ClusterName, NodeName, TreePath, json_bytes};
use super::time::{SnapshotDate, Timestamp};

/// The version of the stored format that this program writes and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// One state of a whole cluster. Its appearance in the object store is the publication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterManifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format: u32,
    /// Identity of the snapshot.
    pub uuid: SnapshotId,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// The dated name.
    pub date: SnapshotDate,
    /// The wall clock of the coordinator at the cut.
    pub cut_at: Timestamp,
    /// When the manifest was written.
    pub published_at: Timestamp,
    /// The newest snapshot of this cluster before this one; a listing that lost it is noticed.
    pub predecessor: Option<Predecessor>,
    /// Whether all nodes are in.
    pub status: SnapshotStatus,
    /// `redis`, `files`, …
    pub store: String,
    /// How far the nodes are of one instant, and how that is known.
    pub cut: CutRecord,
    /// The nodes, in the order of their names.
    pub nodes: Vec<NodeRecord>,
    /// The user's own words.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Version of the program that wrote it.
    pub writer: String,
}

impl ClusterManifest {
    /// The record of a node.
    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| &node.name == name)
    }

    /// Plain bytes of all nodes.
    pub fn total_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.totals.total_bytes).sum()
    }
}

/// The snapshot before a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its identity.
    pub uuid: SnapshotId,
    /// Its dated name.
    pub date: SnapshotDate,
}

/// Whether all nodes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStatus {
    /// Every node was stored whole.
    Completed,
    /// Some nodes are missing, and the operator had agreed; never `latest`.
    Partial,
}

/// What is known of the cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutRecord {
    /// Who made the nodes agree.
    pub kind: CutKind,
    /// How sure it is.
    pub consistent: Consistency,
    /// What the claim covers: `cluster`; `rack`, one copy of a ring that others may have been ahead of; or `node` when every
    /// node is sound for itself only.
    pub scope: String,
    /// From the first freeze sent to the last thaw answered, as a client could have felt it.
    pub pause_us: u64,
    /// From the first capture sent to the last one acknowledged, and at least the longest fork that a store reported: a store
    /// may acknowledge just before it forks (for forks: "the forks").
    pub capture_us: u64,
    /// Between the earliest and the latest acknowledged capture.
    pub skew_us: u64,
}

/// Who made the nodes agree on an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutKind {
    /// Every node was frozen before the first was captured.
    Frozen,
    /// The store has a trigger of its own for all nodes.
    StoreCoordinated,
    /// Nobody.
    None,
}

/// How sure it is that all nodes show one instant. The order is from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Not known, or known not to be.
    No,
    /// All were frozen at one instant by the clock.
    Timed,
    /// The stores' own positions or answers show it.
    Proved,
}

/// One node of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name, a directory of the tree.
    pub name: NodeName,
    /// How it fared.
    pub status: NodeStatus,
    /// Why, where it fared badly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Hash of the node manifest's plain bytes; absent for nodes that are missing or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<BlockId>,
    /// What it was.
    pub description: NodeDescription,
    /// How the capture is known to belong to the cut.
    pub proof: CaptureProof,
    /// Keys of its dump, where the driver counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyCounts>,
    /// Sizes.
    pub totals: NodeTotals,
}

/// How a node fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Under way (never in a published manifest).
    Processing,
    /// Stored whole.
    Completed,
    /// It could not be reached before the freeze.
    Missing,
    /// It broke after the cut.
    Failed,
}

/// What a node was at the cut.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeDescription {
    /// `redis`, `valkey`, `files`, …
    pub store: String,
    /// Version of the store, as it says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Where it was reached; never with a password.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// `master`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// What binds the node to its cluster: cluster node ids, replication ids, `host:path` for files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<String>,
    /// Shard of a Redis Cluster: the master's node id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// Inclusive ranges of hash slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<(u16, u16)>,
    /// Where it stands in a ring of Dynomite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingPlace>,
    /// All tokens that its rack has, by the ring's own word: those of a whole snapshot. Empty where nobody said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ring_tokens: Vec<u64>,
    /// Position in the replication stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// Configuration epoch of a Redis Cluster node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Settings that a restore must know (`appendonly`, `dbfilename`, …).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// What to show a person beside it, such as the text of `CLUSTER NODES`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}

/// Where a node stands in a ring of Dynomite. Every rack has all tokens, so that nodes of one token are copies of one another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct RingPlace {
    /// Its number on the ring.
    pub token: u64,
    /// The data center.
    pub datacenter: String,
    /// The rack in it.
    pub rack: String,
}

/// Position in a replication stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// Identity of the stream.
    pub id: String,
    /// Offset in it.
    pub offset: u64,
}

/// How a capture is known to belong to the cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureProof {
    /// How sure.
    pub consistent: Consistency,
    /// `fork_reply`, `replication_offset`, `open_files`, `none`.
    pub kind: String,
    /// What was compared and held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Microseconds that the store stood still for its fork, as it says itself; absent where it did not fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_us: Option<u64>,
    /// What the claim covers where that is less than the cluster: `rack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

impl CaptureProof {
    /// Nothing is known.
    pub fn none() -> Self {
        Self { consistent: Consistency::No, kind: "none".to_owned(), checks: Vec::new(), fork_us: None, scope: None }
    }
}

/// Keys of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// All keys of the dump, those past their expiry included.
    pub total: u64,
    /// Of those, keys whose expiry lay before the cut: a restore drops them.
    pub expired: u64,
    /// Of those, keys that have an expiry at all: a later restore may drop them.
    pub volatile: u64,
}

/// Sizes of one node in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeTotals {
    /// Regular files.
    pub files: u64,
    /// Plain bytes of all files.
    pub total_bytes: u64,
    /// Plain bytes of blocks that were not stored before.
    pub new_bytes: u64,
    /// Bytes that this snapshot added to the repository for this node, pages and manifests included.
    pub stored_bytes: u64,
}

/// The tree of one node in one snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeManifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format: u32,
    /// The snapshot that it belongs to.
    pub snapshot: SnapshotId,
    /// The cluster that it belongs to.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeName,
    /// Pages of the file tree, in the order of [`TreePath`].
    pub tree: Vec<TreePageRef>,
    /// Sizes.
    pub totals: NodeTotals,
    /// Packs of this node up to this one are accounted for; later ones belong to unfinished attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_pack: Option<PackId>,
}

/// One page of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreePageRef {
    /// Path of its first entry; all entries up to the next page's first are in it.
    pub first: TreePath,
    /// Where it is stored.
    pub page: Extent,
}

/// Content of a page of a tree.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TreePage {
    /// Table page shared by the small files of this page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Extent>,
    /// In the order of their paths.
    pub entries: Vec<TreeEntry>,
}

/// A file, directory or link of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Path from the node's own directory; the root itself has an entry with an empty path.
    pub path: TreePath,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Who owned it.
    #[serde(flatten)]
    pub owner: Ownership,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// For files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<FileContent>,
    /// For symbolic links: where it points.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_bytes")]
    pub target: Option<Vec<u8>>,
}

impl TreeEntry {
    /// Length of a file's content; of a link's target; 0 for directories.
    pub fn size_bytes(&self) -> u64 {
        match self.kind {
            FileKind::File => self.content.as_ref().map_or(0, |content| content.size_bytes),
            FileKind::Link => self.target.as_ref().map_or(0, |target| target.len() as u64),
            FileKind::Directory => 0,
        }
    }
}

mod optional_bytes {
    use super::{Deserialize, Serialize, json_bytes};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Bytes(#[serde(with = "json_bytes")] Vec<u8>);

    pub fn serialize<S: serde::Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => json_bytes::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|bytes| bytes.0))
    }
}

/// What an entry is. Nothing else is captured: a FIFO, socket or device is refused by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; never followed.
    Link,
}

/// How a file's bytes behave between snapshots; decides what a linked restore may link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileClass {
    /// Never changes once written (SST, RDB, AOF base).
    Immutable,
    /// Only grows (AOF increments, store logs).
    AppendOnly,
    /// Anything else.
    Rewritten,
}

/// Who owned an entry: numbers, and names where they were known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ownership {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// User name on the node's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group name on the node's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// What a file holds and where that is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileContent {
    /// Plain length.
    pub size_bytes: u64,
    /// Length of each block but the last.
    pub block_bytes: u32,
    /// How the bytes behave between snapshots.
    pub class: FileClass,
    /// Content id of the whole file: equal for equal content stored in blocks of the same size. See FORMAT.md.
    pub id: BlockId,
    /// Its segments, in order of their offsets; empty for an empty file.
    pub tables: Vec<TableSlice>,
    /// What tells an unchanged file at the next snapshot of the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// Consecutive records of a table page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSlice {
    /// File offset of the first segment.
    pub start: u64,
    /// Number of the first record in the page.
    pub first: u32,
    /// How many records.
    pub count: u32,
    /// A page of the file's own; absent: the table page that its tree page shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<Extent>,
}

/// Device, inode and times of a captured file. The size stands in [`FileContent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// The host's clock at the capture, nanoseconds since 1970: an mtime within one tick of it proves nothing.
    pub captured_ns: i64,
}

/// Coarsest step of a file system's timestamps that is allowed for: 2 s (FAT); a kernel tick is 1 to 10 ms.
pub const TIMESTAMP_TICK_NS: i64 = 2_000_000_000;

impl Fingerprint {
    /// A file seen now is the one captured then, byte for byte. `size_bytes` are compared by the caller.
    pub fn shows_unchanged(&self, now: &Self) -> bool {
        self.device == now.device
            && self.inode == now.inode
            && self.modified_ns == now.modified_ns
            // A write in the same tick as the capture would not have moved the mtime.
            && self.captured_ns.saturating_sub(self.modified_ns) > TIMESTAMP_TICK_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtime_within_a_tick_of_the_capture_is_not_trusted() {
        let seen = |captured_ns| Fingerprint { device: 1, inode: 2, modified_ns: 5_000_000_000, captured_ns };
        let now = seen(99_000_000_000);
        assert!(!seen(5_000_000_001).shows_unchanged(&now));
        assert!(!seen(7_000_000_000).shows_unchanged(&now));
        assert!(seen(7_000_000_001).shows_unchanged(&now));
    }

    #[test]
    fn another_inode_is_another_file() {
        let old = Fingerprint { device: 1, inode: 2, modified_ns: 0, captured_ns: 9_000_000_000 };
        assert!(!old.shows_unchanged(&Fingerprint { inode: 3, ..old }));
        assert!(!old.shows_unchanged(&Fingerprint { device: 3, ..old }));
        assert!(!old.shows_unchanged(&Fingerprint { modified_ns: 3, ..old }));
    }
}
