//! A fresh directory that a restore fills, and the only way in which it makes anything there.
//!
//! **Invariants.** Every path is opened below the directory's own handle, without following a link and without leaving
//! it, whatever the path says; nothing that exists is opened or replaced; until it is finished nobody else may enter.
//! One that an interrupted restore has left may be adopted: it is ours alone again before anything in it is opened, what
//! is no file of its own name alone is made anew, and whoever adopts it checks every byte that it keeps.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::restore_error::RestoreError;
use crate::model::names::TreePath;

/// Longest label that is copied; SELinux labels are far shorter.
const LABEL_BYTES_MAX: usize = 4096;
const LABEL: &str = "security.selinux";
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Who owns what is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs us.
    Ourselves,
    /// Always these.
    Fixed(u32, u32),
    /// As captured.
    AsCaptured,
}

/// A directory that is being filled.
#[derive(Debug)]
pub struct FreshDirectory {
    path: PathBuf,
    root: OwnedFd,
    owner: Owner,
    label: Option<Vec<u8>>,
    is_adopted: bool,
}

impl FreshDirectory {
    /// Makes `path`, which must not exist; everything in it gets the security label of `like`, where that has one.
    pub fn create(path: &Path, owner: Owner, like: Option<&Path>) -> Result<Self, RestoreError> {
        rustix::fs::mkdir(path, Mode::RWXU).map_err(RestoreError::file("make", path))?;
        Self::open(path, owner, like)
    }

