//! The restore plan: decided from facts alone, printable, and refused before anything is stopped.
//!
//! **Invariants.** A plan with a refusal is never carried out. Every refusal says which node, why, and what to do next.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::SnapshotId;
use super::manifest::{ClusterManifest, KeyCounts};
use super::names::{ClusterName, NodeName};
use super::restore_checks::{check_age, check_place, check_replicas, check_served, check_server, check_shared_space};
pub use super::restore_facts::{
    DirectoryFacts, Guard, ProxyFacts, RestoreRequest, ServerFacts, SourceFacts, StoreLayout, TargetFacts,
};
use super::restore_fit::fit;
pub use super::restore_fit::{Fit, MadeAppendOnly};
use super::restore_pairs::pairs;
use super::restore_ring::{check_proxy, check_ring, check_token, tell_other_racks};
use super::restore_text::human_bytes;
use super::time::{SnapshotDate, Timestamp};

/// What would be restored where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// Identity of the restore; names the directories that it makes.
    pub id: Uuid,
    /// Cluster of the snapshot.
    pub cluster: ClusterName,
    /// Its dated name.
    pub date: SnapshotDate,
    /// Its identity.
    pub snapshot: SnapshotId,
    /// The cut.
    pub cut_at: Timestamp,
    /// The configured cluster that is restored into.
    pub target_cluster: String,
    /// One for each node, in the order of stopping and starting.
    pub nodes: Vec<NodePlan>,
    /// How long placing takes, at the speed of the last restore on this host; stores run on meanwhile.
    #[serde(default)]
    pub placing_seconds: Option<u64>,
    /// How long the stores are away after that: stopped, started, loading.
    #[serde(default)]
    pub away_seconds: Option<u64>,
    /// Worth knowing; nothing is in the way.
    pub warnings: Vec<String>,
    /// What is in the way; empty for a plan that can be carried out.
    pub refusals: Vec<Refusal>,
}

/// One node of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Identity of the restore.
    pub id: Uuid,
    /// The stored node.
    pub source: NodeName,
    /// The node that is replaced.
    pub target: String,
    /// The agent on whose host it is; `None`: this host.
    #[serde(default)]
    pub agent: Option<String>,
    /// The directory that is replaced.
    pub directory: PathBuf,
    /// Nodes of other hosts belong to the restore: whether it is restored is decided for all of them.
    #[serde(default)]
    pub is_over_hosts: bool,
    /// What becomes of it.
    #[serde(default)]
    pub content: Content,
    /// How its files come there.
    #[serde(default)]
    pub method: Method,
    /// How the directories change places.
    pub swap: SwapKind,
    /// Files that are placed.
    pub files: u64,
    /// Their bytes, and those of what is made or carried over beside them.
    pub bytes: u64,
    /// Files that become links.
    #[serde(default)]
    pub linked_files: u64,
    /// Their bytes.
    #[serde(default)]
    pub linked_bytes: u64,
    /// Bytes free on the target's file system.
    pub free_bytes: u64,
    /// Bytes that an interrupted restore has left, from which the same restore goes on.
    #[serde(default)]
    pub begun_bytes: u64,
    /// Bytes of what is set aside; 0 where there is nothing.
    pub replaced_bytes: u64,
    /// Who owns what is placed; `None`: whoever places it, or as captured when that is root.
    pub owner: Option<(u32, u32)>,
    /// What is renamed and made for this target.
    pub fit: Fit,
    /// Names that are copied from the replaced directory after the stop.
    pub carried: Vec<String>,
    /// How the target is stopped.
    pub stop: StopKind,
    /// What keeps it from starting while what its links lead to is away.
    #[serde(default)]
    pub guard: Guard,
    /// The Dynomite in front of it is stopped first, and started when all nodes have loaded.
    #[serde(default)]
    pub has_proxy: bool,
    /// It is started and checked afterwards.
    pub start: bool,
    /// Save what runs into the directory that is set aside.
    pub save_first: bool,
    /// The server as it was before; for the checks afterwards.
    pub before: Option<ServerFacts>,
    /// Keys to be found again.
    pub keys: Option<KeyCounts>,
}

