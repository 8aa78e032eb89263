//! `tintype snapshot`: one coordinated snapshot of a whole cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::agent::{self as agents, Couriers};
use super::super::config::Span;
use super::super::control_args::SnapshotArgs;
use super::super::failure::{Exit, Failure};
use super::super::linked;
use super::super::local_node::LocalNode;
use super::super::output::{micros, size};
use super::super::parents::Parents;
use super::super::wiring::{ClusterNode, Session};
use crate::agent::NodeService;
use crate::agent::desk::ReadBytes;
use crate::agent::remote::RemoteNode;
use crate::base::process::host_name;
use crate::cluster::coordinator::{Coordinator, PublishedSnapshot, SnapshotOptions, SnapshotPhase};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{Consistency, CutKind, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::node::NodeCapture;
use crate::repo::{Repository, WriterOptions};

/// Long enough for forks of large stores, short enough for clients' timeouts.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A save of a large store takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Takes the snapshot.
pub async fn run(session: &Session, args: SnapshotArgs) -> Result<Exit, Failure> {
    let cluster = ClusterName::new(args.cluster.clone())?;
    let tags = parse_tags(&args.tag)?;
    let repository = session.repository().await?;
    let configured = session.config.clusters.get(&cluster).and_then(|config| config.coordinator.as_deref());
    let host = host_name();
    if let Some(warning) = check_coordinator(&cluster, repository.keeps_conditions(), configured, &host)? {
        session.output.note(&warning);
    }
    let (store, nodes) = session.nodes(&cluster, &args.source, args.capture.as_deref()).await?;
    let (nodes, left_out) = chosen(&cluster, nodes, &args.node)?;
    let config = session.config.clusters.get(&cluster);
    let span = |said: Option<Span>, configured: Option<Span>, default| said.or(configured).map_or(default, |span| span.0);
    let uuid = SnapshotId::new_v4();
    let options = SnapshotOptions {
        uuid,
        cluster: cluster.clone(),
        store: store.clone(),
        cut_kind: if store == "redis" { CutKind::Frozen } else { CutKind::None },
        pause: span(args.max_pause, config.and_then(|config| config.max_pause), MAX_PAUSE),
        patience: span(args.patience, config.and_then(|config| config.patience), PATIENCE),
        partial: args.partial,
        left_out: left_out.into_iter().map(|node| node.name).collect(),
        adopt: args.adopt,
        tags,
    };
    let Assembled { services, reads, by_agents } = assemble(session, &args, &repository, &options, &nodes).await?;
    session.output.note(&format!("snapshot {uuid} of {cluster}: {} nodes", nodes.len()));
    if !by_agents.is_empty() {
        let here = nodes.len() - by_agents.len();
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
    let coordinator = Coordinator::new(repository, session.clock.clone(), options, services, interruption(), Box::new(on_phase));
    let running = coordinator.run();
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

/// Who acts for the nodes of a run.
struct Assembled {
    services: Vec<Box<dyn NodeService>>,
    /// What was read for the upload so far, for the progress bar.
    reads: Vec<ReadBytes>,
    /// Nodes whose data goes from their own host to the object store, and their agents.
    by_agents: Vec<String>,
}

/// For each node its agent, or else a driver and an upload of this process.
async fn assemble(
    session: &Session,
    args: &SnapshotArgs,
    repository: &Arc<Repository>,
    options: &SnapshotOptions,
    nodes: &[ClusterNode],
) -> Result<Assembled, Failure> {
    let (cluster, uuid) = (&options.cluster, options.uuid);
    let writing = WriterOptions::new(session.level(), session.uploads());
    let progress = writing.progress.clone();
    let mut assembled = Assembled {
        services: Vec::new(),
        reads: vec![Box::new(move || progress.read_bytes.load(Ordering::Relaxed))],
        by_agents: Vec::new(),
    };
    let mut couriers = Couriers::new(session);
    let mut parents = Parents::new(repository.clone(), cluster.clone());
    let served = linked::served(session, cluster)?;
    // What the command line names is reached from here.
    let config = session.config.clusters.get(cluster).filter(|_| args.source.redis.is_empty() && args.source.files.is_empty());
    let limits = session.config.clusters.get(cluster).map(|config| config.limits).unwrap_or_default();
    for node in nodes {
        if let Some(url) = config.and_then(|config| agents::address(config, node)) {
            if args.capture.is_some() {
                return Err(Failure::usage(format!("--capture: {} is captured by its agent, {url}", node.name))
                    .hint(format!("write capture under [clusters.{cluster}] into the agent's configuration")));
            }
            let (courier, clock) = (couriers.to(&url)?, session.clock.clone());
            let id = repository.descriptor().repository;
            let remote = RemoteNode::new(courier, clock, id, cluster.clone(), node.name.clone(), uuid);
            let read_bytes = remote.read_bytes();
            assembled.reads.push(Box::new(move || read_bytes.load(Ordering::Relaxed)));
            assembled.services.push(Box::new(remote));
            assembled.by_agents.push(format!("{} by {url}", node.name));
            continue;
        }
        let capture = NodeCapture {
            repository: repository.clone(),
            cluster: cluster.clone(),
            node: node.name.clone(),
            snapshot: uuid,
            parent: parents.of(&node.name).await?,
            options: limits.apply(&writing)?,
            spool: limits.spool(&session.state_directory()),
        };
        assembled.services.push(Box::new(LocalNode::new(node.driver(&session.clock, &served)?, capture)));
    }
    Ok(assembled)
}

/// Where the object store refuses no second writer, nothing tells two coordinators apart: one host takes the snapshots. What is
/// worth knowing when all is well.
fn check_coordinator(
    cluster: &ClusterName,
    keeps_conditions: bool,
    configured: Option<&str>,
    host: &str,
) -> Result<Option<String>, Failure> {
    match configured {
        _ if keeps_conditions => Ok(None),
        Some(coordinator) if coordinator == host => Ok(None),
        Some(coordinator) => {
            let reason = format!(
                "cluster {cluster}: this object store refuses no second writer, so its snapshots are taken on {coordinator} alone, and this is {host}"
            );
            Err(Failure::new("refused", reason)
                .hint(format!("run it there, or change `coordinator` under [clusters.{cluster}] on all hosts")))
        }
        None => Ok(Some(format!(
            "warning: this object store refuses no second writer: take snapshots of {cluster} on one host alone, and name it as `coordinator` under [clusters.{cluster}]"
        ))),
    }
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

/// The nodes that were named, or all; and the others.
fn chosen(
    cluster: &ClusterName,
    nodes: Vec<ClusterNode>,
    names: &[String],
) -> Result<(Vec<ClusterNode>, Vec<ClusterNode>), Failure> {
    if let Some(unknown) = names.iter().find(|name| !nodes.iter().any(|node| node.name.as_str() == *name)) {
        let known: Vec<_> = nodes.iter().map(|node| node.name.to_string()).collect();
        return Err(Failure::new("not_found", format!("{cluster} has no node {unknown}"))
            .hint(format!("its nodes: {}", known.join(", "))));
    }
    Ok(nodes.into_iter().partition(|node| names.is_empty() || names.iter().any(|name| node.name.as_str() == name)))
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
        text.push_str(&format!("  {}: {}\n", node.name, node.reason.as_deref().unwrap_or("not stored")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_conditions_one_host_takes_the_snapshots() {
        let cluster = ClusterName::new("prod").expect("legal");
        let check = |keeps_conditions, configured| check_coordinator(&cluster, keeps_conditions, configured, "db-1");
        assert_eq!(check(true, Some("db-2")).expect("leases tell them apart"), None);
        assert_eq!(check(false, Some("db-1")).expect("it is this one"), None);
        let refused = check(false, Some("db-2")).expect_err("it is another one");
        assert!(refused.message.contains("taken on db-2 alone, and this is db-1"), "{}", refused.message);
        let warning = check(false, None).expect("nobody said which").expect("a warning");
        assert!(warning.contains("`coordinator` under [clusters.prod]"), "{warning}");
    }
}
