//! `[clusters.NAME]`: where a cluster is, how it is captured, and what its nodes may take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::failure::Failure;
use super::units::{Bytes, Span};
use crate::driver::redis::CaptureMode;
use crate::model::names::{ClusterName, NodeName};
use crate::node::SpoolOptions;
use crate::repo::WriterOptions;

/// `[clusters.NAME]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// `redis`, `dynomite` or `files`.
    pub store: Option<String>,
    /// Any node of a Redis Cluster, or a Sentinel; of a ring the admin port of any Dynomite.
    pub discover: Option<String>,
    /// Of a ring: the rack whose nodes are captured as long as they are well.
    pub rack: Option<String>,
    /// Its data center, where several have a rack of that name.
    pub datacenter: Option<String>,
    /// Of a ring: where Redis listens behind each Dynomite.
    pub backend_port: Option<u16>,
    /// Of a ring: Dynomite's own `timeout`, after which it fails what waits for its Redis.
    pub request_timeout: Option<Span>,
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

impl ClusterConfig {
    /// How its nodes are captured; `said` on the command line comes first.
    pub fn capture_mode(&self, cluster: &ClusterName, said: Option<&str>) -> Result<CaptureMode, Failure> {
        let capture = match said.or(self.capture.as_deref()).unwrap_or("replication") {
            "replication" => CaptureMode::Replication,
            "save" => CaptureMode::Save,
            "aof" => CaptureMode::Aof,
            other => return Err(Failure::usage(format!("capture {other:?} is not known")).hint("replication, save and aof are")),
        };
        match (self.from.as_deref().unwrap_or("master"), capture) {
            ("master", capture) => Ok(capture),
            ("replica", CaptureMode::Replication) => Ok(CaptureMode::FromReplica),
            ("replica", _) => {
                let text = format!("[clusters.{cluster}] from = \"replica\" goes with capture = \"replication\" alone");
                Err(Failure::usage(text).hint("files of a replica are not read: leave `from` or `capture` out"))
            }
            (other, _) => {
                let text = format!("[clusters.{cluster}] from: {other:?} is not known");
                Err(Failure::usage(text).hint("master and replica are"))
            }
        }
    }

    /// The first key that only a ring of Dynomite has, and where it stands.
    pub fn ring_key(&self) -> Option<String> {
        let own = [
            ("rack", self.rack.is_some()),
            ("datacenter", self.datacenter.is_some()),
            ("backend_port", self.backend_port.is_some()),
            ("request_timeout", self.request_timeout.is_some()),
        ];
        let own = own.iter().find(|(_, is_set)| *is_set).map(|(key, _)| (*key).to_owned());
        own.or_else(|| self.nodes.iter().find_map(|(name, node)| node.ring_key().map(|key| format!("nodes.{name}.{key}"))))
    }
}

impl NodeConfig {
    fn ring_key(&self) -> Option<&'static str> {
        let keys = [
            ("token", self.token.is_some()),
            ("rack", self.rack.is_some()),
            ("datacenter", self.datacenter.is_some()),
            ("admin", self.admin.is_some()),
            ("stop_proxy", self.stop_proxy.is_some()),
            ("start_proxy", self.start_proxy.is_some()),
        ];
        keys.iter().find(|(_, is_set)| *is_set).map(|(key, _)| *key)
    }
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
    /// Of a ring: its token, as its Dynomite's configuration says it.
    pub token: Option<u64>,
    /// Of a ring: its rack.
    pub rack: Option<String>,
    /// Of a ring: its data center.
    pub datacenter: Option<String>,
    /// Of a ring: the admin port of its Dynomite, `http://host:port`.
    pub admin: Option<String>,
    /// Stops its Dynomite.
    pub stop_proxy: Option<Vec<String>>,
    /// Starts its Dynomite.
    pub start_proxy: Option<Vec<String>>,
    /// The agent that acts for it, on its own host; absent: whoever takes the snapshot reaches the node itself.
    pub agent: Option<String>,
    /// Stops the store.
    pub stop: Option<Vec<String>>,
    /// Starts the store.
    pub start: Option<Vec<String>>,
}
