//! What a coordinator asks of a node that another host's agent acts for, in a restore, and what comes of it.
//!
//! **Invariants.** An order names a snapshot, a stored node and a step. Where that is placed, how the store is stopped and started,
//! and what is renamed on the way, the agent decides for itself, from its own configuration and from what it sees.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::remote::CourierError;
use super::restore::{KeptRestore, NodeRestored, Placed, RestoreStep, StepFailure};
use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};
use crate::model::restore_plan::{Content, Method, NodePlan, TargetFacts};

/// One target node in one restore, or in one rollback or settling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreTicket {
    /// The target's cluster.
    pub cluster: ClusterName,
    /// The target.
    pub node: NodeName,
    /// The restore.
    pub restore: Uuid,
    /// What is restored; `None` for a rollback or a settling.
    pub subject: Option<Subject>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The repository that it is in: the agent's must be the same.
    pub repository: Uuid,
    /// The cluster that was stored.
    pub cluster: ClusterName,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// What the operator has agreed to for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// The stored node.
    pub source: NodeName,
    /// What becomes of the target.
    pub content: Content,
    /// How the files come there.
    pub method: Method,
    /// What runs need not be saved first.
    pub discard_current: bool,
    /// What was typed to confirm the loss of newer data.
    pub confirm: Option<String>,
    /// A hash of [`NodePlan::promise`]: the agent's own plan must be the one that was shown.
    pub promise: String,
}

impl Wish {
    /// The hash that travels in the place of a plan.
    pub fn promise_of(plan: &NodePlan) -> String {
        blake3::hash(plan.promise().as_bytes()).to_hex().to_string()
    }
}

/// What is asked of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RestoreOrder {
    /// What is there now.
    Inspect,
    /// Place the files beside the data directory.
    Stage(Box<Wish>),
    /// Stop the store.
    Stop,
    /// Exchange the directories.
    Swap,
    /// Start the store.
    Start,
    /// Compare what was loaded.
    Check,
    /// Look again.
    Confirm,
    /// It is restored, for good.
    Finish,
    /// Stop it again, a replica whose master goes back.
    StepAside,
    /// Go back to how it was.
    Undo {
        /// It ran, and was ordered to stop.
        was_stopped: bool,
    },
    /// What is set aside.
    Kept,
    /// Stop a replica before a rollback.
    Halt,
    /// Put back what was there before.
    RollBack {
        /// The restore that is taken back, and no other.
        restore: Uuid,
    },
    /// Start again what was halted.
    GoOn,
    /// Delete what is set aside.
    Settle,
}

impl RestoreOrder {
    /// Its name.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Stage(_) => "stage",
            Self::Stop => "stop",
            Self::Swap => "swap",
            Self::Start => "start",
            Self::Check => "check",
            Self::Confirm => "confirm",
            Self::Finish => "finish",
            Self::StepAside => "step_aside",
            Self::Undo { .. } => "undo",
            Self::Kept => "kept",
            Self::Halt => "halt",
            Self::RollBack { .. } => "roll_back",
            Self::GoOn => "go_on",
            Self::Settle => "settle",
        }
    }

    /// Its turn among the steps of a restore; `None` for what has no turn.
    pub(super) fn turn(&self) -> Option<usize> {
        match self {
            Self::Stage(_) => Some(0),
            Self::Stop => Some(1),
            Self::Swap => Some(2),
            Self::Start => Some(3),
            Self::Check => Some(4),
            Self::Confirm => Some(5),
            Self::Finish => Some(6),
            _ => None,
        }
    }

    /// The step that it is of, for failures.
    pub(super) fn step(&self) -> RestoreStep {
        match self {
            Self::Stop | Self::StepAside | Self::Halt => RestoreStep::Stop,
            Self::Swap => RestoreStep::Swap,
            Self::Start => RestoreStep::Start,
            Self::Check => RestoreStep::Check,
            Self::Confirm | Self::Finish => RestoreStep::Confirm,
            Self::Undo { .. } | Self::RollBack { .. } | Self::GoOn | Self::Settle => RestoreStep::Undo,
            Self::Inspect | Self::Stage(_) | Self::Kept => RestoreStep::Stage,
        }
    }
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreAnswer {
    /// To `inspect`.
    Inspected(Box<TargetFacts>),
    /// To `stage`.
    Staged(NodeRestored),
    /// To `check`: keys, and whether they were compared with the snapshot's own count.
    Checked(Option<u64>, bool),
    /// To the other steps.
    Done,
    /// To `kept`.
    Kept(Vec<KeptRestore>),
    /// To `halt`: whether it ran.
    Halted(bool),
    /// To `roll_back`.
    RolledBack(Option<KeptRestore>),
    /// To `settle`.
    Settled(usize),
    /// To any.
    Failed(StepFailure),
}

/// What came of it, or that it is not done yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreReply {
    /// Ask again.
    Running(Placed),
    /// For ever: whoever asks again is told the same.
    Ended(RestoreAnswer),
}

/// Brings orders to an agent. The same order may be brought any number of times.
#[async_trait]
pub trait RestoreCourier: Send + Sync + Debug {
    /// Asks for an order's outcome, for about `wait`. To be given up after `limit`, however the network feels.
    async fn restore(
        &self,
        ticket: &RestoreTicket,
        order: &RestoreOrder,
        wait: Duration,
        limit: Duration,
    ) -> Result<RestoreReply, CourierError>;

    /// A `stage` that is under way ends soon.
    async fn give_up(&self, ticket: &RestoreTicket, limit: Duration) -> Result<(), CourierError>;
}
