//! What a directory store asks of a file system, and the real one.
//!
//! The seam is there for one question: what is left after the power failed between any two of these steps? The test double
//! (`power_cut`) answers it; the real one follows no symbolic link below the root, whoever put it there.
//!
//! Paths are relative to the root, in the form of keys; the empty one is the root itself.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, fsync, linkat, mkdirat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::base::buffers::{Loan, fill_from};
use crate::base::direct;
use crate::base::file_lock::{Hold, lock_file};

/// What is known of an entry without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A plain file.
    File,
    /// A directory.
    Folder,
    /// A link, a socket, anything that is none of ours.
    Other,
}

/// What stat says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStatus {
    pub kind: EntryKind,
    pub size_bytes: u64,
    pub modified_ns: i128,
    pub inode: u64,
}

/// A file being written.
pub(super) trait NewFile {
    /// Appends all of `body`.
    fn write(&mut self, body: &[u8]) -> io::Result<()>;
    /// Content and length survive a power cut once this returned; the name does only after the folder's own sync.
    fn sync(&mut self) -> io::Result<FileStatus>;
}

/// Calls `found` with the name and kind of every entry, until it breaks. Names that are not UTF-8 are left out.
pub(super) type Visitor<'a> = &'a mut dyn FnMut(&str, EntryKind) -> ControlFlow<()>;

/// Held until it is dropped.
pub(super) trait Lock {}

/// The steps that a directory store is made of. Errors are those of the system calls.
pub(super) trait Disk: Send + Sync + Debug {
    /// Whether the root is there and a directory.
    fn has_root(&self) -> bool;
    /// A new empty file; `AlreadyExists` when the name is taken.
    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile>>;
    /// `AlreadyExists` when the name is taken.
    fn make_folder(&self, path: &str) -> io::Result<()>;
    /// The folder's entries survive a power cut once this returned.
    fn sync_folder(&self, path: &str) -> io::Result<()>;
    /// Moves a file over whatever file is there, in one step.
    fn replace(&self, from: &str, to: &str) -> io::Result<()>;
    /// Moves a file to a free name, in one step; `AlreadyExists` when it is taken.
    fn move_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The file, or exactly `range` of it; `UnexpectedEof` when it ends before the range does.
    fn read(&self, path: &str, range: Option<Range<u64>>) -> io::Result<Bytes>;
    /// Of the entry itself, not of what it may link to.
    fn status(&self, path: &str) -> io::Result<FileStatus>;
    /// In no particular order.
    fn visit(&self, path: &str, found: Visitor<'_>) -> io::Result<()>;
    /// An advisory lock on the file `path`, which is made if need be; `TimedOut` when it is not free in `patience`.
    fn lock(&self, path: &str, is_exclusive: bool, patience: Duration) -> io::Result<Box<dyn Lock>>;
}

/// A directory of the host.
#[derive(Debug)]
pub(super) struct HostDisk {
    root: PathBuf,
}

struct HostFile(File);

struct HostLock {
    _file: OwnedFd,
}

impl Lock for HostLock {}

impl HostDisk {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn open_root(&self) -> io::Result<OwnedFd> {
        // The root itself may be reached by links: it is where the operator said.
        Ok(openat(CWD, &self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Opens a folder step by step, each without following a link: confined wherever openat2 is missing or forbidden too.
    fn open_folder(&self, path: &str) -> io::Result<OwnedFd> {
        let mut folder = self.open_root()?;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            folder = openat(&folder, component, flags, Mode::empty())?;
        }
        Ok(folder)
    }

    fn open_parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.open_folder(folder)?, name))
    }

