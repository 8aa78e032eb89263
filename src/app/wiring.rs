//! From configuration and command line to opened things: the repository, the nodes of a cluster, a chosen snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::config::{ClusterConfig, Compression, Config, NodeConfig, read_key_file, read_secret};
use super::control_args::{CommonArgs, SourceArgs};
use super::failure::Failure;
use super::output::Output;
use super::ring;
use crate::base::{Accounts, Clock, SystemClock};
use crate::driver::dynomite::{DynomiteDriver, DynomiteOptions};
use crate::driver::redis::{CaptureMode, Password, RedisDriver, RedisOptions, discover};
use crate::driver::served::ServedNode;
use crate::driver::{
    ProxySite, StoreDriver,
    files::{FilesDriver, FilesOptions},
};
use crate::model::names::{ClusterName, NodeName};
use crate::model::snapshot_name::{DateQuery, SnapshotName};
use crate::model::time::Timestamp;
use crate::object::{self, Breaker, ObjectStore, S3Options};
use crate::repo::{ListedSnapshot, Repository, Secret, SnapshotSource};

/// zstd level of blocks where nothing is said: 430 MB/s a core in, 1.5 GB/s out, half the size. A restore at three in
/// the morning is worth more than the few per cent that level 1 saves.
const DEFAULT_LEVEL: i32 = -1;

/// What every verb starts from.
#[derive(Debug)]
pub struct Session {
    /// The configuration, or an empty one.
    pub config: Config,
    /// Where it came from.
    pub config_path: Option<PathBuf>,
    /// Options of the command line that every verb has.
    pub common: CommonArgs,
    /// Where results go.
    pub output: Output,
    /// The host's clock.
    pub clock: Arc<dyn Clock>,
}

/// One node of a live cluster, as configured or discovered.
#[derive(Debug)]
pub struct ClusterNode {
    /// Its name in snapshots.
    pub name: NodeName,
    /// Redis nodes: how it is reached.
    pub redis: Option<RedisOptions>,
    /// Tokens of a ring: the nodes that hold it.
    pub ring: Option<DynomiteOptions>,
    /// Nodes of a ring as the configuration names them: the Dynomite in front.
    pub proxy: Option<ProxySite>,
    /// Files nodes: its directory. Redis nodes: its data directory where it is on this host.
    pub directory: Option<PathBuf>,
    /// What else the configuration says.
    pub config: NodeConfig,
}

impl Session {
    /// Loads the configuration.
    pub fn begin(common: CommonArgs) -> Result<Self, Failure> {
        let output = Output { is_json: common.json, is_quiet: common.quiet };
        let (config, config_path) = super::config::load(common.config.as_deref())?;
        Ok(Self { config, config_path, common, output, clock: Arc::new(SystemClock::default()) })
    }

