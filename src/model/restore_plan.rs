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
use super::restore_facts::version_parts;
pub use super::restore_facts::{DirectoryFacts, RestoreRequest, ServerFacts, SourceFacts, StoreLayout, TargetFacts};
use super::restore_fit::fit;
use super::restore_pairs::pairs;
use super::restore_text::human_bytes;
use super::time::{SnapshotDate, Timestamp};

/// What each file costs beside its bytes: a block of the file system and its inode.
const FILE_OVERHEAD_BYTES: u64 = 4096 + 256;
/// Space left over after a restore: 1 MiB, so that the store can write its first lines.
const SPARE_BYTES: u64 = 1024 * 1024;

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
    /// The directory that is replaced.
    pub directory: PathBuf,
    /// How the directories change places.
    pub swap: SwapKind,
    /// Files that are placed.
    pub files: u64,
    /// Their bytes, and those of what is made or carried over beside them.
    pub bytes: u64,
    /// Bytes free on the target's file system.
    pub free_bytes: u64,
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
    /// It is started and checked afterwards.
    pub start: bool,
    /// Save what runs into the directory that is set aside.
    pub save_first: bool,
    /// The server as it was before; for the checks afterwards.
    pub before: Option<ServerFacts>,
    /// Keys to be found again.
    pub keys: Option<KeyCounts>,
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

/// What is renamed and made so that the target finds its data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// Names from the node's directory, and what they are called at the target.
    pub renames: Vec<(String, String)>,
    /// Append-only files made over the dump, which a server with `appendonly yes` would pass over.
    pub append_only: Option<MadeAppendOnly>,
}

/// Append-only files that are made over a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeAppendOnly {
    /// Name of the dump at the target.
    pub dump_file: String,
    /// Directory to make; `None`: a single file that begins with the dump, as before Redis 7.
    pub directory: Option<String>,
    /// First part of the names, or the single file's name.
    pub file: String,
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
    ForeignDirectory,
    OtherDirectory,
    TooLittleSpace,
    SlotsDiffer,
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
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.node, self.reason, self.next)
    }
}

