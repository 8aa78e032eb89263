//! Attributes of what is in a clone: those that are set, and extended ones.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Result;
use super::nodes::ROOT;
use super::tree::CloneFs;
use super::upper::{self, OWN_ATTRIBUTES};

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeChange {
    /// The present.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// Attributes to set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub accessed: Option<TimeChange>,
    /// Modification time.
    pub modified: Option<TimeChange>,
}

/// Permission bits as they are kept. Nothing is executed here with another's rights, so no file has the bits for it: what is
/// written to one has none to lose.
pub(super) fn permissions(kind: FileType, mode: u32) -> Mode {
    Mode::from_raw_mode(mode & if kind == FileType::Directory { 0o3777 } else { 0o1777 })
}

impl CloneFs {
    /// Sets attributes, but for the length, which [`CloneFs::set_length`] does.
    pub fn change(&self, node: u64, changes: &Changes) -> Result<()> {
        let held = self.hold(node)?;
        if changes.uid.is_some() || changes.gid.is_some() {
            let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
            rustix::fs::chownat(&held, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = changes.mode {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode);
            rustix::fs::chmod(upper::by_descriptor(held.as_fd()), permissions(kind, mode))?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            let times = Timestamps { last_access: timespec(changes.accessed), last_modification: timespec(changes.modified) };
            rustix::fs::utimensat(&held, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// An extended attribute. Those that are not the user's, and those of ours, are not to be had.
    pub fn extended(&self, node: u64, name: &OsStr) -> Result<Vec<u8>> {
        if node == ROOT && name.as_bytes().starts_with(OWN_ATTRIBUTES) {
            let found = self.options.about.facts().into_iter().find(|(fact, _)| name == OsStr::new(fact));
            return found.map(|(_, value)| value.into_bytes()).ok_or(Errno::NODATA);
        }
        let path = upper::by_descriptor(self.extended_place(node, name)?.as_fd());
        let mut value = vec![0; rustix::fs::getxattr(&path, name, &mut [0; 0][..])?];
        let length = rustix::fs::getxattr(&path, name, &mut value)?;
        value.truncate(length);
        Ok(value)
    }

    /// Names of extended attributes, each with a zero byte behind it.
    pub fn extended_names(&self, node: u64) -> Result<Vec<u8>> {
        let held = self.hold(node)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode) == FileType::Symlink {
            return Ok(Vec::new());
        }
        let path = upper::by_descriptor(held.as_fd());
        let mut names = vec![0; rustix::fs::listxattr(&path, &mut [0; 0][..])?];
        let length = rustix::fs::listxattr(&path, &mut names)?;
        let shown = names[..length].split_inclusive(|byte| *byte == 0);
        let mut names: Vec<u8> = shown.filter(|name| is_users(name)).flatten().copied().collect();
        if node == ROOT {
            names.extend(self.options.about.facts().iter().flat_map(|(fact, _)| fact.bytes().chain([0])));
        }
        Ok(names)
    }

    /// Sets an extended attribute.
    pub fn set_extended(&self, node: u64, name: &OsStr, value: &[u8], how: rustix::fs::XattrFlags) -> Result<()> {
        rustix::fs::setxattr(upper::by_descriptor(self.extended_place(node, name)?.as_fd()), name, value, how)
    }

    /// Removes an extended attribute.
    pub fn remove_extended(&self, node: u64, name: &OsStr) -> Result<()> {
        rustix::fs::removexattr(upper::by_descriptor(self.extended_place(node, name)?.as_fd()), name)
    }

    fn extended_place(&self, node: u64, name: &OsStr) -> Result<OwnedFd> {
        if !is_users(name.as_bytes()) {
            return Err(Errno::OPNOTSUPP);
        }
        let held = self.hold(node)?;
        // As a local file system: the user's attributes are for files and directories.
        match FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode) {
            FileType::RegularFile | FileType::Directory => Ok(held),
            _ => Err(Errno::PERM),
        }
    }
}

fn is_users(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(OWN_ATTRIBUTES)
}

fn timespec(change: Option<TimeChange>) -> Timespec {
    match change {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(TimeChange::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(TimeChange::At(since_1970_ns)) => {
            Timespec { tv_sec: since_1970_ns.div_euclid(1_000_000_000), tv_nsec: since_1970_ns.rem_euclid(1_000_000_000) }
        }
    }
}
