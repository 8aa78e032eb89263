//! The tree against plain maps, and what it promises while the source hangs or changes. The kernel is played by these
//! tests: they look up, list, read and forget.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tokio::runtime::Handle;

use super::*;
use crate::base::ManualClock;
use crate::cache::MemoryCache;
use crate::read::ReadOptions;
use crate::read::fixture::{FakeEntry, FakeSource, FakeTree};

pub(super) const DATE: &str = "2026-11-20T10-15-30Z";

pub(super) struct Setup {
    pub(super) source: Arc<FakeSource>,
    pub(super) clock: ManualClock,
    pub(super) fs: Arc<SnapshotFs>,
}

fn setup_with(source: Arc<FakeSource>, deadline: Duration) -> Setup {
    setup_with_cache(source, deadline, 1 << 20)
}

pub(super) fn setup_with_cache(source: Arc<FakeSource>, deadline: Duration, cache_bytes: u64) -> Setup {
    let clock = ManualClock::at(1_800_000_000_000_000);
    let cache = Arc::new(MemoryCache::new(cache_bytes));
    let blocks =
        BlockReader::new(source.clone(), cache, None, ReadOptions { deadline, ..ReadOptions::default() }, Handle::current());
    let options = FsOptions { deadline, patience: Duration::from_millis(20), own_owner: (5, 6), ..FsOptions::default() };
    let fs = SnapshotFs::new(blocks, Arc::new(clock.clone()), options);
    Setup { source, clock, fs }
}

fn setup(tree: FakeTree) -> Setup {
    let source = FakeSource::new();
    source.publish("prod", DATE, 1000, &[("node-1", tree)]);
    setup_with(source, Duration::from_secs(30))
}

impl Setup {
    pub(super) async fn walk(&self, path: &[&[u8]]) -> Result<Found, FsError> {
        let mut found = self.fs.attributes(ROOT)?;
        for name in path {
            found = self.fs.lookup(found.attributes.inode, name).await?;
        }
        Ok(found)
    }

    async fn list(&self, inode: u64) -> Result<Vec<(Vec<u8>, u64, FileKind)>, FsError> {
        let (handle, _) = self.fs.open_directory(inode).await?;
        let items = self.fs.directory(handle)?.items(0).map(|item| (item.name, item.inode, item.kind)).collect();
        self.fs.release_directory(handle);
        Ok(items)
    }

    async fn content(&self, inode: u64) -> Result<Vec<u8>, FsError> {
        let handle = self.fs.open(inode).await?;
        let size = self.fs.attributes(inode)?.attributes.size_bytes;
        let bytes = self.fs.read(handle, 0, size + 10).await;
        self.fs.release(handle);
        Ok(bytes?.to_vec())
    }

    /// Everything below a directory, by listing and looking up as the kernel does with and without readdirplus.
    async fn collect(&self, directory: u64, with_attributes: bool) -> BTreeMap<Vec<u8>, FakeEntry> {
        let mut found = BTreeMap::new();
        let mut open = vec![(directory, Vec::new())];
        while let Some((inode, path)) = open.pop() {
            let (handle, _) = self.fs.open_directory(inode).await.expect("opens");
            let listing = self.fs.directory(handle).expect("is open");
            for item in listing.items(2) {
                let name = item.name.clone();
                let (number, kind) = (item.inode, item.kind);
                let child = match with_attributes {
                    true => self.fs.found_item(item).expect("is no dot"),
                    false => self.fs.lookup(inode, &name).await.expect("what is listed is found"),
                };
                assert_eq!((child.attributes.inode, child.attributes.kind), (number, kind));
                let mut child_path = path.clone();
                if !child_path.is_empty() {
                    child_path.push(b'/');
                }
                child_path.extend_from_slice(&name);
                let entry = match kind {
                    FileKind::Directory => {
                        open.push((number, child_path.clone()));
                        FakeEntry::Directory
                    }
                    FileKind::Link => FakeEntry::Link(self.fs.target(number).expect("a link")),
                    FileKind::File => FakeEntry::File(self.content(number).await.expect("readable")),
                };
                found.insert(child_path, entry);
            }
            self.fs.release_directory(handle);
        }
        found
    }
}

fn file(text: &[u8]) -> FakeEntry {
    FakeEntry::File(text.to_vec())
}

