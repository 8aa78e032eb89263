//! Listing a directory of a clone while it may change.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType};

use super::nodes::ROOT;
use super::{Result, upper};

/// An entry of a listing.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its name.
    pub name: Vec<u8>,
    /// Its number.
    pub number: u64,
    /// What it was.
    pub kind: FileType,
}

/// An open directory. What was there when it was read from the beginning is given once each, and an offset is a place in
/// that; who begins again gets what is there then.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    held: OwnedFd,
    items: Mutex<Option<Arc<Vec<Item>>>>,
}

impl OpenDirectory {
    pub(super) fn new(held: OwnedFd) -> Self {
        Self { held, items: Mutex::new(None) }
    }

    pub(super) fn items(&self, offset: u64, root_number: u64) -> Result<Arc<Vec<Item>>> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        match &*items {
            Some(read) if offset > 0 => Ok(read.clone()),
            _ => Ok(items.insert(Arc::new(self.read(root_number)?)).clone()),
        }
    }

    fn read(&self, root_number: u64) -> Result<Vec<Item>> {
        let shown = |number| if number == root_number { ROOT } else { number };
        let own = rustix::fs::fstat(&self.held)?.st_ino;
        // The root's parent is another file system's: the kernel knows it by itself.
        let above = if own == root_number { own } else { rustix::fs::statat(&self.held, "..", AtFlags::empty())?.st_ino };
        let dot = |name: &[u8], number| Item { name: name.to_vec(), number: shown(number), kind: FileType::Directory };
        let mut items = vec![dot(b".", own), dot(b"..", above)];
        for (name, number, kind) in upper::list(self.held.as_fd())? {
            // Some file systems do not say it in their listings.
            let kind = match kind {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&self.held, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW);
                    stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
                }
                kind => kind,
            };
            items.push(Item { name, number: shown(number), kind });
        }
        Ok(items)
    }
}
