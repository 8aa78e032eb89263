//! The tree of snapshots as a file system: names, inodes and handles, without a kernel.
