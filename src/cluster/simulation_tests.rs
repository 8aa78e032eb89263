//! The whole protocol in one process and under one clock that moves only when nobody has anything to do: coordinators, leases,
//! agents and their network, with messages that are lost, late, repeated and out of order, and with deaths at every instant.
//!
//! Each seed is one world. The stores of a world are counters that writers raise one after the other, so that what a snapshot
//! holds shows whether it is of one instant. A failed claim names its seed; `scripts/simulate` draws many.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::coordinator::{Coordinator, PublishedSnapshot, SnapshotError, SnapshotOptions};
use crate::agent::desk::{Assigned, Desk, NodeFactory};
use crate::agent::orders::Order;
use crate::agent::remote::{Courier, CourierError, RemoteNode};
use crate::agent::{NodeError, NodeErrorKind, NodeService, Reply, Ticket, UploadReceipt};
use crate::base::{Clock, ManualClock};
use crate::model::extent::{SEQUENTIAL_BLOCK_BYTES, Segment};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{CaptureProof, Consistency, CutKind, FileClass, NodeDescription, NodeStatus, Ownership};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::object::conformance::EVERYTHING;
use crate::object::memory::MemoryStore;
use crate::object::{ObjectEntry, ObjectError, ObjectPage, ObjectStore, PutMode, PutReceipt};
use crate::repo::{EntryMeta, NodeWriter, RepoError, Repository, SnapshotSource, WriterOptions};

const PAUSE: Duration = Duration::from_secs(2);
const CUT: i64 = 1_700_000_000_000_000;
/// A lease lasts two minutes; one that another clock gave out is watched for some 45 s.
const LEASE_OVER: Duration = Duration::from_secs(120 + 50);
/// Coordinators, agents and partitions happen within this; then all is well again.
const TROUBLES: Duration = Duration::from_secs(240);

/// SplitMix64: a seed is a world, on every machine.
#[derive(Debug)]
struct Dice(AtomicU64);

impl Dice {
    fn next(&self) -> u64 {
        let mut mixed = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn hits(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn up_to(&self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64 + 1))
    }
}

/// Who raises the counters of all stores in turn, each only after the one before.
#[derive(Debug)]
struct Writer {
    chain: Vec<usize>,
    at: usize,
    round: u64,
}

/// A store: one counter, and whether writes are held back.
#[derive(Debug, Default)]
struct Store {
    value: u64,
    frozen_until: Option<Duration>,
    /// By whom it was frozen, and how often.
    freezes: BTreeMap<SnapshotId, u32>,
    /// The latest epoch that an agent of it obeyed.
    epoch: u64,
    /// Held for a snapshot: given back, or gone with the process that held it.
    held: Option<(SnapshotId, u64)>,
}

/// What everybody in a world shares.
#[derive(Debug)]
struct World {
    seed: u64,
    clock: ManualClock,
    dice: Dice,
    stores: Vec<Mutex<Store>>,
    writer: Mutex<Writer>,
    /// Which life of a host's agent is the present one.
    lives: Vec<AtomicU64>,
    /// Nobody reaches the host until then.
    cut_off_until: Vec<Mutex<Duration>>,
    /// Work on other threads, during which time stands still.
    busy: AtomicU64,
    storing: tokio::sync::Mutex<()>,
    is_well: AtomicBool,
    /// What a harness that sees nothing would not see: captures without a pause.
    without_pause: bool,
    latency: Duration,
    loses: u64,
}

impl World {
    fn store(&self, node: usize) -> MutexGuard<'_, Store> {
        self.stores[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self, node: usize) -> u64 {
        self.lives[node].load(Ordering::SeqCst)
    }

    fn is_frozen(&self, node: usize) -> bool {
        self.store(node).frozen_until.is_some_and(|until| self.clock.monotonic() < until)
    }

