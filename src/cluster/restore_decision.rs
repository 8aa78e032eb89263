//! How a restore over several hosts ended, decided once and for all of them.
//!
//! How it works: the record of the run (`runs/<uuid>` in the repository) is created by whoever first knows the end: by the
//! coordinator when every node was confirmed, or by an agent that has lost its coordinator after the directories changed
//! places. Everybody else finds that record, and does what it says.
//!
//! **Invariants.** No node is finished before the record says that all are restored, and none goes back by itself unless it
//! says that they are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::base::Clock;
use crate::model::names::ClusterName;
use crate::model::restore_plan::RestorePlan;
use crate::model::time::{SnapshotDate, Timestamp};
use crate::repo::{RepoError, Repository, RunRecord, RunStatus};

/// The object store is asked for so long that all were restored: they stand restored meanwhile, and nobody goes back.
const PATIENCE: Duration = Duration::from_secs(600);
/// That they are not, it is told for so long: who is not told finds it out by itself.
const UNDONE_PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// All nodes hold the snapshot.
    Restored,
    /// All nodes go back; why.
    Undone(String),
    /// It cannot be said: the object store keeps no conditions, or does not answer.
    Unknown(String),
}

/// The one decision of a restore.
#[derive(Debug)]
pub struct RestoreDecision {
    repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
    uuid: Uuid,
    source: ClusterName,
    date: Option<SnapshotDate>,
    target: ClusterName,
    started_at: Timestamp,
}

impl RestoreDecision {
    /// Of a planned restore, about to be carried out.
    pub fn of_plan(repository: Arc<Repository>, clock: Arc<dyn Clock>, plan: &RestorePlan, target: ClusterName) -> Self {
        let date = Some(plan.date);
        Self { date, ..Self::of_restore(repository, clock, plan.id, plan.cluster.clone(), target) }
    }

    /// Of the restore `uuid` of a snapshot of `source`, of which no more is known.
    pub fn of_restore(
        repository: Arc<Repository>,
        clock: Arc<dyn Clock>,
        uuid: Uuid,
        source: ClusterName,
        target: ClusterName,
    ) -> Self {
        let started_at = Timestamp(clock.wall_us());
        Self { repository, clock, uuid, source, date: None, target, started_at }
    }

    /// Every node was confirmed. Asked again while the object store does not answer, for a while.
    pub async fn restored(&self) -> Decided {
        self.decide(RunStatus::Completed, None).await
    }

    /// Somebody gives up. What is decided already stands.
    pub async fn undone(&self, reason: &str) -> Decided {
        self.decide(RunStatus::Failed, Some(reason.to_owned())).await
    }

    async fn decide(&self, status: RunStatus, reason: Option<String>) -> Decided {
        let record = RunRecord {
            uuid: self.uuid,
            cluster: self.source.clone(),
            restored_into: Some(self.target.clone()),
            date: self.date,
            status,
            reason,
            started_at: self.started_at,
            ended_at: Timestamp(self.clock.wall_us()),
            nodes: BTreeMap::new(),
        };
        let patience = if status == RunStatus::Completed { PATIENCE } else { UNDONE_PATIENCE };
        let until = self.clock.monotonic() + patience;
        loop {
            match self.once(&record).await {
                Ok(decided) => return decided,
                Err(error) if self.clock.monotonic() >= until => return Decided::Unknown(error.to_string()),
                Err(error) => tracing::warn!(restore = %self.uuid, %error, "how the restore ends could not be written down yet"),
            }
            self.clock.sleep(RETRY).await;
        }
    }

    async fn once(&self, record: &RunRecord) -> Result<Decided, RepoError> {
        let found = if self.repository.keeps_conditions() {
            self.repository.decide_run(record).await?
        } else if record.status == RunStatus::Completed {
            self.repository.record_run(record).await?;
            record.clone()
        } else {
            match self.repository.run(self.uuid).await? {
                Some(found) => found,
                // Another one may be about to say the opposite.
                None => return Ok(Decided::Unknown("this object store refuses no second writer".to_owned())),
            }
        };
        Ok(match found.status {
            RunStatus::Completed => Decided::Restored,
            RunStatus::Partial | RunStatus::Failed => Decided::Undone(found.reason.unwrap_or_default()),
        })
    }
}
