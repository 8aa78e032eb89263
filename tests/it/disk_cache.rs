//! The disk cache against what a host does to it: `kill -9`, a full disk, many at once, and the mount above it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tintype::cache::{BlockPlace, DiskCache, DiskOptions, FileCache, FileKey};
use tintype::fuse::request;
use tintype::model::ids::BlockId;
use tintype::read::fixture::{FakeEntry, FakeSource, FakeTree};

use crate::support::child::again;
use crate::support::disk::taken;
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::{DATE, Served, numbered, serve_with, wait_for};

const BLOCK: u32 = 64 * 1024;
const FILES: u64 = 12;
const SLOTS: u64 = 24;
/// About a third of all that is put.
const LIMIT: u64 = 6 << 20;
/// Where the child of the kill test works.
const CHILD: &str = "TINTYPE_CACHE_CHILD";

fn key(file: u64) -> FileKey {
    FileKey { content: BlockId([file as u8; 32]), size_bytes: SLOTS * u64::from(BLOCK) - 1000 * file, block_bytes: BLOCK }
}

fn block(file: u64, slot: u64) -> Bytes {
    let key = key(file);
    let length = (key.size_bytes - slot * u64::from(BLOCK)).min(u64::from(BLOCK));
    let mut bytes = vec![0; length as usize];
    blake3::Hasher::new().update(&[file as u8, slot as u8]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn place(file: u64, slot: u64, block: &Bytes) -> BlockPlace {
    let id = BlockId(*blake3::hash(block).as_bytes());
    BlockPlace { file: key(file), offset: slot * u64::from(BLOCK), id, plain_bytes: block.len() as u32 }
}

fn open(directory: &Path) -> DiskCache {
    let boot = "one".to_owned();
    let options = DiskOptions { directory: directory.to_owned(), limit_bytes: LIMIT, keep_free_bytes: 0, boot };
    let cache = DiskCache::open(options).expect("may be opened");
    assert!(cache.wait_counted(Duration::from_secs(20)), "counted in time");
    cache
}

/// Reads a block or puts it; whether it was there. A wrong byte is the end.
fn step(cache: &DiskCache, random: &mut Random) -> bool {
    let (file, slot) = (random.next() % FILES, random.next() % SLOTS);
    let block = block(file, slot);
    let place = place(file, slot, &block);
    match cache.get(&place) {
        Some(found) => {
            assert!(found == block, "wrong bytes in block {slot} of file {file}");
            true
        }
        None => {
            cache.put(&place, &block);
            false
        }
    }
}

/// Everything that is there is right, also what is handed out whole; how many blocks that is.
fn check(cache: &DiskCache) -> u64 {
    let mut there = 0;
    for file in 0..FILES {
        let blocks: Vec<_> = (0..SLOTS).map(|slot| block(file, slot)).collect();
        // First what the kernel would get, before reads prove it.
        if let Some(whole) = cache.whole_file(&key(file)) {
            let mut bytes = vec![0; key(file).size_bytes as usize];
            std::os::unix::fs::FileExt::read_exact_at(&whole, &mut bytes, 0).expect("reads");
            assert!(bytes == blocks.concat(), "wrong bytes in whole file {file}");
        }
        for (slot, block) in blocks.iter().enumerate() {
            let found = cache.get(&place(file, slot as u64, block));
            assert!(found.as_ref().is_none_or(|found| found == block), "wrong bytes in block {slot} of file {file}");
            there += u64::from(found.is_some());
        }
    }
    there
}

/// Not a test by itself: it is the child of the next one.
#[test]
#[ignore = "is run by other tests"]
fn writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let cache = open(Path::new(&directory));
    let mut random = Random::begin("child");
    loop {
        step(&cache, &mut random);
    }
}

#[test]
fn a_daemon_killed_at_any_instant_leaves_no_wrong_byte() {
    let mut random = Random::begin("cache kill");
    let home = tempfile::tempdir().expect("a directory");
    let rounds = effort(12, 200);
    let mut kept = 0;
    for round in 0..rounds {
        let mut child = again("disk_cache::writes_until_it_is_killed")
            .env(CHILD, home.path())
            .env("TINTYPE_SEED", random.next().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        wait_for("the child's cache", Duration::from_secs(20), || {
            std::fs::read_dir(home.path().join("files")).is_ok_and(|entries| entries.count() > 0)
        });
        std::thread::sleep(random.duration(Duration::from_millis(250)));
        child.kill().expect("a child");
        let status = child.wait().expect("a child");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "round {round}: {status}");
        assert!(taken(home.path()) <= LIMIT, "round {round}");
        let cache = open(home.path());
        assert!(taken(home.path()) <= LIMIT && cache.used_bytes() <= LIMIT, "round {round}");
        kept += check(&cache);
        assert_eq!(cache.counts().damaged, 0, "round {round}: the host did not crash");
    }
    assert!(kept > 0);
    tell(&format!("{kept} blocks were there after {rounds} kills"));
}

#[test]
fn many_at_once_never_overrun_the_limit() {
    let mut random = Random::begin("cache load");
    let home = tempfile::tempdir().expect("a directory");
    // Files come and go while one looks at them one by one; what a file system of its own has given away is one number.
    let small = Small::mount(home.path().join("small"), "64m");
    let cache = open(&small.0);
    let given = || rustix::fs::statvfs(&small.0).map(|status| (status.f_blocks - status.f_bfree) * status.f_frsize);
    let end = Instant::now() + Duration::from_secs(effort(2, 600) as u64);
    let (is_done, steps, hits) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (mut samples, mut most) = (0u64, 0);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let mut random = random.fork();
            let (cache, is_done, steps, hits) = (&cache, &is_done, &steps, &hits);
            scope.spawn(move || {
                let mut held = None;
                while !is_done.load(Ordering::Relaxed) {
                    hits.fetch_add(u64::from(step(cache, &mut random)), Ordering::Relaxed);
                    steps.fetch_add(1, Ordering::Relaxed);
                    if number == 0 && random.next().is_multiple_of(50) {
                        held = cache.whole_file(&key(random.next() % FILES)).or(held);
                    }
                }
            });
        }
        while Instant::now() < end {
            let now = given().expect("there");
            // Told to the threads before the panic, or the scope would wait for them.
            is_done.store(now > LIMIT, Ordering::Relaxed);
            assert!(now <= LIMIT, "{now} of {LIMIT}");
            (samples, most) = (samples + 1, most.max(now));
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(taken(&small.0) <= cache.used_bytes() && cache.used_bytes() <= LIMIT);
    assert!(most > LIMIT / 2 && hits.load(Ordering::Relaxed) > 0, "{most}");
    check(&cache);
    assert_eq!(cache.counts().damaged, 0);
    let steps = steps.load(Ordering::Relaxed);
    tell(&format!("{samples} samples, {most} of {LIMIT} at most; {steps} steps, {hits:?} hits"));
}

struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&path).expect("makes");
        let options = format!("size={size},mode=0700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tintype-test"]).arg(&path).status();
        assert!(status.expect("runs").success(), "mount needs root: run the tests as root");
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_nobody_anything() {
    let mut random = Random::begin("cache full");
    let home = tempfile::tempdir().expect("a directory");
    let small = Small::mount(home.path().join("small"), "3m");
    let cache = open(&small.0);
    let mut hits = 0;
    for _ in 0..400 {
        hits += u64::from(step(&cache, &mut random));
    }
    assert!(hits > 0, "what fitted is there");
    assert!(check(&cache) > 0);
    assert_eq!(cache.counts().damaged, 0);
    assert!(cache.used_bytes() >= taken(&small.0));
    drop(cache);
    // With something to be kept free, the disk is never full.
    let directory = home.path().join("kept");
    let small = Small::mount(directory.clone(), "3m");
    let keep_free_bytes = 1 << 20;
    let options = DiskOptions { directory, limit_bytes: LIMIT, keep_free_bytes, boot: "one".to_owned() };
    let cache = DiskCache::open(options).expect("may be opened");
    assert!(cache.wait_counted(Duration::from_secs(20)));
    for _ in 0..400 {
        step(&cache, &mut random);
        let status = rustix::fs::statvfs(&small.0).expect("there");
        assert!(status.f_bavail * status.f_frsize >= keep_free_bytes, "{}", status.f_bavail);
    }
    assert!(check(&cache) > 5);
}

