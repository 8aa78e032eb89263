//! What the agent of this host does: for each node that the configuration has, a driver and the node's own upload.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use super::super::control_args::{CommonArgs, SourceArgs};
use super::super::failure::Failure;
use super::super::linked;
use super::super::local_node::LocalNode;
use super::super::parents::Parents;
use super::super::wiring::Session;
use super::Door;
use super::fleet::HostFleet;
use super::manager::Manager;
use super::opened::OpenedRepository;
use super::restores::HostRestores;
use crate::agent::desk::{Assigned, Desk, NodeFactory};
use crate::agent::restore_desk::RestoreDesk;
use crate::agent::server::{self, RustlsConfig};
use crate::agent::tls::{self, TlsFiles};
use crate::agent::{NodeError, NodeErrorKind, Ticket};
use crate::base::{SystemClock, durable};
use crate::node::NodeCapture;
use crate::repo::{Progress, WriterOptions};

/// An agent that has its port.
#[derive(Debug)]
pub struct HostAgent {
    door: Door,
    tls: Option<RustlsConfig>,
    listener: TcpListener,
    nodes: Arc<HostNodes>,
    manager: Option<Manager>,
}

impl HostAgent {
    /// Takes the port of `[agent]`, so that a second agent is told at once.
    pub fn bind(session: &Session, listen: &str) -> Result<Self, Failure> {
        let door = Door::open(session, listen)?;
        let tls = door.tls.as_ref().map(certificates).transpose()?.map(RustlsConfig::from_config);
        let listener = TcpListener::bind(door.address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listener.map_err(|error| {
            let failure = Failure::new("system", format!("[agent] listen = {listen:?}: {error}"));
            match error.kind() {
                ErrorKind::AddrInUse => failure.hint("is another tintyped running? choose another port, or end that one"),
                _ => failure.hint("say an address of this host"),
            }
        })?;
        let nodes = HostNodes {
            common: session.common.clone(),
            writing: WriterOptions::new(session.level(), session.uploads()),
            repository: Arc::default(),
        };
        let manager = session.config.agent.dynomite_manager.as_ref().map(Manager::bind).transpose()?;
        Ok(Self { door, tls, listener, nodes: Arc::new(nodes), manager })
    }

    /// For the supervisor's list of units.
    pub fn status(&self) -> String {
        format!("agent on {}", self.door.address)
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
        tracing::info!(address = %self.door.address, tls = self.tls.is_some(), "the agent takes orders");
        let clock = Arc::new(SystemClock::default());
        let fleet = HostFleet::new(self.nodes.common.clone(), self.nodes.repository.clone());
        let (end, ended) = watch::channel(false);
        let manager = self.manager.map(|manager| {
            let (common, repository) = (self.nodes.common.clone(), self.nodes.repository.clone());
            tokio::spawn(manager.serve(common, fleet.clone(), repository, raised(ended)))
        });
        let stop = async move {
            stop.await;
            end.send_replace(true);
        };
        let restores = HostRestores::new(self.nodes.common.clone(), self.nodes.repository.clone());
        let restores = Arc::new(restores);
        let left = tokio::spawn(restores.clone().see_to_what_was_left());
        let restores = Arc::new(RestoreDesk::new(restores, clock.clone()));
        let desk = Arc::new(Desk::new(self.nodes, clock));
        let renewing = tokio::spawn(renew(self.tls.clone().zip(self.door.tls)));
        let served = server::serve(self.listener, self.tls, self.door.token, (desk, restores), fleet, stop).await;
        renewing.abort();
        left.abort();
        if let Some(manager) = manager {
            let _panicked = manager.await;
        }
        served.map_err(|error| Failure::new("system", format!("the agent: {error}")))
    }
}

async fn raised(mut flag: watch::Receiver<bool>) {
    let _over_too = flag.wait_for(|raised| *raised).await;
}

fn certificates(files: &TlsFiles) -> Result<Arc<ServerConfig>, Failure> {
    let config = tls::server(files).map(Arc::new);
    config.map_err(|reason| Failure::usage(format!("[agent] tls: {reason}")).hint("cert, key and ca are files in PEM"))
}

/// Reads the certificates again at every SIGHUP: they are renewed more often than hosts are restarted. Everything else is read
/// anew for each snapshot.
async fn renew(tls: Option<(RustlsConfig, TlsFiles)>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        let Some((config, files)) = &tls else { continue };
        match certificates(files) {
            Ok(renewed) => {
                config.reload_from_config(renewed);
                tracing::info!("the agent's certificates were read again");
            }
            Err(failure) => tracing::error!(%failure, "the agent goes on with the certificates that it has"),
        }
    }
}

