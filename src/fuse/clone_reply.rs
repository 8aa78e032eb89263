//! What a clone says in the kernel's words, and the kernel in a clone's: attributes, times, answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyData, ReplyEmpty, ReplyEntry, Request, TimeOrNow,
};
use rustix::fs::Stat;

use super::common::{FOR_EVER, time};
use crate::fs::clone::{Maker, Result, TimeChange};

/// How long attributes are kept: what the kernel writes by itself changes them.
pub(super) const BRIEFLY: Duration = Duration::from_secs(1);

pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

pub(super) fn file_type(mode: u32) -> FileType {
    use rustix::fs::FileType as Kind;
    match Kind::from_raw_mode(mode) {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(stat: &Stat) -> FileAttr {
    let at =
        |seconds: i64, nanoseconds: u64| time(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.cast_signed()));
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size.cast_unsigned(),
        // A file whose pages are all the base's has none here. Programs take one without blocks for a hole and do not read it.
        blocks: match stat.st_blocks.cast_unsigned() {
            0 => stat.st_size.cast_unsigned().div_ceil(512),
            blocks => blocks,
        },
        atime: at(stat.st_atime, stat.st_atime_nsec),
        mtime: at(stat.st_mtime, stat.st_mtime_nsec),
        ctime: at(stat.st_ctime, stat.st_ctime_nsec),
        crtime: at(stat.st_ctime, stat.st_ctime_nsec),
        kind: file_type(stat.st_mode),
        // Permission bits, at most 0o7777.
        perm: (stat.st_mode & 0o7777) as u16,
        // What the kernel counts in is 32 bits wide.
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

pub(super) fn time_change(change: TimeOrNow) -> TimeChange {
    match change {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::At(since_1970_ns(time)),
    }
}

pub(super) fn since_1970_ns(time: SystemTime) -> i64 {
    let whole = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => -whole(before.duration()),
    }
}

pub(super) fn maker(request: &Request, mode: u32) -> Maker {
    Maker { uid: request.uid(), gid: request.gid(), mode: mode & 0o7777 }
}

pub(super) fn answer_entry(reply: ReplyEntry, result: Result<Stat>) {
    match result {
        Ok(stat) => reply.entry_with_ttls(&BRIEFLY, &FOR_EVER, &file_attr(&stat), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn answer_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn answer_data(reply: ReplyData, result: Result<bytes::Bytes>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(error)),
    }
}

/// With the kernel's own reading and writing, no other flag is allowed.
pub(super) fn flags(backing: Option<&Arc<BackingId>>) -> FopenFlags {
    let plain = FopenFlags::FOPEN_NOFLUSH;
    if backing.is_some() { plain } else { plain | FopenFlags::FOPEN_KEEP_CACHE }
}
