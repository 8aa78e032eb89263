//! The programs: configuration, command lines, wiring, output.

pub mod mount;
