//! How snapshots fare: one by its identity, wherever it was or is being made, and the clusters by their newest good one.
//!
//! `tintype status` and the REST interface tell the same, because both ask here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{ClusterManifest, NodeStatus, SnapshotStatus};
use crate::model::names::{ClusterName, NodeName, escape};
use crate::model::time::{SnapshotDate, Timestamp};
use crate::repo::{Intent, ListedSnapshot, NodeOutcome, Repository, RunRecord, RunStatus, SnapshotSource, Writer};

/// How a snapshot as a whole stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OverallStatus {
    /// It is being made.
    Processing,
    /// It is published and whole.
    Completed,
    /// It is published without some nodes.
    Partial,
    /// There is no such snapshot, and none is being made.
    Failed,
}

impl OverallStatus {
    /// How `tintype status` ends.
    pub fn exit(self) -> Exit {
        match self {
            Self::Processing | Self::Completed => Exit::Done,
            Self::Partial => Exit::Partly,
            Self::Failed => Exit::Failed,
        }
    }
}

/// How one snapshot fares, or fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotStanding {
    /// Which.
    pub uuid: SnapshotId,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Of a restore over several hosts: the cluster that was restored into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_into: Option<ClusterName>,
    /// Its dated name, once it is published.
    pub date: Option<SnapshotDate>,
    /// As a whole.
    pub status: OverallStatus,
    /// Why it failed.
    pub reason: Option<String>,
    /// Who makes it and since when, while it is being made.
    #[serde(skip)]
    pub maker: Option<(Writer, Timestamp)>,
    /// Only an intent tells of it: it may have ended, and nobody could write that down.
    #[serde(skip)]
    pub is_claim: bool,
    /// Each node: processing, completed, missing or failed.
    pub nodes: BTreeMap<NodeName, NodeOutcome>,
}

impl SnapshotStanding {
    /// One that this process makes: its nodes are known before anything is written of it.
    pub fn processing(uuid: SnapshotId, cluster: ClusterName, nodes: &[NodeName]) -> Self {
        let nodes = nodes.iter().map(|name| (name.clone(), NodeOutcome::empty(NodeStatus::Processing, None))).collect();
        let status = OverallStatus::Processing;
        Self { uuid, cluster, restored_into: None, date: None, status, reason: None, maker: None, is_claim: false, nodes }
    }

    fn announced(cluster: ClusterName, intent: Intent, now: Timestamp) -> Self {
        let mut standing = Self { is_claim: true, ..Self::processing(intent.uuid, cluster, &intent.nodes) };
        if intent.is_alive(now) {
            standing.maker = Some((intent.writer, intent.started_at));
            return standing;
        }
        let reason = format!("its coordinator died or was cut off: {}", intent.writer);
        for node in standing.nodes.values_mut() {
            *node = NodeOutcome::empty(NodeStatus::Failed, Some(reason.clone()));
        }
        Self { status: OverallStatus::Failed, reason: Some(reason), ..standing }
    }

