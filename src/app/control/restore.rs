//! What the verbs `restore`, `rollback` and `settle` do; what they print is not said here.
//!
//! It is the one place that joins the snapshot's source, the nodes of this host (`node`), those that agents act for, and the
//! order of the steps over all of them (`cluster`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use futures::future::join_all;
use uuid::Uuid;

use super::super::local_restore::{LocalRestoreNode, StoredSnapshot};
use super::super::wiring::ClusterNode;
use crate::agent::remote_restore::RemoteRestore;
use crate::agent::restore::{KeptRestore, Placed, RestoreNode};
use crate::agent::restore_orders::{RestoreCourier, RestoreTicket, Subject};
use crate::base::{Clock, SystemClock};
use crate::cluster::restore::{OnStep, RestoreReport, restore as restore_all};
use crate::cluster::restore_decision::{Decided, RestoreDecision};
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::driver::redis::{RedisControl, RedisOptions};
use crate::model::manifest::FileKind;
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::model::restore_plan::{RestorePlan, RestoreRequest};
use crate::node::{
    LocalRestore, MountHost, PlaceProgress, PlaceReceipt, Recovered, RestoreRecord, RunLimit, ServerLimits, StateDirectory, Step,
    Steps, place_only, recover,
};
use crate::repo::{ListedSnapshot, Repository, SnapshotSource};

/// A configured node that may be restored into.
#[derive(Debug, Clone)]
pub struct RestoreTarget {
    /// Its name.
    pub node: NodeName,
    /// Its directory and commands.
    pub site: NodeSite,
    /// The node whose replica it is.
    pub replica_of: Option<NodeName>,
    /// Who serves snapshots on this host, for restores by links and by clones.
    pub host: Option<Arc<dyn MountHost>>,
    /// How its server is reached; `None` for stores that are no Redis.
    pub server: Option<RedisOptions>,
    /// The agent that acts for it, with its address; `None`: it is on this host.
    pub agent: Option<(String, Arc<dyn RestoreCourier>)>,
}

impl RestoreTarget {
    /// One whose disk is of this host, as it is configured.
    pub fn here(node: ClusterNode, host: Arc<dyn MountHost>) -> Self {
        Self {
            site: NodeSite {
                data_directory: node.directory,
                stop: node.config.stop.unwrap_or_default(),
                start: node.config.start.unwrap_or_default(),
                proxy: node.proxy,
            },
            replica_of: node.config.replica_of,
            host: Some(host),
            node: node.name,
            server: node.redis,
            agent: None,
        }
    }
}

/// A restore that was planned and can be carried out once.
#[derive(Debug)]
pub struct PreparedRestore {
    /// The decision; shown with `Display`, or as JSON.
    pub plan: RestorePlan,
    nodes: Vec<Arc<dyn RestoreNode>>,
    decision: Option<RestoreDecision>,
}

/// A node of this host, for a restore of the cluster.
pub fn local(
    cluster: &str,
    target: &RestoreTarget,
    state: &StateDirectory,
    runs: RunLimit,
    snapshot: Option<Arc<StoredSnapshot>>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<LocalRestoreNode> {
    let control =
        target.server.clone().map(RedisControl::new).transpose()?.map(|control| Arc::new(control) as Arc<dyn StoreControl>);
    let (site, host) = (target.site.clone(), target.host.clone());
    let node = LocalRestore::new(cluster, target.node.as_str(), site, control, state.clone(), host, ServerLimits::default());
    Ok(LocalRestoreNode::new(node.sharing(runs), target.replica_of.clone(), snapshot, clock))
}

/// Who acts for the targets of one restore, rollback or settling.
struct Acting<'a> {
    id: Uuid,
    cluster: ClusterName,
    state: &'a StateDirectory,
    clock: Arc<dyn Clock>,
    snapshot: Option<Arc<StoredSnapshot>>,
    subject: Option<Subject>,
    confirm: Option<String>,
}

impl Acting<'_> {
    fn nodes(&self, targets: &[RestoreTarget]) -> anyhow::Result<Vec<Arc<dyn RestoreNode>>> {
        let runs = RunLimit::default();
        let node = |target: &RestoreTarget| -> anyhow::Result<Arc<dyn RestoreNode>> {
            let Some((agent, courier)) = &target.agent else {
                let (snapshot, clock) = (self.snapshot.clone(), self.clock.clone());
                return Ok(Arc::new(local(self.cluster.as_str(), target, self.state, runs.clone(), snapshot, clock)?));
            };
            let ticket = RestoreTicket {
                cluster: self.cluster.clone(),
                node: target.node.clone(),
                restore: self.id,
                subject: self.subject.clone(),
            };
            let (clock, confirm) = (self.clock.clone(), self.confirm.clone());
            Ok(Arc::new(RemoteRestore::new(ticket, agent.clone(), courier.clone(), clock, confirm)))
        };
        targets.iter().map(node).collect()
    }
}

