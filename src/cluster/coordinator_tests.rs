//! The coordinator over nodes made of wishes: what they do at each step, and what must come of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::base::SystemClock;
use crate::model::extent::SEQUENTIAL_BLOCK_BYTES;
use crate::model::manifest::Consistency;
use crate::model::manifest::{FileClass, Ownership, RingPlace};
use crate::model::names::TreePath;
use crate::object::Capabilities;
use crate::object::conformance::EVERYTHING;
use crate::object::memory::MemoryStore;
use crate::repo::{EntryMeta, NodeWriter, RunStatus, WriterOptions};

/// What a node does when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Well,
    UnreachableAtFirst,
    BreaksItsFreeze,
    FailsInUpload,
    /// Another coordinator has the lease by then.
    IsLateWithItsUpload,
    /// Has the first of these tokens, and its rack has both.
    IsOfARing(u64, u64),
}

/// What the nodes of one test have in common.
#[derive(Debug)]
struct Stage {
    repository: Arc<Repository>,
    uuid: SnapshotId,
    log: Mutex<Vec<String>>,
    given_back: AtomicUsize,
}

#[derive(Debug)]
struct FakeNode {
    name: NodeName,
    wish: Wish,
    stage: Arc<Stage>,
}

impl FakeNode {
    fn note(&self, what: &str) {
        self.stage.log.lock().expect("no test panics with it").push(format!("{}:{what}", self.name));
    }

    fn error(&self, kind: NodeErrorKind) -> NodeError {
        NodeError { kind, message: format!("{}: as wished", self.name) }
    }
}

#[async_trait::async_trait]
impl NodeService for FakeNode {
    fn name(&self) -> &NodeName {
        &self.name
    }

    async fn describe(&mut self, _: u64) -> Result<NodeDescription, NodeError> {
        match self.wish {
            Wish::UnreachableAtFirst => Err(self.error(NodeErrorKind::Unreachable)),
            Wish::IsOfARing(token, other) => Ok(NodeDescription {
                ring: Some(RingPlace { token, datacenter: "dc".to_owned(), rack: "a".to_owned() }),
                ring_tokens: vec![token, other],
                ..NodeDescription::default()
            }),
            _ => Ok(NodeDescription { address: self.name.to_string(), ..NodeDescription::default() }),
        }
    }

    async fn prepare(&mut self, _: Duration, _: Duration) -> Result<(), NodeError> {
        Ok(())
    }

    async fn freeze(&mut self, _: Duration) -> Result<(), NodeError> {
        self.note("freeze");
        Ok(())
    }

    async fn capture(&mut self) -> Result<(), NodeError> {
        self.note("capture");
        Ok(())
    }

    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        self.note("thaw");
        match self.wish {
            Wish::BreaksItsFreeze => Err(self.error(NodeErrorKind::Void)),
            _ => Ok(CaptureProof {
                consistent: Consistency::Proved,
                kind: "wish".to_owned(),
                checks: Vec::new(),
                fork_us: Some(50_000_000),
                scope: None,
            }),
        }
    }

    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        self.note("upload");
        if self.wish == Wish::FailsInUpload {
            return Err(self.error(NodeErrorKind::Broken));
        }
        let stage = &self.stage;
        if self.wish == Wish::IsLateWithItsUpload {
            stage.repository.move_lease(&cluster(), |lease| lease.writer.process_started += 1).await;
            let clock = Arc::new(SystemClock::default());
            drop(stage.repository.take_lease(&cluster(), SnapshotId::new_v4(), clock).await.expect("it is over"));
        }
        let (cluster, options) = (cluster(), WriterOptions::new(None, 1));
        let mut writer = NodeWriter::begin(stage.repository.clone(), cluster, self.name.clone(), stage.uuid, None, options)
            .await
            .expect("begins");
        let meta =
            EntryMeta { path: TreePath::new("file").expect("legal"), mode: 0o600, owner: Ownership::default(), modified_ns: 0 };
        writer.add_stream(meta, FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut &b"content"[..]).await.expect("stores");
        let receipt = writer.finish().await.expect("finishes");
        Ok(UploadReceipt { manifest: receipt.manifest, totals: receipt.totals, keys: None, checked: Vec::new() })
    }

    async fn abandon(&mut self) {
        self.stage.given_back.fetch_add(1, Ordering::SeqCst);
    }
}

fn cluster() -> ClusterName {
    ClusterName::new("prod").expect("legal")
}

struct Outcome {
    result: Result<PublishedSnapshot, SnapshotError>,
    stage: Arc<Stage>,
}

