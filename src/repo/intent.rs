//! Intents: a writer announces itself, so that two do not work on one cluster unknowingly and prune knows what is in use.
//!
//! An intent is a claim with an expiry, renewed while its writer lives. It is advice for people and for prune, not what
//! keeps snapshots whole: that is the order of writing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::repository::Repository;
use super::seal::SealType;
use super::{RepoError, layout};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
use crate::model::time::Timestamp;
use crate::object::{ObjectError, PutMode, list_all};

/// Renewed this often …
const RENEWAL: Duration = Duration::from_secs(30);
/// … and dead this long after the last renewal: four misses.
const LIFETIME: Duration = Duration::from_secs(120);

/// A writer at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The snapshot being made.
    pub uuid: SnapshotId,
    /// When it began.
    pub started_at: Timestamp,
    /// After this it is dead.
    pub expires_at: Timestamp,
    /// The writer's host.
    pub host: String,
    /// The writer's process there.
    pub process: u32,
    /// When that process started, in ticks since boot: process numbers are used again.
    pub process_started: u64,
    /// The host's boot id: process numbers mean nothing across boots.
    pub boot: String,
    /// The snapshot whose blocks are reused.
    pub parent: Option<SnapshotId>,
}

/// What identifies this process among all hosts.
fn own(uuid: SnapshotId, parent: Option<SnapshotId>, now: Timestamp) -> Intent {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let process = std::process::id();
    Intent {
        uuid,
        started_at: now,
        expires_at: expiry(now),
        host: read("/proc/sys/kernel/hostname"),
        process,
        process_started: process_started(process).unwrap_or(0),
        boot: read("/proc/sys/kernel/random/boot_id"),
        parent,
    }
}

fn expiry(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX)))
}

/// Start of a process in ticks since boot; `None` when it is gone, also when only its parent has not noticed yet. Fields 3
/// and 22 of /proc/PID/stat, counted behind the name, which may itself hold blanks and parentheses.
fn process_started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Intent {
    /// The writer may still be at work: not past its expiry, and not a process of this boot that is known to be gone.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        let here = own(self.uuid, None, now);
        if !self.boot.is_empty() && self.boot == here.boot && self.host == here.host {
            return process_started(self.process) == Some(self.process_started);
        }
        now < self.expires_at
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

    /// Announces a writer. [`RepoError::Conflict`] while another one is alive; dead ones are cleared away.
    pub async fn announce(
        self: &Arc<Self>,
        cluster: &ClusterName,
        uuid: SnapshotId,
        parent: Option<SnapshotId>,
        clock: Arc<dyn Clock>,
    ) -> Result<IntentGuard, RepoError> {
        let key = layout::intent(cluster, uuid);
        let mut intent = own(uuid, parent, Timestamp(clock.wall_us()));
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
                self.store().delete(&key).await?;
                return Err(RepoError::Conflict {
                    what: format!("cluster {cluster}"),
                    reason: format!(
                        "a snapshot of it is being made by process {} on {} since {}",
                        other.process, other.host, other.started_at
                    ),
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
    fn a_process_that_ended_is_dead_though_its_parent_has_not_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("coreutils are installed");
        assert!(process_started(child.id()).is_some());
        child.kill().expect("a child");
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while process_started(child.id()).is_some() {
            assert!(std::time::Instant::now() < until, "it is still taken for alive");
            std::thread::yield_now();
        }
        child.wait().expect("it was still there to be waited for");
    }

    #[test]
    fn a_process_that_is_gone_is_dead_at_once_and_a_stranger_when_expired() {
        let now = Timestamp(1_000_000_000);
        let mine = own(SnapshotId::nil(), None, now);
        assert!(mine.is_alive(now));
        assert!(!Intent { process_started: mine.process_started + 1, ..mine.clone() }.is_alive(now), "the number is used again");
        let stranger = Intent { host: "elsewhere".to_owned(), boot: "another".to_owned(), ..mine };
        assert!(stranger.is_alive(now));
        assert!(!stranger.is_alive(stranger.expires_at));
    }
}
