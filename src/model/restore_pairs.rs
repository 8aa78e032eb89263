//! Which stored node of a restore goes to which target.

use super::manifest::{ClusterManifest, NodeStatus};
use super::names::NodeName;
use super::restore_facts::{RestoreRequest, SourceFacts, TargetFacts};
use super::restore_plan::{RefusalCode, Refusals};

/// Why a node of a snapshot cannot be restored from it, and what to do instead.
pub fn why_missing(snapshot: &ClusterManifest, name: &NodeName) -> (String, String) {
    let mut reason = format!("it was not stored in {}/{}", snapshot.cluster, snapshot.date);
    if let Some(why) = snapshot.node(name).and_then(|node| node.reason.as_ref()) {
        reason.push_str(&format!(": {why}"));
    }
    let stored = snapshot.nodes.iter().filter(|node| node.status == NodeStatus::Completed);
    let stored: Vec<_> = stored.map(|node| format!("--node {}", node.name)).collect();
    let other = format!("choose another snapshot, see `tintype list {}`", snapshot.cluster);
    match stored.as_slice() {
        [] => (reason, other),
        stored => (reason, format!("{other}, or restore what this one holds with {}", stored.join(" "))),
    }
}

/// Which stored node goes where: as the operator says, by token (then to each rack), by name, by slots, or one to one.
pub(super) fn pairs<'a>(
    snapshot: &ClusterManifest,
    sources: &'a [SourceFacts],
    targets: &'a [TargetFacts],
    request: &RestoreRequest,
    refusals: &mut Refusals,
) -> Vec<(&'a SourceFacts, &'a TargetFacts)> {
    let shown = format!("{}/{}", snapshot.cluster, snapshot.date);
    let mut wanted: Vec<&SourceFacts> = Vec::new();
    let named: Vec<&NodeName> = if request.nodes.is_empty() {
        sources.iter().map(|source| &source.node).collect()
    } else {
        request.nodes.iter().collect()
    };
    for name in named {
        match sources.iter().find(|source| &source.node == name) {
            None => {
                let known: Vec<_> = sources.iter().map(|source| source.node.as_str()).collect();
                let next = format!("its nodes are {}; name one of them with --node", known.join(", "));
                refusals.add(RefusalCode::MissingInSnapshot, name, format!("{shown} has no such node"), next);
            }
            Some(source) if source.status != NodeStatus::Completed => {
                let (reason, next) = why_missing(snapshot, name);
                refusals.add(RefusalCode::MissingInSnapshot, name, reason, next);
            }
            Some(source) => wanted.push(source),
        }
    }
    for (source, target) in &request.map {
        if !sources.iter().any(|known| &known.node == source) {
            refusals.add(
                RefusalCode::UnknownMapping,
                source,
                format!("{shown} has no such node"),
                "correct --map SOURCE_NODE=TARGET_NODE",
            );
        }
        if !targets.iter().any(|known| known.node == target.as_str()) {
            let reason = format!("{} has no such node", request.target_cluster);
            refusals.add(RefusalCode::UnknownMapping, target, reason, "correct --map SOURCE_NODE=TARGET_NODE");
        }
    }
    let slots_of = |target: &TargetFacts| target.server.as_ref().map(|server| server.slots.clone()).unwrap_or_default();
    let mut found: Vec<(&SourceFacts, &TargetFacts)> = Vec::new();
    let is_single = wanted.len() == 1 && targets.len() == 1;
    for source in wanted {
        let mapped: Vec<_> = request.map.iter().filter(|(from, _)| *from == source.node).map(|(_, to)| to.as_str()).collect();
        let of_token = |target: &&TargetFacts| {
            target.proxy.as_ref().map(|proxy| proxy.place.token) == source.description.ring.as_ref().map(|ring| ring.token)
        };
        // Every rack has the token, and each can be restored from the one copy of it.
        let is_ring = source.description.ring.is_some() && targets.iter().any(|target| target.proxy.is_some());
        let chosen: Vec<&TargetFacts> = match mapped.as_slice() {
            [] if is_ring => targets.iter().filter(of_token).collect(),
            [] => targets
                .iter()
                .find(|target| target.node == source.node.as_str())
                .or_else(|| {
                    targets
                        .iter()
                        .find(|target| !source.description.slots.is_empty() && slots_of(target) == source.description.slots)
                })
                .or_else(|| targets.first().filter(|_| is_single))
                .into_iter()
                .collect(),
            names => targets.iter().filter(|target| names.contains(&target.node.as_str())).collect(),
        };
        if chosen.is_empty() && mapped.is_empty() {
            let known: Vec<_> = targets.iter().map(|target| target.node.as_str()).collect();
            let next = format!("say which with --map {}=TARGET_NODE, one of {}", source.node, known.join(", "));
            let what = if is_ring { "its token" } else { "its name or its slots" };
            let reason = format!("no node of {} has {what}", request.target_cluster);
            refusals.add(RefusalCode::UnknownMapping, &source.node, reason, next);
        }
        for target in chosen {
            if found.iter().any(|(_, taken)| taken.node == target.node) {
                let reason = format!("another stored node goes to {} already", target.node);
                refusals.add(
                    RefusalCode::UnknownMapping,
                    &source.node,
                    reason,
                    "give each a target of its own with --map SOURCE_NODE=TARGET_NODE",
                );
            } else {
                found.push((source, target));
            }
        }
    }
    found
}
