//! Tries out what an object store really does.
