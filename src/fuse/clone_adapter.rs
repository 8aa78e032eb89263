//! The kernel's requests as calls of a clone, and its answers as the kernel's.
//!
//! Only the kernel changes what is in a clone, so it keeps names for as long as it likes; attributes for a second, since it
//! writes to some files by itself. What has to wait for the base or for the disk is a task that owns the reply.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};
use tokio::sync::watch;

use super::clone_reply::{
    BRIEFLY, answer_data, answer_empty, answer_entry, errno, file_attr, file_type, flags, maker, time_change,
};
use super::common::{answer_extended, ask, contained};
use super::passthrough::Passthrough;
use crate::fs::clone::{Changes, CloneFs, OpenFile, Result};

/// Longest write that the kernel sends at once.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct CloneAdapter {
    fs: Arc<CloneFs>,
    passthrough: Arc<Passthrough>,
    ended: watch::Sender<bool>,
}

impl CloneAdapter {
    /// `ended` becomes true when the kernel has let go of the mount.
    pub(super) fn new(fs: Arc<CloneFs>, passthrough: Passthrough, ended: watch::Sender<bool>) -> Self {
        Self { fs, passthrough: Arc::new(passthrough), ended }
    }

    /// Calls `work` once the directory is opened: at once, nearly always.
    fn within(&self, directory: INodeNo, work: impl FnOnce(&CloneFs, Result<()>) + Send + 'static) {
        if self.fs.are_opened(&[directory.0]) {
            return work(&self.fs, Ok(()));
        }
        let fs = self.fs.clone();
        self.fs.runtime().spawn(async move {
            let opened = fs.open_directories(&[directory.0]).await;
            work(&fs, opened);
        });
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<CloneFs>) -> F) {
        self.fs.runtime().spawn(work(self.fs.clone()));
    }
}

/// What the kernel may read and write by itself of an open file.
fn local(file: &OpenFile) -> Option<&File> {
    match file {
        OpenFile::Local(file) => Some(file),
        OpenFile::Layered(_) => None,
    }
}