    fn is_cut_off(&self, node: usize) -> bool {
        self.clock.monotonic() < *self.cut_off_until[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes go on, as far as nobody holds them back: what happened since anybody looked.
    fn write(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for _write in 0..self.dice.below(8) {
            let node = writer.chain[writer.at];
            if self.is_frozen(node) {
                return;
            }
            self.store(node).value = writer.round;
            writer.at = (writer.at + 1) % writer.chain.len();
            writer.round += u64::from(writer.at == 0);
        }
    }

    async fn dawdle(&self, limit: Duration) {
        let wait = self.dice.up_to(limit);
        self.clock.sleep(wait).await;
    }

    fn is_lost(&self) -> bool {
        !self.is_well.load(Ordering::SeqCst) && self.dice.hits(self.loses)
    }
}

async fn never<T>() -> T {
    std::future::pending().await
}

/// What becomes of a coordinator's host: it may die, or stand still for a while and go on as if nothing had been.
#[derive(Debug)]
struct Fate {
    world: Arc<World>,
    is_alive: AtomicBool,
    still_until: Mutex<Duration>,
}

impl Fate {
    fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), is_alive: AtomicBool::new(true), still_until: Mutex::default() })
    }

    /// Returns when the host can send or hear something.
    async fn allows(&self) {
        loop {
            if !self.is_alive.load(Ordering::SeqCst) {
                return never().await;
            }
            let until = *self.still_until.lock().unwrap_or_else(PoisonError::into_inner);
            let rest = until.saturating_sub(self.world.clock.monotonic());
            if rest.is_zero() {
                return;
            }
            self.world.clock.sleep(rest).await;
        }
    }
}

/// What acts for a node in one life of its agent. After that life nothing that it does has any effect.
#[derive(Debug)]
struct SimulatedNode {
    world: Arc<World>,
    node: usize,
    life: u64,
    ticket: Ticket,
    repository: Arc<Repository>,
    frozen_at: Option<Duration>,
    captured: Option<u64>,
}

impl SimulatedNode {
    /// The instant at which something takes effect.
    async fn act(&self, what: &str, limit: Duration) -> MutexGuard<'_, Store> {
        self.world.dawdle(limit).await;
        if self.world.life(self.node) != self.life {
            return never().await;
        }
        self.world.write();
        let store = self.world.store(self.node);
        assert!(
            store.epoch <= self.ticket.epoch,
            "seed {}: {what} of epoch {} after epoch {}",
            self.world.seed,
            self.ticket.epoch,
            store.epoch
        );
        store
    }

    fn refuses(&self) -> Result<(), NodeError> {
        let is_odd = !self.world.is_well.load(Ordering::SeqCst) && self.world.dice.hits(1);
        if is_odd { Err(NodeError::new(NodeErrorKind::Refused, "it does not want to")) } else { Ok(()) }
    }
}

#[async_trait]
impl NodeService for SimulatedNode {
    fn name(&self) -> &NodeName {
        &self.ticket.node
    }

    async fn describe(&mut self, _: u64) -> Result<NodeDescription, NodeError> {
        drop(self.act("describe", Duration::from_millis(20)).await);
        self.refuses()?;
        let address = self.ticket.node.to_string();
        Ok(NodeDescription {
            store: "simulated".to_owned(),
            identity: vec![address.clone()],
            address,
            ..NodeDescription::default()
        })
    }

    async fn prepare(&mut self, _: Duration, _: Duration) -> Result<(), NodeError> {
        self.act("prepare", Duration::from_secs(5)).await.held = Some((self.ticket.snapshot, self.life));
        self.refuses()
    }

    async fn freeze(&mut self, pause: Duration) -> Result<(), NodeError> {
        let mut store = self.act("freeze", Duration::from_millis(30)).await;
        let now = self.world.clock.monotonic();
        let freezes = store.freezes.entry(self.ticket.snapshot).or_default();
        *freezes += 1;
        assert_eq!(*freezes, 1, "seed {}: frozen twice for one snapshot", self.world.seed);
        assert_eq!(pause, PAUSE, "seed {}", self.world.seed);
        if !self.world.without_pause {
            // The store's own clock ends it, whoever dies.
            store.frozen_until = Some(now + pause);
        }
        drop(store);
        self.frozen_at = Some(now);
        self.refuses()
    }

