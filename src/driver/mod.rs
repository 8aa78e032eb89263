//! The live stores: how one node is described, frozen, captured and thawed.
//!
//! The port is [`StoreDriver`]: one object per node, made by `app` from the configuration. `conformance` holds its
//! promises as tests.
//!
//! **Not here**: in which order nodes are asked (`cluster`), what becomes of the captured files (`node`).

use std::fmt::Debug;
use std::fs::File;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncRead;

use crate::model::ids::SnapshotId;
use crate::model::manifest::{CaptureProof, FileClass, FileKind, KeyCounts, NodeDescription, Ownership, RingPlace};
use crate::model::names::{NodeName, TreePath};

pub mod beneath;
pub mod conformance;
pub mod control;
pub mod dynomite;
pub mod fake;
pub mod files;
pub mod redis;
pub mod served;

/// One captured file, directory or link of a node's tree.
#[derive(Debug)]
pub struct CapturedEntry {
    /// Where it stands in the node's tree.
    pub path: TreePath,
    /// File, directory or symbolic link.
    pub kind: FileKind,
    /// How its bytes behave between snapshots.
    pub class: FileClass,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Who owns it.
    pub owner: Ownership,
    /// Modification time, nanoseconds since 1970 UTC.
    pub modified_ns: i64,
    /// Size of the unit of storing: 1 MiB for what is read from end to end, 64 KiB for what is read at random.
    pub block_bytes: u32,
    /// What it holds; `Nothing` for directories.
    pub content: CapturedContent,
}

/// Where the bytes of a captured entry come from. None of them change after `collect` returned.
pub enum CapturedContent {
    /// A directory.
    Nothing,
    /// Where a symbolic link points, as stored (never followed).
    LinkTarget(Vec<u8>),
    /// The first `length_bytes` of an open file; it may grow behind that.
    File {
        /// Open for reading since the capture, so that a rename or an unlink does not matter.
        file: File,
        /// Length at the capture; nothing behind it is read.
        length_bytes: u64,
        /// What tells an unchanged file at the next snapshot; `None` where nothing can.
        fingerprint: Option<crate::model::manifest::Fingerprint>,
    },
    /// A stream that ends by itself; what it proved is asked of [`CaptureStream::finish`] afterwards.
    Stream(Box<dyn CaptureStream>),
    /// The same bytes as another entry of this capture, which must come earlier in the list.
    SameAs(TreePath),
    /// A file that is stored already: the directory has a link to where a snapshot of the same cluster is served.
    Stored(StoredFile),
    /// A few bytes made by the driver, such as an AOF manifest.
    Literal(Vec<u8>),
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The node.
    pub node: NodeName,
    /// Where in the node.
    pub path: TreePath,
}

impl Debug for CapturedContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::LinkTarget(target) => f.debug_tuple("LinkTarget").field(target).finish(),
            Self::File { length_bytes, .. } => f.debug_struct("File").field("length_bytes", length_bytes).finish_non_exhaustive(),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Stored(stored) => f.debug_tuple("Stored").field(stored).finish(),
            Self::SameAs(path) => f.debug_tuple("SameAs").field(path).finish(),
            Self::Literal(bytes) => f.debug_struct("Literal").field("bytes", &bytes.len()).finish(),
        }
    }
}

/// A captured file that arrives as a stream, checked while it passes.
///
/// The bytes read are to be believed only after `finish` returned well: a stream that was cut short ends in an error
/// of `poll_read` or of `finish`, never in a clean end of both.
#[async_trait]
pub trait CaptureStream: AsyncRead + Send + Unpin {
    /// What was learnt while the stream passed (key counts, checksum). To be called after the end was read.
    async fn finish(self: Box<Self>) -> Result<StreamFacts, DriverError>;
}

/// What a checked stream turned out to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Keys in the dump; `None` where the format does not tell.
    pub keys: Option<KeyCounts>,
    /// What was checked, for the manifest: `rdb-crc64`, `rdb-structure`, …
    pub checked: Vec<String>,
}

/// What a node says about its freeze.
#[derive(Debug, Clone, PartialEq)]
pub struct FreezeReceipt {
    /// How long the node stays frozen at most, counted from before the request was sent.
    pub deadline: Duration,
    /// The node's own clock at the freeze, microseconds since 1970; `None` where it has none.
    pub node_time_us: Option<i64>,
}

