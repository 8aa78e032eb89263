//! A wrapper that breaks an object store in named ways, for tests.
