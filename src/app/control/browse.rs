//! `tintype list` and `tintype show`: what is stored, without a mount.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::control_args::{ListArgs, ShowArgs};
use super::super::failure::{Exit, Failure};
use super::super::output::{micros, size};
use super::super::wiring::Session;
use crate::model::manifest::{ClusterManifest, FileKind, NodeRecord, NodeStatus, TreeEntry};
use crate::model::names::{ClusterName, TreePath, escape};
use crate::model::snapshot_name::SnapshotName;
use crate::model::time::Timestamp;
use crate::repo::{NodeTree, PlacedEntry, Repository, SnapshotSource};

/// One line of a listing: what a person sees short, what long, and what a script gets.
struct Line {
    short: String,
    long: String,
    value: Value,
}

/// Lists like `ls`.
pub async fn list(session: &Session, args: ListArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let lines = match args.path.as_deref().map(|path| SnapshotName::parse(path, session.now())).transpose()? {
        None => clusters(&repository).await?,
        Some(name) => match (&name.date, &name.node) {
            (None, _) => snapshots(session, &repository, &name.cluster, args.long).await?,
            (Some(_), None) => nodes(session, &repository, &name).await?,
            (Some(_), Some(_)) => files(session, &repository, &name).await?,
        },
    };
    let text: String = lines.iter().map(|line| format!("{}\n", if args.long { &line.long } else { &line.short })).collect();
    session.output.result(&text, &json!({"entries": lines.into_iter().map(|line| line.value).collect::<Vec<_>>()}));
    Ok(Exit::Done)
}

async fn clusters(repository: &Repository) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for cluster in repository.clusters().await? {
        let newest = repository.newest(&cluster, 1).await?.into_iter().next();
        let date = newest.map(|snapshot| snapshot.date);
        let long = format!("{cluster}  newest {}", date.map_or("none".to_owned(), |date| date.to_string()));
        lines.push(Line { short: cluster.to_string(), long, value: json!({"cluster": cluster, "newest": date}) });
    }
    Ok(lines)
}

async fn snapshots(
    session: &Session,
    repository: &Repository,
    cluster: &ClusterName,
    is_long: bool,
) -> Result<Vec<Line>, Failure> {
    let listed = repository.snapshots(cluster).await?;
    if listed.is_empty() {
        let name = SnapshotName { cluster: cluster.clone(), date: None, node: None, path: TreePath::root() };
        session.choose(repository, &name).await?;
    }
    let mut lines = Vec::new();
    // Oldest first, like `ls` of the tree.
    for snapshot in listed.iter().rev() {
        let status = if snapshot.is_complete { "" } else { "  partial" };
        let mut value =
            json!({"cluster": cluster, "date": snapshot.date, "uuid": snapshot.uuid, "complete": snapshot.is_complete});
        let mut long = format!("{}  {}{status}", snapshot.date, snapshot.uuid);
        if is_long {
            let manifest = repository.manifest(snapshot).await?;
            long = format!(
                "{}  {:>10}  {:>2} nodes  {}{status}",
                snapshot.date,
                size(manifest.total_bytes()),
                manifest.nodes.len(),
                snapshot.uuid
            );
            value["total_bytes"] = json!(manifest.total_bytes());
            value["nodes"] = json!(manifest.nodes.len());
        }
        lines.push(Line { short: format!("{}{status}", snapshot.date), long, value });
    }
    Ok(lines)
}

async fn nodes(session: &Session, repository: &Repository, name: &SnapshotName) -> Result<Vec<Line>, Failure> {
    let manifest = repository.manifest(&session.choose(repository, name).await?).await?;
    let line = |node: &NodeRecord| {
        let status = match node.status {
            NodeStatus::Completed => String::new(),
            _ => format!("  {}", escape(node.reason.as_deref().unwrap_or("not stored").as_bytes())),
        };
        let long = format!("{}  {:>10}  {} files{status}", node.name, size(node.totals.total_bytes), node.totals.files);
        Line {
            short: node.name.to_string(),
            long,
            value: json!({"node": node.name, "status": node.status, "totals": node.totals}),
        }
    };
    Ok(manifest.nodes.iter().map(line).collect())
}

async fn files(session: &Session, repository: &Repository, name: &SnapshotName) -> Result<Vec<Line>, Failure> {
    let (tree, found) = open_entry(session, repository, name).await?;
    let entries = match found.entry.kind {
        FileKind::Directory => repository.directory(&tree, &name.path).await?,
        _ => vec![found],
    };
    Ok(entries.iter().map(|placed| file_line(&placed.entry)).collect())
}

/// What a name with a node stands for: the node's tree and the entry in it.
pub async fn open_entry(
    session: &Session,
    repository: &Repository,
    name: &SnapshotName,
) -> Result<(NodeTree, PlacedEntry), Failure> {
    let manifest = repository.manifest(&session.choose(repository, name).await?).await?;
    let node = name.node.as_ref().expect("the caller looked");
    let tree = open_node(repository, &manifest, node).await?;
    let found = repository.entry(&tree, &name.path).await?.ok_or_else(|| {
        Failure::new("not_found", format!("{}/{}/{node} has no {}", name.cluster, manifest.date, name.path))
            .hint("list its directory")
    })?;
    Ok((tree, found))
}

