//! The kernel's requests as calls of the tree, and its answers as the kernel's.
//!
//! Every request that may need I/O has the same form: what is ready is answered on the session thread, the rest by a task
//! that owns the reply. The kernel keeps names and attributes of what cannot change for as long as it likes, and the pages
//! of files over closing and opening; what can change, it asks for again each second.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use tokio::sync::{Semaphore, watch};

use super::common::{FOR_EVER, answer_extended, ask, contained, time};
use super::passthrough::{Passthrough, PassthroughState};
use super::request;
use crate::fs::{Attributes, Found, FsError, SnapshotFs};
use crate::model::manifest::FileKind;
use crate::model::names::COMPONENT_BYTES_MAX;

/// How long the kernel keeps what may change: clusters, the names of snapshots, `latest`.
const BRIEFLY: Duration = Duration::from_secs(1);
/// Requests that wait for I/O at a time. The kernel's own limit for background requests is far below; only as many
/// waiting programs could reach this.
const TASKS: usize = 1024;
/// See the head of this file.
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<SnapshotFs>,
    tasks: Arc<Semaphore>,
    passthrough: Option<Arc<Passthrough>>,
    ended: watch::Sender<bool>,
}

impl Adapter {
    /// `ended` becomes true when the kernel has let go of the mount. Without `passthrough` every read comes here.
    pub fn new(fs: Arc<SnapshotFs>, passthrough: Option<PassthroughState>, ended: watch::Sender<bool>) -> Self {
        let passthrough = passthrough.map(|state| Arc::new(Passthrough::new(state)));
        Self { fs, tasks: Arc::new(Semaphore::new(TASKS)), passthrough, ended }
    }

    /// Runs `work` as a task. When there is no room before the deadline, its reply is dropped, which the kernel gets as
    /// EIO; the same goes for a panic.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<SnapshotFs>) -> F + Send + 'static) {
        let (fs, tasks) = (self.fs.clone(), self.tasks.clone());
        self.fs.runtime().spawn(async move {
            if let Ok(Ok(_permit)) = tokio::time::timeout(fs.deadline(), tasks.acquire()).await {
                work(fs.clone()).await;
            }
        });
    }
}

/// The number for the kernel. What is not the caller's own mistake is logged, here and only here.
fn errno(call: &'static str, error: &FsError) -> Errno {
    if !error.is_callers() {
        tracing::warn!(call, %error, "a request could not be answered");
    }
    Errno::from_i32(error.errno())
}

fn lasting(is_immutable: bool) -> Duration {
    if is_immutable { FOR_EVER } else { BRIEFLY }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Link => FileType::Symlink,
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let modified = time(attributes.modified_ns);
    FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size_bytes,
        blocks: attributes.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(attributes.kind),
        // Permission bits, at most 0o1777.
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.links(),
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: attributes.read_bytes,
        flags: 0,
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<Found, FsError>) {
    match result {
        Ok(found) => {
            let attr = file_attr(&found.attributes);
            reply.entry_with_ttls(&lasting(found.is_immutable), &lasting(found.is_name_immutable), &attr, Generation(0));
        }
        Err(error) => reply.error(errno("lookup", &error)),
    }
}

/// Pages stay good for ever. Without this an open during a slow read could not even be killed.
pub(super) const KEPT: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

fn answer_open(reply: ReplyOpen, result: Result<u64, FsError>) {
    match result {
        Ok(handle) => reply.opened(FileHandle(handle), KEPT),
        Err(error) => reply.error(errno("open", &error)),
    }
}

fn answer_open_directory(reply: ReplyOpen, result: Result<(u64, bool), FsError>) {
    match result {
        Ok((handle, is_immutable)) => {
            let kept = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            reply.opened(FileHandle(handle), if is_immutable { kept } else { FopenFlags::empty() });
        }
        Err(error) => reply.error(errno("opendir", &error)),
    }
}

