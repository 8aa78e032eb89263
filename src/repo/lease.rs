//! Leases: one coordinator at a time for a cluster, and an epoch that tells a later one from an earlier one.
//!
//! How it works: one small object per cluster, replaced only by who has read the version that is there. Whoever takes it
//! counts the epoch up by one; it stays when it is given back, so that no epoch comes twice. It is renewed while its
//! holder lives and ends by itself when that is gone.
//!
//! **Invariants.** Of all that take it at the same time one has it. Nobody takes it from one that renews it: clocks of two hosts
//! are not compared where that would decide, the lease is watched instead. That its process is seen to run is no sign that it
//! is held: a daemon outlives its runs, and what one of them could not give back must not stay taken until it ends.
//! A holder that was slow enough to lose it learns so at [`LeaseGuard::confirm`], a conditional put as well.
//!
//! **Not here**: stores that keep no conditions, see [`Repository::keeps_conditions`]; there only advice is left (`intent`).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::repository::Repository;
use super::seal::SealType;
use super::writer::{RENEWAL, RETRY, Writer, expiry};
use super::{RepoError, layout};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
use crate::model::time::Timestamp;
use crate::object::{ObjectError, ObjectVersion, PutMode};

/// A lease that stays as it is for so long is not renewed any more: one renewal, one that failed, and some time.
const WATCH: Duration = Duration::from_secs(45);
/// Whoever meets another one so often tries later.
const TRIES: usize = 3;

/// Who coordinates a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// One more than that of the lease before it.
    pub epoch: u64,
    /// The snapshot being made.
    pub uuid: SnapshotId,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// It is over then, unless it is renewed.
    pub expires_at: Timestamp,
    /// Its holder gave it back: its work ended in order, well or badly.
    pub is_released: bool,
    /// Its holder.
    #[serde(flatten)]
    pub writer: Writer,
}

/// What can be said of a lease at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Over,
    Held,
    /// By this host's clock it should be over soon or is, or it was made by a clock that is not this host's.
    Unsure,
}

impl Lease {
    fn standing(&self, now: Timestamp) -> Standing {
        match self.writer.runs() {
            _ if self.is_released => Standing::Over,
            Some(false) => Standing::Over,
            // Its holder has left out two renewals where it is watched: so it is another's as soon as it is over. A process that
            // runs may have given it up without a store to tell so.
            _ if until_watched(now) < self.expires_at && self.expires_at <= expiry(now) => Standing::Held,
            _ => Standing::Unsure,
        }
    }
}

/// When a watch ends that begins now.
fn until_watched(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(WATCH.as_micros()).unwrap_or(i64::MAX)))
}

/// What is stored: a lease, or why it cannot be read, and the version, which is not newer than what was read.
struct Stored {
    lease: Result<Lease, RepoError>,
    version: ObjectVersion,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    version: ObjectVersion,
}

/// What the guard and its renewal share.
#[derive(Debug)]
struct Place {
    repository: Arc<Repository>,
    cluster: ClusterName,
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
}