    /// The wall clock.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.wall_us())
    }

    /// The repository's URL, from the command line, the environment or the configuration.
    pub fn url(&self) -> Result<&str, Failure> {
        self.common.repository.as_deref().or(self.config.repository.url.as_deref()).ok_or_else(|| {
            Failure::usage("no repository is named")
                .hint("say --repository URL, set $TINTYPE_REPOSITORY, or write url under [repository] into the configuration")
        })
    }

    /// The repository's directory, where it is one of this host.
    pub fn repository_directory(&self) -> Result<Option<PathBuf>, Failure> {
        let url = self.url()?;
        Ok(url.strip_prefix("file://").or_else(|| (!url.contains("://")).then_some(url)).map(PathBuf::from))
    }

    /// S3 options of the configuration; the URL's own come on top.
    fn s3_options(&self) -> Result<S3Options, Failure> {
        let from = &self.config.repository;
        let encryption = from
            .sse
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|error: String| Failure::usage(format!("[repository] sse: {error}")))?;
        Ok(S3Options {
            endpoint: from.endpoint.clone(),
            region: from.region.clone(),
            path_style: from.path_style,
            profile: from.profile.clone(),
            credentials_file: from.credentials_file.clone(),
            storage_class: from.storage_class.clone(),
            encryption,
            ..S3Options::default()
        })
    }

    /// The object store. For `init` a local directory is made.
    pub fn store(&self, is_new: bool) -> Result<Arc<dyn ObjectStore>, Failure> {
        let (url, options) = (self.url()?, self.s3_options()?);
        Ok(if is_new { object::create(url, options)? } else { object::open(url, options)? })
    }

    /// Passphrase or key file, where one was given.
    pub fn secret(&self) -> Result<Option<Secret>, Failure> {
        let from = &self.config.repository;
        if let Some(path) = &self.common.key_file {
            return Ok(Some(Secret::KeyFile(read_key_file(path)?)));
        }
        if let Some(path) = self.common.password_file.as_ref().or(from.password_file.as_ref()) {
            return Ok(Some(Secret::Passphrase(read_secret(path)?)));
        }
        if let Some(command) = &from.password_command {
            return Ok(Some(Secret::Passphrase(password_from(command)?)));
        }
        from.key_file.as_deref().map(|path| Ok(Secret::KeyFile(read_key_file(path)?))).transpose()
    }

    /// Opens the repository.
    pub async fn repository(&self) -> Result<Arc<Repository>, Failure> {
        self.repository_in(self.store(false)?).await
    }

    /// The same for who reads for as long as the host runs and whose calls take `deadline` at most: a connection that hangs
    /// is given up in time for another, and a store that is away is waited for and then left alone.
    pub async fn lasting_repository(&self, deadline: Duration) -> Result<(Arc<Repository>, Arc<Breaker>), Failure> {
        let options = self.s3_options()?;
        let options = S3Options {
            connect_timeout: options.connect_timeout.min(deadline / 6),
            read_timeout: options.read_timeout.min(deadline / 3),
            operation_timeout: options.operation_timeout.min(deadline),
            // The breaker tries again, once for all who read.
            max_attempts: options.max_attempts.min(2),
            ..options
        };
        let store = Arc::new(Breaker::new(object::open(self.url()?, options)?, deadline));
        Ok((self.repository_in(store.clone()).await?, store))
    }

    async fn repository_in(&self, store: Arc<dyn ObjectStore>) -> Result<Arc<Repository>, Failure> {
        let secret = self.secret()?;
        let repository = Repository::open(store.clone(), secret.as_ref()).await?;
        store.assume(&repository.descriptor().capabilities);
        Ok(Arc::new(repository))
    }

    /// zstd level as configured.
    pub fn level(&self) -> Option<i32> {
        self.config.repository.compression.unwrap_or(Compression(Some(DEFAULT_LEVEL))).0
    }

    /// Packs under way at once: enough for a disk that is waited for at the end of each, and for one connection's latency.
    pub fn uploads(&self) -> usize {
        self.config.repository.uploads.unwrap_or(4)
    }

    /// Where running jobs and kept directories are remembered.
    pub fn state_directory(&self) -> PathBuf {
        if let Some(directory) = &self.config.state_directory {
            return directory.clone();
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        match home {
            Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/state/tintype"),
            _ => PathBuf::from("/var/lib/tintype"),
        }
    }

    /// The nodes of a cluster: those of the command line, else those of the configuration.
    pub async fn nodes(
        &self,
        cluster: &ClusterName,
        source: &SourceArgs,
        capture: Option<&str>,
    ) -> Result<(String, Vec<ClusterNode>), Failure> {
        if !source.files.is_empty() {
            return Ok(("files".to_owned(), files_nodes(&source.files)?));
        }
        let configured = self.config.clusters.get(cluster);
        if source.redis.is_empty() && configured.is_none() {
            let known: Vec<_> = self.config.clusters.keys().map(ToString::to_string).collect();
            let failure = Failure::usage(format!("nothing is known of where cluster {cluster} is"));
            return Err(match known.as_slice() {
                [] => failure.hint("say --redis HOST:PORT or --files DIRECTORY, or write it into the configuration with `tintype setup HOST:PORT`"),
                known => failure.hint(format!("configured clusters: {}; or say --redis HOST:PORT", known.join(", "))),
            });
        }
        let default = ClusterConfig::default();
        let config = configured.unwrap_or(&default);
        // Addresses on the command line say what the nodes are, whatever the configuration has under this name.
        let store = config.store.as_deref().filter(|_| source.redis.is_empty()).unwrap_or("redis");
        if let Some(key) = config.ring_key().filter(|_| store != "dynomite" && source.redis.is_empty()) {
            return Err(Failure::usage(format!("[clusters.{cluster}] {key} is of a ring of Dynomite, and store is {store:?}"))
                .hint("say store = \"dynomite\", or leave it out"));
        }
        match store {
            "files" => {
                let mut nodes = Vec::new();
                for (name, node) in &config.nodes {
                    let directory = node.data_directory.clone();
                    if directory.is_none() && node.agent.is_none() {
                        return Err(Failure::usage(format!("[clusters.{cluster}.nodes.{name}] has no data_directory")));
                    }
                    nodes.push(ClusterNode { directory, config: node.clone(), ..ClusterNode::new(name.clone()) });
                }
                Ok(("files".to_owned(), nodes))
            }
            "redis" => Ok(("redis".to_owned(), self.redis_nodes(cluster, config, source, capture).await?)),
            "dynomite" => Ok(("dynomite".to_owned(), ring::tokens(cluster, config, capture).await?)),
            other => Err(Failure::usage(format!("[clusters.{cluster}] store: {other:?} is not known"))
                .hint("redis, dynomite and files are")),
        }
    }

    async fn redis_nodes(
        &self,
        cluster: &ClusterName,
        config: &ClusterConfig,
        source: &SourceArgs,
        capture: Option<&str>,
    ) -> Result<Vec<ClusterNode>, Failure> {
        let capture = config.capture_mode(cluster, capture)?;
        let options =
            |name: &NodeName, address: &str, node: &NodeConfig| redis_options(config, source, capture, name, address, node);
        let mut nodes: Vec<ClusterNode> = Vec::new();
        let seeds: Vec<&String> =
            if source.redis.is_empty() { config.discover.iter().collect() } else { source.redis.iter().collect() };
        for address in seeds {
            let seed = options(&NodeName::new(plain_name(address))?, address, &NodeConfig::default())?;
            for found in discover(&seed, &config.masters).await? {
                if nodes.iter().any(|node| node.redis.as_ref().is_some_and(|redis| redis.url == found.url)) {
                    continue;
                }
                // The configuration may name a discovered node, and say where its files are.
                let is_there = |node: &NodeConfig| node.address.as_deref().is_some_and(|address| redis_url(address) == found.url);
                let named =
                    config.nodes.get_key_value(&found.node).or_else(|| config.nodes.iter().find(|(_, node)| is_there(node)));
                let (name, node) = named
                    .map_or_else(|| (found.node.clone(), NodeConfig::default()), |(name, node)| (name.clone(), node.clone()));
                let redis = options(&name, &found.url, &node)?;
                let directory = node.data_directory.clone();
                nodes.push(ClusterNode { redis: Some(redis), directory, config: node, ..ClusterNode::new(name) });
            }
        }
        if nodes.is_empty() {
            nodes = configured(cluster, config, &options)?;
            // They hold what their masters hold.
            nodes.retain(|node| node.config.replica_of.is_none());
        }
        if nodes.is_empty() {
            return Err(Failure::usage(format!("cluster {cluster} has no nodes"))
                .hint(format!("write discover or nodes under [clusters.{cluster}]")));
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Failure::usage(format!("two nodes of {cluster} have the name {}", pair[0].name))
                .hint("name them in the configuration"));
        }
        Ok(nodes)
    }

    /// The nodes of a cluster as the configuration names them, without asking anybody: a restore's targets may be down.
    pub fn configured_nodes(&self, cluster: &ClusterName) -> Result<Vec<ClusterNode>, Failure> {
        let hint =
            format!("write each node with its address, data_directory, stop and start under [clusters.{cluster}.nodes.NODE]");
        let Some(config) = self.config.clusters.get(cluster) else {
            return Err(Failure::usage(format!("cluster {cluster} is not configured, so where its nodes are is not known"))
                .hint(format!("{hint}; or say --directory DIR to place files only")));
        };
        if config.nodes.is_empty() {
            return Err(Failure::usage(format!("[clusters.{cluster}] names no nodes")).hint(hint));
        }
        if config.store.as_deref() == Some("files") {
            let node = |(name, node): (&NodeName, &NodeConfig)| ClusterNode {
                directory: node.data_directory.clone(),
                config: node.clone(),
                ..ClusterNode::new(name.clone())
            };
            return Ok(config.nodes.iter().map(node).collect());
        }
        if config.store.as_deref() == Some("dynomite") {
            return ring::members(cluster, config);
        }
        let source = SourceArgs::default();
        configured(cluster, config, &|name, address, node| {
            redis_options(config, &source, CaptureMode::default(), name, address, node)
        })
    }

    /// The one snapshot that was named.
    pub async fn choose(&self, source: &dyn SnapshotSource, name: &SnapshotName) -> Result<ListedSnapshot, Failure> {
        let query = name.date.clone().unwrap_or(DateQuery::Latest);
        let listed = source.snapshots(&name.cluster).await?;
        if listed.is_empty() {
            let known: Vec<_> = source.clusters().await?.iter().map(ToString::to_string).collect();
            let hint = if known.is_empty() {
                "no cluster is stored yet; `tintype snapshot` makes the first snapshot".to_owned()
            } else {
                format!("stored clusters: {}", known.join(", "))
            };
            return Err(Failure::new("not_found", format!("cluster {} has no snapshots", name.cluster)).hint(hint));
        }
        let all: Vec<_> = listed.iter().map(|snapshot| (snapshot.date, snapshot.uuid, snapshot.is_complete)).collect();
        let index = query.choose(&name.cluster, &all)?;
        Ok(listed.into_iter().nth(index).expect("chosen among these"))
    }

    /// Takes a name apart and finds its snapshot.
    pub async fn find(&self, source: &dyn SnapshotSource, text: &str) -> Result<(SnapshotName, ListedSnapshot), Failure> {
        let name = SnapshotName::parse(text, self.now())?;
        let listed = self.choose(source, &name).await?;
        Ok((name, listed))
    }
}

