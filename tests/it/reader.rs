//! The independent reader, `scripts/read_repository.py`: what today's code writes, a stranger reads, byte for byte.
//!
//! It was written from FORMAT.md alone, so these tests hold the book, the code and the reader together.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use tintype::model::ids::SnapshotId;
use tintype::model::manifest::{
    CaptureProof, Consistency, CutKind, CutRecord, FileClass, NodeDescription, NodeRecord, NodeStatus, Ownership,
};
use tintype::model::names::{ClusterName, NodeName, TreePath};
use tintype::model::time::Timestamp;
use tintype::object::local::LocalStore;
use tintype::object::{Capabilities, ObjectStore};
use tintype::repo::{EntryMeta, ListedSnapshot, NodeWriter, Publication, Repository, Secret, SnapshotSource, WriterOptions};

pub const NOW: i64 = 1_795_000_000_000_000;
/// Small, so that a file of several table pages is a small file.
pub const BLOCK_BYTES: u32 = 4 * 1024;

/// What stands at one path of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    Directory,
    Link(Vec<u8>),
    File(Vec<u8>),
    /// The same stored bytes as another path, which sorts earlier.
    Same(Vec<u8>),
}

/// A node's tree, by path. The root directory is added by itself.
pub type Tree = BTreeMap<TreePath, Stored>;

pub fn path(bytes: impl AsRef<[u8]>) -> TreePath {
    TreePath::new(bytes.as_ref()).expect("a legal path")
}

/// The same bytes for the same seed, which no compression makes smaller.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn passphrase(text: &str) -> Secret {
    Secret::Passphrase(zeroize::Zeroizing::new(text.to_owned()))
}

pub fn key_file(bytes: &[u8]) -> Secret {
    Secret::KeyFile(zeroize::Zeroizing::new(bytes.to_vec()))
}

pub async fn create(directory: &Path, secret: Option<&Secret>) -> Arc<Repository> {
    create_in(Arc::new(LocalStore::create(directory).expect("a directory")), secret).await
}

pub async fn create_in(store: Arc<dyn ObjectStore>, secret: Option<&Secret>) -> Arc<Repository> {
    let capabilities =
        Capabilities { refuses_second_create: true, refuses_stale_replace: true, checks_uploads: true, serves_ranges: true };
    Arc::new(Repository::init(store, secret, capabilities, NOW).await.expect("inits"))
}

pub fn cluster() -> ClusterName {
    ClusterName::new("prod").expect("legal")
}

/// Publishes one snapshot of the nodes, each reusing what its own newest snapshot holds.
pub async fn snapshot(repository: &Arc<Repository>, nodes: &[(&str, &Tree)]) -> ListedSnapshot {
    let uuid = SnapshotId::new_v4();
    let newest = repository.newest(&cluster(), 1).await.expect("lists").pop();
    let mut records = Vec::new();
    for (name, tree) in nodes {
        let name = NodeName::new(*name).expect("legal");
        let parent = match &newest {
            Some(listed) => {
                let manifest = repository.manifest(listed).await.expect("reads");
                repository.open_node(&manifest, &name).await.ok()
            }
            None => None,
        };
        let options = WriterOptions::new(Some(3), 2);
        let mut writer =
            NodeWriter::begin(repository.clone(), cluster(), name.clone(), uuid, parent, options).await.expect("begins");
        let meta = |path: &TreePath, mode| EntryMeta {
            path: path.clone(),
            mode,
            owner: Ownership::default(),
            modified_ns: 7_000_000_007,
        };
        writer.add_directory(meta(&TreePath::root(), 0o755)).expect("adds");
        for (path, stored) in *tree {
            match stored {
                Stored::Directory => writer.add_directory(meta(path, 0o750)).expect("adds"),
                Stored::Link(target) => writer.add_link(meta(path, 0o777), target.clone()).expect("adds"),
                Stored::File(content) => {
                    let added = writer.add_stream(meta(path, 0o640), FileClass::Rewritten, BLOCK_BYTES, &mut &content[..]).await;
                    added.map(|_| ()).expect("stores");
                }
                Stored::Same(other) => {
                    writer
                        .add_same(meta(path, 0o600), FileClass::Rewritten, &TreePath::new(&other[..]).expect("legal"))
                        .expect("adds");
                }
            }
        }
        let receipt = writer.finish().await.expect("finishes");
        records.push(NodeRecord {
            name,
            status: NodeStatus::Completed,
            reason: None,
            manifest: Some(receipt.manifest),
            description: NodeDescription { store: "files".to_owned(), ..NodeDescription::default() },
            proof: CaptureProof::none(),
            keys: None,
            totals: receipt.totals,
        });
    }
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
        cluster: cluster(),
        cut_at: Timestamp(NOW),
        store: "files".to_owned(),
        cut,
        nodes: records,
        tags: BTreeMap::from([("reason".to_owned(), "test".to_owned())]),
    };
    repository.publish(publication, Timestamp(NOW)).await.expect("publishes").0
}

