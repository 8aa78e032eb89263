//! The words of Tintype as types: ids, names, times, manifests, the cut and the restore plan.
//!
//! Pure: no I/O, no clock. What is decided here can be printed, tested and refused before anything happens.

pub mod cut;
pub mod extent;
pub mod ids;
pub mod manifest;
pub mod names;
mod restore_checks;
pub mod restore_facts;
mod restore_fit;
pub mod restore_pairs;
pub mod restore_plan;
mod restore_ring;
mod restore_text;
pub mod snapshot_name;
pub mod time;
