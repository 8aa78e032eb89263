//! The tree under any sequence of the kernel's calls, against plain maps: one of paths and what they are, one of numbers and
//! how often each was looked up.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{BLOCK, DATE, Setup, component, setup_with_cache, trees};
use super::*;
use crate::model::ids::SnapshotId;
use crate::model::time::SnapshotDate;
use crate::read::fixture::{FakeEntry, FakeSource, FakeTree};

fn cases(small: u32, full: u32) -> ProptestConfig {
    let is_full = std::env::var("TINTYPE_EFFORT").is_ok_and(|effort| effort == "full");
    ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(if is_full { full } else { small }) }
}

/// What the kernel may do next; an index is one of what it has ever been given.
#[derive(Debug, Clone)]
enum Call {
    Lookup(Index, Name),
    Attributes(Index),
    Target(Index),
    Forget(Index, u64),
    Open(Index),
    Read(Index, Beginning, u64),
    Release(Index),
    OpenDirectory(Index),
    /// With or without counting a look-up of each item, as the two calls for it do.
    List(Index, bool),
    ReleaseDirectory(Index),
}

/// Where a read begins.
#[derive(Debug, Clone)]
enum Beginning {
    Anywhere(u64),
    /// So far before or behind the end.
    AtEnd(i64),
    /// The same of a block.
    AtBlock(u64, i64),
}

impl Beginning {
    fn offset(&self, size: u64) -> u64 {
        match self {
            Self::Anywhere(offset) => *offset,
            Self::AtEnd(beside) => size.saturating_add_signed(*beside),
            Self::AtBlock(number, beside) => (number * u64::from(BLOCK)).saturating_add_signed(*beside),
        }
    }
}

fn beginnings() -> impl Strategy<Value = Beginning> {
    prop_oneof![
        (0u64..9000).prop_map(Beginning::Anywhere),
        (-20i64..20).prop_map(Beginning::AtEnd),
        (0u64..12, -20i64..20).prop_map(|(number, beside)| Beginning::AtBlock(number, beside)),
    ]
}

#[derive(Debug, Clone)]
enum Name {
    OfChild(Index),
    Any(Vec<u8>),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let one = any::<Index>;
    let name = prop_oneof![8 => one().prop_map(Name::OfChild), 1 => component().prop_map(Name::Any)];
    let call = prop_oneof![
        8 => (one(), name).prop_map(|(at, name)| Call::Lookup(at, name)),
        2 => one().prop_map(Call::Attributes),
        1 => one().prop_map(Call::Target),
        4 => (one(), 1u64..4).prop_map(|(at, lookups)| Call::Forget(at, lookups)),
        4 => one().prop_map(Call::Open),
        8 => (one(), beginnings(), 0u64..5000).prop_map(|(at, place, length)| Call::Read(at, place, length)),
        2 => one().prop_map(Call::Release),
        3 => one().prop_map(Call::OpenDirectory),
        3 => (one(), any::<bool>()).prop_map(|(at, counts)| Call::List(at, counts)),
        1 => one().prop_map(Call::ReleaseDirectory),
    ];
    prop::collection::vec(call, 1..120)
}

/// The kernel, as far as it remembers, beside what it should be told.
struct Kernel {
    setup: Setup,
    tree: FakeTree,
    /// The number of each path that was ever looked up.
    numbers: BTreeMap<Vec<u8>, u64>,
    /// Look-ups that were not forgotten, of the paths that have any.
    lookups: BTreeMap<Vec<u8>, u64>,
    /// Inodes above the node's directory.
    above: usize,
    files: Vec<(u64, Vec<u8>)>,
    directories: Vec<(u64, Vec<u8>)>,
}

impl Kernel {
    async fn new(mut tree: FakeTree, cache_bytes: u64) -> Self {
        let source = FakeSource::new();
        source.publish("prod", DATE, BLOCK, &[("node-1", tree.clone())]);
        tree.insert(Vec::new(), FakeEntry::Directory);
        let setup = setup_with_cache(source, Duration::from_secs(30), cache_bytes);
        let node = setup.walk(&[b"prod", DATE.as_bytes(), b"node-1"]).await.expect("there").attributes.inode;
        let above = setup.fs.inode_count() - 1;
        let (numbers, lookups) = ([(Vec::new(), node)].into(), [(Vec::new(), 1)].into());
        Self { setup, tree, numbers, lookups, above, files: Vec::new(), directories: Vec::new() }
    }

