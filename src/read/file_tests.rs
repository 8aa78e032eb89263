//! What a reader may rely on, against plain byte strings.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::cache::{BlockCache, MemoryCache};
use crate::model::names::NodeName;
use crate::read::blocks::ReadOptions;
use crate::read::fixture::{FakeEntry, FakeSource, FakeTree};
use crate::repo::SnapshotSource;

const BLOCK: u32 = 1000;

struct Setup {
    source: Arc<FakeSource>,
    cache: Arc<MemoryCache>,
    blocks: Arc<BlockReader>,
    map: Arc<FileMap>,
}

async fn setup(content: &[u8], cache_bytes: u64, options: ReadOptions) -> Setup {
    let source = FakeSource::new();
    let tree: FakeTree = [(b"f".to_vec(), FakeEntry::File(content.to_vec()))].into();
    let listed = source.publish("c", "2026-11-20T10-15-30Z", BLOCK, &[("n", tree)]);
    let manifest = source.manifest(&listed).await.expect("published");
    let node = source.open_node(&manifest, &NodeName::new("n").expect("legal")).await.expect("there");
    let path = crate::model::names::TreePath::new(*b"f").expect("legal");
    let entry = source.entry(&node, &path).await.expect("readable").expect("there");
    let cache = Arc::new(MemoryCache::new(cache_bytes));
    let blocks = BlockReader::new(source.clone(), cache.clone(), None, options, Handle::current());
    let map = FileMap::new(blocks.clone(), node, entry);
    Setup { source, cache, blocks, map }
}

use tokio::runtime::Handle;

