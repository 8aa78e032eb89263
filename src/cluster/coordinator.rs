//! One coordinated snapshot of a whole cluster: prepare all, freeze all, capture all, thaw all, store all, publish.
//!
//! How it works: each node lives in a task of its own that takes orders one by one; what to order next is decided by the
//! pure [`crate::model::cut`]. The stores run again after the thaw; storing takes as long as it takes.
//!
//! **Invariants.** Nothing is published unless every node asked for was stored whole (or `partial` was agreed to). Whatever
//! happens, every node is told to give back what it took. A void cut is not repeated by itself: the operator decides
//! whether the pause may be felt again. One coordinator at a time works on a cluster, where the object store can tell; one
//! that has lost its lease gives up, and publishes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::identity::stranger;
use super::memory::lacks_memory;
use super::records::{publication, run_record};
use super::tokens::{missing_tokens, token_node};
use crate::agent::orders::{Answer, Order, serve};
use crate::agent::{NodeError, NodeErrorKind, NodeService, UploadReceipt};
use crate::base::Clock;
use crate::model::cut::{Cut, CutEvent, CutRequest, CutTimes, CutVerdict};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{CaptureProof, ClusterManifest, CutKind, NodeDescription, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::Timestamp;
use crate::repo::{LeaseGuard, ListedSnapshot, RepoError, Repository, RunRecord, SnapshotSource};

/// Snapshots that are asked at most whether the cluster is the one it was: a partial one may not know the nodes of this run.
const IDENTITY_DEPTH: usize = 8;

/// How a snapshot is to be taken.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// Identity of the new snapshot.
    pub uuid: SnapshotId,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// `redis`, `files`, …
    pub store: String,
    /// What the nodes can do to agree on an instant.
    pub cut_kind: CutKind,
    /// Longest time that any node may stay frozen.
    pub pause: Duration,
    /// How long to wait for running saves and the like before the freeze.
    pub patience: Duration,
    /// Publish without nodes that were unreachable before the freeze or broke after the thaw.
    pub partial: bool,
    /// Nodes of the cluster that were not asked for: recorded as missing, so that the snapshot does not count as whole.
    pub left_out: Vec<NodeName>,
    /// Bind the name anew, to this cluster.
    pub adopt: bool,
    /// The user's own words.
    pub tags: BTreeMap<String, String>,
}

/// Where a snapshot stands, for progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotPhase {
    /// Asking the nodes what they are and whether they may be captured.
    Preparing,
    /// Writes are paused.
    Cutting,
    /// The stores run again; their data is being stored.
    Storing,
    /// Everything is stored; the manifest is being written.
    Publishing,
}

/// A published snapshot.
#[derive(Debug, Clone)]
pub struct PublishedSnapshot {
    /// Its name and key.
    pub listed: ListedSnapshot,
    /// Its manifest.
    pub manifest: Arc<ClusterManifest>,
}

/// Why there is no snapshot, by what the operator can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// A node refused, could not be reached, or broke.
    #[error("{error}")]
    Node {
        /// Which.
        node: NodeName,
        /// Why.
        error: NodeError,
    },
    /// The nodes do not show one instant.
    #[error("the cut is void: {0}")]
    Void(String),
    /// Another cluster is stored under this name.
    #[error("cluster {cluster}: {reason}")]
    Stranger {
        /// The name.
        cluster: ClusterName,
        /// What does not fit.
        reason: String,
    },
    /// Nobody named a node with some of the ring's tokens.
    #[error("cluster {cluster}: no node is named with these tokens of the ring: {tokens}")]
    Incomplete {
        /// The name.
        cluster: ClusterName,
        /// Those that are missing.
        tokens: String,
    },
    /// The forks together need more memory than a host has.
    #[error("{0}")]
    Memory(String),
    /// The operator interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// The lease is lost.
    #[error("another coordinator has taken the lease of the cluster: this one stood still, or was cut off from the object store")]
    Superseded,
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

/// One node and what is known of it.
pub(super) struct Member {
    pub name: NodeName,
    orders: mpsc::UnboundedSender<Order>,
    pub description: NodeDescription,
    pub proof: CaptureProof,
    pub status: NodeStatus,
    pub reason: Option<String>,
    pub receipt: Option<UploadReceipt>,
}

impl Member {
    fn new(name: NodeName, orders: mpsc::UnboundedSender<Order>) -> Self {
        let (description, proof) = (NodeDescription::default(), CaptureProof::none());
        Self { name, orders, description, proof, status: NodeStatus::Processing, reason: None, receipt: None }
    }
}

