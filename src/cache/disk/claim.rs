//! The cache's directory: made, checked, and held by one process.
//!
//! **Invariants.** Nobody else can read or write in it: plain blocks lie there. A directory that has anything else in it is
//! left as it is, so that a slip of the pen changes no one's home. The lock ends with the process that holds it.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::file_lock::{Hold, MOMENT, lock_file};

/// Says that a directory is a cache, who has it, and that nobody else can.
const LOCK: &str = "tintype-cache.lock";
/// Locked by an owner who waits for a guest to leave.
const WANTED: &str = "tintype-cache.wanted";
/// Behind the process id of a guest.
const GUEST: &str = " guest";
/// A guest looks every now and then, and ends what it is writing: on a slow disk that takes its time.
const GUESTS_LEAVE: Duration = Duration::from_secs(15);
const FILES: &str = "files";
/// A file system of its own has this in its root.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a directory cannot be a cache.
#[derive(Debug, thiserror::Error)]
pub enum DiskCacheError {
    /// Another process has it.
    #[error("{}: is the cache of {}, and one process writes in a cache", directory.display(), process_text(*process))]
    InUse {
        /// As given.
        directory: PathBuf,
        /// Whose it is, if that is known.
        process: Option<u32>,
    },
    /// It belongs to another user.
    #[error("{}: belongs to user {owner}, who could change what is read", directory.display())]
    NotOurs {
        /// As given.
        directory: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may write in it.
    #[error("{}: others could have written in it (mode {mode:04o})", directory.display())]
    WritableByOthers {
        /// As given.
        directory: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It has something else in it.
    #[error("{}: holds {name:?}, and is no cache of tintype", directory.display())]
    NotEmpty {
        /// As given.
        directory: PathBuf,
        /// What is there.
        name: String,
    },
    /// The system refused.
    #[error("{}: {what}: {source}", directory.display())]
    System {
        /// As given.
        directory: PathBuf,
        /// What was tried.
        what: &'static str,
        /// In the system's words.
        source: io::Error,
    },
}

fn process_text(process: Option<u32>) -> String {
    process.map_or("another process".to_owned(), |process| format!("process {process}"))
}

impl DiskCacheError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::InUse { .. } => {
                "give each mount a cache directory of its own, or end the other one; a clone lets go by itself, then try again"
                    .to_owned()
            }
            Self::NotOurs { directory, .. } => format!("name another directory, or remove it: rm -r {}", directory.display()),
            Self::WritableByOthers { directory, .. } => {
                format!("empty it and make it yours alone: rm -r {0}; mkdir -m 700 {0}", directory.display())
            }
            Self::NotEmpty { .. } => "name an empty directory, or one that does not exist yet".to_owned(),
            Self::System { .. } => "check the path and its permissions".to_owned(),
        }
    }
}

/// What can be seen of a cache from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What all of it takes on the disk.
    pub used_bytes: u64,
    /// Files of which something is there.
    pub files: u64,
    /// The process that has it now.
    pub process: Option<u32>,
    /// What the disk has left.
    pub free_bytes: u64,
}

/// Who takes a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Whose cache it is: waits a moment, and guests make room.
    Owner,
    /// Has it for as long as nobody else wants it, and never waits.
    Guest,
}

/// A directory that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) root: PathBuf,
    pub(super) files: PathBuf,
    lock: File,
}

fn system(directory: &Path, what: &'static str) -> impl FnOnce(io::Error) -> DiskCacheError {
    let directory = directory.to_owned();
    move |source| DiskCacheError::System { directory, what, source }
}

