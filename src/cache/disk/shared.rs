//! One cache under several processes: one of them writes, the others read what it writes.
//!
//! Clones come and go beside the mounts of their host. Whichever is first writes; when it ends, another one goes on. A mount,
//! whose cache it is, need not wait for them to end: they notice within [`LOOK`] that it wants to write, and read from then on.
//!
//! **Invariants.** At most one process writes, and only it takes anything away. A reader trusts neither: what it reads is what
//! the block's checksum says, or a miss, whatever the writer does meanwhile. It changes nothing and hands out no file.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use super::claim::{Standing, files_of, is_wanted};
use super::map::{self, Boot, Name};
use super::stored::{Held, Stored};
use super::{DiskCache, DiskCacheError, DiskOptions};
use crate::cache::{BlockPlace, FileCache, FileKey};

/// Between two looks at who has the directory: a small part of what a mount waits for it.
const LOOK: Duration = Duration::from_millis(200);
/// Files that a reader has open: a store reads from a few at a time.
const OPEN_FILES: NonZero<usize> = NonZero::new(64).expect("not zero");

/// A cache that this process writes, or reads only.
#[derive(Debug)]
enum Role {
    Writer(DiskCache),
    Reader(CacheReader),
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
}

impl SharedCache {
    /// Writes in the directory, if nobody does, and reads there otherwise.
    pub fn open(options: DiskOptions) -> Result<Self, DiskCacheError> {
        let role = match DiskCache::open_as(options.clone(), Standing::Guest) {
            Ok(writer) => Role::Writer(writer),
            Err(DiskCacheError::InUse { .. }) => Role::Reader(CacheReader::open(&options)?),
            Err(error) => return Err(error),
        };
        let shared = Arc::new(Shared { options, role: RwLock::new(role) });
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
        self.shared.with(|role| matches!(role, Role::Writer(_)))
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
        let next = self.with(|role| match role {
            Role::Writer(_) if is_wanted(&self.options.directory) => CacheReader::open(&self.options).map(Role::Reader).ok(),
            Role::Writer(_) => None,
            Role::Reader(_) => DiskCache::open_as(self.options.clone(), Standing::Guest).map(Role::Writer).ok(),
        });
        if let Some(next) = next {
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
        })
    }

    fn put(&self, place: &BlockPlace, block: &Bytes) {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.put(place, block),
            // Its writer puts what it reads itself.
            Role::Reader(_) => {}
        });
    }

    fn whole_file(&self, file: &FileKey) -> Option<std::fs::File> {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.whole_file(file),
            Role::Reader(_) => None,
        })
    }

    fn cached_bytes(&self, file: &FileKey) -> u64 {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.cached_bytes(file),
            Role::Reader(reader) => reader.find(&Name::of(file)).map_or(0, |stored| stored.cached_bytes()),
        })
    }

    fn used_bytes(&self) -> u64 {
        self.shared.with(|role| match role {
            Role::Writer(cache) => cache.used_bytes(),
            Role::Reader(_) => 0,
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
