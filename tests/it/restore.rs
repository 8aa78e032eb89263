//! Restores into real servers on this host: what is loaded is what was stored, and every failure leaves the old data.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tintype::agent::restore::RestoreStep;
use tintype::app::control::restore::{self, Change, PreparedRestore, RestoreTarget};
use tintype::base::SystemClock;
use tintype::cluster::restore::{RestoreOutcome, RestoreReport};
use tintype::driver::NodeSite;
use tintype::model::extent::SEQUENTIAL_BLOCK_BYTES;
use tintype::model::ids::SnapshotId;
use tintype::model::manifest::{
    CaptureProof, Consistency, CutKind, CutRecord, FileClass, KeyCounts, NodeDescription, NodeRecord, NodeStatus, Ownership,
};
use tintype::model::names::{ClusterName, NodeName, TreePath};
use tintype::model::restore_plan::{RefusalCode, RestoreRequest};
use tintype::model::time::Timestamp;
use tintype::node::RecoveredTo;
use tintype::object::faulty::{Fault, FaultyStore, Occurrence, Operation, Rule};
use tintype::object::memory::MemoryStore;
use tintype::object::{Capabilities, ObjectStore};
use tintype::repo::{EntryMeta, ListedSnapshot, NodeWriter, Publication, Repository, WriterOptions};

use crate::support::redis::redis_70;
use crate::support::store::Store;

/// Long ago, so that whatever a test's server holds is newer.
const CUT: i64 = 1_700_000_000_000_000;

struct Mount(PathBuf);

