//! SIGHUP: a daemon reads its configuration again while it serves.
//!
//! What can change at run time does: the log, the deadline (no longer than at the start, since work under way ends by that),
//! and how the repository is reached: passphrase, keys, credentials, endpoint. All else needs a restart, and is said to.
//!
//! **Invariants.** What cannot be read or opened changes nothing: the old goes on. Another repository is never slipped under
//! a mount that has shown one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::daemon::MountRequest;
use super::failure::Failure;
use super::notify::Supervisor;
use super::telemetry;
use super::wiring::Session;
use crate::model::extent::{Extent, SegmentRun};
use crate::model::manifest::ClusterManifest;
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::object::Breaker;
use crate::repo::{ListedSnapshot, NodeTree, PlacedEntry, RepoError, Repository, SnapshotSource};

/// A repository that may be opened anew behind those who read from it.
#[derive(Debug)]
pub struct Renewable {
    current: RwLock<(Arc<Repository>, Arc<Breaker>)>,
}

impl Renewable {
    /// Begins with this one.
    pub fn new(repository: Arc<Repository>, store: Arc<Breaker>) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new((repository, store)) })
    }

    /// The repository as it is opened now.
    pub(super) fn current(&self) -> Arc<Repository> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// For how long its store has not answered; `None` while it does.
    pub fn away_for(&self) -> Option<Duration> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).1.away_for()
    }

    /// From now on this one is read from; it has to be the same repository.
    fn renew(&self, (repository, store): (Arc<Repository>, Arc<Breaker>)) -> Result<(), Failure> {
        if repository.descriptor().repository != self.current().descriptor().repository {
            return Err(Failure::usage(format!("{} is another repository", repository.location()))
                .hint("restart the daemon for another one"));
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (repository, store);
        Ok(())
    }
}

#[async_trait]
impl SnapshotSource for Renewable {
    async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        self.current().clusters().await
    }

    async fn snapshots(&self, cluster: &ClusterName) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.current().snapshots(cluster).await
    }

    async fn newest(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.current().newest(cluster, limit).await
    }

    async fn manifest(&self, snapshot: &ListedSnapshot) -> Result<Arc<ClusterManifest>, RepoError> {
        SnapshotSource::manifest(&*self.current(), snapshot).await
    }

    async fn open_node(&self, snapshot: &Arc<ClusterManifest>, node: &NodeName) -> Result<NodeTree, RepoError> {
        self.current().open_node(snapshot, node).await
    }

    async fn entry(&self, tree: &NodeTree, path: &TreePath) -> Result<Option<PlacedEntry>, RepoError> {
        self.current().entry(tree, path).await
    }

    async fn directory(&self, tree: &NodeTree, path: &TreePath) -> Result<Vec<PlacedEntry>, RepoError> {
        self.current().directory(tree, path).await
    }

    async fn segments(&self, tree: &NodeTree, file: &PlacedEntry, offset: u64) -> Result<Option<Arc<SegmentRun>>, RepoError> {
        self.current().segments(tree, file, offset).await
    }

    async fn read_blocks(&self, tree: &NodeTree, extents: &[Extent]) -> Result<Vec<Bytes>, RepoError> {
        self.current().read_blocks(tree, extents).await
    }

    fn is_block(&self, tree: &NodeTree, extent: &Extent, plain: &[u8]) -> bool {
        self.current().is_block(tree, extent, plain)
    }
}

/// What one daemon renews at each SIGHUP.
#[derive(Debug)]
pub struct Renewal {
    /// What it serves from.
    pub source: Arc<Renewable>,
    /// How it was asked to serve, which options of the command line override.
    pub request: MountRequest,
    /// Where a new deadline goes.
    pub deadline: watch::Sender<Duration>,
    /// Who is told.
    pub supervisor: Supervisor,
}

impl Renewal {
    /// Renews at every SIGHUP, for ever. The signal is caught from the call on. Must be called within a runtime.
    pub fn at_every_signal(self, session: &Session) -> impl Future<Output = ()> + Send + 'static {
        let (caught, common) = (signal(SignalKind::hangup()), session.common.clone());
        async move {
            let Ok(mut caught) = caught.inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be caught")) else { return };
            while caught.recv().await.is_some() {
                self.supervisor.reloading();
                let renewed = match Session::begin(common.clone()) {
                    Ok(session) => self.renew(&session).await,
                    Err(failure) => Err(failure),
                };
                let status = match renewed {
                    Ok(()) => self.request.status(),
                    Err(failure) => {
                        tracing::error!(%failure, hint = failure.hint, "the configuration was not renewed, the old one goes on");
                        format!("{}; not renewed: {failure}", self.request.status())
                    }
                };
                self.supervisor.ready(&status.replace('\n', " "));
            }
        }
    }

    async fn renew(&self, session: &Session) -> Result<(), Failure> {
        let log = telemetry::parse(session.config.log.as_deref())?;
        let (request, longest) = (self.request.renewed(session)?, self.request.deadline());
        // The last thing that can go wrong, so that all of it changes or nothing.
        self.source.renew(session.lasting_repository(longest).await?)?;
        telemetry::renew(log);
        let restart = self.request.needs_restart(&request);
        if !restart.is_empty() {
            tracing::warn!(changed = restart.join(", "), "takes effect when the daemon is started again");
        }
        if request.deadline() > longest {
            tracing::warn!(?longest, "a longer deadline takes effect when the daemon is started again");
        }
        self.deadline.send_replace(request.deadline().min(longest));
        tracing::info!(deadline = ?request.deadline().min(longest), "the configuration was read again");
        Ok(())
    }
}
