//! A local directory as an object store: the embedded default.
//!
//! A put writes a file with a temporary name below `.tmp` (the same file system), syncs it, moves it to its key in one step
//! and syncs the folder, so that it is whole or absent whenever the power fails, and stays once it returned. Folders made on
//! the way are synced into their parents up to the root.
//!
//! **Invariants**
//! - Nothing outside the root is read or written, also where somebody placed symbolic links beneath it: none is followed.
//! - What begins with `.tmp` at the root is no object; what a dead writer left there is removed.
//! - Folders are never removed: another writer may be about to move an object into one. Listings do not show empty ones.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::keys::{TEMPORARY_FOLDER, check_folder, check_key, check_limit, check_prefix, check_range, invalid};
use super::{ObjectEntry, ObjectError, ObjectPage, ObjectStore, ObjectVersion, PutMode, PutReceipt};
use disk::{Disk, EntryKind, FileStatus, HostDisk};
use listing::Listing;

mod disk;
mod errors;
mod listing;
#[cfg(test)]
pub(crate) mod power_cut;
mod temporary;
#[cfg(test)]
mod tests;

/// A slow disk syncs a pack of 32 MiB in seconds; a dead network file system never answers.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(120);

/// Taken shared by whoever changes a name, alone by whoever compares a version first.
const LOCK_PATH: &str = ".tmp/lock";

/// How long a lock is waited for that is held for one stat and one rename.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Between a folder's making and the move into it somebody may remove it by hand; more often than this nobody does.
const PLACE_TRIES: u32 = 4;

/// A directory as an object store.
#[derive(Debug, Clone)]
pub struct LocalStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Box<dyn Disk>,
    location: String,
    /// Folders whose entries in their parents are known to survive a power cut.
    durable: Mutex<HashSet<String>>,
    is_swept: AtomicBool,
}

impl LocalStore {
    /// The store in the directory `root`. Nothing is opened or made: a missing directory is [`ObjectError::NoStore`] of
    /// the first call (see [`Self::create`]).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let location = format!("file://{}", root.display());
        Self::on(Box::new(HostDisk::new(root)), location)
    }

    /// As [`Self::new`], after making the directory and its parents, for their owner alone; one that is there is fine.
    /// Blocks.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, ObjectError> {
        let root: PathBuf = root.into();
        disk::create_root(&root)
            .map_err(|error| errors::object_error(error, &root.display().to_string(), &root.display().to_string(), true))?;
        Ok(Self::new(root))
    }

    fn on(disk: Box<dyn Disk>, location: String) -> Self {
        let shared = Shared { disk, location, durable: Mutex::default(), is_swept: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// Runs file work where it may block, for as long as the operation may take. What is cut off by the limit may still
    /// come to pass.
    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Shared) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || work(&shared));
        match tokio::time::timeout(OPERATION_TIMEOUT, task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(ended)) => Err(ObjectError::Unavailable { key: key.to_owned(), reason: ended.to_string() }),
            Err(_) => Err(ObjectError::DeadlineExceeded { key: key.to_owned(), limit: OPERATION_TIMEOUT }),
        }
    }
}

impl Shared {
    fn error(&self, error: std::io::Error, key: &str) -> ObjectError {
        errors::object_error(error, key, &self.location, self.disk.has_root())
    }

    fn put(&self, key: &str, body: &[u8], mode: &PutMode) -> Result<PutReceipt, ObjectError> {
        self.prepare().map_err(|error| self.error(error, key))?;
        let temporary = temporary::path();
        let written = self.write(&temporary, body);
        let placed = written.map_err(|error| self.error(error, key)).and_then(|status| {
            self.place(&temporary, key, mode)?;
            Ok(status)
        });
        if placed.is_err() {
            // It is there or it is not: the error that counts is the one above.
            let _ = self.disk.remove(&temporary);
        }
        Ok(PutReceipt { version: version_of(&placed?), is_checked_by_store: true })
    }

    /// The folder for temporaries, made once, and once rid of what dead writers left.
    fn prepare(&self) -> std::io::Result<()> {
        if self.is_swept.load(Ordering::Acquire) && self.disk.status(TEMPORARY_FOLDER).is_ok() {
            return Ok(());
        }
        match self.disk.make_folder(TEMPORARY_FOLDER) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !self.is_swept.swap(true, Ordering::AcqRel) {
            temporary::sweep(&*self.disk);
        }
        Ok(())
    }

    fn write(&self, temporary: &str, body: &[u8]) -> std::io::Result<FileStatus> {
        let mut file = self.disk.create(temporary)?;
        file.write(body)?;
        file.sync()
    }

