//! A node of this host in a restore: `agent::restore::RestoreNode` on top of the node's own restore and the stored snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use uuid::Uuid;

use super::output::size;
use crate::agent::restore::{KeptRestore, NodeRestored, Placed, RestoreNode, RestoreStep, StepFailure};
use crate::base::Clock;
use crate::model::manifest::{ClusterManifest, NodeStatus};
use crate::model::names::{NodeName, TreePath};
use crate::model::restore_plan::{Method, NodePlan, SourceFacts, StoreLayout, TargetFacts};
use crate::node::{LocalRestore, RestoreError, RestoreRecord, copied_by_links};
use crate::repo::{ListedSnapshot, SnapshotSource};

/// A snapshot that is restored from, and what its manifests say of its nodes.
#[derive(Debug)]
pub struct StoredSnapshot {
    /// Where it is.
    pub source: Arc<dyn SnapshotSource>,
    /// Its manifest.
    pub manifest: Arc<ClusterManifest>,
    /// Its nodes.
    pub nodes: Vec<SourceFacts>,
}

impl StoredSnapshot {
    /// Reads what a plan is made from, of the nodes that are `wanted`; empty: of all.
    pub async fn read(
        source: Arc<dyn SnapshotSource>,
        listed: &ListedSnapshot,
        wanted: &[NodeName],
        method: Method,
    ) -> anyhow::Result<Self> {
        let manifest = source.manifest(listed).await?;
        let mut nodes = SourceFacts::of_snapshot(&manifest);
        for facts in &mut nodes {
            let is_wanted = wanted.is_empty() || wanted.contains(&facts.node);
            if facts.status == NodeStatus::Completed && is_wanted {
                let tree = source.open_node(&manifest, &facts.node).await?;
                let entries = source.directory(&tree, &TreePath::root()).await?;
                let name = |placed: crate::repo::PlacedEntry| String::from_utf8_lossy(placed.entry.path.as_bytes()).into_owned();
                facts.names = entries.into_iter().map(name).collect();
                facts.copied = match method {
                    Method::Copy => None,
                    Method::Link => Some(copied_by_links(source.as_ref(), &tree).await?),
                    Method::Clone => Some((0, 0)),
                };
            }
        }
        Ok(Self { source, manifest, nodes })
    }

    /// Servers that do not run cannot tell their layout: that of their namesake is the best guess.
    fn layout(&self, target: &str) -> Option<StoreLayout> {
        let facts = self.nodes.iter().find(|facts| facts.node.as_str() == target).or(self.nodes.first());
        facts.map(|facts| StoreLayout::from_settings(&facts.description.settings, &facts.description.version))
    }
}

/// A node of this host.
#[derive(Debug)]
pub struct LocalRestoreNode {
    node: LocalRestore,
    replica_of: Option<NodeName>,
    /// `None` for a rollback or a settling.
    snapshot: Option<Arc<StoredSnapshot>>,
    clock: Arc<dyn Clock>,
}

impl LocalRestoreNode {
    /// Joins a node with what it is restored from.
    pub fn new(
        node: LocalRestore,
        replica_of: Option<NodeName>,
        snapshot: Option<Arc<StoredSnapshot>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { node, replica_of, snapshot, clock }
    }

    /// What a process that died has left in place counts as restored: it was decided so for all nodes.
    pub async fn finish_of_another(&self, restore: Uuid) -> Result<(), String> {
        self.node.finish_of_another(restore).await.map_err(|error| plain(self.node.node(), &error))
    }

    fn kept_of(&self, record: RestoreRecord) -> KeptRestore {
        KeptRestore {
            id: record.restore_id(),
            is_begun: record.is_begun(),
            is_in_place: record.is_in_place(),
            is_replica: self.replica_of.is_some(),
            begun_at: record.begun_at,
            directory: record.directory.display().to_string(),
            node: record.node,
            source: record.source,
        }
    }

    fn failed(&self, step: RestoreStep) -> impl FnOnce(RestoreError) -> StepFailure {
        let node = self.node.node().to_owned();
        move |error| {
            let reason = plain(&node, &error);
            StepFailure { node, step, reason }
        }
    }
}

/// The node's name stands before it already.
fn plain(node: &str, error: &RestoreError) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{node}: ")).map(str::to_owned).unwrap_or(text)
}

#[async_trait]
impl RestoreNode for LocalRestoreNode {
    fn name(&self) -> &str {
        self.node.node()
    }

    fn agent(&self) -> Option<&str> {
        None
    }

    async fn inspect(&self) -> TargetFacts {
        let stored = self.snapshot.as_ref().and_then(|snapshot| snapshot.layout(self.node.node()));
        let facts = self.node.inspect(stored).await;
        TargetFacts { replica_of: self.replica_of.as_ref().map(ToString::to_string), ..facts }
    }

    fn placed(&self) -> Placed {
        let progress = self.node.progress();
        let (bytes, found) = (&progress.bytes, &progress.found_bytes);
        Placed { bytes: bytes.load(Ordering::Relaxed), found_bytes: found.load(Ordering::Relaxed) }
    }

    async fn stage(&self, plan: &NodePlan) -> Result<NodeRestored, StepFailure> {
        let failed = |error| self.failed(RestoreStep::Stage)(error);
        let nothing = || RestoreError::refused(self.node.node(), "there is no snapshot to be restored");
        let snapshot = self.snapshot.as_ref().ok_or_else(|| failed(nothing()))?;
        let tree = snapshot.source.open_node(&snapshot.manifest, &plan.source).await.map_err(|error| failed(error.into()))?;
        let placed = self.node.stage(plan, snapshot.source.clone(), tree, self.clock.wall_us()).await.map_err(failed)?;
        let found_bytes = self.placed().found_bytes;
        let mut notes = Vec::new();
        if found_bytes > 0 {
            notes.push(format!("{} of it were on this disk already, and right", size(found_bytes)));
        }
        if placed.linked_files > 0 {
            notes.push(format!("{} files of {} are fetched as they are read", placed.linked_files, size(placed.linked_bytes)));
        }
        let outward =
            placed.outward_links.iter().map(|link| format!("{link} leads out of the directory; it was restored as it was"));
        notes.extend(outward);
        Ok(NodeRestored { files: placed.files, bytes: placed.bytes, found_bytes, keys: None, is_compared: false, notes })
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

    async fn step_aside(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        self.node.stop(plan).await.map_err(self.failed(RestoreStep::Stop))
    }

    async fn undo_of_another(&self, restore: Uuid, was_stopped: bool) -> Result<(), StepFailure> {
        self.node.undo_of_another(restore, was_stopped).await.map_err(self.failed(RestoreStep::Undo))
    }

    async fn kept(&self) -> Result<Vec<KeptRestore>, String> {
        let records = self.node.records().map_err(|error| plain(self.node.node(), &error))?;
        Ok(records.into_iter().map(|record| self.kept_of(record)).collect())
    }

    async fn halt(&self) -> Result<bool, String> {
        self.node.halt().await.map_err(|error| plain(self.node.node(), &error))
    }

    async fn go_on(&self) -> Result<(), String> {
        self.node.go_on().await.map_err(|error| plain(self.node.node(), &error))
    }

    async fn roll_back(&self, restore: Uuid) -> Result<Option<KeptRestore>, String> {
        let record = self.node.roll_back(restore).await.map_err(|error| plain(self.node.node(), &error))?;
        Ok(record.map(|record| self.kept_of(record)))
    }

    async fn settle(&self) -> Result<usize, String> {
        self.node.settle().await.map_err(|error| plain(self.node.node(), &error))
    }
}
