//! A snapshot that is about to be taken: from what was asked for and the configuration to a coordinator over its nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::agent::{self as agents, Couriers};
use super::config::Span;
use super::control_args::SourceArgs;
use super::failure::Failure;
use super::linked;
use super::local_node::LocalNode;
use super::parents::Parents;
use super::wiring::{ClusterNode, Session};
use crate::agent::NodeService;
use crate::agent::desk::ReadBytes;
use crate::agent::remote::RemoteNode;
use crate::base::Clock;
use crate::base::process::host_name;
use crate::cluster::coordinator::{Coordinator, SnapshotOptions, SnapshotPhase};
use crate::model::ids::SnapshotId;
use crate::model::manifest::CutKind;
use crate::model::names::ClusterName;
use crate::node::NodeCapture;
use crate::repo::{Repository, WriterOptions};

/// Long enough for forks of large stores, short enough for clients' timeouts.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A save of a large store takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is asked for; what it does not say, the configuration says.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    /// Identity of the new snapshot.
    pub uuid: SnapshotId,
    /// The cluster.
    pub cluster: ClusterName,
    /// Where it is, in the place of the configuration.
    pub source: SourceArgs,
    /// Only these nodes; empty: all.
    pub nodes: Vec<String>,
    /// `replication`, `save` or `aof`.
    pub capture: Option<String>,
    /// Longest write pause.
    pub max_pause: Option<Span>,
    /// How long to wait for running saves before it.
    pub patience: Option<Span>,
    /// Publish without nodes that cannot be reached or break.
    pub partial: bool,
    /// Bind the cluster's name anew.
    pub adopt: bool,
    /// The user's own words.
    pub tags: BTreeMap<String, String>,
}

/// A snapshot that can be begun.
#[derive(Debug)]
pub struct PreparedSnapshot {
    /// The nodes that were asked for.
    pub nodes: Vec<ClusterNode>,
    /// Nodes whose data goes from their own host to the object store, and by which agent.
    pub by_agents: Vec<String>,
    /// Worth knowing, and nothing is in the way.
    pub warning: Option<String>,
    /// What takes it.
    pub run: SnapshotRun,
}

/// Who takes a snapshot, of which nodes, and where to.
pub struct SnapshotRun {
    repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
    options: SnapshotOptions,
    services: Vec<Box<dyn NodeService>>,
    reads: Vec<ReadBytes>,
}

impl fmt::Debug for SnapshotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotRun").field("options", &self.options).finish_non_exhaustive()
    }
}

impl SnapshotRun {
    /// Plain bytes that are read so far, of all nodes together when added up.
    pub fn reads(&mut self) -> Vec<ReadBytes> {
        std::mem::take(&mut self.reads)
    }

    /// The coordinator. `interrupted` turning true gives the snapshot up.
    pub fn coordinator(
        self,
        interrupted: watch::Receiver<bool>,
        on_phase: Box<dyn Fn(SnapshotPhase) + Send + Sync>,
    ) -> Coordinator {
        Coordinator::new(self.repository, self.clock, self.options, self.services, interrupted, on_phase)
    }
}

/// Finds the nodes and who acts for them. Nothing is asked of a node yet but where the others are.
pub async fn prepare(
    session: &Session,
    repository: Arc<Repository>,
    request: SnapshotRequest,
) -> Result<PreparedSnapshot, Failure> {
    let cluster = &request.cluster;
    let config = session.config.clusters.get(cluster);
    let coordinator = config.and_then(|config| config.coordinator.as_deref());
    let warning = check_coordinator(cluster, repository.keeps_conditions(), coordinator, &host_name())?;
    let (store, nodes) = session.nodes(cluster, &request.source, request.capture.as_deref()).await?;
    let (nodes, left_out) = chosen(cluster, nodes, &request.nodes)?;
    let span = |said: Option<Span>, configured: Option<Span>, default| said.or(configured).map_or(default, |span| span.0);
    let options = SnapshotOptions {
        uuid: request.uuid,
        cluster: cluster.clone(),
        cut_kind: if matches!(store.as_str(), "redis" | "dynomite") { CutKind::Frozen } else { CutKind::None },
        store,
        pause: span(request.max_pause, config.and_then(|config| config.max_pause), MAX_PAUSE),
        patience: span(request.patience, config.and_then(|config| config.patience), PATIENCE),
        partial: request.partial,
        left_out: left_out.into_iter().map(|node| node.name).collect(),
        adopt: request.adopt,
        tags: request.tags.clone(),
    };
    let Assembled { services, reads, by_agents } = assemble(session, &request, &repository, &options, &nodes).await?;
    let run = SnapshotRun { repository, clock: session.clock.clone(), options, services, reads };
    Ok(PreparedSnapshot { nodes, by_agents, warning, run })
}

/// Who acts for the nodes of a run.
struct Assembled {
    services: Vec<Box<dyn NodeService>>,
    reads: Vec<ReadBytes>,
    by_agents: Vec<String>,
}

/// For each node its agent, or else a driver and an upload of this process.
async fn assemble(
    session: &Session,
    request: &SnapshotRequest,
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
    let config =
        session.config.clusters.get(cluster).filter(|_| request.source.redis.is_empty() && request.source.files.is_empty());
    let limits = session.config.clusters.get(cluster).map(|config| config.limits).unwrap_or_default();
    for node in nodes {
        if let Some(url) = config.and_then(|config| agents::address(config, node)) {
            if request.capture.is_some() {
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
