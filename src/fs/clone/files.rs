//! Open files of a clone: reading, writing, making durable, and what becomes of layered files when nobody has them open.
//!
//! A file is served in one way for as long as it is open: [`OpenFile::Local`], which the kernel may even read and write by
//! itself, or layered. A layered file that has got all its pages becomes the clone's own when it is closed and saved.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::Result;
use super::layered::LayeredFile;
use super::storage::Storage;
use super::tree::{CloneFs, Maker};
use super::upper::{self, FileMark};

/// An open file.
#[derive(Debug, Clone)]
pub enum OpenFile {
    /// The clone's own, wholly on the local disk.
    Local(Arc<File>),
    /// It has pages of the base.
    Layered(LayeredHandle),
}

/// A layered file that is open.
#[derive(Debug, Clone)]
pub struct LayeredHandle(Arc<LayeredFile>);

/// Files that are open, or have something to save.
#[derive(Debug, Default)]
pub(super) struct Files {
    open: Mutex<HashMap<u64, Opened>>,
    /// By number. An entry stays while it is open or unsaved, and keeps its number from being given to another.
    layered: Mutex<HashMap<u64, Layered>>,
    /// Held by who saves all of them.
    saving: Mutex<()>,
}

#[derive(Debug)]
struct Opened {
    file: OpenFile,
    handles: u64,
}

#[derive(Debug)]
struct Layered {
    file: Arc<LayeredFile>,
    upper: Arc<File>,
    mark: FileMark,
    is_open: bool,
    /// It has no name any more.
    is_gone: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFile {
    /// Bytes from `offset`: `length`, or up to the end.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        match self {
            Self::Local(file) => read_local(file, offset, length),
            Self::Layered(handle) => handle.0.read(offset, length).await,
        }
    }

    /// The same when nothing has to be waited for.
    pub fn read_ready(&self, offset: u64, length: u64) -> Option<Result<Bytes>> {
        match self {
            Self::Local(file) => Some(read_local(file, offset, length)),
            Self::Layered(handle) => handle.0.read_ready(offset, length),
        }
    }

    /// Writes at `offset`; how many bytes, where the disk has no room for all.
    pub async fn write(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        match self {
            Self::Local(file) => file.write(bytes, offset),
            Self::Layered(handle) => handle.0.write(bytes, offset).await,
        }
    }

    /// The same when nothing has to be waited for.
    pub fn write_ready(&self, bytes: &[u8], offset: u64) -> Option<Result<usize>> {
        match self {
            Self::Local(file) => Some(file.write(bytes, offset)),
            Self::Layered(handle) => handle.0.write_ready(bytes, offset),
        }
    }

    /// Cuts or extends.
    pub async fn set_length(&self, length: u64) -> Result<()> {
        match self {
            Self::Local(file) => file.set_length(length),
            Self::Layered(handle) => handle.0.set_length(length).await,
        }
    }

    /// As `fallocate(2)`: reserves, makes holes or zeros. Anything else is `EOPNOTSUPP`.
    pub async fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(how) {
            return Err(Errno::OPNOTSUPP);
        }
        match self {
            Self::Local(file) => file.allocate(how, offset, length),
            Self::Layered(handle) => handle.0.allocate(how, offset, length).await,
        }
    }

    /// Returns when what was written is durable. Waits for the disk.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        match self {
            Self::Local(file) => file.sync(data_only),
            Self::Layered(handle) => handle.0.sync(data_only),
        }
    }

    /// The next data or hole. A layered file has no holes that are worth knowing.
    pub fn seek(&self, to: SeekFrom) -> Result<u64> {
        match (self, to) {
            (Self::Local(file), to) => rustix::fs::seek(&**file, to),
            (Self::Layered(handle), SeekFrom::Data(offset) | SeekFrom::Hole(offset)) => {
                let length = handle.0.length()?;
                match to {
                    _ if offset >= length => Err(Errno::NXIO),
                    SeekFrom::Data(_) => Ok(offset),
                    _ => Ok(length),
                }
            }
            _ => Err(Errno::INVAL),
        }
    }
}

fn read_local(file: &File, offset: u64, length: u64) -> Result<Bytes> {
    let room = file.length()?.saturating_sub(offset).min(length);
    let mut bytes = vec![0; room as usize];
    file.read(&mut bytes, offset)?;
    Ok(bytes.into())
}

impl CloneFs {
    /// Opens a file, or opens it once more. Every opening has its [`CloneFs::release`].
    pub fn open(&self, node: u64) -> Result<OpenFile> {
        let mut open = locked(&self.files.open);
        if let Some(opened) = open.get_mut(&node) {
            opened.handles += 1;
            return Ok(opened.file.clone());
        }
        let file = self.file(&self.hold(node)?)?;
        open.insert(node, Opened { file: file.clone(), handles: 1 });
        Ok(file)
    }

    /// The file that is open under this number.
    pub fn opened(&self, node: u64) -> Result<OpenFile> {
        locked(&self.files.open).get(&node).map(|opened| opened.file.clone()).ok_or(Errno::BADF)
    }

