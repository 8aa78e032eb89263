//! What a restore is planned from: the stored nodes, and what was seen at the targets before anything was touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::manifest::{ClusterManifest, KeyCounts, NodeDescription, NodeStatus, NodeTotals, RingPlace};
use super::names::NodeName;
use super::restore_plan::Method;
use super::time::Timestamp;

/// Where a store with this layout looks for its data, below its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLayout {
    /// The store reads its append-only files at start, and not the dump.
    pub has_append_only: bool,
    /// Name of the dump.
    pub dump_file: String,
    /// Directory of the append-only files; `None` before Redis 7, which has a single file.
    pub append_directory: Option<String>,
    /// First part of the names of the append-only files, or the name of the single one.
    pub append_file: String,
    /// Where a cluster node keeps its identity: kept, never restored.
    pub cluster_file: Option<String>,
}

impl StoreLayout {
    /// From settings as a manifest records them, with the server's own defaults for what is not said.
    pub fn from_settings(settings: &BTreeMap<String, String>, version: &str) -> Self {
        let get = |name: &str, default: &str| {
            settings.get(name).filter(|value| !value.is_empty()).cloned().unwrap_or_else(|| default.to_owned())
        };
        let major = version_parts(version).map_or(7, |(major, _)| major);
        Self {
            has_append_only: settings.get("appendonly").is_some_and(|value| value == "yes"),
            dump_file: get("dbfilename", "dump.rdb"),
            append_directory: (major >= 7 || settings.contains_key("appenddirname"))
                .then(|| get("appenddirname", "appendonlydir")),
            append_file: get("appendfilename", "appendonly.aof"),
            cluster_file: settings.get("cluster-config-file").cloned(),
        }
    }
}

/// `7.0.15` as (7, 0).
pub(super) fn version_parts(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// One stored node, as its manifests tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// Its name in the snapshot.
    pub node: NodeName,
    /// How it fared; only completed nodes can be restored.
    pub status: NodeStatus,
    /// What it was.
    pub description: NodeDescription,
    /// Keys of its dump.
    pub keys: Option<KeyCounts>,
    /// Sizes.
    pub totals: NodeTotals,
    /// Names in its own directory; empty where they were not read.
    pub names: Vec<String>,
    /// Files that a restore by links copies all the same, and their bytes; `None` where that was not asked.
    #[serde(default)]
    pub copied: Option<(u64, u64)>,
}

impl SourceFacts {
    /// All nodes of a snapshot, without the names in their directories.
    pub fn of_snapshot(snapshot: &ClusterManifest) -> Vec<Self> {
        let facts = |record: &super::manifest::NodeRecord| Self {
            node: record.name.clone(),
            status: record.status,
            description: record.description.clone(),
            keys: record.keys,
            totals: record.totals,
            names: Vec::new(),
            copied: None,
        };
        snapshot.nodes.iter().map(facts).collect()
    }
}

/// One target node, inspected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// Its configured name; empty where only files are placed.
    pub node: String,
    /// The agent on whose host it is; `None`: this host.
    #[serde(default)]
    pub agent: Option<String>,
    /// Why that agent could not be asked: nothing else is known then.
    #[serde(default)]
    pub agent_fault: Option<String>,
    /// Its data directory on this host; `None` where the configuration names none.
    pub directory: Option<DirectoryFacts>,
    /// The node whose replica it is configured to be.
    #[serde(default)]
    pub replica_of: Option<String>,
    /// What its server said; `None`: it does not answer.
    pub server: Option<ServerFacts>,
    /// Why it could not be asked although something is there (password, rights): nothing is known then.
    pub server_fault: Option<String>,
    /// There is a command that stops its supervisor.
    pub has_stop: bool,
    /// There is a command that starts it.
    pub has_start: bool,
    /// What keeps it from starting while what its links lead to is away.
    #[serde(default)]
    pub guard: Guard,
    /// The Dynomite in front of it.
    #[serde(default)]
    pub proxy: Option<ProxyFacts>,
}

/// A Dynomite in front of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyFacts {
    /// Where it stands in its ring.
    pub place: RingPlace,
    /// There is a command that stops it.
    pub has_stop: bool,
    /// There is a command that starts it.
    pub has_start: bool,
    /// It answers at its admin port. One that does not may listen elsewhere.
    pub answers: bool,
}

/// Behind the name of a file that is on its way into a link's place: not the store's.
pub const HYDRATING: &str = ".tintype-hydrate";

/// What keeps a store from starting on links that lead nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Nothing does.
    #[default]
    None,
    /// Its start command runs `tintype guard`.
    Command,
    /// It is a unit of systemd, which gets a drop-in.
    Unit(String),
}