impl NodePlan {
    /// What was promised to who agreed to the plan, and may not differ when it is carried out; for comparing alone. What is only
    /// told (sizes, free space) may have changed since.
    pub fn promise(&self) -> String {
        let before = self.before.as_ref().map(|server| (&server.role, &server.slots));
        let what = (&self.source, &self.target, &self.directory, self.content, self.method, self.swap, self.owner, &self.fit);
        let how = (self.stop, &self.guard, self.has_proxy, self.start, self.save_first, before);
        serde_json::to_string(&(what, how)).expect("plain structures serialize")
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// It gets the stored files.
    #[default]
    Restored,
    /// A replica of one that is restored: stopped before its master and emptied, started after it, and it synchronises again.
    Emptied,
}

/// How a node's files come to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every byte is there before the store starts.
    #[default]
    Copy,
    /// Files that never change are links to where the node is served; the rest is copied.
    Link,
    /// The directory is a link to a writable clone beside it; nothing is copied.
    Clone,
}

/// How the directories change places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapKind {
    /// The directory is renamed.
    Rename,
    /// It is a mountpoint: its entries are renamed one by one, under a journal.
    Entries,
}

/// How a target is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopKind {
    /// It does not run.
    NotRunning,
    /// By its supervisor's command.
    Command,
    /// By its own protocol.
    Protocol,
}

/// Why a restore is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For scripts.
    pub code: RefusalCode,
    /// The node, or the cluster.
    pub node: String,
    /// Why.
    pub reason: String,
    /// What to do next.
    pub next: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum RefusalCode {
    MissingInSnapshot,
    UnknownMapping,
    NotOnThisHost,
    AgentAway,
    ForeignDirectory,
    OtherDirectory,
    TooLittleSpace,
    SlotsDiffer,
    TokensDiffer,
    DumpTooNew,
    CannotStop,
    CannotStart,
    CannotAsk,
    NewerData,
    Replica,
    HasReplicas,
    Loading,
    NothingToLoad,
    NameTaken,
    StartsEmpty,
    NoGuard,
    Mountpoint,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.node, self.reason, self.next)
    }
}

pub(super) struct Refusals(Vec<Refusal>);

impl Refusals {
    pub(super) fn add(&mut self, code: RefusalCode, node: impl fmt::Display, reason: impl Into<String>, next: impl Into<String>) {
        self.0.push(Refusal { code, node: node.to_string(), reason: reason.into(), next: next.into() });
    }
}

impl RestorePlan {
    /// Decides. `id` is drawn by the caller; `sources` are the snapshot's nodes, `targets` those of the target cluster.
    pub fn new(
        id: Uuid,
        snapshot: &ClusterManifest,
        sources: &[SourceFacts],
        targets: &[TargetFacts],
        request: &RestoreRequest,
    ) -> Self {
        let mut refusals = Refusals(Vec::new());
        let mut warnings = Vec::new();
        let mut nodes = Vec::new();
        check_ring(sources, targets, request, &mut refusals);
        let (replicas, targets): (Vec<_>, Vec<_>) = targets.iter().cloned().partition(|target| target.replica_of.is_some());
        for (source, target) in pairs(snapshot, sources, &targets, request, &mut refusals) {
            let followers: Vec<_> =
                replicas.iter().filter(|replica| replica.replica_of.as_deref() == Some(target.node.as_str())).collect();
            check_replicas(target, &followers, request, &mut refusals, &mut warnings);
            nodes.extend(plan_node(id, snapshot, source, target, request, &mut refusals, &mut warnings));
            nodes.extend(followers.into_iter().filter_map(|replica| plan_replica(id, source, replica, request, &mut refusals)));
        }
        if request.nodes.is_empty() {
            let used: BTreeSet<_> = nodes.iter().map(|node| node.target.as_str()).collect();
            let left: Vec<_> = targets.iter().map(|target| target.node.as_str()).filter(|name| !used.contains(name)).collect();
            if !left.is_empty() && refusals.0.is_empty() {
                warnings.push(format!("not touched: {}", left.join(", ")));
            }
        }
        tell_other_racks(nodes.iter().map(|node| node.target.as_str()), &targets, &mut warnings);
        nodes.sort_by(|a: &NodePlan, b| (a.content, &a.target).cmp(&(b.content, &b.target)));
        check_shared_space(&nodes, &targets, &mut refusals);
        let is_over_hosts = nodes.iter().any(|node| node.agent.is_some());
        nodes.iter_mut().for_each(|node| node.is_over_hosts = is_over_hosts);
        let bytes: u64 = nodes.iter().map(|node| node.bytes.saturating_sub(node.begun_bytes)).sum();
        let seconds = |bytes: u64, speed: Option<u64>| speed.map(|speed| bytes.div_ceil(speed.max(1)));
        let is_known = request.method == Method::Copy && nodes.iter().any(|node| node.start);
        Self {
            id,
            placing_seconds: seconds(bytes, request.speeds.placing),
            away_seconds: seconds(largest_bytes(&nodes), request.speeds.away.filter(|_| is_known)),
            cluster: snapshot.cluster.clone(),
            date: snapshot.date,
            snapshot: snapshot.uuid,
            cut_at: snapshot.cut_at,
            target_cluster: request.target_cluster.clone(),
            nodes,
            warnings,
            refusals: refusals.0,
        }
    }

