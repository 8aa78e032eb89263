//! Files that the kernel reads from the cache on its own: FUSE passthrough.
//!
//! A file that is whole on the disk and was verified since the host started is handed to the kernel when it is opened, and
//! reading it never comes here. Everything else is read through this process.
//!
//! **Invariants.** All handles of an inode that are open at a time are served in the same way, as the kernel demands: it
//! answers a second way with EIO, also while only a mapping is left of the first. The first handle decides, and the last
//! one's release ends it. A kernel or a privilege that refuses once is not asked again.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};

use super::adapter::KEPT;
use crate::fs::SnapshotFs;

/// Smaller files stay with this process: their pages are in the kernel after one request or two, and every open of what
/// is handed over costs two calls more.
const BYTES_MIN: u64 = 1 << 20;

/// Which files the kernel reads on its own, for people.
pub type PassthroughState = Arc<Mutex<String>>;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Passthrough {
    is_possible: AtomicBool,
    open: Mutex<HashMap<u64, Open>>,
    state: PassthroughState,
}

/// How an inode is served while it has handles.
#[derive(Debug)]
struct Open {
    handles: usize,
    backing: Option<Arc<BackingId>>,
}

impl Passthrough {
    /// Used where the kernel can; `state` tells.
    pub(super) fn new(state: PassthroughState) -> Self {
        let passthrough = Self { is_possible: AtomicBool::new(true), open: Mutex::default(), state };
        passthrough.count(&passthrough.open());
        passthrough
    }

    pub(super) fn refuse(&self, reason: &str) {
        self.is_possible.store(false, Ordering::Relaxed);
        self.tell(format!("off: {reason}"));
    }

    fn is_possible(&self) -> bool {
        self.is_possible.load(Ordering::Relaxed)
    }

    fn tell(&self, state: String) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers an open that gave `handle`.
    pub(super) async fn answer(&self, fs: &SnapshotFs, inode: u64, handle: u64, reply: ReplyOpen) {
        let is_large = fs.cacheable_bytes(handle).is_some_and(|bytes| bytes >= BYTES_MIN);
        if !is_large {
            return reply.opened(FileHandle(handle), KEPT);
        }
        // Also once it was refused: a file that is open in the other way stays in it.
        let whole = if self.is_possible() { fs.whole_file(handle).await } else { None };
        let backing = {
            let mut open = self.open();
            let entry = open
                .entry(inode)
                .or_insert_with(|| Open { handles: 0, backing: whole.and_then(|file| self.register(&reply, &file)) });
            entry.handles += 1;
            let backing = entry.backing.clone();
            self.count(&open);
            backing
        };
        match backing {
            // The kernel takes no other flags with it.
            Some(backing) => reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, &backing),
            None => reply.opened(FileHandle(handle), KEPT),
        }
    }

    fn register(&self, reply: &ReplyOpen, file: &File) -> Option<Arc<BackingId>> {
        match reply.open_backing(file) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::EPERM) => "it needs CAP_SYS_ADMIN".to_owned(),
                    Some(libc::ELOOP) => "the cache is on a stacked file system".to_owned(),
                    _ => format!("the kernel refuses: {error}"),
                };
                tracing::info!(reason, "cached files are read through this process");
                self.refuse(&reason);
                None
            }
        }
    }

    /// A handle is gone. Of inodes that were never answered here nothing is known, and nothing happens.
    pub(super) fn release(&self, inode: u64) {
        let mut open = self.open();
        let Some(entry) = open.get_mut(&inode) else { return };
        entry.handles -= 1;
        if entry.handles == 0 {
            open.remove(&inode);
            self.count(&open);
        }
    }

    fn count(&self, open: &HashMap<u64, Open>) {
        if self.is_possible() {
            let count = open.values().filter(|open| open.backing.is_some()).count();
            self.tell(if count == 0 {
                "possible, no file is open in this way".to_owned()
            } else {
                format!("active, {count} files open")
            });
        }
    }
}