/// A Python with the reader's packages: `$TINTYPE_PYTHON`, else the one that `scripts/install-needs` makes.
pub fn python() -> PathBuf {
    if let Some(configured) = std::env::var_os("TINTYPE_PYTHON") {
        return configured.into();
    }
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/venv/bin/python3");
    assert!(made.exists(), "{} is missing: run scripts/install-needs, or set TINTYPE_PYTHON", made.display());
    made
}

/// The reader, not started yet.
pub fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/read_repository.py");
    let mut command = Command::new(python());
    command.arg("-B").arg(script).args(arguments).env_remove("TINTYPE_PASSWORD_FILE");
    command
}

/// Runs the reader.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    command(arguments).output().expect("Python runs: see scripts/install-needs")
}

/// Runs the reader, which must do well, and returns what it printed.
pub fn read(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything below a directory but itself, with permission bits and time checked on the way.
pub fn walk(root: &Path) -> Tree {
    fn visit(root: &Path, directory: &Path, found: &mut Tree) {
        for entry in std::fs::read_dir(directory).expect("lists") {
            let place = entry.expect("lists").path();
            let meta = std::fs::symlink_metadata(&place).expect("stat");
            let inner = place.strip_prefix(root).expect("below it").as_os_str().as_bytes().to_vec();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (7, 7), "{}", place.display());
            let stored = if meta.is_symlink() {
                Stored::Link(std::fs::read_link(&place).expect("reads").into_os_string().into_encoded_bytes())
            } else if meta.is_dir() {
                assert_eq!(meta.permissions().mode() & 0o7777, 0o750, "{}", place.display());
                visit(root, &place, found);
                Stored::Directory
            } else {
                Stored::File(std::fs::read(&place).expect("reads"))
            };
            found.insert(path(inner), stored);
        }
    }
    let mut found = Tree::new();
    visit(root, root, &mut found);
    found
}

/// What a tree looks like once extracted: the same bytes are a file like any other.
pub fn extracted(tree: &Tree) -> Tree {
    let resolve = |stored: &Stored| match stored {
        Stored::Same(other) => tree[&path(other)].clone(),
        other => other.clone(),
    };
    tree.iter().map(|(path, stored)| (path.clone(), resolve(stored))).collect()
}

/// Says which paths differ instead of printing megabytes.
pub fn assert_same(seed: u64, left: &Tree, right: &Tree) {
    let left_only: Vec<_> = left.keys().filter(|path| !right.contains_key(path)).collect();
    let right_only: Vec<_> = right.keys().filter(|path| !left.contains_key(path)).collect();
    assert!(left_only.is_empty() && right_only.is_empty(), "seed {seed}: only in one: {left_only:?} {right_only:?}");
    let differing: Vec<_> = left.iter().filter(|(path, stored)| right[*path] != **stored).map(|(path, _)| path).collect();
    assert!(differing.is_empty(), "seed {seed}: differ: {differing:?}");
}

/// A tree of everything that a node may hold, from a seed.
fn random_tree(seed: u64) -> Tree {
    let mut drawn = 0;
    let mut draw = |below: u64| {
        drawn += 1;
        u64::from_le_bytes(noise(seed << 32 | drawn, 8).try_into().expect("eight bytes")) % below
    };
    let mut tree = Tree::new();
    let mut directories: Vec<Vec<u8>> = vec![Vec::new()];
    for number in 0..200 {
        let parent = directories[draw(directories.len() as u64) as usize].clone();
        let mut name = if parent.is_empty() { parent } else { [&parent[..], b"/"].concat() };
        match draw(4) {
            0 => name.extend([0xff, 0x01, b'\n', 0xc3]),
            1 => name.extend("ä \\ \"* -".as_bytes()),
            2 => name.extend(vec![b'n'; 240]),
            _ => {}
        }
        name.extend(format!("-{number}").bytes());
        if name.len() > 2000 {
            continue;
        }
        let stored = match draw(8) {
            0 => {
                directories.push(name.clone());
                Stored::Directory
            }
            1 => Stored::Link([&b"../\xfe/"[..], &noise(draw(99), 3).iter().map(|byte| byte | 1).collect::<Vec<_>>()].concat()),
            2 => Stored::File(noise(number, draw(513) as usize)),
            3 => Stored::File(vec![7; draw(40_000) as usize]),
            4 => Stored::File(noise(draw(5), (1 + draw(4)) as usize * BLOCK_BYTES as usize)),
            _ => Stored::File(noise(number, draw(20_000) as usize)),
        };
        tree.insert(path(name), stored);
    }
    // More segments than share a table, and more than one table page of a file's own.
    tree.insert(
        path("large"),
        Stored::File([noise(seed, 300 * BLOCK_BYTES as usize), vec![1; 4000 * BLOCK_BYTES as usize]].concat()),
    );
    tree.insert(path("zlarge-again"), Stored::Same(b"large".to_vec()));
    tree.insert(path("zsmall"), Stored::File(noise(3, 100_000)));
    tree.insert(path("zsmall-again"), Stored::Same(b"zsmall".to_vec()));
    tree
}

