//! What a node does for a restore, asked by `cluster`. The port is [`RestoreNode`]: one object per target node. `app` implements
//! it for nodes of this host, and [`super::remote_restore`] for those that another host's agent acts for.

use std::fmt::Debug;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::restore_plan::{NodePlan, TargetFacts};

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
    /// How many of those were on this disk already, and right.
    #[serde(default)]
    pub found_bytes: u64,
    /// Keys found again; `None` where the store was not started.
    pub keys: Option<u64>,
    /// They were compared with the snapshot's own count.
    pub is_compared: bool,
    /// Worth telling: links that lead out of the directory.
    pub notes: Vec<String>,
}

/// Bytes that came to their place so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// All of them …
    pub bytes: u64,
    /// … and those that were on the disk already, and right.
    pub found_bytes: u64,
}

/// What a restore has set aside or begun, and a rollback or a settling would act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRestore {
    /// The restore.
    pub id: Uuid,
    /// The node.
    pub node: String,
    /// `CLUSTER/DATE/NODE` of what was restored.
    pub source: String,
    /// The data directory, for people.
    pub directory: String,
    /// It ended before anything was replaced; the same restore goes on from it.
    pub is_begun: bool,
    /// The restored data is in place, so that it can be rolled back.
    #[serde(default)]
    pub is_in_place: bool,
    /// The node is a replica of another one.
    #[serde(default)]
    pub is_replica: bool,
    /// When it was begun, microseconds since 1970.
    #[serde(default)]
    pub begun_at: i64,
}

/// One target node.
///
/// Promises: the steps from `stage` to `finish` are called in the order in which they stand here, each at most once; until
/// `swap` began the old data is untouched; `undo` is allowed after any of them but `finish`, brings the node back to how it was
/// found (running if it ran), and is fine when nothing was begun; a process that dies leaves what the next one can finish or undo.
#[async_trait]
pub trait RestoreNode: Send + Sync + Debug {
    /// Its configured name.
    fn name(&self) -> &str;
    /// The agent on whose host its disk is; `None`: this host.
    fn agent(&self) -> Option<&str>;
    /// Looks, and touches nothing.
    async fn inspect(&self) -> TargetFacts;
    /// Counts while `stage` runs.
    fn placed(&self) -> Placed;
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
    /// Stops a replica that was started already, so that it does not take over while its master goes back.
    async fn step_aside(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// Goes back to how it was.
    async fn undo(&self, plan: &NodePlan) -> Result<(), StepFailure>;
    /// The same for who comes after a process that died in it: `restore` is found by what it has written down. With
    /// `was_stopped` the store ran before.
    async fn undo_of_another(&self, restore: Uuid, was_stopped: bool) -> Result<(), StepFailure>;

    /// What restores of it have set aside, the oldest first.
    async fn kept(&self) -> Result<Vec<KeptRestore>, String>;
    /// Stops a replica that is about to be rolled back, before its master is; whether it ran.
    async fn halt(&self) -> Result<bool, String>;
    /// Starts again what `halt` has stopped, where nothing is rolled back after all.
    async fn go_on(&self) -> Result<(), String>;
    /// Puts back what was there before `restore`, where that is the newest in place; `None`: nothing is, or it is another one.
    /// What `halt` has stopped is started.
    async fn roll_back(&self, restore: Uuid) -> Result<Option<KeptRestore>, String>;
    /// Deletes what restores have set aside; how many were let go.
    async fn settle(&self) -> Result<usize, String>;
}