fn numbered(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn no_ahead() -> ReadOptions {
    ReadOptions { ahead_bytes: 0, ..ReadOptions::default() }
}

#[tokio::test]
async fn a_read_crosses_blocks_runs_and_the_literal_tail() {
    let content = numbered(9 * BLOCK as usize + 7);
    let setup = setup(&content, 1 << 20, ReadOptions::default()).await;
    let reader = FileReader::new(setup.map);
    assert_eq!(reader.read(0, 1 << 30).await.expect("readable"), content);
    assert_eq!(reader.read(3999, 2).await.expect("readable"), content[3999..4001]);
    assert_eq!(reader.read(content.len() as u64, 10).await.expect("readable").len(), 0);
    assert_eq!(reader.read(u64::MAX, u64::MAX).await.expect("readable").len(), 0);
}

#[tokio::test]
async fn neighbours_come_with_one_fetch() {
    let content = numbered(4 * BLOCK as usize);
    let setup = setup(&content, 1 << 20, no_ahead()).await;
    FileReader::new(setup.map).read(0, 1 << 20).await.expect("readable");
    assert_eq!(setup.source.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn readers_at_the_same_time_share_one_fetch() {
    let setup = setup(&numbered(BLOCK as usize), 1 << 20, no_ahead()).await;
    setup.map.run(0).await.expect("readable");
    setup.source.hang();
    let readers: Vec<_> = (0..16)
        .map(|number| {
            let reader = FileReader::new(setup.map.clone());
            tokio::spawn(async move { reader.read(number * 10, 10).await })
        })
        .collect();
    tokio::task::yield_now().await;
    setup.source.resume();
    for reader in readers {
        reader.await.expect("no reader panics").expect("readable");
    }
    assert_eq!(setup.source.blocks_read.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reader_that_gives_up_does_not_take_the_fetch_away() {
    let content = numbered(BLOCK as usize);
    let setup = setup(&content, 1 << 20, no_ahead()).await;
    setup.map.run(0).await.expect("readable");
    setup.source.hang();
    let reader = FileReader::new(setup.map.clone());
    let first = tokio::spawn({
        let reader = FileReader::new(setup.map.clone());
        async move { reader.read(0, 10).await }
    });
    tokio::task::yield_now().await;
    let second = tokio::spawn(async move { reader.read(0, 10).await });
    tokio::task::yield_now().await;
    first.abort();
    setup.source.resume();
    assert_eq!(second.await.expect("no panic").expect("readable"), content[..10]);
    assert_eq!(setup.source.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_source_that_hangs_ends_at_the_deadline_and_nothing_stays_under_way() {
    let options = ReadOptions { deadline: Duration::from_millis(50), ..no_ahead() };
    let setup = setup(&numbered(BLOCK as usize), 1 << 20, options).await;
    setup.map.run(0).await.expect("readable");
    setup.source.hang();
    let reader = FileReader::new(setup.map.clone());
    let error = reader.read(0, 10).await.expect_err("it hangs");
    assert!(matches!(error, ReadError::DeadlineExceeded { .. }), "{error}");
    setup.source.resume();
    reader.read(0, 10).await.expect("a failure is not cached");
}

#[tokio::test]
async fn what_is_corrupt_is_an_error_and_not_cached() {
    let setup = setup(&numbered(BLOCK as usize), 1 << 20, no_ahead()).await;
    setup.source.set_corrupt(true);
    let reader = FileReader::new(setup.map.clone());
    let error = reader.read(0, 10).await.expect_err("corrupt");
    assert!(matches!(error, ReadError::Repo(RepoError::Corrupt { .. })), "{error}");
    assert_eq!(setup.cache.used_bytes(), 0);
    setup.source.set_corrupt(false);
    reader.read(0, 10).await.expect("readable again");
}

#[tokio::test]
async fn a_sequential_reader_finds_its_blocks_there_and_fetches_none_twice() {
    let content = numbered(200 * BLOCK as usize);
    let setup = setup(&content, 1 << 20, ReadOptions { ahead_bytes: 16_000, ..ReadOptions::default() }).await;
    let reader = FileReader::new(setup.map);
    let mut hits = 0;
    for at in (0..content.len()).step_by(500) {
        let there = reader.read_cached(at as u64, 500);
        hits += usize::from(there.is_some());
        let bytes = match there {
            Some(bytes) => bytes,
            None => reader.read(at as u64, 500).await.expect("readable"),
        };
        assert_eq!(bytes, content[at..at + 500]);
        // Lets the background tasks run, as the kernel's round trips do.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.source.blocks_read.load(Ordering::SeqCst), 200);
    assert!(hits > 300, "{hits} of 400 reads were ready");
    drop(setup.blocks);
}

#[tokio::test]
async fn a_cache_that_keeps_nothing_still_gives_the_right_bytes() {
    let content = numbered(10 * BLOCK as usize);
    let setup = setup(&content, 0, ReadOptions::default()).await;
    let reader = FileReader::new(setup.map);
    for at in (0..content.len()).step_by(777) {
        let end = content.len().min(at + 777);
        assert_eq!(reader.read(at as u64, 777).await.expect("readable"), content[at..end]);
    }
}

#[tokio::test]
async fn a_read_larger_than_all_that_may_be_in_flight_goes_through() {
    let content = numbered(50 * BLOCK as usize);
    let setup = setup(&content, 1 << 20, ReadOptions { in_flight_bytes: 2048, ..no_ahead() }).await;
    assert_eq!(FileReader::new(setup.map).read(0, 1 << 20).await.expect("readable"), content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn reads_are_slices_of_the_content(
        length in 0usize..20_000,
        cache_bytes in 0u64..30_000,
        reads in prop::collection::vec((0u64..22_000, 0u64..9_000), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let content = numbered(length);
            let options = ReadOptions { ahead_bytes: 4000, ..ReadOptions::default() };
            let setup = setup(&content, cache_bytes, options).await;
            let reader = FileReader::new(setup.map.clone());
            for (offset, wanted) in reads {
                let start = (offset as usize).min(length);
                let end = (start + wanted as usize).min(length);
                let bytes = reader.read(offset, wanted).await.expect("readable");
                assert_eq!(bytes, content[start..end]);
                if let Some(again) = reader.read_cached(offset, wanted) {
                    assert_eq!(again, content[start..end]);
                }
                assert!(setup.cache.used_bytes() <= cache_bytes);
            }
        });
    }
}