impl Mount {
    fn tmpfs(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("makes");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tintype-test"])
            .arg(path)
            .status()
            .expect("runs");
        assert!(status.success(), "mount needs root: run the tests as root");
        Self(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A snapshot in memory.
struct Stored {
    repository: Arc<Repository>,
    listed: ListedSnapshot,
}

fn meta(path: &str, mode: u32) -> EntryMeta {
    EntryMeta { path: TreePath::new(path).expect("legal"), mode, owner: Ownership::default(), modified_ns: CUT * 1000 }
}

async fn store(files: &[(&str, &[u8])], description: NodeDescription, keys: Option<KeyCounts>) -> Stored {
    store_in(Arc::new(MemoryStore::default()), files, description, keys).await
}

async fn store_in(
    objects: Arc<dyn ObjectStore>,
    files: &[(&str, &[u8])],
    description: NodeDescription,
    keys: Option<KeyCounts>,
) -> Stored {
    let capabilities =
        Capabilities { refuses_second_create: true, refuses_stale_replace: true, checks_uploads: true, serves_ranges: true };
    let repository = Arc::new(Repository::init(objects, None, capabilities, CUT).await.expect("inits"));
    let (cluster, node, uuid) =
        (ClusterName::new("prod").expect("legal"), NodeName::new("node-1").expect("legal"), SnapshotId::new_v4());
    let mut writer =
        NodeWriter::begin(repository.clone(), cluster.clone(), node.clone(), uuid, None, WriterOptions::new(Some(-1), 2))
            .await
            .expect("begins");
    writer.add_directory(meta("", 0o750)).expect("adds");
    for (name, content) in files {
        writer
            .add_stream(meta(name, 0o640), FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut &content[..])
            .await
            .expect("stores");
    }
    let receipt = writer.finish().await.expect("finishes");
    let record = NodeRecord {
        name: node,
        status: NodeStatus::Completed,
        reason: None,
        manifest: Some(receipt.manifest),
        description,
        proof: CaptureProof::none(),
        keys,
        totals: receipt.totals,
    };
    let cut = CutRecord {
        kind: CutKind::None,
        consistent: Consistency::No,
        scope: "node".to_owned(),
        pause_us: 0,
        capture_us: 0,
        skew_us: 0,
    };
    let publication = Publication {
        uuid,
        cluster,
        cut_at: Timestamp(CUT),
        store: "redis".to_owned(),
        cut,
        nodes: vec![record],
        tags: BTreeMap::new(),
    };
    let (listed, ..) = repository.publish(publication, Timestamp(CUT)).await.expect("publishes");
    Stored { repository, listed }
}

fn description() -> NodeDescription {
    let settings = [
        ("dbfilename", "dump.rdb"),
        ("appendonly", "no"),
        ("appenddirname", "appendonlydir"),
        ("appendfilename", "appendonly.aof"),
    ];
    NodeDescription {
        store: "redis".to_owned(),
        version: "7.0.15".to_owned(),
        role: "master".to_owned(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..NodeDescription::default()
    }
}

fn counts(total: u64) -> Option<KeyCounts> {
    Some(KeyCounts { total, expired: 0, volatile: 0 })
}

/// A dump made by a real server, with 1000 keys `key:N` and `which` = `stored`.
fn dump() -> Vec<u8> {
    let origin = Store::new("save \"\"");
    origin.start();
    let mut connection = origin.try_connection().expect("connects");
    let mut pipeline = redis::pipe();
    for key in 0..1000 {
        pipeline.cmd("SET").arg(format!("key:{key}")).arg(format!("{key:0300}")).ignore();
    }
    pipeline.cmd("SET").arg("which").arg("stored").ignore();
    pipeline.query::<()>(&mut connection).expect("writes");
    origin.command(&["SAVE"]);
    std::fs::read(origin.data.join("dump.rdb")).expect("reads")
}

async fn stored_dump() -> Stored {
    store(&[("dump.rdb", &dump())], description(), counts(1001)).await
}

fn request() -> RestoreRequest {
    RestoreRequest { target_cluster: "prod".to_owned(), confirm: Some("prod".to_owned()), ..RestoreRequest::default() }
}

async fn prepare(stored: &Stored, target: &RestoreTarget, request: &RestoreRequest, store: &Store) -> PreparedRestore {
    let targets = std::slice::from_ref(target);
    restore::prepare(
        stored.repository.clone(),
        &stored.listed,
        targets,
        request,
        &store.state(),
        Arc::new(SystemClock::default()),
    )
    .await
    .expect("plans")
}

async fn run(stored: &Stored, store: &Store) -> RestoreReport {
    let prepared = prepare(stored, &store.target(), &request(), store).await;
    assert!(prepared.plan.is_allowed(), "{}", prepared.plan);
    prepared.run(&|_| {}, &|| false).await.expect("runs")
}

fn codes(prepared: &PreparedRestore) -> Vec<RefusalCode> {
    prepared.plan.refusals.iter().map(|refusal| refusal.code).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restored_checked_rolled_back_and_settled() {
    let stored = stored_dump().await;
    // Writes that were never saved are to be found again after the rollback.
    let store = Store::new("save \"\"");
    store.start().command(&["SET", "which", "live"]);
    std::fs::write(store.data.join("kept.conf"), "mine").expect("writes");
    let inode = store.data.metadata().expect("is there").ino();

    let report = run(&stored, &store).await;
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert_eq!((report.nodes["node-1"].keys, report.nodes["node-1"].is_compared), (Some(1001), true));
    assert_eq!((store.get("which").as_deref(), store.keys()), (Some("stored"), 1001));
    assert_ne!(store.data.metadata().expect("is there").ino(), inode);
    assert_eq!(std::fs::read_to_string(store.data.join("kept.conf")).expect("was carried over"), "mine");
    assert_eq!(store.kept().len(), 1);

    let targets = [store.target()];
    let changes = restore::roll_back("prod", &targets, &store.state()).await.expect("rolls back");
    assert!(matches!(changes[0].result, Ok(Some(Change::RolledBack(_)))), "{:?}", changes[0]);
    assert_eq!((store.get("which").as_deref(), store.keys()), (Some("live"), 1));
    assert_eq!(store.data.metadata().expect("is there").ino(), inode);
    let again = restore::roll_back("prod", &targets, &store.state()).await.expect("answers");
    assert!(matches!(again[0].result, Ok(None)), "{:?}", again[0]);

    let changes = restore::settle("prod", &targets, &store.state()).await.expect("settles");
    assert!(matches!(changes[0].result, Ok(Some(Change::Settled(1)))), "{:?}", changes[0]);
    assert_eq!(store.kept(), Vec::<String>::new());
    assert_eq!(store.get("which").as_deref(), Some("live"));
    let again = restore::settle("prod", &targets, &store.state()).await.expect("answers");
    assert!(matches!(again[0].result, Ok(None)), "{:?}", again[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_target_under_other_names_does_not_start_empty() {
    let stored = stored_dump().await;
    let store = Store::new("save \"\"\nappendonly yes\nappenddirname journal\nappendfilename writes.aof\ndbfilename state.rdb");
    store.start().command(&["SET", "which", "live"]);
    let report = run(&stored, &store).await;
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert_eq!((store.get("which").as_deref(), store.keys()), (Some("stored"), 1001));
    assert!(store.data.join("journal/writes.aof.manifest").exists());
    assert!(report.nodes["node-1"].is_compared);
    // What is written from now on survives a restart.
    store.command(&["SET", "which", "later"]);
    let changes = restore::roll_back("prod", &[store.target()], &store.state()).await.expect("rolls back");
    assert!(matches!(changes[0].result, Ok(Some(_))), "{:?}", changes[0]);
    assert_eq!(store.get("which").as_deref(), Some("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_loads_something_else_is_put_back() {
    let stored = store(&[("dump.rdb", &dump())], description(), counts(1002)).await;
    let store = Store::new("");
    store.start().command(&["SET", "which", "live"]);
    let report = run(&stored, &store).await;
    assert_eq!(report.outcome, RestoreOutcome::Undone, "{:?}", report.failures);
    assert!(report.failures[0].reason.contains("1002"), "{:?}", report.failures);
    assert_eq!((store.get("which").as_deref(), store.keys()), (Some("live"), 1));
    assert_eq!(store.kept(), Vec::<String>::new());
    assert_eq!(store.state().records().expect("lists"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_the_server_refuses_is_put_back() {
    let mut broken = dump();
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    let stored = store(&[("dump.rdb", &broken)], description(), counts(1001)).await;
    let store = Store::new("");
    store.start().command(&["SET", "which", "live"]);
    let target = store.target();
    let report = prepare(&stored, &target, &request(), &store).await.run(&|_| {}, &|| false).await.expect("runs");
    assert_eq!(report.outcome, RestoreOutcome::Undone, "{:?}", report.failures);
    assert_eq!(store.get("which").as_deref(), Some("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_target_without_commands_or_confirmation_is_refused() {
    let stored = stored_dump().await;
    let store = Store::new("");
    store.start().command(&["SET", "which", "live"]);
    let mut target = store.target();
    (target.site.stop, target.site.start) = (vec![], vec![]);
    let unconfirmed = RestoreRequest { confirm: Some("test".to_owned()), ..request() };
    let prepared = prepare(&stored, &target, &unconfirmed, &store).await;
    assert_eq!(codes(&prepared), [RefusalCode::CannotStop, RefusalCode::NewerData], "{}", prepared.plan);
    let report = prepared.run(&|_| {}, &|| false).await.expect("answers");
    assert_eq!((report.outcome, report.failures.len()), (RestoreOutcome::Undone, 1));
    assert_eq!(store.get("which").as_deref(), Some("live"));
    target.site.data_directory = None;
    assert_eq!(codes(&prepare(&stored, &target, &request(), &store).await), [RefusalCode::NotOnThisHost]);
    target.site = NodeSite { data_directory: Some(store.root.path().to_owned()), ..store.site() };
    assert_eq!(codes(&prepare(&stored, &target, &request(), &store).await), [RefusalCode::OtherDirectory]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_restarts_is_noticed_and_nothing_is_swapped() {
    let stored = stored_dump().await;
    let store = Store::new("");
    let flag = store.root.path().join("supervise");
    std::fs::write(&flag, "").expect("writes");
    let loop_text = format!(
        "while [ -e {} ]; do {} {} --daemonize no; done",
        flag.display(),
        redis_70().display(),
        store.root.path().join("redis.conf").display()
    );
    let mut supervisor = Command::new("sh").args(["-c", &loop_text]).spawn().expect("runs");
    store.wait();
    store.command(&["SET", "which", "live"]);
    let mut target = store.target();
    target.site.stop = vec![];
    let report = prepare(&stored, &target, &request(), &store).await.run(&|_| {}, &|| false).await.expect("runs");
    assert_eq!(report.outcome, RestoreOutcome::Undone, "{:?}", report.failures);
    assert!(report.failures[0].reason.contains("supervisor"), "{:?}", report.failures);
    assert_eq!(store.get("which").as_deref(), Some("live"));
    // What was placed is kept for the attempt after the supervisor was told.
    assert_eq!(store.kept().len(), 1);
    std::fs::remove_file(&flag).expect("removes");
    drop(store);
    supervisor.wait().expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_too_little_space_is_refused() {
    let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(8 << 20);
    let stored = store(&[("dump.rdb", &noise)], description(), counts(1)).await;
    let mut mount = None;
    let store = Store::with_data("", |root| {
        mount = Some(Mount::tmpfs(&root.join("small"), "6m"));
        root.join("small/data")
    });
    std::fs::create_dir(&store.data).expect("makes");
    let prepared = prepare(&stored, &store.target(), &request(), &store).await;
    assert_eq!(codes(&prepared), [RefusalCode::TooLittleSpace], "{}", prepared.plan);
    let directory = store.root.path().join("small/placed");
    let node = NodeName::new("node-1").expect("legal");
    let placed =
        restore::place_files(stored.repository.clone(), &stored.listed, &node, directory.clone(), None, Arc::default()).await;
    assert!(placed.is_err());
    assert!(!directory.exists());
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_a_mountpoint_is_swapped_entry_by_entry() {
    let stored = stored_dump().await;
    let mut mount = None;
    let store = Store::with_data("appendonly yes", |root| {
        mount = Some(Mount::tmpfs(&root.join("data"), "64m"));
        root.join("data")
    });
    store.start().command(&["SET", "which", "live"]);
    std::fs::create_dir(store.data.join("lost+found")).expect("makes");
    let report = run(&stored, &store).await;
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert_eq!(store.get("which").as_deref(), Some("stored"));
    let changes = restore::roll_back("prod", &[store.target()], &store.state()).await.expect("rolls back");
    assert!(matches!(changes[0].result, Ok(Some(_))), "{:?}", changes[0]);
    assert_eq!(store.get("which").as_deref(), Some("live"));
    restore::settle("prod", &[store.target()], &store.state()).await.expect("settles");
    assert_eq!(store.kept(), Vec::<String>::new());
    assert!(store.data.join("lost+found").exists());
    drop(store);
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_the_data_directory_stays_a_link() {
    let stored = stored_dump().await;
    let store = Store::with_data("", |root| {
        std::fs::create_dir(root.join("real")).expect("makes");
        std::os::unix::fs::symlink(root.join("real"), root.join("data")).expect("links");
        root.join("data")
    });
    store.start().command(&["SET", "which", "live"]);
    let report = run(&stored, &store).await;
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert!(store.data.is_symlink());
    assert_eq!(store.get("which").as_deref(), Some("stored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_node_keeps_its_identity_and_takes_no_other_slots() {
    let dump = dump();
    let with_slots = |slots| NodeDescription { slots: vec![slots], ..description() };
    let store_ = Store::new("cluster-enabled yes\ncluster-node-timeout 500");
    store_.start().command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let wrong = store(&[("dump.rdb", &dump)], with_slots((0, 5460)), counts(1001)).await;
    let prepared = prepare(&wrong, &store_.target(), &request(), &store_).await;
    assert_eq!(codes(&prepared), [RefusalCode::SlotsDiffer], "{}", prepared.plan);

    let identity = store_.command(&["CLUSTER", "MYID"]);
    let right = store(&[("dump.rdb", &dump)], with_slots((0, 16383)), counts(1001)).await;
    let report = run(&right, &store_).await;
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert_eq!(store_.command(&["CLUSTER", "MYID"]), identity);
    assert_eq!(store_.keys(), 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_at_any_step_leaves_the_old_data_or_the_new() {
    let stored = stored_dump().await;
    for (step, outcome, expected) in [
        (RestoreStep::Stop, Some(RecoveredTo::Begun), "live"),
        (RestoreStep::Swap, Some(RecoveredTo::Begun), "live"),
        (RestoreStep::Start, Some(RecoveredTo::Unchecked), "stored"),
        (RestoreStep::Check, Some(RecoveredTo::Unchecked), "stored"),
    ] {
        let store = Store::new("save \"\"");
        store.start().command(&["SET", "which", "live"]);
        let prepared = prepare(&stored, &store.target(), &request(), &store).await;
        // A panic unwinds without any of our own cleaning up, as a death would.
        let dying = tokio::spawn(async move { prepared.run(&|now| assert!(now != step, "dies on purpose"), &|| false).await });
        assert!(dying.await.is_err());
        let recovered = restore::recover_interrupted(&store.state()).await.expect("recovers");
        assert_eq!(recovered.first().map(|one| one.outcome), outcome, "{step}");
        if store.try_connection().is_none() {
            store.start();
        }
        assert_eq!(store.get("which").as_deref(), Some(expected), "{step}");
        if expected == "stored" {
            let changes = restore::roll_back("prod", &[store.target()], &store.state()).await.expect("rolls back");
            assert!(matches!(changes[0].result, Ok(Some(_))), "{:?}", changes[0]);
            assert_eq!(store.get("which").as_deref(), Some("live"), "{step}");
        } else {
            // What was placed is kept for the next attempt, which fetches nothing again.
            assert_eq!(store.kept().len(), 1, "{step}");
            let prepared = prepare(&stored, &store.target(), &request(), &store).await;
            assert!(prepared.plan.nodes[0].begun_bytes > 0, "{}", prepared.plan);
            let placed_so_far = prepared.placed();
            let report = prepared.run(&|_| {}, &|| false).await.expect("runs");
            assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
            let found = placed_so_far().found_bytes;
            assert_eq!(found, report.nodes["node-1"].bytes, "{step}");
            assert_eq!(store.get("which").as_deref(), Some("stored"), "{step}");
        }
        let settled = restore::settle("prod", &[store.target()], &store.state()).await.expect("settles");
        assert!(settled[0].result.is_ok(), "{step}: {:?}", settled[0].result);
        assert_eq!(store.kept(), Vec::<String>::new(), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_takes_what_is_right_from_an_interrupted_one_and_from_what_it_replaces() {
    let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(6 << 20);
    let files: [(&str, &[u8]); 3] = [("grown", &noise), ("kept", &noise[..3 << 20]), ("new", &noise[1 << 20..3 << 20])];
    let description = NodeDescription { store: "files".to_owned(), ..NodeDescription::default() };
    let stored = store(&files, description, None).await;
    let store = Store::new("");
    let mut target = store.target();
    target.server = None;
    // Of a file that has grown since there is the beginning; one is the same; one is another.
    std::fs::write(store.data.join("grown"), &noise[..(4 << 20) + 17]).expect("writes");
    std::fs::write(store.data.join("kept"), &noise[..3 << 20]).expect("writes");
    std::fs::write(store.data.join("new"), vec![7; 2 << 20]).expect("writes");

    // It dies when everything is placed. What it left is torn here and there, as by a loss of power, and tampered with.
    let prepared = prepare(&stored, &target, &request(), &store).await;
    assert!(prepared.plan.is_allowed(), "{}", prepared.plan);
    let placed_so_far = prepared.placed();
    let dying =
        tokio::spawn(async move { prepared.run(&|now| assert!(now != RestoreStep::Stop, "dies on purpose"), &|| false).await });
    assert!(dying.await.is_err());
    assert_eq!(placed_so_far().found_bytes, 7 << 20, "four blocks of one file and three of another");
    // Whoever dies looks no more.
    drop(placed_so_far);
    let begun = store.state().records().expect("lists").remove(0).fresh;
    let outside = store.root.path().join("outside");
    std::fs::write(&outside, "mine").expect("writes");
    let torn = std::fs::File::options().write(true).open(begun.join("grown")).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&torn, &[0; 100], (2 << 20) + 5).expect("writes");
    torn.set_len(5 << 20).expect("cuts");
    std::fs::remove_file(begun.join("kept")).expect("removes");
    std::fs::hard_link(&outside, begun.join("kept")).expect("links");
    std::fs::remove_file(begun.join("new")).expect("removes");
    std::os::unix::fs::symlink(&outside, begun.join("new")).expect("links");
    std::fs::create_dir_all(begun.join("stranger/below")).expect("makes");
    for name in ["grown", "kept", "new"] {
        std::fs::write(store.data.join(name), "").expect("writes");
    }

    let prepared = prepare(&stored, &target, &request(), &store).await;
    let placed_so_far = prepared.placed();
    let report = prepared.run(&|_| {}, &|| false).await.expect("runs");
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert_eq!(placed_so_far().found_bytes, 4 << 20, "six blocks, one of them torn and one cut off");
    // Whoever dies looks no more.
    drop(placed_so_far);
    for (name, content) in files {
        assert!(std::fs::read(store.data.join(name)).expect("reads") == content, "{name}");
        assert!(!store.data.join(name).is_symlink());
    }
    assert!(!store.data.join("stranger").exists());
    assert_eq!(std::fs::read_to_string(&outside).expect("reads"), "mine");

    // Another restore does not go on from it.
    let prepared = prepare(&stored, &target, &request(), &store).await;
    let dying =
        tokio::spawn(async move { prepared.run(&|now| assert!(now != RestoreStep::Stop, "dies on purpose"), &|| false).await });
    assert!(dying.await.is_err());
    let description = NodeDescription { store: "files".to_owned(), ..NodeDescription::default() };
    let other = self::store(&[("other", b"content")], description, None).await;
    let prepared = prepare(&other, &target, &request(), &store).await;
    let report = prepared.run(&|_| {}, &|| false).await.expect("runs");
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    let names: Vec<_> = std::fs::read_dir(&store.data).expect("lists").map(|entry| entry.expect("lists").file_name()).collect();
    assert_eq!(names, ["other"]);
    restore::settle("prod", &[target], &store.state()).await.expect("settles");
    assert_eq!(store.kept(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_interrupted_while_it_places_ends_though_its_store_hangs_and_goes_on_later() {
    let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(48 << 20);
    let description = NodeDescription { store: "files".to_owned(), ..NodeDescription::default() };
    let objects = FaultyStore::new(Arc::new(MemoryStore::default()));
    let stored = store_in(Arc::new(objects.clone()), &[("data", &noise)], description, None).await;
    let store = Store::new("");
    let target = RestoreTarget { server: None, ..store.target() };
    std::fs::write(store.data.join("data"), "old").expect("writes");

    let prepared = prepare(&stored, &target, &request(), &store).await;
    assert!(prepared.plan.is_allowed(), "{}", prepared.plan);
    let placed_so_far = prepared.placed();
    let bytes = || placed_so_far().bytes;
    // Longer than any test may take.
    let hang = Rule { occurrence: Occurrence::From(4), ..Rule::always(Operation::Get, Fault::Hang(Duration::from_secs(7200))) };
    objects.add(hang.on_key("packs/"));
    let report = prepared.run(&|_| {}, &|| bytes() > 0).await.expect("ends");
    assert_eq!(report.outcome, RestoreOutcome::Undone);
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    assert_eq!(report.failures[0].to_string(), "restore: placing the files: it was interrupted");
    assert_eq!(std::fs::read(store.data.join("data")).expect("reads"), b"old");

    let placed = bytes();
    assert!((1..48 << 20).contains(&placed), "{placed}");
    objects.heal();
    let prepared = prepare(&stored, &target, &request(), &store).await;
    let placed_so_far = prepared.placed();
    let report = prepared.run(&|_| {}, &|| false).await.expect("runs");
    assert_eq!(report.outcome, RestoreOutcome::Restored, "{:?}", report.failures);
    assert!(placed_so_far().found_bytes >= placed, "what was placed is fetched again");
    assert!(std::fs::read(store.data.join("data")).expect("reads") == noise);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_leads_nowhere_or_cannot_be_written_is_refused() {
    let stored = stored_dump().await;
    let store = Store::new("");
    let mut target = store.target();
    let link = store.root.path().join("dangling");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).expect("links");
    target.site.data_directory = Some(link);
    assert_eq!(codes(&prepare(&stored, &target, &request(), &store).await), [RefusalCode::ForeignDirectory]);
    let fifo = store.root.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("runs").success());
    target.site.data_directory = Some(fifo);
    assert_eq!(codes(&prepare(&stored, &target, &request(), &store).await), [RefusalCode::ForeignDirectory]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_alone_are_placed_into_a_new_directory_only() {
    let content = dump();
    let stored = store(&[("dump.rdb", &content)], description(), counts(1001)).await;
    let root = tempfile::tempdir().expect("a directory");
    let node = NodeName::new("node-1").expect("legal");
    let place = |directory: PathBuf| {
        restore::place_files(stored.repository.clone(), &stored.listed, &node, directory, None, Arc::default())
    };
    let directory = root.path().join("placed");
    let receipt = place(directory.clone()).await.expect("places");
    assert_eq!((receipt.files, receipt.bytes), (1, content.len() as u64));
    assert!(std::fs::read(directory.join("dump.rdb")).expect("reads") == content);
    assert!(place(directory.clone()).await.is_err());
    assert!(directory.join("dump.rdb").exists());
}

/// Bytes that look random.
trait TakeBytes {
    fn take_bytes(self, length: usize) -> Vec<u8>;
}

impl TakeBytes for blake3::OutputReader {
    fn take_bytes(mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}