    /// Makes a file and opens it; `EEXIST` if there is something.
    pub fn create(&self, parent: u64, name: &[u8], maker: Maker) -> Result<(Stat, OpenFile)> {
        let mut made = None;
        let stat = self.make(parent, name, maker, |held, name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            made = Some(rustix::fs::openat(held, name, flags, Mode::RUSR | Mode::WUSR)?);
            Ok(())
        })?;
        let file = OpenFile::Local(Arc::new(made.ok_or(Errno::IO)?.into()));
        // A number of a file that is gone is not given again while that is known.
        locked(&self.files.open).insert(stat.st_ino, Opened { file: file.clone(), handles: 1 });
        Ok((stat, file))
    }

    /// One opening ends.
    pub fn release(&self, node: u64) {
        let mut open = locked(&self.files.open);
        let Some(opened) = open.get_mut(&node) else { return };
        opened.handles -= 1;
        if opened.handles > 0 {
            return;
        }
        open.remove(&node);
        let mut layered = locked(&self.files.layered);
        if let Some(entry) = layered.get_mut(&node) {
            entry.is_open = false;
            if entry.is_gone {
                self.forget_map(&entry.mark);
                layered.remove(&node);
            } else if !entry.file.is_unsaved() && !entry.file.is_local() {
                layered.remove(&node);
            }
        }
    }

    /// Cuts or extends a file, open or not.
    pub async fn set_length(&self, node: u64, length: u64) -> Result<()> {
        let file = self.open(node)?;
        let done = file.set_length(length).await;
        self.release(node);
        done
    }

    fn file(&self, held: &OwnedFd) -> Result<OpenFile> {
        let stat = rustix::fs::fstat(held)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { Errno::ISDIR } else { Errno::INVAL });
        }
        let mut layered = locked(&self.files.layered);
        if let Some(entry) = layered.get_mut(&stat.st_ino) {
            entry.is_open = true;
            return Ok(OpenFile::Layered(LayeredHandle(entry.file.clone())));
        }
        let upper = Arc::new(File::from(reopen(held, &stat)?));
        let Some(mark) = upper::file_mark(held.as_fd())? else { return Ok(OpenFile::Local(upper)) };
        let base = self.base().file(mark.path.clone());
        let (map, maker) = (self.upper().map(&mark)?, self.upper().map_maker(&mark)?);
        let file = Arc::new(LayeredFile::open(upper.clone(), base, mark.base_bytes, map, maker)?);
        layered.insert(stat.st_ino, Layered { file: file.clone(), upper, mark, is_open: true, is_gone: false });
        Ok(OpenFile::Layered(LayeredHandle(file)))
    }

    /// Saves what only memory knows, so that little is lost when this process dies, and lets go of what nobody has open.
    /// Waits for the disk.
    pub fn save(&self) -> Result<()> {
        let _saving = locked(&self.files.saving);
        let all: Vec<_> = locked(&self.files.layered).iter().map(|(node, entry)| (*node, entry.file.clone())).collect();
        let mut first = Ok(());
        for (node, file) in all {
            if file.is_unsaved() {
                first = first.and(file.sync(true));
            }
            let mut layered = locked(&self.files.layered);
            let Some(entry) = layered.get(&node) else { continue };
            // It may have been closed, opened anew and written meanwhile.
            if entry.is_open || entry.is_gone || !Arc::ptr_eq(&entry.file, &file) || file.is_unsaved() {
                continue;
            }
            if file.is_local() {
                let (upper, mark) = (entry.upper.clone(), entry.mark.clone());
                // It waits for the disk, and nobody else does: who opens the file meanwhile gets this one, which has all pages.
                drop(layered);
                if let Err(error) = self.upper().let_go_of_base(upper.as_fd(), &mark) {
                    tracing::debug!(%error, path = %mark.path, "a file keeps its mark");
                }
                layered = locked(&self.files.layered);
                if layered.get(&node).is_none_or(|entry| entry.is_open || !Arc::ptr_eq(&entry.file, &file)) {
                    continue;
                }
            }
            layered.remove(&node);
        }
        first
    }

    /// What was held is known to nobody any more. Where it has no name either, its map goes.
    pub(super) fn let_go(&self, dropped: Option<OwnedFd>) {
        let Some(held) = dropped else { return };
        let Ok(stat) = rustix::fs::fstat(&held) else { return };
        if stat.st_nlink != 0 || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return;
        }
        let mut layered = locked(&self.files.layered);
        match layered.get_mut(&stat.st_ino) {
            Some(entry) if entry.is_open => entry.is_gone = true,
            Some(entry) => {
                self.forget_map(&entry.mark);
                layered.remove(&stat.st_ino);
            }
            None => {
                if let Ok(Some(mark)) = upper::file_mark(held.as_fd()) {
                    self.forget_map(&mark);
                }
            }
        }
    }

    fn forget_map(&self, mark: &FileMark) {
        if let Err(error) = self.upper().forget_map(mark) {
            tracing::debug!(%error, path = %mark.path, "the map of a removed file stays");
        }
    }
}

/// Opens what is held for reading and writing. A file whose owner may not do that is given the right for this moment: who
/// may open it the kernel has decided.
fn reopen(held: &OwnedFd, stat: &Stat) -> Result<OwnedFd> {
    let path = upper::by_descriptor(held.as_fd());
    let open = || rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::ACCESS) => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmod(&path, mode | Mode::RUSR | Mode::WUSR)?;
            let opened = open();
            rustix::fs::chmod(&path, mode)?;
            opened
        }
        other => other,
    }
}
