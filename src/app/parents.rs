//! What a node's next snapshot may reuse: its newest stored tree.

use std::sync::Arc;

use super::failure::Failure;
use crate::model::manifest::{ClusterManifest, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::repo::{NodeTree, Repository, SnapshotSource};

/// Snapshots that are looked at for the newest one that has a node: a node may have been missing from some.
const PARENTS: usize = 8;

/// For each node the newest snapshot that has it.
#[derive(Debug)]
pub struct Parents {
    repository: Arc<Repository>,
    cluster: ClusterName,
    manifests: Option<Vec<Arc<ClusterManifest>>>,
}

impl Parents {
    /// Of `cluster`; nothing is read yet.
    pub fn new(repository: Arc<Repository>, cluster: ClusterName) -> Self {
        Self { repository, cluster, manifests: None }
    }

    /// The newest stored tree of a node, whose blocks its next snapshot may reuse.
    pub async fn of(&mut self, node: &NodeName) -> Result<Option<NodeTree>, Failure> {
        if self.manifests.is_none() {
            let mut manifests = Vec::new();
            for listed in self.repository.newest(&self.cluster, PARENTS).await? {
                // A damaged earlier snapshot must not keep the next one from being taken.
                match self.repository.manifest(&listed).await {
                    Ok(manifest) => manifests.push(manifest),
                    Err(error) => tracing::warn!(%error, "an earlier snapshot cannot be reused"),
                }
            }
            self.manifests = Some(manifests);
        }
        for manifest in self.manifests.iter().flatten() {
            if manifest.node(node).is_some_and(|record| record.status == NodeStatus::Completed) {
                match self.repository.open_node(manifest, node).await {
                    Ok(tree) => return Ok(Some(tree)),
                    Err(error) => tracing::warn!(%error, "an earlier snapshot cannot be reused"),
                }
            }
        }
        Ok(None)
    }
}