/// The nodes of this host's configuration.
#[derive(Debug)]
struct HostNodes {
    common: CommonArgs,
    /// Blocks and packs in flight, of all nodes together.
    writing: WriterOptions,
    repository: Arc<OpenedRepository>,
}

impl HostNodes {
    async fn assigned(&self, ticket: &Ticket) -> Result<Assigned, NodeError> {
        let (cluster, node) = (&ticket.cluster, &ticket.node);
        let refused = |reason: String| NodeError::new(NodeErrorKind::Refused, format!("{node}: {reason}"));
        let failed = |failure: Failure| {
            let kind = match failure.code.as_ref() {
                "unreachable" | "deadline" => NodeErrorKind::Unreachable,
                "unavailable" | "corrupt" | "no_store" | "no_repository" => NodeErrorKind::Repository,
                _ => NodeErrorKind::Refused,
            };
            let hint = failure.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            NodeError::new(kind, format!("{node}: its agent: {failure}{hint}"))
        };
        // Read anew each time: what was changed in it holds from the next snapshot on.
        let session = Session::begin(self.common.clone()).map_err(failed)?;
        let Some(config) = session.config.clusters.get(cluster) else {
            return Err(refused(format!("cluster {cluster} is not in its agent's configuration")));
        };
        let repository = self.repository.get(&session, Some(ticket.repository)).await.map_err(failed)?;
        let ours = repository.descriptor().repository;
        if ours != ticket.repository {
            let url = session.url().unwrap_or_default();
            return Err(refused(format!("its agent stores into another repository, {url} ({ours}, not {})", ticket.repository)));
        }
        let (_, nodes) = session.nodes(cluster, &SourceArgs::default(), None).await.map_err(failed)?;
        let Some(found) = nodes.iter().find(|found| found.name == *node) else {
            let known: Vec<_> = nodes.iter().map(|node| node.name.to_string()).collect();
            return Err(refused(format!("its agent knows these nodes of {cluster}: {}", known.join(", "))));
        };
        remember_epoch(&session, ticket)?;
        let served = linked::served(&session, cluster).map_err(failed)?;
        let driver = found.driver(&session.clock, &served).map_err(failed)?;
        let progress: Arc<Progress> = Arc::default();
        let capture = NodeCapture {
            repository: repository.clone(),
            cluster: cluster.clone(),
            node: node.clone(),
            snapshot: ticket.snapshot,
            parent: Parents::new(repository, cluster.clone()).of(node).await.map_err(failed)?,
            options: WriterOptions { progress: progress.clone(), ..config.limits.apply(&self.writing).map_err(failed)? },
            spool: config.limits.spool(&session.state_directory()),
        };
        let read_bytes = Box::new(move || progress.read_bytes.load(Ordering::Relaxed));
        Ok(Assigned { node: Box::new(LocalNode::new(driver, capture)), read_bytes })
    }
}

#[async_trait]
impl NodeFactory for HostNodes {
    async fn assign(&self, ticket: &Ticket) -> Result<Assigned, NodeError> {
        self.assigned(ticket).await
    }
}

/// Writes the ticket's epoch down, or refuses one that is older than what is written: a coordinator that has lost its lease
/// may come back after this host was restarted.
fn remember_epoch(session: &Session, ticket: &Ticket) -> Result<(), NodeError> {
    // Each repository counts its own.
    let repository = session.state_directory().join("epochs").join(ticket.repository.to_string());
    let directory: PathBuf = repository.join(ticket.cluster.as_str());
    let path = directory.join(ticket.node.as_str());
    let failed = |error: &dyn std::fmt::Display| {
        let reason = format!("{}: its agent: {}: {error}", ticket.node, path.display());
        NodeError::new(NodeErrorKind::Refused, reason)
    };
    let known: u64 = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|error| failed(&error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(&error)),
    };
    if ticket.epoch < known {
        let reason =
            format!("{}: a later coordinator (epoch {known}) has taken over from this one (epoch {})", ticket.node, ticket.epoch);
        return Err(NodeError::new(NodeErrorKind::Refused, reason));
    }
    if ticket.epoch == known {
        return Ok(());
    }
    let write = || {
        std::fs::create_dir_all(&directory)?;
        durable::replace(&path, format!("{}\n", ticket.epoch).as_bytes())
    };
    write().map_err(|error: std::io::Error| failed(&error))
}
