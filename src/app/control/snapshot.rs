//! `tintype snapshot`: one coordinated snapshot of a whole cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::control_args::SnapshotArgs;
use super::super::failure::{Exit, Failure};
use super::super::output::{micros, size};
use super::super::snapshot::{PreparedSnapshot, SnapshotRequest, prepare};
use super::super::wiring::{ClusterNode, Session};
use crate::cluster::coordinator::{PublishedSnapshot, SnapshotPhase};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{Consistency, NodeStatus};
use crate::model::names::{ClusterName, NodeName, escape};

/// Takes the snapshot.
pub async fn run(session: &Session, args: SnapshotArgs) -> Result<Exit, Failure> {
    let request = SnapshotRequest {
        uuid: SnapshotId::new_v4(),
        cluster: ClusterName::new(args.cluster)?,
        source: args.source,
        nodes: args.node,
        capture: args.capture,
        max_pause: args.max_pause,
        patience: args.patience,
        partial: args.partial,
        adopt: args.adopt,
        tags: parse_tags(&args.tag)?,
    };
    let (cluster, uuid) = (request.cluster.clone(), request.uuid);
    let PreparedSnapshot { nodes, by_agents, warning, mut run } = prepare(session, session.repository().await?, request).await?;
    if let Some(warning) = &warning {
        session.output.note(warning);
    }
    let count = nodes.len();
    session.output.note(&format!("snapshot {uuid} of {cluster}: {count} nodes"));
    if !by_agents.is_empty() {
        let here = count - by_agents.len();
        session.output.note(&format!("stored from their own hosts: {}; through this one: {here}", by_agents.join(", ")));
    }
    let bar = session.output.bar("preparing");
    let output = session.output;
    let phase_bar = bar.clone();
    let on_phase = move |phase| {
        let word = match phase {
            SnapshotPhase::Preparing => "preparing",
            SnapshotPhase::Cutting => "pausing writes",
            SnapshotPhase::Storing => "storing (stores run again)",
            SnapshotPhase::Publishing => "publishing",
        };
        phase_bar.set_prefix(word);
        if phase_bar.is_hidden() {
            output.note(word);
        }
    };
    let reads = run.reads();
    let running = run.coordinator(interruption(), Box::new(on_phase)).run();
    tokio::pin!(running);
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = tokio::time::sleep(Duration::from_millis(200)) => bar.set_position(reads.iter().map(|read| read()).sum()),
        }
    };
    bar.finish_and_clear();
    report(session, &outcome?, &nodes)
}

/// Raised at SIGINT or SIGTERM. A second signal ends the process the hard way, which is safe too.
fn interruption() -> watch::Receiver<bool> {
    let (raise, raised) = watch::channel(false);
    tokio::spawn(async move {
        super::super::mount::stop_signal().await;
        let _nobody_listens = raise.send(true);
        super::super::mount::stop_signal().await;
        std::process::exit(130);
    });
    raised
}

fn parse_tags(tags: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    tags.iter()
        .map(|tag| match tag.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!("--tag {tag:?} is not KEY=VALUE")).hint("for example --tag reason=upgrade")),
        })
        .collect()
}

fn report(session: &Session, published: &PublishedSnapshot, asked: &[ClusterNode]) -> Result<Exit, Failure> {
    let (manifest, listed) = (&published.manifest, &published.listed);
    let cut = &manifest.cut;
    let sum =
        |part: fn(&crate::model::manifest::NodeTotals) -> u64| manifest.nodes.iter().map(|node| part(&node.totals)).sum::<u64>();
    let (new, stored) = (sum(|totals| totals.new_bytes), sum(|totals| totals.stored_bytes));
    let mut text = format!("{}/{}\n", listed.cluster, listed.date);
    let completed = |name: &NodeName| manifest.node(name).is_some_and(|node| node.status == NodeStatus::Completed);
    let agreement = match cut.consistent {
        Consistency::Proved => "proved to be one instant".to_owned(),
        Consistency::Timed if cut.scope == "rack" => {
            "one copy of the ring at one instant; last writes of other racks may be missing in it".to_owned()
        }
        Consistency::Timed => "frozen at one instant by the clock".to_owned(),
        Consistency::No if asked.len() == 1 => "one node, not frozen".to_owned(),
        Consistency::No => "the nodes are not of one instant".to_owned(),
    };
    text.push_str(&format!(
        "  cut     {agreement}; writes paused {}, forks {}, skew {}\n",
        micros(cut.pause_us),
        micros(cut.capture_us),
        micros(cut.skew_us)
    ));
    text.push_str(&format!("  size    {}, new {}, stored {}\n", size(manifest.total_bytes()), size(new), size(stored)));
    for node in manifest.nodes.iter().filter(|node| node.status != NodeStatus::Completed) {
        // An agent's or a store's own words.
        let reason = escape(node.reason.as_deref().unwrap_or("not stored").as_bytes());
        text.push_str(&format!("  {}: {reason}\n", node.name));
    }
    text.push_str(&format!("next: tintype show {0}/{1}, or tintype mount MOUNTPOINT\n", listed.cluster, listed.date));
    session.output.result(&text, &json_report(published, new, stored));
    // What was left out on request is no failure of this run.
    Ok(if asked.iter().all(|node| completed(&node.name)) { Exit::Done } else { Exit::Partly })
}

fn json_report(published: &PublishedSnapshot, new: u64, stored: u64) -> Value {
    let (manifest, listed) = (&published.manifest, &published.listed);
    let nodes: serde_json::Map<String, Value> = manifest
        .nodes
        .iter()
        .map(|node| {
            let totals = &node.totals;
            let value = json!({"status": node.status, "reason": node.reason, "files": totals.files, "total_bytes": totals.total_bytes, "new_bytes": totals.new_bytes});
            (node.name.to_string(), value)
        })
        .collect();
    json!({
        "uuid": manifest.uuid,
        "cluster": listed.cluster,
        "date": listed.date,
        "status": manifest.status,
        "cut": manifest.cut,
        "total_bytes": manifest.total_bytes(),
        "new_bytes": new,
        "stored_bytes": stored,
        "nodes": nodes,
    })
}
