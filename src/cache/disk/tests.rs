//! What the cache promises, with a directory of the host.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::model::ids::BlockId;

pub(super) const BLOCK: u32 = 8192;

/// Bytes of a block: some blocks are the same in several files.
pub(super) fn block(file: u8, slot: u64) -> Bytes {
    let seed = if slot % 3 == 1 { slot } else { 1 << 40 | slot << 8 | u64::from(file) };
    block_of(seed, slot_length(file, slot) as usize)
}

fn block_of(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Files of 1 to 40 blocks, the last one shorter.
pub(super) fn key(file: u8) -> FileKey {
    let slots = 1 + u64::from(file) * 7 % 40;
    FileKey { content: BlockId([file; 32]), size_bytes: slots * u64::from(BLOCK) - 100, block_bytes: BLOCK }
}

pub(super) fn slots(file: u8) -> u64 {
    map::slots(&key(file)).expect("a file")
}

fn slot_length(file: u8, slot: u64) -> u64 {
    map::slot_bytes(&key(file), slot)
}

pub(super) fn place(file: u8, slot: u64) -> BlockPlace {
    let bytes = block(file, slot);
    BlockPlace {
        file: key(file),
        offset: slot * u64::from(BLOCK),
        id: BlockId(*blake3::hash(&bytes).as_bytes()),
        plain_bytes: bytes.len() as u32,
    }
}

pub(super) fn open(directory: &Path, limit_bytes: u64, boot: &str) -> DiskCache {
    let options = DiskOptions { directory: directory.to_owned(), limit_bytes, keep_free_bytes: 0, boot: boot.to_owned() };
    let cache = DiskCache::open(options).expect("may be opened");
    assert!(cache.wait_counted(Duration::from_secs(20)), "counted in time");
    cache
}

/// What `du` says.
pub(super) fn taken(directory: &Path) -> u64 {
    let own = std::fs::metadata(directory).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    own + below.sum::<u64>()
}

fn fill(cache: &DiskCache, file: u8) {
    (0..slots(file)).for_each(|slot| cache.put(&place(file, slot), &block(file, slot)));
}

/// How many blocks of a file are there; a wrong one is the end.
pub(super) fn found(cache: &DiskCache, file: u8) -> u64 {
    let is_there = |slot: &u64| match cache.get(&place(file, *slot)) {
        Some(bytes) => {
            assert_eq!(bytes, block(file, *slot), "file {file}, block {slot}");
            true
        }
        None => false,
    };
    (0..slots(file)).filter(is_there).count() as u64
}

fn whole_bytes(file: u8) -> Vec<u8> {
    (0..slots(file)).flat_map(|slot| block(file, slot)).collect()
}

fn data_of(directory: &Path, file: u8) -> PathBuf {
    stored::path(&directory.join("files"), &Name::of(&key(file)), stored::DATA)
}

const PLENTY: u64 = 64 << 20;

#[test]
fn what_was_put_is_there_also_after_a_restart() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    fill(&cache, 3);
    assert_eq!(found(&cache, 3), slots(3));
    assert_eq!(cache.cached_bytes(&key(3)), key(3).size_bytes);
    assert!(cache.get(&place(4, 0)).is_none());
    drop(cache);
    let cache = open(home.path(), PLENTY, "b");
    assert_eq!(found(&cache, 3), slots(3));
    assert_eq!(cache.counts(), DiskCounts { hits: slots(3), ..DiskCounts::default() });
    assert!(cache.used_bytes() >= taken(home.path()));
}

#[test]
fn what_the_file_system_allocates_later_was_counted_before() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    let file = FileKey { content: BlockId([1; 32]), size_bytes: 64 << 20, block_bytes: 4096 };
    for slot in (0..file.size_bytes / 4096).step_by(3).take(4000) {
        let bytes = block_of(slot, 4096);
        let id = BlockId(*blake3::hash(&bytes).as_bytes());
        cache.put(&BlockPlace { file, offset: slot * 4096, id, plain_bytes: 4096 }, &bytes);
    }
    assert_eq!(cache.cached_bytes(&file), 4000 * 4096);
    let counted = cache.used_bytes();
    // Only now are there extents, and blocks that describe them.
    rustix::fs::syncfs(std::fs::File::open(home.path()).expect("opens")).expect("syncs");
    assert!(taken(home.path()) <= counted, "{} of {counted}", taken(home.path()));
}

#[test]
fn a_whole_file_is_handed_out_once_all_of_it_is_proved() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "first");
    let last = slots(5) - 1;
    for slot in 0..last {
        cache.put(&place(5, slot), &block(5, slot));
    }
    assert!(cache.whole_file(&key(5)).is_none());
    cache.put(&place(5, last), &block(5, last));
    let read = |file: std::fs::File| {
        let mut bytes = vec![0; key(5).size_bytes as usize + 1];
        let length = file.read_at(&mut bytes, 0).expect("reads");
        bytes.truncate(length);
        bytes
    };
    assert_eq!(read(cache.whole_file(&key(5)).expect("whole")), whole_bytes(5));
    drop(cache);
    let cache = open(home.path(), PLENTY, "first");
    assert!(cache.whole_file(&key(5)).is_some(), "the host did not crash");
    drop(cache);
    let cache = open(home.path(), PLENTY, "second");
    assert!(cache.whole_file(&key(5)).is_none(), "after a crash the map proves nothing");
    assert_eq!(found(&cache, 5), slots(5));
    assert_eq!(read(cache.whole_file(&key(5)).expect("proved again")), whole_bytes(5));
}

