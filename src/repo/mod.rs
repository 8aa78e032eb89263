//! The repository: how snapshots are stored in an object store, published, read and verified. `FORMAT.md` is its book.
//!
//! The port is [`SnapshotSource`]: what the mount, a restore and the command line read snapshots through.
//!
//! **Not here**: what a store's files mean (`payload`), where snapshots come from (`node`), who reads them (`read`).

use std::fmt::Debug;
use std::sync::Arc;

mod catalog;
#[cfg(test)]
mod hostile_tests;
mod intent;
mod key_box;
mod known;
mod layout;
mod lease;
mod node_writer;
mod pack;
mod pack_writer;
mod pins;
#[cfg(test)]
mod power_cut_tests;
mod reader;
mod recent;
mod repository;
mod runs;
mod seal;
mod table;
#[cfg(test)]
mod tests;
mod tree_pages;
pub mod verify;
mod writer;

pub use catalog::Publication;
pub use intent::{Intent, IntentGuard};
pub use key_box::{KeyBoxEntry, Secret};
pub use lease::{Lease, LeaseGuard};
pub use node_writer::{EntryMeta, NodeReceipt, NodeWriter, Progress, WriterOptions};
pub use pins::Pin;
pub use repository::{Descriptor, Encryption, Repository};
pub use runs::{NodeOutcome, RunRecord, RunStatus};
pub use writer::Writer;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::extent::{Extent, SegmentRun};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{ClusterManifest, NodeManifest, TreeEntry};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::model::time::SnapshotDate;
/// Part of [`RepoError`]: what the floors above may have to tell apart.
pub use crate::object::ObjectError;

/// A published snapshot as a listing shows it, before its manifest is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSnapshot {
    /// The cluster.
    pub cluster: ClusterName,
    /// The dated name.
    pub date: SnapshotDate,
    /// Its identity.
    pub uuid: SnapshotId,
    /// It has all its nodes; `latest` is the newest of those.
    pub is_complete: bool,
    /// Key of the manifest, for messages.
    pub key: String,
}

/// One node of one snapshot, opened: the start of every read.
#[derive(Debug, Clone)]
pub struct NodeTree {
    /// The snapshot.
    pub snapshot: Arc<ClusterManifest>,
    /// The node's own manifest.
    pub manifest: Arc<NodeManifest>,
}

/// An entry together with the table page that its tree page shares: all that opening its content takes.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedEntry {
    /// The entry.
    pub entry: TreeEntry,
    /// The shared table page of the tree page that it stands in.
    pub shared_table: Option<Arc<SharedTable>>,
}

/// The table page that the small files of one tree page share.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedTable {
    /// Where it is stored.
    pub page: Extent,
    /// Path of the first entry of the tree page: its place.
    pub first: TreePath,
}

/// Where snapshots are read from: a repository, or another tool's backups.
///
/// Promises (each is a test in the repository's suite):
/// - what is listed can be opened, and never changes;
/// - bytes are returned only after they were verified; what cannot be verified is [`RepoError::Corrupt`];
/// - listing a directory of an opened node costs one small read, opening a file at most one more.
#[async_trait]
pub trait SnapshotSource: Send + Sync + Debug {
    /// Clusters that have at least one snapshot, ascending.
    async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError>;

    /// Published snapshots of a cluster, newest first; none for an unknown cluster.
    async fn snapshots(&self, cluster: &ClusterName) -> Result<Vec<ListedSnapshot>, RepoError>;

    /// The newest `limit` snapshots of a cluster, newest first, in one small read where the store allows.
    async fn newest(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<ListedSnapshot>, RepoError>;

    /// A snapshot's manifest.
    async fn manifest(&self, snapshot: &ListedSnapshot) -> Result<Arc<ClusterManifest>, RepoError>;

    /// Opens one node of a snapshot. [`RepoError::NotFound`] for unknown nodes and for those without files.
    async fn open_node(&self, snapshot: &Arc<ClusterManifest>, node: &NodeName) -> Result<NodeTree, RepoError>;

    /// The entry at `path`; `None` when there is none.
    async fn entry(&self, tree: &NodeTree, path: &TreePath) -> Result<Option<PlacedEntry>, RepoError>;

    /// The entries of a directory, in the order of their names.
    async fn directory(&self, tree: &NodeTree, path: &TreePath) -> Result<Vec<PlacedEntry>, RepoError>;

    /// The run of segments of a file that covers `offset`; `None` at and behind the end.
    async fn segments(&self, tree: &NodeTree, file: &PlacedEntry, offset: u64) -> Result<Option<Arc<SegmentRun>>, RepoError>;

    /// Plain, verified bytes of blocks, in the order asked for. Neighbours in one pack (see
    /// [`Extent::is_followed_by`]) are fetched with one ranged read.
    async fn read_blocks(&self, tree: &NodeTree, extents: &[Extent]) -> Result<Vec<Bytes>, RepoError>;

    /// Whether these are the plain bytes of a block: tells what is on a disk already from what has to be fetched.
    fn is_block(&self, tree: &NodeTree, extent: &Extent, plain: &[u8]) -> bool;
}

/// What can go wrong with a repository, by what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RepoError {
    /// No such repository, cluster, snapshot, node or file.
    #[error("{what}: not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// There is something in the way: a repository, another writer, another cluster under this name.
    #[error("{what}: {reason}")]
    Conflict {
        /// What is in the way.
        what: String,
        /// Why it is.
        reason: String,
    },
    /// Stored bytes are not what they must be.
    #[error("{object}: corrupt: {reason}")]
    Corrupt {
        /// Key of the object, with the offset where that helps.
        object: String,
        /// What does not fit.
        reason: String,
    },
    /// Written by a newer program.
    #[error("{object}: format version {found} is newer than {supported}, the newest that this program reads")]
    TooNew {
        /// Key of the object.
        object: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The passphrase or key file opens none of the key boxes.
    #[error("{repository}: the passphrase or key file fits none of the key boxes")]
    WrongKey {
        /// As [`crate::object::ObjectStore::location`].
        repository: String,
    },
    /// No passphrase or key was given, and the repository is encrypted.
    #[error("{repository}: is encrypted, and no passphrase or key file was given")]
    NoKey {
        /// As [`crate::object::ObjectStore::location`].
        repository: String,
    },
    /// The caller handed over something that cannot be stored.
    #[error("{what}: cannot be stored: {reason}")]
    Refused {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// Reading the source of what was to be stored broke.
    #[error("{what}: cannot be read: {reason}")]
    Source {
        /// What was read.
        what: String,
        /// In the system's words.
        reason: String,
    },
    /// The object store.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl RepoError {
    /// Stored bytes are not what they must be.
    pub fn corrupt(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { object: object.into(), reason: reason.into() }
    }
}