/// Refuses what is not ours alone, without changing it; whether it is a cache already.
fn check(directory: &Path) -> Result<bool, DiskCacheError> {
    let metadata = std::fs::metadata(directory).map_err(system(directory, "cannot be looked at"))?;
    if !metadata.is_dir() {
        return Err(system(directory, "cannot be a cache")(io::ErrorKind::NotADirectory.into()));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(DiskCacheError::NotOurs { directory: directory.to_owned(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(DiskCacheError::WritableByOthers { directory: directory.to_owned(), mode });
    }
    let mut other = None;
    for entry in std::fs::read_dir(directory).map_err(system(directory, "cannot be listed"))? {
        let name = entry.map_err(system(directory, "cannot be listed"))?.file_name();
        if name == LOCK {
            return Ok(true);
        }
        if name != LOST_AND_FOUND {
            other = Some(name.to_string_lossy().into_owned());
        }
    }
    match other {
        Some(name) => Err(DiskCacheError::NotEmpty { directory: directory.to_owned(), name }),
        None => Ok(false),
    }
}

/// Who has it, in its own words.
struct Holder {
    process: u32,
    is_guest: bool,
}

fn holder(lock: &File) -> Option<Holder> {
    let mut text = [0; 32];
    let length = lock.read_at(&mut text, 0).ok()?;
    let line = std::str::from_utf8(&text[..length]).ok()?.trim();
    let process = line.split_whitespace().next()?.parse().ok()?;
    Some(Holder { process, is_guest: line.ends_with(GUEST.trim()) })
}

impl Claim {
    /// Makes the directory, if need be, and takes it.
    pub(super) fn take(directory: &Path, standing: Standing) -> Result<Self, DiskCacheError> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(system(directory, "cannot be made"))?;
        let root = directory.canonicalize().map_err(system(directory, "cannot be looked at"))?;
        check(directory)?;
        std::fs::set_permissions(&root, Permissions::from_mode(0o700)).map_err(system(directory, "its mode cannot be set"))?;
        let mut lock = open_lock(&root, LOCK).map_err(system(directory, "its lock cannot be opened"))?;
        // Held from here to the end of this function: who only is a guest sees it.
        let wanted = match standing {
            Standing::Owner => Some(open_lock(&root, WANTED).map_err(system(directory, "its lock cannot be opened"))?),
            Standing::Guest => None,
        };
        let taken = match &wanted {
            Some(wanted) => {
                let is_guests = || holder(&lock).is_some_and(|holder| holder.is_guest);
                let cannot = || system(directory, "cannot be locked");
                // Another one who wants it is quicker, and is told of below.
                lock_file(wanted, Hold::Alone, MOMENT).map_err(cannot())?;
                lock_file(&lock, Hold::Alone, MOMENT).map_err(cannot())?
                    || is_guests() && lock_file(&lock, Hold::Alone, GUESTS_LEAVE).map_err(cannot())?
            }
            None => {
                !is_wanted(&root)
                    && lock_file(&lock, Hold::Alone, Duration::ZERO).map_err(system(directory, "cannot be locked"))?
            }
        };
        // What was locked may have been removed meanwhile, and another one be in its place.
        if !taken || !is_at(&lock, &root.join(LOCK)) {
            let process = holder(&lock).map(|holder| holder.process);
            return Err(DiskCacheError::InUse { directory: directory.to_owned(), process });
        }
        // Who is refused reads it; on a full disk it is left out.
        let standing = if standing == Standing::Guest { GUEST } else { "" };
        let _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}{standing}", std::process::id()));
        let files = root.join(FILES);
        match DirBuilder::new().mode(0o700).create(&files) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(system(directory, "cannot be written")(error)),
            _ => Ok(Self { root, files, lock }),
        }
    }

    /// The directory that was taken is still the one under its name.
    pub(super) fn is_current(&self) -> bool {
        is_at(&self.lock, &self.root.join(LOCK))
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |there: std::fs::Metadata| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()));
    std::fs::symlink_metadata(path).is_ok_and(same)
}

fn open_lock(root: &Path, name: &str) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(root.join(name))
}

/// Whether an owner waits for it. Several may ask at a time, and none of them looks like one who waits.
pub(super) fn is_wanted(root: &Path) -> bool {
    seen(root, WANTED) == Seen::Taken
}

/// What a look at a lock shows that changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Missing,
    Free,
    Taken,
}

/// Whether somebody has the directory.
pub(super) fn seen_lock(root: &Path) -> Seen {
    seen(root, LOCK)
}

fn seen(root: &Path, name: &str) -> Seen {
    match File::open(root.join(name)).map(|lock| lock.try_lock_shared()) {
        Ok(Ok(()) | Err(TryLockError::Error(_))) => Seen::Free,
        Ok(Err(TryLockError::WouldBlock)) => Seen::Taken,
        Err(_) => Seen::Missing,
    }
}

