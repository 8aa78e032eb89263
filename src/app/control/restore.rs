//! What the verbs `restore`, `rollback` and `settle` do; what they print is not said here.
//!
//! It is the one place that joins the snapshot's source, the nodes of this host (`node`) and the order of the steps
//! over all of them (`cluster`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use futures::future::join_all;
use uuid::Uuid;

use super::super::output::size;
use crate::agent::restore::{NodeRestored, RestoreNode, RestoreStep, StepFailure};
use crate::base::Clock;
use crate::cluster::restore::{OnStep, RestoreReport, restore as restore_all};
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::driver::redis::{RedisControl, RedisOptions};
use crate::model::manifest::{ClusterManifest, FileKind, NodeStatus};
use crate::model::names::{NodeName, TreePath};
use crate::model::restore_plan::{Method, NodePlan, RestorePlan, RestoreRequest, SourceFacts, StoreLayout, TargetFacts};
use crate::node::{
    LocalRestore, MountHost, PlaceProgress, PlaceReceipt, Recovered, RestoreError, RestoreRecord, RunLimit, ServerLimits,
    StateDirectory, Steps, copied_by_links, place_only, recover,
};
use crate::repo::{ListedSnapshot, NodeTree, SnapshotSource};

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
}

/// A restore that was planned and can be carried out once.
#[derive(Debug)]
pub struct PreparedRestore {
    /// The decision; shown with `Display`, or as JSON.
    pub plan: RestorePlan,
    source: Arc<dyn SnapshotSource>,
    snapshot: Arc<ClusterManifest>,
    nodes: Vec<Arc<LocalRestore>>,
    clock: Arc<dyn Clock>,
}

