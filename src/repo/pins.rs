//! Pins: who needs a snapshot to stay, whatever the retention says.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::repository::Repository;
use super::seal::SealType;
use super::{RepoError, layout};
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
use crate::model::time::Timestamp;
use crate::object::{PutMode, list_all};

/// A claim on a snapshot, which stays until its holder takes it back or it expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// `pin`.
    pub kind: String,
    /// When it was made.
    pub at: Timestamp,
    /// Its identity.
    pub pin: Uuid,
    /// Who needs it, for people: `clone /srv/clone on host-1`.
    pub holder: String,
    /// Not needed any more after this; absent: until it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Pin {
    /// A pin without an end.
    pub fn new(pin: Uuid, holder: impl Into<String>, now: Timestamp) -> Self {
        Self { kind: "pin".to_owned(), at: now, pin, holder: holder.into(), until: None }
    }
}

fn key(cluster: &ClusterName, snapshot: SnapshotId, pin: Uuid) -> String {
    format!("{}pin.{pin}", layout::marks(cluster, snapshot))
}

impl Repository {
    /// Pins a snapshot. The same pin may be set again.
    pub async fn pin(&self, cluster: &ClusterName, snapshot: SnapshotId, pin: &Pin) -> Result<(), RepoError> {
        let key = key(cluster, snapshot, pin.pin);
        self.put_sealed(&key, SealType::Mark, cluster.as_str(), pin, PutMode::Replace).await.map(drop)
    }

    /// Takes a pin back. One that is not there is fine.
    pub async fn unpin(&self, cluster: &ClusterName, snapshot: SnapshotId, pin: Uuid) -> Result<(), RepoError> {
        Ok(self.store().delete(&key(cluster, snapshot, pin)).await?)
    }

    /// The pins of a snapshot, expired ones included. One that cannot be read is an error: it may be somebody's.
    pub async fn pins(&self, cluster: &ClusterName, snapshot: SnapshotId) -> Result<Vec<Pin>, RepoError> {
        let prefix = format!("{}pin.", layout::marks(cluster, snapshot));
        let mut pins = Vec::new();
        for object in list_all(self.store().as_ref(), &prefix).await? {
            pins.push(self.get_sealed::<Pin>(&object.key, SealType::Mark, cluster.as_str()).await?.0);
        }
        Ok(pins)
    }
}
