//! What the agent of this host does in a restore: each node as its own configuration has it, its own plan, and how a restore ended
//! whose coordinator is not heard any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::super::control::linking::{self, Hydration, LinkHost};
use super::super::control::restore::{self, RestoreTarget};
use super::super::control_args::CommonArgs;
use super::super::failure::Failure;
use super::super::local_restore::{LocalRestoreNode, StoredSnapshot};
use super::super::wiring::Session;
use super::opened::OpenedRepository;
use crate::agent::SILENCE_MAX;
use crate::agent::restore::RestoreNode;
use crate::agent::restore_desk::{RestoreFactory, Verdict};
use crate::agent::restore_orders::{RestoreTicket, Subject, Wish};
use crate::base::SystemClock;
use crate::cluster::restore_decision::{Decided, RestoreDecision};
use crate::model::names::{ClusterName, NodeName};
use crate::model::restore_plan::{Method, NodePlan, RestorePlan, RestoreRequest};
use crate::node::{RunLimit, StateDirectory, Step};
use crate::repo::{Repository, SnapshotSource};

/// Between two questions to a repository that does not answer.
const RETRY: Duration = Duration::from_secs(10);

/// The restores of the nodes of this host.
#[derive(Debug)]
pub(super) struct HostRestores {
    common: CommonArgs,
    repository: Arc<OpenedRepository>,
    /// Runs under way, of all nodes together.
    runs: RunLimit,
}

impl HostRestores {
    pub fn new(common: CommonArgs, repository: Arc<OpenedRepository>) -> Self {
        Self { common, repository, runs: RunLimit::default() }
    }

    /// Read anew each time: what was changed in it holds from the next restore on.
    fn session(&self) -> Result<Session, Failure> {
        Session::begin(self.common.clone())
    }

    async fn stored(
        &self,
        session: &Session,
        subject: &Subject,
        wanted: &[NodeName],
        method: Method,
    ) -> Result<StoredSnapshot, Failure> {
        let repository = self.repository(session, subject).await?;
        let listed = repository.snapshots(&subject.cluster).await?.into_iter().find(|listed| listed.uuid == subject.snapshot);
        let listed = listed.ok_or_else(|| {
            let (url, cluster) = (session.url().unwrap_or_default(), &subject.cluster);
            Failure::new("not_found", format!("{url} has no snapshot {} of {cluster}", subject.snapshot))
        })?;
        StoredSnapshot::read(repository, &listed, wanted, method)
            .await
            .map_err(|error| Failure::new("restore", format!("{error:#}")))
    }

    async fn assigned(&self, ticket: &RestoreTicket, reads: bool) -> Result<LocalRestoreNode, Failure> {
        let session = self.session()?;
        let (cluster, node) = (&ticket.cluster, &ticket.node);
        let nodes = session.configured_nodes(cluster)?;
        let known = nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
        let found = nodes.into_iter().find(|found| found.name == *node);
        let found = found.ok_or_else(|| Failure::usage(format!("its agent knows these nodes of {cluster}: {known}")))?;
        let state = StateDirectory::open(&session.state_directory()).map_err(|error| Failure::new("state", error.to_string()))?;
        // What another node has left must not keep this one from going back.
        if let Err(failure) = linking::sweep(&session, &state).await {
            tracing::warn!(%failure, "what served links stays; the next restore takes it away");
        }
        let failed = |error: anyhow::Error| Failure::new("restore", format!("{error:#}"));
        log_recovered(&state).await;
        let snapshot = match ticket.subject.as_ref().filter(|_| reads) {
            // What it is to be restored from is said later.
            Some(subject) => Some(Arc::new(self.stored(&session, subject, &[], Method::Copy).await?)),
            None => None,
        };
        let target = RestoreTarget::here(found, LinkHost::new(&session, Hydration::wanted()));
        restore::local(cluster.as_str(), &target, &state, self.runs.clone(), snapshot, session.clock.clone()).map_err(failed)
    }

