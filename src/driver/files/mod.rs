//! `store = "files"`: a plain directory on this host as a node.
//!
//! How it works: `prepare` walks the tree once and opens everything, so that what would be refused is refused before
//! anything is frozen. `capture` walks again, opens every regular file and records its length and fingerprint: from then
//! on renames and unlinks do not matter. Nothing stops the writers, so every file shows its own instant, and the proof says
//! `open_files` and no more. Files that are rewritten in place are cloned (`FICLONE`) where the staging directory shares a
//! file system that can; elsewhere whoever stores them asks [`is_still`] after reading.
//!
//! **Invariants**
//! - No symbolic link below the directory is followed, also where one is put in another's place meanwhile.
//! - Nothing but regular files is opened for reading: a FIFO, socket or device is refused by its kind alone.
//! - Clones have no name, so none outlives the process.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::{CaptureReceipt, CapturedContent, CapturedEntry, DriverError, FreezeReceipt, StoreDriver, ThawReceipt};
use crate::base::Clock;
use crate::base::process::host_name;
use crate::driver::beneath::foreign;
use crate::driver::served::{ServedFile, ServedNode};
use crate::model::extent::{RANDOM_BLOCK_BYTES, SEQUENTIAL_BLOCK_BYTES};
use crate::model::manifest::{CaptureProof, Consistency, FileClass, FileKind, Fingerprint, NodeDescription};
use crate::model::names::TreePath;
use crate::model::restore_facts::HYDRATING;
use owners::Owners;

mod owners;

/// Descriptors left to the rest of the process: sockets, packs, the runtime.
const DESCRIPTORS_RESERVED: u64 = 256;

/// Up to here a rewritten file has blocks of 64 KiB, so that a changed spot costs 64 KiB instead of a megabyte: 64 segments
/// at most, 4 KB in the table page that it shares with its neighbours. Larger files would pay for small blocks with their
/// tables (32,768 segments, 2 MB, for 2 GiB) and with throughput.
const SMALL_BLOCKS_MAX_BYTES: u64 = 64 * RANDOM_BLOCK_BYTES as u64;

/// The slowest kernel tick (`CONFIG_HZ=100`): a write within the tick of an earlier one does not move the mtime.
const KERNEL_TICK: Duration = Duration::from_millis(10);

/// Names that change between being listed and being opened are looked for once more, all over again.
const WALKS: u32 = 2;

/// What a plain directory is captured with.
#[derive(Debug, Clone)]
pub struct FilesOptions {
    /// The node's name.
    pub node: String,
    /// The directory; when it is itself a symbolic link, what it points to at each walk.
    pub directory: PathBuf,
    /// A directory on the same file system that rewritten files are cloned into; `None`: they are read as they are.
    pub staging: Option<PathBuf>,
    /// Classes by the ending of a file's name, the first that fits; all others are [`FileClass::Rewritten`], which is
    /// always right.
    pub classes: Vec<(String, FileClass)>,
    /// What restores by links are served from on this host: links there are files, and not links, of the node.
    pub served: Vec<ServedNode>,
}

/// A plain directory as a node.
#[derive(Debug)]
pub struct FilesDriver {
    options: FilesOptions,
    clock: Arc<dyn Clock>,
    captured: Option<Vec<CapturedEntry>>,
}

impl FilesDriver {
    /// A driver for the directory; nothing is touched yet.
    pub fn new(options: FilesOptions, clock: Arc<dyn Clock>) -> Self {
        Self { options, clock, captured: None }
    }
}

/// Walks the tree where it may block.
async fn walk(options: FilesOptions, clock: Arc<dyn Clock>) -> Result<Vec<CapturedEntry>, DriverError> {
    let node = options.node.clone();
    let walk = move || walk_again(&options, clock.as_ref(), raise_open_files(), &mut |_| {});
    let task = tokio::task::spawn_blocking(walk).await;
    task.unwrap_or_else(|ended| Err(broken(&node, &ended.to_string())))
}