impl Outcome {
    async fn published(&self) -> usize {
        self.stage.repository.snapshots(&cluster()).await.expect("lists").len()
    }

    async fn run_status(&self) -> RunStatus {
        self.stage.repository.run(self.stage.uuid).await.expect("reads").expect("recorded").status
    }
}

/// Runs one snapshot.
async fn run(wishes: &[Wish], partial: bool) -> Outcome {
    run_without(&[], wishes, partial).await
}

/// Runs one snapshot of a cluster that has further nodes, which are not asked for.
async fn run_without(left_out: &[&str], wishes: &[Wish], partial: bool) -> Outcome {
    run_in(repository(EVERYTHING).await, left_out, wishes, partial).await
}

async fn repository(capabilities: Capabilities) -> Arc<Repository> {
    Arc::new(Repository::init(Arc::new(MemoryStore::default()), None, capabilities, 0).await.expect("inits"))
}

async fn run_in(repository: Arc<Repository>, left_out: &[&str], wishes: &[Wish], partial: bool) -> Outcome {
    let stage =
        Arc::new(Stage { repository, uuid: SnapshotId::new_v4(), log: Mutex::default(), given_back: AtomicUsize::new(0) });
    let node = |(index, wish): (usize, &Wish)| {
        let name = NodeName::new(format!("n{index}")).expect("legal");
        Box::new(FakeNode { name, wish: *wish, stage: stage.clone() }) as Box<dyn NodeService>
    };
    let nodes = wishes.iter().enumerate().map(node).collect();
    let options = SnapshotOptions {
        uuid: stage.uuid,
        cluster: cluster(),
        store: "fake".to_owned(),
        cut_kind: CutKind::Frozen,
        pause: Duration::from_secs(20),
        patience: Duration::from_secs(20),
        partial,
        left_out: left_out.iter().map(|name| NodeName::new(*name).expect("legal")).collect(),
        adopt: false,
        tags: BTreeMap::new(),
    };
    // Its owner is gone without raising it: nobody will interrupt.
    let (_, interrupted) = watch::channel(false);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let coordinator = Coordinator::new(stage.repository.clone(), clock, options, nodes, interrupted, Box::new(|_| {}));
    let result = tokio::time::timeout(Duration::from_secs(10), coordinator.run()).await.expect("ends at once");
    Outcome { result, stage }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_do_well_are_published_as_one_instant() {
    let outcome = run(&[Wish::Well, Wish::Well, Wish::Well], false).await;
    let published = outcome.result.as_ref().expect("published");
    assert_eq!(published.manifest.cut.consistent, Consistency::Proved);
    // A store may answer before it forks: its own word on how long that took counts.
    assert_eq!(published.manifest.cut.capture_us, 50_000_000);
    assert!(published.listed.is_complete);
    assert_eq!((outcome.run_status().await, outcome.stage.given_back.load(Ordering::SeqCst)), (RunStatus::Completed, 3));
    assert!(outcome.stage.repository.intents(&cluster()).await.expect("lists").is_empty());
    let log = outcome.stage.log.lock().expect("no test panics with it").clone();
    let last_freeze = log.iter().rposition(|line| line.ends_with("freeze")).expect("frozen");
    let first_capture = log.iter().position(|line| line.ends_with("capture")).expect("captured");
    assert!(last_freeze < first_capture, "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_that_broke_publishes_nothing_and_thaws_all() {
    let outcome = run(&[Wish::Well, Wish::BreaksItsFreeze], true).await;
    assert!(matches!(outcome.result, Err(SnapshotError::Void(_))));
    assert_eq!((outcome.published().await, outcome.run_status().await), (0, RunStatus::Failed));
    assert_eq!(outcome.stage.given_back.load(Ordering::SeqCst), 2);
    let log = outcome.stage.log.lock().expect("no test panics with it").clone();
    assert_eq!(log.iter().filter(|line| line.ends_with("thaw")).count(), 2, "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_node_fails_the_snapshot_unless_gaps_were_agreed_to() {
    let outcome = run(&[Wish::Well, Wish::FailsInUpload], false).await;
    assert!(matches!(outcome.result, Err(SnapshotError::Node { .. })));
    assert_eq!(outcome.published().await, 0);
    let outcome = run(&[Wish::Well, Wish::FailsInUpload, Wish::UnreachableAtFirst], true).await;
    let published = outcome.result.as_ref().expect("published");
    assert!(!published.listed.is_complete);
    let statuses: Vec<_> = published.manifest.nodes.iter().map(|node| node.status).collect();
    assert_eq!(statuses, [NodeStatus::Completed, NodeStatus::Failed, NodeStatus::Missing]);
    assert_eq!(outcome.run_status().await, RunStatus::Partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_cluster_is_never_taken_for_the_whole() {
    let outcome = run_without(&["a", "z"], &[Wish::Well], false).await;
    let published = outcome.result.as_ref().expect("published");
    assert!(!published.listed.is_complete);
    let nodes: Vec<_> = published.manifest.nodes.iter().map(|node| (node.name.as_str(), node.status)).collect();
    assert_eq!(nodes, [("a", NodeStatus::Missing), ("n0", NodeStatus::Completed), ("z", NodeStatus::Missing)]);
    assert_eq!(outcome.run_status().await, RunStatus::Partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_which_a_token_is_not_named_is_never_taken_for_the_whole() {
    let named = [Wish::IsOfARing(0, 14), Wish::IsOfARing(7, 14)];
    let outcome = run(&named, false).await;
    let error = outcome.result.as_ref().expect_err("token 14 would be missed by nobody").to_string();
    assert_eq!(error, "cluster prod: no node is named with these tokens of the ring: 14");
    assert_eq!((outcome.published().await, outcome.run_status().await), (0, RunStatus::Failed));
    assert!(outcome.stage.log.lock().expect("no test panics with it").is_empty(), "a node was frozen");
    let standing = |outcome: &Outcome| {
        let published = outcome.result.as_ref().expect("published");
        let nodes: Vec<_> = published.manifest.nodes.iter().map(|node| (node.name.as_str().to_owned(), node.status)).collect();
        (published.listed.is_complete, published.manifest.cut.consistent, nodes)
    };
    let done = |name: &str| (name.to_owned(), NodeStatus::Completed);
    let missing = |name: &str| (name.to_owned(), NodeStatus::Missing);
    let nodes = vec![done("n0"), done("n1"), missing("token-14")];
    assert_eq!(standing(&run(&named, true).await), (false, Consistency::Timed, nodes));
    // Some of the nodes were chosen: nobody takes that for the whole.
    let nodes = vec![done("n0"), missing("z")];
    assert_eq!(standing(&run_without(&["z"], &named[..1], false).await), (false, Consistency::Timed, nodes));
    let nodes = vec![done("n0"), done("n1")];
    let whole = run(&[Wish::IsOfARing(0, 14), Wish::IsOfARing(14, 0)], false).await;
    assert_eq!(standing(&whole), (true, Consistency::Proved, nodes));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_node_fails_the_snapshot_before_anything_is_frozen() {
    let outcome = run(&[Wish::Well, Wish::UnreachableAtFirst], false).await;
    assert!(matches!(outcome.result, Err(SnapshotError::Node { .. })));
    assert!(outcome.stage.log.lock().expect("no test panics with it").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_lease_publishes_nothing() {
    let outcome = run(&[Wish::Well, Wish::IsLateWithItsUpload], false).await;
    let error = outcome.result.as_ref().expect_err("another one is at work");
    assert!(matches!(error, SnapshotError::Superseded), "{error}");
    assert_eq!((outcome.published().await, outcome.run_status().await), (0, RunStatus::Failed));
    assert_eq!(outcome.stage.given_back.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_run_of_a_coordinator_that_died_is_recorded_by_the_next_one() {
    let (repository, died) = (repository(EVERYTHING).await, SnapshotId::new_v4());
    drop(repository.take_lease(&cluster(), died, Arc::new(SystemClock::default())).await.expect("is free"));
    repository.move_lease(&cluster(), |lease| lease.writer.process_started += 1).await;
    assert_eq!(repository.run(died).await.expect("reads"), None);
    let outcome = run_in(repository.clone(), &[], &[Wish::Well], false).await;
    assert_eq!(outcome.run_status().await, RunStatus::Completed);
    let record = repository.run(died).await.expect("reads").expect("recorded");
    assert_eq!(record.status, RunStatus::Failed);
    assert!(record.reason.as_ref().is_some_and(|reason| reason.contains("died or was cut off: process ")), "{record:?}");
    // The next one finds everything in order.
    let outcome = run_in(repository, &[], &[Wish::Well], false).await;
    assert_eq!((outcome.run_status().await, outcome.published().await), (RunStatus::Completed, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditions_takes_snapshots_without_leases() {
    let repository = repository(Capabilities { refuses_second_create: false, ..EVERYTHING }).await;
    let outcome = run_in(repository, &[], &[Wish::Well], false).await;
    assert_eq!((outcome.run_status().await, outcome.published().await), (RunStatus::Completed, 1));
}