impl ClusterNode {
    /// Under which name its data is in snapshots: in a ring that of its token, whichever rack was captured.
    pub fn stored_name(&self) -> Result<NodeName, Failure> {
        self.config.token.map_or_else(|| Ok(self.name.clone()), ring::token_name)
    }

    /// A node of which nothing is known yet.
    pub(super) fn new(name: NodeName) -> Self {
        Self { name, redis: None, ring: None, proxy: None, directory: None, config: NodeConfig::default() }
    }

    /// A driver for it; `served` is what restores by links have on this host.
    pub fn driver(&self, clock: &Arc<dyn Clock>, served: &[ServedNode]) -> Result<Box<dyn StoreDriver>, Failure> {
        if let Some(ring) = &self.ring {
            return Ok(Box::new(DynomiteDriver::new(ring.clone().serving(served))?));
        }
        match (&self.redis, &self.directory) {
            (Some(options), _) => Ok(Box::new(RedisDriver::new(RedisOptions { served: served.to_vec(), ..options.clone() })?)),
            (None, Some(directory)) => {
                let options = FilesOptions {
                    node: self.name.to_string(),
                    directory: directory.clone(),
                    staging: None,
                    classes: Vec::new(),
                    served: served.to_vec(),
                };
                Ok(Box::new(FilesDriver::new(options, clock.clone())))
            }
            (None, None) => Err(Failure::usage(format!("nothing is known of where node {} is", self.name))),
        }
    }
}

