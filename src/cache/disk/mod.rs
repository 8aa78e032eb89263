//! The disk cache: blocks kept as parts of sparse files, over restarts, within a limit that is never overrun.
//!
//! ```text
//! DIRECTORY/                  mode 0700, written by one process
//!   tintype-cache.lock        held while that process lives; its process id
//!   tintype-cache.wanted      held by a mount that waits for a clone to stop writing (see `shared`)
//!   files/NAME.data           the file's plain bytes, as far as they are there
//!   files/NAME.map            which those are: name and checksum of each block (see `map`)
//! ```
//!
//! NAME follows from the content, so the same file on ten dates is there once; a block that another file has is copied.
//! What was not used for longest goes first: a stretch of blocks of the file that was not used for longest, so that a file
//! larger than the cache is kept in part.
//!
//! **Invariants.** Every byte that leaves [`get`](DiskCache::get) was compared with its checksum; what does not match is
//! dropped and counted. A file is handed out whole only after all of it was written or verified in this boot of the host:
//! after a crash the map is a claim. Whatever fails is a miss. Nothing is synced: what a crash takes is fetched again.
//! One thing is trusted: that a disk which took a write without an error returns it while the host is up.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{BlockPlace, FileCache, FileKey};

mod claim;
mod index;
mod map;
mod room;
mod scan;
mod shared;
mod stored;
mod table;

use claim::{Claim, Standing};
pub use claim::{DiskCacheError, Inspection, inspect};
use index::Index;
use map::{Boot, Name};
pub use shared::SharedCache;
use stored::{Held, Stored};
use table::Table;

/// A start waits so long for what is there to be counted, and goes on without.
const START: Duration = Duration::from_millis(50);

/// Where and how much.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// A directory of the cache's own; it is made if need be.
    pub directory: PathBuf,
    /// The most that all of it takes on the disk.
    pub limit_bytes: u64,
    /// What the disk has to have left.
    pub keep_free_bytes: u64,
    /// Identity of this boot of the host.
    pub boot: String,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCounts {
    /// Blocks that were there.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
    /// Blocks that were there and damaged; misses as well.
    pub damaged: u64,
}

/// Files on a disk. See the head of this module.
#[derive(Debug)]
pub struct DiskCache {
    inner: Arc<Inner>,
    scan: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    options: DiskOptions,
    claim: Claim,
    boot: Boot,
    unit_bytes: u64,
    /// Held while files are opened, made and removed.
    names: Mutex<()>,
    making_room: Mutex<()>,
    table: Mutex<Table>,
    index: Mutex<Index>,
    began: Instant,
    /// Nothing is written before, in milliseconds since `began`.
    paused_until_ms: AtomicU64,
    uses: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    scanned: Flag,
    is_ending: AtomicBool,
}

/// Set once, and waited for.
#[derive(Debug, Default)]
struct Flag {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn set(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_set, limit, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl DiskCache {
    /// Takes the directory. How much is in it makes no difference to how long this takes.
    pub fn open(options: DiskOptions) -> Result<Self, DiskCacheError> {
        Self::open_as(options, Standing::Owner)
    }

    fn open_as(options: DiskOptions, standing: Standing) -> Result<Self, DiskCacheError> {
        let claim = Claim::take(&options.directory, standing)?;
        let unit_bytes = rustix::fs::statvfs(&claim.files).map_or(0, |status| status.f_frsize);
        let inner = Arc::new(Inner {
            boot: map::boot_of(&options.boot),
            index: Mutex::new(Index::new(options.limit_bytes)),
            options,
            claim,
            unit_bytes: unit_bytes.clamp(room::UNIT_BYTES_MIN, room::UNIT_BYTES_MAX),
            names: Mutex::default(),
            making_room: Mutex::default(),
            table: Mutex::default(),
            began: Instant::now(),
            paused_until_ms: AtomicU64::new(0),
            uses: AtomicU64::new(1),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            scanned: Flag::default(),
            is_ending: AtomicBool::new(false),
        });
        let scanning = inner.clone();
        let scan = std::thread::Builder::new().name("cache-scan".to_owned()).spawn(move || scanning.scan());
        match scan {
            Ok(_) => _ = inner.scanned.wait(START),
            // It can still be read.
            Err(ref error) => tracing::warn!(%error, "the cache cannot be counted, nothing is written to it"),
        }
        Ok(Self { inner, scan: scan.ok() })
    }

    /// Waits until what earlier processes left is counted; false when it is not in time.
    pub fn wait_counted(&self, limit: Duration) -> bool {
        self.inner.scanned.wait(limit)
    }

    /// What happened so far.
    pub fn counts(&self) -> DiskCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let inner = &self.inner;
        DiskCounts { hits: of(&inner.hits), misses: of(&inner.misses), damaged: of(&inner.damaged) }
    }

    /// Where it is.
    pub fn directory(&self) -> &std::path::Path {
        &self.inner.options.directory
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.inner.is_ending.store(true, Ordering::Relaxed);
        // The lock goes with the last of us.
        let _ = self.scan.take().map(JoinHandle::join);
    }
}

impl FileCache for DiskCache {
    fn get(&self, place: &BlockPlace) -> Option<Bytes> {
        let block = self.inner.get(place);
        let counter = if block.is_some() { &self.inner.hits } else { &self.inner.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        block
    }

    fn put(&self, place: &BlockPlace, block: &Bytes) {
        self.inner.put(place, block);
    }

    fn whole_file(&self, file: &FileKey) -> Option<std::fs::File> {
        map::slots(file)?;
        let stored = self.inner.find(&Name::of(file))?;
        let _turn = stored.turn.read().unwrap_or_else(PoisonError::into_inner);
        let is_gone = stored.is_gone.load(Ordering::Relaxed);
        if is_gone { None } else { stored.hand_out(&self.inner.claim.files, &self.inner.boot) }
    }

    fn cached_bytes(&self, file: &FileKey) -> u64 {
        self.inner.find(&Name::of(file)).map_or(0, |stored| {
            let _turn = stored.turn.read().unwrap_or_else(PoisonError::into_inner);
            stored.cached_bytes()
        })
    }

    fn used_bytes(&self) -> u64 {
        self.inner.table().used()
    }

    fn limit_bytes(&self) -> u64 {
        self.inner.options.limit_bytes
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cached file, opened if it is not.
    fn find(&self, name: &Name) -> Option<Arc<Stored>> {
        self.known(name)?.or_else(|| {
            let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            self.open_known(name)
        })
    }

    /// `None`: there is no such file. `Some(None)`: there may be one.
    #[allow(clippy::option_option, reason = "three answers")]
    fn known(&self, name: &Name) -> Option<Option<Arc<Stored>>> {
        let mut table = self.table();
        match table.opened(name) {
            Some(stored) => Some(Some(stored)),
            None if table.is_complete && !table.knows(name) => None,
            None => Some(None),
        }
    }

    /// The caller holds `names`.
    fn open_known(&self, name: &Name) -> Option<Arc<Stored>> {
        if let Some(stored) = self.known(name)? {
            return Some(stored);
        }
        match Stored::open(&self.claim.files, name, self.options.limit_bytes) {
            Ok(stored) => Some(self.table().insert_open(Arc::new(stored))),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::debug!(file = %name, %error, "a cached file cannot be opened");
                }
                None
            }
        }
    }