    /// Takes an empty directory that is there already.
    pub fn open(path: &Path, owner: Owner, like: Option<&Path>) -> Result<Self, RestoreError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(RestoreError::file("open", path))?;
        let label = like.and_then(label_of);
        Ok(Self { path: path.to_owned(), root, owner, label, is_adopted: false })
    }

    /// Takes over what an interrupted restore has left.
    pub fn adopt(path: &Path, owner: Owner, like: Option<&Path>) -> Result<Self, RestoreError> {
        let fresh = Self::open(path, owner, like)?;
        make_private(&fresh.root, Mode::RWXU).map_err(RestoreError::file("take over", path))?;
        Ok(Self { is_adopted: true, ..fresh })
    }

    /// A directory in use, for [`Self::make_file`] of names that an interrupted run may have left behind.
    pub fn in_use(path: &Path, owner: Owner) -> Result<Self, RestoreError> {
        Ok(Self { is_adopted: true, ..Self::open(path, owner, Some(path))? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shown(&self, path: &TreePath) -> PathBuf {
        self.path.join(path.to_path_buf())
    }

    fn beneath(&self, path: &TreePath, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        if path.is_root() {
            return rustix::fs::openat(&self.root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty());
        }
        loop {
            match rustix::fs::openat2(&self.root, path.as_os_str(), flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, BENEATH) {
                // A rename elsewhere on the file system makes the kernel unsure; it asks to be asked again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn directory_of(&self, path: &TreePath) -> Result<OwnedFd, RestoreError> {
        let parent = path.parent().unwrap_or_default();
        self.beneath(&parent, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(RestoreError::file("open", &self.shown(&parent)))
    }

    /// Makes a directory that only we may enter; [`Self::finish_directory`] opens it to others.
    pub fn make_directory(&self, path: &TreePath) -> Result<(), RestoreError> {
        let parent = self.directory_of(path)?;
        let name = std::ffi::OsStr::from_encoded(path.file_name());
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.is_adopted => self
                .beneath(path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
                .and_then(|directory| make_private(&directory, Mode::RWXU)),
            made => made,
        }
        .map_err(RestoreError::file("make", &self.shown(path)))
    }

    /// Makes a symbolic link that says what was captured. It is never followed by us.
    pub fn make_link(&self, path: &TreePath, target: &[u8], owner: (u32, u32), modified_ns: i64) -> Result<(), RestoreError> {
        let parent = self.directory_of(path)?;
        let name = std::ffi::OsStr::from_encoded(path.file_name());
        let shown = self.shown(path);
        if self.is_adopted {
            // Whatever is there: a link costs nothing.
            let _absent = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
        }
        rustix::fs::symlinkat(std::ffi::OsStr::from_encoded(target), &parent, name)
            .map_err(RestoreError::file("link", &shown))?;
        if let Some((uid, gid)) = self.owner_for(owner) {
            rustix::fs::chownat(&parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(RestoreError::file("give away", &shown))?;
        }
        rustix::fs::utimensat(&parent, name, &times(modified_ns), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(RestoreError::file("date", &shown))
    }

    /// Where a link leads that was made here; `None` for everything else.
    pub fn link_target(&self, path: &TreePath) -> Option<Vec<u8>> {
        let parent = self.directory_of(path).ok()?;
        let name = std::ffi::OsStr::from_encoded(path.file_name());
        rustix::fs::readlinkat(&parent, name, Vec::new()).ok().map(std::ffi::CString::into_bytes)
    }

    /// Gives a file a second name, which must not be there.
    pub fn make_second_name(&self, path: &TreePath, file: &TreePath) -> Result<(), RestoreError> {
        let (from, to) = (self.directory_of(file)?, self.directory_of(path)?);
        let name = |path: &TreePath| std::ffi::OsString::from_vec(path.file_name().to_vec());
        rustix::fs::linkat(&from, name(file), &to, name(path), AtFlags::empty())
            .map_err(RestoreError::file("link", &self.shown(path)))
    }

    /// Renames within the directory; nothing that exists is replaced.
    pub fn rename(&self, old: &TreePath, new: &TreePath) -> Result<(), RestoreError> {
        let (from, to) = (self.directory_of(old)?, self.directory_of(new)?);
        let name = |path: &TreePath| std::ffi::OsString::from_vec(path.file_name().to_vec());
        rustix::fs::renameat_with(&from, name(old), &to, name(new), RenameFlags::NOREPLACE)
            .map_err(RestoreError::file("rename", &self.shown(old)))
    }

    /// Makes a file, readable by us alone until [`Self::finish_file`].
    pub fn make_file(&self, path: &TreePath) -> Result<File, RestoreError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        self.beneath(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).map_err(RestoreError::file("make", &self.shown(path)))
    }

    /// The same, or a file that an interrupted restore has left there, which may hold anything; whether it is one.
    pub fn take_file(&self, path: &TreePath) -> Result<(File, bool), RestoreError> {
        if !self.is_adopted {
            return Ok((self.make_file(path)?, false));
        }
        let private = Mode::RUSR | Mode::WUSR;
        match self.beneath(path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).map(File::from) {
            // Under a second name it could be anybody's file.
            Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() == 1) => {
                make_private(&file, private).map_err(RestoreError::file("take over", &self.shown(path)))?;
                Ok((file, true))
            }
            Err(Errno::NOENT) => Ok((self.make_file(path)?, false)),
            _ => {
                self.remove(path)?;
                Ok((self.make_file(path)?, false))
            }
        }
    }

    /// Removes what is there under this name, if it is no directory.
    pub fn remove(&self, path: &TreePath) -> Result<(), RestoreError> {
        let parent = self.directory_of(path)?;
        rustix::fs::unlinkat(&parent, std::ffi::OsStr::from_encoded(path.file_name()), AtFlags::empty())
            .map_err(RestoreError::file("remove", &self.shown(path)))
    }

    /// Removes what an interrupted restore has left in a directory under other names than these.
    pub fn keep_only(&self, directory: &TreePath, names: &HashSet<Vec<u8>>) -> Result<(), RestoreError> {
        if !self.is_adopted {
            return Ok(());
        }
        let shown = self.shown(directory);
        let opened = self
            .beneath(directory, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(RestoreError::file("open", &shown))?;
        let entries = rustix::fs::Dir::read_from(&opened).map_err(RestoreError::file("list", &shown))?;
        for entry in entries {
            let entry = entry.map_err(RestoreError::file("list", &shown))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || names.contains(name) {
                continue;
            }
            let name = std::ffi::OsStr::from_encoded(name);
            match rustix::fs::unlinkat(&opened, name, AtFlags::empty()) {
                // By way of the opened directory, and without following links on the way down.
                Err(Errno::ISDIR) => {
                    std::fs::remove_dir_all(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name))
                        .map_err(RestoreError::file("remove", &shown))?
                }
                removed => removed.map_err(RestoreError::file("remove", &shown))?,
            }
        }
        Ok(())
    }

    /// The directory of a path, opened without following links: for renames within it.
    pub(super) fn parent_of(&self, path: &TreePath) -> Result<OwnedFd, RestoreError> {
        self.directory_of(path)
    }

    /// A regular file that others may have changed since; `None` for everything else.
    pub(super) fn open_beneath(&self, path: &TreePath) -> Option<File> {
        open_regular(&self.root, path)
    }

    /// Opens a file that was made here before.
    pub fn open_file(&self, path: &TreePath) -> Result<File, RestoreError> {
        self.beneath(path, OFlags::RDONLY, Mode::empty()).map(File::from).map_err(RestoreError::file("open", &self.shown(path)))
    }

    /// Owner, mode, label and time of a whole file, and everything of it on the disk.
    pub fn finish_file(
        &self,
        file: &File,
        path: &TreePath,
        mode: u32,
        owner: (u32, u32),
        modified_ns: i64,
    ) -> Result<(), RestoreError> {
        self.dress(file, path, mode, owner, modified_ns)?;
        file.sync_all().map_err(RestoreError::file("write", &self.shown(path)))
    }

    /// The same for a directory, after all its entries.
    pub fn finish_directory(&self, path: &TreePath, mode: u32, owner: (u32, u32), modified_ns: i64) -> Result<(), RestoreError> {
        let directory = self
            .beneath(path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(RestoreError::file("open", &self.shown(path)))?;
        let directory = File::from(directory);
        self.dress(&directory, path, mode, owner, modified_ns)?;
        directory.sync_all().map_err(RestoreError::file("write", &self.shown(path)))
    }

    fn dress(&self, file: &File, path: &TreePath, mode: u32, owner: (u32, u32), modified_ns: i64) -> Result<(), RestoreError> {
        let shown = self.shown(path);
        if let Some((uid, gid)) = self.owner_for(owner) {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(RestoreError::file("give away", &shown))?;
        }
        // Never setuid, setgid or sticky: what comes out of a repository must not get rights by itself.
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777)).map_err(RestoreError::file("set the mode of", &shown))?;
        if let Some(label) = &self.label {
            match rustix::fs::fsetxattr(file, LABEL, label, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(RestoreError::file("label", &shown)(error)),
            }
        }
        rustix::fs::futimens(file, &times(modified_ns)).map_err(RestoreError::file("date", &shown))
    }

    fn owner_for(&self, captured: (u32, u32)) -> Option<(u32, u32)> {
        match self.owner {
            Owner::Ourselves => None,
            Owner::Fixed(uid, gid) => Some((uid, gid)),
            Owner::AsCaptured => Some(captured),
        }
    }
}

/// Ours alone, whoever it was given to.
fn make_private(file: impl AsFd, mode: Mode) -> Result<(), Errno> {
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    rustix::fs::fchmod(&file, mode)
}

/// A file of a directory that others may change meanwhile: below it, without following a link, and only a regular one.
pub(super) fn open_regular(directory: &OwnedFd, path: &TreePath) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat2(directory, path.as_os_str(), flags, Mode::empty(), BENEATH).ok()?);
    file.metadata().is_ok_and(|meta| meta.is_file()).then_some(file)
}

trait FromEncoded {
    fn from_encoded(bytes: &[u8]) -> &Self;
}

impl FromEncoded for std::ffi::OsStr {
    fn from_encoded(bytes: &[u8]) -> &Self {
        std::os::unix::ffi::OsStrExt::from_bytes(bytes)
    }
}

fn times(modified_ns: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified_ns.div_euclid(1_000_000_000), tv_nsec: modified_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

fn label_of(path: &Path) -> Option<Vec<u8>> {
    let mut label = vec![0u8; LABEL_BYTES_MAX];
    let length = rustix::fs::getxattr(path, LABEL, &mut label[..]).ok()?;
    label.truncate(length);
    Some(label)
}

/// Makes the names in a directory last.
pub(super) fn sync_directory(path: &Path) -> Result<(), RestoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(RestoreError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).expect("legal")
    }

    #[test]
    fn nothing_is_made_through_a_link() {
        let outside = tempfile::tempdir().expect("a directory");
        let inside = tempfile::tempdir().expect("a directory");
        let fresh = FreshDirectory::create(&inside.path().join("fresh"), Owner::Ourselves, None).expect("makes");
        let target = outside.path().as_os_str().as_encoded_bytes();
        fresh.make_link(&path("out"), target, (0, 0), 0).expect("links");
        assert!(fresh.make_file(&path("out/file")).is_err());
        assert!(fresh.make_directory(&path("out/directory")).is_err());
        assert!(fresh.make_file(&path("out")).is_err());
        assert!(fresh.make_link(&path("out/link"), b"x", (0, 0), 0).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).expect("lists").count(), 0);
    }

    #[test]
    fn special_bits_are_left_out_and_times_kept() {
        let inside = tempfile::tempdir().expect("a directory");
        let fresh = FreshDirectory::create(&inside.path().join("fresh"), Owner::Ourselves, None).expect("makes");
        let file = fresh.make_file(&path("f")).expect("makes");
        fresh.finish_file(&file, &path("f"), 0o6755, (0, 0), -1).expect("finishes");
        let meta = std::fs::metadata(inside.path().join("fresh/f")).expect("is there");
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o755, -1, 999_999_999));
        assert!(fresh.make_file(&path("f")).is_err());
    }
}
