//! One node's work: capture, upload, local restore.