fn served(source: &std::sync::Arc<FakeSource>, directory: &Path) -> Served {
    serve_with(source.clone(), |options| {
        let boot = "one".to_owned();
        // What the kernel reads by itself is trusted for as long as the host is up.
        options.passthrough = false;
        options.cache = Some(DiskOptions { directory: directory.to_owned(), limit_bytes: 64 << 20, keep_free_bytes: 0, boot });
    })
}

#[test]
fn what_was_read_through_a_mount_is_not_fetched_by_the_next_one() {
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("cache");
    let content = numbered(5_000_007);
    let tree: FakeTree = [(b"dump.rdb".to_vec(), FakeEntry::File(content.clone()))].into();
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", tree.clone())]);
    let first = served(&source, &directory);
    assert!(std::fs::read(first.node().join("dump.rdb")).expect("readable") == content);
    let fetched = source.blocks_read.load(Ordering::SeqCst);
    assert!(fetched >= 76, "{fetched}");
    // The queue drops what a slow disk does not take.
    let file = std::fs::File::open(first.node().join("dump.rdb")).expect("opens");
    assert_eq!(request::warm(&file, 0, 5_000_007).expect("fetched"), 5_000_007);
    let fetched = source.blocks_read.load(Ordering::SeqCst).max(fetched);
    drop(file);
    drop(first);

    let second = served(&source, &directory);
    assert!(std::fs::read(second.node().join("dump.rdb")).expect("readable") == content);
    let again = source.blocks_read.load(Ordering::SeqCst) - fetched;
    assert_eq!(again, 0, "of {fetched} blocks");
    drop(second);

    // The same content at another date, and nothing to be had from the store: blocks are corrupt there.
    source.publish("prod", "2026-11-21T00-00-00Z", BLOCK, &[("node-1", tree)]);
    source.set_corrupt(true);
    let third = served(&source, &directory);
    assert!(std::fs::read(third.path("prod/2026-11-21T00-00-00Z/node-1/dump.rdb")).expect("readable") == content);
    drop(third);

    // Damage on the disk is fetched, and never seen.
    source.set_corrupt(false);
    let entries = std::fs::read_dir(directory.join("files")).expect("lists").flatten();
    let data = entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "data"));
    let data = std::fs::File::options().write(true).open(data.expect("one")).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&data, b"damage", 1_000_000).expect("writes");
    let before = source.blocks_read.load(Ordering::SeqCst);
    let fourth = served(&source, &directory);
    assert!(std::fs::read(fourth.node().join("dump.rdb")).expect("readable") == content);
    assert_eq!(source.blocks_read.load(Ordering::SeqCst), before + 1);
}
