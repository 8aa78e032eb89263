//! What the system says of a file, in the words of the port.

use std::io::{Error, ErrorKind};

use super::super::ObjectError;
use super::super::keys::invalid;

/// `has_root` tells a missing object from a missing store.
pub(super) fn object_error(error: Error, key: &str, location: &str, has_root: bool) -> ObjectError {
    let key = key.to_owned();
    let raw = error.raw_os_error();
    match raw {
        Some(libc::ENOENT | libc::ENOTDIR) if !has_root => ObjectError::NoStore { location: location.to_owned() },
        Some(libc::ENOSPC | libc::EDQUOT) => ObjectError::NoSpace { key, location: location.to_owned() },
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ObjectError::Denied { key, reason: error.to_string() },
        // A folder, or something below an object: no such object.
        Some(libc::ENOENT | libc::ENOTDIR | libc::EISDIR) => ObjectError::NotFound { key },
        Some(libc::ELOOP) => invalid(&key, "there is a symbolic link where the store has none of its own"),
        Some(libc::ENAMETOOLONG) => invalid(&key, "the file system takes no name of this length"),
        Some(libc::EFBIG) => invalid(&key, "the file system or a limit of the process takes no file of this size"),
        _ => match error.kind() {
            ErrorKind::NotFound if !has_root => ObjectError::NoStore { location: location.to_owned() },
            ErrorKind::NotFound => ObjectError::NotFound { key },
            ErrorKind::TimedOut => ObjectError::DeadlineExceeded { key, limit: super::LOCK_PATIENCE },
            _ => ObjectError::Unavailable { key, reason: error.to_string() },
        },
    }
}
