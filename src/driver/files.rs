//! A plain directory on this host as a node.