#[async_trait]
impl StoreDriver for FilesDriver {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        let directory = resolve(&self.options)?;
        let host = host_name();
        let address = directory.to_string_lossy().into_owned();
        let identity = vec![format!("{host}:{address}")];
        Ok(NodeDescription { store: "files".to_owned(), address, identity, ..NodeDescription::default() })
    }

    async fn prepare(&mut self, _max_pause: Duration, _patience: Duration) -> Result<(), DriverError> {
        let options = FilesOptions { staging: None, ..self.options.clone() };
        walk(options, self.clock.clone()).await.map(drop)
    }

    /// There is nobody to ask: a plain directory is not frozen.
    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        Ok(FreezeReceipt { deadline: pause, node_time_us: Some(self.clock.wall_us()) })
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        let mut entries = walk(self.options.clone(), self.clock.clone()).await?;
        // A write in the tick of the last one would not show: such files are measured again once their tick is over.
        if entries.iter().any(is_fresh) {
            self.clock.sleep(2 * KERNEL_TICK).await;
            for entry in entries.iter_mut().filter(|entry| is_fresh(entry)) {
                measure_again(entry, self.clock.as_ref())
                    .map_err(|error| broken(&self.options.node, &format!("{}: {error}", entry.path)))?;
            }
        }
        self.captured = Some(entries);
        Ok(CaptureReceipt::default())
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        let checks = vec!["every file was opened and measured, each at its own instant".to_owned()];
        Ok(ThawReceipt {
            proof: CaptureProof {
                consistent: Consistency::No,
                kind: "open_files".to_owned(),
                checks,
                fork_us: None,
                scope: None,
            },
        })
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        self.captured.take().ok_or_else(|| broken(&self.options.node, "nothing was captured"))
    }

    async fn abandon(&mut self) {
        self.captured = None;
    }
}

/// Whether the bytes of a captured file are still those of the capture: to be asked *after* they were read, and on
/// `false` what was read is worth nothing. For class `Rewritten` only; of an append-only file what was measured stays.
///
/// A file that is not the fingerprint's own inode is the private clone made of it at the capture, which nobody changes. A
/// file that was written within a tick of its capture is never believed.
pub fn is_still(fingerprint: &Fingerprint, size_bytes: u64, file: &File) -> io::Result<bool> {
    let now = file.metadata()?;
    if (now.dev(), now.ino()) != (fingerprint.device, fingerprint.inode) {
        return Ok(true);
    }
    Ok(now.len() == size_bytes && modified_ns(&now) == fingerprint.modified_ns && !is_within_tick(fingerprint))
}

fn is_within_tick(fingerprint: &Fingerprint) -> bool {
    let age = fingerprint.captured_ns.saturating_sub(fingerprint.modified_ns);
    (0..=i64::try_from(KERNEL_TICK.as_nanos()).unwrap_or(i64::MAX)).contains(&age)
}

fn is_fresh(entry: &CapturedEntry) -> bool {
    matches!(&entry.content, CapturedContent::File { fingerprint: Some(print), .. } if is_within_tick(print))
}

fn measure_again(entry: &mut CapturedEntry, clock: &dyn Clock) -> io::Result<()> {
    if let CapturedContent::File { file, length_bytes, fingerprint: Some(print) } = &mut entry.content {
        let now = file.metadata()?;
        // A clone is not the file any more, and needs no second look.
        if (now.dev(), now.ino()) == (print.device, print.inode) {
            *length_bytes = now.len();
            *print = fingerprint_of(&now, clock);
            entry.modified_ns = print.modified_ns;
            entry.block_bytes = block_bytes(entry.class, now.len());
        }
    }
    Ok(())
}

fn block_bytes(class: FileClass, size_bytes: u64) -> u32 {
    if class == FileClass::Rewritten && size_bytes <= SMALL_BLOCKS_MAX_BYTES {
        RANDOM_BLOCK_BYTES
    } else {
        SEQUENTIAL_BLOCK_BYTES
    }
}

