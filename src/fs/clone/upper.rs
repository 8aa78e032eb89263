//! The upper layer on the local disk: two directories, and the marks of what is still the base's.
//!
//! ```text
//! <upper>/          0700, so that nobody reaches around the file system
//!   tree/           the clone as far as it is opened
//!   pages/          which pages layered files have; one map each, named after the path in the base
//! ```
//!
//! Every path below `tree/` is resolved beneath it, through no link and into no other mount.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::Result;
use super::storage::Storage;
use crate::base::Accounts;
use crate::fs::Owner;
use crate::model::manifest::{FileKind, TreeEntry};
use crate::model::names::TreePath;

/// The mark: for a file the length of its base and its path there (`4096 data/000012.sst`), for a directory its path alone.
pub(super) const BASE: &str = "user.tintype.base";
/// Attributes of ours, which nobody sees or sets through the clone.
pub(super) const OWN_ATTRIBUTES: &[u8] = b"user.tintype.";
/// File systems that make the changes of names durable in their order, by number: ext4, XFS, tmpfs.
const ORDERED: [rustix::fs::FsWord; 3] = [0xef53, 0x5846_5342, 0x0102_1994];
/// Longest value of an attribute that file systems keep.
const MARK_BYTES_MAX: usize = 64 * 1024;

/// What of an owner is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owners {
    /// Everything belongs to who serves the clone, since he may give nothing away.
    Ourselves,
    /// As captured, by name where this host has it.
    Captured(Accounts),
    /// Everything to this one, at first.
    Fixed(Owner),
}

