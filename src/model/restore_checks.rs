//! What speaks against restoring into one target, from facts alone: its server, its version, its slots, its age, its links.

use std::path::PathBuf;

use super::manifest::ClusterManifest;
use super::restore_facts::{DirectoryFacts, Guard, RestoreRequest, ServerFacts, SourceFacts, TargetFacts, version_parts};
use super::restore_plan::{Fit, Method, NodePlan, RefusalCode, Refusals};
use super::restore_text::human_bytes;

/// What each file costs beside its bytes: a block of the file system and its inode.
const FILE_OVERHEAD_BYTES: u64 = 4096 + 256;
/// Space left over after a restore: 1 MiB, so that the store can write its first lines.
const SPARE_BYTES: u64 = 1024 * 1024;

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

/// Where its files are on this host, and whether we may work there.
pub(super) fn check_place<'a>(
    target: &'a TargetFacts,
    request: &RestoreRequest,
    refusals: &mut Refusals,
) -> Option<&'a DirectoryFacts> {
    let name = &target.node;
    if let Some(fault) = &target.agent_fault {
        let agent = target.agent.as_deref().unwrap_or_default();
        let next = format!("see that tintyped runs there and obeys: `tintype doctor` asks {agent}");
        refusals.add(RefusalCode::AgentAway, name, format!("its agent: {fault}"), next);
        return None;
    }
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
    Some(directory)
}

/// Replicas take over from a master that is away for longer than its cluster's node timeout, and then wipe it: all of them
/// have to be known, so that they are stopped before it.
pub(super) fn check_replicas(
    master: &TargetFacts,
    replicas: &[&TargetFacts],
    request: &RestoreRequest,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) {
    let (name, cluster) = (&master.node, &request.target_cluster);
    for replica in replicas {
        let Some(server) = &replica.server else { continue };
        let follows = |master: &ServerFacts| match server.in_cluster {
            true => server.follows.as_ref().is_none_or(|id| *id == master.cluster_id),
            // Half-way in a synchronisation it has none yet.
            false => server.replication_id == master.replication_id,
        };
        let is_its = server.role != "master" && master.server.as_ref().is_none_or(follows);
        if !is_its {
            let next = format!(
                "correct replica_of in [clusters.{cluster}.nodes.{}]; `CLUSTER NODES` shows who follows whom",
                replica.node
            );
            refusals.add(RefusalCode::Replica, &replica.node, format!("it is no replica of {name} now"), next);
        }
        if !replica.has_start {
            let next = format!("set stop and start in [clusters.{cluster}.nodes.{}]", replica.node);
            refusals.add(RefusalCode::CannotStart, &replica.node, "it runs, and a start command is not known", next);
        }
    }
    let Some(server) = &master.server else { return };
    let known = replicas.iter().filter(|replica| replica.server.is_some()).count() as u64;
    if server.is_watched == Some(true) {
        warnings
            .push(format!("{name}: Sentinel watches it: a replica that is not connected now must stay away until all is done"));
    }
    if server.replicas <= known {
        return;
    }
    if server.in_cluster || server.is_watched == Some(true) {
        let becomes = if server.in_cluster {
            "stopped for longer than cluster-node-timeout it is failed over, and wiped when it comes back"
        } else {
            "Sentinel makes another one the master while it is stopped, and wipes it when it comes back"
        };
        let reason = format!("{} replicas follow it, and {known} of them are configured and run: {becomes}", server.replicas);
        let next = format!(
            "name each under [clusters.{cluster}.nodes.NAME] with replica_of = \"{name}\", its data_directory, stop and start"
        );
        refusals.add(RefusalCode::HasReplicas, name, reason, next);
    } else {
        warnings.push(format!(
            "{name}: {} replicas that are not configured copy everything from it again afterwards{}",
            server.replicas - known,
            if server.is_watched.is_none() {
                "; Sentinel must not fail it over meanwhile, and whether there is one is not known"
            } else {
                ""
            }
        ));
    }
}

pub(super) fn check_server(
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
    if request.discard_current && server.keys > 0 {
        warnings.push(format!(
            "{name}: its {} keys are not saved before it stops (--discard-current): a rollback brings back its last save",
            server.keys
        ));
    }
}

/// What is served and away is no data: a store must not start on its place as if it were empty.
pub(super) fn check_served(
    target: &TargetFacts,
    directory: &DirectoryFacts,
    is_files: bool,
    fit: &Fit,
    request: &RestoreRequest,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) {
    let name = &target.node;
    let is_append_only = fit.append_manifest.is_some() || fit.append_only.as_ref().is_some_and(|made| made.directory.is_some());
    if request.method == Method::Clone && directory.is_mountpoint {
        let next = "unmount it and restore into the directory below it, or say --method copy";
        refusals.add(RefusalCode::Mountpoint, name, "a mountpoint cannot become a link to a clone", next);
    }
    if request.method == Method::Link && !is_files && !is_append_only {
        let reason =
            "by links it would start empty whenever what they lead to is away, and it reads its whole dump at each start";
        let next = "--method copy, or --method clone";
        refusals.add(RefusalCode::StartsEmpty, name, reason, next);
    }
    if target.guard == Guard::None && (target.has_start || !is_files) {
        let directory = target.directory.as_ref().map_or_else(PathBuf::new, |directory| directory.path.clone());
        let next = format!(
            "let its start command be `tintype guard {} -- COMMAND`, or `systemctl start UNIT`, in [clusters.{}.nodes.{name}]",
            directory.display(),
            request.target_cluster
        );
        refusals.add(RefusalCode::NoGuard, name, "nothing would keep it from starting while what is served for it is away", next);
    } else if is_files {
        warnings.push(format!(
            "{name}: start its store by `tintype guard DIRECTORY -- COMMAND`, which refuses while what is served for it is away"
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

pub(super) fn check_age(
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
pub(super) fn check_shared_space(nodes: &[NodePlan], targets: &[TargetFacts], refusals: &mut Refusals) {
    // Equal free space on one host is the only sign of one file system that the facts carry; two that agree to the byte by
    // chance are then refused together only where they would be tight anyway.
    type Place<'a> = (Option<&'a str>, u64);
    let mut by_free: Vec<(Place<'_>, u64, Vec<&NodePlan>)> = Vec::new();
    for node in nodes {
        let needed = node.bytes + node.files * FILE_OVERHEAD_BYTES;
        let place = (node.agent.as_deref(), node.free_bytes);
        match by_free.iter_mut().find(|(known, _, _)| *known == place) {
            Some((_, sum, members)) => {
                *sum += needed;
                members.push(node);
            }
            None => by_free.push((place, needed, vec![node])),
        }
    }
    for ((_, free), needed, members) in by_free {
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