#[test]
fn a_block_of_another_file_is_copied() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    cache.put(&place(3, 1), &block(3, 1));
    assert_eq!(place(3, 1).id, place(5, 1).id);
    assert_eq!(cache.get(&place(5, 1)), Some(block(3, 1)));
    assert_eq!(cache.cached_bytes(&key(5)), u64::from(BLOCK));
    drop(cache);
    // The index is filled from the maps, a moment after the start.
    let cache = open(home.path(), PLENTY, "b");
    let until = Instant::now() + Duration::from_secs(10);
    while cache.get(&place(9, 1)).is_none() {
        assert!(Instant::now() < until, "the index is not filled");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn damage_is_a_miss_and_counted_and_mended() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    fill(&cache, 2);
    let data = std::fs::File::options().write(true).open(data_of(home.path(), 2)).expect("opens");
    data.write_all_at(b"damage", 2 * u64::from(BLOCK) + 77).expect("writes");
    assert_eq!(cache.get(&place(2, 2)), None);
    assert_eq!((cache.counts().damaged, cache.get(&place(2, 2))), (1, None));
    assert_eq!(cache.counts().damaged, 1, "dropped");
    assert!(cache.whole_file(&key(2)).is_none());
    cache.put(&place(2, 2), &block(2, 2));
    assert_eq!(found(&cache, 2), slots(2));
    assert!(cache.whole_file(&key(2)).is_some());
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), 1 << 20, "b");
    for file in [5, 11] {
        fill(&cache, file);
    }
    found(&cache, 5);
    for file in [17, 22] {
        fill(&cache, file);
        found(&cache, 5);
    }
    assert_eq!(found(&cache, 5), slots(5), "in use all the time");
    assert!(cache.cached_bytes(&key(11)) < key(11).size_bytes, "used long ago");
    assert!(taken(home.path()) <= 1 << 20);
}

#[test]
fn a_file_larger_than_the_cache_is_kept_in_part() {
    let home = tempfile::tempdir().expect("a directory");
    let limit = 1 << 20;
    let cache = open(home.path(), limit, "b");
    let big = FileKey { content: BlockId([1; 32]), size_bytes: 5 << 20, block_bytes: BLOCK };
    let count = big.size_bytes / u64::from(BLOCK);
    let at = |slot: u64| {
        let bytes = block_of(slot, BLOCK as usize);
        (
            BlockPlace {
                file: big,
                offset: slot * u64::from(BLOCK),
                id: BlockId(*blake3::hash(&bytes).as_bytes()),
                plain_bytes: BLOCK,
            },
            bytes,
        )
    };
    for slot in 0..count {
        let (place, bytes) = at(slot);
        cache.put(&place, &bytes);
        // One stretch is read again and again.
        assert!(cache.get(&at(0).0).is_some() && cache.get(&place) == Some(bytes), "{slot}");
        assert!(taken(home.path()) <= limit);
    }
    let there: Vec<_> = (0..count).filter(|slot| cache.get(&at(*slot).0).is_some()).collect();
    assert!(there.len() as u64 * u64::from(BLOCK) > limit / 2, "{} of {count}", there.len());
    assert!(there.contains(&0) && there.contains(&(count - 1)), "{there:?}");
}

#[test]
fn what_was_handed_out_stays_right_whatever_happens_to_the_cache() {
    let home = tempfile::tempdir().expect("a directory");
    let limit = 1 << 20;
    let cache = open(home.path(), limit, "b");
    fill(&cache, 5);
    let file = cache.whole_file(&key(5)).expect("whole");
    for other in 20..60 {
        fill(&cache, other);
        assert!(taken(home.path()) <= limit);
    }
    assert_eq!(found(&cache, 5), slots(5), "its room could not be had back");
    let read = |file: &std::fs::File| {
        let mut bytes = vec![0; key(5).size_bytes as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes).expect("reads")
    };
    assert_eq!(read(&file), whole_bytes(5));
    // A map of the memory would outlive the handle and its lock: such a file goes as a whole.
    let seen = std::fs::File::open(data_of(home.path(), 5)).expect("opens");
    drop(file);
    for other in 60..100 {
        fill(&cache, other);
    }
    assert_eq!(cache.cached_bytes(&key(5)), 0);
    assert_eq!(read(&seen), whole_bytes(5));
}

