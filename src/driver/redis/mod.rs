//! Redis and Valkey nodes.