    /// Sees to what was left by a process that died, once its coordinator has had time to do so: asked until the repository says.
    pub async fn see_to_what_was_left(self: Arc<Self>) {
        tokio::time::sleep(SILENCE_MAX).await;
        loop {
            match self.see_to_all().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(failure) => tracing::warn!(reason = told(&failure), "what interrupted restores have left waits"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether nothing is left.
    async fn see_to_all(&self) -> Result<bool, Failure> {
        let session = self.session()?;
        let failed = |error: String| Failure::new("restore", error);
        let state = StateDirectory::open(&session.state_directory()).map_err(|error| failed(error.to_string()))?;
        log_recovered(&state).await;
        let mut is_all = true;
        for record in state.records().map_err(|error| failed(error.to_string()))? {
            let is_left = record.is_over_hosts && (record.step == Step::Swapped || record.is_begun() && record.was_stopped);
            // Whoever is at work on it sees to it.
            if !is_left || state.lock(&record.directory, Duration::ZERO).is_err() {
                continue;
            }
            let ticket = RestoreTicket {
                cluster: ClusterName::new(record.cluster.clone())?,
                node: NodeName::new(record.node.clone())?,
                restore: record.restore_id(),
                subject: None,
            };
            let node = self.assigned(&ticket, false).await?;
            let repository = self.repository.get(&session, None).await?;
            match restore::see_to(repository, session.clock.clone(), &record, &node).await {
                Ok(became) => {
                    tracing::warn!(cluster = record.cluster, node = record.node, restore = %record.restore_id(), became, "an interrupted restore has ended")
                }
                Err(error) => {
                    is_all = false;
                    tracing::warn!(error = format!("{error:#}"), "an interrupted restore has not ended yet");
                }
            }
        }
        Ok(is_all)
    }

    /// The repository that the subject is of, and no other.
    async fn repository(&self, session: &Session, subject: &Subject) -> Result<Arc<Repository>, Failure> {
        let repository = self.repository.get(session, Some(subject.repository)).await?;
        let ours = repository.descriptor().repository;
        if ours != subject.repository {
            let url = session.url().unwrap_or_default();
            let reason = format!("its agent reads another repository, {url} ({ours}, not {})", subject.repository);
            return Err(Failure::usage(reason));
        }
        Ok(repository)
    }

    async fn planned(&self, ticket: &RestoreTicket, node: &dyn RestoreNode, wish: &Wish) -> Result<NodePlan, Failure> {
        let subject = ticket.subject.as_ref().ok_or_else(|| Failure::usage("no snapshot was named"))?;
        let stored = self.stored(&self.session()?, subject, std::slice::from_ref(&wish.source), wish.method).await?;
        let source = stored.nodes.iter().find(|facts| facts.node == wish.source);
        let source = source.ok_or_else(|| Failure::new("not_found", format!("the snapshot has no node {}", wish.source)))?;
        let request = RestoreRequest {
            target_cluster: ticket.cluster.to_string(),
            method: wish.method,
            discard_current: wish.discard_current,
            confirm: wish.confirm.clone(),
            ..RestoreRequest::default()
        };
        let seen = node.inspect().await;
        let plan = RestorePlan::of_target(ticket.restore, &stored.manifest, source, &seen, wish.content, &request);
        plan.map_err(|refusals| Failure::new("refused", refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }

    async fn decided(&self, ticket: &RestoreTicket) -> Result<Verdict, Failure> {
        let Some(subject) = &ticket.subject else { return Ok(Verdict::Unknown) };
        let repository = self.repository(&self.session()?, subject).await?;
        let (source, target) = (subject.cluster.clone(), ticket.cluster.clone());
        let clock = Arc::new(SystemClock::default());
        let decision = RestoreDecision::of_restore(repository.clone(), clock, ticket.restore, source, target);
        let reason = format!("{}: its coordinator was not heard any more", ticket.node);
        Ok(match decision.undone(&reason).await {
            Decided::Restored => Verdict::Restored,
            Decided::Undone(_) => Verdict::Undone,
            Decided::Unknown(reason) if repository.keeps_conditions() => return Err(Failure::new("unavailable", reason)),
            Decided::Unknown(_) => Verdict::Unknown,
        })
    }
}

/// Finishes or undoes what a process that died has left half-way; what it cannot is told, and refused where it matters.
async fn log_recovered(state: &StateDirectory) {
    match restore::recover_interrupted(state).await {
        Ok(recovered) => recovered.iter().for_each(|recovered| {
            let record = &recovered.record;
            tracing::warn!(cluster = record.cluster, node = record.node, restore = %record.id, outcome = ?recovered.outcome, "an interrupted restore was found");
        }),
        Err(error) => tracing::error!(error = format!("{error:#}"), "what interrupted restores have left cannot be recovered"),
    }
}

fn told(failure: &Failure) -> String {
    failure.hint.as_ref().map_or_else(|| failure.to_string(), |hint| format!("{failure} ({hint})"))
}

#[async_trait]
impl RestoreFactory for HostRestores {
    async fn assign(&self, ticket: &RestoreTicket, reads: bool) -> Result<Arc<dyn RestoreNode>, String> {
        self.assigned(ticket, reads).await.map(|node| Arc::new(node) as Arc<dyn RestoreNode>).map_err(|failure| told(&failure))
    }

    async fn plan(&self, ticket: &RestoreTicket, node: &dyn RestoreNode, wish: &Wish) -> Result<NodePlan, String> {
        self.planned(ticket, node, wish).await.map_err(|failure| told(&failure))
    }

    async fn verdict(&self, ticket: &RestoreTicket) -> Result<Verdict, String> {
        self.decided(ticket).await.map_err(|failure| told(&failure))
    }
}
