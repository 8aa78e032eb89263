//! The programs: configuration, command lines, wiring, output.
