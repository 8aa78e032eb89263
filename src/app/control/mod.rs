//! The verbs of the control command.

pub mod restore;