fn text(place: &Path) -> String {
    place.to_str().expect("a plain path").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_independent_reader_extracts_what_was_stored_byte_for_byte() {
    for (seed, secret) in [(1u64, Some(key_file(&[9; 40]))), (2, None)] {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("repository");
        let repository = create(&place, secret.as_ref()).await;
        let first = random_tree(seed);
        let mut second = first.clone();
        second.insert(path("added"), Stored::File(noise(77, 70_000)));
        second.remove(&path("zsmall-again"));
        let other = Tree::from([(path("x"), Stored::File(b"of another node".to_vec()))]);
        snapshot(&repository, &[("node-1", &first), ("node-2", &other)]).await;
        let listed = snapshot(&repository, &[("node-1", &second), ("node-2", &other)]).await;

        let key = directory.path().join("key");
        std::fs::write(&key, [9; 40]).expect("writes");
        let with_key = if secret.is_some() { vec!["--key-file".to_owned(), text(&key)] } else { Vec::new() };
        let arguments = |words: &[&str]| [words.iter().map(|word| (*word).to_owned()).collect(), with_key.clone()].concat();
        let repository_text = text(&place);
        let target = directory.path().join("all");
        read(arguments(&["extract", &repository_text, "prod/latest", &text(&target)]));
        assert_same(seed, &walk(&target.join("node-1")), &extracted(&second));
        assert_same(seed, &walk(&target.join("node-2")), &extracted(&other));

        let dates: Vec<_> = repository.snapshots(&cluster()).await.expect("lists").iter().map(|s| s.date.to_string()).collect();
        let lines = read(arguments(&["list", &repository_text]));
        assert_eq!(
            lines.lines().map(|line| line.split_whitespace().next().expect("a name")).collect::<Vec<_>>(),
            dates.iter().map(|date| format!("prod/{date}")).collect::<Vec<_>>()
        );
        let older = directory.path().join("older");
        read(arguments(&["extract", &repository_text, &format!("prod/{}/node-1", dates[1]), &text(&older)]));
        assert_same(seed, &walk(&older), &extracted(&first));
        let one = directory.path().join("one");
        read(arguments(&["extract", &repository_text, "prod/latest/node-1/added", &text(&one)]));
        assert_same(seed, &walk(&one), &Tree::from([(path("added"), second[&path("added")].clone())]));
        assert!(read(arguments(&["verify", &repository_text, &format!("prod/{}", listed.date)])).contains("all verified"));
        assert!(read(arguments(&["show", &repository_text, "prod/latest"])).contains("node-1/zlarge-again"));
    }
}

/// The one line that the reader ends with.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_independent_reader_believes_nothing_that_was_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("repository");
    let repository = create(&place, None).await;
    let tree = Tree::from([(path("a"), Stored::File(noise(1, 100_000))), (path("b"), Stored::File(b"few".to_vec()))]);
    let listed = snapshot(&repository, &[("node-1", &tree)]).await;
    let repository_text = text(&place);
    let mut changed = 0;
    let mut folders = vec![place.join("clusters")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("lists") {
            let file = entry.expect("lists").path();
            if file.is_dir() {
                folders.push(file);
                continue;
            }
            let good = std::fs::read(&file).expect("reads");
            for bad in [&good[..20], &[&good[..20], &[good[20] ^ 1], &good[21..]].concat()] {
                std::fs::write(&file, bad).expect("writes");
                refusal(&["verify", &repository_text, "prod/latest"]);
                changed += 1;
            }
            std::fs::write(&file, good).expect("writes");
        }
    }
    assert!(changed >= 8, "{changed}");
    read(["verify", &repository_text, "prod/latest"]);

    // Another place than its own.
    let other = place.join(listed.key.replace(".full", ".part"));
    std::fs::copy(place.join(&listed.key), other).expect("copies");
    std::fs::remove_file(place.join(&listed.key)).expect("removes");
    assert!(refusal(&["show", &repository_text, &format!("prod/{}", listed.date)]).contains("the seal is broken"));
    assert!(refusal(&["show", &repository_text, "prod/latest"]).contains("no such snapshot"));
    assert!(refusal(&["list", &text(directory.path())]).contains("tintype.json"));
    assert!(refusal(&["show", &repository_text, "../x/latest"]).contains("CLUSTER/DATE"));
}
