//! Intents: a writer announces itself, so that two do not work on one cluster unknowingly and prune knows what is in use.
//!
//! An intent is a claim with an expiry, renewed while its writer lives. It is advice for people and for prune, not what
//! keeps snapshots whole: that is the order of writing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::LeaseGuard;
use super::repository::Repository;
use super::seal::SealType;
use super::writer::{RENEWAL, RETRY, Writer, expiry};
use super::{Lease, RepoError, RunRecord, layout};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::Timestamp;
use crate::object::{ObjectError, PutMode, list_all};

/// A writer at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The snapshot being made.
    pub uuid: SnapshotId,
    /// When it began.
    pub started_at: Timestamp,
    /// After this it is dead.
    pub expires_at: Timestamp,
    /// Who it is.
    #[serde(flatten)]
    pub writer: Writer,
    /// The snapshot whose blocks are reused.
    pub parent: Option<SnapshotId>,
    /// The nodes that are asked for; empty where its writer is of a version that did not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeName>,
}

/// A new one.
fn own(writer: Writer, uuid: SnapshotId, parent: Option<SnapshotId>, nodes: Vec<NodeName>, now: Timestamp) -> Intent {
    Intent { uuid, started_at: now, expires_at: expiry(now), writer, parent, nodes }
}

/// Nobody can say what an intent claims that is damaged or of a newer version, and backups must go on.
fn readable<T>(read: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
    match read {
        Ok(intent) => Ok(Some(intent)),
        Err(error @ (RepoError::Corrupt { .. } | RepoError::TooNew { .. })) => {
            tracing::warn!(%error, "the intent of another writer cannot be read and is passed over");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Intent {
    /// The writer may still be at work: not past its expiry, and not a process of this boot that is known to be gone. One that
    /// runs is no proof: a daemon outlives its runs, and may have been unable to take the intent of one back.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        match self.writer.runs() {
            Some(false) => false,
            Some(true) | None => now < self.expires_at,
        }
    }
}

/// Keeps an intent renewed; dropping it (or the process) lets it expire, [`IntentGuard::release`] removes it at once.
#[derive(Debug)]
pub struct IntentGuard {
    repository: Arc<Repository>,
    key: String,
    clock: Arc<dyn Clock>,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for IntentGuard {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl IntentGuard {
    /// Removes the intent: the work is over, well or badly. Where that fails it is tried again for as long as the intent may last.
    pub async fn release(self) {
        self.renewal.abort();
        if let Err(error) = self.repository.store().delete(&self.key).await {
            tracing::warn!(%error, "the intent could not be removed; it is tried again, and it will expire by itself");
            let (repository, key, clock) = (self.repository.clone(), self.key.clone(), self.clock.clone());
            let ends = expiry(Timestamp(clock.wall_us()));
            tokio::spawn(async move {
                while Timestamp(clock.wall_us()) < ends {
                    clock.sleep(RETRY).await;
                    if repository.store().delete(&key).await.is_ok() {
                        return;
                    }
                }
            });
        }
    }
}

impl Repository {
    /// Intents of a cluster, dead ones included. One that cannot be read is passed over: it must not keep anybody from learning of
    /// the others.
    pub async fn intents(&self, cluster: &ClusterName) -> Result<Vec<Intent>, RepoError> {
        self.read_intents(cluster).await?.into_iter().filter_map(|read| readable(read).transpose()).collect()
    }

    /// Each intent, or why it cannot be read.
    async fn read_intents(&self, cluster: &ClusterName) -> Result<Vec<Result<Intent, RepoError>>, RepoError> {
        let mut intents = Vec::new();
        for object in list_all(self.store().as_ref(), &layout::intents(cluster)).await? {
            match self.get_sealed::<Intent>(&object.key, SealType::Intent, cluster.as_str()).await {
                // Removed since the listing.
                Err(RepoError::Object(ObjectError::NotFound { .. })) => {}
                read => intents.push(read.map(|(intent, ..)| intent)),
            }
        }
        Ok(intents)
    }

    /// The intent of a snapshot, and its cluster: asked for by name in each cluster of the repository, also in those that have
    /// no snapshot yet.
    pub async fn find_intent(&self, uuid: SnapshotId) -> Result<Option<(ClusterName, Intent)>, RepoError> {
        let folders = self.store().list_folders(layout::CLUSTERS).await?;
        for cluster in folders.into_iter().filter_map(|folder| ClusterName::new(folder).ok()) {
            if let Some(intent) = readable(self.read_intent(&cluster, uuid).await)?.flatten() {
                return Ok(Some((cluster, intent)));
            }
        }
        Ok(None)
    }

    async fn read_intent(&self, cluster: &ClusterName, uuid: SnapshotId) -> Result<Option<Intent>, RepoError> {
        match self.get_sealed(&layout::intent(cluster, uuid), SealType::Intent, cluster.as_str()).await {
            Ok((intent, ..)) => Ok(Some(intent)),
            Err(RepoError::Object(ObjectError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The holder of this lease died: its run is recorded as failed, its nodes with it, and its intent removed. A run that is
    /// recorded already, and an intent that is not there, are fine.
    pub async fn bury(&self, cluster: &ClusterName, died: &Lease, now: Timestamp) -> Result<(), RepoError> {
        let intent = readable(self.read_intent(cluster, died.uuid).await)?.flatten();
        let nodes = intent.map(|intent| intent.nodes).unwrap_or_default();
        self.record_death(RunRecord::of_the_dead(cluster, (died.uuid, died.taken_at), &died.writer, &nodes, now)).await
    }

    /// Whoever asks for the snapshot of one that died is told so by its record; then its intent is removed.
    async fn record_death(&self, record: RunRecord) -> Result<(), RepoError> {
        let is_published = self.list_snapshots(&record.cluster).await?.iter().any(|listed| listed.uuid == record.uuid);
        // Of one that came so far the manifest tells.
        let recorded = if is_published { Ok(()) } else { self.record_run(&record).await };
        if let Err(error) = recorded {
            // The intent stays for the next one that comes.
            tracing::warn!(%error, snapshot = %record.uuid, "that a coordinator died could not be recorded");
            return Ok(());
        }
        Ok(self.store().delete(&layout::intent(&record.cluster, record.uuid)).await?)
    }

    /// Announces a writer, and for which nodes; dead ones are cleared away. Without a lease: [`RepoError::Conflict`] while another
    /// one is alive. Who has the lease is kept from nothing by what others have announced: they have lost it, whatever their clocks
    /// say.
    pub async fn announce(
        self: &Arc<Self>,
        cluster: &ClusterName,
        uuid: SnapshotId,
        parent: Option<SnapshotId>,
        nodes: Vec<NodeName>,
        lease: Option<&LeaseGuard>,
        clock: Arc<dyn Clock>,
    ) -> Result<IntentGuard, RepoError> {
        let key = layout::intent(cluster, uuid);
        let mut intent = own(self.writer.clone(), uuid, parent, nodes, Timestamp(clock.wall_us()));
        self.put_sealed(&key, SealType::Intent, cluster.as_str(), &intent, PutMode::Create).await?;
        // Written before the others are read: of two that start at once, at least one sees the other.
        for other in self.read_intents(cluster).await? {
            let other = match readable(other) {
                Ok(Some(other)) if other.uuid != uuid => other,
                Ok(_) => continue,
                Err(error) => {
                    self.store().delete(&key).await?;
                    return Err(error);
                }
            };
            if other.is_alive(Timestamp(clock.wall_us())) {
                if lease.is_some() {
                    // What it reuses stays pinned until it expires.
                    continue;
                }
                self.store().delete(&key).await?;
                return Err(RepoError::Conflict {
                    what: format!("cluster {cluster}"),
                    reason: format!("a snapshot of it is being made by {} since {}", other.writer, other.started_at),
                });
            }
            let (began, now) = ((other.uuid, other.started_at), Timestamp(clock.wall_us()));
            self.record_death(RunRecord::of_the_dead(cluster, began, &other.writer, &other.nodes, now)).await?;
        }
        let repository = self.clone();
        let (renewed, scope, own) = (key.clone(), cluster.clone(), clock.clone());
        let renewal = tokio::spawn(async move {
            loop {
                own.sleep(RENEWAL).await;
                intent.expires_at = expiry(Timestamp(own.wall_us()));
                if let Err(error) =
                    repository.put_sealed(&renewed, SealType::Intent, scope.as_str(), &intent, PutMode::Replace).await
                {
                    tracing::warn!(%error, "the intent could not be renewed");
                }
            }
        });
        Ok(IntentGuard { repository: self.clone(), key, clock, renewal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_is_dead_at_once_and_everybody_else_when_expired() {
        let now = Timestamp(1_000_000_000);
        let mine = own(Writer::this_process(), SnapshotId::nil(), None, Vec::new(), now);
        // It is seen to run, and may all the same have given up what this claims.
        assert!(mine.is_alive(now) && !mine.is_alive(mine.expires_at));
        let gone = Writer { process_started: mine.writer.process_started + 1, ..mine.writer.clone() };
        assert!(!Intent { writer: gone, ..mine.clone() }.is_alive(now));
        let stranger = Intent { writer: Writer { host: "elsewhere".to_owned(), ..mine.writer.clone() }, ..mine };
        assert!(stranger.is_alive(now));
        assert!(!stranger.is_alive(stranger.expires_at));
    }

    #[test]
    fn an_intent_that_names_no_nodes_is_read_and_one_that_does_is_written_with_them() {
        let nodes = vec![NodeName::new("node-1").expect("legal")];
        let intent = own(Writer::this_process(), SnapshotId::nil(), None, nodes, Timestamp(1_000_000_000));
        let mut value = serde_json::to_value(&intent).expect("writes");
        assert_eq!(value["nodes"], serde_json::json!(["node-1"]));
        assert_eq!(serde_json::from_value::<Intent>(value.clone()).expect("reads"), intent);
        value.as_object_mut().expect("an object").remove("nodes");
        assert_eq!(serde_json::from_value::<Intent>(value).expect("reads"), Intent { nodes: Vec::new(), ..intent });
    }
}