type MakeOptions<'a> = &'a dyn Fn(&NodeName, &str, &NodeConfig) -> Result<RedisOptions, Failure>;

/// The nodes that the configuration names.
fn configured(cluster: &ClusterName, config: &ClusterConfig, options: MakeOptions<'_>) -> Result<Vec<ClusterNode>, Failure> {
    // A node that is no replica of anything would be stored by nobody.
    for (name, node) in &config.nodes {
        let Some(master) = &node.replica_of else { continue };
        let is_master = config.nodes.get(master).is_some_and(|master| master.replica_of.is_none());
        if !is_master {
            let message =
                format!("[clusters.{cluster}.nodes.{name}] replica_of = {:?} names no master of this cluster", master.as_str());
            return Err(Failure::usage(message).hint("name a node of the same cluster that has no replica_of itself"));
        }
    }
    let node = |(name, node): (&NodeName, &NodeConfig)| {
        let redis = match &node.address {
            Some(address) => Some(options(name, address, node)?),
            // Its agent knows.
            None if node.agent.is_some() => None,
            None => return Err(Failure::usage(format!("[clusters.{cluster}.nodes.{name}] has no address"))),
        };
        let directory = node.data_directory.clone();
        Ok(ClusterNode { redis, directory, config: node.clone(), ..ClusterNode::new(name.clone()) })
    };
    config.nodes.iter().map(node).collect()
}

