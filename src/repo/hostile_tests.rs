//! Manifests and pages that no writer of ours makes: rightly sealed, by somebody with the key, and meant to harm a reader.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pack::PackBuilder;
use super::seal::SealType;
use super::*;
use crate::model::manifest::{
    CaptureProof, Consistency, CutKind, CutRecord, FORMAT_VERSION, NodeDescription, NodeRecord, NodeStatus, NodeTotals,
};
use crate::model::time::Timestamp;
use crate::object::conformance::EVERYTHING;
use crate::object::memory::MemoryStore;
use crate::object::{ObjectStore, PutMode};

fn cluster() -> ClusterName {
    ClusterName::new("prod").expect("legal")
}

fn node() -> NodeName {
    NodeName::new("node-1").expect("legal")
}

fn directory(path: &str) -> Value {
    json!({"path": path, "kind": "directory", "mode": 0o755, "uid": 0, "gid": 0, "modified_ns": 0})
}

fn file(path: &str, content: Value) -> Value {
    json!({"path": path, "kind": "file", "mode": 0o644, "uid": 0, "gid": 0, "modified_ns": 0, "content": content})
}

fn content(size_bytes: u64, tables: Value) -> Value {
    json!({"size_bytes": size_bytes, "block_bytes": 1_048_576, "class": "immutable", "id": "0".repeat(64), "tables": tables})
}

/// Publishes a snapshot whose one tree page holds `page` after the root's own entry, and opens its node.
async fn published(page: Value) -> (Arc<Repository>, Result<NodeTree, RepoError>) {
    let store = Arc::new(MemoryStore::default());
    let repository = Arc::new(Repository::init(store.clone(), None, EVERYTHING, 0).await.expect("inits"));
    let sealer = repository.sealer(&cluster());
    let plain = serde_json::to_vec(&page).expect("serializes");
    let id = sealer.placed_id(SealType::TreePage, b"", &plain);
    let mut pack = PackBuilder::new(node(), bytes::BytesMut::new());
    let sealed = sealer.seal(SealType::TreePage, &id.0, &plain, None).expect("seals");
    let extent = pack.add(SealType::TreePage, id, plain.len() as u32, &sealed);
    let key = Repository::page_key(&cluster(), &extent);
    store.put(&key, pack.finish(&sealer, &key).expect("finishes"), PutMode::Create).await.expect("puts");

    let uuid = SnapshotId::new_v4();
    let manifest = json!({
        "format": FORMAT_VERSION, "snapshot": uuid, "cluster": "prod", "node": "node-1",
        "tree": [{"first": "", "page": extent}], "totals": NodeTotals::default(),
    });
    let key = layout::node_manifest(&cluster(), &node(), uuid);
    let stored = repository.put_sealed(&key, SealType::NodeManifest, "prod", &manifest, PutMode::Create).await;
    let record = NodeRecord {
        name: node(),
        status: NodeStatus::Completed,
        reason: None,
        manifest: Some(stored.expect("stores").0),
        description: NodeDescription::default(),
        proof: CaptureProof::none(),
        keys: None,
        totals: NodeTotals::default(),
    };
    let kind = CutKind::None;
    let cut = CutRecord { kind, consistent: Consistency::No, scope: "node".to_owned(), pause_us: 0, capture_us: 0, skew_us: 0 };
    let (cut_at, store, nodes, tags) = (Timestamp(0), "files".to_owned(), vec![record], BTreeMap::new());
    let publication = Publication { uuid, cluster: cluster(), cut_at, store, cut, nodes, tags };
    let (_, manifest) = repository.publish(publication, Timestamp(0)).await.expect("publishes");
    let tree = repository.open_node(&manifest, &node()).await;
    (repository, tree)
}

/// What reading the whole node comes to: its root's entries, and the table of every file in it.
async fn read(entries: Vec<Value>, table: Option<Value>) -> Result<usize, RepoError> {
    let mut all = vec![directory("")];
    all.extend(entries);
    let (repository, tree) = published(json!({"table": table, "entries": all})).await;
    let tree = tree?;
    let entries = repository.directory(&tree, &TreePath::root()).await?;
    for placed in &entries {
        repository.segments(&tree, placed, 0).await?;
    }
    Ok(entries.len())
}

fn extent(changes: &[(&str, Value)]) -> Value {
    let mut extent = json!({
        "id": "0".repeat(64), "node": "node-1", "pack": "0".repeat(32), "offset": 8, "stored_bytes": 100, "plain_bytes": 100,
    });
    for (key, value) in changes {
        extent[*key] = value.clone();
    }
    extent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_page_is_read() {
    let entries = vec![file("a", content(0, json!([]))), directory("b")];
    assert_eq!(read(entries, None).await.expect("nothing is wrong with it"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_out_or_stand_twice_are_refused() {
    let long = "x".repeat(256);
    for path in ["..", "../etc", "a/../../etc", "/etc/passwd", "a//b", "a/", ".", "a\0b", &long] {
        let answer = read(vec![directory(path)], None).await;
        assert!(matches!(answer, Err(RepoError::Corrupt { .. })), "{path:?}: {answer:?}");
    }
    for pair in [["a", "a"], ["b", "a"]] {
        let answer = read(pair.map(directory).into(), None).await;
        assert!(matches!(answer, Err(RepoError::Corrupt { .. })), "{pair:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_contradict_themselves_are_refused() {
    let mut setuid_type = directory("a");
    setuid_type["mode"] = json!(0o170_755);
    let mut linked_file = file("a", content(0, json!([])));
    linked_file["target"] = json!("/etc/passwd");
    let mut device = directory("a");
    device["kind"] = json!("device");
    let hollow = json!({"path": "a", "kind": "file", "mode": 0, "uid": 0, "gid": 0, "modified_ns": 0});
    for entry in [setuid_type, linked_file, device, hollow] {
        let answer = read(vec![entry.clone()], None).await;
        assert!(matches!(answer, Err(RepoError::Corrupt { .. })), "{entry}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_sizes_counts_and_places_are_refused_without_allocating() {
    let whole = |page: Value| json!([{"start": 0, "first": 0, "count": 1, "page": page}]);
    let cases = [
        ("a size without segments", content(u64::MAX, json!([]))),
        ("more records than a page can have", content(1 << 62, json!([{"start": 0, "first": 1, "count": u32::MAX}]))),
        ("a table behind the largest pack", content(100, whole(extent(&[("offset", json!(u32::MAX))])))),
        ("a table that unfolds to 4 GiB", content(100, whole(extent(&[("plain_bytes", json!(u32::MAX))])))),
        ("a table larger than its seal explains", content(100, whole(extent(&[("stored_bytes", json!(30 << 20))])))),
        ("a number that is none of ours", content(100, whole(extent(&[("offset", json!(-1))])))),
        ("a table of another cluster", content(100, whole(extent(&[("node", json!("../../other/node-1"))])))),
        ("a pack by another name", content(100, whole(extent(&[("pack", json!("../../../tintype.json"))])))),
        ("a pack that is not there", content(100, whole(extent(&[])))),
        ("a shared table that is not there", content(100, json!([{"start": 0, "first": 0, "count": 1}]))),
    ];
    for (what, content) in cases {
        let answer = read(vec![file("a", content)], None).await;
        assert!(matches!(answer, Err(RepoError::Corrupt { .. })), "{what}: {answer:?}");
    }
}
