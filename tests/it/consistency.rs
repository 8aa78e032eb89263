//! One instant: writers that never show B without A never find a snapshot that does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tintype::app::local_node::LocalNode;
use tintype::base::SystemClock;
use tintype::cluster::coordinator::{Coordinator, PublishedSnapshot, SnapshotError, SnapshotOptions};
use tintype::driver::redis::{CaptureMode, RedisDriver, RedisOptions};
use tintype::driver::{CaptureReceipt, CapturedContent, CapturedEntry, DriverError, FreezeReceipt, StoreDriver, ThawReceipt};
use tintype::model::extent::Segment;
use tintype::model::ids::SnapshotId;
use tintype::model::manifest::{CaptureProof, Consistency, CutKind, FileClass, FileKind, NodeDescription, Ownership};
use tintype::model::names::{ClusterName, NodeName, TreePath};
use tintype::node::NodeCapture;
use tintype::object::Capabilities;
use tintype::object::memory::MemoryStore;
use tintype::repo::{ListedSnapshot, Repository, SnapshotSource, WriterOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::from_replica::replica_of;
use crate::support::chains::{Chains, counters};
use crate::support::effort::{Random, effort, tell};
use crate::support::redis::{Server, cluster, redis_70};

/// Delay of each node before each step of the cut, drawn anew.
const SKEW: Duration = Duration::from_millis(20);
/// Far above what a cut takes, even with the skew and on a busy machine.
const PAUSE: Duration = Duration::from_secs(5);
const WRITERS: usize = 10;
/// Without a pause nearly every snapshot is torn: as many without one would be a harness that does not see.
const TRIES: usize = 30;
/// A third of the cuts beside a stranger see no write between its command and their own end, on a slow machine more.
const TRIES_BESIDE_A_STRANGER: usize = 200;

/// A driver that comes late to everything.
#[derive(Debug)]
struct Skewed<D> {
    inner: D,
    random: Random,
}

impl<D> Skewed<D> {
    async fn dawdle(&mut self) {
        tokio::time::sleep(self.random.duration(SKEW)).await;
    }
}

#[async_trait]
impl<D: StoreDriver> StoreDriver for Skewed<D> {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        self.inner.describe().await
    }

    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), DriverError> {
        self.inner.prepare(max_pause, patience).await
    }

    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        self.dawdle().await;
        self.inner.freeze(pause).await
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        self.dawdle().await;
        self.inner.capture().await
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        self.dawdle().await;
        self.inner.thaw().await
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        self.inner.collect().await
    }

    async fn abandon(&mut self) {
        self.inner.abandon().await;
    }
}

/// A full synchronisation without a pause around it.
#[derive(Debug)]
struct Unpaused {
    address: String,
    replica: Option<BufReader<TcpStream>>,
}

impl Unpaused {
    fn broken(&self, reason: impl ToString) -> DriverError {
        DriverError::Broken { node: self.address.clone(), reason: reason.to_string() }
    }
}

#[async_trait]
impl StoreDriver for Unpaused {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        Ok(NodeDescription { address: self.address.clone(), ..NodeDescription::default() })
    }

    async fn prepare(&mut self, _max_pause: Duration, _patience: Duration) -> Result<(), DriverError> {
        let mut replica = BufReader::new(TcpStream::connect(&self.address).await.map_err(|error| self.broken(error))?);
        for command in ["REPLCONF capa eof capa psync2\r\n", "REPLCONF rdb-only 1\r\n"] {
            replica.write_all(command.as_bytes()).await.map_err(|error| self.broken(error))?;
            let mut line = String::new();
            replica.read_line(&mut line).await.map_err(|error| self.broken(error))?;
        }
        self.replica = Some(replica);
        Ok(())
    }

    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        Ok(FreezeReceipt { deadline: pause, node_time_us: None })
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        let mut replica = self.replica.take().expect("prepared");
        replica.write_all(b"PSYNC ? -1\r\n").await.map_err(|error| self.broken(error))?;
        let mut line = String::new();
        while !line.starts_with("+FULLRESYNC") {
            line.clear();
            replica.read_line(&mut line).await.map_err(|error| self.broken(error))?;
        }
        self.replica = Some(replica);
        Ok(CaptureReceipt::default())
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        Ok(ThawReceipt { proof: CaptureProof::none() })
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        let mut bytes = Vec::new();
        self.replica.take().expect("captured").read_to_end(&mut bytes).await.map_err(|error| self.broken(error))?;
        let start = bytes.windows(5).position(|window| window == b"REDIS").expect("a dump came");
        Ok(vec![CapturedEntry {
            path: TreePath::new("dump.rdb").expect("a name"),
            kind: FileKind::File,
            class: FileClass::Immutable,
            mode: 0o640,
            owner: Ownership::default(),
            modified_ns: 0,
            block_bytes: 1 << 20,
            content: CapturedContent::Literal(bytes.split_off(start)),
        }])
    }

    async fn abandon(&mut self) {
        self.replica = None;
    }
}