/// Opens a node, naming the others when there is no such one.
pub async fn open_node(
    repository: &Repository,
    manifest: &Arc<ClusterManifest>,
    node: &crate::model::names::NodeName,
) -> Result<NodeTree, Failure> {
    if manifest.node(node).is_none() {
        let names: Vec<_> = manifest.nodes.iter().map(|node| node.name.to_string()).collect();
        return Err(Failure::new("not_found", format!("{}/{} has no node {node}", manifest.cluster, manifest.date))
            .hint(format!("its nodes: {}", names.join(", "))));
    }
    Ok(repository.open_node(manifest, node).await?)
}

fn file_line(entry: &TreeEntry) -> Line {
    let name = escape(entry.path.file_name());
    let kind = match entry.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Link => 'l',
    };
    let bit = |shift: u32, letter: char| if entry.mode >> shift & 1 == 1 { letter } else { '-' };
    let mode: String = (0..9).map(|index| bit(8 - index, ['r', 'w', 'x'][index as usize % 3])).collect();
    let owner = |name: &Option<String>, number: u32| name.clone().unwrap_or_else(|| number.to_string());
    let modified = Timestamp(entry.modified_ns / 1000);
    let target = entry.target.as_ref().map_or(String::new(), |target| format!(" -> {}", escape(target)));
    let long = format!(
        "{kind}{mode} {:<8} {:<8} {:>12} {modified} {name}{target}",
        owner(&entry.owner.user, entry.owner.uid),
        owner(&entry.owner.group, entry.owner.gid),
        entry.size_bytes()
    );
    let suffix = if entry.kind == FileKind::Directory { "/" } else { "" };
    Line {
        short: format!("{name}{suffix}"),
        long,
        value: json!({"path": entry.path, "kind": entry.kind, "size_bytes": entry.size_bytes(), "mode": entry.mode, "modified_ns": entry.modified_ns}),
    }
}

/// Shows a manifest.
pub async fn show(session: &Session, args: ShowArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let (_, listed) = session.find(repository.as_ref(), &args.snapshot).await?;
    let manifest = repository.manifest(&listed).await?;
    let verified = repository.verifications(&listed.cluster, listed.uuid).await?;
    let mut value = serde_json::to_value(manifest.as_ref()).map_err(|error| Failure::new("internal", error.to_string()))?;
    value["total_bytes"] = json!(manifest.total_bytes());
    value["verifications"] = json!(verified);
    let pins = repository.pins(&listed.cluster, listed.uuid).await?;
    value["pins"] = json!(pins);
    let mut text = people(&manifest);
    match verified.last() {
        None => text.push_str("verified  never; run `tintype verify`\n"),
        Some(mark) if mark.problems == 0 => text.push_str(&format!("verified  {} at {}\n", word(&mark.depth), mark.at)),
        Some(mark) => text.push_str(&format!("verified  {} problems at {}\n", mark.problems, mark.at)),
    }
    for pin in &pins {
        let until = pin.until.map_or(String::new(), |until| format!(", until {until}"));
        text.push_str(&format!("pinned: {}{until}\n", escape(pin.holder.as_bytes())));
    }
    session.output.result(&text, &value);
    Ok(Exit::Done)
}

/// A variant's name as people read it.
fn word(value: &dyn std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn people(manifest: &ClusterManifest) -> String {
    let cut = &manifest.cut;
    let mut text = format!("{}/{}  {}\n", manifest.cluster, manifest.date, manifest.uuid);
    text.push_str(&format!("status    {}\n", word(&manifest.status)));
    text.push_str(&format!(
        "cut       {}, consistent: {} ({}); paused {}, forks {}, skew {}\n",
        manifest.cut_at,
        word(&cut.consistent),
        cut.scope,
        micros(cut.pause_us),
        micros(cut.capture_us),
        micros(cut.skew_us)
    ));
    text.push_str(&format!("size      {}\n", size(manifest.total_bytes())));
    if let Some(before) = &manifest.predecessor {
        text.push_str(&format!("after     {}\n", before.date));
    }
    for (key, value) in &manifest.tags {
        text.push_str(&format!("tag       {}={}\n", escape(key.as_bytes()), escape(value.as_bytes())));
    }
    for node in &manifest.nodes {
        let description = &node.description;
        text.push_str(&format!(
            "node      {}  {} {} {}  {}\n",
            node.name, description.store, description.version, description.role, description.address
        ));
        if let Some(reason) = &node.reason {
            text.push_str(&format!("          not stored: {}\n", escape(reason.as_bytes())));
            continue;
        }
        if !description.slots.is_empty() {
            let slots: Vec<_> = description.slots.iter().map(|(from, to)| format!("{from}-{to}")).collect();
            text.push_str(&format!("          slots {}\n", slots.join(" ")));
        }
        if let Some(ring) = &description.ring {
            text.push_str(&format!(
                "          token {}, from rack {} of {}\n",
                ring.token,
                escape(ring.rack.as_bytes()),
                escape(ring.datacenter.as_bytes())
            ));
        }
        if let Some(replication) = &description.replication {
            text.push_str(&format!("          replication {} at {}\n", replication.id, replication.offset));
        }
        if let Some(keys) = &node.keys {
            text.push_str(&format!(
                "          {} keys, {} of them expired at the cut, {} with an expiry\n",
                keys.total, keys.expired, keys.volatile
            ));
        }
        text.push_str(&format!(
            "          {} files, {}, new {}\n",
            node.totals.files,
            size(node.totals.total_bytes),
            size(node.totals.new_bytes)
        ));
        text.push_str(&format!("          proof: {} ({})\n", node.proof.kind, node.proof.checks.join(", ")));
    }
    text
}