    async fn capture(&mut self) -> Result<(), NodeError> {
        let value = self.act("capture", Duration::from_millis(50)).await.value;
        assert_eq!(self.captured, None, "seed {}: captured twice", self.world.seed);
        self.captured = Some(value);
        self.refuses()
    }

    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        let mut store = self.act("thaw", Duration::from_millis(20)).await;
        let held = self.frozen_at.is_some_and(|at| self.world.clock.monotonic() < at + PAUSE);
        store.frozen_until = None;
        drop(store);
        if !held {
            return Err(NodeError::new(NodeErrorKind::Void, "the freeze did not hold"));
        }
        let proof = CaptureProof {
            consistent: Consistency::Proved,
            kind: "simulated".to_owned(),
            checks: Vec::new(),
            fork_us: None,
            scope: None,
        };
        Ok(proof)
    }

    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        drop(self.act("upload", Duration::from_secs(90)).await);
        self.refuses()?;
        let value = self.captured.expect("an agent uploads what it captured");
        // Threads are no part of the simulation: one at a time, and the clock stands still.
        let _one = self.world.storing.lock().await;
        self.world.busy.fetch_add(1, Ordering::SeqCst);
        let stored = stored(&self.repository, &self.ticket, value).await;
        self.world.busy.fetch_sub(1, Ordering::SeqCst);
        stored.map_err(|error| NodeError::new(NodeErrorKind::Repository, error.to_string()))
    }

    async fn abandon(&mut self) {
        let mut store = self.world.store(self.node);
        if self.world.life(self.node) != self.life {
            drop(store);
            return never().await;
        }
        if store.held.is_some_and(|(snapshot, _)| snapshot == self.ticket.snapshot) {
            store.held = None;
        }
        if self.frozen_at.is_some() {
            store.frozen_until = None;
        }
    }
}

async fn stored(repository: &Arc<Repository>, ticket: &Ticket, value: u64) -> Result<UploadReceipt, RepoError> {
    let (cluster, node) = (ticket.cluster.clone(), ticket.node.clone());
    let mut writer =
        NodeWriter::begin(repository.clone(), cluster, node, ticket.snapshot, None, WriterOptions::new(None, 1)).await?;
    let meta =
        EntryMeta { path: TreePath::new("value").expect("legal"), mode: 0o600, owner: Ownership::default(), modified_ns: 0 };
    let text = format!("{} {value}", ticket.snapshot);
    writer.add_stream(meta, FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut text.as_bytes()).await?;
    let receipt = writer.finish().await?;
    Ok(UploadReceipt { manifest: receipt.manifest, totals: receipt.totals, keys: None, checked: Vec::new() })
}

/// The agent of one host in one of its lives.
#[derive(Debug)]
struct HostNode {
    world: Arc<World>,
    node: usize,
    life: u64,
    repository: Arc<Repository>,
}

#[async_trait]
impl NodeFactory for HostNode {
    async fn assign(&self, ticket: &Ticket) -> Result<Assigned, NodeError> {
        self.world.dawdle(Duration::from_millis(100)).await;
        if self.world.life(self.node) != self.life {
            return never().await;
        }
        let mut store = self.world.store(self.node);
        if ticket.epoch < store.epoch {
            return Err(NodeError::new(NodeErrorKind::Refused, "an older epoch"));
        }
        store.epoch = ticket.epoch;
        drop(store);
        let (world, ticket, repository) = (self.world.clone(), ticket.clone(), self.repository.clone());
        let node = SimulatedNode { world, node: self.node, life: self.life, ticket, repository, frozen_at: None, captured: None };
        Ok(Assigned { node: Box::new(node), read_bytes: Box::new(|| 0) })
    }
}

