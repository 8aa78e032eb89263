//! A node that another host's agent acts for: the port [`NodeService`] on top of a [`Courier`].
//!
//! How it works: an order is asked again until its outcome comes, which the agent makes safe: whatever is lost on the way,
//! each is carried out once. So a lost answer or a connection that hangs costs a moment, and an upload of hours needs no
//! connection of hours. While other nodes keep the coordinator waiting, a heartbeat tells the agent that it is still there.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::orders::{Answer, Order};
use super::{NodeError, NodeErrorKind, NodeService, Reply, Ticket, UploadReceipt};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::manifest::{CaptureProof, NodeDescription};
use crate::model::names::{ClusterName, NodeName};

/// How long an agent keeps who asks before it says that it is still at it.
pub const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Before the freeze an agent that is not heard for so long is away …
const SILENCE: Duration = Duration::from_secs(10);
/// … and after the thaw, where a host may restart its network but not its agent. Less than after which that gives up.
pub(super) const UPLOAD_SILENCE: Duration = Duration::from_secs(45);
/// Giving back is tried for so long; after that the agent does it by itself.
const ABANDON_FOR: Duration = Duration::from_secs(5);
/// A connection that does not bring the answer so long after it was due is given up for another …
pub(super) const LATE: Duration = Duration::from_secs(5);
/// … and while somebody waits for writes after a part of the time that there is, but no sooner than hosts can be apart.
const LATE_FROZEN_MIN: Duration = Duration::from_millis(200);
/// Between two tries, while nobody waits for writes …
pub(super) const RETRY: Duration = Duration::from_millis(250);
/// … and while somebody does.
const RETRY_FROZEN: Duration = Duration::from_millis(10);

/// Brings orders to an agent. The same order may be brought any number of times.
#[async_trait]
pub trait Courier: Send + Sync + Debug {
    /// Asks for an order's outcome, for about `wait`. To be given up after `limit`, however the network feels.
    async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration, limit: Duration) -> Result<Reply, CourierError>;
    /// Tells it to give everything back.
    async fn abandon(&self, ticket: &Ticket, limit: Duration) -> Result<(), CourierError>;
}

/// Why an agent could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CourierError {
    /// Perhaps later.
    #[error("{0}")]
    Unreachable(String),
    /// It does not obey us: token, certificate.
    #[error("{0}")]
    Denied(String),
    /// It does not understand us.
    #[error("{0}")]
    Unclear(String),
}

/// A node of another host.
#[derive(Debug)]
pub struct RemoteNode {
    ticket: Ticket,
    courier: Arc<dyn Courier>,
    clock: Arc<dyn Clock>,
    read_bytes: Arc<AtomicU64>,
    /// From the first order on, when it may have something to give back.
    heartbeat: Option<JoinHandle<()>>,
}

impl Drop for RemoteNode {
    fn drop(&mut self) {
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.abort();
        }
    }
}

impl RemoteNode {
    /// A node of `cluster` for `snapshot` in `repository`.
    pub fn new(
        courier: Arc<dyn Courier>,
        clock: Arc<dyn Clock>,
        repository: Uuid,
        cluster: ClusterName,
        node: NodeName,
        snapshot: SnapshotId,
    ) -> Self {
        let ticket = Ticket { repository, cluster, node, snapshot, epoch: 0 };
        Self { ticket, courier, clock, read_bytes: Arc::default(), heartbeat: None }
    }

    /// Plain bytes that it has read for the upload, as it says.
    pub fn read_bytes(&self) -> Arc<AtomicU64> {
        self.read_bytes.clone()
    }

    fn error(&self, kind: NodeErrorKind, reason: impl std::fmt::Display) -> NodeError {
        NodeError::new(kind, format!("{}: its agent: {reason}", self.ticket.node))
    }

