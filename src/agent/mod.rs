//! What a node is asked to do, by whom, and how it answers: the language between `cluster` and the nodes.
//!
//! The port is [`NodeService`]: one object per node. `app` implements it for nodes that this process reaches itself, and
//! [`remote::RemoteNode`] for those that another host's daemon acts for: there a [`desk::Desk`] keeps one session per node
//! and snapshot. Between the two lies a [`remote::Courier`], which is REST in earnest ([`client`], [`server`]). For restores it is the
//! same: [`restore::RestoreNode`], [`remote_restore::RemoteRestore`], [`restore_desk::RestoreDesk`], [`restore_orders::RestoreCourier`].

pub mod client;
pub mod desk;
pub mod dynomite_manager;
pub mod fleet;
pub mod orders;
pub mod remote;
pub mod remote_restore;
pub mod restore;
pub mod restore_desk;
pub mod restore_orders;
mod restore_session;
pub mod server;
mod session;
pub mod tls;
mod wire;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::orders::Answer;
pub use self::session::SILENCE_MAX;
use crate::model::ids::{BlockId, SnapshotId};
use crate::model::manifest::{CaptureProof, KeyCounts, NodeDescription, NodeTotals};
use crate::model::names::{ClusterName, NodeName};

/// What an upload brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadReceipt {
    /// Id of the node manifest.
    pub manifest: BlockId,
    /// Sizes.
    pub totals: NodeTotals,
    /// Keys of the dump, where they were counted.
    pub keys: Option<KeyCounts>,
    /// What was checked while the bytes passed, to be told beside the proof.
    pub checked: Vec<String>,
}

/// What a node does for a snapshot.
///
/// Promises: as `driver::StoreDriver` makes them; `upload` follows a good thaw only; `abandon` is allowed at any point,
/// gives everything back, and may come twice.
#[async_trait]
pub trait NodeService: Send + Debug {
    /// The name under which the node is stored.
    fn name(&self) -> &NodeName;
    /// What it is, without touching it. `epoch` is the coordinator's: of two the later one is obeyed.
    async fn describe(&mut self, epoch: u64) -> Result<NodeDescription, NodeError>;
    /// Everything slow or refusable before the freeze.
    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), NodeError>;
    /// Stops writes for at most `pause`.
    async fn freeze(&mut self, pause: Duration) -> Result<(), NodeError>;
    /// Marks the instant.
    async fn capture(&mut self) -> Result<(), NodeError>;
    /// Lets writes go; an error says that the freeze did not hold.
    async fn thaw(&mut self) -> Result<CaptureProof, NodeError>;
    /// Stores what was captured.
    async fn upload(&mut self) -> Result<UploadReceipt, NodeError>;
    /// Gives everything back.
    async fn abandon(&mut self);
}

/// Why a node could not do it, by what the coordinator can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// What it means for the snapshot.
    pub kind: NodeErrorKind,
    /// For people; names the node.
    pub message: String,
}

/// What a node's error means for the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeErrorKind {
    /// It does not answer: `--partial` may leave it out.
    Unreachable,
    /// It answers, but not to us.
    Denied,
    /// It must not be captured now.
    Refused,
    /// The cut is void.
    Void,
    /// It broke after the cut: `--partial` may leave it out.
    Broken,
    /// The repository or its object store broke: no node is to blame.
    Repository,
}

impl NodeError {
    /// `message` names the node.
    pub fn new(kind: NodeErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// One node in one snapshot, as one coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The repository into which the snapshot goes.
    pub repository: Uuid,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its node.
    pub node: NodeName,
    /// The snapshot being made.
    pub snapshot: SnapshotId,
    /// The coordinator's epoch: that of its lease, or 0 where there are none.
    pub epoch: u64,
}

/// What came of an order, or that it is not done yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Ask again.
    Running {
        /// Plain bytes read for the upload so far.
        read_bytes: u64,
    },
    /// For ever: whoever asks again is told the same.
    Ended(Answer),
}