    fn path(&self, at: Index) -> (Vec<u8>, u64) {
        let (path, number) = self.numbers.iter().nth(at.index(self.numbers.len())).expect("the node's directory is one");
        (path.clone(), *number)
    }

    fn children(&self, directory: &[u8]) -> Vec<&[u8]> {
        let parent = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash);
        self.tree.keys().filter(|path| !path.is_empty() && &path[..parent(path)] == directory).map(Vec::as_slice).collect()
    }

    fn kind(&self, path: &[u8]) -> FileKind {
        match &self.tree[path] {
            FakeEntry::Directory => FileKind::Directory,
            FakeEntry::File(_) => FileKind::File,
            FakeEntry::Link(_) => FileKind::Link,
        }
    }

    /// What any answer about a path must say; counts a look-up where it is one.
    fn found(&mut self, path: &[u8], found: Found, is_lookup: bool) {
        let (size, mode) = match &self.tree[path] {
            FakeEntry::Directory => (0, 0o755),
            FakeEntry::File(bytes) => (bytes.len(), 0o640),
            FakeEntry::Link(target) => (target.len(), 0o777),
        };
        let attributes = found.attributes;
        assert_eq!((attributes.kind, attributes.size_bytes, attributes.mode), (self.kind(path), size as u64, mode), "{path:?}");
        assert_eq!((attributes.uid, attributes.gid, found.is_immutable, found.is_name_immutable), (1234, 4321, true, true));
        assert_eq!(*self.numbers.entry(path.to_vec()).or_insert(attributes.inode), attributes.inode, "another number");
        *self.lookups.entry(path.to_vec()).or_default() += u64::from(is_lookup);
    }

    async fn step(&mut self, call: Call) {
        match call {
            Call::Lookup(at, name) => self.look_up(at, name).await,
            Call::Attributes(at) => {
                let (path, number) = self.path(at);
                match self.setup.fs.attributes(number) {
                    Ok(found) => self.found(&path, found, false),
                    Err(error) => self.stale(&path, &error),
                }
            }
            Call::Target(at) => {
                let (path, number) = self.path(at);
                match (self.setup.fs.target(number), &self.tree[&path]) {
                    (Ok(target), FakeEntry::Link(expected)) => assert_eq!(target, *expected),
                    (Err(FsError::WrongKind), FakeEntry::File(_) | FakeEntry::Directory) => {}
                    (Err(error), _) => self.stale(&path, &error),
                    (Ok(target), _) => panic!("{path:?} is no link, and points to {target:?}"),
                }
            }
            Call::Forget(at, lookups) => self.forget(at, lookups),
            Call::Open(at) => {
                let (path, number) = self.path(at);
                match (self.setup.fs.open(number).await, self.kind(&path)) {
                    (Ok(handle), FileKind::File) => self.files.push((handle, path)),
                    (Err(FsError::IsADirectory), FileKind::Directory) | (Err(FsError::WrongKind), FileKind::Link) => {}
                    (Err(error), _) => self.stale(&path, &error),
                    (Ok(_), kind) => panic!("{path:?} is {kind:?}, and was opened as a file"),
                }
            }
            Call::Read(at, place, length) if !self.files.is_empty() => {
                let (handle, path) = &self.files[at.index(self.files.len())];
                let FakeEntry::File(content) = &self.tree[path] else { panic!("only files are open") };
                let offset = place.offset(content.len() as u64);
                let start = content.len().min(offset as usize);
                let expected = &content[start..content.len().min(start + length as usize)];
                assert_eq!(self.setup.fs.read(*handle, offset, length).await.expect("readable"), expected);
                // What memory answers is the same, if it does.
                let ready = self.setup.fs.read_ready(*handle, offset, length);
                assert!(ready.is_none_or(|bytes| bytes.expect("readable") == expected));
            }
            Call::Release(at) if !self.files.is_empty() => {
                let (handle, _) = self.files.remove(at.index(self.files.len()));
                self.setup.fs.release(handle);
                assert!(matches!(self.setup.fs.read(handle, 0, 1).await, Err(FsError::BadHandle)));
            }
            Call::OpenDirectory(at) => {
                let (path, number) = self.path(at);
                match (self.setup.fs.open_directory(number).await, self.kind(&path)) {
                    (Ok((handle, is_immutable)), FileKind::Directory) => {
                        assert!(is_immutable);
                        self.directories.push((handle, path));
                    }
                    (Err(FsError::NotADirectory), FileKind::File | FileKind::Link) => {}
                    (Err(error), _) => self.stale(&path, &error),
                    (Ok(_), kind) => panic!("{path:?} is {kind:?}, and was opened as a directory"),
                }
            }
            Call::List(at, counts) if !self.directories.is_empty() => {
                let (handle, path) = self.directories[at.index(self.directories.len())].clone();
                self.list(handle, &path, counts);
            }
            Call::ReleaseDirectory(at) if !self.directories.is_empty() => {
                let (handle, _) = self.directories.remove(at.index(self.directories.len()));
                self.setup.fs.release_directory(handle);
                assert!(matches!(self.setup.fs.directory(handle), Err(FsError::BadHandle)));
            }
            Call::Read(..) | Call::Release(_) | Call::List(..) | Call::ReleaseDirectory(_) => {}
        }
        // The root is never looked up, and always known.
        assert_eq!(self.setup.fs.inode_count(), self.above + self.lookups.len());
        assert_eq!(self.setup.fs.open_count(), self.files.len() + self.directories.len());
    }

    /// An error that only what was forgotten gives.
    fn stale(&self, path: &[u8], error: &FsError) {
        assert!(matches!(error, FsError::Stale) && !self.lookups.contains_key(path), "{path:?}: {error}");
    }

    async fn look_up(&mut self, at: Index, name: Name) {
        let (parent, number) = self.path(at);
        let children = self.children(&parent);
        let name = match name {
            Name::OfChild(at) if !children.is_empty() => {
                let child = children[at.index(children.len())];
                child[child.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)..].to_vec()
            }
            Name::OfChild(_) => b"absent".to_vec(),
            Name::Any(name) => name,
        };
        let path = if parent.is_empty() { name.clone() } else { [&parent[..], &name].join(&b'/') };
        match self.setup.fs.lookup(number, &name).await {
            Ok(found) => {
                assert!(self.lookups.contains_key(&parent), "in a directory that was forgotten");
                self.found(&path, found, true);
            }
            Err(FsError::NotFound) => assert!(!self.tree.contains_key(&path), "{path:?}"),
            Err(FsError::NotADirectory) => assert_ne!(self.kind(&parent), FileKind::Directory),
            Err(error) => self.stale(&parent, &error),
        }
    }

    fn forget(&mut self, at: Index, lookups: u64) {
        let (path, number) = self.path(at);
        self.setup.fs.forget(number, lookups);
        if let Some(left) = self.lookups.get_mut(&path) {
            *left = left.saturating_sub(lookups);
            if *left == 0 {
                self.lookups.remove(&path);
            }
        }
    }

    /// The whole directory, and the rest of it from behind each item.
    fn list(&mut self, handle: u64, path: &[u8], counts: bool) {
        let open = self.setup.fs.directory(handle).expect("is open");
        let items = |offset| open.items(offset).map(|item| (item.name, item.kind, item.inode, item.next)).collect::<Vec<_>>();
        let all = items(0);
        let own = (self.numbers[path], FileKind::Directory);
        assert_eq!((&all[0].0[..], all[0].2, all[0].1), (&b"."[..], own.0, own.1));
        assert_eq!((&all[1].0[..], all[1].1), (&b".."[..], FileKind::Directory));
        let expected: BTreeMap<_, _> = self.children(path).into_iter().map(|child| (child.to_vec(), self.kind(child))).collect();
        let join = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') };
        let listed: BTreeMap<_, _> = all[2..].iter().map(|(name, kind, ..)| (join(name), *kind)).collect();
        assert_eq!((all.len() - 2, &listed), (expected.len(), &expected));
        for (at, (.., next)) in all.iter().enumerate() {
            assert_eq!(items(*next), all[at + 1..], "behind item {at}");
        }
        assert_eq!(items(all.len() as u64 + 7).len() + items(u64::MAX).len(), 0);
        if counts {
            for (item, (name, _, number, _)) in open.items(2).zip(&all[2..]) {
                let found = self.setup.fs.found_item(item).expect("is no dot");
                assert_eq!(found.attributes.inode, *number);
                self.found(&join(name), found, true);
            }
        }
    }

    /// Everything closed and forgotten, nothing is left; and looked up again, everything has the number that it had.
    async fn end(mut self) {
        for (handle, _) in self.files.drain(..) {
            self.setup.fs.release(handle);
        }
        for (handle, _) in self.directories.drain(..) {
            self.setup.fs.release_directory(handle);
        }
        for (path, lookups) in std::mem::take(&mut self.lookups) {
            self.setup.fs.forget(self.numbers[&path], lookups);
        }
        assert_eq!((self.setup.fs.inode_count(), self.setup.fs.open_count()), (self.above, 0));
        for (path, number) in &self.numbers {
            let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
            let way: Vec<&[u8]> = [&b"prod"[..], DATE.as_bytes(), b"node-1"].into_iter().chain(names).collect();
            let found = self.setup.walk(&way).await.expect("is there again");
            assert_eq!(found.attributes.inode, *number, "{path:?}");
        }
    }
}

