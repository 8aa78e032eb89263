//! Records of runs: how each attempt at a snapshot ended, so that any host can answer `status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::repository::Repository;
use super::seal::SealType;
use super::{RepoError, Writer, layout};
use crate::model::ids::SnapshotId;
use crate::model::manifest::NodeStatus;
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::{SnapshotDate, Timestamp};
use crate::object::{ObjectError, PutMode};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// A whole snapshot was published.
    Completed,
    /// One without some nodes was published.
    Partial,
    /// Nothing was published.
    Failed,
}

/// How one node fared in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOutcome {
    /// Completed, missing or failed.
    pub status: NodeStatus,
    /// Why, where it fared badly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Regular files stored.
    pub files: u64,
    /// Plain bytes.
    pub total_bytes: u64,
    /// Plain bytes that were not stored before.
    pub new_bytes: u64,
}

/// The record of one run, written once at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The snapshot that was to be made.
    pub uuid: SnapshotId,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Of a restore: the cluster that was restored into. `cluster` and `date` are the snapshot's then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_into: Option<ClusterName>,
    /// Its dated name, when it was published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<SnapshotDate>,
    /// How it ended.
    pub status: RunStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The nodes.
    pub nodes: BTreeMap<NodeName, NodeOutcome>,
}

impl RunRecord {
    /// How the run of a writer ended that died, or was cut off, on its way. `began`: which snapshot, and when.
    pub(super) fn of_the_dead(
        cluster: &ClusterName,
        (uuid, started_at): (SnapshotId, Timestamp),
        writer: &Writer,
        nodes: &[NodeName],
        ended_at: Timestamp,
    ) -> Self {
        let reason = format!("its coordinator died or was cut off: {writer}");
        let nodes = nodes.iter().map(|name| (name.clone(), NodeOutcome::empty(NodeStatus::Failed, Some(reason.clone()))));
        Self {
            uuid,
            cluster: cluster.clone(),
            restored_into: None,
            date: None,
            status: RunStatus::Failed,
            nodes: nodes.collect(),
            reason: Some(reason),
            started_at,
            ended_at,
        }
    }
}

impl NodeOutcome {
    /// Of a node of which nothing is stored.
    pub fn empty(status: NodeStatus, reason: Option<String>) -> Self {
        Self { status, reason, files: 0, total_bytes: 0, new_bytes: 0 }
    }
}

impl Repository {
    /// Writes the record of a run. One that is there already is only replaced by that of a run that has published: a
    /// successor may have taken it for dead.
    pub async fn record_run(&self, record: &RunRecord) -> Result<(), RepoError> {
        let mode = if record.status == RunStatus::Failed { PutMode::Create } else { PutMode::Replace };
        // Where the object store refuses no second creation, a look is all that there is.
        if record.status == RunStatus::Failed && !self.keeps_conditions() && self.run(record.uuid).await?.is_some() {
            return Ok(());
        }
        match self.put_sealed(&layout::run(record.uuid), SealType::Run, "", record, mode).await {
            Ok(_) | Err(RepoError::Object(ObjectError::Conflict { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes the record of a run where there is none, and says which one there is now: of all who call this for one run, the
    /// first decides. Where the store keeps no conditions the last one does, so that nobody may rely on it. An error: it may
    /// have been written all the same; asked again, the same is said to all.
    pub async fn decide_run(&self, record: &RunRecord) -> Result<RunRecord, RepoError> {
        match self.put_sealed(&layout::run(record.uuid), SealType::Run, "", record, PutMode::Create).await {
            Ok(_) => Ok(record.clone()),
            Err(RepoError::Object(conflict @ ObjectError::Conflict { .. })) => {
                self.run(record.uuid).await?.ok_or(RepoError::Object(conflict))
            }
            Err(error) => Err(error),
        }
    }

    /// The record of a run; `None` while it is under way, or when it died without a word.
    pub async fn run(&self, uuid: SnapshotId) -> Result<Option<RunRecord>, RepoError> {
        match self.get_sealed(&layout::run(uuid), SealType::Run, "").await {
            Ok((record, ..)) => Ok(Some(record)),
            Err(RepoError::Object(ObjectError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
