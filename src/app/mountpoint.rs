//! A directory as a mountpoint, looked at without ever hanging: whoever serves it may be dead or stuck.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::mount::MountError;
use crate::fuse::mounts::mounted_at;

/// How long something that could hang (a look at a mountpoint, an unmount) is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The path without links, without touching what is mounted there.
pub(super) fn clean_path(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let system = |source| MountError::System { mountpoint: mountpoint.to_owned(), what: "cannot be looked at", source };
    let path = std::path::absolute(mountpoint).map_err(system)?;
    if mounted_at(&path).map_err(system)?.is_some() {
        return Ok(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    let parent = parent.canonicalize().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoDirectory { mountpoint: mountpoint.to_owned() },
        _ => system(error),
    })?;
    let path = parent.join(name);
    if mounted_at(&path).map_err(system)?.is_some() {
        return Ok(path);
    }
    // The last component may be a link to the directory.
    path.canonicalize().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoDirectory { mountpoint: mountpoint.to_owned() },
        _ => system(error),
    })
}

/// Whether the kernel's device is there for us.
pub(super) fn check_device() -> Result<(), MountError> {
    let hint = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (error, "run it as root, or make the device readable and writable for its users: chmod 666 /dev/fuse")
        }
        Err(error) => (error, "load the kernel's module and install the tools: modprobe fuse; apt-get install fuse3"),
    };
    Err(MountError::NoFuse { reason: hint.0.to_string(), hint: hint.1 })
}

/// What is found at a path.
pub(super) enum Look {
    Directory,
    Other,
    /// Nobody serves it any more.
    Dead(io::Error),
    Refused(io::Error),
    Hangs,
}

/// Looks at a path that may hang, from a thread that is left behind if it does.
pub(super) fn look(path: &Path) -> Look {
    let path = path.to_owned();
    // Attributes may come from the kernel's memory after the daemon died; a statfs always asks it.
    let looked = within(PATIENCE, move || {
        let metadata = std::fs::symlink_metadata(&path)?;
        rustix::fs::statfs(&path)?;
        Ok::<_, io::Error>(metadata)
    });
    match looked {
        None => Look::Hangs,
        Some(Ok(metadata)) if metadata.is_dir() => Look::Directory,
        Some(Ok(_)) => Look::Other,
        Some(Err(error)) => match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ESTALE | libc::ECONNABORTED) => Look::Dead(error),
            _ => Look::Refused(error),
        },
    }
}

/// Runs something that may never return; `None` when it did not in time.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // The receiver may be gone by the time that it returns.
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(limit).ok()
}
