//! The repository as a whole: what was stored is read back, stored once, resumed, and never believed when damaged.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::verify::VerifyDepth;
use super::*;
use crate::model::extent::{SEQUENTIAL_BLOCK_BYTES, Segment};
use crate::model::manifest::{
    CaptureProof, Consistency, CutKind, CutRecord, FileClass, Fingerprint, NodeDescription, NodeRecord, NodeStatus, Ownership,
};
use crate::model::time::Timestamp;
use crate::object::faulty::{FaultyStore, Operation};
use crate::object::memory::MemoryStore;
use crate::object::{Capabilities, ObjectStore, PutMode, list_all};

pub(super) const NOW: i64 = 1_795_000_000_000_000;

pub(super) fn capabilities() -> Capabilities {
    Capabilities { refuses_second_create: true, refuses_stale_replace: true, checks_uploads: true, serves_ranges: true }
}

pub(super) fn secret() -> Secret {
    Secret::KeyFile(Zeroizing::new(vec![5; 32]))
}

async fn repository(store: &Arc<MemoryStore>) -> Arc<Repository> {
    Arc::new(Repository::init(store.clone(), Some(&secret()), capabilities(), NOW).await.expect("inits"))
}

pub(super) fn cluster() -> ClusterName {
    ClusterName::new("prod").expect("legal")
}

pub(super) fn node() -> NodeName {
    NodeName::new("node-1").expect("legal")
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).expect("legal")
}

pub(super) fn meta(text: &str) -> EntryMeta {
    EntryMeta { path: path(text), mode: 0o640, owner: Ownership::default(), modified_ns: 7 }
}

pub(super) fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

async fn begin(repository: &Arc<Repository>, uuid: SnapshotId, parent: Option<NodeTree>) -> NodeWriter {
    let mut writer = NodeWriter::begin(repository.clone(), cluster(), node(), uuid, parent, WriterOptions::new(Some(-1), 2))
        .await
        .expect("begins");
    writer.add_directory(meta("")).expect("adds");
    writer
}

async fn add(writer: &mut NodeWriter, name: &str, content: &[u8]) {
    writer.add_stream(meta(name), FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut &content[..]).await.expect("stores");
}