/// How one node is reached: what its own section says, else the command line, else its cluster's section.
pub(super) fn redis_options(
    config: &ClusterConfig,
    source: &SourceArgs,
    capture: CaptureMode,
    name: &NodeName,
    address: &str,
    node: &NodeConfig,
) -> Result<RedisOptions, Failure> {
    let user = node.user.as_ref().or(source.redis_user.as_ref()).or(config.user.as_ref());
    let password_file = node.password_file.as_ref().or(source.redis_password_file.as_ref()).or(config.password_file.as_ref());
    let password = password_file.map(|path| read_secret(path)).transpose()?;
    Ok(RedisOptions {
        user: user.cloned(),
        password: password.map(|password| Password::new(password.as_str())),
        ca_file: node.ca_file.as_ref().or(config.ca_file.as_ref()).cloned(),
        capture,
        data_directory: node.data_directory.clone(),
        ..RedisOptions::new(name.clone(), redis_url(address))
    })
}

/// `host:port` as a URL; URLs stay what they are.
pub fn redis_url(address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.contains("://") { address.to_owned() } else { format!("redis://{address}") }
}

/// The same repository for a process that works in another directory.
pub fn absolute_url(url: &str) -> String {
    if url.contains("://") {
        return url.to_owned();
    }
    std::path::absolute(url).map_or_else(|_| url.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// A node name for messages about an address.
fn plain_name(address: &str) -> String {
    let host = address.rsplit_once("://").map_or(address, |(_, host)| host).rsplit('@').next().unwrap_or_default();
    let name: String = host
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || matches!(character, '.' | '-') { character } else { '_' })
        .collect();
    let name = name.trim_matches(|character: char| !character.is_ascii_alphanumeric());
    if name.is_empty() { "redis".to_owned() } else { name.to_owned() }
}

/// Directories as nodes, each named after its last component.
fn files_nodes(directories: &[PathBuf]) -> Result<Vec<ClusterNode>, Failure> {
    let mut nodes: Vec<ClusterNode> = Vec::new();
    for directory in directories {
        let resolved = directory
            .canonicalize()
            .map_err(|error| Failure::usage(format!("{}: {error}", directory.display())).hint("name an existing directory"))?;
        let last = resolved.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = NodeName::new(plain_name(&last)).map_err(|_| {
            Failure::usage(format!("{} cannot be a node's name", directory.display()))
                .hint("write the node into the configuration, under a name of its own")
        })?;
        if nodes.iter().any(|node| node.name == name) {
            return Err(Failure::usage(format!("two directories would have the name {name}"))
                .hint("write them into the configuration, under names of their own"));
        }
        nodes.push(ClusterNode { directory: Some(resolved), ..ClusterNode::new(name) });
    }
    Ok(nodes)
}

/// First line of what a command prints. It has a minute: a password manager may ask its owner.
fn password_from(command: &[String]) -> Result<Zeroizing<String>, Failure> {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::usage("password_command is empty"))?;
    let wrong = |reason: String| {
        Failure::usage(format!("password_command {program}: {reason}")).hint("run it by hand to see what it says")
    };
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::inherit())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| wrong(error.to_string()))?;
    let started = std::time::Instant::now();
    while child.try_wait().map_err(|error| wrong(error.to_string()))?.is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            let _gone = child.kill();
            let _reaped = child.wait();
            return Err(wrong("it did not end within 60 s".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().map_err(|error| wrong(error.to_string()))?;
    if !output.status.success() {
        return Err(wrong(format!("it ended with {}", output.status)));
    }
    let stdout = Zeroizing::new(output.stdout);
    let line = std::str::from_utf8(&stdout).ok().and_then(|text| text.lines().next()).unwrap_or_default();
    if line.is_empty() { Err(wrong("its first line of output is empty".to_owned())) } else { Ok(Zeroizing::new(line.to_owned())) }
}

/// `USER:GROUP`, by name or number, as numbers.
pub fn parse_owner(text: &str) -> Result<(u32, u32), Failure> {
    let wrong = |reason: &str| {
        Failure::usage(format!("owner {text:?}: {reason}")).hint("say USER:GROUP, for example redis:redis or 999:999")
    };
    let (user, group) = text.split_once(':').ok_or_else(|| wrong("has no colon"))?;
    // Names that only a directory service knows are to be given as numbers.
    let accounts = Accounts::of_host();
    let uid = user.parse().ok().or_else(|| accounts.user(user)).ok_or_else(|| wrong("no such user"))?;
    let gid = group.parse().ok().or_else(|| accounts.group(group)).ok_or_else(|| wrong("no such group"))?;
    Ok((uid, gid))
}
