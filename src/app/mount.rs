//! Serving a tree at a mountpoint and taking it away: what may be mounted on, readiness, the end.
//!
//! [`serve`] is the whole life of one mount inside one process. The program that runs it in the background learns from a
//! pipe when the tree is served, see [`Readiness`]. [`unmount`] works from any process, also when the serving one is dead
//! or stuck.
//!
//! **Invariants.** A mountpoint is only looked at after the kernel's table said that nothing dead or hanging is there.
//! Nothing is mounted over files, over another mount, or where the mount would feed on itself. However serving ends, the
//! mount is gone afterwards.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::disk_cache::{check_place, overlap};
use super::failure::Failure;
use super::mount_memory;
use super::mountpoint::{Look, PATIENCE, check_device, clean_path, look, within};
use super::renewal::Renewable;
use super::served;
use crate::base::SystemClock;
use crate::cache::{DiskCache, DiskOptions, FileCache, MemoryCache};
use crate::fs::{FsOptions, Owner, SnapshotFs};
use crate::fuse::mounts::{MountEntry, mounted_at, take_off};
use crate::fuse::{PassthroughState, Session, SessionOptions};
use crate::read::BlockReader;
use crate::repo::SnapshotSource;

/// How long an unmount waits for those who still use the tree before it is taken away under them.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a state that nothing tells us of.
const POLL: Duration = Duration::from_millis(20);

/// What and how to serve.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// An empty directory that nothing is mounted on.
    pub mountpoint: PathBuf,
    /// Others than the mounting user may look, as far as owners and modes allow it.
    pub allow_other: bool,
    /// Replaces the owner of everything shown.
    pub owner: Option<Owner>,
    /// Memory for blocks; at least 32 MiB are used.
    pub cache_bytes: u64,
    /// No call on the tree takes longer.
    pub deadline: Duration,
    /// Deadlines that hold later on; none is longer than the first.
    pub deadline_changes: Option<watch::Receiver<Duration>>,
    /// For how long a listing is served without looking whether there are new snapshots.
    pub fresh_for: Duration,
    /// What the kernel's table shows as the source; absent: `tintype`.
    pub source_name: Option<String>,
    /// Security contexts, as the kernel takes them.
    pub kernel_options: Vec<String>,
    /// Blocks on a disk, too.
    pub cache: Option<DiskOptions>,
    /// The kernel reads files that the cache has whole by itself, where it can.
    pub passthrough: bool,
    /// UUID of the repository, which the mount tells whoever asks.
    pub repository: Option<String>,
    /// What knows whether the store answers.
    pub store: Option<Arc<Renewable>>,
    /// Directories that neither the mountpoint nor the cache may be inside or above: the repository's.
    pub forbidden: Vec<PathBuf>,
    /// Threads that take the kernel's requests; absent: as many as cores, at most four.
    pub threads: Option<usize>,
}

impl MountOptions {
    /// With a cache of 256 MiB, a deadline of 30 s and listings looked at every 2 s.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            allow_other: false,
            owner: None,
            cache_bytes: 256 << 20,
            deadline: Duration::from_secs(30),
            deadline_changes: None,
            fresh_for: Duration::from_secs(2),
            source_name: None,
            kernel_options: Vec::new(),
            cache: None,
            passthrough: true,
            repository: None,
            store: None,
            forbidden: Vec::new(),
            threads: None,
        }
    }
}

/// Why something was not mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no such directory.
    #[error("{}: no such directory", mountpoint.display())]
    NoDirectory {
        /// As given.
        mountpoint: PathBuf,
    },
    /// It is something else.
    #[error("{}: is not a directory", mountpoint.display())]
    NotADirectory {
        /// As given.
        mountpoint: PathBuf,
    },
    /// There are files that the mount would hide.
    #[error("{}: is not empty", mountpoint.display())]
    NotEmpty {
        /// As given.
        mountpoint: PathBuf,
    },
    /// A mount is there already.
    #[error("{}: is already a mountpoint, of type {kernel_type}", mountpoint.display())]
    AlreadyMounted {
        /// As given.
        mountpoint: PathBuf,
        /// What the kernel calls it.
        kernel_type: String,
    },
    /// The mount would read from itself.
    #[error("{}: is inside or above {}, which the mount itself needs", mountpoint.display(), directory.display())]
    FeedsOnItself {
        /// As given.
        mountpoint: PathBuf,
        /// What it needs.
        directory: PathBuf,
    },
    /// The kernel's FUSE device is not there.
    #[error("/dev/fuse: {reason}")]
    NoFuse {
        /// In the system's words.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Nothing is mounted there.
    #[error("{}: nothing is mounted there", mountpoint.display())]
    NotMounted {
        /// As given.
        mountpoint: PathBuf,
    },
    /// What is mounted there is somebody else's, and is left alone.
    #[error("{}: is a mount of type {kernel_type}, not one of tintype", mountpoint.display())]
    NotOurs {
        /// As given.
        mountpoint: PathBuf,
        /// What the kernel calls it.
        kernel_type: String,
    },
    /// The cache cannot be had.
    #[error("{}", .0.message)]
    Cache(Failure),
    /// The system refused.
    #[error("{}: {what}: {source}", mountpoint.display())]
    System {
        /// As given.
        mountpoint: PathBuf,
        /// What was tried.
        what: &'static str,
        /// In the system's words.
        source: io::Error,
    },
}