/// A lease that is held and renewed. Dropping it (or the process) lets it expire, [`LeaseGuard::release`] gives it back.
#[derive(Debug)]
pub struct LeaseGuard {
    place: Arc<Place>,
    epoch: u64,
    predecessor: Option<Lease>,
    lost: watch::Receiver<bool>,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl LeaseGuard {
    /// The epoch of this lease.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The lease before this one, if its holder never gave it back: it died.
    pub fn predecessor(&self) -> Option<&Lease> {
        self.predecessor.as_ref()
    }

    /// Turns true once it is seen that somebody else has it.
    pub fn lost(&self) -> watch::Receiver<bool> {
        self.lost.clone()
    }

    /// Renews it now. [`RepoError::Conflict`] when somebody else has it.
    pub async fn confirm(&self) -> Result<(), RepoError> {
        self.place.renew(false).await
    }

    /// Gives it back. Where that fails it is tried again for as long as the lease would last; then it expires.
    pub async fn release(self) {
        self.renewal.abort();
        let ends = self.place.held.lock().await.lease.expires_at;
        if let Err(error) = self.place.give_back().await {
            tracing::warn!(%error, "the lease could not be given back; it is tried again, and it will expire by itself");
            let place = self.place.clone();
            tokio::spawn(async move {
                while Timestamp(place.clock.wall_us()) < ends {
                    place.clock.sleep(RETRY).await;
                    if place.give_back().await.is_ok() {
                        return;
                    }
                }
            });
        }
    }
}

impl Place {
    async fn give_back(&self) -> Result<(), RepoError> {
        match self.renew(true).await {
            // Whoever has it now needs nothing of us.
            Ok(()) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, is_released: bool) -> Result<(), RepoError> {
        let mut held = self.held.lock().await;
        let lease = Lease { expires_at: expiry(Timestamp(self.clock.wall_us())), is_released, ..held.lease.clone() };
        let put = self.repository.put_lease(&self.cluster, &lease, PutMode::IfMatch(held.version.clone())).await;
        *held = match put {
            Ok(version) => Held { lease, version },
            Err(RepoError::Object(ObjectError::Conflict { .. })) => match self.repository.read_lease(&self.cluster).await? {
                // An earlier put of ours was carried out, and its answer lost.
                Some(Stored { lease: Ok(found), version }) if (found.epoch, found.uuid) == (lease.epoch, lease.uuid) => {
                    let version = match found == lease {
                        true => version,
                        false => self.repository.put_lease(&self.cluster, &lease, PutMode::IfMatch(version)).await?,
                    };
                    Held { lease, version }
                }
                found => return Err(taken(&self.cluster, found.and_then(|found| found.lease.ok()).as_ref())),
            },
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Renews it for ever; returns when somebody else has it. A store that is away takes it from nobody: whoever wants it must
    /// reach the store as well.
    async fn keep(&self) {
        let mut wait = RENEWAL;
        loop {
            self.clock.sleep(wait).await;
            wait = match self.renew(false).await {
                Ok(()) => RENEWAL,
                Err(error @ RepoError::Conflict { .. }) => {
                    tracing::error!(%error, "the lease is lost");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease could not be renewed");
                    RETRY
                }
            };
        }
    }
}

/// The error that everybody gets but the one who has it.
fn taken(cluster: &ClusterName, by: Option<&Lease>) -> RepoError {
    let reason = match by {
        Some(Lease { writer, taken_at, expires_at, .. }) => {
            format!(
                "a snapshot of it is being made by {writer} since {taken_at}; had that died, it would be over at {expires_at} by that host's clock"
            )
        }
        None => "its lease was deleted".to_owned(),
    };
    RepoError::Conflict { what: format!("cluster {cluster}"), reason }
}

impl Repository {
    /// The object store refuses a second creation and the replacement of what changed: leases hold on it.
    pub fn keeps_conditions(&self) -> bool {
        let capabilities = self.descriptor().capabilities;
        capabilities.refuses_second_create && capabilities.refuses_stale_replace
    }

    /// Takes the lease of a cluster. [`RepoError::Conflict`] while its holder may be alive; where that is not seen at once, the
    /// lease is watched for 45 s.
    pub async fn take_lease(
        self: &Arc<Self>,
        cluster: &ClusterName,
        uuid: SnapshotId,
        clock: Arc<dyn Clock>,
    ) -> Result<LeaseGuard, RepoError> {
        let mut met = None;
        for _ in 0..TRIES {
            let stored = self.read_lease(cluster).await?;
            let now = Timestamp(clock.wall_us());
            if let Some(Stored { lease: Ok(lease), version }) = &stored {
                let is_over = match lease.standing(now) {
                    Standing::Over => true,
                    Standing::Held => false,
                    Standing::Unsure => self.is_abandoned(cluster, lease, version, &*clock).await?,
                };
                if !is_over {
                    return Err(taken(cluster, Some(lease)));
                }
            }
            let (mode, epoch, predecessor) = match stored {
                None => (PutMode::Create, 1, None),
                Some(Stored { lease: Ok(lease), version }) => (PutMode::IfMatch(version), lease.epoch + 1, Some(lease)),
                Some(Stored { lease: Err(error @ RepoError::Corrupt { .. }), version }) => {
                    // Nobody can say what it claims, and backups must go on. More than any epoch that was counted up to.
                    tracing::warn!(%error, "the lease cannot be read and is taken anew");
                    (PutMode::IfMatch(version), now.0.unsigned_abs(), None)
                }
                Some(Stored { lease: Err(error), .. }) => return Err(error),
            };
            let now = Timestamp(clock.wall_us());
            let lease =
                Lease { epoch, uuid, taken_at: now, expires_at: expiry(now), is_released: false, writer: self.writer.clone() };
            let version = match self.put_lease(cluster, &lease, mode).await {
                Ok(version) => version,
                Err(RepoError::Object(ObjectError::Conflict { .. })) => match self.read_lease(cluster).await? {
                    // The answer to our own put was lost, and a second try of the store's client met it.
                    Some(Stored { lease: Ok(found), version }) if found == lease => version,
                    found => {
                        met = found.and_then(|found| found.lease.ok());
                        continue;
                    }
                },
                Err(error) => return Err(error),
            };
            let held = Mutex::new(Held { lease, version });
            let place = Arc::new(Place { repository: self.clone(), cluster: cluster.clone(), clock, held });
            let (lose, lost) = watch::channel(false);
            let kept = place.clone();
            let renewal = tokio::spawn(async move {
                kept.keep().await;
                lose.send_replace(true);
            });
            let predecessor = predecessor.filter(|lease| !lease.is_released);
            return Ok(LeaseGuard { place, epoch, predecessor, lost, renewal });
        }
        Err(taken(cluster, met.as_ref()))
    }

    /// Watches a lease: whether it stays as it is for longer than its holder would leave it.
    async fn is_abandoned(
        &self,
        cluster: &ClusterName,
        lease: &Lease,
        version: &ObjectVersion,
        clock: &dyn Clock,
    ) -> Result<bool, RepoError> {
        tracing::warn!(%cluster, holder = %lease.writer, seconds = WATCH.as_secs(), "is watched: its last coordinator may have died");
        clock.sleep(WATCH).await;
        match self.store().head(&layout::lease(cluster)).await {
            Ok(entry) => Ok(entry.version.as_ref() == Some(version)),
            Err(ObjectError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The lease of a cluster. The version is asked for first: what is read may only be newer.
    async fn read_lease(&self, cluster: &ClusterName) -> Result<Option<Stored>, RepoError> {
        let key = layout::lease(cluster);
        let version = match self.store().head(&key).await {
            Ok(entry) => entry.version,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(version) = version else {
            return Err(RepoError::Refused { what: key, reason: "the object store names no version of it".to_owned() });
        };
        match self.get_sealed::<Lease>(&key, SealType::Lease, cluster.as_str()).await {
            Err(RepoError::Object(ObjectError::NotFound { .. })) => Ok(None),
            Err(RepoError::Object(error)) => Err(error.into()),
            lease => Ok(Some(Stored { lease: lease.map(|(lease, ..)| lease), version })),
        }
    }

    /// Makes the lease of a cluster that of another writer, for tests.
    #[cfg(test)]
    pub(crate) async fn move_lease(&self, cluster: &ClusterName, change: fn(&mut Lease)) {
        let Stored { lease, version } = self.read_lease(cluster).await.expect("reads").expect("is there");
        let mut lease = lease.expect("is whole");
        change(&mut lease);
        self.put_lease(cluster, &lease, PutMode::IfMatch(version)).await.expect("puts");
    }

    async fn put_lease(&self, cluster: &ClusterName, lease: &Lease, mode: PutMode) -> Result<ObjectVersion, RepoError> {
        let key = layout::lease(cluster);
        let (sealed, _) = self.sealed(&key, SealType::Lease, cluster.as_str(), lease)?;
        self.put_verified(&key, sealed, mode).await
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
