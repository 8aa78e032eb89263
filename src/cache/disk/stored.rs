//! One cached file: a sparse file of its plain bytes, and its map.
//!
//! **Invariants.** Bytes are written before their record, and a record is taken away before its bytes. The data file has
//! the length of the file from its first instant, so that nothing is ever allocated behind its end. Callers hold `turn`:
//! shared to read and write blocks, alone to take some away.
//!
//! Of what the kernel holds while others read it, nothing is ever overwritten with anything else nor punched out: see
//! [`Stored::was_handed_out`].

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, SeekFrom, Timestamps, fallocate, seek};

use super::super::FileKey;
use super::map::{self, Boot, HANDED_OUT_AT, HEADER_BYTES, Name, RECORD_BYTES, Record};
use crate::base::buffers::read_exact_at;

pub(super) const DATA: &str = "data";
pub(super) const MAP: &str = "map";

/// Blocks that go together, at least.
const STRETCH_SLOTS: u64 = 64;
/// Stretches of a file, so that looking for the oldest is quick.
const STRETCHES: u64 = 1024;
/// Records read at a time.
const RECORDS_AT_ONCE: u64 = 1024;
/// A use is written down at most once in so many seconds.
const TOUCH_SECONDS: u64 = 60;

/// An open cached file.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: Name,
    pub(super) key: FileKey,
    pub(super) turn: RwLock<()>,
    /// It was removed; set and read under `turn`.
    pub(super) is_gone: AtomicBool,
    data: File,
    map: File,
    slots: u64,
    stretch_slots: u64,
    /// When each stretch was last used, as the cache counts uses.
    used: Box<[AtomicU64]>,
    touched_s: AtomicU64,
    /// Blocks before this one are all there, written or verified in this boot.
    verified: Mutex<u64>,
}

/// What a block's place holds.
#[derive(Debug)]
pub(super) enum Held {
    Nothing,
    Damaged,
    Block(Bytes),
}

pub(super) fn path(folder: &Path, name: &Name, ending: &str) -> PathBuf {
    folder.join(format!("{name}.{ending}"))
}

fn options() -> std::fs::OpenOptions {
    let mut options = to_read();
    options.write(true).mode(0o600);
    options
}

fn to_read() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW);
    options
}

impl Stored {
    /// A new one without any block. What is left of it after a failure is removed.
    pub(super) fn create(folder: &Path, key: &FileKey, limit_bytes: u64) -> io::Result<Self> {
        let name = Name::of(key);
        let made = || {
            let data = options().create_new(true).open(path(folder, &name, DATA))?;
            data.set_len(key.size_bytes)?;
            let map = options().create_new(true).open(path(folder, &name, MAP))?;
            map.write_all_at(&map::encode_header(key), 0)?;
            Self::new(name, *key, data, map, limit_bytes)
        };
        made().inspect_err(|_| {
            let _ = remove(folder, &name);
        })
    }

    /// One that is there; `InvalidData` when it is not what its name says.
    pub(super) fn open(folder: &Path, name: &Name, limit_bytes: u64) -> io::Result<Self> {
        Self::open_with(&options(), folder, name, limit_bytes)
    }

    /// One that is another process's: it can be read, and whatever would write fails.
    pub(super) fn open_to_read(folder: &Path, name: &Name) -> io::Result<Self> {
        Self::open_with(&to_read(), folder, name, u64::MAX)
    }

    fn open_with(options: &std::fs::OpenOptions, folder: &Path, name: &Name, limit_bytes: u64) -> io::Result<Self> {
        let map = options.open(path(folder, name, MAP))?;
        let data = options.open(path(folder, name, DATA))?;
        let key = read_key(&map, name)?;
        if data.metadata()?.len() != key.size_bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::new(*name, key, data, map, limit_bytes)
    }