fn modified_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

fn fingerprint_of(meta: &Metadata, clock: &dyn Clock) -> Fingerprint {
    let captured_ns = clock.wall_us().saturating_mul(1000);
    Fingerprint { device: meta.dev(), inode: meta.ino(), modified_ns: modified_ns(meta), captured_ns }
}

fn broken(node: &str, reason: &str) -> DriverError {
    DriverError::Broken { node: node.to_owned(), reason: reason.to_owned() }
}

fn refused(node: &str, reason: String) -> DriverError {
    DriverError::Refused { node: node.to_owned(), reason }
}

/// The directory itself, symbolic links to it resolved.
fn resolve(options: &FilesOptions) -> Result<PathBuf, DriverError> {
    let shown = options.directory.display();
    let fault = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            DriverError::Denied { node: options.node.clone(), reason: format!("{shown}: {error}") }
        }
        _ => refused(&options.node, format!("{shown}: {error}")),
    };
    let directory = std::fs::canonicalize(&options.directory).map_err(fault)?;
    let meta = std::fs::metadata(&directory).map_err(fault)?;
    if !meta.is_dir() {
        return Err(refused(&options.node, format!("{shown}: is {}, not a directory", kind_of(&meta))));
    }
    Ok(directory)
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () if kind.is_file() => "a file",
        () => "of an unknown kind",
    }
}

/// Raises the soft limit of open files to the hard one, and says how many a walk may hold open. Twice is fine.
fn raise_open_files() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused in some sandboxes: then the soft limit holds, and the count below says so.
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let now = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    now.saturating_sub(DESCRIPTORS_RESERVED).max(1)
}

/// Why a walk stopped.
enum Stop {
    /// A name was not there any more, or was something else, when it was opened.
    Changed(TreePath),
    Fault(DriverError),
}

fn walk_again(
    options: &FilesOptions,
    clock: &dyn Clock,
    open_files_max: u64,
    after_listing: &mut dyn FnMut(&TreePath),
) -> Result<Vec<CapturedEntry>, DriverError> {
    let mut changed = TreePath::root();
    for _ in 0..WALKS {
        let root = resolve(options)?;
        let mut walk = Walk {
            options,
            clock,
            open_files_max,
            after_listing: &mut *after_listing,
            staging: None,
            user: 0,
            open_files: 0,
            owners: Owners::default(),
            entries: Vec::new(),
        };
        match walk.run(&root) {
            Ok(()) => return Ok(walk.entries),
            Err(Stop::Fault(error)) => return Err(error),
            Err(Stop::Changed(path)) => changed = path,
        }
    }
    Err(refused(&options.node, format!("{changed}: vanished or became something else while the directory was captured, twice")))
}

struct Walk<'a> {
    options: &'a FilesOptions,
    clock: &'a dyn Clock,
    open_files_max: u64,
    after_listing: &'a mut dyn FnMut(&TreePath),
    /// Where clones are made; given up at the first file that shows that it cannot be.
    staging: Option<OwnedFd>,
    /// Whose the root directory is.
    user: u32,
    open_files: u64,
    owners: Owners,
    entries: Vec<CapturedEntry>,
}

/// A directory whose names are being gone through: one open descriptor per level of the tree.
struct Level {
    path: TreePath,
    directory: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
}

