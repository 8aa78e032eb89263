//! `[clusters.NAME]`: where a cluster is, how it is captured, and what its nodes may take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::failure::Failure;
use super::units::{Bytes, Span};
use crate::model::names::NodeName;
use crate::node::SpoolOptions;
use crate::repo::WriterOptions;

/// `[clusters.NAME]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// `redis` or `files`.
    pub store: Option<String>,
    /// Any node of a Redis Cluster, or a Sentinel.
    pub discover: Option<String>,
    /// Which of the masters that Sentinel watches; empty: all.
    pub masters: Vec<String>,
    /// `replication` (default), `save` or `aof`.
    pub capture: Option<String>,
    /// Who forks for a capture by replication: the `master` (default) or a `replica` of it.
    pub from: Option<String>,
    /// The agents of its nodes; `{host}` stands for the node's own host.
    pub agent: Option<String>,
    /// The host that takes its snapshots, where the object store keeps no conditions; as `hostname` says it.
    pub coordinator: Option<String>,
    /// What each of its nodes may take while it is stored.
    pub limits: LimitsConfig,
    /// Longest write pause.
    pub max_pause: Option<Span>,
    /// How long to wait for running saves before the pause.
    pub patience: Option<Span>,
    /// Nodes of this host whose data directory is empty are restored before their stores are started.
    pub restore_on_start: bool,
    /// From which snapshot; absent: `latest`.
    pub restore_date: Option<String>,
    /// ACL user of all nodes.
    pub user: Option<String>,
    /// Its password, in a file.
    pub password_file: Option<PathBuf>,
    /// Certificate authorities for `rediss://`.
    pub ca_file: Option<PathBuf>,
    /// `[clusters.NAME.nodes.NODE]`
    pub nodes: BTreeMap<NodeName, NodeConfig>,
}

/// `limits` under `[clusters.NAME]`: for each node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Bytes a second to the object store, on average.
    pub bandwidth: Option<Bytes>,
    /// Cores that compress and seal at once.
    pub cores: Option<usize>,
    /// Bytes of a dump that may wait on a disk of the host that stores it.
    pub spool: Option<Bytes>,
}

impl LimitsConfig {
    /// A store gives up a replica that reads nothing for a minute, and a pack has 32 MiB: less is no way to store a node.
    const BANDWIDTH_MIN: u64 = 1 << 20;

    /// The same settings for one node.
    pub fn apply(&self, writing: &WriterOptions) -> Result<WriterOptions, Failure> {
        let bandwidth = self.bandwidth.map(|bandwidth| bandwidth.0);
        if bandwidth.is_some_and(|bandwidth| bandwidth < Self::BANDWIDTH_MIN) {
            return Err(Failure::usage("limits: a bandwidth of less than 1MiB a second")
                .hint("a store would give up before its dump is read"));
        }
        if self.cores == Some(0) {
            return Err(Failure::usage("limits: cores = 0").hint("leave it out for no limit"));
        }
        Ok(writing.limited(self.cores, bandwidth))
    }

    /// Where dumps wait that come faster than they are stored.
    pub fn spool(&self, state_directory: &Path) -> Option<SpoolOptions> {
        self.spool.map(|limit| SpoolOptions { directory: state_directory.join("spool"), limit_bytes: limit.0 })
    }
}

/// `[clusters.NAME.nodes.NODE]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// `redis://host:port` or `rediss://host:port`.
    pub address: Option<String>,
    /// ACL user, where it differs from the cluster's.
    pub user: Option<String>,
    /// Its password, in a file.
    pub password_file: Option<PathBuf>,
    /// Certificate authorities for `rediss://`.
    pub ca_file: Option<PathBuf>,
    /// The store's directory, where it is on this host.
    pub data_directory: Option<PathBuf>,
    /// It is a replica of this node: not stored, and emptied by a restore of its master, from which it synchronises again.
    pub replica_of: Option<NodeName>,
    /// Where it differs from the cluster's.
    pub restore_on_start: Option<bool>,
    /// Where it differs from the cluster's.
    pub restore_date: Option<String>,
    /// The agent that acts for it, on its own host; absent: whoever takes the snapshot reaches the node itself.
    pub agent: Option<String>,
    /// Stops the store.
    pub stop: Option<Vec<String>>,
    /// Starts the store.
    pub start: Option<Vec<String>>,
}
