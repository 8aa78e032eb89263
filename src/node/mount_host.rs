//! The port [`MountHost`]: who serves a node of a snapshot on this host for a restore by links or by a clone.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::restore_error::RestoreError;
use crate::model::restore_plan::NodePlan;
use crate::repo::NodeTree;

/// Serves nodes of snapshots.
///
/// Promises: what is served is served by a process of its own, never fails because the object store is away (its readers
/// wait), keeps its snapshot pinned, is served again after a restart of the host, and ends by itself once it was said to be
/// [`placed`](Self::placed) and neither a link nor an open file needs it any more.
#[async_trait]
pub trait MountHost: Send + Sync + Debug {
    /// Serves the node, read-only, beside the directory that will have links to it. Returns where, once it is served.
    async fn serve(&self, plan: &NodePlan, tree: &NodeTree) -> Result<PathBuf, RestoreError>;

    /// All links are made, and the store is kept from starting while what they lead to is away.
    async fn placed(&self, plan: &NodePlan, served: &Path) -> Result<(), RestoreError>;

    /// The links could not be made: nobody needs it.
    async fn release(&self, served: &Path);

    /// Where a clone for this plan would be: beside the directory, and always the same.
    fn clone_place(&self, plan: &NodePlan) -> Result<PathBuf, RestoreError>;

    /// Serves a writable clone there, guarded as the plan says. It stays until it is unmade.
    async fn make_clone(&self, plan: &NodePlan, tree: &NodeTree, place: &Path) -> Result<(), RestoreError>;

    /// A clone that was made for a restore is, or was, at this place.
    fn is_clone(&self, place: &Path) -> bool;

    /// Takes a clone away with everything that was written to it; one that is not there is fine.
    async fn remove_clone(&self, place: &Path) -> Result<(), RestoreError>;
}