/// The desks of all hosts, in their present lives.
#[derive(Debug)]
struct Hosts {
    world: Arc<World>,
    desks: Vec<Mutex<Arc<Desk>>>,
    repository: Arc<Repository>,
}

impl Hosts {
    fn new(world: &Arc<World>, repository: &Arc<Repository>) -> Arc<Self> {
        let (world, repository) = (world.clone(), repository.clone());
        let desks = (0..world.stores.len()).map(|node| Mutex::new(desk(&world, node, &repository))).collect();
        Arc::new(Self { world, desks, repository })
    }

    fn desk(&self, node: usize) -> Arc<Desk> {
        self.desks[node].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The agent dies and another one starts; what was held is gone with it, and the store's pause runs on.
    fn restart(&self, node: usize) {
        self.world.lives[node].fetch_add(1, Ordering::SeqCst);
        self.world.store(node).held = None;
        *self.desks[node].lock().unwrap_or_else(PoisonError::into_inner) = desk(&self.world, node, &self.repository);
    }
}

fn desk(world: &Arc<World>, node: usize, repository: &Arc<Repository>) -> Arc<Desk> {
    let factory = HostNode { world: world.clone(), node, life: world.life(node), repository: repository.clone() };
    Arc::new(Desk::new(Arc::new(factory), Arc::new(world.clock.clone())))
}

/// The network between one coordinator and one host.
#[derive(Debug)]
struct Network {
    hosts: Arc<Hosts>,
    node: usize,
    fate: Arc<Fate>,
}

impl Network {
    /// Lost on the way: nobody says so, the limit does.
    async fn lost<T>(&self, limit: Duration) -> Result<T, CourierError> {
        let is_refused = self.hosts.world.dice.hits(30);
        self.hosts.world.clock.sleep(if is_refused { Duration::from_millis(1) } else { limit }).await;
        Err(CourierError::Unreachable("lost".to_owned()))
    }

    async fn carry(&self, ticket: &Ticket, order: Order, wait: Duration, limit: Duration) -> Result<Reply, CourierError> {
        let world = &self.hosts.world;
        if world.is_lost() || world.is_cut_off(self.node) {
            return self.lost(limit).await;
        }
        world.dawdle(world.latency).await;
        if !world.is_well.load(Ordering::SeqCst) && world.dice.hits(10) {
            // A second one is on its way, and comes when it comes.
            let (hosts, ticket, node) = (self.hosts.clone(), ticket.clone(), self.node);
            tokio::spawn(async move {
                hosts.world.dawdle(Duration::from_secs(8)).await;
                let _nobody_hears_it = hosts.desk(node).ask(&ticket, order, Duration::from_secs(1)).await;
            });
        }
        let life = world.life(self.node);
        let reply = self.hosts.desk(self.node).ask(ticket, order, wait).await;
        world.dawdle(world.latency).await;
        if world.life(self.node) != life || world.is_lost() || world.is_cut_off(self.node) {
            return self.lost(limit).await;
        }
        Ok(reply)
    }
}

#[async_trait]
impl Courier for Network {
    async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration, limit: Duration) -> Result<Reply, CourierError> {
        self.fate.allows().await;
        let clock = self.hosts.world.clock.clone();
        let carried = tokio::select! {
            biased;
            reply = self.carry(ticket, order, wait, limit) => reply,
            () = clock.sleep(limit) => Err(CourierError::Unreachable("late".to_owned())),
        };
        self.fate.allows().await;
        carried
    }

    async fn abandon(&self, ticket: &Ticket, limit: Duration) -> Result<(), CourierError> {
        let world = &self.hosts.world;
        self.fate.allows().await;
        if world.is_lost() || world.is_cut_off(self.node) {
            return self.lost(limit).await;
        }
        world.dawdle(world.latency).await;
        self.hosts.desk(self.node).abandon(ticket).await;
        if world.is_lost() { self.lost(limit).await } else { Ok(()) }
    }
}