/// Servers, a repository, and snapshots of the ones in the other.
struct Stage {
    servers: Vec<Server>,
    repository: Arc<Repository>,
    random: Random,
}

fn node_name(server: &Server) -> NodeName {
    NodeName::new(format!("node-{}", server.port)).expect("a name")
}

fn cluster_name() -> ClusterName {
    ClusterName::new("chains").expect("a name")
}

impl Stage {
    async fn new(servers: Vec<Server>, random: Random) -> Self {
        let capabilities =
            Capabilities { refuses_second_create: true, refuses_stale_replace: true, checks_uploads: true, serves_ranges: true };
        let store = Arc::new(MemoryStore::new());
        let repository = Repository::init(store, None, capabilities, 0).await.expect("a repository");
        Self { servers, repository: Arc::new(repository), random }
    }

    /// Writers on all servers, to be dropped before these.
    fn writers(&mut self) -> Chains {
        Chains::start(&self.servers, WRITERS, &mut self.random)
    }

    fn honest(&mut self, server: usize) -> Box<dyn StoreDriver> {
        let inner = RedisDriver::new(self.servers[server].options()).expect("the url is good");
        Box::new(Skewed { inner, random: self.random.fork() })
    }

    fn unpaused(&mut self, server: usize) -> Box<dyn StoreDriver> {
        let address = format!("127.0.0.1:{}", self.servers[server].port);
        Box::new(Skewed { inner: Unpaused { address, replica: None }, random: self.random.fork() })
    }

    /// A replica forks instead of the server.
    fn of_replica(&mut self, server: usize) -> Box<dyn StoreDriver> {
        let options = RedisOptions { capture: CaptureMode::FromReplica, ..self.servers[server].options() };
        let inner = RedisDriver::new(options).expect("the url is good");
        Box::new(Skewed { inner, random: self.random.fork() })
    }

    async fn snapshot(
        &mut self,
        driver: fn(&mut Self, usize) -> Box<dyn StoreDriver>,
    ) -> Result<PublishedSnapshot, SnapshotError> {
        let uuid = SnapshotId::new_v4();
        let mut nodes: Vec<Box<dyn tintype::agent::NodeService>> = Vec::new();
        for server in 0..self.servers.len() {
            let capture = NodeCapture {
                repository: self.repository.clone(),
                cluster: cluster_name(),
                node: node_name(&self.servers[server]),
                snapshot: uuid,
                parent: None,
                options: WriterOptions::new(Some(-1), 2),
                spool: None,
            };
            let driver = driver(self, server);
            nodes.push(Box::new(LocalNode::new(driver, capture)));
        }
        let options = SnapshotOptions {
            uuid,
            cluster: cluster_name(),
            store: "redis".to_owned(),
            cut_kind: CutKind::Frozen,
            pause: PAUSE,
            patience: Duration::from_secs(20),
            partial: false,
            left_out: Vec::new(),
            adopt: true,
            tags: Default::default(),
        };
        // The sender is gone: nobody interrupts.
        let (_, interrupted) = tokio::sync::watch::channel(false);
        let clock = Arc::new(SystemClock::default());
        Coordinator::new(self.repository.clone(), clock, options, nodes, interrupted, Box::new(|_| {})).run().await
    }

    /// The dump of each node, from the repository.
    async fn dumps(&self, listed: &ListedSnapshot) -> Vec<Vec<u8>> {
        let manifest = self.repository.manifest(listed).await.expect("a manifest");
        let mut dumps = Vec::new();
        for server in &self.servers {
            let tree = self.repository.open_node(&manifest, &node_name(server)).await.expect("the node is stored");
            let path = TreePath::new("dump.rdb").expect("a name");
            let file = self.repository.entry(&tree, &path).await.expect("a tree").expect("a dump");
            let mut dump = Vec::new();
            while let Some(run) = self.repository.segments(&tree, &file, dump.len() as u64).await.expect("a table") {
                for segment in run.segments() {
                    match segment {
                        Segment::Literal(bytes) => dump.extend_from_slice(bytes),
                        Segment::Block(extent) => {
                            let blocks = self.repository.read_blocks(&tree, std::slice::from_ref(extent)).await;
                            dump.extend_from_slice(&blocks.expect("a block")[0]);
                        }
                    }
                }
            }
            dumps.push(dump);
        }
        dumps
    }
}

fn all_counters(dumps: &[Vec<u8>]) -> HashMap<String, u64> {
    dumps.iter().flat_map(|dump| counters(dump)).collect()
}