impl Filesystem for CloneAdapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Else the kernel asks before each write whether the file has privileges to lose. None has any here.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        ask(config, &wanted);
        self.passthrough.ask(config);
        if let Err(nearest) = config.set_max_write(WRITE_BYTES_MAX) {
            tracing::debug!(nearest, "the kernel writes in other lengths");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        contained("lookup", || {
            self.within(parent, move |fs, ready| answer_entry(reply, ready.and_then(|()| fs.look_up(parent.0, &name))));
        });
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        contained("forget", || self.fs.forget(node.0, lookups));
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        contained("getattr", || match self.fs.stat(node.0) {
            Ok(stat) => reply.attr(&BRIEFLY, &file_attr(&stat)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setattr(
        &self,
        _request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        length: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (accessed, modified) = (accessed.map(time_change), modified.map(time_change));
        let changes = Changes { mode, uid, gid, accessed, modified };
        contained("setattr", || {
            let rest = move |fs: &CloneFs, cut: Result<()>| match cut.and_then(|()| fs.change(node.0, &changes)) {
                Ok(()) => match fs.stat(node.0) {
                    Ok(stat) => reply.attr(&BRIEFLY, &file_attr(&stat)),
                    Err(error) => reply.error(errno(error)),
                },
                Err(error) => reply.error(errno(error)),
            };
            match length {
                None => rest(&self.fs, Ok(())),
                Some(length) => self.spawn(|fs| async move {
                    let cut = fs.set_length(node.0, length).await;
                    rest(&fs, cut);
                }),
            }
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        contained("readlink", || answer_data(reply, self.fs.read_link(node.0).map(Into::into)));
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        let (name, maker, kind) = (name.as_bytes().to_vec(), maker(request, mode), rustix::fs::FileType::from_raw_mode(mode));
        contained("mknod", || {
            self.within(parent, move |fs, ready| {
                answer_entry(reply, ready.and_then(|()| fs.make_node(parent.0, &name, kind, maker)));
            });
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (name, maker) = (name.as_bytes().to_vec(), maker(request, mode));
        contained("mkdir", || {
            self.within(parent, move |fs, ready| {
                answer_entry(reply, ready.and_then(|()| fs.make_directory(parent.0, &name, maker)));
            });
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, maker) = (name.as_bytes().to_vec(), target.to_owned(), maker(request, 0o777));
        contained("symlink", || {
            self.within(parent, move |fs, ready| {
                answer_entry(reply, ready.and_then(|()| fs.make_link(parent.0, &name, target.as_os_str(), maker)));
            });
        });
    }

    fn link(&self, _request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        contained("link", || {
            self.within(parent, move |fs, ready| answer_entry(reply, ready.and_then(|()| fs.link(node.0, parent.0, &name))));
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        contained("unlink", || {
            self.within(parent, move |fs, ready| answer_empty(reply, ready.and_then(|()| fs.unlink(parent.0, &name))));
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        contained("rmdir", || {
            self.spawn(|fs| async move {
                let ready = fs.open_child(parent.0, &name).await;
                answer_empty(reply, ready.and_then(|()| fs.remove_directory(parent.0, &name)));
            });
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        how: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let how = rustix::fs::RenameFlags::from_bits_retain(how.bits());
        contained("rename", || {
            self.spawn(|fs| async move {
                let ready = async {
                    fs.open_directories(&[parent.0]).await?;
                    fs.open_child(new_parent.0, &new_name).await
                };
                let renamed =
                    ready.await.and_then(|()| fs.rename((parent.0, name.as_slice()), (new_parent.0, new_name.as_slice()), how));
                answer_empty(reply, renamed);
            });
        });
    }

    fn open(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        contained("open", || match self.fs.open(node.0) {
            Ok(file) => {
                let backing = self.passthrough.open(node.0, local(&file), |file| reply.open_backing(file));
                let flags = flags(backing.as_ref());
                match backing {
                    Some(backing) => reply.opened_passthrough(FileHandle(0), flags, &backing),
                    None => reply.opened(FileHandle(0), flags),
                }
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, _flags: i32, reply: ReplyCreate) {
        let (name, maker, passthrough) = (name.as_bytes().to_vec(), maker(request, mode), self.passthrough.clone());
        contained("create", || {
            self.within(parent, move |fs, ready| match ready.and_then(|()| fs.create(parent.0, &name, maker)) {
                Ok((stat, file)) => {
                    let backing = passthrough.open(stat.st_ino, local(&file), |file| reply.open_backing(file));
                    let (attr, flags) = (file_attr(&stat), flags(backing.as_ref()));
                    match backing {
                        Some(backing) => {
                            reply.created_passthrough(&BRIEFLY, &attr, Generation(0), FileHandle(0), flags, &backing);
                        }
                        None => reply.created(&BRIEFLY, &attr, Generation(0), FileHandle(0), flags),
                    }
                }
                Err(error) => reply.error(errno(error)),
            });
        });
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = u64::from(size);
        contained("read", || match self.fs.opened(node.0) {
            Ok(file) => match file.read_ready(offset, size) {
                Some(result) => answer_data(reply, result),
                None => self.spawn(|_| async move { answer_data(reply, file.read(offset, size).await) }),
            },
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = move |reply: ReplyWrite, result: Result<usize>| match result {
            // At most `WRITE_BYTES_MAX`.
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(errno(error)),
        };
        contained("write", || match self.fs.opened(node.0) {
            Ok(file) => match file.write_ready(data, offset) {
                Some(result) => answer(reply, result),
                None => {
                    let data = data.to_vec();
                    self.spawn(|_| async move { answer(reply, file.write(&data, offset).await) });
                }
            },
            Err(error) => reply.error(errno(error)),
        });
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        contained("release", || {
            self.passthrough.release(node.0);
            self.fs.release(node.0);
            reply.ok();
        });
    }

    fn fsync(&self, _request: &Request, node: INodeNo, _handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        contained("fsync", || match self.fs.opened(node.0) {
            Ok(file) => drop(self.fs.runtime().spawn_blocking(move || answer_empty(reply, file.sync(data_only)))),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        contained("fallocate", || match self.fs.opened(node.0) {
            Ok(file) => self.spawn(|_| async move { answer_empty(reply, file.allocate(how, offset, length).await) }),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn lseek(&self, _request: &Request, node: INodeNo, _handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let offset = offset.cast_unsigned();
        let to = if whence == libc::SEEK_HOLE { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        contained("lseek", || match self.fs.opened(node.0).and_then(|file| file.seek(to)) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        contained("opendir", || {
            self.within(node, move |fs, ready| match ready.and_then(|()| fs.list(node.0)) {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(errno(error)),
            });
        });
    }

    fn readdir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        contained("readdir", || match self.fs.items(handle.0, offset) {
            Ok(items) => {
                for (at, item) in items.iter().enumerate().skip(offset as usize) {
                    let kind = file_type(item.kind.as_raw_mode());
                    if reply.add(INodeNo(item.number), at as u64 + 1, kind, OsStr::from_bytes(&item.name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readdirplus(&self, _request: &Request, node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        contained("readdirplus", || match self.fs.items(handle.0, offset) {
            Ok(items) => {
                let own = self.fs.stat(node.0).map(|stat| file_attr(&stat));
                for (at, item) in items.iter().enumerate().skip(offset as usize) {
                    let (next, name) = (at as u64 + 1, OsStr::from_bytes(&item.name));
                    if matches!(&item.name[..], b"." | b"..") {
                        // The kernel takes no look-up from these, and looks at number and kind alone.
                        let Ok(own) = own else { continue };
                        let attr = FileAttr { ino: INodeNo(item.number), ..own };
                        if reply.add(attr.ino, next, name, &Duration::ZERO, &attr, Generation(0)) {
                            break;
                        }
                        continue;
                    }
                    // Gone since the directory was read: it need not be shown.
                    let Ok(stat) = self.fs.look_up(node.0, &item.name) else { continue };
                    // One time for name and attributes: the shorter one.
                    if reply.add(INodeNo(stat.st_ino), next, name, &BRIEFLY, &file_attr(&stat), Generation(0)) {
                        self.fs.forget(stat.st_ino, 1);
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        contained("releasedir", || {
            self.fs.end_list(handle.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _request: &Request, node: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        contained("fsyncdir", || {
            drop(self.fs.runtime().spawn_blocking(move || answer_empty(reply, fs.sync_directory(node.0))));
        });
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        contained("statfs", || match self.fs.room() {
            Ok(room) => {
                // Lengths of blocks and names are small.
                let (block, fragment, name) = (room.f_bsize as u32, room.f_frsize as u32, room.f_namemax as u32);
                reply.statfs(room.f_blocks, room.f_bfree, room.f_bavail, room.f_files, room.f_ffree, block, name, fragment);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        contained("getxattr", || answer_extended(reply, size, self.fs.extended(node.0, name).map_err(errno)));
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        contained("listxattr", || answer_extended(reply, size, self.fs.extended_names(node.0).map_err(errno)));
    }

    fn setxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, value: &[u8], how: i32, _at: u32, reply: ReplyEmpty) {
        let how = XattrFlags::from_bits_retain(how.cast_unsigned());
        contained("setxattr", || answer_empty(reply, self.fs.set_extended(node.0, name, value, how)));
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        contained("removexattr", || answer_empty(reply, self.fs.remove_extended(node.0, name)));
    }
}
