//! Mounting a tree and letting it go.
//!
//! The session's threads belong to the kernel's requests alone; the tree's own work runs on its runtime.

use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, Filesystem, MountOption, SessionACL};
use tokio::sync::watch;

use crate::fs::SnapshotFs;
use crate::fs::clone::CloneFs;
use crate::fuse::adapter::Adapter;
use crate::fuse::clone_adapter::CloneAdapter;
use crate::fuse::mounts::{MountEntry, mounted_at};
use crate::fuse::passthrough::{Passthrough, PassthroughState};

/// The kernel's read-ahead where we may set it: eight times the default makes requests of 1 MiB instead of 128 KiB, which
/// is a block each.
const READ_AHEAD_BYTES: u64 = 1024 * 1024;
/// More session threads than this only take turns: a hit takes some microseconds.
const THREADS_MAX: usize = 4;

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Others than the mounting user may look, as far as owners and modes allow it.
    pub allow_other: bool,
    /// Nobody may write to a clone.
    pub is_read_only: bool,
    /// Threads that take requests; absent: one per core, at most four.
    pub threads: Option<usize>,
    /// What the kernel's table shows as the source; absent: `tintype`.
    pub source_name: Option<String>,
    /// Whole cached files are read by the kernel itself, where it can; it is told here how that goes.
    pub passthrough: Option<PassthroughState>,
    /// Passed on to the kernel as they are.
    pub kernel_options: Vec<String>,
}

/// A mounted tree.
#[derive(Debug)]
pub struct Session {
    mountpoint: PathBuf,
    ended: watch::Receiver<bool>,
    /// Never dropped: dropping it would unmount the path once more, whoever had mounted something there meanwhile.
    _session: ManuallyDrop<BackgroundSession>,
}

impl Session {
    /// Mounts the tree of snapshots and serves it until the kernel lets go. Blocks for the kernel's greeting only.
    pub fn mount(fs: Arc<SnapshotFs>, mountpoint: &Path, options: &SessionOptions) -> io::Result<Self> {
        let passthrough = options.passthrough.clone();
        let session = Self::begin(|ended| Adapter::new(fs, passthrough, ended), &[MountOption::RO], mountpoint, options)?;
        session.raise_read_ahead();
        Ok(session)
    }

    /// The same for a clone, which can be written.
    pub fn mount_clone(fs: Arc<CloneFs>, mountpoint: &Path, options: &SessionOptions) -> io::Result<Self> {
        let passthrough = options.passthrough.clone().map_or_else(Passthrough::unwanted, Passthrough::new);
        let adapter = |ended| CloneAdapter::new(fs, passthrough, ended);
        let access = if options.is_read_only { MountOption::RO } else { MountOption::RW };
        let session = Self::begin(adapter, &[access, MountOption::DefaultPermissions], mountpoint, options)?;
        session.raise_read_ahead();
        Ok(session)
    }

    fn begin<F: Filesystem + Send + Sync + 'static>(
        adapter: impl FnOnce(watch::Sender<bool>) -> F,
        own: &[MountOption],
        mountpoint: &Path,
        options: &SessionOptions,
    ) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(options.source_name.clone().unwrap_or_else(|| "tintype".to_owned())),
            // Not as `Subtype`, which reaches the kernel's table only by way of fusermount3.
            MountOption::CUSTOM("subtype=tintype".to_owned()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.mount_options.extend_from_slice(own);
        config.mount_options.extend(options.kernel_options.iter().cloned().map(MountOption::CUSTOM));
        if options.allow_other {
            config.acl = SessionACL::All;
            // Otherwise everybody could read everything, whatever the modes say.
            if !config.mount_options.contains(&MountOption::DefaultPermissions) {
                config.mount_options.push(MountOption::DefaultPermissions);
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(cores.min(THREADS_MAX)).max(1);
        config.n_threads = Some(threads);
        config.clone_fd = threads > 1;
        let (sender, ended) = watch::channel(false);
        let session = fuser::Session::new(adapter(sender), mountpoint, &config)?.spawn()?;
        Ok(Self { mountpoint: mountpoint.to_owned(), ended, _session: ManuallyDrop::new(session) })
    }

    /// Its line in the kernel's table, while it is there.
    pub fn entry(&self) -> io::Result<Option<MountEntry>> {
        Ok(mounted_at(&self.mountpoint)?.filter(MountEntry::is_ours))
    }

    fn raise_read_ahead(&self) {
        let raised = match self.entry() {
            Ok(Some(entry)) => entry.set_read_ahead(READ_AHEAD_BYTES),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = raised {
            tracing::debug!(%error, "the kernel's read-ahead stays as it is");
        }
    }

    /// Returns once the kernel has let go of the mount, whoever unmounted it.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // A sender that is gone says the same.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// The kernel has let go.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow() || self.ended.has_changed().is_err()
    }
}
