//! The programs: configuration, command lines, wiring, output.

pub mod control;
pub mod mount;