/// Newest RDB version that a server reads; `None` for versions we know nothing of.
fn rdb_version(store: &str, version: &str) -> Option<u32> {
    let (major, minor) = version_parts(version)?;
    match (store, major, minor) {
        ("redis", 5 | 6, _) => Some(9),
        ("redis", 7, 0 | 1) => Some(10),
        ("redis" | "valkey", 7, 2 | 3) => Some(11),
        ("redis", 7, _) => Some(12),
        ("redis", 8, 0 | 1) => Some(12),
        ("redis", 8.., _) => Some(13),
        ("valkey", 8, _) => Some(11),
        ("valkey", 9.., _) => Some(80),
        _ => None,
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
        for (source, target) in pairs(snapshot, sources, targets, request, &mut refusals) {
            nodes.extend(plan_node(id, snapshot, source, target, request, &mut refusals, &mut warnings));
        }
        if request.nodes.is_empty() {
            let used: BTreeSet<_> = nodes.iter().map(|node| node.target.as_str()).collect();
            let left: Vec<_> = targets.iter().map(|target| target.node.as_str()).filter(|name| !used.contains(name)).collect();
            if !left.is_empty() && refusals.0.is_empty() {
                warnings.push(format!("not touched: {}", left.join(", ")));
            }
        }
        nodes.sort_by(|a: &NodePlan, b| a.target.cmp(&b.target));
        check_shared_space(&nodes, targets, &mut refusals);
        Self {
            id,
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

    /// Nothing is in the way.
    pub fn is_allowed(&self) -> bool {
        self.refusals.is_empty() && !self.nodes.is_empty()
    }
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
    let Some(directory) = &target.directory else {
        let next = format!(
            "set data_directory in [clusters.{}.nodes.{name}] if its files are on this host, else run the restore there or use --directory",
            request.target_cluster
        );
        refusals.add(RefusalCode::NotOnThisHost, name, "its data directory is not known to be on this host", next);
        return None;
    };
    if let Some(fault) = &directory.fault {
        let above = directory.resolved.parent().unwrap_or(&directory.resolved);
        let next = format!("run as root, or as the owner of {} and let us write {}", directory.path.display(), above.display());
        refusals.add(RefusalCode::ForeignDirectory, name, format!("{}: {fault}", directory.path.display()), next);
    }
    if let Some(fault) = &target.server_fault {
        refusals.add(
            RefusalCode::CannotAsk,
            name,
            fault.clone(),
            "correct its address and password in the configuration, or stop it first",
        );
    }
    let is_files = snapshot.store == "files" || source.description.store == "files";
    if let Some(server) = &target.server {
        check_server(source, target, server, directory, request, refusals, warnings);
    } else if !target.has_start && !is_files {
        warnings.push(format!(
            "{name}: it does not run and no start command is known: start it after the restore and check it yourself"
        ));
    }
    check_age(snapshot, target, directory, request, refusals);
    let fit = if is_files { Fit::default() } else { fit(source, target, directory, refusals, warnings) };
    let made_bytes = if fit.append_only.is_some() { source.totals.total_bytes } else { 0 };
    let carried = if is_files { Vec::new() } else { directory.carried.clone() };
    let carried_bytes = if is_files { 0 } else { directory.carried_bytes };
    let bytes = source.totals.total_bytes + made_bytes + carried_bytes;
    let stop = match &target.server {
        None => StopKind::NotRunning,
        Some(_) if target.has_stop => StopKind::Command,
        Some(_) => StopKind::Protocol,
    };
    Some(NodePlan {
        id,
        source: source.node.clone(),
        target: name.clone(),
        directory: directory.resolved.clone(),
        swap: if directory.is_mountpoint { SwapKind::Entries } else { SwapKind::Rename },
        files: source.totals.files,
        bytes,
        free_bytes: directory.free_bytes,
        replaced_bytes: directory.used_bytes,
        owner: directory.exists.then_some(directory.owner),
        fit,
        carried,
        stop,
        start: target.has_start && !is_files,
        save_first: !request.discard_current,
        before: target.server.clone(),
        keys: source.keys,
    })
}

fn check_server(
    source: &SourceFacts,
    target: &TargetFacts,
    server: &ServerFacts,
    directory: &DirectoryFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) {
    let name = &target.node;
    let table = format!("[clusters.{}.nodes.{name}]", request.target_cluster);
    if server.is_loading {
        refusals.add(RefusalCode::Loading, name, "it is still loading its data", "wait until it has loaded, then try again");
        return;
    }
    match (&server.directory, directory.exists) {
        (Some(own), _) if own != &directory.resolved => {
            let reason = format!("the server at its address works in {}, not in {}", own.display(), directory.resolved.display());
            refusals.add(RefusalCode::OtherDirectory, name, reason, format!("correct data_directory or address in {table}"));
        }
        (None, _) => warnings.push(format!(
            "{name}: the server does not tell its directory (CONFIG GET dir); it is taken to be the configured one"
        )),
        _ => {}
    }
    if server.role != "master" {
        let next = "restore into its master; it synchronises by itself afterwards";
        refusals.add(RefusalCode::Replica, name, "it is a replica: its master would overwrite what is restored", next);
    }
    if !target.has_start {
        let has = if target.has_stop { "a start command" } else { "a stop and a start command" };
        let next = format!(
            "set {} in {table}, or stop it yourself and start it after the restore",
            if target.has_stop { "start" } else { "stop and start" }
        );
        let code = if target.has_stop { RefusalCode::CannotStart } else { RefusalCode::CannotStop };
        refusals.add(code, name, format!("it runs, and {has} is not known"), next);
    } else if !target.has_stop {
        warnings
            .push(format!("{name}: no stop command is known: it is shut down over its protocol, which a supervisor may undo"));
    }
    check_version(source, name, server, refusals, warnings);
    check_slots(source, name, server, request, refusals, warnings);
    if server.replicas > 0 {
        if server.in_cluster {
            let reason = format!(
                "{} replicas follow it: stopped for longer than cluster-node-timeout it is failed over, and wiped when it comes back",
                server.replicas
            );
            let next =
                "stop its replicas first, or set cluster-replica-no-failover yes on them and name them no longer, then try again";
            refusals.add(RefusalCode::HasReplicas, name, reason, next);
        } else {
            warnings.push(format!(
                "{name}: its {} replicas copy everything from it again afterwards; Sentinel must not fail it over meanwhile",
                server.replicas
            ));
        }
    }
    if request.discard_current && server.keys > 0 {
        warnings.push(format!(
            "{name}: its {} keys are not saved before it stops (--discard-current): a rollback brings back its last save",
            server.keys
        ));
    }
}

fn check_version(source: &SourceFacts, name: &str, server: &ServerFacts, refusals: &mut Refusals, warnings: &mut Vec<String>) {
    let from = &source.description;
    let shown = format!("{} {}", from.store, from.version);
    match (rdb_version(&from.store, &from.version), rdb_version(&server.store, &server.version)) {
        (Some(dump), Some(reads)) if dump > reads || (from.store != server.store && dump > 11) => {
            let next = format!("restore into {shown} or newer");
            refusals.add(
                RefusalCode::DumpTooNew,
                name,
                format!("it is {} {}, and cannot load what {shown} wrote", server.store, server.version),
                next,
            );
        }
        (Some(_), Some(_)) => {}
        _ => warnings.push(format!("{name}: whether {} {} loads what {shown} wrote is not known", server.store, server.version)),
    }
}

fn show_slots(slots: &[(u16, u16)]) -> String {
    if slots.is_empty() {
        return "none".to_owned();
    }
    slots.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(",")
}

fn check_slots(
    source: &SourceFacts,
    name: &str,
    server: &ServerFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) {
    let stored = &source.description.slots;
    if server.in_cluster && stored != &server.slots {
        let reason = format!(
            "{} was stored with slots {}, and the target has {}: its keys could not be reached",
            source.node,
            show_slots(stored),
            show_slots(&server.slots)
        );
        let next =
            format!("map it to the node of {} with those slots: --map {}=TARGET_NODE", request.target_cluster, source.node);
        refusals.add(RefusalCode::SlotsDiffer, name, reason, next);
    } else if !server.in_cluster && !stored.is_empty() && *stored != [(0, 16383)] {
        warnings.push(format!("{name}: it gets the slots {} of a cluster only", show_slots(stored)));
    }
}

fn check_age(
    snapshot: &ClusterManifest,
    target: &TargetFacts,
    directory: &DirectoryFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
) {
    let newer_file = directory.newest.filter(|newest| newest.0 > snapshot.cut_at.0);
    let is_newer = match &target.server {
        Some(server) if server.keys == 0 => false,
        Some(server) => server.changes > 0 || server.saved_at > snapshot.cut_at.seconds() || newer_file.is_some(),
        None => newer_file.is_some(),
    };
    if is_newer && request.confirm.as_deref() != Some(request.target_cluster.as_str()) {
        let reason = format!("it holds newer data than the snapshot of {}", snapshot.cut_at);
        let next = format!("repeat with --confirm {} if that data is to be replaced", request.target_cluster);
        refusals.add(RefusalCode::NewerData, &target.node, reason, next);
    }
}

/// Targets on one file system need their space together.
fn check_shared_space(nodes: &[NodePlan], targets: &[TargetFacts], refusals: &mut Refusals) {
    // Equal free space is the only sign of one file system that the facts carry; two that agree to the byte by
    // chance are then refused together only where they would be tight anyway.
    let mut by_free: Vec<(u64, u64, Vec<&NodePlan>)> = Vec::new();
    for node in nodes {
        let needed = node.bytes + node.files * FILE_OVERHEAD_BYTES;
        match by_free.iter_mut().find(|(free, _, _)| *free == node.free_bytes) {
            Some((_, sum, members)) => {
                *sum += needed;
                members.push(node);
            }
            None => by_free.push((node.free_bytes, needed, vec![node])),
        }
    }
    for (free, needed, members) in by_free {
        let is_known = targets.iter().any(|target| {
            target.node == members[0].target && target.directory.as_ref().is_some_and(|directory| directory.fault.is_none())
        });
        if needed.saturating_add(SPARE_BYTES) > free && is_known {
            let names: Vec<_> = members.iter().map(|node| node.target.as_str()).collect();
            let reason = format!(
                "{} are needed beside what is there, and {} are free",
                human_bytes(needed + SPARE_BYTES),
                human_bytes(free)
            );
            let next = format!("free some space on the file system of {}", members[0].directory.display());
            refusals.add(RefusalCode::TooLittleSpace, names.join(", "), reason, next);
        }
    }
}

#[cfg(test)]
#[path = "restore_plan_tests.rs"]
mod tests;