#[tokio::test]
async fn a_path_is_walked_down_to_the_bytes() {
    let setup = setup([(b"dir/file".to_vec(), file(b"hello"))].into());
    let found = setup.walk(&[b"prod", DATE.as_bytes(), b"node-1", b"dir", b"file"]).await.expect("there");
    assert_eq!((found.attributes.size_bytes, found.attributes.mode, found.is_immutable), (5, 0o640, true));
    assert_eq!(setup.content(found.attributes.inode).await.expect("readable"), b"hello");
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_files_are_no_directories() {
    let setup = setup([(b"file".to_vec(), file(b"hello"))].into());
    let node: [&[u8]; 3] = [b"prod", DATE.as_bytes(), b"node-1"];
    let cases: [(&[&[u8]], i32); 8] = [
        (&[b"absent"], libc::ENOENT),
        (&[b"\xff"], libc::ENOENT),
        (&[b"prod", b"2027"], libc::ENOENT),
        (&[b"prod", b"\xff"], libc::ENOENT),
        (&[b"prod", DATE.as_bytes(), b"node-2"], libc::ENOENT),
        (&[node[0], node[1], node[2], b"absent"], libc::ENOENT),
        (&[node[0], node[1], node[2], b"file", b"below"], libc::ENOTDIR),
        (&[node[0], node[1], node[2], &[b'x'; 256]], libc::ENAMETOOLONG),
    ];
    for (path, errno) in cases {
        assert_eq!(setup.walk(path).await.map_err(|error| error.errno()), Err(errno), "{path:?}");
    }
}

#[tokio::test]
async fn names_that_no_cluster_can_have_cost_no_listing() {
    let setup = setup(FakeTree::new());
    for name in [&b".Trash"[..], b".hidden", b"\xff", b"a b"] {
        assert!(matches!(setup.fs.lookup_ready(ROOT, name), Some(Err(FsError::NotFound))), "{name:?}");
    }
    assert_eq!(setup.source.small_reads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn numbers_are_the_same_after_a_remount() {
    let tree: FakeTree = [(b"dir/file".to_vec(), file(b"hello"))].into();
    let path: [&[u8]; 5] = [b"prod", b"latest", b"", b"", b""];
    let (one, two) = (setup(tree.clone()), setup(tree));
    for depth in 1..=2 {
        let number = |found: Found| found.attributes.inode;
        assert_eq!(
            number(one.walk(&path[..depth]).await.expect("there")),
            number(two.walk(&path[..depth]).await.expect("there"))
        );
    }
}

#[tokio::test]
async fn what_the_kernel_forgets_is_gone() {
    let setup = setup([(b"file".to_vec(), file(b"hello"))].into());
    let path: [&[u8]; 4] = [b"prod", DATE.as_bytes(), b"node-1", b"file"];
    for depth in 1..=4 {
        setup.walk(&path[..depth]).await.expect("there");
    }
    assert_eq!(setup.fs.inode_count(), 5);
    let mut numbers = Vec::new();
    for depth in 1..=4 {
        numbers.push(setup.walk(&path[..depth]).await.expect("there").attributes.inode);
    }
    for number in numbers {
        setup.fs.forget(number, 1000);
    }
    setup.fs.forget(ROOT, 1000);
    assert_eq!((setup.fs.inode_count(), setup.fs.open_count()), (1, 0));
}

#[tokio::test]
async fn a_listing_stays_as_it_was_opened_and_offsets_stay_good() {
    let setup = setup(FakeTree::new());
    let cluster = setup.walk(&[b"prod"]).await.expect("there").attributes.inode;
    let (handle, is_immutable) = setup.fs.open_directory(cluster).await.expect("opens");
    let open = setup.fs.directory(handle).expect("is open");
    let before: Vec<_> = open.items(0).map(|item| (item.name, item.next)).collect();
    setup.source.publish("prod", "2026-11-19T00-00-00Z", 1000, &[]);
    setup.clock.advance(Duration::from_secs(10));
    assert_eq!(setup.list(cluster).await.expect("listed").len(), before.len() + 1);
    let behind_second: Vec<_> = open.items(before[1].1).map(|item| (item.name, item.next)).collect();
    assert_eq!((behind_second, is_immutable), (before[2..].to_vec(), false));
}

#[tokio::test]
async fn listing_ten_thousand_snapshots_reads_no_manifest() {
    let source = FakeSource::new();
    for number in 0..10_000 {
        let date = crate::model::time::SnapshotDate::from_seconds(1_700_000_000 + number * 3600).expect("in range");
        source.publish("prod", &date.to_string(), 1000, &[]);
    }
    let setup = setup_with(source, Duration::from_secs(30));
    let cluster = setup.walk(&[b"prod"]).await.expect("there").attributes.inode;
    let (handle, _) = setup.fs.open_directory(cluster).await.expect("opens");
    let found = setup.fs.directory(handle).expect("is open").items(0).filter_map(|item| setup.fs.found_item(item)).count();
    assert_eq!(found, 10_001);
    assert_eq!(setup.source.small_reads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn latest_is_another_inode_once_it_points_elsewhere() {
    let setup = setup(FakeTree::new());
    let before = setup.walk(&[b"prod", b"latest"]).await.expect("there");
    setup.source.publish("prod", "2026-11-21T00-00-00Z", 1000, &[]);
    setup.clock.advance(Duration::from_secs(2));
    let after = setup.walk(&[b"prod", b"latest"]).await.expect("there");
    assert_ne!(before.attributes.inode, after.attributes.inode);
    assert_eq!(setup.fs.target(after.attributes.inode).expect("a link"), b"2026-11-21T00-00-00Z");
    assert!(!after.is_name_immutable);
}

#[tokio::test]
async fn a_partial_snapshot_is_shown_but_never_latest() {
    let setup = setup(FakeTree::new());
    let uuid = crate::model::ids::SnapshotId::from_u128(9);
    setup.source.publish_as(uuid, false, "prod", "2026-11-21T00-00-00Z", 1000, &[]);
    let latest = setup.walk(&[b"prod", b"latest"]).await.expect("there").attributes.inode;
    assert_eq!(setup.fs.target(latest).expect("a link"), DATE.as_bytes());
    setup.walk(&[b"prod", b"2026-11-21T00-00-00Z"]).await.expect("shown");
}

#[tokio::test]
async fn a_source_that_hangs_ends_at_the_deadline_and_what_is_known_does_not_wait() {
    let source = FakeSource::new();
    source.publish("prod", DATE, 1000, &[("node-1", [(b"file".to_vec(), file(&[7; 5000]))].into())]);
    let setup = setup_with(source, Duration::from_millis(100));
    let cluster = setup.walk(&[b"prod"]).await.expect("there").attributes.inode;
    let listed = setup.list(cluster).await.expect("listed");
    let snapshot = setup.walk(&[b"prod", DATE.as_bytes()]).await.expect("there").attributes.inode;
    setup.source.hang();
    setup.clock.advance(Duration::from_secs(60));
    let error = setup.fs.lookup(snapshot, b"node-1").await.expect_err("it hangs");
    assert_eq!(error.errno(), libc::ETIMEDOUT);
    assert_eq!(setup.list(cluster).await.expect("known"), listed);
    assert!(setup.fs.attributes(cluster).is_ok());
    assert!(matches!(setup.fs.lookup_ready(ROOT, b"prod"), Some(Ok(_))));
    setup.source.resume();
    setup.fs.lookup(snapshot, b"node-1").await.expect("there again");
}

#[tokio::test]
async fn a_read_that_failed_fails_at_once_when_the_kernel_repeats_it_and_is_tried_later() {
    let setup = setup([(b"file".to_vec(), file(&[7; 5000]))].into());
    let inode = setup.walk(&[b"prod", DATE.as_bytes(), b"node-1", b"file"]).await.expect("there").attributes.inode;
    let handle = setup.fs.open(inode).await.expect("opens");
    setup.source.set_corrupt(true);
    let first = setup.fs.read(handle, 0, 10).await.expect_err("corrupt");
    let fetches = setup.source.fetches.load(Ordering::SeqCst);
    let second = setup.fs.read(handle, 0, 10).await.expect_err("corrupt");
    assert_eq!((first.errno(), second.errno()), (libc::EIO, libc::EIO));
    assert_eq!(setup.source.fetches.load(Ordering::SeqCst), fetches);
    setup.source.set_corrupt(false);
    setup.clock.advance(Duration::from_secs(1));
    assert_eq!(setup.fs.read(handle, 0, 10).await.expect("readable"), [7; 10][..]);
}

#[tokio::test]
async fn a_description_is_the_same_bytes_each_time_and_as_long_as_stat_says() {
    let setup = setup(FakeTree::new());
    let found = setup.walk(&[b"prod", DATE.as_bytes(), DESCRIPTION.as_bytes()]).await.expect("there");
    let first = setup.content(found.attributes.inode).await.expect("readable");
    assert_eq!(
        (first.len() as u64, &first),
        (found.attributes.size_bytes, &setup.content(found.attributes.inode).await.expect("readable"))
    );
}

#[tokio::test]
async fn handles_are_limited_and_unknown_ones_refused() {
    let table = HandleTable::new(1);
    let first = table.insert(Arc::new(())).expect("room");
    assert!(matches!(table.insert(Arc::new(())), Err(FsError::TooManyOpen)));
    table.remove(first);
    let second = table.insert(Arc::new(())).expect("room again");
    assert!(first != second && matches!(table.get(first), Err(FsError::BadHandle)));
}

#[tokio::test]
async fn small_files_that_are_opened_in_order_are_fetched_together() {
    let files = (0..200u32).map(|number| (format!("{number:03}").into_bytes(), FakeEntry::File(vec![number as u8; 900])));
    let fetches_of = async |order: &mut dyn Iterator<Item = u32>| {
        let setup = setup(files.clone().collect());
        let node = setup.walk(&[b"prod", DATE.as_bytes(), b"node-1"]).await.expect("there").attributes.inode;
        setup.list(node).await.expect("listed");
        for number in order {
            let found = setup.fs.lookup(node, format!("{number:03}").as_bytes()).await.expect("there");
            assert_eq!(setup.content(found.attributes.inode).await.expect("readable"), vec![number as u8; 900]);
            // What goes on in the background is done before the next file is opened.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        (setup.source.fetches.load(Ordering::SeqCst), setup.source.blocks_read.load(Ordering::SeqCst))
    };
    let (fetches, blocks) = fetches_of(&mut (0..200)).await;
    assert!(fetches < 20 && blocks == 200, "{fetches} fetches of {blocks} blocks");
    // Not one file more than was asked for.
    assert_eq!(fetches_of(&mut (0..100).map(|number| number * 77 % 200)).await, (100, 100));
}

/// One component: any byte that a Unix directory allows.
pub(super) fn component() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("legal", |byte| *byte != 0 && *byte != b'/');
    prop_oneof![prop::collection::vec(byte, 1..8), "[ab]{1,2}".prop_map(String::into_bytes)]
        .prop_filter("legal", |name| name != b"." && name != b"..")
}

/// Blocks of the files of [`trees`]: small, so that files are of several of them.
pub(super) const BLOCK: u32 = 700;

/// Bytes of any kind, and stretches of zeros, whose blocks are all the same one; often with a tail too short for a block.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..2500);
    let zeros = (0usize..2500).prop_map(|length| vec![0; length]);
    let parts = prop::collection::vec(prop_oneof![noise, zeros], 0..4).prop_map(|parts| parts.concat());
    let tail = prop::option::of(prop::collection::vec(any::<u8>(), 0..16));
    (parts, tail).prop_map(|(mut content, tail)| {
        if let Some(tail) = tail {
            content.truncate(content.len() / BLOCK as usize * BLOCK as usize);
            content.extend(tail);
        }
        content
    })
}

fn entry() -> impl Strategy<Value = FakeEntry> {
    prop_oneof![
        3 => content().prop_map(FakeEntry::File),
        1 => Just(FakeEntry::Directory),
        1 => prop::collection::vec(1u8..=255, 1..40).prop_map(FakeEntry::Link),
    ]
}

/// A tree where nothing lies below a file or link, with the directories that its paths imply.
pub(super) fn trees() -> impl Strategy<Value = FakeTree> {
    prop::collection::vec((prop::collection::vec(component(), 1..4), entry()), 0..25).prop_map(|entries| {
        let mut tree = FakeTree::new();
        for (path, entry) in entries {
            let parents: Vec<_> = (1..path.len()).map(|depth| path[..depth].join(&b'/')).collect();
            let path = path.join(&b'/');
            let is_possible = parents.iter().all(|parent| matches!(tree.get(parent), None | Some(FakeEntry::Directory)));
            if is_possible && !tree.contains_key(&path) {
                tree.extend(parents.into_iter().map(|parent| (parent, FakeEntry::Directory)));
                tree.insert(path, entry);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_tree_is_shown_as_it_was_captured(tree in trees(), with_attributes in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shown, inodes) = runtime.block_on(async {
            let setup = setup(tree.clone());
            let node = setup.walk(&[b"prod", b"2026-11-20T10-15-30Z", b"node-1"]).await.expect("there").attributes.inode;
            let shown = setup.collect(node, with_attributes).await;
            // Root, cluster, snapshot and node are known beside what is in it.
            (shown, setup.fs.inode_count() - 4)
        });
        prop_assert_eq!(inodes, tree.len());
        prop_assert_eq!(shown, tree);
    }
}