impl Guard {
    /// What a start command of a store in `directory` allows.
    pub fn of_start(command: &[String], directory: Option<&Path>) -> Self {
        let is = |word: &String, name: &str| word.rsplit('/').next() == Some(name);
        let is_guard = |words: &[String]| {
            is(&words[0], "tintype")
                && words[1] == "guard"
                && directory.is_some_and(|directory| Path::new(&words[2]) == directory)
        };
        if command.windows(3).any(is_guard) {
            return Self::Command;
        }
        // A user's or another host's systemd reads no drop-in of this one.
        let is_elsewhere = |word: &String| {
            matches!(word.as_str(), "--user" | "-H" | "-M") || word.starts_with("--host") || word.starts_with("--machine")
        };
        if command.iter().any(is_elsewhere) {
            return Self::None;
        }
        let words: Vec<_> = command.iter().skip_while(|word| !is(word, "systemctl")).skip(1).collect();
        let mut named = words.iter().skip_while(|word| !matches!(word.as_str(), "start" | "restart")).skip(1);
        match named.find(|word| !word.starts_with('-')) {
            Some(unit) if unit.ends_with(".service") => Self::Unit(unit.to_string()),
            Some(unit) => Self::Unit(format!("{unit}.service")),
            None => Self::None,
        }
    }
}

/// A data directory on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectoryFacts {
    /// As configured.
    pub path: PathBuf,
    /// With symbolic links resolved: the directory that is replaced.
    pub resolved: PathBuf,
    /// There is one now.
    pub exists: bool,
    /// It is the root of a mount, so that it cannot be renamed.
    pub is_mountpoint: bool,
    /// What stands in the way of reading and replacing it as us, in the system's words.
    pub fault: Option<String>,
    /// Whose it is.
    pub owner: (u32, u32),
    /// Bytes that may still be written on its file system, what an interrupted restore has left counted as free.
    pub free_bytes: u64,
    /// Bytes that an interrupted restore has left beside it.
    pub begun_bytes: u64,
    /// Bytes of the files in it.
    pub used_bytes: u64,
    /// When the youngest of its data files changed; `None` without any.
    pub newest: Option<Timestamp>,
    /// Names in it that are neither the store's data nor ours: they are carried over (configuration, cluster identity).
    pub carried: Vec<String>,
    /// Bytes of those.
    pub carried_bytes: u64,
    /// It holds append-only files of the multi-part form.
    pub has_append_directory: bool,
}

/// A server that answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `redis` or `valkey`.
    pub store: String,
    /// Its version, as it says.
    pub version: String,
    /// `master` or `slave`.
    pub role: String,
    /// Its process.
    pub pid: u32,
    /// It is reading its data.
    pub is_loading: bool,
    /// Directory that it works in, as it says.
    pub directory: Option<PathBuf>,
    /// Its settings, named as in a manifest.
    pub settings: BTreeMap<String, String>,
    /// A replica is connected to its master and has all of its data.
    #[serde(default)]
    pub link_is_up: bool,
    /// It is a node of a Redis Cluster.
    pub in_cluster: bool,
    /// Its identity there.
    #[serde(default)]
    pub cluster_id: String,
    /// Whose replica it is there.
    #[serde(default)]
    pub follows: Option<String>,
    /// `cluster_state:ok`, for cluster nodes.
    pub cluster_ok: bool,
    /// Inclusive ranges of its slots.
    pub slots: Vec<(u16, u16)>,
    /// Replicas that follow it, or would as cluster nodes.
    pub replicas: u64,
    /// Sentinel watches it; `None`: that is not known.
    #[serde(default)]
    pub is_watched: Option<bool>,
    /// Identity of its data's history: that of its replicas is the same.
    #[serde(default)]
    pub replication_id: String,
    /// Keys of all databases.
    pub keys: u64,
    /// Writes since it last saved.
    pub changes: u64,
    /// When it last saved, or was started; seconds since 1970.
    pub saved_at: i64,
    /// Keys that the last load brought; `None` before Redis 7.
    pub loaded_keys: Option<u64>,
    /// Keys that the last load passed over because their time had come.
    pub loaded_expired: Option<u64>,
    /// How far a load is, in bytes; for noticing one that stands still.
    pub loaded_bytes: u64,
}

impl ServerFacts {
    /// How long a master of its cluster may be away before it is failed over; 15 s where nobody says otherwise.
    pub fn node_timeout(&self) -> Duration {
        let said = self.settings.get("cluster-node-timeout").and_then(|text| text.parse().ok());
        Duration::from_millis(said.unwrap_or(15_000))
    }

    /// Where it looks for its data.
    pub fn layout(&self) -> StoreLayout {
        StoreLayout::from_settings(&self.settings, &self.version)
    }
}

/// How fast restores on a host were, in bytes a second; `None` before the first that was long enough to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpeeds {
    /// Bytes that were fetched, while they were placed.
    pub placing: Option<u64>,
    /// Bytes of the largest node, from the first stop until all had loaded and were checked.
    pub away: Option<u64>,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The configured cluster that is restored into; it is what `--confirm` must repeat.
    pub target_cluster: String,
    /// Only these stored nodes; empty: all of them.
    pub nodes: Vec<NodeName>,
    /// How the files come to the targets.
    pub method: Method,
    /// How fast the last restores on this host were.
    pub speeds: RestoreSpeeds,
    /// Stored node to target node, where the names do not tell.
    pub map: Vec<(NodeName, NodeName)>,
    /// What runs need not be saved into the directory that is set aside.
    pub discard_current: bool,
    /// What the operator typed to confirm the loss of newer data.
    pub confirm: Option<String>,
}
