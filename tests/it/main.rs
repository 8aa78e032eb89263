//! The integration tests: real servers, the real kernel.

fn main() {}