impl Owners {
    fn here(owner: Option<Owner>) -> Self {
        match owner {
            _ if !rustix::process::geteuid().is_root() => Self::Ourselves,
            Some(owner) => Self::Fixed(owner),
            None => Self::Captured(Accounts::of_host()),
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Upper {
    tree: OwnedFd,
    pages: OwnedFd,
    owners: Owners,
}

/// What a layered file stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMark {
    pub(super) base_bytes: u64,
    pub(super) path: TreePath,
}

impl FileMark {
    fn to_bytes(&self) -> Vec<u8> {
        [self.base_bytes.to_string().as_bytes(), b" ", self.path.as_bytes()].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.iter().position(|byte| *byte == b' ')?;
        let base_bytes = std::str::from_utf8(&bytes[..at]).ok()?.parse().ok()?;
        Some(Self { base_bytes, path: TreePath::new(&bytes[at + 1..]).ok()? })
    }

    /// Name of its map. A base file becomes a file of the clone only once, so nothing else ever has this name.
    fn map_name(&self) -> String {
        blake3::hash(self.path.as_bytes()).to_hex()[..32].to_owned()
    }
}

/// Somebody else's directory is one that somebody else may enter again: `EPERM`.
fn check_own(directory: &OwnedFd) -> Result<()> {
    let owner = rustix::fs::fstat(directory)?.st_uid;
    if owner == rustix::process::geteuid().as_raw() { Ok(()) } else { Err(Errno::PERM) }
}

/// Opens a directory of the local disk and makes it, for us alone, if it is not there.
fn private_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::openat(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

impl Upper {
    /// Makes the layer of a new clone of a node with this `root`, in a directory that is empty or is made. Fails with
    /// `EOPNOTSUPP` where the file system has no extended attributes. `owner` is given everything that comes from the base,
    /// where we may.
    pub fn create(directory: &Path, owner: Option<Owner>, root: &TreeEntry) -> Result<()> {
        let top = private_directory(CWD, directory.as_os_str())?;
        check_own(&top)?;
        // Also one that was there: whoever may enter it reaches around everything that the mount forbids.
        rustix::fs::fchmod(&top, Mode::RWXU)?;
        let pages = private_directory(top.as_fd(), OsStr::new("pages"))?;
        // Under another name until it is marked: a tree without a mark would be an empty clone.
        let tree = private_directory(top.as_fd(), OsStr::new("new"))?;
        mark_directory(tree.as_fd(), &TreePath::root())?;
        let upper = Self { tree, pages, owners: Owners::here(owner) };
        upper.give(upper.root(), root)?;
        rustix::fs::fchmod(&upper.tree, upper.mode(root))?;
        rustix::fs::futimens(&upper.tree, &times(root.modified_ns))?;
        rustix::fs::fsync(&upper.tree)?;
        rustix::fs::renameat(&top, "new", &top, "tree")?;
        rustix::fs::fsync(&top)
    }

    /// Opens the layer in `directory`. `ENOENT` where none was made: what was written is elsewhere, or not mounted yet.
    pub fn open(directory: &Path, owner: Option<Owner>) -> Result<Self> {
        let open = |parent: BorrowedFd<'_>, name: &OsStr| {
            rustix::fs::openat(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        };
        let top = open(CWD, directory.as_os_str())?;
        check_own(&top)?;
        let (tree, pages) = (open(top.as_fd(), OsStr::new("tree"))?, open(top.as_fd(), OsStr::new("pages"))?);
        Ok(Self { tree, pages, owners: Owners::here(owner) })
    }

    /// The clone's own root.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// What is at `path`, from the root, held without looking into it; a link is held itself.
    pub(super) fn hold(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.tree, path, flags, Mode::empty(), beneath) {
                // A rename elsewhere on the file system makes the kernel unsure; it asks to be asked again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The map of a layered file, if there is one.
    pub(super) fn map(&self, mark: &FileMark) -> Result<Option<Arc<dyn Storage>>> {
        match rustix::fs::openat(&self.pages, mark.map_name(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(Arc::new(std::fs::File::from(file)))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What makes that map when there is something to keep in it.
    pub(super) fn map_maker(&self, mark: &FileMark) -> Result<super::layered::OpenMap> {
        let (pages, name) = (self.pages.try_clone().map_err(|error| super::storage::number(&error))?, mark.map_name());
        Ok(Box::new(move || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&pages, &name, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::fsync(&pages)?;
            Ok(Arc::new(std::fs::File::from(file)))
        }))
    }

    /// The file is the clone's own from now on: `file` has all of it, durably.
    pub(super) fn let_go_of_base(&self, file: BorrowedFd<'_>, mark: &FileMark) -> Result<()> {
        match rustix::fs::fremovexattr(file, BASE) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
        // A map that went before its mark would turn the file back into the base's.
        rustix::fs::fsync(file)?;
        self.forget_map(mark)
    }

    /// Deletes the map of a file that is gone, or has become the clone's own.
    pub(super) fn forget_map(&self, mark: &FileMark) -> Result<()> {
        match rustix::fs::unlinkat(&self.pages, mark.map_name(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Makes the entries of an unopened directory and takes its mark away. Whatever an earlier attempt left is replaced.
    pub(super) fn fill(&self, directory: BorrowedFd<'_>, entries: &[TreeEntry]) -> Result<()> {
        // Somebody may have touched it since it was made.
        let before = rustix::fs::fstat(directory)?;
        self.clear(directory)?;
        for entry in entries {
            self.make(directory, entry)?;
        }
        let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec.cast_signed() };
        let last_access = time(before.st_atime, before.st_atime_nsec);
        let last_modification = time(before.st_mtime, before.st_mtime_nsec);
        rustix::fs::futimens(directory, &Timestamps { last_access, last_modification })?;
        if ORDERED.contains(&rustix::fs::fstatfs(directory)?.f_type) {
            // Whatever was made before this is durable with it.
            rustix::fs::fsync(directory)?;
        } else {
            rustix::fs::syncfs(directory)?;
        }
        rustix::fs::fremovexattr(directory, BASE)?;
        // A mark that came back would have the directory made anew, over what was written since.
        rustix::fs::fsync(directory)
    }

    fn clear(&self, directory: BorrowedFd<'_>) -> Result<()> {
        for (name, _, kind) in list(directory)? {
            let name = OsStr::from_bytes(&name);
            if kind == FileType::Directory {
                // One below is unopened, and so empty, for as long as this is.
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            } else {
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn make(&self, directory: BorrowedFd<'_>, entry: &TreeEntry) -> Result<()> {
        let name = OsStr::from_bytes(entry.path.file_name());
        match entry.kind {
            FileKind::Directory => {
                let made = {
                    rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
                    rustix::fs::openat(directory, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
                };
                mark_directory(made.as_fd(), &entry.path)?;
                self.give(made.as_fd(), entry)?;
                rustix::fs::fchmod(&made, self.mode(entry))?;
                rustix::fs::futimens(&made, &times(entry.modified_ns))
            }
            FileKind::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
                let base_bytes = entry.size_bytes();
                if base_bytes > 0 {
                    rustix::fs::ftruncate(&made, base_bytes)?;
                    let mark = FileMark { base_bytes, path: entry.path.clone() };
                    rustix::fs::fsetxattr(&made, BASE, &mark.to_bytes(), XattrFlags::empty())?;
                }
                self.give(made.as_fd(), entry)?;
                rustix::fs::fchmod(&made, self.mode(entry))?;
                rustix::fs::futimens(&made, &times(entry.modified_ns))
            }
            FileKind::Link => {
                let target = entry.target.as_deref().unwrap_or_default();
                rustix::fs::symlinkat(OsStr::from_bytes(target), directory, name)?;
                if let Some((uid, gid)) = self.owner_of(entry) {
                    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                rustix::fs::utimensat(directory, name, &times(entry.modified_ns), AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    /// Who may give nothing away keeps the right to what he made: marks are set and pages are written in his name.
    fn mode(&self, entry: &TreeEntry) -> Mode {
        let own = match (&self.owners, entry.kind) {
            (Owners::Ourselves, FileKind::Directory) => 0o700,
            (Owners::Ourselves, _) => 0o600,
            _ => 0,
        };
        Mode::from_raw_mode(entry.mode & 0o1777 | own)
    }

    fn owner_of(&self, entry: &TreeEntry) -> Option<(rustix::fs::Uid, rustix::fs::Gid)> {
        let (uid, gid) = match &self.owners {
            Owners::Ourselves => return None,
            Owners::Captured(accounts) => {
                let owner = &entry.owner;
                accounts.owner((owner.user.as_deref(), owner.uid), (owner.group.as_deref(), owner.gid))
            }
            Owners::Fixed(owner) => *owner,
        };
        Some((rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid)))
    }

    fn give(&self, file: BorrowedFd<'_>, entry: &TreeEntry) -> Result<()> {
        match self.owner_of(entry) {
            Some((uid, gid)) => rustix::fs::fchown(file, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

fn mark_directory(directory: BorrowedFd<'_>, path: &TreePath) -> Result<()> {
    // An empty value is no mark on every file system: the root's is a point.
    let value = if path.is_root() { b"." } else { path.as_bytes() };
    rustix::fs::fsetxattr(directory, BASE, value, XattrFlags::empty())
}

/// The path in the base of a directory that is unopened; `None` for all others. `place` is held, not open.
pub(super) fn directory_mark(place: BorrowedFd<'_>) -> Result<Option<TreePath>> {
    let Some(value) = mark(place)? else { return Ok(None) };
    if value == b"." {
        return Ok(Some(TreePath::root()));
    }
    TreePath::new(value).map(Some).map_err(|_| Errno::IO)
}

/// The same for a file.
pub(super) fn file_mark(place: BorrowedFd<'_>) -> Result<Option<FileMark>> {
    mark(place)?.map(|value| FileMark::parse(&value).ok_or(Errno::IO)).transpose()
}

fn mark(place: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 512];
    loop {
        match rustix::fs::getxattr(by_descriptor(place), BASE, &mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA) => return Ok(None),
            Err(Errno::RANGE) if value.len() < MARK_BYTES_MAX => value.resize(MARK_BYTES_MAX, 0),
            Err(error) => return Err(error),
        }
    }
}

/// A path that leads to exactly what is held, for the calls that take no descriptor which is only held.
pub(super) fn by_descriptor(place: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place))
}

/// Name, inode and kind of what is in a directory, the dots left out.
pub(super) fn list(directory: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, u64, FileType)>> {
    let open = rustix::fs::openat(directory, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(open)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((name.to_vec(), entry.ino(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Modification time and, the same, access time.
fn times(modified_ns: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified_ns.div_euclid(1_000_000_000), tv_nsec: modified_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}
