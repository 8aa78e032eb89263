//! What this host's daemon does for people and scripts: it tells of clusters and snapshots, and coordinates new ones.
//!
//! **Invariants.** One snapshot of a cluster at a time, and `RUNS_MAX` in all. A run that was promised is told of from then on,
//! by whoever is asked: what never came to an announcement of its own is recorded here. The configuration is read anew at every
//! request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use super::super::control::browse::open_node;
use super::super::control_args::{CommonArgs, SourceArgs};
use super::super::export;
use super::super::failure::Failure;
use super::super::snapshot::{PreparedSnapshot, SnapshotRequest, prepare};
use super::super::status::{self, SnapshotStanding};
use super::super::wiring::Session;
use super::opened::OpenedRepository;
use crate::agent::fleet::{FleetError, FleetErrorKind, FleetService, SnapshotWish, TarStream};
use crate::cluster::coordinator::PublishedSnapshot;
use crate::model::ids::SnapshotId;
use crate::model::manifest::NodeStatus;
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::Timestamp;
use crate::repo::{Intent, ListedSnapshot, NodeOutcome, Repository, RunRecord, RunStatus, SnapshotSource};

/// Snapshots at once: each holds packs and connections of all its nodes.
const RUNS_MAX: usize = 8;
/// Tars at once: each holds some tens of MiB.
const EXPORTS_MAX: usize = 4;
/// A node that does not answer is not waited for any longer before the promise is given.
const PROMISE_LIMIT: Duration = Duration::from_secs(10);
/// What failed is kept in mind, should the repository be away.
const FAILURES_KEPT: usize = 64;
/// What is under way when the daemon is told to stop has so long to let go: a pause ends sooner.
const CLOSE_LIMIT: Duration = Duration::from_secs(4);

/// The daemon's own clusters.
#[derive(Debug)]
pub struct HostFleet {
    common: CommonArgs,
    repository: Arc<OpenedRepository>,
    exports: Arc<Semaphore>,
    runs: Arc<Runs>,
}

#[derive(Debug, Default)]
struct Runs(Mutex<RunTable>);

#[derive(Debug, Default)]
struct RunTable {
    is_closed: bool,
    running: BTreeMap<ClusterName, Run>,
    failed: VecDeque<SnapshotStanding>,
}

#[derive(Debug)]
struct Run {
    uuid: SnapshotId,
    /// Known once it is prepared.
    nodes: Vec<NodeName>,
    interrupt: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, RunTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run of this process that failed, whatever the repository came to hear of it.
    fn failed(&self, uuid: SnapshotId) -> Option<SnapshotStanding> {
        self.lock().failed.iter().find(|failed| failed.uuid == uuid).cloned()
    }
}

/// A run's place among those under way; it is free again when this is dropped, also after a panic.
#[derive(Debug)]
struct Place {
    runs: Arc<Runs>,
    cluster: ClusterName,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.runs.lock().running.remove(&self.cluster);
    }
}

impl From<Failure> for FleetError {
    fn from(failure: Failure) -> Self {
        let kind = match failure.code.as_ref() {
            "not_found" => FleetErrorKind::NotFound,
            "conflict" | "superseded" => FleetErrorKind::Conflict,
            "refused" | "stranger" | "memory" | "void" => FleetErrorKind::Refused,
            "unreachable" | "unavailable" | "deadline" | "interrupted" | "no_space" => FleetErrorKind::Unavailable,
            // The configuration makes no sense, and not the request.
            _ => FleetErrorKind::Broken,
        };
        Self { kind, code: failure.code.into_owned(), message: failure.message, hint: failure.hint, uuid: None }
    }
}

fn refusal(kind: FleetErrorKind, code: &str, message: String, hint: &str) -> FleetError {
    FleetError { kind, code: code.to_owned(), message, hint: Some(hint.to_owned()), uuid: None }
}

impl HostFleet {
    /// For the clusters of the configuration that `common` leads to.
    pub(super) fn new(common: CommonArgs, repository: Arc<OpenedRepository>) -> Arc<Self> {
        Arc::new(Self { common, repository, exports: Arc::new(Semaphore::new(EXPORTS_MAX)), runs: Arc::default() })
    }

