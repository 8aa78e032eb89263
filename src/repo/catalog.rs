//! The published snapshots of a cluster: listing them, naming the next one, and the act of publication.

use std::sync::Arc;

use super::repository::Repository;
use super::seal::SealType;
use super::{ListedSnapshot, RepoError, layout};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{ClusterManifest, CutRecord, FORMAT_VERSION, NodeRecord, NodeStatus, Predecessor, SnapshotStatus};
use crate::model::names::ClusterName;
use crate::model::time::{SnapshotDate, Timestamp};
use crate::object::{ObjectEntry, ObjectError, PutMode, list_all};

/// What a coordinator knows when all nodes are stored.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The snapshot.
    pub uuid: SnapshotId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The coordinator's wall clock at the cut.
    pub cut_at: Timestamp,
    /// `redis`, `files`, …
    pub store: String,
    /// What is known of the cut.
    pub cut: CutRecord,
    /// All nodes that were asked for.
    pub nodes: Vec<NodeRecord>,
    /// The user's own words.
    pub tags: std::collections::BTreeMap<String, String>,
}

impl Repository {
    pub(super) async fn list_clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        let folders = self.store().list_folders(layout::CLUSTERS).await?;
        let mut clusters = Vec::new();
        // A folder whose name we would never give is not ours to show; one without snapshots is not a cluster yet.
        for name in folders.into_iter().filter_map(|folder| ClusterName::new(folder).ok()) {
            if !self.store().list(&layout::snapshots(&name), None, 1).await?.objects.is_empty() {
                clusters.push(name);
            }
        }
        Ok(clusters)
    }

    pub(super) async fn list_snapshots(&self, cluster: &ClusterName) -> Result<Vec<ListedSnapshot>, RepoError> {
        Ok(listed(cluster, list_all(self.store().as_ref(), &layout::snapshots(cluster)).await?))
    }

    pub(super) async fn list_newest(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<ListedSnapshot>, RepoError> {
        Ok(listed(cluster, self.store().list(&layout::snapshots(cluster), None, limit).await?.objects))
    }

    pub(super) async fn read_manifest(&self, snapshot: &ListedSnapshot) -> Result<Arc<ClusterManifest>, RepoError> {
        if let Some(manifest) = self.manifests.get(&snapshot.key) {
            return Ok(manifest);
        }
        let (manifest, _, bytes) =
            match self.get_sealed::<ClusterManifest>(&snapshot.key, SealType::ClusterManifest, snapshot.cluster.as_str()).await {
                Err(RepoError::Object(ObjectError::NotFound { .. })) => {
                    return Err(RepoError::NotFound { what: format!("snapshot {}/{}", snapshot.cluster, snapshot.date) });
                }
                other => other?,
            };
        check(&manifest, snapshot)?;
        let manifest = Arc::new(manifest);
        self.manifests.put(snapshot.key.clone(), manifest.clone(), bytes * 2);
        Ok(manifest)
    }

    /// Publishes: checks that all data is there, names the snapshot, and writes its manifest, which is the last write.
    ///
    /// The name is max(now, newest + 1 s). Where two coordinators publish at once both snapshots stand, under two
    /// UUIDs. Refused when no node was completed.
    pub async fn publish(
        &self,
        publication: Publication,
        now: Timestamp,
    ) -> Result<(ListedSnapshot, Arc<ClusterManifest>), RepoError> {
        let cluster = publication.cluster.clone();
        let is_complete = publication.nodes.iter().all(|node| node.status == NodeStatus::Completed);
        if !publication.nodes.iter().any(|node| node.status == NodeStatus::Completed) {
            return Err(RepoError::Refused {
                what: format!("a snapshot of {cluster}"),
                reason: "none of its nodes was stored".to_owned(),
            });
        }
        let newest = self.list_newest(&cluster, 1).await?.into_iter().next();
        let named_for = publication.cut_at.max(Timestamp(0));
        let date = SnapshotDate::next(named_for, newest.as_ref().map(|snapshot| snapshot.date))
            .map_err(|error| RepoError::Refused { what: "the host's clock".to_owned(), reason: error.to_string() })?;
        let mut nodes = publication.nodes;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = ClusterManifest {
            format: FORMAT_VERSION,
            uuid: publication.uuid,
            cluster: cluster.clone(),
            date,
            cut_at: publication.cut_at,
            published_at: now,
            predecessor: newest.map(|snapshot| Predecessor { uuid: snapshot.uuid, date: snapshot.date }),
            status: if is_complete { SnapshotStatus::Completed } else { SnapshotStatus::Partial },
            store: publication.store,
            cut: publication.cut,
            nodes,
            tags: publication.tags,
            writer: concat!("tintype ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let key = layout::cluster_manifest(&cluster, date, publication.uuid, is_complete);
        let snapshot = ListedSnapshot { cluster: cluster.clone(), date, uuid: publication.uuid, is_complete, key: key.clone() };
        check(&manifest, &snapshot)?;
        self.put_sealed(&key, SealType::ClusterManifest, cluster.as_str(), &manifest, PutMode::Create).await?;
        // Success is reported only for what can be read again by a stranger.
        let read = self.read_manifest(&snapshot).await?;
        if *read != manifest {
            return Err(RepoError::corrupt(snapshot.key, "the published manifest reads back differently"));
        }
        Ok((snapshot, read))
    }
}

fn listed(cluster: &ClusterName, objects: Vec<ObjectEntry>) -> Vec<ListedSnapshot> {
    objects.iter().filter_map(|object| layout::parse_cluster_manifest(cluster, &object.key)).collect()
}

/// What the manifest says must be what its key says, and its nodes must be what can be shown as directories.
fn check(manifest: &ClusterManifest, snapshot: &ListedSnapshot) -> Result<(), RepoError> {
    let wrong = |reason: &str| Err(RepoError::corrupt(&snapshot.key, reason));
    if (&manifest.cluster, manifest.date, manifest.uuid) != (&snapshot.cluster, snapshot.date, snapshot.uuid) {
        return wrong("it speaks of another snapshot than its key");
    }
    if (manifest.status == SnapshotStatus::Completed) != snapshot.is_complete {
        return wrong("its status is not the one that its key says");
    }
    if manifest.nodes.windows(2).any(|pair| pair[0].name >= pair[1].name) {
        return wrong("a node is named twice, or out of order");
    }
    if manifest.nodes.iter().any(|node| (node.status == NodeStatus::Completed) != node.manifest.is_some()) {
        return wrong("a node's status and its manifest do not agree");
    }
    if snapshot.is_complete && manifest.nodes.iter().any(|node| node.status != NodeStatus::Completed) {
        return wrong("it is called complete, but a node is not");
    }
    Ok(())
}