/// The object store as one process sees it: it takes time, fails now and then, and is out of reach of the dead.
#[derive(Debug)]
struct Mortal {
    inner: Arc<MemoryStore>,
    world: Arc<World>,
    fate: Arc<Fate>,
}

impl Mortal {
    async fn reach(&self, key: &str) -> Result<(), ObjectError> {
        if self.world.busy.load(Ordering::SeqCst) == 0 {
            self.world.dawdle(Duration::from_millis(40)).await;
        }
        self.fate.allows().await;
        if !self.world.is_well.load(Ordering::SeqCst) && self.world.dice.hits(1) {
            return Err(ObjectError::Unavailable { key: key.to_owned(), reason: "as simulated".to_owned() });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn get(&self, key: &str, range: Option<std::ops::Range<u64>>) -> Result<bytes::Bytes, ObjectError> {
        self.reach(key).await?;
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: bytes::Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        self.reach(key).await?;
        let put = self.inner.put(key, body, mode).await;
        // Done, and nobody says so.
        self.reach(key).await?;
        put
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        self.reach(key).await?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        self.reach(prefix).await?;
        self.inner.list(prefix, start_after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        self.reach(prefix).await?;
        self.inner.list_folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.reach(key).await?;
        self.inner.delete(key).await
    }
}

/// A coordinator's host has a clock of its own that is wrong.
#[derive(Debug)]
struct Shifted {
    inner: ManualClock,
    by_us: i64,
}

#[async_trait]
impl Clock for Shifted {
    fn wall_us(&self) -> i64 {
        self.inner.wall_us() + self.by_us
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }
    async fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration).await;
    }
}

fn cluster() -> ClusterName {
    ClusterName::new("prod").expect("legal")
}

/// A coordinator on a host of its own, and how it can be killed.
struct Run {
    uuid: SnapshotId,
    fate: Arc<Fate>,
    interrupt: watch::Sender<bool>,
    outcome: tokio::task::JoinHandle<Result<PublishedSnapshot, SnapshotError>>,
}

struct Simulation {
    world: Arc<World>,
    hosts: Arc<Hosts>,
    objects: Arc<MemoryStore>,
}

/// What came of a world.
#[derive(Debug, Default)]
struct Tally {
    published: usize,
    partial: usize,
    void: usize,
    superseded: usize,
    other: usize,
    killed: usize,
    torn: usize,
}

impl Simulation {
    async fn new(seed: u64, without_pause: bool) -> Self {
        let dice = Dice(AtomicU64::new(seed));
        // Mostly small rings, where everything meets more often.
        let nodes = if dice.hits(5) { 32 } else { 1 + dice.below(6) as usize };
        let mut chain: Vec<usize> = (0..nodes).collect();
        (1..nodes).for_each(|last| chain.swap(last, dice.below(last as u64 + 1) as usize));
        let latency = [1, 5, 20, 200][dice.below(4) as usize];
        let loses = [0, 1, 5, 20][dice.below(4) as usize];
        let world = Arc::new(World {
            seed,
            clock: ManualClock::at(CUT),
            stores: (0..nodes).map(|_| Mutex::default()).collect(),
            writer: Mutex::new(Writer { chain, at: 0, round: 1 }),
            lives: (0..nodes).map(|_| AtomicU64::new(1)).collect(),
            cut_off_until: (0..nodes).map(|_| Mutex::default()).collect(),
            busy: AtomicU64::new(0),
            storing: tokio::sync::Mutex::new(()),
            is_well: AtomicBool::new(false),
            without_pause,
            latency: Duration::from_millis(latency),
            loses,
            dice,
        });
        let objects = Arc::new(MemoryStore::default());
        let made = Repository::init(objects.clone(), None, EVERYTHING, CUT).await.expect("inits");
        let hosts = Hosts::new(&world, &Arc::new(made));
        Self { world, hosts, objects }
    }