    /// What one target decides for itself, from what it sees there: the same as in the plan of all, or what is in the way. Its
    /// replicas, or the node that it is a replica of, are not looked at.
    pub fn of_target(
        id: Uuid,
        snapshot: &ClusterManifest,
        source: &SourceFacts,
        target: &TargetFacts,
        content: Content,
        request: &RestoreRequest,
    ) -> Result<NodePlan, Vec<Refusal>> {
        let mut refusals = Refusals(Vec::new());
        if target.replica_of.is_some() != (content == Content::Emptied) {
            let reason = "its own host's configuration says otherwise of whose replica it is";
            refusals.add(RefusalCode::Replica, &target.node, reason, "let replica_of be the same in both configurations");
        }
        let planned = match content {
            Content::Restored => plan_node(id, snapshot, source, target, request, &mut refusals, &mut Vec::new()),
            Content::Emptied => plan_replica(id, source, target, request, &mut refusals),
        };
        check_shared_space(planned.as_slice(), std::slice::from_ref(target), &mut refusals);
        let planned = planned.map(|plan| NodePlan { is_over_hosts: true, ..plan });
        planned.filter(|_| refusals.0.is_empty()).ok_or(refusals.0)
    }

    /// What the largest node has to load: all load at the same time.
    pub fn largest_bytes(&self) -> u64 {
        largest_bytes(&self.nodes)
    }

    /// Nothing is in the way.
    pub fn is_allowed(&self) -> bool {
        self.refusals.is_empty() && !self.nodes.is_empty()
    }
}

fn largest_bytes(nodes: &[NodePlan]) -> u64 {
    nodes.iter().map(|node| node.bytes + node.linked_bytes).max().unwrap_or_default()
}

