//! What the agent of this host does in a restore: each node as its own configuration has it, its own plan, and how a restore ended
//! whose coordinator is not heard any more.

use std::sync::Arc;

use async_trait::async_trait;

use super::super::control::linking::{self, Hydration, LinkHost};
use super::super::control::restore::{self, RestoreTarget};
use super::super::control_args::CommonArgs;
use super::super::failure::Failure;
use super::super::local_restore::{LocalRestoreNode, StoredSnapshot};
use super::super::wiring::Session;
use super::opened::OpenedRepository;
use crate::agent::restore::RestoreNode;
use crate::agent::restore_desk::{RestoreFactory, Verdict};
use crate::agent::restore_orders::{RestoreTicket, Subject, Wish};
use crate::base::SystemClock;
use crate::cluster::restore_decision::{Decided, RestoreDecision};
use crate::model::names::NodeName;
use crate::model::restore_plan::{Method, NodePlan, RestorePlan, RestoreRequest};
use crate::node::{RunLimit, StateDirectory};
use crate::repo::{Repository, SnapshotSource};

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

    async fn assigned(&self, ticket: &RestoreTicket) -> Result<LocalRestoreNode, Failure> {
        let session = self.session()?;
        let (cluster, node) = (&ticket.cluster, &ticket.node);
        let nodes = session.configured_nodes(cluster)?;
        let known = nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
        let found = nodes.into_iter().find(|found| found.name == *node);
        let found = found.ok_or_else(|| Failure::usage(format!("its agent knows these nodes of {cluster}: {known}")))?;
        let state = StateDirectory::open(&session.state_directory()).map_err(|error| Failure::new("state", error.to_string()))?;
        linking::sweep(&session, &state).await?;
        let failed = |error: anyhow::Error| Failure::new("restore", format!("{error:#}"));
        for recovered in restore::recover_interrupted(&state).await.map_err(failed)? {
            let record = &recovered.record;
            tracing::warn!(cluster = record.cluster, node = record.node, restore = %record.id, outcome = ?recovered.outcome, "an interrupted restore was found");
        }
        let snapshot = match &ticket.subject {
            // What it is to be restored from is said later.
            Some(subject) => Some(Arc::new(self.stored(&session, subject, &[], Method::Copy).await?)),
            None => None,
        };
        let target = RestoreTarget::here(found, LinkHost::new(&session, Hydration::wanted()));
        restore::local(cluster.as_str(), &target, &state, self.runs.clone(), snapshot, session.clock.clone()).map_err(failed)
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

fn told(failure: &Failure) -> String {
    failure.hint.as_ref().map_or_else(|| failure.to_string(), |hint| format!("{failure} ({hint})"))
}

#[async_trait]
impl RestoreFactory for HostRestores {
    async fn assign(&self, ticket: &RestoreTicket) -> Result<Arc<dyn RestoreNode>, String> {
        self.assigned(ticket).await.map(|node| Arc::new(node) as Arc<dyn RestoreNode>).map_err(|failure| told(&failure))
    }

    async fn plan(&self, ticket: &RestoreTicket, node: &dyn RestoreNode, wish: &Wish) -> Result<NodePlan, String> {
        self.planned(ticket, node, wish).await.map_err(|failure| told(&failure))
    }

    async fn verdict(&self, ticket: &RestoreTicket) -> Result<Verdict, String> {
        self.decided(ticket).await.map_err(|failure| told(&failure))
    }
}
