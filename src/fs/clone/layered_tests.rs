//! Layered files on a disk that loses its power, against a plain vector of bytes.

use std::collections::HashSet;
use std::sync::{Arc, Barrier, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::Result;
use super::super::base::BaseFile;
use super::super::pages::PAGE_BYTES;
use super::super::storage::Storage;
use super::LayeredFile;

const SECTOR: usize = 512;

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

#[derive(Debug)]
struct Base(Vec<u8>);

#[async_trait]
impl BaseFile for Base {
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.0[offset as usize..(offset + length) as usize]))
    }

    fn read_cached(&self, _offset: u64, _length: u64) -> Option<Bytes> {
        None
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Held {
    now: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Change>,
    /// Changes until one fails for want of room.
    room: Option<u64>,
}

/// A file of which a power cut keeps what was synced, and of everything later any part, in sectors.
#[derive(Debug, Clone, Default)]
struct CutFile(Arc<Mutex<Held>>);

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, written) => {
            let end = *offset as usize + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset as usize..end].copy_from_slice(written);
        }
        Change::Length(length) => bytes.resize(*length as usize, 0),
    }
}

impl CutFile {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().expect("no panic")
    }

    fn change(&self, change: Change) -> Result<()> {
        let mut held = self.held();
        if let Some(room) = &mut held.room {
            *room = room.checked_sub(1).ok_or(Errno::NOSPC)?;
        }
        apply(&mut held.now, &change);
        held.since.push(change);
        Ok(())
    }

    fn cut(&self, random: &mut Random) {
        let mut held = self.held();
        let (mut left, since) = (held.synced.clone(), std::mem::take(&mut held.since));
        for change in since {
            match change {
                Change::Write(offset, bytes) => {
                    for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.below(2) == 0 {
                            apply(&mut left, &Change::Write(offset + (at * SECTOR) as u64, sector.to_vec()));
                        }
                    }
                }
                length if random.below(2) == 0 => apply(&mut left, &length),
                Change::Length(_) => {}
            }
        }
        held.synced.clone_from(&left);
        held.now = left;
    }
}

impl Storage for CutFile {
    fn length(&self) -> Result<u64> {
        Ok(self.held().now.len() as u64)
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        let held = self.held();
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = held.now.get(offset as usize + at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        self.change(Change::Write(offset, bytes.to_vec())).map(|()| bytes.len())
    }

    fn set_length(&self, length: u64) -> Result<()> {
        self.change(Change::Length(length))
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        let now = self.length()?;
        if how.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let end = if how.contains(FallocateFlags::KEEP_SIZE) { (offset + length).min(now) } else { offset + length };
            return if offset < end { self.change(Change::Write(offset, vec![0; (end - offset) as usize])) } else { Ok(()) };
        }
        if how.contains(FallocateFlags::KEEP_SIZE) || now >= offset + length {
            return Ok(());
        }
        self.change(Change::Length(offset + length))
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        let mut held = self.held();
        held.synced = held.now.clone();
        held.since.clear();
        Ok(())
    }
}

/// The disk: the file, and its map once it was made.
struct Disk {
    upper: CutFile,
    map: Arc<Mutex<Option<CutFile>>>,
    base: Vec<u8>,
}

impl Disk {
    fn new(base: Vec<u8>) -> Self {
        let upper = CutFile::default();
        upper.change(Change::Length(base.len() as u64)).expect("room");
        upper.sync(false).expect("syncs");
        Self { upper, map: Arc::default(), base }
    }

    fn open(&self) -> LayeredFile {
        let map = self.map.lock().expect("no panic").clone().map(|map| Arc::new(map) as Arc<dyn Storage>);
        let kept = self.map.clone();
        let make = move || Ok(Arc::new(kept.lock().expect("no panic").get_or_insert_default().clone()) as Arc<dyn Storage>);
        let (upper, base) = (Arc::new(self.upper.clone()), Arc::new(Base(self.base.clone())));
        LayeredFile::open(upper, base, self.base.len() as u64, map, Box::new(make)).expect("opens")
    }

    fn cut(&self, random: &mut Random) {
        self.upper.cut(random);
        if let Some(map) = &*self.map.lock().expect("no panic") {
            map.cut(random);
        }
    }
}

/// What every byte may be after a power cut.
struct Allowed {
    states: Vec<Vec<u8>>,
}

impl Allowed {
    fn check(&self, found: &[u8], told: &[String]) {
        // A write behind the end may get as far as one of its sectors.
        let lengths = self.states.iter().map(Vec::len);
        let (least, most) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
        assert!((least..=most).contains(&found.len()), "a length of {} outside of {least}..={most}: {told:#?}", found.len());
        for (at, byte) in found.iter().enumerate() {
            let values: HashSet<_> = self.states.iter().map(|state| state.get(at).copied().unwrap_or(0)).collect();
            assert!(values.contains(byte), "byte {at} is {byte}, and was never any but {values:?}: {told:#?}");
        }
    }
}

fn zeros(bytes: &mut Vec<u8>, offset: u64, length: u64, keeps: bool) {
    let end = if keeps { (offset + length).min(bytes.len() as u64) } else { offset + length } as usize;
    bytes.resize(bytes.len().max(end), 0);
    if (offset as usize) < end {
        bytes[offset as usize..end].fill(0);
    }
}

