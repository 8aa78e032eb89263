//! `backup` of the interface of Dynomite-manager: one snapshot of a cluster, whichever of its hosts are asked for it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::wiring::{ClusterNode, Session};
use super::manager::{HostManager, Last, POLL, broken, failed};
use crate::agent::dynomite_manager::{ManagerAnswer, ManagerError};
use crate::agent::fleet::{FleetError, FleetErrorKind, FleetService, SnapshotWish};
use crate::model::ids::SnapshotId;
use crate::model::manifest::NodeStatus;
use crate::repo::SnapshotSource;

/// How often the repository is asked how another host's snapshot fares.
const FAR_POLL: Duration = Duration::from_secs(2);
/// It is waited for so long.
const FAR_LIMIT: Duration = Duration::from_secs(4 * 3600);

impl HostManager {
    /// A snapshot of the whole cluster, whose outcome is the answer. One that is under way is waited for.
    pub(super) async fn back_up(&self) -> Result<ManagerAnswer, ManagerError> {
        let session = self.session()?;
        self.remember(|last| last.backup = Last { word: "pending", at_ms: Self::now_ms(&session) });
        let stored = self.store().await;
        let word = if stored.is_ok() { "completed" } else { "unsuccessful" };
        self.remember(|last| last.backup = Last { word, at_ms: Self::now_ms(&session) });
        stored.map(|()| ManagerAnswer::ok())
    }

    async fn store(&self) -> Result<(), ManagerError> {
        let begun = self.fleet.begin(&self.config.cluster, SnapshotWish::default()).await;
        // Each node was asked at the same hour: one snapshot is of all of them.
        let failed = match begun {
            Ok(uuid) => match self.fare(uuid, POLL).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            Err(FleetError { uuid: Some(uuid), .. }) => return self.fare(uuid, POLL).await,
            Err(error) if error.kind == FleetErrorKind::Conflict => error.into(),
            Err(error) => return Err(error.into()),
        };
        match self.made_elsewhere().await {
            Some(uuid) => {
                tracing::info!(snapshot = %uuid, cluster = %self.config.cluster, "another host makes the snapshot: it is waited for");
                self.fare(uuid, FAR_POLL).await
            }
            None => Err(failed),
        }
    }

    /// The snapshot of the cluster that somebody makes now.
    async fn made_elsewhere(&self) -> Option<SnapshotId> {
        let session = self.session().ok()?;
        let repository = self.repository.get(&session, None).await.ok()?;
        let intents = repository.intents(&self.config.cluster).await.ok()?;
        intents.into_iter().find(|intent| intent.is_alive(session.now())).map(|intent| intent.uuid)
    }

    /// Waits for a snapshot; how the own node fared in it is the answer.
    async fn fare(&self, uuid: SnapshotId, poll: Duration) -> Result<(), ManagerError> {
        let until = Instant::now() + FAR_LIMIT;
        let outcome = loop {
            let outcome = self.fleet.snapshot(uuid).await?;
            if outcome["status"] != "processing" {
                break outcome;
            }
            if poll == FAR_POLL && (Instant::now() >= until || self.is_stopping.load(Ordering::SeqCst)) {
                return Err(broken(format!(
                    "snapshot {uuid} of {} is made by another host, and has not ended",
                    self.config.cluster
                )));
            }
            tokio::time::sleep(poll).await;
        };
        let (own, _) = self.nodes(&self.session()?)?;
        let node = &outcome["nodes"][own.stored_name().map_err(failed)?.as_str()];
        // One without other nodes is whole for this one.
        if matches!(outcome["status"].as_str(), Some("completed" | "partial")) && node["status"] == "completed" {
            return Ok(());
        }
        let reason = node["reason"].as_str().or(outcome["reason"].as_str()).unwrap_or("the node is no part of it");
        Err(broken(format!("snapshot {uuid} of {}: {}: {reason}", self.config.cluster, outcome["status"])))
    }

    /// What the repository has counts, whoever stored it, but for what failed or began after it.
    pub(super) async fn last_backup(&self, session: &Session, own: &ClusterNode, known: Last) -> Result<Last, ManagerError> {
        if known.word == "pending" {
            return Ok(known);
        }
        let repository = self.repository.get(session, None).await.map_err(failed)?;
        let listed = repository.snapshots(&self.config.cluster).await.map_err(|error| failed(error.into()))?;
        let Some(newest) = listed.first() else { return Ok(known) };
        let manifest = repository.manifest(newest).await.map_err(|error| failed(error.into()))?;
        let is_stored =
            manifest.node(&own.stored_name().map_err(failed)?).is_some_and(|node| node.status == NodeStatus::Completed);
        let at_ms = manifest.cut_at.0.div_euclid(1000);
        Ok(if at_ms < known.at_ms && known.word != "completed" {
            known
        } else {
            Last { word: if is_stored { "completed" } else { "unsuccessful" }, at_ms }
        })
    }
}