    fn session(&self) -> Result<Session, Failure> {
        Session::begin(self.common.clone())
    }

    async fn opened(&self) -> Result<(Session, Arc<Repository>), Failure> {
        let session = self.session()?;
        let repository = self.repository.get(&session, None).await?;
        Ok((session, repository))
    }

    /// Takes the cluster's place, or says who has it.
    fn take_place(&self, cluster: &ClusterName, uuid: SnapshotId, interrupt: watch::Sender<bool>) -> Result<Place, FleetError> {
        let mut table = self.runs.lock();
        if table.is_closed {
            return Err(refusal(
                FleetErrorKind::Unavailable,
                "stopping",
                "this daemon is being stopped".to_owned(),
                "ask another one",
            ));
        }
        if let Some(run) = table.running.get(cluster) {
            let message = format!("cluster {cluster}: snapshot {} is under way", run.uuid);
            let refusal = refusal(FleetErrorKind::Conflict, "conflict", message, "ask how that one fares");
            return Err(FleetError { uuid: Some(run.uuid), ..refusal });
        }
        if table.running.len() >= RUNS_MAX {
            let message = format!("{RUNS_MAX} snapshots are under way on this host");
            return Err(refusal(FleetErrorKind::Unavailable, "busy", message, "ask again when one of them has ended"));
        }
        table.running.insert(cluster.clone(), Run { uuid, nodes: Vec::new(), interrupt, task: None });
        Ok(Place { runs: self.runs.clone(), cluster: cluster.clone() })
    }
}

/// Why a run could not be begun.
struct NotBegun {
    failure: Failure,
    /// The snapshot that is under way instead.
    other: Option<SnapshotId>,
}

impl From<Failure> for NotBegun {
    fn from(failure: Failure) -> Self {
        Self { failure, other: None }
    }
}

impl From<NotBegun> for FleetError {
    fn from(NotBegun { failure, other }: NotBegun) -> Self {
        Self { uuid: other, ..failure.into() }
    }
}

/// What one run works with.
struct Work {
    session: Session,
    repository: Arc<OpenedRepository>,
    request: SnapshotRequest,
    interrupted: watch::Receiver<bool>,
    place: Place,
}