/// The reader of this test is believed because servers that load the dumps agree with it.
fn servers_agree(dumps: &[Vec<u8>]) {
    for dump in dumps {
        let place = tempfile::Builder::new().prefix("tintype-redis-").tempdir().expect("a temporary directory");
        std::fs::write(place.path().join("dump.rdb"), dump).expect("a dump");
        let restored = Server::start_in(&redis_70(), place, &[]);
        let expected = counters(dump);
        assert_eq!(restored.command(&["DBSIZE"]), expected.len().to_string());
        for (key, counter) in expected {
            assert_eq!(restored.command(&["GET", &key]), counter.to_string());
        }
    }
}

async fn snapshots_show_one_instant(
    servers: Vec<Server>,
    random: Random,
    count: usize,
    driver: fn(&mut Stage, usize) -> Box<dyn StoreDriver>,
) {
    let mut stage = Stage::new(servers, random).await;
    let chains = stage.writers();
    let (mut pauses, mut void) = (Vec::new(), 0);
    while pauses.len() < count {
        let published = match stage.snapshot(driver).await {
            Ok(published) => published,
            // A machine that stood still for seconds; what may not be is a void cut that is published.
            Err(SnapshotError::Void(reason)) => {
                tell(&format!("void: {reason}"));
                void += 1;
                assert!(void <= count / 10 + 1, "{void} void cuts, the last one: {reason}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(published.manifest.cut.consistent, Consistency::Proved);
        let dumps = stage.dumps(&published.listed).await;
        let found = all_counters(&dumps);
        assert!(chains.keys.iter().flatten().all(|key| found.contains_key(key)), "every counter is in a dump");
        assert_eq!(chains.violations(&found), Vec::<String>::new(), "snapshot {}", pauses.len());
        if pauses.len().is_multiple_of(20) {
            servers_agree(&dumps);
        }
        pauses.push((published.manifest.cut.pause_us, published.manifest.cut.capture_us));
    }
    pauses.sort_unstable();
    let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    tell(&format!("{count} snapshots, 0 violations, {void} void; (pause, captures) us: median {median:?}, longest {longest:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_a_cluster_show_one_instant_whatever_the_skew() {
    let random = Random::begin("a cluster");
    snapshots_show_one_instant(cluster(&redis_70(), 3, &[]), random, effort(20, 300), Stage::honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_standalone_masters_show_one_instant_whatever_the_skew() {
    let random = Random::begin("standalone masters");
    let servers = (0..4).map(|_| Server::start(&redis_70(), &[])).collect();
    snapshots_show_one_instant(servers, random, effort(10, 300), Stage::honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_replicas_fork_show_one_instant_whatever_the_skew() {
    let random = Random::begin("replicas that fork");
    let servers: Vec<Server> = (0..3).map(|_| Server::start(&redis_70(), &["--repl-diskless-sync-delay", "0"])).collect();
    let _replicas: Vec<Server> = servers.iter().map(|server| replica_of(server, &redis_70(), &[])).collect();
    snapshots_show_one_instant(servers, random, effort(10, 300), Stage::of_replica).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_pause_the_same_writers_catch_a_torn_snapshot() {
    let random = Random::begin("without a pause");
    let servers = cluster(&redis_70(), 3, &["--repl-diskless-sync-delay", "0"]);
    let mut stage = Stage::new(servers, random).await;
    let chains = stage.writers();
    for tried in 1..=TRIES {
        let published = stage.snapshot(Stage::unpaused).await.expect("nothing is claimed, so nothing is void");
        assert_eq!(published.manifest.cut.consistent, Consistency::No);
        let torn = chains.violations(&all_counters(&stage.dumps(&published.listed).await));
        if !torn.is_empty() {
            tell(&format!("torn at try {tried}: {torn:?}"));
            return;
        }
    }
    panic!("{TRIES} snapshots without a pause and none is torn: the harness does not see");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_a_stranger_ends_is_never_published() {
    let random = Random::begin("a stranger");
    let mut stage = Stage::new(cluster(&redis_70(), 3, &[]), random).await;
    let chains = stage.writers();
    let mut stranger = stage.servers[1].connection();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                redis::cmd("CLIENT").arg("UNPAUSE").query::<()>(&mut stranger).expect("unpaused");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let (mut tried, mut void) = (0, 0);
    // How often a write comes through in time is the machine's affair: on until one did.
    while tried < effort(5, 50) || (void == 0 && tried < TRIES_BESIDE_A_STRANGER) {
        tried += 1;
        match stage.snapshot(Stage::honest).await {
            // No write came through in time: then it is one instant all the same.
            Ok(published) => {
                let torn = chains.violations(&all_counters(&stage.dumps(&published.listed).await));
                assert_eq!(torn, Vec::<String>::new());
            }
            Err(SnapshotError::Void(_)) => void += 1,
            Err(error) => panic!("{error}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    thread.join().expect("the stranger does not panic");
    assert!(void > 0, "{tried} snapshots and nobody noticed the stranger");
}