impl MountError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::NoDirectory { mountpoint } => format!("create it: mkdir -p {}", mountpoint.display()),
            Self::NotADirectory { .. } | Self::NotEmpty { .. } => "name an empty directory".to_owned(),
            Self::AlreadyMounted { mountpoint, .. } => format!("take it away first: tintype unmount {}", mountpoint.display()),
            Self::FeedsOnItself { .. } => "name a directory outside of the repository and the cache".to_owned(),
            Self::NoFuse { hint, .. } => (*hint).to_owned(),
            Self::NotMounted { .. } => "see what is mounted: findmnt -t fuse.tintype".to_owned(),
            Self::NotOurs { mountpoint, .. } => format!("take it away by its own means: umount {}", mountpoint.display()),
            Self::Cache(failure) => failure.hint.clone().unwrap_or_default(),
            Self::System { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root, or install fuse3 and, for --allow-other, put user_allow_other into /etc/fuse.conf".to_owned()
            }
            Self::System { .. } => "run: tintype doctor".to_owned(),
        }
    }
}

/// Who is told, once, that the tree is served or why not.
pub enum Readiness {
    /// Nobody.
    Silent,
    /// A function; the text is the reason.
    Call(Box<dyn FnOnce(Result<(), String>) + Send>),
    /// The writing end of a pipe: one line, `served` or `error: ` and the failure as JSON, then it is closed. A reader that finds it closed
    /// without a line knows that the process died.
    Pipe(OwnedFd),
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Silent => "Silent",
            Self::Call(_) => "Call",
            Self::Pipe(_) => "Pipe",
        })
    }
}

impl Readiness {
    pub(super) fn tell(self, result: Result<(), &Failure>) {
        match self {
            Self::Silent => {}
            Self::Call(call) => call(result.map_err(|failure| failure.message.clone())),
            Self::Pipe(pipe) => {
                let line = match result {
                    Ok(()) => "served\n".to_owned(),
                    Err(failure) => format!("error: {}\n", failure.to_json()),
                };
                // Who started us may have gone; that does not end the mount.
                if let Err(error) = File::from(pipe).write_all(line.as_bytes()) {
                    tracing::debug!(%error, "nobody reads the readiness pipe");
                }
            }
        }
    }
}

/// Serves `source` at the mountpoint until it is unmounted by anybody or `stop` returns (see [`stop_signal`]), which
/// unmounts it. Must be called within a runtime of several threads.
pub async fn serve(
    source: Arc<dyn SnapshotSource>,
    options: MountOptions,
    ready: Readiness,
    stop: impl Future<Output = ()>,
) -> Result<(), MountError> {
    let (session, disk) = match begin(source, &options).await {
        Ok(begun) => begun,
        Err(error) => {
            ready.tell(Err(&Failure::from(&error)));
            return Err(error);
        }
    };
    serve_until(&session, &options.mountpoint, ready, stop).await?;
    if let Some(disk) = disk {
        tracing::info!(directory = %disk.directory().display(), counts = ?disk.counts(), "the cache is let go");
    }
    Ok(())
}