impl Work {
    /// Until it is over. `told` learns whether it could be begun; who does not listen any more has the promise already.
    async fn carry_out(self, told: oneshot::Sender<Result<(), NotBegun>>) {
        let (cluster, uuid) = (self.request.cluster.clone(), self.request.uuid);
        let started_at = self.session.now();
        let mut interrupted = self.interrupted.clone();
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared,
            _ = interrupted.wait_for(|raised| *raised) => Err(Failure::new("interrupted", "the daemon was told to stop").into()),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(not_begun) => {
                if let Err(Err(NotBegun { failure, .. })) = told.send(Err(not_begun)) {
                    self.failed(&failure, Vec::new(), started_at).await;
                }
                return;
            }
        };
        let nodes: Vec<NodeName> = prepared.nodes.iter().map(|node| node.name.clone()).collect();
        if let Some(run) = self.place.runs.lock().running.get_mut(&cluster) {
            run.nodes.clone_from(&nodes);
        }
        let _has_the_promise_already = told.send(Ok(()));
        if let Some(warning) = &prepared.warning {
            tracing::warn!(%cluster, "{warning}");
        }
        tracing::info!(%cluster, snapshot = %uuid, nodes = nodes.len(), "a snapshot begins");
        let on_phase = move |phase| tracing::info!(snapshot = %uuid, ?phase, "a snapshot goes on");
        let coordinator = prepared.run.coordinator(interrupted, Box::new(on_phase));
        match Box::pin(coordinator.run()).await {
            Ok(PublishedSnapshot { listed, .. }) => {
                tracing::info!(%cluster, snapshot = %uuid, date = %listed.date, "a snapshot is published");
            }
            Err(error) => self.failed(&error.into(), nodes, started_at).await,
        }
    }

    async fn prepare(&self) -> Result<PreparedSnapshot, NotBegun> {
        let repository = self.repository.get(&self.session, None).await?;
        let cluster = &self.request.cluster;
        // The lease decides; but whoever asks is to be told at once. What cannot be read keeps nobody from anything.
        let intents = repository.intents(cluster).await.unwrap_or_default();
        // An own run that failed with the store away may have left one behind: it claims nothing any more.
        let is_at_work = |intent: &Intent| intent.is_alive(self.session.now()) && self.place.runs.failed(intent.uuid).is_none();
        if let Some(other) = intents.into_iter().find(is_at_work) {
            let Intent { uuid, writer, started_at, .. } = other;
            let message = format!("cluster {cluster}: snapshot {uuid} is being made by {writer} since {started_at}");
            let failure = Failure::new("conflict", message).hint("ask how that one fares, and again when it has ended");
            return Err(NotBegun { failure, other: Some(uuid) });
        }
        Ok(Box::pin(prepare(&self.session, repository, self.request.clone())).await?)
    }

    /// Writes down what a coordinator did not come to write down by itself.
    async fn failed(&self, failure: &Failure, nodes: Vec<NodeName>, started_at: Timestamp) {
        let SnapshotRequest { cluster, uuid, .. } = &self.request;
        tracing::error!(%cluster, snapshot = %uuid, %failure, "a snapshot failed");
        let reason = Some(failure.message.clone());
        let outcome = |name: NodeName| (name, NodeOutcome::empty(NodeStatus::Failed, reason.clone()));
        let record = RunRecord {
            restored_into: None,
            uuid: *uuid,
            cluster: cluster.clone(),
            date: None,
            status: RunStatus::Failed,
            reason: reason.clone(),
            started_at,
            ended_at: self.session.now(),
            nodes: nodes.into_iter().map(outcome).collect(),
        };
        let recorded = match self.repository.get(&self.session, None).await {
            Ok(repository) => repository.record_run(&record).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = recorded {
            tracing::warn!(%failure, snapshot = %uuid, "how a run ended could not be recorded");
        }
        let mut table = self.place.runs.lock();
        if table.failed.len() == FAILURES_KEPT {
            table.failed.pop_front();
        }
        table.failed.push_back(record.into());
    }
}

#[async_trait]
impl FleetService for HostFleet {
    async fn clusters(&self) -> Result<Value, FleetError> {
        let (session, repository) = self.opened().await?;
        let mut clusters = Vec::new();
        for name in status::clusters(&repository, session.config.clusters.keys()).await? {
            clusters.push(status::cluster(&repository, &name, session.now()).await?.value);
        }
        Ok(json!({"clusters": clusters}))
    }

    async fn snapshots(&self, cluster: &ClusterName) -> Result<Value, FleetError> {
        let (session, repository) = self.opened().await?;
        let listed = repository.snapshots(cluster).await.map_err(Failure::from)?;
        if listed.is_empty() && !session.config.clusters.contains_key(cluster) {
            return Err(unknown(&session, cluster));
        }
        let value = |listed: &ListedSnapshot| json!({"date": listed.date, "uuid": listed.uuid, "complete": listed.is_complete});
        Ok(json!({"cluster": cluster, "snapshots": listed.iter().map(value).collect::<Vec<_>>()}))
    }