    /// The repository as a process on a host of its own sees it.
    async fn repository(&self, host: &str, fate: &Arc<Fate>) -> Result<Arc<Repository>, SnapshotError> {
        let store = Mortal { inner: self.objects.clone(), world: self.world.clone(), fate: fate.clone() };
        Ok(Arc::new(Repository::open(Arc::new(store), None).await?.seen_from(host)))
    }

    fn begin(self: &Arc<Self>, number: usize, partial: bool) -> Run {
        let (interrupt, interrupted) = watch::channel(false);
        let fate = Fate::new(&self.world);
        let uuid = SnapshotId::from_u128(u128::from(self.world.dice.next()));
        let (simulation, own) = (self.clone(), fate.clone());
        let outcome = tokio::spawn(async move {
            let world = &simulation.world;
            let repository = simulation.repository(&format!("host-{number}"), &own).await?;
            let shift = world.dice.below(7_200_000_000) as i64 - 3_600_000_000;
            let clock: Arc<dyn Clock> = Arc::new(Shifted { inner: world.clock.clone(), by_us: shift });
            let nodes = (0..world.stores.len()).map(|node| {
                let courier = Network { hosts: simulation.hosts.clone(), node, fate: own.clone() };
                let name = NodeName::new(format!("node-{node}")).expect("legal");
                let id = repository.descriptor().repository;
                Box::new(RemoteNode::new(Arc::new(courier), clock.clone(), id, cluster(), name, uuid)) as Box<dyn NodeService>
            });
            let options = SnapshotOptions {
                uuid,
                cluster: cluster(),
                store: "simulated".to_owned(),
                cut_kind: CutKind::Frozen,
                pause: PAUSE,
                patience: Duration::from_secs(20),
                partial,
                left_out: Vec::new(),
                adopt: false,
                tags: BTreeMap::new(),
            };
            let nodes = nodes.collect();
            Coordinator::new(repository.clone(), clock, options, nodes, interrupted, Box::new(|_| {})).run().await
        });
        Run { uuid, fate, interrupt, outcome }
    }

    /// Whatever goes wrong, in the order in which it does.
    async fn troubles(self: Arc<Self>) -> Vec<Run> {
        let (world, dice) = (&self.world, &self.world.dice);
        let nodes = world.stores.len() as u64;
        let mut runs: Vec<Run> = Vec::new();
        let mut events: Vec<(Duration, u64)> = Vec::new();
        for (kind, most) in [(0, 4), (1, 3), (2, 3), (3, 3), (4, 2), (5, 2)] {
            let count = if kind == 0 { 1 + dice.below(most) } else { dice.below(most + 1) };
            // Much happens at the beginning, where the first coordinator is.
            let within = if dice.hits(50) { TROUBLES } else { Duration::from_secs(20) };
            events.extend((0..count).map(|_| (dice.up_to(within), kind)));
        }
        events.sort_unstable();
        for (at, kind) in events {
            world.clock.sleep(at.saturating_sub(world.clock.monotonic())).await;
            let node = dice.below(nodes) as usize;
            let any = if runs.is_empty() { None } else { runs.get(dice.below(runs.len() as u64) as usize) };
            match (kind, any) {
                (0, _) => {
                    let (number, partial) = (runs.len(), dice.hits(30));
                    runs.push(self.begin(number, partial));
                }
                (1, Some(run)) => run.fate.is_alive.store(false, Ordering::SeqCst),
                (2, _) => self.hosts.restart(node),
                (3, _) => {
                    let until = world.clock.monotonic() + dice.up_to(Duration::from_secs(100));
                    *world.cut_off_until[node].lock().unwrap_or_else(PoisonError::into_inner) = until;
                }
                (4, Some(run)) => drop(run.interrupt.send(true)),
                (5, Some(run)) => {
                    // Often for longer than a lease lasts.
                    let until = world.clock.monotonic() + dice.up_to(Duration::from_secs(300));
                    *run.fate.still_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
                }
                _ => {}
            }
        }
        world.clock.sleep(TROUBLES.saturating_sub(world.clock.monotonic())).await;
        runs
    }

