//! The calls on a clone. Those that need the base are asynchronous, all others are local.
//!
//! A call that names something in a directory has to be preceded by [`CloneFs::open_directories`] of it, at least once.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, StatVfs, Uid};
use rustix::io::Errno;

use super::Result;
use super::attributes::permissions;
use super::base::BaseNode;
pub use super::directory::Item;
use super::directory::OpenDirectory;
use super::files::Files;
use super::nodes::{Nodes, ROOT, Way};
use super::storage::number;
use super::upper::{self, Upper};
use crate::fs::About;
use crate::fs::handle_table::HandleTable;

/// Directories that are listed at a time: each is held by a descriptor.
const DIRECTORIES_MAX: usize = 1 << 14;

/// How a clone behaves.
#[derive(Debug, Clone, Default)]
pub struct CloneOptions {
    /// What the root says of the clone, in extended attributes of ours.
    pub about: About,
    /// What is made belongs to who makes it. Without it, to who serves the clone, which is the same where only he may use it.
    pub gives_owners: bool,
}

/// Who makes something, and with which mode.
#[derive(Debug, Clone, Copy)]
pub struct Maker {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, less the mask.
    pub mode: u32,
}

/// See the head of this file.
#[derive(Debug)]
pub struct CloneFs {
    upper: Upper,
    base: Arc<BaseNode>,
    pub(super) options: CloneOptions,
    root_number: u64,
    /// Held over every change of names, so that what the kernel knows and what the disk has are one.
    nodes: Mutex<Nodes>,
    pub(super) files: Files,
    directories: HandleTable<OpenDirectory>,
    /// Held by who makes the entries of a directory.
    opening: tokio::sync::Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CloneFs {
    /// The clone whose upper layer is `upper`, over `base`.
    pub fn new(upper: Upper, base: Arc<BaseNode>, options: CloneOptions) -> Result<Arc<Self>> {
        let root_number = rustix::fs::fstat(upper.root())?.st_ino;
        Ok(Arc::new(Self {
            upper,
            base,
            options,
            root_number,
            nodes: Mutex::default(),
            files: Files::default(),
            directories: HandleTable::new(DIRECTORIES_MAX),
            opening: tokio::sync::Mutex::default(),
        }))
    }

    /// What runs its work.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.base.runtime()
    }

    pub(super) fn base(&self) -> &Arc<BaseNode> {
        &self.base
    }

    pub(super) fn upper(&self) -> &Upper {
        &self.upper
    }

    fn hold_in(&self, nodes: &Nodes, node: u64) -> Result<OwnedFd> {
        match nodes.way(node)? {
            Way::Path(path) => self.upper.hold(&path),
            Way::Held(held) => held.try_clone().map_err(|error| number(&error)),
        }
    }

    pub(super) fn hold(&self, node: u64) -> Result<OwnedFd> {
        self.hold_in(&locked(&self.nodes), node)
    }

    /// The numbers of a file are those of the upper layer, but for the root's.
    fn shown(&self, mut stat: Stat) -> Stat {
        if stat.st_ino == self.root_number {
            stat.st_ino = ROOT;
        } else if stat.st_ino == ROOT {
            // Nothing but a file system's own root has this number.
            stat.st_ino = u64::MAX;
        }
        stat
    }

    // Directories.

    /// Whether all of these are known to be opened. What is no directory is not.
    pub fn are_opened(&self, directories: &[u64]) -> bool {
        let nodes = locked(&self.nodes);
        directories.iter().all(|directory| nodes.is_opened(*directory))
    }

    /// Makes the entries of directories that nobody has looked into.
    pub async fn open_directories(&self, directories: &[u64]) -> Result<()> {
        for directory in directories {
            self.open_directory(*directory).await?;
        }
        Ok(())
    }

    async fn open_directory(&self, directory: u64) -> Result<()> {
        if self.are_opened(&[directory]) {
            return Ok(());
        }
        let held = self.hold(directory)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if upper::directory_mark(held.as_fd())?.is_some() {
            self.fill(&held).await?;
        }
        locked(&self.nodes).opened(directory);
        Ok(())
    }