/// Finishes or undoes what an interrupted restore has left; to be called before anything else here, and told.
pub async fn recover_interrupted(state: &StateDirectory) -> anyhow::Result<Vec<Recovered>> {
    let state = state.clone();
    Ok(tokio::task::spawn_blocking(move || recover(&state, &Steps::default())).await??)
}

/// Brings a node to the end that was decided, whose process died, or was cut off, in a restore over several hosts; decides
/// that it is undone where nobody has said anything yet. What became of it, for people; `None`: there was nothing to do.
pub async fn see_to(
    repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
    record: &RestoreRecord,
    node: &LocalRestoreNode,
) -> anyhow::Result<Option<&'static str>> {
    let failed = |reason: String| anyhow::anyhow!("{}/{}: {reason}", record.cluster, record.node);
    let id = record.restore_id();
    let undo = async || node.undo_of_another(id, record.was_stopped).await.map_err(|failure| failed(failure.reason));
    if record.is_begun() && record.was_stopped {
        undo().await?;
        return Ok(Some("its store was stopped for it, and runs again"));
    }
    if record.step != Step::Swapped || !record.is_over_hosts {
        return Ok(None);
    }
    let source = ClusterName::new(record.source.split('/').next().unwrap_or_default())?;
    let target = ClusterName::new(record.cluster.clone())?;
    let decision = RestoreDecision::of_restore(repository, clock, id, source, target);
    match decision.undone(&format!("{}: who carried it out died", record.node)).await {
        Decided::Restored => {
            node.finish_of_another(id).await.map_err(failed)?;
            Ok(Some("all nodes were restored: it stays"))
        }
        Decided::Undone(_) => {
            undo().await?;
            Ok(Some("not all nodes were restored: it went back"))
        }
        Decided::Unknown(reason) => Err(failed(format!("whether it was restored is not known: {reason}"))),
    }
}

/// Looks at the snapshot and the targets, and decides. Touches nothing; the plan may be full of refusals.
pub async fn prepare(
    repository: Arc<Repository>,
    listed: &ListedSnapshot,
    targets: &[RestoreTarget],
    request: &RestoreRequest,
    state: &StateDirectory,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<PreparedRestore> {
    let cluster = ClusterName::new(request.target_cluster.clone())?;
    let snapshot = StoredSnapshot::read(repository.clone(), listed, &request.nodes, request.method).await?;
    let snapshot = Arc::new(snapshot);
    let manifest = &snapshot.manifest;
    let acting = Acting {
        id: Uuid::new_v4(),
        cluster: cluster.clone(),
        state,
        clock: clock.clone(),
        snapshot: Some(snapshot.clone()),
        subject: Some(Subject {
            repository: repository.descriptor().repository,
            cluster: manifest.cluster.clone(),
            snapshot: manifest.uuid,
        }),
        confirm: request.confirm.clone(),
    };
    let nodes = acting.nodes(targets)?;
    let inspected = join_all(nodes.iter().map(|node| node.inspect())).await;
    let plan = RestorePlan::new(acting.id, manifest, &snapshot.nodes, &inspected, request);
    // What happens on one host, its journal decides.
    let is_over_hosts = plan.nodes.iter().any(|node| node.agent.is_some());
    let decision = is_over_hosts.then(|| RestoreDecision::of_plan(repository, clock, &plan, cluster));
    Ok(PreparedRestore { plan, nodes, decision })
}

impl PreparedRestore {
    /// Bytes placed so far, of all nodes.
    pub fn placed(&self) -> impl Fn() -> Placed + Send + use<> {
        let nodes = self.nodes.clone();
        move || {
            nodes.iter().map(|node| node.placed()).fold(Placed::default(), |sum, node| Placed {
                bytes: sum.bytes + node.bytes,
                found_bytes: sum.found_bytes + node.found_bytes,
            })
        }
    }

    /// Carries the plan out. Never to be dropped in the middle: `is_cancelled` ends it in order, up to the swap.
    pub async fn run(self, on_step: OnStep<'_>, is_cancelled: &(dyn Fn() -> bool + Sync)) -> anyhow::Result<RestoreReport> {
        for plan in &self.plan.nodes {
            let is_known = self.nodes.iter().any(|node| node.name() == plan.target);
            is_known.then_some(()).with_context(|| format!("nobody acts for {}", plan.target))?;
        }
        Ok(restore_all(&self.plan, &self.nodes, self.decision.as_ref(), on_step, is_cancelled).await)
    }
}

/// `restore --directory`: one node's files, and nothing else.
pub async fn place_files(
    source: Arc<dyn SnapshotSource>,
    listed: &ListedSnapshot,
    node: &NodeName,
    directory: PathBuf,
    links: Option<&Path>,
    progress: Arc<PlaceProgress>,
) -> anyhow::Result<PlaceReceipt> {
    let snapshot = source.manifest(listed).await?;
    let tree = source.open_node(&snapshot, node).await?;
    let root = source.entry(&tree, &TreePath::root()).await?;
    anyhow::ensure!(root.is_some_and(|root| root.entry.kind == FileKind::Directory), "{node}: its tree has no root");
    Ok(place_only(directory, source, tree, links, progress).await?)
}

/// What `rollback` or `settle` did with one node.
#[derive(Debug)]
pub struct NodeChange {
    /// The node.
    pub node: String,
    /// The restore that was taken back, or how many were let go; `Ok(None)` when there was nothing to do.
    pub result: Result<Option<Change>, String>,
}

/// A change that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The directory from before this restore is in place again.
    RolledBack(KeptRestore),
    /// So many set-aside directories were deleted.
    Settled(usize),
}