/// The coordinator of one snapshot.
pub struct Coordinator {
    repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
    options: SnapshotOptions,
    interrupted: watch::Receiver<bool>,
    /// Somebody else has the lease.
    superseded: watch::Receiver<bool>,
    on_phase: Box<dyn Fn(SnapshotPhase) + Send + Sync>,
    members: Vec<Member>,
    answers: mpsc::UnboundedReceiver<(usize, Answer)>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Dropped when the snapshot is over: what the nodes are still at is cut short then.
    lifeline: Option<watch::Sender<()>>,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").field("cluster", &self.options.cluster).finish_non_exhaustive()
    }
}

impl Coordinator {
    /// A coordinator over `nodes`. `interrupted` turning true gives the snapshot up, at once and in order.
    pub fn new(
        repository: Arc<Repository>,
        clock: Arc<dyn Clock>,
        options: SnapshotOptions,
        nodes: Vec<Box<dyn NodeService>>,
        interrupted: watch::Receiver<bool>,
        on_phase: Box<dyn Fn(SnapshotPhase) + Send + Sync>,
    ) -> Self {
        let (answer_sender, answers) = mpsc::unbounded_channel();
        let (lifeline, held) = watch::channel(());
        let mut tasks = Vec::new();
        let members = nodes
            .into_iter()
            .enumerate()
            .map(|(index, node)| {
                let (orders, received) = mpsc::unbounded_channel();
                let name = node.name().clone();
                tasks.push(tokio::spawn(serve(index, node, received, answer_sender.clone(), held.clone())));
                Member::new(name, orders)
            })
            .collect();
        let (_, superseded) = watch::channel(false);
        let lifeline = Some(lifeline);
        Self { repository, clock, options, interrupted, superseded, on_phase, members, answers, tasks, lifeline }
    }

    /// Takes the snapshot. Whatever the outcome, the run is recorded and all nodes have given back what they took.
    pub async fn run(mut self) -> Result<PublishedSnapshot, SnapshotError> {
        let lease = match self.repository.keeps_conditions() {
            // One whose holder may have died is watched for a while: nobody has to wait for that.
            true => tokio::select! {
            biased;
                taken = self.repository.take_lease(&self.options.cluster, self.options.uuid, self.clock.clone()) => Some(taken?),
                () = raised(&mut self.interrupted) => return Err(SnapshotError::Interrupted),
            },
            false => None,
        };
        let outcome = self.run_with(lease.as_ref()).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        outcome
    }

