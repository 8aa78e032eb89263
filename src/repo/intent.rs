//! Intents: a writer announces itself, so that two do not work on one cluster unknowingly and prune knows what is in use.
//!
//! An intent is a claim with an expiry, renewed while its writer lives. It is advice for people and for prune, not what
//! keeps snapshots whole: that is the order of writing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::LeaseGuard;
use super::repository::Repository;
use super::seal::SealType;
use super::writer::{RENEWAL, Writer, expiry};
use super::{RepoError, layout};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
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
}

/// A new one.
fn own(writer: Writer, uuid: SnapshotId, parent: Option<SnapshotId>, now: Timestamp) -> Intent {
    Intent { uuid, started_at: now, expires_at: expiry(now), writer, parent }
}

impl Intent {
    /// The writer may still be at work: not past its expiry, and not a process of this boot that is known to be gone.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.writer.runs().unwrap_or(now < self.expires_at)
    }
}

/// Keeps an intent renewed; dropping it (or the process) lets it expire, [`IntentGuard::release`] removes it at once.
#[derive(Debug)]
pub struct IntentGuard {
    repository: Arc<Repository>,
    key: String,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for IntentGuard {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl IntentGuard {
    /// Removes the intent: the work is over, well or badly.
    pub async fn release(self) {
        self.renewal.abort();
        if let Err(error) = self.repository.store().delete(&self.key).await {
            tracing::warn!(%error, "the intent could not be removed and will expire by itself");
        }
    }
}

impl Repository {
    /// Intents of a cluster, dead ones included.
    pub async fn intents(&self, cluster: &ClusterName) -> Result<Vec<Intent>, RepoError> {
        self.read_intents(cluster).await?.into_iter().collect()
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

    /// Removes the intent of a writer that is known to be dead. One that is not there is fine.
    pub async fn withdraw(&self, cluster: &ClusterName, uuid: SnapshotId) -> Result<(), RepoError> {
        Ok(self.store().delete(&layout::intent(cluster, uuid)).await?)
    }

    /// Announces a writer; dead ones are cleared away. Without a lease: [`RepoError::Conflict`] while another one is alive. Who
    /// has the lease is kept from nothing by what others have announced: they have lost it, whatever their clocks say.
    pub async fn announce(
        self: &Arc<Self>,
        cluster: &ClusterName,
        uuid: SnapshotId,
        parent: Option<SnapshotId>,
        lease: Option<&LeaseGuard>,
        clock: Arc<dyn Clock>,
    ) -> Result<IntentGuard, RepoError> {
        let key = layout::intent(cluster, uuid);
        let mut intent = own(self.writer.clone(), uuid, parent, Timestamp(clock.wall_us()));
        self.put_sealed(&key, SealType::Intent, cluster.as_str(), &intent, PutMode::Create).await?;
        // Written before the others are read: of two that start at once, at least one sees the other.
        for other in self.read_intents(cluster).await? {
            let other = match other {
                Ok(other) if other.uuid == uuid => continue,
                Ok(other) => other,
                // Nobody can say what it claims, and backups must go on.
                Err(error @ (RepoError::Corrupt { .. } | RepoError::TooNew { .. })) => {
                    tracing::warn!(%error, "the intent of another writer cannot be read and is passed over");
                    continue;
                }
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
            self.store().delete(&layout::intent(cluster, other.uuid)).await?;
        }
        let repository = self.clone();
        let (renewed, scope) = (key.clone(), cluster.clone());
        let renewal = tokio::spawn(async move {
            loop {
                clock.sleep(RENEWAL).await;
                intent.expires_at = expiry(Timestamp(clock.wall_us()));
                if let Err(error) =
                    repository.put_sealed(&renewed, SealType::Intent, scope.as_str(), &intent, PutMode::Replace).await
                {
                    tracing::warn!(%error, "the intent could not be renewed");
                }
            }
        });
        Ok(IntentGuard { repository: self.clone(), key, renewal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_is_dead_at_once_and_a_stranger_when_expired() {
        let now = Timestamp(1_000_000_000);
        let mine = own(Writer::this_process(), SnapshotId::nil(), None, now);
        assert!(mine.is_alive(now) && mine.is_alive(mine.expires_at), "it is seen to run");
        let gone = Writer { process_started: mine.writer.process_started + 1, ..mine.writer.clone() };
        assert!(!Intent { writer: gone, ..mine.clone() }.is_alive(now));
        let stranger = Intent { writer: Writer { host: "elsewhere".to_owned(), ..mine.writer.clone() }, ..mine };
        assert!(stranger.is_alive(now));
        assert!(!stranger.is_alive(stranger.expires_at));
    }
}
