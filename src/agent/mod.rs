//! What a node is asked to do, by whom, and under which epoch.
