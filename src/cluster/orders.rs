//! One node at work: its orders, one by one, and its answers.
//!
//! **Invariants.** A node is told to give back what it took whatever happens, also when it panics. What holds nobody's
//! writes back is cut short when the snapshot is over; freeze, capture and thaw are not.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, watch};

use crate::agent::{NodeError, NodeErrorKind, NodeService, UploadReceipt};
use crate::model::manifest::{CaptureProof, NodeDescription};
use crate::model::names::NodeName;

/// What the coordinator asks of one node.
pub(super) enum Order {
    Describe,
    Prepare(Duration, Duration),
    Freeze(Duration),
    Capture,
    Thaw,
    Upload,
}

impl Order {
    /// It may take minutes and holds nobody's writes back: it is cut short when the snapshot is given up. What it took is
    /// given back by `abandon`.
    fn is_patient(&self) -> bool {
        matches!(self, Self::Describe | Self::Prepare(..) | Self::Upload)
    }
}

/// What came of it.
pub(super) enum Answer {
    Described(Box<NodeDescription>),
    Done,
    Thawed(CaptureProof),
    Uploaded(Box<UploadReceipt>),
    Failed(NodeError),
}

/// Takes one node's orders, in the order in which they come.
pub(super) async fn serve(
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
        Order::Describe => Answer::Described(Box::new(node.describe().await?)),
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