/// What happens to a cluster while its directory is open.
#[derive(Debug, Clone)]
enum Event {
    Publish(i64, bool),
    Drop(Index),
    Open,
    Close(Index),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0i64..40, any::<bool>()).prop_map(|(hour, is_complete)| Event::Publish(hour, is_complete)),
        2 => any::<Index>().prop_map(Event::Drop),
        3 => Just(Event::Open),
        1 => any::<Index>().prop_map(Event::Close),
    ];
    prop::collection::vec(event, 1..40)
}

fn date(hour: i64) -> String {
    SnapshotDate::from_seconds(1_790_000_000 + hour * 3600).expect("in range").to_string()
}

/// Names of a listing, each with where it goes on.
fn names(open: &OpenDirectory, offset: u64) -> Vec<(String, u64)> {
    open.items(offset).map(|item| (String::from_utf8(item.name).expect("text"), item.next)).collect()
}

async fn live_through(events: Vec<Event>) {
    let source = FakeSource::new();
    // One that stays, so that there is a cluster.
    source.publish("prod", &date(-1), BLOCK, &[]);
    let mut there = BTreeMap::from([(date(-1), (SnapshotId::from_u128(0), true))]);
    let setup = setup_with_cache(source, Duration::from_secs(30), 1 << 20);
    let cluster = setup.walk(&[b"prod"]).await.expect("there").attributes.inode;
    let mut open: Vec<(u64, Vec<(String, u64)>)> = Vec::new();
    for event in events {
        match event {
            Event::Publish(hour, is_complete) if !there.contains_key(&date(hour)) => {
                let uuid = SnapshotId::from_u128(1 + hour as u128);
                setup.source.publish_as(uuid, is_complete, "prod", &date(hour), BLOCK, &[]);
                there.insert(date(hour), (uuid, is_complete));
            }
            Event::Drop(at) if there.len() > 1 => {
                let gone = there.keys().nth(1 + at.index(there.len() - 1)).expect("one").clone();
                setup.source.remove(there.remove(&gone).expect("there").0);
            }
            Event::Open => {
                // What is known is stale by now.
                setup.clock.advance(Duration::from_secs(10));
                let (handle, is_immutable) = setup.fs.open_directory(cluster).await.expect("opens");
                let listed = names(&setup.fs.directory(handle).expect("is open"), 0);
                let latest = there.iter().rev().find(|(_, (_, is_complete))| *is_complete).map(|(date, _)| date.clone());
                let expected = [".", "..", "latest"].map(str::to_owned).into_iter().chain(there.keys().cloned());
                assert!(!is_immutable && listed.iter().map(|(name, _)| name.clone()).eq(expected), "{listed:?}");
                let link = setup.fs.lookup(cluster, b"latest").await.expect("there").attributes.inode;
                assert_eq!(setup.fs.target(link).ok(), latest.map(String::into_bytes));
                open.push((handle, listed));
            }
            Event::Close(at) if !open.is_empty() => {
                let (handle, _) = open.remove(at.index(open.len()));
                setup.fs.release_directory(handle);
            }
            Event::Publish(..) | Event::Drop(_) | Event::Close(_) => {}
        }
        for (handle, before) in &open {
            let now = setup.fs.directory(*handle).expect("is open");
            assert_eq!(&names(&now, 0), before);
            for (at, (_, next)) in before.iter().enumerate() {
                assert_eq!(names(&now, *next), before[at + 1..]);
            }
        }
    }
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
}

proptest! {
    #![proptest_config(cases(256, 20_000))]

    #[test]
    fn any_calls_on_any_tree_are_answered_as_plain_maps_say(
        tree in trees(),
        cache_bytes in prop_oneof![Just(0u64), 0..10_000u64, Just(1 << 20)],
        calls in calls(),
    ) {
        run(async {
            let mut kernel = Kernel::new(tree, cache_bytes).await;
            for call in calls {
                kernel.step(call).await;
            }
            kernel.end().await;
        });
    }

    #[test]
    fn an_open_directory_stays_as_it_was_while_snapshots_come_and_go(events in events()) {
        run(live_through(events));
    }
}