/// Who rolls back or settles. Each call is asked of an agent once, so that it has an identity of its own.
fn changing(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<Arc<dyn RestoreNode>>> {
    let acting = Acting {
        id: Uuid::new_v4(),
        cluster: ClusterName::new(cluster.to_owned())?,
        state,
        clock: Arc::new(SystemClock::default()),
        snapshot: None,
        subject: None,
        confirm: None,
    };
    acting.nodes(targets)
}

/// What `rollback` and `settle` would act on, for their plans.
pub async fn kept(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<KeptRestore>> {
    let nodes = changing(cluster, targets, state)?;
    let mut found = Vec::new();
    for (node, kept) in nodes.iter().zip(join_all(nodes.iter().map(|node| node.kept())).await) {
        found.extend(kept.map_err(|reason| anyhow::anyhow!("{}: {reason}", node.name()))?);
    }
    Ok(found)
}

/// Puts the directories from before the newest restore back, on all nodes that it has left restored, and on no other.
pub async fn roll_back(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<NodeChange>> {
    let nodes = changing(cluster, targets, state)?;
    let mut kept = Vec::new();
    for (node, found) in nodes.iter().zip(join_all(nodes.iter().map(|node| node.kept())).await) {
        kept.push(found.map_err(|reason| anyhow::anyhow!("{}: {reason}", node.name()))?);
    }
    let in_place = |kept: &[KeptRestore]| kept.iter().rfind(|kept| kept.is_in_place).cloned();
    let newest = kept.iter().filter_map(|kept| in_place(kept)).max_by_key(|kept| kept.begun_at);
    let nothing = |node: &Arc<dyn RestoreNode>| NodeChange { node: node.name().to_owned(), result: Ok(None) };
    let Some(newest) = newest else { return Ok(nodes.iter().map(nothing).collect()) };
    let (replicas, masters): (Vec<_>, Vec<_>) = nodes
        .iter()
        .zip(targets.iter().zip(&kept))
        .partition(|(_, (target, kept))| target.replica_of.is_some() || kept.iter().any(|kept| kept.is_replica));
    let (replicas, masters): (Vec<_>, Vec<_>) =
        (replicas.into_iter().map(|(node, _)| node).collect(), masters.into_iter().map(|(node, _)| node).collect());
    // Replicas first, so that none takes over meanwhile; they are started last, on what they had.
    let halted = join_all(replicas.iter().map(|node| node.halt())).await;
    if halted.iter().any(Result::is_err) {
        // One that runs on could take over: nobody goes back.
        let gone_on = join_all(replicas.iter().map(|node| node.go_on())).await;
        let change = |(node, halted): (&&Arc<dyn RestoreNode>, Result<bool, String>)| NodeChange {
            node: node.name().to_owned(),
            result: halted.map(|_did_run| None),
        };
        let mut changes: Vec<_> = replicas.iter().zip(halted).map(change).collect();
        for (change, gone_on) in changes.iter_mut().zip(gone_on) {
            change.result = match (std::mem::replace(&mut change.result, Ok(None)), gone_on) {
                (Ok(_), Err(reason)) => Err(reason),
                (result, _) => result,
            };
        }
        changes.extend(masters.iter().map(|node| NodeChange {
            node: node.name().to_owned(),
            result: Err("a replica could not be stopped, and would take over: it stays as it is".to_owned()),
        }));
        return Ok(changes);
    }
    let change = async |node: &Arc<dyn RestoreNode>| {
        let result = node.roll_back(newest.id).await;
        NodeChange { node: node.name().to_owned(), result: result.map(|record| record.map(Change::RolledBack)) }
    };
    let mut changes = join_all(masters.iter().map(|node| change(node))).await;
    let changed = join_all(replicas.iter().map(|node| change(node))).await;
    for (node, change) in replicas.iter().zip(&changed) {
        // What was stopped and is not of this restore runs on.
        if let (Ok(None), Err(reason)) = (&change.result, node.go_on().await) {
            tracing::error!(node = node.name(), reason, "a replica that was stopped for a rollback cannot be started");
        }
    }
    changes.extend(changed);
    Ok(changes)
}

/// Deletes what restores have set aside.
pub async fn settle(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<NodeChange>> {
    let nodes = changing(cluster, targets, state)?;
    Ok(join_all(nodes.iter().map(|node| async {
        let result = node.settle().await.map(|count| (count > 0).then_some(Change::Settled(count)));
        NodeChange { node: node.name().to_owned(), result }
    }))
    .await)
}