    /// A folder as a descriptor that can be read and synced (a `PATH` one cannot).
    fn open_readable(&self, path: &str) -> io::Result<OwnedFd> {
        let folder = self.open_folder(path)?;
        Ok(openat(&folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl NewFile for HostFile {
    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        direct::append(&mut self.0, body)
    }

    fn sync(&mut self) -> io::Result<FileStatus> {
        // The kernel stamps files by its tick of some milliseconds; versions need every write to be another instant.
        self.0.set_modified(SystemTime::now())?;
        self.0.sync_all()?;
        Ok(status_of(&rustix::fs::fstat(&self.0)?))
    }
}

impl Disk for HostDisk {
    fn has_root(&self) -> bool {
        // What may not be looked at is there as far as anybody can tell.
        !matches!(self.open_root(), Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile>> {
        let (folder, name) = self.open_parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The mode is the process's umask's business, as with any file of the operator's.
        let file = openat(&folder, name, flags, Mode::from_raw_mode(0o666))?;
        Ok(Box::new(HostFile(File::from(file))))
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        let (folder, name) = self.open_parent(path)?;
        Ok(mkdirat(&folder, name, Mode::from_raw_mode(0o777))?)
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        match fsync(self.open_readable(path)?) {
            // Some network and FUSE file systems cannot sync a directory: their renames are as durable as they get.
            Ok(()) | Err(Errno::INVAL | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_folder, from_name) = self.open_parent(from)?;
        let (to_folder, to_name) = self.open_parent(to)?;
        Ok(renameat(&from_folder, from_name, &to_folder, to_name)?)
    }

    fn move_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_folder, from_name) = self.open_parent(from)?;
        let (to_folder, to_name) = self.open_parent(to)?;
        match renameat_with(&from_folder, from_name, &to_folder, to_name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Not every file system knows the flag (NFS does not): a hard link is as exclusive.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(&from_folder, from_name, &to_folder, to_name, AtFlags::empty())?;
                // The object is in place; a name that stays behind is swept one day.
                let _ = unlinkat(&from_folder, from_name, AtFlags::empty());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (folder, name) = self.open_parent(path)?;
        Ok(unlinkat(&folder, name, AtFlags::empty())?)
    }

    fn read(&self, path: &str, range: Option<Range<u64>>) -> io::Result<Bytes> {
        let (folder, name) = self.open_parent(path)?;
        // NONBLOCK: opening a FIFO that somebody put there must not wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&folder, name, flags, Mode::empty())?;
        let status = status_of(&rustix::fs::fstat(&file)?);
        if status.kind != EntryKind::File {
            return Err(Errno::ISDIR.into());
        }
        let range = range.unwrap_or(0..status.size_bytes);
        // Checked before anything is allocated: a range may have come from a damaged manifest.
        if range.end > status.size_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read_exactly(&file, range)
    }

    fn status(&self, path: &str) -> io::Result<FileStatus> {
        let (folder, name) = self.open_parent(path)?;
        Ok(status_of(&statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn visit(&self, path: &str, found: Visitor<'_>) -> io::Result<()> {
        let folder = self.open_readable(path)?;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(status) => status_of(&status).kind,
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
                file_type => kind_of(file_type),
            };
            if found(name, kind).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self, path: &str, is_exclusive: bool, patience: Duration) -> io::Result<Box<dyn Lock>> {
        let (folder, name) = self.open_parent(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, name, flags, Mode::from_raw_mode(0o666))?;
        let hold = if is_exclusive { Hold::Alone } else { Hold::Shared };
        if lock_file(&file, hold, patience)? {
            Ok(Box::new(HostLock { _file: file }))
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

fn read_exactly(file: &OwnedFd, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let mut bytes = Loan::new(length);
    fill_from(file, bytes.as_mut(), range.start)?;
    Ok(bytes.freeze())
}

fn status_of(status: &rustix::fs::Stat) -> FileStatus {
    FileStatus {
        kind: kind_of(FileType::from_raw_mode(status.st_mode)),
        size_bytes: u64::try_from(status.st_size).unwrap_or(0),
        modified_ns: i128::from(status.st_mtime) * 1_000_000_000 + i128::from(status.st_mtime_nsec),
        inode: status.st_ino,
    }
}

fn kind_of(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Folder,
        _ => EntryKind::Other,
    }
}

/// Makes the root and the folders above it, each durable, for its owner alone where it is new.
pub(super) fn create_root(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if root.as_os_str().as_bytes().is_empty() || root.is_dir() {
        return Ok(());
    }
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_root(parent)?;
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !root.is_dir() => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}