/// Says that a mount is served, and waits until it is unmounted by anybody, or `stop` returns, which unmounts it.
pub(super) async fn serve_until(
    session: &Session,
    mountpoint: &Path,
    ready: Readiness,
    stop: impl Future<Output = ()>,
) -> Result<(), MountError> {
    tracing::info!(mountpoint = %mountpoint.display(), "served");
    ready.tell(Ok(()));
    tokio::select! {
        () = session.ended() => {}
        () = stop => {}
    }
    // Also after it ended: threads that died for another reason leave a mount that would hang everybody.
    let entry = session.entry();
    if !session.has_ended() || matches!(entry, Ok(Some(_))) {
        let mountpoint = mountpoint.to_owned();
        let unmounted = tokio::task::spawn_blocking(move || unmount(&mountpoint)).await;
        match unmounted {
            Ok(Ok(_) | Err(MountError::NotMounted { .. })) => {}
            Ok(Err(error)) => return Err(error),
            Err(error) => tracing::warn!(%error, "unmounting broke off"),
        }
        // Who still has files open keeps the kernel's side alive; that is not waited for.
        if tokio::time::timeout(PATIENCE, session.ended()).await.is_err() {
            tracing::info!("the tree is unmounted, though still in use");
        }
    }
    tracing::info!(mountpoint = %mountpoint.display(), "ended");
    Ok(())
}

type Begun = (Session, Option<Arc<DiskCache>>);

async fn begin(source: Arc<dyn SnapshotSource>, options: &MountOptions) -> Result<Begun, MountError> {
    mount_memory::keep_one_heap();
    let runtime = Handle::current();
    let options = options.clone();
    let mountpoint = options.mountpoint.clone();
    let began = tokio::task::spawn_blocking(move || {
        let path = prepare(&options)?;
        let disk = open_cache(&options).map_err(MountError::Cache)?;
        let (cache_bytes, read) = mount_memory::divide(options.cache_bytes, options.deadline);
        let cache = Arc::new(MemoryCache::new(cache_bytes));
        let files = disk.clone().map(|disk| disk as Arc<dyn FileCache>);
        let blocks = BlockReader::new(source, cache, files, read, runtime);
        let passthrough = PassthroughState::default();
        let about = served::about(&options, disk.clone(), passthrough.clone());
        let own_owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let fs = FsOptions {
            owner: options.owner,
            own_owner,
            deadline: options.deadline,
            fresh_for: options.fresh_for,
            about,
            ..FsOptions::default()
        };
        let fs = SnapshotFs::new(blocks, Arc::new(SystemClock::default()), fs);
        if let Some(changes) = options.deadline_changes.clone() {
            tokio::spawn(follow(Arc::downgrade(&fs), changes));
        }
        let session = SessionOptions {
            allow_other: options.allow_other,
            is_read_only: true,
            threads: options.threads,
            passthrough: (options.passthrough && disk.is_some()).then_some(passthrough),
            source_name: options.source_name.clone(),
            kernel_options: options.kernel_options.clone(),
        };
        let system = |what| {
            let mountpoint = options.mountpoint.clone();
            move |source| MountError::System { mountpoint, what, source }
        };
        let session = Session::mount(fs, &path, &session).map_err(system("cannot be mounted on"))?;
        answers(&path).map_err(system("does not answer after mounting"))?;
        Ok((session, disk))
    });
    match began.await {
        Ok(result) => result,
        Err(error) => Err(MountError::System { mountpoint, what: "cannot be mounted on", source: io::Error::other(error) }),
    }
}