fn local(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<Arc<LocalRestore>>> {
    let runs = RunLimit::default();
    let node = |target: &RestoreTarget| {
        let control =
            target.server.clone().map(RedisControl::new).transpose()?.map(|control| Arc::new(control) as Arc<dyn StoreControl>);
        let node = LocalRestore::new(
            cluster,
            target.node.as_str(),
            target.site.clone(),
            control,
            state.clone(),
            target.host.clone(),
            ServerLimits::default(),
        );
        Ok(Arc::new(node.sharing(runs.clone())))
    };
    targets.iter().map(node).collect()
}

/// Finishes or undoes what an interrupted restore has left; to be called before anything else here, and told.
pub async fn recover_interrupted(state: &StateDirectory) -> anyhow::Result<Vec<Recovered>> {
    let state = state.clone();
    Ok(tokio::task::spawn_blocking(move || recover(&state, &Steps::default())).await??)
}

/// Looks at the snapshot and the targets, and decides. Touches nothing; the plan may be full of refusals.
pub async fn prepare(
    source: Arc<dyn SnapshotSource>,
    listed: &ListedSnapshot,
    targets: &[RestoreTarget],
    request: &RestoreRequest,
    state: &StateDirectory,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<PreparedRestore> {
    let snapshot = source.manifest(listed).await?;
    let mut sources = SourceFacts::of_snapshot(&snapshot);
    for facts in &mut sources {
        let is_wanted = request.nodes.is_empty() || request.nodes.contains(&facts.node);
        if facts.status == NodeStatus::Completed && is_wanted {
            let tree = source.open_node(&snapshot, &facts.node).await?;
            let entries = source.directory(&tree, &TreePath::root()).await?;
            facts.names =
                entries.into_iter().map(|placed| String::from_utf8_lossy(placed.entry.path.as_bytes()).into_owned()).collect();
            facts.copied = match request.method {
                Method::Copy => None,
                Method::Link => Some(copied_by_links(source.as_ref(), &tree).await?),
                Method::Clone => Some((0, 0)),
            };
        }
    }
    let nodes = local(&request.target_cluster, targets, state)?;
    // Servers that do not run cannot tell their layout: that of their namesake is the best guess.
    let stored = |node: &LocalRestore| {
        let facts = sources.iter().find(|facts| facts.node.as_str() == node.node()).or(sources.first());
        facts.map(|facts| StoreLayout::from_settings(&facts.description.settings, &facts.description.version))
    };
    let mut inspected: Vec<TargetFacts> = join_all(nodes.iter().map(|node| node.inspect(stored(node)))).await;
    for (facts, target) in inspected.iter_mut().zip(targets) {
        facts.replica_of = target.replica_of.as_ref().map(ToString::to_string);
    }
    let plan = RestorePlan::new(Uuid::new_v4(), &snapshot, &sources, &inspected, request);
    Ok(PreparedRestore { plan, source, snapshot, nodes, clock })
}

impl PreparedRestore {
    /// Bytes and files placed so far, for progress bars: one for each node.
    pub fn progress(&self) -> Vec<Arc<PlaceProgress>> {
        self.nodes.iter().map(|node| node.progress()).collect()
    }

    /// Carries the plan out. Never to be dropped in the middle: `is_cancelled` ends it in order, up to the swap.
    pub async fn run(self, on_step: OnStep<'_>, is_cancelled: &(dyn Fn() -> bool + Sync)) -> anyhow::Result<RestoreReport> {
        let mut nodes: Vec<Arc<dyn RestoreNode>> = Vec::new();
        for plan in &self.plan.nodes {
            let found = self.nodes.iter().find(|node| node.node() == plan.target);
            let node = found.with_context(|| format!("nobody acts for {}", plan.target))?.clone();
            let tree = self.source.open_node(&self.snapshot, &plan.source).await?;
            nodes.push(Arc::new(HostNode { node, source: self.source.clone(), tree, now_us: self.clock.wall_us() }));
        }
        Ok(restore_all(&self.plan, &nodes, on_step, is_cancelled).await)
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
    pub result: Result<Option<Change>, RestoreError>,
}

/// A change that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The directory from before this restore is in place again.
    RolledBack(Box<RestoreRecord>),
    /// So many set-aside directories were deleted.
    Settled(usize),
}

/// What `rollback` and `settle` would act on, for their plans.
pub fn kept(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<RestoreRecord>> {
    let mut records = state.records()?;
    records.retain(|record| record.cluster == cluster && targets.iter().any(|target| target.node.as_str() == record.node));
    Ok(records)
}

/// Puts the directories from before the newest restore back.
pub async fn roll_back(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<NodeChange>> {
    let nodes = local(cluster, targets, state)?;
    let (replicas, masters): (Vec<_>, Vec<_>) = nodes.iter().zip(targets).partition(|(_, target)| target.replica_of.is_some());
    // Replicas first, so that none takes over meanwhile; they are started last, on what they had.
    let halted = join_all(replicas.iter().map(|(node, _)| node.halt())).await;
    let change = async |node: &LocalRestore, was_halted: Result<bool, RestoreError>| {
        let result = match was_halted {
            Ok(was_halted) => node.roll_back(was_halted).await,
            Err(error) => Err(error),
        };
        let result = result.map(|record| record.map(|record| Change::RolledBack(Box::new(record))));
        NodeChange { node: node.node().to_owned(), result }
    };
    let mut changes = join_all(masters.iter().map(|(node, _)| change(node, Ok(false)))).await;
    changes.extend(join_all(replicas.iter().zip(halted).map(|((node, _), halted)| change(node, halted))).await);
    Ok(changes)
}

/// Deletes what restores have set aside.
pub async fn settle(cluster: &str, targets: &[RestoreTarget], state: &StateDirectory) -> anyhow::Result<Vec<NodeChange>> {
    let nodes = local(cluster, targets, state)?;
    Ok(join_all(nodes.iter().map(|node| async {
        let result = node.settle().await.map(|count| (count > 0).then_some(Change::Settled(count)));
        NodeChange { node: node.node().to_owned(), result }
    }))
    .await)
}

/// A node on this host, as `cluster` sees it.
#[derive(Debug)]
struct HostNode {
    node: Arc<LocalRestore>,
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    now_us: i64,
}

impl HostNode {
    fn failed(&self, step: RestoreStep) -> impl FnOnce(RestoreError) -> StepFailure {
        let node = self.node.node().to_owned();
        move |error| {
            // The node's name stands before it already.
            let text = error.to_string();
            let reason = text.strip_prefix(&format!("{node}: ")).map(str::to_owned).unwrap_or(text);
            StepFailure { node, step, reason }
        }
    }
}

#[async_trait]
impl RestoreNode for HostNode {
    fn name(&self) -> &str {
        self.node.node()
    }

    async fn stage(&self, plan: &NodePlan) -> Result<NodeRestored, StepFailure> {
        let placed = self
            .node
            .stage(plan, self.source.clone(), self.tree.clone(), self.now_us)
            .await
            .map_err(self.failed(RestoreStep::Stage))?;
        let progress = self.node.progress();
        let found = progress.found_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let mut notes = Vec::new();
        if found > 0 {
            notes.push(format!("{} of it were on this disk already, and right", size(found)));
        }
        if placed.linked_files > 0 {
            notes.push(format!("{} files of {} are fetched as they are read", placed.linked_files, size(placed.linked_bytes)));
        }
        let outward =
            placed.outward_links.iter().map(|link| format!("{link} leads out of the directory; it was restored as it was"));
        notes.extend(outward);
        Ok(NodeRestored { files: placed.files, bytes: placed.bytes, keys: None, is_compared: false, notes })
    }

    async fn give_up(&self) {
        self.node.give_up();
    }

    async fn stop(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.stop(plan).await.map_err(self.failed(RestoreStep::Stop))
    }

    async fn swap(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.swap(plan).await.map_err(self.failed(RestoreStep::Swap))
    }

    async fn start(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.start(plan).await.map(|_| ()).map_err(self.failed(RestoreStep::Start))
    }

    async fn check(&self, plan: &NodePlan) -> Result<(Option<u64>, bool), StepFailure> {
        self.node.check(plan).await.map(|receipt| (receipt.keys, receipt.is_compared)).map_err(self.failed(RestoreStep::Check))
    }

    async fn confirm(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.confirm(plan).await.map_err(self.failed(RestoreStep::Confirm))
    }

    async fn finish(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.finish().await.map_err(self.failed(RestoreStep::Confirm))
    }

    async fn undo(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.undo(plan).await.map_err(self.failed(RestoreStep::Undo))
    }
}