    async fn begin(&self, cluster: &ClusterName, wish: SnapshotWish) -> Result<SnapshotId, FleetError> {
        let session = self.session()?;
        if !session.config.clusters.contains_key(cluster) {
            return Err(unknown(&session, cluster));
        }
        let uuid = SnapshotId::new_v4();
        let (interrupt, interrupted) = watch::channel(false);
        let place = self.take_place(cluster, uuid, interrupt)?;
        let request = SnapshotRequest {
            uuid,
            cluster: cluster.clone(),
            source: SourceArgs::default(),
            nodes: wish.nodes.iter().map(ToString::to_string).collect(),
            capture: None,
            max_pause: None,
            patience: None,
            partial: wish.partial,
            adopt: false,
            tags: wish.tags,
        };
        let (told, mut begun) = oneshot::channel();
        let work = Work { session, repository: self.repository.clone(), request, interrupted, place };
        let task = tokio::spawn(work.carry_out(told));
        // One that has ended already is in nobody's way.
        if let Some(run) = self.runs.lock().running.get_mut(cluster).filter(|run| run.uuid == uuid) {
            run.task = Some(task);
        }
        let answer = match tokio::time::timeout(PROMISE_LIMIT, &mut begun).await {
            Ok(answer) => answer.map_err(|_| Failure::new("internal", "the snapshot ended without a word"))?,
            Err(_) => {
                // From here on a failure is recorded; one that came in this instant is the answer.
                begun.close();
                begun.try_recv().unwrap_or(Ok(()))
            }
        };
        Ok(answer.map(|()| uuid)?)
    }

    async fn snapshot(&self, uuid: SnapshotId) -> Result<Value, FleetError> {
        {
            let table = self.runs.lock();
            if let Some((cluster, run)) = table.running.iter().find(|(_, run)| run.uuid == uuid) {
                return Ok(SnapshotStanding::processing(uuid, cluster.clone(), &run.nodes).value());
            }
        }
        let found = async {
            let (session, repository) = self.opened().await?;
            status::standing(&repository, uuid, session.now()).await
        };
        match (self.runs.failed(uuid), found.await) {
            // What is written down counts; an intent may be what such a run could not take back.
            (Some(_), Ok(Some(standing))) if !standing.is_claim => Ok(standing.value()),
            (Some(known), _) => Ok(known.value()),
            (None, Ok(Some(standing))) => Ok(standing.value()),
            (None, Err(failure)) => Err(failure.into()),
            (None, Ok(None)) => {
                let message = format!("nothing is known of snapshot {uuid}");
                Err(refusal(FleetErrorKind::NotFound, "not_found", message, "see /v1/clusters for what there is"))
            }
        }
    }

    async fn export(&self, uuid: SnapshotId, node: &NodeName) -> Result<TarStream, FleetError> {
        let Ok(place) = self.exports.clone().try_acquire_owned() else {
            let message = format!("{EXPORTS_MAX} tars are under way on this host");
            return Err(refusal(FleetErrorKind::Unavailable, "busy", message, "ask again when one of them has ended"));
        };
        let (_, repository) = self.opened().await?;
        let Some(listed) = status::find_published(&repository, uuid).await? else {
            let message = format!("there is no snapshot {uuid}");
            return Err(refusal(FleetErrorKind::NotFound, "not_found", message, "ask how it fares, or see /v1/clusters"));
        };
        let manifest = repository.manifest(&listed).await.map_err(Failure::from)?;
        let tree = open_node(&repository, &manifest, node).await?;
        Ok(export::stream_tar(repository, tree, place))
    }

    async fn close(&self) {
        let tasks: Vec<_> = {
            let mut table = self.runs.lock();
            table.is_closed = true;
            for run in table.running.values() {
                run.interrupt.send_replace(true);
            }
            table.running.values_mut().filter_map(|run| run.task.take()).collect()
        };
        if tasks.is_empty() {
            return;
        }
        tracing::info!(snapshots = tasks.len(), "snapshots under way are given up");
        let ended = async {
            for task in tasks {
                let _panicked = task.await;
            }
        };
        if tokio::time::timeout(CLOSE_LIMIT, ended).await.is_err() {
            tracing::warn!("a snapshot under way did not end in time; each node gives up by itself");
        }
    }
}

fn unknown(session: &Session, cluster: &ClusterName) -> FleetError {
    let known: Vec<_> = session.config.clusters.keys().map(ToString::to_string).collect();
    let message = format!("cluster {cluster} is not in this daemon's configuration");
    refusal(FleetErrorKind::NotFound, "not_found", message, &format!("configured clusters: {}", known.join(", ")))
}