impl Walk<'_> {
    fn run(&mut self, root: &Path) -> Result<(), Stop> {
        let directory_flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        if let Some(staging) = &self.options.staging {
            let opened = rustix::fs::open(staging, directory_flags, Mode::empty());
            let fault = |error: Errno| refused(&self.options.node, format!("staging directory {}: {error}", staging.display()));
            self.staging = Some(opened.map_err(|error| Stop::Fault(fault(error)))?);
        }
        let top = TreePath::root();
        // What `resolve` returned holds no link, unless somebody changed that meanwhile.
        let root =
            rustix::fs::open(root, directory_flags | OFlags::NOFOLLOW, Mode::empty()).map_err(|error| self.stop(&top, error))?;
        let meta = File::from(root.try_clone().map_err(|error| self.stop(&top, error))?).metadata();
        let meta = meta.map_err(|error| self.stop(&top, error))?;
        self.user = meta.uid();
        let mut levels = vec![self.directory(top, root, &meta)?];
        while let Some(level) = levels.last_mut() {
            match level.names.next() {
                Some(name) => {
                    let below = self.entry(&level.path, name, level.directory.as_fd())?;
                    levels.extend(below);
                }
                None => drop(levels.pop()),
            }
        }
        Ok(())
    }

    /// Lists a directory and takes down its entry.
    fn directory(&mut self, path: TreePath, directory: OwnedFd, meta: &Metadata) -> Result<Level, Stop> {
        let names = names(&directory).map_err(|error| self.stop(&path, error))?.into_iter();
        (self.after_listing)(&path);
        self.push(path.clone(), FileKind::Directory, meta, CapturedContent::Nothing);
        Ok(Level { path, directory, names })
    }

    /// One name: what it is shows before it is opened, and opening it again must lead to the same inode.
    /// For a directory, the level to go down to.
    fn entry(&mut self, above: &TreePath, name: Vec<u8>, parent: BorrowedFd<'_>) -> Result<Option<Level>, Stop> {
        let path = above.join(&name).map_err(|error| Stop::Fault(refused(&self.options.node, error.to_string())))?;
        if name.first() == Some(&b'.') && name.ends_with(HYDRATING.as_bytes()) {
            // On its way into a link's place, which is stored as the file that it is.
            return Ok(None);
        }
        let name = OsString::from_vec(name);
        let seen = rustix::fs::openat(parent, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let seen = File::from(seen.map_err(|error| self.stop(&path, error))?);
        let meta = seen.metadata().map_err(|error| self.stop(&path, error))?;
        if meta.is_symlink() {
            let target = rustix::fs::readlinkat(&seen, "", Vec::new()).map_err(|error| self.stop(&path, error))?;
            return self.link(path, target.into_bytes(), &meta).map(|()| None);
        }
        if meta.is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&seen, ".", flags, Mode::empty()).map_err(|error| self.stop(&path, error))?;
            return self.directory(path, opened, &meta).map(Some);
        }
        if !meta.is_file() {
            let reason = format!("{path}: is {}, which cannot be stored: take it out of the directory", kind_of(&meta));
            return Err(Stop::Fault(refused(&self.options.node, reason)));
        }
        if self.open_files >= self.open_files_max {
            return Err(Stop::Fault(self.too_many()));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, &name, flags, Mode::empty()).map_err(|error| self.stop(&path, error))?;
        let file = File::from(file);
        let opened = file.metadata().map_err(|error| self.stop(&path, error))?;
        if (opened.dev(), opened.ino()) != (meta.dev(), meta.ino()) {
            return Err(Stop::Changed(path));
        }
        if let Some(reason) = foreign(&opened, self.user) {
            return Err(Stop::Fault(refused(&self.options.node, format!("{path}: {reason}"))));
        }
        self.open_files += 1;
        self.file(path, file, &opened)?;
        Ok(None)
    }

    /// What a restore by links has left as a link is the file that it leads to.
    fn link(&mut self, path: TreePath, target: Vec<u8>, meta: &Metadata) -> Result<(), Stop> {
        let Some(found) = ServedFile::of_link(&self.options.served, Path::new(OsStr::from_bytes(&target))) else {
            self.push(path, FileKind::Link, meta, CapturedContent::LinkTarget(target));
            return Ok(());
        };
        let fault = |error: std::io::Error| Stop::Fault(refused(&self.options.node, format!("{path}: {error}")));
        let found = found.map_err(fault)?;
        if let Some(stored) = found.stored() {
            self.push(path, FileKind::File, meta, CapturedContent::Stored(stored));
            return Ok(());
        }
        if self.open_files >= self.open_files_max {
            return Err(Stop::Fault(self.too_many()));
        }
        let file = found.open().map_err(fault)?;
        let opened = file.metadata().map_err(|error| self.stop(&path, error))?;
        let content = CapturedContent::File { file, length_bytes: opened.len(), fingerprint: None };
        self.open_files += 1;
        self.push(path, FileKind::File, &opened, content);
        Ok(())
    }

    fn file(&mut self, path: TreePath, file: File, meta: &Metadata) -> Result<(), Stop> {
        let fingerprint = Some(fingerprint_of(meta, self.clock));
        let content = match self.clone_of(&path, &file)? {
            // The fingerprint is older than the clone: what came between is stored, and read again next time.
            Some((clone, length_bytes)) => CapturedContent::File { file: clone, length_bytes, fingerprint },
            None => CapturedContent::File { file, length_bytes: meta.len(), fingerprint },
        };
        self.push(path, FileKind::File, meta, content);
        Ok(())
    }

    /// A nameless clone of a rewritten file and its length; `None` where that is not asked for or cannot be.
    fn clone_of(&mut self, path: &TreePath, file: &File) -> Result<Option<(File, u64)>, Stop> {
        let Some(staging) = self.staging.as_ref().filter(|_| self.class(path) == FileClass::Rewritten) else { return Ok(None) };
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let cloned = rustix::fs::openat(staging, ".", flags, Mode::RUSR | Mode::WUSR)
            .and_then(|clone| rustix::fs::ioctl_ficlone(&clone, file).map(|()| File::from(clone)));
        match cloned {
            Ok(clone) => {
                let length = clone.metadata().map_err(|error| self.stop(path, error))?.len();
                Ok(Some((clone, length)))
            }
            Err(error) if matches!(error, Errno::MFILE | Errno::NFILE) => Err(self.stop(path, error)),
            Err(error) => {
                tracing::debug!(node = %self.options.node, %error, "no clones in the staging directory: files are read as they are");
                self.staging = None;
                Ok(None)
            }
        }
    }

    fn class(&self, path: &TreePath) -> FileClass {
        let name = path.file_name();
        let fits = self.options.classes.iter().find(|(ending, _)| name.ends_with(ending.as_bytes()));
        fits.map_or(FileClass::Rewritten, |(_, class)| *class)
    }

    fn push(&mut self, path: TreePath, kind: FileKind, meta: &Metadata, content: CapturedContent) {
        let class = if kind == FileKind::File { self.class(&path) } else { FileClass::Rewritten };
        let size_bytes = if let CapturedContent::File { length_bytes, .. } = &content { *length_bytes } else { 0 };
        let (mode, modified_ns, owner) = (meta.mode() & 0o7777, modified_ns(meta), self.owners.of(meta));
        let block_bytes = block_bytes(class, size_bytes);
        self.entries.push(CapturedEntry { path, kind, class, mode, owner, modified_ns, block_bytes, content });
    }

    fn too_many(&self) -> DriverError {
        let reason = format!(
            "{} holds more than the {} files that may be open at once: raise the hard limit of open files (`ulimit -Hn`)",
            self.options.directory.display(),
            self.open_files_max
        );
        refused(&self.options.node, reason)
    }

    fn stop(&self, path: &TreePath, error: impl Into<io::Error>) -> Stop {
        let error = error.into();
        let node = self.options.node.clone();
        let shown = if path.is_root() { self.options.directory.display().to_string() } else { path.to_string() };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::STALE) => Stop::Changed(path.clone()),
            Some(Errno::ACCESS | Errno::PERM) => {
                let reason = format!("{shown}: {error}: run as its owner, or let this user read it");
                Stop::Fault(DriverError::Denied { node, reason })
            }
            Some(Errno::MFILE | Errno::NFILE) => Stop::Fault(self.too_many()),
            _ => Stop::Fault(broken(&node, &format!("{shown}: {error}"))),
        }
    }
}

/// The names in a directory in the order of their bytes, without `.` and `..`.
fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests;
