//! The control command.

fn main() {}
