//! What a node is asked to do, by whom, and how it answers: the language between `cluster` and the nodes.
//!
//! The port is [`NodeService`]: one object per node. `app` implements it for nodes that this process reaches itself.

pub mod restore;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::ids::BlockId;
use crate::model::manifest::{CaptureProof, KeyCounts, NodeDescription, NodeTotals};
use crate::model::names::NodeName;

/// What an upload brought.
#[derive(Debug, Clone, PartialEq)]
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
    /// What it is, without touching it.
    async fn describe(&mut self) -> Result<NodeDescription, NodeError>;
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// What it means for the snapshot.
    pub kind: NodeErrorKind,
    /// For people; names the node.
    pub message: String,
}

/// What a node's error means for the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