    /// Published values that no instant explains.
    async fn torn(&self) -> (usize, Vec<SnapshotId>) {
        let repository = &self.hosts.repository;
        let (mut torn, mut published) = (0, Vec::new());
        for listed in repository.snapshots(&cluster()).await.expect("lists") {
            let manifest = repository.manifest(&listed).await.expect("reads");
            published.push(listed.uuid);
            assert_eq!(manifest.cut.consistent, Consistency::Proved, "seed {}", self.world.seed);
            let chain = self.world.writer.lock().unwrap_or_else(PoisonError::into_inner).chain.clone();
            let mut values: Vec<u64> = Vec::new();
            for node in chain {
                let name = NodeName::new(format!("node-{node}")).expect("legal");
                if manifest.node(&name).is_none_or(|record| record.status != NodeStatus::Completed) {
                    assert!(!listed.is_complete, "seed {}: complete without {name}", self.world.seed);
                    continue;
                }
                let tree = repository.open_node(&manifest, &name).await.expect("opens");
                let path = TreePath::new("value").expect("legal");
                let file = repository.entry(&tree, &path).await.expect("reads").expect("is there");
                let run = repository.segments(&tree, &file, 0).await.expect("reads").expect("has content");
                let text: Vec<u8> = run
                    .segments()
                    .iter()
                    .flat_map(|segment| match segment {
                        Segment::Literal(bytes) => bytes.to_vec(),
                        Segment::Block(_) => panic!("so few bytes are no block"),
                    })
                    .collect();
                let text = String::from_utf8(text).expect("text");
                let (uuid, value) = text.split_once(' ').expect("two words");
                assert_eq!(uuid, listed.uuid.to_string(), "seed {}: another snapshot's capture", self.world.seed);
                values.push(value.parse().expect("a number"));
            }
            let is_one_instant = values.is_sorted_by(|earlier, later| earlier >= later)
                && values.first().zip(values.last()).is_none_or(|(first, last)| *first <= last + 1);
            torn += usize::from(!is_one_instant);
        }
        (torn, published)
    }

    /// A snapshot when all is well again. Whoever died with the lease has it until it is over.
    async fn next_one(self: &Arc<Self>) -> (PublishedSnapshot, SnapshotId) {
        let until = self.world.clock.monotonic() + LEASE_OVER;
        loop {
            let run = self.begin(99, false);
            match run.outcome.await.expect("no panic") {
                Ok(published) => return (published, run.uuid),
                Err(SnapshotError::Repository(RepoError::Conflict { .. })) if self.world.clock.monotonic() < until => {
                    self.world.clock.sleep(Duration::from_secs(5)).await;
                }
                Err(error) => panic!("seed {}: all is well, and the snapshot fails: {error}", self.world.seed),
            }
        }
    }

