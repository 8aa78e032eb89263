//! `tintype diff`: files added, removed and changed between two snapshots, from their trees alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::super::control_args::DiffArgs;
use super::super::failure::{Exit, Failure};
use super::super::output::size;
use super::super::wiring::Session;
use super::browse::open_node;
use crate::model::manifest::{ClusterManifest, FileKind, NodeStatus, TreeEntry};
use crate::model::names::{NodeName, TreePath};
use crate::model::snapshot_name::SnapshotName;
use crate::repo::{Repository, SnapshotSource};

type Tree = BTreeMap<(NodeName, TreePath), TreeEntry>;

/// Compares two snapshots.
pub async fn run(session: &Session, args: DiffArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let (name_before, before) = session.find(repository.as_ref(), &args.before).await?;
    let (name_after, after) = session.find(repository.as_ref(), &args.after).await?;
    let before = entries(&repository, &repository.manifest(&before).await?, &name_before).await?;
    let after = entries(&repository, &repository.manifest(&after).await?, &name_after).await?;
    let mut changes = Vec::new();
    for (key, old) in &before {
        match after.get(key) {
            None => changes.push((key, "removed", -i128::from(old.size_bytes()))),
            Some(new) if is_changed(old, new) => {
                changes.push((key, "changed", i128::from(new.size_bytes()) - i128::from(old.size_bytes())))
            }
            Some(_) => {}
        }
    }
    changes.extend(
        after.iter().filter(|(key, _)| !before.contains_key(*key)).map(|(key, new)| (key, "added", i128::from(new.size_bytes()))),
    );
    changes.sort();
    let mut text = String::new();
    for ((node, path), what, bytes) in &changes {
        let sign = match *what {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        let grown = if *bytes < 0 { "-" } else { "+" };
        text.push_str(&format!(
            "{sign} {node}/{path}  {grown}{}\n",
            size(u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX))
        ));
    }
    if changes.is_empty() {
        text.push_str("no differences\n");
    }
    let value: Vec<_> = changes.iter().map(|((node, path), what, bytes)| json!({"node": node, "path": path, "change": what, "bytes": i64::try_from(*bytes).unwrap_or(i64::MAX)})).collect();
    session.output.result(&text, &json!({"changes": value}));
    Ok(Exit::Done)
}

fn is_changed(old: &TreeEntry, new: &TreeEntry) -> bool {
    let content = |entry: &TreeEntry| entry.content.as_ref().map(|content| (content.id, content.size_bytes));
    (old.kind, old.mode, &old.target, content(old)) != (new.kind, new.mode, &new.target, content(new))
}

/// Every entry but the nodes' own directories.
async fn entries(repository: &Repository, manifest: &Arc<ClusterManifest>, name: &SnapshotName) -> Result<Tree, Failure> {
    let mut all = Tree::new();
    if let Some(node) = &name.node {
        // Said here, so that a misspelt node is not an empty tree.
        open_node(repository, manifest, node).await?;
    }
    for record in &manifest.nodes {
        if record.status != NodeStatus::Completed || name.node.as_ref().is_some_and(|node| *node != record.name) {
            continue;
        }
        let tree = repository.open_node(manifest, &record.name).await?;
        let mut directories = vec![TreePath::root()];
        while let Some(directory) = directories.pop() {
            for placed in repository.directory(&tree, &directory).await? {
                if placed.entry.kind == FileKind::Directory {
                    directories.push(placed.entry.path.clone());
                }
                all.insert((record.name.clone(), placed.entry.path.clone()), placed.entry);
            }
        }
    }
    Ok(all)
}