pub(super) fn publication(uuid: SnapshotId, receipt: &NodeReceipt) -> Publication {
    let record = NodeRecord {
        name: node(),
        status: NodeStatus::Completed,
        reason: None,
        manifest: Some(receipt.manifest),
        description: NodeDescription::default(),
        proof: CaptureProof::none(),
        keys: None,
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
    Publication {
        uuid,
        cluster: cluster(),
        cut_at: Timestamp(NOW),
        store: "files".to_owned(),
        cut,
        nodes: vec![record],
        tags: BTreeMap::new(),
    }
}

async fn publish(repository: &Arc<Repository>, uuid: SnapshotId, receipt: &NodeReceipt) -> ListedSnapshot {
    repository.publish(publication(uuid, receipt), Timestamp(NOW)).await.expect("publishes").0
}

async fn snapshot(
    repository: &Arc<Repository>,
    parent: Option<NodeTree>,
    files: &[(&str, Vec<u8>)],
) -> (ListedSnapshot, NodeReceipt) {
    let uuid = SnapshotId::new_v4();
    let mut writer = begin(repository, uuid, parent).await;
    for (name, content) in files {
        add(&mut writer, name, content).await;
    }
    let receipt = writer.finish().await.expect("finishes");
    (publish(repository, uuid, &receipt).await, receipt)
}

async fn tree(repository: &Repository, listed: &ListedSnapshot) -> Result<NodeTree, RepoError> {
    let manifest = repository.manifest(listed).await?;
    repository.open_node(&manifest, &node()).await
}

async fn read(source: &dyn SnapshotSource, tree: &NodeTree, name: &str) -> Result<Vec<u8>, RepoError> {
    let file = source.entry(tree, &path(name)).await?.ok_or_else(|| RepoError::NotFound { what: name.to_owned() })?;
    let mut content = Vec::new();
    while let Some(run) = source.segments(tree, &file, content.len() as u64).await? {
        for segment in run.segments() {
            match segment {
                Segment::Literal(bytes) => content.extend_from_slice(bytes),
                Segment::Block(extent) => {
                    content.extend_from_slice(&source.read_blocks(tree, std::slice::from_ref(extent)).await?[0])
                }
            }
        }
    }
    Ok(content)
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", vec![]),
        ("tiny", b"few bytes".to_vec()),
        ("exact", noise(1, SEQUENTIAL_BLOCK_BYTES as usize)),
        ("large", noise(2, 3 * SEQUENTIAL_BLOCK_BYTES as usize + 17)),
        ("zeros", vec![0; 5_000_000]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_read_back_by_a_stranger() {
    let store = Arc::new(MemoryStore::default());
    let (listed, receipt) = snapshot(&repository(&store).await, None, &samples()).await;
    assert_eq!(receipt.totals.files, 5);

    let stranger = Repository::open(store.clone(), Some(&secret())).await.expect("opens");
    assert_eq!(stranger.clusters().await.expect("lists"), [cluster()]);
    assert_eq!(stranger.snapshots(&cluster()).await.expect("lists"), std::slice::from_ref(&listed));
    let tree = tree(&stranger, &listed).await.expect("opens");
    let names: Vec<_> = stranger
        .directory(&tree, &TreePath::root())
        .await
        .expect("lists")
        .into_iter()
        .map(|placed| placed.entry.path.to_string())
        .collect();
    assert_eq!(names, ["empty", "exact", "large", "tiny", "zeros"]);
    for (name, content) in samples() {
        assert!(read(&stranger, &tree, name).await.expect("reads") == content, "{name}");
    }
    let report = stranger.verify(&listed, VerifyDepth::Hashed, &|_| {}).await.expect("verifies");
    // Zeros are one whole block, and one that is shorter.
    assert_eq!((report.problems, report.files, report.blocks), (vec![], 5, 1 + 4 + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_many_pages_lists_and_finds_every_entry() {
    let repository = repository(&Arc::new(MemoryStore::default())).await;
    let uuid = SnapshotId::new_v4();
    let mut writer = begin(&repository, uuid, None).await;
    writer.add_directory(meta("a")).expect("adds");
    writer.add_directory(meta("a-b")).expect("adds");
    writer.add_link(meta("link"), b"/elsewhere".to_vec()).expect("adds");
    for number in 0..5000u32 {
        add(&mut writer, &format!("a/{number:05}"), &number.to_le_bytes()).await;
    }
    add(&mut writer, "a-b/x", b"x").await;
    let receipt = writer.finish().await.expect("finishes");
    let listed = publish(&repository, uuid, &receipt).await;
    let tree = tree(&repository, &listed).await.expect("opens");
    assert!(tree.manifest.tree.len() > 3);
    assert_eq!(repository.directory(&tree, &path("a")).await.expect("lists").len(), 5000);
    assert_eq!(repository.directory(&tree, &path("a-b")).await.expect("lists").len(), 1);
    assert_eq!(repository.directory(&tree, &TreePath::root()).await.expect("lists").len(), 3);
    assert_eq!(repository.directory(&tree, &path("nothing")).await.expect("lists"), []);
    assert_eq!(read(repository.as_ref(), &tree, "a/04711").await.expect("reads"), 4711u32.to_le_bytes());
    assert_eq!(repository.entry(&tree, &path("a/5000")).await.expect("looks"), None);
    assert!(repository.verify(&listed, VerifyDepth::Hashed, &|_| {}).await.expect("verifies").problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_and_pages_that_are_stored_are_not_stored_again() {
    let repository = repository(&Arc::new(MemoryStore::default())).await;
    let (listed, first) = snapshot(&repository, None, &samples()).await;
    let parent = tree(&repository, &listed).await.expect("opens");
    let (again, second) = snapshot(&repository, Some(parent), &samples()).await;
    assert_eq!(second.totals.new_bytes, 0);
    assert!(second.totals.stored_bytes < 2000, "only a manifest: {}", second.totals.stored_bytes);
    assert!(first.totals.stored_bytes > 4_000_000);
    let tree = tree(&repository, &again).await.expect("opens");
    assert!(read(repository.as_ref(), &tree, "large").await.expect("reads") == samples()[3].1);
}

fn fingerprint(file: &std::fs::File, captured_ns: i64) -> Fingerprint {
    let meta = file.metadata().expect("stat");
    Fingerprint {
        device: meta.dev(),
        inode: meta.ino(),
        modified_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        captured_ns,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_file_is_not_read_and_an_appended_one_only_behind() {
    let repository = repository(&Arc::new(MemoryStore::default())).await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut file =
        std::fs::File::options().create_new(true).read(true).append(true).open(directory.path().join("aof")).expect("creates");
    let block = SEQUENTIAL_BLOCK_BYTES as usize;
    let content = noise(3, 5 * block + 100);
    file.write_all(&content).expect("writes");
    let long_after = fingerprint(&file, 0).modified_ns + 60_000_000_000;
    let store = async |parent, length: u64| {
        let uuid = SnapshotId::new_v4();
        let mut writer = begin(&repository, uuid, parent).await;
        let print = fingerprint(&file, long_after);
        let open = file.try_clone().expect("clones");
        let is_unchanged = writer.add_unchanged(&meta("aof"), length, &print).await.expect("compares");
        if !is_unchanged {
            writer
                .add_file(meta("aof"), FileClass::AppendOnly, SEQUENTIAL_BLOCK_BYTES, open, length, Some(print))
                .await
                .expect("stores");
        }
        let receipt = writer.finish().await.expect("finishes");
        (is_unchanged, publish(&repository, uuid, &receipt).await, receipt)
    };
    let (_, first, _) = store(None, content.len() as u64).await;
    let parent = tree(&repository, &first).await.expect("opens");
    let (is_unchanged, second, receipt) = store(Some(parent), content.len() as u64).await;
    assert!(is_unchanged && receipt.totals.new_bytes == 0);

    (&file).write_all(b"appended").expect("appends");
    let parent = tree(&repository, &second).await.expect("opens");
    let (is_unchanged, third, receipt) = store(Some(parent), content.len() as u64 + 8).await;
    assert!(!is_unchanged);
    assert_eq!(receipt.totals.new_bytes, 108);
    let tree = tree(&repository, &third).await.expect("opens");
    assert!(read(repository.as_ref(), &tree, "aof").await.expect("reads") == [&content[..], b"appended"].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_is_found_by_the_next_attempt_and_listed_by_nobody() {
    let store = Arc::new(MemoryStore::default());
    let repository = repository(&store).await;
    let content = noise(9, 40 * 1024 * 1024);
    let mut writer = begin(&repository, SnapshotId::new_v4(), None).await;
    add(&mut writer, "dump", &content).await;
    // Dropped: as if the process had died after some packs were stored.
    drop(writer);
    let stored_before = list_all(store.as_ref(), "clusters/prod/node-1/packs/").await.expect("lists").len();
    assert!(stored_before >= 1, "nothing was stored yet");
    assert_eq!(repository.clusters().await.expect("lists"), []);
    let (listed, receipt) = snapshot(&repository, None, &[("dump", content.clone())]).await;
    assert!(receipt.totals.new_bytes < 40 * 1024 * 1024 - 10 * 1024 * 1024, "{}", receipt.totals.new_bytes);
    let tree = tree(&repository, &listed).await.expect("opens");
    assert!(read(repository.as_ref(), &tree, "dump").await.expect("reads") == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_a_cut_a_swap_and_a_loss_of_any_object_are_noticed() {
    let store = Arc::new(MemoryStore::default());
    let repo = repository(&store).await;
    let files = [("a", noise(1, 300_000)), ("b", noise(2, 2_000_000))];
    let (first, _) = snapshot(&repo, None, &files).await;
    let parent = tree(&repo, &first).await.expect("opens");
    let (listed, _) = snapshot(&repo, Some(parent), &[("a", noise(7, 300_000)), ("b", noise(2, 2_000_000))]).await;
    let objects = list_all(store.as_ref(), "").await.expect("lists");
    let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).filter(|key| key.starts_with("clusters/")).collect();
    assert!(keys.len() >= 8, "{keys:?}");
    let mut noticed = 0;
    for key in &keys {
        let good = store.get(key, None).await.expect("gets");
        let half = good.len() / 2;
        let flipped = |position: usize| {
            let mut bad = good.to_vec();
            bad[position] ^= 4;
            Bytes::from(bad)
        };
        // Another object of the same kind, with the greatest likeness.
        let kind = |key: &str| key.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        let mut changes: Vec<Option<Bytes>> = vec![None, Some(good.slice(..half)), Some(flipped(20)), Some(flipped(half))];
        for other in keys.iter().filter(|other| *other != key && kind(other) == kind(key)) {
            changes.push(Some(store.get(other, None).await.expect("gets")));
        }
        for change in changes {
            match &change {
                None => store.delete(key).await.expect("deletes"),
                Some(bytes) => drop(store.put(key, bytes.clone(), PutMode::Replace).await.expect("puts")),
            }
            let stranger = Repository::open(store.clone(), Some(&secret())).await.expect("opens");
            let mut problems = 0;
            for snapshot in [&first, &listed] {
                let report = stranger.verify(snapshot, VerifyDepth::Hashed, &|_| {}).await.expect("is a finding, not an error");
                problems += report.problems.len();
                // Whatever is read is right or an error.
                if let Ok(tree) = tree(&stranger, snapshot).await {
                    for (name, _) in &files {
                        if let Ok(read) = read(&stranger, &tree, name).await {
                            let right =
                                [&files[0].1, &files[1].1, &noise(7, 300_000)].into_iter().any(|content| *content == read);
                            assert!(right, "wrong bytes of {name} after a change of {key}");
                        }
                    }
                }
            }
            // Intents and marks are not part of what a snapshot holds; all else is.
            assert!(problems > 0, "a change of {key} was not noticed: {:?}", change.map(|bytes| bytes.len()));
            noticed += 1;
        }
        store.put(key, good, PutMode::Replace).await.expect("puts back");
    }
    assert!(noticed > 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_and_wrong_places_are_refused_with_their_reason() {
    let store = Arc::new(MemoryStore::default());
    assert!(matches!(Repository::open(store.clone(), None).await, Err(RepoError::NotFound { .. })));
    let repository = repository(&store).await;
    let again = Repository::init(store.clone(), Some(&secret()), capabilities(), NOW).await;
    assert!(matches!(again, Err(RepoError::Conflict { .. })));
    let other = Secret::KeyFile(Zeroizing::new(vec![6; 32]));
    assert!(matches!(Repository::open(store.clone(), Some(&other)).await, Err(RepoError::WrongKey { .. })));
    assert!(matches!(Repository::open(store.clone(), None).await, Err(RepoError::NoKey { .. })));
    repository.add_key(&other, "second", NOW).await.expect("adds");
    Repository::open(store.clone(), Some(&other)).await.expect("opens with either");
    let boxes = repository.key_boxes().await.expect("lists");
    repository.remove_key(boxes[0].id).await.expect("removes");
    let last = repository.key_boxes().await.expect("lists")[0].id;
    assert!(matches!(repository.remove_key(last).await, Err(RepoError::Conflict { .. })));

    let newer = store.get("tintype.json", None).await.expect("gets");
    let newer = String::from_utf8(newer.to_vec()).expect("JSON").replace("\"version\": 1", "\"version\": 2");
    store.put("tintype.json", Bytes::from(newer), PutMode::Replace).await.expect("puts");
    assert!(matches!(Repository::open(store.clone(), Some(&other)).await, Err(RepoError::TooNew { found: 2, .. })));

    let occupied = Arc::new(MemoryStore::default());
    occupied.put("holiday.jpg", Bytes::from_static(b"x"), PutMode::Replace).await.expect("puts");
    assert!(matches!(Repository::init(occupied, None, capabilities(), NOW).await, Err(RepoError::Conflict { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshot_in_one_second_gets_a_later_name_and_names_its_predecessor() {
    let store = Arc::new(MemoryStore::default());
    let repository = repository(&store).await;
    let (first, _) = snapshot(&repository, None, &[("a", vec![1])]).await;
    let (second, _) = snapshot(&repository, None, &[("a", vec![2])]).await;
    assert_eq!(second.date.seconds(), first.date.seconds() + 1);
    let manifest = repository.manifest(&second).await.expect("reads");
    assert_eq!(manifest.predecessor.as_ref().expect("named").uuid, first.uuid);
    assert_eq!(repository.newest(&cluster(), 1).await.expect("lists"), std::slice::from_ref(&second));
    store.delete(&first.key).await.expect("deletes");
    let report = repository.verify(&second, VerifyDepth::Listed, &|_| {}).await.expect("verifies");
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_tree_is_refused() {
    let repository = repository(&Arc::new(MemoryStore::default())).await;
    let mut writer = begin(&repository, SnapshotId::new_v4(), None).await;
    add(&mut writer, "nowhere/file", b"x").await;
    assert!(matches!(writer.finish().await, Err(RepoError::Refused { .. })));
    let mut writer = begin(&repository, SnapshotId::new_v4(), None).await;
    add(&mut writer, "twice", b"x").await;
    let twice = writer.add_stream(meta("twice"), FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut &b"y"[..]).await;
    assert!(matches!(twice, Err(RepoError::Refused { .. })));
    assert!(matches!(writer.add_same(meta("copy"), FileClass::Immutable, &path("missing")), Err(RepoError::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_limits_sends_no_second_pack_before_its_time() {
    let store = FaultyStore::new(Arc::new(MemoryStore::default()));
    let capabilities = crate::object::conformance::EVERYTHING;
    let repository = Arc::new(Repository::init(Arc::new(store.clone()), None, capabilities, NOW).await.expect("inits"));
    // Hours between two packs.
    let options = WriterOptions::new(None, 4).limited(Some(1), Some(1000));
    let node = NodeName::new("node-1").expect("legal");
    let mut writer = NodeWriter::begin(repository, cluster(), node, SnapshotId::new_v4(), None, options).await.expect("begins");
    let mut noise = vec![0; 70 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let packs =
        || store.calls().iter().filter(|(operation, key)| *operation == Operation::Put && key.contains("/packs/")).count();
    let mut stream = &noise[..];
    let storing = writer.add_stream(meta("noise"), FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut stream);
    tokio::pin!(storing);
    // So long until it stores the first pack, and then it waits for the second.
    let mut turns = 0;
    while turns < 20 {
        let is_done = tokio::time::timeout(std::time::Duration::from_millis(50), &mut storing).await.is_ok();
        assert!(!is_done && packs() <= 1, "{} packs", packs());
        turns += packs();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_one_cluster_learn_of_each_other() {
    let store = Arc::new(MemoryStore::default());
    let repository = repository(&store).await;
    let clock: Arc<dyn crate::base::Clock> = Arc::new(crate::base::ManualClock::at(NOW));
    let guard =
        repository.announce(&cluster(), SnapshotId::new_v4(), None, Vec::new(), None, clock.clone()).await.expect("announces");
    let second = repository.announce(&cluster(), SnapshotId::new_v4(), None, Vec::new(), None, clock.clone()).await;
    assert!(matches!(second, Err(RepoError::Conflict { .. })));
    assert_eq!(repository.intents(&cluster()).await.expect("lists").len(), 1);
    guard.release().await;
    let guard =
        repository.announce(&cluster(), SnapshotId::new_v4(), None, Vec::new(), None, clock.clone()).await.expect("announces");
    // Whoever announced it has lost the lease, or never had it; what it reuses stays pinned.
    let lease = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    let uuid = SnapshotId::new_v4();
    let leader = repository.announce(&cluster(), uuid, None, Vec::new(), Some(&lease), clock).await.expect("announces");
    assert_eq!(repository.intents(&cluster()).await.expect("lists").len(), 2);
    leader.release().await;
    lease.release().await;
    guard.release().await;
    assert_eq!(repository.intents(&cluster()).await.expect("lists"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_that_cannot_be_read_hides_no_other_and_no_snapshot() {
    let store = Arc::new(MemoryStore::default());
    let repository = repository(&store).await;
    let clock: Arc<dyn crate::base::Clock> = Arc::new(crate::base::ManualClock::at(NOW));
    let (uuid, damaged) = (SnapshotId::new_v4(), SnapshotId::new_v4());
    store.put(&layout::intent(&cluster(), damaged), "damaged".into(), PutMode::Create).await.expect("puts");
    assert_eq!(repository.intents(&cluster()).await.expect("lists"), []);
    let guard = repository.announce(&cluster(), uuid, None, Vec::new(), None, clock).await.expect("announces");
    let found: Vec<_> = repository.intents(&cluster()).await.expect("lists").into_iter().map(|intent| intent.uuid).collect();
    assert_eq!(found, [uuid]);
    assert_eq!(repository.find_intent(damaged).await.expect("reads"), None);
    assert_eq!(repository.find_intent(uuid).await.expect("reads").map(|(cluster, _)| cluster), Some(cluster()));
    guard.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_elsewhere_that_died_is_recorded_with_its_nodes_before_its_intent_goes() {
    let store = Arc::new(MemoryStore::default());
    let repository = repository(&store).await;
    let elsewhere = Arc::new(Repository::open(store.clone(), Some(&secret())).await.expect("opens").seen_from("elsewhere"));
    let (clock, died) = (Arc::new(crate::base::ManualClock::at(NOW)), SnapshotId::new_v4());
    let nodes = vec![NodeName::new("node-1").expect("legal"), NodeName::new("node-2").expect("legal")];
    // It stops renewing when it is dropped.
    drop(elsewhere.announce(&cluster(), died, None, nodes.clone(), None, clock.clone()).await.expect("announces"));
    let found = repository.find_intent(died).await.expect("reads").expect("is there");
    assert_eq!((&found.0, &found.1.nodes, found.1.is_alive(Timestamp(NOW))), (&cluster(), &nodes, true));
    assert!(repository.run(died).await.expect("reads").is_none());
    let late = Arc::new(crate::base::ManualClock::at(NOW + 121_000_000));
    let next = repository.announce(&cluster(), SnapshotId::new_v4(), None, Vec::new(), None, late).await.expect("announces");
    let run = repository.run(died).await.expect("reads").expect("is recorded");
    assert_eq!(run.status, RunStatus::Failed);
    assert_eq!(run.nodes.keys().cloned().collect::<Vec<_>>(), nodes);
    let is_told = |node: &NodeOutcome| node.reason.as_ref().is_some_and(|reason| reason.contains("on elsewhere"));
    assert!(run.nodes.values().all(|node| node.status == NodeStatus::Failed && is_told(node)), "{run:?}");
    assert!(repository.find_intent(died).await.expect("reads").is_none());
    next.release().await;
}
