//! Several processes that read a mount at random, against the originals on a disk: without and with a cache of files.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tintype::cache::DiskOptions;
use tintype::read::fixture::{FakeEntry, FakeSource, FakeTree};

use crate::support::disk::taken;
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::{DATE, numbered, serve_with, wait_for};
use crate::support::readers::{Reader, Task};

const BLOCK: usize = 64 * 1024;
/// What the mount takes for blocks at least.
const MEMORY: u64 = 32 << 20;

/// Ends at, before and behind those of pages and blocks, and one file that neither memory nor cache can hold.
fn sizes() -> Vec<usize> {
    let near = |size: usize| [size - 1, size, size + 1];
    let mut sizes = vec![0, 1, 4 * BLOCK + 17, 1_000_003, 5_000_007, 48 << 20];
    sizes.extend([4096, BLOCK, 4 * BLOCK].into_iter().flat_map(near));
    sizes
}

fn processes_get_the_originals(limit: Option<u64>) {
    let mut random = Random::begin("random reads");
    let home = tempfile::tempdir().expect("a directory");
    let originals = home.path().join("originals");
    let mut tree = FakeTree::new();
    for (number, size) in sizes().into_iter().enumerate() {
        let (name, content) = (format!("{}/{size}", number % 3), numbered(size));
        let path = originals.join(&name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        std::fs::write(path, &content).expect("room");
        tree.insert(name.into_bytes(), FakeEntry::File(content));
    }
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK as u32, &[("node-1", tree)]);
    let cache = home.path().join("cache");
    let served = serve_with(source, |options| {
        options.cache_bytes = MEMORY;
        options.cache = limit.map(|limit_bytes| DiskOptions {
            directory: cache.clone(),
            limit_bytes,
            keep_free_bytes: 0,
            boot: "one".to_owned(),
        });
    });
    let task = Task { shown: &served.node(), originals: &originals, steps: Some(effort(800, 40_000)) };
    let readers: Vec<_> = (0..4).map(|_| Reader::begin(&task, &mut random)).collect();
    let tallies: Vec<_> = readers.into_iter().map(Reader::ended).collect();
    let (reads, bytes): (u64, u64) =
        (tallies.iter().map(|tally| tally.reads).sum(), tallies.iter().map(|tally| tally.bytes).sum());
    assert_eq!(reads as usize, 4 * task.steps.expect("some"));
    let fetched = served.source.blocks_read.load(Ordering::SeqCst);
    let different = sizes().iter().sum::<usize>() / BLOCK;
    // What the kernel dropped was asked of the daemon, and what the daemon dropped of the source.
    assert!(fetched as usize > different / 2, "{fetched} blocks of {different}");
    if let Some(limit) = limit {
        wait_for("the blocks to be put", Duration::from_secs(10), || taken(&cache) > limit / 2);
        assert!(taken(&cache) <= limit);
    }
    tell(&format!("{reads} reads of {bytes} bytes, {fetched} blocks fetched of {different}"));
}

#[test]
fn processes_that_read_at_random_get_the_originals() {
    processes_get_the_originals(None);
}

#[test]
fn processes_that_read_at_random_get_the_originals_through_a_cache_on_a_disk() {
    processes_get_the_originals(Some(12 << 20));
}