#[test]
fn a_lower_limit_and_rests_of_a_dead_process_are_put_right_at_the_start() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    (10..40).for_each(|file| fill(&cache, file));
    drop(cache);
    let files = home.path().join("files");
    std::fs::write(files.join("stranger"), vec![1; 100_000]).expect("writes");
    std::fs::remove_file(stored::path(&files, &Name::of(&key(10)), stored::MAP)).expect("there");
    std::fs::write(stored::path(&files, &Name::of(&key(11)), stored::MAP), "nonsense").expect("writes");
    let limit = 1 << 20;
    let cache = open(home.path(), limit, "b");
    assert!(taken(home.path()) <= limit && cache.used_bytes() <= limit);
    assert!(!data_of(home.path(), 10).exists() && !files.join("stranger").exists());
    assert!(found(&cache, 39) > 0, "the newest stayed");
    fill(&cache, 11);
    assert_eq!(found(&cache, 11), slots(11), "what could not be opened is made anew");
}

#[test]
fn a_disk_with_too_little_left_gets_nothing_and_what_is_there_goes() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    fill(&cache, 3);
    drop(cache);
    let options =
        DiskOptions { directory: home.path().to_owned(), limit_bytes: PLENTY, keep_free_bytes: 1 << 60, boot: "b".to_owned() };
    let cache = DiskCache::open(options).expect("opens");
    assert!(cache.wait_counted(Duration::from_secs(20)));
    assert_eq!(found(&cache, 3), slots(3), "what is there can be read");
    cache.put(&place(4, 0), &block(4, 0));
    assert_eq!((cache.cached_bytes(&key(4)), cache.cached_bytes(&key(3))), (0, 0));
}

#[test]
fn blocks_of_no_file_and_of_the_wrong_length_are_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), PLENTY, "b");
    let good = place(3, 0);
    let odd = [
        BlockPlace { offset: 1, ..good },
        BlockPlace { offset: u64::MAX, ..good },
        BlockPlace { plain_bytes: 1, ..good },
        BlockPlace { file: FileKey { block_bytes: 0, ..good.file }, ..good },
        BlockPlace { file: FileKey { size_bytes: u64::MAX, ..good.file }, ..good },
    ];
    for place in odd {
        cache.put(&place, &block(3, 0));
        assert_eq!((cache.get(&place), cache.whole_file(&place.file).is_some()), (None, false), "{place:?}");
    }
    cache.put(&good, &block(3, 0).slice(1..));
    assert_eq!(cache.get(&good), None);
    assert_eq!(std::fs::read_dir(home.path().join("files")).expect("lists").count(), 0);
}

#[test]
fn a_block_larger_than_the_limit_drives_nothing_out() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), 1 << 20, "b");
    fill(&cache, 3);
    let bytes = block_of(7, 1 << 20);
    let file = FileKey { content: BlockId([9; 32]), size_bytes: 1 << 20, block_bytes: 1 << 20 };
    let large = BlockPlace { file, offset: 0, id: BlockId(*blake3::hash(&bytes).as_bytes()), plain_bytes: 1 << 20 };
    cache.put(&large, &bytes);
    assert!(cache.get(&large).is_none());
    assert_eq!(found(&cache, 3), slots(3));
}

#[test]
fn a_limit_of_nothing_keeps_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let cache = open(home.path(), 0, "b");
    fill(&cache, 3);
    assert_eq!(found(&cache, 3), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64),
    Get(u8, u64),
    Whole(u8),
    Reopen(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let file = 0u8..30;
    prop_oneof![
        12 => (file.clone(), any::<u64>()).prop_map(|(file, slot)| Step::Put(file, slot % slots(file))),
        8 => (file.clone(), any::<u64>()).prop_map(|(file, slot)| Step::Get(file, slot % slots(file))),
        2 => file.prop_map(Step::Whole),
        1 => (0u8..2).prop_map(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_bytes_are_the_bytes_put_or_a_miss_and_the_limit_holds(
        steps in prop::collection::vec(step(), 1..250),
        limit in 200_000u64..900_000,
    ) {
        let home = tempfile::tempdir().expect("a directory");
        let mut cache = open(home.path(), limit, "0");
        let mut put = std::collections::HashSet::new();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Put(file, slot) => {
                    cache.put(&place(file, slot), &block(file, slot));
                    put.insert(place(file, slot).id);
                    if held.is_empty() {
                        prop_assert_eq!(cache.get(&place(file, slot)), Some(block(file, slot)), "there was room");
                    }
                }
                Step::Get(file, slot) => if let Some(bytes) = cache.get(&place(file, slot)) {
                    prop_assert!(put.contains(&place(file, slot).id), "it was never put");
                    prop_assert_eq!(bytes, block(file, slot));
                },
                Step::Whole(file) => if let Some(opened) = cache.whole_file(&key(file)) {
                    held.push((file, opened));
                    // One stays, those before are closed.
                    held.drain(..held.len() - 1);
                },
                Step::Reopen(boot) => {
                    drop(cache);
                    cache = open(home.path(), limit, &boot.to_string());
                }
            }
            prop_assert!(taken(home.path()) <= limit, "{} of {limit}", taken(home.path()));
            prop_assert!(cache.used_bytes() <= limit && cache.used_bytes() >= taken(home.path()));
            for (file, opened) in &held {
                let mut bytes = vec![0; key(*file).size_bytes as usize];
                opened.read_exact_at(&mut bytes, 0).expect("reads");
                prop_assert!(bytes == whole_bytes(*file));
            }
        }
    }
}