    async fn fill(&self, held: &OwnedFd) -> Result<()> {
        let _opening = self.opening.lock().await;
        // Somebody else may have done it meanwhile.
        if let Some(path) = upper::directory_mark(held.as_fd())? {
            let entries: Vec<_> = self.base.directory(&path).await?.into_iter().map(|placed| placed.entry).collect();
            let open = rustix::fs::openat(held, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            self.upper.fill(open.as_fd(), &entries)?;
        }
        Ok(())
    }

    /// The same for a child that is a directory, before it is removed or replaced: what is unopened looks empty.
    pub async fn open_child(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.open_directory(parent).await?;
        let child = {
            let mut nodes = locked(&self.nodes);
            let held = self.hold_in(&nodes, parent)?;
            let stat = match rustix::fs::statat(&held, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.shown(stat),
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(());
            }
            nodes.found(parent, name, stat.st_ino);
            stat.st_ino
        };
        let opened = self.open_directory(child).await;
        locked(&self.nodes).forget(child, 1);
        opened
    }

    /// Begins to list a directory, which is opened.
    pub fn list(&self, directory: u64) -> Result<u64> {
        let listing = Arc::new(OpenDirectory::new(self.hold(directory)?));
        let handle = self.directories.insert(listing).map_err(|_| Errno::NFILE)?;
        Ok(handle)
    }

    /// Entries from `offset` on. At the beginning the directory is read anew.
    pub fn items(&self, handle: u64, offset: u64) -> Result<Arc<Vec<Item>>> {
        let directory = self.directories.get(handle).map_err(|_| Errno::BADF)?;
        directory.items(offset, self.root_number)
    }

    /// Ends listing it.
    pub fn end_list(&self, handle: u64) {
        self.directories.remove(handle);
    }

    /// Returns when the names in a directory are durable.
    pub fn sync_directory(&self, directory: u64) -> Result<()> {
        let open = rustix::fs::openat(self.hold(directory)?, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fsync(open)
    }

    // Names.

    /// Finds a name, and counts that the kernel knows it.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> Result<Stat> {
        let mut nodes = locked(&self.nodes);
        let held = self.hold_in(&nodes, parent)?;
        self.found(&mut nodes, &held, parent, name)
    }

    fn found(&self, nodes: &mut Nodes, held: &OwnedFd, parent: u64, name: &[u8]) -> Result<Stat> {
        let stat = self.shown(rustix::fs::statat(held, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?);
        nodes.found(parent, name, stat.st_ino);
        Ok(stat)
    }

    /// The kernel has forgotten so many of what it was told.
    pub fn forget(&self, node: u64, lookups: u64) {
        let dropped = locked(&self.nodes).forget(node, lookups);
        self.let_go(dropped);
    }

    /// Attributes.
    pub fn stat(&self, node: u64) -> Result<Stat> {
        Ok(self.shown(rustix::fs::fstat(self.hold(node)?)?))
    }

    /// Where a link leads.
    pub fn read_link(&self, node: u64) -> Result<Vec<u8>> {
        rustix::fs::readlinkat(self.hold(node)?, "", Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Makes something in `parent` with `make`, gives it to its maker, and finds it.
    pub(super) fn make(
        &self,
        parent: u64,
        name: &[u8],
        maker: Maker,
        make: impl FnOnce(&OwnedFd, &OsStr) -> Result<()>,
    ) -> Result<Stat> {
        let mut nodes = locked(&self.nodes);
        let held = self.hold_in(&nodes, parent)?;
        let file_name = OsStr::from_bytes(name);
        make(&held, file_name)?;
        let made = self.own(&held, file_name, maker);
        if let Err(error) = made {
            let is_directory = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let stat = rustix::fs::statat(&held, file_name, AtFlags::SYMLINK_NOFOLLOW);
            let how = if stat.is_ok_and(is_directory) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _nothing_half_made = rustix::fs::unlinkat(&held, file_name, how);
            return Err(error);
        }
        self.found(&mut nodes, &held, parent, name)
    }

    /// Owner and mode of what was just made.
    fn own(&self, parent: &OwnedFd, name: &OsStr, maker: Maker) -> Result<()> {
        let above = rustix::fs::fstat(parent)?;
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        // A directory with this bit gives its group to what is made in it.
        let is_inherited = above.st_mode & 0o2000 != 0;
        if self.options.gives_owners {
            let gid = if is_inherited { above.st_gid } else { maker.gid };
            let (uid, gid) = (Some(Uid::from_raw(maker.uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if kind == FileType::Symlink {
            return Ok(());
        }
        let inherited = if is_inherited && kind == FileType::Directory { 0o2000 } else { 0 };
        // It was made with no rights, beneath a directory of ours, and is no link.
        rustix::fs::chmodat(parent, name, permissions(kind, maker.mode | inherited), AtFlags::empty())
    }

    /// Makes a directory.
    pub fn make_directory(&self, parent: u64, name: &[u8], maker: Maker) -> Result<Stat> {
        let stat = self.make(parent, name, maker, |held, name| rustix::fs::mkdirat(held, name, Mode::RWXU))?;
        locked(&self.nodes).opened(stat.st_ino);
        Ok(stat)
    }

    /// Makes a FIFO, a socket, or an empty file. Devices are refused.
    pub fn make_node(&self, parent: u64, name: &[u8], kind: FileType, maker: Maker) -> Result<Stat> {
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        self.make(parent, name, maker, |held, name| rustix::fs::mknodat(held, name, kind, Mode::RUSR | Mode::WUSR, 0))
    }

    /// Makes a symbolic link.
    pub fn make_link(&self, parent: u64, name: &[u8], target: &OsStr, maker: Maker) -> Result<Stat> {
        self.make(parent, name, maker, |held, name| rustix::fs::symlinkat(target, held, name))
    }

    /// Another name for a file.
    pub fn link(&self, node: u64, parent: u64, name: &[u8]) -> Result<Stat> {
        let mut nodes = locked(&self.nodes);
        let held = self.hold_in(&nodes, parent)?;
        let place = self.hold_in(&nodes, node)?;
        // A link itself may have several names, so what is held must not be followed any further.
        match nodes.way(node)? {
            Way::Path(path) => rustix::fs::linkat(self.upper.root(), &path, &held, OsStr::from_bytes(name), AtFlags::empty())?,
            Way::Held(_) => {
                let path = upper::by_descriptor(place.as_fd());
                rustix::fs::linkat(rustix::fs::CWD, path, &held, OsStr::from_bytes(name), AtFlags::SYMLINK_FOLLOW)?;
            }
        }
        self.found(&mut nodes, &held, parent, name)
    }

    /// Removes a name, which is not a directory's.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes a directory, which is opened.
    pub fn remove_directory(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent: u64, name: &[u8], how: AtFlags) -> Result<()> {
        let mut nodes = locked(&self.nodes);
        let held = self.hold_in(&nodes, parent)?;
        let kept = keep(&nodes, &held, parent, name)?;
        rustix::fs::unlinkat(&held, OsStr::from_bytes(name), how)?;
        let dropped = nodes.gone(parent, name, kept);
        self.let_go(dropped);
        Ok(())
    }

    /// Renames. What the new name led to is replaced, unless `how` says otherwise; a directory that is replaced is opened.
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: RenameFlags) -> Result<()> {
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(how) {
            return Err(Errno::INVAL);
        }
        let mut nodes = locked(&self.nodes);
        let (old, new) = (self.hold_in(&nodes, from.0)?, self.hold_in(&nodes, to.0)?);
        let (old_name, new_name) = (OsStr::from_bytes(from.1), OsStr::from_bytes(to.1));
        let number =
            |held: &OwnedFd, name: &OsStr| rustix::fs::statat(held, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_ino);
        // Two names of one file stay as they are.
        let is_same = number(&old, old_name)? == number(&new, new_name).unwrap_or(0);
        let kept = if is_same || how.contains(RenameFlags::EXCHANGE) { None } else { keep(&nodes, &new, to.0, to.1)? };
        rustix::fs::renameat_with(&old, old_name, &new, new_name, how)?;
        if how.contains(RenameFlags::EXCHANGE) {
            nodes.exchanged(from, to);
        } else if !is_same {
            let dropped = nodes.gone(to.0, to.1, kept);
            nodes.moved(from, to);
            self.let_go(dropped);
        }
        Ok(())
    }

    /// The local disk's room.
    pub fn room(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(self.upper.root())
    }
}

/// Holds what a name leads to, before the name goes, where the kernel may ask for it afterwards.
fn keep(nodes: &Nodes, parent: &OwnedFd, number: u64, name: &[u8]) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if !nodes.named(number, name).is_some_and(|number| nodes.is_last_name(number)) {
        return Ok(None);
    }
    match rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty()) {
        Ok(held) => Ok(Some(held)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
