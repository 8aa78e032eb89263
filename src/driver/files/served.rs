//! What restores by links have left in a directory: links to where a snapshot is served, which are files of the node.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::model::ids::SnapshotId;
use crate::model::names::{NodeName, TreePath};

/// A node of a snapshot that is served on this host for links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedNode {
    /// Where.
    pub place: PathBuf,
    /// What, where its blocks may be referred to; `None`: it is read.
    pub stored: Option<(SnapshotId, NodeName)>,
}

/// A regular file below a directory, no link followed on the way.
pub fn open_beneath(directory: &Path, path: &TreePath) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(&directory, path.as_os_str(), flags, Mode::empty(), within)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
