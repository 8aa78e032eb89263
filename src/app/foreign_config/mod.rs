//! Configurations of other programs, read and written anew as ours: `tintype import-config`.

pub mod dynomite_manager;
mod properties;