fn plan_node(
    id: Uuid,
    snapshot: &ClusterManifest,
    source: &SourceFacts,
    target: &TargetFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) -> Option<NodePlan> {
    let name = &target.node;
    let directory = check_place(target, request, refusals)?;
    let is_files = snapshot.store == "files" || source.description.store == "files";
    if let Some(server) = &target.server {
        check_server(source, target, server, directory, request, refusals, warnings);
    } else if !target.has_start && !is_files {
        warnings.push(format!(
            "{name}: it does not run and no start command is known: start it after the restore and check it yourself"
        ));
    }
    check_token(source, target, request, refusals);
    check_proxy(target, request, refusals, warnings);
    check_age(snapshot, target, directory, request, refusals);
    let fit = if is_files { Fit::default() } else { fit(source, target, directory, refusals, warnings) };
    if request.method != Method::Copy {
        check_served(target, directory, is_files, &fit, request, refusals, warnings);
    }
    // The base of links and clones is the dump's own link.
    let made_bytes = if fit.append_only.is_some() && request.method == Method::Copy { source.totals.total_bytes } else { 0 };
    let (files, placed_bytes) = source.copied.unwrap_or((source.totals.files, source.totals.total_bytes));
    let carried = if is_files { Vec::new() } else { directory.carried.clone() };
    let carried_bytes = if is_files { 0 } else { directory.carried_bytes };
    let bytes = placed_bytes + made_bytes + carried_bytes;
    let linked_bytes = source.totals.total_bytes.saturating_sub(placed_bytes);
    if request.method == Method::Link && linked_bytes.saturating_add(bytes) > directory.free_bytes {
        warnings.push(format!(
            "{name}: {} are linked and {} are free: they become local files only as far as there is room",
            human_bytes(linked_bytes),
            human_bytes(directory.free_bytes)
        ));
    }
    Some(NodePlan {
        id,
        source: source.node.clone(),
        target: name.clone(),
        agent: target.agent.clone(),
        is_over_hosts: false,
        directory: directory.resolved.clone(),
        content: Content::Restored,
        method: request.method,
        swap: if directory.is_mountpoint { SwapKind::Entries } else { SwapKind::Rename },
        files,
        bytes,
        linked_files: source.totals.files.saturating_sub(files),
        linked_bytes,
        free_bytes: directory.free_bytes,
        begun_bytes: directory.begun_bytes,
        replaced_bytes: directory.used_bytes,
        owner: directory.exists.then_some(directory.owner),
        fit,
        carried,
        stop: stop_of(target),
        guard: target.guard.clone(),
        has_proxy: target.proxy.is_some(),
        start: target.has_start && !is_files,
        save_first: !request.discard_current,
        before: target.server.clone(),
        keys: source.keys,
    })
}

fn stop_of(target: &TargetFacts) -> StopKind {
    match &target.server {
        None => StopKind::NotRunning,
        Some(_) if target.has_stop => StopKind::Command,
        Some(_) => StopKind::Protocol,
    }
}

/// A replica of a node that is restored from `source`.
fn plan_replica(
    id: Uuid,
    source: &SourceFacts,
    target: &TargetFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
) -> Option<NodePlan> {
    let directory = check_place(target, request, refusals)?;
    Some(NodePlan {
        id,
        source: source.node.clone(),
        target: target.node.clone(),
        agent: target.agent.clone(),
        is_over_hosts: false,
        directory: directory.resolved.clone(),
        content: Content::Emptied,
        method: Method::Copy,
        swap: if directory.is_mountpoint { SwapKind::Entries } else { SwapKind::Rename },
        files: 0,
        bytes: directory.carried_bytes,
        linked_files: 0,
        linked_bytes: 0,
        free_bytes: directory.free_bytes,
        begun_bytes: directory.begun_bytes,
        replaced_bytes: directory.used_bytes,
        owner: directory.exists.then_some(directory.owner),
        fit: Fit::default(),
        carried: directory.carried.clone(),
        stop: stop_of(target),
        guard: target.guard.clone(),
        has_proxy: false,
        // One that was down stays so: it synchronises whenever somebody starts it.
        start: target.has_start && target.server.is_some(),
        // Its master has it all.
        save_first: false,
        before: target.server.clone(),
        keys: None,
    })
}

#[cfg(test)]
impl NodePlan {
    /// A plan for tests: a node that does not run, whose directory gets a copy of nothing.
    pub(crate) fn sample(target: &str, directory: PathBuf) -> Self {
        Self {
            id: Uuid::new_v4(),
            source: NodeName::new("node-1").expect("legal"),
            target: target.to_owned(),
            agent: None,
            is_over_hosts: false,
            directory,
            content: Content::Restored,
            method: Method::Copy,
            swap: SwapKind::Rename,
            files: 0,
            bytes: 0,
            linked_files: 0,
            linked_bytes: 0,
            free_bytes: 0,
            begun_bytes: 0,
            replaced_bytes: 0,
            owner: None,
            fit: Fit::default(),
            carried: Vec::new(),
            stop: StopKind::NotRunning,
            guard: Guard::None,
            has_proxy: false,
            start: false,
            save_first: true,
            before: None,
            keys: None,
        }
    }
}

#[cfg(test)]
#[path = "restore_plan_tests.rs"]
mod tests;