    fn new(name: Name, key: FileKey, data: File, map: File, limit_bytes: u64) -> io::Result<Self> {
        let slots = map::slots(&key).ok_or(io::ErrorKind::InvalidData)?;
        // A small cache must not lose all of itself at once.
        let most = (limit_bytes / 16 / u64::from(key.block_bytes)).max(1);
        let stretch_slots = STRETCH_SLOTS.max(slots.div_ceil(STRETCHES)).min(most);
        let used = (0..slots.div_ceil(stretch_slots)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            name,
            key,
            turn: RwLock::new(()),
            is_gone: AtomicBool::new(false),
            data,
            map,
            slots,
            stretch_slots,
            used,
            touched_s: AtomicU64::new(0),
            verified: Mutex::new(0),
        })
    }

    fn record(&self, slot: u64) -> io::Result<Option<Record>> {
        let mut bytes = [0; RECORD_BYTES as usize];
        match self.map.read_exact_at(&mut bytes, map::record_at(slot)) {
            Ok(()) => Ok(Record::decode(&self.name, slot, &bytes)),
            // The map grows with the blocks.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the map has the block.
    pub(super) fn has(&self, slot: u64, id: &crate::model::ids::BlockId) -> bool {
        matches!(self.record(slot), Ok(Some(record)) if record.id == *id)
    }

    /// The block, verified, if it is there under this name.
    pub(super) fn read(&self, slot: u64, id: &crate::model::ids::BlockId, boot: &Boot) -> Held {
        let Ok(Some(record)) = self.record(slot) else { return Held::Nothing };
        if record.id != *id {
            return Held::Nothing;
        }
        let mut bytes = Vec::new();
        let length = map::slot_bytes(&self.key, slot) as usize;
        let read = read_exact_at(&self.data, &mut bytes, length, slot * u64::from(self.key.block_bytes));
        if read.is_err() || map::check_of(&bytes) != record.check {
            return Held::Damaged;
        }
        if record.boot != *boot {
            // Proved just now. If that cannot be written down, it is proved again next time.
            let _ = self.map.write_all_at(&Record { boot: *boot, ..record }.encode(&self.name, slot), map::record_at(slot));
        }
        Held::Block(bytes.into())
    }

    /// Writes a block, then the record of it.
    pub(super) fn write(&self, slot: u64, id: &crate::model::ids::BlockId, block: &[u8], boot: &Boot) -> io::Result<()> {
        let record = Record { id: *id, check: map::check_of(block), boot: *boot };
        self.data.write_all_at(block, slot * u64::from(self.key.block_bytes))?;
        self.map.write_all_at(&record.encode(&self.name, slot), map::record_at(slot))
    }

    /// Takes the record of a damaged block away. Its bytes stay until they are written again or their stretch goes.
    pub(super) fn forget(&self, slot: u64) -> io::Result<()> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        *verified = slot.min(*verified);
        self.map.write_all_at(&[0; RECORD_BYTES as usize], map::record_at(slot))
    }

    /// Gives the bytes of a write that failed back, as far as they were written.
    pub(super) fn give_back(&self, slot: u64) {
        if !self.was_handed_out() {
            let offset = slot * u64::from(self.key.block_bytes);
            let _ = self.forget(slot).and_then(|()| self.punch(offset, map::slot_bytes(&self.key, slot)));
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(fallocate(&self.data, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?)
    }

    /// Takes the stretch away that was not used for longest; false when there is none. The caller is alone.
    pub(super) fn drop_oldest(&self) -> io::Result<bool> {
        let stretch_bytes = self.stretch_slots * u64::from(self.key.block_bytes);
        let (mut oldest, mut at) = (None, 0);
        while at < self.key.size_bytes {
            let stretch = match seek(&self.data, SeekFrom::Data(at)) {
                Ok(offset) => offset / stretch_bytes,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let used = self.used.get(stretch as usize).map_or(0, |used| used.load(Ordering::Relaxed));
            if oldest.is_none_or(|(before, _)| used < before) {
                oldest = Some((used, stretch));
            }
            at = (stretch + 1) * stretch_bytes;
        }
        let Some((_, stretch)) = oldest else { return Ok(false) };
        let first = stretch * self.stretch_slots;
        let records = self.stretch_slots.min(self.slots - first) * RECORD_BYTES;
        // Only what there is of the map: zeros behind its end would make it grow.
        let there = self.map.metadata()?.len().saturating_sub(map::record_at(first)).min(records);
        *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        write_zeros(&self.map, map::record_at(first), there)?;
        self.punch(stretch * stretch_bytes, stretch_bytes)?;
        Ok(true)
    }

    /// Gives all bytes back. The caller is alone, and nobody comes after him.
    pub(super) fn empty(&self) {
        let emptied = self.map.set_len(0).and_then(|()| self.data.set_len(0));
        tracing::trace!(file = %self.name, ?emptied, "goes");
    }

    /// Notes a use; `uses` counts all of the cache's. Once in a while it is written down for the next start.
    pub(super) fn touch(&self, slot: u64, uses: u64, now_s: u64) {
        if let Some(used) = self.used.get((slot / self.stretch_slots) as usize) {
            used.store(uses, Ordering::Relaxed);
        }
        let before = self.touched_s.load(Ordering::Relaxed);
        if (before == 0 || now_s >= before + TOUCH_SECONDS)
            && self.touched_s.compare_exchange(before, now_s.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
            let _ = rustix::fs::futimens(&self.map, &Timestamps { last_access: now, last_modification: now });
        }
    }

    /// Its name is gone, or another's.
    pub(super) fn is_removed(&self) -> bool {
        self.map.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Allocated on the disk: bytes, map.
    pub(super) fn allocated(&self) -> io::Result<(u64, u64)> {
        Ok((self.data.metadata()?.blocks() * 512, self.map.metadata()?.blocks() * 512))
    }

    /// Calls `found` with every record, until it says that this is enough.
    fn records(&self, from: u64, mut found: impl FnMut(u64, Option<Record>) -> bool) -> io::Result<()> {
        read_records(&self.map, &self.name, from, self.slots, &mut found)
    }

    pub(super) fn cached_bytes(&self) -> u64 {
        let mut bytes = 0;
        let read = self.records(0, |slot, record| {
            bytes += if record.is_some() { map::slot_bytes(&self.key, slot) } else { 0 };
            true
        });
        read.map_or(0, |()| bytes)
    }

    /// Every block is there, and was written or verified in this boot.
    fn is_whole(&self, boot: &Boot) -> bool {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let mut until = *verified;
        let read = self.records(until, |slot, record| {
            let is_good = record.is_some_and(|record| record.boot == *boot);
            until = if is_good { slot + 1 } else { until };
            is_good
        });
        *verified = if read.is_ok() { until } else { 0 };
        *verified == self.slots
    }

    /// Another handle of the data, for reading, when all of it is good. The map notes it first.
    pub(super) fn hand_out(&self, folder: &Path, boot: &Boot) -> Option<File> {
        if !self.is_whole(boot) {
            return None;
        }
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path(folder, &self.name, DATA)).ok()?;
        let (ours, opened) = (self.data.metadata().ok()?, file.metadata().ok()?);
        let is_same = (ours.dev(), ours.ino()) == (opened.dev(), opened.ino());
        // For as long as anybody has this handle, also a kernel whose daemon died, the lock is held.
        let is_noted = file.try_lock_shared().is_ok() && self.map.write_all_at(&[1], HANDED_OUT_AT).is_ok();
        (is_same && is_noted).then_some(file)
    }

    /// Whether somebody may still see it, though no handle is left: what was mapped into memory outlives them. Such a file
    /// is removed as a whole, which harms nobody, and never in part.
    pub(super) fn was_handed_out(&self) -> bool {
        let mut noted = [1];
        self.map.read_exact_at(&mut noted, HANDED_OUT_AT).is_err() || noted != [0]
    }

    /// Whether a handle that was handed out is still open anywhere: then its bytes cannot be had back yet.
    pub(super) fn is_held(&self) -> bool {
        match self.data.try_lock() {
            Ok(()) => self.data.unlock().is_err(),
            Err(TryLockError::WouldBlock) => true,
            // A file system without locks: removed all the same, and its bytes come back when it is closed.
            Err(TryLockError::Error(_)) => false,
        }
    }
}

fn read_key(map: &File, name: &Name) -> io::Result<FileKey> {
    let mut header = [0; HEADER_BYTES as usize];
    map.read_exact_at(&mut header, 0)?;
    let key = map::decode_header(&header).filter(|key| Name::of(key) == *name);
    key.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read_records(
    map: &File,
    name: &Name,
    from: u64,
    slots: u64,
    found: &mut dyn FnMut(u64, Option<Record>) -> bool,
) -> io::Result<()> {
    let mut bytes = vec![0; (RECORDS_AT_ONCE * RECORD_BYTES) as usize];
    let mut slot = from;
    while slot < slots {
        let mut filled = 0;
        while filled < bytes.len() {
            match map.read_at(&mut bytes[filled..], map::record_at(slot) + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        for chunk in bytes[..filled].chunks_exact(RECORD_BYTES as usize) {
            if slot == slots || !found(slot, Record::decode(name, slot, chunk)) {
                return Ok(());
            }
            slot += 1;
        }
        if filled < bytes.len() {
            // The rest of the map is not there.
            if slot < slots {
                found(slot, None);
            }
            return Ok(());
        }
    }
    Ok(())
}

fn write_zeros(file: &File, mut at: u64, mut length: u64) -> io::Result<()> {
    let zeros = [0; 4096];
    while length > 0 {
        let now = length.min(zeros.len() as u64);
        file.write_all_at(&zeros[..now as usize], at)?;
        (at, length) = (at + now, length - now);
    }
    Ok(())
}

/// The records of a map that is not open, until `found` has enough.
pub(super) fn visit_map(folder: &Path, name: &Name, found: &mut dyn FnMut(u64, Record) -> bool) -> io::Result<()> {
    let map = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path(folder, name, MAP))?;
    let key = read_key(&map, name)?;
    let slots = map::slots(&key).ok_or(io::ErrorKind::InvalidData)?;
    read_records(&map, name, 0, slots, &mut |slot, record| record.is_none_or(|record| found(slot, record)))
}

/// Removes a cached file: its map first, so that nothing says any more that its bytes are there.
pub(super) fn remove(folder: &Path, name: &Name) -> io::Result<()> {
    for ending in [MAP, DATA] {
        match std::fs::remove_file(path(folder, name, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
