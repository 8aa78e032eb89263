//! One node at work: its orders, one by one, and its answers.
//!
//! **Invariants.** A node is told to give back what it took whatever happens, also when it panics. What holds nobody's
//! writes back is cut short when the snapshot is over; freeze, capture and thaw are not.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{NodeError, NodeErrorKind, NodeService, UploadReceipt};
use crate::model::manifest::{CaptureProof, NodeDescription};
use crate::model::names::NodeName;

/// What the coordinator asks of one node, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// What it is; with the coordinator's epoch.
    Describe(u64),
    /// Everything slow before the freeze: with the longest pause, and how long to wait for running saves.
    Prepare(Duration, Duration),
    /// Stop writes for at most so long.
    Freeze(Duration),
    /// Mark the instant.
    Capture,
    /// Let writes go.
    Thaw,
    /// Store what was captured.
    Upload,
}

impl Order {
    /// What it asks for, for messages and addresses.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Describe(_) => "describe",
            Self::Prepare(..) => "prepare",
            Self::Freeze(_) => "freeze",
            Self::Capture => "capture",
            Self::Thaw => "thaw",
            Self::Upload => "upload",
        }
    }

    /// Its turn.
    pub(super) fn turn(&self) -> usize {
        match self {
            Self::Describe(_) => 0,
            Self::Prepare(..) => 1,
            Self::Freeze(_) => 2,
            Self::Capture => 3,
            Self::Thaw => 4,
            Self::Upload => 5,
        }
    }

    /// It may take minutes and holds nobody's writes back: it is cut short when the snapshot is given up. What it took is
    /// given back by `abandon`.
    pub(super) fn is_patient(&self) -> bool {
        matches!(self, Self::Describe(_) | Self::Prepare(..) | Self::Upload)
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `describe`.
    Described(Box<NodeDescription>),
    /// To `prepare`, `freeze` and `capture`.
    Done,
    /// To `thaw`.
    Thawed(CaptureProof),
    /// To `upload`.
    Uploaded(Box<UploadReceipt>),
    /// To any.
    Failed(NodeError),
}

/// Takes one node's orders, in the order in which they come, until nobody gives any.
pub async fn serve(
    index: usize,
    mut node: Box<dyn NodeService>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    answers: mpsc::UnboundedSender<(usize, Answer)>,
    mut lifeline: watch::Receiver<()>,
) {
    while let Some(order) = orders.recv().await {
        let is_patient = order.is_patient();
        // A node that panics has failed like any other: nobody may wait for its answer for ever.
        let obeying = AssertUnwindSafe(obey(node.as_mut(), order)).catch_unwind();
        let answer = tokio::select! {
            biased;
            answer = obeying => answer.unwrap_or_else(|_| Err(panicked(node.name()))),
            () = dropped(&mut lifeline), if is_patient => break,
        };
        // Nobody listens any more when the coordinator was dropped; the node is still told to give back (below).
        if answers.send((index, answer.unwrap_or_else(Answer::Failed))).is_err() {
            break;
        }
    }
    node.abandon().await;
}

async fn obey(node: &mut dyn NodeService, order: Order) -> Result<Answer, NodeError> {
    Ok(match order {
        Order::Describe(epoch) => Answer::Described(Box::new(node.describe(epoch).await?)),
        Order::Prepare(pause, patience) => {
            node.prepare(pause, patience).await?;
            Answer::Done
        }
        Order::Freeze(pause) => {
            node.freeze(pause).await?;
            Answer::Done
        }
        Order::Capture => {
            node.capture().await?;
            Answer::Done
        }
        Order::Thaw => Answer::Thawed(node.thaw().await?),
        Order::Upload => Answer::Uploaded(Box::new(node.upload().await?)),
    })
}

fn panicked(name: &NodeName) -> NodeError {
    NodeError { kind: NodeErrorKind::Broken, message: format!("{name}: our own code panicked; see the log") }
}

/// Returns when the other end is dropped: the snapshot is over, well or badly.
async fn dropped(lifeline: &mut watch::Receiver<()>) {
    while lifeline.changed().await.is_ok() {}
}
