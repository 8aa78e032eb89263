//! Tintype: consistent, incremental, verified snapshots of key-value store clusters in object storage.
//!
//! This file is the map. Two wings stand on one trunk and never import each other; `tests/tidy.rs` holds the table.
//!
//! ```text
//! floor
//!   8        bin/tintyped                        bin/tintype
//!   7                         app   (configuration, command lines, wiring, output)
//!       ------- left wing: the mount ------- | ------- right wing: the fleet -------
//!   6   fuse      kernel adapter             |  cluster   coordinated cut, restore
//!   5   fs        names, inodes, handles     |  agent     what a node is asked to do, also over REST
//!   4   read      blocks, read-ahead, files  |  node      capture, upload, local restore
//!   3   cache     block caches               |  driver    the live stores
//!       --------------------------- the trunk ---------------------------
//!   3               repo    format, packs, manifests, publish, verify; port SnapshotSource
//!   2               object  object storage: s3, local directory, memory, wrappers
//!   1               model   ids, names, manifest, cut, restore plan: pure, no I/O
//!                   payload what stores write: RDB, AOF: pure, streaming
//!   0               base    clock, retry, single flight
//! ```
//!
//! What may be relied on everywhere:
//! - `model` and `payload` do no I/O and know no clock: what they decide can be tested without either.
//! - Nothing below `app` prints, reads the environment or knows the configuration file.
//! - A snapshot exists when, and only when, its cluster manifest does: see `repo/FORMAT.md`.
//! - Bytes from a disk, a network or a person never panic.
//!
//! Start reading at [`model::manifest`], then [`fs`] for the mount or [`cluster::coordinator`] for the snapshot.

pub mod agent;
pub mod app;
pub mod base;
pub mod cache;
pub mod cluster;
pub mod driver;
pub mod fs;
pub mod fuse;
pub mod model;
pub mod node;
pub mod object;
pub mod payload;
pub mod read;
pub mod repo;
