//! Golden bytes: repositories of format version 1 as they were written once, which every later program must read.
//!
//! `tests/golden/v1/encrypted` opens with the passphrase in `password` or the key file `key`, `tests/golden/v1/plain` with
//! neither; both hold two snapshots of the trees below. They were written by
//!
//! ```text
//! TINTYPE_WRITE_GOLDEN=tests/golden/v1 cargo test --test it golden
//! ```
//!
//! and are never written again: a changed format gets a folder of its own beside this one.

use std::path::{Path, PathBuf};

use tintype::model::extent::Segment;
use tintype::model::names::{NodeName, TreePath};
use tintype::object::local::LocalStore;
use tintype::repo::verify::VerifyDepth;
use tintype::repo::{ListedSnapshot, Repository, Secret, SnapshotSource};

use crate::reader::{BLOCK_BYTES, Stored, Tree, cluster, create, key_file, noise, passphrase, path, read, snapshot, walk};

const PASSPHRASE: &str = "a passphrase for tests alone";
const KEY: &[u8] = b"a key file for tests alone, longer than 32 bytes";
const DATES: [&str; 2] = ["2026-11-18T11-06-41Z", "2026-11-18T11-06-40Z"];

/// BLAKE3 of the files' contents, so that neither the reading nor the making of the samples can drift unseen.
const HASHES: [(&[u8], usize, &str); 6] = [
    (b"empty", 0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    (b"latin-\xe9", 3, "59451e88655d6b928200bc601bdbe9e175daeade4d41e58da1ea237ebfa646ce"),
    (b"tiny", 9, "7b32bb8bba5b6e4bf6a9aad38f0bb0b44b7f5bc626ef30d842fa128d44bd48d9"),
    (b"directory/incompressible", 3000, "a24dc9ef2455f02574409adad60ec648eb9df517ec8c4922b08373caab58ae36"),
    (b"directory/two-blocks", 4196, "59149f9a9d5142af1b10de7bfe9a40387cc5ad5040ed6528c7748df75a4f8cad"),
    (b"directory/two-blocks-more", 4296, "a8c4ca713048e9a40054774eebc445148e539165989d1d83c1b24561d20bd58c"),
];

fn first() -> Tree {
    Tree::from([
        (path("directory"), Stored::Directory),
        (path("directory/incompressible"), Stored::File(noise(5, 3000))),
        (path("directory/two-blocks"), Stored::File(vec![b'2'; BLOCK_BYTES as usize + 100])),
        (path("empty"), Stored::File(Vec::new())),
        (path(b"latin-\xe9"), Stored::File(b"odd".to_vec())),
        (path("link"), Stored::Link(b"directory/\xff/../tiny".to_vec())),
        (path("tiny"), Stored::File(b"few bytes".to_vec())),
    ])
}

fn second() -> Tree {
    let mut tree = first();
    tree.insert(path("directory/two-blocks-more"), Stored::File(vec![b'2'; BLOCK_BYTES as usize + 200]));
    tree.remove(&path("empty"));
    tree
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// A copy, since a store may leave its own temporary files.
fn copy(source: &Path, target: &Path) {
    std::fs::create_dir(target).expect("makes");
    for entry in std::fs::read_dir(source).expect("the golden repository is there") {
        let entry = entry.expect("lists");
        let place = target.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).expect("copies");
        }
    }
}

async fn write(directory: &Path) {
    std::fs::create_dir_all(directory).expect("makes");
    std::fs::write(directory.join("password"), format!("{PASSPHRASE}\n")).expect("writes");
    std::fs::write(directory.join("key"), KEY).expect("writes");
    for (name, secret) in [("encrypted", Some(passphrase(PASSPHRASE))), ("plain", None)] {
        let repository = create(&directory.join(name), secret.as_ref()).await;
        if secret.is_some() {
            repository.add_key(&key_file(KEY), "key file", crate::reader::NOW).await.expect("adds");
        }
        snapshot(&repository, &[("node-1", &first())]).await;
        snapshot(&repository, &[("node-1", &second())]).await;
        let temporary = directory.join(name).join(".tmp");
        if temporary.exists() {
            std::fs::remove_dir_all(temporary).expect("removes");
        }
    }
}

async fn content(repository: &Repository, listed: &ListedSnapshot, name: &TreePath) -> Option<Vec<u8>> {
    let manifest = repository.manifest(listed).await.expect("reads");
    let tree = repository.open_node(&manifest, &NodeName::new("node-1").expect("legal")).await.expect("opens");
    let file = repository.entry(&tree, name).await.expect("looks")?;
    let mut content = Vec::new();
    while let Some(run) = repository.segments(&tree, &file, content.len() as u64).await.expect("reads") {
        for segment in run.segments() {
            match segment {
                Segment::Literal(bytes) => content.extend_from_slice(bytes),
                Segment::Block(extent) => {
                    content
                        .extend_from_slice(&repository.read_blocks(&tree, std::slice::from_ref(extent)).await.expect("reads")[0]);
                }
            }
        }
    }
    Some(content)
}

/// The golden repositories and what opens each.
fn repositories() -> Vec<(&'static str, Option<Secret>, Vec<String>)> {
    let option = |name: &str, file: &str| vec![name.to_owned(), golden().join(file).to_str().expect("a plain path").to_owned()];
    vec![
        ("encrypted", Some(passphrase(PASSPHRASE)), option("--password-file", "password")),
        ("encrypted", Some(key_file(KEY)), option("--key-file", "key")),
        ("plain", None, Vec::new()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_of_version_1_are_listed_read_and_verified() {
    if let Some(directory) = std::env::var_os("TINTYPE_WRITE_GOLDEN") {
        return write(Path::new(&directory)).await;
    }
    for (name, secret, _) in repositories() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join(name);
        copy(&golden().join(name), &place);
        let repository = Repository::open(std::sync::Arc::new(LocalStore::new(place)), secret.as_ref()).await.expect("opens");
        let listed = repository.snapshots(&cluster()).await.expect("lists");
        assert_eq!(listed.iter().map(|snapshot| snapshot.date.to_string()).collect::<Vec<_>>(), DATES, "{name}");
        for snapshot in &listed {
            let report = repository.verify(snapshot, VerifyDepth::Hashed, &|_| {}).await.expect("verifies");
            assert_eq!(report.problems, [], "{name}");
        }
        for (file, length, hash) in HASHES {
            let held: Vec<_> =
                [content(&repository, &listed[0], &path(file)).await, content(&repository, &listed[1], &path(file)).await]
                    .into_iter()
                    .flatten()
                    .collect();
            assert!(!held.is_empty(), "{name} {}", path(file));
            for content in held {
                let found = (content.len(), blake3::hash(&content).to_hex().to_string());
                assert_eq!(found, (length, hash.to_owned()), "{name} {}", path(file));
            }
        }
    }
}

#[test]
fn the_independent_reader_extracts_repositories_of_version_1() {
    if std::env::var_os("TINTYPE_WRITE_GOLDEN").is_some() {
        return;
    }
    for (name, _, options) in repositories() {
        let place = golden().join(name).to_str().expect("a plain path").to_owned();
        for (date, tree) in DATES.into_iter().zip([second(), first()]) {
            let directory = tempfile::tempdir().expect("a directory");
            let target = directory.path().join("tree").to_str().expect("a plain path").to_owned();
            let words = ["extract".to_owned(), place.clone(), format!("prod/{date}/node-1"), target.clone()];
            read([&words[..], &options].concat());
            assert_eq!(walk(Path::new(&target)), tree, "{name} {date}");
        }
    }
}