    /// The whole world, and every claim.
    async fn live(self: Arc<Self>) -> Tally {
        let (world, seed) = (&self.world, self.world.seed);
        let mut tally = Tally::default();
        let runs = self.clone().troubles().await;
        world.is_well.store(true, Ordering::SeqCst);
        for cut_off in &world.cut_off_until {
            *cut_off.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
        }
        let mut good = Vec::new();
        for run in runs {
            if !run.fate.is_alive.load(Ordering::SeqCst) {
                run.outcome.abort();
                tally.killed += 1;
                continue;
            }
            match run.outcome.await.expect("no panic") {
                Ok(published) if published.listed.is_complete => {
                    good.push(run.uuid);
                    tally.published += 1;
                }
                Ok(_) => {
                    good.push(run.uuid);
                    tally.partial += 1;
                }
                Err(SnapshotError::Void(_)) => tally.void += 1,
                Err(SnapshotError::Superseded) => tally.superseded += 1,
                Err(_) => tally.other += 1,
            }
        }
        // All is well again: the next one succeeds, whatever the others have left.
        let (published, uuid) = self.next_one().await;
        assert!(published.listed.is_complete, "seed {seed}");
        good.push(uuid);
        let (torn, listed) = self.torn().await;
        assert!(good.iter().all(|uuid| listed.contains(uuid)), "seed {seed}: one that was reported is not listed");
        tally.torn = torn;
        // Late messages, and whatever dead coordinators have left.
        world.clock.sleep(Duration::from_secs(120)).await;
        for node in 0..world.stores.len() {
            let store = world.store(node);
            assert_eq!(store.held, None, "seed {seed}: node-{node} still holds something");
            assert!(
                store.frozen_until.is_none_or(|until| until <= world.clock.monotonic()),
                "seed {seed}: node-{node} is frozen"
            );
        }
        tally
    }
}

/// One world from its beginning to its end.
fn simulate(seed: u64, without_pause: bool) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let simulation = Arc::new(Simulation::new(seed, without_pause).await);
        let (clock, world) = (simulation.world.clock.clone(), simulation.world.clone());
        let living = tokio::spawn(simulation.live());
        let mut stalled = 0;
        while !living.is_finished() {
            // So often that whoever was woken has woken others in turn, mostly: time that moves too soon is only latency.
            for _turn in 0..16 {
                tokio::task::yield_now().await;
            }
            if world.busy.load(Ordering::SeqCst) == 0 {
                stalled = if clock.advance_to_next() { 0 } else { stalled + 1 };
                assert!(stalled < 10_000, "seed {seed}: nobody moves any more");
            }
        }
        living.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    })
}

/// Worlds from `TINTYPE_SEED` on, as many as `TINTYPE_SEEDS` says; else as many as the effort allows.
fn seeds(small: u64, full: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_full = std::env::var("TINTYPE_EFFORT").is_ok_and(|effort| effort == "full");
    let count = number("TINTYPE_SEEDS").unwrap_or(if is_full { full } else { small });
    let first = number("TINTYPE_SEED").unwrap_or(1);
    first..first + count
}

#[test]
fn whatever_is_lost_late_repeated_or_killed_a_published_snapshot_is_one_instant_and_nothing_is_left_behind() {
    let seeds = seeds(2_000, 10_000);
    let next = AtomicU64::new(seeds.start);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let work = || {
            let mut tallies = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= seeds.end {
                    return tallies;
                }
                tallies.push(simulate(seed, false));
            }
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a claim holds; see above for the seed")).collect()
    });
    let sum = |part: fn(&Tally) -> usize| tallies.iter().map(part).sum::<usize>();
    let [published, partial, void, superseded, other, killed, torn] = [
        sum(|tally| tally.published),
        sum(|tally| tally.partial),
        sum(|tally| tally.void),
        sum(|tally| tally.superseded),
        sum(|tally| tally.other),
        sum(|tally| tally.killed),
        sum(|tally| tally.torn),
    ];
    let told = format!(
        "{} worlds: {published} published whole, {partial} in part, {void} void, {superseded} superseded, {other} given up otherwise, {killed} coordinators killed, {torn} torn",
        tallies.len()
    );
    writeln!(std::io::stderr(), "{told}").expect("somebody listens");
    assert_eq!(torn, 0);
    // A harness in which nothing happens shows nothing.
    if tallies.len() >= 1000 {
        let least = [(published, 10), (partial, 100), (void, 50), (superseded, 500), (other, 20), (killed, 10)];
        assert!(least.iter().all(|(count, one_of)| count * one_of >= tallies.len()), "{least:?}");
    }
}

#[test]
fn without_the_pause_the_same_worlds_show_torn_snapshots() {
    let torn: usize = (1..=40).map(|seed| simulate(seed, true).torn).sum();
    assert!(torn >= 20, "{torn} of forty worlds");
}
