//! Opening a store's files where another user decides what lies there: beneath a directory, no link followed on the way.
//!
//! **Invariants.** A process with more rights than the store's user opens nothing for that user which they could not have read
//! themselves: names that a server says lead nowhere else, and what lies there under another user's name is not read when it
//! has a second name, which may be where it belongs.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A regular file at `path` below a directory. An absolute path, `..`, and links are errors.
pub fn open_beneath(directory: &Path, path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    open_in(File::from(rustix::fs::open(directory, flags, Mode::empty())?), path)
}

/// The same of a store's own file in its data directory, which may be a link itself: that is the configuration's.
pub fn open_own(directory: &Path, path: &Path) -> io::Result<File> {
    let directory = File::open(directory)?;
    let user = directory.metadata()?.uid();
    let file = open_in(directory, path)?;
    match foreign(&file.metadata()?, user) {
        None => Ok(file),
        Some(reason) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {reason}", path.display()))),
    }
}

fn open_in(directory: File, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(&directory, path, flags, Mode::empty(), within)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

/// Why a file in a directory of `user` is not to be read with more rights than theirs. Whoever may write to a directory can give
/// a file of somebody else a second name in it, where the kernel does not see to that (`fs.protected_hardlinks`).
pub fn foreign(meta: &Metadata, user: u32) -> Option<String> {
    let is_foreign = meta.nlink() > 1 && meta.uid() != user && user != 0;
    is_foreign.then(|| {
        let owner = meta.uid();
        format!("belongs to user {owner}, not to user {user} as the data directory does, and has a second name: remove it, or give it to them")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn nothing_is_opened_but_regular_files_beneath() {
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("secret"), "secret").expect("writes");
        let place = outside.path().join("data");
        std::fs::create_dir_all(place.join("below")).expect("makes");
        std::fs::write(place.join("below/file"), "text").expect("writes");
        symlink(outside.path().join("secret"), place.join("link")).expect("links");
        symlink(outside.path(), place.join("way")).expect("links");
        symlink(&place, outside.path().join("place")).expect("links");
        let secret = outside.path().join("secret").display().to_string();
        for path in ["../secret", &secret, "link", "way/secret", "below", "nothing"] {
            open_beneath(&place, Path::new(path)).expect_err(path);
            open_own(&place, Path::new(path)).expect_err(path);
        }
        open_beneath(&place, Path::new("below/file")).expect("is there");
        open_own(&outside.path().join("place"), Path::new("below/file")).expect("the directory may be a link");
        open_beneath(&outside.path().join("place"), Path::new("below/file")).expect_err("a served place is none");
    }

    #[test]
    fn a_second_name_of_somebody_elses_file_is_not_read_for_the_datas_user() {
        assert!(rustix::process::geteuid().is_root(), "these tests run as root");
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        std::fs::create_dir(at("data")).expect("makes");
        std::fs::write(at("shadow"), "secret").expect("writes");
        std::fs::hard_link(at("shadow"), at("data/dump.rdb")).expect("links");
        let open = || open_own(&at("data"), Path::new("dump.rdb"));
        open().expect("in root's own directory it is root's doing");
        chown(at("data"), Some(77), Some(77)).expect("chowns");
        let error = open().expect_err("it is root's").to_string();
        assert!(error.contains("dump.rdb: belongs to user 0, not to user 77"), "{error}");
        chown(at("shadow"), Some(77), None).expect("chowns");
        open().expect("it is theirs");
        std::fs::remove_file(at("shadow")).expect("removes");
        chown(at("data/dump.rdb"), Some(0), None).expect("chowns");
        open().expect("it has no other place");
    }
}
