//! A tree whose store goes wrong at every single call: what is read is right or an error, and is right afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tintype::app::config::read_key_file;
use tintype::base::SystemClock;
use tintype::cache::MemoryCache;
use tintype::fs::{FsError, FsOptions, ROOT, SnapshotFs};
use tintype::model::manifest::FileKind;
use tintype::object::faulty::{Fault, FaultyStore, Operation, Rule};
use tintype::object::local::LocalStore;
use tintype::object::{Breaker, ObjectError, ObjectStore};
use tintype::read::{BlockReader, ReadOptions};
use tintype::repo::{Repository, Secret};
use tokio::runtime::Handle;

use super::{Home, noise};
use crate::support::effort::effort;

/// No call waits longer: long for a busy machine, short for what never comes.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Small enough that what was read is soon fetched again.
const CACHE_BYTES: u64 = 2 << 20;

/// Everything below the root: directories without content.
type Seen = BTreeMap<String, Vec<u8>>;

struct Bad {
    name: &'static str,
    fault: Fault,
    /// Another try gives the right bytes, and nobody notices.
    passes: bool,
}

fn faults() -> Vec<Bad> {
    let key = || "the key".to_owned();
    let bad = |name, fault, passes| Bad { name, fault, passes };
    vec![
        bad("slow down", Fault::Fail(ObjectError::Unavailable { key: key(), reason: "SlowDown".to_owned() }), true),
        bad("no answer", Fault::Fail(ObjectError::DeadlineExceeded { key: key(), limit: DEADLINE }), true),
        bad("a hang", Fault::Hang(Duration::from_secs(60)), false),
        bad("a flipped bit", Fault::FlipBit(77), true),
        bad("a short body", Fault::ShortBody(3), true),
        // Of an object that is read whole there is no range to be short of, and nothing to try again.
        bad("a short range", Fault::ShortRange, false),
        bad("a refusal", Fault::Fail(ObjectError::Denied { key: key(), reason: "AccessDenied".to_owned() }), false),
        bad("a lost object", Fault::Fail(ObjectError::NotFound { key: key() }), false),
    ]
}

async fn tree(home: &Home, store: &FaultyStore) -> Result<Arc<SnapshotFs>, String> {
    let breaker: Arc<dyn ObjectStore> = Arc::new(Breaker::new(Arc::new(store.clone()), DEADLINE));
    let secret = Secret::KeyFile(read_key_file(&home.path("key")).expect("a key file"));
    let opened = tokio::time::timeout(DEADLINE, Repository::open(breaker, Some(&secret))).await;
    let repository = opened.map_err(|_| "a hang".to_owned())?.map_err(|error| error.to_string())?;
    let read = ReadOptions { in_flight_bytes: 4 << 20, ahead_bytes: 1 << 20, deadline: DEADLINE };
    let blocks = BlockReader::new(Arc::new(repository), Arc::new(MemoryCache::new(CACHE_BYTES)), None, read, Handle::current());
    let options = FsOptions { deadline: DEADLINE, fresh_for: Duration::ZERO, ..FsOptions::default() };
    Ok(SnapshotFs::new(blocks, Arc::new(SystemClock::default()), options))
}

/// All of the tree that can be read, and what went wrong.
async fn see(fs: &SnapshotFs) -> (Seen, Vec<FsError>) {
    let (mut seen, mut wrong, mut open) = (Seen::new(), Vec::new(), vec![(ROOT, String::new())]);
    while let Some((inode, path)) = open.pop() {
        let handle = match fs.open_directory(inode).await {
            Ok((handle, _)) => handle,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        seen.insert(format!("{path}/"), Vec::new());
        let names: Vec<_> = fs.directory(handle).expect("open").items(0).skip(2).map(|item| (item.name, item.kind)).collect();
        fs.release_directory(handle);
        for (name, kind) in names {
            let below = format!("{path}/{}", String::from_utf8_lossy(&name));
            match (fs.lookup(inode, &name).await, kind) {
                (Err(error), _) => wrong.push(error),
                (Ok(found), FileKind::Directory) => open.push((found.attributes.inode, below)),
                (Ok(_), FileKind::Link) => {}
                (Ok(found), FileKind::File) => match content(fs, found.attributes.inode, found.attributes.size_bytes).await {
                    Ok(bytes) => drop(seen.insert(below, bytes)),
                    Err(error) => wrong.push(error),
                },
            }
        }
    }
    (seen, wrong)
}

async fn content(fs: &SnapshotFs, inode: u64, size: u64) -> Result<Vec<u8>, FsError> {
    let handle = fs.open(inode).await?;
    let mut bytes = Vec::new();
    let read = loop {
        match fs.read(handle, bytes.len() as u64, 300_000).await {
            Ok(more) if more.is_empty() => break Ok(()),
            Ok(more) => bytes.extend_from_slice(&more),
            Err(error) => break Err(error),
        }
    };
    fs.release(handle);
    read?;
    assert_eq!(bytes.len() as u64, size, "a short file without an error");
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_wrong_at_any_one_call_never_gives_a_wrong_byte() {
    let home = Home::with_repository();
    home.data("data/a", 3_500_000, 1);
    home.data("data/sub/b", 70_000, 2);
    home.data("data/sub/c", 10, 3);
    home.snapshot(&[]);
    let inner = Arc::new(LocalStore::new(home.path("repository")));
    let counting = FaultyStore::new(inner.clone());
    let (whole, wrong) = see(&tree(&home, &counting).await.expect("opens")).await;
    assert!(wrong.is_empty(), "{wrong:?}");
    let of = |seen: &Seen, name: &str| seen.iter().find(|(path, _)| path.ends_with(name)).expect("shown").1.clone();
    assert_eq!((of(&whole, "/a"), of(&whole, "/c")), (noise(3_500_000, 1), noise(10, 3)));

    let calls = counting.calls();
    let step = effort(5, 1);
    let mut rounds = 0;
    for bad in faults() {
        for operation in [Operation::Get, Operation::Head, Operation::List, Operation::ListFolders] {
            let count = calls.iter().filter(|(called, _)| *called == operation).count() as u64;
            // Only a get has a body.
            if operation != Operation::Get && matches!(bad.fault, Fault::FlipBit(_) | Fault::ShortBody(_) | Fault::ShortRange) {
                continue;
            }
            for nth in (1..=count).step_by(step) {
                rounds += 1;
                let what = || format!("{} at {operation:?} {nth} of {count}", bad.name);
                let store = FaultyStore::new(inner.clone());
                store.add(Rule::nth(operation, nth, bad.fault.clone()));
                // At the first calls there is no tree yet: an error says so.
                let Ok(fs) = tree(&home, &store).await else { continue };
                let (seen, wrong) = see(&fs).await;
                for (path, bytes) in &seen {
                    assert!(whole.get(path) == Some(bytes), "{}: wrong bytes in {path}", what());
                }
                assert!(seen == whole || !wrong.is_empty(), "{}: less, and no error", what());
                assert!(!bad.passes || wrong.is_empty(), "{}: {wrong:?}", what());
                // A failure is not kept: the same mount shows all of it, once what hung has met its own deadline.
                let (mut seen, mut wrong) = see(&fs).await;
                if !wrong.is_empty() && matches!(bad.fault, Fault::Hang(_)) {
                    (seen, wrong) = see(&fs).await;
                }
                assert!(seen == whole && wrong.is_empty(), "{}, afterwards: {wrong:?}", what());
            }
        }
    }
    assert!(rounds > 10, "{calls:?}");
}
