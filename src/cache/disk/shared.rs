//! One cache under several processes: one of them writes, the others read what it writes.
//!
//! Clones come and go beside the mounts of their host. Whichever is first writes; when it ends, another one goes on. A mount,
//! whose cache it is, need not wait for them to end: they notice within [`LOOK`] that it wants to write, and read from then on.
//!
//! **Invariants.** At most one process writes, and only it takes anything away. A reader trusts neither: what it reads is what
//! the block's checksum says, or a miss, whatever the writer does meanwhile. It changes nothing, hands out no file, and keeps
//! none open for long that the writer has removed. A directory that is removed is made anew by a mount only.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use super::claim::{Seen, Standing, files_of, is_wanted, seen_lock};
use super::map::{self, Boot, Name};
use super::stored::{Held, Stored};
use super::{DiskCache, DiskCacheError, DiskOptions};
use crate::cache::{BlockPlace, FileCache, FileKey};

/// Between two looks at who has the directory: a small part of what a mount waits for it.
const LOOK: Duration = Duration::from_millis(200);
/// Files that a reader has open: a store reads from a few at a time.
const OPEN_FILES: NonZero<usize> = NonZero::new(64).expect("not zero");

/// A cache that this process writes, or reads only, or that is not there any more.
#[derive(Debug)]
enum Role {
    Writer(DiskCache),
    Reader(CacheReader),
    Nothing,
}

/// A cache directory that others use too. See the head of this module.
#[derive(Debug)]
pub struct SharedCache {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    looking: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: DiskOptions,
    role: RwLock<Role>,
    /// The same in short, for those who must not wait for a disk.
    is_writer: AtomicBool,
}

impl SharedCache {
    /// Writes in the directory, if nobody does, and reads there otherwise.
    pub fn open(options: DiskOptions) -> Result<Self, DiskCacheError> {
        let role = match DiskCache::open_as(options.clone(), Standing::Guest) {
            Ok(writer) => Role::Writer(writer),
            Err(DiskCacheError::InUse { .. }) => Role::Reader(CacheReader::open(&options)?),
            Err(error) => return Err(error),
        };
        let is_writer = AtomicBool::new(matches!(role, Role::Writer(_)));
        let shared = Arc::new(Shared { options, role: RwLock::new(role), is_writer });
        let (stop, stopped) = channel();
        let looking = std::thread::Builder::new().name("cache-role".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    shared.look();
                }
            }
        });
        // It stays what it is then, which is right as long as nobody else comes or goes.
        let looking = looking.inspect_err(|error| tracing::warn!(%error, "the cache is not shared with who comes later")).ok();
        Ok(Self { shared, stop: Some(stop), looking })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.shared.options.directory
    }

    /// This process is the one that writes.
    pub fn is_writer(&self) -> bool {
        self.shared.is_writer.load(Ordering::Relaxed)
    }
}

impl Drop for SharedCache {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.looking.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&Role) -> T) -> T {
        work(&self.role.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the directory go to who wants it, or takes it when it is free.
    fn look(&self) {
        let directory = &self.options.directory;
        let reader = || CacheReader::open(&self.options).map_or(Role::Nothing, Role::Reader);
        let next = self.with(|role| match (role, seen_lock(directory)) {
            (Role::Writer(cache), _) if !cache.inner.claim.is_current() || is_wanted(directory) => Some(reader()),
            (Role::Reader(_), Seen::Missing) => Some(Role::Nothing),
            (Role::Reader(_) | Role::Nothing, Seen::Free) => {
                DiskCache::open_as(self.options.clone(), Standing::Guest).map(Role::Writer).ok()
            }
            (Role::Reader(reader), Seen::Taken) => {
                reader.drop_removed();
                None
            }
            (Role::Nothing, Seen::Taken) => Some(reader()),
            (Role::Writer(_), _) | (Role::Nothing, Seen::Missing) => None,
        });
        if let Some(next) = next {
            self.is_writer.store(matches!(next, Role::Writer(_)), Ordering::Relaxed);
            let before = std::mem::replace(&mut *self.role.write().unwrap_or_else(PoisonError::into_inner), next);
            // Outside of the lock: its end may take a moment.
            drop(before);
        }
    }
}

impl FileCache for SharedCache {
    fn get(&self, place: &BlockPlace) -> Option<Bytes> {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.get(place),
            Role::Reader(reader) => reader.get(place),
            Role::Nothing => None,
        })
    }

    fn put(&self, place: &BlockPlace, block: &Bytes) {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.put(place, block),
            // Its writer puts what it reads itself.
            Role::Reader(_) | Role::Nothing => {}
        });
    }

    fn whole_file(&self, file: &FileKey) -> Option<std::fs::File> {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.whole_file(file),
            Role::Reader(_) | Role::Nothing => None,
        })
    }

    fn cached_bytes(&self, file: &FileKey) -> u64 {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.cached_bytes(file),
            Role::Reader(reader) => reader.find(&Name::of(file)).map_or(0, |stored| stored.cached_bytes()),
            Role::Nothing => 0,
        })
    }

    fn used_bytes(&self) -> u64 {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.used_bytes(),
            Role::Reader(_) | Role::Nothing => 0,
        })
    }

    fn limit_bytes(&self) -> u64 {
        self.shared.options.limit_bytes
    }
}

/// The files of a cache that another process writes.
#[derive(Debug)]
struct CacheReader {
    files: PathBuf,
    boot: Boot,
    opened: Mutex<LruCache<Name, Arc<Stored>>>,
}

impl CacheReader {
    fn open(options: &DiskOptions) -> Result<Self, DiskCacheError> {
        let files = files_of(&options.directory)?;
        Ok(Self { files, boot: map::boot_of(&options.boot), opened: Mutex::new(LruCache::new(OPEN_FILES)) })
    }

    fn find(&self, name: &Name) -> Option<Arc<Stored>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = opened.get(name) {
            return Some(stored.clone());
        }
        let stored = Arc::new(Stored::open_to_read(&self.files, name).ok()?);
        opened.put(*name, stored.clone());
        Some(stored)
    }

    /// Gives the disk what the writer has removed.
    fn drop_removed(&self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let removed: Vec<Name> = opened.iter().filter(|(_, stored)| stored.is_removed()).map(|(name, _)| *name).collect();
        for name in removed {
            opened.pop(&name);
        }
    }

    fn get(&self, place: &BlockPlace) -> Option<Bytes> {
        let (slot, name) = (map::slot_of(place)?, Name::of(&place.file));
        let stored = self.find(&name)?;
        // The writer may take a stretch away between its record and its bytes: that is no damage, only a miss.
        if let Held::Block(block) = stored.read(slot, &place.id, &self.boot) {
            return Some(block);
        }
        // Another one of the same name may be there since.
        if stored.is_removed() {
            self.opened.lock().unwrap_or_else(PoisonError::into_inner).pop(&name);
        }
        None
    }
}