    fn place(&self, temporary: &str, key: &str, mode: &PutMode) -> Result<(), ObjectError> {
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut tries = 0;
        loop {
            tries += 1;
            self.make_folders(folder).map_err(|error| self.error(error, key))?;
            match self.move_to(temporary, key, mode) {
                Err(Placing::Io(error)) if error.kind() == std::io::ErrorKind::NotFound && tries < PLACE_TRIES => {
                    self.durable.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(Placing::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(ObjectError::Conflict { key: key.to_owned() });
                }
                Err(Placing::Io(error)) => return Err(self.error(error, key)),
                Err(Placing::Conflict) => return Err(ObjectError::Conflict { key: key.to_owned() }),
                Ok(()) => return self.disk.sync_folder(folder).map_err(|error| self.error(error, key)),
            }
        }
    }

    /// Makes what is missing of a folder and syncs every new entry into its parent. One that is there is synced once too:
    /// whoever made it may not have come to it yet.
    fn make_folders(&self, folder: &str) -> std::io::Result<()> {
        if folder.is_empty() || self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(folder) {
            return Ok(());
        }
        let parent = folder.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.make_folders(parent)?;
        match self.disk.make_folder(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.disk.sync_folder(parent)?;
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
        Ok(())
    }

    fn move_to(&self, temporary: &str, key: &str, mode: &PutMode) -> Result<(), Placing> {
        match mode {
            PutMode::Create => Ok(self.disk.move_new(temporary, key)?),
            PutMode::Replace => {
                let _lock = self.disk.lock(LOCK_PATH, false, LOCK_PATIENCE)?;
                Ok(self.disk.replace(temporary, key)?)
            }
            PutMode::IfMatch(version) => {
                let _lock = self.disk.lock(LOCK_PATH, true, LOCK_PATIENCE)?;
                match self.disk.status(key) {
                    Ok(status) if status.kind == EntryKind::File && version_of(&status) == *version => {
                        Ok(self.disk.replace(temporary, key)?)
                    }
                    Ok(_) => Err(Placing::Conflict),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Placing::Conflict),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    fn delete(&self, key: &str) -> std::io::Result<()> {
        if !matches!(self.disk.status(key)?.kind, EntryKind::File) {
            // A folder or a link is no object, and what is no object is not there.
            return Ok(());
        }
        self.prepare()?;
        {
            let _lock = self.disk.lock(LOCK_PATH, false, LOCK_PATIENCE)?;
            self.disk.remove(key)?;
        }
        // References are removed before data: the order must hold across a power cut as well.
        self.disk.sync_folder(key.rsplit_once('/').map_or("", |(folder, _)| folder))
    }
}

enum Placing {
    Conflict,
    Io(std::io::Error),
}

impl From<std::io::Error> for Placing {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Every put writes a new file with a time of its own, so that no two contents of a key share all three.
fn version_of(status: &FileStatus) -> ObjectVersion {
    ObjectVersion(format!("{:x}-{:x}-{:x}", status.inode, status.modified_ns, status.size_bytes))
}

fn entry_of(key: &str, status: &FileStatus) -> ObjectEntry {
    ObjectEntry {
        key: key.to_owned(),
        size_bytes: status.size_bytes,
        modified_us: i64::try_from(status.modified_ns / 1000).unwrap_or(0),
        version: Some(version_of(status)),
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    fn location(&self) -> String {
        self.shared.location.clone()
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        check_key(key)?;
        if let Some(range) = &range {
            check_range(key, range)?;
        }
        let owned = key.to_owned();
        self.run(key, move |shared| match shared.disk.read(&owned, range.clone()) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let range = range.unwrap_or(0..0);
                Err(ObjectError::ShortRange { key: owned, start: range.start, end: range.end })
            }
            Err(error) => Err(shared.error(error, &owned)),
        })
        .await
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        check_key(key)?;
        let owned = key.to_owned();
        self.run(key, move |shared| shared.put(&owned, &body, &mode)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        check_key(key)?;
        let owned = key.to_owned();
        self.run(key, move |shared| match shared.disk.status(&owned) {
            Ok(status) if status.kind == EntryKind::File => Ok(entry_of(&owned, &status)),
            Ok(_) => Err(ObjectError::NotFound { key: owned }),
            Err(error) => Err(shared.error(error, &owned)),
        })
        .await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        check_prefix(prefix)?;
        check_limit(prefix, limit)?;
        let (prefix, start_after) = (prefix.to_owned(), start_after.map(str::to_owned));
        self.run(&prefix.clone(), move |shared| {
            let listing = Listing::new(&*shared.disk, &prefix, start_after.as_deref(), limit);
            listing.page().map_err(|error| shared.error(error, &prefix))
        })
        .await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        check_folder(prefix)?;
        let prefix = prefix.to_owned();
        self.run(&prefix.clone(), move |shared| {
            listing::folders(&*shared.disk, &prefix).map_err(|error| shared.error(error, &prefix))
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        let owned = key.to_owned();
        self.run(key, move |shared| match shared.delete(&owned).map_err(|error| shared.error(error, &owned)) {
            Err(ObjectError::NotFound { .. }) => Ok(()),
            answer => answer,
        })
        .await
    }
}

/// The directory that a URL or path names, absolute or relative to the working directory.
pub(super) fn path_of_url(url: &str) -> Result<PathBuf, ObjectError> {
    let Some(path) = url.strip_prefix("file://") else { return Ok(PathBuf::from(url)) };
    if !path.starts_with('/') {
        return Err(invalid(url, "write file:/// and an absolute path: another host's files cannot be reached"));
    }
    Ok(Path::new(path).to_owned())
}