async fn content(file: &LayeredFile) -> Vec<u8> {
    file.read(0, u64::MAX / 2).await.expect("reads").to_vec()
}

async fn life(seed: u64) {
    let mut random = Random(seed);
    let base_bytes = random.below(6 * PAGE_BYTES) + 1;
    let base: Vec<u8> = (0..base_bytes).map(|_| random.below(255) as u8 + 1).collect();
    let disk = Disk::new(base.clone());
    let mut file = disk.open();
    let mut expected = base;
    let mut allowed = Allowed { states: vec![expected.clone()] };
    let room = random.below(4) == 0;
    let mut told = vec![format!("seed {seed}, a base of {base_bytes} bytes")];
    for _ in 0..60 {
        let offset = random.below(8 * PAGE_BYTES);
        let length = if random.below(2) == 0 { random.below(3 * PAGE_BYTES) + 1 } else { random.below(100) + 1 };
        let mut after = expected.clone();
        let kind = random.below(10);
        told.push(format!("{kind}: {offset} {length}"));
        let done = match kind {
            0..=3 => {
                let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
                apply(&mut after, &Change::Write(offset, bytes.clone()));
                file.write(&bytes, offset).await.map(drop)
            }
            4 => {
                after.resize(offset as usize, 0);
                file.set_length(offset).await
            }
            5 => {
                let keeps = random.below(2) == 0;
                zeros(&mut after, offset, length, true);
                let how = if keeps {
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
                } else {
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
                };
                file.allocate(how, offset, length).await
            }
            6 => {
                zeros(&mut after, offset.max(expected.len() as u64), 0, false);
                after.resize(expected.len().max((offset + length) as usize), 0);
                file.allocate(FallocateFlags::empty(), offset, length).await
            }
            7 => {
                let synced = file.sync(true);
                if synced.is_ok() {
                    allowed.states.clear();
                }
                synced
            }
            8 => {
                disk.upper.held().room = room.then(|| random.below(4));
                Ok(())
            }
            _ => {
                disk.upper.held().room = None;
                if random.below(2) == 0 {
                    disk.cut(&mut random);
                    told.push("cut".to_owned());
                    file = disk.open();
                    let found = content(&file).await;
                    allowed.check(&found, &told);
                    (after, allowed.states) = (found.clone(), vec![found]);
                } else {
                    file.sync(true).expect("there is room");
                    file = disk.open();
                    allowed.states.clear();
                }
                Ok(())
            }
        };
        let found = content(&file).await;
        match done {
            Ok(()) => assert!(found == after, "{told:#?}"),
            // A call that failed for want of room may have done a part of its work.
            Err(error) => {
                assert_eq!(error, Errno::NOSPC);
                Allowed { states: vec![expected, after] }.check(&found, &told);
            }
        }
        allowed.states.push(found.clone());
        expected = found;
    }
}

#[tokio::test]
async fn a_file_is_what_was_written_and_after_a_power_cut_what_was_synced_or_later() {
    let lives = if std::env::var("TINTYPE_EFFORT").as_deref() == Ok("full") { 20_000 } else { 500 };
    for seed in 0..lives {
        life(seed).await;
    }
}

#[tokio::test]
async fn a_file_that_was_cut_to_nothing_or_written_whole_needs_its_base_no_more() {
    let base = vec![7; 3 * PAGE_BYTES as usize + 10];
    for is_cut in [true, false] {
        let disk = Disk::new(base.clone());
        let file = disk.open();
        assert!(!file.is_local());
        if is_cut {
            file.set_length(0).await.expect("cuts");
        } else {
            file.write(&vec![1; base.len()], 0).await.expect("writes");
            assert!(!file.is_local(), "that is not durable yet");
            file.sync(true).expect("syncs");
        }
        assert!(file.is_local() && disk.open().is_local());
    }
}

/// A file whose sync goes on when it is told to.
#[derive(Debug)]
struct Slow(CutFile, Arc<Barrier>);

impl Storage for Slow {
    fn length(&self) -> Result<u64> {
        self.0.length()
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(into, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        self.0.write(bytes, offset)
    }

    fn set_length(&self, length: u64) -> Result<()> {
        self.0.set_length(length)
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        self.0.allocate(how, offset, length)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.1.wait();
        self.1.wait();
        self.0.sync(data_only)
    }
}

#[tokio::test]
async fn what_is_being_saved_is_not_saved_yet() {
    let (gate, map) = (Arc::new(Barrier::new(2)), CutFile::default());
    let upper = CutFile::default();
    upper.change(Change::Length(3 * PAGE_BYTES)).expect("room");
    let base = vec![7; 3 * PAGE_BYTES as usize];
    let make = Box::new(move || Ok(Arc::new(map.clone()) as Arc<dyn Storage>));
    let slow = Arc::new(Slow(upper, gate.clone()));
    let file = LayeredFile::open(slow, Arc::new(Base(base)), 3 * PAGE_BYTES, None, make).expect("opens");
    file.write(&[1; 100], 0).await.expect("writes");
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| file.sync(true));
        gate.wait();
        assert!(file.is_unsaved(), "who lets go of it now loses the page");
        gate.wait();
        saving.join().expect("no panic").expect("saves");
    });
    assert!(!file.is_unsaved());
}
