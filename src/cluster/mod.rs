//! Work over all nodes of a cluster: the coordinated cut and the restore.

pub mod coordinator;
mod identity;
mod memory;
mod records;
pub mod restore;
pub mod restore_decision;
#[cfg(test)]
mod simulation_tests;
mod tokens;
