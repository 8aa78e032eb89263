//! Work over all nodes of a cluster: the coordinated cut and the restore.

pub mod coordinator;
mod identity;
pub mod restore;