    /// The same, made if there is none. Must be covered by a reservation.
    fn find_or_create(&self, key: &FileKey) -> std::io::Result<Arc<Stored>> {
        let name = Name::of(key);
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = self.open_known(&name) {
            return Ok(stored);
        }
        // What is there cannot be opened, so it is of no use.
        stored::remove(&self.claim.files, &name)?;
        let stored = Arc::new(Stored::create(&self.claim.files, key, self.options.limit_bytes)?);
        let mut table = self.table();
        table.remove(&name);
        table.charge(name, 0);
        Ok(table.insert_open(stored))
    }

    fn get(&self, place: &BlockPlace) -> Option<Bytes> {
        let slot = map::slot_of(place)?;
        let name = Name::of(&place.file);
        if let Some(block) = self.find(&name).and_then(|stored| self.read(&stored, slot, place)) {
            return Some(block);
        }
        let (other, other_slot) = self.index().find(&place.id).filter(|other| *other != (name, slot))?;
        let block = self.find(&other).and_then(|stored| self.read(&stored, other_slot, place));
        let Some(block) = block.filter(|block| block.len() as u64 == u64::from(place.plain_bytes)) else {
            self.index().remove(&place.id);
            return None;
        };
        // So that this file can become whole, and keeps it when the other goes.
        self.put(place, &block);
        Some(block)
    }

    fn read(&self, stored: &Stored, slot: u64, place: &BlockPlace) -> Option<Bytes> {
        let _turn = stored.turn.read().unwrap_or_else(PoisonError::into_inner);
        if stored.is_gone.load(Ordering::Relaxed) {
            return None;
        }
        match stored.read(slot, &place.id, &self.boot) {
            Held::Nothing => None,
            Held::Block(block) => {
                self.touch(stored, slot);
                Some(block)
            }
            Held::Damaged => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                let dropped = stored.forget(slot);
                tracing::warn!(file = %stored.name, slot, ?dropped, "a cached block is damaged");
                None
            }
        }
    }

    fn touch(&self, stored: &Stored, slot: u64) {
        self.table().touch(&stored.name);
        stored.touch(slot, self.uses.fetch_add(1, Ordering::Relaxed), self.began.elapsed().as_secs());
    }

    fn put(&self, place: &BlockPlace, block: &Bytes) {
        if self.is_paused() || !self.table().is_complete || block.len() as u64 != u64::from(place.plain_bytes) {
            return;
        }
        let Some(slot) = map::slot_of(place) else { return };
        let name = Name::of(&place.file);
        if self.find(&name).is_some_and(|stored| stored.has(slot, &place.id)) {
            return;
        }
        let Some(room) = self.admit(block.len() as u64) else { return };
        let stored = match self.find_or_create(&place.file) {
            Ok(stored) => stored,
            Err(error) => return self.pause(&error),
        };
        let _turn = stored.turn.read().unwrap_or_else(PoisonError::into_inner);
        if stored.is_gone.load(Ordering::Relaxed) {
            return;
        }
        let written = stored.write(slot, &place.id, block, &self.boot);
        if written.is_err() {
            stored.give_back(slot);
        }
        room.settle(&stored);
        match written {
            Ok(()) => {
                self.touch(&stored, slot);
                self.index().insert(&place.id, name, slot);
            }
            Err(error) => self.pause(&error),
        }
    }

    fn is_paused(&self) -> bool {
        (self.began.elapsed().as_millis() as u64) < self.paused_until_ms.load(Ordering::Relaxed)
    }

    fn pause(&self, why: &dyn std::fmt::Display) {
        let until = self.began.elapsed() + room::FULL_PAUSE;
        self.paused_until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
        tracing::debug!(%why, directory = %self.claim.root.display(), "nothing is written to the cache for a while");
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
