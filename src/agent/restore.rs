//! What a node does for a restore, asked by `cluster`. The port is [`RestoreNode`]: one object per target node.

use std::fmt::Debug;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::restore_plan::NodePlan;

/// A step of a restore, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreStep {
    /// Placing the files beside the data directory.
    Stage,
    /// Stopping the store.
    Stop,
    /// Exchanging the directories.
    Swap,
    /// Starting the store, until it has loaded.
    Start,
    /// Comparing what was loaded.
    Check,
    /// Looking again, once nobody can have failed it over any more.
    Confirm,
    /// Going back to how it was.
    Undo,
}

impl std::fmt::Display for RestoreStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stage => "placing the files",
            Self::Stop => "stopping it",
            Self::Swap => "swapping the directories",
            Self::Start => "starting it",
            Self::Check => "checking it",
            Self::Confirm => "looking at it again",
            Self::Undo => "going back",
        })
    }
}

/// Why a step did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{node}: {step}: {reason}")]
pub struct StepFailure {
    /// The node.
    pub node: String,
    /// The step.
    pub step: RestoreStep,
    /// Why, with what to do where that is known.
    pub reason: String,
}

/// What a node brought back from a whole restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRestored {
    /// Files placed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Keys found again; `None` where the store was not started.
    pub keys: Option<u64>,
    /// They were compared with the snapshot's own count.
    pub is_compared: bool,
    /// Worth telling: links that lead out of the directory.
    pub notes: Vec<String>,
}

/// One target node.
///
/// Promises: the steps are called in the order in which they stand here, each at most once; until `swap` began the old
/// data is untouched; `undo` is allowed after any of them, brings the node back to how it was found (running if it
/// ran), and is fine when nothing was begun; a process that dies leaves what the next one can finish or undo.
#[async_trait]
pub trait RestoreNode: Send + Sync + Debug {
    /// Its configured name.
    fn name(&self) -> &str;
    /// Places the files beside the data directory.
    async fn stage(&self, plan: &NodePlan) -> Result<NodeRestored, StepFailure>;
    /// A `stage` that is under way or comes later ends soon, with a failure, and keeps what it has placed for the next
    /// attempt.
    async fn give_up(&self);
    /// Stops the store, saving first where the plan says so.
    async fn stop(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Exchanges the directories.
    async fn swap(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Starts the store and waits until it has loaded.
    async fn start(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Compares what was loaded with what was stored: keys, and whether that was the snapshot's own count.
    async fn check(&self, plan: &NodePlan) -> Result<(Option<u64>, bool), StepFailure>;
    /// Sees whether it is still what was checked.
    async fn confirm(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Ends the restore of this node, once all are confirmed: there is no `undo` after it.
    async fn finish(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Goes back to how it was.
    async fn undo(&self, plan: &NodePlan) -> Result<(), StepFailure>;
}