/// Where the files of a cache are that another process has.
pub(super) fn files_of(directory: &Path) -> Result<PathBuf, DiskCacheError> {
    check(directory)?;
    let root = directory.canonicalize().map_err(system(directory, "cannot be looked at"))?;
    Ok(root.join(FILES))
}

/// What can be seen without taking it; `None` when there is nothing yet.
pub fn inspect(directory: &Path) -> Result<Option<Inspection>, DiskCacheError> {
    // Nearest directory that is there: what would have to hold it.
    let free_bytes = directory
        .ancestors()
        .find_map(|above| rustix::fs::statvfs(above).ok())
        .map_or(0, |status| status.f_bavail * status.f_frsize);
    match check(directory) {
        Err(DiskCacheError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(false) => return Ok(Some(Inspection { used_bytes: 0, files: 0, process: None, free_bytes })),
        Ok(true) => {}
    }
    let mut used_bytes = 0;
    let mut entries = 0;
    for folder in [directory.to_owned(), directory.join(FILES)] {
        used_bytes += std::fs::symlink_metadata(&folder).map_or(0, |metadata| metadata.blocks() * 512);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            // What goes away meanwhile takes nothing.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                used_bytes += metadata.blocks() * 512;
                entries += u64::from(entry.path().extension().is_some_and(|extension| extension == super::stored::MAP));
            }
        }
    }
    let lock = File::open(directory.join(LOCK)).ok().filter(|_| seen_lock(directory) == Seen::Taken);
    let process = lock.and_then(|lock| holder(&lock)).map(|holder| holder.process);
    Ok(Some(Inspection { used_bytes, files: entries, process, free_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_private_and_taken_once() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = home.path().join("new/cache");
        assert_eq!(inspect(&directory).expect("may be looked at"), None);
        let claim = Claim::take(&directory, Standing::Owner).expect("free");
        assert_eq!(std::fs::metadata(&directory).expect("made").mode() & 0o7777, 0o700);
        let error = Claim::take(&directory, Standing::Owner).expect_err("taken");
        let own = std::process::id();
        assert!(matches!(error, DiskCacheError::InUse { process: Some(process), .. } if process == own), "{error}");
        assert!(error.to_string().contains(&directory.display().to_string()) && error.to_string().contains(&own.to_string()));
        assert_eq!(inspect(&directory).expect("ours").and_then(|seen| seen.process), Some(own));
        drop(claim);
        assert_eq!(inspect(&directory).expect("ours").and_then(|seen| seen.process), None);
        Claim::take(&directory, Standing::Owner).expect("free again");
    }

    #[test]
    fn a_directory_that_others_could_read_is_closed_and_one_they_could_write_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let mode = |mode| std::fs::set_permissions(home.path(), Permissions::from_mode(mode)).expect("chmods");
        mode(0o755);
        drop(Claim::take(home.path(), Standing::Owner).expect("ours"));
        assert_eq!(std::fs::metadata(home.path()).expect("there").mode() & 0o7777, 0o700);
        for open in [0o770, 0o702, 0o1777] {
            mode(open);
            let error = Claim::take(home.path(), Standing::Owner).expect_err("others write");
            assert!(matches!(error, DiskCacheError::WritableByOthers { .. }), "{error}");
        }
    }

    #[test]
    fn what_is_something_else_is_left_alone() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("chmods");
        std::fs::write(home.path().join("letter"), "dear").expect("writes");
        let error = Claim::take(home.path(), Standing::Owner).expect_err("a home");
        assert!(matches!(error, DiskCacheError::NotEmpty { .. }), "{error}");
        assert_eq!(std::fs::metadata(home.path()).expect("there").mode() & 0o7777, 0o755);
        let error = Claim::take(&home.path().join("letter"), Standing::Owner).expect_err("a file");
        assert!(matches!(error, DiskCacheError::System { .. }), "{error}");
    }

    #[test]
    fn another_users_directory_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let home = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::chown(home.path(), Some(65534), None).expect("root may");
        let error = Claim::take(home.path(), Standing::Owner).expect_err("not ours");
        assert!(matches!(error, DiskCacheError::NotOurs { owner: 65534, .. }), "{error}");
    }
}
