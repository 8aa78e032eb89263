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

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};

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
    inodes: Mutex<HashMap<u64, Open>>,
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
        let passthrough = Self { is_possible: AtomicBool::new(true), inodes: Mutex::default(), state };
        passthrough.count(&passthrough.inodes());
        passthrough
    }

    /// Never used: everything goes through this process.
    pub(super) fn unwanted() -> Self {
        Self { is_possible: AtomicBool::new(false), inodes: Mutex::default(), state: PassthroughState::default() }
    }

    /// Asks the kernel for it, where it is wanted.
    pub(super) fn ask(&self, config: &mut KernelConfig) {
        if !self.is_possible() {
            return;
        }
        // What is handed over lies on a plain file system: nothing is stacked below it.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() || config.set_max_stack_depth(1).is_err() {
            self.refuse("the kernel cannot, it needs Linux 6.9 or later");
        }
    }

    fn refuse(&self, reason: &str) {
        self.is_possible.store(false, Ordering::Relaxed);
        self.tell(format!("off: {reason}"));
    }

    fn is_possible(&self) -> bool {
        self.is_possible.load(Ordering::Relaxed)
    }

    fn tell(&self, state: String) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers an open that gave `handle`.
    pub(super) async fn answer(&self, fs: &SnapshotFs, inode: u64, handle: u64, reply: ReplyOpen) {
        let is_large = fs.cacheable_bytes(handle).is_some_and(|bytes| bytes >= BYTES_MIN);
        if !is_large {
            return reply.opened(FileHandle(handle), KEPT);
        }
        // Also once it was refused: a file that is open in the other way stays in it.
        let whole = if self.is_possible() { fs.whole_file(handle).await } else { None };
        let backing = self.open(inode, whole.as_ref(), |file| reply.open_backing(file));
        match backing {
            // The kernel takes no other flags with it.
            Some(backing) => reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, &backing),
            None => reply.opened(FileHandle(handle), KEPT),
        }
    }

    /// One more handle of an inode: what the kernel reads and writes by itself, or nothing where it does not. `file` is what
    /// it could; `register` makes it known to the kernel.
    pub(super) fn open(
        &self,
        inode: u64,
        file: Option<&File>,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut inodes = self.inodes();
        let is_possible = self.is_possible();
        let entry = inodes.entry(inode).or_insert_with(|| {
            let backing = file.filter(|_| is_possible).and_then(|file| self.registered(register(file)));
            Open { handles: 0, backing }
        });
        entry.handles += 1;
        let backing = entry.backing.clone();
        self.count(&inodes);
        backing
    }

    fn registered(&self, backing: std::io::Result<BackingId>) -> Option<Arc<BackingId>> {
        match backing {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::EPERM) => "it needs CAP_SYS_ADMIN".to_owned(),
                    Some(libc::ELOOP) => "what it would read is on a stacked file system".to_owned(),
                    _ => format!("the kernel refuses: {error}"),
                };
                tracing::info!(reason, "files are read through this process");
                self.refuse(&reason);
                None
            }
        }
    }

    /// A handle is gone. Of inodes that were never answered here nothing is known, and nothing happens.
    pub(super) fn release(&self, inode: u64) {
        let mut open = self.inodes();
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