fn answer_data(reply: ReplyData, result: Result<bytes::Bytes, FsError>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno("read", &error)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // A link that points elsewhere is another inode here.
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        ask(config, &wanted);
        if let Some(passthrough) = &self.passthrough {
            passthrough.ask(config);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        contained("lookup", || match self.fs.lookup_ready(parent.0, name.as_bytes()) {
            Some(result) => answer_entry(reply, result),
            None => {
                let name = name.as_bytes().to_vec();
                self.spawn(move |fs| async move { answer_entry(reply, fs.lookup(parent.0, &name).await) });
            }
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        contained("forget", || self.fs.forget(inode.0, lookups));
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        contained("getattr", || match self.fs.attributes(inode.0) {
            Ok(found) => reply.attr(&lasting(found.is_immutable), &file_attr(&found.attributes)),
            Err(error) => reply.error(errno("getattr", &error)),
        });
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        contained("readlink", || match self.fs.target(inode.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", &error)),
        });
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        contained("open", || {
            if flags.acc_mode() != OpenAccMode::O_RDONLY {
                return reply.error(Errno::EROFS);
            }
            match self.fs.open_ready(inode.0) {
                // With a cache on a disk, that is asked whether it has the file whole.
                Some(result) if self.passthrough.is_none() => answer_open(reply, result),
                ready => {
                    let passthrough = self.passthrough.clone();
                    self.spawn(move |fs| async move {
                        let result = match ready {
                            Some(result) => result,
                            None => fs.open(inode.0).await,
                        };
                        match (passthrough, result) {
                            (Some(passthrough), Ok(handle)) => passthrough.answer(&fs, inode.0, handle, reply).await,
                            (_, result) => answer_open(reply, result),
                        }
                    });
                }
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = u64::from(size);
        contained("read", || match self.fs.read_ready(handle.0, offset, size) {
            Some(result) => answer_data(reply, result),
            None => self.spawn(move |fs| async move { answer_data(reply, fs.read(handle.0, offset, size).await) }),
        });
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        contained("release", || {
            self.fs.release(handle.0);
            self.passthrough.iter().for_each(|passthrough| passthrough.release(inode.0));
            reply.ok();
        });
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        contained("opendir", || match self.fs.open_directory_ready(inode.0) {
            Some(result) => answer_open_directory(reply, result),
            None => self.spawn(move |fs| async move { answer_open_directory(reply, fs.open_directory(inode.0).await) }),
        });
    }

    fn readdir(&self, _request: &Request, _inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        contained("readdir", || match self.fs.directory(handle.0) {
            Ok(directory) => {
                for item in directory.items(offset) {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.inode), item.next, file_type(item.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno("readdir", &error)),
        });
    }

    fn readdirplus(&self, _request: &Request, _inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        contained("readdirplus", || match self.fs.directory(handle.0) {
            Ok(directory) => {
                for mut item in directory.items(offset) {
                    let (name, number, next) = (std::mem::take(&mut item.name), item.inode, item.next);
                    let name = OsStr::from_bytes(&name);
                    let Some(found) = self.fs.found_item(item) else {
                        // `.` and `..`: the kernel takes no look-up from these, and looks at the kind alone.
                        let attr = file_attr(&Attributes { inode: number, ..directory.inode.attributes });
                        if reply.add(INodeNo(number), next, name, &Duration::ZERO, &attr, Generation(0)) {
                            break;
                        }
                        continue;
                    };
                    let number = found.attributes.inode;
                    // One time for name and attributes: the shorter one.
                    let keep = lasting(found.is_name_immutable && found.is_immutable);
                    if reply.add(INodeNo(number), next, name, &keep, &file_attr(&found.attributes), Generation(0)) {
                        self.fs.forget(number, 1);
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno("readdirplus", &error)),
        });
    }

    fn releasedir(&self, _request: &Request, _inode: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        contained("releasedir", || {
            self.fs.release_directory(handle.0);
            reply.ok();
        });
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        contained("getxattr", || match self.fs.extended_ready(inode.0, name.as_bytes()) {
            Some(result) => answer_extended(reply, size, result.map_err(|error| errno("getxattr", &error))),
            None => {
                let name = name.as_bytes().to_vec();
                self.spawn(move |fs| async move {
                    let found = fs.extended(inode.0, &name).await;
                    answer_extended(reply, size, found.map_err(|error| errno("getxattr", &error)));
                });
            }
        });
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        contained("listxattr", || {
            let names = self.fs.extended_names(inode.0);
            answer_extended(reply, size, names.map_err(|error| errno("listxattr", &error)));
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        flags: IoctlFlags,
        command: u32,
        input: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        contained("ioctl", || {
            if command != request::WARM || flags.contains(IoctlFlags::FUSE_IOCTL_DIR) {
                return reply.error(Errno::ENOTTY);
            }
            let Some((offset, length)) = request::decode(input) else { return reply.error(Errno::EINVAL) };
            self.spawn(move |fs| async move {
                match fs.warm(handle.0, offset, length).await {
                    Ok(cached) => reply.ioctl(0, &request::encode(cached, 0)),
                    Err(error) => reply.error(errno("ioctl", &error)),
                }
            });
        });
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        // Nothing can be written and the source's size is not asked for: no blocks, none free.
        contained("statfs", || reply.statfs(0, 0, 0, self.fs.inode_count() as u64, 0, 4096, COMPONENT_BYTES_MAX as u32, 4096));
    }

    // What the kernel asks once and then knows to be absent.

    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // What would change something. The kernel refuses most of it by itself, since the mount is read-only.

    fn setattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _mode: u32, _umask: u32, _flags: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _flags: i32, _position: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