    /// The outcome of an order. Who is not heard within `silence` counts as away.
    async fn order(&mut self, order: Order, silence: Duration) -> Result<Answer, NodeError> {
        self.heartbeat.get_or_insert_with(|| tokio::spawn(beat(self.courier.clone(), self.clock.clone(), self.ticket.clone())));
        let attempt = (silence / 4).max(LATE_FROZEN_MIN);
        let (away, retry, wait, late) = match order {
            Order::Describe(_) | Order::Prepare(..) => (NodeErrorKind::Unreachable, RETRY, ASK_AGAIN, LATE),
            Order::Upload => (NodeErrorKind::Broken, RETRY, ASK_AGAIN, LATE),
            Order::Freeze(_) | Order::Capture | Order::Thaw => {
                (NodeErrorKind::Void, RETRY_FROZEN, attempt / 2, attempt - attempt / 2)
            }
        };
        let mut heard_at = self.clock.monotonic();
        loop {
            let left = (heard_at + silence).saturating_sub(self.clock.monotonic());
            match self.courier.ask(&self.ticket, order, wait, wait + late.min(left)).await {
                Ok(Reply::Ended(Answer::Failed(error))) => return Err(error),
                Ok(Reply::Ended(answer)) => return Ok(answer),
                Ok(Reply::Running { read_bytes }) => {
                    self.read_bytes.store(read_bytes, Ordering::Relaxed);
                    // Nobody is kept waiting for writes by an agent that says that it is still at it.
                    if away != NodeErrorKind::Void {
                        heard_at = self.clock.monotonic();
                    }
                }
                Err(CourierError::Denied(reason)) => return Err(self.error(NodeErrorKind::Denied, reason)),
                Err(CourierError::Unclear(reason)) => return Err(self.error(NodeErrorKind::Refused, reason)),
                Err(CourierError::Unreachable(reason)) => {
                    if self.clock.monotonic() >= heard_at + silence {
                        return Err(self.error(away, reason));
                    }
                    self.clock.sleep(retry).await;
                    continue;
                }
            }
            if self.clock.monotonic() >= heard_at + silence {
                return Err(self.error(away, format_args!("no answer to {} within {silence:?}", order.verb())));
            }
        }
    }

    fn odd(&self, order: &str) -> NodeError {
        self.error(NodeErrorKind::Refused, format_args!("answers {order} with something else"))
    }
}

/// Says again and again what was said first, which changes nothing.
async fn beat(courier: Arc<dyn Courier>, clock: Arc<dyn Clock>, ticket: Ticket) {
    loop {
        clock.sleep(ASK_AGAIN).await;
        if let Err(error) = courier.ask(&ticket, Order::Describe(ticket.epoch), Duration::ZERO, LATE).await {
            tracing::debug!(node = %ticket.node, %error, "the agent was not told that its coordinator is there");
        }
    }
}

#[async_trait]
impl NodeService for RemoteNode {
    fn name(&self) -> &NodeName {
        &self.ticket.node
    }

    async fn describe(&mut self, epoch: u64) -> Result<NodeDescription, NodeError> {
        self.ticket.epoch = epoch;
        match self.order(Order::Describe(epoch), SILENCE).await? {
            Answer::Described(description) => Ok(*description),
            _ => Err(self.odd("describe")),
        }
    }

    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), NodeError> {
        self.order(Order::Prepare(max_pause, patience), SILENCE).await.map(drop)
    }

    async fn freeze(&mut self, pause: Duration) -> Result<(), NodeError> {
        self.order(Order::Freeze(pause), pause).await.map(drop)
    }

    async fn capture(&mut self) -> Result<(), NodeError> {
        self.order(Order::Capture, SILENCE).await.map(drop)
    }

    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        match self.order(Order::Thaw, SILENCE).await? {
            Answer::Thawed(proof) => Ok(proof),
            _ => Err(self.odd("thaw")),
        }
    }

    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        match self.order(Order::Upload, UPLOAD_SILENCE).await? {
            Answer::Uploaded(receipt) => Ok(*receipt),
            _ => Err(self.odd("upload")),
        }
    }

    async fn abandon(&mut self) {
        let Some(heartbeat) = self.heartbeat.take() else { return };
        heartbeat.abort();
        let until = self.clock.monotonic() + ABANDON_FOR;
        loop {
            let left = until.saturating_sub(self.clock.monotonic());
            match self.courier.abandon(&self.ticket, left).await {
                Ok(()) => return,
                Err(CourierError::Unreachable(_)) if self.clock.monotonic() + RETRY < until => self.clock.sleep(RETRY).await,
                Err(error) => {
                    tracing::warn!(node = %self.ticket.node, %error, "its agent was not told that the snapshot is over, and gives up by itself");
                    return;
                }
            }
        }
    }
}