    async fn run_with(&mut self, lease: Option<&LeaseGuard>) -> Result<PublishedSnapshot, SnapshotError> {
        let started_at = Timestamp(self.clock.wall_us());
        let newest = self.repository.newest(&self.options.cluster, IDENTITY_DEPTH).await?;
        if let Some(lease) = lease {
            tracing::info!(cluster = %self.options.cluster, epoch = lease.epoch(), "holds the lease");
            self.superseded = lease.lost();
        }
        let parent = newest.first().map(|snapshot| snapshot.uuid);
        let died = lease.and_then(LeaseGuard::predecessor);
        if let Some(died) = died {
            // Its lease is over, and with it whatever it had announced.
            self.repository.bury(&self.options.cluster, died, started_at).await?;
        }
        let (cluster, uuid) = (&self.options.cluster, self.options.uuid);
        let nodes = self.members.iter().map(|member| member.name.clone()).collect();
        let guard = self.repository.announce(cluster, uuid, parent, nodes, lease, self.clock.clone()).await?;
        let outcome = self.attempt(newest, lease).await;
        // Closing their channels tells the nodes to give back; each does so within its own deadlines.
        self.lifeline = None;
        for member in &mut self.members {
            let (closed, _) = mpsc::unbounded_channel();
            member.orders = closed;
        }
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a node's task ended badly");
            }
        }
        let ended_at = Timestamp(self.clock.wall_us());
        self.record(&run_record(&self.options, &self.members, (started_at, ended_at), &outcome)).await;
        guard.release().await;
        outcome
    }

    async fn attempt(
        &mut self,
        newest: Vec<ListedSnapshot>,
        lease: Option<&LeaseGuard>,
    ) -> Result<PublishedSnapshot, SnapshotError> {
        (self.on_phase)(SnapshotPhase::Preparing);
        let epoch = lease.map_or(0, LeaseGuard::epoch);
        self.ask_all(|| Order::Describe(epoch)).await?;
        self.check_identity(newest).await?;
        self.check_tokens()?;
        if let Some(reason) = lacks_memory(&self.present().map(|index| &self.members[index].description).collect::<Vec<_>>()) {
            return Err(SnapshotError::Memory(reason));
        }
        let (pause, patience) = (self.options.pause, self.options.patience);
        self.ask_all(|| Order::Prepare(pause, patience)).await?;

        confirm(lease).await?;
        (self.on_phase)(SnapshotPhase::Cutting);
        let cut_at = Timestamp(self.clock.wall_us());
        let times = self.cut().await?;
        (self.on_phase)(SnapshotPhase::Storing);
        tracing::info!(cluster = %self.options.cluster, pause = ?times.pause, "the cut is done; the stores run again");
        self.store_all().await?;
        (self.on_phase)(SnapshotPhase::Publishing);
        confirm(lease).await?;
        let publication = publication(&self.options, &self.members, cut_at, times);
        let (listed, manifest) = self.repository.publish(publication, Timestamp(self.clock.wall_us())).await?;
        Ok(PublishedSnapshot { listed, manifest })
    }

    /// Numbers of the nodes that are still in.
    fn present(&self) -> impl Iterator<Item = usize> + '_ {
        self.members.iter().enumerate().filter(|(_, member)| member.status == NodeStatus::Processing).map(|(index, _)| index)
    }

    fn order(&self, index: usize, order: Order) {
        // A task that is gone answers nothing; the deadline of whoever waits speaks then.
        let _ = self.members[index].orders.send(order);
    }

    /// Asks every present node the same and waits for all. The first error ends the snapshot, except that with
    /// `partial` an unreachable node is left out.
    async fn ask_all(&mut self, order: impl Fn() -> Order) -> Result<(), SnapshotError> {
        let asked: Vec<usize> = self.present().collect();
        asked.iter().for_each(|index| self.order(*index, order()));
        let mut first_error = None;
        for _ in &asked {
            let (index, answer) = self.next_answer().await?;
            match answer {
                Answer::Described(description) => self.members[index].description = *description,
                Answer::Failed(error) if error.kind == NodeErrorKind::Unreachable && self.options.partial => {
                    self.members[index].status = NodeStatus::Missing;
                    self.members[index].reason = Some(error.message);
                }
                Answer::Failed(error) => {
                    self.members[index].status = NodeStatus::Failed;
                    self.members[index].reason = Some(error.message.clone());
                    first_error.get_or_insert(SnapshotError::Node { node: self.members[index].name.clone(), error });
                }
                Answer::Done | Answer::Thawed(_) | Answer::Uploaded(_) => {}
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn next_answer(&mut self) -> Result<(usize, Answer), SnapshotError> {
        tokio::select! {
            biased;
            answer = self.answers.recv() => answer.ok_or_else(|| SnapshotError::Void("no node is left".to_owned())),
            error = halted(&mut self.interrupted, &mut self.superseded) => Err(error),
        }
    }

    /// The nodes must be of the cluster that the newest snapshots are of. A partial one may lack exactly the nodes that
    /// are asked now, so the ones before it speak too, up to the newest complete one.
    async fn check_identity(&self, newest: Vec<ListedSnapshot>) -> Result<(), SnapshotError> {
        let descriptions: Vec<_> = self.present().map(|index| self.members[index].description.clone()).collect();
        let mut strange = None;
        for before in newest.iter().filter(|_| !self.options.adopt) {
            strange = stranger(&*self.repository.manifest(before).await?, &descriptions);
            if strange.is_none() || before.is_complete {
                break;
            }
        }
        match strange {
            None => Ok(()),
            Some(reason) => Err(SnapshotError::Stranger { cluster: self.options.cluster.clone(), reason }),
        }
    }

    /// A list of nodes may lack a token that the ring has, and nobody would miss its keys. With `partial` it is recorded as missing;
    /// who chose some of the nodes gets no whole snapshot anyway.
    fn check_tokens(&mut self) -> Result<(), SnapshotError> {
        let missing = if self.options.left_out.is_empty() { missing_tokens(&self.members) } else { Vec::new() };
        if missing.is_empty() {
            return Ok(());
        }
        let cluster = self.options.cluster.clone();
        if !self.options.partial {
            let tokens: Vec<_> = missing.iter().map(ToString::to_string).collect();
            return Err(SnapshotError::Incomplete { cluster, tokens: tokens.join(", ") });
        }
        for token in missing {
            // Nobody acts for it.
            let (orders, _) = mpsc::unbounded_channel();
            let reason = Some("the ring has this token, and no node with it is named".to_owned());
            let name = token_node(token).map_err(|error| SnapshotError::Void(error.to_string()))?;
            self.members.push(Member { status: NodeStatus::Missing, reason, ..Member::new(name, orders) });
        }
        Ok(())
    }

    /// Runs the cut to its verdict. Halting it thaws like any other trouble.
    async fn cut(&mut self) -> Result<CutTimes, SnapshotError> {
        let nodes: Vec<usize> = self.present().collect();
        let (mut cut, request) = Cut::begin(nodes.len(), self.options.pause, self.clock.monotonic());
        let mut next = Some(request);
        let mut halt = None;
        loop {
            match next.take() {
                Some(CutRequest::FreezeAll) => {
                    nodes.iter().for_each(|index| self.order(*index, Order::Freeze(self.options.pause)))
                }
                Some(CutRequest::CaptureAll) => nodes.iter().for_each(|index| self.order(*index, Order::Capture)),
                Some(CutRequest::ThawAll) => nodes.iter().for_each(|index| self.order(*index, Order::Thaw)),
                Some(CutRequest::Finish(CutVerdict::Good(times))) => return Ok(times),
                Some(CutRequest::Finish(CutVerdict::Void { node, reason })) => {
                    if let Some(error) = halt {
                        return Err(error);
                    }
                    if let Some(index) = node {
                        self.members[nodes[index]].status = NodeStatus::Failed;
                        self.members[nodes[index]].reason = Some(reason.clone());
                    }
                    return Err(SnapshotError::Void(reason));
                }
                None => {}
            }
            let wait = cut.next_deadline().map_or(Duration::ZERO, |deadline| deadline.saturating_sub(self.clock.monotonic()));
            tokio::select! {
            biased;
                answer = self.answers.recv() => {
                    let Some((index, answer)) = answer else { return Err(SnapshotError::Void("no node is left".to_owned())) };
                    let Some(position) = nodes.iter().position(|node| *node == index) else { continue };
                    let event = self.event(index, answer, &cut);
                    next = cut.handle(position, event, self.clock.monotonic());
                }
                error = halted(&mut self.interrupted, &mut self.superseded), if halt.is_none() => {
                    next = cut.handle(0, CutEvent::Failed(error.to_string()), self.clock.monotonic());
                    halt = Some(error);
                }
                () = self.clock.sleep(wait) => next = cut.tick(self.clock.monotonic()),
            }
        }
    }

    fn event(&mut self, index: usize, answer: Answer, cut: &Cut) -> CutEvent {
        match answer {
            Answer::Thawed(proof) => {
                self.members[index].proof = proof;
                CutEvent::Thawed
            }
            Answer::Failed(error) => CutEvent::Failed(error.message),
            // Orders are answered one by one, so the phase says what was answered; a late answer to an earlier order is
            // passed over by the cut.
            Answer::Done | Answer::Described(_) | Answer::Uploaded(_) => cut.acknowledgement(),
        }
    }

    /// Stores all nodes at the same time: their forks are waiting.
    async fn store_all(&mut self) -> Result<(), SnapshotError> {
        let nodes: Vec<usize> = self.present().collect();
        nodes.iter().for_each(|index| self.order(*index, Order::Upload));
        for _ in &nodes {
            let (index, answer) = self.next_answer().await?;
            let member = &mut self.members[index];
            match answer {
                Answer::Uploaded(receipt) => {
                    member.status = NodeStatus::Completed;
                    member.receipt = Some(*receipt);
                }
                Answer::Failed(error) => {
                    member.status = NodeStatus::Failed;
                    member.reason = Some(error.message.clone());
                    // A repository that is away fails all of them; without consent to gaps one failure ends the run.
                    if !self.options.partial || error.kind == NodeErrorKind::Repository {
                        return Err(SnapshotError::Node { node: member.name.clone(), error });
                    }
                    tracing::warn!(node = %member.name, error = %error.message, "the node was not stored; the others go on");
                }
                Answer::Done | Answer::Described(_) | Answer::Thawed(_) => {}
            }
        }
        Ok(())
    }

    async fn record(&self, run: &RunRecord) {
        if let Err(error) = self.repository.record_run(run).await {
            tracing::warn!(%error, "how a run ended could not be recorded");
        }
    }
}

/// Still ours, where there are leases: before writes are paused, and before anything is published.
async fn confirm(lease: Option<&LeaseGuard>) -> Result<(), SnapshotError> {
    let Some(lease) = lease else { return Ok(()) };
    lease.confirm().await.map_err(|error| match error {
        RepoError::Conflict { .. } => SnapshotError::Superseded,
        error => error.into(),
    })
}

/// Returns when the snapshot must be given up, and why.
async fn halted(interrupted: &mut watch::Receiver<bool>, superseded: &mut watch::Receiver<bool>) -> SnapshotError {
    tokio::select! {
            biased;
        () = raised(interrupted) => SnapshotError::Interrupted,
        () = raised(superseded) => SnapshotError::Superseded,
    }
}

/// Returns when the flag is raised; never when its owner is gone without raising it.
async fn raised(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "coordinator_halt_tests.rs"]
mod halt_tests;