/// What a node says about its capture, right after it began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CaptureReceipt {
    /// The store's position at the capture (a replication offset), where it has one.
    pub offset: Option<u64>,
}

/// What a node says after its thaw.
#[derive(Debug, Clone, PartialEq)]
pub struct ThawReceipt {
    /// Proof that nothing was written between freeze and thaw, as far as the store can tell.
    pub proof: CaptureProof,
}

/// One node of a live store.
///
/// Promises (each is a test in `conformance`):
/// - `describe` and `prepare` change nothing that a client could notice;
/// - after `freeze` returned no write is half done and none is accepted until thaw or the deadline;
/// - `capture` marks the instant and returns at once (a fork begun, files opened and measured);
/// - `collect`, after thaw, waits for what capture began and hands over entries whose bytes never change;
/// - `thaw` is idempotent and always allowed; it fails when the freeze did not hold from `freeze` to now, and then
///   the cut is void;
/// - nothing outlives the deadline, whoever dies;
/// - `abandon` gives back everything that prepare, freeze and capture took, at any point, twice too.
#[async_trait]
pub trait StoreDriver: Send + Debug {
    /// What the node is, without touching it.
    async fn describe(&mut self) -> Result<NodeDescription, DriverError>;

    /// Everything slow or refusable that comes before the freeze: rights, versions, running saves (waited for within
    /// `patience`), connections opened, memory for the fork. `max_pause` is what the freeze may last.
    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), DriverError>;

    /// Stops writes for at most `pause`.
    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError>;

    /// Marks the instant.
    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError>;

    /// Lets writes go again and says whether the freeze held.
    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError>;

    /// The captured tree, parents before children, streams in the order in which they are to be read.
    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError>;

    /// After all entries were stored or the attempt was given up.
    async fn abandon(&mut self);
}

/// A boxed reader of plain bytes.
pub type ByteStream = Pin<Box<dyn AsyncRead + Send>>;

/// What can go wrong with a node, by what the caller can do about it. `node` is the name users gave it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DriverError {
    /// The node does not answer.
    #[error("{node}: cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        node: String,
        /// In the network's words.
        reason: String,
    },
    /// The node answers, but not to us: password, ACL, file permission.
    #[error("{node}: denied: {reason}")]
    Denied {
        /// The node.
        node: String,
        /// Which command or file, and how to permit it.
        reason: String,
    },
    /// The node must not be captured now or at all (loading, migrating, a replica, too old): nothing was frozen.
    #[error("{node}: refused: {reason}")]
    Refused {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The freeze did not hold, or the node changed its role: the cut is void.
    #[error("{node}: the cut is void: {reason}")]
    Void {
        /// The node.
        node: String,
        /// What was seen.
        reason: String,
    },
    /// The fork, save or transfer broke after a good cut.
    #[error("{node}: the capture broke: {reason}")]
    Broken {
        /// The node.
        node: String,
        /// What was seen.
        reason: String,
    },
    /// What the node delivered is not sound.
    #[error("{node}: {path}: not sound: {reason}")]
    Corrupt {
        /// The node.
        node: String,
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer in time.
    #[error("{node}: {what}: no answer within {limit:?}")]
    DeadlineExceeded {
        /// The node.
        node: String,
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
}

impl DriverError {
    /// The node the error is about.
    pub fn node(&self) -> &str {
        match self {
            Self::Unreachable { node, .. }
            | Self::Denied { node, .. }
            | Self::Refused { node, .. }
            | Self::Void { node, .. }
            | Self::Broken { node, .. }
            | Self::Corrupt { node, .. }
            | Self::DeadlineExceeded { node, .. } => node,
        }
    }
}

/// Where a node's files live on this host and how it is stopped and started: what a restore needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSite {
    /// The store's data directory on this host; `None` when it lives elsewhere.
    pub data_directory: Option<PathBuf>,
    /// Command that stops the store's supervisor, argument by argument.
    pub stop: Vec<String>,
    /// Command that starts it again.
    pub start: Vec<String>,
    /// The Dynomite in front of it.
    pub proxy: Option<ProxySite>,
}

/// A Dynomite on this host, in front of a store of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySite {
    /// Where it stands in its ring.
    pub place: RingPlace,
    /// `http://host:port` of its admin port.
    pub admin: String,
    /// Command that stops it; empty where none is known.
    pub stop: Vec<String>,
    /// Command that starts it again.
    pub start: Vec<String>,
}