    fn published(manifest: &ClusterManifest) -> Self {
        let nodes = manifest.nodes.iter().map(|node| {
            let totals = node.totals;
            let outcome = NodeOutcome {
                status: node.status,
                reason: node.reason.clone(),
                files: totals.files,
                total_bytes: totals.total_bytes,
                new_bytes: totals.new_bytes,
            };
            (node.name.clone(), outcome)
        });
        let status = match manifest.status {
            SnapshotStatus::Completed => OverallStatus::Completed,
            SnapshotStatus::Partial => OverallStatus::Partial,
        };
        Self {
            uuid: manifest.uuid,
            cluster: manifest.cluster.clone(),
            restored_into: None,
            date: Some(manifest.date),
            status,
            reason: None,
            maker: None,
            is_claim: false,
            nodes: nodes.collect(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{} {}  {}\n", self.cluster, self.uuid, word(&self.status));
        if let Some((maker, since)) = &self.maker {
            text.push_str(&format!("  since {since} by {}\n", shown(maker)));
        }
        if let Some(date) = self.date {
            let line = match &self.restored_into {
                Some(target) => format!("  restore of {}/{date} into {target}\n", self.cluster),
                None => format!("  published as {}/{date}\n", self.cluster),
            };
            text.push_str(&line);
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!("  {}\n", shown(reason)));
        }
        for (name, node) in &self.nodes {
            let reason = node.reason.as_ref().filter(|reason| self.reason.as_ref() != Some(reason));
            text.push_str(&format!("  {name}  {}", word(&node.status)));
            text.push_str(&reason.map_or("\n".to_owned(), |reason| format!(": {}\n", shown(reason))));
        }
        text
    }

    /// For scripts.
    pub fn value(&self) -> Value {
        json!(self)
    }
}

impl From<RunRecord> for SnapshotStanding {
    fn from(run: RunRecord) -> Self {
        let status = match run.status {
            RunStatus::Completed => OverallStatus::Completed,
            RunStatus::Partial => OverallStatus::Partial,
            RunStatus::Failed => OverallStatus::Failed,
        };
        let RunRecord { uuid, cluster, restored_into, date, reason, nodes, .. } = run;
        Self { uuid, cluster, restored_into, date, status, reason, maker: None, is_claim: false, nodes }
    }
}

/// What agents and stores said may hold anything: it must not work on a terminal.
fn shown(said: &impl ToString) -> String {
    escape(said.to_string().as_bytes())
}

/// The word that scripts get too.
fn word(status: &impl Serialize) -> String {
    json!(status).as_str().unwrap_or_default().to_owned()
}

/// How a snapshot fares that any host makes, or made; `None` when the repository knows nothing of it.
///
/// What is published counts, whatever its run left behind. A run that has no record is under way, or died: its intent tells.
pub async fn standing(repository: &Repository, uuid: SnapshotId, now: Timestamp) -> Result<Option<SnapshotStanding>, Failure> {
    // A run may write its record and take its intent back between two looks: then the second round finds the record.
    for _ in 0..2 {
        if let Some(run) = repository.run(uuid).await? {
            let failed = run.status == RunStatus::Failed;
            let published = if failed { published(repository, &run.cluster, uuid).await? } else { None };
            return Ok(Some(match published {
                Some(listed) => SnapshotStanding::published(&*repository.manifest(&listed).await?),
                None => run.into(),
            }));
        }
        let intent = repository.find_intent(uuid).await?;
        if let Some((cluster, intent)) = &intent
            && intent.is_alive(now)
        {
            return Ok(Some(SnapshotStanding::announced(cluster.clone(), intent.clone(), now)));
        }
        let clusters = match &intent {
            Some((cluster, _)) => vec![cluster.clone()],
            None => repository.clusters().await?,
        };
        for cluster in clusters {
            if let Some(listed) = published(repository, &cluster, uuid).await? {
                return Ok(Some(SnapshotStanding::published(&*repository.manifest(&listed).await?)));
            }
        }
        if let Some((cluster, intent)) = intent {
            return Ok(Some(SnapshotStanding::announced(cluster, intent, now)));
        }
    }
    Ok(None)
}

/// The published snapshot of that identity, in whichever cluster.
pub async fn find_published(repository: &Repository, uuid: SnapshotId) -> Result<Option<ListedSnapshot>, Failure> {
    let clusters = match repository.run(uuid).await? {
        Some(run) => vec![run.cluster],
        None => repository.clusters().await?,
    };
    for cluster in clusters {
        if let Some(listed) = published(repository, &cluster, uuid).await? {
            return Ok(Some(listed));
        }
    }
    Ok(None)
}

async fn published(repository: &Repository, cluster: &ClusterName, uuid: SnapshotId) -> Result<Option<ListedSnapshot>, Failure> {
    Ok(repository.snapshots(cluster).await?.into_iter().find(|listed| listed.uuid == uuid))
}

/// The newest good snapshot of a cluster, for scripts, and what else is known of it.
#[derive(Debug)]
pub struct ClusterStanding {
    /// The newest complete one.
    pub good: Option<ListedSnapshot>,
    /// What is under way.
    pub running: Option<Intent>,
    /// For scripts.
    pub value: Value,
}

/// How a cluster stands.
pub async fn cluster(repository: &Repository, name: &ClusterName, now: Timestamp) -> Result<ClusterStanding, Failure> {
    let good = repository.snapshots(name).await?.into_iter().find(|listed| listed.is_complete);
    let running = repository.intents(name).await?.into_iter().find(|intent| intent.is_alive(now));
    let verified = match &good {
        None => None,
        Some(listed) => repository.verifications(name, listed.uuid).await?.pop(),
    };
    let value = json!({
        "cluster": name,
        "newest": good.as_ref().map(|listed| listed.date),
        "uuid": good.as_ref().map(|listed| listed.uuid),
        "age_seconds": good.as_ref().map(|listed| now.seconds() - listed.date.seconds()),
        "verified": verified,
        "processing": running.as_ref().map(|intent| intent.uuid),
    });
    Ok(ClusterStanding { good, running, value })
}

/// All clusters: the stored ones, and those of the configuration. One that was never stored is the worst of all states, and
/// must not be silent.
pub async fn clusters<'a>(
    repository: &Repository,
    configured: impl Iterator<Item = &'a ClusterName>,
) -> Result<Vec<ClusterName>, Failure> {
    let mut names = repository.clusters().await?;
    names.extend(configured.filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_does_nothing_to_a_terminal_and_scripts_get_it_as_it_is() {
        let name = NodeName::new("node-1").expect("legal");
        let cluster = ClusterName::new("prod").expect("legal");
        let mut standing = SnapshotStanding::processing(SnapshotId::nil(), cluster, std::slice::from_ref(&name));
        let hostile = "\u{1b}]0;owned\u{7}\nprod  completed";
        standing.reason = Some(hostile.to_owned());
        standing.nodes.insert(name, NodeOutcome::empty(NodeStatus::Failed, Some(format!("{hostile}!"))));
        let text = standing.text();
        assert!(!text.contains(['\u{1b}', '\u{7}']) && text.lines().count() == 3, "{text:?}");
        assert!(text.contains(r"\u{1b}]0;owned\u{7}\nprod  completed!"), "{text:?}");
        assert_eq!(standing.value()["reason"], json!(hostile));
    }
}