/// Served means answered: the first request goes all the way.
pub(super) fn answers(path: &Path) -> io::Result<()> {
    match look(path) {
        Look::Directory => Ok(()),
        Look::Dead(source) | Look::Refused(source) => Err(source),
        Look::Other => Err(io::ErrorKind::NotADirectory.into()),
        Look::Hangs => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Takes over each new deadline, until the tree or who changes it is gone.
async fn follow(fs: Weak<SnapshotFs>, mut changes: watch::Receiver<Duration>) {
    while changes.changed().await.is_ok() {
        let Some(fs) = fs.upgrade() else { return };
        fs.set_deadline(*changes.borrow_and_update());
    }
}

fn open_cache(options: &MountOptions) -> Result<Option<Arc<DiskCache>>, Failure> {
    let Some(cache) = &options.cache else { return Ok(None) };
    check_place(&cache.directory, &options.forbidden)?;
    Ok(Some(Arc::new(DiskCache::open(cache.clone())?)))
}

/// Ends at SIGTERM or SIGINT: the usual `stop` of [`serve`]. The signals are caught from the call on, not only from the
/// first poll, so that one right after the tree is served unmounts it. Must be called within a runtime.
pub fn stop_signal() -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{SignalKind, signal};
    let caught = signal(SignalKind::terminate()).and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    async move {
        match caught {
            Ok((mut terminate, mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "signals cannot be caught, unmount to end");
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Refuses what cannot be mounted on, cleans away what a dead daemon left there, and returns the path without links.
pub(super) fn prepare(options: &MountOptions) -> Result<PathBuf, MountError> {
    let mountpoint = options.mountpoint.clone();
    let path = clean_path(&mountpoint)?;
    let system = |what| {
        let mountpoint = mountpoint.clone();
        move |source| MountError::System { mountpoint, what, source }
    };
    while let Some(entry) = mounted_at(&path).map_err(system("the table of mounts cannot be read"))? {
        // An automounter's own mount is there to be mounted over.
        if entry.kernel_type == "autofs" {
            break;
        }
        let is_dead = entry.is_ours() && matches!(look(&path), Look::Dead(_));
        if !is_dead {
            return Err(MountError::AlreadyMounted { mountpoint, kernel_type: entry.kernel_type });
        }
        tracing::warn!(mountpoint = %path.display(), "the daemon that served it is dead, its mount is taken away");
        take_off(&path, true).map_err(system("the mount of a dead daemon cannot be taken away"))?;
    }
    let metadata = std::fs::symlink_metadata(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoDirectory { mountpoint: mountpoint.clone() },
        _ => system("cannot be looked at")(error),
    })?;
    if !metadata.is_dir() {
        return Err(MountError::NotADirectory { mountpoint });
    }
    for directory in options.forbidden.iter().chain(options.cache.iter().map(|cache| &cache.directory)) {
        if overlap(&path, directory) {
            return Err(MountError::FeedsOnItself { mountpoint, directory: directory.clone() });
        }
    }
    if std::fs::read_dir(&path).map_err(system("cannot be listed"))?.next().is_some() {
        return Err(MountError::NotEmpty { mountpoint });
    }
    check_device()?;
    Ok(path)
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmounted {
    /// Somebody was still using it or it was stuck: it was taken out of the tree at once, and what was open in it fails.
    pub was_forced: bool,
}

/// Takes our mount away from `mountpoint`, within 5 s whatever is stuck in it and whoever uses it. What is mounted there by
/// others is left alone.
pub fn unmount(mountpoint: &Path) -> Result<Unmounted, MountError> {
    let path = clean_path(mountpoint)?;
    let system = |what| move |source| MountError::System { mountpoint: mountpoint.to_owned(), what, source };
    let read = || mounted_at(&path).map_err(system("the table of mounts cannot be read"));
    let entry = read()?.ok_or_else(|| MountError::NotMounted { mountpoint: mountpoint.to_owned() })?;
    if !entry.is_ours() {
        return Err(MountError::NotOurs { mountpoint: mountpoint.to_owned(), kernel_type: entry.kernel_type });
    }
    let is_gone = || -> Result<bool, MountError> { Ok(read()?.is_none_or(|now| now.device != entry.device)) };
    let patient_until = Instant::now() + BUSY_PATIENCE;
    loop {
        let target = path.clone();
        match within(BUSY_PATIENCE, move || take_off(&target, false)) {
            Some(Ok(())) => return Ok(Unmounted { was_forced: false }),
            // Somebody else was quicker.
            Some(Err(_)) if is_gone()? => return Ok(Unmounted { was_forced: false }),
            Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < patient_until => {
                std::thread::sleep(POLL);
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(system("may not be unmounted")(error));
            }
            Some(Err(_)) | None => break,
        }
    }
    force(&path, &entry).map_err(system("cannot be unmounted"))?;
    let until = Instant::now() + PATIENCE;
    while !is_gone()? {
        if Instant::now() >= until {
            return Err(system("cannot be unmounted")(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(POLL);
    }
    Ok(Unmounted { was_forced: true })
}

/// Out of the tree first, so that nobody new comes in; then every request in it ends.
fn force(path: &Path, entry: &MountEntry) -> io::Result<()> {
    let target = path.to_owned();
    let taken = within(PATIENCE, move || take_off(&target, true)).unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    let aborted = entry.abort();
    if let Err(error) = &aborted {
        // Gone by itself, or not ours to abort: then whoever is stuck leaves at the daemon's deadline.
        tracing::debug!(%error, "the kernel's connection was not cut");
    }
    taken
}
