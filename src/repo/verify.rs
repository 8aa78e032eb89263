//! Proving what is stored.
